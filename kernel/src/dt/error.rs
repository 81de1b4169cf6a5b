//! Why a device tree can't be used.

use core::fmt;

use super::{HEADER_SIZE, MAX_SIZE};
use crate::platform::Gic;

/// Why a device tree can't be used, with the culprit. Its `Display` is one clause.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DtError {
    /// There are fewer bytes than the blob should have.
    Truncated {
        /// How many bytes there are.
        have: usize,
        /// How many there should be at least.
        need: usize,
    },
    /// The first word is not the magic number, but this.
    Magic(u32),
    /// This version of the format is not read.
    Version(u32),
    /// The header states this size in bytes, which no tree has.
    Size(usize),
    /// The blob breaks the format.
    Malformed {
        /// In bytes from its beginning.
        offset: usize,
        /// How.
        what: &'static str,
    },
    /// A property that is needed is missing, or its value can't be read.
    Property {
        /// Whose it is.
        node: &'static str,
        /// Its name.
        property: &'static str,
    },
    /// A range of addresses that does not end below 2^48.
    Range {
        /// Where it stands.
        what: &'static str,
        /// Its first byte.
        base: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// More ranges than there is room for.
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// The initrd is empty, ends before it starts, or does not end below 2^48.
    Initrd {
        /// `linux,initrd-start`
        start: u64,
        /// `linux,initrd-end`
        end: u64,
    },
    /// No CPU that may be used.
    NoCpu,
    /// A CPU's `reg` has bits outside the affinity fields.
    CpuAffinity(u64),
    /// Two CPUs have this affinity.
    DuplicateCpu(u64),
    /// The CPU with this affinity has the enable-method spin-table and no address below 2^48 for it.
    CpuReleaseAddress(u64),
    /// No interrupt controller that is known.
    NoGic,
    /// This entry of the interrupt controller's `reg` is missing or can't be reached.
    GicRegisters(usize),
    /// The interrupt controller has this many redistributor regions.
    RedistributorRegions(u32),
    /// No `arm,armv8-timer`.
    NoTimer,
    /// The virtual timer's interrupt is not a PPI.
    TimerInterrupt {
        /// The specifier's first cell; 1 is a PPI.
        kind: u32,
        /// Its second.
        number: u32,
    },
}

impl fmt::Display for DtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { have, need } => write!(f, "truncated: {have} of at least {need} bytes"),
            Self::Magic(word) => write!(f, "it begins with {word:#010x} instead of the magic number"),
            Self::Version(version) => write!(f, "format version {version} is not supported"),
            Self::Size(size) => {
                write!(f, "its header says {size} bytes, not {HEADER_SIZE} to {MAX_SIZE}")
            }
            Self::Malformed { offset, what } => write!(f, "malformed at offset {offset:#x}: {what}"),
            Self::Property { node, property } => {
                write!(f, "`{property}` of {node} is missing or malformed")
            }
            Self::Range { what, base, size } => {
                write!(f, "{what}: {size:#x} bytes at {base:#x} do not end below 2^48")
            }
            Self::TooMany { what, limit } => write!(f, "{what}: more than {limit} ranges"),
            Self::Initrd { start, end } => write!(f, "the initrd can't be from {start:#x} to {end:#x}"),
            Self::NoCpu => f.write_str("no usable CPU in /cpus"),
            Self::CpuAffinity(mpidr) => write!(f, "the `reg` {mpidr:#x} of a CPU is not an affinity"),
            Self::DuplicateCpu(mpidr) => write!(f, "two CPUs have the affinity {mpidr:#x}"),
            Self::CpuReleaseAddress(mpidr) => {
                write!(f, "`cpu-release-addr` of CPU {mpidr:#x} is missing, malformed or not aligned")
            }
            Self::NoGic => f.write_str("no GICv2 or GICv3 interrupt controller"),
            Self::GicRegisters(index) => {
                write!(f, "entry {index} of the interrupt controller's `reg` is missing or unreachable")
            }
            Self::RedistributorRegions(regions) => {
                write!(f, "{regions} redistributor regions, not 1 to {}", Gic::MAX_REDISTRIBUTOR_REGIONS)
            }
            Self::NoTimer => f.write_str("no arm,armv8-timer"),
            Self::TimerInterrupt { kind, number } => {
                write!(f, "the virtual timer's interrupt <{kind} {number}> is not a PPI")
            }
        }
    }
}

impl core::error::Error for DtError {}
