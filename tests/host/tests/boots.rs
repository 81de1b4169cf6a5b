//! The whole suite on the machines that the kernel must run on: each value of each option, and the pairs
//! that have something to do with each other.

use pleat_host_tests::boot::{Boot, Scratch};
use pleat_host_tests::cpio::Cpio;
use pleat_host_tests::suite::Machine;
use pleat_host_tests::tree::RAM_BASE;

const MIB: u64 = 1 << 20;

/// One test for each machine.
macro_rules! machines {
    ($($(#[$ignored:meta])? $name:ident: $cpu:literal, EL $el:literal, GIC $gic:literal, $memory:literal, $smp:literal CPUs;)*) => {
        $(
            #[test]
            $(#[$ignored])?
            fn $name() {
                Machine { cpu: $cpu, el: $el, gic: $gic, memory: $memory, smp: $smp }.runs();
            }
        )*
    };
}

machines! {
    #[ignore = "a repetition, with --long"]
    cortex_a72_alone: "cortex-a72", EL 1, GIC 2, "64M", 1 CPUs;
    cortex_a72_like_a_pi: "cortex-a72", EL 2, GIC 2, "1G", 4 CPUs;
    #[ignore = "a repetition, with --long"]
    cortex_a72_large: "cortex-a72", EL 1, GIC 3, "6G", 8 CPUs;
    neoverse_n1_el1: "neoverse-n1", EL 1, GIC 3, "1G", 8 CPUs;
    neoverse_n1_el2: "neoverse-n1", EL 2, GIC 3, "6G", 1 CPUs;
    #[ignore = "a repetition, with --long"]
    neoverse_n1_gic2: "neoverse-n1", EL 2, GIC 2, "64M", 4 CPUs;
    neoverse_v1_el1: "neoverse-v1", EL 1, GIC 2, "6G", 8 CPUs;
    neoverse_v1_el2: "neoverse-v1", EL 2, GIC 3, "1G", 4 CPUs;
    #[ignore = "a repetition, with --long"]
    neoverse_v1_alone: "neoverse-v1", EL 1, GIC 3, "64M", 1 CPUs;
    max_as_by_default: "max", EL 1, GIC 3, "1G", 4 CPUs;
    max_el2: "max", EL 2, GIC 3, "64M", 8 CPUs;
    #[ignore = "a repetition, with --long"]
    max_gic2: "max", EL 2, GIC 2, "6G", 4 CPUs;
    #[ignore = "a repetition, with --long"]
    max_alone: "max", EL 1, GIC 2, "1G", 1 CPUs;
    more_cpus_than_are_used: "max", EL 2, GIC 3, "1G", 11 CPUs;
}

#[test]
fn at_an_address_that_is_only_page_aligned() {
    let machine = Machine::default();
    machine.runs_at("0x40281000", &machine.tree());
}

#[test]
fn at_an_address_that_is_only_page_aligned_from_el2() {
    let machine = Machine { cpu: "cortex-a72", el: 2, gic: 2, memory: "64M", smp: 4 };
    machine.runs_at("0x403ff000", &machine.tree());
}

#[test]
fn at_an_address_above_4_gib() {
    let machine = Machine { cpu: "neoverse-v1", memory: "6G", ..Machine::default() };
    machine.runs_at("0x145677000", &machine.tree());
}

#[test]
fn with_memory_in_two_nodes() {
    let nodes = "-object memory-backend-ram,id=a,size=512M -object memory-backend-ram,id=b,size=512M \
                 -numa node,nodeid=0,memdev=a,cpus=0-3 -numa node,nodeid=1,memdev=b";
    Machine::default().runs_with(|boot| boot.option("--qemu", nodes));
}

#[test]
fn with_holes_in_memory() {
    let machine = Machine { memory: "6G", ..Machine::default() };
    // Odd pages at the edges, a range of one page, one that ends inside a page, and some above 4 GiB.
    let ranges = [
        (RAM_BASE, 100 * MIB + 0x3000),
        (RAM_BASE + 200 * MIB, 0x1000),
        (RAM_BASE + 301 * MIB + 0x7000, 128 * MIB + 0x800),
        (RAM_BASE + 1024 * MIB, 1024 * MIB),
        (RAM_BASE + 3200 * MIB, 2900 * MIB),
    ];
    machine.runs_at("0x40200000", &machine.tree().memory(&ranges));
}

#[test]
fn with_reservations() {
    let machine = Machine { cpu: "neoverse-n1", el: 2, ..Machine::default() };
    let tree = machine
        .tree()
        .reserved(RAM_BASE + 512 * MIB, 16 * MIB, true)
        .reserved(RAM_BASE + 600 * MIB + 0x1000, 0x5000, false)
        .reserved(RAM_BASE + 700 * MIB, 0x1000, true)
        .memreserve(RAM_BASE + 800 * MIB, 0x123)
        .memreserve(RAM_BASE, 0x1000);
    machine.runs_at("0x40200000", &tree);
}

#[test]
fn with_an_initrd() {
    let scratch = Scratch::new();
    let archive = Cpio::new().program("none", &vec![0xa5; 3_000_001]).bytes();
    let initrd = scratch.write("initrd", &archive);
    let machine = Machine { memory: "64M", ..Machine::default() };
    machine.runs_with(|boot| boot.option("--initrd", initrd));
}

/// In each window what belongs there, in ascending order, and nothing that is writable and executable.
#[test]
fn the_kernels_page_tables_are_dumped() {
    let outcome = Boot::kernel().option("--args", "ptdump=init_mm selftest=boot.*").run();
    outcome.passed();
    let dump = outcome.lines().skip_while(|line| *line != "ptdump: init_mm").skip(1);
    let dump: Vec<_> = dump.take_while(|line| !line.starts_with("ptdump: ")).collect();
    let (mut window, mut last, mut ranges) = ("", 0, 0);
    for line in dump {
        if let Some(name) = line.strip_prefix("---[ ").and_then(|line| line.strip_suffix(" ]---")) {
            window = name;
            continue;
        }
        let words: Vec<_> = line.split_whitespace().collect();
        let addresses = words[0].split_once('-').expect("a range");
        let [start, end] = [addresses.0, addresses.1].map(|address| {
            let digits = address.strip_prefix("0x").expect("hexadecimal");
            u64::from_str_radix(digits, 16).expect("an address")
        });
        assert!(last <= start && start < end, "{line}\n{outcome}");
        let has = |word| words.contains(&word);
        assert!(has("UXN") && has("AF") && !has("USR") && !has("nG") && !has("W+X"), "{line}\n{outcome}");
        assert!(
            has("ro") != has("RW") && has("x") != has("NX") && !(has("RW") && has("x")),
            "{line}\n{outcome}"
        );
        assert_eq!(has("BLK"), !has("PTE"), "{line}\n{outcome}");
        assert_eq!(window == "devices", has("DEVICE/nGnRE"), "{line}\n{outcome}");
        match window {
            "Image" | "device tree" => assert!(start >> 40 == 0xffff80, "{line}\n{outcome}"),
            "linear map" => assert!(has("RW") && has("NX") && start >> 40 == 0xffff00, "{line}\n{outcome}"),
            _ => assert!(has("RW") && has("NX"), "{line}\n{outcome}"),
        }
        (last, ranges) = (end, ranges + 1);
    }
    assert!(ranges > 10, "{outcome}");
    assert!(outcome.lines().any(|line| line == "ptdump: init_mm: 0 KiB W+X"), "{outcome}");
}

/// There is none yet, and no line in its stead.
#[test]
fn without_an_efi_mm_the_dump_says_so() {
    let outcome = Boot::kernel().option("--args", "ptdump=efi_mm selftest=boot.*").run();
    outcome.passed();
    let said = outcome.lines_after("ptdump: ");
    assert!(matches!(said[..], [line] if line.starts_with("no efi_mm: ")), "{outcome}");
    assert!(!outcome.console.contains("---["), "{outcome}");
}
