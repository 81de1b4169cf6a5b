//! One page pays for neither gate nor folio look-up, seen by what either leaves behind: the gate counts its refusals, and to
//! look a free frame up panics. The instructions are counted by the kernel's `bench=ptep`.

mod common;

use arch::PteValue;
use common::{AF_DBM, CORTEX_A72, K4, World};
use pleat_mm::counters::Counter;
use pleat_mm::pte::{Pte, UserProt};
use pleat_mm::ptep::{ptep_clear, ptep_get_and_clear, set_ptes};

/// An entry for a frame that is free: the `page`th of a block.
fn free_frame(w: &World<K4>, page: usize) -> PteValue {
    let folio = w.frames.alloc(4).unwrap();
    let pte = w.pte(&folio, page, UserProt::ReadWrite);
    drop(folio);
    assert!(w.frames.get(pte.pa().pfn(w.mm.granule())).is_none(), "the frame is not free");
    pte
}

/// Sets a page to the frame at the same or another place of its block, changes it and clears it, twice.
fn set_change_and_clear(w: &World<K4>, page: usize, frame: usize) {
    let pte = free_frame(w, frame);
    let mut guard = w.lock();
    for _ in 0..2 {
        set_ptes(&mut guard, w.va(page), pte, 1);
        set_ptes(&mut guard, w.va(page), pte.with_prot(UserProt::Read), 1);
        assert_eq!(ptep_get_and_clear(&mut guard, w.va(page)).pa(), pte.pa());
    }
    ptep_clear(&mut guard, w.va(page));
}

#[test]
fn no_folio_is_looked_up() {
    for features in [CORTEX_A72, AF_DBM] {
        let w = World::user(features);
        (0..15).for_each(|page| set_change_and_clear(&w, page, page));
        // With all others in place nothing but its frame is in the way.
        let first = free_frame(&w, 0);
        (0..15).for_each(|page| set_ptes(&mut w.lock(), w.va(page), first.advance(page as u64 * 0x1000), 1));
        (0..15).for_each(|frame| set_change_and_clear(&w, 15, frame));
    }
}

/// Else the test above shows nothing.
#[test]
#[should_panic(expected = "used while Free")]
fn the_last_page_of_a_block_looks_its_folio_up() {
    let w = World::user(CORTEX_A72);
    let first = free_frame(&w, 0);
    let mut guard = w.lock();
    for page in 0..16 {
        set_ptes(&mut guard, w.va(page), first.advance(page as u64 * 0x1000), 1);
    }
}

#[test]
fn the_gate_is_asked_for_the_last_page_of_a_block_only() {
    for features in [CORTEX_A72, AF_DBM] {
        let w = World::kernel(features);
        let asked = || w.mm.counters().get(Counter::RefusedByGate);
        (0..15).for_each(|page| set_change_and_clear(&w, page, page));
        (0..15).for_each(|frame| set_change_and_clear(&w, 15, frame));
        assert_eq!(asked(), 0);
        set_ptes(&mut w.lock(), w.va(15), free_frame(&w, 15), 1);
        assert_eq!(asked(), 1);
    }
}
