//! `efi_mm` as the tables of firmware demand it, on the model MMU.

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use arch::tlbi::Asid;
use arch::{Granule, PhysAddr, TableFrame, VirtAddr};
use common::tables::*;
use mm::asid::EFI_ASID;
use mm::{EfiMapError, EfiMm, EfiProtError, TableAlloc};
use model::mmu::{Access, AddressSpace, Config, Kind, Machine, Outcome, Page};
use model::{GranuleType, K4, K16, K64};
use pleat_efi::mapping::{CreateMappingError, MemattrError};
use pleat_efi::{MemoryAttributes, MemoryMap, efi_memattr_apply_permissions, efi_virtmap_init};
use proptest::prelude::*;

const SPACE: AddressSpace = AddressSpace::User(EFI_ASID);

// Of a leaf (DDI 0487, D8.3.1).
const RDONLY: u64 = 1 << 7;
const PXN: u64 = 1 << 53;
const CONT: u64 = 1 << 52;
/// Valid, page, Inner Shareable, AF, nG, UXN. Not: AP[1], DBM, CONT.
const LEAF: u64 = 0b11 | 0b11 << 8 | 1 << 10 | 1 << 11 | 1 << 54;
const DEVICE: u64 = 1 << 2;

struct Tables<G: 'static>(&'static Machine<G>);

impl<G: GranuleType> TableAlloc for Tables<G> {
    fn alloc_table(&self, level: u8) -> Option<TableFrame> {
        self.0.running().alloc_table(level)
    }
}

struct World<G: GranuleType + 'static> {
    machine: &'static Machine<G>,
    efi_mm: EfiMm<'static, &'static Machine<G>>,
}

/// Each page of a region: its virtual address, and the descriptor with these bits.
fn pages<G: GranuleType>(r: &Region, bits: u64) -> impl Iterator<Item = (u64, u64)> {
    let (va, pa) = (r.va, r.pa);
    (0..r.size()).step_by(G::GRANULE.page_size() as usize).map(move |i| (va + i, (pa + i) | bits))
}

/// What a map demands without more: registers are never executed; data isn't, unless it can't be written; code may be
/// written and executed, unless it says that it mustn't.
fn demanded_by_map<G: GranuleType>(map: &[Region]) -> BTreeMap<u64, u64> {
    let bits = |r: &Region| match (r.memory_type, r.attribute & RO != 0, r.attribute & XP != 0) {
        (MMIO | 12, ..) => DEVICE | PXN,
        (_, true, true) => RDONLY | PXN,
        (_, true, false) => RDONLY,
        (CODE, false, false) => 0,
        _ => PXN,
    };
    map.iter().filter(|r| r.is_runtime()).flat_map(|r| pages::<G>(r, LEAF | bits(r))).collect()
}

/// What is left of it by the entries.
fn demanded<G: GranuleType>(firmware: &Firmware) -> BTreeMap<u64, u64> {
    let mut all = demanded_by_map::<G>(&firmware.map);
    for entry in firmware.attributes.iter().flat_map(|(_, entries)| entries) {
        let is_home = |r: &&Region| r.is_runtime() && (r.pa..r.pa + r.size()).contains(&entry.pa);
        let home = firmware.map.iter().find(is_home).unwrap();
        let bits = if entry.attribute & RO != 0 { RDONLY } else { 0 }
            | if entry.attribute & XP != 0 { PXN } else { 0 };
        for (va, _) in pages::<G>(&Region { va: home.va + (entry.pa - home.pa), ..*entry }, 0) {
            *all.get_mut(&va).unwrap() |= bits;
        }
    }
    all
}

impl<G: GranuleType + 'static> World<G> {
    fn new() -> Self {
        let machine: &'static Machine<G> = Box::leak(Box::new(Machine::new(Config::default(), 128)));
        let root = machine.cpu(0).new_root();
        // The second CPU runs the firmware meanwhile, the first something else.
        machine.cpu(0).load_ttbr0(Some(machine.cpu(0).new_root()), Asid::new(0));
        machine.cpu(1).load_ttbr0(Some(root), EFI_ASID);
        machine.watch(SPACE);
        Self { machine, efi_mm: EfiMm::new(machine, root, EFI_ASID) }
    }

    /// Does what is to make the pages these, and then finds these alone, with no violation.
    fn becomes<E: std::error::Error>(
        &self,
        wanted: &BTreeMap<u64, u64>,
        act: impl FnOnce() -> Result<(), E>,
    ) {
        let meant = |(&va, &raw)| (VirtAddr::new(va), Some(Page::from_descriptor(raw)));
        let operation = self.machine.begin(SPACE, &wanted.iter().map(meant).collect::<Vec<_>>());
        act().unwrap_or_else(|error| panic!("{error}"));
        self.machine.end(operation);
        if let Err(violations) = self.machine.check() {
            panic!("{}", violations[0]);
        }
        assert_eq!(self.leaves(), *wanted);
    }

    /// Every leaf there is: a page, not Contiguous.
    fn leaves(&self) -> BTreeMap<u64, u64> {
        let mut found = BTreeMap::new();
        let _ = self.efi_mm.walk(VirtAddr::new(0), 1 << 48, |leaf| {
            assert_eq!((leaf.level, leaf.pte.raw() & CONT), (3, 0), "{leaf:?}");
            found.insert(leaf.va.get(), leaf.pte.raw());
            ControlFlow::<()>::Continue(())
        });
        found
    }

    /// Whether the firmware may write to, and execute what is at a physical address.
    fn may(&self, firmware: &Firmware, pa: u64) -> (bool, bool) {
        let r = firmware.map.iter().find(|r| (r.pa..r.pa + r.size()).contains(&pa)).unwrap();
        let va = VirtAddr::new(r.va + (pa - r.pa));
        let may = |kind| {
            let outcomes = self.machine.cpu(1).access(va, Access { kind, privileged: true });
            outcomes == [Outcome::Done(PhysAddr::new(pa))].into()
        };
        assert!(may(Kind::Read));
        (may(Kind::Write), may(Kind::Execute))
    }
}

