//! What an MMU is told, counted; and what it must be told at least.

use core::cell::Cell;

use arch::aarch64::hardware::{Hardware, LinearMap};
use arch::mmu::{Features, Hafdbs, Slot};
use arch::tlbi::Tlbi;
use arch::{Granule, Mmu, TableFrame};

/// Instructions that page-table code can't do without, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Operations {
    /// Loads of descriptors: of one, or of two (`ldp`).
    pub loads: u64,
    /// Stores of descriptors: of one, or of two (`stp`).
    pub stores: u64,
    /// Atomic read-modify-writes: one instruction each with FEAT_LSE, which every CPU with FEAT_HAFDBS has.
    pub atomics: u64,
    /// `dsb ishst`.
    pub publications: u64,
    /// `tlbi`.
    pub invalidations: u64,
    /// `dsb ish; isb`.
    pub completions: u64,
}

impl Operations {
    /// What both do, one after the other.
    pub(super) const fn and(self, other: Self) -> Self {
        Self {
            loads: self.loads + other.loads,
            stores: self.stores + other.stores,
            atomics: self.atomics + other.atomics,
            publications: self.publications + other.publications,
            invalidations: self.invalidations + other.invalidations,
            completions: self.completions + other.completions,
        }
    }

    /// The same, `n` times.
    pub(super) const fn times(self, n: u64) -> Self {
        Self {
            loads: self.loads * n,
            stores: self.stores * n,
            atomics: self.atomics * n,
            publications: self.publications * n,
            invalidations: self.invalidations * n,
            completions: self.completions * n,
        }
    }

    /// How many instructions these are.
    pub(super) const fn instructions(self) -> u64 {
        self.accesses() + self.invalidations + self.barriers()
    }

    /// Those that access descriptors.
    pub(super) const fn accesses(self) -> u64 {
        self.loads + self.stores + self.atomics
    }

    /// The barriers that a minimum needs of them: `isb` after `dsb ish`, since a TLBI has no effect on this CPU's own
    /// translations before (DDI 0487, D8.17.4); none after `dsb ishst`, as a user's entry need not be seen at once.
    pub(super) const fn barriers(self) -> u64 {
        self.publications + 2 * self.completions
    }

    /// The barriers that [`Mmu`] issues for them: `isb` after either.
    pub(super) const fn barriers_of_mmu(self) -> u64 {
        2 * self.publications + 2 * self.completions
    }
}

/// An [`Mmu`] of the bench: the hardware, or the hardware and a count.
pub(super) trait Counted: Mmu {
    /// Made anew.
    fn new() -> Self;
    /// What it was told since the last call of this; nothing where it does not count.
    fn take(&self) -> Operations;
}

impl Counted for Hardware<LinearMap> {
    fn new() -> Self {
        // SAFETY: the tables of the bench are pages of the allocator, which are in the linear map.
        Self(unsafe { LinearMap::new() })
    }

    fn take(&self) -> Operations {
        Operations::default()
    }
}

/// The hardware, which counts what it is told.
pub(super) struct Counting {
    hardware: Hardware<LinearMap>,
    operations: Cell<Operations>,
}

impl Counting {
    fn count(&self, change: impl FnOnce(&mut Operations)) {
        let mut operations = self.operations.get();
        change(&mut operations);
        self.operations.set(operations);
    }
}

impl Counted for Counting {
    fn new() -> Self {
        Self { hardware: Counted::new(), operations: Cell::default() }
    }

    fn take(&self) -> Operations {
        self.operations.take()
    }
}

// SAFETY: everything is done by the hardware.
unsafe impl Mmu for Counting {
    const GRANULE: Granule = <Hardware<LinearMap>>::GRANULE;

    fn slots(&self, frame: TableFrame) -> &[Slot] {
        self.hardware.slots(frame)
    }

    fn load(&self, slot: &Slot) -> u64 {
        self.count(|operations| operations.loads += 1);
        self.hardware.load(slot)
    }

    unsafe fn store(&self, slot: &Slot, raw: u64) {
        self.count(|operations| operations.stores += 1);
        // SAFETY: the contract is the same.
        unsafe { self.hardware.store(slot, raw) }
    }

    unsafe fn swap(&self, slot: &Slot, raw: u64) -> u64 {
        self.count(|operations| operations.atomics += 1);
        // SAFETY: the contract is the same.
        unsafe { self.hardware.swap(slot, raw) }
    }

    unsafe fn compare_exchange(&self, slot: &Slot, current: u64, new: u64) -> Result<(), u64> {
        self.count(|operations| operations.atomics += 1);
        // SAFETY: the contract is the same.
        unsafe { self.hardware.compare_exchange(slot, current, new) }
    }

