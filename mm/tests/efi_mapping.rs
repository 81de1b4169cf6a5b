//! `EfiMm::create_mapping` and `set_mapping_permissions` against a plain map from page to descriptor, on the model MMU:
//! random requests that overlap, have holes, run out of tables, or invite blocks and Contiguous groups.
#![cfg(feature = "efi")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use arch::features::Hafdbs;
use arch::{Granule, PhysAddr, TableFrame, VirtAddr};
use model::mmu::{Access, AddressSpace, Config, Kind, Machine, Outcome, Page};
use model::{GranuleType, K4, K16, K64};
use pleat_mm::asid::EFI_ASID;
use pleat_mm::{EfiMapError, EfiMapping, EfiMemory, EfiMm, EfiProt, EfiProtError, TableAlloc};
use proptest::prelude::*;

const SPACE: AddressSpace = AddressSpace::User(EFI_ASID);
/// Aligned to whatever block.
const VA: u64 = 0x40_0000_0000;
const PA: u64 = 0x80_0000_0000;

// Bits of a leaf, as the Arm ARM has them (DDI 0487, D8.3.1).
const RDONLY: u64 = 1 << 7;
const PXN: u64 = 1 << 53;
/// Valid, page, Inner Shareable, AF, nG, UXN; memory type 0: Normal. Not: AP[1], DBM, CONT.
const LEAF: u64 = 0b11 | 0b11 << 8 | 1 << 10 | 1 << 11 | 1 << 54;
/// Memory type 1.
const DEVICE: u64 = 1 << 2;

use EfiMemory::{Device, Normal};
use EfiProt::{ReadExecute, ReadOnly, ReadWrite, ReadWriteExecute};

fn restrictions(prot: EfiProt) -> u64 {
    match prot {
        ReadOnly => RDONLY | PXN,
        ReadExecute => RDONLY,
        ReadWrite => PXN,
        ReadWriteExecute => 0,
    }
}

fn attributes(memory: EfiMemory) -> u64 {
    LEAF | match memory {
        Device => DEVICE | PXN,
        Normal(prot) => restrictions(prot),
    }
}

struct Tables<G: 'static> {
    machine: &'static Machine<G>,
    left: Cell<usize>,
}

impl<G: GranuleType> TableAlloc for Tables<G> {
    fn alloc_table(&self, level: u8) -> Option<TableFrame> {
        self.left.set(self.left.get().checked_sub(1)?);
        self.machine.running().alloc_table(level)
    }
}

struct World<G: GranuleType + 'static> {
    machine: &'static Machine<G>,
    tables: Tables<G>,
    mm: EfiMm<'static, &'static Machine<G>>,
    /// The descriptor of each page that is mapped.
    pages: BTreeMap<u64, u64>,
}

/// A page on, in bytes.
fn page<G: GranuleType>(n: u64) -> u64 {
    n * G::GRANULE.page_size()
}

fn mapping<G: GranuleType>(at: u64, frame: u64, pages: u64, memory: EfiMemory) -> EfiMapping {
    let (va, pa) = (VirtAddr::new(VA + page::<G>(at)), PhysAddr::new(PA + page::<G>(frame)));
    EfiMapping { va, pa, size: page::<G>(pages), memory }
}

