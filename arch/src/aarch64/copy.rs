//! Copying memory in long steps, or by the instructions that are made for it.

use core::arch::asm;

use super::zero::has_mops;

/// Bytes of a step: eight pairs of registers.
const STEP: usize = 128;

/// Copies `size` bytes from `from` to `to`, which don't overlap: by FEAT_MOPS where every CPU has it, else by pairs of
/// registers.
///
/// # Safety
/// Both must be Normal memory, the bytes at `to` writable, and nothing refer to them meanwhile.
pub unsafe fn copy(to: *mut u8, from: *const u8, size: usize) {
    if has_mops() {
        // SAFETY: the caller's contract. The three leave addresses and size at the end of what they have done; an exception
        // in between is resumed.
        unsafe {
            asm!(".arch_extension mops",
                "cpyfp [{to}]!, [{from}]!, {size}!",
                "cpyfm [{to}]!, [{from}]!, {size}!",
                "cpyfe [{to}]!, [{from}]!, {size}!",
                to = inout(reg) to => _, from = inout(reg) from => _, size = inout(reg) size => _,
                options(nostack));
        }
        return;
    }
    let steps = size / STEP;
    // SAFETY: the caller's contract; the steps are a part of the bytes, and the rest follows on them.
    unsafe {
        if steps != 0 {
            asm!("2: ldp {a}, {b}, [{from}]",
                "ldp {c}, {d}, [{from}, #16]",
                "ldp {e}, {f}, [{from}, #32]",
                "ldp {g}, {h}, [{from}, #48]",
                "ldp {i}, {j}, [{from}, #64]",
                "ldp {k}, {l}, [{from}, #80]",
                "ldp {m}, {n}, [{from}, #96]",
                "ldp {o}, {p}, [{from}, #112]",
                "add {from}, {from}, #128",
                "stp {a}, {b}, [{to}]",
                "stp {c}, {d}, [{to}, #16]",
                "stp {e}, {f}, [{to}, #32]",
                "stp {g}, {h}, [{to}, #48]",
                "stp {i}, {j}, [{to}, #64]",
                "stp {k}, {l}, [{to}, #80]",
                "stp {m}, {n}, [{to}, #96]",
                "stp {o}, {p}, [{to}, #112]",
                "add {to}, {to}, #128",
                "sub {steps}, {steps}, #1",
                "cbnz {steps}, 2b",
                from = inout(reg) from => _, to = inout(reg) to => _, steps = inout(reg) steps => _,
                a = out(reg) _, b = out(reg) _, c = out(reg) _, d = out(reg) _,
                e = out(reg) _, f = out(reg) _, g = out(reg) _, h = out(reg) _,
                i = out(reg) _, j = out(reg) _, k = out(reg) _, l = out(reg) _,
                m = out(reg) _, n = out(reg) _, o = out(reg) _, p = out(reg) _,
                options(nostack, preserves_flags));
        }
        let done = steps * STEP;
        to.add(done).copy_from_nonoverlapping(from.add(done), size - done);
    }
}
