//! Walking what is mapped, in batches of one folio, and taking it away.

use core::ops::Range;

use arch::granule::LAST_LEVEL;
use arch::{Mmu, PteFlags, PteValue, VirtAddr};

use super::AddressSpace;
use crate::contpte;
use crate::frame::FolioRef;
use crate::guard::{Gather, PteGuard};
use crate::pte::{Pte, UserProt};
use crate::ptep::{get_at, run, set_ptes};

/// Pages that follow one another in one folio, with the same permission.
#[derive(Clone, Copy)]
pub(super) struct Batch<'m> {
    pub(super) va: VirtAddr,
    /// The entry of the first. Valid, or held: see [`hold`].
    pub(super) pte: PteValue,
    pub(super) nr: usize,
    /// Their folio, if its mappings are counted: all are but those of the block of zeroes.
    pub(super) folio: Option<FolioRef<'m>>,
}

/// The entry of a page that is mapped and may not be accessed (`PROT_NONE`): not valid, with all else that it had but the
/// permission to write. Its folio counts it as a mapping.
fn hold(pte: PteValue) -> PteValue {
    pte.with_prot(UserProt::Read).mknoncont().without(PteFlags::VALID)
}

/// The valid entry for one that is held.
pub(super) fn released(pte: PteValue) -> PteValue {
    pte.with(PteFlags::VALID)
}

impl<'m, M: Mmu> AddressSpace<'m, M> {
    pub(super) const PAGE: u64 = M::GRANULE.page_size();
    /// Bytes of a block.
    pub(super) const BLOCK: u64 = Self::PAGE * M::GRANULE.cont_entries(LAST_LEVEL) as u64;
    /// Bytes that a last-level table translates.
    pub(super) const TABLE: u64 = M::GRANULE.level_size(LAST_LEVEL - 1);

