//! Two tables locked together: whoever else does so, in whatever order, and whether they share a lock or are one.

mod common;

use common::{K4, World};
use pleat_mm::pte::{Pte, UserProt};
use pleat_mm::ptep::{get_and_clear_ptes, ptep_get, set_ptes};

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
