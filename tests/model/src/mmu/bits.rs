//! What a TLB keeps of a leaf descriptor, and which parts of it must agree.

use arch::Granule;

pub(super) use crate::descriptor::{CONTIGUOUS, NON_GLOBAL, TTBR1_BASE, VALID};
use crate::descriptor::{VA_BITS, leaf_size};

/// AP\[1\]: EL0 may access.
pub(super) const USER: u64 = 1 << 6;
/// AP\[2\]: not writable.
pub(super) const RDONLY: u64 = 1 << 7;
/// Access flag.
pub(super) const AF: u64 = 1 << 10;
/// Dirty bit modifier.
pub(super) const DBM: u64 = 1 << 51;
/// Privileged execute-never.
pub(super) const PXN: u64 = 1 << 53;
/// Unprivileged execute-never.
pub(super) const UXN: u64 = 1 << 54;
/// The software bit that says dirty where the hardware state does not.
pub(super) const DIRTY: u64 = arch::PteFlags::DIRTY.bits();
/// Output address.
pub(super) const ADDRESS: u64 = (1 << 48) - (1 << 12);
/// AttrIndx, NS and SH: type, cacheability, shareability.
const MEMORY: u64 = 0b11_1100 | 0b11 << 8;
/// What may change without break-before-make (RWHZWS).
const PERMISSIONS: u64 = USER | RDONLY | DBM | PXN | UXN;

/// The part of a leaf descriptor that a TLB entry has: not the type bits, AF (it is set) and what is software's.
pub(super) fn cached_part(raw: u64) -> u64 {
    raw & (ADDRESS | MEMORY | PERMISSIONS | NON_GLOBAL | CONTIGUOUS | 1 << 50)
}

/// Whether hardware regards it as dirty.
pub(super) fn hardware_dirty(raw: u64) -> bool {
    raw & (DBM | RDONLY) == DBM
}

/// Whether hardware or software regards it as dirty.
pub(super) fn dirty(raw: u64) -> bool {
    hardware_dirty(raw) || raw & DIRTY != 0
}

/// May be written to, without any update of the descriptor.
pub(super) fn writable(value: u64) -> bool {
    value & RDONLY == 0
}

/// Whether type, cacheability or shareability differ.
pub(super) fn memory_differs(a: u64, b: u64) -> bool {
    (a ^ b) & MEMORY != 0
}

/// Entry `to` of a Contiguous group, as a TLB makes it of entry `from`, whose cached part is `value`: the address
/// bits that select the entry come from the VA.
pub(super) fn of_group(value: u64, from: usize, to: usize, size: u64, group: usize) -> u64 {
    if from == to {
        return value;
    }
    let within = size * group as u64 - 1;
    value & !(within & ADDRESS) | (size * to as u64)
}

/// The first entry of a Contiguous group, as a TLB makes it of another one, whose cached part is `value`.
pub(super) fn group_first(value: u64, size: u64, group: usize) -> Option<u64> {
    (value & CONTIGUOUS != 0).then_some(value & !((size * group as u64 - 1) & ADDRESS))
}

/// What must be the same in all entries of a Contiguous group, by the group's base: everything but AF, and the dirty
/// state of writable entries. `None` where the address is not the one for this place in the group.
pub(super) fn group_value(raw: u64, at: usize, size: u64, group: usize) -> Option<u64> {
    let value = cached_part(raw);
    let offset = size * at as u64;
    let base = (value & ADDRESS).checked_sub(offset)?;
    if !base.is_multiple_of(size * group as u64) {
        return None;
    }
    let attributes = value & !ADDRESS & if value & DBM != 0 { !RDONLY } else { !0 };
    Some(base | attributes)
}

/// The slot of a table at `level` that a walk for `va` reads.
pub(super) fn slot_of(granule: Granule, level: u8, va: u64) -> usize {
    let entries = granule.page_size() as usize / 8;
    ((va & ((1 << VA_BITS) - 1)) / leaf_size(granule, level)) as usize & (entries - 1)
}

/// Whether TTBR1 translates `va`; else TTBR0 does.
pub(super) fn upper_half(va: u64) -> bool {
    va >= TTBR1_BASE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_takes_address_bits_from_the_va() {
        let value = 0x12_3000 | NON_GLOBAL;
        assert_eq!(of_group(value, 3, 3, 0x1000, 16), value);
        assert_eq!(of_group(value, 3, 15, 0x1000, 16), 0x12_f000 | NON_GLOBAL);
        assert_eq!(of_group(value, 3, 0, 0x1000, 16), 0x12_0000 | NON_GLOBAL);
    }

    #[test]
    fn members_of_a_group_agree_by_their_base() {
        let entry =
            |at: u64, bits: u64| group_value((0x12_0003 + at * 0x1000) | bits, at as usize, 0x1000, 16);
        assert_eq!(entry(0, 0), Some(0x12_0000));
        assert_eq!(entry(5, AF), entry(0, 0));
        assert_eq!(entry(5, DBM), entry(0, DBM | RDONLY));
        assert_ne!(entry(5, 0), entry(0, RDONLY));
        assert_eq!(group_value(0x12_1003, 0, 0x1000, 16), None);
    }

    #[test]
    fn the_root_uses_the_bits_below_48() {
        assert_eq!(slot_of(Granule::K64, 1, TTBR1_BASE), 0);
        assert_eq!(slot_of(Granule::K16, 0, !0), 1);
        assert_eq!(slot_of(Granule::K4, 3, 0xffff_8000_0000_5000), 5);
    }
}
