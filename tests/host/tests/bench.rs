//! The benchmark of the public calls on entries: it counts, gives the same figures each time, and keeps its bounds, which
//! the kernel judges itself. And that of whole operations of address spaces, whose bounds are in `figures.txt`.

use std::fs;

use pleat_host_tests::boot::{Boot, Outcome, bare_image, initramfs, source_root};

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

/// Every operation is measured, and takes no more than its part of what Linux takes; none is beside the table.
#[test]
fn operations_of_processes_keep_their_bounds() {
    let options = Boot::new().option("--image", bare_image()).option("--initrd", initramfs());
    let options = options.option("--cpu", CPUS[0]).option("--smp", "1").option("--timeout", "120");
    let outcome = options.option("--args", "init=/bin/figures").option("--qemu", ICOUNT).run();
    assert_eq!(outcome.status, Some(0), "{outcome}");
    let mut measured: Vec<(&str, f64)> = Vec::new();
    for line in outcome.lines_after("figure ") {
        let [name, ticks, count] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let number = |text: &str| text.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
        measured.push((name, number(ticks) / number(count)));
    }
    let table = fs::read_to_string(source_root().join("tests/host/figures.txt")).unwrap();
    let rows = table.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [name, _, _, linux, _, _, bound] = cells[..] else { panic!("{line}") };
        (name, linux.parse::<f64>().expect(name), bound.parse::<f64>().expect(name))
    });
    let rows: Vec<_> = rows.collect();
    let names = |rows: &mut dyn Iterator<Item = &'_ str>| rows.map(str::to_owned).collect::<Vec<_>>();
    let expected = names(&mut rows.iter().map(|row| row.0));
    assert_eq!(names(&mut measured.iter().map(|row| row.0)), expected, "{outcome}");
    let mut beyond = Vec::new();
    for ((name, ours), (_, linux, bound)) in measured.into_iter().zip(rows) {
        // What takes nothing is not measured.
        if ours <= 0.0 || ours > bound * linux {
            beyond.push(format!(
                "{name}: {ours} instructions, {linux} on Linux, {bound} times that are allowed"
            ));
        }
    }
    assert!(beyond.is_empty(), "{beyond:#?}\n{outcome}");
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
