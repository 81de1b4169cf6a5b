//! What happens where a public function that changes entries is called on `efi_mm`, which nobody may: it is reported, and
//! nothing is folded or unfolded. Reached by fault injection alone.
#![cfg(feature = "fault-injection")]

mod common;

use std::sync::Mutex;

use arch::granule::LAST_LEVEL;
use arch::{Entry, MemoryType, Mmu, PhysAddr, PteFlags, PteValue, Table, TableFrame, VirtAddr};
use common::{AF_DBM, CORTEX_A72, GranuleType, K4, K16, K64, Plain, World};
use pleat_mm::asid::EFI_ASID;
use pleat_mm::contpte::{Obstacle, refold, why_not_folded};
use pleat_mm::counters::{COUNTERS, Counter};
use pleat_mm::pte::Pte;
use pleat_mm::ptep::*;
use pleat_mm::{EfiMm, EfiProt, PteGuard, TableAlloc};

/// The warnings, with the thread that was warned.
struct Log(Mutex<Vec<(std::thread::ThreadId, String)>>);

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        assert_eq!(record.level(), log::Level::Warn);
        self.0.lock().unwrap().push((std::thread::current().id(), record.args().to_string()));
    }

    fn flush(&self) {}
}

static LOG: Log = Log(Mutex::new(Vec::new()));

/// The warnings of this thread since it last asked.
fn warnings() -> Vec<String> {
    let mine = |(thread, _): &mut (std::thread::ThreadId, String)| *thread == std::thread::current().id();
    LOG.0.lock().unwrap().extract_if(.., mine).map(|(_, warning)| warning).collect()
}

/// `efi_mm` with two blocks, as its private API would make them: one of static Contiguous entries, which the alignment of
/// a device allows, and one of pages that could be folded, were they a user's.
fn firmware<G: GranuleType>(features: arch::mmu::Features) -> World<G> {
    let w = World::<G>::efi(features);
    log::set_max_level(log::LevelFilter::Warn);
    // Another test may have been first.
    let _ = log::set_logger(&LOG);
    drop(w.lock());
    let table = last_level_table(w.mm.mmu(), w.mm.root(), w.base);
    let folio = w.folio(2 * w.block());
    let flags = PteFlags::AF | PteFlags::NG | PteFlags::PXN | PteFlags::UXN | PteFlags::DBM;
    let pte = PteValue::leaf(folio.head().addr(G::GRANULE), MemoryType::Normal, flags | PteFlags::RDONLY);
    table.set_leaves(0, pte.with(PteFlags::CONT), w.block());
    table.set_leaves(w.block(), pte.advance(w.block() as u64 * G::GRANULE.page_size()), w.block());
    w.maintenance();
    warnings();
    w
}

fn last_level_table<M: Mmu>(mmu: &M, root: PhysAddr, va: u64) -> Table<'_, M> {
    // SAFETY: the root that the mm was made with.
    let root = unsafe { TableFrame::new(root, M::GRANULE.start_level(48)) };
    let mut table = Table::new(mmu, root);
    while table.level() != LAST_LEVEL {
        let Entry::Table(child) = table.entry(M::GRANULE.index(va, table.level())) else {
            panic!("no table")
        };
        table = Table::new(mmu, child);
    }
    table
}

type Guard<G> = PteGuard<'static, 'static, &'static Plain<G>>;

/// Calls each function that changes entries, for one page.
fn mutate<G: GranuleType>(guard: &mut Guard<G>, va: VirtAddr, which: usize) -> Option<&'static str> {
    let pte = ptep_get(guard, va);
    let name = match which {
        0 => {
            clear_ptes(guard, va, 1);
            "clear_ptes"
        }
        1 => {
            get_and_clear_ptes(guard, va, 1);
            "get_and_clear_ptes"
        }
        2 => {
            ptep_clear(guard, va);
            "ptep_clear"
        }
        3 => {
            ptep_get_and_clear(guard, va);
            "ptep_get_and_clear"
        }
        4 => {
            wrprotect_ptes(guard, va, 1);
            "wrprotect_ptes"
        }
        5 => {
            ptep_test_and_clear_young(guard, va);
            "ptep_test_and_clear_young"
        }
        6 => {
            ptep_clear_flush_young(guard, va);
            "ptep_clear_flush_young"
        }
        7 => {
            clear_young_dirty_ptes(guard, va, 1, YoungDirty::Both);
            "clear_young_dirty_ptes"
        }
        8 => {
            ptep_set_access_flags(guard, va, pte.mkwrite().mkdirty());
            "ptep_set_access_flags"
        }
        9 => {
            let _ = modify_prot_start(guard, va, 1);
            "modify_prot_start"
        }
        10 => {
            assert_eq!(refold(guard, va, 1), 0);
            "refold"
        }
        // Only of a page: a part of a static group can't become something else.
        11 if !pte.is_folded() => {
            set_ptes(guard, va, pte, 1);
            "set_ptes"
        }
        12 if !pte.is_folded() => {
            modify_prot_commit(guard, va, pte, 1);
            "modify_prot_commit"
        }
        13 if !pte.is_folded() => {
            let table = guard.span().0.get();
            set_pte(guard, ((va.get() - table) / G::GRANULE.page_size()) as usize, pte).unwrap();
            "set_pte"
        }
        _ => return None,
    };
    Some(name)
}

