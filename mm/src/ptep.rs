//! The public API: entries of user memory read and changed, whatever is folded.
//!
//! Nobody who calls it knows of blocks. Each function handles one page the short way, and leaves to `contpte` what is
//! folded already or might be folded now. Names and meaning are Linux's. Addresses may point anywhere into a page;
//! numbers are of pages.
//!
//! # Contract
//! *Lock:* what changes something takes the [`PteGuard`] of the table exclusively; what reads exactly borrows it.
//! [`ptep_get_lockless`] takes none.
//!
//! *Maintenance:* each function says what it issues and completes itself. What it clears, or takes a permission from, it
//! *owes* a flush; the guard remembers that, and does it before any of these pages is valid again, or before the lock is
//! released (DDI 0487, D8.16.1, RWHZWS, RDDMVT). The flush of a fold or unfold is complete on return, and serves for what
//! changes in the block by the same call. Where the size may change in place
//! ([`bbm_no_abort`](arch::mmu::Features::bbm_no_abort)) a fold or unfold has none, and what changes with it is owed one.
//!
//! *Contiguous bit:* getters let it show, setters ignore it in what they are given.
//!
//! *Panics:* each function does where the guard's table does not translate all of the pages, or there are none. In a
//! kernel address space, where a part of a static Contiguous mapping would change.
//!
//! A setter needs the lock, and for itself:
//! ```
//! use arch::{Mmu, PteValue, VirtAddr};
//! use pleat_mm::{PteGuard, ptep};
//!
//! fn map<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, va: VirtAddr, pte: PteValue) {
//!     ptep::set_ptes(guard, va, pte, 1);
//! }
//! ```
//! ```compile_fail,E0308
//! use arch::{Mmu, PteValue, VirtAddr};
//! use pleat_mm::{PteGuard, ptep};
//!
//! fn map<M: Mmu>(guard: &PteGuard<'_, '_, M>, va: VirtAddr, pte: PteValue) {
//!     ptep::set_ptes(guard, va, pte, 1);
//! }
//! ```
//! ```compile_fail,E0308
//! use arch::{Mmu, PteValue, VirtAddr};
//! use pleat_mm::{Mm, ptep};
//!
//! fn map<M: Mmu>(mm: &mut Mm<'_, M>, va: VirtAddr, pte: PteValue) {
//!     ptep::set_ptes(mm, va, pte, 1);
//! }
//! ```

use core::fmt;
use core::ops::Range;

use arch::mmu::Hafdbs;
use arch::{Mmu, PteFlags, PteValue, VirtAddr};

use crate::contpte::{self, Ends, block_of, cont_ptes, expand, try_fold, try_unfold, unfold_partial_ends};
use crate::counters::Counter;
use crate::guard::PteGuard;
use crate::mm_struct::Kind;
use crate::pte::{Gathered, Pte, needs_break};
use crate::{Mm, icache, runs, tlb};

/// Reads the entry of `va`. Of a folded block it tells the Contiguous bit, and young and dirty of the whole block: hardware
/// may have set them in any of its entries, and need not in a second (RLCGVS, RGPHKF).
///
/// *Maintenance:* none.
pub fn ptep_get<M: Mmu>(guard: &PteGuard<'_, '_, M>, va: VirtAddr) -> PteValue {
    let index = guard.index(va);
    get_at(guard, index, guard.get(index))
}

/// As [`ptep_get`], of an entry that was read.
#[inline]
pub(crate) fn get_at<M: Mmu>(guard: &PteGuard<'_, '_, M>, index: usize, pte: PteValue) -> PteValue {
    if pte.is_folded() { gather(guard, index, pte) } else { pte }
}

/// The entry with young and dirty of its block.
fn gather<M: Mmu>(guard: &PteGuard<'_, '_, M>, index: usize, pte: PteValue) -> PteValue {
    if pte.is_young() && pte.is_dirty() {
        return pte;
    }
    let mut all = Gathered::default();
    guard.table().leaves(block_of::<M>(index)).for_each(|sibling| all.add(sibling));
    all.merged_into(pte)
}

