use proptest::prelude::*;

use super::*;
use crate::platform::{Cpu, Gic, Reservation};

const K: u64 = 1 << 10;
const M: u64 = 1 << 20;

fn range(start: u64, end: u64) -> PhysRange {
    PhysRange::new(PhysAddr::new(start), PhysAddr::new(end)).unwrap()
}

/// A platform with nothing but memory.
fn platform(memory: &[(u64, u64)], reserved: &[(u64, u64, bool)]) -> Platform<'static> {
    Platform {
        model: "",
        memory: memory.iter().map(|&(start, end)| range(start, end)).collect(),
        reserved: reserved
            .iter()
            .map(|&(start, end, no_map)| Reservation { range: range(start, end), no_map })
            .collect(),
        bootargs: "",
        initrd: None,
        rng_seed: &[],
        efi: None,
        cpus: ArrayVec::new(),
        cpus_described: 0,
        psci: None,
        gic: Gic::V2 { distributor: range(1, 2), cpu_interface: range(2, 3) },
        console: None,
        spare_console: None,
        timer_intid: 27,
    }
}

const IMAGE: (u64, u64) = (0x4020_0000, 0x4028_0800);
const DTB: (u64, u64) = (0x4400_0008, 0x4400_2010);

/// 1 GiB from 1 GiB on, with an image and a device tree.
fn new(platform: &Platform<'_>) -> Result<MemBlock, MemError> {
    MemBlock::new(platform, range(IMAGE.0, IMAGE.1), range(DTB.0, DTB.1), Granule::K4)
}

fn gib() -> Platform<'static> {
    platform(&[(0x4000_0000, 0x8000_0000)], &[])
}

/// A Raspberry Pi with 8 GiB whose tree reserves nothing.
#[test]
fn page_0_and_spin_tables_are_reserved() {
    let above = 4 * K * M;
    let mut platform = platform(
        &[(0, 0x3b40_0000), (0x4000_0000, 0xfc00_0000), (above, 2 * above), (2 * above, 9 * K * M)],
        &[],
    );
    let cpu = |mpidr, release| Cpu { mpidr, enable: EnableMethod::SpinTable(PhysAddr::new(release)) };
    platform.cpus.extend([cpu(0, 0xd8), cpu(1, 0x3000_0ff8), cpu(2, 0xa000_0000)]);
    let map =
        MemBlock::new(&platform, range(0x20_0000, 0x30_0000), range(0x2eff_0000, 0x2eff_a000), Granule::K4);
    let map = map.unwrap();
    assert_eq!(
        map.ram().collect::<Vec<_>>(),
        [range(0, 0x3b40_0000), range(0x4000_0000, 0xfc00_0000), range(above, 9 * K * M)]
    );
    assert_eq!(map.mapped().collect::<Vec<_>>(), map.ram().collect::<Vec<_>>());
    assert_eq!(
        map.free().collect::<Vec<_>>(),
        [
            range(0x1000, 0x20_0000),
            range(0x30_0000, 0x2eff_0000),
            range(0x2eff_a000, 0x3000_0000),
            range(0x3000_1000, 0x3b40_0000),
            range(0x4000_0000, 0xa000_0000),
            range(0xa000_1000, 0xfc00_0000),
            range(above, 9 * K * M),
        ]
    );
}

#[test]
fn reservations_are_rounded_outward_and_ram_inward() {
    let mut platform = platform(&[(0x3fff_f800, 0x7fff_f900)], &[(0x5000_0fff, 0x5000_1001, true)]);
    platform.initrd = Some(range(0x4800_0000, 0x4800_0001));
    let map = new(&platform).unwrap();
    assert_eq!(map.ram().collect::<Vec<_>>(), [range(0x4000_0000, 0x7fff_f000)]);
    assert_eq!(
        map.mapped().collect::<Vec<_>>(),
        [range(0x4000_0000, 0x5000_0000), range(0x5000_2000, 0x7fff_f000)]
    );
    assert_eq!(
        map.free().collect::<Vec<_>>(),
        [
            range(0x4000_0000, 0x4020_0000),
            range(0x4028_1000, 0x4400_0000),
            range(0x4400_3000, 0x4800_0000),
            range(0x4800_1000, 0x5000_0000),
            range(0x5000_2000, 0x7fff_f000),
        ]
    );
}

