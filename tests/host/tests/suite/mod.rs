//! Boots that must pass the whole suite.

use std::sync::OnceLock;

use pleat_host_tests::boot::{Boot, Outcome, Scratch};
use pleat_host_tests::tree::Tree;

/// What the kernel may use of 1 GiB before its first test, in KiB.
const MEMORY_LIMIT_KIB: u64 = 16 * 1024;

/// The options for a machine.
pub fn machine(cpu: &str, el: u8, gic: u8, memory: &str, smp: u8) -> Boot {
    Boot::kernel()
        .option("--cpu", cpu)
        .option("--el", el.to_string())
        .option("--gic", gic.to_string())
        .option("--memory", memory)
        .option("--smp", smp.to_string())
}

/// Boots by QEMU's own loader and asserts that every test that the kernel has ran and passed.
pub fn runs(options: Boot) {
    is_whole(&options.run());
}

/// Boots at an address with a device tree and asserts that every test that the kernel has ran and passed.
#[allow(dead_code, reason = "not every program that has this module boots so")]
pub fn runs_tree(tree: &Tree, options: Boot, address: &str) {
    let scratch = Scratch::new();
    let dtb = scratch.write("tree.dtb", &tree.to_dtb());
    is_whole(&options.option("--image-at", address).option("--dtb", dtb).run());
}

/// The names of the suite's tests, as the kernel lists them.
fn suite() -> &'static [String] {
    static SUITE: OnceLock<Vec<String>> = OnceLock::new();
    SUITE.get_or_init(|| {
        let outcome = Boot::kernel().option("--args", "selftest=list").run();
        assert_eq!(outcome.status, Some(0), "{outcome}");
        outcome.listed().into_iter().map(str::to_owned).collect()
    })
}

fn is_whole(outcome: &Outcome) {
    let report = outcome.passed();
    assert_eq!(report.names(), suite(), "{outcome}");
    let one_cpu = outcome.lines().any(|line| line.ends_with(" 1 CPUs run"));
    for (name, reason) in report.skipped() {
        assert!(one_cpu && reason == "there is one CPU", "{name} was skipped: {reason}\n{outcome}");
    }
    assert!(outcome.lines_after("pleat: ").is_empty(), "{outcome}");
    if outcome.asked_for("1G") {
        let used = outcome
            .lines_after("memory: ")
            .into_iter()
            .find_map(|line| line.strip_suffix(" KiB used before the first test")?.parse::<u64>().ok());
        let used = used.unwrap_or_else(|| panic!("no line says how much memory was used\n{outcome}"));
        assert!(used <= MEMORY_LIMIT_KIB, "{used} KiB used before the first test\n{outcome}");
    }
}
