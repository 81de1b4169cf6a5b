//! Runs of pages: what address spaces do to many entries at once, whatever frames they map.
//!
//! Beside [`ptep`](crate::ptep), with its contract, for who has looked at what is mapped: folios matter to none of these, so
//! none looks one up, and each entry keeps its own young and dirty. Entries of a run that are not valid are left out where
//! nothing else is said. What is folded is changed by the block.

use core::ops::Range;

use arch::{Mmu, PteValue};

use crate::contpte::{Ends, block_of, cont_ptes, unfold_partial_ends};
use crate::counters::Counter;
use crate::guard::PteGuard;
use crate::pte::{Gathered, Pte, UserProt};
use crate::ptep::{get_at, wrprotect_ptes};

/// Gives what is valid another permission, in place: that which `prot` has for an entry, whatever else was permitted, but
/// execution by EL0, for which instruction caches come first. Blocks that are wholly covered stay folded; `prot` is the same for
/// all entries of one.
///
/// *Maintenance:* an unfold of a partly covered block at either end flushes that block. Owed for the other pages that changed:
/// until then accesses may be permitted as before.
#[inline]
pub(crate) fn protect<M: Mmu>(
    guard: &mut PteGuard<'_, '_, M>,
    indices: Range<usize>,
    prot: impl Fn(PteValue) -> UserProt,
) {
    change(guard, indices, Counter::UnfoldsByWriteProtect, |pte| pte.with_prot(prot(pte)));
}

/// Changes valid entries in place, in nothing that needs break-before-make. Partly covered blocks at either end are unfolded, for
/// this cause, if something changes in them.
///
/// *Maintenance:* as [`protect`].
#[inline(always)]
pub(crate) fn change<M: Mmu>(
    guard: &mut PteGuard<'_, '_, M>,
    indices: Range<usize>,
    cause: Counter,
    change: impl Fn(PteValue) -> PteValue,
) {
    let Ends { rest, .. } = unfold_partial_ends(guard, &indices, cause, &change);
    // Mostly, and it needs no more.
    if rest.len() == 1 {
        let mut changed = false;
        guard.table().update_leaves(rest.clone(), change, |_, old, new| changed = old != new);
        if changed {
            guard.owe_flush(rest);
        }
        return;
    }
    for part in parts::<M>(rest) {
        let mut changed = Span::NONE;
        let folded = guard.get(part.start).is_folded();
        guard.table().update_leaves(part.clone(), &change, |index, old, new| {
            if old != new {
                changed.add(index);
            }
        });
        changed.owe(guard, part, folded);
    }
}

/// From the first to the last of some entries of a block: what lies far from others is not flushed with them, which takes an
/// operation for each page where there are none by range.
struct Span {
    first: usize,
    end: usize,
}

impl Span {
    const NONE: Self = Self { first: 0, end: 0 };

    #[inline(always)]
    fn add(&mut self, index: usize) {
        if self.end == 0 {
            self.first = index;
        }
        self.end = index + 1;
    }

    /// Owes a flush of them, if there are any, or of all the part of a block that is folded: a TLB may have it in one.
    #[inline(always)]
    fn owe<M: Mmu>(self, guard: &mut PteGuard<'_, '_, M>, part: Range<usize>, folded: bool) {
        if self.end != 0 {
            guard.owe_flush(if folded { part } else { self.first..self.end });
        }
    }
}

/// Write-protects what is valid, and copies all that is there to the same place in another address space, where nothing is:
/// young and dirty as it is here, folded where all of a block is copied that is.
///
/// *Maintenance:* in the one as [`protect`]; in the other none.
pub(crate) fn share<M: Mmu>(
    guard: &mut PteGuard<'_, '_, M>,
    child: &mut PteGuard<'_, '_, M>,
    indices: Range<usize>,
) {
    let va = guard.va(indices.start);
    wrprotect_ptes(guard, va, indices.len());
    let mut folded = 0;
    for part in parts::<M>(indices) {
        let pte = guard.get(part.start);
        if pte.is_folded() && part.len() < cont_ptes::<M>() {
            // Of the block, and not of each page.
            child.table().set_leaves(part.start, get_at(guard, part.start, pte).mknoncont(), part.len());
        } else {
            child.table().fill_leaves(part.clone(), guard.table().leaves(part));
            folded += u64::from(pte.is_folded());
        }
    }
    if folded != 0 {
        child.mm().counters().add(Counter::FoldedAtOnce, folded);
    }
}

/// Moves what is there of entries to where nothing is, nor was since its lock was taken: in the table of the same guard, or of
/// another one. Blocks that are folded and as congruent there are so at once; others are for a
/// [refold](crate::contpte::refold).
///
/// *Maintenance:* an unfold of a partly covered block at either end flushes that block. Owed for the other pages.
pub(crate) fn relocate<'a, 'm, M: Mmu>(
    guard: &mut PteGuard<'a, 'm, M>,
    other: Option<&mut PteGuard<'a, 'm, M>>,
    indices: Range<usize>,
    to: usize,
) {
    let Ends { first, rest, last } =
        unfold_partial_ends(guard, &indices, Counter::UnfoldsByClear, |_| PteValue::NONE);
    let target = |index: usize| index - indices.start + to;
    let destination = other.map_or(guard.table(), |other| other.table());
    for (pte, part) in [(first, indices.start..rest.start), (last, rest.end..indices.end)] {
        if let Some(pte) = pte {
            destination.set_leaves(target(part.start), pte, part.len());
        }
    }
    let congruent = indices.start % cont_ptes::<M>() == to % cont_ptes::<M>();
    let (mut cleared, mut folded) = (0, 0);
    for part in parts::<M>(rest) {
        let mut valid = Span::NONE;
        let pte = guard.get(part.start);
        if pte.is_folded() {
            let mut all = Gathered::default();
            guard.table().clear_leaves(part.clone(), |pte| all.add(pte));
            let pte = all.merged_into(pte);
            destination.set_leaves(
                target(part.start),
                if congruent { pte } else { pte.mknoncont() },
                part.len(),
            );
            valid.add(part.start);
            cleared += 1;
            folded += u64::from(congruent);
        } else {
            let mut index = part.start;
            guard.table().clear_leaves(part.clone(), |pte| {
                if pte.is_valid() {
                    valid.add(index);
                }
                destination.set_leaf(target(index), pte);
                index += 1;
            });
        }
        valid.owe(guard, part, pte.is_folded());
    }
    if cleared != 0 {
        guard.mm().counters().add(Counter::ClearedFolded, cleared);
        guard.mm().counters().add(Counter::FoldedAtOnce, folded);
    }
}

/// The parts of a run that are in one block each: of one either all valid entries are folded, or none.
fn parts<M: Mmu>(indices: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let Range { mut start, end } = indices;
    core::iter::from_fn(move || {
        let part = start..block_of::<M>(start).end.min(end);
        start = part.end;
        (!part.is_empty()).then_some(part)
    })
}
