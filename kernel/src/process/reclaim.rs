//! Memory is short: pages that may go are taken from whichever process has them, and what failed for want of memory is done again.
//!
//! What may go is what was advised MADV_FREE and not written to since. There is no swap, and the page cache is all there is of
//! the files, so nothing else may.

use core::sync::atomic::{AtomicU64, Ordering};

use mm::{Errno, Fault};

use super::{sched, space};

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

/// Does `act`; again and again where there is no memory for it, as long as others give some back, or pages can be taken. What
/// fails must be such that it can be done again. No lock may be held.
///
/// # Errors
/// Those of `act`.
pub(crate) fn retrying<T, E: MayBeMemory>(mut act: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let mut is_last = false;
    loop {
        let ended = space::ended();
        let error = match act() {
            Err(error) if error.is_memory() => error,
            result => return result,
        };
        // What is nobody's any more goes first, at once or in a moment.
        if space::any_ends() {
            sched::relax();
        } else if space::ended() != ended {
            // One that is no longer among them was counted before.
        } else if is_last {
            return Err(error);
        } else if !take_pages() {
            // Who unmaps something tells nobody.
            is_last = true;
        }
    }
}

/// Takes pages of processes; whether it took any.
fn take_pages() -> bool {
    // In turns, so that it is not always the same one that loses its pages.
    static LAST: AtomicU64 = AtomicU64::new(0);
    // The first round makes old what is young, and the second takes it where it was not used in between.
    for _ in 0..2 {
        let mut taken = 0;
        let mut busy = true;
        while busy && taken == 0 {
            busy = false;
            for _ in 0..space::count() {
                let Some(space) = space::after(LAST.load(Ordering::Relaxed)) else { break };
                LAST.store(space.id, Ordering::Relaxed);
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
    false
}
