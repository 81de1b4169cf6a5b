//! Random numbers by FEAT_RNG.

use core::arch::asm;

/// A number from a generator that was seeded anew for it (RNDRRS; DDI 0487, S3_3_C2_C4_1), or `None` where the hardware had no
/// entropy within the time that it gives itself.
///
/// # Safety
/// The CPU must have FEAT_RNG: else the register is undefined.
#[must_use]
pub unsafe fn reseeded() -> Option<u64> {
    let (number, is_good): (u64, u64);
    // SAFETY: the caller's contract. Reading it sets NZCV, to 0b0100 where it failed.
    unsafe {
        asm!("mrs {number}, S3_3_C2_C4_1", "cset {is_good}, ne",
            number = out(reg) number, is_good = out(reg) is_good, options(nostack, nomem));
    }
    (is_good != 0).then_some(number)
}
