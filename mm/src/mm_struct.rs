//! An address space: its root table, and the lock of the code that changes it.

use arch::{Granule, Mmu, PhysAddr, Table, TableFrame, VirtAddr};

/// Bits of a virtual address that one TTBR translates.
pub const VA_BITS: u32 = 48;

/// An address space, what Linux calls `mm_struct`.
///
/// So far there is one kind, the kernel's own (`init_mm`), which TTBR1 translates.
pub struct Mm<M: Mmu> {
    mmu: M,
    root: TableFrame,
    /// Serialises those who change the tables. Readers take no lock: a kernel table is never freed
    /// while its mm is loaded, and entries never go from valid to invalid.
    pub(crate) lock: spin::Mutex<()>,
}

impl<M: Mmu> Mm<M> {
    /// A kernel address space, for TTBR1, with the root table `root`: an empty one, or one that was
    /// built before with the same `Mmu`.
    ///
    /// # Panics
    /// Where the level of `root` is not the one at which a walk of [`VA_BITS`] begins.
    pub const fn new_kernel(mmu: M, root: TableFrame) -> Self {
        assert!(root.level() == M::GRANULE.start_level(VA_BITS), "root table of a wrong level");
        Self { mmu, root, lock: spin::Mutex::new(()) }
    }

    /// Where the root table is, for TTBR1_EL1. Loading it is unsafe, and elsewhere. The table itself is reached by this
    /// crate only:
    ///
    /// ```compile_fail
    /// fn change<M: arch::Mmu>(mm: &pleat_mm::Mm<M>) {
    ///     arch::Table::new(mm.mmu(), mm.root()).set_leaf(0, arch::PteValue::NONE);
    /// }
    /// ```
    /// ```
    /// fn root<M: arch::Mmu>(mm: &pleat_mm::Mm<M>) -> arch::PhysAddr {
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

    pub(crate) fn root_table(&self) -> Table<'_, M> {
        Table::new(&self.mmu, self.root)
    }

    /// Whether the `size` bytes at `va` lie in the half of the address space that this mm translates.
    pub(crate) fn covers(&self, va: VirtAddr, size: u64) -> bool {
        let Some(last) = va.get().checked_add(size - 1) else { return false };
        va.get() >> VA_BITS == KERNEL_HALF && last >> VA_BITS == KERNEL_HALF
    }

    /// The granule of its tables.
    pub const fn granule(&self) -> Granule {
        M::GRANULE
    }
}

/// The bits above [`VA_BITS`] in the addresses that TTBR1 translates.
const KERNEL_HALF: u64 = u64::MAX >> VA_BITS;
