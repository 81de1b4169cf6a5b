//! An address space: its root table, what kind of user it has, and the locks of the code that changes it.

use core::ops::Range;

use arch::granule::LAST_LEVEL;
use arch::mmu::Entry;
#[cfg(feature = "efi")]
use arch::tlbi::Asid;
use arch::tlbi::Space;
use arch::{Granule, Mmu, PhysAddr, PteValue, Table, TableFrame, VirtAddr};
use arrayvec::ArrayVec;

use crate::asid::Context;
use crate::counters::{Counter, Counters};
use crate::frame::FrameMap;
use crate::guard::{PteGuard, TablePair};
use crate::memory::UserTables;
use crate::pgd::{OutOfTables, TableAlloc};
use crate::tlb;

/// Bits of a virtual address that one TTBR translates.
pub const VA_BITS: u32 = 48;

/// Who uses an address space. Fixed by the constructor.
pub(crate) enum Kind<'m> {
    /// A process, through TTBR0.
    User {
        /// The ASID of its TLB entries, and whether it still has it.
        context: Context,
        /// Where the folios of its pages are.
        frames: &'m FrameMap<'m>,
    },
    /// The kernel (`init_mm`), through TTBR1: global.
    Kernel,
    /// The firmware (`efi_mm`), through TTBR0: never global, or it would match every process.
    #[cfg(feature = "efi")]
    Efi {
        /// Its TLB entries' address space.
        asid: Asid,
    },
}

/// Locks of last-level tables: a table takes the one that its frame number selects, so that faults in different
/// tables rarely meet.
const PTE_LOCKS: usize = 64;

/// Tables that are freed after one flush.
const TABLE_BATCH: usize = 32;

/// An address space, what Linux calls `mm_struct`. Shared; it locks inside.
///
/// Lock order: the lock of upper-level tables, then those of last-level tables ([`PteGuard`]), then the frame
/// allocator's.
pub struct Mm<'m, M: Mmu> {
    mmu: M,
    root: TableFrame,
    kind: Kind<'m>,
    /// Serialises those who add tables. Readers take no lock: a table is freed only while the address space keeps all others
    /// out, by its mmap_lock.
    pub(crate) lock: spin::Mutex<()>,
    pte_locks: [spin::Mutex<()>; PTE_LOCKS],
    counters: Counters,
}

impl<'m, M: Mmu> Mm<'m, M> {
    const fn new(mmu: M, root: TableFrame, kind: Kind<'m>) -> Self {
        assert!(root.level() == M::GRANULE.start_level(VA_BITS), "root table of a wrong level");
        let pte_locks = [const { spin::Mutex::new(()) }; PTE_LOCKS];
        Self { mmu, root, kind, lock: spin::Mutex::new(()), pte_locks, counters: Counters::new() }
    }

    /// A kernel address space, for TTBR1, with the root table `root`: an empty one, or one that was built before
    /// with the same `Mmu`. Its mappings are static: nothing is ever folded or unfolded.
    ///
    /// # Panics
    /// Where the level of `root` is not the one at which a walk of [`VA_BITS`] begins.
    pub const fn new_kernel(mmu: M, root: TableFrame) -> Self {
        Self::new(mmu, root, Kind::Kernel)
    }

    /// A user address space, for TTBR0, with an empty root table and the folios of the frames that it maps. Its
    /// mappings are folded without anybody asking. It gets an ASID when it is first switched to
    /// ([`AsidAllocator`](crate::asid::AsidAllocator)); until then no TLB holds entries of it, and nothing is flushed.
    ///
    /// # Panics
    /// As [`Self::new_kernel`].
    pub fn new_user(mmu: M, root: TableFrame, frames: &'m FrameMap<'m>) -> Self {
        Self::new(mmu, root, Kind::User { context: Context::new(), frames })
    }

    /// The firmware's address space, for TTBR0. Only [`EfiMm`](crate::EfiMm) has one.
    #[cfg(feature = "efi")]
    pub(crate) const fn new_efi(mmu: M, root: TableFrame, asid: Asid) -> Self {
        Self::new(mmu, root, Kind::Efi { asid })
    }

