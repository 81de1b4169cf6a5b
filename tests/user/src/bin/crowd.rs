//! As many processes as there may be, which all work and take turns; and what happens when there is one more.
#![no_std]
#![no_main]

use user::println;
use user::start::Environment;
use user::sys::{Errno, exit, exited, fork, nr, raw, wait};

const EAGAIN: Errno = Errno(11);
const ENOMEM: Errno = Errno(12);
const MOST: usize = 1000;

#[unsafe(no_mangle)]
fn main(_: Environment) -> i32 {
    for _ in 0..2 {
        let mut children = 0;
        let error = loop {
            match fork() {
                Ok(0) => {
                    let mut sum = 0_u64;
                    for i in 0..40_000_u64 {
                        sum = core::hint::black_box(sum.wrapping_mul(31).wrapping_add(i));
                        if i % 10_000 == 0 {
                            let _ = raw(nr::SCHED_YIELD, &[]);
                        }
                    }
                    exit(i32::from(sum == 0));
                }
                Ok(_) => children += 1,
                Err(error) => break error,
            }
            assert!(children < MOST, "there is no end of processes");
        };
        assert!(error == EAGAIN || error == ENOMEM, "{error:?}");
        assert!(children >= 8, "only {children} processes");
        for _ in 0..children {
            assert_eq!(wait(-1).expect("a child").1, exited(0));
        }
    }
    println!("a crowd has ended, twice");
    0
}
