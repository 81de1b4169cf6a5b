//! A Raspberry Pi 4 as QEMU has it, with the device tree of Debian's kernel, which `scripts/test` has fetched: the whole
//! suite, and the image of its SD card.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pleat_host_tests::boot::{Boot, Outcome, Scratch, kernel_image, program, source_root};
use pleat_host_tests::cpio::Cpio;
use pleat_host_tests::suite::Machine;
use pleat_host_tests::tree::Tree;

fn pi() -> Boot {
    Boot::kernel().option("--machine", "raspi4b")
}

/// What `scripts/test` has fetched.
fn files() -> PathBuf {
    kernel_image().parent().and_then(Path::parent).expect("it is two levels deep").join("raspi4b")
}

const FIRMWARE: [&str; 5] =
    ["start4.elf", "fixup4.dat", "LICENCE.broadcom", "bcm2711-rpi-4-b.dtb", "COPYING.linux"];

fn tree() -> Tree {
    Tree::load(&files().join("bcm2711-rpi-4-b.dtb"))
}

/// Boots with an edited tree, of which QEMU replaces nodes of memory that are so called.
fn boot_with(tree: &Tree, args: &str) -> Outcome {
    let scratch = Scratch::new();
    pi().option("--dtb", scratch.write("tree.dtb", &tree.to_dtb())).option("--args", args).run()
}