fn check_mutators<G: GranuleType>(features: arch::mmu::Features) {
    let n = World::<G>::efi(features).block();
    // In the static group; in the other block, and its last page, where a user's is folded.
    for page in [3, n + 3, 2 * n - 1] {
        for which in 0.. {
            let w = firmware::<G>(features);
            let mut guard = w.lock();
            let Some(name) = mutate(&mut guard, w.va(page), which) else { break };
            drop(guard);
            let warnings = warnings();
            assert_eq!(warnings.len(), 1, "{name} of page {page}: {warnings:?}");
            assert!(warnings[0].contains("was called on efi_mm"), "{name}: {}", warnings[0]);
            for &counter in COUNTERS {
                let count = w.mm.counters().get(counter);
                match counter {
                    Counter::MutatorOnEfi => assert_eq!(count, 1, "{name} of page {page}"),
                    Counter::TlbInvalidations | Counter::RefusedByGate => {}
                    _ => assert_eq!(count, 0, "{name} of page {page}: {counter:?}"),
                }
            }
            for other in (0..2 * n).filter(|&other| w.raw(other).is_valid()) {
                assert_eq!(w.raw(other).is_folded(), other < n, "{name} of page {page}: {other}");
            }
        }
    }
}

#[test]
fn a_mutator_is_reported_and_neither_folds_nor_unfolds() {
    for features in [CORTEX_A72, AF_DBM] {
        check_mutators::<K4>(features);
        check_mutators::<K16>(features);
        check_mutators::<K64>(features);
    }
}

#[test]
fn what_would_mix_a_static_group_is_reported_and_refused() {
    let w = firmware::<K4>(CORTEX_A72);
    let before = w.raw(3);
    assert_eq!(set_pte(&mut w.lock(), 3, before), Err(Folded { index: 3 }));
    let warned = warnings();
    assert!(warned[0].contains("set_pte was called on efi_mm"), "{warned:?}");
    assert!(warned[1].contains("set_pte on the folded block at 0x4000003000"), "{warned:?}");
    let set = || set_ptes(&mut w.lock(), w.va(3), before, 1);
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(set)).unwrap_err();
    assert!(panic.downcast_ref::<String>().unwrap().contains("0x4000003000: the live entry"));
    assert_eq!(w.raw(3), before);
    assert_eq!(w.mm.counters().get(Counter::MutatorOnEfi), 2);
}

#[test]
fn many_pages_are_not_folded_and_the_entries_are_published() {
    let w = firmware::<K4>(AF_DBM);
    let folio = w.folio(16);
    let flags = PteFlags::AF | PteFlags::NG | PteFlags::PXN | PteFlags::UXN;
    let pte = PteValue::leaf(folio.head().addr(w.mm.granule()), MemoryType::Normal, flags);
    set_ptes(&mut w.lock(), w.va(32), pte, 16);
    assert!(!w.folded(32..48));
    assert_eq!(w.maintenance(), "publish");
    let counters = w.mm.counters();
    assert_eq!((counters.get(Counter::MutatorOnEfi), counters.get(Counter::RefusedByGate)), (1, 1));
}

/// Hardware that sees DBM makes a page writable again, whatever `RDONLY` says.
#[test]
fn a_page_that_becomes_read_only_loses_dbm() {
    let mmu: &'static Plain<K4> = Box::leak(Box::new(Plain::new(AF_DBM.hafdbs, true, false)));
    let efi_mm = EfiMm::new(mmu, mmu.alloc_table(0).unwrap(), EFI_ASID);
    let va = VirtAddr::new(0x40_0000_0000);
    drop(efi_mm.unprotected().lock_table(va, mmu).unwrap());
    let dbm = PteFlags::AF | PteFlags::NG | PteFlags::UXN | PteFlags::DBM;
    let pte = PteValue::leaf(PhysAddr::new(0x1_0000), MemoryType::Normal, dbm);
    let table = last_level_table(efi_mm.unprotected().mmu(), efi_mm.root(), va.get());
    for (old, prot, new) in [
        (pte, EfiProt::ReadExecute, pte.with(PteFlags::RDONLY).without(PteFlags::DBM)),
        (pte.with(PteFlags::RDONLY), EfiProt::ReadExecute, pte.with(PteFlags::RDONLY).without(PteFlags::DBM)),
        (pte, EfiProt::ReadOnly, pte.with(PteFlags::RDONLY | PteFlags::PXN).without(PteFlags::DBM)),
        (pte, EfiProt::ReadWrite, pte.with(PteFlags::PXN)),
        (pte.with(PteFlags::RDONLY), EfiProt::ReadWriteExecute, pte.with(PteFlags::RDONLY)),
    ] {
        table.set_leaf(0, old);
        efi_mm.set_mapping_permissions(va, 0x1000, prot).unwrap();
        assert_eq!(table.leaf(0), new, "{prot:?} of {old:?}");
    }
}

#[test]
fn reading_is_nothing_to_report() {
    let w = firmware::<K4>(CORTEX_A72);
    let guard = w.lock();
    for (page, hint) in [(3, 13), (19, 1)] {
        let lockless = ptep_get_lockless(w.mm, w.va(page), &LocklessGuard::interrupts_masked());
        assert_eq!(lockless, Ok(w.raw(page)));
        assert_eq!(ptep_get(&guard, w.va(page)), w.raw(page));
        assert_eq!(pte_batch_hint(&guard, w.va(page)), hint);
        assert_eq!(why_not_folded(w.mm, w.va(page)), Err(Obstacle::NotUser));
    }
    drop(guard);
    assert_eq!(warnings(), [""; 0]);
    assert!(COUNTERS.iter().all(|&counter| w.mm.counters().get(counter) == 0), "{:?}", w.mm.counters());
}

/// The same of a user's, for comparison: nothing of this is reported there.
#[test]
fn a_users_mutators_are_not_reported() {
    let w = World::<K4>::user(CORTEX_A72);
    w.map(0, 32, pleat_mm::pte::UserProt::ReadWrite);
    ptep_clear(&mut w.lock(), w.va(3));
    assert_eq!(w.mm.counters().get(Counter::MutatorOnEfi), 0);
}
