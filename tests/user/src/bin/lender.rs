//! A process has memory that it was told may be taken, another one needs it: it is taken, what was used last stays, and nobody is
//! killed. With 64 MiB of RAM.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

use user::println;
use user::start::Environment;
use user::sys::errno::ENOMEM;
use user::sys::{
    ANONYMOUS, READ, READ_WRITE, SHARED, exit, exited, fail_no_more, fail_nth, fork, in_child, mmap,
    mprotect, munmap, nr, peek, poke, raw, wait,
};

const PAGE: usize = 4096;
const LENT: usize = 24 << 20;
const USED: usize = 1 << 20;
const NEEDED: usize = 40 << 20;
const POPULATED: usize = 8 << 20;
const MADV_WILLNEED: usize = 3;
const MADV_FREE: usize = 8;
const MAP_POPULATE: usize = 0x8000;

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

/// How many pages are in memory, which are not used by that.
fn in_memory(start: usize, bytes: usize) -> usize {
    let mut vec = [0_u8; LENT / PAGE];
    raw(nr::MINCORE, &[start, bytes, vec.as_mut_ptr() as usize]).expect("it is mapped");
    vec[..bytes / PAGE].iter().filter(|&&page| page == 1).count()
}

/// Each of these fails, and not for want of memory.
fn fail_for_other_reasons() {
    let hole = mmap(PAGE, READ, ANONYMOUS).expect("memory");
    munmap(hole, PAGE).expect("it is mapped");
    assert_eq!(raw(nr::MADVISE, &[hole, PAGE, MADV_WILLNEED]), Err(ENOMEM));
    assert_eq!(mprotect(hole, PAGE, READ), Err(ENOMEM));
    assert_eq!(mmap(1 << 48, READ, ANONYMOUS), Err(ENOMEM));
}

/// Grows the heap by a page again and again; each first allocation fails that a call makes, of which there are some.
fn grow_the_heap() {
    let mut end = raw(nr::BRK, &[0]).expect("brk tells where it is");
    let mut failed = 0;
    for step in 0..200 {
        // Mappings that can't be one: now and then room for more is used, by this or by the first of two steps.
        if step % 2 == 0 {
            mmap(PAGE, [READ, READ_WRITE][step / 2 % 2], ANONYMOUS).expect("address space");
        }
        fail_nth(0, false);
        let moved = raw(nr::BRK, &[end + PAGE]);
        failed += usize::from(fail_no_more());
        end += PAGE;
        assert_eq!(moved, Ok(end));
    }
    assert!(failed > 0, "it was never for want of memory");
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
    let lent = in_memory(start, LENT);
    assert!(lent > 0, "all was taken");
    fail_for_other_reasons();
    assert_eq!(in_memory(start, LENT), lent, "it was taken in vain");
    println!("nothing is taken for what memory does not help");
    let populated = mmap(POPULATED, READ_WRITE, ANONYMOUS | MAP_POPULATE).expect("address space");
    assert_eq!(in_memory(populated, POPULATED), POPULATED / PAGE, "of all that is lent");
    grow_the_heap();
    println!("memory that is populated, and the heap, get what is lent");
    munmap(populated, POPULATED).expect("it is mapped");
    assert_eq!(in_child(|| 0), exited(0));
    munmap(more, NEEDED).expect("it is mapped");
    println!("a process forked with what it had lent itself");
    0
}
