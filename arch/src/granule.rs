//! Translation granules: how many bits each level of a walk resolves (DDI 0487, D8.2).

/// The translation granule. Every size in the page-table code is derived from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Granule {
    /// 4 KiB pages, 512 entries a table.
    K4,
    /// 16 KiB pages, 2048 entries a table.
    K16,
    /// 64 KiB pages, 8192 entries a table.
    K64,
}

/// The level whose entries map single pages.
pub const LAST_LEVEL: u8 = 3;

impl Granule {
    /// All of them, for tests.
    pub const ALL: [Self; 3] = [Self::K4, Self::K16, Self::K64];

    /// log2 of the page size in bytes.
    pub const fn page_shift(self) -> u32 {
        match self {
            Self::K4 => 12,
            Self::K16 => 14,
            Self::K64 => 16,
        }
    }

    /// The granule whose pages have 2^`shift` bytes.
    ///
    /// # Panics
    /// Where there is none.
    pub const fn of_page_shift(shift: u32) -> Self {
        match shift {
            12 => Self::K4,
            14 => Self::K16,
            16 => Self::K64,
            _ => panic!("no granule has pages of this size"),
        }
    }

    /// The page size in bytes.
    pub const fn page_size(self) -> u64 {
        1 << self.page_shift()
    }

    /// Entries in a full translation table: a page of 8-byte descriptors.
    pub const fn entries(self) -> usize {
        1 << (self.page_shift() - 3)
    }

    /// log2 of the bytes that one entry at `level` (0 to 3) covers.
    pub const fn level_shift(self, level: u8) -> u32 {
        self.page_shift() + (LAST_LEVEL - level) as u32 * (self.page_shift() - 3)
    }

    /// The bytes that one entry at `level` covers.
    pub const fn level_size(self, level: u8) -> u64 {
        1 << self.level_shift(level)
    }

    /// The index of the entry at `level` that translates `va`, in tables for 48-bit addresses: the bits above are
    /// not looked at, so a root table may use only its first entries.
    pub const fn index(self, va: u64, level: u8) -> usize {
        ((va & ((1 << 48) - 1)) >> self.level_shift(level)) as usize & (self.entries() - 1)
    }

    /// Whether an entry at `level` may be a leaf: a page, or a block of a size that exists without
    /// FEAT_LPA2 (DDI 0487, table D8-22).
    pub const fn has_leaf(self, level: u8) -> bool {
        match self {
            Self::K4 => level >= 1 && level <= 3,
            Self::K16 | Self::K64 => level == 2 || level == 3,
        }
    }

    /// How many entries at `level` one Contiguous group has (DDI 0487, table D8-99); 1 where the
    /// Contiguous bit is not used: above level 2. Under `--cfg loom` 4 pages of 4 KiB.
    pub const fn cont_entries(self, level: u8) -> usize {
        match (self, level) {
            // A model checker tries every order of accesses, and would not get to the end of it with 16.
            (Self::K4, 3) if cfg!(loom) => 4,
            (Self::K4, 2 | 3) => 16,
            (Self::K16, 3) => 128,
            (Self::K16, 2) => 32,
            (Self::K64, 2 | 3) => 32,
            _ => 1,
        }
    }

    /// The level at which a walk of `va_bits` begins.
    pub const fn start_level(self, va_bits: u32) -> u8 {
        let mut level = LAST_LEVEL;
        while level > 0 && self.level_shift(level - 1) < va_bits {
            level -= 1;
        }
        level
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes as the Arm ARM's tables print them.
    #[test]
    fn sizes_are_those_of_the_manual() {
        const M: u64 = 1 << 20;
        const G: u64 = 1 << 30;
        let rows = [
            // granule, level-2 leaf, group of pages, group of level-2 leaves, start level at 48 bits
            (Granule::K4, 2 * M, 64 << 10, 32 * M, 0),
            (Granule::K16, 32 * M, 2 * M, G, 0),
            (Granule::K64, 512 * M, 2 * M, 16 * G, 1),
        ];
        for (granule, block, cont_pte, cont_pmd, start) in rows {
            assert_eq!(granule.level_size(2), block);
            assert_eq!(granule.cont_entries(3) as u64 * granule.page_size(), cont_pte);
            assert_eq!(granule.cont_entries(2) as u64 * granule.level_size(2), cont_pmd);
            assert_eq!(granule.start_level(48), start);
        }
        assert_eq!(Granule::K4.level_size(1), G);
        assert_eq!(Granule::K4.start_level(39), 1);
    }

    #[test]
    fn a_page_size_tells_the_granule() {
        for granule in Granule::ALL {
            assert_eq!(Granule::of_page_shift(granule.page_shift()), granule);
        }
    }

    #[test]
    fn indices_take_their_own_bits() {
        let va = 0xffff_8000_4020_3000;
        assert_eq!([0, 1, 2, 3].map(|level| Granule::K4.index(va, level)), [256, 1, 1, 3]);
        // Of the root's index, only what 48 bits leave: 1 bit, 6 bits.
        assert_eq!(Granule::K16.index(u64::MAX, 0), 1);
        assert_eq!(Granule::K64.index(u64::MAX, 1), 63);
    }
}
