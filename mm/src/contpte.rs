//! Blocks: sixteen PTEs (with 4 KiB pages) that a TLB may hold as one entry.
//!
//! ```text
//!  ptep: one page ──▶ fold    all of the block alike? ──▶ ┐
//!  ptep: many     ──▶ unfold  a part is to change     ──▶ ┴ convert: invalid ─▶ flush ─▶ valid again
//! ```
//!
//! A block may be folded where its PTEs are all valid, map one aligned run of one folio, and agree in everything but
//! young and dirty, which are of the block then (DDI 0487, D8.7.1, RSKQHL). A conversion makes them invalid for a
//! moment, so it is only for address spaces whose faults wait for the page-table lock: see `mm_is_user`.

use core::fmt;
use core::ops::Range;

use arch::granule::LAST_LEVEL;
use arch::{Mmu, Pfn, PteValue, VirtAddr};

use crate::Mm;
use crate::counters::Counter;
use crate::frame::FrameMap;
use crate::guard::PteGuard;
use crate::mm_struct::Kind;
use crate::pte::{Gathered, Pte};

/// PTEs of a block: 16 of 4 KiB, 128 of 16 KiB, 32 of 64 KiB (DDI 0487, table D8-99).
pub const fn cont_ptes<M: Mmu>() -> usize {
    M::GRANULE.cont_entries(LAST_LEVEL)
}

/// Whether entries of this mm may become invalid for a moment, and have folios: only a user's. A fault in user
/// space waits for the page-table lock and finds the entry valid again; a kernel mapping can't tolerate it, nor can
/// firmware. The folios are what tells that a block is one allocation.
fn mm_is_user<'m, M: Mmu>(mm: &Mm<'m, M>) -> Option<&'m FrameMap<'m>> {
    if let Kind::User { frames, .. } = *mm.kind() {
        return Some(frames);
    }
    mm.counters().add(Counter::RefusedByGate, 1);
    None
}

/// The block that entry `index` is in.
pub(crate) fn block_of<M: Mmu>(index: usize) -> Range<usize> {
    let start = index & !(cont_ptes::<M>() - 1);
    start..start + cont_ptes::<M>()
}

/// `indices`, extended at either end to the whole block where that one is folded.
pub(crate) fn expand<M: Mmu>(guard: &PteGuard<'_, '_, M>, indices: Range<usize>) -> Range<usize> {
    let (mut start, mut end) = (indices.start, indices.end);
    if guard.get(start).is_folded() {
        start = block_of::<M>(start).start;
    }
    if guard.get(end - 1).is_folded() {
        end = block_of::<M>(end - 1).end;
    }
    start..end
}

/// After entry `index` was set to `pte`, the last of its block: folds the block if it qualifies.
#[inline]
pub(crate) fn try_fold<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, index: usize, pte: PteValue) {
    // Blocks are mostly filled upwards; so nothing but arithmetic for all pages but the last.
    let last = cont_ptes::<M>() - 1;
    let pfn = pte.pa().pfn(M::GRANULE).get() as usize;
    if index & last == last && pfn & last == last && pte.is_valid() && !pte.is_folded() && !pte.is_special() {
        fold(guard, index, Counter::Folds);
    }
}

/// Folds the block of entry `index` if it qualifies; whether it did.
fn fold<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, index: usize, counter: Counter) -> bool {
    let Some(frames) = mm_is_user(guard.mm()) else { return false };
    let block = block_of::<M>(index);
    // The entries map the frames as long as the guard is held, so these are in use.
    let holds = |first, last| frames.folio(first).map(|folio| folio.contains(last));
    if obstacle::<M>(guard.va(block.start), block.clone().map(|index| guard.get(index)), holds).is_some() {
        return false;
    }
    convert(guard, Conversion::Fold(index), |pte| pte);
    guard.mm().counters().add(counter, 1);
    true
}

