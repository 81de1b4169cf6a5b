//! Clearing pages: parts of blocks, whole ones, before their frames are freed or mapped elsewhere.

use arch::Mmu;
use mm::counters::Counter;
use mm::pte::{Pte, UserProt};
use mm::ptep::{clear_ptes, get_and_clear_ptes, ptep_clear, ptep_get_and_clear, set_ptes};

use super::Machine;
use super::world::{Page, World};

const RW: UserProt = UserProt::ReadWrite;

/// One page goes and comes back: the first, the last, and one between; by either call.
pub(super) fn one_page_goes<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let folio = world.block(0, RW);
    for (round, page) in [0, 5, block - 1].into_iter().enumerate() {
        world.write(round % 2, page, 0x40 + round as u8);
        if round == 1 {
            world.change(page..page + 1, |_| None, |guard| ptep_clear(guard, World::<S>::va(page)));
        } else {
            let pte = world.change(
                page..page + 1,
                |_| None,
                |guard| ptep_get_and_clear(guard, World::<S>::va(page)),
            );
            assert!(pte.is_valid() && pte.is_dirty() && pte.is_young(), "{pte:?} was written to");
            assert_eq!(pte.pa(), folio.head().add(page as u64).addr(S::M::GRANULE));
        }
        world.expect_folded(page, false);
        world.write(1, page ^ 1, 0x50);
        assert_eq!(world.counter(Counter::UnfoldsByClear), round as u64 + 1);
        world.set(page, 1, folio.head().add(page as u64), RW);
        // The last one folds it, the others don't.
        let folded = page == block - 1;
        world.expect_folded(page, folded);
        world.refold(page..page + 1, usize::from(!folded));
    }
    world.finish();
}

/// A range from the middle of one block to the middle of the next: what is outside of it stays, unfolded.
pub(super) fn a_range_across_blocks_goes<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let folio = world.two_blocks(RW);
    // Not the first of the range: what it returns is of all of them.
    world.write(1, block - 1, 0x31);
    let (first, nr) = (block / 2 + 1, block);
    let pte = world.change(
        first..first + nr,
        |_| None,
        |guard| get_and_clear_ptes(guard, World::<S>::va(first), nr),
    );
    assert!(pte.is_dirty() && pte.is_young(), "{pte:?}: one of the pages was written to");
    assert_eq!(pte.pa(), folio.head().add(first as u64).addr(S::M::GRANULE));
    assert_eq!(world.counter(Counter::UnfoldsByClear), 2);
    world.expect_folded(0, false);
    world.expect_folded(2 * block - 1, false);
    for page in [0, first - 1, first + nr, 2 * block - 1] {
        world.write(0, page, 0x32);
    }
    // What comes back is folded with what has stayed.
    world.set(first, nr, folio.head().add(first as u64), RW);
    world.refold(0..2 * block, 2);
    world.finish();
}

/// Blocks that go as a whole are not unfolded first.
pub(super) fn whole_blocks_go_as_they_are<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let _folio = world.two_blocks(RW);
    world.write(0, block + 3, 0x21);
    let pte =
        world.change(0..2 * block, |_| None, |guard| get_and_clear_ptes(guard, World::<S>::va(0), 2 * block));
    assert!(pte.is_dirty(), "page {} was written to", block + 3);
    assert_eq!((world.counter(Counter::UnfoldsByClear), world.counter(Counter::ClearedFolded)), (0, 2));
    assert_eq!(world.mm().counters().blocks_folded(), 0);
    // A range of which nothing is left.
    world.change(0..2 * block, |_| None, |guard| clear_ptes(guard, World::<S>::va(0), 2 * block));
    world.finish();
}