/// As on a Raspberry Pi 4 with 8 GiB.
#[test]
fn ranges_that_touch_or_overlap_are_one() {
    let memory = [
        (0x1_8000_0000, 0x2_0000_0000),
        (0, 0x3b40_0000),
        (0x4000_0000, 0xfc00_0000),
        (0x1_0000_0000, 0x1_8000_0000),
        (0x8000_0000, 0xa000_0000),
    ];
    let map = new(&platform(&memory, &[(0, 0x1000, false)])).unwrap();
    assert_eq!(
        map.ram().collect::<Vec<_>>(),
        [range(0, 0x3b40_0000), range(0x4000_0000, 0xfc00_0000), range(0x1_0000_0000, 0x2_0000_0000)]
    );
    assert_eq!(map.free().next(), Some(range(0x1000, 0x3b40_0000)));
    assert_eq!(map.mapped().next(), Some(range(0, 0x3b40_0000)));

    // A page of which each range has a part.
    let map = new(&platform(&[(0x4000_0000, 0x5000_0800), (0x5000_0800, 0x6000_0000)], &[])).unwrap();
    assert_eq!(map.ram().collect::<Vec<_>>(), [range(0x4000_0000, 0x6000_0000)]);
}

/// The error for `platform`, which must be printed as one line.
fn refused(platform: &Platform<'_>) -> MemError {
    let error = new(platform).unwrap_err();
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

#[test]
fn too_little_ram_is_refused() {
    assert_eq!(refused(&platform(&[], &[])), MemError::NoRam);
    assert_eq!(refused(&platform(&[(0x4000_0800, 0x4000_1800)], &[])), MemError::NoRam);

    // Image and device tree take 129 and 3 pages.
    let taken = 132 * 4 * K;
    let dtb = range(0x4100_0000, 0x4100_3000);
    let image = range(IMAGE.0, IMAGE.1);
    let map =
        |size| MemBlock::new(&platform(&[(0x4000_0000, 0x4000_0000 + size)], &[]), image, dtb, Granule::K4);
    assert_eq!(total(map(MIN_FREE + taken).unwrap().free()), MIN_FREE);
    let error = map(MIN_FREE + taken - 4 * K).unwrap_err();
    assert_eq!(error, MemError::TooSmall { ram: MIN_FREE + taken - 4 * K, free: MIN_FREE - 4 * K });
    assert_eq!(error.to_string(), "too small: 32764 KiB of 33292 KiB RAM are free, and 32768 KiB are needed");
    // Reserved memory is not free.
    let reserved = [(0x4100_0000, 0x4400_0000, false), (0x4500_0000, 0x8000_0000, true)];
    assert_eq!(
        refused(&platform(&[(0x4000_0000, 0x8000_0000)], &reserved)),
        MemError::TooSmall { ram: 1 << 30, free: 32 * M - taken }
    );
}

#[test]
fn what_the_boot_loader_loaded_must_be_in_ram() {
    let not_in_ram = |platform: &Platform<'_>| match refused(platform) {
        MemError::NotInRam { item, .. } => item,
        error => panic!("{error}"),
    };
    // The image ends behind the RAM, or begins before it, or has a hole.
    assert_eq!(not_in_ram(&platform(&[(0x4000_0000, 0x4028_0000)], &[])), Item::Image);
    assert_eq!(not_in_ram(&platform(&[(0x4020_1000, 0x8000_0000)], &[])), Item::Image);
    let hole = [(0x4000_0000, 0x4022_0000), (0x4022_1000, 0x8000_0000)];
    assert_eq!(not_in_ram(&platform(&hole, &[])), Item::Image);
    // Its last page is not whole.
    assert_eq!(not_in_ram(&platform(&[(0x4000_0000, 0x4028_0900)], &[])), Item::Image);
    assert_eq!(not_in_ram(&platform(&[(0x4000_0000, 0x4400_0000)], &[])), Item::DeviceTree);
    let mut platform = gib();
    platform.initrd = Some(range(0x7fff_0000, 0x8000_0001));
    assert_eq!(not_in_ram(&platform), Item::Initrd);
    platform.initrd = Some(range(0x7fff_0000, 0x8000_0000));
    assert!(new(&platform).is_ok());
}

