//! The whole suite on the machines that the kernel must run on: each value of each option, and the pairs
//! that have something to do with each other.

mod suite;

use pleat_host_tests::boot::{Boot, Scratch};
use pleat_host_tests::tree::{RAM_BASE, Tree};

use suite::{machine, runs, runs_tree};

const MIB: u64 = 1 << 20;

/// One test for each machine.
macro_rules! machines {
    ($($name:ident: $cpu:literal, EL $el:literal, GIC $gic:literal, $memory:literal, $smp:literal CPUs;)*) => {
        $(
            #[test]
            fn $name() {
                runs(machine($cpu, $el, $gic, $memory, $smp));
            }
        )*
    };
}

machines! {
    cortex_a72_alone: "cortex-a72", EL 1, GIC 2, "64M", 1 CPUs;
    cortex_a72_like_a_pi: "cortex-a72", EL 2, GIC 2, "1G", 4 CPUs;
    cortex_a72_large: "cortex-a72", EL 1, GIC 3, "6G", 8 CPUs;
    neoverse_n1_el1: "neoverse-n1", EL 1, GIC 3, "1G", 8 CPUs;
    neoverse_n1_el2: "neoverse-n1", EL 2, GIC 3, "6G", 1 CPUs;
    neoverse_n1_gic2: "neoverse-n1", EL 2, GIC 2, "64M", 4 CPUs;
    neoverse_v1_el1: "neoverse-v1", EL 1, GIC 2, "6G", 8 CPUs;
    neoverse_v1_el2: "neoverse-v1", EL 2, GIC 3, "1G", 4 CPUs;
    neoverse_v1_alone: "neoverse-v1", EL 1, GIC 3, "64M", 1 CPUs;
    max_as_by_default: "max", EL 1, GIC 3, "1G", 4 CPUs;
    max_el2: "max", EL 2, GIC 3, "64M", 8 CPUs;
    max_gic2: "max", EL 2, GIC 2, "6G", 4 CPUs;
    max_alone: "max", EL 1, GIC 2, "1G", 1 CPUs;
    more_cpus_than_are_used: "max", EL 2, GIC 3, "1G", 11 CPUs;
}

/// Boots at an address that is aligned to a page and to nothing else.
fn runs_at(address: &str, options: Boot) {
    let tree = Tree::of(&options);
    runs_tree(&tree, options, address);
}

#[test]
fn at_an_address_that_is_only_page_aligned() {
    runs_at("0x40281000", machine("max", 1, 3, "1G", 4));
}

#[test]
fn at_an_address_that_is_only_page_aligned_from_el2() {
    runs_at("0x403ff000", machine("cortex-a72", 2, 2, "64M", 4));
}

#[test]
fn at_an_address_above_4_gib() {
    runs_at("0x1234567000", machine("neoverse-v1", 1, 3, "73G", 1));
}

#[test]
fn with_memory_in_two_nodes() {
    let nodes = "-object memory-backend-ram,id=a,size=512M -object memory-backend-ram,id=b,size=512M \
                 -numa node,nodeid=0,memdev=a,cpus=0-3 -numa node,nodeid=1,memdev=b";
    runs(machine("max", 1, 3, "1G", 4).option("--qemu", nodes));
}

#[test]
fn with_holes_in_memory() {
    let options = machine("max", 1, 3, "6G", 4);
    // Odd pages at the edges, a range of one page, one that ends inside a page, and most of it above 4 GiB.
    let ranges = [
        (RAM_BASE, 100 * MIB + 0x3000),
        (RAM_BASE + 200 * MIB, 0x1000),
        (RAM_BASE + 301 * MIB + 0x7000, 128 * MIB + 0x800),
        (RAM_BASE + 1024 * MIB, 1024 * MIB),
        (RAM_BASE + 3200 * MIB, 2900 * MIB),
    ];
    runs_tree(&Tree::of(&options).memory(&ranges), options, "0x40200000");
}

#[test]
fn with_reservations() {
    let options = machine("neoverse-n1", 2, 3, "1G", 4);
    let tree = Tree::of(&options)
        .reserved(RAM_BASE + 512 * MIB, 16 * MIB, true)
        .reserved(RAM_BASE + 600 * MIB + 0x1000, 0x5000, false)
        .reserved(RAM_BASE + 700 * MIB, 0x1000, true)
        .memreserve(RAM_BASE + 800 * MIB, 0x123)
        .memreserve(RAM_BASE, 0x1000);
    runs_tree(&tree, options, "0x40200000");
}

#[test]
fn with_an_initrd() {
    let scratch = Scratch::new();
    let initrd = scratch.write("initrd", &vec![0xa5; 3_000_001]);
    runs(machine("max", 1, 3, "64M", 4).option("--initrd", initrd));
}
