//! Descriptors and addresses as a walker reads them (DDI 0487, D8.2 and D8.3; 48-bit addresses, stage 1).

use arch::Granule;

/// Bits of a virtual address that one table base register translates.
pub const VA_BITS: u32 = 48;
/// The first address that TTBR1 translates.
pub const TTBR1_BASE: u64 = !0 << VA_BITS;
/// The level whose entries are pages.
const LAST_LEVEL: u8 = 3;

/// Bit 0: valid.
pub const VALID: u64 = 1;
/// Bit 1: table or page, not block.
pub const TABLE_OR_PAGE: u64 = 1 << 1;
/// AP\[2:1\], bits 7:6, and DBM, bit 51: who may read and write.
pub const ACCESS: u64 = 0b11 << 6 | 1 << 51;
/// nG: not global.
pub const NON_GLOBAL: u64 = 1 << 11;
/// Contiguous.
pub const CONTIGUOUS: u64 = 1 << 52;
/// PXN and UXN.
pub const EXECUTE_NEVER: u64 = 0b11 << 53;
/// What may change in a live leaf without break-before-make (RWHZWS): permissions.
pub const PERMISSIONS: u64 = ACCESS | EXECUTE_NEVER;
/// Bits 47:12: the output address or the address of the next table.
const ADDRESS: u64 = (1 << 48) - (1 << 12);

/// A descriptor, as it is read at some level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Descriptor {
    /// Bit 0 is clear.
    Invalid,
    /// Leads to the table at this physical address.
    Table(u64),
    /// Maps what begins at this physical address.
    Leaf(u64),
    /// Bit 0 is set, but no such descriptor exists at this level, or its address is misaligned.
    Reserved,
}

/// Reads `raw` in a table of `level`.
pub fn decode(granule: Granule, level: u8, raw: u64) -> Descriptor {
    let address = raw & ADDRESS;
    let (descriptor, alignment) = match (raw & TABLE_OR_PAGE != 0, level) {
        _ if raw & VALID == 0 => return Descriptor::Invalid,
        (true, LAST_LEVEL) => (Descriptor::Leaf(address), granule.page_size()),
        (true, _) => (Descriptor::Table(address), granule.page_size()),
        // Blocks: 1 GiB and 2 MiB; 32 MiB; 512 MiB.
        (false, 2) => (Descriptor::Leaf(address), leaf_size(granule, 2)),
        (false, 1) if granule == Granule::K4 => (Descriptor::Leaf(address), leaf_size(granule, 1)),
        (false, _) => return Descriptor::Reserved,
    };
    if address.is_multiple_of(alignment) { descriptor } else { Descriptor::Reserved }
}

/// log2 of the bytes that one entry at `level` covers: each level below resolves as many bits as a
/// page has descriptors.
pub fn entry_shift(granule: Granule, level: u8) -> u32 {
    let page = granule.page_size().ilog2();
    page + u32::from(LAST_LEVEL - level) * (page - 3)
}

/// The bytes that one entry at `level` covers.
pub fn leaf_size(granule: Granule, level: u8) -> u64 {
    1 << entry_shift(granule, level)
}

/// The level of the root table: the first whose single table covers [`VA_BITS`].
pub fn root_level(granule: Granule) -> u8 {
    let bits_of_table = |level| entry_shift(granule, level) + granule.page_size().ilog2() - 3;
    (0..=LAST_LEVEL).rev().find(|&level| bits_of_table(level) >= VA_BITS).expect("four levels are enough")
}

/// How many slots of a table at `level` a walk can reach: of the root only those that the bits of the
/// address below [`VA_BITS`] select.
pub fn reachable_slots(granule: Granule, level: u8) -> usize {
    let bits = granule.page_size().ilog2() - 3;
    1 << bits.min(VA_BITS - entry_shift(granule, level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_those_of_the_manual() {
        // DDI 0487, D8.2.8 to D8.2.10: bits 47:39; bit 47; bits 47:42.
        for (granule, level, slots) in [(Granule::K4, 0, 512), (Granule::K16, 0, 2), (Granule::K64, 1, 64)] {
            assert_eq!((root_level(granule), reachable_slots(granule, level)), (level, slots));
            assert_eq!(reachable_slots(granule, 3), granule.page_size() as usize / 8);
        }
    }

    #[test]
    fn descriptors_are_read_by_level() {
        use Descriptor::*;
        for (granule, level, raw, expected) in [
            (Granule::K4, 3, 0x1003, Leaf(0x1000)),
            (Granule::K4, 3, 0x1001, Reserved),
            (Granule::K4, 2, 0x1003, Table(0x1000)),
            (Granule::K4, 2, 0x20_0001, Leaf(0x20_0000)),
            (Granule::K4, 2, 0x10_0001, Reserved),
            (Granule::K4, 1, 0x4000_0001, Leaf(0x4000_0000)),
            (Granule::K4, 0, 1, Reserved),
            (Granule::K16, 2, 0x200_0001, Leaf(0x200_0000)),
            (Granule::K16, 1, 1, Reserved),
            (Granule::K16, 3, 0x1003, Reserved),
            (Granule::K64, 1, 1, Reserved),
            (Granule::K64, 2, 0x2000_0001, Leaf(0x2000_0000)),
            (Granule::K64, 2, 0x1_0003, Table(0x1_0000)),
            (Granule::K64, 3, 0x1_0002, Invalid),
            (Granule::K64, 3, !VALID, Invalid),
        ] {
            assert_eq!(decode(granule, level, raw), expected, "{granule:?} level {level} {raw:#x}");
        }
    }
}