#[test]
fn what_the_boot_loader_loaded_must_not_overlap() {
    let overlap = |platform: &Platform<'_>, image, dtb| match MemBlock::new(platform, image, dtb, Granule::K4)
    {
        Err(MemError::Overlap { item, other, .. }) => Some((item, other)),
        Err(error) => panic!("{error}"),
        Ok(_) => None,
    };
    let mut platform = gib();
    let (image, dtb) = (range(IMAGE.0, IMAGE.1), range(DTB.0, DTB.1));
    let inside = range(IMAGE.1 - 1, IMAGE.1 + 8);
    assert_eq!(overlap(&platform, image, inside), Some((Item::DeviceTree, Item::Image)));
    // In the image's last page, but behind it.
    assert_eq!(overlap(&platform, image, range(IMAGE.1, IMAGE.1 + 8)), None);
    platform.initrd = Some(range(IMAGE.0 - 1, IMAGE.0 + 1));
    assert_eq!(overlap(&platform, image, dtb), Some((Item::Initrd, Item::Image)));
    platform.initrd = Some(range(DTB.1 - 1, DTB.1 + M));
    assert_eq!(overlap(&platform, image, dtb), Some((Item::Initrd, Item::DeviceTree)));
    platform.initrd = Some(range(DTB.1, DTB.1 + M));
    assert_eq!(overlap(&platform, image, dtb), None);
}

#[test]
fn reservations_may_cover_what_was_loaded_but_not_the_image() {
    let memory = [(0x4000_0000, 0x8000_0000)];
    for (start, end) in [(IMAGE.0, IMAGE.0 + 1), (IMAGE.1 - 1, IMAGE.1 + M), (0x4000_0000, 0x8000_0000)] {
        let reservation = range(start, end);
        let image = range(IMAGE.0, IMAGE.1);
        assert_eq!(
            refused(&platform(&memory, &[(start, end, false)])),
            MemError::Reserved { image, reservation }
        );
        let no_map = refused(&platform(&memory, &[(start, end, true)]));
        assert_eq!(no_map, MemError::NoMap { item: Item::Image, range: image, reservation });
    }
    // Of the device tree, exactly or by pages, or with its surroundings; and of the initrd.
    for (start, end) in [DTB, (0x4400_0000, 0x4400_3000), (0x4300_0000, 0x4500_0000)] {
        let mut platform = platform(&memory, &[(start, end, false)]);
        platform.initrd = Some(range(0x4480_0000, 0x4600_0000));
        assert!(new(&platform).is_ok());
    }
    let no_map = refused(&platform(&memory, &[(DTB.0 - 8, DTB.0 + 8, true)]));
    assert!(matches!(no_map, MemError::NoMap { item: Item::DeviceTree, .. }));
    let mut platform = platform(&memory, &[(0x4480_0000, 0x4480_1000, true)]);
    platform.initrd = Some(range(0x4480_0fff, 0x4600_0000));
    assert!(matches!(refused(&platform), MemError::NoMap { item: Item::Initrd, .. }));
}

/// A boot loader that reserves the device tree's pages, the first of which has the image's end.
#[test]
fn the_device_trees_own_reservation_may_share_the_images_last_page() {
    let (image, dtb) = (range(IMAGE.0, IMAGE.1), range(IMAGE.1, IMAGE.1 + 0x2000));
    let memory = [(0x4000_0000, 0x8000_0000)];
    let pages = (IMAGE.1 & !0xfff, (IMAGE.1 + 0x2000).next_multiple_of(0x1000));
    let new = |end| MemBlock::new(&platform(&memory, &[(pages.0, end, false)]), image, dtb, Granule::K4);
    assert!(new(pages.1).is_ok());
    assert!(matches!(new(pages.1 + 1), Err(MemError::Reserved { .. })));
}

#[test]
fn reservations_outside_ram_change_nothing() {
    let top = (1 << 48) - 1;
    let reserved = [(0, 0x1000, false), (0x3fff_ffff, 0x4000_0000, true), (top - 1, top, true)];
    let (with, without) = (platform(&[(0x4000_0000, 0x8000_0000)], &reserved), gib());
    let [with, without] = [with, without].map(|platform| new(&platform).unwrap());
    assert!(with.free().eq(without.free()) && with.mapped().eq(without.mapped()));

    // RAM up to the last address that can be said loses its last page, which is not whole.
    let map = new(&platform(&[(0x4000_0000, top)], &[(top - 1, top, true)])).unwrap();
    assert_eq!(map.ram().last(), Some(range(0x4000_0000, top & !0xfff)));
    assert_eq!(map.mapped().last(), map.ram().last());
}

