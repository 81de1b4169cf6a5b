//! What a process is killed by, each in a child: the signals that Linux gives. Among it all of the kernel's memory.
#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::AtomicU32;

use user::start::Environment;
use user::sys::{in_child, peek, poke};
use user::{on_qemu_user, println, text};

const SIGILL: i32 = 4;
const SIGTRAP: i32 = 5;
const SIGBUS: i32 = 7;
const SIGSEGV: i32 = 11;

/// Without the flag that says that memory was dumped.
fn signal(child: impl FnOnce()) -> i32 {
    in_child(|| {
        child();
        0
    }) & 0x7f
}

static CONSTANT: [u8; 64] = [1; 64];
static VARIABLE: AtomicU32 = AtomicU32::new(0xd65f_03c0); // ret

fn call(at: usize) {
    // SAFETY: the process is killed by it.
    unsafe { asm!("blr {}", in(reg) at, clobber_abi("C")) };
}

/// Addresses at which the kernel has something, in hexadecimal behind the word "here".
fn what_is_mapped(environment: Environment) -> impl Iterator<Item = usize> {
    let given = if environment.arg(1) == Some(b"here") { environment.argc() } else { 0 };
    (2..given).map(move |i| {
        let digits = text(environment.arg(i).expect("there are argc"));
        usize::from_str_radix(digits, 16).expect("an address")
    })
}

#[unsafe(no_mangle)]
fn main(environment: Environment) -> i32 {
    // The linear map, the Image, devices, stacks, the heap; its first and its last byte; and between the halves.
    let kernel: [usize; 9] = [
        0xffff_0000_0000_0000,
        0xffff_0000_4000_0000,
        0xffff_8000_0020_1000,
        0xffff_8000_8000_0000,
        0xffff_8000_c000_0000,
        0xffff_8001_0000_0000,
        usize::MAX,
        0x0001_0000_0000_0000,
        0xfffe_ffff_ffff_f000,
    ];
    for at in kernel {
        assert_eq!(signal(|| _ = peek(at)), SIGSEGV, "read of {at:#x}");
        assert_eq!(signal(|| poke(at, 0)), SIGSEGV, "write to {at:#x}");
        if !on_qemu_user(environment) {
            assert_eq!(signal(|| call(at & !3)), SIGSEGV, "call of {at:#x}");
        }
    }
    for at in what_is_mapped(environment) {
        assert_eq!(signal(|| _ = peek(at)), SIGSEGV, "read of {at:#x}");
        assert_eq!(signal(|| poke(at, 0)), SIGSEGV, "write to {at:#x}");
        assert_eq!(signal(|| call(at & !3)), SIGSEGV, "call of {at:#x}");
    }
    println!("the kernel's memory can't be read, written or called");
    assert_eq!(signal(|| _ = peek(0)), SIGSEGV);
    assert_eq!(signal(|| poke(main as *const () as usize, 0)), SIGSEGV);
    assert_eq!(signal(|| poke(CONSTANT.as_ptr() as usize, 0)), SIGSEGV);
    assert_eq!(signal(|| call(&raw const VARIABLE as usize)), SIGSEGV);
    assert_eq!(signal(|| call(0)), SIGSEGV);
    println!("null, text, constants and data are protected");
    // SAFETY: the process is killed by each.
    unsafe {
        assert_eq!(signal(|| asm!("udf #0")), SIGILL);
        assert_eq!(signal(|| asm!("msr daifset, #2")), SIGILL);
        assert_eq!(signal(|| asm!("mrs {}, sctlr_el1", out(reg) _)), SIGILL);
        assert_eq!(signal(|| asm!("tlbi vmalle1")), SIGILL);
        assert_eq!(signal(|| asm!("hvc #0")), SIGILL);
        assert_eq!(signal(|| asm!("brk #1")), SIGTRAP);
    }
    println!("what is the kernel's alone is an illegal instruction");
    let waited: u64;
    // SAFETY: both wait, for an interrupt or an event at the longest, whoever executes them.
    unsafe { asm!("mov {0}, #1", "wfi", "add {0}, {0}, #1", "wfe", "add {0}, {0}, #1", out(reg) waited) };
    assert_eq!(waited, 3);
    println!("who waits for an interrupt or an event goes on behind it");
    assert_eq!(signal(|| call(main as *const () as usize + 2)), SIGBUS);
    println!("an instruction that is not aligned is a bus error");
    0
}
