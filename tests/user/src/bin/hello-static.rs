//! The first program, linked at fixed addresses (build.rs).
#![no_std]
#![no_main]

use user::println;
use user::start::Environment;

#[unsafe(no_mangle)]
fn main(_: Environment) -> i32 {
    println!("hello, world");
    0
}
