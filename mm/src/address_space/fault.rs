//! Faults: which folio comes where, and copy on write.

use core::ops::Range;
use core::sync::atomic::{Ordering, fence};

use arch::{Mmu, PteValue, VirtAddr};

use super::{Access, AddressSpace, Fault, Resolution};
use crate::counters::Counter;
use crate::frame::{Folio, FolioRef};
use crate::guard::PteGuard;
use crate::memory::block_order;
use crate::pte::Pte;
use crate::ptep::{
    get_and_clear_ptes, modify_prot_commit, modify_prot_start, pte_batch, ptep_get, ptep_set_access_flags,
    set_ptes,
};
use crate::shared::NoFolio;
use crate::vma::{Backing, Prot, Vma};
use crate::{ThpPolicy, contpte, tlb};

/// What a step towards the access came to: `None` where the entry is to be looked at again.
type Step = Result<Option<Resolution>, Fault>;

/// Whether a mapping may be accessed so. What may be written or executed may be read.
pub(super) fn permits(vma: &Vma<'_>, access: Access) -> bool {
    match access {
        Access::Read => !vma.prot.is_empty(),
        Access::Write => vma.prot.contains(Prot::WRITE),
        Access::Execute => vma.prot.contains(Prot::EXEC),
    }
}

/// What was written to a folio is visible to whoever finds an entry that leads to it: another CPU's walk takes no lock, and
/// entries are stored without a barrier.
fn contents_come_first() {
    fence(Ordering::Release);
}

impl<'m, M: Mmu> AddressSpace<'m, M> {
    /// Resolves a fault of the process at `va`. A fault that raced a fold, an unfold or another CPU's fault waits for the lock
    /// of the table, finds the entry right, and returns.
    ///
    /// *Locks:* takes the mmap_lock for reading and the lock of the table; zeroes and copies without the latter.
    ///
    /// # Errors
    /// [`Fault`]
    pub fn handle_fault(&self, va: VirtAddr, access: Access) -> Result<Resolution, Fault> {
        let map = self.try_read_map().unwrap_or_else(|| {
            self.counters().add(Counter::FaultsWaitedForMappings, 1);
            self.read_map()
        });
        let vma = map.vmas.find(va.get()).ok_or(Fault::Segv { mapped: false })?;
        if !permits(vma, access) {
            return Err(Fault::Segv { mapped: true });
        }
        self.fault_in(vma, va.get(), access)
    }

    /// Makes an access possible that the mapping permits.
    pub(super) fn fault_in(&self, vma: &Vma<'m>, va: u64, access: Access) -> Result<Resolution, Fault> {
        let page = va & !(Self::PAGE - 1);
        let va = VirtAddr::new(page);
        loop {
            let step = match self.mm.lock_faulting_table(va) {
                Some(guard) => {
                    let pte = ptep_get(&guard, va);
                    if pte == PteValue::NONE {
                        let order = self.order_to_fill(Some(&guard), vma, page);
                        drop(guard);
                        self.fill(vma, page, access, order)?
                    } else if !pte.is_valid() {
                        unreachable!("{va} is held, and its mapping permits {access:?}")
                    } else if access == Access::Write && !pte.is_writable() {
                        self.copy_on_write(vma, guard, va, pte)?
                    } else {
                        Some(self.use_entry(guard, va, pte, access))
                    }
                }
                None => self.fill(vma, page, access, self.order_to_fill(None, vma, page))?,
            };
            if let Some(resolution) = step {
                return Ok(resolution);
            }
        }
    }

    /// The entry permits the access: what is missing is the access flag or the dirty state, or nothing.
    fn use_entry(
        &self,
        mut guard: PteGuard<'_, 'm, M>,
        va: VirtAddr,
        pte: PteValue,
        access: Access,
    ) -> Resolution {
        let wanted = if access == Access::Write { pte.mkyoung().mkdirty() } else { pte.mkyoung() };
        if ptep_set_access_flags(&mut guard, va, wanted) {
            return Resolution::Changed;
        }
        drop(guard);
        tlb::flush_local(&self.mm, va);
        Resolution::Spurious
    }

