//! Makes each allocation fail that a call or a fault makes, one after another, once and for good: it succeeds without, or is
//! refused for want of memory and succeeds when it is made again, or the process is killed; and after each all memory is given
//! back. Only the kernel's self-tests can make allocations fail.
#![no_std]
#![no_main]

use core::arch::asm;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use user::println;
use user::start::Environment;
use user::sys::errno::ENOMEM;
use user::sys::{
    self, ANONYMOUS, Errno, FIXED, READ, READ_WRITE, Result, SHARED, exit, exited, fail_no_more, fail_nth,
    fork, in_child, memory_used, mmap, mprotect, munmap, nr, peek, poke, raw, sleep, wait,
};

const PAGE: usize = 4096;
const BLOCK: usize = 16 * PAGE;
const EAGAIN: Errno = Errno(11);
const SIGKILL: i32 = 9;
/// So much that more mappings in it, if each second page has one, need kernel memory.
const WRITTEN: usize = 10 * BLOCK;
/// Where nothing else is near.
const FAR: usize = 0x12_3456_0000;
const MAYMOVE: usize = 1;
const MREMAP_FIXED: usize = 2;
const PRIVATE: usize = 2;
const MAP_POPULATE: usize = 0x8000;
const MADV_DONTNEED: usize = 4;
const MADV_FREE: usize = 8;
const MADV_POPULATE_READ: usize = 22;
const MADV_POPULATE_WRITE: usize = 23;

const WNOHANG: usize = 1;

/// How long is waited for memory that is being given back by another CPU, in nanoseconds.
const PATIENCE: u64 = 10_000_000_000;

/// How an attempt ended: the status of the child that made it.
const NOTHING_FAILED: i32 = 0;
const WENT_ON: i32 = 1;
const REFUSED: i32 = 2;
/// And the errno that it should not have been.
const WRONG: i32 = 100;

/// Two blocks that all children have from their parent.
static INHERITED: AtomicUsize = AtomicUsize::new(0);

/// Whether it is made again, after it was refused.
static AGAIN: AtomicBool = AtomicBool::new(false);

/// Where a child finds its number.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// What is done: after a preparation, with what that returns.
struct Attempt {
    name: &'static str,
    prepare: fn() -> usize,
    act: fn(usize) -> Result,
}

/// Memory that is written to.
fn written() -> usize {
    let start = mmap(WRITTEN, READ_WRITE, ANONYMOUS).expect("memory");
    (0..WRITTEN).step_by(PAGE).for_each(|offset| poke(start + offset, 1));
    start
}

fn new_memory() -> usize {
    mmap(4 * BLOCK, READ_WRITE, ANONYMOUS).expect("memory")
}

/// Memory for which there is no table.
fn far_away() -> usize {
    raw(nr::MMAP, &[FAR, BLOCK, READ, ANONYMOUS | FIXED, usize::MAX, 0]).expect("addresses")
}

/// What has its parent's memory and stack, and ends.
fn vfork() -> Result {
    const CLONE_VM_VFORK_SIGCHLD: usize = 0x100 | 0x4000 | 17;
    let result: isize;
    // SAFETY: the child touches no memory; the parent goes on after it has ended.
    unsafe {
        asm!(
            "svc #0",
            "cbnz x0, 1f",
            "mov x8, {exit}",
            "svc #0",
            "1:",
            exit = const nr::EXIT_GROUP,
            in("x8") nr::CLONE,
            inlateout("x0") CLONE_VM_VFORK_SIGCHLD as isize => result,
            in("x1") 0, in("x2") 0, in("x3") 0, in("x4") 0,
        );
    }
    if result < 0 {
        return Err(Errno(-result as i32));
    }
    assert_eq!(wait(result), Ok((result as usize, exited(0))));
    Ok(0)
}

fn file() -> usize {
    sys::open(b"/bin/hello\0").expect("a file")
}

fn touch(start: usize) -> Result {
    (start..start + 4 * BLOCK).step_by(BLOCK).for_each(|at| poke(at, 1));
    Ok(0)
}

/// Changes every second page: the list of mappings grows at some time.
fn of_parts(start: usize, change: fn(usize) -> Result) -> Result {
    (start + PAGE..start + WRITTEN).step_by(2 * PAGE).try_for_each(|page| change(page).map(|_| ()))?;
    Ok(0)
}

