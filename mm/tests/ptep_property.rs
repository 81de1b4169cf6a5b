//! The public API against a plain map from page to frame, permission, young and dirty, whatever is folded meanwhile,
//! with hardware that sets access flags and dirty states where it may.

mod common;

use std::collections::BTreeMap;

use arch::mmu::Hafdbs;
use arch::{Granule, PteFlags, PteValue, Table, TableFrame, VirtAddr};
use common::{GranuleType, K4, K16, K64, Plain};
use pleat_mm::frame::{Folio, Frame, FrameMap, Zone};
use pleat_mm::pte::{Pte, UserProt};
use pleat_mm::ptep::*;
use pleat_mm::{Mm, PteGuard, TableAlloc, contpte};
use proptest::prelude::*;

/// What a page is meant to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Page {
    pfn: u64,
    prot: UserProt,
    young: bool,
    dirty: bool,
}

#[derive(Clone, Debug)]
enum Op {
    /// Maps pages of a folio, from a page of it, at a page, without what is mapped already.
    Map {
        folio: usize,
        from: u64,
        at: u64,
        nr: u64,
        prot: UserProt,
        one_by_one: bool,
        downwards: bool,
    },
    Clear {
        at: u64,
        nr: u64,
    },
    WriteProtect {
        at: u64,
        nr: u64,
    },
    TestAndClearYoung {
        at: u64,
        flush: bool,
    },
    ClearYoungDirty {
        at: u64,
        nr: u64,
        what: YoungDirty,
    },
    /// A fault for a write or a read, as the handler resolves it.
    Fault {
        at: u64,
        write: bool,
    },
    Protect {
        at: u64,
        nr: u64,
        prot: UserProt,
    },
    Refold {
        at: u64,
        nr: u64,
    },
    /// Hardware uses the page, if it may, by the entry of a page of the same block.
    Access {
        at: u64,
        by: u64,
        write: bool,
    },
}

fn prot() -> impl Strategy<Value = UserProt> {
    prop_oneof![
        4 => Just(UserProt::ReadWrite),
        2 => Just(UserProt::Read),
        1 => Just(UserProt::ReadExecute),
        1 => Just(UserProt::ReadWriteExecute),
    ]
}

/// Lengths around those of blocks.
fn length(block: u64) -> impl Strategy<Value = u64> {
    prop_oneof![1..=4_u64, Just(block), 1..=3 * block, Just(2 * block), Just(block - 1)]
}

fn position(pages: u64, block: u64) -> impl Strategy<Value = u64> {
    prop_oneof![0..pages, (0..pages / block).prop_map(move |b| b * block)]
}

fn op(pages: u64, block: u64, folios: usize) -> impl Strategy<Value = Op> {
    let at = move || position(pages, block);
    let nr = move || length(block);
    prop_oneof![
        6 => (0..folios, position(2 * block, block), at(), nr(), prot(), any::<(bool, bool)>()).prop_map(
            |(folio, from, at, nr, prot, (one_by_one, downwards))|
                Op::Map { folio, from, at, nr, prot, one_by_one, downwards }
        ),
        2 => (at(), nr()).prop_map(|(at, nr)| Op::Clear { at, nr }),
        2 => (at(), nr()).prop_map(|(at, nr)| Op::WriteProtect { at, nr }),
        1 => (at(), any::<bool>()).prop_map(|(at, flush)| Op::TestAndClearYoung { at, flush }),
        1 => (at(), nr(), prop_oneof![Just(YoungDirty::Young), Just(YoungDirty::Dirty), Just(YoungDirty::Both)])
            .prop_map(|(at, nr, what)| Op::ClearYoungDirty { at, nr, what }),
        4 => (at(), any::<bool>()).prop_map(|(at, write)| Op::Fault { at, write }),
        2 => (at(), nr(), prot()).prop_map(|(at, nr, prot)| Op::Protect { at, nr, prot }),
        1 => (at(), nr()).prop_map(|(at, nr)| Op::Refold { at, nr }),
        6 => (at(), 0..block, any::<bool>()).prop_map(|(at, by, write)| Op::Access { at, by, write }),
    ]
}

const BASE: u64 = 0x40_0000_0000;

struct World<'a, 'm, G: GranuleType> {
    mm: &'a Mm<'m, &'m Plain<G>>,
    plain: &'m Plain<G>,
    folios: &'a [Folio<'m>],
    pages: u64,
    reference: BTreeMap<u64, Page>,
}

impl<'a, 'm, G: GranuleType> World<'a, 'm, G> {
    fn va(&self, page: u64) -> VirtAddr {
        VirtAddr::new(BASE + page * G::GRANULE.page_size())
    }

