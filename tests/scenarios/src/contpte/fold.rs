//! Setting pages: what folds, what does not and why, and what unfolds.

use mm::PteGuard;
use mm::contpte::{Obstacle, refold, why_not_folded};
use mm::counters::Counter;
use mm::pte::{Pte, UserProt};
use mm::ptep::{Folded, pte_batch_hint, ptep_get, ptep_get_and_clear, set_pte, set_ptes};

use super::Machine;
use super::world::{Page, World};

const RW: UserProt = UserProt::ReadWrite;

/// Page by page, as faults come: each is used at once, and the last one folds the block.
pub(super) fn pages_fold_with_the_last<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let folio = world.alloc(block);
    for page in 0..block {
        let meant = Page { pfn: folio.head().add(page as u64), prot: RW };
        let set = |guard: &mut PteGuard<'_, 'm, S::M>| {
            set_ptes(guard, World::<S>::va(page), meant.pte::<S::M>(), 1);
        };
        world.change_unseen(page..page + 1, |_| Some(meant), set);
        if World::<S>::is_shown(page) {
            world.see();
        }
        world.expect_folded(page, page == block - 1);
        // Some pages are dirty before it folds, some are not: no obstacle.
        if World::<S>::is_shown(page) && page % 3 == 0 {
            world.write(page % 2, page, 0x80 + (page % 100) as u8);
        }
    }
    let guard = world.lock(0);
    for page in [0, 1, block - 1] {
        assert_eq!(pte_batch_hint(&guard, World::<S>::va(page)), block - page);
        assert!(ptep_get(&guard, World::<S>::va(page)).is_dirty(), "of a dirty block, page {page} is clean");
    }
    drop(guard);
    assert_eq!((world.counter(Counter::Folds), world.counter(Counter::FoldedAtOnce)), (1, 0));
    assert_eq!(world.mm().counters().blocks_folded(), 1);
    world.finish();
}

/// A batch folds the blocks that it covers wholly; those at its ends are folded by the page that is missing, if that is
/// their last.
pub(super) fn a_batch_folds_what_it_covers<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let folio = world.alloc(2 * block);
    let at = |page: usize| folio.head().add(page as u64);
    // All but the first three pages of the first block.
    world.set(3, 2 * block - 3, at(3), RW);
    world.expect_folded(3, false);
    world.expect_folded(block, true);
    assert_eq!(why_not_folded(world.mm(), World::<S>::va(3)), Err(Obstacle::Hole(World::<S>::va(0))));
    assert_eq!(world.counter(Counter::FoldedAtOnce), 1);
    // They come; the last one of the block was there before.
    world.set(0, 3, at(0), RW);
    world.expect_folded(0, false);
    world.refold(0..1, 1);
    world.expect_folded(0, true);
    for page in [0, 2, 3, block - 1, block, 2 * block - 1] {
        world.write(1, page, 0xc0 + (page % 16) as u8);
    }
    world.finish();
}

/// Downwards nothing notices that a block is whole: a refold does, once.
pub(super) fn out_of_order_is_for_a_refold<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let folio = world.alloc(block);
    let meant = |page: usize| Page { pfn: folio.head().add(page as u64), prot: RW };
    world.change(
        0..block,
        |page| Some(meant(page)),
        |guard| {
            for page in (0..block).rev() {
                set_ptes(guard, World::<S>::va(page), meant(page).pte::<S::M>(), 1);
            }
        },
    );
    assert_eq!(why_not_folded(world.mm(), World::<S>::va(5)), Err(Obstacle::None));
    world.write(0, 5, 0x55);
    // From any of its pages.
    world.refold(7..8, 1);
    world.expect_folded(0, true);
    assert!(world.get(0).is_dirty(), "page 5 was written to before the fold");
    world.refold(0..block, 0);
    assert_eq!(world.counter(Counter::Refolds), 1);
    world.finish();
}

