//! Runs of pages: what address spaces do to many entries at once, whatever frames they map.
//!
//! Beside [`ptep`](crate::ptep), with its contract, for who has looked at what is mapped: folios matter to none of these, so
//! none looks one up, and each entry keeps its own young and dirty. Entries of a run that are not valid are left out where
//! nothing else is said. What is folded is changed by the block.

use core::ops::Range;

use arch::{Mmu, PteValue, VirtAddr};

use crate::contpte::{Ends, unfold_partial_ends};
use crate::counters::Counter;
use crate::guard::PteGuard;
use crate::pte::{Pte, UserProt};

/// Gives `nr` pages from `va` on another permission, in place: whatever else was permitted, but execution by EL0, for which
/// instruction caches come first. Blocks that are wholly covered stay folded.
///
/// *Maintenance:* an unfold of a partly covered block at either end flushes that block. Owed for the other pages, if any
/// entry changed: until then accesses may be permitted as before.
pub(crate) fn protect<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, va: VirtAddr, nr: usize, prot: UserProt) {
    let indices = guard.indices(va, nr);
    change(guard, indices, Counter::UnfoldsByWriteProtect, |pte| pte.with_prot(prot));
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
    let mut changed = false;
    guard.table().update_leaves(rest.clone(), change, |old, new| changed |= old != new);
    if changed {
        guard.owe_flush(rest);
    }
}
