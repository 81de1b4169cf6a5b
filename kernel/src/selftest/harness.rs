//! Runs tests and reports them as KTAP (Documentation/dev-tools/ktap.rst in Linux): version line, plan, one
//! result line a test, and a summary that counts what ran.

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use kernel::bootargs::{BootArgs, Selftest};
use kernel::glob;
use kernel::memblock::MemBlock;
use kernel::platform::Platform;

use crate::console::println;
use crate::{cpu, exit, heap, memory, panic, timer};

/// What a test may look at.
pub(crate) struct Context<'a> {
    pub platform: &'a Platform<'a>,
    pub memblock: &'a MemBlock,
}

/// Why a test did not pass.
pub(crate) enum Unmet {
    /// What was expected is not so.
    Failed(String),
    /// It can't run here: a reason for the reader of the report.
    Skipped(&'static str),
}

pub(crate) type TestResult = Result<(), Unmet>;

/// Fails the test unless the condition holds.
macro_rules! check {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::selftest::harness::Unmet::Failed(alloc::format!($($message)+)));
        }
    };
}
pub(crate) use check;

/// A test, by the name that `selftest=` selects.
#[derive(Clone, Copy)]
pub(crate) struct Test {
    pub name: &'static str,
    pub body: fn(&Context<'_>) -> TestResult,
    /// How long it may take.
    pub seconds: u64,
    /// Whether it runs only when it is named: it is there to end badly.
    pub on_request: bool,
}

/// How long a test may take if it doesn't say: far more than it needs, since the machine under the emulator may
/// have other things to do.
const SECONDS: u64 = 60;

impl Test {
    pub(crate) const fn new(name: &'static str, body: fn(&Context<'_>) -> TestResult) -> Self {
        Self { name, body, seconds: SECONDS, on_request: false }
    }

    pub(crate) const fn on_request(name: &'static str, body: fn(&Context<'_>) -> TestResult) -> Self {
        Self { on_request: true, seconds: 2, ..Self::new(name, body) }
    }
}

static PASSED: AtomicUsize = AtomicUsize::new(0);
static FAILED: AtomicUsize = AtomicUsize::new(0);
static SKIPPED: AtomicUsize = AtomicUsize::new(0);
/// Number of the test that runs, 0 for none; its name, as address and length; and until when it may.
static NUMBER: AtomicUsize = AtomicUsize::new(0);
static NAME: spin::Mutex<&str> = spin::Mutex::new("");
static DEADLINE: AtomicU64 = AtomicU64::new(u64::MAX);

/// Runs what the boot arguments select of `tests`, and ends the machine with the verdict.
pub(crate) fn main(context: &Context<'_>, arguments: &BootArgs<'_>, tests: &[Test]) -> ! {
    let selected: Vec<&Test> = match arguments.selftest {
        Selftest::All => tests.iter().filter(|test| !test.on_request).collect(),
        Selftest::Glob(pattern) => {
            let wanted = |test: &&Test| {
                glob::matches(pattern, test.name) && (!test.on_request || pattern == test.name)
            };
            let selected: Vec<_> = tests.iter().filter(wanted).collect();
            if selected.is_empty() {
                let hidden = tests.iter().any(|test| glob::matches(pattern, test.name));
                let why =
                    if hidden { "such tests run only by their full name" } else { "no test has such a name" };
                panic::fatal(format_args!("selftest={pattern}: {why}"));
            }
            selected
        }
        Selftest::List => list(tests),
    };
    timer::on_tick(watch).expect("the watchdog is the only one that watches the tick");
    println!("KTAP version 1");
    println!("1..{}", selected.len());
    for (i, test) in selected.into_iter().enumerate() {
        run(context, i + 1, test);
    }
    if panic::is_reporting() {
        // Another CPU is about to say that the run has failed.
        exit::stop();
    }
    summary();
    exit::exit(if FAILED.load(Ordering::Relaxed) == 0 { 0 } else { 1 })
}

fn list(tests: &[Test]) -> ! {
    println!("KTAP version 1");
    println!("1..0 # SKIP tests are only listed");
    for test in tests {
        println!("# {}{}", test.name, if test.on_request { " (on request only)" } else { "" });
    }
    summary();
    exit::exit(0)
}

