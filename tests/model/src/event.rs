//! What the code under test told the machine.

use arch::TableFrame;
use arch::tlbi::Tlbi;

/// One thing that happened, in program order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A frame became a table, full of zeroes.
    Create(TableFrame),
    /// A descriptor was written.
    Store {
        /// The table.
        table: TableFrame,
        /// The slot in it.
        index: usize,
        /// What it held.
        old: u64,
        /// What it holds now.
        new: u64,
    },
    /// `dsb ishst; isb`
    Publish,
    /// A broadcast TLBI was issued.
    Invalidate(Tlbi),
    /// `dsb ish; isb`
    Complete,
}
