//! The page-table lock of one last-level table, and what is owed while it is held.

use core::ops::Range;

use arch::granule::LAST_LEVEL;
use arch::{Mmu, Pfn, PteValue, Table, VirtAddr};
use arrayvec::ArrayVec;

use crate::Mm;
use crate::contpte::{Ends, block_of, unfold_partial_ends};
use crate::counters::Counter;
use crate::frame::{Folio, FolioRef, FrameMap};
use crate::mm_struct::Kind;
use crate::pte::{Gathered, Pte};
use crate::tlb;

/// What waits for a flush before it is given back; a further one flushes first.
enum Freed<'m> {
    /// A reference.
    Folio(Folio<'m>),
    /// So many mappings of a folio.
    Mappings(FolioRef<'m>, u32),
}

/// How many runs of frames may wait in a [`Gather`].
const BATCH: usize = 32;

/// How many more there is room for, so that pages which need not be cleared together mostly are.
const ROOM: usize = 16;

/// Ranges of pages that wait for a flush apart from each other; a further one flushes first.
const RANGES: usize = 4;

/// Indices of entries of one table, in little space: aligned, so that they are moved as words.
#[derive(Clone, Copy)]
#[repr(align(4))]
struct Indices {
    start: u16,
    end: u16,
}

/// The page-table lock (PTL) of one last-level table. Whoever changes an entry of the table holds it.
///
/// It is also the gather of what was cleared under it: pages whose old translation a TLB may still hold. They are
/// flushed at once where one of them becomes valid again (DDI 0487, D8.16.1: break, flush, make), and else when the
/// guard is dropped, before the lock is released: a fault that waits for it may install another frame. A folio that
/// was given to [`Self::free_after_flush`] is dropped after that flush, never before.
///
/// It is moved from call to call by every fault, so it is small. Who unmaps many folios has a `Gather` beside it.
pub struct PteGuard<'a, 'm, M: Mmu> {
    mm: &'a Mm<'m, M>,
    table: Table<'a, M>,
    /// The first address that the table translates.
    base: u64,
    /// Indices of entries whose old translation may still be cached.
    pending: ArrayVec<Indices, RANGES>,
    freed: Option<Freed<'m>>,
    /// The mm is `efi_mm`: so that each call looks at one byte.
    #[cfg(feature = "efi")]
    efi: bool,
    /// Released last: fields are dropped in their order, after [`Drop::drop`]. `None` where the other guard of a
    /// [`TablePair`] has it.
    _lock: Option<spin::MutexGuard<'a, ()>>,
}

impl<'a, 'm, M: Mmu> PteGuard<'a, 'm, M> {
    pub(crate) fn new(
        mm: &'a Mm<'m, M>,
        table: Table<'a, M>,
        va: VirtAddr,
        lock: Option<spin::MutexGuard<'a, ()>>,
    ) -> Self {
        let base = va.get() & !(M::GRANULE.level_size(LAST_LEVEL - 1) - 1);
        Self {
            mm,
            table,
            base,
            pending: ArrayVec::new(),
            freed: None,
            #[cfg(feature = "efi")]
            efi: matches!(mm.kind(), Kind::Efi { .. }),
            _lock: lock,
        }
    }

    /// The address space.
    pub fn mm(&self) -> &'a Mm<'m, M> {
        self.mm
    }

    /// The first address that the table translates, and the bytes that it does.
    pub fn span(&self) -> (VirtAddr, u64) {
        (VirtAddr::new(self.base), M::GRANULE.level_size(LAST_LEVEL - 1))
    }

    /// Index of the entry for `va`.
    ///
    /// # Panics
    /// Where the table does not translate `va`.
    #[track_caller]
    pub(crate) fn index(&self, va: VirtAddr) -> usize {
        let offset = va.get().wrapping_sub(self.base);
        assert!(offset < self.span().1, "{va} is in another table");
        (offset >> M::GRANULE.page_shift()) as usize
    }

    /// Indices of the entries for `nr` pages from `va` on.
    ///
    /// # Panics
    /// Where the table does not translate all of them, or there are none.
    #[track_caller]
    pub(crate) fn indices(&self, va: VirtAddr, nr: usize) -> Range<usize> {
        let start = self.index(va);
        assert!(nr > 0 && nr <= M::GRANULE.entries() - start, "{nr} pages at {va} are not in one table");
        start..start + nr
    }

    pub(crate) fn va(&self, index: usize) -> VirtAddr {
        VirtAddr::new(self.base + ((index as u64) << M::GRANULE.page_shift()))
    }

    pub(crate) fn table(&self) -> Table<'a, M> {
        self.table
    }

    pub(crate) fn get(&self, index: usize) -> PteValue {
        self.table.leaf(index)
    }

    /// The old translations of these entries may be cached until the next flush.
    #[inline]
    pub(crate) fn owe_flush(&mut self, indices: Range<usize>) {
        // A table of the largest granule has 2^13 entries.
        let indices = Indices { start: indices.start as u16, end: indices.end as u16 };
        if self.pending.is_empty() {
            self.pending.push(indices);
        } else {
            self.owe_also(indices);
        }
    }

    #[inline(never)]
    fn owe_also(&mut self, indices: Indices) {
        // Where one operation invalidates a range, one that holds all is cheaper than several; where each page takes one,
        // the pages between are not invalidated for nothing.
        let one_for_all = self.mm.mmu().features().tlb_range;
        let near =
            |other: &&mut Indices| one_for_all || indices.start <= other.end && other.start <= indices.end;
        if let Some(range) = self.pending.iter_mut().rev().find(near) {
            *range = Indices { start: range.start.min(indices.start), end: range.end.max(indices.end) };
            return;
        }
        if self.pending.is_full() {
            self.flush();
        }
        self.pending.push(indices);
    }

    /// To be called before any of these entries becomes valid: what was there must not be cached any more.
    #[inline]
    pub(crate) fn before_valid(&mut self, indices: &Range<usize>) {
        // Mostly nothing is owed.
        if !self.pending.is_empty() && self.owes(indices) {
            self.flush();
        }
    }

    /// Whether the old translation of one of these entries may be cached.
    fn owes(&self, indices: &Range<usize>) -> bool {
        self.pending
            .iter()
            .any(|range| indices.start < usize::from(range.end) && usize::from(range.start) < indices.end)
    }

    /// Flushes these entries, together with what is owed if the two overlap, and waits until every CPU has done it.
    pub(crate) fn flush_with(&mut self, indices: Range<usize>) {
        if self.owes(&indices) {
            self.owe_flush(indices);
            self.flush();
        } else {
            tlb::flush_range(self.mm, self.va(indices.start), indices.len() as u64);
        }
    }

    /// Every public function that changes entries says so here: nobody may call one on `efi_mm`. Reported are the
    /// function and the table; then it goes on, as a `VM_WARN_ON` does. Not the gate of `contpte`: that one folds and
    /// unfolds nothing there, whoever asks. Without `efi_mm` this is nothing at all.
    #[inline(always)]
    pub(crate) fn mutates(&self, function: &'static str) {
        #[cfg(feature = "efi")]
        if self.efi {
            self.warn_efi(function);
        }
        #[cfg(not(feature = "efi"))]
        let _ = function;
    }

    #[cfg(feature = "efi")]
    #[cold]
    fn warn_efi(&self, function: &'static str) {
        self.mm.counters().add(crate::counters::Counter::MutatorOnEfi, 1);
        log::warn!("{function} was called on efi_mm, in the table at {}", VirtAddr::new(self.base));
    }

    /// Flushes what is owed and gives back what waited for it. Waits until every CPU has done it.
    #[inline]
    pub fn flush(&mut self) {
        self.flush_pending();
        if let Some(freed) = self.freed.take() {
            self.give_back(freed);
        }
    }

    #[inline(never)]
    fn give_back(&self, freed: Freed<'m>) {
        match (freed, self.frames()) {
            (Freed::Folio(folio), _) => drop(folio),
            (Freed::Mappings(folio, nr), Some(frames)) => frames.sub_mappings(folio, nr),
            (Freed::Mappings(..), None) => unreachable!("only a user's mappings are counted"),
        }
    }

    /// The folios of a user's pages.
    fn frames(&self) -> Option<&'m FrameMap<'m>> {
        match *self.mm.kind() {
            Kind::User { frames, .. } => Some(frames),
            _ => None,
        }
    }

    #[inline]
    fn flush_pending(&mut self) {
        if !self.pending.is_empty() {
            self.flush_ranges();
        }
    }

    #[inline(never)]
    fn flush_ranges(&mut self) {
        let ranges = self
            .pending
            .iter()
            .map(|range| (self.va(range.start.into()), u64::from(range.end - range.start)));
        tlb::flush_ranges(self.mm, ranges);
        self.pending.clear();
    }

    /// Drops `folio` after the next flush: the pages that were cleared may still be written to through a TLB. One may wait; a
    /// further one flushes first.
    pub fn free_after_flush(&mut self, folio: Folio<'m>) {
        if self.freed.is_some() {
            self.flush();
        }
        self.freed = Some(Freed::Folio(folio));
    }

    /// Counts `nr` mappings of a folio less after the next flush, and frees it with the last: what was cleared may still be
    /// used through a TLB. As [`Self::free_after_flush`].
    pub(crate) fn unmap_after_flush(&mut self, folio: FolioRef<'m>, nr: u32) {
        if self.freed.is_some() {
            self.flush();
        }
        self.freed = Some(Freed::Mappings(folio, nr));
    }
}