    /// Calls `act` with each last-level table there is that translates some of `range`, locked, and what it translates of it.
    /// What is owed is flushed before its lock is released. Others may run on this CPU before each.
    pub(super) fn for_each_table<E>(
        &self,
        range: &Range<u64>,
        mut act: impl FnMut(&mut PteGuard<'_, 'm, M>, Range<u64>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut va = range.start;
        while va < range.end {
            self.memory.contents().cond_resched();
            // Mostly there is one.
            let mut guard = match self.mm.lock_present_table(VirtAddr::new(va)) {
                Some(guard) => guard,
                None => {
                    let Some(start) = self.mm.next_table(va, range.end) else { break };
                    va = start;
                    // Tables are freed only while nobody else is here.
                    self.mm.lock_present_table(VirtAddr::new(va)).expect("a table that was found")
                }
            };
            let end = ((va | (Self::TABLE - 1)) + 1).min(range.end);
            act(&mut guard, va..end)?;
            va = end;
        }
        Ok(())
    }

    /// Calls `act` with each batch in `range`, which the guard's table translates. `act` may change its pages only.
    #[inline]
    pub(super) fn for_each_batch<E>(
        &self,
        guard: &mut PteGuard<'_, 'm, M>,
        range: Range<u64>,
        mut act: impl FnMut(&mut PteGuard<'_, 'm, M>, Batch<'m>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut left = Self::indices(guard, &range);
        while let Some(batch) = self.next_batch(guard, &mut left) {
            act(guard, batch)?;
        }
        Ok(())
    }

    /// Indices of the entries for a range, which the guard's table translates.
    pub(super) fn indices(guard: &PteGuard<'_, 'm, M>, range: &Range<u64>) -> Range<usize> {
        if range.is_empty() {
            return 0..0;
        }
        guard.indices(VirtAddr::new(range.start), ((range.end - range.start) / Self::PAGE) as usize)
    }

    /// From the first to the last of these entries that is not none, if there is one.
    pub(super) fn present(guard: &PteGuard<'_, 'm, M>, range: &Range<u64>) -> Option<Range<usize>> {
        let all = Self::indices(guard, range);
        let is_there = |&index: &usize| guard.get(index) != PteValue::NONE;
        let first = all.start + guard.table().leaves(all.clone()).position(|pte| pte != PteValue::NONE)?;
        let last = (first..all.end).rev().find(is_there)?;
        Some(first..last + 1)
    }

    /// The first batch among the entries that are left, of which it is not any more.
    #[inline]
    pub(super) fn next_batch(
        &self,
        guard: &PteGuard<'_, 'm, M>,
        left: &mut Range<usize>,
    ) -> Option<Batch<'m>> {
        if left.start >= left.end {
            return None;
        }
        let mut raw = guard.get(left.start);
        if raw == PteValue::NONE {
            left.start += guard.table().leaves(left.clone()).position(|pte| pte != PteValue::NONE)?;
            raw = guard.get(left.start);
        }
        let index = left.start;
        let folio = self.folio(raw);
        let in_folio = (folio.frames() - (raw.pa().pfn(M::GRANULE).get() - folio.head().get())) as usize;
        let most = in_folio.min(left.end - index);
        let nr = if most == 1 {
            1
        } else if raw.is_valid() {
            run(guard, index, raw, most)
        } else {
            Self::held_batch(guard, index, raw, most)
        };
        left.start = index + nr;
        let counted = !folio.is(self.memory.zero());
        let pte = get_at(guard, index, raw);
        Some(Batch { va: guard.va(index), pte, nr, folio: counted.then_some(folio) })
    }

    /// How many of `most` entries from one on that is held continue it.
    fn held_batch(guard: &PteGuard<'_, 'm, M>, start: usize, held: PteValue, most: usize) -> usize {
        let same = |&i: &usize| {
            let other = guard.get(start + i);
            // Dirty or not, too: nothing gathers it of entries that are not valid.
            other == held.advanced(i as u64 * Self::PAGE)
        };
        1 + (1..most).take_while(same).count()
    }

    /// Both: every batch in `range`.
    pub(super) fn for_each_batch_in<E>(
        &self,
        range: &Range<u64>,
        mut act: impl FnMut(&mut PteGuard<'_, 'm, M>, Batch<'m>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.for_each_table(range, |guard, range| self.for_each_batch(guard, range, &mut act))
    }

    /// The folio of an entry that is not none.
    #[inline]
    fn folio(&self, pte: PteValue) -> FolioRef<'m> {
        self.memory.frames().folio(pte.pa().pfn(M::GRANULE)).expect("what is mapped here has a folio")
    }

    /// The folio of an entry that is not none, if its mappings are counted.
    #[inline]
    pub(super) fn counted_folio(&self, pte: PteValue) -> Option<FolioRef<'m>> {
        if self.memory.zero().contains(pte.pa().pfn(M::GRANULE)) { None } else { Some(self.folio(pte)) }
    }

