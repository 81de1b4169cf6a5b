//! The page-table dump against tables of the recorder: every byte of its text, and the ranges against a plain list of
//! leaves that the recorder reads by itself.

mod common;

use arch::{MemoryType, PhysAddr, PteFlags, PteValue, TableFrame, VirtAddr};
use model::{GranuleType, K4, K16, K64, Recorder};
use pleat_mm::ptdump::{Line, Marker, Range};
use pleat_mm::ptep::{LocklessGuard, set_pte};
use pleat_mm::{KernelProt, Mapping, Mm, TableAlloc, create_pgd_mapping};
use proptest::prelude::*;

const BASE: u64 = 0xffff_0000_4000_0000;
const STAY: &LocklessGuard = &LocklessGuard::tables_stay();
const K: u64 = 1 << 10;
const M: u64 = 1 << 20;

/// What every mapping of the kernel has.
const KERNEL: PteFlags = PteFlags::AF.union(PteFlags::UXN).union(PteFlags::INNER_SHAREABLE);

struct Tables<'a, G>(&'a Recorder<G>);

impl<G: GranuleType> TableAlloc for Tables<'_, G> {
    fn alloc_table(&self, level: u8) -> Option<TableFrame> {
        self.0.alloc_table(level)
    }
}

/// A kernel's address space.
struct World<'a, G: GranuleType> {
    recorder: &'a Recorder<G>,
    root: TableFrame,
    mm: Mm<'static, &'a Recorder<G>>,
}

impl<'a, G: GranuleType> World<'a, G> {
    fn new(recorder: &'a Recorder<G>) -> Self {
        let root = recorder.new_root();
        Self { recorder, root, mm: Mm::new_kernel(recorder, root) }
    }

    fn map(&self, va: u64, pa: u64, size: u64, prot: KernelProt, memory: MemoryType) {
        let mapping = Mapping { va: VirtAddr::new(va), pa: PhysAddr::new(pa), size, prot, memory };
        create_pgd_mapping(&self.mm, &mapping, &Tables(self.recorder)).unwrap();
    }

    /// One page, with any attributes.
    fn page(&self, va: u64, memory: MemoryType, flags: PteFlags) {
        self.raw_page(va, PteValue::leaf(PhysAddr::new(0x8000_0000), memory, flags));
    }

    fn raw_page(&self, va: u64, pte: PteValue) {
        let va = VirtAddr::new(va);
        let mut guard = self.mm.lock_table(va, &Tables(self.recorder)).unwrap();
        set_pte(&mut guard, G::GRANULE.index(va.get(), 3), pte).unwrap();
    }

    fn ranges(&self) -> Vec<Range> {
        self.mm.ptdump(&[], STAY).ranges().collect()
    }

    /// Bytes that are writable and executable.
    fn wx(&self) -> u64 {
        self.ranges().iter().filter(|range| range.is_writable_and_executable()).map(|range| range.size).sum()
    }

    fn text(&self, markers: &[Marker<'_>]) -> Vec<String> {
        self.mm.ptdump(markers, STAY).map(|line| line.to_string()).collect()
    }
}

fn marker(start: u64, name: &str) -> Marker<'_> {
    Marker { start: VirtAddr::new(start), name }
}

use KernelProt::{ReadExecute, ReadOnly, ReadWrite};
use MemoryType::{Device, NonCacheable, Normal};