/// [`set_pte`] met an entry of a folded block, and left it as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Folded {
    /// The index of the entry.
    pub index: usize,
}

impl fmt::Display for Folded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {} belongs to a folded block", self.index)
    }
}

impl core::error::Error for Folded {}

/// Sets entry `index` of the guard's table, by its place alone: it folds and unfolds nothing. For an entry that can't be in
/// a block; any other is for [`set_ptes`].
///
/// *Maintenance:* as [`set_ptes`] of one page that is in no block.
///
/// # Errors
/// [`Folded`] where the entry belongs to a folded block; nothing was changed, since valid entries of a group must not differ
/// in the Contiguous bit (RQTRPM). Also warned of, and counted as [`Counter::SetPteOnFolded`].
///
/// # Panics
/// As [`set_ptes`] of one page; where the table has no entry `index`.
pub fn set_pte<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, index: usize, pte: PteValue) -> Result<(), Folded> {
    guard.mutates("set_pte");
    let old = guard.get(index);
    if old.is_folded() {
        return Err(warn_folded(guard, index));
    }
    icache::before_executable(guard.mm(), pte);
    store(guard, index, old, pte.mknoncont());
    publish_kernel(guard, pte);
    Ok(())
}

#[cold]
fn warn_folded<M: Mmu>(guard: &PteGuard<'_, '_, M>, index: usize) -> Folded {
    guard.mm().counters().add(Counter::SetPteOnFolded, 1);
    log::warn!("set_pte on the folded block at {}", guard.va(index));
    Folded { index }
}

/// Sets the entries of `nr` pages from `va` on to `pte` and the pages that follow it.
///
/// One page may replace a live entry, if that needs no break-before-make: other permissions, young or dirty; if hardware has
/// made it dirty since it was read, it stays dirty. One that is not valid keeps nothing of a live entry: who wants to know
/// what the page was uses [`ptep_get_and_clear`]. Several must all be invalid before, and lie in one folio. Blocks that are
/// wholly covered and congruent are folded at once, and one page folds the block whose last it is, if its siblings fit.
///
/// *Maintenance:* none of its own for a user's page. It first does the flush that the guard owes for these pages, if any,
/// and owes one for a live entry that it replaces. Folding a block by its last page issues one for the block and completes
/// it; so does unfolding one, and the page that is set then is owed its own. For the kernel's, `dsb ishst; isb` once: they
/// must not fault spuriously. Before a user may execute what was written since the folio was last made executable, the
/// instruction caches: see `icache`.
///
/// # Panics
/// Where a live entry would change its frame, memory type, shareability, scope or size: break-before-make is the caller's
/// (RWHZWS). Where several are not valid. In debug builds where several replace a live entry.
///
/// # Examples
/// ```
/// # mod machine { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/machine.rs")); }
/// # let machine::World { mm, frames, plain: tables, .. } = machine::World::<machine::K4>::default();
/// use arch::{PteValue, VirtAddr};
/// use pleat_mm::counters::Counter;
/// use pleat_mm::pte::{Pte, UserProt};
/// use pleat_mm::ptep::{pte_batch_hint, ptep_get, set_ptes};
///
/// let folio = frames.alloc(4)?; // 16 pages of 4 KiB, aligned to 64 KiB
/// let pte = PteValue::new_user(folio.head().addr(mm.granule()), UserProt::ReadWrite);
/// let va = VirtAddr::new(0x40_0000);
///
/// let mut guard = mm.lock_table(va, tables)?;
/// set_ptes(&mut guard, va, pte, 16);
/// assert!(ptep_get(&guard, va).is_folded());
/// assert_eq!(pte_batch_hint(&guard, va), 16);
///
/// // Page by page it comes to the same, by one conversion when the last is set.
/// let va = VirtAddr::new(0x41_0000);
/// for page in 0..16 {
///     set_ptes(&mut guard, VirtAddr::new(va.get() + page * 0x1000), pte.advance(page * 0x1000), 1);
/// }
/// assert!(ptep_get(&guard, va).is_folded());
/// assert_eq!(mm.counters().get(Counter::FoldedAtOnce), 1);
/// assert_eq!(mm.counters().get(Counter::Folds), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn set_ptes<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, va: VirtAddr, pte: PteValue, nr: usize) {
    guard.mutates("set_ptes");
    let indices = guard.indices(va, nr);
    let pte = pte.mknoncont();
    icache::before_executable(guard.mm(), pte);
    if nr == 1 {
        let index = indices.start;
        let mut old = guard.get(index);
        if old.is_folded() {
            try_unfold(guard, index, Counter::UnfoldsBySet);
            old = guard.get(index);
        }
        store(guard, index, old, pte);
        try_fold(guard, index, pte);
    } else {
        set_several(guard, indices, pte);
    }
    publish_kernel(guard, pte);
}

