//! Boots that must pass the whole suite.

use std::sync::OnceLock;

use crate::boot::{Boot, Outcome, Scratch};
use crate::tree::Tree;

/// What the kernel may use of 1 GiB before its first test, in KiB.
const MEMORY_LIMIT_KIB: u64 = 16 * 1024;

/// A machine that QEMU emulates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Machine {
    /// QEMU's name of the CPU.
    pub cpu: &'static str,
    /// The exception level that the kernel is entered at.
    pub el: u8,
    /// The version of the interrupt controller.
    pub gic: u8,
    /// The size of its RAM, as QEMU reads it.
    pub memory: &'static str,
    /// How many CPUs it has.
    pub smp: u8,
}

impl Default for Machine {
    /// What `scripts/run` boots without options.
    fn default() -> Self {
        Self { cpu: "max", el: 1, gic: 3, memory: "1G", smp: 4 }
    }
}

impl Machine {
    /// QEMU's `raspi4b`, which is a machine of its own: these are not options for it.
    pub const RASPBERRY_PI_4: Self = Self { cpu: "cortex-a72", el: 2, gic: 2, memory: "2G", smp: 4 };

    /// The options for a boot of the kernel on this machine.
    pub fn options(&self) -> Boot {
        Boot::kernel()
            .option("--cpu", self.cpu)
            .option("--el", self.el.to_string())
            .option("--gic", self.gic.to_string())
            .option("--memory", self.memory)
            .option("--smp", self.smp.to_string())
    }

    /// The device tree that QEMU makes for it.
    pub fn tree(&self) -> Tree {
        Tree::of(&self.options())
    }

    /// Boots by QEMU's own loader and asserts that every test that the kernel has ran and passed.
    ///
    /// # Panics
    /// Where that is not so.
    pub fn runs(&self) {
        self.runs_with(|boot| boot);
    }

    /// As [`Machine::runs`], with further options. Returns what came of it.
    ///
    /// # Panics
    /// As [`Machine::runs`].
    pub fn runs_with(&self, more: impl FnOnce(Boot) -> Boot) -> Outcome {
        let outcome = more(self.options()).run();
        self.is_whole(&outcome);
        outcome
    }

    /// As [`Machine::runs`], with the Image at an address and a device tree as it is.
    ///
    /// # Panics
    /// As [`Machine::runs`].
    pub fn runs_at(&self, address: &str, tree: &Tree) {
        let scratch = Scratch::new();
        let dtb = scratch.write("tree.dtb", &tree.to_dtb());
        self.runs_with(|boot| boot.option("--image-at", address).option("--dtb", dtb));
    }

    /// Asserts of a boot of this machine, however it was started, that every test that the kernel has ran and passed.
    ///
    /// # Panics
    /// Where that is not so.
    pub fn is_whole(&self, outcome: &Outcome) {
        let report = outcome.passed();
        assert_eq!(report.names(), suite(), "{outcome}");
        for (name, reason) in report.skipped() {
            let explained = match reason {
                "there is one CPU" => self.smp == 1,
                "there is no 16 KiB granule" | "there is no PAN" => self.cpu == "cortex-a72",
                "no EFI firmware has started the kernel" => !outcome.by_firmware(),
                "the initial RAM disk has no test programs" => outcome.has_initrd(),
                _ => false,
            };
            assert!(explained, "{name} was skipped: {reason}\n{outcome}");
        }
        assert!(outcome.lines_after("pleat: ").is_empty(), "{outcome}");
        if self.memory == "1G" {
            let used = outcome
                .lines_after("memory: ")
                .into_iter()
                .find_map(|line| line.strip_suffix(" KiB used before the first test")?.parse::<u64>().ok());
            let used = used.unwrap_or_else(|| panic!("no line says how much memory was used\n{outcome}"));
            assert!(used <= MEMORY_LIMIT_KIB, "{used} KiB used before the first test\n{outcome}");
        }
    }
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
