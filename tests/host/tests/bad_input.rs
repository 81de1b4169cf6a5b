//! What a boot loader or a person can get wrong: each ends with one clear line and a failing exit.

use pleat_host_tests::boot::{Boot, Outcome, Scratch};
use pleat_host_tests::tree::{HeaderField, RAM_BASE, Tree, header_field, reg, with_header_field};

const MIB: u64 = 1 << 20;
/// Where these boots put the Image.
const IMAGE_AT: u64 = 0x4020_0000;
const MEMORY_NODE: &str = "memory@40000000";

fn options() -> Boot {
    Boot::kernel().option("--smp", "2").option("--timeout", "60")
}

fn at_an_address() -> Boot {
    options().option("--image-at", format!("{IMAGE_AT:#x}"))
}

fn qemu_tree() -> Tree {
    Tree::of(&options())
}

/// Boots with these bytes as the device tree.
fn boot_with(dtb: &[u8]) -> Outcome {
    let scratch = Scratch::new();
    at_an_address().option("--dtb", scratch.write("tree.dtb", dtb)).run()
}

/// Asserts that the boot ended with one line that says why, and no test ran.
fn is_refused(outcome: &Outcome, why: &str) {
    outcome.failed("no summary line was printed (exit status 2)");
    let fatal = outcome.lines_after("pleat: fatal: ");
    assert_eq!(fatal.len(), 1, "{outcome}");
    assert!(fatal[0].contains(why), "expected `{why}`\n{outcome}");
    assert!(outcome.lines_after("pleat: panic: ").is_empty(), "{outcome}");
    assert!(outcome.lines_after("# running ").is_empty(), "{outcome}");
}

fn refused_tree(tree: &Tree, why: &str) {
    is_refused(&boot_with(&tree.to_dtb()), why);
}

/// The boots below differ from this one in what is wrong only.
#[test]
fn what_the_others_break_is_sound() {
    let tree = qemu_tree().bootargs("selftest=boot.*");
    boot_with(&tree.to_dtb()).passed();
}

#[test]
fn no_device_tree() {
    is_refused(&at_an_address().run(), "no device tree");
}

#[test]
fn x0_is_no_address_of_a_tree() {
    let addresses = [
        "0x40101004",         // not aligned to 8 bytes
        "0x40180000",         // memory that is zero
        "0x40200000",         // the kernel itself
        "0x09000000",         // a device
        "0x20000000",         // nothing
        "0xfffffffffff8",     // the end of 48 bits
        "0xffff000000000000", // no physical address
        "0xfffffffffffffff8", // the end of 64 bits
    ];
    for address in addresses {
        is_refused(&at_an_address().option("--x0", address).run(), "device tree");
    }
}

#[test]
fn x0_points_to_garbage() {
    // Not random, so that it is the same in every run; no four bytes of it are the magic number.
    let mut state = 1_u32;
    let garbage: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(65536)
    .collect();
    is_refused(&boot_with(&garbage), "device tree");
    is_refused(&boot_with(&[0xff; 4096]), "device tree");
}

#[test]
fn a_tree_that_was_cut_off() {
    let whole = qemu_tree().to_dtb();
    let size = header_field(&whole, HeaderField::TotalSize) as usize;
    assert_eq!(size, whole.len());
    // In the header, behind it, in the structure, in the strings; what follows in memory is zero.
    for length in [4, 20, 40, 56, size / 4, size / 2, size - size / 8] {
        is_refused(&boot_with(&whole[..length]), "device tree");
        // And one that says that it is so short.
        let claimed = u32::try_from(length).expect("a tree of less than 4 GiB");
        let claiming = with_header_field(whole.clone(), HeaderField::TotalSize, claimed);
        is_refused(&boot_with(&claiming), "device tree");
    }
}

