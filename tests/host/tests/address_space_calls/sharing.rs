//! Fork and copy on write.

use super::on_all;

on_all!(a_block_that_is_nobody_elses_is_taken_back_by_one_fault);
on_all!(a_write_to_a_shared_block_copies_it_or_a_page);
on_all!(a_child_does_not_give_up_what_its_parent_wrote);
on_all!(what_is_shared_stays_shared);
on_all!(permissions_do_not_undo_copy_on_write);
on_all!(a_child_does_not_lose_what_follows_a_page_that_is_free);
on_all!(what_is_free_goes_from_all_who_share_it);
on_all!(a_fork_without_memory_leaves_the_parent_as_it_was);
on_all!(a_fork_that_can_not_count_gives_back_what_it_counted);

mod inner {
    use arch::Pfn;
    use mm::contpte::Obstacle;
    use mm::counters::Counter;
    use mm::mman::*;
    use mm::{Access, AddressSpace, Errno, Resolution};
    use model::GranuleType;
    use pleat_host_tests::address_space::World;

    use crate::{Calls, PRIVATE, RW, SHARED, at};

    /// Begins process `child` as a copy of process 0.
    fn fork<G: GranuleType + Sync>(world: &mut World<'_, G>, child: usize) {
        assert_eq!(world.fork(0, 0, child), Ok(()));
    }

    pub(super) fn a_block_that_is_nobody_elses_is_taken_back_by_one_fault<G: GranuleType + Sync>(
        world: &mut World<'_, G>,
    ) {
        world.switch(0, Some(0));
        let block = world.block();
        world.map(0, 0, 3 * block, RW, PRIVATE);
        (0..3 * block).for_each(|page| world.set_word(0, page, page as u32));
        let used = world.used();
        fork(world, 1);
        // Nothing was copied, and both have it folded.
        assert_eq!(world.used(), used);
        for process in [0, 1] {
            assert!([0, block, 2 * block].iter().all(|&page| world.why(process, page) == Ok(())));
        }
        assert_eq!(world.word(1, 5), 5);
        world.exit(1, 1);
        for first in [0, block, 2 * block] {
            assert_eq!(world.fault(0, first + 3, Access::Write), Ok(Resolution::Changed));
            for page in first..first + block {
                assert_eq!(world.fault(0, page, Access::Write), Ok(Resolution::Spurious), "page {page}");
            }
            assert_eq!(world.why(0, first), Ok(()));
        }
        assert_eq!(world.used(), used);
        assert_eq!(world.processes[0].space.counters().get(Counter::UnfoldsBySet), 0);
        assert!((0..3 * block).all(|page| world.word(0, page) == page as u32));
        world.expect_sound();
    }

    pub(super) fn a_write_to_a_shared_block_copies_it_or_a_page<G: GranuleType + Sync>(
        world: &mut World<'_, G>,
    ) {
        let block = world.block();
        world.map(0, 0, 2 * block, RW, PRIVATE);
        (0..2 * block).for_each(|page| world.set_word(0, page, page as u32));
        fork(world, 1);
        let used = world.used();
        world.set_word(1, 5, 99);
        assert_eq!((world.used() - used, world.why(1, 5), world.why(0, 5)), (block, Ok(()), Ok(())));
        assert_eq!((world.word(1, 5), world.word(0, 5), world.word(1, 6)), (99, 5, 6));
        // The parent has its first block alone now.
        assert_eq!(world.fault(0, 5, Access::Write), Ok(Resolution::Changed));
        assert_eq!(world.used() - used, block);
        // Without a block to be had, the page alone.
        let order = block.ilog2() as u8;
        let mut kept: Vec<_> = std::iter::from_fn(|| world.frames.alloc(order).ok()).collect();
        kept.extend(std::iter::from_fn(|| world.frames.alloc(0).ok()));
        drop(kept.pop());
        let used = world.used();
        world.set_word(1, block + 5, 98);
        assert_eq!(world.used() - used, 1);
        assert!(matches!(
            world.why(1, block),
            Err(Obstacle::Discontiguous(_) | Obstacle::MixedAttributes(_))
        ));
        assert_eq!((world.word(1, block + 5), world.word(0, block + 5)), (98, block as u32 + 5));
        drop(kept);
        // What the child has of it is still shared, and so is the parent's.
        world.set_word(0, block + 6, 97);
        assert_eq!((world.word(1, block + 6), world.word(0, block + 6)), (block as u32 + 6, 97));
    }