#[test]
fn as_many_ranges_as_a_platform_may_have_fit() {
    let memory: Vec<_> = (0..MAX_RANGES as u64)
        .map(|index| (0x4000_0000 + index * 256 * M, 0x4000_0000 + index * 256 * M + 128 * M))
        .collect();
    let reserved: Vec<_> = (0..MAX_RANGES as u64)
        .map(|index| (0x4600_0000 + index * 8 * K, 0x4600_1000 + index * 8 * K, true))
        .collect();
    let mut platform = platform(&memory, &reserved);
    platform.initrd = Some(range(0x4700_0000, 0x4710_0000));
    let mut map = new(&platform).unwrap();
    assert_eq!(map.ram().count(), MAX_RANGES);
    assert_eq!(map.mapped().count(), 2 * MAX_RANGES);

    // Every allocation below leaves a gap, so each takes a range until none is left.
    let mut given = 0;
    for index in 0.. {
        let page = 0x4000_0000 + 256 * M + index * 8 * K;
        let before = map.free().collect::<Vec<_>>();
        if map.alloc(4 * K, 4 * K, Some(range(page, page + 4 * K))).is_none() {
            assert!(map.free().eq(before));
            break;
        }
        given += 1;
    }
    // Beside these: Image, device tree, initrd, page 0.
    assert_eq!(given, MAX_RESERVED - MAX_RANGES - 4);
    assert_eq!(map.allocated(), given as u64 * 4 * K);
}

#[test]
fn allocation_is_from_the_top() {
    let mut map = new(&gib()).unwrap();
    assert_eq!(map.alloc(1, 1, None), Some(PhysAddr::new(0x7fff_f000)));
    assert_eq!(map.alloc(4 * K, 2 * M, None), Some(PhysAddr::new(0x7fe0_0000)));
    // The gap that the alignment left is used.
    assert_eq!(map.alloc(8 * K, 4 * K, None), Some(PhysAddr::new(0x7fff_d000)));
    let low = range(0x4000_0000, 0x4020_0000);
    assert_eq!(map.alloc(M, 4 * K, Some(low)), Some(PhysAddr::new(0x4010_0000)));
    assert_eq!(map.alloc(M + 1, 4 * K, Some(low)), None);
    assert_eq!(map.allocated(), M + 16 * K);
    assert_eq!(map.alloc(0, 4 * K, None), None);
    assert_eq!(map.alloc(u64::MAX, 4 * K, None), None);
    assert_eq!(map.alloc(!0xfff, 1 << 63, None), None);
}

#[test]
#[should_panic(expected = "not a power of two")]
fn alignments_are_powers_of_two() {
    new(&gib()).unwrap().alloc(4 * K, 3, None);
}

// The map against a plain array with a flag for every page, on a machine with few and large pages:
// offsets are in quarters of a 64 KiB page, so that most borders are inside one.
const QUARTER: u64 = 16 * K;
const PAGE: u64 = 64 * K;
const PAGES: usize = 2048;
const BASE: u64 = 0x4000_0000;

fn quarters(start: u32, len: u32) -> (u64, u64) {
    let start = BASE + u64::from(start) * QUARTER;
    (start, start + u64::from(len) * QUARTER)
}

fn any_range(longest: u32) -> impl Strategy<Value = (u64, u64)> {
    (0..PAGES as u32 * 4, 1..longest)
        .prop_map(move |(start, len)| quarters(start, len.min(PAGES as u32 * 4 - start)))
}

/// The numbers of the pages for which `which` holds of all or any of its quarters.
fn pages(which: impl Fn(u64) -> bool, all: bool) -> Vec<bool> {
    (0..PAGES as u64)
        .map(|page| {
            let mut quarters = (0..4).map(|quarter| which(BASE + page * PAGE + quarter * QUARTER));
            if all { quarters.all(|in_it| in_it) } else { quarters.any(|in_it| in_it) }
        })
        .collect()
}

/// The same of ranges, which must be sorted, whole pages, and apart.
fn bitmap(ranges: impl Iterator<Item = PhysRange>) -> Vec<bool> {
    let ranges: Vec<_> = ranges.collect();
    assert!(ranges.is_sorted_by(|a, b| a.end < b.start), "{ranges:?}");
    assert!(ranges.iter().all(|range| range.start.is_aligned(PAGE) && range.end.is_aligned(PAGE)));
    pages(|at| ranges.iter().any(|range| (range.start.get()..range.end.get()).contains(&at)), true)
}

fn within_any(ranges: &[(u64, u64)], at: u64) -> bool {
    ranges.iter().any(|&(start, end)| (start..end).contains(&at))
}

