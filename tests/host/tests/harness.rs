//! Tests of the kernel that end badly because they were asked to: each ends the run with a negative
//! verdict and its own name.

use pleat_host_tests::boot::{Boot, Outcome};

fn request(test: &str) -> Outcome {
    Boot::kernel().option("--args", format!("selftest={test}")).option("--timeout", "120").run()
}

/// Asserts that the one test that ran has failed, and that all who report it say so.
fn ended_badly(test: &str, status: i32) -> Outcome {
    let outcome = request(test);
    outcome.failed(&format!("0 passed, 1 failed (exit status {status})"));
    assert_eq!(outcome.lines_after("# running "), [test], "{outcome}");
    assert_eq!(outcome.lines_after("not ok "), [format!("1 {test}")], "{outcome}");
    let report = outcome.report().unwrap_or_else(|error| panic!("{error}\n{outcome}"));
    assert_eq!((report.passed, report.failed), (0, 1), "{outcome}");
    outcome
}

/// Asserts that exactly one line says why the run ended, and returns it.
fn panic_line(outcome: &Outcome) -> &str {
    let lines = outcome.lines_after("pleat: panic: ");
    assert_eq!(lines.len(), 1, "{outcome}");
    lines[0]
}

/// Asserts that a line of the backtrace names a function.
fn backtrace_names(outcome: &Outcome, function: &str) {
    let named = outcome.lines().any(|line| line.starts_with("  #") && line.contains(function));
    assert!(named, "no line of a backtrace names {function}\n{outcome}");
}

#[test]
fn a_failing_test_says_why() {
    let outcome = ended_badly("harness.fails_on_request", 1);
    assert!(outcome.lines().any(|line| line.starts_with("# this test fails")), "{outcome}");
    assert!(outcome.lines_after("pleat: panic: ").is_empty(), "{outcome}");
}

#[test]
fn a_panic_ends_the_run() {
    let outcome = ended_badly("harness.panics_on_request", 3);
    assert!(panic_line(&outcome).contains("this test panics because it was asked to"), "{outcome}");
    assert!(panic_line(&outcome).contains(".rs:"), "where it panicked\n{outcome}");
    backtrace_names(&outcome, "bad_ends::panics");
}

#[test]
fn a_fault_ends_the_run_and_is_decoded() {
    let outcome = ended_badly("harness.faults_on_request", 3);
    assert!(panic_line(&outcome).to_lowercase().contains("data abort"), "{outcome}");
    assert!(outcome.console.contains("translation fault"), "{outcome}");
    let far = outcome.lines().any(|line| line.contains("FAR") && line.contains("0000010"));
    assert!(far || outcome.console.contains("0x10"), "the address that faulted\n{outcome}");
    backtrace_names(&outcome, "bad_ends::faults");
}

#[test]
fn a_stack_overflow_ends_the_run_and_is_named() {
    let outcome = ended_badly("harness.overflows_on_request", 3);
    assert!(panic_line(&outcome).contains("stack overflow"), "{outcome}");
    backtrace_names(&outcome, "recurse");
}

#[test]
fn a_hang_ends_the_run_by_the_watchdog() {
    for test in ["harness.hangs_on_request", "harness.hangs_masked_on_request"] {
        let outcome = ended_badly(test, 3);
        assert!(panic_line(&outcome).contains(test), "{outcome}");
    }
}

#[test]
fn a_leak_fails_the_test() {
    let outcome = ended_badly("harness.leaks_on_request", 1);
    assert!(outcome.console.contains("# leaked 1 frames"), "{outcome}");
}

#[test]
fn a_write_to_free_memory_is_noticed() {
    let outcome = request("harness.writes_to_free_memory_on_request");
    outcome.failed("0 passed, 1 failed");
    assert!(!outcome.console.contains("nothing noticed"), "{outcome}");
    assert!(panic_line(&outcome).contains("free"), "{outcome}");
}

#[test]
fn a_pattern_without_a_match_is_an_error() {
    let outcome = request("no.such_test");
    outcome.failed("no summary line was printed (exit status 2)");
    let fatal = outcome.lines_after("pleat: fatal: ");
    assert_eq!(fatal.len(), 1, "{outcome}");
    assert!(fatal[0].contains("no.such_test"), "{outcome}");
    assert!(outcome.lines_after("# running ").is_empty(), "{outcome}");
}

#[test]
fn a_pattern_does_not_reach_what_runs_on_request_only() {
    let outcome = request("harness.*");
    outcome.failed("exit status 2");
}

#[test]
fn a_pattern_selects() {
    let report = request("timer.*").passed();
    assert!(report.names().iter().all(|name| name.starts_with("timer.")), "{report:?}");
}

#[test]
fn a_list_runs_nothing() {
    let outcome = request("list");
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert!(outcome.verdict().contains("LISTED"), "{outcome}");
    let listed = outcome.listed();
    assert!(listed.iter().all(|name| !name.ends_with("_on_request")), "{listed:?}");
    assert!(outcome.console.contains("# harness.fails_on_request (on request only)"), "{outcome}");
    assert!(outcome.lines_after("# running ").is_empty(), "{outcome}");
}

/// The tests run on the first CPU, which must not end well while another one says that it can't go on.
#[test]
fn a_panic_on_another_cpu_never_passes() {
    for _ in 0..5 {
        let outcome = request("harness.panics_elsewhere_on_request");
        assert_eq!(outcome.status, Some(1), "{outcome}");
        assert!(panic_line(&outcome).contains("CPU 1 at"), "{outcome}");
    }
}