    /// Clean is only what was given up.
    pub(super) fn a_child_does_not_give_up_what_its_parent_wrote<G: GranuleType + Sync>(
        world: &mut World<'_, G>,
    ) {
        let block = world.block();
        world.map(0, 0, block + 1, RW, PRIVATE);
        (0..=block).for_each(|page| world.set_word(0, page, 1 + page as u32));
        fork(world, 1);
        for process in [1, 0] {
            for round in 0..2 {
                assert_eq!(world.processes[process].space.reclaim(u64::MAX), Some(0), "round {round}");
            }
            assert!((0..=block).all(|page| world.word(process, page) == 1 + page as u32));
        }
    }

    pub(super) fn what_is_shared_stays_shared<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        let block = world.block();
        world.map(0, 0, block, RW, SHARED);
        let va = World::<G>::va(2 * block);
        let file = Some((&world.files[0], 0));
        let space = &world.processes[0].space;
        assert_eq!(space.mmap(at(world, block), va, RW, MAP_SHARED | MAP_FIXED, file), Ok(at(world, block)));
        fork(world, 1);
        world.set_word(0, 3, 1);
        world.set_word(1, 4, 2);
        world.set_word(1, block + 4, 3);
        assert_eq!((world.word(1, 3), world.word(0, 4), world.word(0, block + 4)), (1, 2, 3));
        assert_eq!(world.frame(0, 3), world.frame(1, 3));
        assert_eq!((world.why(0, 3), world.why(1, 3), world.why(1, block)), (Ok(()), Ok(()), Ok(())));
        world.exit(0, 0);
        assert_eq!((world.word(1, 3), world.word(1, 4)), (1, 2));
    }

    /// A batch of a folio that is partly shared, and one whose permission to write was taken for another reason.
    pub(super) fn permissions_do_not_undo_copy_on_write<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        let block = world.block();
        world.map(0, 0, block, RW, PRIVATE);
        (0..block).for_each(|page| world.set_word(0, page, page as u32));
        fork(world, 1);
        for prot in [PROT_READ, 0] {
            for (page, pages) in [(0, block), (block / 2, block / 2), (3, 1)] {
                world.protect(0, page, pages, prot);
                world.protect(0, page, pages, RW);
            }
        }
        (0..block).for_each(|page| world.set_word(0, page, 100 + page as u32));
        assert!((0..block).all(|page| world.word(1, page) == page as u32));
        // With the other gone, permission comes back without a fault.
        world.exit(1, 1);
        world.protect(0, 3, 1, PROT_READ);
        world.protect(0, 3, 1, RW);
        assert_eq!(world.why(0, 3), Ok(()));
        for page in 0..block {
            assert_eq!(world.fault(0, page, Access::Write), Ok(Resolution::Spurious));
        }
    }

    /// One page of a batch is clean, the others are not.
    pub(super) fn a_child_does_not_lose_what_follows_a_page_that_is_free<G: GranuleType + Sync>(
        world: &mut World<'_, G>,
    ) {
        let block = world.block();
        world.map(0, 0, block, RW, PRIVATE);
        (0..block).for_each(|page| world.set_word(0, page, 1 + page as u32));
        world.advise(0, 0, 1, MADV_FREE);
        fork(world, 1);
        world.exit(0, 0);
        world.processes[1].space.reclaim(u64::MAX);
        assert!((1..block).all(|page| world.word(1, page) == 1 + page as u32));
    }

    /// What was advised to be free may go from each of those who have it, and is free when it is gone from all.
    pub(super) fn what_is_free_goes_from_all_who_share_it<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        let block = world.block();
        world.map(0, 0, 2 * block, RW, PRIVATE);
        (0..2 * block).for_each(|page| world.set_word(0, page, 1 + page as u32));
        world.advise(0, 0, 2 * block, MADV_FREE);
        fork(world, 1);
        world.set_word(1, 3, 7);
        let (used, reclaim) =
            (world.used(), |process: usize| world.processes[process].space.reclaim(u64::MAX));
        // The child has copied the first block to write to it.
        assert_eq!((reclaim(0), world.used()), (Some(2 * block), used - block));
        assert_eq!((reclaim(1), world.used()), (Some(block), used - 2 * block));
        assert!((0..2 * block).all(|page| world.word(0, page) == 0));
        let of_child = |page| if page == 3 { 7 } else { 1 + page as u32 };
        assert!((0..block).all(|page| world.word(1, page) == of_child(page)));
        assert!((block..2 * block).all(|page| world.word(1, page) == 0));
    }

    pub(super) fn a_fork_without_memory_leaves_the_parent_as_it_was<G: GranuleType + Sync>(
        world: &mut World<'_, G>,
    ) {
        let pages = world.arena().end - world.arena().start;
        world.map(0, 0, pages, RW, PRIVATE);
        (0..pages).for_each(|page| world.set_word(0, page, page as u32));
        let (used, tables) = (world.used(), world.board.live_tables());
        for after in 0.. {
            let (mm, _) = world.new_mm().expect("a root table");
            world.board.fail(after, true);
            let child: Result<AddressSpace<'_, _>, Errno> = world.processes[0].space.fork(mm);
            let failed = world.board.fail_no_more();
            assert_eq!(child.as_ref().err(), (failed > 0).then_some(&Errno::OutOfMemory));
            drop(child);
            assert_eq!((world.used(), world.board.live_tables()), (used, tables));
            // What was taken to be shared is not.
            let page = after % pages;
            assert!(world.fault(0, page, Access::Write).is_ok());
            assert_eq!(world.used(), used);
            if failed == 0 {
                assert!(after > 2, "a child needs tables");
                break;
            }
        }
        assert!((0..pages).all(|page| world.word(0, page) == page as u32));
    }

    /// The folios that are mapped.
    fn mapped<G: GranuleType + Sync>(world: &World<'_, G>) -> Vec<Pfn> {
        let frames =
            world.frames.zones().iter().flat_map(|zone| zone.range().start.get()..zone.range().end.get());
        let heads = frames.map(Pfn::new).filter(|&pfn| {
            world.frames.get(pfn).is_some_and(|folio| folio.head() == pfn && folio.maps() > 0)
        });
        heads.collect()
    }

    /// Of three folios in one table the second has as many mappings as can be counted.
    pub(super) fn a_fork_that_can_not_count_gives_back_what_it_counted<G: GranuleType + Sync>(
        world: &mut World<'_, G>,
    ) {
        const MOST: u32 = i32::MAX as u32;
        world.switch(0, Some(0));
        let block = world.block();
        world.map(0, 0, 3 * block, RW, PRIVATE);
        let mut heads = Vec::new();
        for first in [0, block, 2 * block] {
            (first..first + block).for_each(|page| world.set_word(0, page, page as u32));
            let new: Vec<_> = mapped(world).into_iter().filter(|head| !heads.contains(head)).collect();
            assert_eq!(new.len(), 1, "a block is a folio");
            heads.extend(new);
        }
        let (used, tables) = (world.used(), world.board.live_tables());
        let maps = |world: &World<'_, G>| {
            [0, 1, 2].map(|i: usize| world.frames.get(heads[i]).map(|folio| folio.maps()))
        };
        let before = maps(world);
        let second = world.frames.get(heads[1]).expect("it is mapped");
        let more = MOST - second.maps() - 1;
        second.map_inc(more);
        let (mm, _) = world.new_mm().expect("a root table");
        let child: Result<AddressSpace<'_, _>, Errno> = world.processes[0].space.fork(mm);
        assert_eq!(child.err(), Some(Errno::ENOMEM));
        second.map_dec(more);
        drop(second);
        assert_eq!((maps(world), world.used(), world.board.live_tables()), (before, used, tables));
        for page in 0..3 * block {
            assert!(world.fault(0, page, Access::Write).is_ok());
            assert_eq!(world.word(0, page), page as u32);
        }
        assert_eq!(world.used(), used, "nothing is shared");
        world.expect_sound();
    }
}