/// Before a part of a block changes: unfolds the block of entry `index` if it is folded.
#[inline]
pub(crate) fn try_unfold<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, index: usize, cause: Counter) {
    if guard.get(index).is_folded() {
        unfold(guard, index..index, cause, |pte| pte);
    }
}

/// Unfolds the block that `part` is in, with `change` made to the entries of the part before they become valid again, if
/// they do: so they are flushed once, with the block. Returns the first of them as it was, with young and dirty of the
/// block; `None` where nothing was unfolded, for the mm is not a user's.
pub(crate) fn unfold<M: Mmu>(
    guard: &mut PteGuard<'_, '_, M>,
    part: Range<usize>,
    cause: Counter,
    change: impl Fn(PteValue) -> PteValue,
) -> Option<PteValue> {
    if mm_is_user(guard.mm()).is_some() {
        let offset = (part.start % cont_ptes::<M>()) as u64 * M::GRANULE.page_size();
        let first = convert(guard, Conversion::Unfold(part), change);
        guard.mm().counters().add(cause, 1);
        return Some(first.advanced(offset));
    }
    // A static Contiguous mapping is never taken apart; to change a part of it would leave entries that differ beside
    // those that a TLB may hold as one. On `efi_mm` the whole call is a bug, which was reported when it began.
    let va = guard.va(part.start);
    assert!(
        !matches!(guard.mm().kind(), Kind::Kernel),
        "{va}: a part of a live Contiguous group would change"
    );
    None
}

/// What [`unfold_partial_ends`] has done.
pub(crate) struct Ends {
    /// The first entry of a part at the lower end, as it was.
    pub(crate) first: Option<PteValue>,
    /// The entries that are still to be changed.
    pub(crate) rest: Range<usize>,
    /// The first entry of a part at the upper end, as it was.
    pub(crate) last: Option<PteValue>,
}

/// Unfolds the blocks at either end of `indices` that are not wholly inside, with `change` made to the entries that are,
/// unless it changes nothing in them.
#[inline(always)]
pub(crate) fn unfold_partial_ends<M: Mmu>(
    guard: &mut PteGuard<'_, '_, M>,
    indices: &Range<usize>,
    cause: Counter,
    change: impl Fn(PteValue) -> PteValue,
) -> Ends {
    if guard.get(indices.start).is_folded() || guard.get(indices.end - 1).is_folded() {
        unfold_folded_ends(guard, indices, cause, change)
    } else {
        Ends { first: None, rest: indices.clone(), last: None }
    }
}

#[inline(never)]
fn unfold_folded_ends<M: Mmu>(
    guard: &mut PteGuard<'_, '_, M>,
    indices: &Range<usize>,
    cause: Counter,
    change: impl Fn(PteValue) -> PteValue,
) -> Ends {
    let mut ends = Ends { first: None, rest: indices.clone(), last: None };
    let mut unfold_part = |part: Range<usize>| {
        let pte = guard.get(part.start);
        let partial = part.len() < cont_ptes::<M>();
        if partial && pte.is_folded() && change(pte) != pte {
            unfold(guard, part, cause, &change)
        } else {
            None
        }
    };
    let part = indices.start..block_of::<M>(indices.start).end.min(indices.end);
    let end = part.end;
    ends.first = unfold_part(part);
    if ends.first.is_some() {
        ends.rest.start = end;
    }
    let start = block_of::<M>(indices.end - 1).start;
    if start >= end {
        ends.last = unfold_part(start..indices.end);
        if ends.last.is_some() {
            ends.rest.end = start;
        }
    }
    ends
}

enum Conversion {
    /// Of the block that this entry is in.
    Fold(usize),
    /// Of the block that these entries are in, which change.
    Unfold(Range<usize>),
}

