//! The seam to hardware: [`Mmu`], and the translation tables reached through it.

use core::ops::Range;

use crate::addr::{PhysAddr, VirtAddr};
use crate::descriptor::{self, Kind, PteValue};
pub use crate::features::Hafdbs;
use crate::granule::{Granule, LAST_LEVEL};
use crate::sync::{AtomicU64, Ordering};
use crate::tlbi::Tlbi;

/// One descriptor in memory. The MMU may read it at any time, and may set its access flag or dirty
/// state; so it is atomic, and only [`Table`] writes it.
#[repr(transparent)]
pub struct Slot(AtomicU64);

impl Slot {
    /// A slot that holds an invalid descriptor.
    #[allow(clippy::new_without_default, reason = "a default would suggest that a slot is plain data")]
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// A slot that holds an invalid descriptor, within an execution of the model checker.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The descriptor's bits: one single-copy atomic 8-byte load.
    pub fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Writes the descriptor's bits: one single-copy atomic 8-byte store, without any barrier.
    ///
    /// # Safety
    /// `raw` must be invalid, or valid at the level of the table that this slot is in: a table
    /// descriptor must name a [`TableFrame`] of the next level.
    pub unsafe fn store(&self, raw: u64) {
        self.0.store(raw, Ordering::Relaxed);
    }

    /// Writes the descriptor's bits and returns what was there: one atomic step, without any barrier.
    ///
    /// # Safety
    /// As for [`Self::store`].
    pub unsafe fn swap(&self, raw: u64) -> u64 {
        self.0.swap(raw, Ordering::Relaxed)
    }

    /// Writes the descriptor's bits if `current` is there, in one atomic step, without any barrier.
    ///
    /// # Errors
    /// What is there instead; never `current`.
    ///
    /// # Safety
    /// As for [`Self::store`].
    pub unsafe fn compare_exchange(&self, current: u64, new: u64) -> Result<(), u64> {
        self.0.compare_exchange(current, new, Ordering::Relaxed, Ordering::Relaxed).map(|_| ())
    }
}

/// The capability for a frame that is a translation table of one level, and nothing else.
///
/// It comes from an allocator, by the unsafe [`TableFrame::new`], or from a table descriptor that
/// was written from one: safe code can't make a table of an arbitrary frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableFrame {
    pa: PhysAddr,
    level: u8,
}

impl TableFrame {
    /// The frame at `pa` as a table of `level` (0 to 3).
    ///
    /// # Safety
    /// The frame must be one page of the [`Mmu`]'s granule, aligned to it, reachable through
    /// [`Mmu::slots`], zeroed or left as a table of this level, and used for nothing else until
    /// every copy of this value and every descriptor made from it is gone.
    pub const unsafe fn new(pa: PhysAddr, level: u8) -> Self {
        Self { pa, level }
    }

    /// The physical address of the table.
    pub const fn pa(self) -> PhysAddr {
        self.pa
    }

    /// The level of its entries.
    pub const fn level(self) -> u8 {
        self.level
    }
}

/// What the page-table code needs of a machine: access to tables, TLB maintenance, barriers.
///
/// There are two implementations: the real one (`aarch64`), and the test double that records what
/// it is told. The sequence that changes a live entry is `store`, [`publish`](Self::publish),
/// [`invalidate`](Self::invalidate), [`complete`](Self::complete) (DDI 0487, D8.16, RDDMVT).
///
/// # Safety
/// `slots` must return the memory of that very frame, [`Granule::entries`] slots of it, and the
/// same memory for the same frame for as long as the frame is a table.
pub unsafe trait Mmu {
    /// The translation granule in use.
    const GRANULE: Granule;

    /// The slots of the table in `frame`.
    fn slots(&self, frame: TableFrame) -> &[Slot];

    /// Reads a descriptor.
    fn load(&self, slot: &Slot) -> u64 {
        slot.load()
    }

    /// Writes a descriptor, without any barrier.
    ///
    /// # Safety
    /// As for [`Slot::store`].
    unsafe fn store(&self, slot: &Slot, raw: u64) {
        // SAFETY: the caller keeps the contract of `Slot::store`, which is the same.
        unsafe { slot.store(raw) }
    }

    /// Writes a descriptor and returns what was there, in one atomic step.
    ///
    /// # Safety
    /// As for [`Slot::store`].
    unsafe fn swap(&self, slot: &Slot, raw: u64) -> u64 {
        // SAFETY: the caller keeps the contract of `Slot::swap`, which is the same.
        unsafe { slot.swap(raw) }
    }

