//! Every public call on entries: what it costs beside the least that the architecture allows.

use alloc::vec::Vec;

use arch::{PteValue, VirtAddr};
use mm::contpte::{refold, why_not_folded};
use mm::pte::{Pte, UserProt};
use mm::ptep::{
    LocklessGuard, YoungDirty, clear_ptes, clear_young_dirty_ptes, get_and_clear_ptes, modify_prot_commit,
    modify_prot_start, pte_batch, pte_batch_hint, ptep_clear, ptep_clear_flush_young, ptep_get,
    ptep_get_and_clear, ptep_get_lockless, ptep_set_access_flags, ptep_test_and_clear_young, set_pte,
    set_ptes, wrprotect_ptes,
};
use mm::{Mm, PteGuard};

use super::operations::{Counted, Least, Operations};
use super::world::{At, Guard, Owner, Row, Scales, State};
use super::{timed, timed_block};
use crate::console::println;
use crate::selftest::harness::{Context, TestResult, check};
use crate::vm::PAGE;

/// The rows. Beside each call is the least that can be done, without looking at anything twice; [`Least`] names the
/// rules. A page of a folded block changes while its entries are invalid for the unfold, so nothing is owed for it.
fn rows<M: Counted>() -> Vec<Row<M>> {
    use State::{AllButLast, AllButLastMixed, Empty, Folded, Pages};
    const ONE: (usize, usize) = (3, 1);
    const LAST: (usize, usize) = (15, 1);
    const ALL: (usize, usize) = (0, 16);
    const MODIFY: &str = "modify_prot_start`, `modify_prot_commit";
    let row = Row::<M>::new;
    let same = |pte| pte;
    let read_only: fn(PteValue) -> PteValue = |pte| pte.with_prot(UserProt::Read);
    let dirty: fn(PteValue) -> PteValue = PteValue::mkdirty;
    let old: fn(PteValue) -> PteValue = PteValue::mkold;

    let get = |guard: &mut Guard<'_, M>, At { va, .. }| {
        timed!(ptep_get::<M> as fn(&PteGuard<'_, '_, M>, _) -> _, guard, va)
    };
    let get_lockless = |guard: &mut Guard<'_, M>, At { va, .. }| {
        let masked = LocklessGuard::interrupts_masked();
        timed!(ptep_get_lockless::<M> as fn(&Mm<'_, M>, _, &_) -> _, guard.mm(), va, &masked)
    };
    let set_one = |guard: &mut Guard<'_, M>, At { va, pte, .. }| {
        // By its place, as the call wants it.
        let index = (va.get() / PAGE % 512) as usize;
        timed!(set_pte::<M> as fn(&mut PteGuard<'_, '_, M>, _, _) -> _, guard, index, pte)
    };
    let set = |guard: &mut Guard<'_, M>, At { va, pte, nr }| {
        timed!(set_ptes::<M> as fn(&mut PteGuard<'_, '_, M>, _, _, _) -> _, guard, va, pte, nr)
    };
    let set_each = |guard: &mut Guard<'_, M>, At { va, pte, nr }| {
        timed_block!(for page in pages(nr) {
            set_ptes(guard, VirtAddr::new(va.get() + page), pte.advance(page), 1);
        })
    };
    let clear = |guard: &mut Guard<'_, M>, At { va, .. }| {
        timed!(ptep_clear::<M> as fn(&mut PteGuard<'_, '_, M>, _) -> _, guard, va)
    };
    let get_and_clear = |guard: &mut Guard<'_, M>, At { va, .. }| {
        timed!(ptep_get_and_clear::<M> as fn(&mut PteGuard<'_, '_, M>, _) -> _, guard, va)
    };
    let clear_many = |guard: &mut Guard<'_, M>, At { va, nr, .. }| {
        timed!(clear_ptes::<M> as fn(&mut PteGuard<'_, '_, M>, _, _) -> _, guard, va, nr)
    };
    let get_and_clear_many = |guard: &mut Guard<'_, M>, At { va, nr, .. }| {
        timed!(get_and_clear_ptes::<M> as fn(&mut PteGuard<'_, '_, M>, _, _) -> _, guard, va, nr)
    };
    let get_and_clear_each = |guard: &mut Guard<'_, M>, At { va, nr, .. }| {
        timed_block!(for page in pages(nr) {
            ptep_get_and_clear(guard, VirtAddr::new(va.get() + page));
        })
    };
    let wrprotect = |guard: &mut Guard<'_, M>, At { va, nr, .. }| {
        timed!(wrprotect_ptes::<M> as fn(&mut PteGuard<'_, '_, M>, _, _) -> _, guard, va, nr)
    };
    let wrprotect_each = |guard: &mut Guard<'_, M>, At { va, nr, .. }| {
        timed_block!(for page in pages(nr) {
            wrprotect_ptes(guard, VirtAddr::new(va.get() + page), 1);
        })
    };
    let clear_young = |guard: &mut Guard<'_, M>, At { va, .. }| {
        timed!(ptep_test_and_clear_young::<M> as fn(&mut PteGuard<'_, '_, M>, _) -> _, guard, va)
    };
    let clear_flush_young = |guard: &mut Guard<'_, M>, At { va, .. }| {
        timed!(ptep_clear_flush_young::<M> as fn(&mut PteGuard<'_, '_, M>, _) -> _, guard, va)
    };
    let clear_young_dirty = |guard: &mut Guard<'_, M>, At { va, nr, .. }| {
        let both = YoungDirty::Both;
        timed!(clear_young_dirty_ptes::<M> as fn(&mut PteGuard<'_, '_, M>, _, _, _) -> _, guard, va, nr, both)
    };
    let set_access = |guard: &mut Guard<'_, M>, At { va, pte, .. }| {
        timed!(ptep_set_access_flags::<M> as fn(&mut PteGuard<'_, '_, M>, _, _) -> _, guard, va, pte)
    };
    let modify = |guard: &mut Guard<'_, M>, At { va, nr, .. }| {
        timed_block!({
            let pte = modify_prot_start(guard, va, nr);
            modify_prot_commit(guard, va, pte.with_prot(UserProt::Read), nr);
        })
    };
    let hint = |guard: &mut Guard<'_, M>, At { va, .. }| {
        timed!(pte_batch_hint::<M> as fn(&PteGuard<'_, '_, M>, _) -> _, guard, va)
    };
    let batch = |guard: &mut Guard<'_, M>, At { va, .. }| {
        timed!(pte_batch::<M> as fn(&PteGuard<'_, '_, M>, _, _) -> _, guard, va, 16_usize)
    };
    let refold = |guard: &mut Guard<'_, M>, At { va, nr, .. }| {
        timed!(refold::<M> as fn(&mut PteGuard<'_, '_, M>, _, _) -> _, guard, va, nr)
    };
    let why = |guard: &mut Guard<'_, M>, At { va, .. }| {
        timed!(why_not_folded::<M> as fn(&Mm<'_, M>, _) -> _, guard.mm(), va)
    };

    alloc::vec![
        row(("ptep_get", "a page"), Pages(same), ONE, get, |l| l.loads(1)),
        row(("ptep_get", "a page of a block, clean"), Folded(same), ONE, get, |l| l.read(16)),
        row(("ptep_get", "a page of a block, young and dirty"), Folded(dirty), ONE, get, |l| l.loads(1)),
        row(("ptep_get_lockless", "a page"), Pages(same), ONE, get_lockless, |l| l.walk().and(l.loads(1))),
        row(("ptep_get_lockless", "a page of a block"), Folded(same), ONE, get_lockless, |l| l
            .walk()
            .and(l.read(16))),
        row(("set_pte", "an empty entry"), Empty, ONE, set_one, |l| l.loads(1).and(l.stores(1))),
        row(("set_pte", "a live page, to read-only"), Pages(same), ONE, set_one, |l| l.change(1))
            .pte(read_only)
            .owes(1),
        row(("set_ptes", "a page, empty"), Empty, ONE, set, |l| l.loads(1).and(l.stores(1))),
        row(("set_ptes", "a live page, to read-only"), Pages(same), ONE, set, |l| l.change(1))
            .pte(read_only)
            .owes(1),
        row(("set_ptes", "a page of a block, to read-only"), Folded(same), ONE, set, |l| l.convert(16))
            .pte(read_only),
        row(("set_ptes", "the last page, which folds"), AllButLast, LAST, set, fold_by_last),
        row(("set_ptes", "the last page, which can't fold"), AllButLastMixed, LAST, set, |l| l
            .read(16)
            .and(l.stores(1))),
        row(("set_ptes", "16 pages, empty, folded"), Empty, ALL, set, |l| l.write(16)),
        row(("set_ptes", "15 pages, empty, not congruent"), Empty, (1, 15), set, |l| l.write(15)).frame(0),
        row(("set_ptes", "16 pages, empty, one by one"), Empty, ALL, set_each, |l| {
            l.loads(1).and(l.stores(1)).times(15).and(fold_by_last(l))
        }),
        row(("ptep_clear", "a page"), Pages(same), ONE, clear, |l| l.loads(1).and(l.stores(1))).owes(1),
        row(("ptep_clear", "a page of a block"), Folded(same), ONE, clear, |l| l.convert(15)),
        row(("ptep_get_and_clear", "a page"), Pages(same), ONE, get_and_clear, |l| l.test_and_take(1))
            .owes(1),
        row(("ptep_get_and_clear", "a page of a block"), Folded(same), ONE, get_and_clear, |l| l.convert(15)),
        row(("clear_ptes", "16 pages"), Pages(same), ALL, clear_many, |l| l.write(16)).owes(16),
        row(("clear_ptes", "a block"), Folded(same), ALL, clear_many, |l| l.write(16)).owes(16),
        row(("get_and_clear_ptes", "16 pages"), Pages(same), ALL, get_and_clear_many, |l| l.take(16))
            .owes(16),
        row(("get_and_clear_ptes", "16 pages, one by one"), Pages(same), ALL, get_and_clear_each, |l| {
            l.test_and_take(1).times(16)
        })
        .owes(16),
        row(("get_and_clear_ptes", "a block"), Folded(same), ALL, get_and_clear_many, |l| l.take(16))
            .owes(16),
        row(("wrprotect_ptes", "a page"), Pages(same), ONE, wrprotect, |l| l.change(1)).owes(1),
        row(("wrprotect_ptes", "a page of a block"), Folded(same), ONE, wrprotect, |l| l.convert(16)),
        row(("wrprotect_ptes", "16 pages"), Pages(same), ALL, wrprotect, |l| l.change(16)).owes(16),
        row(("wrprotect_ptes", "16 pages, one by one"), Pages(same), ALL, wrprotect_each, |l| l
            .change(1)
            .times(16))
        .owes(16),
        row(("wrprotect_ptes", "a block"), Folded(same), ALL, wrprotect, |l| l.change(16)).owes(16),
        row(("ptep_test_and_clear_young", "a page"), Pages(same), ONE, clear_young, |l| l.change(1)),
        row(("ptep_test_and_clear_young", "a page of a block"), Folded(same), ONE, clear_young, |l| l
            .change(16)),
        row(("ptep_clear_flush_young", "a page"), Pages(same), ONE, clear_flush_young, |l| {
            l.change(1).and(l.invalidate(1))
        }),
        row(("ptep_clear_flush_young", "a page of a block"), Folded(same), ONE, clear_flush_young, |l| {
            l.change(16).and(l.invalidate(16))
        }),
        row(("clear_young_dirty_ptes", "a page"), Pages(dirty), ONE, clear_young_dirty, |l| l.change(1))
            .owes(1),
        row(("clear_young_dirty_ptes", "a page of a block"), Folded(dirty), ONE, clear_young_dirty, |l| l
            .change(16))
        .owes(16),
        row(("clear_young_dirty_ptes", "16 pages"), Pages(dirty), ALL, clear_young_dirty, |l| l.change(16))
            .owes(16),
        row(("clear_young_dirty_ptes", "a block"), Folded(dirty), ALL, clear_young_dirty, |l| l.change(16))
            .owes(16),
        row(("ptep_set_access_flags", "a page, nothing to do"), Pages(dirty), ONE, set_access, |l| l
            .loads(1))
        .pte(dirty),
        row(("ptep_set_access_flags", "a page, young"), Pages(old), ONE, set_access, |l| l.change(1)),
        row(("ptep_set_access_flags", "a page, dirty"), Pages(same), ONE, set_access, |l| l
            .change(1)
            .and(l.flush(1)))
        .pte(dirty),
        row(
            ("ptep_set_access_flags", "a page of a block, nothing to do"),
            Folded(dirty),
            ONE,
            set_access,
            |l| { l.read(16) }
        )
        .pte(dirty),
        row(("ptep_set_access_flags", "a page of a block, dirty"), Folded(same), ONE, set_access, |l| {
            l.change(16).and(l.flush(16))
        })
        .pte(dirty),
        row(
            ("ptep_set_access_flags", "a page of a block, writable"),
            Folded(read_only),
            ONE,
            set_access,
            |l| { l.convert(16) }
        )
        .pte(dirty),
        row((MODIFY, "a page"), Pages(same), ONE, modify, |l| {
            l.test_and_take(1).and(l.flush(1)).and(l.stores(1))
        }),
        row((MODIFY, "a page of a block"), Folded(same), ONE, modify, |l| {
            l.convert(15).and(l.loads(1)).and(l.stores(1))
        }),
        row((MODIFY, "16 pages"), Pages(same), ALL, modify, take_flush_write),
        row((MODIFY, "a block"), Folded(same), ALL, modify, take_flush_write),
        row(("pte_batch_hint", "a page"), Pages(same), ONE, hint, |l| l.loads(1)),
        row(("pte_batch_hint", "a page of a block"), Folded(same), ONE, hint, |l| l.loads(1)),
        row(("pte_batch", "16 pages"), Pages(same), ALL, batch, |l| l.read(16)),
        row(("pte_batch", "a block"), Folded(same), ALL, batch, |l| l.loads(1)),
        row(("refold", "16 pages that qualify"), Pages(same), ALL, refold, |l| {
            l.change(16).and(l.flush(16)).and(l.write(16))
        }),
        row(("refold", "a block"), Folded(same), ALL, refold, |l| l.loads(1)),
        row(("why_not_folded", "16 pages that qualify"), Pages(same), ONE, why, |l| l.walk().and(l.read(16))),
        row(("why_not_folded", "a page of a block"), Folded(same), ONE, why, |l| l.walk().and(l.loads(1))),
    ]
}

