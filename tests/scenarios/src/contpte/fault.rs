//! What a fault handler does: waits for the page-table lock, and lets the access go on if the entry allows it.

use arch::granule::LAST_LEVEL;
use arch::tlbi::{Space, Tlbi};
use arch::{Mmu, PteFlags, VirtAddr};
use mm::Mm;
use mm::pte::Pte;
use mm::ptep::{ptep_get, ptep_set_access_flags};

use super::Access;

/// What came of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// The entry was changed: the access is tried again.
    Changed,
    /// The entry allows the access as it is: the access is tried again.
    Spurious,
    /// The entry does not allow it.
    Refused,
}

/// Resolves the fault of an access to `va`, on the CPU that has met it.
///
/// *Lock:* that of the table. *Maintenance:* as [`ptep_set_access_flags`]; where nothing is to be changed, an
/// invalidation on this CPU.
pub fn resolve<M: Mmu>(mm: &Mm<'_, M>, va: VirtAddr, access: Access) -> Resolution {
    let Some(mut guard) = mm.lock_present_table(va) else { return Resolution::Refused };
    let pte = ptep_get(&guard, va);
    let permitted = match access {
        Access::Read => true,
        Access::Write(_) => pte.is_writable(),
        Access::Execute => !pte.flags().contains(PteFlags::UXN),
    };
    if !pte.is_valid() || !permitted {
        return Resolution::Refused;
    }
    let wanted = if let Access::Write(_) = access { pte.mkyoung().mkdirty() } else { pte.mkyoung() };
    if ptep_set_access_flags(&mut guard, va, wanted) {
        return Resolution::Changed;
    }
    // The entry has become right since, or this CPU's TLB still has it as it was.
    if let Some(asid) = mm.context().and_then(|context| context.asid()) {
        let (space, granule) = (Space::Asid(asid), M::GRANULE);
        mm.mmu().invalidate_local(Tlbi::Page {
            va,
            space,
            last_level: true,
            granule,
            level: Some(LAST_LEVEL),
        });
    }
    Resolution::Spurious
}