/// An address space like the kernel's own, whole.
#[test]
fn a_kernel_as_text() {
    let recorder = Recorder::<K4>::new(32);
    let world = World::new(&recorder);
    // The linear map: pages, groups of pages, blocks, groups of blocks, a block of 1 GiB.
    world.map(0xffff_0000_4000_0000, 0x4000_0000, 2 * M, ReadWrite, Normal);
    world.map(0xffff_0000_4028_c000, 0x4028_c000, 0x1d7_4000, ReadWrite, Normal);
    world.map(0xffff_0000_4200_0000, 0x4200_0000, 0x1_3e00_0000 - M, ReadWrite, Normal);
    // The Image.
    world.map(0xffff_8000_0020_0000, 0x4020_0000, 0x6_8000, ReadExecute, Normal);
    world.map(0xffff_8000_0026_8000, 0x4026_8000, 0x2_4000, ReadOnly, Normal);
    world.map(0xffff_8000_0028_c000, 0x4028_c000, 0x1_0000, ReadWrite, Normal);
    world.map(0xffff_8000_0029_d000, 0x4029_d000, 0x3_000, ReadWrite, Normal);
    // Two devices with a page between them.
    world.map(0xffff_8000_8000_0000, 0x0900_0000, 4 * K, ReadWrite, Device);
    world.map(0xffff_8000_8000_2000, 0x0800_0000, 64 * K, ReadWrite, Device);
    let markers = [
        marker(0xffff_0000_0000_0000, "linear map"),
        marker(0xffff_8000_0000_0000, "Image"),
        marker(0xffff_8000_4000_0000, "device tree"),
        marker(0xffff_8000_8000_0000, "devices"),
        marker(0xffff_8001_0000_0000, "heap"),
    ];
    let text = "\
---[ linear map ]---
0xffff000040000000-0xffff000040200000            2M PMD     RW     NX SHD AF         BLK UXN MEM/NORMAL
0xffff00004028c000-0xffff000040290000           16K PTE     RW     NX SHD AF             UXN MEM/NORMAL
0xffff000040290000-0xffff000040400000         1472K PTE     RW     NX SHD AF    CONT     UXN MEM/NORMAL
0xffff000040400000-0xffff000042000000           28M PMD     RW     NX SHD AF         BLK UXN MEM/NORMAL
0xffff000042000000-0xffff000080000000          992M PMD     RW     NX SHD AF    CONT BLK UXN MEM/NORMAL
0xffff000080000000-0xffff000140000000            3G PUD     RW     NX SHD AF         BLK UXN MEM/NORMAL
0xffff000140000000-0xffff00017e000000          992M PMD     RW     NX SHD AF    CONT BLK UXN MEM/NORMAL
0xffff00017e000000-0xffff00017fe00000           30M PMD     RW     NX SHD AF         BLK UXN MEM/NORMAL
0xffff00017fe00000-0xffff00017ff00000            1M PTE     RW     NX SHD AF    CONT     UXN MEM/NORMAL
---[ Image ]---
0xffff800000200000-0xffff800000260000          384K PTE     ro     x  SHD AF    CONT     UXN MEM/NORMAL
0xffff800000260000-0xffff800000268000           32K PTE     ro     x  SHD AF             UXN MEM/NORMAL
0xffff800000268000-0xffff800000270000           32K PTE     ro     NX SHD AF             UXN MEM/NORMAL
0xffff800000270000-0xffff800000280000           64K PTE     ro     NX SHD AF    CONT     UXN MEM/NORMAL
0xffff800000280000-0xffff80000028c000           48K PTE     ro     NX SHD AF             UXN MEM/NORMAL
0xffff80000028c000-0xffff80000029c000           64K PTE     RW     NX SHD AF             UXN MEM/NORMAL
0xffff80000029d000-0xffff8000002a0000           12K PTE     RW     NX SHD AF             UXN MEM/NORMAL
---[ device tree ]---
---[ devices ]---
0xffff800080000000-0xffff800080001000            4K PTE     RW     NX SHD AF             UXN DEVICE/nGnRE
0xffff800080002000-0xffff800080012000           64K PTE     RW     NX SHD AF             UXN DEVICE/nGnRE
---[ heap ]---
";
    assert_eq!(world.text(&markers).join("\n") + "\n", text);
    assert_eq!(world.wx(), 0);
}