/// Frames that follow one another, of which so many mappings wait for a flush.
struct Unmapped {
    first: Pfn,
    nr: u32,
    /// They were written to by these mappings.
    dirty: bool,
}

/// Pages that are unmapped under one guard, of which many wait for one flush: the mappings of their folios are counted less
/// after it, when there is no more room or this is dropped. Of the folio `uncounted` there are none to be counted.
pub(crate) struct Gather<'g, 'a, 'm, M: Mmu> {
    /// Of the table in which they were mapped.
    pub(crate) guard: &'g mut PteGuard<'a, 'm, M>,
    uncounted: FolioRef<'m>,
    freed: ArrayVec<Unmapped, { BATCH + ROOM }>,
}

impl<'g, 'a, 'm, M: Mmu> Gather<'g, 'a, 'm, M> {
    pub(crate) fn new(guard: &'g mut PteGuard<'a, 'm, M>, uncounted: FolioRef<'m>) -> Self {
        Self { guard, uncounted, freed: ArrayVec::new() }
    }

    /// Counts `nr` mappings less after the next flush: those of the frame of `pte`, which was cleared, and of the frames that
    /// follow it. The last of a folio frees it. If `pte` is dirty they count as written.
    #[inline]
    pub(crate) fn unmap_after_flush(&mut self, pte: PteValue, nr: u32) {
        if self.freed.is_full() {
            self.give_back();
        }
        Self::push(&mut self.freed, pte, nr);
    }

