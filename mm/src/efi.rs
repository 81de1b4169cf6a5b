//! `efi_mm`: the address space that EFI runtime services run in.
//!
//! ```text
//!  EfiMm::create_mapping                        EfiMm::set_mapping_permissions
//!        │  refuses what is mapped already            │  refuses what is not mapped, before it changes anything
//!        ▼                                            ▼
//!  pgd: create_pgd_mapping_locked               set_permissions
//!        │  … pages only                              │  takes away, gives nothing back
//!        ▼                                            ▼
//!      init_pte ───── raw: __ptep_get, __set_pte ─────┘
//! ```

use core::fmt;
use core::ops::ControlFlow;

use arch::granule::LAST_LEVEL;
use arch::tlbi::Asid;
use arch::{MemoryType, Mmu, PhysAddr, PteFlags, PteValue, TableFrame, VirtAddr};

use crate::counters::Counters;
use crate::pgd::{BadRange, OutOfTables, Request, check_range, create_pgd_mapping_locked};
use crate::ptdump::{Marker, Ptdump};
use crate::ptep::{self, Busy, LocklessGuard};
use crate::raw::{__ptep_get, __set_pte, Ptep};
use crate::{Leaf, Mm, TableAlloc, tlb};

/// What the firmware may do with a page of memory. The Contiguous bit can't be said, nor a frame, nor access by EL0.
///
/// ```
/// use pleat_mm::{EfiMemory, EfiProt};
///
/// let memory = EfiMemory::Normal(EfiProt::ReadOnly);
/// ```
/// ```compile_fail,E0308
/// use pleat_mm::{EfiMemory, EfiProt};
///
/// let memory = EfiMemory::Normal(arch::PteFlags::CONT);
/// ```
/// ```compile_fail,E0369
/// use pleat_mm::{EfiMemory, EfiProt};
///
/// let memory = EfiMemory::Normal(EfiProt::ReadOnly | arch::PteFlags::CONT);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EfiProt {
    /// Read.
    ReadOnly,
    /// Read and execute.
    ReadExecute,
    /// Read and write.
    ReadWrite,
    /// Read, write and execute: what firmware demands that doesn't say more of its code.
    ReadWriteExecute,
}

impl EfiProt {
    /// The bits by which a page has no other permission than these.
    fn flags(self) -> PteFlags {
        match self {
            Self::ReadOnly => PteFlags::RDONLY | PteFlags::PXN,
            Self::ReadExecute => PteFlags::RDONLY,
            Self::ReadWrite => PteFlags::PXN,
            Self::ReadWriteExecute => PteFlags::empty(),
        }
    }
}

/// What the firmware finds behind a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EfiMemory {
    /// Registers: Device-nGnRE, read and written, never executed.
    Device,
    /// Memory, cacheable.
    Normal(EfiProt),
}

/// A request to map a physically contiguous range for the firmware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EfiMapping {
    /// The first virtual address, below 2^48: a multiple of the page size.
    pub va: VirtAddr,
    /// The first physical address: a multiple of the page size.
    pub pa: PhysAddr,
    /// Bytes: a multiple of the page size, not zero.
    pub size: u64,
    /// What is there.
    pub memory: EfiMemory,
}

impl EfiMapping {
    fn request(&self) -> Request {
        let (memory, prot) = match self.memory {
            EfiMemory::Device => (MemoryType::Device, EfiProt::ReadWrite),
            EfiMemory::Normal(prot) => (MemoryType::Normal, prot),
        };
        // Of its own ASID, or it would match every process; never accessible to EL0, nor executable there. Without DBM and
        // with AF, hardware changes no entry, so that plain stores lose nothing.
        let flags = PteFlags::AF | PteFlags::NG | PteFlags::UXN | PteFlags::INNER_SHAREABLE;
        let pte = PteValue::leaf(self.pa, memory, flags | prot.flags());
        // Permissions come later, page by page, and a part of a block can't have its own.
        Request { va: self.va, size: self.size, pte, page_mappings_only: true }
    }
}

/// Why [`EfiMm::create_mapping`] mapped nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EfiMapError {
    /// An address or the size is not a multiple of the page size, or the size is zero.
    Misaligned(EfiMapping),
    /// The range is not wholly below 2^48.
    OutOfRange(EfiMapping),
    /// This page of the range is mapped already.
    AlreadyMapped(VirtAddr),
    /// No frame for a table of the translation of this address.
    OutOfTables(VirtAddr),
}

impl fmt::Display for EfiMapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned(m) => {
                write!(f, "EFI mapping of {:#x} bytes at {} to {} is not page-aligned", m.size, m.va, m.pa)
            }
            Self::OutOfRange(m) => {
                write!(f, "EFI mapping of {:#x} bytes at {} to {} is not below 2^48", m.size, m.va, m.pa)
            }
            Self::AlreadyMapped(va) => write!(f, "{va} is mapped already in efi_mm"),
            Self::OutOfTables(va) => OutOfTables(*va).fmt(f),
        }
    }
}

