//! Two processes in one address space: one reads and writes a block of memory, and reads another; the other changes whether
//! the first may be executed, and the second written to, in parts and as wholes, until some faults have waited: for the
//! mmap_lock, and for the lock of the table. Nothing is lost, nobody faults but for a moment, and in the end both are folded.
//! Needs two CPUs. Not under QEMU's user emulation, which has no processes that share memory and are not threads.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

use user::fold::{FOLDED, fold_state};
use user::println;
use user::start::Environment;
use user::sys::{
    self, ANONYMOUS, READ, READ_WRITE, exit, exited, faults_waited, fork_with_same_memory, mmap, mprotect,
    nr, raw, wait,
};

const PAGE: usize = 4096;
const PAGES: usize = 16;
const BLOCK: usize = PAGES * PAGE;
const ROUNDS: u32 = 60;
const MOST_ROUNDS: u32 = 100_000;
const MADV_FREE: usize = 8;

/// Rounds of the one that uses the block.
static USED: AtomicU32 = AtomicU32::new(0);
static ENOUGH: AtomicU32 = AtomicU32::new(0);

/// Where the child finds what it uses.
static BLOCK_AT: AtomicU32 = AtomicU32::new(0);

extern "C" fn use_block() -> ! {
    let start = (BLOCK_AT.load(Ordering::Acquire) as usize) << 16;
    let mut round = 0_u32;
    while ENOUGH.load(Ordering::Acquire) == 0 {
        round += 1;
        for page in 0..PAGES {
            let at = (start + page * PAGE + (round as usize % 1000) * 4) as *mut u32;
            let value = round ^ (page as u32) << 24;
            // SAFETY: words of the blocks, which nobody else writes to.
            unsafe {
                at.write_volatile(value);
                assert_eq!(at.read_volatile(), value, "a write was lost in round {round}");
                // What may not be written to at times may be read at all times.
                assert_eq!(((start + BLOCK + page * PAGE) as *const u32).read_volatile(), page as u32);
            }
        }
        USED.store(round, Ordering::Release);
    }
    exit(0)
}

#[unsafe(no_mangle)]
fn main(_: Environment) -> i32 {
    // More than two blocks, for there to be two that are aligned.
    let memory = mmap(3 * BLOCK, READ_WRITE, ANONYMOUS).expect("memory");
    let start = memory.next_multiple_of(BLOCK);
    BLOCK_AT.store((start >> 16) as u32, Ordering::Release);
    sys::poke(start, 0);
    (0..PAGES).for_each(|page| sys::poke(start + BLOCK + page * PAGE, page as u8));
    let child = fork_with_same_memory(use_block).expect("a child");

    let mut round = 0;
    let has_waited = || matches!(faults_waited(), (1.., 1..));
    while round < ROUNDS || USED.load(Ordering::Acquire) < 100 || !has_waited() {
        round += 1;
        assert!(
            round < MOST_ROUNDS,
            "no access met a conversion, which takes two CPUs: {:?}",
            faults_waited()
        );
        let page = start + round as usize % PAGES * PAGE;
        // A permission that the other does not miss: code may be there. The block is unfolded, and folded again.
        mprotect(page, PAGE, READ_WRITE | 4).expect("mprotect");
        mprotect(page, PAGE, READ_WRITE).expect("mprotect");
        // The same by who holds the lock of the table only. Nothing is taken, as memory is not short.
        raw(nr::MADVISE, &[page, PAGE, MADV_FREE]).expect("madvise");
        mprotect(start, BLOCK, READ_WRITE | 4).expect("mprotect");
        mprotect(start, BLOCK, READ_WRITE).expect("mprotect");
        // The write permission of what is only read.
        mprotect(page + BLOCK, PAGE, READ).expect("mprotect");
        mprotect(page + BLOCK, PAGE, READ_WRITE).expect("mprotect");
        mprotect(start + BLOCK, BLOCK, READ).expect("mprotect");
        mprotect(start + BLOCK, BLOCK, READ_WRITE).expect("mprotect");
        if round % 20 == 0 {
            let _ = raw(nr::SCHED_YIELD, &[]);
        }
    }
    ENOUGH.store(1, Ordering::Release);
    assert_eq!(wait(child as isize), Ok((child, exited(0))));
    let rounds = USED.load(Ordering::Acquire);
    // What was written last is there.
    for page in 0..PAGES {
        let at = (start + page * PAGE + (rounds as usize % 1000) * 4) as *const u32;
        // SAFETY: a word of the block; the other process has ended.
        assert_eq!(unsafe { at.read_volatile() }, rounds ^ (page as u32) << 24);
    }
    assert_eq!(fold_state(start), Ok(FOLDED), "the block is not folded");
    assert_eq!(fold_state(start + BLOCK), Ok(FOLDED), "the block that is read is not folded");
    println!("a block was used while its permissions changed");
    let (mappings, table) = faults_waited();
    println!("# {mappings} faults waited for who changed mappings, {table} for the lock of the table");
    0
}
