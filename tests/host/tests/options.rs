//! The options of `scripts/run`: what is wrong is said in one line, and `--print` shows what would run.
//! Nothing is set up, built or booted here.

use pleat_host_tests::boot::{Boot, Outcome, Scratch, USAGE};

/// Asserts that the script refuses its options with one line that holds `reason`.
fn refused(outcome: &Outcome, reason: &str) {
    assert_eq!(outcome.status, Some(USAGE), "{outcome}");
    assert_eq!(outcome.messages.lines().count(), 1, "{outcome}");
    assert!(outcome.messages.contains(reason), "expected `{reason}`\n{outcome}");
    assert_eq!(outcome.console, "", "{outcome}");
}

fn printed(boot: Boot) -> String {
    let outcome = boot.flag("--print").run();
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert_eq!(outcome.messages, "", "{outcome}");
    outcome.console
}

#[test]
fn values_that_are_none_of_the_choices_are_refused() {
    let choices = [
        ("--machine", "pc", "virt raspi4b"),
        ("--firmware", "bios", "none edk2 u-boot"),
        ("--el", "3", "1 2"),
        ("--gic", "4", "2 3"),
    ];
    for (option, value, expected) in choices {
        let outcome = Boot::new().option(option, value).run();
        refused(&outcome, &format!("{option} is '{value}': it must be one of: {expected}"));
    }
}

#[test]
fn values_that_cannot_be_read_are_refused() {
    let values = [
        ("--smp", "0"),
        ("--smp", "four"),
        ("--memory", "1024"),
        ("--memory", "0M"),
        ("--memory", "-1G"),
        ("--timeout", "soon"),
        ("--cpu", "Cortex A72"),
    ];
    for (option, value) in values {
        refused(&Boot::new().option(option, value).run(), &format!("{option} is '{value}'"));
    }
    for option in ["--smp", "--initrd", "--machine"] {
        refused(&Boot::new().option(option, "").run(), &format!("{option} needs a value that is not empty"));
        refused(&Boot::new().flag(option).run(), &format!("{option} needs a value"));
    }
    refused(&Boot::new().option("--qemu", "-name 'a b").run(), "--qemu has a quote that is not closed");
    refused(&Boot::new().flag("--frobnicate").run(), "there is no option '--frobnicate'");
    refused(&Boot::new().flag("word").run(), "there is no option 'word'");
}

#[test]
fn files_that_are_not_there_are_refused() {
    for option in ["--initrd", "--image"] {
        let outcome = Boot::new().option(option, "/no/such/file").run();
        refused(&outcome, "the file '/no/such/file' is not there or can't be read");
    }
    let scratch = Scratch::new();
    let empty = scratch.write("initrd", b"");
    let outcome = Boot::new().option("--initrd", &empty).run();
    refused(&outcome, &format!("the file '{}' is empty", empty.display()));
}

#[test]
fn what_does_not_go_together_is_refused() {
    refused(&Boot::new().option("--gic", "2").option("--smp", "9").run(), "a GICv2 has at most 8 CPUs");
    refused(&Boot::new().option("--x0", "0").run(), "--dtb and --x0 need --image-at");
    let at = |address| Boot::new().option("--image-at", address);
    refused(&at("0x40200800").run(), "it must be a multiple of 4096");
    refused(&at("0x40100000").run(), "at least 0x40200000");
    refused(&at("here").run(), "'here' is no address");
    refused(&at("0x40200000").option("--args", "a").run(), "with --image-at they belong into --dtb");
    refused(&at("0x40200000").option("--firmware", "edk2").run(), "--image-at needs --firmware none");
}

