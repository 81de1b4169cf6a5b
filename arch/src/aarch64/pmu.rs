//! The performance monitors of this CPU (DDI 0487, D13): cycles, and one event.

use core::arch::asm;
use core::marker::PhantomData;

use super::barrier;

/// L1D_TLB_REFILL: the first-level TLB for data had no entry, and got one.
pub const L1D_TLB_REFILL: u16 = 0x05;
/// CPU_CYCLES: what the cycle counter counts, as an event.
pub const CPU_CYCLES: u16 = 0x11;

/// PMCR_EL0: counting is on; event counters, cycle counter are set to 0; cycles are counted in 64 bits.
const ENABLE: u64 = 1 << 0;
const RESET_EVENTS: u64 = 1 << 1;
const RESET_CYCLES: u64 = 1 << 2;
const LONG_CYCLES: u64 = 1 << 6;
/// PMCNTENSET_EL0: the cycle counter, and the first event counter.
const CYCLES: u64 = 1 << 31;
const FIRST: u64 = 1 << 0;

macro_rules! read {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: reads an ID register, or one that is there by `Pmu`'s existence; a read changes nothing.
        unsafe { asm!(concat!("mrs {}, ", $register), out(reg) value, options(nostack, preserves_flags)) };
        value
    }};
}

macro_rules! write {
    ($register:literal, $value:expr) => {
        // SAFETY: `Pmu`'s existence says that the register is there; it changes what is counted and nothing else.
        unsafe { asm!(concat!("msr ", $register, ", {}"), in(reg) $value, options(nostack, preserves_flags)) }
    };
}

/// The performance monitors of the CPU on which it was made, so it can't be sent to another.
pub struct Pmu(PhantomData<*const ()>);

/// What was counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counts {
    /// CPU_CYCLES.
    pub cycles: u64,
    /// How often the event came, where it is counted.
    pub events: Option<u32>,
}

impl Pmu {
    /// Those of this CPU, or `None` where it has no PMUv3.
    pub fn of_this_cpu() -> Option<Self> {
        // ID_AA64DFR0_EL1.PMUVer: 0b1111 is one of another kind.
        let version = read!("id_aa64dfr0_el1") >> 8 & 0xf;
        (version != 0 && version != 0xf).then_some(Self(PhantomData))
    }

    /// Whether it counts this common event, and has a counter for it.
    pub fn counts(&self, event: u16) -> bool {
        let events = match event {
            0..=0x1f => read!("pmceid0_el0") >> event,
            0x20..=0x3f => read!("pmceid1_el0") >> (event - 0x20),
            _ => 0,
        };
        let counters = read!("pmcr_el0") >> 11 & 0x1f;
        events & 1 == 1 && counters > 0
    }

    /// Runs `f`, counting cycles and this event at EL0 and EL1. On the same CPU; interrupts that come meanwhile are counted
    /// too.
    pub fn count<R>(&self, event: u16, f: impl FnOnce() -> R) -> (Counts, R) {
        let counted = self.counts(event);
        let counters = if counted { CYCLES | FIRST } else { CYCLES };
        write!("pmcntenclr_el0", u64::from(u32::MAX));
        write!("pmccfiltr_el0", 0_u64);
        if counted {
            write!("pmevtyper0_el0", u64::from(event));
        }
        write!("pmcr_el0", ENABLE | RESET_EVENTS | RESET_CYCLES | LONG_CYCLES);
        barrier::isb();
        write!("pmcntenset_el0", counters);
        barrier::isb();
        let result = f();
        barrier::isb();
        write!("pmcntenclr_el0", counters);
        barrier::isb();
        let events = counted.then(|| read!("pmevcntr0_el0") as u32);
        (Counts { cycles: read!("pmccntr_el0"), events }, result)
    }
}
