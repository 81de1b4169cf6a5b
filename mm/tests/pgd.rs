//! `create_pgd_mapping` against a plain map from page to frame, permission and memory type, judged event by event by the
//! recorder: random requests that overlap, change permissions, run out of tables, or must be refused.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arch::{Granule, MemoryType, PhysAddr, PteFlags, TableFrame, VirtAddr};
use model::{Event, GranuleType, K4, K16, K64, Recorder};
use pleat_mm::{KernelProt, MapError, Mapping, Mm, TableAlloc, create_pgd_mapping};
use proptest::prelude::*;

const BASE: u64 = 0xffff_9000_0000_0000;

struct Tables<'a, G>(&'a Recorder<G>);

impl<G: GranuleType> TableAlloc for Tables<'_, G> {
    fn alloc_table(&self, level: u8) -> Option<TableFrame> {
        self.0.alloc_table(level)
    }
}

fn request(va: u64, pa: u64, size: u64, prot: KernelProt) -> Mapping {
    Mapping { va: VirtAddr::new(va), pa: PhysAddr::new(pa), size, prot, memory: MemoryType::Normal }
}

/// What a page is mapped to.
type Page = (u64, KernelProt, MemoryType);

struct World<'a, G: GranuleType> {
    recorder: &'a Recorder<G>,
    mm: Mm<'static, &'a Recorder<G>>,
    root: TableFrame,
    pages: BTreeMap<u64, Page>,
}

impl<'a, G: GranuleType> World<'a, G> {
    fn new(recorder: &'a Recorder<G>) -> Self {
        let root = recorder.new_root();
        Self { recorder, mm: Mm::new_kernel(recorder, root), root, pages: BTreeMap::new() }
    }

    /// Every leaf as the mm tells it: base, level, descriptor.
    fn leaves(&self) -> Vec<(u64, u8, u64)> {
        let mut leaves = Vec::new();
        let _ = self.mm.walk(VirtAddr::new(0xffff_0000_0000_0000), 1 << 48, |leaf| {
            leaves.push((leaf.va.get(), leaf.level, leaf.pte.raw()));
            ControlFlow::<()>::Continue(())
        });
        leaves
    }

    /// Makes the request, and checks that it does what the plain map says it must.
    fn apply(&mut self, request: &Mapping, limit: Option<usize>) {
        let before = self.leaves();
        let changes_permissions = self.live(request).any(|(live, page)| live != page);
        self.recorder.limit_tables(limit);
        let result =
            catch_unwind(AssertUnwindSafe(|| create_pgd_mapping(&self.mm, request, &Tables(self.recorder))));
        self.recorder.limit_tables(None);
        match result {
            Ok(Ok(())) => {
                let events = self.recorder.events();
                for event in &events {
                    assert!(
                        !matches!(event, Event::Store { old, new, .. } if old == new),
                        "{event:?} is idle"
                    );
                }
                let invalidates = events.iter().any(|event| matches!(event, Event::Invalidate(_)));
                assert_eq!(invalidates, changes_permissions, "{request:?}");
                if let Err(violations) = self.recorder.end_operation() {
                    panic!("{request:?}: {violations:#?}");
                }
                for (va, page) in pages::<G>(request) {
                    if let Some((pa, _, memory)) = self.pages.get(&va) {
                        assert_eq!(
                            (*pa, *memory),
                            (page.0, page.2),
                            "{va:#x} was live and changed its frame"
                        );
                    }
                    self.pages.insert(va, page);
                }
            }
            Ok(Err(error)) => {
                assert!(matches!(error, MapError::OutOfTables(_)) && limit.is_some(), "{request:?}: {error}");
                assert_eq!(self.leaves(), before, "a leaf changed although it failed");
                self.recorder.end_operation().unwrap();
            }
            Err(panic) => {
                let message = panic.downcast_ref::<String>().expect("a message").clone();
                assert!(message.contains("0xffff9"), "the address is not named: {message}");
                assert_eq!(self.leaves(), before, "a leaf changed although it was refused");
                assert_eq!(self.recorder.events(), [], "something happened although it was refused");
                assert!(
                    self.live(request).any(|(live, page)| live != page),
                    "{request:?} was refused: {message}"
                );
            }
        }
        self.check();
    }

    /// The pages of the request that are live, as they are and as it wants them.
    fn live(&self, request: &Mapping) -> impl Iterator<Item = (Page, Page)> {
        pages::<G>(request).filter_map(|(va, page)| Some((*self.pages.get(&va)?, page)))
    }