/// Of its own, since one page is to be set without its registers and stack.
#[inline(never)]
fn set_several<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, indices: Range<usize>, pte: PteValue) {
    let (va, nr) = (guard.va(indices.start), indices.len());
    assert!(pte.is_valid(), "{va}: {nr} entries set to {pte:?}, which is not valid");
    guard.before_valid(&indices);
    contpte::set_many(guard, indices, pte);
}

/// Stores one entry that is in no block, after what must be flushed before, and owes what must be after. `old` is what is
/// there, of which hardware may have changed flags since.
#[inline(always)]
fn store<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, index: usize, old: PteValue, pte: PteValue) {
    let indices = index..index + 1;
    if pte.is_valid() {
        guard.before_valid(&indices);
    }
    if old.is_valid() {
        if pte.is_valid() && needs_break(old, pte) {
            panic_needs_break(guard.va(index), old, pte);
        }
        guard.owe_flush(indices);
    }
    if old.is_valid() && pte.is_valid() && guard.mm().mmu().features().hafdbs == Hafdbs::AfDbm {
        replace_keeping_dirty(guard, index, pte);
    } else {
        guard.table().set_leaf(index, pte);
    }
}

/// Hardware may make a live entry dirty until the very moment in which it is replaced.
#[inline(never)]
fn replace_keeping_dirty<M: Mmu>(guard: &PteGuard<'_, '_, M>, index: usize, pte: PteValue) {
    let new = |current: PteValue| if current.is_dirty() { pte.mkdirty() } else { pte };
    guard.table().update_leaves(index..index + 1, new, |_, _, _| ());
}

#[cold]
fn panic_needs_break(va: VirtAddr, old: PteValue, new: PteValue) -> ! {
    panic!("{va}: the live entry {old:?} would become {new:?}")
}

/// A kernel mapping must not fault spuriously; a user's may. Told by the entry, not by the address space.
#[inline]
fn publish_kernel<M: Mmu>(guard: &PteGuard<'_, '_, M>, pte: PteValue) {
    if pte.is_valid() && !pte.flags().contains(PteFlags::USER) {
        guard.mm().mmu().publish();
    }
}

/// Clears the entries of `nr` pages from `va` on, as [`get_and_clear_ptes`] does.
pub fn clear_ptes<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, va: VirtAddr, nr: usize) {
    get_and_clear_ptes(guard, va, nr);
}

