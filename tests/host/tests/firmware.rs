//! The same Image as an EFI application: the whole suite under each firmware, and what it takes from firmware.

use std::fs;

use pleat_host_tests::boot::{Boot, Outcome, Scratch, bare_image, fault_injection_image, kernel_image};
use pleat_host_tests::suite::Machine;
use pleat_host_tests::tree::{RAM_BASE, Tree};

/// Asserts that firmware started the kernel, and at which exception level.
fn was_left(outcome: &Outcome, el: u8) {
    assert!(outcome.by_firmware(), "{outcome}");
    assert!(outcome.console.contains(&format!(" entered at EL{el}, runs at EL1; ")), "{outcome}");
}

/// One test for each machine and firmware.
macro_rules! machines {
    ($($(#[$ignored:meta])? $name:ident: $firmware:literal, $cpu:literal, EL $el:literal, GIC $gic:literal, $memory:literal, $smp:literal CPUs;)*) => {
        $(
            #[test]
            $(#[$ignored])?
            fn $name() {
                let machine = Machine { cpu: $cpu, el: $el, gic: $gic, memory: $memory, smp: $smp };
                was_left(&machine.runs_with(|boot| boot.option("--firmware", $firmware)), $el);
            }
        )*
    };
}

machines! {
    edk2_el1: "edk2", "max", EL 1, GIC 3, "1G", 4 CPUs;
    #[ignore = "a repetition, with --long"]
    edk2_el2: "edk2", "cortex-a72", EL 2, GIC 2, "6G", 4 CPUs;
    #[ignore = "a repetition, with --long"]
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

/// Firmware, which looks for keys, gets none of it.
#[test]
fn what_is_typed_is_for_the_program() {
    for firmware in ["edk2", "u-boot"] {
        let boot = Boot::kernel().option("--firmware", firmware).option("--args", "init=/bin/lines");
        let outcome = boot.input(b"one\ntwo\n").run();
        was_left(&outcome, 1);
        assert!(outcome.verdict().contains("PASSED: init ended with status 0"), "{outcome}");
        let program: Vec<_> = outcome.lines().skip_while(|&line| line != "one").take(5).collect();
        assert_eq!(program, ["one", "1: one", "two", "2: two", "the end, after 0 bytes: "], "{outcome}");
    }
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

/// By LoadFile2, and beside it the boot arguments.
#[test]
fn an_initrd_that_firmware_loads_is_kept() {
    let scratch = Scratch::new();
    for firmware in ["edk2", "u-boot"] {
        let boot = |bytes: usize| {
            let initrd = scratch.write("initrd", &vec![0xa5; bytes]);
            let options =
                Boot::kernel().option("--firmware", firmware).option("--args", "selftest=boot.* it's");
            let outcome = options.option("--initrd", initrd).run();
            assert!(outcome.passed().names().iter().all(|name| name.starts_with("boot.")), "{outcome}");
            assert!(outcome.console.contains("unknown boot argument `it's`"), "{outcome}");
            was_left(&outcome, 1);
            let (ram, free) = memory(&outcome);
            ram - free
        };
        // The difference is 31,250 KiB, and what is in pages by and by.
        let more = boot(33_000_001) - boot(1_000_001);
        assert!((31_200..31_300).contains(&more), "{firmware}: 32 MB more of initrd take {more} KiB");
    }
}

/// Else U-Boot would start the next thing that it finds, without the initrd.
#[test]
fn an_image_with_an_initrd_that_u_boot_cannot_start_ends_the_boot() {
    let scratch = Scratch::new();
    let (image, initrd) = (scratch.write("Image", b"no Image"), scratch.write("initrd", b"initrd"));
    let options = Boot::new().option("--image", image).option("--initrd", initrd);
    let outcome = options.option("--firmware", "u-boot").option("--timeout", "60").run();
    outcome.failed("no summary line was printed (exit status 0)");
    assert!(outcome.console.contains("poweroff ..."), "{outcome}");
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
    let said = "pleat: fatal: EFI: the firmware describes its machine by ACPI only; a device tree is needed";
    let outcome = options.run_until(said);
    assert!(!outcome.console.contains("leaving boot services"), "{outcome}");
}

/// The dump of `efi_mm` has what the kernel has mapped: 4 KiB pages of the runtime regions.
#[test]
fn efi_mm_is_dumped() {
    for (firmware, attributes) in [("edk2", ["ro", "x"]), ("u-boot", ["RW", "x"])] {
        let options = Boot::kernel().option("--firmware", firmware);
        let outcome = options.option("--args", "ptdump=efi_mm selftest=boot.*").run();
        outcome.passed();
        let dump = outcome.lines().skip_while(|line| *line != "ptdump: efi_mm");
        let dump: Vec<_> = dump.take_while(|line| !line.ends_with(" KiB W+X")).collect();
        assert!(dump.len() > 3, "{outcome}");
        let ranges = dump.iter().filter(|line| line.starts_with("0x"));
        let code = ranges.filter(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            words.windows(2).any(|pair| pair == attributes)
        });
        assert!(code.count() > 0, "no range is {attributes:?}\n{outcome}");
    }
}

/// A public function of entries warns about `efi_mm`, and folds nothing there.
#[test]
fn a_public_call_on_efi_mm_warns() {
    for firmware in ["edk2", "u-boot"] {
        let options = Boot::new().option("--image", fault_injection_image()).option("--firmware", firmware);
        let outcome = options.option("--args", "selftest=efi.*").run();
        let report = outcome.passed();
        assert!(report.names().contains(&"efi.a_public_call_warns"), "{outcome}");
        assert_eq!(report.skipped().count(), 0, "{outcome}");
        assert!(
            outcome.console.contains(" warning: refold was called on efi_mm, in the table at "),
            "{outcome}"
        );
    }
}

/// Without the feature `efi`, and self-tests, firmware starts the kernel all the same.
#[test]
fn without_runtime_services_it_boots_too() {
    let outcome = Boot::new().option("--image", bare_image()).option("--firmware", "edk2").run();
    outcome.failed("no summary line was printed (exit status 0)");
    was_left(&outcome, 1);
    assert!(outcome.console.contains(" info: nothing to run: "), "{outcome}");
    assert!(!outcome.console.contains("EFI runtime services"), "{outcome}");
}

/// The firmware ends the machine, and not the kernel by its own means.
#[test]
fn reset_system_ends_the_run() {
    for firmware in ["edk2", "u-boot"] {
        let options = Boot::kernel().option("--firmware", firmware);
        let outcome = options.option("--args", "selftest=efi.reset_system_on_request").run();
        outcome.failed("no summary line was printed (exit status 0)");
        let last = outcome.lines().filter(|line| !line.is_empty()).last();
        assert_eq!(last, Some("# ResetSystem(shutdown)"), "{outcome}");
    }
}

/// A memory descriptor: type, first byte, virtual address, pages, attributes.
type Descriptor = (u32, u64, u64, u64, u64);

const CODE: u32 = 5;
const DATA: u32 = 6;
const RUNTIME: u64 = 1 << 63;
/// An address that is no RAM, and where its region is in `efi_mm`.
const PA: u64 = 0x4_0000_0000;
const VA: u64 = 0x2_0000_0000;
/// Runtime services as a firmware has them: of code, and of data behind it.
const REGIONS: [Descriptor; 2] =
    [(CODE, PA, VA, 16, RUNTIME), (DATA, PA + 0x1_0000, VA + 0x1_0000, 16, RUNTIME)];

fn descriptors(descriptors: &[Descriptor]) -> Vec<u8> {
    let bytes = |&(kind, pa, va, pages, attribute): &Descriptor| {
        [u64::from(kind), pa, va, pages, attribute].into_iter().flat_map(u64::to_le_bytes)
    };
    descriptors.iter().flat_map(bytes).collect()
}

/// A Memory Attributes Table of one entry.
fn attributes(version: u32, entry: Descriptor) -> Vec<u8> {
    let header = [version, 1, 40, 0].into_iter().flat_map(u32::to_le_bytes);
    header.chain(descriptors(&[entry])).collect()
}

/// A table of runtime services, all at one address.
fn services(va: u64) -> Vec<u8> {
    let header = [0_u32, 136, 0, 0].into_iter().flat_map(u32::to_le_bytes);
    let bytes = b"RUNTSERV".iter().copied().chain(header);
    bytes.chain((0..14).flat_map(|_| va.to_le_bytes())).collect()
}

/// Boots without firmware, with what a firmware might have left in the tree; returns why there are no runtime services.
fn without_services(property: &str, value: Vec<u8>) -> String {
    // What the others break is sound, but for the call that there was none of.
    let tree = Tree::of(&Boot::kernel())
        // What allocates: a table must not take what the rest needs.
        .bootargs("selftest=frames.*")
        .property("/chosen", "pleat,uefi-virtmap-status", 0_u64.to_be_bytes().to_vec())
        .property("/chosen", "pleat,uefi-mmap", descriptors(&REGIONS))
        .property("/chosen", "pleat,uefi-mmap-desc-size", 40_u32.to_be_bytes().to_vec())
        .property("/chosen", "pleat,uefi-mmap-desc-ver", 1_u32.to_be_bytes().to_vec())
        .property("/chosen", "pleat,uefi-runtime-services", services(VA))
        .property("/chosen", &format!("pleat,uefi-{property}"), value);
    let scratch = Scratch::new();
    let dtb = scratch.write("tree.dtb", &tree.to_dtb());
    let outcome = Boot::kernel().option("--image-at", "0x40200000").option("--dtb", dtb).run();
    outcome.passed();
    let why = outcome.lines().find_map(|line| line.split_once(" warning: no EFI runtime services: "));
    match why {
        Some((_, why)) => why.to_owned(),
        None => {
            assert!(outcome.console.contains(" info: EFI runtime services: "), "{outcome}");
            String::new()
        }
    }
}

/// Whatever firmware's tables say: one line, no services, and the rest boots.
#[test]
fn bad_tables_are_refused_and_the_rest_boots() {
    let word = |value: u32| value.to_be_bytes().to_vec();
    let mut overlapping = REGIONS;
    overlapping[1].1 = PA + 0xf000;
    let in_ram = [(CODE, RAM_BASE + (128 << 20), VA, 16, RUNTIME)];
    let mut unmapped = REGIONS;
    unmapped[0].2 = 0;
    let mut twice = REGIONS;
    twice[1].2 = VA + 0xf000;
    let outside = (CODE, PA + 0xf000, 0, 2, RUNTIME);
    let registers = |pages| [REGIONS[0], (11, 1 << 40, 1 << 41, pages, RUNTIME)];
    // Each page in another part of the address space.
    let sparse: Vec<_> =
        (1..1000).map(|i| (DATA, i << 35, i << 36, 1, RUNTIME)).chain([REGIONS[0]]).collect();
    for (property, value, why) in [
        ("mmap", descriptors(&REGIONS), ""),
        (
            "mmap",
            descriptors(&REGIONS)[..79].to_vec(),
            "EFI memory map: 79 bytes are no whole descriptors of 40",
        ),
        ("mmap", Vec::new(), "EFI memory map: 0 bytes are no whole descriptors of 40"),
        ("mmap", descriptors(&overlapping), "EFI memory map: regions overlap: "),
        ("mmap", descriptors(&in_ram), "EFI memory map: a runtime region is in the kernel's RAM: "),
        ("mmap", descriptors(&unmapped), "EFI runtime services table: "),
        ("mmap", descriptors(&twice), "0x20000f000 is mapped already in efi_mm"),
        (
            "mmap",
            descriptors(&registers(1 << 28)),
            "EFI memory map: 0x10000010000 bytes of runtime regions are too many",
        ),
        ("mmap", descriptors(&sparse), "no memory for a translation table"),
        ("rt-properties", vec![1, 0, 8, 0, 0, 0, 0, 0], ""),
        ("mmap-desc-size", word(0), "EFI memory map: a descriptor can't have 0 bytes"),
        ("mmap-desc-size", word(u32::MAX), "EFI memory map: a descriptor can't have 4294967295 bytes"),
        ("mmap-desc-ver", word(2), "EFI memory map: descriptors of version 2 are not known"),
        (
            "virtmap-status",
            (1_u64 << 63 | 2).to_be_bytes().to_vec(),
            "SetVirtualAddressMap failed: status 0x8000000000000002",
        ),
        ("memattr", attributes(3, REGIONS[0]), "EFI Memory Attributes Table: version 3 is not known"),
        ("memattr", attributes(1, outside), "EFI Memory Attributes Table: an entry is in no runtime region"),
        (
            "memattr",
            attributes(2, REGIONS[0])[..55].to_vec(),
            "EFI Memory Attributes Table: it ends after 55 bytes",
        ),
        ("rt-properties", vec![1, 0, 8, 0, 0, 0], "EFI RT_PROPERTIES table: it ends after 6 bytes"),
        (
            "runtime-services",
            services(VA + 0x1_0000),
            "EFI runtime services table: GetTime at 0x200010000 is in no region",
        ),
        (
            "runtime-services",
            services(VA)[..100].to_vec(),
            "EFI runtime services table: it ends after 100 bytes",
        ),
    ] {
        let said = without_services(property, value);
        assert!(
            said.starts_with(why) && said.is_empty() == why.is_empty(),
            "{property}: expected `{why}`: `{said}`"
        );
    }
}
