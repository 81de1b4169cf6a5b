//! The lockless read against folds, unfolds and hardware in real threads, with blocks of 16. An ordinary test; under Miri,
//! with many seeds, a search for orders of loads and stores that are wrong (`scripts/test miri`). `loom_lockless.rs` tries
//! all of them, with blocks of 4 and one change at a time.
//!
//! Each of these makes it fail under Miri within 64 seeds, tried by hand: `ptep_get_lockless` returns what it gathered though
//! the entries were not consistent (a dirty page is read as clean, a clean one as dirty); `Table::clear_leaves` loads and
//! stores where hardware sets flags (a write by hardware is lost).
#![cfg(not(loom))]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use arch::mmu::{Features, Hafdbs, Slot};
use arch::tlbi::Tlbi;
use arch::{Granule, Mmu, Pfn, PhysAddr, PteFlags, PteValue, Table, TableFrame, VirtAddr};
use pleat_mm::contpte::{Obstacle, refold, why_not_folded};
use pleat_mm::frame::{Folio, Frame, FrameMap, Zone};
use pleat_mm::pte::{Pte, UserProt};
use pleat_mm::ptep::*;
use pleat_mm::{Mm, PteGuard, TableAlloc};

const BLOCK: usize = 16;
/// One block in the middle of a table.
const FIRST: usize = 32;
/// The page that is write-protected now and then.
const PROTECTED: usize = 3;

/// One table of each level, without any lock: it would order what is to be tried in every order. Barriers are none, which is
/// less than hardware does.
struct Machine {
    slots: [[Slot; Granule::K4.entries()]; 4],
    features: Features,
}

impl Machine {
    fn new(features: Features) -> Self {
        let slots = [const { [const { Slot::new() }; Granule::K4.entries()] }; 4];
        Self { slots, features }
    }
}

impl TableAlloc for &Machine {
    fn alloc_table(&self, level: u8) -> Option<TableFrame> {
        // SAFETY: each level's table is made once, by the thread that maps first; `slots` finds it.
        Some(unsafe { TableFrame::new(PhysAddr::new(u64::from(level) << 12), level) })
    }
}

// SAFETY: each frame has slots of its own, which live as long as the machine.
unsafe impl Mmu for &Machine {
    const GRANULE: Granule = Granule::K4;

    fn slots(&self, frame: TableFrame) -> &[Slot] {
        &self.slots[(frame.pa().get() >> 12) as usize]
    }

    fn features(&self) -> Features {
        self.features
    }

    fn publish(&self) {}

    fn invalidate(&self, _: Tlbi) {}

    fn complete(&self) {}

    fn invalidate_local(&self, _: Tlbi) {}
}

fn va(page: usize) -> VirtAddr {
    VirtAddr::new(0x40_0000_0000 + (FIRST + page) as u64 * 0x1000)
}

/// What is mapped, one after the other, each a folio of one block. They differ in what a reader may find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Round {
    /// Dirty all the time, at first by the last entry alone.
    Dirty = 0,
    /// Neither young nor dirty at any time, since nobody uses it.
    Untouched = 1,
    /// Used by hardware, made clean once.
    Cleaned = 2,
}
use Round::*;

impl Round {
    const ALL: [Self; 3] = [Dirty, Untouched, Cleaned];

    fn prot(self) -> UserProt {
        [UserProt::ReadWrite, UserProt::ReadWriteExecute, UserProt::ReadWrite][self as usize]
    }
}

struct World<'m> {
    mm: Mm<'m, &'m Machine>,
    folios: [Folio<'m>; 3],
    /// The pages of that round were made clean.
    cleaned: AtomicBool,
    /// Nothing changes any more.
    done: AtomicBool,
    /// How often the reader was given a page.
    pages: AtomicUsize,
    /// Hardware set an access flag, for each folio.
    accessed: [AtomicBool; 3],
    /// Hardware made a page of the round [`Cleaned`] dirty.
    written: AtomicBool,
    /// It did so after they were made clean.
    rewritten: AtomicBool,
}

/// What whoever holds the lock was told of a folio from its first change on.
struct Told {
    young: bool,
    dirty: bool,
}