/// Gives all entries of a block the Contiguous bit, or takes it from them. Young and dirty of any become those of all.
/// Returns the first entry of the block as it was, with these, without the bit.
///
/// Two valid entries of a group must never differ in the bit (RQTRPM), not even for a moment, and neither may be
/// cached beside the other: hence invalid, flush, valid. Where FEAT_BBML3 or its like allows a change of size in place,
/// the flush is left out; the entries are invalid in between all the same. One for the changed part is owed then.
fn convert<M: Mmu>(
    guard: &mut PteGuard<'_, '_, M>,
    conversion: Conversion,
    change: impl Fn(PteValue) -> PteValue,
) -> PteValue {
    let (folds, part) = match conversion {
        Conversion::Fold(index) => (true, index..index),
        Conversion::Unfold(part) => (false, part),
    };
    let block = block_of::<M>(part.start);
    // Where nothing changes, all of the block is one run.
    let part = if part.is_empty() { block.start..block.start } else { part };
    let in_place = guard.mm().mmu().features().bbm_no_abort;
    if in_place {
        // That a size may change in place helps nothing that was cleared or write-protected before (RPVTFW).
        guard.before_valid(&block);
    }
    let mut all = Gathered::default();
    let first = guard.get(block.start).attributes();
    guard.table().clear_leaves(block.clone(), |pte| all.add(pte));
    let first = all.merged_into(first);
    if !in_place {
        guard.flush_with(block.clone());
    }
    let plain = if folds { first.mkcont() } else { first };
    let runs = [
        (block.start..part.start, plain),
        (part.clone(), if part.is_empty() { plain } else { change(first) }),
        (part.end..block.end, plain),
    ];
    for (run, pte) in runs {
        if !run.is_empty() && pte.is_valid() {
            let offset = (run.start - block.start) as u64 * M::GRANULE.page_size();
            guard.table().set_leaves(run.start, pte.advanced(offset), run.len());
        }
    }
    if in_place {
        // No flush has ordered the entries before the zeroes: a walker may still read an entry as it was, and would do so
        // after another CPU, with the lock, has flushed one of its pages.
        guard.mm().mmu().publish();
        if !part.is_empty() {
            guard.owe_flush(part);
        }
    }
    first
}

/// Sets entries that are all invalid to `pte` and the pages that follow it. The parts that are whole, aligned blocks of
/// one folio are folded at once: nothing was there, so no entry has to be read and nothing flushed.
pub(crate) fn set_many<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, indices: Range<usize>, pte: PteValue) {
    let (cont, page) = (cont_ptes::<M>(), M::GRANULE.page_size());
    let block_size = cont as u64 * page;
    let congruent = pte.pa().get() % block_size == guard.va(indices.start).get() % block_size;
    // The gate is asked only where there is a whole block.
    let whole = indices.start.next_multiple_of(cont) + cont <= indices.end;
    let candidate = whole && congruent && !pte.is_special();
    let folds = candidate && mm_is_user(guard.mm()).is_some();
    let (mut folded, mut index) = (0, indices.start);
    while index < indices.end {
        let first = pte.advanced((index - indices.start) as u64 * page);
        let left = indices.end - index;
        // To the end of all, or of a block; or the whole blocks that the folio of the first of them holds.
        let (nr, fits) = match index % cont {
            _ if !folds => (left, false),
            0 => {
                let in_folio =
                    left_of_folio(guard.mm(), first).map_or(0, |pages| pages.min(left) / cont * cont);
                if in_folio > 0 { (in_folio, true) } else { (cont.min(left), false) }
            }
            within => ((cont - within).min(left), false),
        };
        guard.table().set_leaves(index, if fits { first.mkcont() } else { first }, nr);
        folded += if fits { nr / cont } else { 0 };
        index += nr;
    }
    if folded != 0 {
        guard.mm().counters().add(Counter::FoldedAtOnce, folded as u64);
    }
}

/// The pages of the entry's folio from the entry's own on; `None` where the frame has none.
pub(crate) fn left_of_folio<M: Mmu>(mm: &Mm<'_, M>, pte: PteValue) -> Option<usize> {
    // Not by the gate: nothing is to be converted.
    let Kind::User { frames, .. } = *mm.kind() else { return None };
    let pfn = pte.pa().pfn(M::GRANULE);
    let folio = if pte.is_special() { None } else { frames.folio(pfn) }?;
    Some((folio.head().get() + folio.frames() - pfn.get()) as usize)
}

