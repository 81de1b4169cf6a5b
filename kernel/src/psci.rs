//! The Power State Coordination Interface (DEN 0022): starting CPUs and switching the machine off.
//!
//! Firmware is called only where the device tree has a `/psci` node, and only by its conduit: on a
//! machine without, `smc` and `hvc` are undefined instructions. No function here is inlined, so that where those
//! instructions are in an Image can be told.

use core::fmt;

use arch::PhysAddr;
use kernel::platform::Conduit;
use smccc::psci::{self, Version};
use smccc::{Hvc, Smc};
use spin::Once;

/// How firmware is called; unset where it is not.
static CONDUIT: Once<Conduit> = Once::new();

/// Why a call failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Error {
    /// The device tree has no `/psci` node.
    NotDescribed,
    /// Firmware's own answer.
    Firmware(psci::Error),
    /// SYSTEM_OFF returned, which it must not do.
    StillRunning,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDescribed => f.write_str("the device tree has no /psci"),
            Self::Firmware(error) => write!(f, "PSCI: {error}"),
            Self::StillRunning => f.write_str("PSCI SYSTEM_OFF returned"),
        }
    }
}

impl core::error::Error for Error {}

/// Sets how firmware is called, from the device tree. The first call counts.
pub(crate) fn init(conduit: Conduit) {
    CONDUIT.call_once(|| conduit);
}

/// The version that firmware implements.
///
/// # Errors
/// [`Error::NotDescribed`], or [`Error::Firmware`] with its answer.
#[inline(never)]
pub(crate) fn version() -> Result<Version, Error> {
    match CONDUIT.get() {
        Some(Conduit::Hvc) => psci::version::<Hvc>(),
        Some(Conduit::Smc) => psci::version::<Smc>(),
        None => return Err(Error::NotDescribed),
    }
    .map_err(Error::Firmware)
}

/// CPU_ON: starts the CPU whose affinity fields are `mpidr` at physical address `entry`, with
/// `context` in X0, its MMU and caches off and interrupts masked.
///
/// # Errors
/// [`Error::NotDescribed`], or [`Error::Firmware`] with its answer.
///
/// # Safety
/// `entry` is code made for that state, `context` is what it expects, and everything that it reads
/// before its caches are on has been cleaned to the point of coherency.
#[inline(never)]
pub(crate) unsafe fn cpu_on(mpidr: u64, entry: PhysAddr, context: u64) -> Result<(), Error> {
    match CONDUIT.get() {
        Some(Conduit::Hvc) => psci::cpu_on::<Hvc>(mpidr, entry.get(), context),
        Some(Conduit::Smc) => psci::cpu_on::<Smc>(mpidr, entry.get(), context),
        None => return Err(Error::NotDescribed),
    }
    .map_err(Error::Firmware)
}

/// SYSTEM_OFF: switches the machine off; returns only where that fails.
#[inline(never)]
pub(crate) fn system_off() -> Error {
    let answer = match CONDUIT.get() {
        Some(Conduit::Hvc) => psci::system_off::<Hvc>(),
        Some(Conduit::Smc) => psci::system_off::<Smc>(),
        None => return Error::NotDescribed,
    };
    match answer {
        Ok(()) => Error::StillRunning,
        Err(error) => Error::Firmware(error),
    }
}