    unsafe fn store_block(&self, slots: &[Slot], first: u64, step: u64) {
        // By pairs: see `Hardware`.
        self.count(|operations| operations.stores += slots.len().div_ceil(2) as u64);
        // SAFETY: the contract is the same.
        unsafe { self.hardware.store_block(slots, first, step) }
    }

    fn features(&self) -> Features {
        self.hardware.features()
    }

    fn publish(&self) {
        self.count(|operations| operations.publications += 1);
        self.hardware.publish();
    }

    fn invalidate(&self, operation: Tlbi) {
        self.count(|operations| operations.invalidations += 1);
        self.hardware.invalidate(operation);
    }

    fn invalidate_pages(&self, first: Tlbi, pages: u64) {
        self.count(|operations| operations.invalidations += pages);
        self.hardware.invalidate_pages(first, pages);
    }

    fn complete(&self) {
        self.count(|operations| operations.completions += 1);
        self.hardware.complete();
    }

    fn invalidate_local(&self, operation: Tlbi) {
        self.hardware.invalidate_local(operation);
    }
}

/// The least that can be done on a machine with these features, whose parts the minima of the calls are made of. It
/// assumes that nothing is read twice, and that aligned entries are read and written by pairs of X registers, each of
/// them a single-copy atomic access of 8 bytes (DDI 0487, B2.2.1).
#[derive(Clone, Copy)]
pub(super) struct Least(pub Features);

impl Least {
    const NOTHING: Operations =
        Operations { loads: 0, stores: 0, atomics: 0, publications: 0, invalidations: 0, completions: 0 };

    /// Whether hardware may set flags of a valid entry at any time.
    fn hardware_updates(self) -> bool {
        self.0.hafdbs != Hafdbs::None
    }

    pub(super) const fn loads(self, loads: u64) -> Operations {
        Operations { loads, ..Self::NOTHING }
    }

    pub(super) const fn stores(self, stores: u64) -> Operations {
        Operations { stores, ..Self::NOTHING }
    }

    const fn atomics(self, atomics: u64) -> Operations {
        Operations { atomics, ..Self::NOTHING }
    }

    /// Reads the descriptors of the levels above the last: three with 48 bits of address and 4 KiB.
    pub(super) const fn walk(self) -> Operations {
        self.loads(3)
    }

    pub(super) const fn read(self, entries: u64) -> Operations {
        self.loads(entries.div_ceil(2))
    }

    pub(super) const fn write(self, entries: u64) -> Operations {
        self.stores(entries.div_ceil(2))
    }

    /// Makes valid entries invalid and learns what they were. A flag that hardware sets between a load and a store would
    /// be lost (RLCGVS), so both are one access where it may.
    pub(super) fn take(self, entries: u64) -> Operations {
        if self.hardware_updates() {
            self.atomics(entries)
        } else {
            self.read(entries).and(self.write(entries))
        }
    }

    /// As [`Self::take`], for entries of which one was read before: whether the block is folded.
    pub(super) fn test_and_take(self, entries: u64) -> Operations {
        if self.hardware_updates() { self.loads(1).and(self.take(entries)) } else { self.take(entries) }
    }

    /// Changes valid entries: which are valid, and how they change, is read first.
    pub(super) fn change(self, entries: u64) -> Operations {
        self.read(entries).and(self.replace(entries))
    }

    /// As [`Self::change`], once they are read.
    pub(super) fn replace(self, entries: u64) -> Operations {
        if self.hardware_updates() { self.atomics(entries) } else { self.write(entries) }
    }

    /// `dsb ishst`, then an invalidation for each page of the range, since a TLBI of one page of a Contiguous group need
    /// not remove the others (RLQLSD), or one for all of it (FEAT_TLBIRANGE).
    pub(super) const fn invalidate(self, pages: u64) -> Operations {
        let invalidations = if self.0.tlb_range { 1 } else { pages };
        Operations { publications: 1, invalidations, ..Self::NOTHING }
    }

    /// An invalidation, and the wait for it (RDDMVT).
    pub(super) const fn flush(self, pages: u64) -> Operations {
        self.invalidate(pages).and(Operations { completions: 1, ..Self::NOTHING })
    }

    /// Break-before-make of a whole block whose entries may change in between: all sixteen invalid, flushed, and
    /// `written` of them valid again (RHWZWS, RQTRPM; a sibling left valid could fill the group again, RSKQHL).
    pub(super) fn convert(self, written: u64) -> Operations {
        self.test_and_take(16).and(self.flush(16)).and(self.write(written))
    }
}