/// Why a block is not folded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Obstacle {
    /// The address space is not a user's.
    NotUser,
    /// There is no table for the address.
    NoTable,
    /// The entry at this address is not valid.
    Hole(VirtAddr),
    /// The frame at this address is not at the same place in its block as the address is.
    Misaligned(VirtAddr),
    /// The frame at this address has no folio.
    Special(VirtAddr),
    /// The folio at this address is smaller than the block, or does not hold all of it.
    SmallFolio(VirtAddr),
    /// The frame at this address does not follow the one before it.
    Discontiguous(VirtAddr),
    /// The entry at this address differs in permission or attributes from the first.
    MixedAttributes(VirtAddr),
    /// Nothing is in the way: a refold would fold it.
    None,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUser => f.write_str("the address space is not a user's"),
            Self::NoTable => f.write_str("there is no last-level table"),
            Self::Hole(va) => write!(f, "nothing is mapped at {va}"),
            Self::Misaligned(va) => write!(f, "address and frame are not congruent at {va}"),
            Self::Special(va) => write!(f, "the frame at {va} has no folio"),
            Self::SmallFolio(va) => write!(f, "the folio at {va} does not hold the whole block"),
            Self::Discontiguous(va) => write!(f, "the frame at {va} does not follow the one before it"),
            Self::MixedAttributes(va) => write!(f, "permissions or attributes differ at {va}"),
            Self::None => f.write_str("nothing is in the way"),
        }
    }
}

/// What keeps a block with these entries, which are read one after the other, from being folded. `folio_holds` tells
/// whether the folio of the first frame holds the other one too; `None` if it has none.
fn obstacle<M: Mmu>(
    first_va: VirtAddr,
    ptes: impl Iterator<Item = PteValue>,
    folio_holds: impl Fn(Pfn, Pfn) -> Option<bool>,
) -> Option<Obstacle> {
    let page = M::GRANULE.page_size();
    let mut expected = None;
    for (offset, pte) in (0..).step_by(page as usize).zip(ptes) {
        let va = VirtAddr::new(first_va.get() + offset);
        if !pte.is_valid() {
            return Some(Obstacle::Hole(va));
        }
        if pte.is_special() {
            return Some(Obstacle::Special(va));
        }
        let Some(expected) = expected else {
            if !pte.pa().is_aligned(cont_ptes::<M>() as u64 * page) {
                return Some(Obstacle::Misaligned(va));
            }
            // The frames follow one another, so the first one's folio holds all of them or not.
            let first = pte.pa().pfn(M::GRANULE);
            let last = first.add(cont_ptes::<M>() as u64 - 1);
            match folio_holds(first, last) {
                None => return Some(Obstacle::Special(va)),
                Some(false) => return Some(Obstacle::SmallFolio(va)),
                Some(true) => expected = Some(pte.attributes()),
            }
            continue;
        };
        let (pte, expected) = (pte.attributes(), PteValue::advanced(expected, offset));
        if pte.pa() != expected.pa() {
            return Some(Obstacle::Discontiguous(va));
        }
        if pte != expected {
            return Some(Obstacle::MixedAttributes(va));
        }
    }
    None
}

