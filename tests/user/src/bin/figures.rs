//! What whole operations on an address space cost, in ticks of the virtual counter: instructions, where that counts them
//! (`scripts/bench processes`). A line `figure NAME TICKS COUNT` each: so many ticks for so many, which are the blocks of 64 KiB
//! of the memory that is used, where nothing else is meant. What the loops of the program cost themselves is measured and
//! subtracted.
#![no_std]
#![no_main]

use core::arch::asm;

use user::println;
use user::start::Environment;
use user::sys::{self, ANONYMOUS, FIXED, READ, READ_WRITE, SHARED, exit, exited, fork, mmap, nr, poke, raw};

const PAGE: usize = 4096;
const BLOCK: usize = 16 * PAGE;
const TABLE: usize = 2 << 20;
const BLOCKS: usize = 1024;
const BYTES: usize = BLOCKS * BLOCK;
/// The page of a block that is used where it is one of each: neither at its begin nor at its end.
const ONE: usize = 5 * PAGE;
const CALLS: usize = 1000;
const MADV_DONTNEED: usize = 4;
const MREMAP_MAYMOVE_FIXED: usize = 3;

/// The virtual counter, not read ahead of what comes before, nor behind what comes after.
fn counter() -> u64 {
    let ticks;
    // SAFETY: reads a register.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", "isb", out(reg) ticks, options(nostack)) };
    ticks
}

/// Ticks that `act` takes, the readings included.
fn ticks(act: impl FnOnce()) -> u64 {
    let start = counter();
    act();
    counter() - start
}

fn report(name: &str, ticks: u64, base: u64, count: usize) {
    println!("figure {name} {} {count}", ticks.saturating_sub(base));
}

/// A system call that must succeed or, without `REAL`, all that it costs the program: a `nop` in place of the `svc`.
#[inline(always)]
fn call<const REAL: bool>(number: usize, args: [usize; 5]) {
    let [x0, x1, x2, x3, x4] = args;
    let result: isize;
    // SAFETY: what is called changes mappings that no reference refers to; the kernel keeps all registers but x0.
    unsafe {
        if REAL {
            asm!("svc #0", in("x8") number, inlateout("x0") x0 as isize => result, in("x1") x1, in("x2") x2, in("x3") x3,
                in("x4") x4, options(nostack));
        } else {
            asm!("nop", in("x8") number, inlateout("x0") x0 as isize => result, in("x1") x1, in("x2") x2, in("x3") x3,
                in("x4") x4, options(nostack));
        }
    }
    if REAL && result < 0 {
        exit(98);
    }
}

/// As [`call`], for each of `count` that `args` makes arguments for.
#[inline(always)]
fn calls<const REAL: bool>(number: usize, count: usize, args: impl Fn(usize) -> [usize; 5]) -> u64 {
    ticks(|| (0..count).for_each(|i| call::<REAL>(number, args(i))))
}

/// Reports what `count` calls cost.
#[inline(always)]
fn measure(name: &str, number: usize, count: usize, args: impl Fn(usize) -> [usize; 5]) {
    let base = calls::<false>(number, count, &args);
    report(name, calls::<true>(number, count, &args), base, count);
}

/// Reports one call on all of the memory, by the block.
fn whole(name: &str, number: usize, args: [usize; 5]) {
    let base = ticks(|| call::<false>(number, args));
    report(name, ticks(|| call::<true>(number, args)), base, BLOCKS);
}

/// Writes to a byte every `step` bytes.
#[inline(never)]
fn touch(start: usize, step: usize) {
    (start..start + BYTES).step_by(step).for_each(|at| poke(at, 1));
}

/// Reports what it costs to touch memory, beyond the loop: the second time everything is there.
fn touches(name: &str, start: usize, step: usize) {
    let first = ticks(|| touch(start, step));
    report(name, first, ticks(|| touch(start, step)), BLOCKS);
}

/// A place for the memory, aligned to what a last-level table translates, where nothing is mapped.
fn place() -> usize {
    let start = mmap(BYTES + TABLE, READ, ANONYMOUS).expect("room");
    sys::munmap(start, BYTES + TABLE).expect("munmap");
    start.next_multiple_of(TABLE)
}

/// Maps the memory.
fn map(at: usize, flags: usize) {
    let mapped = raw(nr::MMAP, &[at, BYTES, READ_WRITE, flags | FIXED, usize::MAX, 0]);
    assert_eq!(mapped, Ok(at), "mmap");
}