#[test]
fn a_header_that_lies() {
    use HeaderField::*;
    let whole = qemu_tree().to_dtb();
    let lies = [
        (Magic, 0xedfe_0dd0),
        (TotalSize, 0),
        (TotalSize, u32::MAX),
        (TotalSize, 64 << 20),
        (StructOffset, u32::MAX),
        (StructOffset, header_field(&whole, TotalSize)),
        (StructOffset, 2),
        (StringsOffset, u32::MAX),
        (ReservationsOffset, u32::MAX - 7),
        (Version, 3),
        (LastCompatibleVersion, 99),
        (StringsSize, u32::MAX),
        (StructSize, u32::MAX),
    ];
    for (field, value) in lies {
        let outcome = boot_with(&with_header_field(whole.clone(), field, value));
        is_refused(&outcome, "device tree");
    }
}

#[test]
fn a_structure_that_is_none() {
    let whole = qemu_tree().to_dtb();
    let start = header_field(&whole, HeaderField::StructOffset) as usize;
    let size = header_field(&whole, HeaderField::StructSize) as usize;
    for token in [0_u32, 7, 9, u32::MAX] {
        let mut broken = whole.clone();
        broken[start..start + 4].copy_from_slice(&token.to_be_bytes());
        is_refused(&boot_with(&broken), "device tree");
    }
    // Nodes that are never closed.
    let mut endless = whole.clone();
    for word in endless[start..start + size].chunks_exact_mut(8) {
        word.copy_from_slice(&[0, 0, 0, 1, b'a', 0, 0, 0]);
    }
    is_refused(&boot_with(&endless), "device tree");
}

#[test]
fn a_tree_without_memory() {
    refused_tree(&qemu_tree().without_node(MEMORY_NODE), "no RAM");
    refused_tree(&qemu_tree().memory(&[]), "no RAM");
    refused_tree(&qemu_tree().memory(&[(RAM_BASE, 0)]), "no RAM");
    let path = format!("/{MEMORY_NODE}");
    refused_tree(&qemu_tree().without_property(&path, "reg"), "reg");
    refused_tree(&qemu_tree().property(&path, "reg", reg(&[(RAM_BASE, 1)])[..12].to_vec()), "reg");
}

#[test]
fn memory_that_is_not_there() {
    // 1 GiB is: the last page of what is promised is not.
    refused_tree(&qemu_tree().memory(&[(RAM_BASE, 1025 * MIB)]), "memory");
    refused_tree(&qemu_tree().memory(&[(RAM_BASE, 512 * MIB), (1 << 40, 512 * MIB)]), "memory");
    refused_tree(&qemu_tree().memory(&[(RAM_BASE, 512 * MIB), (u64::MAX - 0xfff, 0x2000)]), "memory");
}

#[test]
fn a_kernel_outside_of_memory() {
    refused_tree(&qemu_tree().memory(&[(RAM_BASE + 512 * MIB, 512 * MIB)]), "the kernel image");
}

#[test]
fn too_little_memory() {
    refused_tree(&qemu_tree().memory(&[(RAM_BASE, 8 * MIB)]), "too small");
    let almost_all = (RAM_BASE + 16 * MIB, 1000 * MIB);
    refused_tree(&qemu_tree().reserved(almost_all.0, almost_all.1, false), "too small");
    // Without an edited tree: QEMU's own loader on a machine that is too small.
    is_refused(&Boot::kernel().option("--memory", "32M").option("--timeout", "60").run(), "too small");
}

#[test]
fn a_reservation_over_the_kernel() {
    let inside = IMAGE_AT + 0x1000;
    refused_tree(&qemu_tree().reserved(inside, 0x1000, false), "the kernel image");
    refused_tree(&qemu_tree().reserved(inside, 0x1000, true), "the kernel image");
    refused_tree(&qemu_tree().memreserve(inside, 0x10), "the kernel image");
    refused_tree(&qemu_tree().memreserve(RAM_BASE, 256 * MIB), "the kernel image");
}

