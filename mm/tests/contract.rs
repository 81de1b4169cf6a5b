//! Promises of the public functions that no other test asks about: how far they reach, and what they say.

mod common;

use arch::VirtAddr;
use common::{AF_DBM, CORTEX_A72, K4, K16, K64, Plain, World};
use pleat_mm::contpte::{Obstacle, refold, why_not_folded};
use pleat_mm::pte::UserProt;
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
    let pages = [block_pages::<&Plain<K4>>(), block_pages::<&Plain<K16>>(), block_pages::<&Plain<K64>>()];
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
