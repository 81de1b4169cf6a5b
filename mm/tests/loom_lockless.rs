//! `ptep_get_lockless` against whoever changes the block meanwhile, in every order that the memory model allows: loom,
//! with blocks of 4 entries. Only with `--cfg loom`:
//! `RUSTFLAGS='--cfg loom' cargo test --release -p pleat-mm --test loom_lockless`
#![cfg(loom)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arch::mmu::{Features, Hafdbs, Slot};
use arch::tlbi::Tlbi;
use arch::{Granule, Mmu, Pfn, PhysAddr, PteFlags, PteValue, Table, TableFrame, VirtAddr};
use pleat_mm::frame::{Folio, Frame, FrameMap, Zone};
use pleat_mm::pte::{Pte, UserProt};
use pleat_mm::ptep::{self, Busy, LocklessGuard};
use pleat_mm::{Mm, TableAlloc, contpte};

const BLOCK: usize = 4;
const VA: u64 = 0x40_0000_0000;

/// How often in one execution a thread may be left while it could go on: each fault here needs one or two.
const PREEMPTIONS: usize = 3;

/// One table of each level, made anew for each execution.
struct Tables {
    slots: [Vec<Slot>; 4],
    hafdbs: Hafdbs,
}

/// Issues no barrier, which is less than hardware does: what is right without any is right with them.
#[derive(Clone)]
struct Machine(Arc<Tables>);

impl Machine {
    fn new(hafdbs: Hafdbs) -> Self {
        let slots = [(); 4].map(|()| (0..512).map(|_| Slot::new()).collect());
        Self(Arc::new(Tables { slots, hafdbs }))
    }
}

impl TableAlloc for Machine {
    fn alloc_table(&self, level: u8) -> Option<TableFrame> {
        // SAFETY: each level's table is made once, by the thread that maps the block; `slots` finds it.
        Some(unsafe { TableFrame::new(PhysAddr::new(u64::from(level) << 12), level) })
    }
}

// SAFETY: each frame has slots of its own, which live as long as the machine.
unsafe impl Mmu for Machine {
    const GRANULE: Granule = Granule::K4;

    fn slots(&self, frame: TableFrame) -> &[Slot] {
        &self.0.slots[(frame.pa().get() >> 12) as usize]
    }

    fn features(&self) -> Features {
        Features { tlb_range: false, hafdbs: self.0.hafdbs, bbm_no_abort: false }
    }

    fn publish(&self) {}

    fn invalidate(&self, _: Tlbi) {}

    fn complete(&self) {}

    fn invalidate_local(&self, _: Tlbi) {}
}

fn va(page: usize) -> VirtAddr {
    VirtAddr::new(VA + page as u64 * 0x1000)
}

/// Two folios, each a block. They outlive every execution: nothing about them is explored.
fn folios() -> (&'static FrameMap<'static>, &'static [Folio<'static>; 2]) {
    let records: &'static [Frame] = (0..2 * BLOCK).map(|_| Frame::new()).collect::<Vec<_>>().leak();
    let zones: &'static [Zone<'static>] = vec![Zone::new(Pfn::new(0x1000), records)].leak();
    let frames: &'static FrameMap<'static> = Box::leak(Box::new(FrameMap::new(zones, None)));
    frames.release(zones[0].range());
    let order = BLOCK.ilog2() as u8;
    (frames, Box::leak(Box::new([(); 2].map(|()| frames.alloc(order).unwrap()))))
}

type Shared = Arc<Mm<'static, Machine>>;

fn pte(folio: &Folio<'_>, page: usize) -> PteValue {
    PteValue::new_user(folio.head().add(page as u64).addr(Granule::K4), UserProt::ReadWrite)
}

fn table<'a>(mm: &'a Mm<'static, Machine>) -> Table<'a, Machine> {
    let frame = mm.mmu().alloc_table(3).unwrap();
    Table::new(mm.mmu(), frame)
}

/// Hardware writes through an entry, if it may.
fn hardware_writes(mm: &Mm<'static, Machine>, page: usize) -> bool {
    let table = table(mm);
    loop {
        let old = table.leaf(page);
        if !old.is_valid() || !old.flags().contains(PteFlags::DBM | PteFlags::RDONLY) {
            return false;
        }
        let new = old.mkyoung().without(PteFlags::RDONLY);
        // SAFETY: of a leaf, only access flag and dirty state change.
        if unsafe { mm.mmu().slots(table.frame())[page].compare_exchange(old.raw(), new.raw()) }.is_ok() {
            return true;
        }
    }
}

