//! The interrupt masks PSTATE.I and PSTATE.F of this CPU (DDI 0487, C5.2.2), and waiting for an
//! interrupt.
//!
//! Masking is safe: it can delay interrupts but break nothing. Unmasking is unsafe, since code
//! further up the stack may rely on the mask to be alone on its CPU, so that a handler does not
//! touch what it is touching. [`masked`] nests by construction and is safe.
//!
//! Every function that changes the mask also orders memory accesses for the compiler: those before
//! it stay before, those after it stay after.

use core::arch::asm;

use aarch64_cpu::registers::DAIF;
use tock_registers::interfaces::Readable;

/// The masks as [`save_and_mask`] found them. Meaningful on that CPU only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Saved(u64);

/// Masks IRQ and FIQ on this CPU and returns the masks as they were.
#[inline]
pub fn save_and_mask() -> Saved {
    let saved = DAIF.get();
    // SAFETY: masking takes nothing away that code could rely on for memory safety. No `nomem`: the
    // accesses of the section that begins here stay behind it.
    unsafe { asm!("msr daifset, #3", options(nostack, preserves_flags)) };
    Saved(saved)
}

/// Puts the masks back as they were at [`save_and_mask`].
///
/// # Safety
/// Called on the same CPU as the [`save_and_mask`] that returned `saved`, and no code that relies on
/// interrupts being masked and began after that is still under way.
#[inline]
pub unsafe fn restore(saved: Saved) {
    // SAFETY: by this function's contract nothing relies on the mask any longer. No `nomem`: the
    // accesses of the section that ends here stay before it.
    unsafe { asm!("msr daif, {}", in(reg) saved.0, options(nostack, preserves_flags)) };
}

/// Whether both IRQ and FIQ are masked on this CPU.
#[inline]
pub fn is_masked() -> bool {
    DAIF.matches_all(DAIF::I::Masked + DAIF::F::Masked)
}

/// Lets IRQ and FIQ in on this CPU.
///
/// # Safety
/// This CPU can take an interrupt (vectors, stack, interrupt controller), and no code further up
/// the stack relies on interrupts being masked.
#[inline]
pub unsafe fn unmask() {
    // SAFETY: by this function's contract.
    unsafe { asm!("msr daifclr, #3", options(nostack, preserves_flags)) };
}

/// Runs `f` with IRQ and FIQ masked on this CPU, and restores the masks.
#[inline]
pub fn masked<R>(f: impl FnOnce() -> R) -> R {
    let saved = save_and_mask();
    let result = f();
    // SAFETY: the same CPU, as nothing moves code to another one while interrupts are masked, and
    // whatever began inside `f` has ended with it.
    unsafe { restore(saved) };
    result
}

/// As [`masked`], where `f` may end on another CPU than it began on: a task that leaves its CPU. The masks are those of the
/// task.
#[inline]
pub fn masked_across_cpus(f: impl FnOnce()) {
    let saved = save_and_mask();
    f();
    // SAFETY: whatever began inside `f` has ended with it, and what is further up the stack has the masks that it had.
    unsafe { restore(saved) };
}

/// Waits until an interrupt is pending for this CPU, be it masked or not; may return earlier.
#[inline]
pub fn wfi() {
    // The barrier completes what this CPU has written before it goes to sleep.
    // SAFETY: both instructions only wait. No `nomem`: another CPU or a handler may change memory.
    unsafe { asm!("dsb sy", "wfi", options(nostack, preserves_flags)) };
}
