use arch::PhysAddr;
use proptest::prelude::*;
use r_efi::system::{ACPI_RECLAIM_MEMORY, MEMORY_MAPPED_IO, RESERVED_MEMORY_TYPE, RUNTIME_SERVICES_DATA};

use super::*;

const VIRT: &[u8] = include_bytes!("../../tests/data/virt-gic3-el2.dtb");
const NUMA: &[u8] = include_bytes!("../../tests/data/virt-numa.dtb");
const PI: &[u8] = include_bytes!("../../tests/data/rpi4-model.dtb");
const MIB: u64 = 1 << 20;

/// A memory map with descriptors of a size: type, first byte, size in bytes.
fn map(descriptor_size: usize, entries: &[(u32, u64, u64)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &(kind, start, size) in entries {
        let at = bytes.len();
        // The padding holds what it holds.
        for word in [u64::from(kind) | 0xdead_beef << 32, start, 0x5555, size / EFI_PAGE, 0xf] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.resize(at + descriptor_size, 0xee);
    }
    bytes
}

fn range(start: u64, size: u64) -> PhysRange {
    PhysRange::from_size(start, size).unwrap()
}

fn usable(descriptor_size: usize, entries: &[(u32, u64, u64)]) -> Vec<PhysRange> {
    MemoryMap::new(&map(descriptor_size, entries), descriptor_size, 1).unwrap().usable().collect()
}

/// The copy of a tree for a machine whose RAM is 64 MiB, with runtime services in the middle.
fn copy_of(tree: &[u8], bootargs: &str, initrd: Option<PhysRange>) -> Result<Vec<u8>, HandoverError> {
    let entries = [
        (CONVENTIONAL_MEMORY, 0x4000_0000, 32 * MIB),
        (RUNTIME_SERVICES_DATA, 0x4200_0000, MIB),
        (CONVENTIONAL_MEMORY, 0x4210_0000, 31 * MIB),
    ];
    let bytes = map(48, &entries);
    let handover =
        Handover { bootargs, initrd, memory: MemoryMap::new(&bytes, 48, 1).unwrap(), tables: None };
    let mut copy = vec![0xa5; room_for_copy(tree.len(), bootargs.len(), 0)];
    let size = write(tree, &handover, &mut copy)?;
    copy.truncate(size);
    Ok(copy)
}

#[test]
fn only_what_is_usable_after_boot_services_is_ram() {
    let entries = [
        (BOOT_SERVICES_DATA, 0x4010_0000, MIB),
        (RUNTIME_SERVICES_DATA, 0x4030_0000, MIB),
        (CONVENTIONAL_MEMORY, 0x4000_0000, MIB),
        (RESERVED_MEMORY_TYPE, 0x4050_0000, MIB),
        (LOADER_DATA, 0x4040_0000, MIB),
        (MEMORY_MAPPED_IO, 0x0400_0000, MIB),
        (ACPI_RECLAIM_MEMORY, 0x4060_0000, MIB),
        (LOADER_CODE, 0x4020_0000, MIB),
        (BOOT_SERVICES_CODE, 0x1_0000_0000, 4096),
    ];
    for descriptor_size in [40, 48, 56, 41] {
        let expected = [range(0x4000_0000, 3 * MIB), range(0x4040_0000, MIB), range(0x1_0000_0000, 4096)];
        assert_eq!(usable(descriptor_size, &entries), expected, "descriptors of {descriptor_size} bytes");
    }
}

/// RAM that can't be cached, and what firmware wants left to others.
#[test]
fn memory_of_other_kinds_is_left_alone() {
    let mut bytes = map(
        40,
        &[
            (CONVENTIONAL_MEMORY, 0, MIB),
            (CONVENTIONAL_MEMORY, MIB, MIB),
            (CONVENTIONAL_MEMORY, 2 * MIB, MIB),
        ],
    );
    // EFI_MEMORY_UC alone; EFI_MEMORY_WB and EFI_MEMORY_SP.
    for (descriptor, attribute) in [(1, 1_u64), (2, 0x4_0008)] {
        bytes[40 * descriptor + 32..][..8].copy_from_slice(&attribute.to_le_bytes());
    }
    let found: Vec<_> = MemoryMap::new(&bytes, 40, 1).unwrap().usable().collect();
    assert_eq!(found, [range(0, MIB)]);
}

#[test]
fn a_map_that_is_none_is_no_ram() {
    for size in [0, 1, 39] {
        assert_eq!(MemoryMap::new(&[0; 96], size, 1).unwrap_err(), HandoverError::DescriptorSize(size));
    }
    let beyond = [
        (CONVENTIONAL_MEMORY, u64::MAX - 0xfff, MIB),
        (CONVENTIONAL_MEMORY, 0, u64::MAX),
        (CONVENTIONAL_MEMORY, 0, 0),
    ];
    assert_eq!(usable(48, &beyond), []);
    // The last descriptor is cut off.
    let bytes = map(48, &[(LOADER_DATA, 0, MIB), (LOADER_DATA, MIB, MIB)]);
    let cut = MemoryMap::new(&bytes[..95], 48, 1).unwrap();
    assert_eq!(cut.usable().collect::<Vec<_>>(), [range(0, MIB)]);
}

#[test]
fn the_copy_has_what_firmware_says() {
    let initrd = range(0x4300_0000, 12345);
    for tree in [VIRT, NUMA] {
        let before = dt::parse(tree).unwrap();
        let copy = copy_of(tree, "selftest=mm.* loglevel=debug", Some(initrd)).unwrap();
        let after = dt::parse(&copy).unwrap();
        assert_eq!(after.memory.as_slice(), [range(0x4000_0000, 32 * MIB), range(0x4210_0000, 31 * MIB)]);
        assert_eq!(after.bootargs, "selftest=mm.* loglevel=debug");
        assert_eq!(after.initrd, Some(initrd));
        // And what it has not is as it was.
        assert_eq!(after.model, before.model);
        assert_eq!((after.cpus, after.gic), (before.cpus, before.gic));
        assert_eq!((after.console, after.psci), (before.console, before.psci));
    }
}

#[test]
fn without_load_options_the_trees_own_bootargs_stay() {
    let once = copy_of(VIRT, "a=1 b", None).unwrap();
    assert_eq!(dt::parse(&copy_of(&once, "", None).unwrap()).unwrap().bootargs, "a=1 b");
    let again = copy_of(&once, "much longer than what was there before", None).unwrap();
    assert_eq!(dt::parse(&again).unwrap().bootargs, "much longer than what was there before");
    let shorter = copy_of(&again, "c", None).unwrap();
    assert_eq!(dt::parse(&shorter).unwrap().bootargs, "c");
}

#[test]
fn sizes_of_one_cell_are_written_as_such() {
    let copy = copy_of(PI, "", None).unwrap();
    let memory = dt::parse(&copy).unwrap().memory;
    assert_eq!(memory.as_slice(), [range(0x4000_0000, 32 * MIB), range(0x4210_0000, 31 * MIB)]);
}

/// What a firmware with everything leaves.
const TABLES: EfiTables<'static> = EfiTables {
    set_virtual_address_map: Some(0),
    memory_map: &[1; 96],
    descriptor_size: 48,
    descriptor_version: 1,
    memory_attributes: Some(&[2; 64]),
    rt_properties: Some(&[3; 8]),
    runtime_services: &[4; 136],
};

