//! Populates memory, which takes a while, and lets others run meanwhile: on one CPU too. Not under QEMU's user emulation,
//! which does not populate by `madvise`.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

use user::println;
use user::start::Environment;
use user::sys::{self, ANONYMOUS, READ, READ_WRITE, SHARED, exit, exited, fork, mmap, nr, raw, wait};

const BYTES: usize = 256 << 20;
const MADV_POPULATE_READ: usize = 22;
const MAP_POPULATE: usize = 0x8000;
/// How often somebody else has to run at least.
const ENOUGH: u32 = 16;

fn by_advice() -> sys::Result {
    let start = mmap(BYTES, READ, ANONYMOUS)?;
    raw(nr::MADVISE, &[start, BYTES, MADV_POPULATE_READ])
}

fn by_flag() -> sys::Result {
    mmap(BYTES, READ, ANONYMOUS | MAP_POPULATE)
}

/// A child that populates more than there is time for, until it is killed: by the end of this process, if that is the first.
fn leave_a_child(state: &AtomicU32) -> i32 {
    const FAR_TOO_MUCH: usize = 1 << 40;
    if fork().expect("fork") == 0 {
        let start = mmap(FAR_TOO_MUCH, READ, ANONYMOUS).expect("addresses");
        state.store(1, Ordering::Release);
        let _ = raw(nr::MADVISE, &[start, FAR_TOO_MUCH, MADV_POPULATE_READ]);
        state.store(2, Ordering::Release);
        exit(0);
    }
    while state.load(Ordering::Acquire) == 0 {
        let _ = raw(nr::SCHED_YIELD, &[]);
    }
    sys::sleep(50_000_000);
    assert_eq!(state.load(Ordering::Acquire), 1, "it was too quick");
    println!("a process that populates is killed");
    0
}

/// How often this process runs while a child populates memory.
fn turns_while(populate: fn() -> sys::Result, state: &AtomicU32) -> u32 {
    state.store(0, Ordering::Release);
    let child = fork().expect("fork");
    if child == 0 {
        state.store(1, Ordering::Release);
        let result = populate();
        state.store(2, Ordering::Release);
        exit(i32::from(result.is_err()));
    }
    let mut turns = 0;
    while state.load(Ordering::Acquire) != 2 {
        turns += u32::from(state.load(Ordering::Acquire) == 1);
        let _ = raw(nr::SCHED_YIELD, &[]);
    }
    assert_eq!(wait(child as isize), Ok((child, exited(0))));
    turns
}

#[unsafe(no_mangle)]
fn main(environment: Environment) -> i32 {
    let shared = mmap(4096, READ_WRITE, SHARED).expect("memory");
    // SAFETY: a word of zeroes of this program's, which is mapped for good.
    let state = unsafe { &*(shared as *const AtomicU32) };
    if environment.arg(1) == Some(b"killed") {
        return leave_a_child(state);
    }
    for (how, populate) in [("madvise", by_advice as fn() -> sys::Result), ("mmap", by_flag)] {
        // On another CPU somebody may always be late.
        let enough = (0..10).any(|_| turns_while(populate, state) >= ENOUGH);
        assert!(enough, "{how}: others ran less than {ENOUGH} times");
        println!("{how} lets others run");
    }
    0
}