    /// Writes a descriptor if `current` is there.
    ///
    /// # Errors
    /// What is there instead.
    ///
    /// # Safety
    /// As for [`Slot::store`].
    unsafe fn compare_exchange(&self, slot: &Slot, current: u64, new: u64) -> Result<(), u64> {
        // SAFETY: the caller keeps the contract of `Slot::compare_exchange`, which is the same.
        unsafe { slot.compare_exchange(current, new) }
    }

    /// Writes `first`, `first + step`, … to slots that all hold invalid entries, so that hardware can't
    /// update one of them meanwhile. Each slot is written by a single-copy atomic store of 8 bytes; no
    /// order between them.
    ///
    /// # Safety
    /// As for [`Slot::store`], for each of the values.
    unsafe fn store_block(&self, slots: &[Slot], first: u64, step: u64) {
        let mut raw = first;
        for slot in slots {
            // SAFETY: the caller vouches for each value.
            unsafe { self.store(slot, raw) };
            raw = raw.wrapping_add(step);
        }
    }

    /// What all CPUs of the machine have in common.
    fn features(&self) -> Features;

    /// Makes earlier descriptor stores visible to every table walker: `dsb ishst; isb`.
    fn publish(&self);

    /// Issues a TLB invalidation for all CPUs of the Inner Shareable domain; it is not complete
    /// before [`complete`](Self::complete).
    fn invalidate(&self, operation: Tlbi);

    /// Issues `first`, which is of one page, for that page and those that follow it, `pages` in all: as [`Self::invalidate`] does
    /// each.
    ///
    /// # Panics
    /// Where it is not [`Tlbi::Page`].
    fn invalidate_pages(&self, first: Tlbi, pages: u64) {
        let Tlbi::Page { va: start, space, last_level, granule, level } = first else {
            panic!("{first:?} is not of one page");
        };
        for page in 0..pages {
            let va = VirtAddr::new(start.get() + page * granule.page_size());
            self.invalidate(Tlbi::Page { va, space, last_level, granule, level });
        }
    }

    /// Waits until earlier invalidations are done on every CPU: `dsb ish; isb`.
    fn complete(&self);

    /// Makes what was written to the `size` bytes of memory at `start` visible to instruction fetches of every CPU, and
    /// waits for it: clean to the point of unification, `dsb ish`, instruction cache invalidation, `dsb ish; isb`. A
    /// machine whose instruction fetches see every store need not do anything, as here.
    fn sync_icache(&self, start: PhysAddr, size: u64) {
        let _ = (start, size);
    }

    /// Invalidates on this CPU alone, and waits for it: `tlbi …; dsb nsh; isb`. For a spurious fault.
    fn invalidate_local(&self, operation: Tlbi);
}

/// What translation code does differently from machine to machine. A feature counts where every CPU has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// FEAT_TLBIRANGE.
    pub tlb_range: bool,
    /// Who sets the access flag and the dirty state.
    pub hafdbs: Hafdbs,
    /// The Contiguous bit may change in place, and no conflict abort follows: FEAT_BBML3, or a CPU that is on
    /// the allow list of those with FEAT_BBML2.
    pub bbm_no_abort: bool,
}

/// What one slot holds, as the walker reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Translates nothing.
    Invalid,
    /// Points to a table of the next level.
    Table(TableFrame),
    /// Maps a page or block.
    Leaf(PteValue),
}

/// A translation table: typed access to its slots. The methods for entries of the last level are inline, since a call of
/// one costs more than what it does.
pub struct Table<'m, M: Mmu> {
    mmu: &'m M,
    slots: &'m [Slot],
    frame: TableFrame,
}

impl<M: Mmu> Clone for Table<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Mmu> Copy for Table<'_, M> {}

impl<'m, M: Mmu> Table<'m, M> {
    /// The table in `frame`.
    pub fn new(mmu: &'m M, frame: TableFrame) -> Self {
        let slots = mmu.slots(frame);
        debug_assert_eq!(slots.len(), M::GRANULE.entries());
        Self { mmu, slots, frame }
    }

    /// The level of its entries, 0 to 3.
    pub fn level(&self) -> u8 {
        self.frame.level
    }

    /// The frame that it is in.
    pub fn frame(&self) -> TableFrame {
        self.frame
    }

