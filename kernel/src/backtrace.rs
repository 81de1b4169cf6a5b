//! The chain of calls, by frame records (AAPCS64, 6.4.6).

use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use arch::VirtAddr;
use arch::aarch64::trap::{STACK_SIZE, TrapFrame};
use kernel::platform::MAX_CPUS;

use crate::{console, cpu, image, trap};

/// The context that an interrupt handler of each CPU interrupted: what a watchdog wants to show.
static INTERRUPTED: [AtomicPtr<TrapFrame>; MAX_CPUS] = [const { AtomicPtr::new(ptr::null_mut()) }; MAX_CPUS];

/// Remembers what this CPU's interrupt handler interrupted, until it is set to `None`.
pub(crate) fn set_interrupted(frame: Option<&mut TrapFrame>) {
    let frame = frame.map_or(ptr::null_mut(), ptr::from_mut);
    INTERRUPTED[cpu::index()].store(frame, Ordering::Relaxed);
}

/// Prints the calls that led to the context this CPU's interrupt handler interrupted.
pub(crate) fn print_interrupted() {
    let frame = INTERRUPTED[cpu::index()].load(Ordering::Relaxed);
    if !frame.is_null() {
        // SAFETY: it was set by the vector's handler further up this very stack, which still runs.
        let (elr, fp) = unsafe { ((*frame).elr, (*frame).x[29]) };
        print(elr, fp);
    }
}

/// Prints the calls that led to the caller of this.
#[inline(never)]
pub(crate) fn print_caller() {
    let (fp, return_address): (u64, u64);
    // SAFETY: x29 points to the frame record of this function, as in all of them: force-frame-pointers.
    unsafe {
        core::arch::asm!("ldp {}, {}, [x29]", out(reg) fp, out(reg) return_address,
            options(readonly, nostack, preserves_flags));
    }
    print(return_address, fp);
}

/// Prints the calls from the instruction at `pc` upwards, along the frame records from `fp`. Ends where the
/// chain leaves this CPU's stack or stops ascending, so that a broken chain can't run away.
pub(crate) fn print(pc: u64, mut fp: u64) {
    let base = cpu::stack_base(cpu::index()).get();
    let stack = base..base + STACK_SIZE;
    print_line(0, pc);
    for level in 1..32 {
        if !fp.is_multiple_of(16) || !stack.contains(&fp) || !stack.contains(&(fp + 8)) {
            return;
        }
        // SAFETY: both words are on this CPU's stack, which is mapped and aligned to 16 bytes.
        let [next, return_address] = unsafe { *(fp as *const [u64; 2]) };
        if !trap::is_text(VirtAddr::new(return_address)) {
            return;
        }
        print_line(level, return_address);
        if next <= fp {
            return;
        }
        fp = next;
    }
}

fn print_line(level: usize, pc: u64) {
    if trap::is_text(VirtAddr::new(pc)) {
        let offset = pc - image::start().get();
        console::emergency(format_args!("  #{level} {pc:#x} (image+{offset:#x})\n"));
    } else {
        console::emergency(format_args!("  #{level} {pc:#x}\n"));
    }
}
