//! A process has memory that it was told may be taken, another one needs it: it is taken, what was used last stays, and nobody is
//! killed. With 64 MiB of RAM.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

use user::println;
use user::start::Environment;
use user::sys::{
    ANONYMOUS, READ_WRITE, SHARED, exit, exited, fork, in_child, mmap, munmap, nr, peek, poke, raw, wait,
};

const PAGE: usize = 4096;
const LENT: usize = 24 << 20;
const USED: usize = 1 << 20;
const NEEDED: usize = 40 << 20;
const MADV_FREE: usize = 8;

fn value(at: usize) -> u8 {
    1 + (at / PAGE % 250) as u8
}

fn pages(start: usize, bytes: usize) -> impl Iterator<Item = usize> {
    (start..start + bytes).step_by(PAGE)
}

/// Uses more memory than is free.
fn need(bytes: usize) -> i32 {
    let start = mmap(bytes, READ_WRITE, ANONYMOUS).expect("address space");
    pages(start, bytes).for_each(|at| poke(at, value(at)));
    if pages(start, bytes).all(|at| peek(at) == value(at)) { 0 } else { 1 }
}

#[unsafe(no_mangle)]
fn main(_: Environment) -> i32 {
    let shared = mmap(PAGE, READ_WRITE, SHARED).expect("memory");
    // SAFETY: a page of zeroes of this program's, which is mapped for good.
    let lent = unsafe { &*(shared as *const AtomicU32) };
    lent.store(0, Ordering::Release);
    let child = fork().expect("memory");
    if child == 0 {
        while lent.load(Ordering::Acquire) == 0 {
            let _ = raw(nr::SCHED_YIELD, &[]);
        }
        exit(need(NEEDED));
    }
    let start = mmap(LENT, READ_WRITE, ANONYMOUS).expect("memory");
    pages(start, LENT).for_each(|at| poke(at, value(at)));
    raw(nr::MADVISE, &[start, LENT, MADV_FREE]).expect("it is mapped");
    assert!(pages(start, USED).all(|at| peek(at) == value(at)), "nobody has needed it yet");
    lent.store(1, Ordering::Release);
    assert_eq!(
        wait(child as isize),
        Ok((child, exited(0))),
        "who needs memory is killed while there is some"
    );

    let taken = pages(start, LENT).filter(|&at| peek(at) == 0).count();
    assert!(
        pages(start, LENT).all(|at| [0, value(at)].contains(&peek(at))),
        "what was not taken is as it was"
    );
    assert!(taken > 0, "there was enough without");
    assert!(pages(start, USED).all(|at| peek(at) == value(at)), "what was used last was taken first");
    println!("another process took what was lent");

    // Nor is who forks, or runs a program, refused.
    pages(start, LENT).for_each(|at| poke(at, value(at)));
    raw(nr::MADVISE, &[start, LENT, MADV_FREE]).expect("it is mapped");
    let more = mmap(NEEDED, READ_WRITE, ANONYMOUS).expect("address space");
    pages(more, NEEDED).for_each(|at| poke(at, 1));
    assert_eq!(in_child(|| 0), exited(0));
    munmap(more, NEEDED).expect("it is mapped");
    println!("a process forked with what it had lent itself");
    0
}