fn cells(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

#[test]
fn the_whole_suite() {
    let outcome = pi().run();
    Machine::RASPBERRY_PI_4.is_whole(&outcome);
    assert!(outcome.console.contains("on Raspberry Pi 4 Model B"), "{outcome}");
    assert!(outcome.console.contains("CPU 0x410fd083 entered at EL2, runs at EL1"), "{outcome}");
    assert!(outcome.console.contains("4 CPUs run"), "{outcome}");
    // A Cortex-A72 has none of these.
    let none = "MMU: Features { tlb_range: false, hafdbs: None, bbm_no_abort: false }, level hints false";
    assert!(outcome.console.contains(none), "{outcome}");
    // Its tree has none, so nobody was asked.
    assert!(!outcome.console.contains("PSCI"), "{outcome}");
}

/// RAM on both sides of the VideoCore's.
#[test]
fn memory_with_a_hole() {
    let upper = [("device_type", b"memory\0".to_vec()), ("reg", cells(&[0, 0x4000_0000, 0x4000_0000]))];
    let outcome = boot_with(&tree().with_node("ram@40000000", &upper), "");
    Machine::RASPBERRY_PI_4.is_whole(&outcome);
    assert!(outcome.console.contains("memory: 2031616 KiB in 2 ranges, 2031616 KiB mapped"), "{outcome}");
}

#[test]
fn the_mini_uart_is_a_console() {
    for console in ["ttyS0", "ttyS1,115200n8"] {
        let outcome = pi().option("--args", format!("console={console} selftest=boot.*")).run();
        outcome.passed();
        assert!(!outcome.console.contains("warning: unknown boot argument"), "{outcome}");
    }
}

#[test]
fn what_is_typed_is_read_by_either_uart() {
    for console in ["ttyAMA0", "ttyS0"] {
        let args = format!("console={console} init=/bin/lines loglevel=error");
        let input: String = (0..500).map(|number| format!("line {number}\n")).collect();
        let outcome = pi().option("--args", args).input(input.as_bytes()).run();
        assert!(outcome.verdict().contains("PASSED: init ended with status 0"), "{outcome}");
        for number in 0..500 {
            let printed = format!("{}: line {number}", number + 1);
            assert!(outcome.lines().any(|line| line == printed), "{printed}\n{outcome}");
        }
    }
}

/// An interrupt that is an edge is none that the kernel takes from a UART.
#[test]
fn a_console_whose_interrupt_is_not_known_is_at_its_end() {
    let tree = tree().property("/soc/serial@7e201000", "interrupts", cells(&[0, 121, 1]));
    let scratch = Scratch::new();
    let boot = pi().option("--dtb", scratch.write("tree.dtb", &tree.to_dtb()));
    let outcome = boot.option("--args", "init=/bin/lines").input(b"one\n").run();
    assert!(outcome.verdict().contains("PASSED: init ended with status 0"), "{outcome}");
    let warning = "warning: console: its interrupt is not known, so that nothing can be read";
    assert!(outcome.console.contains(warning), "{outcome}");
    assert!(outcome.lines().any(|line| line == "the end, after 0 bytes: "), "{outcome}");
}

/// With nothing where the tree says that UART 0 is, the reason is said on the mini-UART. QEMU is led there by the first
/// word; the second is the kernel's.
#[test]
fn a_console_that_is_not_there_is_another() {
    // Of the VideoCore's addresses 0x7e201000, in a gap of QEMU's machine.
    let tree = tree().property("/soc/serial@7e201000", "reg", cells(&[0x7e20_8000, 0x200]));
    let outcome = boot_with(&tree, "console=ttyS0 \"console=ttyAMA0\" selftest=boot.*");
    outcome.passed();
    let said = "warning: console: Pl011: the device tree promises registers at 0xfe208000..0xfe208200";
    assert!(outcome.console.contains(said), "{outcome}");
    assert!(!outcome.console.contains("console=: there is no"), "{outcome}");
}

/// An Image of one page, in front of the kernel's, that leads GPIO 14 and 15 to UART 0 (ALT0 in GPFSEL1): a reset of QEMU's
/// makes them inputs.
fn with_pins_led() -> Vec<u8> {
    let kernel = fs::read(kernel_image()).expect("it was built");
    let mut page = vec![0; 4096];
    let mut put = |offset: usize, bytes: &[u8]| page[offset..offset + bytes.len()].copy_from_slice(bytes);
    // The kernel's header but for its jump and its size.
    put(8, &kernel[8..64]);
    let size = u64::from_le_bytes(kernel[16..24].try_into().expect("eight bytes"));
    put(16, &(size + 4096).to_le_bytes());
    let movz = |register: u32, upper: u32| 0xd2a0_0000 | upper << 5 | register;
    let movk = |register: u32, lower: u32| 0xf280_0000 | lower << 5 | register;
    let str_w_4 = 0xb900_0400 | 9 << 5 | 10;
    let branch = |bytes: u32| 0x1400_0000 | (bytes / 4);
    put(0, &branch(64).to_le_bytes());
    let code = [movz(9, 0xfe20), movz(10, 0x2), movk(10, 0x4000), str_w_4, branch(4096 - 80)];
    for (index, word) in code.into_iter().enumerate() {
        put(64 + 4 * index, &u32::to_le_bytes(word));
    }
    page.extend(kernel);
    page
}

/// Firmware may lead the pins and leave the UART without a baud rate, as QEMU's is after a reset.
#[test]
fn pins_that_are_led_are_no_baud_rate() {
    let scratch = Scratch::new();
    let image = scratch.write("Image", &with_pins_led());
    let outcome = Boot::new()
        .option("--machine", "raspi4b")
        .option("--image", image)
        .option("--args", "selftest=boot.*")
        .option("--qemu", "-trace pl011_baudrate_change")
        .run();
    outcome.passed();
    // Behind that page; and 48 MHz / (16 * 115200) is 26 and 3/64.
    assert!(outcome.console.contains("Image at 0x201000 to "), "{outcome}");
    assert!(outcome.console.contains("ibrd: 26, fbrd: 3)"), "{outcome}");
}

/// As a board is: the instruction of semihosting is undefined, and no firmware can be called.
#[test]
fn the_end_on_a_board_is_no_fault() {
    let without = |args| {
        let boot = pi().option("--args", args).option("--qemu", "-semihosting-config enable=off");
        let outcome = boot.run_until("; nothing here switches the machine off");
        assert!(outcome.lines_after("pleat: panic: ").is_empty(), "{outcome}");
        outcome
    };
    let outcome = without("selftest=boot.*");
    let report = outcome.report().unwrap_or_else(|error| panic!("{error}\n{outcome}"));
    assert!(report.failed == 0 && report.passed > 0, "{outcome}");
    assert_eq!(
        outcome.lines_after("pleat: "),
        ["ended with status 0; nothing here switches the machine off"]
    );

    let outcome = without("loglevel=loud");
    let said = outcome.lines_after("pleat: ");
    assert!(said.len() == 2 && said[0].starts_with("fatal: bootargs: "), "{outcome}");
    assert_eq!(said[1], "ended with status 2; nothing here switches the machine off");
}

#[test]
fn a_release_address_must_be_memory() {
    let fatal = |address: [u32; 2]| {
        let tree = tree().property("/cpus/cpu@1", "cpu-release-addr", cells(&address));
        let outcome = boot_with(&tree, "");
        outcome.failed("no summary line was printed (exit status 2)");
        let said = outcome.lines_after("pleat: fatal: ");
        assert_eq!(said.len(), 1, "{outcome}");
        said[0].to_owned()
    };
    let unmapped = "CPU 0x1 can't be started: its `cpu-release-addr`";
    // The VideoCore's, and beyond the linear map.
    for address in [[0, 0x3d00_0000], [0x8000, 0]] {
        let said = fatal(address);
        assert!(said.starts_with(unmapped) && said.ends_with("is not in RAM that may be mapped"), "{said}");
    }
    let misaligned = fatal([0, 0xe4]);
    assert!(
        misaligned.contains("`cpu-release-addr` of CPU 0x1 is missing, malformed or not aligned"),
        "{misaligned}"
    );
}

/// Licences as they come, and not only what refers to them.
#[test]
fn what_was_fetched_has_its_licences() {
    let text = |name: &str| fs::read_to_string(files().join(name)).expect("scripts/test has fetched it");
    for part in ["GNU GENERAL PUBLIC LICENSE", "Version 2, June 1991", "END OF TERMS AND CONDITIONS"] {
        assert!(text("COPYING.linux").contains(part), "no `{part}`");
    }
    assert!(text("LICENCE.broadcom").contains("Redistribution and use in binary form"));
    for package in [" raspi-firmware_", " linux-image-", " base-files_"] {
        assert!(text("packages").contains(package), "{package}");
    }
}

/// Calls `scripts/sdcard`.
fn sdcard(out: &Path, options: &[&str]) -> Output {
    let mut command = Command::new(source_root().join("scripts/sdcard"));
    command.args(["--image".as_ref(), kernel_image().as_os_str()]).args(options).arg(out);
    command.output().expect("bash runs the script")
}

fn make(out: &Path, options: &[&str]) -> String {
    let output = sdcard(out, options);
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{messages}");
    // What writes it to a card, and nothing else, is on standard output.
    let command = String::from_utf8(output.stdout).expect("it is text");
    assert_eq!(
        command,
        format!("sudo dd if={} of=/dev/sdX bs=4M conv=fsync status=progress\n", out.display())
    );
    messages.into_owned()
}

#[test]
fn the_card_is_the_same_twice_and_boots() {
    let scratch = Scratch::new();
    let (first, second) = (scratch.path("first.img"), scratch.path("second.img"));
    make(&first, &[]);
    make(&second, &[]);
    let bytes = fs::read(&first).expect("it was written");
    assert!(bytes == fs::read(&second).expect("it was written"), "two runs made different cards");

    let outcome = Boot::new().option("--machine", "raspi4b").option("--sdcard", &first).run();
    Machine::RASPBERRY_PI_4.is_whole(&outcome);
    assert!(bytes == fs::read(&first).expect("it was written"), "a boot changed the card");
}

/// Whatever it is called, and whatever is beside it.
#[test]
fn a_card_replaces_no_other_file() {
    let scratch = Scratch::new();
    let victim = scratch.write("victim", b"somebody's");
    let card = scratch.path("card.img");
    symlink(&victim, scratch.path("card.img.new")).expect("in the test's own directory");
    make(&card, &[]);
    assert_eq!(fs::read(&victim).expect("it was written"), b"somebody's");
    assert!(scratch.path("card.img.new").is_symlink());
    // card.img, its neighbour, and the victim: nothing is left.
    assert_eq!(fs::read_dir(scratch.path("")).expect("it was made").count(), 3);

    let latin_1 = scratch.path("").join(OsStr::from_bytes(b"c\xe4rd.img"));
    let output = sdcard(&latin_1, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::read(&latin_1).expect("it was made") == fs::read(&card).expect("it was made"));
}

/// What was taken off one card is not taken for another's.
#[test]
fn a_program_is_init_from_the_initrd_of_a_card() {
    let scratch = Scratch::new();
    let hello = fs::read(program("hello")).expect("it was built");
    let initrd = scratch.write("initrd", &Cpio::new().program("sbin/first", &hello).bytes());
    let card = scratch.path("card.img");
    let boot = || Boot::new().option("--machine", "raspi4b").option("--sdcard", &card);
    make(&card, &["--args", "init=/sbin/first", "--initrd", initrd.to_str().expect("ASCII")]);
    let outcome = boot().run();
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert!(outcome.verdict().contains("PASSED: init ended with status 0"), "{outcome}");
    assert_eq!(outcome.lines().filter(|&line| line == "hello, world").count(), 1, "{outcome}");

    make(&card, &["--args", "init=/bin/hello"]);
    let outcome = boot().run();
    assert!(outcome.verdict().contains("PASSED: init ended with status 0"), "{outcome}");
    assert!(!boot().flag("--print").run().console.contains("-initrd"), "that of the card before");
}

#[test]
fn a_card_has_arguments_and_an_initrd() {
    let scratch = Scratch::new();
    let initrd = scratch.write("initrd", &vec![0x5a; 1_000_001]);
    let card = scratch.path("card.img");
    let initrd = initrd.to_str().expect("ASCII");
    make(&card, &["--args", "selftest=boot.* console=ttyS1 \"a b\"", "--initrd", initrd]);
    let outcome = Boot::new().option("--machine", "raspi4b").option("--sdcard", &card).run();
    assert!(outcome.passed().names().iter().all(|name| name.starts_with("boot.")), "{outcome}");
    assert!(outcome.console.contains("unknown boot argument `\"a b\"`"), "{outcome}");

    let print = Boot::new().option("--machine", "raspi4b").option("--sdcard", &card).flag("--print").run();
    assert!(print.console.contains("if=sd,snapshot=on") && print.console.contains("-initrd "), "{print}");
}

#[test]
fn firmware_that_is_not_all_there() {
    let scratch = Scratch::new();
    let directory = scratch.path("firmware");
    let fresh = || {
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).expect("in the test's own directory");
        for name in FIRMWARE {
            fs::copy(files().join(name), directory.join(name)).expect("scripts/test has fetched it");
        }
    };
    let card = scratch.path("card.img");
    let options = ["--firmware-dir", directory.to_str().expect("ASCII")];
    let refused = |why: &str| {
        let output = sdcard(&card, &options);
        let messages = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{messages}");
        let last = messages.lines().last().unwrap_or_default();
        assert!(last.starts_with("sdcard: error: ") && last.contains(why), "expected `{why}`: {messages}");
        assert!(!card.exists(), "half a card");
    };
    fresh();
    make(&card, &options);
    fs::remove_file(&card).expect("it was made");
    for name in FIRMWARE {
        fresh();
        fs::remove_file(directory.join(name)).expect("it was copied");
        refused(&format!("{name}: No such file"));
        fs::write(directory.join(name), b"").expect("in the test's own directory");
        refused(&format!("{name}: it is empty"));
    }
    fresh();
    let whole = fs::read(directory.join("start4.elf")).expect("it was copied");
    fs::write(directory.join("start4.elf"), &whole[..5000]).expect("in the test's own directory");
    refused("the firmware's start4.elf is not what its name says");
    fresh();
    fs::write(directory.join("COPYING.linux"), b"see elsewhere").expect("in the test's own directory");
    refused("COPYING.linux is without the text of the licence");
    fresh();
    let dtb = fs::read(directory.join("bcm2711-rpi-4-b.dtb")).expect("it was copied");
    fs::write(directory.join("bcm2711-rpi-4-b.dtb"), &dtb[..dtb.len() / 2])
        .expect("in the test's own directory");
    refused("the device tree bcm2711-rpi-4-b.dtb can't be read: truncated");
}