/// What a child leaves to its parent.
struct Notes {
    at: *mut u64,
}

impl Notes {
    fn new() -> Self {
        let at = mmap(PAGE, READ_WRITE, SHARED).expect("memory") as *mut u64;
        let notes = Self { at };
        // So that the child does not fault it in alone.
        notes.write(0, 0);
        notes
    }

    fn write(&self, place: usize, value: u64) {
        // SAFETY: a page that was mapped for it, which both processes use one after the other.
        unsafe { self.at.add(place).write_volatile(value) };
    }

    fn read(&self, place: usize) -> u64 {
        // SAFETY: as above.
        unsafe { self.at.add(place).read_volatile() }
    }
}

/// Forks, lets `child` run, and waits for its end. Reports the fork as the parent sees it, and the end from the child's last step
/// on until the parent has its status.
fn forks(notes: &Notes, [fork_name, exit_name]: [&str; 2], count: usize, child: impl FnOnce()) {
    let start = counter();
    let pid = fork().expect("fork");
    if pid == 0 {
        // Its first write to each page of its own copies it: the stack's, and what the program has there.
        notes.write(0, counter());
        child();
        notes.write(1, counter());
        exit(0);
    }
    let forked = counter();
    let ended = sys::wait(pid as isize);
    let waited = counter();
    assert_eq!(ended, Ok((pid, exited(0))));
    if !fork_name.is_empty() {
        report(fork_name, forked - start, 0, count);
    }
    if !exit_name.is_empty() {
        report(exit_name, waited - notes.read(1), 0, count);
    }
}

#[unsafe(no_mangle)]
fn main(_: Environment) -> i32 {
    report("first_user_instruction", counter(), 0, 1);
    measure("null_syscall", nr::GETPID, CALLS, |_| [0; 5]);

    let notes = Notes::new();
    let at = place();
    // The first of all makes a stack for the kernel, and tables.
    forks(&notes, ["", ""], 1, || ());
    forks(&notes, ["fork_nothing", "exit_nothing"], 1, || ());

    map(at, ANONYMOUS);
    touches("first_touch", at, PAGE);
    whole("mprotect_whole_ro", nr::MPROTECT, [at, BYTES, READ, 0, 0]);
    whole("mprotect_whole_rw", nr::MPROTECT, [at, BYTES, READ_WRITE, 0, 0]);
    let one = |i: usize| at + i * BLOCK + ONE;
    measure("mprotect_page_ro", nr::MPROTECT, BLOCKS, |i| [one(i), PAGE, READ, 0, 0]);
    measure("mprotect_page_rw", nr::MPROTECT, BLOCKS, |i| [one(i), PAGE, READ_WRITE, 0, 0]);

    map(at, ANONYMOUS);
    touch(at, PAGE);
    forks(&notes, ["fork", "exit"], BLOCKS, || ());
    touch(at, PAGE);
    forks(&notes, ["", "exit_after_cow"], BLOCKS, || touches("cow_all", at, PAGE));
    touches("rewrite", at, PAGE);
    forks(&notes, ["", ""], BLOCKS, || touches("cow_page", at + ONE, BLOCK));
    touch(at, PAGE);

    let to = place();
    whole("mremap_2m", nr::MREMAP, [at, BYTES, BYTES, MREMAP_MAYMOVE_FIXED, to]);
    whole("mremap_64k", nr::MREMAP, [to, BYTES, BYTES, MREMAP_MAYMOVE_FIXED, at + BLOCK]);
    sys::munmap(at + BLOCK, BYTES).expect("munmap");

    map(at, ANONYMOUS);
    touch(at, PAGE);
    measure("dontneed_page", nr::MADVISE, BLOCKS, |i| [one(i), PAGE, MADV_DONTNEED, 0, 0]);
    touches("dontneed_touch", at + ONE, BLOCK);
    whole("dontneed_whole", nr::MADVISE, [at, BYTES, MADV_DONTNEED, 0, 0]);

    touch(at, PAGE);
    measure("munmap_page", nr::MUNMAP, BLOCKS, |i| [one(i), PAGE, 0, 0, 0]);
    map(at, ANONYMOUS);
    touch(at, PAGE);
    whole("munmap_whole", nr::MUNMAP, [at, BYTES, 0, 0, 0]);

    map(at, SHARED);
    touches("shared_touch", at, PAGE);
    whole("shared_munmap", nr::MUNMAP, [at, BYTES, 0, 0, 0]);
    0
}
