//! Maps, writes, forks, and runs another program, with little memory: exits with 0, or with ENOMEM where a call fails for want of
//! memory, or the number of whatever else went wrong; or it is killed.
#![no_std]
#![no_main]

use user::start::Environment;
use user::sys::{self, ANONYMOUS, Errno, READ_WRITE, mmap, munmap, nr, peek, poke, raw};

const PAGE: usize = 4096;
const BYTES: usize = 24 * PAGE;
const ENOMEM: i32 = 12;
const EAGAIN: Errno = Errno(11);

fn run() -> Result<i32, Errno> {
    let start = mmap(BYTES, READ_WRITE, ANONYMOUS)?;
    let set = |value: u8| (0..BYTES).step_by(PAGE).for_each(|offset| poke(start + offset, value));
    let all = |value: u8| (0..BYTES).step_by(PAGE).all(|offset| peek(start + offset) == value);
    set(1);
    let child = sys::fork()?;
    if child == 0 {
        if !all(1) {
            return Ok(2);
        }
        set(2);
        let (path, argv) = (c"/bin/hello-static", [c"hello".as_ptr(), core::ptr::null()]);
        raw(nr::EXECVE, &[path.as_ptr() as usize, argv.as_ptr() as usize, 0])?;
    }
    let (_, status) = sys::wait(child as isize)?;
    if !all(1) {
        return Ok(3);
    }
    munmap(start, BYTES)?;
    // The child was killed, or refused: as this process might have been.
    Ok(match status {
        9 => ENOMEM,
        status => status >> 8,
    })
}

#[unsafe(no_mangle)]
fn main(_: Environment) -> i32 {
    match run() {
        Ok(status) => status,
        Err(EAGAIN) => ENOMEM,
        Err(Errno(number)) => number,
    }
}
