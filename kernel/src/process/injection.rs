//! Allocations that fail on purpose, for the self-tests: of frames and of kernel memory, by what one process asks for. As
//! Linux's `/proc/self/fail-nth` does it.

#[cfg(feature = "selftest")]
pub(crate) use on_request::*;

/// Whether the allocation that this CPU is about to make is to fail.
#[cfg(not(feature = "selftest"))]
pub(crate) fn denies() -> bool {
    false
}

#[cfg(feature = "selftest")]
mod on_request {
    use core::sync::atomic::{AtomicU64, Ordering};

    use crate::process::{Task, sched};

    /// The number of the call, which Linux has not.
    pub(crate) const FAIL_NTH: u64 = 0xfa11;

    /// How many allocations of a task succeed before one fails, with these flags; 0 where none is to fail. Used by the CPU
    /// that runs the task.
    pub(crate) struct FailNth(AtomicU64);

    const ARMED: u64 = 1 << 63;
    /// All that follow fail too.
    const FOR_GOOD: u64 = 1 << 62;
    /// One has failed.
    const HAS_FAILED: u64 = 1 << 61;
    const COUNT: u64 = HAS_FAILED - 1;

    impl FailNth {
        pub(crate) const fn new() -> Self {
            Self(AtomicU64::new(0))
        }

        /// Counts an allocation; whether it is to fail.
        fn counts(&self) -> bool {
            let state = self.0.load(Ordering::Relaxed);
            if state & ARMED == 0 {
                return false;
            }
            let fails = state & COUNT == 0;
            let next = match fails {
                false => state - 1,
                true if state & FOR_GOOD != 0 => state | HAS_FAILED,
                true => HAS_FAILED,
            };
            self.0.store(next, Ordering::Relaxed);
            fails
        }
    }

    /// Whether the allocation that this CPU is about to make is to fail.
    pub(crate) fn denies() -> bool {
        sched::with_current(|task| task.fail_nth.counts()).unwrap_or(false)
    }

    /// `fail_nth(n, for_good)`: of the process's own allocations from now on `n` succeed and the next one fails, and where
    /// `for_good` is not 0 all that follow. With an `n` of -1 none fails. Returns whether one has failed since the call before.
    pub(crate) fn fail_nth(task: &Task, n: u64, for_good: u64) -> u64 {
        let state = match n {
            u64::MAX => 0,
            n => ARMED | if for_good == 0 { 0 } else { FOR_GOOD } | n & COUNT,
        };
        u64::from(task.fail_nth.0.swap(state, Ordering::Relaxed) & HAS_FAILED != 0)
    }
}