#[test]
fn what_is_no_card_says_so() {
    let scratch = Scratch::new();
    let none = scratch.write("none.img", &[0; 4096]);
    let outcome = Boot::new().option("--machine", "raspi4b").option("--sdcard", &none).run();
    assert_eq!(outcome.status, Some(3), "{outcome}");
    assert!(outcome.verdict().ends_with("none.img: this is no card with one FAT32 partition"), "{outcome}");

    // Neither is read into memory.
    let huge = scratch.path("huge.img");
    let file = File::create(&huge).expect("in the test's own directory");
    file.set_len(1 << 40).expect("it is sparse");
    for (card, said) in [(huge.as_path(), "this is no card"), (Path::new("/dev/zero"), "it is no file")] {
        let outcome = Boot::new().option("--machine", "raspi4b").option("--sdcard", card).run();
        assert_eq!(outcome.status, Some(3), "{outcome}");
        assert!(outcome.verdict().contains(&format!("{}: {said}", card.display())), "{outcome}");
    }
}

/// A program that is found before the machine's own of this name.
fn stand_in(directory: &Scratch, name: &str, script: &str) {
    let path = directory.write(name, format!("#!/bin/sh\n{script}\n").as_bytes());
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("in the test's own directory");
}

/// Calls a script that finds these programs first, and asserts that it fails to set up, with this last line.
fn cannot_set_up(directory: &Scratch, script: &str, words: &[&str], said: &str) {
    let path = format!("{}:{}", directory.path("").display(), env::var("PATH").expect("there is one"));
    let mut command = Command::new(source_root().join("scripts").join(script));
    // Where nothing was fetched yet.
    command.args(words).env("PATH", path).env("CARGO_TARGET_DIR", directory.path("target"));
    let output = command.output().expect("bash runs the script");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{messages}");
    assert_eq!(messages.lines().last(), Some(said), "{messages}");
}

