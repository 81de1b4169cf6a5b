//! What the checker objects to.

use core::fmt;

use arch::{TableFrame, VirtAddr};

/// A slot of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The table.
    pub table: TableFrame,
    /// The slot in it.
    pub index: usize,
}

/// How far the maintenance of a live entry that changed has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Stored; a walker may still read the old value.
    Stored,
    /// No walker reads the old value any more; a TLB may hold it.
    Published,
    /// An invalidation was issued.
    Invalidated,
}

/// A rule of the architecture, or of kernel mappings, that was broken. Numbers are raw descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Violation {
    /// A store into a frame that was never made a table of this level.
    NoSuchTable(Place),
    /// The event and the memory disagree about what the slot held.
    OtherOldValue(Place, u64),
    /// A store into a slot of the root table that no address selects.
    Unreachable(Place),
    /// Valid, but reserved at this level, or misaligned for it.
    Reserved(Place, u64),
    /// A table descriptor that leads to no table of the next level.
    LeadsNowhere(Place, u64),
    /// A table descriptor was written while a walker could still find what was in the frame before.
    LinkedBeforePublish(Place),
    /// A second descriptor leads to the same table.
    LinkedTwice(Place),
    /// A table descriptor was replaced.
    TableReplaced(Place),
    /// A leaf that a TLB may hold (the first number) became another by more than its permissions,
    /// without break-before-make (RWHZWS, RDDMVT).
    NotBroken(Place, u64, u64),
    /// A valid entry and one of its Contiguous group, valid or still cached, differ in the Contiguous bit
    /// (RQTRPM).
    MixedGroup(Place),
    /// At the end: a new table's zeroes were never published.
    TableNotPublished(TableFrame),
    /// At the end: a valid entry was never published.
    StoreNotPublished(Place),
    /// At the end: a TLB may hold the old value of a live entry that changed. The address it translates,
    /// and what was done for it.
    Stale(Place, VirtAddr, Phase),
    /// At the end: a Contiguous group has members that are not valid, are not consecutive, are misaligned
    /// or differ in an attribute (RSKQHL, RJQQTC). Its first slot.
    BrokenGroup(Place),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {} of the level {} table at {}", self.index, self.table.level(), self.table.pa())
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchTable(at) => write!(f, "{at}: there is no such table"),
            Self::OtherOldValue(at, old) => write!(f, "{at}: did not hold {old:#x}"),
            Self::Unreachable(at) => write!(f, "{at}: no address selects it"),
            Self::Reserved(at, raw) => write!(f, "{at}: {raw:#x} is reserved or misaligned"),
            Self::LeadsNowhere(at, raw) => write!(f, "{at}: {raw:#x} leads to no table of the next level"),
            Self::LinkedBeforePublish(at) => write!(f, "{at}: leads to a table that was not published"),
            Self::LinkedTwice(at) => write!(f, "{at}: leads to a table that has a descriptor already"),
            Self::TableReplaced(at) => write!(f, "{at}: led to a table"),
            Self::NotBroken(at, old, new) => {
                write!(f, "{at}: {old:#x} became {new:#x} without break-before-make")
            }
            Self::MixedGroup(at) => write!(f, "{at}: its group has entries with and without CONT"),
            Self::TableNotPublished(table) => {
                write!(f, "the level {} table at {} was not published", table.level(), table.pa())
            }
            Self::StoreNotPublished(at) => write!(f, "{at}: the store was not published"),
            Self::Stale(at, va, phase) => write!(f, "{at}: {va} may be translated as before: {phase:?}"),
            Self::BrokenGroup(at) => write!(f, "{at}: its Contiguous group is no single translation"),
        }
    }
}

impl core::error::Error for Violation {}
