//! Clocks, and sleeping. There is no clock of the real world: every clock begins when the counter does.

use alloc::sync::Arc;
use core::time::Duration;

use mm::Errno;

use crate::process::{Task, sched, uaccess};
use crate::timer;

const CLOCK_REALTIME: u32 = 0;
const CLOCK_MONOTONIC: u32 = 1;
const CLOCK_THREAD_CPUTIME_ID: u32 = 3;
const CLOCK_MONOTONIC_RAW: u32 = 4;
const CLOCK_REALTIME_COARSE: u32 = 5;
const CLOCK_MONOTONIC_COARSE: u32 = 6;
const CLOCK_BOOTTIME: u32 = 7;
const NANOSECONDS: u64 = 1_000_000_000;

fn expect_clock(clock: u64) -> Result<(), Errno> {
    match clock as u32 {
        CLOCK_REALTIME
        | CLOCK_MONOTONIC
        | CLOCK_MONOTONIC_RAW
        | CLOCK_REALTIME_COARSE
        | CLOCK_MONOTONIC_COARSE
        | CLOCK_BOOTTIME => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

fn write(task: &Arc<Task>, to: u64, time: Duration) -> Result<u64, Errno> {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&time.as_secs().to_le_bytes());
    bytes[8..].copy_from_slice(&u64::from(time.subsec_nanos()).to_le_bytes());
    uaccess::write(task, to, &bytes)?;
    Ok(0)
}

/// A `struct timespec`, in counts of the counter, rounded up.
fn read(task: &Arc<Task>, from: u64) -> Result<u64, Errno> {
    let mut bytes = [0; 16];
    uaccess::read(task, from, &mut bytes)?;
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let (seconds, nanoseconds) = (word(0), word(8));
    if seconds as i64 >= 0 && nanoseconds < NANOSECONDS {
        let frequency = timer::frequency();
        Ok(seconds.saturating_mul(frequency).saturating_add((nanoseconds * frequency).div_ceil(NANOSECONDS)))
    } else {
        Err(Errno::EINVAL)
    }
}

/// `clock_gettime(clock, time)`
///
/// # Errors
/// EINVAL, EFAULT.
pub(super) fn clock_gettime(task: &Arc<Task>, clock: u64, time: u64) -> Result<u64, Errno> {
    expect_clock(clock)?;
    write(task, time, timer::duration(timer::now()))
}

/// `clock_getres(clock, resolution)`
///
/// # Errors
/// EINVAL, EFAULT.
pub(super) fn clock_getres(task: &Arc<Task>, clock: u64, resolution: u64) -> Result<u64, Errno> {
    expect_clock(clock)?;
    if resolution == 0 {
        return Ok(0);
    }
    write(task, resolution, Duration::from_nanos(NANOSECONDS.div_ceil(timer::frequency())))
}

fn sleep_until(task: &Arc<Task>, deadline: u64) -> Result<u64, Errno> {
    while timer::now() < deadline {
        if task.killed().is_some() {
            return Err(Errno::EINTR);
        }
        sched::park(Some(deadline));
    }
    Ok(0)
}

/// `nanosleep(duration, left)`: nothing interrupts it but what ends the process, so nothing is ever left.
///
/// # Errors
/// EINVAL, EFAULT.
pub(super) fn nanosleep(task: &Arc<Task>, duration: u64) -> Result<u64, Errno> {
    let counts = read(task, duration)?;
    sleep_until(task, timer::now().saturating_add(counts))
}

/// `clock_nanosleep(clock, flags, time, left)`
///
/// # Errors
/// EINVAL, EFAULT; EOPNOTSUPP for a clock that can't wake anybody.
pub(super) fn clock_nanosleep(task: &Arc<Task>, args: [u64; 6]) -> Result<u64, Errno> {
    const TIMER_ABSTIME: u64 = 1;
    let [clock, flags, time, ..] = args;
    match clock as u32 {
        CLOCK_REALTIME | CLOCK_MONOTONIC | CLOCK_BOOTTIME => {}
        CLOCK_THREAD_CPUTIME_ID | CLOCK_MONOTONIC_RAW | CLOCK_REALTIME_COARSE | CLOCK_MONOTONIC_COARSE => {
            return Err(Errno::EOPNOTSUPP);
        }
        _ => return Err(Errno::EINVAL),
    }
    let counts = read(task, time)?;
    let start = if flags & TIMER_ABSTIME != 0 { 0 } else { timer::now() };
    sleep_until(task, start.saturating_add(counts))
}
