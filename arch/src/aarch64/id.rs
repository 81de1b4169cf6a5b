//! The ID registers of the CPU that runs this.

use core::arch::asm;

use crate::features::{CpuFeatures, IdRegisters, Midr};

macro_rules! read {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: an ID register is readable at EL1 and constant; those that a CPU lacks read as zero.
        unsafe {
            asm!(concat!("mrs {}, ", $register), out(reg) value, options(pure, nomem, nostack, preserves_flags));
        }
        value
    }};
}

/// What this CPU has.
pub fn features() -> CpuFeatures {
    CpuFeatures::decode(&IdRegisters {
        mmfr0: read!("id_aa64mmfr0_el1"),
        mmfr1: read!("id_aa64mmfr1_el1"),
        mmfr2: read!("id_aa64mmfr2_el1"),
        pfr0: read!("id_aa64pfr0_el1"),
        isar0: read!("id_aa64isar0_el1"),
        // ID_AA64ISAR2_EL1, by its encoding: older assemblers do not know the name.
        isar2: read!("S3_0_C0_C6_2"),
        ctr: read!("ctr_el0"),
    })
}

/// Which CPU this is.
pub fn midr() -> Midr {
    Midr::new(read!("midr_el1"))
}
