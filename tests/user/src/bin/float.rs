//! The floating-point and SIMD registers, and the thread pointer, are a process's own, however often it is interrupted.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

use user::println;
use user::start::Environment;
use user::sys::{exit, exited, fork, nr, raw, wait};

global_asm!(
    // x0 = seed, x1 = rounds: fills every register, spins, and compares. Returns how many differ.
    ".arch_extension fp",
    ".arch_extension simd",
    "fill_and_compare:",
    "mov x9, xzr",
    "msr tpidr_el0, x0",
    "mov x2, #0x3",
    "lsl x2, x2, #22", // rounding mode: towards zero
    "msr fpcr, x2",
    "2:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "add x3, x0, #\\n",
    "dup v\\n\\().2d, x3",
    ".endr",
    "mov x4, #4000",
    "3: subs x4, x4, #1",
    "b.ne 3b",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "add x3, x0, #\\n",
    "mov x5, v\\n\\().d[0]",
    "cmp x3, x5",
    "cinc x9, x9, ne",
    "mov x5, v\\n\\().d[1]",
    "cmp x3, x5",
    "cinc x9, x9, ne",
    ".endr",
    "mrs x5, tpidr_el0",
    "cmp x0, x5",
    "cinc x9, x9, ne",
    "mrs x5, fpcr",
    "cmp x2, x5",
    "cinc x9, x9, ne",
    "subs x1, x1, #1",
    "b.ne 2b",
    "mov x0, x9",
    "ret",
    ".arch_extension nosimd",
    ".arch_extension nofp",
);

unsafe extern "C" {
    safe fn fill_and_compare(seed: u64, rounds: u64) -> u64;
}

const PROCESSES: u64 = 6;
const ROUNDS: u64 = 2500;

/// What a child begins with is what its parent had.
fn inherited() {
    let child: usize;
    let seen: u64;
    // SAFETY: x19 and v9 are said to be changed, or restored; the child ends at once with what it found.
    unsafe {
        asm!(
            ".arch_extension fp", ".arch_extension simd",
            "mov x9, #77", "fmov d9, x9", "svc #0", "fmov x10, d9", "cbnz x0, 1f", "mov x0, x10", "mov x8, {exit}", "svc #0",
            "1:", ".arch_extension nosimd", ".arch_extension nofp",
            exit = const nr::EXIT_GROUP,
            in("x8") nr::CLONE,
            inlateout("x0") 17_usize => child,
            in("x1") 0, in("x2") 0, in("x3") 0, in("x4") 0, out("x9") _, out("x10") seen,
        );
    }
    assert_eq!((seen, wait(child as isize)), (77, Ok((child, exited(77)))));
    println!("a child has its parent's registers");
}

#[unsafe(no_mangle)]
fn main(_: Environment) -> i32 {
    inherited();
    for i in 0..PROCESSES {
        if fork().expect("fork") == 0 {
            let differences = fill_and_compare(0x1111_0000_0000 * (i + 1), ROUNDS);
            let _ = raw(nr::SCHED_YIELD, &[]);
            exit(differences.min(255) as i32);
        }
    }
    for _ in 0..PROCESSES {
        let (_, status) = wait(-1).expect("a child");
        assert_eq!(status, exited(0), "registers changed");
    }
    println!("registers are a process's own");
    0
}
