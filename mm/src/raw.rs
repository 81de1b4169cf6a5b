//! The private API: one entry read or written as it is, without any policy.
//!
//! Kernel and firmware mappings are built through it alone. It is visible in this crate only.

use arch::{Mmu, PteValue, Table, mmu::Entry};

/// Where an entry is: a table and an index into it, what Linux calls a `pte_t *`.
pub(crate) struct Ptep<'m, M: Mmu> {
    table: Table<'m, M>,
    index: usize,
}

impl<M: Mmu> Clone for Ptep<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Mmu> Copy for Ptep<'_, M> {}

impl<'m, M: Mmu> Ptep<'m, M> {
    /// Entry `index` of `table`.
    pub(crate) fn new(table: Table<'m, M>, index: usize) -> Self {
        Self { table, index }
    }

    /// The machine that the entry is read by.
    pub(crate) fn mmu(self) -> &'m M {
        self.table.mmu()
    }

    /// What is there: nothing, a leaf, or a table of the next level.
    pub(crate) fn entry(self) -> Entry {
        self.table.entry(self.index)
    }
}

/// Reads a leaf entry; [`PteValue::NONE`] where there is none.
pub(crate) fn __ptep_get<M: Mmu>(ptep: Ptep<'_, M>) -> PteValue {
    match ptep.entry() {
        Entry::Leaf(pte) => pte,
        Entry::Invalid | Entry::Table(_) => PteValue::NONE,
    }
}

/// Writes a leaf entry. The barrier that makes it visible is owed by the caller, once a batch:
/// [`Mmu::publish`].
pub(crate) fn __set_pte<M: Mmu>(ptep: Ptep<'_, M>, pte: PteValue) {
    ptep.table.set_leaf(ptep.index, pte);
}