/// Clears the entries of `nr` pages from `va` on and returns the first; if that was valid, with young and dirty of all
/// valid ones. Linux's `full`, a hint that all of the address space goes, would change nothing here.
///
/// Blocks that are wholly covered need not be unfolded: all their entries are invalid before anything is flushed, so none
/// can fill a TLB again (RSKQHL).
///
/// *Maintenance:* an unfold of a partly covered block at either end flushes that block, its cleared pages included. Owed
/// for the other pages.
///
/// # Examples
/// ```
/// # mod machine { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/machine.rs")); }
/// # let machine::World { mm, frames, plain: tables, .. } = machine::World::<machine::K4>::default();
/// use arch::{PteValue, VirtAddr};
/// use pleat_mm::counters::Counter;
/// use pleat_mm::pte::{Pte, UserProt};
/// use pleat_mm::ptep::{get_and_clear_ptes, ptep_get, set_ptes};
///
/// let folio = frames.alloc(5)?; // two blocks
/// let pte = PteValue::new_user(folio.head().addr(mm.granule()), UserProt::ReadWrite);
/// let va = |page: u64| VirtAddr::new(0x40_0000 + page * 0x1000);
/// let mut guard = mm.lock_table(va(0), tables)?;
/// set_ptes(&mut guard, va(0), pte, 32);
///
/// // The first block wholly and a part of the second, which is unfolded for it.
/// let first = get_and_clear_ptes(&mut guard, va(0), 20);
/// assert_eq!(first.pa(), pte.pa());
/// assert!(!ptep_get(&guard, va(19)).is_valid());
/// assert!(ptep_get(&guard, va(20)).is_valid() && !ptep_get(&guard, va(20)).is_folded());
/// assert_eq!(mm.counters().get(Counter::UnfoldsByClear), 1);
///
/// // The folio may be given back once no TLB has its pages, which the guard sees to.
/// guard.free_after_flush(folio);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn get_and_clear_ptes<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, va: VirtAddr, nr: usize) -> PteValue {
    guard.mutates("get_and_clear_ptes");
    let indices = guard.indices(va, nr);
    if nr == 1 { clear_one(guard, indices.start) } else { clear_several(guard, indices) }
}

#[inline]
fn clear_one<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, index: usize) -> PteValue {
    if guard.get(index).is_folded()
        && let Some(pte) =
            contpte::unfold(guard, index..index + 1, Counter::UnfoldsByClear, |_| PteValue::NONE)
    {
        return pte;
    }
    let pte = guard.table().clear_leaf(index);
    if pte.is_valid() {
        guard.owe_flush(index..index + 1);
    }
    pte
}

#[inline(never)]
fn clear_several<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, indices: Range<usize>) -> PteValue {
    let Ends { first, rest, last } =
        unfold_partial_ends(guard, &indices, Counter::UnfoldsByClear, |_| PteValue::NONE);
    let head = first.unwrap_or_else(|| guard.get(indices.start));
    let (mut all, mut folded, mut start) = (Gathered::default(), 0, rest.start);
    while start < rest.end {
        let end = block_of::<M>(start).end.min(rest.end);
        let whole = end - start == cont_ptes::<M>();
        folded += u64::from(whole && guard.get(start).is_folded());
        guard.table().clear_leaves(start..end, |pte| all.add(pte));
        start = end;
    }
    if folded != 0 {
        guard.mm().counters().add(Counter::ClearedFolded, folded);
    }
    if all.is_valid() {
        guard.owe_flush(rest);
    }
    // Not into an invalid entry: its bits are whatever its owner wrote.
    if !head.is_valid() {
        return head;
    }
    // These have the flags of their blocks.
    first.into_iter().chain(last).for_each(|pte| all.add(pte));
    all.merged_into(head)
}

/// Clears the entry of `va`. *Maintenance:* that of an unfold, if any; else owed for the page.
pub fn ptep_clear<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, va: VirtAddr) {
    get_and_clear_ptes(guard, va, 1);
}

/// Clears the entry of `va` and returns it. *Maintenance:* that of an unfold, if any; else owed for the page.
pub fn ptep_get_and_clear<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, va: VirtAddr) -> PteValue {
    get_and_clear_ptes(guard, va, 1)
}

/// Takes the permission to write from `nr` pages from `va` on; which of them were dirty is kept. Blocks that are wholly
/// covered stay folded, and those that could not be written to.
///
/// *Maintenance:* an unfold of a partly covered block at either end flushes that block. Owed for the other pages, if any
/// entry changed.
pub fn wrprotect_ptes<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, va: VirtAddr, nr: usize) {
    guard.mutates("wrprotect_ptes");
    let indices = guard.indices(va, nr);
    runs::change(guard, indices, Counter::UnfoldsByWriteProtect, PteValue::wrprotect);
}

