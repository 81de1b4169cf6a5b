//! Benchmarks in place of the self-tests: `bench=` among the boot arguments.
//!
//! `ptep`: what is counted are instructions, by QEMU's `-icount shift=0`: the virtual counter then advances by one for each.
//! The harness is that of the self-tests: a benchmark fails where it can't count, where two counts of the same call
//! differ, or where one exceeds its bound. `tlb`: cycles and TLB refills, by the PMU; the figures are for a person to judge.

mod operations;
mod order_0;
mod ptep;
mod tlb;
mod world;

use core::arch::naked_asm;

use arch::aarch64::daif;
use kernel::bootargs::{Bench, BootArgs};
use kernel::memblock::MemBlock;
use kernel::platform::Platform;

use crate::selftest::harness::{self, Context, Test, TestResult, check};
use crate::{cpu, timer};

const PTEP: &[Test] = &[
    Test::new("bench.counts_instructions", counts_instructions),
    Test::new("bench.ptep_calls", ptep::calls),
    Test::new("bench.order_0_pays_no_gate", order_0::pays_no_gate),
];

const TLB: &[Test] = &[Test { seconds: 300, ..Test::new("bench.tlb_reach", tlb::reach) }];

/// Runs a benchmark and ends the machine.
pub(crate) fn main(
    platform: &Platform<'_>,
    memblock: &MemBlock,
    arguments: &BootArgs<'_>,
    bench: Bench,
) -> ! {
    let tests = match bench {
        Bench::Ptep => PTEP,
        Bench::Tlb => TLB,
    };
    harness::main(&Context { platform, memblock }, arguments, tests)
}

/// How often each call is counted.
const REPETITIONS: usize = 3;

/// Instructions from one reading of the counter to the next around a call of `$function`, which is compiled for itself
/// and called with arguments that the compiler does not know. [`overhead`] is to be subtracted.
macro_rules! timed {
    ($function:expr, $($argument:expr),*) => {{
        let function = core::hint::black_box($function);
        $crate::bench::timed_block!(function($($argument),*))
    }};
}

/// As [`timed`], around an expression as it is.
macro_rules! timed_block {
    ($expression:expr) => {{
        let start = $crate::timer::now();
        let result = $expression;
        let end = $crate::timer::now();
        let _ = core::hint::black_box(result);
        end - start
    }};
}

use {timed, timed_block};

/// What counting itself costs: the readings, the call and the return. What is left are the instructions of the function
/// before its return.
fn overhead() -> u64 {
    #[unsafe(naked)]
    extern "C" fn nothing() {
        naked_asm!("ret")
    }
    timed!(nothing as extern "C" fn(),)
}

/// A thousand instructions more take a thousand ticks more.
fn counts_instructions(_: &Context<'_>) -> TestResult {
    #[unsafe(naked)]
    extern "C" fn a_thousand() {
        naked_asm!(".rept 1000", "nop", ".endr", "ret")
    }
    check!(cpu::count() == 1, "there are {} CPUs, which take turns: boot one", cpu::count());
    for _ in 0..REPETITIONS {
        // Where ticks are time, they may be fewer than those of nothing.
        let ticks =
            daif::masked(|| timed!(a_thousand as extern "C" fn(),).wrapping_sub(overhead()).cast_signed());
        check!(
            ticks == 1000,
            "1000 instructions take {ticks} ticks at {} Hz: boot with `-icount shift=0,sleep=off` and a counter of \
             1 GHz, as scripts/bench does",
            timer::frequency()
        );
    }
    Ok(())
}
