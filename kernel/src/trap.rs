//! Exceptions that were taken to EL1, from the vectors on.

use core::sync::atomic::{AtomicBool, Ordering};

use arch::VirtAddr;
use arch::aarch64::task::SPSR_PAN;
use arch::aarch64::trap::{EL1H_MASKED, OVERFLOW_FLAG, STACK_SIZE, TrapFrame};
use arch::esr::{Esr, ExceptionClass};
use kernel::platform::MAX_CPUS;

#[cfg(feature = "efi")]
use crate::efi_runtime;
use crate::process::{self, sched};
use crate::{backtrace, cpu, features, gic, image, panic};

/// The vectors, in order; each source has four kinds.
const SOURCES: [&str; 4] = ["EL1 with SP_EL0", "EL1", "EL0", "EL0 in AArch32"];
const KINDS: [&str; 4] = ["synchronous exception", "IRQ", "FIQ", "SError"];
#[cfg(feature = "efi")]
const EL1T_SYNC: u64 = 0;
const EL1_SYNC: u64 = 4;
const EL1_IRQ: u64 = 5;
const EL0_SYNC: u64 = 8;
const EL0_IRQ: u64 = 9;

static IN_INTERRUPT: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];

/// Whether this CPU is in an interrupt handler.
pub(crate) fn in_interrupt() -> bool {
    IN_INTERRUPT[cpu::index()].load(Ordering::Relaxed)
}

/// Where all vectors lead. On return the context in `frame` goes on.
#[unsafe(no_mangle)]
extern "C" fn pleat_trap(frame: &mut TrapFrame, vector: u64) {
    match vector {
        // Its stack may have run out too, or be another.
        #[cfg(feature = "efi")]
        _ if matches!(vector & !OVERFLOW_FLAG, EL1T_SYNC | EL1_SYNC) && efi_runtime::give_up(frame) => {}
        EL1_SYNC => {
            // A call to what can't be executed faults at its target; the listed instruction is where it returns to.
            let fetch = Esr::new(frame.esr).class() == ExceptionClass::InstructionAbortSame;
            let at = if fetch { frame.x[30] } else { frame.elr };
            if !fix_up(frame, at) {
                die(frame, format_args!("{}", describe(frame)));
            }
        }
        EL0_SYNC if sched::runs_a_task() => process::trap::synchronous(frame),
        // Else who went to EL0 is a probe, which waits for what comes of it. Whether PAN is set stays.
        EL0_SYNC if fix_up(frame, frame.x[30]) => {
            frame.spsr = EL1H_MASKED | if features::uses_pan() { SPSR_PAN } else { 0 };
        }
        EL1_IRQ => interrupt(frame),
        EL0_IRQ if sched::runs_a_task() => {
            interrupt(frame);
            process::trap::interrupted();
        }
        _ if vector & OVERFLOW_FLAG != 0 => {
            let base = cpu::stack_base(cpu::index());
            die(
                frame,
                format_args!(
                    "kernel stack overflow: SP {:#x} is not in the {STACK_SIZE:#x} bytes at {base} ({})",
                    frame.sp,
                    describe(frame),
                ),
            )
        }
        _ => {
            let (source, kind) = ((vector / 4) as usize % 4, vector as usize % 4);
            die(
                frame,
                format_args!("unexpected {} from {}: {}", KINDS[kind], SOURCES[source], describe(frame)),
            )
        }
    }
}

fn interrupt(frame: &mut TrapFrame) {
    let flag = &IN_INTERRUPT[cpu::index()];
    flag.store(true, Ordering::Relaxed);
    backtrace::set_interrupted(Some(frame));
    gic::handle_irq();
    backtrace::set_interrupted(None);
    flag.store(false, Ordering::Relaxed);
}

fn describe(frame: &TrapFrame) -> impl core::fmt::Display {
    struct Description(Esr, u64, u64);
    impl core::fmt::Display for Description {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            let Self(esr, far, elr) = self;
            write!(f, "{esr}, FAR {far:#x}, ELR {elr:#x}")
        }
    }
    Description(Esr::new(frame.esr), frame.far, frame.elr)
}

fn die(frame: &TrapFrame, what: core::fmt::Arguments<'_>) -> ! {
    panic::fatal_trap(frame, what)
}

/// One line of the exception table: two self-relative offsets.
#[repr(C)]
struct Fixup {
    instruction: i32,
    fixup: i32,
}

impl Fixup {
    fn instruction(&self) -> u64 {
        (&raw const self.instruction as u64).wrapping_add_signed(self.instruction.into())
    }

    fn target(&self) -> u64 {
        (&raw const self.fixup as u64).wrapping_add_signed(self.fixup.into())
    }
}

fn fixups() -> &'static [Fixup] {
    let start = image::ex_table_start().get() as *const Fixup;
    let bytes = image::ex_table_end().get() - start as u64;
    // SAFETY: the linker script puts the table between the two symbols; it holds such lines only, and is
    // constant.
    unsafe { core::slice::from_raw_parts(start, bytes as usize / size_of::<Fixup>()) }
}

/// Goes on at the fix-up of the instruction at `at`, if it has one.
fn fix_up(frame: &mut TrapFrame, at: u64) -> bool {
    let Some(fixup) = fixups().iter().find(|fixup| fixup.instruction() == at) else { return false };
    frame.elr = fixup.target();
    frame.x[16] = frame.esr;
    frame.x[17] = frame.far;
    true
}

/// Whether `va` is in the Image's text, so that a backtrace may name it.
pub(crate) fn is_text(va: VirtAddr) -> bool {
    (image::start()..image::text_end()).contains(&va)
}
