//! Programs as init: what they print is what they print on Linux, their status ends the machine, and what is no program or no
//! archive is refused.

use std::process::Command;

use pleat_host_tests::boot::{Boot, Outcome, Scratch, bare_image, kernel_image, output_for, program};
use pleat_host_tests::cpio::Cpio;

fn boot(args: &str) -> Boot {
    Boot::new().option("--image", kernel_image()).option("--timeout", "120").option("--args", args)
}

/// What programs have printed: the lines after the kernel's last one before them, without those that it logs.
fn printed(outcome: &Outcome) -> Vec<&str> {
    let lines = outcome.lines().skip_while(|line| !line.starts_with("boot: "));
    lines.skip(1).filter(|line| !line.starts_with('[') && !line.starts_with("pleat: ")).collect()
}

fn passed(outcome: &Outcome) {
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert!(outcome.verdict().contains("PASSED: init ended with status 0"), "{outcome}");
}

/// Runs a program here, by QEMU's user emulation, and there, and compares.
fn is_the_same_on_linux(name: &str) {
    let linux = Command::new("qemu-aarch64")
        .arg(program(name))
        .args(["qemu-user", "two"])
        .env("PLEAT_TEST", "1")
        .output()
        .expect("scripts/test installs the package qemu-user");
    assert!(linux.status.success(), "{name} on Linux: {linux:?}");
    let expected = String::from_utf8(linux.stdout).expect("text");
    assert!(!expected.is_empty(), "{name} prints nothing on Linux");
    let outcome = boot(&format!("init=/bin/{name} qemu-user two PLEAT_TEST=1")).run();
    passed(&outcome);
    assert_eq!(printed(&outcome), expected.lines().collect::<Vec<_>>(), "{outcome}");
}

