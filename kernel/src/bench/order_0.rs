//! One page pays for neither gate nor folio look-up, by the instructions that are executed.
//!
//! What asks the gate of `contpte` is seen on a kernel's address space, where it refuses, and counts that. A folio is
//! looked up behind the gate only. That the same instructions are executed on a user's is seen by their number.

use alloc::vec::Vec;

use mm::PteGuard;
use mm::ptep::{ptep_get_and_clear, set_ptes};

use super::operations::{Counted, Least};
use super::timed;
use super::world::{At, Guard, Owner, Row, Scales, State};
use crate::console::println;
use crate::selftest::harness::{Context, TestResult, check};

/// The rows by their place.
const INSIDE: usize = 0;
const LAST_NOT_CONGRUENT: usize = 1;
const LAST_CONGRUENT: usize = 2;
const CLEAR: usize = 3;

fn rows<M: Counted>() -> Vec<Row<M>> {
    use State::{AllButLastMixed, Empty, Pages};
    let set = |guard: &mut Guard<'_, M>, At { va, pte, nr }| {
        timed!(set_ptes::<M> as fn(&mut PteGuard<'_, '_, M>, _, _, _) -> _, guard, va, pte, nr)
    };
    let clear = |guard: &mut Guard<'_, M>, At { va, .. }| {
        timed!(ptep_get_and_clear::<M> as fn(&mut PteGuard<'_, '_, M>, _) -> _, guard, va)
    };
    let row = Row::<M>::new;
    alloc::vec![
        row(("set_ptes", "a page inside of a block"), Empty, (3, 1), set, |l| l.loads(1).and(l.stores(1))),
        row(("set_ptes", "the last page, not congruent"), AllButLastMixed, (15, 1), set, |l| {
            l.loads(1).and(l.stores(1))
        })
        .frame(14),
        row(("set_ptes", "the last page, congruent, which can't fold"), AllButLastMixed, (15, 1), set, |l| {
            l.read(16).and(l.stores(1))
        }),
        row(("ptep_get_and_clear", "a page"), Pages(|pte| pte), (3, 1), clear, |l| l.test_and_take(1)),
    ]
}

/// Instructions by which [`LAST_NOT_CONGRUENT`] may differ from [`INSIDE`]: the second half of the test that both numbers are
/// the last of a block.
const OF_THE_FILTER: u64 = 4;

/// Instructions by which a kernel's page may differ from a user's: `dsb ishst; isb`, and the branch to them.
const OF_PUBLICATION: u64 = 4;

/// Instructions by which clearing a kernel's page may differ from a user's, which hardware may make dirty meanwhile: an
/// exclusive load and store for a load and a store.
const OF_UPDATES: u64 = 4;

/// Instructions that setting a page, or clearing one, may execute; 76 and 85 are measured. It accesses what it must; the
/// rest is what it checks, and what it remembers to flush.
const MOST: u64 = 100;

/// Counts both on a user's and on a kernel's address space.
pub(super) fn pays_no_gate(_: &Context<'_>) -> TestResult {
    let scales = [Scales::new(Owner::User), Scales::new(Owner::Kernel)];
    let least = Least(scales[0].features());
    let mut costs = Vec::new();
    println!("| call | on | instructions, user | instructions, kernel | memory accesses | gate asked |");
    println!("|---|---|--:|--:|--:|--:|");
    for (plain, counting) in rows().iter().zip(&rows()) {
        let Row { call, on, .. } = *plain;
        let [user, kernel] = scales.each_ref().map(|scales| scales.weigh(plain, counting));
        let (user, kernel) = (user?, kernel?);
        let (accesses, minimum) = (user.issued.accesses(), (plain.least)(least).accesses());
        println!(
            "| `{call}` | {on} | {} | {} | {accesses} / {minimum} | {} |",
            user.instructions, kernel.instructions, kernel.refused
        );
        costs.push((user, kernel, accesses, minimum));
    }
    let asked: Vec<u64> = costs.iter().map(|(_, kernel, ..)| kernel.refused).collect();
    check!(
        asked == [0, 0, 1, 0],
        "the gate was asked {asked:?} times, not only for the page that might fold"
    );

    let user = |row: usize| costs[row].0.instructions;
    let kernel = |row: usize| costs[row].1.instructions;
    for row in [INSIDE, LAST_NOT_CONGRUENT, CLEAR] {
        check!(user(row) <= MOST, "row {row} executes {} instructions, more than {MOST}", user(row));
        let (.., accesses, minimum) = costs[row];
        check!(accesses <= minimum + 1, "row {row}: {accesses} accesses to entries, {minimum} are enough");
    }
    let filter = user(LAST_NOT_CONGRUENT).abs_diff(user(INSIDE));
    check!(
        filter <= OF_THE_FILTER,
        "the last page of a block differs by {filter}, though it is not congruent"
    );
    for row in [INSIDE, LAST_NOT_CONGRUENT] {
        let more = kernel(row).abs_diff(user(row));
        check!(more <= OF_PUBLICATION, "row {row}: user and kernel differ by {more} instructions");
    }
    let more = kernel(CLEAR).abs_diff(user(CLEAR));
    check!(more <= OF_UPDATES, "clearing a page differs by {more} between user and kernel");
    // What is not paid would be seen.
    let paid = user(LAST_CONGRUENT).saturating_sub(user(LAST_NOT_CONGRUENT));
    check!(
        paid > 10 * OF_THE_FILTER,
        "gate, look-up and comparison of a block cost only {paid} instructions"
    );
    Ok(())
}
