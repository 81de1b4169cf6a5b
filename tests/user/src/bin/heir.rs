//! Fills memory that a process has which is about to end: who ends may have left its CPU to others before all of it was given
//! back. On one CPU with 64 MiB, of which each instruction takes so long that the end takes some slices.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

use user::println;
use user::start::Environment;
use user::sys::{ANONYMOUS, READ_WRITE, SHARED, exit, exited, fork, mmap, nr, poke, raw, wait};

/// More than half of what there is.
const BYTES: usize = 40 << 20;
const PAGE: usize = 4096;

fn fill() {
    let start = mmap(BYTES, READ_WRITE, ANONYMOUS).expect("addresses");
    (start..start + BYTES).step_by(PAGE).for_each(|at| poke(at, 1));
}

#[unsafe(no_mangle)]
fn main(_: Environment) -> i32 {
    let shared = mmap(PAGE, READ_WRITE, SHARED).expect("memory");
    // SAFETY: a word of zeroes of this program's, which is mapped for good.
    let ends = unsafe { &*(shared as *const AtomicU32) };
    for _ in 0..4 {
        ends.store(0, Ordering::Release);
        let child = fork().expect("fork");
        if child == 0 {
            fill();
            ends.store(1, Ordering::Release);
            exit(0);
        }
        while ends.load(Ordering::Acquire) == 0 {
            let _ = raw(nr::SCHED_YIELD, &[]);
        }
        // The next one, while that may still be about to end.
        let heir = fork().expect("fork");
        if heir == 0 {
            fill();
            exit(0);
        }
        assert_eq!(wait(heir as isize), Ok((heir, exited(0))), "the heir");
        assert_eq!(wait(child as isize), Ok((child, exited(0))));
    }
    println!("what one leaves another gets");
    0
}