impl<'m> World<'m> {
    fn new(machine: &'m Machine, frames: &'m FrameMap<'m>) -> Self {
        let root = machine.alloc_table(0).expect("tables for ever");
        Self {
            mm: Mm::new_user(machine, root, frames),
            folios: [(); 3].map(|()| frames.alloc(BLOCK.ilog2() as u8).expect("three blocks")),
            cleaned: AtomicBool::default(),
            done: AtomicBool::default(),
            pages: AtomicUsize::default(),
            accessed: Default::default(),
            written: AtomicBool::default(),
            rewritten: AtomicBool::default(),
        }
    }

    fn lock(&self) -> PteGuard<'_, 'm, &'m Machine> {
        self.mm.lock_table(va(0), self.mm.mmu()).expect("tables for ever")
    }

    /// The folio's entry for a page: clean.
    fn pte(&self, round: Round, page: usize) -> PteValue {
        let frame = self.folios[round as usize].head().add(page as u64);
        PteValue::new_user(frame.addr(Granule::K4), round.prot())
    }

    /// Whose page an entry maps at `page`.
    ///
    /// # Panics
    /// Where nobody's, or it is another one's.
    fn round_of(&self, page: usize, pte: PteValue) -> Round {
        let round = Round::ALL.into_iter().find(|&round| self.pte(round, page).pa() == pte.pa());
        round.unwrap_or_else(|| panic!("{pte:?} at page {page} is no page of a folio"))
    }

    /// What a reader without the lock may be told of a page.
    fn judge(&self, page: usize, pte: PteValue) {
        if !pte.is_valid() {
            assert_eq!(pte, PteValue::NONE);
            return;
        }
        let round = self.round_of(page, pte);
        assert!(
            pte.attributes() == self.pte(round, page).attributes()
                || page == PROTECTED
                    && !pte.is_folded()
                    && pte.attributes() == self.pte(round, page).wrprotect().attributes(),
            "page {page}, {round:?}: {pte:?} has a permission that it never had"
        );
        match round {
            Dirty => assert!(pte.is_dirty(), "page {page}: {pte:?} hides that it is dirty"),
            Untouched => {
                assert!(!pte.is_young() && !pte.is_dirty(), "page {page}: {pte:?} has another's flags");
            }
            Cleaned => {}
        }
    }

    fn read(&self) {
        for page in [0, BLOCK - 1, PROTECTED].into_iter().cycle() {
            if self.done.load(Ordering::Relaxed) {
                break;
            }
            if let Ok(pte) = ptep_get_lockless(&self.mm, va(page), &LocklessGuard::interrupts_masked()) {
                self.judge(page, pte);
                self.pages.fetch_add(usize::from(pte.is_valid()), Ordering::Relaxed);
            }
            match why_not_folded(&self.mm, va(page)) {
                // Discontiguous where one folio replaced the other meanwhile: it reads one entry after the other, once.
                Ok(()) | Err(Obstacle::None | Obstacle::Hole(_) | Obstacle::Discontiguous(_)) => {}
                Err(Obstacle::MixedAttributes(at)) if at == va(PROTECTED) => {}
                Err(other) => panic!("never the case: {other}"),
            }
        }
    }

    /// Hardware uses an entry as a table walk does: one compare-and-swap of it alone.
    fn access(&self, page: usize, write: bool) {
        let last_level = self.mm.mmu().alloc_table(3).expect("tables for ever");
        let table = Table::new(self.mm.mmu(), last_level);
        let cleaned = self.cleaned.load(Ordering::Acquire);
        let old = table.leaf(FIRST + page);
        if !old.is_valid() {
            return;
        }
        let round = self.round_of(page, old);
        let new =
            if write && old.is_writable() { old.mkyoung().without(PteFlags::RDONLY) } else { old.mkyoung() };
        if round == Untouched || new == old {
            return;
        }
        // Whose page it is can't change before the exchange without that failing.
        let slot = &self.mm.mmu().slots(last_level)[FIRST + page];
        // SAFETY: of a leaf, only access flag and dirty state change.
        if unsafe { slot.compare_exchange(old.raw(), new.raw()) }.is_err() {
            return;
        }
        if !old.is_young() {
            self.accessed[round as usize].store(true, Ordering::Relaxed);
        }
        if round == Cleaned && !old.is_dirty() && new.is_dirty() {
            self.written.store(true, Ordering::Relaxed);
            self.rewritten.fetch_or(cleaned, Ordering::Relaxed);
        }
    }

    fn hardware(&self) {
        for access in 0.. {
            if self.done.load(Ordering::Relaxed) {
                break;
            }
            self.access(access * 7 % BLOCK, access % 2 == 0);
        }
    }

    fn map(&self, round: Round) {
        let pte = self.pte(round, 0);
        set_ptes(&mut self.lock(), va(0), if round == Untouched { pte.mkold() } else { pte }, BLOCK);
    }

    /// Unfolds, folds, protects, makes old and clean, and clears at last what is mapped. The lock is given up as between
    /// faults, reclaim and mprotect. Returns what it was told.
    fn change(&self, round: Round) -> Told {
        // From here on, only hardware makes it young.
        assert_eq!(ptep_test_and_clear_young(&mut self.lock(), va(0)), round != Untouched);
        wrprotect_ptes(&mut self.lock(), va(PROTECTED), 1);
        {
            let mut guard = self.lock();
            let pte = modify_prot_start(&mut guard, va(PROTECTED), 1);
            modify_prot_commit(&mut guard, va(PROTECTED), pte.with_prot(round.prot()), 1);
        }
        assert_eq!(refold(&mut self.lock(), va(0), BLOCK), 1);
        let mut young = ptep_test_and_clear_young(&mut self.lock(), va(0));
        if round == Cleaned {
            clear_young_dirty_ptes(&mut self.lock(), va(0), BLOCK, YoungDirty::Dirty);
            self.cleaned.store(true, Ordering::Release);
            wrprotect_ptes(&mut self.lock(), va(PROTECTED), 1);
        }
        let pte = get_and_clear_ptes(&mut self.lock(), va(0), BLOCK);
        young |= pte.is_young();
        Told { young, dirty: pte.is_dirty() }
    }
}