fn pages(nr: usize) -> impl Iterator<Item = u64> {
    (0..nr as u64).map(|page| page * PAGE)
}

/// The last page of a block is set, the others are there: it was empty, so neither it nor a TLB need be cleaned of it.
fn fold_by_last(l: Least) -> Operations {
    l.read(16).and(l.replace(15)).and(l.flush(15)).and(l.write(16))
}

/// A whole block gets other entries.
fn take_flush_write(l: Least) -> Operations {
    l.take(16).and(l.flush(16)).and(l.write(16))
}

/// What a call may execute: so much for each instruction of the least, and so much once. Far above what is measured; for a
/// call that has become another, not for a few instructions.
const EACH: u64 = 68;
const ONCE: u64 = 400;

/// Counts all rows and prints them as a table, each figure before the least.
pub(super) fn calls(_: &Context<'_>) -> TestResult {
    let scales = Scales::new(Owner::User);
    let least = Least(scales.features());
    println!("| call | on | instructions | memory accesses | TLBI | barriers | TLBI owed |");
    println!("|---|---|--:|--:|--:|--:|--:|");
    for (plain, counting) in rows().iter().zip(&rows()) {
        let Row { call, on, .. } = *plain;
        let cost = scales.weigh(plain, counting)?;
        let (ours, minimum) = (cost.issued, (plain.least)(least));
        let owed = if plain.owed == 0 { 0 } else { least.flush(plain.owed).invalidations };
        println!(
            "| `{call}` | {on} | {} / {} | {} / {} | {} / {} | {} / {} | {} / {owed} |",
            cost.instructions,
            minimum.instructions(),
            ours.accesses(),
            minimum.accesses(),
            ours.invalidations,
            minimum.invalidations,
            ours.barriers_of_mmu(),
            minimum.barriers(),
            cost.owed.invalidations,
        );
        let most = EACH * minimum.instructions() + ONCE;
        check!(
            cost.instructions <= most,
            "{call}, {on}: {} instructions, more than {most}",
            cost.instructions
        );
        // Else the least is not the least, or something is left out.
        check!(ours.accesses() >= minimum.accesses(), "{call}, {on}: fewer accesses than the least");
        let (invalidations, wanted) =
            (ours.invalidations + cost.owed.invalidations, minimum.invalidations + owed);
        check!(
            invalidations >= wanted,
            "{call}, {on}: {invalidations} invalidations, {wanted} are the least"
        );
        // A page that is set, and whose block was unfolded for it, is flushed again.
        check!(
            invalidations <= wanted + 1,
            "{call}, {on}: {invalidations} invalidations, {wanted} are enough"
        );
    }
    Ok(())
}
