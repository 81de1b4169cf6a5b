//! The physical memory map before there is an allocator: which RAM there is, what of it is taken,
//! and what may be mapped.
//!
//! ```text
//!   RAM     |--------------------------------|        |------------------|
//!   no-map          |xxxx|
//!   mapped  |------|      |------------------|        |------------------|
//!   taken           |xxxx|   |image| |dtb|                         |alloc|
//!   free    |------|      |-|       |   |----|        |-----------|
//! ```
//!
//! All ranges here are whole pages, sorted, and apart from each other: RAM is rounded inward,
//! reservations outward. What is outside RAM can be reserved, which changes nothing.

#[cfg(test)]
mod tests;

use core::fmt;

use arch::{Granule, PhysAddr};
use arrayvec::ArrayVec;

use crate::platform::{EnableMethod, MAX_CPUS, MAX_RANGES, PhysRange, Platform};

/// The least free memory in bytes, after all reservations, that the kernel starts with.
pub const MIN_FREE: u64 = 32 << 20;
/// The most separate reserved ranges: those of the platform, and what [`MemBlock::alloc`] adds.
pub const MAX_RESERVED: usize = 128;

// Image, device tree, initrd, page 0 and spin tables: `new` can't run out of room.
const _: () = assert!(MAX_RESERVED >= MAX_RANGES + 3 + 1 + MAX_CPUS);

/// The map of physical memory.
#[derive(Clone, Debug)]
pub struct MemBlock {
    ram: Ranges<MAX_RANGES>,
    no_map: Ranges<MAX_RANGES>,
    /// All that is not free, `no_map` too.
    reserved: Ranges<MAX_RESERVED>,
    granule: Granule,
    allocated: u64,
}

/// What the boot loader put into memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Item {
    /// The kernel, with its zeroed data.
    Image,
    /// The device tree blob.
    DeviceTree,
    /// The initial RAM disk.
    Initrd,
}

/// Why the kernel can't live in the memory that is described, with the culprit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MemError {
    /// There is not one whole page of RAM.
    NoRam,
    /// Too little is free.
    TooSmall {
        /// The RAM in bytes.
        ram: u64,
        /// What is free of it in bytes; [`MIN_FREE`] is needed.
        free: u64,
    },
    /// Not wholly inside one range of RAM.
    NotInRam {
        /// What.
        item: Item,
        /// Where it is.
        range: PhysRange,
    },
    /// Two things in one place.
    Overlap {
        /// One of them.
        item: Item,
        /// Where it is.
        range: PhysRange,
        /// The other.
        other: Item,
        /// Where that is.
        other_range: PhysRange,
    },
    /// A reservation covers the kernel, which therefore is in memory that is somebody else's.
    Reserved {
        /// Where the kernel is.
        image: PhysRange,
        /// The reservation.
        reservation: PhysRange,
    },
    /// The kernel needs it, and may not map it.
    NoMap {
        /// What.
        item: Item,
        /// Where it is.
        range: PhysRange,
        /// The reservation with `no-map`.
        reservation: PhysRange,
    },
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Image => "the kernel image",
            Self::DeviceTree => "the device tree",
            Self::Initrd => "the initrd",
        })
    }
}

impl fmt::Display for MemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRam => f.write_str("the device tree describes no RAM"),
            Self::TooSmall { ram, free } => write!(
                f,
                "too small: {} KiB of {} KiB RAM are free, and {} KiB are needed",
                free >> 10,
                ram >> 10,
                MIN_FREE >> 10
            ),
            Self::NotInRam { item, range } => write!(f, "{item} at {range} is not inside RAM"),
            Self::Overlap { item, range, other, other_range } => {
                write!(f, "{item} at {range} overlaps {other} at {other_range}")
            }
            Self::Reserved { image, reservation } => {
                write!(f, "the kernel image at {image} overlaps the reserved range {reservation}")
            }
            Self::NoMap { item, range, reservation } => {
                write!(f, "{item} at {range} overlaps {reservation}, which must not be mapped")
            }
        }
    }
}

impl core::error::Error for MemError {}

