//! Instruction caches: what was written to a page is visible to instruction fetches before a user may execute it.
//!
//! Instruction caches need not see stores (DDI 0487, B2.7.4.2). A page that a user is to execute was written through
//! another mapping: read from a file, or copied. So before an entry that EL0 may execute becomes valid, the data cache
//! is cleaned to the point of unification, and the instruction caches of all CPUs are invalidated; a folio at a time,
//! and once, until it is written again. A missing maintenance is never noticed by an emulator without caches.
//!
//! Who writes to a folio says so afterwards: [`FolioRef::mark_written`](crate::frame::FolioRef::mark_written). Memory
//! that was just allocated counts as written. What a user writes, through a writable entry, is known by its dirty state:
//! an entry that is set dirty is taken for a write, and who makes entries clean tells the folio. What a user writes to a
//! page that it may execute at the same time it must maintain itself, by the same instructions, which EL0 may use.

use arch::{Mmu, PteFlags, PteValue};

use crate::Mm;
use crate::mm_struct::Kind;
use crate::pte::Pte;

/// To be called before entries become valid that map `pte` and, maybe, the pages of its folio that follow it. For those
/// that can't be executed by EL0 it is a test of one bit.
#[inline(always)]
pub(crate) fn before_executable<M: Mmu>(mm: &Mm<'_, M>, pte: PteValue) {
    if !pte.flags().contains(PteFlags::UXN) {
        sync(mm, pte);
    }
}

#[cold]
fn sync<M: Mmu>(mm: &Mm<'_, M>, pte: PteValue) {
    // Whoever maps what has no folio knows what is there, and who wrote it.
    let Kind::User { frames, .. } = mm.kind() else { return };
    if !pte.is_valid() || pte.is_special() {
        return;
    }
    let Some(folio) = frames.folio(pte.pa().pfn(M::GRANULE)) else { return };
    if pte.is_dirty() {
        folio.mark_written();
    }
    let size = folio.frames() * M::GRANULE.page_size();
    folio.make_fetchable(|| mm.mmu().sync_icache(folio.head().addr(M::GRANULE), size));
}