fn build<G: GranuleType + 'static>(firmware: &Firmware) -> World<G> {
    let world = World::<G>::new();
    let bytes = firmware.map_bytes();
    let map = MemoryMap::parse(&bytes, firmware.descriptor_size, 1).unwrap();
    let by_map = demanded_by_map::<G>(&firmware.map);
    world.becomes(&by_map, || efi_virtmap_init(&world.efi_mm, &map, &Tables(world.machine)));
    if let Some(table) = firmware.attributes_bytes() {
        let attributes = MemoryAttributes::parse(&table, map).unwrap();
        let left = demanded::<G>(firmware);
        world.becomes(&left, || efi_memattr_apply_permissions(&world.efi_mm, &attributes));
    }
    world
}

/// 64K-aligned multiples of 64 KiB: nothing is Contiguous.
#[test]
fn edk2_gets_what_its_tables_demand() {
    fn check<G: GranuleType + 'static>() {
        for firmware in [edk2_2022(), edk2_2025()] {
            let world = build::<G>(&firmware);
            for r in &firmware.attributes.as_ref().unwrap().1 {
                let may = (r.attribute & RO == 0, r.attribute & XP == 0);
                assert_eq!(world.may(&firmware, r.pa + r.size() - 4096), may, "{r:?}");
            }
            // Flash.
            assert_eq!(world.may(&firmware, 0x0400_0000), (true, false));
        }
    }
    check::<K4>();
    check::<K16>();
    check::<K64>();
}

#[test]
fn u_boot_gets_what_its_map_demands() {
    let firmware = u_boot();
    let world = build::<K4>(&firmware);
    assert_eq!(world.leaves().len(), 20);
    assert_eq!(world.may(&firmware, 0x7ff3_0000), (true, true));
    assert_eq!(world.may(&firmware, 0x7e6d_9000), (true, false));
}

/// The line by which a map is refused.
fn refusal<G: GranuleType + 'static>(regions: &[Region]) -> (CreateMappingError, World<G>) {
    let world = World::<G>::new();
    let bytes = descriptors(regions, 40);
    let map = MemoryMap::parse(&bytes, 40, 1).unwrap();
    let error = efi_virtmap_init(&world.efi_mm, &map, &Tables(world.machine)).unwrap_err();
    (error, world)
}

#[test]
fn what_is_too_small_for_the_granule_is_refused() {
    let (error, world) = refusal::<K64>(&u_boot().map);
    assert_eq!(
        error.to_string(),
        "EFI runtime region misaligned for 64K granules: 1 pages of type 6 at 0x7e6d9000 \
         (virtual 0x20009000, attribute 0x8000000000000008)"
    );
    assert_eq!(world.leaves(), BTreeMap::new());
    let (error, _) = refusal::<K16>(&u_boot().map);
    assert!(
        error.to_string().starts_with("EFI runtime region misaligned for 16K granules: 1 pages"),
        "{error}"
    );
    // Each of the three by itself is enough.
    let good = Region { va: 0x10_0000, ..region(DATA, 0x20_0000, 16, RUNTIME) };
    for bad in [
        Region { pa: good.pa + 0x1000, ..good },
        Region { va: good.va + 0x4000, ..good },
        Region { pages: 17, ..good },
        // Also where two are by the same, which is as EFI has it.
        Region { pa: good.pa + 0x1000, va: good.va + 0x1000, ..good },
        Region { va: good.va + 0x1000, pages: 17, ..good },
    ] {
        let (error, _) = refusal::<K64>(&[bad]);
        assert!(matches!(error, CreateMappingError::Misaligned(_)), "{error}");
    }
}