impl MemBlock {
    /// The map of the platform's RAM with its reservations, the kernel's `image` (with its zeroed
    /// data), the device tree `dtb`, and the platform's initrd. Pages are those of `granule`.
    ///
    /// Reservations may overlap each other, the device tree and the initrd: boot loaders reserve
    /// what they hand over. None may overlap the image, except one with the same pages as the device
    /// tree, which may share the image's last page. None with `no-map` may overlap any of the three,
    /// since the kernel reads them where [`MemBlock::mapped`] says that it may.
    ///
    /// Whatever the tree says, page 0 is reserved, which is where CPUs of a Raspberry Pi wait in the firmware's code, and
    /// so are the pages of release addresses.
    ///
    /// # Errors
    /// Where one of these rules is broken, one of the three is not inside RAM or overlaps another,
    /// or less than [`MIN_FREE`] is free.
    // Apart from the caller, which would keep the room for the work on its stack.
    #[inline(never)]
    pub fn new(
        platform: &Platform<'_>,
        image: PhysRange,
        dtb: PhysRange,
        granule: Granule,
    ) -> Result<Self, MemError> {
        // Ranges are merged before they are rounded: two that meet inside a page make it whole.
        let mut bytes = Ranges::<MAX_RANGES>::default();
        for &range in &platform.memory {
            bytes.insert(range).expect("as many as the platform has");
        }
        let ram = Ranges(bytes.0.iter().filter_map(|range| round_inward(range, granule)).collect());
        if ram.0.is_empty() {
            return Err(MemError::NoRam);
        }
        let mut map =
            Self { ram, no_map: Ranges::default(), reserved: Ranges::default(), granule, allocated: 0 };

        let items =
            [(Item::Image, Some(image)), (Item::DeviceTree, Some(dtb)), (Item::Initrd, platform.initrd)];
        let items: ArrayVec<_, 3> =
            items.into_iter().filter_map(|(item, range)| Some((item, range?))).collect();
        for (index, &(item, range)) in items.iter().enumerate() {
            if !map.ram.0.iter().any(|ram| ram.contains(&range)) {
                return Err(MemError::NotInRam { item, range });
            }
            for &(other, other_range) in &items[..index] {
                if range.overlaps(&other_range) {
                    return Err(MemError::Overlap { item, range, other, other_range });
                }
            }
            map.reserve(range);
        }
        let page_0 = PhysRange::from_size(0, granule.page_size()).expect("a page is not empty");
        map.reserve(page_0);
        for cpu in &platform.cpus {
            if let EnableMethod::SpinTable(release) = cpu.enable
                && let Some(range) = PhysRange::from_size(release.get(), size_of::<u64>() as u64)
            {
                map.reserve(range);
            }
        }
        let dtb_pages = round_outward(&dtb, granule);
        for reservation in &platform.reserved {
            let range = reservation.range;
            let covered = items.iter().find(|(_, item_range)| item_range.overlaps(&range));
            if let (true, Some(&(item, item_range))) = (reservation.no_map, covered) {
                return Err(MemError::NoMap { item, range: item_range, reservation: range });
            }
            if range.overlaps(&image) && round_outward(&range, granule) != dtb_pages {
                return Err(MemError::Reserved { image, reservation: range });
            }
            map.reserve(range);
            if reservation.no_map {
                map.no_map.insert(round_outward(&range, granule)).expect("as many as the platform has");
            }
        }

        let (ram, free) = (total(map.ram()), total(map.free()));
        if free < MIN_FREE { Err(MemError::TooSmall { ram, free }) } else { Ok(map) }
    }

    /// All RAM, merged, in ascending order.
    pub fn ram(&self) -> impl Iterator<Item = PhysRange> + Clone {
        self.ram.0.iter().copied()
    }

    /// What the linear map covers: RAM without what must not be mapped, in ascending order.
    pub fn mapped(&self) -> impl Iterator<Item = PhysRange> + Clone {
        without(&self.ram.0, &self.no_map.0)
    }

    /// What is neither reserved nor allocated, in ascending order.
    pub fn free(&self) -> impl Iterator<Item = PhysRange> + Clone {
        without(&self.ram.0, &self.reserved.0)
    }

