//! What the kernel needs to know of the machine, in its own words: filled from the device tree by
//! [`crate::dt`], read by the drivers. Nothing here is specific to one board.

use core::fmt;

use arch::PhysAddr;
use arrayvec::ArrayVec;

use crate::efi_tables::EfiTables;

/// The most CPUs that are started; further ones stay off, with a warning.
pub const MAX_CPUS: usize = 8;
/// The most separate ranges of RAM, or of reservations, that a description may have.
pub const MAX_RANGES: usize = 64;

/// A range of physical addresses in bytes. Never empty, never beyond 2^48.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PhysRange {
    /// The first byte.
    pub start: PhysAddr,
    /// One past the last byte.
    pub end: PhysAddr,
}

impl PhysRange {
    /// The range from `start` up to `end`, or `None` where that is empty.
    pub fn new(start: PhysAddr, end: PhysAddr) -> Option<Self> {
        (start < end).then_some(Self { start, end })
    }

    /// The range of `size` bytes from `base`, or `None` where that is empty or not below 2^48.
    pub fn from_size(base: u64, size: u64) -> Option<Self> {
        let start = PhysAddr::try_new(base)?;
        Self::new(start, start.checked_add(size)?)
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        self.end.get() - self.start.get()
    }

    /// Whether `pa` lies in this range.
    pub fn holds(&self, pa: PhysAddr) -> bool {
        self.start <= pa && pa < self.end
    }

    /// Whether all of `other` lies in this range.
    pub fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether the two have a byte in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// What the two have in common.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }
}

/// `0x40000000..0x80000000`: the end is not part of the range.
impl fmt::Display for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// A range that must not be handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reservation {
    /// Where it is.
    pub range: PhysRange,
    /// Not even mapped: the linear map leaves it out (`no-map`).
    pub no_map: bool,
}

/// The machine as described by its device tree.
#[derive(Clone, Debug)]
pub struct Platform<'a> {
    /// The root's `model`, else its first `compatible`.
    pub model: &'a str,
    /// RAM as described: not sorted, not merged.
    pub memory: ArrayVec<PhysRange, MAX_RANGES>,
    /// `/memreserve/` entries and the static children of `/reserved-memory`.
    pub reserved: ArrayVec<Reservation, MAX_RANGES>,
    /// `/chosen` `bootargs`, empty where absent.
    pub bootargs: &'a str,
    /// The initial RAM disk, where the boot loader gave one.
    pub initrd: Option<PhysRange>,
    /// `/chosen` `rng-seed`: entropy from the boot loader, empty where absent.
    pub rng_seed: &'a [u8],
    /// What EFI firmware has left, where the kernel was started by one.
    pub efi: Option<EfiTables<'a>>,
    /// The first [`MAX_CPUS`] CPUs in the tree's order. No two have the same affinity.
    pub cpus: ArrayVec<Cpu, MAX_CPUS>,
    /// How many CPUs the tree describes in all, without those that it says are disabled or broken.
    pub cpus_described: usize,
    /// How firmware is called for PSCI, where it has version 0.2 or later.
    pub psci: Option<Conduit>,
    /// The interrupt controller.
    pub gic: Gic,
    /// The UART that the last `console=` names ([`bootargs::console`](crate::bootargs::console)), else the one that
    /// `stdout-path` names if that is supported, else the first that is.
    pub console: Option<Uart>,
    /// A UART of the other kind, if there is one: for where that one can't be driven, with nobody to tell.
    pub spare_console: Option<Uart>,
    /// Interrupt number (INTID) of the EL1 virtual timer.
    pub timer_intid: u32,
}

/// A CPU and how it is started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpu {
    /// Its affinity fields, as MPIDR_EL1 shows them (Aff3 in bits 39:32, Aff2..0 in 23:0).
    pub mpidr: u64,
    /// Its `enable-method`.
    pub enable: EnableMethod,
}

/// How a CPU is started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnableMethod {
    /// By PSCI CPU_ON.
    Psci,
    /// By writing its entry point to this address (`cpu-release-addr`).
    SpinTable(PhysAddr),
    /// The tree names none that is known: only the boot CPU may be so.
    None,
}

/// The instruction that reaches the firmware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conduit {
    /// `hvc #0`
    Hvc,
    /// `smc #0`
    Smc,
}

/// An interrupt controller and its register frames.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Gic {
    /// GICv2 (`arm,gic-400`, `arm,cortex-a15-gic`).
    V2 {
        /// GICD.
        distributor: PhysRange,
        /// GICC.
        cpu_interface: PhysRange,
    },
    /// GICv3 or later (`arm,gic-v3`).
    V3 {
        /// GICD.
        distributor: PhysRange,
        /// GICR: each region holds frames of several CPUs.
        redistributors: ArrayVec<PhysRange, { Gic::MAX_REDISTRIBUTOR_REGIONS }>,
    },
}

impl Gic {
    /// The most redistributor regions that a GICv3 may have.
    pub const MAX_REDISTRIBUTOR_REGIONS: usize = 4;
}

/// A UART.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uart {
    /// Which driver.
    pub kind: UartKind,
    /// Its registers.
    pub registers: PhysRange,
    /// The tree says what its identification registers would (`arm,primecell-periphid`): they are not read.
    pub identified: bool,
    /// The BCM2711's pin controller, where it leads pins of the board's header to this UART.
    pub pins: Option<PhysRange>,
    /// The INTID of its interrupt, where that is shared by all CPUs (an SPI), and active while its level is high.
    pub intid: Option<u32>,
}

/// The UARTs that have a driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UartKind {
    /// `arm,pl011`
    Pl011,
    /// `brcm,bcm2835-aux-uart`, the mini-UART of a Raspberry Pi.
    MiniUart,
}

impl UartKind {
    /// How many there are.
    pub const COUNT: usize = 2;
}
