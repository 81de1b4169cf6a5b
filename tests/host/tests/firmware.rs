//! The same Image as an EFI application: the whole suite under each firmware, and what it takes from firmware.

use std::fs;

use pleat_host_tests::boot::{Boot, Outcome, Scratch, kernel_image};
use pleat_host_tests::suite::Machine;

/// Asserts that firmware started the kernel, and at which exception level.
fn was_left(outcome: &Outcome, el: u8) {
    // Behind what firmware does to its screen.
    let stub = outcome.lines().filter(|line| line.ends_with("EFI stub: leaving boot services")).count();
    assert_eq!(stub, 1, "{outcome}");
    assert!(outcome.console.contains(&format!(" entered at EL{el}, runs at EL1; ")), "{outcome}");
}

/// One test for each machine and firmware.
macro_rules! machines {
    ($($name:ident: $firmware:literal, $cpu:literal, EL $el:literal, GIC $gic:literal, $memory:literal, $smp:literal CPUs;)*) => {
        $(
            #[test]
            fn $name() {
                let machine = Machine { cpu: $cpu, el: $el, gic: $gic, memory: $memory, smp: $smp };
                was_left(&machine.runs_with(|boot| boot.option("--firmware", $firmware)), $el);
            }
        )*
    };
}

machines! {
    edk2_el1: "edk2", "max", EL 1, GIC 3, "1G", 4 CPUs;
    edk2_el2: "edk2", "cortex-a72", EL 2, GIC 2, "6G", 4 CPUs;
    u_boot_el1: "u-boot", "neoverse-n1", EL 1, GIC 2, "1G", 8 CPUs;
    u_boot_el2: "u-boot", "max", EL 2, GIC 3, "6G", 1 CPUs;
}

/// The kernel's own memory as it counts it, in KiB: RAM, and what is free.
fn memory(outcome: &Outcome) -> (u64, u64) {
    let line =
        outcome.lines().find_map(|line| line.split_once(" info: memory: ").map(|(_, figures)| figures));
    let line = line.unwrap_or_else(|| panic!("no line says how much memory there is\n{outcome}"));
    let kib: Vec<u64> =
        line.split(", ").filter_map(|figure| figure.split_once(" KiB")?.0.parse().ok()).collect();
    (kib[0], kib[2])
}

#[test]
fn load_options_are_boot_arguments() {
    for firmware in ["edk2", "u-boot"] {
        let options = Boot::kernel().option("--firmware", firmware);
        let outcome = options.option("--args", "selftest=boot.* it's $a;b").run();
        assert!(outcome.passed().names().iter().all(|name| name.starts_with("boot.")), "{outcome}");
        was_left(&outcome, 1);
        for word in ["it's", "$a;b"] {
            assert!(outcome.console.contains(&format!("unknown boot argument `{word}`")), "{outcome}");
        }
        assert_eq!(outcome.console.matches("unknown boot argument").count(), 2, "{outcome}");
    }
}

/// A shell passes its whole line, with the name of the image in front.
#[test]
fn the_name_that_a_shell_puts_first_is_none() {
    let scratch = Scratch::new();
    // What can't be started makes edk2 go on to its shell, which finds its script on the other disk.
    let nothing = scratch.write("Image", b"no Image");
    let disk = scratch.path("disk");
    fs::create_dir(&disk).expect("a directory in the test's own");
    fs::copy(kernel_image(), disk.join("pleat.efi")).expect("the Image");
    let line = r#"pleat.efi selftest=boot.* "a b""#;
    scratch.write("disk/startup.nsh", format!("fs0:\\{line}\r\nfs1:\\{line}\r\n").as_bytes());
    let drive = format!("-drive file=fat:{},format=raw,if=none,id=shell,readonly=on", disk.display());
    let outcome = Boot::new()
        .option("--image", nothing)
        .option("--firmware", "edk2")
        .option("--qemu", format!("{drive} -device virtio-blk-device,drive=shell"))
        .option("--timeout", "60")
        .run();
    assert!(outcome.passed().names().iter().all(|name| name.starts_with("boot.")), "{outcome}");
    was_left(&outcome, 1);
    assert!(outcome.console.contains(r#"unknown boot argument `"a b"`"#), "{outcome}");
    assert_eq!(outcome.console.matches("unknown boot argument").count(), 1, "{outcome}");
}

#[test]
fn an_initrd_that_firmware_loads_is_kept() {
    let scratch = Scratch::new();
    let boot = |bytes: usize| {
        let initrd = scratch.write("initrd", &vec![0xa5; bytes]);
        let options = Boot::kernel().option("--firmware", "edk2").option("--args", "selftest=boot.*");
        let outcome = options.option("--initrd", initrd).run();
        outcome.passed();
        was_left(&outcome, 1);
        let (ram, free) = memory(&outcome);
        ram - free
    };
    // The difference is 31,250 KiB, and what is in pages by and by.
    let more = boot(33_000_001) - boot(1_000_001);
    assert!((31_200..31_300).contains(&more), "32 MB more of initrd take {more} KiB");
}

/// What firmware keeps is not RAM for the kernel.
#[test]
fn memory_of_the_firmware_is_not_used() {
    for firmware in ["edk2", "u-boot"] {
        let options = Boot::kernel().option("--firmware", firmware).option("--args", "selftest=boot.*");
        let outcome = options.run();
        outcome.passed();
        let (ram, _) = memory(&outcome);
        assert!((1000 << 10..1 << 20).contains(&ram), "{ram} KiB of RAM\n{outcome}");
    }
}

#[test]
fn without_a_device_tree_the_kernel_says_so_and_goes_back() {
    let options = Boot::kernel().option("--firmware", "edk2").option("--qemu", "-machine acpi=on");
    let outcome = options.option("--timeout", "40").run();
    outcome.failed("no end after 40 s");
    let said = "pleat: fatal: EFI: the firmware describes its machine by ACPI only; a device tree is needed";
    assert!(outcome.console.contains(said), "{outcome}");
    assert!(!outcome.console.contains("leaving boot services"), "{outcome}");
}