    /// The bytes that [`MemBlock::alloc`] has given out.
    pub fn allocated(&self) -> u64 {
        self.allocated
    }

    /// Takes `size` bytes, rounded up to whole pages, at a multiple of `align` (and of the page
    /// size), inside `within` where that is given. The memory holds whatever it held.
    ///
    /// It is the highest free place that fits: low addresses stay free for devices that can't reach
    /// more, and the memory behind the image stays in one piece. `None` where there is no such place,
    /// `size` is 0, or [`MAX_RESERVED`] ranges are reserved and this would be another.
    ///
    /// # Panics
    /// Where `align` is not a power of two.
    pub fn alloc(&mut self, size: u64, align: u64, within: Option<PhysRange>) -> Option<PhysAddr> {
        assert!(align.is_power_of_two(), "alignment {align:#x} is not a power of two");
        let page = self.granule.page_size();
        let size = size.checked_next_multiple_of(page).filter(|&size| size != 0)?;
        let align = align.max(page);
        let place = self.free().filter_map(|free| {
            let free = within.map_or(Some(free), |within| free.intersection(&within))?;
            let base = free.end.get().checked_sub(size)? & !(align - 1);
            PhysRange::from_size(base, size).filter(|place| free.contains(place))
        });
        let place = place.last()?;
        self.reserved.insert(place).ok()?;
        self.allocated += size;
        Some(place.start)
    }

    fn reserve(&mut self, range: PhysRange) {
        self.reserved.insert(round_outward(&range, self.granule)).expect("room for all of `new`");
    }
}

/// The bytes in all of `ranges`, which must not overlap.
pub fn total(ranges: impl Iterator<Item = PhysRange>) -> u64 {
    ranges.map(|range| range.size()).sum()
}

/// Ranges in ascending order, with a gap between any two.
#[derive(Clone, Debug, Default)]
struct Ranges<const N: usize>(ArrayVec<PhysRange, N>);

/// There is no room for another range.
#[derive(Debug)]
struct Full;

impl<const N: usize> Ranges<N> {
    /// Adds `range`, merged with those that it overlaps or touches. Changes nothing on error.
    fn insert(&mut self, range: PhysRange) -> Result<(), Full> {
        let first = self.0.partition_point(|other| other.end < range.start);
        let after = self.0.partition_point(|other| other.start <= range.end);
        let [start, end] = match self.0.get(first..after) {
            Some([one]) => [one.start, one.end],
            Some([lowest, .., highest]) => [lowest.start, highest.end],
            _ => return self.0.try_insert(first, range).map_err(|_| Full),
        };
        self.0[first] = PhysRange { start: start.min(range.start), end: end.max(range.end) };
        self.0.drain(first + 1..after);
        Ok(())
    }
}

/// The parts of `ranges` that are outside all `holes`; both in ascending order without overlaps.
fn without(ranges: &[PhysRange], holes: &[PhysRange]) -> impl Iterator<Item = PhysRange> + Clone {
    ranges.iter().flat_map(move |range| {
        // The gap before each hole, and the one behind the last.
        let ends = holes.iter().map(|hole| hole.start).chain([range.end]);
        let starts = [range.start].into_iter().chain(holes.iter().map(|hole| hole.end));
        starts.zip(ends).filter_map(|(start, end)| PhysRange::new(start.max(range.start), end.min(range.end)))
    })
}

/// The whole pages inside `range`.
fn round_inward(range: &PhysRange, granule: Granule) -> Option<PhysRange> {
    let page = granule.page_size();
    let start = PhysAddr::try_new(range.start.get().next_multiple_of(page))?;
    PhysRange::new(start, PhysAddr::new(range.end.get() & !(page - 1)))
}

/// The pages that `range` touches. In the last page below 2^48 it ends at that page's start or where
/// it ended: no RAM is there, since a range that ends at 2^48 can't be expressed.
fn round_outward(range: &PhysRange, granule: Granule) -> PhysRange {
    let page = granule.page_size();
    let start = PhysAddr::new(range.start.get() & !(page - 1));
    let end = PhysAddr::try_new(range.end.get().next_multiple_of(page)).unwrap_or(range.end);
    PhysRange { start, end }
}