#[test]
fn an_archive_that_is_out_of_reach() {
    let scratch = Scratch::new();
    stand_in(&scratch, "apt-get", "exit 100");
    let image = kernel_image();
    let card = scratch.path("card.img");
    let words = ["--image", image.to_str().expect("ASCII"), card.to_str().expect("ASCII")];
    let said = "sdcard: error: the Raspberry Pi's firmware and device tree could not be fetched from \
                http://deb.debian.org/debian: give your own: --dtb FILE to scripts/run, --firmware-dir DIR to scripts/sdcard";
    cannot_set_up(&scratch, "sdcard", &words, said);
    assert!(!card.exists());
    // Nothing half done is left to be taken for what was fetched.
    let left = fs::read_dir(scratch.path("target/pleat")).expect("it was made").count();
    assert_eq!(left, 0, "something is left of it");
}

/// On a machine whose QEMU is older, and where no other can be had.
#[test]
fn a_qemu_without_the_board() {
    let scratch = Scratch::new();
    stand_in(
        &scratch,
        "qemu-system-aarch64",
        "case $* in *version*) echo 'QEMU emulator version 7.2.1';; *-cpu*) echo '  cortex-a72';; *) echo 'virt  QEMU';; esac",
    );
    // Asked for lists and packages, apt has none; and the backports are not added to this machine.
    stand_in(&scratch, "apt-get", "exit 1");
    stand_in(&scratch, "apt-cache", "echo n=bookworm-backports");
    let said = "run: error: QEMU 7.2.1 has no machine raspi4b: install QEMU 9.0 or later";
    cannot_set_up(&scratch, "run", &["--machine", "raspi4b"], said);
}