    /// Every batch in `range`, with what gathers the folios that are unmapped.
    pub(super) fn for_each_batch_gathered<E>(
        &self,
        range: &Range<u64>,
        mut act: impl FnMut(&mut Gather<'_, '_, 'm, M>, Batch<'m>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.for_each_table(range, |guard, range| {
            let mut gather = Gather::new(guard, **self.memory.zero());
            let mut left = Self::indices(gather.guard, &range);
            while let Some(batch) = self.next_batch(gather.guard, &mut left) {
                act(&mut gather, batch)?;
            }
            Ok(())
        })
    }

    /// Unmaps all pages of a range, one flush for each table that has some, or a few.
    pub(super) fn zap(&self, range: &Range<u64>) {
        let Ok(()) = self.for_each_table(range, |guard, range| {
            if let Some(indices) = Self::present(guard, &range) {
                Gather::new(guard, **self.memory.zero()).clear(indices);
            }
            Ok::<(), core::convert::Infallible>(())
        });
    }

    /// Calls `act` with each folio that has some of these entries, and those that are of it: each time some of it is met. With
    /// `None` in place of the block of zeroes, whose mappings are not counted.
    #[inline]
    pub(super) fn for_each_folio<E>(
        &self,
        guard: &mut PteGuard<'_, 'm, M>,
        indices: Range<usize>,
        mut act: impl FnMut(&mut PteGuard<'_, 'm, M>, Option<FolioRef<'m>>, Range<usize>) -> Result<(), E>,
    ) -> Result<(), E> {
        // Of a folded block one entry tells of all.
        let after = |index: usize, pte: PteValue| {
            let end = if pte.is_folded() { contpte::block_of::<M>(index).end } else { index + 1 };
            end.min(indices.end)
        };
        let mut next = indices.start;
        while next < indices.end {
            let (start, pte) = (next, guard.get(next));
            next = after(start, pte);
            if pte == PteValue::NONE {
                continue;
            }
            let folio = self.folio(pte);
            while next < indices.end && folio.frames() > 1 {
                let pte = guard.get(next);
                if pte == PteValue::NONE || !folio.contains(pte.pa().pfn(M::GRANULE)) {
                    break;
                }
                next = after(next, pte);
            }
            let counted = !folio.is(self.memory.zero());
            act(guard, counted.then_some(folio), start..next)?;
        }
        Ok(())
    }

    /// Holds the entries of a batch that is cleared.
    pub(super) fn set_held(guard: &mut PteGuard<'_, 'm, M>, batch: Batch<'_>) {
        let held = hold(batch.pte);
        for i in 0..batch.nr as u64 {
            let va = VirtAddr::new(batch.va.get() + i * Self::PAGE);
            set_ptes(guard, va, held.advanced(i * Self::PAGE), 1);
        }
    }

    /// Folds every block that qualifies of those that have some of a range; how many.
    pub(super) fn refold(&self, range: &Range<u64>) -> usize {
        let mut folded = 0;
        let Ok(()) = self.for_each_table(range, |guard, range| {
            let nr = (range.end - range.start) / Self::PAGE;
            folded += contpte::refold(guard, VirtAddr::new(range.start), nr as usize);
            Ok::<(), core::convert::Infallible>(())
        });
        folded
    }

    /// Whether nobody else has this folio, which is mapped at `va` and may be mapped around it as a whole: what is counted are
    /// the mappings by this table, and the reference that stands for them. With the guard held, nobody can get it then.
    #[inline]
    pub(super) fn is_exclusive(
        guard: &PteGuard<'_, 'm, M>,
        va: VirtAddr,
        pte: PteValue,
        folio: &FolioRef<'m>,
    ) -> bool {
        let maps = folio.maps();
        folio.refs() == 1 && (maps == 1 || maps == Self::mapped_around(guard, va, pte, folio))
    }

    /// How many pages of a folio, which is mapped at `va`, are mapped as its whole would be around that, by this table.
    #[inline(never)]
    fn mapped_around(guard: &PteGuard<'_, 'm, M>, va: VirtAddr, pte: PteValue, folio: &FolioRef<'m>) -> u32 {
        let whole = Self::folio_range(guard, va, pte, folio);
        let start = guard.index(VirtAddr::new(whole.start));
        let own = guard.table().leaves(start..start + ((whole.end - whole.start) / Self::PAGE) as usize);
        let own = own.filter(|&other| other != PteValue::NONE && folio.contains(other.pa().pfn(M::GRANULE)));
        own.count() as u32
    }

    /// Where all pages of a folio are mapped if one of them, by `pte`, is at `va`: as much as the table translates.
    pub(super) fn folio_range(
        guard: &PteGuard<'_, 'm, M>,
        va: VirtAddr,
        pte: PteValue,
        folio: &FolioRef<'m>,
    ) -> Range<u64> {
        let page = va.get() & !(Self::PAGE - 1);
        let (base, size) = guard.span();
        let before = (pte.pa().pfn(M::GRANULE).get() - folio.head().get()) * Self::PAGE;
        let start = page.saturating_sub(before).max(base.get());
        let end = (page + (folio.frames() * Self::PAGE - before)).min(base.get() + size);
        start..end
    }
}