proptest! {
    #[test]
    fn agrees_with_a_bitmap(
        memory in prop::collection::vec(any_range(4000), 0..12),
        reserved in prop::collection::vec((any_range(100), any::<bool>()), 0..12)
            .prop_map(|list| list.into_iter().map(|((start, end), no_map)| (start, end, no_map)).collect::<Vec<_>>()),
        allocations in prop::collection::vec(
            (1u64..40 * PAGE, 0u32..24, prop::option::of(any_range(4000))), 0..20),
    ) {
        // The image and the device tree are in RAM that nothing else touches.
        let own = (BASE + 0x4000_0000, BASE + 0x4000_0000 + 64 * M);
        let image = range(own.0, own.0 + M);
        let dtb = range(own.0 + 2 * M, own.0 + 3 * M);
        let here = range(BASE, BASE + PAGES as u64 * PAGE);
        let only_here = |ranges: &mut dyn Iterator<Item = PhysRange>| {
            ranges.filter(|range| here.contains(range)).collect::<Vec<_>>().into_iter()
        };

        let mut described = memory.clone();
        described.push(own);
        let mut map =
            MemBlock::new(&platform(&described, &reserved), image, dtb, Granule::K64).unwrap();

        let ram = pages(|at| within_any(&memory, at), true);
        let all_reserved: Vec<_> = reserved.iter().map(|&(start, end, _)| (start, end)).collect();
        let no_map: Vec<_> =
            reserved.iter().filter(|entry| entry.2).map(|&(start, end, _)| (start, end)).collect();
        let touched = |ranges: &[(u64, u64)]| pages(|at| within_any(ranges, at), false);
        let minus = |ram: &[bool], holes: &[bool]| -> Vec<bool> {
            ram.iter().zip(holes).map(|(&ram, &hole)| ram && !hole).collect()
        };
        let mut free = minus(&ram, &touched(&all_reserved));
        prop_assert_eq!(&bitmap(only_here(&mut map.ram())), &ram);
        prop_assert_eq!(&bitmap(only_here(&mut map.mapped())), &minus(&ram, &touched(&no_map)));
        prop_assert_eq!(&bitmap(only_here(&mut map.free())), &free);

        let mut sum = 0;
        for (size, align, within) in allocations {
            let within = within.map_or(here, |(start, end)| range(start, end));
            let (align, pages) = (1u64 << align, size.div_ceil(PAGE) as usize);
            // The reference: the highest page number that would do.
            let fits = |&first: &usize| {
                let start = BASE + first as u64 * PAGE;
                first + pages <= PAGES
                    && start.is_multiple_of(align)
                    && within.contains(&range(start, start + pages as u64 * PAGE))
                    && free[first..first + pages].iter().all(|&free| free)
            };
            let expected = (0..PAGES).rev().find(fits);
            let got = map.alloc(size, align, Some(within));
            prop_assert_eq!(got.map(PhysAddr::get), expected.map(|first| BASE + first as u64 * PAGE));
            if let Some(first) = expected {
                free[first..first + pages].fill(false);
                sum += pages as u64 * PAGE;
            }
            prop_assert_eq!(&bitmap(only_here(&mut map.free())), &free);
        }
        prop_assert_eq!(map.allocated(), sum);
        prop_assert_eq!(bitmap(only_here(&mut map.ram())), ram);
    }

    #[test]
    fn the_order_of_the_input_does_not_matter(
        (memory, shuffled) in prop::collection::vec(any_range(1000), 1..20)
            .prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
        (reserved, mixed) in prop::collection::vec(any_range(100), 1..20)
            .prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
    ) {
        let own = (BASE + 0x4000_0000, BASE + 0x4000_0000 + 64 * M);
        let map = |memory: &[(u64, u64)], reserved: &[(u64, u64)]| {
            let memory: Vec<_> = memory.iter().copied().chain([own]).collect();
            let reserved: Vec<_> = reserved.iter().map(|&(start, end)| (start, end, start % 3 == 0)).collect();
            let (image, dtb) = (range(own.0, own.0 + M), range(own.0 + 2 * M, own.0 + 3 * M));
            MemBlock::new(&platform(&memory, &reserved), image, dtb, Granule::K4).unwrap()
        };
        let (one, other) = (map(&memory, &reserved), map(&shuffled, &mixed));
        prop_assert!(one.ram().eq(other.ram()));
        prop_assert!(one.mapped().eq(other.mapped()));
        prop_assert!(one.free().eq(other.free()));
    }
}
