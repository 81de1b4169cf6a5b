//! The parsers on what firmware makes, on what it must not make, and on bytes of any kind.

mod common;

use common::oracle::{check, check_bytes};
use common::tables::*;
use pleat_efi::memory_attributes::{self, MemoryAttributes};
use pleat_efi::{MemoryDescriptor, MemoryMap};
use proptest::prelude::*;

#[test]
fn what_firmware_makes_is_accepted() {
    for (firmware, size, entries) in [(edk2_2022(), 0x30, 21), (edk2_2025(), 0x30, 36), (u_boot(), 0x28, 0)] {
        let (map, table) = (firmware.map_bytes(), firmware.attributes_bytes());
        assert_eq!((firmware.descriptor_size, map.len()), (size, size * firmware.map.len()));
        let map = MemoryMap::parse(&map, size, 1).unwrap();
        assert!(map.runtime().all(|region| region.virtual_start() != 0));
        assert_eq!(table.is_some(), entries != 0);
        if let Some(table) = table {
            assert_eq!(memory_attributes::table_size(&table[..16]), Ok(table.len()));
            assert_eq!(MemoryAttributes::parse(&table, map).unwrap().entries().count(), entries);
            assert_eq!(check(&firmware.map_bytes(), size, 1, &table), 2);
        }
    }
}

/// The line that refuses a map.
#[track_caller]
fn refused_map(bytes: &[u8], size: usize, version: u32, line: &str) {
    let error = MemoryMap::parse(bytes, size, version).unwrap_err();
    assert_eq!(error.to_string(), format!("EFI memory map: {line}"));
    assert_eq!(check(bytes, size, version, &[]), 0);
}

#[test]
fn bad_maps_are_refused() {
    let good = u_boot().map_bytes();
    for size in [0, 8, 32, 39, 41, 44, 4104, usize::MAX, usize::MAX - 7] {
        refused_map(&good, size, 1, &format!("a descriptor can't have {size} bytes"));
    }
    refused_map(&good, 40, 0, "descriptors of version 0 are not known");
    refused_map(&good, 40, 2, "descriptors of version 2 are not known");
    refused_map(&good[..199], 40, 1, "199 bytes are no whole descriptors of 40");
    refused_map(&good[1..], 40, 1, "199 bytes are no whole descriptors of 40");
    refused_map(&[], 40, 1, "0 bytes are no whole descriptors of 40");
    // Taken for smaller than they are, descriptors make no sense.
    assert!(MemoryMap::parse(&edk2_2022().map_bytes()[..240], 40, 1).is_err());

    let one = |memory_type, pa, va, pages, attribute| {
        descriptors(&[Region { memory_type, pa, va, pages, attribute }], 40)
    };
    let says = "(virtual 0x0, attribute 0x0)";
    let empty = one(7, 0x1000, 0, 0, 0);
    refused_map(&empty, 40, 1, &format!("a region is empty: 0 pages of type 7 at 0x1000 {says}"));
    let misaligned = one(7, 0x1800, 0, 1, 0);
    let line = format!("a region is not aligned to 4 KiB: 1 pages of type 7 at 0x1800 {says}");
    refused_map(&misaligned, 40, 1, &line);
    let top = u64::MAX - 4095;
    for (pa, pages) in [(top, 2), (0x1000, 1 << 52), (0, 1 << 52), (0, u64::MAX), (0x1000, (1 << 52) + 1)] {
        let line =
            format!("a region ends beyond the last address: {pages} pages of type 7 at {pa:#x} {says}");
        refused_map(&one(7, pa, 0, pages, 0), 40, 1, &line);
    }
    // The last page there is, and one that is virtual.
    assert_eq!(check(&one(7, top, 0, 1, 0), 40, 1, &[]), 1);
    assert_eq!(check(&one(5, 0, top, 1, RUNTIME), 40, 1, &[]), 1);
    assert_eq!(check(&one(5, 0, top, 2, RUNTIME), 40, 1, &[]), 0);
    assert_eq!(check(&one(5, 0, 0x10, 1, RUNTIME), 40, 1, &[]), 0);
    // What is not of the runtime services says nothing by its virtual address.
    assert_eq!(check(&one(5, 0, 0x10, 1, 0), 40, 1, &[]), 1);
}

