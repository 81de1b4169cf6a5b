//! TLB maintenance operations as values, and the encoding of their operands (DDI 0487, D8.17.5, "TLB
//! maintenance instructions").
//!
//! [`Tlbi`] says what is to be invalidated; the hardware turns it into [`Tlbi::form`] and
//! [`Tlbi::operand`], a model reads its fields. Whether it is broadcast is the caller's choice of
//! method, not part of the value: the names below are those of the broadcast forms.
//!
//! 52-bit addresses are out of scope: FEAT_LPA2 (TCR_EL1.DS = 1) moves BaseADDR of the range forms to
//! 64 KiB units, and FEAT_LVA widens virtual addresses. An address here is at most 48 bits and its
//! sign.
#![forbid(unsafe_code)]

use core::fmt;
use core::iter::FusedIterator;

use crate::addr::VirtAddr;
use crate::granule::{Granule, LAST_LEVEL};

#[cfg(test)]
mod tests;

/// The most pages that one range operation covers (NUM 31, SCALE 3), and the most that
/// [`Tlbi::range`] takes. Beyond it, invalidating a whole ASID is cheaper.
pub const MAX_RANGE_PAGES: u64 = RangeSize { scale: 3, num: 31 }.pages();

/// Bits of a virtual address without FEAT_LVA and FEAT_LPA2.
const VA_BITS: u32 = 48;

/// An address space identifier. Where the context uses 8 bits, the upper 8 must be zero (rule ILHKCP).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Asid(u16);

impl Asid {
    /// ASID number `number`.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// Which entries of an address are meant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Space {
    /// Global ones, and non-global ones of every ASID (VAA).
    All,
    /// Global ones, and non-global ones of this ASID (VA).
    Asid(Asid),
}

/// SCALE and NUM of a range operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RangeSize {
    scale: u8,
    num: u8,
}

impl RangeSize {
    /// This SCALE (0 to 3) and NUM (0 to 31), or `None` for others.
    pub const fn new(scale: u8, num: u8) -> Option<Self> {
        if scale <= 3 && num <= 31 { Some(Self { scale, num }) } else { None }
    }

    /// SCALE, 0 to 3.
    pub const fn scale(self) -> u8 {
        self.scale
    }

    /// NUM, 0 to 31.
    pub const fn num(self) -> u8 {
        self.num
    }

    /// The pages covered: (NUM+1)·2^(5·SCALE+1) (rule RQKRKL).
    pub const fn pages(self) -> u64 {
        (self.num as u64 + 1) << (5 * self.scale + 1)
    }
}

/// One TLB maintenance operation.
///
/// `level` is the level of the *leaf* entry that translates the address, or `None` for no hint, which
/// is always right. A wrong level or granule allows the hardware to invalidate nothing (rules RSQXYZ,
/// RXKMMX). Without FEAT_TTL it must be `None`: the field is RES0 there (rules IZVNJG, IQPHNP).
///
/// `last_level` leaves cached table descriptors alone: not enough where a table page is freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tlbi {
    /// Every entry of the EL1&0 regime: VMALLE1IS.
    All,
    /// Every non-global entry of an ASID: ASIDE1IS.
    Asid(Asid),
    /// The entries that translate one address: VAE1IS, VALE1IS, VAAE1IS, VAALE1IS.
    Page {
        /// The address.
        va: VirtAddr,
        /// Of which address spaces.
        space: Space,
        /// Leaf entries only.
        last_level: bool,
        /// The granule of the tables.
        granule: Granule,
        /// The level of the leaf.
        level: Option<u8>,
    },
    /// The entries that translate any address of a range: RVAE1IS, RVALE1IS, RVAAE1IS, RVAALE1IS
    /// (FEAT_TLBIRANGE).
    Range {
        /// The first address, aligned as the level of the leaves demands.
        start: VirtAddr,
        /// How many pages.
        size: RangeSize,
        /// Of which address spaces.
        space: Space,
        /// Leaf entries only.
        last_level: bool,
        /// The granule of the tables.
        granule: Granule,
        /// The level of all leaves in the range.
        level: Option<u8>,
    },
}

/// The instruction of a [`Tlbi`], in its broadcast (Inner Shareable) form.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Form {
    /// All of the regime.
    Vmalle1is,
    /// By ASID.
    Aside1is,
    /// By VA and ASID, any level.
    Vae1is,
    /// By VA and ASID, last level.
    Vale1is,
    /// By VA, all ASIDs, any level.
    Vaae1is,
    /// By VA, all ASIDs, last level.
    Vaale1is,
    /// Range by VA and ASID, any level.
    Rvae1is,
    /// Range by VA and ASID, last level.
    Rvale1is,
    /// Range by VA, all ASIDs, any level.
    Rvaae1is,
    /// Range by VA, all ASIDs, last level.
    Rvaale1is,
}

