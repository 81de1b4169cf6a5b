//! Two tables locked together: whoever else does so, in whatever order, and whether they share a lock or are one.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arch::mmu::{Features, Slot};
use arch::tlbi::Tlbi;
use arch::{Granule, Mmu, TableFrame};
use common::{AF_DBM, CORTEX_A72, K4, Plain, World};
use pleat_mm::asid::AsidAllocator;
use pleat_mm::pte::{Pte, UserProt};
use pleat_mm::ptep::{get_and_clear_ptes, ptep_get, set_ptes};
use pleat_mm::{Mm, TableAlloc};

/// Entries of a table, and pages from one address to the next that each have their own.
const TABLE: usize = 512;

#[test]
fn one_table_is_locked_once() {
    let w = World::<K4>::unjudged();
    let mut pair = w.mm.lock_two_tables(w.va(3), w.va(TABLE - 1), w.plain).unwrap();
    let (table, other) = pair.both();
    assert!(other.is_none());
    set_ptes(table, w.va(TABLE - 1), w.pte(&w.folio(1), 0, UserProt::Read), 1);
    drop(pair);
    assert!(ptep_get(&w.lock(), w.va(TABLE - 1)).is_valid());
}

/// There are 64 locks, so of 65 tables two share one. Each pair moves a block there and back, and lets go of its locks.
#[test]
fn any_two_tables_are_locked_in_either_order() {
    let w = World::<K4>::unjudged();
    let folio = w.folio(16);
    let first = w.va(0);
    set_ptes(&mut w.lock(), first, w.pte(&folio, 0, UserProt::ReadWrite), 16);
    for table in 1..70 {
        let va = w.va(table * TABLE);
        for (from, to) in [(first, va), (va, first)] {
            let mut pair = w.mm.lock_two_tables(from, to, w.plain).unwrap();
            let (source, destination) = pair.both();
            let destination = destination.expect("each has its own");
            let pte = get_and_clear_ptes(source, from, 16);
            set_ptes(destination, to, pte, 16);
            assert!(ptep_get(destination, to).is_folded() && !ptep_get(source, from).is_valid());
        }
        assert!(ptep_get(&w.mm.lock_present_table(first).unwrap(), first).is_folded());
    }
}

/// Two who want the same tables in opposite orders don't wait for each other for ever, and no entry is lost.
#[test]
fn opposite_orders_do_not_deadlock() {
    let w = World::<K4>::unjudged();
    let (one, other) = (w.va(0), w.va(TABLE));
    set_ptes(&mut w.lock(), one, w.pte(&w.folio(1), 0, UserProt::ReadWrite), 1);
    let go = |first, second| {
        for _ in 0..20_000 {
            let mut pair = w.mm.lock_two_tables(first, second, w.plain).unwrap();
            let (a, b) = pair.both();
            let b = b.unwrap();
            // To wherever it is not.
            let (from, from_va, to, to_va) =
                if ptep_get(a, first).is_valid() { (a, first, b, second) } else { (b, second, a, first) };
            let pte = get_and_clear_ptes(from, from_va, 1);
            assert!(pte.is_valid(), "the entry is in neither table");
            set_ptes(to, to_va, pte, 1);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| go(one, other));
        go(other, one);
    });
}

/// A machine whose flushes take their time.
struct Slow {
    plain: Plain<K4>,
    flushed: AtomicBool,
}

// SAFETY: the tables are those of the other machine.
unsafe impl Mmu for &Slow {
    const GRANULE: Granule = Granule::K4;

    fn slots(&self, frame: TableFrame) -> &[Slot] {
        let slots: *const [Slot] = (&&self.plain).slots(frame);
        // SAFETY: a table's slots live for ever.
        unsafe { &*slots }
    }

    fn features(&self) -> Features {
        self.plain.features
    }

    fn publish(&self) {}

    fn invalidate(&self, _: Tlbi) {}

    fn complete(&self) {
        std::thread::sleep(Duration::from_millis(100));
        self.flushed.store(true, Ordering::SeqCst);
    }

    fn invalidate_local(&self, _: Tlbi) {}
}

/// Whoever takes the lock of one table next may unmap and free what moved there: a TLB must not have it at its old place any
/// more. Whichever of the two was locked first.
#[test]
fn what_either_owes_is_flushed_before_one_is_released() {
    for source_first in [true, false] {
        let w = World::<K4>::unjudged();
        let plain = Plain::new(AF_DBM.hafdbs, CORTEX_A72.tlb_range, false);
        let slow: &'static Slow = Box::leak(Box::new(Slow { plain, flushed: AtomicBool::new(false) }));
        let root = slow.plain.alloc_table(Granule::K4.start_level(48)).unwrap();
        let mm = Mm::new_user(slow, root, w.frames);
        let mut words = [0];
        AsidAllocator::<1>::new(8, &mut words).switch_to(mm.mmu(), 0, mm.context().unwrap());
        let (from, to) = (w.va(0), w.va(TABLE));
        let pte = w.pte(&w.folio(16), 0, UserProt::ReadWrite);
        set_ptes(&mut mm.lock_table(from, &slow.plain).unwrap(), from, pte, 16);

        let (first, second) = if source_first { (from, to) } else { (to, from) };
        let mut pair = mm.lock_two_tables(first, second, &slow.plain).unwrap();
        let (one, other) = pair.both();
        let other = other.unwrap();
        let (source, destination) = if source_first { (one, other) } else { (other, one) };
        let pte = get_and_clear_ptes(source, from, 16);
        set_ptes(destination, to, pte, 16);
        slow.flushed.store(false, Ordering::SeqCst);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let guard = mm.lock_present_table(to).unwrap();
                assert!(slow.flushed.load(Ordering::SeqCst), "source first: {source_first}");
                assert!(ptep_get(&guard, to).is_folded());
            });
            drop(pair);
        });
    }
}
