//! What a program finds when it begins: arguments, environment, auxiliary vector, registers, zeroed data.
#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU8, Ordering};

use user::start::Environment;
use user::sys::in_child;
use user::{println, text};

const AT_PHENT: u64 = 4;
const AT_PAGESZ: u64 = 6;
const AT_BASE: u64 = 7;
const AT_ENTRY: u64 = 9;
const AT_PLATFORM: u64 = 15;
const AT_HWCAP: u64 = 16;
const AT_CLKTCK: u64 = 17;
const AT_SECURE: u64 = 23;
const AT_RANDOM: u64 = 25;
const AT_EXECFN: u64 = 31;

/// More than a page, so that some of it is in pages of its own.
static ZEROES: [AtomicU8; 20_000] = [const { AtomicU8::new(0) }; 20_000];

fn string(at: u64) -> &'static str {
    // SAFETY: the kernel has put a string there.
    text(unsafe { core::ffi::CStr::from_ptr(at as *const core::ffi::c_char) }.to_bytes())
}

unsafe extern "C" {
    fn _start();
}

/// What AT_HWCAP tells of some features is what happens to who uses them: without one, its instructions are undefined.
fn told_is_there(hwcap: u64) {
    const FP: u64 = 1 << 0;
    const ASIMD: u64 = 1 << 1;
    const ATOMICS: u64 = 1 << 8;
    const SIGILL: i32 = 4;
    let told = |bit: u64, instruction: fn()| {
        let status = in_child(|| {
            instruction();
            0
        });
        assert_eq!(status & 0x7f, if hwcap & bit != 0 { 0 } else { SIGILL }, "bit {bit:#x} of AT_HWCAP");
    };
    told(FP, || {
        // SAFETY: changes a register that the compiler does not use.
        unsafe { asm!(".arch_extension fp", "fmov d0, xzr", ".arch_extension nofp") };
    });
    told(ASIMD, || {
        // SAFETY: as above.
        unsafe { asm!(".arch_extension simd", "add v0.2d, v0.2d, v0.2d", ".arch_extension nosimd") };
    });
    told(ATOMICS, || {
        let mut word = 40_u64;
        let old: u64;
        // SAFETY: adds to the word.
        unsafe {
            asm!(".arch_extension lse", "ldadd {two}, {old}, [{word}]", ".arch_extension nolse",
                two = in(reg) 2_u64, old = out(reg) old, word = in(reg) &raw mut word);
        }
        assert_eq!((old, word), (40, 42));
    });
    println!("what AT_HWCAP tells is there, and what it does not tell of these is not");
}

#[unsafe(no_mangle)]
fn main(environment: Environment) -> i32 {
    let auxiliary = |kind| environment.auxiliary(kind).unwrap_or_else(|| panic!("AT type {kind} is missing"));
    for i in 1..environment.argc() {
        println!("argument {i}: {}", text(environment.arg(i).expect("there are argc")));
    }
    assert_eq!(environment.arg(environment.argc()), None);
    for setting in environment.envp().filter(|setting| setting.starts_with(b"PLEAT_")) {
        println!("environment: {}", text(setting));
    }
    assert!(environment.stack_pointer().is_multiple_of(16), "the stack pointer is not aligned");
    let name = environment.arg(0).expect("a program has a name");
    assert!(string(auxiliary(AT_EXECFN)).ends_with(text(name)), "AT_EXECFN");
    println!("AT_PAGESZ {}, AT_PHENT {}", auxiliary(AT_PAGESZ), auxiliary(AT_PHENT));
    println!("AT_BASE {}, AT_CLKTCK {}", auxiliary(AT_BASE), auxiliary(AT_CLKTCK));
    println!("AT_PLATFORM {}, AT_SECURE {}", string(auxiliary(AT_PLATFORM)), auxiliary(AT_SECURE));
    assert_eq!(auxiliary(AT_ENTRY), _start as *const () as u64);
    // SAFETY: the kernel has put sixteen bytes there.
    let random = unsafe { (auxiliary(AT_RANDOM) as *const [u64; 2]).read_unaligned() };
    assert_ne!(random, [0, 0], "AT_RANDOM");
    println!("FP and SIMD: {}", auxiliary(AT_HWCAP) & 3 == 3);
    told_is_there(auxiliary(AT_HWCAP));

    assert!(ZEROES.iter().all(|byte| byte.load(Ordering::Relaxed) == 0), ".bss is not zero");
    ZEROES.iter().for_each(|byte| byte.store(0xa5, Ordering::Relaxed));
    assert!(ZEROES.iter().all(|byte| byte.load(Ordering::Relaxed) == 0xa5));

    // What EL0 may read of the machine, as on Linux.
    let (counter, frequency, cache_type, zeroing): (u64, u64, u64, u64);
    // SAFETY: reads registers.
    unsafe {
        asm!("mrs {}, cntvct_el0", "mrs {}, cntfrq_el0", "mrs {}, ctr_el0", "mrs {}, dczid_el0",
            out(reg) counter, out(reg) frequency, out(reg) cache_type, out(reg) zeroing);
    }
    assert!(counter > 0 && frequency > 0 && cache_type != 0);
    println!("DC ZVA: {}", zeroing >> 4 & 1 == 0);
    0
}
