//! Calls about the machine.

use alloc::sync::Arc;

use log::warn;
use mm::Errno;

use crate::process::{Task, files, random, sched, uaccess};

/// `uname(buffer)`. The name is Linux's, since its system calls are meant, and so is the release: libraries look at it.
///
/// # Errors
/// EFAULT
pub(super) fn uname(task: &Arc<Task>, buffer: u64) -> Result<u64, Errno> {
    const LENGTH: usize = 65;
    let fields = [
        "Linux",
        "(none)",
        "6.12.0-pleat",
        concat!("#1 Pleat ", env!("CARGO_PKG_VERSION")),
        "aarch64",
        "(none)",
    ];
    let mut bytes = [0; LENGTH * 6];
    for (bytes, field) in bytes.chunks_exact_mut(LENGTH).zip(fields) {
        bytes[..field.len()].copy_from_slice(field.as_bytes());
    }
    uaccess::write(task, buffer, &bytes)?;
    Ok(0)
}

/// `getrandom(buffer, count, flags)`
///
/// Where there was no entropy at boot, there will be none: it does not wait for any, but says so.
///
/// # Errors
/// EINVAL, EFAULT; EAGAIN for GRND_NONBLOCK without entropy.
pub(super) fn getrandom(task: &Arc<Task>, buffer: u64, count: u64, flags: u64) -> Result<u64, Errno> {
    const GRND_RANDOM: u64 = 2;
    const GRND_INSECURE: u64 = 4;
    const GRND_NONBLOCK: u64 = 1;
    const ALL: u64 = GRND_NONBLOCK | GRND_RANDOM | GRND_INSECURE;
    if flags & !ALL != 0 || flags & (GRND_RANDOM | GRND_INSECURE) == GRND_RANDOM | GRND_INSECURE {
        return Err(Errno::EINVAL);
    }
    let count = count.min(files::MAX_COUNT);
    files::expect_user(buffer, count)?;
    if !random::is_seeded() && flags & GRND_INSECURE == 0 {
        if flags & GRND_NONBLOCK != 0 {
            return Err(Errno::EAGAIN);
        }
        warn!("{task} gets random numbers that can be guessed: this machine gave no entropy");
    }
    let mut done = 0;
    while done < count && task.killed().is_none() {
        sched::cond_resched();
        let mut piece = [0; 256];
        let at = buffer.wrapping_add(done);
        // Not beyond the page: what there is room for is given.
        let piece = &mut piece[..(count - done).min(256).min(uaccess::to_page_end(at)) as usize];
        random::fill(piece);
        match uaccess::write(task, at, piece) {
            Ok(()) => done += piece.len() as u64,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}
