//! `madvise` and `mincore`; what becomes of pages that are not needed.

use core::convert::Infallible;
use core::ops::Range;
use core::sync::atomic::Ordering;

use arch::{Mmu, PteValue, VirtAddr};

use super::fault::permits;
use super::ranges::Batch;
use super::{Access, AddressSpace, Fault, TASK_SIZE};
use crate::contpte;
use crate::counters::Counter;
use crate::errno::Errno;
use crate::guard::{Gather, PteGuard};
use crate::mman::*;
use crate::pte::Pte;
use crate::ptep::{
    YoungDirty, clear_young_dirty_ptes, get_and_clear_ptes, pte_batch_hint, ptep_clear_flush_young, ptep_get,
    set_ptes,
};
use crate::vma::{Backing, Prot, Vma};

impl<'m, M: Mmu> AddressSpace<'m, M> {
    /// Does what `madvise` does, for the advices of [`mman`](crate::mman). What is not mapped is left out, and told at the end.
    ///
    /// - `DONTNEED`: unmaps the pages. Private memory is what it was at first.
    /// - `FREE`: pages of private anonymous memory that are nobody else's may be given back when memory is short, until they are
    ///   written to again.
    /// - `COLD`: makes the pages old.
    /// - `POPULATE_READ`, `POPULATE_WRITE`: faults the pages in, up to the first that can't be.
    /// - `NORMAL`, `RANDOM`, `SEQUENTIAL`, `WILLNEED`: nothing.
    ///
    /// *Maintenance:* one flush for each last-level table in which pages were unmapped or made clean.
    ///
    /// # Errors
    /// - `EINVAL`: an unknown advice; `addr` is not a multiple of the page size; the range wraps; `FREE` of memory that is
    ///   another's; `POPULATE_*` of memory that may not be accessed so.
    /// - `ENOMEM`: some of it is not mapped.
    /// - [`OutOfMemory`](Errno::OutOfMemory): none to populate it; what comes before was populated.
    /// - `EFAULT`: populating meets the end of a file.
    pub fn madvise(&self, addr: u64, len: u64, advice: i32) -> Result<(), Errno> {
        let known = matches!(advice, MADV_NORMAL..=MADV_DONTNEED | MADV_FREE | MADV_COLD)
            || matches!(advice, MADV_POPULATE_READ | MADV_POPULATE_WRITE);
        if !known || !addr.is_multiple_of(Self::PAGE) {
            return Err(Errno::EINVAL);
        }
        let size = len.checked_next_multiple_of(Self::PAGE).ok_or(Errno::EINVAL)?;
        let range = addr..addr.checked_add(size).ok_or(Errno::EINVAL)?;
        if range.is_empty() {
            return Ok(());
        }
        match advice {
            MADV_POPULATE_READ => return self.populate(&range, Some(Access::Read)),
            MADV_POPULATE_WRITE => return self.populate(&range, Some(Access::Write)),
            _ => {}
        }
        // Zapping page tables takes their locks alone; a fault puts there what belongs there.
        let map = self.read_map();
        let mut at = range.start;
        let mut hole = false;
        for vma in map.vmas.overlapping(&range) {
            let part = vma.start.max(range.start)..vma.end.min(range.end);
            hole |= part.start > at;
            at = part.end;
            match advice {
                MADV_DONTNEED => {
                    self.zap(&part);
                }
                MADV_FREE if !vma.is_anonymous() => return Err(Errno::EINVAL),
                MADV_FREE => self.free_lazily(&part),
                MADV_COLD => self.make_old(&part),
                _ => {}
            }
        }
        if hole || at < range.end { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Makes pages clean that are nobody else's: what is in them may be lost until they are written to again.
    fn free_lazily(&self, range: &Range<u64>) {
        let Ok(()) = self.for_each_batch_in(range, |guard, batch| {
            let Some(folio) = batch.folio else { return Ok(()) };
            if !batch.pte.is_valid() || !Self::is_exclusive(guard, batch.va, batch.pte, &folio) {
                return Ok(());
            }
            // What a user wrote and may execute is known by the dirty state, which goes.
            folio.mark_written();
            Self::for_each_part(batch, |part| {
                let indices = guard.indices(part.va, part.nr);
                if part.nr < contpte::cont_ptes::<M>() && guard.get(indices.start).is_folded() {
                    // Young and dirty are of the block; what is not advised so keeps them.
                    contpte::unfold(guard, indices, Counter::UnfoldsByClear, |pte| pte.mkold().mkclean());
                } else {
                    clear_young_dirty_ptes(guard, part.va, part.nr, YoungDirty::Both);
                }
            });
            Ok::<(), Infallible>(())
        });
    }

    /// The parts of a batch that are in one block each.
    fn for_each_part(batch: Batch<'m>, mut act: impl FnMut(Batch<'m>)) {
        let mut done = 0;
        while done < batch.nr {
            let va = batch.va.get() + done as u64 * Self::PAGE;
            let left = (Self::BLOCK - va % Self::BLOCK) / Self::PAGE;
            let nr = (batch.nr - done).min(left as usize);
            let pte = batch.pte.advanced(done as u64 * Self::PAGE);
            act(Batch { va: VirtAddr::new(va), pte, nr, ..batch });
            done += nr;
        }
    }

    fn make_old(&self, range: &Range<u64>) {
        let Ok(()) = self.for_each_batch_in(range, |guard, batch| {
            if batch.pte.is_valid() {
                clear_young_dirty_ptes(guard, batch.va, batch.nr, YoungDirty::Young);
            }
            Ok::<(), Infallible>(())
        });
    }

    /// Faults the pages of a range in, for this access or, without one, for whichever is permitted.
    pub(super) fn populate(&self, range: &Range<u64>, access: Option<Access>) -> Result<(), Errno> {
        let mut at = range.start;
        while at < range.end {
            // Anew for each page, so that who changes mappings need not wait for all.
            let map = self.read_map();
            let vma = map.vmas.find(at).ok_or(Errno::ENOMEM)?;
            let chosen = access.unwrap_or(Self::access_to_populate(vma));
            if !permits(vma, chosen) {
                return Err(Errno::EINVAL);
            }
            let done = match self.populated(vma, at, chosen) {
                0 => {
                    self.fault_in(vma, at, chosen).map_err(|fault| match fault {
                        Fault::OutOfMemory => Errno::OutOfMemory,
                        Fault::Bus | Fault::Segv { .. } => Errno::EFAULT,
                    })?;
                    1
                }
                pages => pages,
            };
            at += done * Self::PAGE;
        }
        Ok(())
    }

    /// What MAP_POPULATE makes possible: writes to private memory that may be written to, else reads.
    fn access_to_populate(vma: &Vma<'m>) -> Access {
        if vma.is_private() && vma.prot.contains(Prot::WRITE) { Access::Write } else { Access::Read }
    }

    /// How many pages from `at` on need no fault, as far as one look tells.
    fn populated(&self, vma: &Vma<'m>, at: u64, access: Access) -> u64 {
        let va = VirtAddr::new(at);
        let Some(guard) = self.mm.lock_present_table(va) else { return 0 };
        let pte = ptep_get(&guard, va);
        let left = (vma.end - at) / Self::PAGE;
        if pte.is_valid() && (access != Access::Write || pte.is_writable()) {
            left.min(pte_batch_hint(&guard, va) as u64)
        } else {
            0
        }
    }

    /// Tells for each page of a range whether it is in memory, as `mincore` does: 1 or 0 in one element of `vec` each, of which
    /// there must be as many. A page of a file always is; one of anonymous memory if it is mapped, or shared and written to.
    ///
    /// # Errors
    /// - `EINVAL`: `addr` is not a multiple of the page size.
    /// - `ENOMEM`: beyond the end, or some of it is not mapped; what comes before that is told.
    /// - `EFAULT`: `vec` is too short.
    pub fn mincore(&self, addr: u64, len: u64, vec: &mut [u8]) -> Result<(), Errno> {
        if !addr.is_multiple_of(Self::PAGE) {
            return Err(Errno::EINVAL);
        }
        if len > TASK_SIZE || addr > TASK_SIZE - len {
            return Err(Errno::ENOMEM);
        }
        let pages = len.div_ceil(Self::PAGE);
        let vec = vec.get_mut(..pages as usize).ok_or(Errno::EFAULT)?;
        let map = self.read_map();
        let mut at = addr;
        for present in vec {
            let vma = map.vmas.find(at).ok_or(Errno::ENOMEM)?;
            *present = self.is_in_memory(vma, at).into();
            at += Self::PAGE;
        }
        Ok(())
    }

    fn is_in_memory(&self, vma: &Vma<'m>, at: u64) -> bool {
        let va = VirtAddr::new(at);
        let mapped =
            self.mm.lock_present_table(va).is_some_and(|guard| guard.get(guard.index(va)) != PteValue::NONE);
        let page = vma.page_at(at, M::GRANULE.page_shift());
        mapped
            || match &vma.backing {
                Backing::Anonymous => false,
                Backing::File { file, .. } => page < file.pages(),
                Backing::Shared { object, .. } => matches!(object.folio(page), Ok(Some(_))),
            }
    }

    /// Gives pages back that were advised `MADV_FREE` and not written since: at least `pages` of them, where there are so many.
    /// One that is young is made old instead. Each call goes on where the one before has ended, once around: what is used in
    /// between stays (a clock, or second chance). Returns how many went; their frames are free where nothing else of their folios
    /// is mapped. `None` where somebody changes the mappings, after others could run.
    ///
    /// *Locks:* tries the mmap_lock for reading; takes those of tables, one at a time. Call it with no lock held.
    ///
    /// *Maintenance:* one flush for each last-level table of which pages go; for each block or page that is made old one
    /// invalidation, which is not waited for: what a TLB still holds goes unnoticed until it is gone.
    pub fn reclaim(&self, pages: u64) -> Option<u64> {
        // Not after those who wait to write: they may wait for who wants the memory.
        let Some(map) = self.map.try_read() else {
            self.memory.contents().relax();
            return None;
        };
        let hand = self.reclaim_from.load(Ordering::Relaxed);
        let mut reclaimed = 0;
        for part in [hand..TASK_SIZE, 0..hand] {
            for vma in map.vmas.overlapping(&part).filter(|vma| vma.is_anonymous()) {
                let range = vma.start.max(part.start)..vma.end.min(part.end);
                // Enough is an error, so that it ends.
                let enough = self.for_each_batch_gathered(&range, |gather, batch| {
                    if batch.pte.is_valid() {
                        reclaimed += self.reclaim_batch(gather, batch);
                    }
                    let next = batch.va.get() + batch.nr as u64 * Self::PAGE;
                    if reclaimed < pages { Ok(()) } else { Err(next) }
                });
                if let Err(next) = enough {
                    self.reclaim_from.store(next, Ordering::Relaxed);
                    return Some(reclaimed);
                }
            }
        }
        Some(reclaimed)
    }

    /// Unmaps those pages of a batch that are old and clean. Clean is only what was advised so, here or by who was copied.
    fn reclaim_batch(&self, gather: &mut Gather<'_, '_, 'm, M>, batch: Batch<'m>) -> u64 {
        let guard = &mut *gather.guard;
        if batch.folio.is_none() {
            return 0;
        }
        let at = |i: usize| VirtAddr::new(batch.va.get() + i as u64 * Self::PAGE);
        let (mut i, mut reclaimed) = (0, 0);
        while i < batch.nr {
            // Of a folded block all pages are clean, or none, and young together.
            let nr = pte_batch_hint(guard, at(i)).min(batch.nr - i);
            if !ptep_get(guard, at(i)).is_dirty() && !ptep_clear_flush_young(guard, at(i)) {
                let pte = get_and_clear_ptes(guard, at(i), nr);
                if pte.is_dirty() {
                    // Written to at the last moment.
                    set_ptes(guard, at(i), pte, nr);
                } else {
                    reclaimed += nr;
                }
            }
            i += nr;
        }
        if reclaimed > 0 {
            gather.unmap_after_flush(batch.pte.mkclean(), reclaimed as u32);
        }
        reclaimed as u64
    }

    /// Folds every block that qualifies; how many it folded. For an idle CPU. Blocks of anonymous memory of which a part was
    /// advised `MADV_FREE` are left alone: folded, all of it would be as dirty as the rest. Where somebody changes the mappings,
    /// or waits to, it does nothing.
    ///
    /// *Maintenance:* one flush for each block that it folds, where the size may not change in place.
    pub fn refold_pass(&self) -> usize {
        let Some(map) = self.try_read_map() else { return 0 };
        let mut folded = 0;
        for vma in map.vmas.iter() {
            let Ok(()) = self.for_each_table(&(vma.start..vma.end), |guard, range| {
                let mut at = range.start;
                while at < range.end {
                    let end = ((at | (Self::BLOCK - 1)) + 1).min(range.end);
                    let (va, nr) = (VirtAddr::new(at), ((end - at) / Self::PAGE) as usize);
                    if !vma.is_anonymous() || !Self::is_partly_clean(guard, va, nr) {
                        folded += contpte::refold(guard, va, nr);
                    }
                    at = end;
                }
                Ok::<(), Infallible>(())
            });
        }
        folded
    }

    /// Whether some of the pages that are mapped are dirty, and others are not.
    fn is_partly_clean(guard: &PteGuard<'_, 'm, M>, va: VirtAddr, nr: usize) -> bool {
        let first = guard.index(va);
        let valid =
            || guard.table().leaves(first..first + nr).filter(|pte| pte.is_valid() && !pte.is_folded());
        valid().any(Pte::is_dirty) && !valid().all(Pte::is_dirty)
    }
}