macro_rules! same_on_linux {
    ($($name:ident: $program:literal;)*) => {
        $(#[test] fn $name() { is_the_same_on_linux($program); })*
    };
}

same_on_linux! {
    hello_is_the_same_on_linux: "hello";
    hello_static_is_the_same_on_linux: "hello-static";
    arguments_is_the_same_on_linux: "arguments";
    memory_is_the_same_on_linux: "memory";
    processes_is_the_same_on_linux: "processes";
    files_is_the_same_on_linux: "files";
    errors_is_the_same_on_linux: "errors";
    time_is_the_same_on_linux: "time";
    random_is_the_same_on_linux: "random";
    float_is_the_same_on_linux: "float";
    faults_is_the_same_on_linux: "faults";
    folds_is_the_same_on_linux: "folds";
    contpte_is_the_same_on_linux: "contpte";
}

/// Lines that are read come to the program as they do by a pipe on Linux; the console shows each before. More of them than
/// there is room for at once.
#[test]
fn what_is_typed_is_read_by_lines() {
    let mut input: String = (0..2000).map(|number| format!("line {number}\n")).collect();
    // The longest that there may be is 4095 characters.
    input += &format!("\n{}\nthe end", "longer".repeat(682));
    let linux = output_for(Command::new("qemu-aarch64").arg(program("lines")), input.as_bytes());
    assert!(linux.status.success(), "{linux:?}");
    let linux = String::from_utf8(linux.stdout).expect("text");
    let (lines, end) = linux.trim_end().rsplit_once('\n').expect("many lines");
    let shown = input.lines().zip(lines.lines()).flat_map(|(typed, printed)| [typed, printed]);
    // The last one has no end, and so has what the console shows.
    let end = format!("the end{end}");
    let expected: Vec<_> = shown.chain([&*end]).collect();
    for boot in [boot("init=/bin/lines"), boot("init=/bin/lines").option("--gic", "2").option("--el", "2")] {
        let outcome = boot.input(input.as_bytes()).run();
        passed(&outcome);
        assert_eq!(printed(&outcome), expected, "{outcome}");
    }
}

/// Each line goes to one of two processes that read at once, as a whole.
#[test]
fn what_is_typed_is_read_once() {
    const LINES: u64 = 1000;
    let input: String = (0..LINES).map(|number| format!("{number}\n")).collect();
    let outcome = boot("init=/bin/lines two").input(input.as_bytes()).run();
    passed(&outcome);
    let read: Vec<(u64, u64)> = outcome
        .lines()
        .filter_map(|line| line.split_once(" lines, of the sum "))
        .map(|(lines, sum)| (lines.parse().expect("a number"), sum.parse().expect("a number")))
        .collect();
    assert_eq!(read.len(), 2, "{outcome}");
    assert_eq!(read[0].0 + read[1].0, LINES, "{outcome}");
    assert_eq!(read[0].1 + read[1].1, LINES * (LINES - 1) / 2, "{outcome}");
}

#[test]
fn who_waits_for_input_ends_with_init() {
    let outcome = boot("init=/bin/lines left").run();
    passed(&outcome);
    assert_eq!(printed(&outcome), ["waits"], "{outcome}");
}

/// A line that can't be stored stays, and of one that can be in part the rest does.
#[test]
fn what_is_typed_is_not_lost_at_an_edge() {
    let outcome = boot("init=/bin/lines edge").input(b"abcdefgh\n").run();
    passed(&outcome);
    let lines = ["abcdefgh", "to the edge: abcd", "1: efgh", "the end, after 0 bytes: "];
    assert_eq!(printed(&outcome), lines, "{outcome}");
}

#[test]
fn what_is_typed_can_be_taken_back() {
    let outcome = boot("init=/bin/lines").input(b"wrong\x15rigth\x7f\x7fht\r\x04").run();
    passed(&outcome);
    let back = "\u{8} \u{8}";
    let shown = format!("wrong{}rigth{}ht", back.repeat(5), back.repeat(2));
    assert_eq!(printed(&outcome), [&shown, "1: right", "the end, after 0 bytes: "], "{outcome}");
}

/// Nothing is piped in: the input is at its end.
#[test]
fn a_console_without_input_is_at_its_end() {
    let outcome = boot("init=/bin/lines").run();
    passed(&outcome);
    assert_eq!(printed(&outcome), ["the end, after 0 bytes: "], "{outcome}");
}

#[test]
fn the_status_of_init_is_that_of_the_machine() {
    passed(&boot("init=/bin/status 0").run());
    boot("init=/bin/status 42").run().failed("exit status 42");
    boot("init=/bin/status -- 255").run().failed("exit status 255");
    let killed = boot("init=/bin/status").run();
    killed.failed("exit status 139");
    let why = "pid 1 (/bin/status) killed by SIGSEGV: read at 0x0, pc 0x";
    assert!(killed.console.contains(why) && killed.console.contains("nothing is mapped there"), "{killed}");
}

/// Whatever the kernel has mapped: each access kills, and is told with its reason.
#[test]
fn the_kernels_memory_is_out_of_reach() {
    let name = "process.kernel_memory_is_out_of_reach";
    let outcome = boot(&format!("selftest={name}")).run();
    let places = outcome.lines_after("# out of reach: ");
    assert!(places.len() > 10, "{outcome}");
    for at in places {
        for access in ["read", "write", "fetch"] {
            // What is called is a multiple of four.
            let at = u64::from_str_radix(at.trim_start_matches("0x"), 16).expect("an address");
            let at = if access == "fetch" { at & !3 } else { at };
            let told = format!("killed by SIGSEGV: {access} at {at:#x}, pc ");
            let line = outcome.lines().find(|line| line.contains(&told));
            let why = line.is_some_and(|line| line.ends_with(": nothing is mapped there"));
            assert!(why, "`{told}` is missing\n{outcome}");
        }
    }
    assert_eq!(outcome.passed().names(), [name]);
}

/// Page by page, the programs do the same.
#[test]
fn without_blocks_programs_do_the_same() {
    for name in ["memory", "processes", "files", "contpte"] {
        passed(&boot(&format!("thp=never init=/bin/{name}")).run());
    }
}

#[test]
fn calls_that_are_not_there_are_counted() {
    let outcome = boot("init=/bin/missing").run();
    passed(&outcome);
    let counted =
        "by number: 96 (1 times), 134 (2 times), 500 (1 times), 511 (1 times), 512 and above (3 times)";
    assert!(outcome.console.contains(counted), "{outcome}");
}

/// On one CPU, by a kernel that is not preempted.
#[test]
fn who_populates_memory_lets_others_run() {
    passed(&boot("init=/bin/populate").option("--smp", "1").run());
}

/// The same of what else takes long: on a CPU of which each instruction takes 32 ns, so that it does on every machine.
#[test]
fn long_calls_let_others_run() {
    let name = "process.long_calls_on_request";
    let boot = boot(&format!("selftest={name} loglevel=error"));
    let outcome = boot.option("--smp", "1").option("--qemu", "-icount shift=5,sleep=off").run();
    assert_eq!(outcome.passed().names(), [name]);
}

/// Memory that a process had is there for others, though it takes its time to give it back.
#[test]
fn memory_of_who_ends_goes_to_who_needs_it() {
    let boot = boot("init=/bin/heir").option("--memory", "64M").option("--smp", "1");
    let outcome = boot.option("--qemu", "-icount shift=6,sleep=off").run();
    passed(&outcome);
    assert_eq!(printed(&outcome), ["what one leaves another gets"], "{outcome}");
}

/// Who asks for more memory than there is is killed, and nobody else.
#[test]
fn memory_that_is_all_used_kills_who_asked() {
    let outcome = boot("init=/bin/greedy").option("--memory", "64M").option("--smp", "2").run();
    passed(&outcome);
    assert_eq!(outcome.console.matches("killed by SIGKILL").count(), 2, "{outcome}");
    assert!(outcome.console.contains("out of memory"), "{outcome}");
}

/// Files are opened as long as there is kernel memory.
#[test]
fn memory_that_is_all_used_refuses_files() {
    let outcome = boot("init=/bin/starved").option("--memory", "64M").option("--smp", "2").run();
    passed(&outcome);
    assert_eq!(printed(&outcome), ["files were opened as long as there was memory"], "{outcome}");
}

/// Memory that a process was told may be taken goes to whoever needs some.
#[test]
fn memory_that_is_lent_is_taken_by_who_needs_it() {
    let outcome = boot("init=/bin/lender").option("--memory", "64M").option("--smp", "2").run();
    passed(&outcome);
    let lines = [
        "another process took what was lent",
        "nothing is taken for what memory does not help",
        "memory that is populated, and the heap, get what is lent",
        "a process forked with what it had lent itself",
    ];
    assert_eq!(printed(&outcome), lines, "{outcome}");
}

/// Each allocation that a call or a fault makes fails, one after another.
#[test]
fn each_allocation_of_a_process_fails() {
    let outcome = boot("selftest=process.each_allocation_fails_on_request loglevel=error").run();
    assert_eq!(outcome.passed().names(), ["process.each_allocation_fails_on_request"]);
}

/// Memory runs out at one step after another.
#[test]
fn memory_that_is_short_at_every_step() {
    for cpu in ["max", "cortex-a72"] {
        let outcome = boot("selftest=process.memory_is_short_on_request loglevel=error")
            .option("--memory", "64M")
            .option("--cpu", cpu)
            .option("--smp", "2")
            .run();
        assert_eq!(outcome.passed().names(), ["process.memory_is_short_on_request"]);
    }
}

fn refused(initrd: &[u8], args: &str, why: &str) {
    let scratch = Scratch::new();
    let outcome = boot(args).option("--initrd", scratch.write("initrd", initrd)).run();
    outcome.failed("exit status 2");
    let fatal = outcome.lines_after("pleat: fatal: ");
    assert_eq!(fatal.len(), 1, "{outcome}");
    assert!(fatal[0].contains(why) || outcome.console.contains(why), "expected `{why}`\n{outcome}");
}

#[test]
fn an_initrd_is_in_place_of_the_programs_in_the_image() {
    let hello = std::fs::read(program("hello")).expect("it was built");
    let archive = Cpio::new().program("sbin/first", &hello).link("init", "sbin/./first").bytes();
    let scratch = Scratch::new();
    let initrd = scratch.write("initrd", &archive);
    for image in [kernel_image(), bare_image()] {
        let options =
            Boot::new().option("--image", image).option("--timeout", "60").option("--initrd", &initrd);
        let outcome = options.option("--args", "init=/init").run();
        passed(&outcome);
        assert_eq!(printed(&outcome), ["hello, world"], "{outcome}");
    }
    refused(&archive, "init=/bin/hello", "init=/bin/hello: ENOENT");
}

#[test]
fn what_is_no_archive_is_refused() {
    let whole = Cpio::new().program("init", b"x").bytes();
    refused(&[0xa5; 5000], "init=/init", "initrd: no cpio header of the format newc at offset 0x0");
    refused(&whole[..whole.len() - 124], "init=/init", "has no trailer");
    refused(&whole[..60], "init=/init", "goes beyond the end");
    // Nobody needs it: a warning.
    let scratch = Scratch::new();
    let outcome = boot("selftest=boot.*").option("--initrd", scratch.write("initrd", &[0xa5; 5000])).run();
    outcome.passed();
    assert!(outcome.console.contains("there is no root file system"), "{outcome}");
    // They do, and don't look like what was left out.
    let outcome =
        boot("selftest=process.hello").option("--initrd", scratch.write("initrd", &[0xa5; 5000])).run();
    outcome.failed("0 passed, 1 failed");
}

#[test]
fn what_is_no_program_is_refused() {
    let hello = std::fs::read(program("hello-static")).expect("it was built");
    // One field of the file is another: its offset, its bytes, and what is said.
    let patched = |at: usize, with: &[u8]| {
        let mut bytes = hello.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    // The program headers begin behind the header; the first is PT_PHDR, the second the first that is loaded.
    const LOAD: usize = 64 + 56;
    const NEXT: usize = LOAD + 56;
    let second = u64::from_le_bytes(hello[NEXT + 16..NEXT + 24].try_into().expect("eight bytes"));
    for (bytes, why) in [
        (b"#!/bin/sh\n".to_vec(), "ENOEXEC"),
        (hello[..100].to_vec(), "its program headers can't be read"),
        (hello[..1000].to_vec(), "goes beyond the end of the file"),
        (patched(18, &62_u16.to_le_bytes()), "not for AArch64"),
        (patched(24, &0_u64.to_le_bytes()), "is not in an executable segment"),
        (patched(LOAD + 4, &7_u32.to_le_bytes()), "is writable and executable"),
        (patched(LOAD + 16, &0_u64.to_le_bytes()), "EPERM"),
        (patched(LOAD + 40, &(1_u64 << 47).to_le_bytes()), "ends with zeroes and is not writable"),
        (patched(NEXT + 16, &(second - 0x1_0000).to_le_bytes()), "is not above the one before"),
        (patched(LOAD + 40, &u64::MAX.to_le_bytes()), "the sizes of segment 1 can't be"),
    ] {
        refused(&Cpio::new().program("init", &bytes).bytes(), "init=/init", why);
    }
    let archive = Cpio::new()
        .entry("plain", 0o100_644, &hello)
        .entry("directory", 0o040_755, b"")
        .link("loop", "loop")
        .link("gone", "nowhere")
        .entry("device", 0o020_600, b"")
        .bytes();
    for (path, errno) in [
        ("/plain", "EACCES"),
        ("/directory", "EACCES"),
        ("/device", "EACCES"),
        ("/plain/x", "ENOTDIR"),
        ("/loop", "ELOOP"),
        ("/gone", "ENOENT"),
    ] {
        refused(&archive, &format!("init={path}"), errno);
    }
    refused(&archive, "init=plain", "init=plain");
}
