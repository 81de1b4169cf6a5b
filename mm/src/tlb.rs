//! TLB maintenance of one address space: which operations, how many, and in what order.
//!
//! Every function but `flush_tables` and `flush_moved_tables` issues operations for leaf entries at level 3, with that level as a
//! hint, for the ASID of the mm (every ASID for the kernel's). Descriptor stores come first: [`Mmu::publish`] is issued before
//! the first operation (DDI 0487, D8.16, RDDMVT).

use arch::granule::LAST_LEVEL;
use arch::tlbi::{Space, Tlbi};
use arch::{Mmu, VirtAddr};

use crate::Mm;
use crate::counters::Counter;

/// Without range operations, fewer pages than this are invalidated one by one, and this many or more by ASID: one operation
/// then costs less than the misses that follow it.
pub const MAX_PAGE_OPERATIONS: u64 = 512;

/// Issues the invalidation of `pages` pages from `va` on, and does not wait for it.
pub(crate) fn flush_range_nosync<M: Mmu>(mm: &Mm<'_, M>, va: VirtAddr, pages: u64) {
    issue_ranges(mm, core::iter::once((va, pages)));
}

/// Issues the invalidation of `pages` pages from `va` on and waits until every CPU has done it.
pub(crate) fn flush_range<M: Mmu>(mm: &Mm<'_, M>, va: VirtAddr, pages: u64) {
    flush_ranges(mm, core::iter::once((va, pages)));
}

/// Issues the invalidation of ranges, each a first address and a number of pages, and waits until every CPU has done
/// all of it.
pub(crate) fn flush_ranges<M: Mmu>(mm: &Mm<'_, M>, ranges: impl Iterator<Item = (VirtAddr, u64)> + Clone) {
    issue_ranges(mm, ranges);
    mm.mmu().complete();
}

fn issue_ranges<M: Mmu>(mm: &Mm<'_, M>, ranges: impl Iterator<Item = (VirtAddr, u64)> + Clone) {
    mm.mmu().publish();
    // Only now: a CPU that is given another ASID from here on walks the tables as they are published.
    let Some(space) = mm.space() else { return };
    let pages: u64 = ranges.clone().map(|(_, pages)| pages).sum();
    if !mm.mmu().features().tlb_range && pages >= MAX_PAGE_OPERATIONS {
        return issue_all(mm, space);
    }
    ranges.for_each(|(va, pages)| issue_range(mm, space, va, pages));
}

/// Invalidates the page at `va` on this CPU alone, and waits for it: for a fault that found the entry right.
pub(crate) fn flush_local<M: Mmu>(mm: &Mm<'_, M>, va: VirtAddr) {
    let Some(space) = mm.space() else { return };
    let (granule, level) = (M::GRANULE, Some(LAST_LEVEL));
    mm.mmu().invalidate_local(Tlbi::Page { va, space, last_level: true, granule, level });
}

/// Invalidates what leads to tables, of each of which an address is given that it translates, and waits until every CPU has
/// done it. They are of any level, so no level is given.
pub(crate) fn flush_tables<M: Mmu>(mm: &Mm<'_, M>, tables: impl ExactSizeIterator<Item = VirtAddr>) {
    if tables.len() == 0 {
        return;
    }
    mm.mmu().publish();
    let Some(space) = mm.space() else { return };
    issue(mm, tables.map(|va| Tlbi::Page { va, space, last_level: false, granule: M::GRANULE, level: None }));
    mm.mmu().complete();
}

/// Invalidates all that last-level tables translated, of each of which the first address is given, and what led to them, and
/// waits until every CPU has done it.
pub(crate) fn flush_moved_tables<M: Mmu>(mm: &Mm<'_, M>, tables: impl ExactSizeIterator<Item = VirtAddr>) {
    if tables.len() == 0 {
        return;
    }
    mm.mmu().publish();
    let Some(space) = mm.space() else { return };
    if mm.mmu().features().tlb_range {
        tables.for_each(|va| issue_table(mm, space, va));
    } else {
        // One by one they would be as many as that is for.
        issue_all(mm, space);
    }
    mm.mmu().complete();
}

/// All that a last-level table translates, and what leads to it.
fn issue_table<M: Mmu>(mm: &Mm<'_, M>, space: Space, va: VirtAddr) {
    match Tlbi::range(va, M::GRANULE.entries() as u64, space, false, M::GRANULE, None) {
        Ok(operations) => issue(mm, operations),
        // Longer than a range can be.
        Err(_) => issue_all(mm, space),
    }
}

fn issue_range<M: Mmu>(mm: &Mm<'_, M>, space: Space, va: VirtAddr, pages: u64) {
    let (granule, level) = (M::GRANULE, Some(LAST_LEVEL));
    if !mm.mmu().features().tlb_range {
        mm.mmu().invalidate_pages(Tlbi::Page { va, space, last_level: true, granule, level }, pages);
        mm.counters().add(Counter::TlbInvalidations, pages);
    } else if let Ok(operations) = Tlbi::range(va, pages, space, true, granule, level) {
        issue(mm, operations);
    } else {
        // Longer than a range can be.
        issue_all(mm, space);
    }
}

fn issue_all<M: Mmu>(mm: &Mm<'_, M>, space: Space) {
    let operation = match space {
        Space::Asid(asid) => Tlbi::Asid(asid),
        Space::All => Tlbi::All,
    };
    issue(mm, core::iter::once(operation));
}

fn issue<M: Mmu>(mm: &Mm<'_, M>, operations: impl Iterator<Item = Tlbi>) {
    let mut issued = 0;
    for operation in operations {
        mm.mmu().invalidate(operation);
        issued += 1;
    }
    mm.counters().add(Counter::TlbInvalidations, issued);
}