#[test]
fn a_raspberry_pi_is_what_it_is() {
    let pi = || Boot::new().option("--machine", "raspi4b");
    for (option, value) in
        [("--cpu", "max"), ("--smp", "2"), ("--memory", "1G"), ("--el", "1"), ("--gic", "3")]
    {
        let outcome = pi().option(option, value).run();
        refused(&outcome, "--machine raspi4b has no other than cortex-a72, 4 CPUs, 2G, EL2, GICv2");
    }
    refused(&pi().option("--firmware", "edk2").run(), "--machine raspi4b needs --firmware none");
    refused(
        &pi().option("--image-at", "0x40200000").run(),
        "--image-at, --x0 and --dump-dtb need --machine virt",
    );
    let card = pi().option("--sdcard", "/dev/null");
    for option in ["--args", "--initrd", "--image"] {
        refused(
            &card.clone().option(option, "/dev/null").run(),
            &format!("{option} does not go with --sdcard"),
        );
    }
    refused(&pi().option("--sdcard", "/no/such/file").run(), "the file '/no/such/file' is not there");
    refused(&Boot::new().option("--sdcard", "/dev/null").run(), "--sdcard needs --machine raspi4b");

    let scratch = Scratch::new();
    // No tree, a header without more, and one that is cut off.
    let tree = include_bytes!("../../../kernel/tests/data/rpi4-model.dtb");
    for bytes in [&b"no tree"[..], &tree[..4], &tree[..40], &tree[..tree.len() - 1]] {
        let outcome = pi().option("--dtb", scratch.write("tree.dtb", bytes)).run();
        refused(&outcome, "is no whole device tree");
    }
    let dtb = scratch.write("tree.dtb", tree);
    let outcome = printed(pi().option("--dtb", &dtb).option("--image", "/dev/null"));
    let expected = format!("-kernel /dev/null -dtb {} -append console=ttyAMA0\n", dtb.display());
    assert!(outcome.contains("-machine raspi4b ") && outcome.ends_with(&expected), "{outcome}");
    // The first UART is the PL011.
    for (args, serial) in [
        ("selftest=list", "-serial stdio -serial null"),
        ("console=ttyS0", "-serial null -serial stdio"),
        ("console=ttyS1,115200 a", "-serial null -serial stdio"),
        ("console=ttyS0 console=ttyAMA0", "-serial stdio -serial null"),
        ("console=ttyS0 console=tty1", "-serial null -serial stdio"),
    ] {
        let outcome = printed(pi().option("--args", args));
        assert!(outcome.contains(serial), "{args}: {outcome}");
    }
}

/// Calls `scripts/sdcard` and asserts that it refuses that with one line that holds `reason`.
fn no_card(words: &[&str], reason: &str) {
    let script = pleat_host_tests::boot::source_root().join("scripts/sdcard");
    let output = std::process::Command::new(script).args(words).output().expect("bash runs the script");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(USAGE), "{messages}");
    assert_eq!(messages.lines().count(), 1, "{messages}");
    assert!(messages.contains(reason), "expected `{reason}`: {messages}");
}

#[test]
fn a_card_is_a_file() {
    let scratch = Scratch::new();
    let link = scratch.path("link");
    std::os::unix::fs::symlink("/dev/null", &link).expect("a link in the test's own directory");
    for device in ["/dev/null", "/dev/no-such-card", "/dev/../dev/mmcblk0", link.to_str().expect("ASCII")] {
        no_card(&[device], &format!("'{device}' is a device"));
    }
    let directory = scratch.path("");
    no_card(&[directory.to_str().expect("ASCII")], "is there and no file");
    no_card(&["/no/such/directory/card.img"], "its directory is not there");
    no_card(&[], "the name of the image to be written is missing");
    no_card(&["a.img", "b.img"], "'b.img' is a second name for the image");
    no_card(&["--frobnicate", "a.img"], "there is no option '--frobnicate'");
    no_card(&["a.img", "--initrd"], "--initrd needs a value");
    no_card(&["--initrd", "/no/such/file", "a.img"], "the file '/no/such/file' is not there");
    no_card(&["--image", "/no/such/file", "a.img"], "the file '/no/such/file' is not there");
    no_card(&["--image", "/", "a.img"], "the file '/' is not there or can't be read");
    no_card(&["--initrd", "/dev/zero", "a.img"], "the file '/dev/zero' is not there or can't be read");
    no_card(
        &["--firmware-dir", "/no/such/directory", "a.img"],
        "the directory '/no/such/directory' is not there",
    );
}

#[test]
fn the_toolchain_that_is_asked_for_must_exist() {
    let script = pleat_host_tests::boot::source_root().join("scripts/run");
    let output = std::process::Command::new(script)
        .arg("--build")
        .env("PLEAT_TOOLCHAIN", "gcc")
        .output()
        .expect("bash runs the script");
    assert_eq!(output.status.code(), Some(USAGE));
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(messages.contains("PLEAT_TOOLCHAIN is 'gcc': it must be rustup or debian"), "{messages}");
}

#[test]
fn help_names_every_option() {
    let outcome = Boot::new().flag("--help").run();
    assert_eq!(outcome.status, Some(0), "{outcome}");
    let options = "--machine --firmware --cpu --smp --memory --el --gic --args --initrd --qemu --timeout \
                   --build --print --help --sdcard --image --image-at --dtb --x0 --dump-dtb";
    for option in options.split_whitespace() {
        assert!(outcome.console.contains(&format!("  {option} ")), "{option}\n{outcome}");
    }
}

