//! The memory of the current process, by addresses that it gave: never by the kernel's own loads and stores.
//!
//! An address is used for nothing but an unprivileged access; where that faults, the fault is resolved as if the process
//! had made it, and the access made again. What the process may not access itself is EFAULT.

use alloc::vec::Vec;

use arch::VirtAddr;
use arch::aarch64::probe;
use arch::aarch64::uaccess::{copy_from_user, copy_to_user};
use arch::esr::{Access as Cause, FaultStatus};
use mm::{Access, Errno, Fault, TASK_SIZE};

use super::{Signal, Task, reclaim};
use crate::vm::PAGE;
use alloc::sync::Arc;
use log::warn;

/// Whether all of it is below [`TASK_SIZE`]: Linux's `access_ok`, which looks at the address of nothing too.
pub(crate) fn is_user(va: u64, bytes: u64) -> bool {
    va.checked_add(bytes).is_some_and(|end| end <= TASK_SIZE)
}

/// Bytes from `va` to the end of its page. A copy that stays in it is done as a whole or not at all; of more, what was done
/// before a fault is not known.
pub(crate) fn to_page_end(va: u64) -> u64 {
    PAGE - va % PAGE
}

/// Reads from `va` on.
///
/// # Errors
/// EFAULT; what `into` holds then is of no use.
pub(crate) fn read(task: &Arc<Task>, va: u64, into: &mut [u8]) -> Result<(), Errno> {
    if !is_user(va, into.len() as u64) {
        return Err(Errno::EFAULT);
    }
    let mut at = va;
    let mut rest = into;
    while !rest.is_empty() {
        let (here, after) = rest.split_at_mut(rest.len().min(to_page_end(at) as usize));
        resolving(task, || copy_from_user(here, VirtAddr::new(at)))?;
        at += here.len() as u64;
        rest = after;
    }
    Ok(())
}

/// Writes from `va` on.
///
/// # Errors
/// EFAULT; some of it may have been written.
pub(crate) fn write(task: &Arc<Task>, va: u64, from: &[u8]) -> Result<(), Errno> {
    if !is_user(va, from.len() as u64) {
        return Err(Errno::EFAULT);
    }
    let mut at = va;
    let mut rest = from;
    while !rest.is_empty() {
        let (here, after) = rest.split_at(rest.len().min(to_page_end(at) as usize));
        // SAFETY: what TTBR0 maps writable is memory of processes, which no reference refers to.
        resolving(task, || unsafe { copy_to_user(VirtAddr::new(at), here) })?;
        at += here.len() as u64;
        rest = after;
    }
    Ok(())
}

/// Reads a word.
///
/// # Errors
/// EFAULT
pub(crate) fn read_word(task: &Arc<Task>, va: u64) -> Result<u64, Errno> {
    let mut bytes = [0; 8];
    read(task, va, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Reads a string up to its NUL, without it.
///
/// # Errors
/// EFAULT; ENAMETOOLONG where `limit` bytes have no NUL; OutOfMemory.
pub(crate) fn read_string(task: &Arc<Task>, va: u64, limit: usize) -> Result<Vec<u8>, Errno> {
    let mut string = Vec::new();
    let mut at = va;
    loop {
        let mut piece = [0; 128];
        // Not beyond the page: what follows may not be readable, and the NUL come before it.
        let bytes = piece.len().min(to_page_end(at) as usize);
        let piece = &mut piece[..bytes];
        read(task, at, piece)?;
        let end = piece.iter().position(|&byte| byte == 0);
        let piece = &piece[..end.unwrap_or(bytes)];
        if string.len() + piece.len() >= limit {
            return Err(Errno::ENAMETOOLONG);
        }
        string.try_reserve(piece.len()).map_err(|_| Errno::OutOfMemory)?;
        string.extend_from_slice(piece);
        if end.is_some() {
            return Ok(string);
        }
        at += bytes as u64;
    }
}

/// Whether a change of an entry can resolve a fault.
pub(crate) fn is_of_an_entry(status: FaultStatus) -> bool {
    matches!(status, FaultStatus::Translation(_) | FaultStatus::AccessFlag(_) | FaultStatus::Permission(_))
}

/// Makes an access until it succeeds, or its fault can't be resolved.
fn resolving(task: &Arc<Task>, mut access: impl FnMut() -> Result<(), probe::Fault>) -> Result<(), Errno> {
    let space = task.own_space();
    loop {
        let Err(fault) = access() else { return Ok(()) };
        // A process that is to end does not wait for memory.
        if task.killed().is_some() {
            return Err(Errno::EFAULT);
        }
        let abort = fault.esr.abort().ok_or(Errno::EFAULT)?;
        // Of all others the access would fault again, for ever.
        if !is_of_an_entry(abort.status) {
            return Err(Errno::EFAULT);
        }
        let wanted = match abort.access {
            Cause::Write => Access::Write,
            _ => Access::Read,
        };
        match reclaim::retrying(|| space.handle_fault(fault.far, wanted)) {
            Ok(_) => {}
            Err(Fault::OutOfMemory) => {
                warn!("{task} killed: out of memory, for a system call that accesses {}", fault.far);
                task.kill(Signal::SIGKILL);
                return Err(Errno::EFAULT);
            }
            Err(Fault::Segv { .. } | Fault::Bus) => return Err(Errno::EFAULT),
        }
    }
}

/// A call that Linux has not, for the self-tests: an access that aborts.
#[cfg(feature = "selftest")]
pub(crate) const ABORTING: u64 = 0xab07;

/// `aborting(addr, status)`: a load that aborts with this fault status, whatever is mapped there, the first three times that it is
/// made. Memory itself does so on no machine that the tests run on.
///
/// # Errors
/// EFAULT
#[cfg(feature = "selftest")]
pub(crate) fn aborting(task: &Arc<Task>, va: u64, status: u64) -> Result<u64, Errno> {
    use arch::esr::Esr;
    /// Bits of the class, and of the status.
    const DATA_ABORT_SAME: u64 = 0b100101 << 26;
    const STATUS: u64 = 0x3f;
    let esr = Esr::new(DATA_ABORT_SAME | status & STATUS);
    let mut aborts = 3;
    resolving(task, || match aborts {
        0 => Ok(()),
        _ => {
            aborts -= 1;
            Err(probe::Fault { esr, far: VirtAddr::new(va) })
        }
    })?;
    Ok(0)
}