/// Each attribute, set alone and clear alone, has a column, and ends a range.
#[test]
fn each_attribute_is_told() {
    let recorder = Recorder::<K4>::new(8);
    let world = World::new(&recorder);
    let data = KERNEL | PteFlags::PXN;
    let unknown =
        PteValue::leaf(PhysAddr::new(0x8000_0000), Normal, data).with(PteFlags::from_bits_retain(5 << 2));
    for (i, (memory, flags)) in (0..).zip([
        (Normal, data),
        (Normal, data | PteFlags::USER),
        (Normal, data | PteFlags::RDONLY),
        (Normal, data | PteFlags::RDONLY | PteFlags::DBM),
        (Normal, (data | PteFlags::RDONLY).difference(PteFlags::PXN)),
        (Normal, data.difference(PteFlags::INNER_SHAREABLE)),
        (Normal, data.difference(PteFlags::AF)),
        (Normal, data | PteFlags::NG),
        (Normal, data.difference(PteFlags::UXN)),
        (NonCacheable, data),
        (Device, data),
    ]) {
        world.page(BASE + i * 4 * K, memory, flags);
    }
    world.raw_page(BASE + 11 * 4 * K, unknown);
    let lines = world.text(&[]);
    let columns: Vec<_> = lines.iter().map(|line| &line[56..]).collect();
    let expected = [
        "    RW     NX SHD AF             UXN MEM/NORMAL",
        "USR RW     NX SHD AF             UXN MEM/NORMAL",
        "    ro     NX SHD AF             UXN MEM/NORMAL",
        "    ro DBM NX SHD AF             UXN MEM/NORMAL",
        "    ro     x  SHD AF             UXN MEM/NORMAL",
        "    RW     NX     AF             UXN MEM/NORMAL",
        "    RW     NX SHD                UXN MEM/NORMAL",
        "    RW     NX SHD AF nG          UXN MEM/NORMAL",
        "    RW     NX SHD AF             ux  MEM/NORMAL",
        "    RW     NX SHD AF             UXN MEM/NORMAL-NC",
        "    RW     NX SHD AF             UXN DEVICE/nGnRE",
        "    RW     NX SHD AF             UXN ATTRINDX=5",
    ];
    assert_eq!(columns, expected);
}

/// What only software reads, and the frame, don't end a range.
#[test]
fn what_is_not_told_ends_no_range() {
    let recorder = Recorder::<K4>::new(8);
    let world = World::new(&recorder);
    let data = KERNEL | PteFlags::PXN;
    for (i, flags) in (0..).zip([data, data | PteFlags::DIRTY, data | PteFlags::SPECIAL]) {
        // All three the same frame.
        world.page(BASE + i * 4 * K, Normal, flags);
    }
    let [range] = world.ranges()[..] else { panic!("{:?}", world.ranges()) };
    assert_eq!((range.start.get(), range.size, range.level), (BASE, 12 * K, 3));
}

/// A mapping that is writable and executable is found wherever it hides, and what is only one of the two is not.
#[test]
fn writable_and_executable_is_found() {
    let recorder = Recorder::<K4>::new(16);
    let world = World::new(&recorder);
    world.map(BASE, 0x8000_0000, 2 * M + 64 * K, ReadWrite, Normal);
    world.map(BASE + 4 * M, 0x9000_0000, 2 * M, ReadExecute, Normal);
    let text = KERNEL | PteFlags::RDONLY;
    for (i, flags) in (0..).zip([text, text | PteFlags::PXN, KERNEL | PteFlags::PXN]) {
        world.page(BASE + 8 * M + i * 4 * K, Normal, flags);
    }
    assert_eq!(world.wx(), 0);

    let seeded = [
        (BASE + 2 * M + 64 * K, KERNEL),
        (BASE + 2 * M + 68 * K, KERNEL | PteFlags::NG),
        // Hardware would make it writable.
        (BASE + 8 * M + 12 * K, text | PteFlags::DBM),
        (u64::MAX - 4 * K + 1, KERNEL | PteFlags::USER),
    ];
    for (n, (va, flags)) in (1..).zip(seeded) {
        world.page(va, Normal, flags);
        assert_eq!(world.wx(), n * 4 * K);
        let found: Vec<_> = world.ranges().into_iter().filter(Range::is_writable_and_executable).collect();
        assert!(found.iter().any(|range| range.start.get() == va), "{va:#x} is not in {found:x?}");
        assert_eq!(found.len() as u64, n);
        assert_eq!(world.text(&[]).iter().filter(|line| line.ends_with(" W+X")).count() as u64, n);
    }
}

