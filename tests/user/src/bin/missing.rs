//! Calls that are not there are ENOSYS, and counted by number; the kernel says so at the end.
#![no_std]
#![no_main]

use user::start::Environment;
use user::sys::{errno::ENOSYS, raw};

#[unsafe(no_mangle)]
fn main(_: Environment) -> i32 {
    for number in [96, 134, 134, 500, 511, 512, 100_000, usize::MAX] {
        assert_eq!(raw(number, &[1, 2, 3, 4, 5, 6]), Err(ENOSYS), "call {number}");
    }
    0
}