impl Tlbi {
    /// The instruction.
    pub const fn form(self) -> Form {
        match self {
            Self::All => Form::Vmalle1is,
            Self::Asid(_) => Form::Aside1is,
            Self::Page { space: Space::Asid(_), last_level: false, .. } => Form::Vae1is,
            Self::Page { space: Space::Asid(_), last_level: true, .. } => Form::Vale1is,
            Self::Page { space: Space::All, last_level: false, .. } => Form::Vaae1is,
            Self::Page { space: Space::All, last_level: true, .. } => Form::Vaale1is,
            Self::Range { space: Space::Asid(_), last_level: false, .. } => Form::Rvae1is,
            Self::Range { space: Space::Asid(_), last_level: true, .. } => Form::Rvale1is,
            Self::Range { space: Space::All, last_level: false, .. } => Form::Rvaae1is,
            Self::Range { space: Space::All, last_level: true, .. } => Form::Rvaale1is,
        }
    }

    /// What Xt holds; zero for [`Tlbi::All`], which takes no register.
    ///
    /// # Panics
    /// As [`va_operand`] and [`range_operand`].
    #[track_caller]
    pub const fn operand(self) -> u64 {
        match self {
            Self::All => 0,
            Self::Asid(asid) => asid_operand(asid),
            Self::Page { va, space, granule, level, .. } => va_operand(va, space, granule, level),
            Self::Range { start, size, space, granule, level, .. } => {
                range_operand(start, size, space, granule, level)
            }
        }
    }

    /// The operations that together invalidate exactly `pages` pages from `start`, for a CPU with
    /// FEAT_TLBIRANGE: at most four range operations, and one by page for an odd page at the end.
    /// No pages are no operations. Without FEAT_TLBIRANGE the caller issues a [`Tlbi::Page`] for each
    /// page.
    ///
    /// # Errors
    /// [`RangeError`] for a range that no such operations cover.
    ///
    /// # Panics
    /// Where `level` has no leaves in this granule.
    ///
    /// # Examples
    /// A block of 16 pages is one operation with SCALE 0 and NUM 7:
    /// ```
    /// use pleat_arch::tlbi::{Asid, RangeSize, Space, Tlbi};
    /// use pleat_arch::{Granule, VirtAddr};
    ///
    /// let (start, space) = (VirtAddr::new(0x40_0000), Space::Asid(Asid::new(5)));
    /// let mut ops = Tlbi::range(start, 16, space, true, Granule::K4, Some(3)).unwrap();
    /// let size = RangeSize::new(0, 7).unwrap();
    /// assert_eq!(
    ///     ops.next(),
    ///     Some(Tlbi::Range { start, size, space, last_level: true, granule: Granule::K4, level: Some(3) })
    /// );
    /// assert_eq!(ops.next(), None);
    /// ```
    pub const fn range(
        start: VirtAddr,
        pages: u64,
        space: Space,
        last_level: bool,
        granule: Granule,
        level: Option<u8>,
    ) -> Result<RangeOps, RangeError> {
        let unit = leaf_size(granule, level);
        if pages > MAX_RANGE_PAGES {
            return Err(RangeError::TooLong(pages));
        }
        let bytes = pages << granule.page_shift();
        if !start.is_aligned(unit) || bytes & (unit - 1) != 0 {
            return Err(RangeError::Misaligned(start));
        }
        if pages != 0 {
            let canonical = match start.checked_add(bytes - 1) {
                // Neither end may lie in the hole, nor the hole between them.
                Some(last) => {
                    start.is_canonical(VA_BITS)
                        && last.is_canonical(VA_BITS)
                        && start.get() >> 63 == last.get() >> 63
                }
                None => false,
            };
            if !canonical {
                return Err(RangeError::NotCanonical(start));
            }
        }
        Ok(RangeOps { start, pages, space, last_level, granule, level })
    }
}

/// Why [`Tlbi::range`] refuses a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RangeError {
    /// More than [`MAX_RANGE_PAGES`] pages; the number asked for.
    TooLong(u64),
    /// The start or the length is not a multiple of what one leaf at the hinted level covers, of a
    /// page without hint: the range invalidated would be UNPREDICTABLE (rule ITYBWT). The start.
    Misaligned(VirtAddr),
    /// The range leaves the 48-bit half that it starts in, or wraps. The start.
    NotCanonical(VirtAddr),
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(pages) => write!(f, "{pages} pages are more than a TLB range covers"),
            Self::Misaligned(start) => write!(f, "TLB range from {start} is not made of whole leaves"),
            Self::NotCanonical(start) => write!(f, "TLB range from {start} leaves the 48-bit addresses"),
        }
    }
}

impl core::error::Error for RangeError {}

/// The operations of [`Tlbi::range`], largest first, so that each starts as aligned as its level hint
/// demands.
#[derive(Clone, Debug)]
pub struct RangeOps {
    start: VirtAddr,
    pages: u64,
    space: Space,
    last_level: bool,
    granule: Granule,
    level: Option<u8>,
}

impl Iterator for RangeOps {
    type Item = Tlbi;