/// What keeps a block from being folded, one after the other; also a refold is kept from it.
pub(super) fn each_obstacle_is_named<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let va = World::<S>::va;
    let obstacle = |page: usize, expected: Obstacle| {
        assert_eq!(why_not_folded(world.mm(), va(page)), Err(expected));
        assert_eq!(refold(&mut world.lock(page), va(page), 1), 0, "{expected}");
    };
    assert_eq!(why_not_folded(world.mm(), va(0)), Err(Obstacle::NoTable));

    let folio = world.alloc(block);
    world.set(0, block - 1, folio.head(), RW);
    obstacle(0, Obstacle::Hole(va(block - 1)));

    let halves = [world.alloc(block / 2), world.alloc(block / 2)];
    world.set(block, block / 2, halves[0].head(), RW);
    world.set(block + block / 2, block / 2, halves[1].head(), RW);
    let aligned = halves[0].head().get().is_multiple_of(block as u64);
    obstacle(block, if aligned { Obstacle::SmallFolio(va(block)) } else { Obstacle::Misaligned(va(block)) });

    let folio = world.alloc(block);
    let at = |page: usize| folio.head().add(page as u64);
    // One page is another's: the first, in the place of the third.
    world.set(2 * block, 2, at(0), RW);
    world.set(2 * block + 2, 1, at(0), RW);
    world.set(2 * block + 3, block - 3, at(3), RW);
    obstacle(2 * block, Obstacle::Discontiguous(va(2 * block + 2)));

    // One page is read-only.
    let folio = world.alloc(block);
    let at = |page: usize| folio.head().add(page as u64);
    world.set(3 * block, 1, at(0), RW);
    world.set(3 * block + 1, 1, at(1), UserProt::Read);
    world.set(3 * block + 2, block - 2, at(2), RW);
    obstacle(3 * block, Obstacle::MixedAttributes(va(3 * block + 1)));
    world.finish();

    // All as it should be, but said to have no folio.
    let world = World::new(machine);
    let folio = world.alloc(block);
    let pte = Page { pfn: folio.head(), prot: RW }.pte::<S::M>().mkspecial();
    let meant = |page: usize| Some(Page { pfn: folio.head().add(page as u64), prot: RW });
    world.change(0..block, meant, |guard| set_ptes(guard, va(0), pte, block));
    assert_eq!(why_not_folded(world.mm(), va(0)), Err(Obstacle::Special(va(0))));
    world.refold(0..block, 0);
    world.finish();
}

/// Address and frame must agree within their block; the pages work all the same.
pub(super) fn an_incongruent_batch_stays_pages<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let folio = world.alloc(2 * block);
    world.set(1, 2 * block - 1, folio.head(), RW);
    world.expect_folded(block, false);
    let at = World::<S>::va(block);
    assert_eq!(why_not_folded(world.mm(), at), Err(Obstacle::Misaligned(at)));
    world.refold(1..2 * block, 0);
    world.write(0, block, 0x99);
    world.write(1, 2 * block - 1, 0x9a);
    assert!(!world.get(block + 1).is_dirty(), "a page became dirty by its neighbour");
    assert_eq!(world.mm().counters().blocks_folded(), 0);
    world.finish();
}

/// By the place of an entry alone nothing can be unfolded: that is refused and counted, and elsewhere it works.
pub(super) fn set_pte_leaves_a_block_alone<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let folio = world.alloc(2 * block);
    let at = |page: usize| Page { pfn: folio.head().add(page as u64), prot: RW };
    world.set(0, block, folio.head(), RW);
    let refused = world.same(0..block, |guard| set_pte(guard, 4, at(5).pte::<S::M>()));
    assert_eq!(refused, Err(Folded { index: 4 }));
    assert_eq!(world.counter(Counter::SetPteOnFolded), 1);
    world.expect_folded(4, true);
    // It folds nothing either.
    world.change(
        block..2 * block,
        |page| Some(at(page)),
        |guard| {
            for page in block..2 * block {
                assert_eq!(set_pte(guard, page, at(page).pte::<S::M>()), Ok(()));
            }
        },
    );
    world.expect_folded(block, false);
    world.write(1, block, 0x77);
    world.finish();
}

/// A live page of a block gets another permission by a set: it is unfolded, and the write that came before is not lost.
pub(super) fn a_page_of_a_block_is_set_again<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let folio = world.block(0, RW);
    world.write(0, 6, 0x66);
    let page = |prot| Page { pfn: folio.head().add(6), prot };
    world.protect(6..7, UserProt::Read, |guard| {
        let dirty = ptep_get(guard, World::<S>::va(6)).is_dirty();
        let pte = page(UserProt::Read).pte::<S::M>();
        set_ptes(guard, World::<S>::va(6), if dirty { pte.mkdirty() } else { pte }, 1);
    });
    world.expect_folded(6, false);
    assert_eq!(world.counter(Counter::UnfoldsBySet), 1);
    world.expect_no_write(6);
    world.write(1, 7, 0x67);
    // Another frame needs a break in between: the guard flushes what was cleared before it is set.
    world.protect(6..7, RW, |guard| {
        let old = ptep_get_and_clear(guard, World::<S>::va(6));
        assert!(old.is_dirty(), "{old:?} was written to");
        set_ptes(guard, World::<S>::va(6), old.with_prot(RW), 1);
    });
    world.write(0, 6, 0x68);
    world.refold(0..block, 1);
    world.finish();
}