/// The first and the last page of the kernel's half, and nothing between them.
#[test]
fn both_ends_of_the_half() {
    let recorder = Recorder::<K4>::new(16);
    let world = World::new(&recorder);
    assert_eq!(world.text(&[]), [] as [&str; 0]);
    let data = KERNEL | PteFlags::PXN;
    world.page(0xffff_0000_0000_0000, Normal, data);
    world.page(0xffff_ffff_ffff_f000, Normal, data);
    let attributes = "    RW     NX SHD AF             UXN MEM/NORMAL";
    assert_eq!(
        world.text(&[marker(0xffff_ffff_ffff_f000, "end")]),
        [
            format!("0xffff000000000000-0xffff000000001000            4K PTE {attributes}"),
            "---[ end ]---".into(),
            format!("0xfffffffffffff000-0x10000000000000000            4K PTE {attributes}"),
        ]
    );
}

#[test]
fn markers_split_ranges_and_blocks_stay_whole() {
    let recorder = Recorder::<K4>::new(16);
    let world = World::new(&recorder);
    world.map(BASE, 0x8000_0000, 4 * M, ReadWrite, Normal);
    let data = KERNEL | PteFlags::PXN;
    (0..4).for_each(|i| world.page(BASE + 4 * M + i * 4 * K, Normal, data));
    let markers = [
        marker(0, "before"),
        marker(BASE + M, "in a block"),
        marker(BASE + 4 * M + 4 * K, "one"),
        marker(BASE + 4 * M + 4 * K, "two"),
        marker(BASE + 32 * M, "after"),
    ];
    let lines: Vec<_> = world.mm.ptdump(&markers, STAY).collect();
    let range = |line: &Line<'_>| match line {
        Line::Marker(name) => (name.to_string(), 0, 0),
        Line::Range(range) => (String::new(), range.start.get() - BASE, range.size),
    };
    let expected = [
        ("before", 0, 0),
        ("", 0, 2 * M),
        ("in a block", 0, 0),
        ("", 2 * M, 2 * M),
        ("", 4 * M, 4 * K),
        ("one", 0, 0),
        ("two", 0, 0),
        ("", 4 * M + 4 * K, 12 * K),
        ("after", 0, 0),
    ];
    let expected: Vec<_> = expected.iter().map(|&(name, at, size)| (name.to_string(), at, size)).collect();
    assert_eq!(lines.iter().map(range).collect::<Vec<_>>(), expected);
}

#[test]
#[should_panic(expected = "markers out of order")]
fn markers_out_of_order_are_refused() {
    let recorder = Recorder::<K4>::new(8);
    let world = World::new(&recorder);
    let _ = world.mm.ptdump(&[marker(BASE, "b"), marker(BASE - 1, "a")], STAY);
}

/// The ranges of leaves that the recorder finds by its own reading, merged in the plainest way.
fn merged<G: GranuleType>(world: &World<'_, G>) -> Vec<(u64, u64, u8, u64)> {
    const FRAME: u64 = ((1 << 48) - 1) & !0xfff;
    let mut ranges: Vec<(u64, u64, u8, u64)> = Vec::new();
    for leaf in world.recorder.leaves(world.root) {
        let (va, size) = (leaf.va.get(), G::GRANULE.level_size(leaf.level));
        // Bit 1 tells pages from blocks, as does the level.
        let attributes = leaf.raw & !FRAME & !0b10;
        match ranges.last_mut() {
            Some(last) if (last.0 + last.1, last.2, last.3) == (va, leaf.level, attributes) => last.1 += size,
            _ => ranges.push((va, size, leaf.level, attributes)),
        }
    }
    ranges
}

fn agrees<G: GranuleType>(requests: &[(u64, u64, KernelProt, bool)]) {
    let recorder = Recorder::<G>::new(256);
    let world = World::new(&recorder);
    let page = G::GRANULE.page_size();
    let mut at = 0;
    for &(hole, pages, prot, congruent) in requests {
        at += hole;
        let pa = if congruent { at } else { at + 1 } * page;
        world.map(BASE + at * page, 0x40_0000_0000 + pa, pages * page, prot, Normal);
        at += pages;
    }
    let told = world.ranges().into_iter().map(|range| {
        let attributes = (range.pte.raw() - range.pte.pa().get()) & !0b10;
        (range.start.get(), range.size, range.level, attributes)
    });
    assert_eq!(told.collect::<Vec<_>>(), merged(&world));
}