impl<G: GranuleType + 'static> World<G> {
    fn new(config: Config) -> Self {
        let machine: &'static Machine<G> = Box::leak(Box::new(Machine::new(config, 64)));
        let root = machine.cpu(0).new_root();
        for cpu in 0..config.cpus {
            machine.cpu(cpu).load_ttbr0(Some(root), EFI_ASID);
        }
        machine.watch(SPACE);
        let tables = Tables { machine, left: Cell::new(usize::MAX) };
        Self { machine, tables, mm: EfiMm::new(machine, root, EFI_ASID), pages: BTreeMap::new() }
    }

    /// Does an operation that is to change these pages, and checks that it does, or that it changes nothing.
    fn apply<E>(
        &mut self,
        changes: &[(u64, u64)],
        act: impl FnOnce(&Self) -> Result<(), E>,
    ) -> Result<(), E> {
        let at = |&(va, raw): &(u64, Option<u64>)| (VirtAddr::new(va), raw.map(Page::from_descriptor));
        let wanted: Vec<_> = changes.iter().map(|&(va, raw)| (va, Some(raw))).collect();
        let before: Vec<_> = changes.iter().map(|(va, _)| (*va, self.pages.get(va).copied())).collect();
        let operation = self.machine.begin(SPACE, &wanted.iter().map(at).collect::<Vec<_>>());
        let result = act(self);
        if result.is_ok() {
            self.pages.extend(changes.iter().copied());
        } else {
            let back = self.machine.begin(SPACE, &before.iter().map(at).collect::<Vec<_>>());
            self.machine.end(back);
        }
        self.machine.end(operation);
        self.check();
        result
    }

    fn map(&mut self, request: EfiMapping) -> Result<(), EfiMapError> {
        let pages = (0..request.size).step_by(G::GRANULE.page_size() as usize);
        let raw = |i| (request.pa.get() + i) | attributes(request.memory);
        let changes: Vec<_> = pages.map(|i| (request.va.get() + i, raw(i))).collect();
        let taken = changes.iter().map(|(va, _)| *va).find(|va| self.pages.contains_key(va));
        // A request that is refused must have changed nothing, also by what comes before the culprit.
        let wanted = if taken.is_none() { &changes[..] } else { &[] };
        let result = self.apply(wanted, |world| world.mm.create_mapping(&request, &world.tables));
        match (taken, result) {
            (Some(va), Err(error)) => assert_eq!(error, EfiMapError::AlreadyMapped(VirtAddr::new(va))),
            (None, Err(EfiMapError::OutOfTables(_))) => assert_eq!(self.tables.left.get(), 0),
            (taken, result) => assert!(taken.is_none() && result.is_ok(), "{request:?}: {result:?}"),
        }
        result
    }

    fn protect(&mut self, at: u64, pages: u64, prot: EfiProt) -> Result<(), EfiProtError> {
        let all: Vec<_> = (at..at + pages).map(|i| VA + page::<G>(i)).collect();
        let hole = all.iter().copied().find(|va| !self.pages.contains_key(va));
        let changes: Vec<_> = match hole {
            None => all.iter().map(|va| (*va, self.pages[va] | restrictions(prot))).collect(),
            Some(_) => Vec::new(),
        };
        let act = |world: &Self| {
            let va = VirtAddr::new(VA + page::<G>(at));
            world.mm.set_mapping_permissions(va, page::<G>(pages), prot)
        };
        let result = self.apply(&changes, act);
        assert_eq!(result, hole.map_or(Ok(()), |va| Err(EfiProtError::NotMapped(VirtAddr::new(va)))));
        result
    }

    /// The model has no objection, and the tables hold what they must: pages, and nothing beside.
    fn check(&self) {
        if let Err(violations) = self.machine.check() {
            panic!("{}", violations[0]);
        }
        let mut found = BTreeMap::new();
        let _ = self.mm.walk(VirtAddr::new(0), 1 << 48, |leaf| {
            assert_eq!(leaf.level, 3, "a block: {leaf:?}");
            found.insert(leaf.va.get(), leaf.pte.raw());
            ControlFlow::<()>::Continue(())
        });
        assert_eq!(found, self.pages);
    }

    /// What a CPU may end in, by each kind of access.
    fn may(&self, at: u64, kind: Kind, privileged: bool) -> bool {
        let va = VirtAddr::new(VA + page::<G>(at));
        let outcomes = self.machine.cpu(1).access(va, Access { kind, privileged });
        assert_eq!(outcomes.len(), 1, "{outcomes:?}");
        matches!(outcomes.first(), Some(Outcome::Done(_)))
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// Where, the frame, how many pages, what, and for how many tables there is memory.
    Map(u64, u64, u64, EfiMemory, usize),
    Protect(u64, u64, EfiProt),
}

fn ops(granule: Granule) -> impl Strategy<Value = Vec<Op>> {
    let group = granule.cont_entries(3) as u64;
    // Whole groups, aligned, and what is beside them.
    let position = move || prop_oneof![(0..6_u64).prop_map(move |n| n * group), 0..4 * group];
    let count = move || prop_oneof![Just(group), Just(2 * group), 1..group];
    let prot = || prop_oneof![Just(ReadOnly), Just(ReadExecute), Just(ReadWrite), Just(ReadWriteExecute)];
    let memory = prop_oneof![1 => Just(Device), 4 => prot().prop_map(Normal)];
    let left = prop_oneof![8 => Just(usize::MAX), 1 => 0..3_usize];
    let map = (position(), prop_oneof![Just(0), 0..4_u64], count(), memory, left)
        .prop_map(|(at, skew, pages, memory, left)| Op::Map(at, at + skew, pages, memory, left));
    let protect = (position(), count(), prot()).prop_map(|(at, pages, prot)| Op::Protect(at, pages, prot));
    prop::collection::vec(prop_oneof![2 => map, 3 => protect], 1..12)
}