#[test]
fn print_shows_the_defaults() {
    let command = printed(Boot::new());
    let expected = "qemu-system-aarch64 -machine virt,gic-version=3 -cpu max -smp 4 -m 1G \
                    -display none -monitor none -serial stdio -nic none -semihosting-config enable=on,target=native -kernel ";
    assert!(command.starts_with(expected), "{command}");
    assert!(command.ends_with("/pleat/selftest/Image\n"), "{command}");
}

#[test]
fn print_shows_what_every_option_does() {
    let options = [
        ("--cpu", "neoverse-n1,pmu=off", "-cpu neoverse-n1,pmu=off "),
        ("--cpu=cortex-a72", "", "-cpu cortex-a72 "),
        ("--smp", "8", "-smp 8 "),
        ("--memory", "64M", "-m 64M "),
        ("--el", "2", "-machine virt,gic-version=3,virtualization=on "),
        ("--gic", "2", "-machine virt,gic-version=2 "),
        ("--args", "selftest=mm.* it's", r"-append 'selftest=mm.* it'\''s'"),
        ("--initrd", "/dev/null", "-initrd /dev/null"),
        ("--qemu", "-name 'two words'", "-name 'two words'"),
    ];
    for (option, value, expected) in options {
        let boot =
            if option.contains('=') { Boot::new().flag(option) } else { Boot::new().option(option, value) };
        let command = printed(boot);
        assert!(command.contains(expected), "{option} {value}: {command}");
    }
}

#[test]
fn print_shows_a_boot_at_an_address() {
    let at = || Boot::new().option("--image-at", "0x40281000");
    let command = printed(at().option("--dtb", "/dev/null"));
    for piece in [
        "addr=0x40281000,force-raw=on",
        "loader,file=/dev/null,addr=0x40101000,force-raw=on",
        "/pleat/trampoline-0x40281000-0x40101000,addr=0x40100000,force-raw=on",
        "loader,addr=0x40100000,cpu-num=0",
    ] {
        assert!(command.contains(piece), "{piece}: {command}");
    }
    assert!(!command.contains("-kernel"), "{command}");
    assert!(printed(at()).contains("/pleat/trampoline-0x40281000-0,addr="));
    assert!(printed(at().option("--x0", "0x123")).contains("/pleat/trampoline-0x40281000-0x123,addr="));
}

#[test]
fn print_shows_how_firmware_is_booted() {
    let by = |firmware| Boot::new().option("--firmware", firmware).option("--image", "/dev/null");
    let disk = "-drive file=fat:/dev/null.esp,format=raw,if=none,id=esp,readonly=on \
                -device virtio-blk-device,drive=esp";
    let edk2 = printed(by("edk2"));
    assert!(edk2.contains("-machine virt,gic-version=3,acpi=off "), "{edk2}");
    assert!(edk2.contains("-bios /usr/share/qemu-efi-aarch64/QEMU_EFI.fd ") && edk2.contains(disk), "{edk2}");
    let u_boot = printed(by("u-boot"));
    assert!(!u_boot.contains("acpi"), "{u_boot}");
    assert!(
        u_boot.contains("-bios /usr/lib/u-boot/qemu_arm64/u-boot.bin ") && u_boot.contains(disk),
        "{u_boot}"
    );
    assert!(!format!("{edk2}{u_boot}").contains("-kernel"), "{edk2}{u_boot}");

    let edk2 = printed(by("edk2").option("--args", "a b").option("--initrd", "/dev/null"));
    assert!(edk2.contains("-kernel /dev/null -append 'a b' -initrd /dev/null"), "{edk2}");
    assert!(!edk2.contains("-drive"), "{edk2}");
    let u_boot = printed(by("u-boot").option("--args", "a b"));
    assert!(u_boot.contains("-append 'a b'") && u_boot.contains(disk), "{u_boot}");
    // A disk of this boot alone, which holds the initrd.
    let u_boot = printed(by("u-boot").option("--args", "a b").option("--initrd", "/dev/null"));
    assert!(u_boot.contains("-append 'a b'") && u_boot.contains("file=fat:/dev/null.esp-"), "{u_boot}");
    assert!(!u_boot.contains("-initrd"), "{u_boot}");
}