#[test]
fn overlapping_regions_are_refused() {
    let line = "regions overlap: 4 pages of type 7 at 0x10000 (virtual 0x0, attribute 0x0) \
                and 2 pages of type 6 at 0x13000 (virtual 0x0, attribute 0x0)";
    let far = region(7, 0x100_0000, 1, 0);
    let (one, two) = (region(7, 0x1_0000, 4, 0), region(6, 0x1_3000, 2, 0));
    for regions in [&[one, two][..], &[one, far, two], &[far, one, two]] {
        refused_map(&descriptors(regions, 48), 48, 1, line);
    }
    // The one within the other, either way round, and the same twice.
    for (pa, pages, accepted) in
        [(0x1_0000, 4, 0), (0x1_1000, 1, 0), (0xf000, 9, 0), (0xf000, 2, 0), (0xf000, 1, 1), (0x1_4000, 1, 1)]
    {
        for regions in [[one, region(7, pa, pages, 0)], [region(7, pa, pages, 0), one]] {
            assert_eq!(check(&descriptors(&regions, 48), 48, 1, &[]), accepted, "{regions:?}");
        }
    }
}

#[test]
fn bad_attributes_are_refused() {
    let firmware = edk2_2022();
    let (map_bytes, table) = (firmware.map_bytes(), firmware.attributes_bytes().unwrap());
    let map = MemoryMap::parse(&map_bytes, 0x30, 1).unwrap();
    let refused = |bytes: &[u8], line: &str| {
        let error = MemoryAttributes::parse(bytes, map).unwrap_err();
        assert_eq!(error.to_string(), format!("EFI Memory Attributes Table: {line}"));
        assert_eq!(check(&map_bytes, 0x30, 1, bytes), 1);
    };
    let with = |index: usize, value: u32| {
        let mut bytes = table.clone();
        bytes[4 * index..4 * index + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    for version in [0, 3, u32::MAX] {
        refused(&with(0, version), &format!("version {version} is not known"));
    }
    for size in [0, 32, 44, 4104, u32::MAX] {
        refused(&with(2, size), &format!("an entry can't have {size} bytes"));
    }
    refused(&with(1, 4097), "4097 entries are too many");
    refused(&with(1, u32::MAX), "4294967295 entries are too many");
    assert_eq!(memory_attributes::table_size(&with(1, 4096)), Ok(16 + 4096 * 48));
    refused(&with(1, 22), "it ends after 1024 bytes");
    for length in [0, 3, 15, 16, 1023] {
        refused(&table[..length], &format!("it ends after {length} bytes"));
    }

    let mut home = firmware.map.iter().filter(|r| r.memory_type == CODE);
    let (home, next) = (home.next().unwrap(), home.next().unwrap());
    let entry = |memory_type, pa, pages| {
        let entries = [region(CODE, home.pa, 1, RO), region(memory_type, pa, pages, XP)];
        attributes(2, &entries, 48)
    };
    let says = |memory_type: u32, pa: u64, pages: u64| {
        format!("{pages} pages of type {memory_type} at {pa:#x} (virtual 0x0, attribute 0x4000)")
    };
    assert_eq!(check(&map_bytes, 0x30, 1, &entry(CODE, home.pa, 64)), 2);
    for (memory_type, pa, pages) in [
        (CODE, home.pa, 65),
        (CODE, home.pa - 0x1000, 2),
        (CODE, 0x1000, 1),
        (DATA, home.pa, 1),
        // Two regions of the same type, one beside the other.
        (CODE, home.pa.min(next.pa) + 0x3_f000, 2),
    ] {
        let line = format!("an entry is in no runtime region of its type: {}", says(memory_type, pa, pages));
        refused(&entry(memory_type, pa, pages), &line);
    }
    let line = format!("an entry is of neither runtime code nor data: {}", says(MMIO, 0x0400_0000, 1));
    refused(&entry(MMIO, 0x0400_0000, 1), &line);
    let line = format!("a region is not aligned to 4 KiB: {}", says(CODE, home.pa + 8, 1));
    refused(&entry(CODE, home.pa + 8, 1), &line);
    refused(&entry(CODE, home.pa, 0), &format!("a region is empty: {}", says(CODE, home.pa, 0)));
    let line = format!("a region ends beyond the last address: {}", says(CODE, home.pa, 1 << 52));
    refused(&entry(CODE, home.pa, 1 << 52), &line);
}

#[test]
fn an_entry_of_a_region_that_is_not_of_the_runtime_services_is_refused() {
    let map = descriptors(&[region(CODE, 0x1_0000, 16, 0)], 40);
    let table = attributes(1, &[region(CODE, 0x1_0000, 1, RO | RUNTIME)], 40);
    assert_eq!(check(&map, 40, 1, &table), 1);
}

#[test]
fn more_than_the_table_is_not_looked_at() {
    let firmware = edk2_2025();
    let mut table = firmware.attributes_bytes().unwrap();
    table.extend([0xff; 100]);
    assert_eq!(check(&firmware.map_bytes(), 0x30, 1, &table), 2);
}

/// Regions in a small area, so that some overlap and some entries are within.
fn regions(count: usize) -> impl Strategy<Value = Vec<Region>> {
    let pa = prop_oneof![8 => (0..64_u64).prop_map(|page| page << 12), 1 => any::<u64>()];
    let pages = prop_oneof![8 => 1..6_u64, 1 => any::<u64>(), 1 => (0..4_u64).prop_map(|n| n << 50)];
    let memory_type = prop_oneof![4 => CODE..=DATA, 1 => 0..16_u32, 1 => any::<u32>()];
    let attribute = prop_oneof![4 => Just(RUNTIME), 1 => any::<u64>()];
    let one = (memory_type, pa.clone(), pa, pages, attribute)
        .prop_map(|(memory_type, pa, va, pages, attribute)| Region { memory_type, pa, va, pages, attribute });
    prop::collection::vec(one, 0..count)
}

/// Firmware with regions apart, and entries within.
fn sound() -> impl Strategy<Value = (Vec<Region>, Vec<Region>)> {
    let one = (1..20_u64, 0..4_u64, 0..1_u64 << 20, any::<(bool, bool, u8)>());
    prop::collection::vec(one, 1..20).prop_map(|regions| {
        let (mut map, mut entries, mut pa) = (Vec::new(), Vec::new(), 0x4000_0000);
        for (pages, gap, va, (code, runtime, bits)) in regions {
            let memory_type = if code { CODE } else { DATA };
            let attribute = if runtime { RUNTIME } else { 0 };
            let r = Region { memory_type, pa, va: va << 12, pages, attribute };
            map.push(r);
            if runtime {
                let (first, attribute) = (u64::from(bits) % pages, u64::from(bits) << 12);
                entries.push(Region { pa: pa + (first << 12), pages: pages - first, attribute, va: 0, ..r });
            }
            pa += (pages + gap) << 12;
        }
        (map, entries)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn bytes_of_any_kind(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        check_bytes(&bytes);
    }

    #[test]
    fn changes_of_what_firmware_makes(
        how in any::<u8>(),
        changes in prop::collection::vec(any::<[u8; 2]>(), 0..4),
        kinds in any::<[u8; 4]>(),
    ) {
        let mut bytes = vec![how | 1, 1, 0, 0];
        for (change, kind) in changes.iter().zip(kinds) {
            // Within the first kilobyte.
            bytes.extend([change[0], change[1] % 4, change[1], kind | 2]);
        }
        check_bytes(&bytes);
    }

    #[test]
    fn regions_of_any_kind(
        map in regions(6),
        entries in regions(3),
        size in prop_oneof![4 => Just(40_usize), 4 => Just(48), 1 => 0..100_usize],
        version in prop_oneof![8 => 1..3_u32, 1 => any::<u32>()],
    ) {
        let table = attributes(version, &entries, size);
        check(&descriptors(&map, size), size, 1, &table);
    }

    #[test]
    fn sound_tables_are_accepted(
        (mut map, entries) in sound(),
        size in (5..40_usize).prop_map(|n| 8 * n),
        reverse: bool,
    ) {
        if reverse {
            map.reverse();
        }
        let table = attributes(2, &entries, size);
        prop_assert_eq!(check(&descriptors(&map, size), size, 1, &table), 2);
    }
}

/// Descriptors are values: what one says stays.
#[test]
fn fields_are_where_the_specification_puts_them() {
    let r = Region { memory_type: 5, pa: 0x1_2345_6000, va: 0x7_8000, pages: 3, attribute: RUNTIME | RO };
    let bytes = descriptors(&[r], 64);
    let found: Vec<MemoryDescriptor> = MemoryMap::parse(&bytes, 64, 1).unwrap().descriptors().collect();
    let [d] = found[..] else { panic!("{found:?}") };
    assert_eq!((d.memory_type(), d.physical_start(), d.virtual_start()), (5, 0x1_2345_6000, 0x7_8000));
    assert_eq!((d.size(), d.physical_last()), (0x3000, 0x1_2345_8fff));
    assert!(d.is_runtime() && d.is_read_only() && !d.is_execute_protected());
}
