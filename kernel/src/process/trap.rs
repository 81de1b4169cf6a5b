//! Exceptions from EL0.

use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::VirtAddr;
use arch::aarch64::daif;
use arch::aarch64::trap::TrapFrame;
use arch::esr::{Access as Cause, Esr, ExceptionClass, FaultStatus};
use log::warn;
use mm::{Access, Fault, Resolution};

use super::sched::Outcome;
use super::{Signal, Status, Task, life, reclaim, sched, syscall, uaccess};

/// Faults of processes that were resolved by a change of an entry.
static CHANGED: AtomicU64 = AtomicU64::new(0);
/// Those that found the entry right by the time they had its lock: they waited while somebody else held it, or came when it
/// had just been put right.
static SPURIOUS: AtomicU64 = AtomicU64::new(0);

/// How many faults of processes were resolved so far, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    pub(crate) changed: u64,
    pub(crate) spurious: u64,
}

impl Faults {
    pub(crate) fn now() -> Self {
        Self { changed: CHANGED.load(Ordering::Relaxed), spurious: SPURIOUS.load(Ordering::Relaxed) }
    }
}

/// Bytes of an instruction.
const INSTRUCTION: u64 = 4;

/// A synchronous exception of the current task. On return it goes on with the registers in `frame`.
pub(crate) fn synchronous(frame: &mut TrapFrame) {
    let esr = Esr::new(frame.esr);
    let far = untagged(frame.far);
    let task = sched::current().expect("a task runs at EL0");
    // SAFETY: a system call or a fault may take long, and holds no lock yet. The registers of the exception were read.
    unsafe { daif::unmask() };
    let ended = match esr.class() {
        ExceptionClass::Svc64 => syscall::call(&task, frame),
        ExceptionClass::DataAbortLower | ExceptionClass::InstructionAbortLower => {
            abort(&task, frame, esr, far);
            None
        }
        // WFI waits for the scheduler.
        ExceptionClass::Wfx => {
            frame.elr += INSTRUCTION;
            sched::switch_out(Outcome::Yield);
            None
        }
        class => {
            kill(&task, signal_of(class), format_args!("{esr} at pc {:#x}", frame.elr));
            None
        }
    };
    leave(task, ended);
    daif::save_and_mask();
}

/// The address that faulted without its tag, which hardware ignores in the lower half (TCR_EL1.TBI0).
fn untagged(far: u64) -> VirtAddr {
    let is_lower = far & 1 << 55 == 0;
    VirtAddr::new(if is_lower { far & !(0xff << 56) } else { far })
}

/// After an interrupt that was taken from EL0, which ends the time slice, whatever it was for. Interrupts are masked.
pub(crate) fn interrupted() {
    sched::switch_out(Outcome::Yield);
    let task = sched::current().expect("a task ran at EL0");
    leave(task, None);
    daif::save_and_mask();
}

/// Before the task returns to EL0: ends it instead, where it has ended or was killed.
fn leave(task: Arc<Task>, ended: Option<Status>) {
    if let Some(status) = ended.or(task.killed()) {
        // SAFETY: no lock is held.
        unsafe { daif::unmask() };
        life::exit(&task, status);
        // Nothing of this stack is used after the switch, so nothing may be owned by it.
        drop(task);
        sched::switch_out(Outcome::Exit);
        unreachable!("a task that has ended runs again");
    }
}

fn signal_of(class: ExceptionClass) -> Signal {
    match class {
        ExceptionClass::PcAlignment | ExceptionClass::SpAlignment => Signal::SIGBUS,
        ExceptionClass::FpException64 => Signal::SIGFPE,
        // BRK has the class that is reserved for it.
        ExceptionClass::Brk64
        | ExceptionClass::BreakpointLower
        | ExceptionClass::StepLower
        | ExceptionClass::WatchpointLower => Signal::SIGTRAP,
        _ => Signal::SIGILL,
    }
}

/// Ends a process because of what it did, with a line that says what.
fn kill(task: &Arc<Task>, signal: Signal, why: fmt::Arguments<'_>) {
    warn!("{task} killed by {signal:?}: {why}");
    task.kill(signal);
}

/// A fault that the address space resolves, or the process is killed.
fn abort(task: &Arc<Task>, frame: &TrapFrame, esr: Esr, far: VirtAddr) {
    let pc = frame.elr;
    let Some(abort) = esr.abort() else {
        return kill(task, Signal::SIGBUS, format_args!("{esr} at pc {pc:#x}"));
    };
    match abort.status {
        status if uaccess::is_of_an_entry(status) => {}
        // The address is of no translation table.
        FaultStatus::AddressSize(_) => {
            return kill(task, Signal::SIGSEGV, format_args!("{esr} at {far}, pc {pc:#x}"));
        }
        // Alignment, and what memory itself answers.
        _ => return kill(task, Signal::SIGBUS, format_args!("{esr} at {far}, pc {pc:#x}")),
    }
    let (access, what) = match abort.access {
        Cause::Execute => (Access::Execute, "fetch"),
        Cause::Write => (Access::Write, "write"),
        Cause::Read => (Access::Read, "read"),
        Cause::Maintenance => (Access::Read, "maintenance"),
    };
    let space = task.own_space();
    let (signal, why) = match reclaim::retrying(|| space.handle_fault(far, access)) {
        Ok(resolution) => {
            let count = match resolution {
                Resolution::Changed => &CHANGED,
                Resolution::Spurious => &SPURIOUS,
            };
            count.fetch_add(1, Ordering::Relaxed);
            return;
        }
        Err(Fault::Segv { mapped: false }) => (Signal::SIGSEGV, "nothing is mapped there"),
        Err(Fault::Segv { mapped: true }) => (Signal::SIGSEGV, "it is mapped with another permission"),
        Err(Fault::Bus) => (Signal::SIGBUS, "it is behind the end of the file"),
        Err(Fault::OutOfMemory) => (Signal::SIGKILL, "out of memory"),
    };
    kill(task, signal, format_args!("{what} at {far}, pc {pc:#x}: {why}"));
}