#[test]
fn an_entry_that_is_too_small_for_the_granule_is_refused() {
    let mut firmware = edk2_2025();
    let entry = &mut firmware.attributes.as_mut().unwrap().1[4];
    entry.pages -= 1;
    let line =
        format!("EFI memory attributes misaligned for 64K granules: 15 pages of type 5 at {:#x}", entry.pa);
    let bytes = (firmware.map_bytes(), firmware.attributes_bytes().unwrap());
    let map = MemoryMap::parse(&bytes.0, 0x30, 1).unwrap();
    let attributes = MemoryAttributes::parse(&bytes.1, map).unwrap();
    let world = World::<K64>::new();
    efi_virtmap_init(&world.efi_mm, &map, &Tables(world.machine)).unwrap();
    let error = efi_memattr_apply_permissions(&world.efi_mm, &attributes).unwrap_err();
    assert!(error.to_string().starts_with(&line), "{error}");
    // Nothing was mapped.
    let world = World::<K4>::new();
    let error = efi_memattr_apply_permissions(&world.efi_mm, &attributes).unwrap_err();
    assert!(matches!(error, MemattrError::Refused(EfiProtError::NotMapped(_))), "{error}");
}

#[test]
fn regions_that_cannot_be_mapped_are_refused() {
    let good = Region { va: 0x10_0000, ..region(DATA, 0x20_0000, 16, RUNTIME) };
    let (error, _) = refusal::<K4>(&[Region { va: 0, ..good }]);
    assert!(
        error.to_string().starts_with("EFI runtime region without a virtual address: 16 pages"),
        "{error}"
    );
    let (error, _) = refusal::<K4>(&[Region { pa: 1 << 48, ..good }]);
    assert!(error.to_string().starts_with("EFI runtime region beyond 2^48: 16 pages"), "{error}");
    for bad in [
        Region { pa: (1 << 48) - 0x1000, ..good },
        Region { va: (1 << 48) - 0x1000, ..good },
        Region { va: !0 << 16, ..good },
        Region { pages: 1 << 36, ..good },
    ] {
        let (error, _) = refusal::<K4>(&[bad]);
        assert!(matches!(error, CreateMappingError::Refused(EfiMapError::OutOfRange(_))), "{error}");
        assert!(error.to_string().ends_with("is not below 2^48"), "{error}");
    }
    // Two at one virtual address.
    let (error, world) = refusal::<K4>(&[good, Region { pa: 0x40_0000, va: good.va + 0xf000, ..good }]);
    assert_eq!(error.to_string(), "0x10f000 is mapped already in efi_mm");
    assert_eq!(world.leaves(), demanded_by_map::<K4>(&[good]));
    // More than there are tables for.
    let (error, world) =
        refusal::<K4>(&[good, Region { pa: 0x80_0000, va: 1 << 40, pages: 1 << 18, ..good }]);
    assert!(matches!(error, CreateMappingError::Refused(EfiMapError::OutOfTables(_))), "{error}");
    assert_eq!(world.leaves(), demanded_by_map::<K4>(&[good]));
}

/// Regions that invite blocks and Contiguous groups, with any attributes; the larger granules too.
fn firmware() -> impl Strategy<Value = Firmware> {
    let attribute =
        (any::<bool>(), any::<bool>()).prop_map(|(ro, xp)| if ro { RO } else { 0 } | if xp { XP } else { 0 });
    let memory_type = prop_oneof![Just(CODE), Just(DATA), Just(MMIO), Just(12), Just(CONVENTIONAL)];
    let part = (1..4_u64, attribute.clone());
    let one = (memory_type, attribute, prop::collection::vec(part, 1..5), any::<bool>());
    prop::collection::vec(one, 1..6).prop_map(|regions| {
        let (mut map, mut entries, mut pa) = (Vec::new(), Vec::new(), 0x4000_0000);
        for (memory_type, attribute, parts, runtime) in regions {
            let runtime = if runtime { RUNTIME } else { 0 };
            let (start, mut end) = (pa, pa);
            for (blocks, demand) in parts {
                if runtime != 0 && (CODE..=DATA).contains(&memory_type) {
                    entries.push(region(memory_type, end, 16 * blocks, demand | RUNTIME));
                }
                end += blocks << 16;
            }
            let r = region(memory_type, start, (end - start) >> 12, attribute | runtime);
            map.push(Region { va: start + 0x1000_0000, ..r });
            pa = end.next_multiple_of(1 << 21);
        }
        Firmware { descriptor_size: 48, map, attributes: Some((2, entries)) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_firmware_gets_what_its_tables_demand(firmware in firmware()) {
        build::<K4>(&firmware);
        build::<K16>(&firmware);
        build::<K64>(&firmware);
    }
}

#[test]
fn the_regions_of_these_tests_invite_groups() {
    let group = Granule::K4.cont_entries(3) as u64 * Granule::K4.page_size();
    let invites = |r: &&Region| r.is_runtime() && (r.pa | r.va).is_multiple_of(group) && r.size() >= group;
    assert!(edk2_2025().map.iter().filter(invites).count() >= 16);
}
