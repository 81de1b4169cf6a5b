//! Zeroing memory a cache line at a time, or by the instructions that are made for it.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

/// Every CPU has FEAT_MOPS.
static MOPS: AtomicBool = AtomicBool::new(false);

/// Says whether memory is copied and set by FEAT_MOPS from now on.
///
/// # Safety
/// Every CPU that will run must have it then.
pub unsafe fn configure(mops: bool) {
    MOPS.store(mops, Ordering::Relaxed);
}

pub(super) fn has_mops() -> bool {
    MOPS.load(Ordering::Relaxed)
}

/// Writes zeroes to the `size` bytes at `start`: by FEAT_MOPS where every CPU has it, else by DC ZVA where the CPU allows it
/// (DDI 0487, DCZID_EL0).
///
/// # Safety
/// The bytes must be writable Normal memory, and nothing refer to them.
pub unsafe fn zero(start: *mut u8, size: usize) {
    if has_mops() {
        // SAFETY: the caller's contract. The three leave address and size at the end of what they have done; an exception in
        // between is resumed.
        unsafe {
            asm!(".arch_extension mops",
                "setp [{start}]!, {size}!, xzr",
                "setm [{start}]!, {size}!, xzr",
                "sete [{start}]!, {size}!, xzr",
                start = inout(reg) start => _, size = inout(reg) size => _, options(nostack));
        }
        return;
    }
    let dczid: u64;
    // SAFETY: reads a constant register, which aarch64-cpu does not have.
    unsafe { asm!("mrs {}, dczid_el0", out(reg) dczid, options(pure, nomem, nostack, preserves_flags)) };
    let (log2_words, prohibited) = (dczid & 0xf, dczid >> 4 & 1 == 1);
    let block = 4_usize << log2_words;
    if prohibited {
        // SAFETY: the caller's contract.
        unsafe { start.write_bytes(0, size) };
        return;
    }
    let head = start.align_offset(block).min(size);
    let blocks = (size - head) / block;
    let tail = size - head - blocks * block;
    // SAFETY: the three parts are together the bytes that the caller owns; each block is aligned to its size.
    unsafe {
        start.write_bytes(0, head);
        let mut at = start.add(head);
        for _ in 0..blocks {
            asm!("dc zva, {}", in(reg) at, options(nostack, preserves_flags));
            at = at.add(block);
        }
        at.write_bytes(0, tail);
    }
}
