//! Addresses and frame numbers as distinct types, checked where they are made.
//!
//! A physical address never passes for a virtual one, and a frame number never for an address: the
//! only ways between them are the named conversions here.

use core::fmt;

use crate::granule::Granule;

/// Highest number of physical address bits without FEAT_LPA (DDI 0487, D8.1.6).
pub const PA_BITS: u32 = 48;

/// A physical address in bytes, below 2^48.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct PhysAddr(u64);

/// A virtual address in bytes. Any 64-bit number is one; whether it is canonical is asked by
/// [`VirtAddr::is_canonical`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct VirtAddr(u64);

/// A page frame number: a physical address divided by the page size of the granule in use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Pfn(u64);

impl PhysAddr {
    /// The address `bytes`, or `None` where it is not below 2^48.
    pub const fn try_new(bytes: u64) -> Option<Self> {
        if bytes >> PA_BITS == 0 { Some(Self(bytes)) } else { None }
    }

    /// The address `bytes`.
    ///
    /// # Panics
    /// Where `bytes` is not below 2^48.
    #[track_caller]
    pub const fn new(bytes: u64) -> Self {
        match Self::try_new(bytes) {
            Some(pa) => pa,
            None => panic!("physical address beyond 48 bits"),
        }
    }

    /// The address in bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The frame that holds this address.
    pub const fn pfn(self, granule: Granule) -> Pfn {
        Pfn(self.0 >> granule.page_shift())
    }

    /// The address `bytes` further on, or `None` beyond 2^48.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Self::try_new(sum),
            None => None,
        }
    }

    /// Whether the address is a multiple of `bytes`, a power of two.
    pub const fn is_aligned(self, bytes: u64) -> bool {
        self.0 & (bytes - 1) == 0
    }
}

impl VirtAddr {
    /// The address `bytes`.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The address in bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whether the bits above `va_bits` all equal each other, so that a TTBR covers the address.
    pub const fn is_canonical(self, va_bits: u32) -> bool {
        let top = self.0 as i64 >> va_bits;
        top == 0 || top == -1
    }

    /// The address `bytes` further on, or `None` where that wraps.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// Whether the address is a multiple of `bytes`, a power of two.
    pub const fn is_aligned(self, bytes: u64) -> bool {
        self.0 & (bytes - 1) == 0
    }
}

impl Pfn {
    /// Frame number `number`.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The frame number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The address of the frame's first byte.
    ///
    /// # Panics
    /// Where that address is not below 2^48.
    #[track_caller]
    pub const fn addr(self, granule: Granule) -> PhysAddr {
        assert!(self.0 >> (PA_BITS - granule.page_shift()) == 0, "frame beyond 48 bits");
        PhysAddr(self.0 << granule.page_shift())
    }

    /// The frame `frames` further on.
    pub const fn add(self, frames: u64) -> Self {
        Self(self.0 + frames)
    }
}

macro_rules! hex_debug {
    ($type:ident, $name:literal) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($name, "({:#x})"), self.0)
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(self, f)
            }
        }
        impl fmt::LowerHex for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}
hex_debug!(PhysAddr, "PhysAddr");
hex_debug!(VirtAddr, "VirtAddr");
hex_debug!(Pfn, "Pfn");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn physical_addresses_end_at_48_bits() {
        assert_eq!(PhysAddr::try_new((1 << 48) - 1).map(PhysAddr::get), Some((1 << 48) - 1));
        assert_eq!(PhysAddr::try_new(1 << 48), None);
        assert_eq!(PhysAddr::new((1 << 48) - 1).checked_add(1), None);
        assert_eq!(PhysAddr::new(1).checked_add(u64::MAX), None);
    }

    #[test]
    fn canonical_addresses_have_equal_top_bits() {
        for (va, canonical) in [
            (0, true),
            ((1 << 48) - 1, true),
            (1 << 48, false),
            (0xffff_0000_0000_0000, true),
            (0xfffe_ffff_ffff_ffff, false),
            (u64::MAX, true),
        ] {
            assert_eq!(VirtAddr::new(va).is_canonical(48), canonical, "{va:#x}");
        }
    }

    #[test]
    fn frames_and_addresses_convert_by_the_granule() {
        for granule in Granule::ALL {
            let pa = PhysAddr::new(0x1234_5678_0000);
            assert_eq!(pa.pfn(granule).addr(granule), pa);
            assert_eq!(Pfn::new(1).addr(granule).get(), granule.page_size());
        }
    }
}
