//! Instruction cache maintenance by address (DDI 0487, B2.7.4.2, "Synchronization and coherency issues between data
//! and instruction accesses").

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use super::barrier;
use crate::VirtAddr;
use crate::features::CacheType;

/// What all CPUs have in common, with the fields of CTR_EL0. Zero until that is known, which is right on every CPU: the
/// smallest lines, everything needed, and no PIPT cache.
static COMMON: AtomicU32 = AtomicU32::new(0);

const ICACHE_LINE: u32 = 0;
const PIPT: u32 = 1 << 14;
const DCACHE_LINE: u32 = 16;
const IDC: u32 = 1 << 28;
const DIC: u32 = 1 << 29;

/// Says what all CPUs have in common.
///
/// # Safety
/// No CPU that will run may need more maintenance than `caches` says.
pub unsafe fn configure(caches: CacheType) {
    // As in the register: log2 of a number of 4-byte words.
    let line = |bytes: u32| bytes.ilog2() - 2;
    let flag = |condition, flag| if condition { flag } else { 0 };
    let packed = line(caches.icache_line) << ICACHE_LINE
        | line(caches.dcache_line) << DCACHE_LINE
        | flag(caches.icache_pipt, PIPT)
        | flag(caches.idc, IDC)
        | flag(caches.dic, DIC);
    COMMON.store(packed, Ordering::Relaxed);
}

/// The addresses of the cache lines that hold any of the `size` bytes at `start`.
fn lines(start: VirtAddr, size: u64, bytes: u64) -> impl Iterator<Item = u64> {
    (start.get() & !(bytes - 1)..start.get() + size).step_by(bytes as usize)
}

/// Makes what was written to the `size` bytes at `start` visible to instruction fetches of every CPU, by whatever
/// address they fetch it, and waits for it. Faults where nothing is mapped.
pub fn sync(start: VirtAddr, size: u64) {
    let common = COMMON.load(Ordering::Relaxed);
    let line = |shift: u32| 4 << (common >> shift & 0xf);
    if common & IDC == 0 {
        for address in lines(start, size, line(DCACHE_LINE)) {
            // SAFETY: cleaning changes no memory. Not `nomem`: the stores come before it.
            unsafe { asm!("dc cvau, {}", in(reg) address, options(nostack, preserves_flags)) };
        }
    }
    // What was cleaned has arrived, or with IDC what was stored.
    barrier::dsb_ish();
    if common & DIC == 0 {
        if common & PIPT != 0 {
            for address in lines(start, size, line(ICACHE_LINE)) {
                // SAFETY: an invalidation only makes CPUs fetch again. Not `nomem`: as above.
                unsafe { asm!("ic ivau, {}", in(reg) address, options(nostack, preserves_flags)) };
            }
        } else {
            // By address it reaches only the lines that are indexed by this alias of the memory, not by the user's.
            // SAFETY: as above.
            unsafe { asm!("ic ialluis", options(nostack, preserves_flags)) };
        }
        barrier::dsb_ish();
    }
    barrier::isb();
}