const ATTEMPTS: &[Attempt] = &[
    Attempt {
        name: "fork",
        prepare: written,
        act: |_| match fork()? {
            0 => exit(0),
            child => {
                assert_eq!(wait(child as isize), Ok((child, exited(0))));
                Ok(0)
            }
        },
    },
    Attempt {
        name: "fork of a child that is told its number",
        prepare: || NUMBER.as_ptr() as usize,
        act: |number| {
            const CLONE_CHILD_SETTID: usize = 0x100_0000;
            const SIGCHLD: usize = 17;
            match raw(nr::CLONE, &[CLONE_CHILD_SETTID | SIGCHLD, 0, 0, 0, number])? {
                0 => exit((raw(nr::GETPID, &[]) != Ok(NUMBER.load(Ordering::Relaxed) as usize)).into()),
                child => {
                    assert_eq!(wait(child as isize), Ok((child, exited(0))), "a child has not its number");
                    Ok(0)
                }
            }
        },
    },
    Attempt {
        name: "execve",
        prepare: || 0,
        act: |_| {
            let first = !AGAIN.load(Ordering::Relaxed);
            let argv = [c"denied".as_ptr(), if first { c"first" } else { c"again" }.as_ptr(), ptr::null()];
            raw(nr::EXECVE, &[c"/bin/denied".as_ptr() as usize, argv.as_ptr() as usize, 0])
        },
    },
    Attempt {
        name: "openat",
        prepare: || 0,
        act: |_| {
            let fd = sys::open(b"/bin/hello\0")?;
            raw(nr::CLOSE, &[fd])
        },
    },
    Attempt { name: "mmap", prepare: || 0, act: |_| mmap(PAGE, READ, ANONYMOUS) },
    Attempt { name: "mmap, shared", prepare: || 0, act: |_| mmap(BLOCK, READ_WRITE, SHARED) },
    Attempt {
        name: "mmap of a file",
        prepare: file,
        act: |fd| raw(nr::MMAP, &[0, PAGE, READ, PRIVATE, fd, 0]),
    },
    Attempt { name: "munmap of parts", prepare: written, act: |at| of_parts(at, |page| munmap(page, PAGE)) },
    Attempt {
        name: "mprotect of parts",
        prepare: written,
        act: |at| of_parts(at, |page| mprotect(page, PAGE, READ)),
    },
    Attempt {
        name: "mremap to where there is no table",
        prepare: written,
        act: |at| {
            let to = raw(nr::MREMAP, &[at + BLOCK, BLOCK, BLOCK, MAYMOVE | MREMAP_FIXED, FAR])?;
            assert_eq!((to, peek(to + PAGE)), (FAR, 1));
            Ok(to)
        },
    },
    Attempt {
        name: "mmap over parts",
        prepare: written,
        act: |at| of_parts(at, |page| raw(nr::MMAP, &[page, PAGE, READ, ANONYMOUS | FIXED, usize::MAX, 0])),
    },
    Attempt {
        name: "brk, and a write to its end",
        prepare: || 0,
        act: |_| {
            let wanted = raw(nr::BRK, &[0])? + 100 * BLOCK;
            if raw(nr::BRK, &[wanted])? != wanted {
                return Err(ENOMEM);
            }
            poke(wanted - 1, 1);
            Ok(0)
        },
    },
    Attempt {
        name: "madvise that populates",
        prepare: new_memory,
        act: |at| raw(nr::MADVISE, &[at, 4 * BLOCK, MADV_POPULATE_WRITE]),
    },
    Attempt {
        name: "madvise that populates for reading",
        prepare: far_away,
        act: |at| raw(nr::MADVISE, &[at, BLOCK, MADV_POPULATE_READ]),
    },
    Attempt {
        name: "mmap that populates, as far as it goes",
        prepare: || 0,
        act: |_| mmap(4 * BLOCK, READ_WRITE, ANONYMOUS | MAP_POPULATE),
    },
    Attempt {
        name: "a write to what was given up",
        prepare: written,
        act: |at| {
            raw(nr::MADVISE, &[at, 4 * BLOCK, MADV_DONTNEED])?;
            assert_eq!(peek(at), 0);
            touch(at)
        },
    },
    Attempt {
        name: "a write to what was taken",
        prepare: written,
        act: |at| {
            raw(nr::MADVISE, &[at, 4 * BLOCK, MADV_FREE])?;
            while sys::reclaim(4 * BLOCK / PAGE)? > 0 {}
            touch(at)
        },
    },
    Attempt {
        name: "mremap that grows, and a write to its end",
        prepare: written,
        act: |at| {
            let to = raw(nr::MREMAP, &[at, 4 * BLOCK, 8 * BLOCK, MAYMOVE])?;
            assert_eq!((peek(to), peek(to + 4 * BLOCK - 1)), (1, 0));
            touch(to + 4 * BLOCK)
        },
    },
    Attempt { name: "clone of a child that has the same memory", prepare: || 0, act: |_| vfork() },
    Attempt {
        name: "wait4 that writes to new memory",
        prepare: || {
            if fork().expect("fork") == 0 {
                exit(0);
            }
            new_memory()
        },
        act: |at| raw(nr::WAIT4, &[usize::MAX, at, 0]),
    },
    Attempt {
        name: "mincore that writes to new memory",
        prepare: new_memory,
        act: |at| raw(nr::MINCORE, &[at, BLOCK, at]),
    },
    Attempt { name: "a write to new memory", prepare: new_memory, act: touch },
    Attempt { name: "a read of memory that has no table", prepare: far_away, act: |at| Ok(peek(at).into()) },
    Attempt {
        name: "a write to shared memory",
        prepare: || mmap(4 * BLOCK, READ_WRITE, SHARED).expect("memory"),
        act: touch,
    },
    Attempt { name: "copy on write", prepare: || INHERITED.load(Ordering::Relaxed), act: touch },
    Attempt {
        name: "a write to a file's private copy",
        prepare: || raw(nr::MMAP, &[0, PAGE, READ_WRITE, PRIVATE, file(), 0]).expect("a mapping"),
        act: |at| {
            poke(at, 1);
            Ok(0)
        },
    },
    Attempt { name: "read into new memory", prepare: new_memory, act: |at| raw(nr::READ, &[3, at, PAGE]) },
    Attempt {
        name: "read from an offset into new memory",
        prepare: new_memory,
        act: |at| raw(nr::PREAD64, &[3, at, PAGE, 0]),
    },
];