    /// The machine that it belongs to.
    pub fn mmu(&self) -> &'m M {
        self.mmu
    }

    /// What slot `index` holds.
    ///
    /// # Panics
    /// Where `index` is not below [`Granule::entries`]; so for every method here.
    pub fn entry(&self, index: usize) -> Entry {
        let raw = self.mmu.load(&self.slots[index]);
        match descriptor::kind(M::GRANULE, self.frame.level, raw) {
            Kind::Invalid => Entry::Invalid,
            Kind::Leaf => Entry::Leaf(PteValue::from_raw(raw | 0b10)),
            Kind::Table => {
                let pa = descriptor::table_address(raw);
                Entry::Table(TableFrame { pa, level: self.frame.level + 1 })
            }
        }
    }

    /// The first of these entries that is valid.
    ///
    /// # Panics
    /// Where they are not all below [`Granule::entries`].
    #[inline]
    pub fn next_used(&self, indices: Range<usize>) -> Option<usize> {
        const FEW: usize = 8;
        let mut start = indices.start;
        // Mostly there are none: by one question for a few.
        let (some, rest) = self.slots[indices].as_chunks::<FEW>();
        for few in some {
            if few.iter().fold(0, |any, slot| any | self.mmu.load(slot)) & 1 != 0 {
                return few.iter().position(|slot| self.mmu.load(slot) & 1 != 0).map(|i| start + i);
            }
            start += FEW;
        }
        rest.iter().position(|slot| self.mmu.load(slot) & 1 != 0).map(|i| start + i)
    }

    /// Writes a leaf, or an invalid entry, without any barrier.
    ///
    /// # Panics
    /// Where the level has no leaves, or the output address is not aligned to what an entry of this
    /// level maps.
    #[inline(always)]
    pub fn set_leaf(&self, index: usize, pte: PteValue) {
        let raw = if self.frame.level == LAST_LEVEL { self.last_level_raw(pte) } else { self.block_raw(pte) };
        // SAFETY: either a leaf of this level or invalid, never a table descriptor.
        unsafe { self.mmu.store(&self.slots[index], raw) }
    }

    /// The bits of `pte` in a table above the last: a block or invalid, with bit 1 clear.
    #[inline(never)]
    fn block_raw(&self, pte: PteValue) -> u64 {
        let level = self.frame.level;
        if pte.is_valid() {
            assert!(M::GRANULE.has_leaf(level), "no leaf at level {level}");
            assert!(pte.pa().is_aligned(M::GRANULE.level_size(level)), "misaligned leaf {pte:?}");
        }
        pte.raw() & !0b10
    }

    /// Makes the entry invalid and returns what it was: no flag is lost that hardware sets meanwhile.
    ///
    /// # Panics
    /// As [`Self::set_leaf`]; also at another level than the last.
    #[inline]
    pub fn clear_leaf(&self, index: usize) -> PteValue {
        self.expect_last_level();
        self.clear_slot(&self.slots[index], self.mmu.features().hafdbs)
    }

    /// Makes entries invalid, as [`Self::clear_leaf`] does each, and calls `visit` with each as it was, in order.
    ///
    /// # Panics
    /// As [`Self::clear_leaf`], where one of `indices` is not below [`Granule::entries`].
    #[inline(always)]
    pub fn clear_leaves(&self, indices: Range<usize>, mut visit: impl FnMut(PteValue)) {
        self.expect_last_level();
        let slots = self.slots[indices].iter();
        match self.mmu.features().hafdbs {
            // A loop of its own, without a question for each.
            Hafdbs::None => slots.for_each(|slot| visit(self.clear_slot(slot, Hafdbs::None))),
            hafdbs => slots.for_each(|slot| visit(self.clear_slot(slot, hafdbs))),
        }
    }

    #[inline(always)]
    fn clear_slot(&self, slot: &Slot, hafdbs: Hafdbs) -> PteValue {
        let old = PteValue::from_raw(self.mmu.load(slot));
        let none = PteValue::NONE.raw();
        if hafdbs.may_update(old) {
            // SAFETY: nothing is translated by the new entry; so below.
            return PteValue::from_raw(unsafe { self.mmu.swap(slot, none) });
        }
        // SAFETY: as above.
        unsafe { self.mmu.store(slot, none) };
        old
    }

    /// Changes the valid ones of these entries by `change`, whatever flags hardware sets meanwhile, and calls `visit` with
    /// the index of each, before and after, in order. What does not change is not written.
    ///
    /// # Panics
    /// As [`Self::clear_leaves`], and [`Self::set_leaf`] for what an entry becomes.
    #[inline(always)]
    pub fn update_leaves(
        &self,
        indices: Range<usize>,
        change: impl Fn(PteValue) -> PteValue,
        mut visit: impl FnMut(usize, PteValue, PteValue),
    ) {
        self.expect_last_level();
        let slots = self.slots[indices.clone()].iter().zip(indices);
        let mut update = |(slot, index), hafdbs| {
            self.update_slot(slot, hafdbs, &change, &mut |old, new| visit(index, old, new));
        };
        match self.mmu.features().hafdbs {
            // A loop of its own, without a question for each.
            Hafdbs::None => slots.for_each(|slot| update(slot, Hafdbs::None)),
            hafdbs => slots.for_each(|slot| update(slot, hafdbs)),
        }
    }

    #[inline(always)]
    fn update_slot(
        &self,
        slot: &Slot,
        hafdbs: Hafdbs,
        change: &impl Fn(PteValue) -> PteValue,
        visit: &mut impl FnMut(PteValue, PteValue),
    ) {
        let mut old = PteValue::from_raw(self.mmu.load(slot));
        if !old.is_valid() {
            return;
        }
        let new = loop {
            let new = change(old);
            if new == old {
                break new;
            }
            let raw = self.last_level_raw(new);
            if !hafdbs.may_update(old) {
                // SAFETY: at the last level any such value is a leaf or invalid; so below.
                unsafe { self.mmu.store(slot, raw) };
                break new;
            }
            // Hardware only ever sets AF and clears RDONLY, once each until software undoes it: the loop ends.
            // SAFETY: as above.
            match unsafe { self.mmu.compare_exchange(slot, old.raw(), raw) } {
                Ok(()) => break new,
                Err(other) => old = PteValue::from_raw(other),
            }
        };
        visit(old, new);
    }

    /// These entries, valid or not, each read when it is asked for.
    ///
    /// # Panics
    /// As [`Self::clear_leaves`].
    #[inline]
    pub fn leaves(&self, indices: Range<usize>) -> impl Iterator<Item = PteValue> + use<'m, M> {
        self.expect_last_level();
        let mmu = self.mmu;
        self.slots[indices].iter().map(move |slot| PteValue::from_raw(mmu.load(slot)))
    }

    /// Writes `count` leaves from slot `index` on, each mapping the page after the one before it. All of these
    /// slots must hold invalid entries.
    ///
    /// # Panics
    /// As [`Self::set_leaf`]; also at another level than the last.
    #[inline]
    pub fn set_leaves(&self, index: usize, first: PteValue, count: usize) {
        let raw = self.last_level_raw(first);
        let slots = &self.slots[index..index + count];
        debug_assert!(
            slots.iter().all(|slot| self.mmu.load(slot) & 1 == 0),
            "a live entry would be overwritten"
        );
        // SAFETY: at the last level any such value is a leaf or invalid, and so is the value for the page after it.
        unsafe { self.mmu.store_block(slots, raw, M::GRANULE.page_size()) }
    }

    /// Writes these entries, valid or not, one for each of `indices`, without any barrier. All of these slots must hold invalid
    /// entries.
    ///
    /// # Panics
    /// As [`Self::set_leaves`].
    #[inline(always)]
    pub fn fill_leaves(&self, indices: Range<usize>, ptes: impl Iterator<Item = PteValue>) {
        self.expect_last_level();
        for (slot, pte) in self.slots[indices].iter().zip(ptes) {
            debug_assert!(self.mmu.load(slot) & 1 == 0, "a live entry would be overwritten");
            // SAFETY: at the last level any such value is a leaf or invalid.
            unsafe { self.mmu.store(slot, self.last_level_raw(pte)) }
        }
    }

    /// The bits of `pte` in a last-level table: any value there is a leaf or invalid, but for one that is valid
    /// with bit 1 clear, which is reserved.
    #[inline]
    fn last_level_raw(&self, pte: PteValue) -> u64 {
        self.expect_last_level();
        if !pte.is_valid() {
            return pte.raw();
        }
        assert!(pte.pa().is_aligned(M::GRANULE.page_size()), "misaligned leaf {pte:?}");
        pte.raw() | 0b10
    }

    /// By a copy of the level: a message that refers to `self` would keep every copy of a table in memory.
    #[inline]
    fn expect_last_level(&self) {
        let level = self.frame.level;
        assert!(level == LAST_LEVEL, "level {level} is not the last");
    }

    /// The last-level entry at `index`, valid or not.
    ///
    /// # Panics
    /// At another level than the last.
    #[inline]
    pub fn leaf(&self, index: usize) -> PteValue {
        self.expect_last_level();
        PteValue::from_raw(self.mmu.load(&self.slots[index]))
    }

    /// Points slot `index` to the table in `frame`, without any barrier: the table's own contents
    /// must have been published before.
    ///
    /// # Panics
    /// Where the table is not of the next level.
    pub fn set_table(&self, index: usize, frame: TableFrame) {
        assert_eq!(frame.level, self.frame.level + 1, "table of a wrong level");
        // SAFETY: `frame` is a table of the next level, by the assertion and its own contract.
        unsafe { self.mmu.store(&self.slots[index], descriptor::table_descriptor(frame.pa)) }
    }
}