    /// Nothing is mapped at `page`, and 2^`order` pages around it may be filled.
    fn fill(&self, vma: &Vma<'m>, page: u64, access: Access, order: u8) -> Step {
        let at = vma.page_at(page, M::GRANULE.page_shift());
        match &vma.backing {
            Backing::Anonymous if access == Access::Write => self.fill_anonymous(vma, page, order),
            Backing::Anonymous => self.fill_with_zeroes(vma, page),
            Backing::File { file, .. } => {
                let (first, folio) = file.folio(at).ok_or(Fault::Bus)?;
                self.fill_from(vma, page, first..file.pages().min(first + folio.frames()), folio, access)
            }
            Backing::Shared { object, .. } => {
                let made = object.make_folio(at, self.largest_order());
                let (first, folio) = made.map_err(|why| match why {
                    NoFolio::Beyond => Fault::Bus,
                    NoFolio::OutOfMemory => Fault::OutOfMemory,
                })?;
                self.fill_from(vma, page, first..first + folio.frames(), &folio, access)
            }
        }
    }

    fn largest_order(&self) -> u8 {
        match self.policy {
            ThpPolicy::Always => block_order(M::GRANULE),
            ThpPolicy::Never => 0,
        }
    }

    /// Locks the table of a page, making what is missing.
    fn lock_table(&self, page: u64) -> Result<PteGuard<'_, 'm, M>, Fault> {
        self.mm.lock_table(VirtAddr::new(page), self.memory.tables()).map_err(|_| Fault::OutOfMemory)
    }

    /// The largest order of a folio for memory around `page` that was never written to. Without a table, nothing is there.
    fn order_to_fill(&self, guard: Option<&PteGuard<'_, 'm, M>>, vma: &Vma<'m>, page: u64) -> u8 {
        let fits = |order: &u8| match guard {
            Some(guard) => self.empty_range(guard, vma, page, *order).is_some(),
            None => Self::range_of_order(vma, page, *order).is_some(),
        };
        (1..=self.largest_order()).rev().find(fits).unwrap_or(0)
    }

    /// The 2^order pages around `page`, which must be aligned, if the mapping has all of them.
    fn range_of_order(vma: &Vma<'m>, page: u64, order: u8) -> Option<Range<u64>> {
        let size = Self::PAGE << order;
        let start = page & !(size - 1);
        (vma.start <= start && start + size <= vma.end).then_some(start..start + size)
    }

    /// The 2^order pages around `page`, which must be aligned, if the mapping has all of them and nothing but zeroes is there.
    fn empty_range(
        &self,
        guard: &PteGuard<'_, 'm, M>,
        vma: &Vma<'m>,
        page: u64,
        order: u8,
    ) -> Option<Range<u64>> {
        let range = Self::range_of_order(vma, page, order)?;
        let first = guard.index(VirtAddr::new(range.start));
        let mut entries = guard.table().leaves(first..first + (1 << order));
        let empty = |pte: PteValue| pte == PteValue::NONE || pte.is_valid() && self.is_zero(pte);
        entries.all(empty).then_some(range)
    }

    fn is_zero(&self, pte: PteValue) -> bool {
        self.memory.zero().contains(pte.pa().pfn(M::GRANULE))
    }

    /// A write to memory that was never written to.
    fn fill_anonymous(&self, vma: &Vma<'m>, page: u64, largest: u8) -> Step {
        // What takes time is done without the lock.
        let folio = self.alloc(largest)?;
        self.memory.contents().clear(&folio);
        let mut guard = self.lock_table(page)?;
        let Some(range) = self.empty_range(&guard, vma, page, folio.order()) else { return Ok(None) };
        self.replace(&mut guard, range, vma, &folio)?;
        Ok(Some(Resolution::Changed))
    }