/// Ends the other threads, also where this one panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One reader, one CPU that changes the block, and hardware if it does anything.
fn race(hafdbs: Hafdbs, bbm_no_abort: bool) {
    let records: Vec<Frame> = (0..Round::ALL.len() * BLOCK).map(|_| Frame::new()).collect();
    let zones = [Zone::new(Pfn::new(0x1000), &records)];
    let frames = FrameMap::new(&zones, None);
    frames.release(zones[0].range());
    let machine = Machine::new(Features { tlb_range: false, hafdbs, bbm_no_abort });
    let world = World::new(&machine, &frames);

    world.map(Dirty);
    world.access(BLOCK - 1, true);
    let told = thread::scope(|scope| {
        let reader = scope.spawn(|| world.read());
        if hafdbs == Hafdbs::AfDbm {
            scope.spawn(|| world.hardware());
        }
        let _done = Done(&world.done);
        let told = Round::ALL.map(|round| {
            if round != Dirty {
                world.map(round);
            }
            world.change(round)
        });
        // Until something was judged.
        world.map(Untouched);
        while world.pages.load(Ordering::Relaxed) == 0 && !reader.is_finished() {
            thread::yield_now();
        }
        told
    });

    // What hardware has set is never lost, and nothing else is told.
    for (round, told) in Round::ALL.into_iter().zip(&told) {
        let accessed = world.accessed[round as usize].load(Ordering::Relaxed);
        assert_eq!(
            told.young, accessed,
            "{round:?}: young by hardware, and not told, or the other way round"
        );
    }
    assert!(told[Dirty as usize].dirty && !told[Untouched as usize].dirty);
    let [written, rewritten] = [&world.written, &world.rewritten].map(|flag| flag.load(Ordering::Relaxed));
    let dirty = told[Cleaned as usize].dirty;
    assert!(dirty || !rewritten, "dirty by hardware, and not told");
    assert!(!dirty || written, "told as dirty, and hardware never wrote");
}

#[test]
fn against_hardware_that_sets_access_flag_and_dirty_state() {
    race(Hafdbs::AfDbm, false);
}

#[test]
fn against_hardware_where_the_size_changes_in_place() {
    race(Hafdbs::AfDbm, true);
}

#[test]
fn without_atomics_where_hardware_sets_nothing() {
    race(Hafdbs::None, false);
}
