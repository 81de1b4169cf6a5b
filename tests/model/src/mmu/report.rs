//! Violations, and the events that led to them.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use arch::tlbi::{Asid, Tlbi};
use arch::{TableFrame, VirtAddr};

/// Events that a violation tells of.
const TRACE: usize = 40;
/// Violations of one rule that are kept; what follows is mostly a consequence.
const KEPT: usize = 8;

/// What was broken. [`Rule::arm`] names the rule in the Arm ARM (DDI 0487).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Rule {
    /// Two translations of one address that differ in output address, type, cacheability or shareability can be in
    /// one TLB together.
    BreakBeforeMake,
    /// Two translations of one address that differ in size can be in one TLB together, or members of a group that
    /// differ in the Contiguous bit, at BBM level 0 (the level of the block: also at level 1).
    SizeChange,
    /// The same at a BBM level that permits the change, but may abort the access that hits it.
    ConflictAbort,
    /// Valid members of a Contiguous group differ in the bit in memory, or may so be seen by a walker.
    MixedGroup,
    /// After the completing DSB, members of a Contiguous group are not one translation.
    InconsistentGroup,
    /// A global and a non-global entry for one address can be in one TLB together.
    GlobalOverlap,
    /// A TLB or a walk may still give a translation that the specification does not allow any more, or not yet.
    Stale,
    /// An access to a mapping that must not fault may fault.
    KernelFault,
    /// A frame is free, and a TLB may still translate to it.
    FrameInUse,
    /// A table is free, and a walker may still read it.
    TableInUse,
    /// A descriptor leads to a table whose zeroes a walker may not see yet.
    TableNotPublished,
    /// A descriptor leads to something that is no table of the next level.
    LeadsNowhere,
    /// A plain store may overwrite, or did overwrite, a dirty state that hardware has set.
    LostDirty,
    /// A block of entries was stored over a valid one.
    StoreOverValid,
    /// A valid descriptor of a form that is reserved at its level, or is misaligned.
    Reserved,
    /// A TLB maintenance operation that this machine does not have, or whose operand is not valid for it.
    BadOperation,
}

impl Rule {
    /// The rules of the Arm ARM, or features where it is no rule of a name.
    pub const fn arm(self) -> &'static str {
        match self {
            Self::BreakBeforeMake => "RWHZWS, RDDMVT",
            Self::SizeChange => "RWHZWS, RPVTFW",
            Self::ConflictAbort => "RNGLXZ, FEAT_BBML1, FEAT_BBML2",
            Self::MixedGroup => "RQTRPM, IPGVGZ",
            Self::InconsistentGroup => "RSKQHL, RJQQTC",
            Self::GlobalOverlap => "RWHZWS",
            Self::Stale | Self::FrameInUse => "RSQBCS, RDDMVT",
            Self::KernelFault => "RDDMVT",
            Self::TableInUse => "RSQBCS, TLBI VALE1IS",
            Self::TableNotPublished | Self::LeadsNowhere => "RSQBCS",
            Self::LostDirty => "ICQTNL, RLCGVS, RGPHKF",
            Self::StoreOverValid => "the contract of Mmu::store_block",
            Self::Reserved => "D8.3.1",
            Self::BadOperation => "FEAT_TLBIRANGE, ILHKCP, ITYBWT",
        }
    }
}

