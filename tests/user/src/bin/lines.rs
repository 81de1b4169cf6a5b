//! Prints what is typed, line by line with its number, to the end; with few bytes at a time, so that lines are read in parts.
//! With an argument something else: `edge` first reads to where it can't be stored, and partly can; with `two` two processes
//! add up what is in whole lines; with `left` a child is left that waits for more.
#![no_std]
#![no_main]

use core::slice;
use core::sync::atomic::{AtomicU32, Ordering};

use user::println;
use user::start::Environment;
use user::sys::{
    ANONYMOUS, READ_WRITE, SHARED, errno, exited, fork, mmap, munmap, nr, raw, read, sleep, wait,
};

/// Bytes that are read at a time.
const PART: usize = 7;
const PAGE: usize = 4096;

#[unsafe(no_mangle)]
fn main(environment: Environment) -> i32 {
    match environment.arg(1) {
        Some(b"two") => return two(),
        Some(b"left") => return left(),
        Some(b"edge") => edge(),
        _ => {}
    }
    // A line of the longest kind, and what is read at once.
    let mut line = [0; 4096 + PART];
    let (mut used, mut number) = (0, 0);
    loop {
        let read = read(0, &mut line[used..used + PART]).expect("read");
        if read == 0 {
            break;
        }
        used += read;
        while let Some(end) = line[..used].iter().position(|&byte| byte == b'\n') {
            number += 1;
            println!("{number}: {}", line[..end].escape_ascii());
            line.copy_within(end + 1..used, 0);
            used -= end + 1;
        }
    }
    println!("the end, after {used} bytes: {}", line[..used].escape_ascii());
    0
}

/// What can't be stored is not lost, what can is read.
fn edge() {
    assert_eq!(read(0, &mut []), Ok(0));
    assert_eq!(raw(nr::READ, &[0, 8, PART]), Err(errno::EFAULT));
    let page = mmap(2 * PAGE, READ_WRITE, ANONYMOUS).expect("memory");
    munmap(page + PAGE, PAGE).expect("munmap");
    let end = page + PAGE;
    assert_eq!(raw(nr::READ, &[0, end, PART]), Err(errno::EFAULT));
    assert_eq!(raw(nr::READ, &[0, end - 4, PART]), Ok(4));
    // SAFETY: mapped, and nobody else's.
    println!("to the edge: {}", unsafe { slice::from_raw_parts((end - 4) as *const u8, 4) }.escape_ascii());
}

/// Reads whole lines until the end, each into memory that was not touched, so that it takes a fault in the middle: how many,
/// and the sum of the numbers that they are.
fn add_up() -> (usize, usize) {
    const LINES: usize = 1024;
    const EACH: usize = 64 << 10;
    let memory = mmap(LINES * EACH, READ_WRITE, ANONYMOUS).expect("mmap");
    let (mut lines, mut sum) = (0, 0);
    loop {
        // SAFETY: mapped, and nobody else's; less lines are read than there is room for.
        let line = unsafe { slice::from_raw_parts_mut((memory + lines * EACH) as *mut u8, 1024) };
        let read = read(0, line).expect("read");
        if read == 0 {
            munmap(memory, LINES * EACH).expect("munmap");
            return (lines, sum);
        }
        let digits = line[..read].strip_suffix(b"\n").expect("a line with its end");
        assert!(digits.iter().all(u8::is_ascii_digit), "{}", line[..read].escape_ascii());
        lines += 1;
        sum += digits.iter().fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
    }
}

fn two() -> i32 {
    let child = fork().expect("fork");
    let (lines, sum) = add_up();
    if child != 0 {
        assert_eq!(wait(-1), Ok((child, exited(0))));
    }
    println!("{lines} lines, of the sum {sum}");
    0
}

fn left() -> i32 {
    let shared = mmap(PAGE, READ_WRITE, SHARED).expect("memory");
    // SAFETY: a word of zeroes of this program's, which is mapped for good.
    let waits = unsafe { &*(shared as *const AtomicU32) };
    add_up();
    if fork().expect("fork") == 0 {
        // The end comes twice.
        add_up();
        println!("waits");
        waits.store(1, Ordering::Release);
        add_up();
        println!("and has waited");
        return 1;
    }
    while waits.load(Ordering::Acquire) == 0 {
        let _ = raw(nr::SCHED_YIELD, &[]);
    }
    sleep(1_000_000_000);
    0
}