/// In a child of its own, with allocation `n` failing.
fn attempt(attempt: &Attempt, n: usize, for_good: bool) -> i32 {
    let prepared = (attempt.prepare)();
    fail_nth(n, for_good);
    let result = (attempt.act)(prepared);
    let failed = fail_no_more();
    match (failed, result) {
        (false, Ok(_)) => NOTHING_FAILED,
        (true, Ok(_)) => WENT_ON,
        (true, Err(ENOMEM | EAGAIN)) => {
            AGAIN.store(true, Ordering::Relaxed);
            match (attempt.act)(prepared) {
                Ok(_) => REFUSED,
                Err(Errno(number)) => WRONG + number,
            }
        }
        (_, Err(Errno(number))) => WRONG + number,
    }
}

/// Frames and bytes of the heap that are in use and were not before; the least that was seen is `before` from then on. A CPU may
/// still be about to leave a task that was waited for, and who was killed may have left a child.
fn lost_since(before: &mut (u32, u32)) -> (u32, u32) {
    let patience = sys::now() + PATIENCE;
    loop {
        let _ = raw(nr::WAIT4, &[usize::MAX, 0, WNOHANG]);
        let used = memory_used();
        *before = (before.0.min(used.0), before.1.min(used.1));
        if used == *before || sys::now() > patience {
            return (used.0 - before.0, used.1 - before.1);
        }
        let _ = raw(nr::SCHED_YIELD, &[]);
    }
}

#[unsafe(no_mangle)]
fn main(environment: Environment) -> i32 {
    // What `execve` begins.
    match environment.arg(1) {
        Some(b"again") => return REFUSED,
        Some(_) => return if fail_no_more() { WENT_ON } else { NOTHING_FAILED },
        None => {}
    }
    INHERITED.store(written(), Ordering::Relaxed);
    assert_eq!(file(), 3);
    // Once, so that this process has written to what it writes to.
    assert_eq!(in_child(|| 0), exited(0));
    // Another CPU may still be about to leave it: then it is less later.
    sleep(100_000_000);
    let mut before = memory_used();
    for what in ATTEMPTS {
        let (mut refused, mut killed, mut went_on) = (0, 0, 0);
        for for_good in [false, true] {
            for n in 0.. {
                match in_child(|| attempt(what, n, for_good)) {
                    SIGKILL => killed += 1,
                    status if status == exited(NOTHING_FAILED) => break,
                    status if status == exited(WENT_ON) => went_on += 1,
                    status if status == exited(REFUSED) => refused += 1,
                    status => panic!("{}, allocation {n} failing: status {status:#x}", what.name),
                }
                assert!(n < 1000, "{} allocates without end", what.name);
                let lost = lost_since(&mut before);
                assert_eq!(lost, (0, 0), "{}, allocation {n} failing: frames, heap", what.name);
            }
        }
        assert!(refused + killed + went_on > 0, "{} allocates nothing", what.name);
        println!(
            "{}: {refused} times refused, {killed} times killed, {went_on} times done without",
            what.name
        );
    }
    let ended = in_child(|| {
        fail_nth(0, true);
        exit(0)
    });
    assert_eq!(ended, exited(0), "who exits needs memory");
    0
}
