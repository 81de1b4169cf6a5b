//! Takes memory until there is none: the child that asks is killed, and its parent goes on with all that it left; that too
//! which the kernel had needed for mappings.
#![no_std]
#![no_main]

use user::println;
use user::start::Environment;
use user::sys::{ANONYMOUS, READ, READ_WRITE, exited, in_child, mmap, mprotect, poke};

const PAGE: usize = 4096;
const STEP: usize = 16 << 20;
/// More than half of what there is.
const MOST: usize = 44 << 20;
const MAPPINGS: usize = 40_000;
/// How many processes have them at once: together they need about half of what there is.
const GENERATIONS: u32 = 6;
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
    assert_eq!(in_child(use_most), exited(0));
    println!("there is memory again");
    assert_eq!(in_child(map_much), exited(0));
    assert_eq!(in_child(use_most), exited(0), "mappings that are gone take memory");
    println!("and after many mappings");
    0
}

fn use_most() -> i32 {
    let start = mmap(MOST, READ_WRITE, ANONYMOUS).expect("addresses");
    (start..start + MOST).step_by(PAGE).for_each(|at| poke(at, 1));
    0
}

fn map_much() -> i32 {
    let bytes = MAPPINGS * PAGE;
    let start = mmap(bytes, READ, ANONYMOUS).expect("addresses");
    (start..start + bytes).step_by(2 * PAGE).for_each(|at| _ = mprotect(at, PAGE, 0).expect("mprotect"));
    fork_down(GENERATIONS)
}

/// Each with a child, all at once.
fn fork_down(generations: u32) -> i32 {
    match generations {
        0 => 0,
        _ => i32::from(in_child(|| fork_down(generations - 1)) != exited(0)),
    }
}