    fn lock(&self) -> PteGuard<'a, 'm, &'m Plain<G>> {
        self.mm.lock_table(self.va(0), self.plain).unwrap()
    }

    fn block(&self) -> u64 {
        G::GRANULE.cont_entries(3) as u64
    }

    fn folded(&self, page: u64) -> bool {
        contpte::why_not_folded(self.mm, self.va(page)).is_ok()
    }

    /// Young and dirty are of the block where it is folded.
    fn spread(&mut self) {
        for start in (0..self.pages).step_by(self.block() as usize) {
            if !self.folded(start) {
                continue;
            }
            let block = start..start + self.block();
            let young = block.clone().any(|page| self.reference[&page].young);
            let dirty = block.clone().any(|page| self.reference[&page].dirty);
            for page in block {
                let page = self.reference.get_mut(&page).unwrap();
                (page.young, page.dirty) = (young, dirty);
            }
        }
    }

    fn apply(&mut self, op: &Op) {
        let end = |at: u64, nr: u64| (at + nr).min(self.pages);
        match *op {
            Op::Map { folio, from, at, nr, prot, one_by_one, downwards } => {
                let folio = &self.folios[folio];
                let from = from % folio.frames();
                let nr = nr.min(folio.frames() - from).min(self.pages - at);
                // Only what is empty: the rest is other operations' business.
                let free = (0..nr).take_while(|i| !self.reference.contains_key(&(at + i))).count() as u64;
                if free == 0 {
                    return;
                }
                let pte = |i: u64| PteValue::new_user(folio.head().add(from + i).addr(G::GRANULE), prot);
                let mut guard = self.lock();
                if one_by_one {
                    let order: Vec<u64> =
                        if downwards { (0..free).rev().collect() } else { (0..free).collect() };
                    for i in order {
                        set_ptes(&mut guard, self.va(at + i), pte(i), 1);
                    }
                } else {
                    set_ptes(&mut guard, self.va(at), pte(0), free as usize);
                }
                for i in 0..free {
                    let page = Page { pfn: folio.head().get() + from + i, prot, young: true, dirty: false };
                    self.reference.insert(at + i, page);
                }
            }
            Op::Clear { at, nr } => {
                let pages: Vec<u64> = (at..end(at, nr)).collect();
                let mut guard = self.lock();
                let first = ptep_get(&guard, self.va(at));
                let cleared = get_and_clear_ptes(&mut guard, self.va(at), pages.len());
                assert_eq!(cleared.is_valid(), first.is_valid());
                if cleared.is_valid() {
                    assert_eq!(cleared.pa(), first.pa());
                    let removed: Vec<Page> =
                        pages.iter().filter_map(|page| self.reference.get(page).copied()).collect();
                    assert_eq!(
                        cleared.is_young(),
                        removed.iter().any(|page| page.young),
                        "young of the cleared range"
                    );
                    assert_eq!(
                        cleared.is_dirty(),
                        removed.iter().any(|page| page.dirty),
                        "dirty of the cleared range"
                    );
                }
                for page in pages {
                    self.reference.remove(&page);
                }
            }
            Op::WriteProtect { at, nr } => {
                wrprotect_ptes(&mut self.lock(), self.va(at), (end(at, nr) - at) as usize);
                for (_, page) in self.reference.range_mut(at..end(at, nr)) {
                    page.prot = match page.prot {
                        UserProt::Read | UserProt::ReadWrite => UserProt::Read,
                        UserProt::ReadExecute | UserProt::ReadWriteExecute => UserProt::ReadExecute,
                    };
                }
            }
            Op::TestAndClearYoung { at, flush } => {
                let expected = self.reference.get(&at).is_some_and(|page| page.young);
                let mut guard = self.lock();
                let young = if flush {
                    ptep_clear_flush_young(&mut guard, self.va(at))
                } else {
                    ptep_test_and_clear_young(&mut guard, self.va(at))
                };
                assert_eq!(young, expected);
                self.set_flags(at..at + 1, |page| page.young = false);
            }
            Op::ClearYoungDirty { at, nr, what } => {
                clear_young_dirty_ptes(&mut self.lock(), self.va(at), (end(at, nr) - at) as usize, what);
                self.set_flags(at..end(at, nr), |page| {
                    page.young &= what == YoungDirty::Dirty;
                    page.dirty &= what == YoungDirty::Young;
                });
            }
            Op::Fault { at, write } => {
                let Some(&page) = self.reference.get(&at) else { return };
                let mut guard = self.lock();
                let pte = ptep_get(&guard, self.va(at));
                if write && !pte.is_writable() {
                    return;
                }
                let wanted = if write { pte.mkyoung().mkdirty() } else { pte.mkyoung() };
                ptep_set_access_flags(&mut guard, self.va(at), wanted);
                // The walker reads this very entry: it must be usable now, whatever its siblings say.
                let raw = self.raw(at);
                assert!(raw.is_young(), "a fault at {at} would come again: {raw:?}");
                assert!(
                    !write || !raw.flags().contains(PteFlags::RDONLY),
                    "a write at {at} would fault again"
                );
                drop(guard);
                let reference = self.reference.get_mut(&at).unwrap();
                reference.young = true;
                reference.dirty |= write;
                let _ = page;
            }
            Op::Protect { at, nr, prot } => self.protect(at, end(at, nr), prot),
            Op::Refold { at, nr } => {
                let folded = contpte::refold(&mut self.lock(), self.va(at), (end(at, nr) - at) as usize);
                for start in (at - at % self.block()..end(at, nr)).step_by(self.block() as usize) {
                    let why = contpte::why_not_folded(self.mm, self.va(start));
                    assert_ne!(why, Err(contpte::Obstacle::None), "refold of {folded} left {start}");
                }
            }
            Op::Access { at, by, write } => self.access(at, by, write),
        }
    }

    /// Changes the flags of pages, and of the whole of a block that is folded at either end.
    fn set_flags(&mut self, mut range: std::ops::Range<u64>, change: impl Fn(&mut Page)) {
        if self.folded(range.start) {
            range.start -= range.start % self.block();
        }
        if self.folded(range.end - 1) {
            range.end = (range.end - 1) / self.block() * self.block() + self.block();
        }
        self.reference.range_mut(range).for_each(|(_, page)| change(page));
    }

    /// As mprotect does: runs of pages that follow one another in one folio, each as one batch.
    fn protect(&mut self, at: u64, end: u64, prot: UserProt) {
        let mut page = at;
        while page < end {
            let Some(&first) = self.reference.get(&page) else {
                page += 1;
                continue;
            };
            let same_run = |i: u64| {
                self.reference.get(&(page + i)).is_some_and(|other| {
                    let folio =
                        self.folios.iter().find(|folio| folio.contains(arch::Pfn::new(first.pfn))).unwrap();
                    other.pfn == first.pfn + i
                        && other.prot == first.prot
                        && folio.contains(arch::Pfn::new(other.pfn))
                })
            };
            let nr = (0..end - page).take_while(|&i| same_run(i)).count() as u64;
            let mut guard = self.lock();
            let old = modify_prot_start(&mut guard, self.va(page), nr as usize);
            modify_prot_commit(&mut guard, self.va(page), old.with_prot(prot), nr as usize);
            drop(guard);
            let run = || page..page + nr;
            let young = self.reference.range(run()).any(|(_, page)| page.young);
            let dirty = self.reference.range(run()).any(|(_, page)| page.dirty);
            for (_, page) in self.reference.range_mut(run()) {
                *page = Page { prot, young, dirty, ..*page };
            }
            page += nr;
        }
    }

    fn table(&self) -> Table<'_, &'m Plain<G>> {
        // SAFETY: the root that the mm was made with.
        let root = unsafe { TableFrame::new(self.mm.root(), G::GRANULE.start_level(48)) };
        let mut table = Table::new(self.mm.mmu(), root);
        while table.level() < 3 {
            let arch::Entry::Table(child) = table.entry(G::GRANULE.index(BASE, table.level())) else {
                panic!("no table")
            };
            table = Table::new(self.mm.mmu(), child);
        }
        table
    }

    fn raw(&self, page: u64) -> PteValue {
        self.table().leaf(page as usize)
    }

    /// What hardware does with an access to a page: through its own entry, or where the block is folded, through any.
    fn access(&mut self, at: u64, by: u64, write: bool) {
        let through = if self.folded(at) { at - at % self.block() + by } else { at };
        let pte = self.raw(through);
        if !pte.is_valid() {
            return;
        }
        let hafdbs = self.plain.features.hafdbs;
        let mut new = pte;
        if !pte.is_young() {
            if hafdbs == Hafdbs::None {
                return;
            }
            new = new.mkyoung();
        }
        if write && new.flags().contains(PteFlags::RDONLY) {
            if hafdbs != Hafdbs::AfDbm || !new.is_writable() {
                return;
            }
            new = new.without(PteFlags::RDONLY);
        }
        self.table().set_leaf(through as usize, new);
        let page = self.reference.get_mut(&at).unwrap();
        page.young = true;
        page.dirty |= write;
    }

    fn check(&self) {
        let guard = self.lock();
        let lockless = LocklessGuard::interrupts_masked();
        for at in 0..self.pages {
            let pte = ptep_get(&guard, self.va(at));
            let found = pte.is_valid().then(|| Page {
                pfn: pte.pa().pfn(G::GRANULE).get(),
                prot: prot_of(pte),
                young: pte.is_young(),
                dirty: pte.is_dirty(),
            });
            assert_eq!(found, self.reference.get(&at).copied(), "page {at}");
            assert_eq!(
                ptep_get_lockless(self.mm, self.va(at), &lockless),
                Ok(pte),
                "page {at}, without the lock"
            );
            let left = pte_batch_hint(&guard, self.va(at)) as u64;
            assert_eq!(left, if self.folded(at) { self.block() - at % self.block() } else { 1 });
        }
        // Every block as the architecture wants it: all valid entries with the bit or none, and with it all alike.
        for start in (0..self.pages).step_by(self.block() as usize) {
            let block: Vec<PteValue> = (start..start + self.block()).map(|page| self.raw(page)).collect();
            let folded = block.iter().filter(|pte| pte.is_folded()).count();
            assert!(folded == 0 || folded == block.len(), "a mixed group at {start}: {block:?}");
            if folded != 0 {
                let first = block[0].attributes();
                assert!(
                    first.pa().is_aligned(self.block() * G::GRANULE.page_size()),
                    "{start} folded, misaligned"
                );
                for (i, pte) in (0..).zip(&block) {
                    assert_eq!(
                        pte.attributes(),
                        first.advanced(i * G::GRANULE.page_size()),
                        "{start}: {block:?}"
                    );
                }
            }
        }
    }
}