#[test]
fn an_initrd_that_cannot_be() {
    let overlapping = qemu_tree().initrd(IMAGE_AT - 0x1000, IMAGE_AT + 0x1000);
    refused_tree(&overlapping, "overlaps");
    refused_tree(&qemu_tree().initrd(IMAGE_AT + 0x1000, IMAGE_AT + 0x2000), "overlaps");
    refused_tree(&qemu_tree().initrd(RAM_BASE + 64 * MIB, RAM_BASE + 63 * MIB), "initrd");
    refused_tree(&qemu_tree().initrd(0x1000, 0x2000), "initrd");
}

#[test]
fn no_interrupt_controller_or_timer() {
    refused_tree(&qemu_tree().without_node("intc@8000000"), "interrupt controller");
    refused_tree(&qemu_tree().without_node("timer"), "timer");
}

/// Without a known UART the line comes by semihosting.
#[test]
fn no_console_does_not_mean_no_message() {
    let tree = qemu_tree().without_node("pl011@9000000").without_property("/chosen", "stdout-path");
    refused_tree(&tree.without_node(MEMORY_NODE), "no RAM");
}

#[test]
fn boot_arguments_that_cannot_be_read() {
    let refused = |line: &str, why: &str| {
        is_refused(&options().option("--args", line).run(), why);
    };
    refused("loglevel=banana", "loglevel=banana");
    refused("quiet loglevel=", "loglevel=");
    refused("selftest=\"mm.*", "quote");
    refused("selftest=", "selftest=");
    refused("selftest=a selftest=b", "selftest=b");
    refused("selftest=no.such_test", "no.such_test");
    refused("ptdump=user", "`init_mm`, `efi_mm` or `all`");
    // Bytes that are no text.
    let tree = qemu_tree().property("/chosen", "bootargs", b"loglevel=\xff\xfe\0".to_vec());
    refused_tree(&tree, "bootargs");
}

/// What is written there is not kept: flash, and nothing at all.
#[test]
fn memory_that_only_reads() {
    for (start, bytes) in [(0, 64 * MIB), (0x80_0000_0000, 64 * MIB)] {
        refused_tree(
            &qemu_tree().memory(&[(start, bytes), (RAM_BASE, 1024 * MIB)]),
            "what is written there is lost",
        );
    }
}

#[test]
fn memory_that_is_a_device_too() {
    refused_tree(&qemu_tree().memory(&[(0, 2048 * MIB)]), "overlaps the registers of a device");
}

#[test]
fn a_device_that_is_not_there() {
    let uart = qemu_tree().property("/pl011@9000000", "reg", reg(&[(0x0f00_0000, 0x1000)]));
    is_refused(&boot_with(&uart.to_dtb()), "there are none");
    let gic = qemu_tree().property(
        "/intc@8000000",
        "reg",
        reg(&[(0x0f00_0000, 0x1_0000), (0x80a_0000, 0xf6_0000)]),
    );
    is_refused(&boot_with(&gic.to_dtb()), "there are none");
    let redistributors =
        qemu_tree().property("/intc@8000000", "reg", reg(&[(0x800_0000, 0x1_0000), (0x80a_0000, 0x2_0000)]));
    is_refused(&boot_with(&redistributors.to_dtb()), "no GIC redistributor for CPU 0x1");
}

/// After an entry at EL2 an HVC goes there, where the kernel has left vectors.
#[test]
fn firmware_behind_the_wrong_instruction() {
    let boot = || options().option("--el", "2").option("--image-at", format!("{IMAGE_AT:#x}"));
    let tree = Tree::of(&options().option("--el", "2")).property("/psci", "method", b"hvc\0".to_vec());
    let scratch = Scratch::new();
    let outcome = boot().option("--dtb", scratch.write("tree.dtb", &tree.to_dtb())).run();
    is_refused(&outcome, "can't be started");
}

#[test]
fn the_cpu_that_boots_is_not_described() {
    let tree = qemu_tree().property("/cpus/cpu@0", "status", b"disabled\0".to_vec());
    is_refused(&boot_with(&tree.to_dtb()), "0x0");
}