    fn next(&mut self) -> Option<Tlbi> {
        let Self { start, pages, space, last_level, granule, level } = *self;
        let (op, covered) = match pages {
            0 => return None,
            1 => (Tlbi::Page { va: start, space, last_level, granule, level }, 1),
            _ => {
                let size = largest(pages);
                (Tlbi::Range { start, size, space, last_level, granule, level }, size.pages())
            }
        };
        self.pages -= covered;
        // Past the last page of the address space there is nothing more to start at.
        self.start = VirtAddr::new(start.get().wrapping_add(covered << granule.page_shift()));
        Some(op)
    }
}

impl FusedIterator for RangeOps {}

/// The largest size that covers no more than `pages` pages, 2 to [`MAX_RANGE_PAGES`].
const fn largest(pages: u64) -> RangeSize {
    let mut scale = 3;
    while pages >> (5 * scale + 1) == 0 {
        scale -= 1;
    }
    RangeSize { scale, num: (pages >> (5 * scale + 1)) as u8 - 1 }
}

/// The bytes that a leaf at `level` covers, a page without hint.
#[track_caller]
const fn leaf_size(granule: Granule, level: Option<u8>) -> u64 {
    match level {
        Some(level) => {
            assert!(level <= LAST_LEVEL && granule.has_leaf(level), "TLB hint for a level without leaves");
            granule.level_size(level)
        }
        None => granule.page_size(),
    }
}

/// The operand of ASIDE1IS: the ASID in bits 63:48.
pub const fn asid_operand(asid: Asid) -> u64 {
    (asid.get() as u64) << 48
}

/// The operand of the forms that take one address (rule IZVNJG, table "TTL field encodings in TLB
/// instructions that apply to a single address"): ASID in bits 63:48, TTL in 47:44, VA\[55:12\] in 43:0.
///
/// # Panics
/// Where `level` has no leaves in this granule: the manual reserves those encodings.
#[track_caller]
pub const fn va_operand(va: VirtAddr, space: Space, granule: Granule, level: Option<u8>) -> u64 {
    // VA[63:56] is sign or tag, and would run into TTL and ASID.
    let page = va.get() >> 12 & ((1 << 44) - 1);
    let ttl = match level {
        None => 0,
        Some(level) => {
            leaf_size(granule, Some(level)); // for its check
            granule_field(granule) << 2 | level as u64
        }
    };
    space_field(space) | ttl << 44 | page
}

/// The operand of the range forms (rule IQPHNP, TCR_EL1.DS = 0): ASID in bits 63:48, TG in 47:46, SCALE
/// in 45:44, NUM in 43:39, TTL in 38:37, BaseADDR in 36:0 in pages.
///
/// # Panics
/// Where `level` has no leaves in this granule, or `start` is not aligned to such a leaf (to a page
/// without hint) or has more than 48 bits and their sign: the hardware would invalidate another range.
#[track_caller]
pub const fn range_operand(
    start: VirtAddr,
    size: RangeSize,
    space: Space,
    granule: Granule,
    level: Option<u8>,
) -> u64 {
    assert!(start.is_aligned(leaf_size(granule, level)), "misaligned TLB range");
    assert!(start.is_canonical(VA_BITS), "TLB range beyond 48 bits");
    // Of the sign, BaseADDR keeps bit 48 (16K: up to 50, 64K: up to 52); the rest would run into TTL.
    let base = start.get() >> granule.page_shift() & ((1 << 37) - 1);
    let ttl = match level {
        None => 0,
        Some(level) => level as u64,
    };
    space_field(space)
        | granule_field(granule) << 46
        | (size.scale as u64) << 44
        | (size.num as u64) << 39
        | ttl << 37
        | base
}

const fn space_field(space: Space) -> u64 {
    match space {
        Space::All => 0,
        Space::Asid(asid) => asid_operand(asid),
    }
}

/// TG, and TTL\[3:2\].
const fn granule_field(granule: Granule) -> u64 {
    match granule {
        Granule::K4 => 0b01,
        Granule::K16 => 0b10,
        Granule::K64 => 0b11,
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vmalle1is => "VMALLE1IS",
            Self::Aside1is => "ASIDE1IS",
            Self::Vae1is => "VAE1IS",
            Self::Vale1is => "VALE1IS",
            Self::Vaae1is => "VAAE1IS",
            Self::Vaale1is => "VAALE1IS",
            Self::Rvae1is => "RVAE1IS",
            Self::Rvale1is => "RVALE1IS",
            Self::Rvaae1is => "RVAAE1IS",
            Self::Rvaale1is => "RVAALE1IS",
        })
    }
}

impl fmt::Display for Tlbi {
    /// The instruction, then address, pages, ASID and level as far as it has them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.form())?;
        let (space, level) = match *self {
            Self::All => return Ok(()),
            Self::Asid(asid) => return write!(f, " ASID {}", asid.get()),
            Self::Page { va, space, level, .. } => {
                write!(f, " {va}")?;
                (space, level)
            }
            Self::Range { start, size, space, level, .. } => {
                write!(f, " {start}, {} pages", size.pages())?;
                (space, level)
            }
        };
        if let Space::Asid(asid) = space {
            write!(f, ", ASID {}", asid.get())?;
        }
        level.map_or(Ok(()), |level| write!(f, ", level {level}"))
    }
}
