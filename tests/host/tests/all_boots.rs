//! The whole suite on every combination of CPU, exception level, interrupt controller, memory and
//! number of CPUs.

use pleat_host_tests::suite::Machine;

/// A module for each value of an option, and in it the same for the options that follow.
macro_rules! product {
    (cpu $($name:ident $cpu:literal),*) => {
        $(mod $name {
            const CPU: &str = $cpu;
            product!(el el1 1, el2 2);
        })*
    };
    (el $($name:ident $el:literal),*) => {
        $(mod $name {
            use super::CPU;
            const EL: u8 = $el;
            product!(gic gic2 2, gic3 3);
        })*
    };
    (gic $($name:ident $gic:literal),*) => {
        $(mod $name {
            use super::{CPU, EL};
            const GIC: u8 = $gic;
            product!(memory m64 "64M", g1 "1G", g6 "6G");
        })*
    };
    (memory $($name:ident $memory:literal),*) => {
        $(mod $name {
            use super::{CPU, EL, GIC};
            const MEMORY: &str = $memory;
            product!(smp smp1 1, smp4 4, smp8 8);
        })*
    };
    (smp $($name:ident $smp:literal),*) => {
        $(#[test]
        fn $name() {
            crate::Machine { cpu: CPU, el: EL, gic: GIC, memory: MEMORY, smp: $smp }.runs();
        })*
    };
}

product!(cpu cortex_a72 "cortex-a72", neoverse_n1 "neoverse-n1", neoverse_v1 "neoverse-v1", max "max");
