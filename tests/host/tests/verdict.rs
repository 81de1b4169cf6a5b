//! The verdict of `scripts/run` on kernels that say something untrue. Each is a stand-in of a few
//! instructions, so that the verdict is tested and not the kernel.

use std::fs;
use std::time::{Duration, Instant};

use pleat_host_tests::boot::{Boot, Outcome, Scratch, kernel_image};
use pleat_host_tests::stand_in::{End, stand_in};

const ONE_TEST: &str = "KTAP version 1\n1..1\n# running a.one\nok 1 a.one\n1 passed, 0 failed\n";

fn run(text: &str, end: End) -> Outcome {
    run_with(text, end, |boot| boot)
}

fn run_with(text: &str, end: End, options: impl FnOnce(Boot) -> Boot) -> Outcome {
    let scratch = Scratch::new();
    let image = scratch.write("Image", &stand_in(text, end));
    options(Boot::new().option("--image", image).option("--timeout", "60")).run()
}

#[test]
fn a_good_end_with_its_summary_passes() {
    let outcome = run(ONE_TEST, End::Exit(0));
    assert_eq!(outcome.passed().names(), ["a.one"]);
    assert!(outcome.verdict().contains("1 passed, 0 failed, exit status 0"), "{outcome}");
}

#[test]
fn a_good_exit_without_a_summary_fails() {
    run("hello\n", End::Exit(0)).failed("no summary line was printed (exit status 0)");
    run("", End::Exit(0)).failed("no summary line was printed (exit status 0)");
    for line in ["say 1 passed, 0 failed", "1 passed, 0 failed!", "1 passed", "one passed, 0 failed"] {
        run(&format!("{line}\n"), End::Exit(0)).failed("no summary line was printed (exit status 0)");
    }
}

#[test]
fn a_good_summary_without_a_good_exit_fails() {
    run(ONE_TEST, End::Exit(1)).failed("exit status 1, though the summary says 1 passed, 0 failed");
    run(ONE_TEST, End::Exit(3)).failed("exit status 3, though the summary says 1 passed, 0 failed");
}

#[test]
fn a_summary_that_admits_failures_fails_with_any_exit() {
    for status in [0, 1] {
        let said = format!("3 passed, 2 failed (exit status {status})");
        run("3 passed, 2 failed\n", End::Exit(status)).failed(&said);
    }
}

#[test]
fn a_summary_that_contradicts_its_lines_fails() {
    let text = ONE_TEST.replace("ok 1", "not ok 1");
    run(&text, End::Exit(0))
        .failed("the summary says 1 passed, 0 failed, but 1 tests were reported as 'not ok'");
}

#[test]
fn two_summaries_fail() {
    run(&ONE_TEST.repeat(2), End::Exit(0)).failed("2 summary lines where one was expected");
}

#[test]
fn a_run_of_no_test_fails_unless_a_list_was_asked_for() {
    let nothing = "0 passed, 0 failed\n";
    run(nothing, End::Exit(0)).failed("no test was run");
    let args = |line: &'static str| move |boot: Boot| boot.option("--args", line);
    let listed = run_with(nothing, End::Exit(0), args("quiet selftest=list"));
    assert_eq!(listed.status, Some(0), "{listed}");
    run_with(nothing, End::Exit(0), args("selftest=list selftest=mm.*")).failed("no test was run");
    run_with(nothing, End::Exit(0), args("selftest=listing")).failed("no test was run");
    run_with(nothing, End::Exit(2), args("selftest=list")).failed("exit status 2");
    run_with("", End::Exit(0), args("selftest=list")).failed("no summary line");
    run_with(ONE_TEST, End::Exit(0), args("selftest=list")).failed("the tests were to be listed");
}

#[test]
fn a_program_as_init_is_judged_by_its_status() {
    let init =
        |text: &str, end| run_with(text, end, |boot| boot.option("--args", "quiet init=/bin/a selftest=x"));
    let passed = init("hello\n", End::Exit(0));
    assert_eq!(
        (passed.status, passed.verdict().contains("init ended with status 0")),
        (Some(0), true),
        "{passed}"
    );
    init("1 passed, 0 failed\n", End::Exit(7)).failed("exit status 7");
    init("pleat: panic: CPU 0: x\n", End::Exit(0)).failed("the kernel also said: panic: CPU 0: x");
    // What follows `--` is not the kernel's.
    run_with("hello\n", End::Exit(0), |boot| boot.option("--args", "-- init=/bin/a"))
        .failed("no summary line");
}

#[test]
fn a_kernel_that_never_ends_is_stopped_and_its_test_named() {
    for (text, said) in [
        ("# running a.one\nok 1 a.one\n# running a.slow\nworking", "the test last started is a.slow"),
        ("booting\n", "before the first test was started"),
        (ONE_TEST, "the test last started is a.one"),
    ] {
        let started = Instant::now();
        let outcome = run_with(text, End::Hang, |boot| boot.option("--timeout", "6"));
        outcome.failed("no end after 6 s");
        outcome.failed(said);
        assert!(outcome.console.starts_with(text), "{outcome}");
        assert!(started.elapsed() < Duration::from_secs(60), "{outcome}");
    }
}

#[test]
fn an_address_in_a_backtrace_gets_its_name() {
    let scratch = Scratch::new();
    // The header branches to `primary_start`, which is some way into the Image.
    let text = "  #0 0xffff800000000000 (image+0x0)\n  #1 0xffff (image+0xfffffffff)\n  #2 (image+0x0)\n";
    let image = scratch.write("Image", &stand_in(text, End::Exit(3)));
    let bare = Boot::new().option("--image", &image).run();
    assert_eq!(bare.console, text, "{bare}");

    fs::copy(kernel_image().with_extension("elf"), scratch.path("Image.elf")).expect("the kernel's ELF file");
    let outcome = Boot::new().option("--image", &image).run();
    let lines: Vec<_> = outcome.lines().collect();
    assert!(lines[0].starts_with("  #0 0xffff800000000000 (image+0x0) "), "{outcome}");
    assert!(lines[0].ends_with("+0x0"), "{outcome}");
    assert_eq!(lines[2], "  #2 (image+0x0)", "{outcome}");
}

#[test]
fn a_cpu_that_qemu_does_not_have_is_refused() {
    let outcome = run_with(ONE_TEST, End::Exit(0), |boot| boot.option("--cpu", "cortex-a1"));
    assert_eq!(outcome.status, Some(pleat_host_tests::boot::USAGE), "{outcome}");
    assert!(outcome.verdict().contains("--cpu is 'cortex-a1': QEMU"), "{outcome}");
}
