//! Tasks: what of a context is kept while another one runs on its CPU, and what EL0 is allowed to do.

use core::arch::{asm, global_asm};

use super::barrier;
use super::trap::TrapFrame;

global_asm!(include_str!("simd.S"), include_str!("task.S"));

unsafe extern "C" {
    fn switch_context(save: *mut Context, load: *const Context);
    fn trap_return();
    fn save_fp(state: *mut FpState);
    fn load_fp(state: *const FpState);
}

/// A kernel context that does not run: the registers that a call preserves.
#[repr(C)]
#[derive(Debug)]
pub struct Context {
    /// x19 to x30.
    x: [u64; 12],
    sp: u64,
}

impl Context {
    /// One that nothing was saved to yet.
    #[expect(clippy::new_without_default, reason = "a context is no plain number")]
    pub const fn new() -> Self {
        Self { x: [0; 12], sp: 0 }
    }

    /// One that returns to EL0, or wherever it says, with the registers in `frame`. That lies on the context's own stack,
    /// which is empty but for it, and all of which it may use.
    pub fn returning(frame: *const TrapFrame) -> Self {
        let mut context = Self { sp: frame as u64, ..Self::new() };
        context.x[11] = trap_return as *const () as u64;
        context
    }
}

/// Goes on with the context `load`, and keeps this one in `save` until another CPU or this one goes on with it.
///
/// # Safety
/// Interrupts must be masked. `load` must be a context that was saved here or made by [`Context::returning`], whose stack
/// nobody else uses; nobody else may use either of the two contexts meanwhile. The bounds of the stack in this CPU's
/// [`CpuLocal`](super::trap::CpuLocal) must be those of the stack of `load`.
pub unsafe fn switch(save: *mut Context, load: *const Context) {
    // SAFETY: the caller's contract; what a call may change, this one does.
    unsafe { switch_context(save, load) };
}

/// The floating-point and SIMD registers, which the kernel does not use.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct FpState {
    q: [u128; 32],
    fpcr: u64,
    fpsr: u64,
}

impl FpState {
    /// All zero, as a program begins.
    #[expect(clippy::new_without_default, reason = "it is made in one place")]
    pub const fn new() -> Self {
        Self { q: [0; 32], fpcr: 0, fpsr: 0 }
    }

    /// Saves those of this CPU.
    ///
    /// # Safety
    /// [`allow_user`] must have been called on this CPU with `fp_simd`.
    pub unsafe fn save(&mut self) {
        // SAFETY: the caller's contract.
        unsafe { save_fp(self) };
    }

    /// Loads them into this CPU.
    ///
    /// # Safety
    /// As [`Self::save`].
    pub unsafe fn load(&self) {
        // SAFETY: the caller's contract.
        unsafe { load_fp(self) };
    }
}

/// The thread pointer of EL0 (TPIDR_EL0) on this CPU.
pub fn thread_pointer() -> u64 {
    let value;
    // SAFETY: reads a register that the kernel does not use.
    unsafe { asm!("mrs {}, tpidr_el0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Sets the thread pointer of EL0 on this CPU.
pub fn set_thread_pointer(value: u64) {
    // SAFETY: the kernel does not use it.
    unsafe { asm!("msr tpidr_el0, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// PSTATE.PAN, in SPSR_EL1.
pub const SPSR_PAN: u64 = 1 << 22;

/// What of the CPU's features EL0, and the kernel's accesses to its memory, have to do with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserFeatures {
    /// Floating point and Advanced SIMD.
    pub fp_simd: bool,
    /// FEAT_PAN: from now on an access of the kernel to what EL0 may access faults, unless it is an unprivileged one.
    pub pan: bool,
    /// FEAT_E0PD: accesses of EL0 to the kernel's half fault without a walk.
    pub e0pd: bool,
}

/// Sets this CPU up for EL0, as Linux does (DDI 0487, D24.2, SCTLR_EL1, CPACR_EL1, CNTKCTL_EL1, TCR_EL1, PMUSERENR_EL0): FP
/// and SIMD, DC ZVA, cache maintenance by address, CTR_EL0, WFE and the virtual counter are allowed, performance counters are
/// not, a misaligned SP faults.
///
/// # Safety
/// The CPU must have these features. Nothing that is under way may access memory that EL0 may access but by
/// unprivileged loads and stores.
pub unsafe fn allow_user(features: UserFeatures) {
    const SA0: u64 = 1 << 4;
    const DZE: u64 = 1 << 14;
    const UCT: u64 = 1 << 15;
    const NTWE: u64 = 1 << 18;
    const SPAN: u64 = 1 << 23;
    const UCI: u64 = 1 << 26;
    const FPEN: u64 = 0b11 << 20;
    const E0PD1: u64 = 1 << 56;
    const EL0VCTEN: u64 = 1 << 1;
    let unset = if features.pan { SPAN } else { 0 };
    // SAFETY: the caller vouches for the features; none of it changes what the kernel itself may do, but for PAN.
    unsafe {
        asm!(
            "mrs {tmp}, sctlr_el1", "orr {tmp}, {tmp}, {set}", "bic {tmp}, {tmp}, {unset}", "msr sctlr_el1, {tmp}",
            "msr cntkctl_el1, {timer}",
            "isb",
            tmp = out(reg) _,
            set = in(reg) SA0 | DZE | UCT | NTWE | UCI,
            unset = in(reg) unset,
            timer = in(reg) EL0VCTEN,
            options(nostack, preserves_flags)
        );
        // ID_AA64DFR0_EL1.PMUVer: 0 and 0b1111 mean that there is no PMUv3.
        let dfr0: u64;
        asm!("mrs {}, id_aa64dfr0_el1", out(reg) dfr0, options(nomem, nostack, preserves_flags));
        if !matches!(dfr0 >> 8 & 0xf, 0 | 0xf) {
            asm!("msr pmuserenr_el0, xzr", options(nostack, preserves_flags));
        }
        if features.fp_simd {
            asm!("msr cpacr_el1, {}", in(reg) FPEN, options(nostack, preserves_flags));
        }
        if features.pan {
            // MSR PAN, #1: an assembler for ARMv8.0 does not know the name.
            asm!(".inst 0xd500419f", options(nostack, preserves_flags));
        }
        if features.e0pd {
            // The field may be cached in a TLB.
            asm!(
                "mrs {tmp}, tcr_el1", "orr {tmp}, {tmp}, {bit}", "msr tcr_el1, {tmp}",
                "isb", "tlbi vmalle1", "dsb nsh",
                tmp = out(reg) _,
                bit = in(reg) E0PD1,
                options(nostack, preserves_flags)
            );
        }
    }
    barrier::isb();
}