type Reader = fn(&Mm<'static, Machine>, VirtAddr) -> Result<PteValue, Busy>;

fn lockless(mm: &Mm<'static, Machine>, va: VirtAddr) -> Result<PteValue, Busy> {
    ptep::ptep_get_lockless(mm, va, &LocklessGuard::interrupts_masked())
}

/// The fault that must be found: the siblings' flags are gathered, whatever the siblings are.
fn lockless_unchecked(mm: &Mm<'static, Machine>, va: VirtAddr) -> Result<PteValue, Busy> {
    let table = table(mm);
    let mut pte = table.leaf(Granule::K4.index(va.get(), 3));
    if pte.is_folded() {
        for sibling in (0..BLOCK).map(|index| table.leaf(index)) {
            pte = if sibling.is_young() { pte.mkyoung() } else { pte };
            pte = if sibling.is_dirty() { pte.mkdirty() } else { pte };
        }
    }
    Ok(pte)
}

/// How often the reader was given a page, none, and nothing to rely on.
#[derive(Default)]
struct Seen {
    pages: AtomicUsize,
    holes: AtomicUsize,
    busy: AtomicUsize,
}

/// In each execution: `before` prepares, then the reader reads page 0, `change` and a write by hardware to page
/// `written`, if there is one, happen in any order, and each result must satisfy `right`.
fn explore(
    hafdbs: Hafdbs,
    reader: Reader,
    before: fn(&Shared, &'static [Folio<'static>; 2]),
    change: fn(&Shared, &'static [Folio<'static>; 2]),
    written: Option<usize>,
    right: fn(PteValue, &'static [Folio<'static>; 2]) -> bool,
) {
    let (frames, folios) = folios();
    let (seen, executions) = (Arc::new(Seen::default()), Arc::new(AtomicUsize::new(0)));
    let (seen_inside, executions_inside) = (seen.clone(), executions.clone());
    let mut model = loom::model::Builder::new();
    // LOOM_MAX_PREEMPTIONS has precedence.
    model.preemption_bound = model.preemption_bound.or(Some(PREEMPTIONS));
    model.check(move || {
        executions_inside.fetch_add(1, Ordering::Relaxed);
        let machine = Machine::new(hafdbs);
        let root = machine.alloc_table(0).unwrap();
        let mm: Shared = Arc::new(Mm::new_user(machine, root, frames));
        before(&mm, folios);
        let agent = written.map(|page| {
            let mm = mm.clone();
            loom::thread::spawn(move || hardware_writes(&mm, page))
        });
        let (mm_read, seen) = (mm.clone(), seen_inside.clone());
        let reading = loom::thread::spawn(move || {
            let result = reader(&mm_read, va(0));
            match result {
                Ok(pte) if pte.is_valid() => {
                    seen.pages.fetch_add(1, Ordering::Relaxed);
                    assert!(right(pte, folios), "read without the lock: {pte:?}");
                }
                Ok(_) => {
                    seen.holes.fetch_add(1, Ordering::Relaxed);
                }
                Err(Busy) => {
                    seen.busy.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        change(&mm, folios);
        reading.join().unwrap();
        if let Some(agent) = agent {
            let did = agent.join().unwrap();
            // What hardware has set is never lost.
            let guard = mm.lock_present_table(va(0)).unwrap();
            let page = written.expect("there is an agent");
            assert!(!did || ptep::ptep_get(&guard, va(page)).is_dirty(), "a write to page {page} is lost");
        }
    });
    let [pages, holes, busy] = [&seen.pages, &seen.holes, &seen.busy].map(|n| n.load(Ordering::Relaxed));
    println!("{} executions: {pages} pages, {holes} holes, {busy} busy", executions.load(Ordering::Relaxed));
    assert!(pages > 0, "nothing was judged");
}

/// A folded block that is dirty by its last entry only.
fn folded_and_dirty(mm: &Shared, folios: &'static [Folio<'static>; 2]) {
    let mut guard = mm.lock_table(va(0), mm.mmu()).unwrap();
    ptep::set_ptes(&mut guard, va(0), pte(&folios[0], 0), BLOCK);
    drop(guard);
    assert!(hardware_writes(mm, BLOCK - 1));
    assert_eq!(contpte::why_not_folded(mm, va(0)), Ok(()));
}

fn unfold(mm: &Shared, _: &'static [Folio<'static>; 2]) {
    ptep::wrprotect_ptes(&mut mm.lock_present_table(va(0)).unwrap(), va(1), 1);
}

/// Page 0 of the first folio, dirty.
fn first_and_dirty(pte: PteValue, folios: &'static [Folio<'static>; 2]) -> bool {
    pte.pa() == folios[0].head().addr(Granule::K4) && pte.is_dirty() && pte.is_writable()
}

#[test]
fn an_unfold_never_hides_what_is_dirty() {
    explore(Hafdbs::AfDbm, lockless, folded_and_dirty, unfold, None, first_and_dirty);
}

#[test]
#[should_panic(expected = "read without the lock")]
fn an_unfold_hides_what_is_dirty_from_a_reader_that_does_not_check() {
    explore(Hafdbs::AfDbm, lockless_unchecked, folded_and_dirty, unfold, None, first_and_dirty);
}

#[test]
fn an_unfold_and_a_write_by_hardware() {
    explore(Hafdbs::AfDbm, lockless, folded_and_dirty, unfold, Some(2), first_and_dirty);
}

/// All pages but the first one become clean, one of them by being set anew.
fn unfold_and_clean(mm: &Shared, folios: &'static [Folio<'static>; 2]) {
    let mut guard = mm.lock_present_table(va(0)).unwrap();
    ptep::set_ptes(&mut guard, va(1), pte(&folios[0], 1), 1);
    ptep::clear_young_dirty_ptes(&mut guard, va(2), BLOCK - 2, ptep::YoungDirty::Dirty);
}