/// One thing that happened to the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A CPU wrote a descriptor.
    Store {
        /// The CPU.
        cpu: usize,
        /// The table.
        table: TableFrame,
        /// The slot in it.
        index: usize,
        /// What it held.
        old: u64,
        /// What it holds now.
        new: u64,
    },
    /// Hardware of a CPU updated a descriptor.
    Update {
        /// The CPU.
        cpu: usize,
        /// The table.
        table: TableFrame,
        /// The slot in it.
        index: usize,
        /// What it held.
        old: u64,
        /// What it holds now.
        new: u64,
    },
    /// `dsb ishst`
    Publish(usize),
    /// A broadcast TLBI was issued.
    Invalidate(usize, Tlbi),
    /// `dsb ish`
    Complete(usize),
    /// `isb`
    Isb(usize),
    /// A local TLBI, and its barriers.
    InvalidateLocal(usize, Tlbi),
    /// A table was loaded into a TTBR; with the ASID for TTBR0.
    Load(usize, Option<TableFrame>, Option<Asid>),
    /// An operation of the specification began, or ended.
    Operation(u64, bool),
    /// A table was freed.
    FreeTable(TableFrame),
    /// The frame at this address was freed.
    FreeFrame(u64),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store { cpu, table, index, old, new } => {
                write!(f, "cpu {cpu}: store {}[{index}] {old:#x} -> {new:#x}", table.pa())
            }
            Self::Update { cpu, table, index, old, new } => {
                write!(f, "hardware of cpu {cpu}: {}[{index}] {old:#x} -> {new:#x}", table.pa())
            }
            Self::Publish(cpu) => write!(f, "cpu {cpu}: dsb ishst"),
            Self::Invalidate(cpu, op) => write!(f, "cpu {cpu}: {op:?}"),
            Self::Complete(cpu) => write!(f, "cpu {cpu}: dsb ish"),
            Self::Isb(cpu) => write!(f, "cpu {cpu}: isb"),
            Self::InvalidateLocal(cpu, op) => write!(f, "cpu {cpu}: local {op:?}; dsb nsh; isb"),
            Self::Load(cpu, root, asid) => write!(f, "cpu {cpu}: TTBR = {root:?} {asid:?}"),
            Self::Operation(op, begins) => {
                write!(f, "operation {op} {}", if *begins { "begins" } else { "ends" })
            }
            Self::FreeTable(table) => write!(f, "free table {}", table.pa()),
            Self::FreeFrame(pa) => write!(f, "free frame {pa:#x}"),
        }
    }
}

/// Something that the machine may do and must not, or that software must not do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// What was broken.
    pub rule: Rule,
    /// The CPU on which it would be seen, if on one.
    pub cpu: Option<usize>,
    /// The address that is concerned, if one is.
    pub va: Option<VirtAddr>,
    /// What may happen, and by which entries.
    pub detail: String,
    /// The last events before it was noticed, oldest first.
    pub trace: Vec<Event>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({})", self.rule, self.rule.arm())?;
        if let Some(cpu) = self.cpu {
            write!(f, ", cpu {cpu}")?;
        }
        if let Some(va) = self.va {
            write!(f, ", address {va:#x}")?;
        }
        writeln!(f, ": {}", self.detail)?;
        self.trace.iter().try_for_each(|event| writeln!(f, "    {event}"))
    }
}

impl core::error::Error for Violation {}

/// What happened, and what was found.
#[derive(Default)]
pub(super) struct Log {
    trace: VecDeque<Event>,
    violations: Vec<Violation>,
}

impl Log {
    pub(super) fn event(&mut self, event: Event) {
        if self.trace.len() == TRACE {
            self.trace.pop_front();
        }
        self.trace.push_back(event);
    }

    /// Takes note of a violation, once for each rule, CPU and address.
    pub(super) fn violation(
        &mut self,
        rule: Rule,
        cpu: Option<usize>,
        va: Option<u64>,
        detail: impl FnOnce() -> String,
    ) {
        let va = va.map(VirtAddr::new);
        let known = |v: &Violation| (v.rule, v.cpu, v.va) == (rule, cpu, va);
        let kept = self.violations.iter().filter(|v| v.rule == rule).count();
        if kept < KEPT && !self.violations.iter().any(known) {
            let trace = self.trace.iter().copied().collect();
            self.violations.push(Violation { rule, cpu, va, detail: detail(), trace });
        }
    }

    pub(super) fn violations(&self) -> &[Violation] {
        &self.violations
    }

    pub(super) fn take(&mut self) -> Vec<Violation> {
        core::mem::take(&mut self.violations)
    }
}