/// Makes the page at `va` old, and the whole block where it is folded, which it stays; whether any was young.
///
/// *Maintenance:* none: until the entry leaves the TLB by itself, accesses go unnoticed.
pub fn ptep_test_and_clear_young<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, va: VirtAddr) -> bool {
    guard.mutates("ptep_test_and_clear_young");
    let index = guard.index(va);
    let mut young = false;
    let expanded = expand(guard, index..index + 1);
    guard.table().update_leaves(expanded, PteValue::mkold, |_, old, _| young |= old.is_young());
    young
}

/// As [`ptep_test_and_clear_young`].
///
/// *Maintenance:* if it was young, the invalidation of the page or the block is issued, and not waited for: a stale entry
/// costs no more than an access that goes unnoticed.
pub fn ptep_clear_flush_young<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, va: VirtAddr) -> bool {
    let young = ptep_test_and_clear_young(guard, va);
    if young {
        let index = guard.index(va);
        let flushed = expand(guard, index..index + 1);
        tlb::flush_range_nosync(guard.mm(), guard.va(flushed.start), flushed.len() as u64);
    }
    young
}

/// What [`clear_young_dirty_ptes`] clears.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum YoungDirty {
    /// Young.
    Young,
    /// Dirty.
    Dirty,
    /// Both.
    Both,
}

/// Makes `nr` pages from `va` on old, or clean, or both, and the whole block at either end where it is folded, which it
/// stays.
///
/// *Maintenance:* none issued. Owed where a page became clean: a write through an old translation would go unnoticed.
pub fn clear_young_dirty_ptes<M: Mmu>(
    guard: &mut PteGuard<'_, '_, M>,
    va: VirtAddr,
    nr: usize,
    what: YoungDirty,
) {
    guard.mutates("clear_young_dirty_ptes");
    let indices = guard.indices(va, nr);
    let indices = expand(guard, indices);
    let mut cleaned = false;
    let clear = |pte: PteValue| match what {
        YoungDirty::Young => pte.mkold(),
        YoungDirty::Dirty => pte.mkclean(),
        YoungDirty::Both => pte.mkold().mkclean(),
    };
    guard
        .table()
        .update_leaves(indices.clone(), clear, |_, old, new| cleaned |= old.is_dirty() != new.is_dirty());
    if cleaned {
        guard.owe_flush(indices);
    }
}

/// After a fault at `va`: gives its entry the permission to write, young and dirty of `entry`, none of which is ever taken
/// away by this. Whether anything changed; if not, another CPU was faster, or the fault is spurious: then the page needs
/// an invalidation on this CPU alone.
///
/// Nothing is to be done only if every entry of a folded block satisfies the request by itself: a walk reads one of them,
/// whatever the others say. A block stays folded unless the permission to write changes.
///
/// *Maintenance:* where a valid, young entry became writable without a fault, the page or the block is flushed, completely.
/// None for young alone: an entry without the access flag is never cached (RXCLRD).
///
/// # Panics
/// Where the entry is not valid.
pub fn ptep_set_access_flags<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, va: VirtAddr, entry: PteValue) -> bool {
    guard.mutates("ptep_set_access_flags");
    let index = guard.index(va);
    let current = guard.get(index);
    assert!(current.is_valid(), "{va}: access flags of an invalid entry");
    let merged = |pte: PteValue| {
        let pte = if entry.is_writable() { pte.mkwrite() } else { pte };
        let pte = if entry.is_young() { pte.mkyoung() } else { pte };
        // Also where software knows it to be dirty already: the next write must not fault again. Where `RDONLY` is
        // clear, hardware state says it, and nothing is missing.
        if entry.is_dirty() && pte.flags().contains(PteFlags::RDONLY) { pte.mkdirty() } else { pte }
    };
    let all = expand(guard, index..index + 1);
    if guard.table().leaves(all.clone()).all(|pte| merged(pte) == pte) {
        return false;
    }
    let page = index..index + 1;
    let permission_changes = entry.is_writable() && !current.is_writable();
    if permission_changes
        && current.is_folded()
        && contpte::unfold(guard, page.clone(), Counter::UnfoldsByAccessFlags, merged).is_some()
    {
        // Flushed with its block; where that was not, owed.
        guard.before_valid(&page);
        return true;
    }
    let changed = if permission_changes { page } else { all };
    let mut stale = false;
    guard.table().update_leaves(changed.clone(), merged, |_, old, new| {
        let gained = old.flags().contains(PteFlags::RDONLY) && !new.flags().contains(PteFlags::RDONLY);
        stale |= gained && old.is_young();
    });
    if stale {
        tlb::flush_range(guard.mm(), guard.va(changed.start), changed.len() as u64);
    }
    true
}

