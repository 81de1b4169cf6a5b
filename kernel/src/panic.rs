//! The ends that nobody wants: a panic, a fault, an input that the kernel can't start from. Each says where
//! and why, ends the test that was running as failed, and ends the machine with a failing status.

use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicUsize, Ordering};

use arch::aarch64::daif;
use arch::aarch64::trap::TrapFrame;

use crate::{backtrace, console, cpu, exit};

/// Status of a boot that could not begin: bad input.
pub(crate) const STATUS_FATAL: u8 = 2;
/// Status after a panic or a fault.
pub(crate) const STATUS_PANIC: u8 = 3;

/// One more than the CPU that reports, 0 while none does. The report of one CPU is not mixed with another's.
static REPORTING: AtomicUsize = AtomicUsize::new(0);

/// Masks interrupts and makes this CPU the one that reports. A second report on the same CPU means that the
/// first one failed: then there is nothing left but to end.
fn begin() {
    daif::save_and_mask();
    let me = cpu::index() + 1;
    match REPORTING.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed) {
        Ok(_) => {}
        Err(first) if first == me => exit::exit(STATUS_PANIC),
        Err(_) => exit::stop(),
    }
}

/// Whether a CPU reports, so that the run can't end well any more.
pub(crate) fn is_reporting() -> bool {
    REPORTING.load(Ordering::Acquire) != 0
}

fn end() -> ! {
    #[cfg(feature = "selftest")]
    crate::selftest::harness::abort();
    exit::exit(STATUS_PANIC)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    begin();
    match info.location() {
        Some(at) => console::emergency(format_args!(
            "pleat: panic: CPU {} at {}:{}: {}\n",
            cpu::index(),
            at.file(),
            at.line(),
            info.message()
        )),
        None => console::emergency(format_args!("pleat: panic: CPU {}: {}\n", cpu::index(), info.message())),
    }
    backtrace::print_caller();
    end()
}

/// A fault that nothing explains.
pub(crate) fn fatal_trap(frame: &TrapFrame, what: fmt::Arguments<'_>) -> ! {
    begin();
    console::emergency(format_args!("pleat: panic: CPU {}: {what}\n", cpu::index()));
    for (i, pair) in frame.x.chunks(2).enumerate() {
        match pair {
            [a, b] => {
                console::emergency(format_args!("  x{:<2} {a:#018x}  x{:<2} {b:#018x}\n", 2 * i, 2 * i + 1))
            }
            _ => console::emergency(format_args!(
                "  x30 {:#018x}  sp  {:#018x}\n  pc  {:#018x}  psr {:#018x}\n",
                frame.x[30], frame.sp, frame.elr, frame.spsr
            )),
        }
    }
    backtrace::print(frame.elr, frame.x[29]);
    end()
}

/// A test that does not come to an end; called by the watchdog, in interrupt context.
pub(crate) fn fatal_hang(what: fmt::Arguments<'_>) -> ! {
    begin();
    console::emergency(format_args!("pleat: panic: CPU {}: {what}\n", cpu::index()));
    backtrace::print_interrupted();
    end()
}

/// An input that the kernel can't start from: one line, and the end.
pub(crate) fn fatal(why: fmt::Arguments<'_>) -> ! {
    begin();
    console::emergency(format_args!("pleat: fatal: {why}\n"));
    exit::exit(STATUS_FATAL)
}
