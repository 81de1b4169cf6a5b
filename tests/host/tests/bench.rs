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

/// A table and a plot, which say that an emulator's TLB is not what they are about.
#[test]
fn the_reach_of_the_tlb_is_measured() {
    for cpu in CPUS {
        let boot = Boot::kernel().option("--cpu", cpu).option("--args", "bench=tlb");
        let outcome = boot.run();
        assert_eq!(outcome.passed().names(), ["bench.tlb_reach"], "{outcome}");
        let rows: Vec<Vec<&str>> = outcome
            .lines()
            .filter(|line| line.starts_with("| ") && line.contains("iB |"))
            .map(|line| line.trim_matches([' ', '|']).split(" | ").collect())
            .collect();
        let sizes: Vec<_> = rows.iter().map(|row| row[0]).collect();
        let expected = [
            "64 KiB", "128 KiB", "256 KiB", "512 KiB", "1 MiB", "2 MiB", "4 MiB", "8 MiB", "16 MiB",
            "32 MiB", "64 MiB", "128 MiB",
        ];
        assert_eq!(sizes, expected, "{outcome}");
        for row in &rows {
            let cycles = row[1..3].iter().map(|cell| cell.parse::<f64>().expect("a number"));
            assert!(cycles.into_iter().all(|cycles| cycles > 0.0), "{row:?}\n{outcome}");
            assert_eq!(row[3..], ["-", "-"], "QEMU counts no refills\n{outcome}");
        }
        assert_eq!(
            outcome.lines_after("# ").iter().filter(|line| line.contains(" |")).count(),
            24,
            "{outcome}"
        );
        assert!(outcome.console.contains("an emulator's cycles say nothing of a TLB"), "{outcome}");
    }
}

#[test]
fn without_a_pmu_no_tlb_is_measured() {
    let boot = Boot::kernel().option("--cpu", "cortex-a72,pmu=off").option("--args", "bench=tlb");
    let outcome = boot.run();
    outcome.failed("0 passed, 1 failed");
    assert!(outcome.lines().any(|line| line == "# this CPU has no PMUv3"), "{outcome}");
}

#[test]
fn an_unknown_benchmark_is_refused() {
    let outcome = Boot::kernel().option("--args", "bench=all").run();
    outcome.failed("exit status 2");
    assert_eq!(
        outcome.lines_after("pleat: fatal: "),
        ["bootargs: `bench=all`: the value must be `ptep` or `tlb`"]
    );
}
