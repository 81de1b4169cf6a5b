//! Exits with the status in its argument, or is killed for want of one.
#![no_std]
#![no_main]

use user::start::Environment;
use user::sys::peek;

#[unsafe(no_mangle)]
fn main(environment: Environment) -> i32 {
    match environment.arg(1) {
        Some(digits) => digits.iter().fold(0, |number, digit| number * 10 + i32::from(digit - b'0')),
        None => peek(0).into(),
    }
}
