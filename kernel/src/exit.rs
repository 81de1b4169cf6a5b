//! The end of the machine.

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use arch::aarch64::{daif, semihosting};

use crate::{console, cpu, panic, psci};

/// No CPU has called [`exit`] yet.
const NOBODY: usize = usize::MAX;

/// The CPU that ends the machine.
static ENDING: AtomicUsize = AtomicUsize::new(NOBODY);

/// How far it has come: a fault on the way calls [`exit`] again, which goes on with what is next.
static STEP: AtomicU8 = AtomicU8::new(0);

/// Ends the machine: with `code` as the emulator's exit status by semihosting, else by PSCI, which
/// carries no status, else by a line that says so and stopping this CPU. Where nobody answers semihosting, as on
/// a board, its instruction is undefined, and the exception goes on behind it. The first CPU that calls it does so; further
/// ones stop where they are.
pub(crate) fn exit(code: u8) -> ! {
    let _ = daif::save_and_mask();
    if code == 0 && panic::is_reporting() {
        // The CPU that reports ends the machine, with its own code.
        stop();
    }
    let me = cpu::index();
    match ENDING.compare_exchange(NOBODY, me, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        Err(ending) if ending == me => {}
        Err(_) => stop(),
    }
    loop {
        // Whether a step worked shows in this CPU not coming back; there is nobody left to tell.
        match STEP.fetch_add(1, Ordering::Relaxed) {
            0 => console::flush(),
            1 => _ = semihosting::exit(code),
            2 => _ = psci::system_off(),
            3 => {
                console::emergency(format_args!(
                    "pleat: ended with status {code}; nothing here switches the machine off\n"
                ));
                console::flush();
            }
            _ => stop(),
        }
    }
}

/// Stops this CPU for good, with interrupts masked.
pub(crate) fn stop() -> ! {
    let _ = daif::save_and_mask();
    loop {
        daif::wfi();
    }
}