fn requests() -> impl Strategy<Value = Vec<(u64, u64, KernelProt, bool)>> {
    let hole = prop_oneof![3 => Just(0), 1 => 1..64_u64];
    let pages = prop_oneof![1..8_u64, (1..5_u64).prop_map(|n| n * 16), (1..3_u64).prop_map(|n| n * 512)];
    let prot = prop_oneof![Just(ReadWrite), Just(ReadOnly), Just(ReadExecute)];
    prop::collection::vec((hole, pages, prot, prop::bool::weighted(0.8)), 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn agrees_with_the_plain_merge_4k(requests in requests()) {
        agrees::<K4>(&requests);
    }

    #[test]
    fn agrees_with_the_plain_merge_16k(requests in requests()) {
        agrees::<K16>(&requests);
    }

    #[test]
    fn agrees_with_the_plain_merge_64k(requests in requests()) {
        agrees::<K64>(&requests);
    }
}

/// Hardware sets flags in one entry of a folded block, and needs to in no other: they hold for all of it.
#[test]
fn a_folded_block_is_one_range_whichever_entry_was_used() {
    use common::{AF, AF_DBM, RDONLY};
    use pleat_mm::pte::UserProt;
    let world = common::World::<common::K4>::user(AF_DBM);
    world.map(0, 32, UserProt::ReadWrite);
    assert!(world.folded(0..32));
    world.plain.hardware_sets(5, |raw| raw & !RDONLY | AF);
    let masked = LocklessGuard::interrupts_masked();
    let lines: Vec<_> = world.mm.ptdump(&[], &masked).map(|line| line.to_string()).collect();
    assert_eq!(
        lines,
        [
            "0x0000004000000000-0x0000004000010000           64K PTE USR RW DBM NX SHD AF nG CONT     UXN MEM/NORMAL",
            "0x0000004000010000-0x0000004000020000           64K PTE USR ro DBM NX SHD AF nG CONT     UXN MEM/NORMAL",
        ]
    );
}

/// The firmware's address space, which is not an `Mm`, by the same code.
#[cfg(feature = "efi")]
#[test]
fn efi_mm_as_text() {
    use pleat_mm::asid::EFI_ASID;
    use pleat_mm::{EfiMapping, EfiMemory, EfiMm, EfiProt};

    let recorder = Recorder::<K4>::new(16);
    let efi_mm = EfiMm::new(&recorder, recorder.new_root(), EFI_ASID);
    let map = |va, pa, size, memory| {
        let mapping = EfiMapping { va: VirtAddr::new(va), pa: PhysAddr::new(pa), size, memory };
        efi_mm.create_mapping(&mapping, &Tables(&recorder)).unwrap();
    };
    map(0x2000_0000, 0x7c00_0000, 2 * M, EfiMemory::Normal(EfiProt::ReadWriteExecute));
    map(0x2020_0000, 0x7e00_0000, 64 * K, EfiMemory::Normal(EfiProt::ReadWrite));
    map(0x2030_0000, 0x0901_0000, 4 * K, EfiMemory::Device);
    efi_mm.set_mapping_permissions(VirtAddr::new(0x2000_0000), M, EfiProt::ReadExecute).unwrap();
    let markers = [marker(0, "EFI runtime services")];
    let text = "\
---[ EFI runtime services ]---
0x0000000020000000-0x0000000020100000            1M PTE     ro     x  SHD AF nG          UXN MEM/NORMAL
0x0000000020100000-0x0000000020200000            1M PTE     RW     x  SHD AF nG          UXN MEM/NORMAL W+X
0x0000000020200000-0x0000000020210000           64K PTE     RW     NX SHD AF nG          UXN MEM/NORMAL
0x0000000020300000-0x0000000020301000            4K PTE     RW     NX SHD AF nG          UXN DEVICE/nGnRE";
    let lines: Vec<_> = efi_mm.ptdump(&markers, STAY).map(|line| line.to_string()).collect();
    assert_eq!(lines.join("\n"), text);
}

#[test]
#[should_panic(expected = "the tables of a user's address space may be freed")]
fn a_users_tables_do_not_stay() {
    let world = common::World::<common::K4>::default();
    let _ = world.mm.ptdump(&[], STAY);
}