/// The copy of a tree with tables, in a buffer that was sized for them.
fn with_tables(tree: &[u8], tables: EfiTables<'_>) -> Vec<u8> {
    let bytes = map(40, &[(CONVENTIONAL_MEMORY, 0x4000_0000, MIB)]);
    let memory = MemoryMap::new(&bytes, 40, 1).unwrap();
    let handover = Handover { bootargs: "a b", initrd: None, memory, tables: Some(tables) };
    let parts = [
        Some(tables.memory_map),
        tables.memory_attributes,
        tables.rt_properties,
        Some(tables.runtime_services),
    ];
    let room = parts.into_iter().flatten().map(<[u8]>::len).sum();
    let mut copy = vec![0xa5; room_for_copy(tree.len(), 3, room)];
    let size = write(tree, &handover, &mut copy).unwrap();
    copy.truncate(size);
    copy
}

#[test]
fn tables_go_from_the_stub_to_the_kernel() {
    let nothing = EfiTables {
        set_virtual_address_map: None,
        memory_attributes: None,
        rt_properties: None,
        memory_map: &[],
        runtime_services: &[],
        ..TABLES
    };
    for tables in [TABLES, nothing, EfiTables { set_virtual_address_map: Some(1 << 63 | 3), ..TABLES }] {
        for tree in [VIRT, NUMA, PI] {
            assert_eq!(dt::parse(&with_tables(tree, tables)).unwrap().efi, Some(tables));
        }
    }
    assert_eq!(dt::parse(VIRT).unwrap().efi, None, "no firmware");
}

#[test]
fn tables_that_are_not_whole_are_refused() {
    let tree = with_tables(VIRT, TABLES);
    for property in ["mmap-desc-size", "mmap-desc-ver", "runtime-services"] {
        let mut tree = tree.clone();
        let name = format!("pleat,uefi-{property}\0");
        let at = tree.windows(name.len()).position(|bytes| bytes == name.as_bytes()).unwrap();
        tree[at] = b'x';
        let error = dt::parse(&tree).unwrap_err();
        assert!(
            matches!(error, DtError::Property { node: "/chosen", property: found } if name.starts_with(found))
        );
    }
}