impl core::error::Error for EfiMapError {}

/// Why [`EfiMm::set_mapping_permissions`] changed nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EfiProtError {
    /// The address or the size in bytes is not a multiple of the page size, or the size is zero.
    Misaligned(VirtAddr, u64),
    /// The range is not wholly below 2^48.
    OutOfRange(VirtAddr, u64),
    /// This page of the range is not mapped.
    NotMapped(VirtAddr),
}

impl fmt::Display for EfiProtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned(va, size) => {
                write!(f, "EFI permissions for {size:#x} bytes at {va}, which are not whole pages")
            }
            Self::OutOfRange(va, size) => {
                write!(f, "EFI permissions for {size:#x} bytes at {va}, which are not below 2^48")
            }
            Self::NotMapped(va) => write!(f, "EFI permissions for {va}, which is not mapped in efi_mm"),
        }
    }
}

impl core::error::Error for EfiProtError {}

/// The firmware's address space, what Linux calls `efi_mm`.
///
/// Firmware can't tolerate a fault, not even for a moment, so its blocks are never folded or unfolded. Three locks see
/// to it: its entries are written by the private API alone, which no other crate can name; it owns its [`Mm`] and never
/// hands it out, so that no [`PteGuard`](crate::PteGuard) of it can be had; and the gate in `contpte` refuses it all the
/// same. A public function that changes entries and is reached with it nevertheless warns
/// ([`Counter::MutatorOnEfi`](crate::counters::Counter::MutatorOnEfi)).
///
/// What may be done with it: map what firmware tables say, take permissions away, activate it, and read it as the
/// page-table dump does.
/// ```
/// use pleat_mm::EfiMm;
/// use pleat_mm::ptep::{Busy, LocklessGuard};
///
/// fn dump<M: arch::Mmu>(efi_mm: &EfiMm<'_, M>, va: arch::VirtAddr) -> Result<arch::PteValue, Busy> {
///     efi_mm.ptep_get_lockless(va, &LocklessGuard::interrupts_masked())
/// }
/// ```
/// It is not an [`Mm`], nor does it lend one:
/// ```compile_fail,E0308
/// use pleat_mm::EfiMm;
/// use pleat_mm::ptep::{self, Busy, LocklessGuard};
///
/// fn dump<M: arch::Mmu>(efi_mm: &EfiMm<'_, M>, va: arch::VirtAddr) -> Result<arch::PteValue, Busy> {
///     ptep::ptep_get_lockless(efi_mm, va, &LocklessGuard::interrupts_masked())
/// }
/// ```
/// ```compile_fail,E0599
/// fn lock<'a, M: arch::Mmu>(efi_mm: &'a pleat_mm::EfiMm<'a, M>, va: arch::VirtAddr) -> pleat_mm::PteGuard<'a, 'a, M> {
///     efi_mm.lock_present_table(va).unwrap()
/// }
/// ```
/// Nor can another crate make one with the public constructors' sibling:
/// ```compile_fail,E0624
/// fn make<M: arch::Mmu>(mmu: M, root: arch::TableFrame, asid: arch::tlbi::Asid) {
///     let _ = pleat_mm::Mm::new_efi(mmu, root, asid);
/// }
/// ```
/// ```
/// fn make<M: arch::Mmu>(mmu: M, root: arch::TableFrame, asid: arch::tlbi::Asid) {
///     let _ = pleat_mm::EfiMm::new(mmu, root, asid);
/// }
/// ```
/// What it maps by takes any bits, and is private too:
/// ```compile_fail,E0603
/// use pleat_mm::pgd::create_pgd_mapping_locked;
/// ```
/// ```
/// use pleat_mm::pgd::create_pgd_mapping;
/// ```
pub struct EfiMm<'m, M: Mmu>(Mm<'m, M>);

impl<'m, M: Mmu> EfiMm<'m, M> {
    /// The firmware's address space with an empty root table, and the ASID that is reserved for it.
    ///
    /// # Panics
    /// Where the level of `root` is not the one at which a walk of [`VA_BITS`](crate::VA_BITS) begins.
    pub const fn new(mmu: M, root: TableFrame, asid: Asid) -> Self {
        Self(Mm::new_efi(mmu, root, asid))
    }

    /// The root table, for TTBR0. Loading it is unsafe, and elsewhere.
    pub const fn root(&self) -> PhysAddr {
        self.0.root()
    }

    /// What was counted so far: nothing is ever folded or unfolded, so all but invalidations stays zero, or tells of a
    /// bug.
    pub const fn counters(&self) -> &Counters {
        self.0.counters()
    }

