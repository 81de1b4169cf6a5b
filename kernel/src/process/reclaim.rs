//! Memory is short: pages that may go are taken from whichever process has them, and what failed for want of memory is done again.
//!
//! What may go is what was advised MADV_FREE and not written to since. There is no swap, and the page cache is all there is of
//! the files, so nothing else may.

use core::sync::atomic::{AtomicU64, Ordering};

use mm::{Errno, Fault};

use super::{sched, space};
use crate::memory;

/// With so many frames free, memory is not what was missing: the most that is asked for at once are the arguments of `execve`
/// ([`MAX_ARGUMENTS`](kernel::initial_stack::MAX_ARGUMENTS)), 512.
const PLENTY: u64 = 1024;
/// Pages that are taken at a time, at least, where there are so many: as many as Linux takes.
const BATCH: u64 = 32;

/// An error that may be for want of memory.
pub(crate) trait MayBeMemory {
    /// Whether it is that.
    fn is_memory(&self) -> bool;
}

impl MayBeMemory for Errno {
    fn is_memory(&self) -> bool {
        *self == Self::OutOfMemory
    }
}

impl MayBeMemory for Fault {
    fn is_memory(&self) -> bool {
        *self == Self::OutOfMemory
    }
}

/// Does `act`; again and again where there is no memory for it, as long as pages can be taken. What fails must be such that it
/// can be done again. No lock may be held.
///
/// # Errors
/// Those of `act`.
pub(crate) fn retrying<T, E: MayBeMemory>(mut act: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    loop {
        match act() {
            Err(error) if error.is_memory() && reclaim() => {}
            result => return result,
        }
    }
}

/// Takes pages where memory is short; whether it took any, or some are being given back.
fn reclaim() -> bool {
    // In turns, so that it is not always the same one that loses its pages.
    static LAST: AtomicU64 = AtomicU64::new(0);
    if memory::frames().free_frames() >= PLENTY {
        return false;
    }
    // The first round makes old what is young, and the second takes it where it was not used in between.
    for _ in 0..2 {
        let mut taken = 0;
        let mut busy = true;
        while busy && taken == 0 {
            busy = false;
            for _ in 0..space::count() {
                let Some((id, space)) = space::after(LAST.load(Ordering::Relaxed)) else { break };
                LAST.store(id, Ordering::Relaxed);
                match space.reclaim(BATCH - taken) {
                    Some(pages) => taken += pages,
                    // Who changes its mappings waits for nothing that is held here, and could run meanwhile.
                    None => busy = true,
                }
                if taken >= BATCH {
                    return true;
                }
            }
        }
        if taken > 0 {
            return true;
        }
    }
    if space::any_ends() {
        sched::relax();
        return true;
    }
    false
}
