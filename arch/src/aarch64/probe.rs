//! Accesses that may fault, on purpose or because nobody knows: the fault comes back as a value.

use core::arch::global_asm;

use crate::VirtAddr;
use crate::esr::{Esr, ExceptionClass};

global_asm!(include_str!("probe.S"), include_str!("uaccess.S"));

/// What a fault left in the syndrome and fault address registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// ESR_EL1.
    pub esr: Esr,
    /// FAR_EL1.
    pub far: VirtAddr,
}

/// Two registers, as the procedure call standard returns them.
#[repr(C)]
pub(super) struct Outcome {
    esr: u64,
    value: u64,
}

unsafe extern "C" {
    fn probe_load(va: u64) -> Outcome;
    fn probe_load_word(va: u64) -> Outcome;
    fn probe_store(va: u64, value: u8) -> Outcome;
    fn probe_call(va: u64) -> Outcome;
    fn probe_load_user(va: u64) -> Outcome;
    fn probe_store_user(va: u64, value: u8) -> Outcome;
    fn probe_execute_user(va: u64) -> Outcome;
}

pub(super) fn result(outcome: Outcome) -> Result<u64, Fault> {
    match outcome.esr {
        0 => Ok(outcome.value),
        esr => Err(Fault { esr: Esr::new(esr), far: VirtAddr::new(outcome.value) }),
    }
}

/// Loads the byte at `va`.
///
/// # Safety
/// A load from `va` must have no effect beyond the load: no register that changes when it is read.
pub unsafe fn load(va: VirtAddr) -> Result<u8, Fault> {
    // SAFETY: a fault is fixed up; the caller vouches for the rest.
    result(unsafe { probe_load(va.get()) }).map(|value| value as u8)
}

/// Loads the 32-bit register at `va`, which is aligned.
///
/// # Safety
/// A load from `va` must have no effect beyond the load: no register that changes when it is read.
pub unsafe fn load_word(va: VirtAddr) -> Result<u32, Fault> {
    // SAFETY: a fault is fixed up; the caller vouches for the rest.
    result(unsafe { probe_load_word(va.get()) }).map(|value| value as u32)
}

/// Stores `value` to the byte at `va`.
///
/// # Safety
/// If the store does not fault, nobody else may rely on what was there.
pub unsafe fn store(va: VirtAddr, value: u8) -> Result<(), Fault> {
    // SAFETY: a fault is fixed up; the caller vouches for the rest.
    result(unsafe { probe_store(va.get(), value) }).map(|_| ())
}

/// Calls the code at `va`.
///
/// # Safety
/// If the fetch does not fault, there must be a function at `va` that keeps to the procedure call standard,
/// and does not touch x2: one `ret` is enough.
pub unsafe fn call(va: VirtAddr) -> Result<(), Fault> {
    // SAFETY: a fault is fixed up; the caller vouches for the rest.
    result(unsafe { probe_call(va.get()) }).map(|_| ())
}

/// Loads the byte at `va` as EL0 does (LDTRB).
///
/// # Safety
/// As [`load`].
pub unsafe fn load_user(va: VirtAddr) -> Result<u8, Fault> {
    // SAFETY: a fault is fixed up; the caller vouches for the rest.
    result(unsafe { probe_load_user(va.get()) }).map(|value| value as u8)
}

/// Stores `value` to the byte at `va` as EL0 does (STTRB).
///
/// # Safety
/// As [`store`].
pub unsafe fn store_user(va: VirtAddr, value: u8) -> Result<(), Fault> {
    // SAFETY: a fault is fixed up; the caller vouches for the rest.
    result(unsafe { probe_store_user(va.get(), value) }).map(|_| ())
}

/// Executes the instruction at `va` at EL0, which takes an exception to EL1: the immediate of an SVC.
///
/// # Errors
/// Any other exception.
///
/// # Safety
/// If the fetch does not fault, there must be an instruction at `va` that takes an exception, without a change of any
/// register.
pub unsafe fn execute_user(va: VirtAddr) -> Result<u16, Fault> {
    // SAFETY: the exception is fixed up; the caller vouches for the rest.
    let outcome = unsafe { probe_execute_user(va.get()) };
    let esr = Esr::new(outcome.esr);
    match (esr.class(), esr.immediate()) {
        (ExceptionClass::Svc64, Some(immediate)) => Ok(immediate),
        _ => Err(Fault { esr, far: VirtAddr::new(outcome.value) }),
    }
}
