//! Calls of EFI runtime services.

use core::arch::global_asm;

use super::task::SPSR_PAN;
use super::trap::{EL1H_MASKED, TrapFrame};
use crate::VirtAddr;
use crate::esr::Esr;

global_asm!(include_str!("simd.S"), include_str!("efi_call.S"));

/// A fault in the firmware, which ended the call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// ESR_EL1.
    pub esr: Esr,
    /// FAR_EL1.
    pub far: VirtAddr,
    /// ELR_EL1: where it was.
    pub elr: VirtAddr,
}

/// What the assembly leaves.
#[repr(C)]
#[derive(Default)]
struct Outcome {
    status: usize,
    esr: u64,
    far: u64,
    elr: u64,
}

unsafe extern "C" {
    fn efi_call(function: u64, arguments: *const [u64; 6], stack_top: u64, outcome: *mut Outcome);
    fn efi_call_aborted();
}

/// Where a call keeps the stack pointer of its caller, and 0 is when there is none.
fn slot(stack_top: VirtAddr) -> *mut u64 {
    (stack_top.get() - 16) as *mut u64
}

/// Makes a stack fit for [`call`] and [`give_up`].
///
/// # Safety
/// `stack_top` must be the end of a mapped stack that nothing uses.
pub unsafe fn prepare(stack_top: VirtAddr) {
    // SAFETY: the caller's contract.
    unsafe { slot(stack_top).write_volatile(0) };
}

/// Calls `function` with up to six arguments on the stack that ends at `stack_top` (a multiple of 16), and returns what it
/// returns. FP and SIMD registers are as before then, and so are the interrupt masks.
///
/// # Errors
/// The fault that the handler of exceptions gave up the call for, by [`give_up`].
///
/// # Safety
/// `function` must be one that may be called so, with what it needs mapped, and `stack_top` the end of a stack that was
/// [prepared](prepare), that nothing uses, and that the exception vectors take for this CPU's.
pub unsafe fn call(function: u64, arguments: &[u64; 6], stack_top: VirtAddr) -> Result<usize, Fault> {
    let mut outcome = Outcome::default();
    // SAFETY: the caller vouches for function and stack; the other two are there.
    unsafe { efi_call(function, arguments, stack_top.get(), &mut outcome) };
    match outcome {
        Outcome { status, esr: 0, .. } => Ok(status),
        Outcome { esr, far, elr, .. } => {
            Err(Fault { esr: Esr::new(esr), far: VirtAddr::new(far), elr: VirtAddr::new(elr) })
        }
    }
}

/// Of SPSR_EL1, what a call that is given up goes on with: SSBS, PAN, UAO, DIT and TCO are not the firmware's.
const KEPT: u64 = 1 << 12 | SPSR_PAN | 0b111 << 23;

/// Makes the context in `frame` go on where [`call`] returns the fault, if that is under way on the stack that ends at
/// `stack_top`; else returns false.
///
/// # Safety
/// `stack_top` must be that of a [prepared](prepare) stack, used for nothing but such calls, and `frame` a fault of the CPU
/// that makes them.
pub unsafe fn give_up(frame: &mut TrapFrame, stack_top: VirtAddr) -> bool {
    // SAFETY: the caller vouches for the stack, to which this CPU alone writes.
    if unsafe { slot(stack_top).read_volatile() } == 0 {
        return false;
    }
    frame.x[0] = frame.esr;
    frame.x[1] = frame.esr;
    frame.x[2] = frame.far;
    frame.x[3] = frame.elr;
    frame.x[9] = slot(stack_top) as u64;
    frame.elr = efi_call_aborted as *const () as u64;
    frame.spsr = EL1H_MASKED | frame.spsr & KEPT;
    true
}
