//! Stage 1 descriptors of the VMSAv8-64 translation tables (DDI 0487, D8.3), without FEAT_LPA2.

use core::fmt;

use bitflags::bitflags;

use crate::addr::{PA_BITS, PhysAddr};
use crate::granule::Granule;

bitflags! {
    /// The attribute and type bits of a leaf descriptor; the output address lies between them.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct PteFlags: u64 {
        /// The entry translates. Where it is clear, the MMU ignores every other bit.
        const VALID = 1 << 0;
        /// Bit 1: set in a page descriptor and in a table descriptor, clear in a block descriptor.
        const PAGE = 1 << 1;
        /// AP\[1\]: EL0 may access.
        const USER = 1 << 6;
        /// AP\[2\]: not writable.
        const RDONLY = 1 << 7;
        /// SH = 0b11: Inner Shareable.
        const INNER_SHAREABLE = 0b11 << 8;
        /// Access flag.
        const AF = 1 << 10;
        /// Not global: the translation belongs to one ASID.
        const NG = 1 << 11;
        /// Dirty bit modifier: hardware may clear `RDONLY` on a write.
        const DBM = 1 << 51;
        /// Contiguous: one of a group that a TLB may hold as a single entry.
        const CONT = 1 << 52;
        /// Privileged execute-never.
        const PXN = 1 << 53;
        /// Unprivileged execute-never.
        const UXN = 1 << 54;
        /// For software: dirty, though the hardware state may not say so.
        const DIRTY = 1 << 55;
        /// For software: the frame has no folio, so nothing is counted.
        const SPECIAL = 1 << 56;
    }
}

/// The kinds of memory that mappings use, each an index into `MAIR_EL1` ([`MAIR`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryType {
    /// Normal, Inner and Outer Write-Back, Read- and Write-Allocate.
    Normal = 0,
    /// Device-nGnRE: registers.
    Device = 1,
    /// Normal, Non-cacheable.
    NonCacheable = 2,
}

impl MemoryType {
    /// Where AttrIndx\[2:0\] lies in a leaf descriptor.
    const SHIFT: u32 = 2;
    const MASK: u64 = 0b111 << Self::SHIFT;

    /// The 8-bit encoding in `MAIR_EL1`.
    const fn encoding(self) -> u64 {
        match self {
            Self::Normal => 0xff,
            Self::Device => 0x04,
            Self::NonCacheable => 0x44,
        }
    }

    const ALL: [Self; 3] = [Self::Normal, Self::Device, Self::NonCacheable];
}

/// The value of `MAIR_EL1` that gives [`MemoryType`] its meaning.
pub const MAIR: u64 = {
    let mut value = 0;
    let mut i = 0;
    while i < MemoryType::ALL.len() {
        value |= MemoryType::ALL[i].encoding() << (8 * MemoryType::ALL[i] as u64);
        i += 1;
    }
    value
};

/// A leaf descriptor, or an invalid one, by value.
///
/// Bit 1 of a valid value is always set, as in a page descriptor; [`crate::mmu::Table`] clears it
/// where the value is stored as a block, and sets it where one is read.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct PteValue(u64);

/// The output address field of the smallest granule; lower bits are zero in the larger ones.
const OA_MASK: u64 = ((1 << PA_BITS) - 1) & !0xfff;

impl PteValue {
    /// An invalid entry of all zeroes.
    pub const NONE: Self = Self(0);

    /// The page (or block) at `pa`, with `flags` and the memory type; `VALID` is added.
    ///
    /// # Panics
    /// Where `pa` is not aligned to 4 KiB. The alignment to the size that is mapped is checked where
    /// the value is stored.
    #[track_caller]
    pub const fn leaf(pa: PhysAddr, memory: MemoryType, flags: PteFlags) -> Self {
        assert!(pa.get() & !OA_MASK == 0, "output address not page-aligned");
        let valid = PteFlags::VALID.bits() | PteFlags::PAGE.bits();
        Self(pa.get() | (memory as u64) << MemoryType::SHIFT | flags.bits() | valid)
    }

    /// The value of these descriptor bits, as read from a last-level table.
    pub(crate) const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The 64 bits, as stored in a last-level table.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Whether the MMU would translate through it.
    pub const fn is_valid(self) -> bool {
        self.flags().contains(PteFlags::VALID)
    }