/// Teardown: folios go when no CPU can reach them any more, whatever was unmapped of them in one call.
pub(super) fn frames_are_free_after_the_flush<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let folio = world.two_blocks(RW);
    let small = world.alloc(1);
    let heads = [folio.head(), small.head()];
    let used = || heads.map(|head| machine.frames().get(head).is_some());
    world.set(2 * block, 1, small.head(), RW);
    for (cpu, page) in [(0, 1), (1, block), (0, 2 * block)] {
        world.write(cpu, page, 0x11);
    }
    world.change(
        0..2 * block + 1,
        |_| None,
        |guard| {
            clear_ptes(guard, World::<S>::va(0), 2 * block);
            guard.free_after_flush(folio);
            clear_ptes(guard, World::<S>::va(2 * block), 1);
            assert_eq!(used(), [true, true], "freed before the flush");
            // One may wait, so that the other goes now.
            guard.free_after_flush(small);
            assert_eq!(used(), [false, true], "freed before the flush, or not after it");
        },
    );
    assert_eq!(used(), [false, false], "not freed after the flush");
    // They are had by somebody else, who maps them elsewhere.
    let folio = world.block(4 * block, RW);
    world.write(1, 4 * block, 0x12);
    world.finish();
    drop(folio);
}

/// One page of a block becomes another frame, under one lock, as when it was moved for compaction.
pub(super) fn another_frame_comes<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let folio = world.block(0, RW);
    let other = world.alloc(1);
    world.write(0, 9, 0x10);
    let page = Page { pfn: other.head(), prot: RW };
    world.change(
        9..10,
        |_| Some(page),
        |guard| {
            ptep_clear(guard, World::<S>::va(9));
            set_ptes(guard, World::<S>::va(9), page.pte::<S::M>(), 1);
        },
    );
    world.expect_folded(9, false);
    world.write(1, 9, 0x0f);
    // And the whole block, in one batch.
    let copy = world.alloc(World::<S>::BLOCK);
    let meant = |page: usize| Some(Page { pfn: copy.head().add(page as u64), prot: RW });
    world.change(0..World::<S>::BLOCK, meant, |guard| {
        clear_ptes(guard, World::<S>::va(0), World::<S>::BLOCK);
        let pte = Page { pfn: copy.head(), prot: RW }.pte::<S::M>();
        set_ptes(guard, World::<S>::va(0), pte, World::<S>::BLOCK);
    });
    world.expect_folded(0, true);
    world.finish();
    drop(folio);
}

/// Moves a block of pages, as mremap does: cleared here, set there.
fn move_pages<'m, S: Machine<'m>>(world: &World<'_, 'm, S>, from: usize, to: usize) {
    let block = World::<S>::BLOCK;
    let page = world.page(from);
    let meant = |at: usize| Some(Page { pfn: page.pfn.add((at - to) as u64), prot: page.prot });
    let pte = world.change(
        from..from + block,
        |_| None,
        |guard| get_and_clear_ptes(guard, World::<S>::va(from), block),
    );
    world.change(to..to + block, meant, |guard| set_ptes(guard, World::<S>::va(to), pte, block));
}

/// To a place at which it can be folded too: in the same table, and in another one.
pub(super) fn a_block_moves_to_a_congruent_place<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let (block, entries) = (World::<S>::BLOCK, S::M::GRANULE.entries());
    let _folio = world.block(0, RW);
    world.write(1, 2, 0xa1);
    for (from, to) in [(0, 3 * block), (3 * block, entries + block), (entries + block, 0)] {
        move_pages(&world, from, to);
        world.expect_folded(to, true);
        assert!(world.get(to).is_dirty(), "page 2 was written to before it moved");
        world.write(0, to + 2, 0xa2);
    }
    world.finish();
}

/// To a place at which it can't be folded, over the edge of a block; and back.
pub(super) fn a_block_moves_to_an_incongruent_place<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let _folio = world.block(0, RW);
    world.write(0, block - 1, 0xb1);
    move_pages(&world, 0, 2 * block - 3);
    world.expect_folded(2 * block - 3, false);
    world.expect_folded(2 * block, false);
    world.refold(block..3 * block, 0);
    world.write(1, 3 * block - 4, 0xb2);
    move_pages(&world, 2 * block - 3, block);
    world.expect_folded(block, true);
    world.finish();
}