    /// A folio of this order or, when memory is short, a smaller one.
    fn alloc(&self, largest: u8) -> Result<Folio<'m>, Fault> {
        let alloc = |order| self.memory.frames().alloc(order).ok();
        (0..=largest).rev().find_map(alloc).ok_or(Fault::OutOfMemory)
    }

    /// Maps all of a folio, with all that the mapping permits, in place of what was there.
    fn replace(
        &self,
        guard: &mut PteGuard<'_, 'm, M>,
        range: Range<u64>,
        vma: &Vma<'m>,
        folio: &Folio<'m>,
    ) -> Result<(), Fault> {
        let (start, nr) = (VirtAddr::new(range.start), folio.frames() as usize);
        folio.add_mappings(nr as u32).map_err(|_| Fault::OutOfMemory)?;
        let first = guard.index(start);
        if guard.table().leaves(first..first + nr).any(|pte| pte != PteValue::NONE) {
            let old = get_and_clear_ptes(guard, start, nr);
            // Either zeroes, and here and there nothing, or pages of one folio.
            if old.is_valid()
                && let Some(folio) = self.counted_folio(old)
            {
                if old.is_dirty() {
                    // Its dirty state goes with the entry.
                    folio.mark_written();
                }
                guard.unmap_after_flush(folio, nr as u32);
            }
        }
        let prot = vma.prot.of_entry(true).expect("what faults may be accessed");
        let pte = PteValue::new_user(folio.head().addr(M::GRANULE), prot);
        contents_come_first();
        // Of anonymous memory, only what was advised `MADV_FREE` is clean.
        set_ptes(guard, start, pte.mkdirty(), nr);
        Ok(())
    }

    /// A read of memory that was never written to: the block of zeroes is mapped, as a whole where it fits.
    fn fill_with_zeroes(&self, vma: &Vma<'m>, page: u64) -> Step {
        let mut guard = self.lock_table(page)?;
        let order = block_order(M::GRANULE);
        let whole = match self.policy {
            ThpPolicy::Always => self.empty_range(&guard, vma, page, order),
            ThpPolicy::Never => None,
        };
        let whole = whole.filter(|range| {
            let first = guard.index(VirtAddr::new(range.start));
            guard.table().leaves(first..first + (1 << order)).all(|pte| pte == PteValue::NONE)
        });
        let (start, nr) = match whole {
            Some(range) => (range.start, 1 << order),
            None => (page, 1),
        };
        if guard.get(guard.index(VirtAddr::new(start))) != PteValue::NONE {
            return Ok(None);
        }
        let prot = vma.prot.of_entry(false).expect("what faults may be accessed");
        // The page of zeroes that is at the same place in its block, so that single ones fold when there are enough.
        let place = start % Self::BLOCK / Self::PAGE;
        let pa = self.memory.zero().head().add(place).addr(M::GRANULE);
        set_ptes(&mut guard, VirtAddr::new(start), PteValue::new_user(pa, prot), nr);
        Ok(Some(Resolution::Changed))
    }

    /// Maps what is missing around `page` of a folio that is shared with others, and has these pages of the file or object.
    fn fill_from(
        &self,
        vma: &Vma<'m>,
        page: u64,
        pages: Range<u64>,
        folio: &Folio<'m>,
        access: Access,
    ) -> Step {
        let at = vma.page_at(page, M::GRANULE.page_shift());
        let mut guard = self.lock_table(page)?;
        let (base, size) = guard.span();
        let range = match self.policy {
            ThpPolicy::Never => page..page + Self::PAGE,
            ThpPolicy::Always => {
                let before = (at - pages.start) * Self::PAGE;
                let start = page.saturating_sub(before).max(base.get()).max(vma.start);
                let end = page + (pages.end - at) * Self::PAGE;
                start..end.min(base.get() + size).min(vma.end)
            }
        };
        let writable = !vma.is_private();
        let prot = vma.prot.of_entry(writable).expect("what faults may be accessed");
        contents_come_first();
        let mut start = range.start;
        while start < range.end {
            let first = guard.index(VirtAddr::new(start));
            let most = ((range.end - start) / Self::PAGE) as usize;
            let nr =
                guard.table().leaves(first..first + most).take_while(|&pte| pte == PteValue::NONE).count();
            if nr == 0 {
                start += Self::PAGE;
                continue;
            }
            folio.add_mappings(nr as u32).map_err(|_| Fault::OutOfMemory)?;
            // Address and page go together: `page` is page `at`.
            let frame = at + start / Self::PAGE - page / Self::PAGE - pages.start;
            let pte = PteValue::new_user(folio.head().add(frame).addr(M::GRANULE), prot);
            set_ptes(&mut guard, VirtAddr::new(start), pte, nr);
            start += nr as u64 * Self::PAGE;
        }
        // A write makes it dirty, or copies it: by the next look at the entry.
        Ok((access != Access::Write).then_some(Resolution::Changed))
    }

    /// A write to a page that is not writable in a mapping that is: to shared memory, to zeroes, to the last user's own, or to
    /// what others have too.
    fn copy_on_write(
        &self,
        vma: &Vma<'m>,
        mut guard: PteGuard<'_, 'm, M>,
        va: VirtAddr,
        pte: PteValue,
    ) -> Step {
        assert!(vma.is_private(), "{va}: {pte:?} in a shared mapping that may be written to");
        let Some(folio) = self.counted_folio(pte) else {
            let order = self.order_to_fill(Some(&guard), vma, va.get());
            drop(guard);
            return self.fill_anonymous(vma, va.get(), order);
        };
        if Self::is_exclusive(&guard, va, pte, &folio) {
            self.take_back(&mut guard, vma, va, pte, &folio);
            return Ok(Some(Resolution::Changed));
        }
        let nr = self.copied_pages(&guard, vma, va, pte);
        // Kept, so that nobody takes it for his own while it is read.
        let old = self.memory.frames().get(folio.head()).expect("a folio that is mapped");
        drop(guard);
        // A block or, when memory is short, the page.
        let new = match self.memory.frames().alloc(nr.ilog2() as u8) {
            Ok(new) => new,
            Err(_) => self.alloc(0)?,
        };
        let size = new.frames() * Self::PAGE;
        let start = va.get() & !(size - 1);
        let before = va.get() - start;
        let offset = (pte.pa().pfn(M::GRANULE).get() - old.head().get()) * Self::PAGE - before;
        self.memory.contents().copy((&old, offset), (&new, 0), size);

        let mut guard = self.lock_table(va.get())?;
        let (start, nr) = (VirtAddr::new(start), new.frames() as usize);
        let now = ptep_get(&guard, start);
        let same = now.is_valid() && now.attributes().advanced(before) == pte.attributes();
        if !same || pte_batch(&guard, start, nr) != nr {
            return Ok(None);
        }
        self.replace(&mut guard, start.get()..start.get() + size, vma, &new)?;
        Ok(Some(Resolution::Changed))
    }

    /// How many pages are copied for a write at `va`: all of the block, where it is of one folio and the mapping has it, else one.
    fn copied_pages(&self, guard: &PteGuard<'_, 'm, M>, vma: &Vma<'m>, va: VirtAddr, pte: PteValue) -> usize {
        let nr = 1 << self.largest_order();
        let size = nr as u64 * Self::PAGE;
        let start = va.get() & !(size - 1);
        if nr == 1 || start < vma.start || start + size > vma.end {
            return 1;
        }
        let first = ptep_get(guard, VirtAddr::new(start));
        let same = first.is_valid()
            && first.attributes().advanced(va.get() - start) == pte.attributes()
            && pte_batch(guard, VirtAddr::new(start), nr) == nr;
        if same { nr } else { 1 }
    }

    /// Makes all pages of a folio writable that nobody else has any more, and folds its block again where fork had protected
    /// a part of it.
    fn take_back(
        &self,
        guard: &mut PteGuard<'_, 'm, M>,
        vma: &Vma<'m>,
        va: VirtAddr,
        pte: PteValue,
        folio: &FolioRef<'m>,
    ) {
        let whole = Self::folio_range(guard, va, pte, folio);
        let range = whole.start.max(vma.start)..whole.end.min(vma.end);
        let prot = vma.prot.of_entry(true).expect("what faults may be accessed");
        let Ok(()) = self.for_each_batch(guard, range.clone(), |guard, batch| {
            if batch.pte.is_valid()
                && !batch.pte.is_writable()
                && folio.contains(batch.pte.pa().pfn(M::GRANULE))
            {
                let old = modify_prot_start(guard, batch.va, batch.nr);
                modify_prot_commit(guard, batch.va, old.with_prot(prot).mkyoung().mkdirty(), batch.nr);
            }
            Ok::<(), core::convert::Infallible>(())
        });
        if folio.frames() > 1 {
            let nr = (range.end - range.start) / Self::PAGE;
            contpte::refold(guard, VirtAddr::new(range.start), nr as usize);
        }
    }
}