    /// The output address. Meaningless where the entry is not valid.
    pub const fn pa(self) -> PhysAddr {
        PhysAddr::new(self.0 & OA_MASK)
    }

    /// The type and attribute bits without output address and memory type.
    pub const fn flags(self) -> PteFlags {
        PteFlags::from_bits_truncate(self.0)
    }

    /// The memory type, or `None` for an index that this crate never writes.
    pub fn memory(self) -> Option<MemoryType> {
        let index = (self.0 & MemoryType::MASK) >> MemoryType::SHIFT;
        MemoryType::ALL.into_iter().find(|&memory| memory as u64 == index)
    }

    /// The same entry with an output address `bytes` further on: a multiple of the page size, within 2^48.
    #[must_use]
    pub const fn advanced(self, bytes: u64) -> Self {
        debug_assert!(bytes & !OA_MASK == 0 && (self.0 & OA_MASK) + bytes <= OA_MASK);
        Self(self.0 + bytes)
    }

    /// The same entry with `flags` set as well.
    #[must_use]
    pub const fn with(self, flags: PteFlags) -> Self {
        Self(self.0 | flags.bits())
    }

    /// The same entry with `flags` cleared.
    #[must_use]
    pub const fn without(self, flags: PteFlags) -> Self {
        Self(self.0 & !flags.bits())
    }
}

impl fmt::Debug for PteValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PteValue({:#x})", self.0)
    }
}

/// The type bits of a descriptor, as the walker reads them at one level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Invalid,
    Table,
    Leaf,
}

/// How the walker reads `raw` at `level`. 0b01 at the last level is reserved and faults as invalid;
/// so does a block at a level that has none.
pub(crate) fn kind(granule: Granule, level: u8, raw: u64) -> Kind {
    let last = level == crate::granule::LAST_LEVEL;
    match raw & 0b11 {
        0b11 if last => Kind::Leaf,
        0b11 => Kind::Table,
        0b01 if !last && granule.has_leaf(level) => Kind::Leaf,
        _ => Kind::Invalid,
    }
}

/// The table descriptor for a next-level table at `pa`: no hierarchical restrictions (APTable, PXNTable…).
pub(crate) const fn table_descriptor(pa: PhysAddr) -> u64 {
    pa.get() | 0b11
}

/// The address in a table descriptor.
pub(crate) const fn table_address(raw: u64) -> PhysAddr {
    PhysAddr::new(raw & OA_MASK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mair_matches_the_indices() {
        assert_eq!(MAIR, 0x44_04_ff);
    }

    #[test]
    fn a_leaf_has_its_fields_where_the_manual_puts_them() {
        let pte = PteValue::leaf(
            PhysAddr::new(0x1234_5678_9000),
            MemoryType::Device,
            PteFlags::AF | PteFlags::RDONLY | PteFlags::UXN | PteFlags::CONT,
        );
        assert_eq!(pte.raw(), 0x0050_1234_5678_9487);
        assert_eq!(pte.pa().get(), 0x1234_5678_9000);
        assert_eq!(pte.memory(), Some(MemoryType::Device));
        assert!(!pte.without(PteFlags::VALID).is_valid());
    }

    #[test]
    #[should_panic(expected = "page-aligned")]
    fn a_misaligned_output_address_is_refused() {
        let _ = PteValue::leaf(PhysAddr::new(0x800), MemoryType::Normal, PteFlags::AF);
    }

    #[test]
    fn kinds_by_level() {
        use Kind::*;
        for (granule, level, raw, expected) in [
            (Granule::K4, 3, 0b11, Leaf),
            (Granule::K4, 3, 0b01, Invalid),
            (Granule::K4, 2, 0b11, Table),
            (Granule::K4, 2, 0b01, Leaf),
            (Granule::K4, 0, 0b01, Invalid),
            (Granule::K16, 1, 0b01, Invalid),
            (Granule::K4, 2, 0b10, Invalid),
        ] {
            assert_eq!(kind(granule, level, raw), expected, "{granule:?} level {level} {raw:#b}");
        }
    }
}