#[test]
fn what_cannot_be_written_is_refused() {
    let pieces: Vec<_> =
        (0..=MAX_RANGES as u64).map(|i| (CONVENTIONAL_MEMORY, i * 2 * EFI_PAGE, EFI_PAGE)).collect();
    let bytes = map(40, &pieces);
    let memory = MemoryMap::new(&bytes, 40, 1).unwrap();
    let mut copy = vec![0; 2 << 20];
    let handover = Handover { bootargs: "", initrd: None, memory, tables: None };
    assert_eq!(write(VIRT, &handover, &mut copy), Err(HandoverError::TooManyRanges));
    // Sizes of one cell, and a range of 4 GiB.
    let large = map(40, &[(CONVENTIONAL_MEMORY, 0, 1 << 32)]);
    let handover = Handover { memory: MemoryMap::new(&large, 40, 1).unwrap(), ..handover };
    assert_eq!(write(PI, &handover, &mut copy), Err(HandoverError::Cells));
    let fits = MemoryMap::new(&bytes[40..], 40, 1).unwrap();
    let handover = Handover { memory: fits, ..handover };
    write(VIRT, &handover, &mut copy).unwrap();
    assert_eq!(write(VIRT, &handover, &mut copy[..VIRT.len()]), Err(HandoverError::NoRoom));
    assert_eq!(write(VIRT, &handover, &mut copy[..100]), Err(HandoverError::NoRoom));
    assert!(matches!(write(&[0; 64], &handover, &mut copy), Err(HandoverError::Tree(_))));
    // A strings block whose last string, which nobody uses, has no end.
    let mut tree = VIRT.to_vec();
    let [strings, size] =
        [12, 32].map(|at| u32::from_be_bytes(tree[at..at + 4].try_into().unwrap()) as usize);
    tree.truncate(strings + size);
    tree.push(b'x');
    let total = tree.len();
    for (at, value) in [(4, total), (32, size + 1)] {
        tree[at..at + 4].copy_from_slice(&(value as u32).to_be_bytes());
    }
    assert_eq!(write(&tree, &handover, &mut copy), Err(HandoverError::Layout));
    // Without the nodes that are written to.
    let without = |name: &str| {
        let mut tree = VIRT.to_vec();
        for at in 0..tree.len() - name.len() {
            if tree[at..].starts_with(name.as_bytes()) {
                tree[at] = b'x';
            }
        }
        tree
    };
    assert_eq!(write(&without("memory"), &handover, &mut copy), Err(HandoverError::NoNode("/memory")));
    assert_eq!(write(&without("chosen"), &handover, &mut copy), Err(HandoverError::NoNode("/chosen")));
}

proptest! {
    /// Any memory map gives ranges in ascending order, with the very bytes of the pieces.
    #[test]
    fn ranges_are_the_union_of_the_pieces(
        entries in proptest::collection::vec((0_u32..10, 0_u64..64, 0_u64..9), 0..40)
    ) {
        let entries: Vec<_> =
            entries.into_iter().map(|(kind, start, pages)| (kind, start * EFI_PAGE, pages * EFI_PAGE)).collect();
        let ranges = usable(48, &entries);
        prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
        for page in (0..80).map(|page| PhysAddr::new(page * EFI_PAGE)) {
            let free = entries.iter().any(|&(kind, start, size)| {
                matches!(kind, 1..=4 | 7) && (start..start + size).contains(&page.get())
            });
            prop_assert_eq!(ranges.iter().any(|range| range.holds(page)), free);
        }
    }

    /// Tables of any size fit into the buffer that is sized for them.
    #[test]
    fn tables_of_any_size_fit(map in 0_usize..9000, attributes in proptest::option::of(0_usize..9000)) {
        let bytes = [7; 9000];
        let tables = EfiTables {
            memory_map: &bytes[..map],
            memory_attributes: attributes.map(|size| &bytes[..size]),
            ..TABLES
        };
        let copy = with_tables(VIRT, tables);
        prop_assert_eq!(dt::parse(&copy).unwrap().efi, Some(tables));
    }

    /// A broken tree is refused or copied, without a panic.
    #[test]
    fn no_tree_makes_it_panic(at in 0_usize..2000, value: u8, bootargs in "[a-z ]{0,40}") {
        let mut tree = VIRT.to_vec();
        tree[at] = value;
        let _ = copy_of(&tree, &bootargs, None);
    }
}
