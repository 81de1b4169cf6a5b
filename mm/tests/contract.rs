//! Promises of the public functions that no other test asks about: how far they reach, and what they say.

mod common;

use arch::{PteValue, VirtAddr};
use common::tlb::Event;
use common::{AF, AF_DBM, CORTEX_A72, K4, K16, K64, Plain, World};
use pleat_mm::contpte::{Obstacle, cont_ptes, refold, why_not_folded};
use pleat_mm::pte::{Pte, UserProt};
use pleat_mm::ptep::*;

/// Pages of two blocks, one folio, filled downwards, which folds nothing.
fn not_folded(w: &World<K4>) {
    let folio = w.folio(32);
    for page in (0..32).rev() {
        set_ptes(&mut w.lock(), w.va(page), w.pte(&folio, page, UserProt::ReadWrite), 1);
    }
}

/// It folds the blocks that have some of the pages, and no other.
#[test]
fn a_refold_reaches_no_further_than_its_pages() {
    for (page, nr, expected) in
        [(0, 16, [true, false]), (16, 1, [false, true]), (31, 1, [false, true]), (15, 2, [true, true])]
    {
        let w = World::<K4>::user(AF_DBM);
        not_folded(&w);
        let folded = refold(&mut w.lock(), w.va(page), nr);
        assert_eq!(folded, expected.iter().filter(|&&folded| folded).count(), "{page}+{nr}");
        assert_eq!([w.folded(0..16), w.folded(16..32)], expected, "{page}+{nr}");
        w.check();
    }
}

/// The last block of a table has none after it.
#[test]
fn a_refold_of_the_last_block() {
    let w = World::<K4>::user(CORTEX_A72);
    let folio = w.folio(16);
    for page in (0..16).rev() {
        set_ptes(&mut w.lock(), w.va(496 + page), w.pte(&folio, page, UserProt::Read), 1);
    }
    assert_eq!(refold(&mut w.lock(), w.va(496), 16), 1);
    assert_eq!(why_not_folded(w.mm, w.va(511)), Ok(()));
}

#[test]
fn a_block_has_the_pages_of_its_granule() {
    let pages = [cont_ptes::<&Plain<K4>>(), cont_ptes::<&Plain<K16>>(), cont_ptes::<&Plain<K64>>()];
    assert_eq!(pages, [16, 128, 32]);
}

#[test]
fn what_is_told_names_the_place() {
    let va = VirtAddr::new(0x40_5000);
    for (obstacle, message) in [
        (Obstacle::NotUser, "the address space is not a user's"),
        (Obstacle::NoTable, "there is no last-level table"),
        (Obstacle::Hole(va), "nothing is mapped at 0x405000"),
        (Obstacle::Misaligned(va), "address and frame are not congruent at 0x405000"),
        (Obstacle::Special(va), "the frame at 0x405000 has no folio"),
        (Obstacle::SmallFolio(va), "the folio at 0x405000 does not hold the whole block"),
        (Obstacle::Discontiguous(va), "the frame at 0x405000 does not follow the one before it"),
        (Obstacle::MixedAttributes(va), "permissions or attributes differ at 0x405000"),
        (Obstacle::None, "nothing is in the way"),
    ] {
        assert_eq!(obstacle.to_string(), message);
    }
    assert_eq!(Folded { index: 7 }.to_string(), "entry 7 belongs to a folded block");
    assert_eq!(Busy.to_string(), "the block kept changing while it was read without its lock");
}

/// Nothing after the last entry of a table is looked at.
#[test]
fn the_last_block_of_a_table_is_the_last() {
    for features in [CORTEX_A72, AF_DBM] {
        let w = World::<K4>::user(features);
        w.map(496, 16, UserProt::ReadWrite);
        w.write(511);
        let mut guard = w.lock();
        assert_eq!(pte_batch_hint(&guard, w.va(500)), 12);
        assert!(ptep_test_and_clear_young(&mut guard, w.va(511)));
        clear_young_dirty_ptes(&mut guard, w.va(510), 2, YoungDirty::Dirty);
        assert!(!ptep_get(&guard, w.va(496)).is_dirty());
        wrprotect_ptes(&mut guard, w.va(511), 1);
        assert!(!w.folded(496..512));
        clear_ptes(&mut guard, w.va(500), 12);
        drop(guard);
        w.check();
    }
}

