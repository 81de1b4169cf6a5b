//! Registers of the GICv3 CPU interface that the `arm-gic` crate sets only as part of bringing up a
//! whole GIC from one CPU, or not at all (IHI 0069, 12.2).

use core::arch::asm;

use aarch64_cpu::registers::ID_AA64PFR0_EL1;
use tock_registers::interfaces::Readable;

use super::barrier;

/// ICC_SRE_EL1.SRE: the system registers, not memory-mapped ones, are the CPU interface.
const SRE: u64 = 1 << 0;

/// ID_AA64PFR0_EL1.GIC: bits 27:24, not 0 where the CPU has the registers.
const ID_AA64PFR0_GIC_SHIFT: u32 = 24;

/// Whether this CPU has the registers at all.
pub fn is_present() -> bool {
    ID_AA64PFR0_EL1.get() >> ID_AA64PFR0_GIC_SHIFT & 0xf != 0
}

/// Makes the system registers this CPU's interface and puts them in a known state: EOI both drops
/// the priority and deactivates, the two groups have separate binary points, and no priority that
/// the boot loader left active holds interrupts back.
///
/// Returns `false` where this CPU has no such registers, or firmware keeps them from EL1.
pub fn reset() -> bool {
    if !is_present() {
        return false;
    }
    let mut sre: u64;
    // SAFETY: the CPU has the register (ID_AA64PFR0_EL1.GIC); setting SRE changes only how the
    // interrupt controller is reached.
    unsafe {
        asm!("mrs {}, ICC_SRE_EL1", out(reg) sre, options(nostack, preserves_flags));
        asm!("msr ICC_SRE_EL1, {}", in(reg) sre | SRE, options(nostack, preserves_flags));
    }
    barrier::isb();
    // SAFETY: a read of the register just written.
    unsafe { asm!("mrs {}, ICC_SRE_EL1", out(reg) sre, options(nostack, preserves_flags)) };
    if sre & SRE == 0 {
        return false;
    }

    let ctlr: u64;
    // SAFETY: SRE is set, so the registers exist. Their state concerns interrupts of this CPU only.
    unsafe {
        asm!("mrs {}, ICC_CTLR_EL1", out(reg) ctlr, options(nostack, preserves_flags));
        asm!("msr ICC_CTLR_EL1, xzr", options(nostack, preserves_flags));
    }
    // How many registers of active priorities there are follows from the number of priority bits.
    let priority_bits = (ctlr >> 8 & 0b111) + 1;
    // SAFETY: as above; registers 1 to 3 are accessed only where they are implemented.
    unsafe {
        asm!("msr ICC_AP1R0_EL1, xzr", options(nostack, preserves_flags));
        if priority_bits >= 6 {
            asm!("msr ICC_AP1R1_EL1, xzr", options(nostack, preserves_flags));
        }
        if priority_bits >= 7 {
            asm!("msr ICC_AP1R2_EL1, xzr", "msr ICC_AP1R3_EL1, xzr", options(nostack, preserves_flags));
        }
    }
    barrier::isb();
    true
}