/// Folds every block that has some of the `nr` pages from `va` on, qualifies, and is not folded: those that were
/// unfolded, and those that were filled in an order in which nothing noticed. Returns how many.
///
/// *Lock:* the guard's. *Maintenance:* each conversion issues the flush of its block and completes it; none where
/// [`bbm_no_abort`](arch::mmu::Features::bbm_no_abort).
///
/// # Panics
/// Where the table does not translate all of the pages, or there are none.
///
/// # Examples
/// ```
/// # mod machine { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/machine.rs")); }
/// # let machine::World { mm, frames, plain: tables, .. } = machine::World::<machine::K4>::default();
/// use arch::{PteValue, VirtAddr};
/// use pleat_mm::contpte::refold;
/// use pleat_mm::pte::{Pte, UserProt};
/// use pleat_mm::ptep::{modify_prot_commit, modify_prot_start, ptep_get, set_ptes};
///
/// let (va, folio) = (VirtAddr::new(0x40_0000), frames.alloc(4)?);
/// let mut guard = mm.lock_table(va, tables)?;
/// set_ptes(&mut guard, va, PteValue::new_user(folio.head().addr(mm.granule()), UserProt::ReadWrite), 16);
///
/// // One page has another permission for a while; so the block is unfolded, and stays so.
/// for prot in [UserProt::Read, UserProt::ReadWrite] {
///     let pte = modify_prot_start(&mut guard, va, 1);
///     modify_prot_commit(&mut guard, va, pte.with_prot(prot), 1);
/// }
/// assert!(!ptep_get(&guard, va).is_folded());
///
/// assert_eq!(refold(&mut guard, va, 16), 1);
/// assert!(ptep_get(&guard, va).is_folded());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn refold<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, va: VirtAddr, nr: usize) -> usize {
    guard.mutates("refold");
    let indices = guard.indices(va, nr);
    let mut folded = 0;
    let mut index = block_of::<M>(indices.start).start;
    while index < indices.end {
        let pte = guard.get(index);
        if pte.is_valid() && !pte.is_folded() && fold(guard, index, Counter::Refolds) {
            folded += 1;
        }
        index += cont_ptes::<M>();
    }
    folded
}

/// Why the block at `va` is not folded, or `Ok` where it is. Takes no lock; entries that change meanwhile may give
/// the reason of before or after, or seem to be a hole. *Maintenance:* none.
///
/// # Errors
/// The first [`Obstacle`] that is met; [`Obstacle::None`] where a [`refold`] would fold it.
///
/// # Examples
/// ```
/// # mod machine { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/machine.rs")); }
/// # let machine::World { mm, frames, plain: tables, .. } = machine::World::<machine::K4>::default();
/// use arch::{PteValue, VirtAddr};
/// use pleat_mm::contpte::{Obstacle, why_not_folded};
/// use pleat_mm::pte::{Pte, UserProt};
/// use pleat_mm::ptep::{ptep_clear, set_ptes};
///
/// let (va, folio) = (VirtAddr::new(0x40_0000), frames.alloc(4)?);
/// assert_eq!(why_not_folded(mm, va), Err(Obstacle::NoTable));
///
/// let mut guard = mm.lock_table(va, tables)?;
/// set_ptes(&mut guard, va, PteValue::new_user(folio.head().addr(mm.granule()), UserProt::ReadWrite), 16);
/// assert_eq!(why_not_folded(mm, va), Ok(()));
///
/// let hole = VirtAddr::new(0x40_5000);
/// ptep_clear(&mut guard, hole);
/// assert_eq!(why_not_folded(mm, va), Err(Obstacle::Hole(hole)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn why_not_folded<M: Mmu>(mm: &Mm<'_, M>, va: VirtAddr) -> Result<(), Obstacle> {
    // Not by the gate: nothing is to be converted, so nothing is refused.
    let Kind::User { frames, .. } = *mm.kind() else { return Err(Obstacle::NotUser) };
    let table = mm.last_level_table(va).ok_or(Obstacle::NoTable)?;
    let index = M::GRANULE.index(va.get(), LAST_LEVEL);
    if table.leaf(index).is_folded() {
        return Ok(());
    }
    let block = block_of::<M>(index);
    let back = (index - block.start) as u64 * M::GRANULE.page_size();
    let first_va = VirtAddr::new((va.get() & !(M::GRANULE.page_size() - 1)) - back);
    let ptes = block.map(|index| table.leaf(index));
    // Without the lock, the frame may have been freed since its entry was read; a reference can be had only if not.
    let holds = |first, last| frames.get(first).map(|folio| folio.contains(last));
    Err(obstacle::<M>(first_va, ptes, holds).unwrap_or(Obstacle::None))
}
