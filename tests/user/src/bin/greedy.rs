//! Takes memory until there is none: the child that asks is killed, and its parent goes on with all that it left.
#![no_std]
#![no_main]

use user::println;
use user::start::Environment;
use user::sys::{ANONYMOUS, READ_WRITE, exited, in_child, mmap, poke};

const PAGE: usize = 4096;
const STEP: usize = 16 << 20;
const SIGKILL: i32 = 9;

#[unsafe(no_mangle)]
fn main(_: Environment) -> i32 {
    for _ in 0..2 {
        let status = in_child(|| {
            loop {
                let Ok(start) = mmap(STEP, READ_WRITE, ANONYMOUS) else { return 1 };
                (start..start + STEP).step_by(PAGE).for_each(|at| poke(at, 1));
            }
        });
        println!("the greedy one ended by signal {status}");
        assert_eq!(status, SIGKILL);
    }
    let status = in_child(|| {
        let start = mmap(STEP, READ_WRITE, ANONYMOUS).expect("there is memory again");
        (start..start + STEP).step_by(PAGE).for_each(|at| poke(at, 1));
        0
    });
    assert_eq!(status, exited(0));
    println!("there is memory again");
    0
}
