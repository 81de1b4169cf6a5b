//! Random numbers: no two are alike, no byte is rare, and who will not wait is not kept waiting.
#![no_std]
#![no_main]

use user::println;
use user::start::Environment;
use user::sys::{Errno, Result, nr, raw};

const NONBLOCK: usize = 1;
const INSECURE: usize = 4;
const EAGAIN: Errno = Errno(11);
const PIECE: usize = 4096;
const PIECES: usize = 32;

fn random(bytes: &mut [u8], flags: usize) -> Result {
    raw(nr::GETRANDOM, &[bytes.as_mut_ptr() as usize, bytes.len(), flags])
}

#[unsafe(no_mangle)]
fn main(_: Environment) -> i32 {
    let mut before = [0; 16];
    for flags in [0, INSECURE, 2, 0] {
        let mut now = [0; 16];
        assert_eq!(random(&mut now, flags), Ok(16));
        assert!(now != [0; 16] && now != before, "{now:x?} after {before:x?}");
        before = now;
    }
    // Where the machine has no entropy there is nothing to wait for.
    assert!(matches!(random(&mut before, NONBLOCK), Ok(16) | Err(EAGAIN)));
    assert_eq!(random(&mut before, NONBLOCK | INSECURE), Ok(16));

    let mut counts = [0_u32; 256];
    let mut piece = [0; PIECE];
    for _ in 0..PIECES {
        // As on Linux up to 256 bytes come as a whole; more may be cut short by a signal only.
        assert_eq!(random(&mut piece, INSECURE), Ok(PIECE));
        piece.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    }
    // 512 of each are expected, with a standard deviation of 23: ten of these are enough for ever.
    let expected = (PIECE * PIECES / 256) as u32;
    assert!(counts.iter().all(|count| count.abs_diff(expected) < 230), "{counts:?}");
    println!("random numbers are what they seem");
    0
}