#[test]
fn a_page_is_not_clean_because_its_former_block_became_clean() {
    explore(Hafdbs::None, lockless, folded_and_dirty, unfold_and_clean, None, first_and_dirty);
}

/// All but the last page, of which only the first is dirty.
fn not_folded_yet(mm: &Shared, folios: &'static [Folio<'static>; 2]) {
    let mut guard = mm.lock_table(va(0), mm.mmu()).unwrap();
    for page in 0..BLOCK - 1 {
        ptep::set_ptes(&mut guard, va(page), pte(&folios[0], page), 1);
    }
    drop(guard);
    assert!(hardware_writes(mm, 0));
}

fn fold(mm: &Shared, folios: &'static [Folio<'static>; 2]) {
    let last = BLOCK - 1;
    let mut guard = mm.lock_present_table(va(0)).unwrap();
    ptep::set_ptes(&mut guard, va(last), pte(&folios[0], last), 1);
    drop(guard);
    assert_eq!(contpte::why_not_folded(mm, va(0)), Ok(()));
}

#[test]
fn a_fold_never_hides_what_is_dirty() {
    explore(Hafdbs::None, lockless, not_folded_yet, fold, None, first_and_dirty);
}

#[test]
fn a_fold_and_a_write_by_hardware() {
    explore(Hafdbs::AfDbm, lockless, not_folded_yet, fold, Some(1), first_and_dirty);
}

/// A folded block of a folio that is clean.
fn folded_and_clean(mm: &Shared, folios: &'static [Folio<'static>; 2]) {
    let mut guard = mm.lock_table(va(0), mm.mmu()).unwrap();
    ptep::set_ptes(&mut guard, va(0), pte(&folios[0], 0), BLOCK);
}

/// Another folio in its place, which is dirty.
fn replace(mm: &Shared, folios: &'static [Folio<'static>; 2]) {
    let mut guard = mm.lock_present_table(va(0)).unwrap();
    ptep::clear_ptes(&mut guard, va(0), BLOCK);
    ptep::set_ptes(&mut guard, va(0), pte(&folios[1], 0).mkdirty(), BLOCK);
}

fn first_clean_or_second_dirty(pte: PteValue, folios: &'static [Folio<'static>; 2]) -> bool {
    let expected = if pte.is_dirty() { 1 } else { 0 };
    pte.pa() == folios[expected].head().addr(Granule::K4) && pte.is_folded()
}

#[test]
fn a_page_never_has_the_flags_of_what_takes_its_place() {
    explore(Hafdbs::AfDbm, lockless, folded_and_clean, replace, None, first_clean_or_second_dirty);
}

#[test]
#[should_panic(expected = "read without the lock")]
fn a_page_has_the_flags_of_what_takes_its_place_for_a_reader_that_does_not_check() {
    explore(Hafdbs::AfDbm, lockless_unchecked, folded_and_clean, replace, None, first_clean_or_second_dirty);
}