/// Begins a change of the permission of `nr` pages from `va` on: clears their entries and returns the first, with young and
/// dirty of all. [`modify_prot_commit`] ends it. In between, accesses fault and wait for the guard.
///
/// *Maintenance:* as [`get_and_clear_ptes`].
#[must_use = "the entries are cleared until modify_prot_commit"]
pub fn modify_prot_start<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, va: VirtAddr, nr: usize) -> PteValue {
    get_and_clear_ptes(guard, va, nr)
}

/// Ends a change of permission: sets the entries of `nr` pages from `va` on, of all that were cleared or of some. Blocks
/// that are wholly covered are folded again, whatever they were.
///
/// *Maintenance:* what was cleared is flushed first, completely; so no entry becomes valid beside what a TLB still holds.
///
/// # Panics
/// As [`set_ptes`].
pub fn modify_prot_commit<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, va: VirtAddr, pte: PteValue, nr: usize) {
    set_ptes(guard, va, pte, nr);
}

/// How many entries from `va` on surely continue it: those left of its block where it is folded, else 1. No more than are
/// in the table. *Maintenance:* none.
pub fn pte_batch_hint<M: Mmu>(guard: &PteGuard<'_, '_, M>, va: VirtAddr) -> usize {
    let index = guard.index(va);
    if guard.get(index).is_folded() { block_of::<M>(index).end - index } else { 1 }
}

/// How many of the `most` pages from `va` on may be changed as one batch: those that continue the first, in frame and in
/// attributes, and belong to its folio. Young and dirty may differ; the permission to write does not, nor is the first page
/// taken for the folio's first. At least 1; 1 where the first is not valid. No more than are in the table. *Maintenance:*
/// none.
///
/// # Panics
/// Where `most` is 0.
///
/// # Examples
/// ```
/// # mod machine { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/machine.rs")); }
/// # let machine::World { mm, frames, plain: tables, .. } = machine::World::<machine::K4>::default();
/// use arch::{PteValue, VirtAddr};
/// use pleat_mm::pte::{Pte, UserProt};
/// use pleat_mm::ptep::{pte_batch, set_ptes, wrprotect_ptes};
///
/// let folio = frames.alloc(5)?;
/// let pte = PteValue::new_user(folio.head().addr(mm.granule()), UserProt::ReadWrite);
/// let va = |page: u64| VirtAddr::new(0x40_0000 + page * 0x1000);
/// let mut guard = mm.lock_table(va(0), tables)?;
/// set_ptes(&mut guard, va(0), pte, 32);
/// assert_eq!(pte_batch(&guard, va(3), 100), 29);
///
/// wrprotect_ptes(&mut guard, va(20), 2);
/// assert_eq!(pte_batch(&guard, va(3), 100), 17);
/// assert_eq!(pte_batch(&guard, va(20), 100), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn pte_batch<M: Mmu>(guard: &PteGuard<'_, '_, M>, va: VirtAddr, most: usize) -> usize {
    assert!(most > 0, "a batch of no pages");
    let start = guard.index(va);
    let pte = guard.get(start);
    if !pte.is_valid() {
        return 1;
    }
    let mut most = most.min(M::GRANULE.entries() - start);
    if most == 1 {
        return 1;
    }
    if let Some(left) = contpte::left_of_folio(guard.mm(), pte) {
        most = most.min(left);
    }
    run(guard, start, pte, most)
}