    fn check(&self) {
        let granule = G::GRANULE;
        let mut found = BTreeMap::new();
        for leaf in self.recorder.leaves(self.root) {
            let flags = PteFlags::from_bits_truncate(leaf.raw);
            let prot = match (flags.contains(PteFlags::RDONLY), flags.contains(PteFlags::PXN)) {
                (true, false) => KernelProt::ReadExecute,
                (true, true) => KernelProt::ReadOnly,
                (false, true) => KernelProt::ReadWrite,
                (false, false) => panic!("{leaf:?} is writable and executable"),
            };
            let memory = if leaf.raw >> 2 & 7 == 0 { MemoryType::Normal } else { MemoryType::Device };
            for offset in (0..granule.level_size(leaf.level)).step_by(granule.page_size() as usize) {
                found.insert(leaf.va.get() + offset, (leaf.pa.get() + offset, prot, memory));
            }
        }
        assert_eq!(found, self.pages);
        // The walk under test and the recorder's own agree.
        let own = self.recorder.leaves(self.root);
        let own: Vec<_> = own.iter().map(|leaf| (leaf.va.get(), leaf.level, leaf.raw | 0b10)).collect();
        assert_eq!(self.leaves(), own);
    }
}

fn pages<G: GranuleType>(request: &Mapping) -> impl Iterator<Item = (u64, Page)> {
    let (va, pa, prot, memory) = (request.va.get(), request.pa.get(), request.prot, request.memory);
    (0..request.size).step_by(G::GRANULE.page_size() as usize).map(move |i| (va + i, (pa + i, prot, memory)))
}

/// A request in pages, around an area of a few groups and, where that is not too many pages, a few blocks.
fn requests(granule: Granule) -> impl Strategy<Value = (Mapping, Option<usize>)> {
    let page = granule.page_size();
    let group = granule.cont_entries(3) as u64;
    // Blocks of the larger granules are too many pages for a plain map.
    let block = if granule == Granule::K4 { granule.level_size(2) / page } else { 4 * group };
    let unit = move || prop_oneof![Just(1), Just(group), Just(block)];
    let position = move || (unit(), 0..8_u64).prop_map(|(unit, n)| unit * n);
    let prot = prop_oneof![
        3 => Just(KernelProt::ReadWrite),
        1 => Just(KernelProt::ReadOnly),
        1 => Just(KernelProt::ReadExecute),
    ];
    // Mostly congruent, so that requests meet what earlier ones left.
    let skew = prop_oneof![8 => Just(0), 1 => Just(1), 1 => Just(group)];
    let device = prop::bool::weighted(0.1);
    let limit = prop::option::weighted(0.2, 0..4_usize);
    (position(), (unit(), 1..5_u64), prot, skew, device, limit).prop_map(
        move |(at, (unit, n), prot, skew, device, limit)| {
            let prot = if device { KernelProt::ReadWrite } else { prot };
            let memory = if device { MemoryType::Device } else { MemoryType::Normal };
            let pa = granule.level_size(2) * 4 + (at + skew) * page;
            (Mapping { memory, ..request(BASE + at * page, pa, unit * n * page, prot) }, limit)
        },
    )
}

fn run<G: GranuleType + 'static>(requests: &[(Mapping, Option<usize>)]) {
    let recorder = Recorder::<G>::new(64);
    let mut world = World::new(&recorder);
    for (request, limit) in requests {
        world.apply(request, *limit);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn agrees_with_a_plain_map_4k(requests in prop::collection::vec(requests(Granule::K4), 1..12)) {
        quietly(|| run::<K4>(&requests));
    }

    #[test]
    fn agrees_with_a_plain_map_16k(requests in prop::collection::vec(requests(Granule::K16), 1..12)) {
        quietly(|| run::<K16>(&requests));
    }

    #[test]
    fn agrees_with_a_plain_map_64k(requests in prop::collection::vec(requests(Granule::K64), 1..12)) {
        quietly(|| run::<K64>(&requests));
    }
}

/// Without the message of each panic that is expected.
fn quietly(f: impl FnOnce()) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let text = info.payload().downcast_ref::<String>().map(String::as_str).unwrap_or_default();
            if !text.starts_with("mapping 0x") {
                report(info);
            }
        }));
    });
    f();
}

/// Maps `first`, then asks for `second`, which must panic with this in its message, and do nothing at all; also
/// where it would have needed a table that there is no memory for.
fn refused(first: &Mapping, second: &Mapping, expected: &str) {
    let recorder = Recorder::<K4>::new(16);
    let mut world = World::new(&recorder);
    world.apply(first, None);
    for limit in [None, Some(0)] {
        recorder.limit_tables(limit);
        let result =
            catch_unwind(AssertUnwindSafe(|| create_pgd_mapping(&world.mm, second, &Tables(&recorder))));
        let panic = result.expect_err("a live entry was changed");
        let message = panic.downcast_ref::<String>().expect("a message");
        assert!(message.contains(expected), "{message}");
        assert!(message.contains("0xffff9000"), "the address is not named: {message}");
        assert_eq!(recorder.events(), []);
    }
}

