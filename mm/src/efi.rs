//! `efi_mm`: the address space that EFI runtime services run in.

use arch::tlbi::Asid;
use arch::{Mmu, PhysAddr, PteValue, TableFrame, VirtAddr};

use crate::Mm;
use crate::counters::Counters;
use crate::ptep::{self, Busy, LocklessGuard};

/// The firmware's address space, what Linux calls `efi_mm`.
///
/// Firmware can't tolerate a fault, not even for a moment, so its blocks are never folded or unfolded. Three locks see
/// to it: its entries are written by the private API alone, which no other crate can name; it owns its [`Mm`] and never
/// hands it out, so that no [`PteGuard`](crate::PteGuard) of it can be had; and the gate in `contpte` refuses it all the
/// same. A public function that changes entries and is reached with it nevertheless warns
/// ([`Counter::MutatorOnEfi`](crate::counters::Counter::MutatorOnEfi)).
///
/// What may be done with it: activate it, and read it as the page-table dump does.
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

    /// The address space itself, so that a test can do to it what must never be done.
    #[cfg(feature = "fault-injection")]
    pub const fn unprotected(&self) -> &Mm<'m, M> {
        &self.0
    }
}
