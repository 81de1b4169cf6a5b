//! The benchmark of the public calls on entries: it counts, gives the same figures each time, and keeps its bounds, which
//! the kernel judges itself.

use std::fs;

use pleat_host_tests::boot::{Boot, Outcome, source_root};

/// The counter ticks once for each instruction.
const CPUS: [&str; 2] = ["cortex-a72,cntfrq=1000000000", "max"];
const ICOUNT: &str = "-icount shift=0,sleep=off";

fn bench(cpu: &str, cpus: &str, qemu: &str) -> Outcome {
    let boot = Boot::kernel().option("--cpu", cpu).option("--smp", cpus);
    boot.option("--args", "bench=ptep").option("--qemu", qemu).option("--timeout", "120").run()
}

/// The rows of its tables.
fn rows(outcome: &Outcome) -> Vec<&str> {
    outcome.lines().filter(|line| line.starts_with("| `")).collect()
}

#[test]
fn bounds_are_kept_and_figures_repeat() {
    for cpu in CPUS {
        let (once, again) = (bench(cpu, "1", ICOUNT), bench(cpu, "1", ICOUNT));
        let names = ["bench.counts_instructions", "bench.ptep_calls", "bench.order_0_pays_no_gate"];
        assert_eq!(once.passed().names(), names, "{once}");
        assert_eq!(again.passed().names(), names, "{again}");
        assert_eq!(rows(&once), rows(&again));
    }
}

/// A function that is added without a figure is noticed.
#[test]
fn every_public_call_is_counted() {
    let outcome = bench("max", "1", ICOUNT);
    let rows = rows(&outcome);
    for module in ["ptep", "contpte"] {
        let source = fs::read_to_string(source_root().join(format!("mm/src/{module}.rs"))).unwrap();
        let functions: Vec<_> = source.lines().filter_map(|line| line.strip_prefix("pub fn ")).collect();
        assert!(!functions.is_empty(), "no public function in {module}");
        for function in functions {
            let name = function.split(['<', '(']).next().unwrap();
            assert!(
                rows.iter().any(|row| row.contains(&format!("`{name}`"))),
                "{name} is not counted\n{outcome}"
            );
        }
    }
}

#[test]
fn time_is_not_taken_for_instructions() {
    let outcome = bench("max", "1", "");
    outcome.failed("failed (exit status 1)");
    assert!(outcome.lines().any(|line| line.starts_with("# 1000 instructions take ")), "{outcome}");
}

#[test]
fn cpus_that_take_turns_are_refused() {
    let outcome = bench("max", "2", ICOUNT);
    outcome.failed("failed (exit status 1)");
    assert!(outcome.lines().any(|line| line.starts_with("# there are 2 CPUs")), "{outcome}");
}

#[test]
fn an_unknown_benchmark_is_refused() {
    let outcome = Boot::kernel().option("--args", "bench=all").run();
    outcome.failed("exit status 2");
    assert_eq!(outcome.lines_after("pleat: fatal: "), ["bootargs: `bench=all`: the value must be `ptep`"]);
}
