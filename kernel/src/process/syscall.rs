//! System calls, by Linux arm64's numbers (include/uapi/asm-generic/unistd.h): number in x8, arguments in x0 to x5, result or
//! negative errno in x0. What works of each is in docs/syscalls.md.

mod memory;
mod system;
mod time;

use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use arch::aarch64::trap::TrapFrame;
use log::info;
use mm::Errno;

use super::sched::Outcome;
use super::{Status, Task, exec, files, life, reclaim, sched};
#[cfg(feature = "selftest")]
use super::{injection, uaccess};

/// Numbers of Linux's calls are below this.
const NUMBERS: usize = 512;

/// How often each call was made that is not there; the last one is all larger numbers.
static MISSING: [AtomicU32; NUMBERS + 1] = [const { AtomicU32::new(0) }; NUMBERS + 1];

/// Does what the registers in `frame` ask for, and puts the result there. A status where the process ends by it.
pub(crate) fn call(task: &Arc<Task>, frame: &mut TrapFrame) -> Option<Status> {
    // exit, exit_group: a process has one thread.
    if let 93 | 94 = frame.x[8] {
        return Some(Status::Exited(frame.x[0] as u8));
    }
    // What there was no memory for has changed nothing that it would not do again.
    frame.x[0] = match reclaim::retrying(|| perform(task, frame)) {
        Ok(value) => value,
        Err(errno) => i64::from(-errno.number()) as u64,
    };
    None
}

fn perform(task: &Arc<Task>, frame: &mut TrapFrame) -> Result<u64, Errno> {
    let number = frame.x[8];
    let args = [frame.x[0], frame.x[1], frame.x[2], frame.x[3], frame.x[4], frame.x[5]];
    let [a0, a1, a2, a3, ..] = args;
    match number {
        56 => files::openat(task, args),
        57 => files::close(task, a0),
        62 => files::lseek(task, a0, a1, a2),
        63 => files::read(task, a0, a1, a2),
        64 => files::write(task, a0, a1, a2),
        66 => files::writev(task, a0, a1, a2),
        67 => files::pread(task, args),
        80 => files::fstat(task, a0, a1),
        101 => time::nanosleep(task, a0),
        113 => time::clock_gettime(task, a0, a1),
        114 => time::clock_getres(task, a0, a1),
        115 => time::clock_nanosleep(task, args),
        124 => {
            sched::switch_out(Outcome::Yield);
            Ok(0)
        }
        160 => system::uname(task, a0),
        // getpid, gettid: a process has one thread.
        172 | 178 => Ok(task.pid as u64),
        173 => Ok(task.parent() as u64),
        214 => memory::brk(task, a0),
        215 => task.own_space().munmap(a0, a1).map(|()| 0),
        216 => task.own_space().mremap(a0, a1, a2, a3, args[4]),
        220 => life::clone(task, frame, args),
        221 => exec::execve(task, frame, args),
        222 => memory::mmap(task, args),
        226 => task.own_space().mprotect(a0, a1, a2).map(|()| 0),
        232 => memory::mincore(task, a0, a1, a2),
        233 => memory::madvise(task, a0, a1, a2 as i32),
        260 => life::wait4(task, args),
        278 => system::getrandom(task, a0, a1, a2),
        #[cfg(feature = "selftest")]
        memory::FOLD_STATE => memory::fold_state(task, a0),
        #[cfg(feature = "selftest")]
        memory::RECLAIM => memory::reclaim(task, a0),
        #[cfg(feature = "selftest")]
        memory::FAULTS_WAITED => Ok(memory::faults_waited(task)),
        #[cfg(feature = "selftest")]
        memory::MEMORY_USED => Ok(memory::memory_used()),
        #[cfg(feature = "selftest")]
        uaccess::ABORTING => uaccess::aborting(task, a0, a1),
        #[cfg(feature = "selftest")]
        injection::FAIL_NTH => Ok(injection::fail_nth(task, a0, a1)),
        _ => {
            MISSING[(number as usize).min(NUMBERS)].fetch_add(1, Ordering::Relaxed);
            Err(Errno::ENOSYS)
        }
    }
}

/// Says which calls were made that are not there, and how often, and forgets it. Returns how many different ones.
pub(crate) fn report_missing() -> usize {
    let called = |count: &&AtomicU32| count.load(Ordering::Relaxed) > 0;
    let calls = MISSING.iter().filter(called).count();
    if calls > 0 {
        info!("system calls that are not there, by number: {}", Missing);
    }
    MISSING.iter().for_each(|count| count.store(0, Ordering::Relaxed));
    calls
}

/// `96 (1 times), 134 (2 times), 512 and above (3 times)`
struct Missing;

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (number, count) in MISSING.iter().enumerate() {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                let more = if number == NUMBERS { " and above" } else { "" };
                write!(f, "{separator}{number}{more} ({count} times)")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}