/// An entry without the access flag is in no TLB; so young alone needs no flush, whatever its siblings are.
#[test]
fn an_access_fault_beside_a_young_sibling_flushes_nothing() {
    let w = World::<K4>::user(AF_DBM);
    w.map(0, 16, UserProt::ReadWrite);
    let mut guard = w.lock();
    assert!(ptep_test_and_clear_young(&mut guard, w.va(0)));
    w.plain.hardware_sets(3, |raw| raw | AF);
    let request = ptep_get(&guard, w.va(7)).mkyoung();
    assert!(ptep_set_access_flags(&mut guard, w.va(7), request));
    drop(guard);
    assert_eq!(w.maintenance(), "");
    assert!(w.folded(0..16) && (0..16).all(|page| w.raw(page).is_young()));
    w.check();
}

/// One store for each entry: what a clear costs.
#[test]
fn a_clear_stores_once() {
    let w = World::<K4>::user(AF_DBM);
    w.map(0, 32, UserProt::ReadWrite);
    clear_ptes(&mut w.lock(), w.va(0), 32);
    let stores: Vec<usize> = w.plain.tlb().events.iter().filter_map(stored).collect();
    assert_eq!(stores, (0..32).collect::<Vec<_>>());
}

fn stored(event: &Event) -> Option<usize> {
    if let Event::Store { index, .. } = *event { Some(index) } else { None }
}

/// A run of frames that begins inside an aligned block is never folded, however far from its begin.
#[test]
fn a_misaligned_run_of_one_folio_is_not_folded() {
    for from in [1, 2, 4, 8] {
        let w = World::<K4>::user(AF_DBM);
        let folio = w.folio(32);
        for page in (0..16).rev() {
            set_ptes(&mut w.lock(), w.va(page), w.pte(&folio, from + page, UserProt::ReadWrite), 1);
        }
        assert_eq!(why_not_folded(w.mm, w.va(5)), Err(Obstacle::Misaligned(w.va(0))), "from {from}");
        assert_eq!(refold(&mut w.lock(), w.va(0), 16), 0, "from {from}");
        assert!(!w.folded(0..16));
    }
}

/// Nothing is left in an entry that was cleared, neither of its block nor of its place: what is not valid is for its owner.
#[test]
fn a_cleared_entry_is_empty() {
    for features in [CORTEX_A72, AF_DBM] {
        let w = World::<K4>::user(features);
        for (start, nr) in [(3, 1), (3, 5), (0, 5), (11, 5), (8, 16), (0, 32)] {
            w.map(0, 32, UserProt::ReadWrite);
            clear_ptes(&mut w.lock(), w.va(start), nr);
            for page in 0..32 {
                let cleared = (start..start + nr).contains(&page);
                assert_eq!(w.raw(page) == PteValue::NONE, cleared, "page {page} after {nr} from {start}");
            }
            clear_ptes(&mut w.lock(), w.va(0), 32);
        }
    }
}

/// A batch ends where its folio does, though the frames and the attributes go on; before what is not mapped; and where the
/// permission to write changes.
#[test]
fn a_batch_is_of_one_folio() {
    let w = World::<K4>::user(CORTEX_A72);
    let (one, next) = (w.folio(16), w.folio(16));
    assert_eq!(next.head(), one.head().add(16), "side by side");
    let mut guard = w.lock();
    set_ptes(&mut guard, w.va(0), w.pte(&one, 0, UserProt::ReadWrite), 16);
    set_ptes(&mut guard, w.va(16), w.pte(&next, 0, UserProt::ReadWrite), 16);
    let batch = |guard: &_, page: usize| pte_batch(guard, w.va(page), 512 - page);
    assert_eq!([0, 3, 15, 16].map(|page| batch(&guard, page)), [16, 13, 1, 16]);
    assert_eq!(pte_batch(&guard, w.va(3), 5), 5);
    ptep_clear(&mut guard, w.va(9));
    assert_eq!([3, 9, 10].map(|page| batch(&guard, page)), [6, 1, 6]);
    wrprotect_ptes(&mut guard, w.va(20), 1);
    assert_eq!([16, 20, 21].map(|page| batch(&guard, page)), [4, 1, 11]);
    // What has no folio goes on to the end of the table.
    let special = w.pte(&w.folio(1), 0, UserProt::Read).mkspecial();
    set_ptes(&mut guard, w.va(500), special, 12);
    assert_eq!(batch(&guard, 502), 10);
}
