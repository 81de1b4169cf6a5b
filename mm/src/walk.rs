//! Reading a table without its lock: every leaf in order.

use core::ops::ControlFlow;

use arch::{Entry, Mmu, PteValue, Table, VirtAddr};

use crate::Mm;

/// A leaf entry met by [`Mm::walk`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The first address that it translates.
    pub va: VirtAddr,
    /// The level of its table: 3 for pages.
    pub level: u8,
    /// The descriptor.
    pub pte: PteValue,
}

impl<M: Mmu> Mm<'_, M> {
    /// Calls `visit` with every leaf that translates some of the `size` bytes at `va`, in ascending
    /// order, until it breaks. Takes no lock and issues no maintenance: an entry that changes
    /// meanwhile is seen as it was or as it is.
    ///
    /// # Panics
    /// Where the range is empty or not wholly in the half that this mm translates.
    pub fn walk<B>(
        &self,
        va: VirtAddr,
        size: u64,
        mut visit: impl FnMut(Leaf) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        assert!(size > 0 && self.covers(va, size), "walk outside of the address space");
        walk_table(self.root_table(), va.get(), va.get() + (size - 1), &mut visit)
    }

    /// The leaf that translates `va`, or `None`.
    pub fn leaf(&self, va: VirtAddr) -> Option<Leaf> {
        match self.walk(va, 1, ControlFlow::Break) {
            ControlFlow::Break(leaf) => Some(leaf),
            ControlFlow::Continue(()) => None,
        }
    }
}

/// `last` is inclusive, since the kernel's half ends with the last address there is.
fn walk_table<M: Mmu, B>(
    table: Table<'_, M>,
    first: u64,
    last: u64,
    visit: &mut impl FnMut(Leaf) -> ControlFlow<B>,
) -> ControlFlow<B> {
    let level = table.level();
    let size = M::GRANULE.level_size(level);
    let mut va = first;
    loop {
        let entry_last = va | (size - 1);
        match table.entry(M::GRANULE.index(va, level)) {
            Entry::Invalid => {}
            Entry::Leaf(pte) => visit(Leaf { va: VirtAddr::new(va & !(size - 1)), level, pte })?,
            Entry::Table(frame) => {
                walk_table(Table::new(table.mmu(), frame), va, entry_last.min(last), visit)?;
            }
        }
        if entry_last >= last {
            return ControlFlow::Continue(());
        }
        va = entry_last + 1;
    }
}