fn run(context: &Context<'_>, number: usize, test: &Test) {
    println!("# running {}", test.name);
    let before = Use::now();
    *NAME.lock() = test.name;
    NUMBER.store(number, Ordering::Relaxed);
    DEADLINE.store(timer::now() + test.seconds * timer::frequency(), Ordering::Relaxed);
    let mut result = (test.body)(context);
    DEADLINE.store(u64::MAX, Ordering::Relaxed);
    NUMBER.store(0, Ordering::Relaxed);

    if result.is_ok() {
        // The result of a failed test holds memory itself.
        result = before.is_given_back().map_err(Unmet::Failed);
    }
    match result {
        Ok(()) => {
            PASSED.fetch_add(1, Ordering::Relaxed);
            println!("ok {number} {}", test.name);
        }
        Err(Unmet::Skipped(reason)) => {
            SKIPPED.fetch_add(1, Ordering::Relaxed);
            println!("ok {number} {} # SKIP {reason}", test.name);
        }
        Err(Unmet::Failed(why)) => {
            FAILED.fetch_add(1, Ordering::Relaxed);
            println!("# {why}");
            println!("not ok {number} {}", test.name);
        }
    }
}

/// Memory in use, so that what a test did not give back is noticed.
#[derive(Debug)]
pub(crate) struct Use {
    pub(crate) frames: u64,
    pub(crate) heap_bytes: usize,
}

impl Use {
    pub(crate) fn now() -> Self {
        let counts = memory::frames().counts();
        // The heap and the kernel's own tables may grow, and keep what they have.
        let kept = heap::frames() + memory::allocated_for_good();
        Self { frames: counts.total - counts.reserved - counts.free - kept, heap_bytes: heap::used() }
    }

    /// Compares with what is in use now. Another CPU may have taken the last task or address space out of their lists, and be
    /// about to free what it was in: for a moment, which is long where the machine is slow or does something else.
    fn is_given_back(&self) -> Result<(), String> {
        let deadline = timer::now() + 10 * timer::frequency();
        loop {
            let result = self.compare(&Self::now());
            if result.is_ok() || timer::now() > deadline {
                return result;
            }
            core::hint::spin_loop();
        }
    }

    fn compare(&self, after: &Self) -> Result<(), String> {
        if after.frames != self.frames {
            let leaked = after.frames as i64 - self.frames as i64;
            return Err(alloc::format!("leaked {leaked} frames"));
        }
        if after.heap_bytes != self.heap_bytes {
            let leaked = after.heap_bytes as i64 - self.heap_bytes as i64;
            return Err(alloc::format!("leaked {leaked} bytes of heap"));
        }
        Ok(())
    }
}

fn summary() {
    let [passed, failed, skipped] = [&PASSED, &FAILED, &SKIPPED].map(|count| count.load(Ordering::Relaxed));
    if skipped > 0 {
        println!("# {skipped} skipped");
    }
    println!("{passed} passed, {failed} failed");
}

/// The end of the run in the middle of it: the test that runs, if any, has failed, and no further one runs.
pub(crate) fn abort() {
    let number = NUMBER.load(Ordering::Relaxed);
    // Locked only for the moment in which a test begins.
    let name = NAME.try_lock().map_or("", |name| *name);
    if number == 0 {
        return;
    }
    FAILED.fetch_add(1, Ordering::Relaxed);
    let [passed, failed] = [&PASSED, &FAILED].map(|count| count.load(Ordering::Relaxed));
    crate::console::emergency(format_args!(
        "not ok {number} {name}\nBail out! {name} ended the run\n{passed} passed, {failed} failed\n"
    ));
}

/// At every tick on every CPU: ends the run where the test that runs takes too long. The first CPU, which runs
/// the tests, is given the chance to show where it hangs; where it masks interrupts, another one notices.
fn watch() {
    let deadline = DEADLINE.load(Ordering::Relaxed);
    let grace = if cpu::index() == 0 { 0 } else { timer::frequency() };
    if timer::now() > deadline.saturating_add(grace) {
        let name = NAME.try_lock().map_or("", |name| *name);
        panic::fatal_hang(format_args!("test {name} takes too long"));
    }
}