/// As [`pte_batch`], of an entry that was read and is valid, where its folio holds `most` pages more, itself counted.
#[inline]
pub(crate) fn run<M: Mmu>(guard: &PteGuard<'_, '_, M>, start: usize, pte: PteValue, most: usize) -> usize {
    if most == 1 {
        return 1;
    }
    // Of a folded block one entry tells of all.
    let entries = |index: usize, pte: PteValue| {
        if pte.is_folded() { block_of::<M>(index).end - index } else { 1 }
    };
    let first = pte.attributes();
    let mut nr = entries(start, pte);
    while nr < most {
        let next = guard.get(start + nr);
        if !next.is_valid() || next.attributes() != first.advanced(nr as u64 * M::GRANULE.page_size()) {
            return nr;
        }
        nr += entries(start + nr, next);
    }
    most
}

/// What a reader without the lock has: no table that it reads is freed.
pub struct LocklessGuard {
    /// Not because nothing is freed meanwhile, but because nothing ever is.
    tables_stay: bool,
}

impl LocklessGuard {
    /// Since interrupts are masked on this CPU: by whoever makes it, for as long as it lives.
    pub const fn interrupts_masked() -> Self {
        Self { tables_stay: false }
    }

    /// Since it only reads address spaces whose tables are never freed: `init_mm` and `efi_mm`. With a user's, reading panics.
    pub const fn tables_stay() -> Self {
        Self { tables_stay: true }
    }

    /// Whether it may read the tables of this mm.
    pub(crate) fn vouches_for<M: Mmu>(&self, mm: &Mm<'_, M>) -> bool {
        !self.tables_stay || !matches!(mm.kind(), Kind::User { .. })
    }
}

/// Reads of a folded block without the lock, before they give up and take it. A model checker tries every order of each.
const LOCKLESS_TRIES: usize = if cfg!(loom) { 2 } else { 64 };

/// A lockless read met entries that kept changing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Busy;

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the block kept changing while it was read without its lock")
    }
}

impl core::error::Error for Busy {}

/// Reads the entry of `va` without the lock, as [`ptep_get`] does with it; [`PteValue::NONE`] where there is no table. Of a
/// folded block every entry must be read as valid and Contiguous, in sequence and with equal attributes; else the block
/// changed meanwhile, and it is read again. During a conversion the entry is read as invalid, as a walker would.
///
/// *Maintenance:* none.
///
/// # Errors
/// [`Busy`] after 64 tries in each of which the block was changed: take the lock.
///
/// # Panics
/// Where the guard is for tables that are never freed, and this is a user's address space.
pub fn ptep_get_lockless<M: Mmu>(
    mm: &Mm<'_, M>,
    va: VirtAddr,
    guard: &LocklessGuard,
) -> Result<PteValue, Busy> {
    assert!(guard.vouches_for(mm), "the tables of a user's address space may be freed");
    let Some(table) = mm.last_level_table(va) else { return Ok(PteValue::NONE) };
    let index = M::GRANULE.index(va.get(), arch::granule::LAST_LEVEL);
    let page = M::GRANULE.page_size();
    for _ in 0..LOCKLESS_TRIES {
        let pte = table.leaf(index);
        if !pte.is_folded() {
            return Ok(pte);
        }
        let block = block_of::<M>(index);
        let mut gathered = Gathered::default();
        gathered.add(pte);
        let mut expected = None;
        let consistent = block.clone().all(|sibling_index| {
            let sibling = table.leaf(sibling_index);
            let offset = (sibling_index - block.start) as u64 * page;
            let expected = *expected.get_or_insert(sibling.attributes());
            gathered.add(sibling);
            sibling.is_folded() && sibling.attributes() == expected.advanced(offset)
        });
        let here = (index - block.start) as u64 * page;
        if consistent && expected.is_some_and(|expected| expected.advanced(here) == pte.attributes()) {
            return Ok(gathered.merged_into(pte));
        }
        core::hint::spin_loop();
    }
    Err(Busy)
}
