//! The private API: one entry read or written as it is, without any policy.
//!
//! Kernel and firmware mappings are built through it alone. It is visible in this crate only: another one has what is
//! public,
//! ```
//! use pleat_mm::ptep::set_pte;
//! use pleat_mm::contpte::refold;
//! ```
//! and neither the private API nor the gate of `contpte`:
//! ```compile_fail,E0603
//! use pleat_mm::raw::__set_pte;
//! ```
//! ```compile_fail,E0603
//! use pleat_mm::raw::__ptep_get;
//! ```
//! ```compile_fail,E0603
//! use pleat_mm::contpte::mm_is_user;
//! ```
//! ```compile_fail,E0603
//! use pleat_mm::contpte::try_unfold;
//! ```
//! ```compile_fail,E0624
//! fn table<M: arch::Mmu>(guard: &pleat_mm::PteGuard<'_, '_, M>) {
//!     guard.table();
//! }
//! ```
//! ```
//! fn table<M: arch::Mmu>(guard: &pleat_mm::PteGuard<'_, '_, M>) {
//!     guard.span();
//! }
//! ```
#![cfg_attr(feature = "efi", doc = "```\nuse pleat_mm::EfiMm;\n```")]
#![cfg_attr(not(feature = "efi"), doc = "There is no `efi_mm` without the feature `efi`:")]
#![cfg_attr(not(feature = "efi"), doc = "```compile_fail,E0432\nuse pleat_mm::EfiMm;\n```")]
#![cfg_attr(
    not(feature = "efi"),
    doc = "```compile_fail,E0599\nlet _ = pleat_mm::counters::Counter::MutatorOnEfi;\n```"
)]
#![cfg_attr(not(feature = "efi"), doc = "```\nlet _ = pleat_mm::counters::Counter::RefusedByGate;\n```")]

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
