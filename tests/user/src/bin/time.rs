//! Clocks and sleeping.
#![no_std]
#![no_main]

use user::println;
use user::start::Environment;
use user::sys::{exit, exited, fork, now, nr, raw, sleep, wait};

const MILLISECOND: u64 = 1_000_000;

#[unsafe(no_mangle)]
fn main(_: Environment) -> i32 {
    let mut last = now();
    for _ in 0..1000 {
        let next = now();
        assert!(next >= last, "the clock goes back");
        last = next;
    }
    for milliseconds in [1, 25] {
        let before = now();
        sleep(milliseconds * MILLISECOND);
        assert!(now() - before >= milliseconds * MILLISECOND, "woken too early");
    }
    let until = now() + 15 * MILLISECOND;
    let time = [until / 1_000_000_000, until % 1_000_000_000];
    assert_eq!(raw(nr::CLOCK_NANOSLEEP, &[1, 1, time.as_ptr() as usize, 0]), Ok(0));
    assert!(now() >= until, "woken too early");
    // A time that has passed: taken for a duration, it would last as long as the machine has run so far, each time.
    let returns_at_once = || {
        let before = now();
        assert_eq!(raw(nr::CLOCK_NANOSLEEP, &[1, 1, time.as_ptr() as usize, 0]), Ok(0));
        now() - before < until
    };
    assert!((0..10).any(|_| returns_at_once()), "a time was taken for a duration");
    println!("nobody is woken too early");

    // Several at once. In which order they end depends on the machine.
    let before = now();
    for milliseconds in [40, 20, 0_u64] {
        if fork().expect("fork") == 0 {
            let before = now();
            sleep(milliseconds * MILLISECOND);
            exit(i32::from(now() - before < milliseconds * MILLISECOND));
        }
    }
    for _ in 0..3 {
        assert_eq!(wait(-1).expect("there are three").1, exited(0), "woken too early");
    }
    assert!(now() - before >= 40 * MILLISECOND);
    println!("several sleep at once");
    0
}