fn config() -> impl Strategy<Value = Config> {
    let hafdbs = prop_oneof![Just(Hafdbs::None), Just(Hafdbs::AfDbm)];
    (any::<bool>(), hafdbs).prop_map(|(tlb_range, hafdbs)| Config { tlb_range, hafdbs, ..Config::default() })
}

fn run<G: GranuleType + 'static>(config: Config, ops: &[Op]) {
    let mut world = World::<G>::new(config);
    for op in ops {
        match *op {
            Op::Map(at, frame, pages, memory, left) => {
                world.tables.left.set(left);
                let _ = world.map(mapping::<G>(at, frame, pages, memory));
            }
            Op::Protect(at, pages, prot) => {
                let _ = world.protect(at, pages, prot);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn agrees_with_a_plain_map_4k(config in config(), ops in ops(Granule::K4)) {
        run::<K4>(config, &ops);
    }

    #[test]
    fn agrees_with_a_plain_map_16k(config in config(), ops in ops(Granule::K16)) {
        run::<K16>(config, &ops);
    }

    #[test]
    fn agrees_with_a_plain_map_64k(config in config(), ops in ops(Granule::K64)) {
        run::<K64>(config, &ops);
    }
}

/// Whole blocks and groups, as aligned as they can be: only pages, none of them Contiguous.
#[test]
fn neither_blocks_nor_groups_however_aligned() {
    fn check<G: GranuleType + 'static>(pages: u64) {
        for memory in [Device, Normal(ReadWrite), Normal(ReadExecute)] {
            let mut world = World::<G>::new(Config::default());
            world.map(mapping::<G>(0, 0, pages, memory)).unwrap();
            assert_eq!(world.pages.len() as u64, pages);
            assert!(world.pages.values().all(|raw| raw >> 52 & 1 == 0));
        }
    }
    // One block of 2 MiB, and groups.
    check::<K4>(512);
    check::<K16>(256);
    check::<K64>(64);
}

/// Each demand at most once, and only downwards: what was taken is not given back.
#[test]
fn permissions_only_tighten() {
    for first in [ReadOnly, ReadExecute, ReadWrite, ReadWriteExecute] {
        for second in [ReadOnly, ReadExecute, ReadWrite, ReadWriteExecute] {
            let mut world = World::<K4>::new(Config::default());
            world.map(mapping::<K4>(0, 0, 16, Normal(first))).unwrap();
            world.protect(4, 2, second).unwrap();
            let may = |prot| {
                (matches!(prot, ReadWrite | ReadWriteExecute), matches!(prot, ReadExecute | ReadWriteExecute))
            };
            let ((write, execute), (also_write, also_execute)) = (may(first), may(second));
            assert!(world.may(4, Kind::Read, true));
            assert_eq!(world.may(4, Kind::Write, true), write && also_write, "{first:?}, then {second:?}");
            assert_eq!(
                world.may(5, Kind::Execute, true),
                execute && also_execute,
                "{first:?}, then {second:?}"
            );
            assert_eq!(
                (world.may(6, Kind::Write, true), world.may(3, Kind::Execute, true)),
                (write, execute)
            );
        }
    }
}

#[test]
fn what_a_cpu_may_do() {
    let mut world = World::<K4>::new(Config::default());
    for (at, memory) in (0..).zip([Device, Normal(ReadWrite), Normal(ReadWriteExecute)]) {
        world.map(mapping::<K4>(at, at, 1, memory)).unwrap();
        assert!(world.may(at, Kind::Read, true) && world.may(at, Kind::Write, true));
        assert_eq!(world.may(at, Kind::Execute, true), memory == Normal(ReadWriteExecute));
        for kind in [Kind::Read, Kind::Write, Kind::Execute] {
            assert!(!world.may(at, kind, false), "EL0 may {kind:?} {memory:?}");
        }
    }
    // Registers can become read-only, never executable.
    world.protect(0, 1, ReadExecute).unwrap();
    assert!(!world.may(0, Kind::Write, true) && !world.may(0, Kind::Execute, true));
}

/// What changes nothing stores nothing and invalidates nothing; what changes one page of many is invalidated.
#[test]
fn maintenance_only_where_something_changed() {
    use pleat_mm::counters::Counter::TlbInvalidations;
    let mut world = World::<K4>::new(Config::default());
    let count = |world: &World<K4>| world.mm.counters().get(TlbInvalidations);
    world.map(mapping::<K4>(0, 0, 16, Normal(ReadWrite))).unwrap();
    assert_eq!(count(&world), 0);
    world.protect(0, 16, ReadWrite).unwrap();
    world.protect(0, 16, ReadWriteExecute).unwrap();
    assert_eq!(count(&world), 0);
    world.protect(15, 1, ReadOnly).unwrap();
    assert_eq!(count(&world), 1);
    world.protect(0, 16, ReadOnly).unwrap();
    assert_eq!(count(&world), 17);
}

#[test]
fn each_error_is_one_clear_line() {
    let m = mapping::<K4>(0, 0, 2, Normal(ReadWrite));
    let range = "0x2000 bytes at 0x4000000000";
    for (error, line) in [
        (EfiMapError::Misaligned(m), format!("EFI mapping of {range} to 0x8000000000 is not page-aligned")),
        (EfiMapError::OutOfRange(m), format!("EFI mapping of {range} to 0x8000000000 is not below 2^48")),
        (EfiMapError::AlreadyMapped(m.va), "0x4000000000 is mapped already in efi_mm".into()),
        (EfiMapError::OutOfTables(m.va), "no memory for a translation table for 0x4000000000".into()),
    ] {
        assert_eq!(error.to_string(), line);
    }
    for (error, line) in [
        (
            EfiProtError::Misaligned(m.va, m.size),
            format!("EFI permissions for {range}, which are not whole pages"),
        ),
        (
            EfiProtError::OutOfRange(m.va, m.size),
            format!("EFI permissions for {range}, which are not below 2^48"),
        ),
        (
            EfiProtError::NotMapped(m.va),
            "EFI permissions for 0x4000000000, which is not mapped in efi_mm".into(),
        ),
    ] {
        assert_eq!(error.to_string(), line);
    }
}

#[test]
fn bad_ranges_are_refused() {
    let mut world = World::<K64>::new(Config::default());
    world.map(mapping::<K64>(0, 0, 1, Normal(ReadWrite))).unwrap();
    let good = mapping::<K64>(8, 8, 2, Normal(ReadWrite));
    let after = |va: VirtAddr, bytes| VirtAddr::new(va.get() + bytes);
    // EFI's own pages are too small.
    for bad in [
        EfiMapping { va: after(good.va, 0x1000), ..good },
        EfiMapping { pa: PhysAddr::new(PA + 0x1000), ..good },
        EfiMapping { size: 0x1000, ..good },
        EfiMapping { size: 0, ..good },
    ] {
        assert_eq!(world.mm.create_mapping(&bad, &world.tables), Err(EfiMapError::Misaligned(bad)));
    }
    for bad in [
        EfiMapping { va: VirtAddr::new((1 << 48) - 0x1_0000), ..good },
        EfiMapping { va: VirtAddr::new(!0 << 16), ..good },
        EfiMapping { pa: PhysAddr::new((1 << 48) - 0x1_0000), ..good },
        EfiMapping { size: !0 << 16, ..good },
    ] {
        assert_eq!(world.mm.create_mapping(&bad, &world.tables), Err(EfiMapError::OutOfRange(bad)));
    }
    let protect = |va, size| world.mm.set_mapping_permissions(va, size, ReadOnly);
    let va = VirtAddr::new(VA);
    for (va, size) in [(va, 0), (va, 0x1000), (after(va, 0x1000), 0x1_0000)] {
        assert_eq!(protect(va, size), Err(EfiProtError::Misaligned(va, size)));
    }
    for (va, size) in [(VirtAddr::new(1 << 48), 0x1_0000), (va, !0 << 16)] {
        assert_eq!(protect(va, size), Err(EfiProtError::OutOfRange(va, size)));
    }
    assert_eq!(protect(va, 1 << 40), Err(EfiProtError::NotMapped(after(va, 0x1_0000))));
    world.check();
}
