//! fork, execve, wait4, and what a process keeps to itself.
#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use user::start::Environment;
use user::sys::{
    self, ANONYMOUS, READ_WRITE, errno, exited, fork, in_child, mmap, munmap, nr, peek, poke, raw, wait,
};
use user::{on_qemu_user, println};

const PAGE: usize = 4096;
const WNOHANG: usize = 1;
const SIGKILL_STATUS_MASK: i32 = 0x7f;
const CLONE_VM: usize = 0x100;
const CLONE_VFORK: usize = 0x4000;
const CLONE_CHILD_CLEARTID: usize = 0x20_0000;
const SIGCHLD: usize = 17;

fn statuses() {
    for code in [0, 1, 42, 255] {
        assert_eq!(in_child(|| code), exited(code));
    }
    assert_eq!(in_child(|| 256 + 3), exited(3));
    println!("exit statuses reach the parent");
    assert_eq!(wait(-1), Err(errno::ECHILD));
    assert_eq!(raw(nr::WAIT4, &[usize::MAX, 0, WNOHANG]), Err(errno::ECHILD));
    println!("without children there is nobody to wait for");
}

/// Children end in any order; each is met once.
fn several() {
    const CHILDREN: usize = 8;
    let mut pids = [0; CHILDREN];
    for (i, pid) in pids.iter_mut().enumerate() {
        *pid = match fork().expect("fork") {
            0 => {
                (0..(CHILDREN - i)).for_each(|_| _ = raw(nr::SCHED_YIELD, &[]));
                sys::exit(i as i32)
            }
            child => child,
        };
    }
    // One of them first, by its number.
    assert_eq!(wait(pids[5] as isize), Ok((pids[5], exited(5))));
    assert_eq!(wait(pids[5] as isize), Err(errno::ECHILD));
    for _ in 1..CHILDREN {
        let (pid, status) = wait(-1).expect("there are more");
        let index = pids.iter().position(|&other| other == pid).expect("it is a child");
        assert_eq!(status, exited(index as i32));
        pids[index] = 0;
    }
    assert_eq!(wait(-1), Err(errno::ECHILD));
    println!("each of several children is met once");
}

fn numbers() {
    let me = raw(nr::GETPID, &[]).expect("getpid");
    assert_eq!(raw(nr::GETTID, &[]), Ok(me));
    let status = in_child(|| {
        assert_eq!(raw(nr::GETPPID, &[]), Ok(me));
        assert_ne!(raw(nr::GETPID, &[]), Ok(me));
        assert_eq!(raw(nr::GETTID, &[]), raw(nr::GETPID, &[]));
        0
    });
    assert_eq!(status, 0);
    println!("processes have numbers");
}

/// A grandchild whose parent has ended first.
fn orphans() {
    let status = in_child(|| {
        if fork().expect("fork") == 0 {
            sys::sleep(20_000_000);
            sys::exit(7);
        }
        0
    });
    assert_eq!(status, 0);
    println!("a child may leave children");
}

/// What either writes after a fork, the other does not see; also at the second and third generation.
fn copies() {
    const BYTES: usize = 40 * PAGE;
    let start = mmap(BYTES, READ_WRITE, ANONYMOUS).expect("memory");
    let set = |value: u8| (0..BYTES).step_by(PAGE).for_each(|offset| poke(start + offset, value));
    let all = |value: u8| (0..BYTES).step_by(PAGE).all(|offset| peek(start + offset) == value);
    set(1);
    let status = in_child(|| {
        assert!(all(1));
        set(2);
        let status = in_child(|| {
            assert!(all(2));
            // One page of each block only.
            poke(start + 3 * PAGE, 3);
            poke(start + 20 * PAGE, 3);
            i32::from(peek(start + 3 * PAGE)) + i32::from(peek(start + 4 * PAGE))
        });
        assert_eq!(status, exited(5));
        assert!(all(2));
        0
    });
    assert_eq!(status, 0);
    assert!(all(1));
    munmap(start, BYTES).expect("munmap");
    println!("memory is copied on write, over three generations");
}

/// The child has its parent's memory and stack, so it does nothing but to end. Then the kernel writes 0 where its parent said;
/// not under QEMU's user emulation, which gives it memory of its own.
fn vfork(environment: Environment) {
    const RUNS: u32 = 0x5555_5555;
    let mut child: usize;
    let words = [AtomicU32::new(RUNS), AtomicU32::new(RUNS)];
    // SAFETY: the child touches no memory; the parent goes on after it has ended.
    unsafe {
        asm!(
            "svc #0",
            "cbnz x0, 1f",
            "mov x0, #9",
            "mov x8, {exit}",
            "svc #0",
            "1:",
            exit = const nr::EXIT_GROUP,
            in("x8") nr::CLONE,
            inlateout("x0") CLONE_VM | CLONE_VFORK | CLONE_CHILD_CLEARTID | SIGCHLD => child,
            in("x1") 0, in("x2") 0, in("x3") 0, in("x4") &raw const words,
        );
    }
    let left = [0, 1].map(|i: usize| words[i].load(Ordering::Relaxed));
    if !on_qemu_user(environment) {
        assert_eq!(left, [0, RUNS], "CLONE_CHILD_CLEARTID");
    }
    assert_eq!(wait(child as isize), Ok((child, exited(9))));
    println!("a parent waits for its vfork child");

    // The same for a child that leaves the memory to run a program, this one.
    words[0].store(RUNS, Ordering::Relaxed);
    let own = environment.arg(0).expect("a program has a name").as_ptr() as usize;
    let arguments = [own, c"seven".as_ptr() as usize, 0];
    // SAFETY: as above.
    unsafe {
        asm!(
            "svc #0",
            "cbnz x0, 1f",
            "mov x0, {own}",
            "mov x1, {arguments}",
            "mov x2, xzr",
            "mov x8, {execve}",
            "svc #0",
            "mov x0, #9",
            "mov x8, {exit}",
            "svc #0",
            "1:",
            own = in(reg) own,
            arguments = in(reg) arguments.as_ptr(),
            execve = const nr::EXECVE,
            exit = const nr::EXIT_GROUP,
            in("x8") nr::CLONE,
            inlateout("x0") CLONE_VM | CLONE_VFORK | CLONE_CHILD_CLEARTID | SIGCHLD => child,
            in("x1") 0, in("x2") 0, in("x3") 0, in("x4") &raw const words,
        );
    }
    let left = [0, 1].map(|i: usize| words[i].load(Ordering::Relaxed));
    let waited = wait(child as isize);
    // The emulator's host does not run the program.
    if !on_qemu_user(environment) {
        assert_eq!(left, [0, RUNS], "CLONE_CHILD_CLEARTID");
        assert_eq!(waited, Ok((child, exited(7))));
    }
    println!("and until it runs another program");
}

#[unsafe(no_mangle)]
fn main(environment: Environment) -> i32 {
    if environment.arg(1) == Some(b"seven") {
        return 7;
    }
    statuses();
    several();
    numbers();
    orphans();
    copies();
    vfork(environment);
    let status = in_child(|| {
        poke(8, 1);
        0
    });
    println!("a null pointer kills: signal {}", status & SIGKILL_STATUS_MASK);
    0
}