const K: u64 = 1 << 10;
const M: u64 = 1 << 20;
const RW: KernelProt = KernelProt::ReadWrite;
const RO: KernelProt = KernelProt::ReadOnly;

#[test]
fn another_frame_is_refused() {
    refused(&request(BASE, 4 * M, 4 * K, RW), &request(BASE, 8 * M, 4 * K, RW), "would become");
    refused(&request(BASE, 4 * M, 2 * M, RW), &request(BASE, 8 * M, 2 * M, RW), "would become");
    refused(
        &request(BASE, 4 * M, 2 * M, RW),
        &request(BASE + 4 * K, 8 * M, 4 * K, RW),
        "part of a live block",
    );
}

#[test]
fn another_memory_type_is_refused() {
    let device = Mapping { memory: MemoryType::Device, ..request(BASE, 4 * M, 4 * K, RW) };
    refused(&request(BASE, 4 * M, 4 * K, RW), &device, "would become");
}

#[test]
fn other_permissions_of_a_part_are_refused() {
    // Of a block, which would have to be split; of a group, which would no longer be one translation.
    refused(&request(BASE, 4 * M, 2 * M, RW), &request(BASE, 4 * M, 4 * K, RO), "part of a live block");
    refused(&request(BASE, M, 64 * K, RW), &request(BASE + 4 * K, M + 4 * K, 4 * K, RO), "Contiguous group");
    refused(&request(BASE, M, 64 * K, RW), &request(BASE, M, 60 * K, RO), "Contiguous group");
    refused(&request(BASE, 32 * M, 32 * M, RW), &request(BASE, 32 * M, 2 * M, RO), "Contiguous group");
}

#[test]
fn a_refused_request_changes_nothing_before_the_culprit() {
    // The culprit comes last; what comes before it could have been mapped.
    refused(
        &request(BASE + 2 * M, 4 * M, 4 * K, RW),
        &request(BASE, 16 * M, 2 * M + 4 * K, RW),
        "would become",
    );
    // Pages, which need a table.
    refused(
        &request(BASE + 2 * M, 4 * M, 4 * K, RW),
        &request(BASE, 16 * M + 4 * K, 2 * M + 4 * K, RW),
        "would become",
    );
    // The culprit is in the last of several tables that are missing.
    refused(
        &request(BASE + 1024 * M, 4 * M, 4 * K, RW),
        &request(BASE + 1020 * M, 16 * M, 4 * M + 4 * K, RW),
        "would become",
    );
}

/// What happened in a request for the same range with `second`, after one with `first`, without `dsb`s.
fn events_of_second(range: &Mapping, first: KernelProt, second: KernelProt) -> Vec<Event> {
    let recorder = Recorder::<K4>::new(16);
    let mut world = World::new(&recorder);
    world.apply(&Mapping { prot: first, ..*range }, None);
    let request = Mapping { prot: second, ..*range };
    create_pgd_mapping(&world.mm, &request, &Tables(&recorder)).unwrap();
    let mut events = recorder.events();
    recorder.end_operation().unwrap();
    events.retain(|event| !matches!(event, Event::Publish | Event::Complete));
    events
}

#[test]
fn the_same_again_stores_and_invalidates_nothing() {
    // A page, a group and a page beside it, a block and pages.
    for range in [
        request(BASE, 4 * M, 4 * K, RW),
        request(BASE, 4 * M, 68 * K, RW),
        request(BASE, 4 * M, 2 * M + 8 * K, RW),
    ] {
        for prot in [RW, RO, KernelProt::ReadExecute] {
            assert_eq!(events_of_second(&range, prot, prot), []);
        }
    }
}

#[test]
fn a_change_of_permissions_stores_and_invalidates_each_leaf_once() {
    // A block, a group and a page: 18 leaves.
    let events = events_of_second(&request(BASE, 4 * M, 2 * M + 68 * K, RW), RW, RO);
    let invalidates = |event: &Event| matches!(event, Event::Invalidate(_));
    assert_eq!(events.len(), 36, "{events:?}");
    assert!(!events[..18].iter().any(invalidates) && events[18..].iter().all(invalidates), "{events:?}");
    // A first mapping owes none.
    let recorder = Recorder::<K4>::new(16);
    let world = World::new(&recorder);
    create_pgd_mapping(&world.mm, &request(BASE, 4 * M, 4 * K, RW), &Tables(&recorder)).unwrap();
    assert!(!recorder.events().iter().any(invalidates));
    assert!(!recorder.events().contains(&Event::Complete));
}
