//! A boot by `scripts/run`, and what came of it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::ktap::{KtapError, Report};

/// The root of the source tree.
pub fn source_root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The directory in which `scripts/run` leaves what it built.
fn output_directory() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| source_root().join("target")).join("pleat")
}

/// The kernel's Image with its self-tests; the ELF file with its symbols has the same name and `.elf`.
///
/// # Panics
/// Where it was not built.
pub fn kernel_image() -> PathBuf {
    built("selftest/Image")
}

/// The kernel's Image without its self-tests.
///
/// # Panics
/// Where it was not built.
pub fn bare_image() -> PathBuf {
    built("bare/Image")
}

/// The kernel's Image with a self-test that does to `efi_mm` what must never be done.
///
/// # Panics
/// Where it was not built.
pub fn fault_injection_image() -> PathBuf {
    built("fault-injection/Image")
}

/// The assembly of two calls of mm, with the feature `efi` or without it.
///
/// # Panics
/// Where it was not made.
pub fn gate_assembly(efi: bool) -> PathBuf {
    built(if efi { "gate/with-efi.s" } else { "gate/without-efi.s" })
}

/// A program of tests/user.
///
/// # Panics
/// Where it was not built.
pub fn program(name: &str) -> PathBuf {
    built(&format!("bin/{name}"))
}

/// The archive of all programs of tests/user, as an initial RAM disk.
///
/// # Panics
/// Where it was not built.
pub fn initramfs() -> PathBuf {
    built("initramfs.cpio")
}

fn built(name: &str) -> PathBuf {
    let path = output_directory().join(name);
    assert!(path.exists(), "{} is not there: scripts/test builds it, then runs these tests", path.display());
    path
}

/// A directory for a test's files, removed with all that it holds when this is dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes an empty directory.
    ///
    /// # Panics
    /// Where the system's directory for temporary files can't be written.
    #[expect(clippy::new_without_default, reason = "it makes a directory")]
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("pleat-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(path)
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file in it and returns its path.
    ///
    /// # Panics
    /// Where it can't be written.
    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing depends on it: what can't be removed stays among the temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The options of one call of `scripts/run`.
#[derive(Clone, Debug, Default)]
pub struct Boot {
    options: Vec<OsString>,
    input: Vec<u8>,
}

impl Boot {
    /// A call without options, which would build the kernel.
    pub fn new() -> Self {
        Self::default()
    }

    /// A boot of the kernel that was built.
    ///
    /// # Panics
    /// Where it was not built.
    pub fn kernel() -> Self {
        Self::new().option("--image", kernel_image())
    }

    /// Adds an option with its value.
    #[must_use]
    pub fn option(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.options.push(name.into());
        self.options.push(value.as_ref().into());
        self
    }

    /// Adds an option that has no value.
    #[must_use]
    pub fn flag(mut self, name: &str) -> Self {
        self.options.push(name.into());
        self
    }

    /// What is piped in: nothing, without this.
    #[must_use]
    pub fn input(mut self, bytes: &[u8]) -> Self {
        self.input = bytes.to_vec();
        self
    }

    /// Runs the script to its end.
    ///
    /// # Panics
    /// Where the script can't be started.
    pub fn run(&self) -> Outcome {
        let script = source_root().join("scripts/run");
        let mut command = Command::new(&script);
        command.args(&self.options);
        let output = output_for(&mut command, &self.input);
        let words: Vec<_> = self.options.iter().map(|word| word.to_string_lossy()).collect();
        Outcome {
            command: format!("scripts/run {}", words.join(" ")),
            status: output.status.code(),
            console: String::from_utf8_lossy(&output.stdout).into_owned(),
            messages: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a boot that never ends, by time limits that grow until it has said `last`: what a machine takes for it is not known.
    ///
    /// # Panics
    /// Where it ends, or does not say so in a minute.
    pub fn run_until(&self, last: &str) -> Outcome {
        for seconds in [6, 15, 60] {
            let outcome = self.clone().option("--timeout", seconds.to_string()).run();
            outcome.failed(&format!("no end after {seconds} s"));
            if outcome.console.contains(last) {
                return outcome;
            }
        }
        panic!("`{last}` was not said: {self:?}");
    }
}

/// Runs a command to its end, with `input` piped in.
///
/// # Panics
/// Where it can't be started.
pub fn output_for(command: &mut Command, input: &[u8]) -> Output {
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut pipe = child.stdin.take().expect("it was asked for");
    thread::scope(|scope| {
        // Who ends without having read all of it is no error here.
        scope.spawn(move || pipe.write_all(input));
        child.wait_with_output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
    })
}

/// What came of a call of `scripts/run`.
#[derive(Clone, Debug)]
pub struct Outcome {
    command: String,
    /// The script's exit status, unless a signal ended it.
    pub status: Option<i32>,
    /// The kernel's console, with what it and QEMU said by other ways.
    pub console: String,
    /// What the script itself said.
    pub messages: String,
}

/// The script's exit status for a kernel that did not pass.
pub const FAILED: i32 = 1;
/// The script's exit status for a command line that it does not accept.
pub const USAGE: i32 = 2;

impl Outcome {
    /// The script's last message: its verdict on a boot.
    pub fn verdict(&self) -> &str {
        self.messages.lines().last().unwrap_or_default()
    }

    /// The lines of the console without carriage returns.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.console.lines().map(|line| line.trim_end_matches('\r'))
    }

    /// Whether the boot was given an initial RAM disk.
    pub fn has_initrd(&self) -> bool {
        self.command.contains(" --initrd ")
    }

    /// Whether EFI firmware started the kernel.
    pub fn by_firmware(&self) -> bool {
        // Behind what firmware does to its screen.
        self.lines().any(|line| line.ends_with("EFI stub: leaving boot services"))
    }

    /// The lines of the console that begin so, without that beginning.
    pub fn lines_after(&self, beginning: &str) -> Vec<&str> {
        self.lines().filter_map(|line| line.strip_prefix(beginning)).collect()
    }

    /// The tests of the suite that the kernel lists for `selftest=list`, without those that run on
    /// request only.
    ///
    /// # Panics
    /// Where it lists none.
    pub fn listed(&self) -> Vec<&str> {
        let listed: Vec<_> = self
            .lines_after("# ")
            .into_iter()
            .filter(|line| line.contains('.') && !line.contains(' '))
            .collect();
        assert!(!listed.is_empty(), "{self}");
        listed
    }

    /// The KTAP report on the console.
    ///
    /// # Errors
    /// Where there is none that can be believed.
    pub fn report(&self) -> Result<Report, KtapError> {
        Report::parse(&self.console)
    }

    /// The KTAP report of a boot that passed.
    ///
    /// # Panics
    /// Where the script did not pass it, or the report does not bear that out.
    pub fn passed(&self) -> Report {
        assert_eq!(self.status, Some(0), "{self}");
        assert!(self.verdict().contains("PASSED"), "{self}");
        let report = self.report().unwrap_or_else(|error| panic!("{error}\n{self}"));
        assert!(report.failed == 0 && report.passed > 0, "{self}");
        report
    }

    /// Asserts that the script's verdict is negative, and which.
    ///
    /// # Panics
    /// Where it is not.
    pub fn failed(&self, verdict: &str) {
        assert_eq!(self.status, Some(FAILED), "{self}");
        assert!(self.verdict().starts_with("run: FAILED: "), "{self}");
        assert!(self.verdict().contains(verdict), "expected a verdict with `{verdict}`\n{self}");
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\nexit status: {:?}", self.command, self.status)?;
        write!(f, "--- console\n{}--- messages\n{}", self.console, self.messages)
    }
}