    /// Reads an entry without the lock: see [`ptep::ptep_get_lockless`]. The one public function of entries that may
    /// touch this address space.
    ///
    /// # Errors
    /// [`Busy`], never in practice: nothing folds or unfolds here.
    pub fn ptep_get_lockless(&self, va: VirtAddr, guard: &LocklessGuard) -> Result<PteValue, Busy> {
        ptep::ptep_get_lockless(&self.0, va, guard)
    }

    /// Maps `mapping`, in pages: no block, no Contiguous group, each leaf nG, privileged and not executable by EL0. On
    /// return it is visible to every CPU's walker; no TLB maintenance is owed, since nothing was there.
    ///
    /// Takes the mm's lock. Not for interrupt context.
    ///
    /// # Errors
    /// See [`EfiMapError`]. No leaf was written then; tables that were added on the way stay, empty.
    pub fn create_mapping(&self, mapping: &EfiMapping, tables: &dyn TableAlloc) -> Result<(), EfiMapError> {
        check_range(&self.0, mapping.va, mapping.pa, mapping.size).map_err(|bad| match bad {
            BadRange::Misaligned => EfiMapError::Misaligned(*mapping),
            BadRange::OutOfRange => EfiMapError::OutOfRange(*mapping),
        })?;
        let _guard = self.0.lock.lock();
        // By bad firmware, not by a bug: refused, where the kernel's own mappings panic.
        if let ControlFlow::Break(leaf) = self.0.walk(mapping.va, mapping.size, ControlFlow::Break) {
            return Err(EfiMapError::AlreadyMapped(leaf.va));
        }
        create_pgd_mapping_locked(&self.0, &mapping.request(), tables)
            .map_err(|OutOfTables(va)| EfiMapError::OutOfTables(va))
    }

    /// Takes from the `size` bytes at `va` every permission that `prot` doesn't have. Nothing is given back: a page that
    /// is read-only already stays so. On return the old permissions are gone from every TLB; a change of permissions
    /// alone needs no break-before-make.
    ///
    /// Takes the mm's lock. Not for interrupt context.
    ///
    /// # Errors
    /// See [`EfiProtError`]. Nothing was changed then.
    pub fn set_mapping_permissions(
        &self,
        va: VirtAddr,
        size: u64,
        prot: EfiProt,
    ) -> Result<(), EfiProtError> {
        let page = M::GRANULE.page_size();
        check_range(&self.0, va, PhysAddr::new(0), size).map_err(|bad| match bad {
            BadRange::Misaligned => EfiProtError::Misaligned(va, size),
            BadRange::OutOfRange => EfiProtError::OutOfRange(va, size),
        })?;
        let pages = || (0..size / page).map(|i| VirtAddr::new(va.get() + i * page));
        let _guard = self.0.lock.lock();
        if let Some(hole) = pages().find(|&va| self.ptep(va).is_none()) {
            return Err(EfiProtError::NotMapped(hole));
        }
        let mut changed = false;
        for ptep in pages().filter_map(|va| self.ptep(va)) {
            changed |= set_permissions(ptep, prot);
        }
        if changed {
            tlb::flush_range(&self.0, va, size / page);
        }
        Ok(())
    }

    /// Calls `visit` with every leaf that translates some of the `size` bytes at `va`: see [`Mm::walk`].
    ///
    /// # Panics
    /// As [`Mm::walk`].
    pub fn walk<B>(
        &self,
        va: VirtAddr,
        size: u64,
        visit: impl FnMut(Leaf) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        self.0.walk(va, size, visit)
    }

    /// What is mapped, in the style of ptdump: see [`Mm::ptdump`].
    ///
    /// # Panics
    /// As [`Mm::ptdump`].
    pub fn ptdump<'a>(&'a self, markers: &'a [Marker<'a>], guard: &'a LocklessGuard) -> Ptdump<'a, 'm, M> {
        self.0.ptdump(markers, guard)
    }

    /// Where the valid entry of the page at `va` is.
    fn ptep(&self, va: VirtAddr) -> Option<Ptep<'_, M>> {
        let table = self.0.last_level_table(va)?;
        let ptep = Ptep::new(table, M::GRANULE.index(va.get(), LAST_LEVEL));
        __ptep_get(ptep).is_valid().then_some(ptep)
    }

    /// The address space itself, so that a test can do to it what must never be done.
    #[cfg(feature = "fault-injection")]
    pub const fn unprotected(&self) -> &Mm<'m, M> {
        &self.0
    }
}

/// Takes from one page every permission that `prot` doesn't have; whether it had any. Without DBM too where it becomes
/// read-only: by that, hardware would make it writable again.
fn set_permissions<M: Mmu>(ptep: Ptep<'_, M>, prot: EfiProt) -> bool {
    let old = __ptep_get(ptep);
    let mut new = old.with(prot.flags());
    if prot.flags().contains(PteFlags::RDONLY) {
        new = new.without(PteFlags::DBM);
    }
    if new != old {
        __set_pte(ptep, new);
    }
    new != old
}