fn prot_of(pte: PteValue) -> UserProt {
    match (pte.is_writable(), pte.flags().contains(PteFlags::UXN)) {
        (true, true) => UserProt::ReadWrite,
        (true, false) => UserProt::ReadWriteExecute,
        (false, true) => UserProt::Read,
        (false, false) => UserProt::ReadExecute,
    }
}

fn run<G: GranuleType>(hafdbs: Hafdbs, no_abort: bool, pages: u64, ops: &[Op]) {
    let records: &'static [Frame] = (0..4096).map(|_| Frame::new()).collect::<Vec<_>>().leak();
    let zones: &'static [Zone<'static>] = vec![Zone::new(arch::Pfn::new(0x1000), records)].leak();
    let frames: &'static FrameMap<'static> = Box::leak(Box::new(FrameMap::new(zones, None)));
    frames.release(zones[0].range());
    let plain: &'static Plain<G> = Box::leak(Box::new(Plain::new(hafdbs, false, no_abort)));
    let folios: Vec<Folio<'static>> =
        orders::<G>().iter().map(|&order| frames.alloc(order).unwrap()).collect();
    let root = plain.alloc_table(G::GRANULE.start_level(48)).unwrap();
    let mm = Mm::new_user(plain, root, frames);
    let mut world = World { mm: &mm, plain, folios: &folios, pages, reference: BTreeMap::new() };
    drop(world.lock());
    for op in ops {
        world.apply(op);
        world.spread();
        world.check();
    }
}