    #[inline(always)]
    fn push(freed: &mut ArrayVec<Unmapped, { BATCH + ROOM }>, pte: PteValue, nr: u32) {
        let (first, dirty) = (pte.pa().pfn(M::GRANULE), pte.is_dirty());
        if let Some(last) = freed.last_mut()
            && last.first.get() + u64::from(last.nr) == first.get()
            && last.dirty == dirty
        {
            last.nr += nr;
            return;
        }
        freed.push(Unmapped { first, nr, dirty });
    }

    /// Clears all entries of these, valid or not, and counts the mappings less after the next flush.
    ///
    /// *Maintenance:* as [`get_and_clear_ptes`](crate::ptep::get_and_clear_ptes).
    pub(crate) fn clear(&mut self, indices: Range<usize>) {
        let Ends { first, rest, last } =
            unfold_partial_ends(self.guard, &indices, Counter::UnfoldsByClear, |_| PteValue::NONE);
        for (pte, part) in [(first, indices.start..rest.start), (last, rest.end..indices.end)] {
            if let Some(pte) = pte {
                self.unmap_after_flush(pte, part.len() as u32);
            }
        }
        let mut cleared = 0;
        let mut at = rest.start;
        while at < rest.end {
            if self.freed.remaining_capacity() < ROOM {
                self.give_back();
            }
            let mut part = at..block_of::<M>(at).end.min(rest.end);
            let mut any = false;
            let pte = self.guard.get(at);
            if pte.is_folded() {
                // All of it, before anything is flushed.
                let mut all = Gathered::default();
                self.guard.table().clear_leaves(part.clone(), |pte| all.add(pte));
                Self::push(&mut self.freed, all.merged_into(pte), part.len() as u32);
                cleared += 1;
                any = true;
            } else {
                part.end = part.end.min(at + self.freed.remaining_capacity());
                let freed = &mut self.freed;
                self.guard.table().clear_leaves(part.clone(), |pte| {
                    if pte != PteValue::NONE {
                        any |= pte.is_valid();
                        Self::push(freed, pte, 1);
                    }
                });
            }
            at = part.end;
            if any {
                self.guard.owe_flush(part);
            }
        }
        if cleared != 0 {
            self.guard.mm.counters().add(Counter::ClearedFolded, cleared);
        }
    }

    #[inline(never)]
    fn give_back(&mut self) {
        self.guard.flush_pending();
        let frames = self.guard.frames().expect("only a user's mappings are counted");
        for Unmapped { mut first, mut nr, dirty } in self.freed.drain(..) {
            while nr > 0 {
                let folio = frames.folio(first).expect("what is mapped here has a folio");
                let here = ((folio.frames() - (first.get() - folio.head().get())) as u32).min(nr);
                if !folio.is(&self.uncounted) {
                    if dirty {
                        // Their dirty state went with the entries.
                        folio.mark_written();
                    }
                    frames.sub_mappings(folio, here);
                }
                (first, nr) = (first.add(here.into()), nr - here);
            }
        }
    }
}

impl<M: Mmu> Drop for Gather<'_, '_, '_, M> {
    fn drop(&mut self) {
        if !self.freed.is_empty() {
            self.give_back();
        }
    }
}

impl<M: Mmu> Drop for PteGuard<'_, '_, M> {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The tables of two addresses, locked together: see [`Mm::lock_two_tables`]. What is owed in either is flushed before any of
/// the two is released.
pub struct TablePair<'a, 'm, M: Mmu> {
    /// Dropped first: where one lock serves both tables, the other has it.
    pub(crate) first: PteGuard<'a, 'm, M>,
    pub(crate) second: Option<PteGuard<'a, 'm, M>>,
}

impl<'a, 'm, M: Mmu> TablePair<'a, 'm, M> {
    /// The table of the first address, and that of the second unless it is the same.
    pub fn both(&mut self) -> (&mut PteGuard<'a, 'm, M>, Option<&mut PteGuard<'a, 'm, M>>) {
        (&mut self.first, self.second.as_mut())
    }
}

impl<M: Mmu> Drop for TablePair<'_, '_, M> {
    /// Whoever takes one of the locks next may unmap and free what moved from the other table.
    fn drop(&mut self) {
        self.first.flush_pending();
        if let Some(second) = &mut self.second {
            second.flush_pending();
        }
    }
}
