//! Data cache maintenance by address, for memory that others access without caches (DDI 0487, D7.5, "Caches and memory
//! hierarchy").

use core::arch::asm;

use super::barrier;
use crate::VirtAddr;

/// Cleans and invalidates the lines that hold any of the `size` bytes at `start` to the point of coherency, and waits for
/// it: whoever reads memory itself finds what was written, such as a CPU whose MMU is off. Faults where nothing is mapped.
pub fn clean_and_invalidate(start: VirtAddr, size: u64) {
    let ctr: u64;
    // SAFETY: reads a constant register.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr, options(pure, nomem, nostack, preserves_flags)) };
    // DminLine: log2 of a number of 4-byte words.
    let line = 4_u64 << (ctr >> 16 & 0xf);
    for address in (start.get() & !(line - 1)..start.get() + size).step_by(line as usize) {
        // SAFETY: changes no memory as CPUs with caches see it. Not `nomem`: the stores come before it.
        unsafe { asm!("dc civac, {}", in(reg) address, options(nostack, preserves_flags)) };
    }
    barrier::dsb_sy();
}
