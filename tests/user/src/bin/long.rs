//! Calls on much memory, which take a while, and let others run meanwhile: on one CPU too, and those too who use the same
//! memory and have to wait. Not under QEMU's user emulation, which does not populate by `madvise`.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

use user::println;
use user::start::Environment;
use user::sys::{
    ANONYMOUS, FIXED, READ, READ_WRITE, SHARED, exit, exited, fork, fork_with_same_memory, in_child, mmap,
    mprotect, munmap, nr, peek, poke, raw, wait,
};

/// All of it is the one block of zeroes: what there is much of is tables.
const BYTES: usize = 512 << 20;
const DONTNEED: usize = 4;
const POPULATE_READ: usize = 22;
const MAYMOVE: usize = 1;
const FIXED_PLACE: usize = 2;
const WNOHANG: usize = 1;
/// How often somebody else has to run at least, in a call that takes some more slices where each instruction takes 32 ns.
const ENOUGH: u32 = 8;

const BEFORE: u32 = 0;
const DURING: u32 = 1;
const AFTER: u32 = 2;

/// Something that takes long, by name, of what is mapped from an address on.
type Long = (&'static str, fn(usize));

const LONG: &[Long] = &[
    ("munmap", |at| _ = munmap(at, BYTES).expect("munmap")),
    ("mprotect", |at| _ = mprotect(at, BYTES, 0).expect("mprotect")),
    ("madvise", |at| _ = raw(nr::MADVISE, &[at, BYTES, DONTNEED]).expect("madvise")),
    ("mmap", |at| _ = raw(nr::MMAP, &[at, BYTES, READ, ANONYMOUS | FIXED, usize::MAX, 0]).expect("mmap")),
    // Not by whole tables.
    ("mremap", |at| {
        let to = at - 2 * BYTES + (64 << 10);
        raw(nr::MREMAP, &[at, BYTES, BYTES, MAYMOVE | FIXED_PLACE, to]).expect("mremap");
    }),
    ("fork", |_| {
        if fork().expect("fork") == 0 {
            exit(0);
        }
    }),
    ("exit", |_| exit(0)),
];

fn populated() -> usize {
    let start = mmap(BYTES, READ, ANONYMOUS).expect("addresses");
    raw(nr::MADVISE, &[start, BYTES, POPULATE_READ]).expect("memory for tables");
    start
}

/// How often this process runs while a child is at it.
fn turns(long: fn(usize), state: &AtomicU32) -> u32 {
    state.store(BEFORE, Ordering::Release);
    let child = fork().expect("fork");
    if child == 0 {
        let start = populated();
        state.store(DURING, Ordering::Release);
        long(start);
        state.store(AFTER, Ordering::Release);
        exit(0);
    }
    let mut turns = 0;
    let mut status = 0_i32;
    while raw(nr::WAIT4, &[child, &raw mut status as usize, WNOHANG]) == Ok(0) {
        turns += u32::from(state.load(Ordering::Acquire) == DURING);
        let _ = raw(nr::SCHED_YIELD, &[]);
    }
    assert_eq!(status, exited(0));
    turns
}

/// Faults that were resolved of who has the same memory.
static FAULTS: AtomicU32 = AtomicU32::new(0);
static ENDS: AtomicU32 = AtomicU32::new(0);

/// Faults again and again: each needs the mmap_lock, which somebody has who had to leave the CPU for it.
extern "C" fn use_same_memory() -> ! {
    let page = mmap(4096, READ_WRITE, ANONYMOUS).expect("memory");
    while ENDS.load(Ordering::Acquire) == 0 {
        poke(page, 1);
        raw(nr::MADVISE, &[page, 4096, DONTNEED]).expect("madvise");
        assert_eq!(peek(page), 0);
        FAULTS.fetch_add(1, Ordering::AcqRel);
        let _ = raw(nr::SCHED_YIELD, &[]);
    }
    exit(0)
}

/// In a process of its own, for its memory.
fn with_others_who_wait() -> i32 {
    let child = fork_with_same_memory(use_same_memory).expect("a child");
    for (_, long) in &LONG[..4] {
        let start = populated();
        long(start);
        let before = FAULTS.load(Ordering::Acquire);
        while FAULTS.load(Ordering::Acquire) == before {
            let _ = raw(nr::SCHED_YIELD, &[]);
        }
        munmap(start, BYTES).expect("munmap");
    }
    ENDS.store(1, Ordering::Release);
    assert_eq!(wait(child as isize), Ok((child, exited(0))));
    0
}

#[unsafe(no_mangle)]
fn main(_: Environment) -> i32 {
    let shared = mmap(4096, READ_WRITE, SHARED).expect("memory");
    // SAFETY: a word of zeroes of this program's, which is mapped for good.
    let state = unsafe { &*(shared as *const AtomicU32) };
    for (how, long) in LONG {
        let turns = turns(*long, state);
        assert!(turns >= ENOUGH, "{how}: others ran {turns} times only");
        println!("{how} lets others run");
    }
    assert_eq!(in_child(with_others_who_wait), exited(0));
    println!("who waits for the same memory lets others run");
    0
}