/// Folios smaller than a block, as large, and larger.
fn orders<G: GranuleType>() -> [u8; 6] {
    let block = G::GRANULE.cont_entries(3).ilog2() as u8;
    [0, 1, block - 1, block, block, block + 1]
}

fn hafdbs() -> impl Strategy<Value = Hafdbs> {
    prop_oneof![Just(Hafdbs::None), Just(Hafdbs::Af), Just(Hafdbs::AfDbm)]
}

macro_rules! properties {
    ($($name:ident: $granule:ty, $blocks:literal, $ops:literal;)*) => {
        proptest! {
            $(#[test]
            fn $name(
                hafdbs in hafdbs(),
                no_abort in any::<bool>(),
                ops in prop::collection::vec(
                    op($blocks * <$granule>::GRANULE.cont_entries(3) as u64, <$granule>::GRANULE.cont_entries(3) as u64, 6),
                    1..$ops,
                ),
            ) {
                run::<$granule>(hafdbs, no_abort, $blocks * <$granule>::GRANULE.cont_entries(3) as u64, &ops);
            })*
        }
    };
}

properties! {
    agrees_with_the_reference_4k: K4, 6, 60;
    agrees_with_the_reference_16k: K16, 4, 20;
    agrees_with_the_reference_64k: K64, 5, 30;
}

#[test]
fn granules_have_the_blocks_of_the_manual() {
    assert_eq!([Granule::K4, Granule::K16, Granule::K64].map(|g| g.cont_entries(3)), [16, 128, 32]);
}