    /// Where the root table is, for the TTBR. Loading it is unsafe, and elsewhere. The table itself is reached by this
    /// crate only:
    ///
    /// ```compile_fail
    /// fn change<M: arch::Mmu>(mm: &pleat_mm::Mm<'_, M>) {
    ///     arch::Table::new(mm.mmu(), mm.root()).set_leaf(0, arch::PteValue::NONE);
    /// }
    /// ```
    /// ```
    /// fn root<M: arch::Mmu>(mm: &pleat_mm::Mm<'_, M>) -> arch::PhysAddr {
    ///     mm.root()
    /// }
    /// ```
    pub const fn root(&self) -> PhysAddr {
        self.root.pa()
    }

    /// The machine that it is translated by.
    pub const fn mmu(&self) -> &M {
        &self.mmu
    }

    /// What was counted so far.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The granule of its tables.
    pub const fn granule(&self) -> Granule {
        M::GRANULE
    }

    pub(crate) const fn kind(&self) -> &Kind<'m> {
        &self.kind
    }

    /// The ASID of a user's address space, for the allocator to assign; `None` for the others, whose TLB entries are
    /// global or have a fixed one.
    pub const fn context(&self) -> Option<&Context> {
        match &self.kind {
            Kind::User { context, .. } => Some(context),
            Kind::Kernel => None,
            #[cfg(feature = "efi")]
            Kind::Efi { .. } => None,
        }
    }

    /// Which TLB entries are its own, or `None` where there are none: it was never switched to. Asked after
    /// [`Mmu::publish`], for it may be switched to meanwhile: see [`asid`](crate::asid).
    pub(crate) fn space(&self) -> Option<Space> {
        match &self.kind {
            Kind::User { context, .. } => context.asid().map(Space::Asid),
            Kind::Kernel => Some(Space::All),
            #[cfg(feature = "efi")]
            Kind::Efi { asid } => Some(Space::Asid(*asid)),
        }
    }

    /// The frame of the root table.
    pub(crate) fn root_frame(&self) -> TableFrame {
        self.root
    }

    pub(crate) fn root_table(&self) -> Table<'_, M> {
        Table::new(&self.mmu, self.root)
    }

    /// The first address of the half of the address space that this mm translates: 2^[`VA_BITS`] bytes.
    pub(crate) fn first_address(&self) -> VirtAddr {
        VirtAddr::new(match self.kind {
            Kind::User { .. } => 0,
            Kind::Kernel => u64::MAX << VA_BITS,
            #[cfg(feature = "efi")]
            Kind::Efi { .. } => 0,
        })
    }

    /// Whether the `size` bytes at `va` lie in the half of the address space that this mm translates.
    pub(crate) fn covers(&self, va: VirtAddr, size: u64) -> bool {
        let half = self.first_address().get() >> VA_BITS;
        let Some(last) = va.get().checked_add(size - 1) else { return false };
        va.get() >> VA_BITS == half && last >> VA_BITS == half
    }

    /// Locks the last-level table that translates `va`, making it and those above it where they are missing.
    ///
    /// Waits for whoever holds it: a fault that races a fold or unfold waits here, and finds the entry valid again. Who
    /// holds a guard of this mm takes no second one, since one lock may serve two tables: see [`Self::lock_two_tables`].
    ///
    /// # Errors
    /// [`OutOfTables`]
    ///
    /// # Panics
    /// Where `va` is not in the half that this mm translates, or a block maps it.
    pub fn lock_table(
        &self,
        va: VirtAddr,
        tables: &dyn TableAlloc,
    ) -> Result<PteGuard<'_, 'm, M>, OutOfTables> {
        Ok(self.guard(self.make_table(va, tables)?, va))
    }

    /// The last-level table that translates `va`, made where it is missing, with those above it.
    fn make_table(&self, va: VirtAddr, tables: &dyn TableAlloc) -> Result<Table<'_, M>, OutOfTables> {
        self.make_table_of_level(va, LAST_LEVEL, tables)
    }

    /// Makes the tables that lead to the last-level table that translates `va`, which is not made.
    ///
    /// # Errors
    /// [`OutOfTables`]
    pub(crate) fn make_tables_above(&self, va: VirtAddr, tables: &dyn TableAlloc) -> Result<(), OutOfTables> {
        self.make_table_of_level(va, LAST_LEVEL - 1, tables).map(|_| ())
    }

    fn make_table_of_level(
        &self,
        va: VirtAddr,
        level: u8,
        tables: &dyn TableAlloc,
    ) -> Result<Table<'_, M>, OutOfTables> {
        assert!(self.covers(va, 1), "{va} is not in this address space");
        let mut table = self.root_table();
        while table.level() != level {
            let index = M::GRANULE.index(va.get(), table.level());
            let child = match table.entry(index) {
                Entry::Table(child) => child,
                Entry::Leaf(_) => panic!("{va} is mapped by a block"),
                Entry::Invalid => {
                    let _guard = self.lock.lock();
                    match table.entry(index) {
                        Entry::Table(child) => child,
                        Entry::Leaf(_) => panic!("{va} is mapped by a block"),
                        Entry::Invalid => {
                            let child = tables.alloc_table(table.level() + 1).ok_or(OutOfTables(va))?;
                            // The zeroes must be visible before the entry that leads to them.
                            self.mmu.publish();
                            table.set_table(index, child);
                            self.mmu.publish();
                            child
                        }
                    }
                }
            };
            table = Table::new(&self.mmu, child);
        }
        Ok(table)
    }

    /// Locks the last-level table that translates `va`, or `None` where there is none.
    pub fn lock_present_table(&self, va: VirtAddr) -> Option<PteGuard<'_, 'm, M>> {
        let table = self.last_level_table(va)?;
        Some(self.guard(table, va))
    }

    /// As [`Self::lock_present_table`], for a fault: counts whether it has to wait.
    pub(crate) fn lock_faulting_table(&self, va: VirtAddr) -> Option<PteGuard<'_, 'm, M>> {
        let table = self.last_level_table(va)?;
        let lock = &self.pte_locks[Self::lock_of(table)];
        let held = lock.try_lock().unwrap_or_else(|| {
            self.counters.add(Counter::FaultsWaitedForTable, 1);
            lock.lock()
        });
        Some(PteGuard::new(self, table, va, Some(held)))
    }

    /// The last-level table that translates `va`, if there is one.
    #[inline]
    pub(crate) fn last_level_table(&self, va: VirtAddr) -> Option<Table<'_, M>> {
        self.table_of_level(va, LAST_LEVEL)
    }

    /// The table of a level that translates `va`, if there is one.
    fn table_of_level(&self, va: VirtAddr, level: u8) -> Option<Table<'_, M>> {
        if !self.covers(va, 1) {
            return None;
        }
        let mut table = self.root_table();
        while table.level() != level {
            match table.entry(M::GRANULE.index(va.get(), table.level())) {
                Entry::Table(child) => table = Table::new(&self.mmu, child),
                Entry::Leaf(_) | Entry::Invalid => return None,
            }
        }
        Some(table)
    }

    /// The first address from `va` on, before `end`, that a last-level table translates. Takes little where nothing is.
    pub(crate) fn next_table(&self, va: u64, end: u64) -> Option<u64> {
        if va < end { self.next_table_below(self.root_table(), 0, va, end) } else { None }
    }

    /// The same below a table whose first entry is for `base`, and which translates `va`.
    fn next_table_below(&self, table: Table<'_, M>, base: u64, va: u64, end: u64) -> Option<u64> {
        let size = M::GRANULE.level_size(table.level());
        let mut indices = Self::indices(table, base, va, end);
        while let Some(index) = table.next_used(indices.clone()) {
            let start = base + index as u64 * size;
            if let Entry::Table(child) = table.entry(index) {
                let va = va.max(start);
                if child.level() == LAST_LEVEL {
                    return Some(va);
                }
                let found = self.next_table_below(Table::new(&self.mmu, child), start, va, end);
                if found.is_some() {
                    return found;
                }
            }
            indices.start = index + 1;
        }
        None
    }

    /// The entries of a table, the first of which is for `base`, that translate some of what begins at `va`, or before the
    /// table, and ends at `end`.
    fn indices(table: Table<'_, M>, base: u64, va: u64, end: u64) -> Range<usize> {
        let (size, entries) = (M::GRANULE.level_size(table.level()), M::GRANULE.entries());
        let first = va.saturating_sub(base) / size;
        let last = (end.saturating_sub(base)).div_ceil(size);
        (first as usize).min(entries)..(last as usize).min(entries)
    }

    /// Frees all tables but the root that translate nothing but addresses of `range`, in which nothing is mapped. Nobody else
    /// uses them meanwhile: the mmap_lock is held for writing, or the address space is at its end.
    ///
    /// *Maintenance:* of what leads to them, completely, before any of them is freed: by the form that is not for last-level
    /// entries alone, without a level.
    pub(crate) fn free_tables(&self, range: &Range<u64>, tables: &dyn UserTables) {
        self.free_tables_but(range, tables, &|_, _| false);
    }

    /// The same, but for those that are needed, by what they translate and their level: one is, where one below it is.
    pub(crate) fn free_tables_but(
        &self,
        range: &Range<u64>,
        tables: &dyn UserTables,
        needed: &dyn Fn(&Range<u64>, u8) -> bool,
    ) {
        self.free_tables_below(self.root_table(), 0, range, tables, needed);
    }

    fn free_tables_below(
        &self,
        table: Table<'_, M>,
        base: u64,
        range: &Range<u64>,
        tables: &dyn UserTables,
        needed: &dyn Fn(&Range<u64>, u8) -> bool,
    ) {
        let size = M::GRANULE.level_size(table.level());
        let mut indices = Self::indices(table, base, range.start, range.end);
        let mut batch = ArrayVec::<_, TABLE_BATCH>::new();
        while let Some(index) = table.next_used(indices.clone()) {
            let va = base + index as u64 * size;
            if let Entry::Table(child) = table.entry(index) {
                if child.level() != LAST_LEVEL {
                    self.free_tables_below(Table::new(&self.mmu, child), va, range, tables, needed);
                }
                let span = va..va + size;
                if range.start <= span.start && span.end <= range.end && !needed(&span, child.level()) {
                    table.set_leaf(index, PteValue::NONE);
                    batch.push((child, va));
                    if batch.is_full() {
                        self.free_unlinked(&mut batch, tables);
                    }
                }
            }
            indices.start = index + 1;
        }
        self.free_unlinked(&mut batch, tables);
    }

    /// Frees tables that nothing leads to any more, each with an address that it translated.
    fn free_unlinked(&self, batch: &mut ArrayVec<(TableFrame, u64), TABLE_BATCH>, tables: &dyn UserTables) {
        tlb::flush_tables(self, batch.iter().map(|(_, va)| VirtAddr::new(*va)));
        batch.drain(..).for_each(|(table, _)| tables.free_table(table));
    }

    /// Moves the last-level tables that translate `range`, and nothing else, to where they translate what begins at `to`, with
    /// all that they map. Nobody else uses either meanwhile: the mmap_lock is held for writing.
    ///
    /// *Maintenance:* of all that they translated, and of what led to them, completely, before they translate anything else: one
    /// flush for each 32 of them.
    ///
    /// # Panics
    /// Where one can't be moved: there is a table where it goes, or none above it.
    pub(crate) fn move_tables(&self, range: &Range<u64>, to: u64) {
        let size = M::GRANULE.level_size(LAST_LEVEL - 1);
        let mut unlinked = ArrayVec::new();
        let mut at = range.start;
        while let Some(va) = self.next_table(at, range.end) {
            let (above, index) = self.above(va).expect("a table that was found");
            let base = va - index as u64 * size;
            let mut indices = Self::indices(above, base, va, range.end);
            while let Some(index) = above.next_used(indices.clone()) {
                let va = base + index as u64 * size;
                let Entry::Table(table) = above.entry(index) else { panic!("a block maps {va:#x}") };
                if unlinked.is_full() {
                    self.link_moved(&mut unlinked, range.start, to);
                }
                above.set_leaf(index, PteValue::NONE);
                unlinked.push((table, va));
                indices.start = index + 1;
            }
            at = base + M::GRANULE.level_size(LAST_LEVEL - 2);
        }
        self.link_moved(&mut unlinked, range.start, to);
    }

    /// Lets last-level tables that nothing leads to any more, each with the first address that it translated, translate what is
    /// as far from `to` as that is from `from`.
    fn link_moved(&self, unlinked: &mut ArrayVec<(TableFrame, u64), TABLE_BATCH>, from: u64, to: u64) {
        tlb::flush_moved_tables(self, unlinked.iter().map(|(_, va)| VirtAddr::new(*va)));
        let span = |va: u64| va / M::GRANULE.level_size(LAST_LEVEL - 2);
        let mut found: Option<(Table<'_, M>, u64)> = None;
        for (table, va) in unlinked.drain(..) {
            let va = va - from + to;
            let above = match found {
                Some((above, of)) if of == span(va) => above,
                _ => self.above(va).unwrap_or_else(|| panic!("there are no tables above that of {va:#x}")).0,
            };
            found = Some((above, span(va)));
            let index = M::GRANULE.index(va, LAST_LEVEL - 1);
            assert!(matches!(above.entry(index), Entry::Invalid), "there is a table for {va:#x}");
            above.set_table(index, table);
        }
        self.mmu.publish();
    }

    /// The table that leads to the last-level table of an address, and which of its entries does.
    fn above(&self, va: u64) -> Option<(Table<'_, M>, usize)> {
        let level = LAST_LEVEL - 1;
        Some((self.table_of_level(VirtAddr::new(va), level)?, M::GRANULE.index(va, level)))
    }

    /// Locks the last-level tables that translate `first` and `second`, making what is missing: for who moves entries from
    /// one to the other. Two who lock the same tables, in whatever order, don't wait for each other for ever: the locks
    /// are taken in the order of their places. Nobody may hold a [`PteGuard`] of this mm already.
    ///
    /// # Errors
    /// [`OutOfTables`]; nothing is locked then.
    ///
    /// # Panics
    /// As [`Self::lock_table`], for either address.
    ///
    /// # Examples
    /// ```
    /// # mod machine { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/machine.rs")); }
    /// # let machine::World { mm, frames, plain: tables, .. } = machine::World::<machine::K4>::unjudged();
    /// use arch::{PteValue, VirtAddr};
    /// use pleat_mm::pte::{Pte, UserProt};
    /// use pleat_mm::ptep::{get_and_clear_ptes, ptep_get, set_ptes};
    ///
    /// let (from, to) = (VirtAddr::new(0x40_0000), VirtAddr::new(0x80_0000));
    /// let folio = frames.alloc(4)?;
    /// let pte = PteValue::new_user(folio.head().addr(mm.granule()), UserProt::ReadWrite);
    /// set_ptes(&mut mm.lock_table(from, tables)?, from, pte, 16);
    ///
    /// // As mremap does: the block is folded at its new place.
    /// let mut pair = mm.lock_two_tables(from, to, tables)?;
    /// let (source, Some(destination)) = pair.both() else { panic!("each table translates 2 MiB") };
    /// let pte = get_and_clear_ptes(source, from, 16);
    /// set_ptes(destination, to, pte, 16);
    /// assert!(ptep_get(destination, to).is_folded());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lock_two_tables(
        &self,
        first: VirtAddr,
        second: VirtAddr,
        tables: &dyn TableAlloc,
    ) -> Result<TablePair<'_, 'm, M>, OutOfTables> {
        let (one, two) = (self.make_table(first, tables)?, self.make_table(second, tables)?);
        if one.frame() == two.frame() {
            return Ok(TablePair { first: self.guard(one, first), second: None });
        }
        let (place_one, place_two) = (Self::lock_of(one), Self::lock_of(two));
        // The lower place first; one lock may serve both tables, and is the second one's then.
        let mut held_one = (place_one < place_two).then(|| self.pte_locks[place_one].lock());
        let held_two = Some(self.pte_locks[place_two].lock());
        if place_one > place_two {
            held_one = Some(self.pte_locks[place_one].lock());
        }
        let first = PteGuard::new(self, one, first, held_one);
        let second = Some(PteGuard::new(self, two, second, held_two));
        Ok(TablePair { first, second })
    }

    fn guard<'a>(&'a self, table: Table<'a, M>, va: VirtAddr) -> PteGuard<'a, 'm, M> {
        PteGuard::new(self, table, va, Some(self.pte_locks[Self::lock_of(table)].lock()))
    }

    /// The place of the lock of a table.
    fn lock_of(table: Table<'_, M>) -> usize {
        (table.frame().pa().pfn(M::GRANULE).get() as usize) % PTE_LOCKS
    }
}
