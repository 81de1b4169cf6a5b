//! Faults, and what becomes of blocks.

use super::on_all;

on_all!(a_write_brings_a_block_and_a_read_zeroes);
on_all!(a_mapping_without_a_block_gets_what_fits);
on_all!(memory_that_is_short_brings_less);
on_all!(a_part_that_is_changed_and_changed_back_leaves_the_block_folded);
on_all!(memory_that_may_not_be_accessed_keeps_what_is_in_it);
on_all!(a_file_folds_and_ends);
on_all!(a_fault_that_is_over_is_spurious);
on_all!(what_a_tlb_still_holds_is_flushed_by_the_next_fault);
on_all!(what_was_given_up_is_fetched_as_it_was_written);
on_all!(what_was_unmapped_is_fetched_as_it_was_written);
on_all!(pages_advised_free_are_taken_when_memory_is_short);
on_all!(what_is_young_goes_last);
on_all!(an_idle_pass_leaves_what_may_be_lost);
on_all!(what_moves_keeps_its_blocks_where_it_can);
on_all!(whole_tables_move_as_they_are);
on_all!(tables_move_over_the_borders_of_those_above);
on_all!(tables_go_with_what_they_translate);
on_all!(the_heap_grows_and_shrinks);
on_all!(what_is_in_memory_is_told);

mod inner {
    use arch::features::Hafdbs;
    use arch::{Mmu, Pfn, VirtAddr};
    use mm::contpte::Obstacle;
    use mm::counters::Counter;
    use mm::mman::*;
    use mm::{Access, Fault, Resolution};
    use model::GranuleType;
    use model::mmu::Outcome;
    use pleat_host_tests::address_space::World;

    use crate::{Calls, PRIVATE, RW, RX, SHARED, at};

    pub(super) fn a_write_brings_a_block_and_a_read_zeroes<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        let block = world.block();
        let before = world.used();
        world.map(0, 0, 2 * block, RW, PRIVATE);
        assert_eq!(world.fault(0, 3, Access::Write), Ok(Resolution::Changed));
        assert_eq!(world.why(0, 0), Ok(()));
        assert_eq!(world.used() - before, block);
        // The block of zeroes is there already.
        assert_eq!(world.fault(0, block + 3, Access::Read), Ok(Resolution::Changed));
        assert_eq!(world.why(0, block), Ok(()));
        assert_eq!((world.used() - before, world.word(0, 2 * block - 1)), (block, 0));
        assert_eq!(world.processes[0].space.counters().get(Counter::FoldedAtOnce), 2);
        // A write to some of it takes a block in its place.
        assert_eq!(world.fault(0, block + 3, Access::Write), Ok(Resolution::Changed));
        assert_eq!(world.why(0, block), Ok(()));
        assert_eq!(world.used() - before, 2 * block);
        // No page takes a fault of its own.
        for page in 0..2 * block {
            assert_eq!(world.fault(0, page, Access::Write), Ok(Resolution::Spurious), "page {page}");
        }
        // A mapping that does not have all of the block gets less.
        world.map(1, 1, block, RW, PRIVATE);
        assert_eq!(world.fault(1, 1, Access::Write), Ok(Resolution::Changed));
        assert_eq!(world.why(1, 1), Err(Obstacle::Hole(VirtAddr::new(at(world, 0)))));
    }

    pub(super) fn a_mapping_without_a_block_gets_what_fits<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        let block = world.block();
        // The first page is not mapped.
        world.map(0, 1, block - 1, RW, PRIVATE);
        for order in 0..block.ilog2() {
            let first = 1 << order;
            let used = world.used();
            assert_eq!(world.fault(0, 2 * first - 1, Access::Write), Ok(Resolution::Changed));
            let of_table = u64::from(order == 0) * (world.used() - used - 1);
            assert_eq!(world.used() - used - of_table, first, "pages of order {order}");
            for page in first..2 * first {
                assert_eq!(world.fault(0, page, Access::Write), Ok(Resolution::Spurious), "page {page}");
                assert_eq!(world.frame(0, page) - world.frame(0, first), page - first);
            }
        }
    }

    pub(super) fn memory_that_is_short_brings_less<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        let block = world.block();
        world.map(0, 0, 3 * block, RW, PRIVATE);
        // All is used but two halves of blocks, and not of one.
        let half = block.ilog2() as u8 - 1;
        let mut kept: Vec<_> = std::iter::from_fn(|| world.frames.alloc(half).ok()).collect();
        kept.extend(std::iter::from_fn(|| world.frames.alloc(0).ok()));
        let whole = |folio: &mm::frame::Folio<'_>| folio.order() == half;
        kept.sort_by_key(|folio| folio.head());
        let halves: Vec<usize> = (0..kept.len()).filter(|&i| whole(&kept[i])).collect();
        let (first, second) = (halves[0], halves[4]);
        drop(kept.remove(second));
        drop(kept.remove(first));
        let free = world.frames.free_frames();
        assert_eq!(free, block);
        let mut changed = 0;
        let failed = (0..3 * block).find_map(|page| match world.fault(0, page, Access::Write) {
            Ok(Resolution::Changed) => {
                changed += 1;
                None
            }
            Ok(Resolution::Spurious) => None,
            Err(fault) => Some(fault),
        });
        assert_eq!((failed, world.frames.free_frames()), (Some(Fault::OutOfMemory), 0));
        // By a half where it fits, and the pieces that tables left of the other, each as it is.
        assert!((2..=block.ilog2()).contains(&changed), "{changed} faults for {free} pages");
        drop(kept);
        assert_eq!(world.fault(0, 3 * block - 1, Access::Write), Ok(Resolution::Changed));
        assert_eq!(world.why(0, 3 * block - 1), Ok(()));
    }

    pub(super) fn a_part_that_is_changed_and_changed_back_leaves_the_block_folded<G: GranuleType + Sync>(
        world: &mut World<'_, G>,
    ) {
        let block = world.block();
        world.map(0, 0, 3 * block, RW, PRIVATE);
        (0..3 * block).for_each(|page| world.set_word(0, page, page as u32));
        for prot in [PROT_READ, 0, RW | PROT_EXEC] {
            for (page, pages) in [(5, 1), (0, block - 1), (block - 1, 2), (1, 2 * block), (0, 3 * block)] {
                world.protect(0, page, pages, prot);
                if !page.is_multiple_of(block) {
                    assert_ne!(world.why(0, page), Ok(()), "{prot} for {pages} from {page}");
                }
                world.protect(0, page, pages, RW);
                for first in [0, block, 2 * block] {
                    assert_eq!(world.why(0, first), Ok(()), "{prot} for {pages} from {page}");
                }
            }
        }
        assert!((0..3 * block).all(|page| world.word(0, page) == page as u32));
        // Nothing had to be faulted in again.
        for page in 0..3 * block {
            assert_eq!(world.fault(0, page, Access::Write), Ok(Resolution::Spurious));
        }
    }

    pub(super) fn memory_that_may_not_be_accessed_keeps_what_is_in_it<G: GranuleType + Sync>(
        world: &mut World<'_, G>,
    ) {
        let block = world.block();
        world.map(0, 0, 2 * block, RW, PRIVATE);
        (0..2 * block).for_each(|page| world.set_word(0, page, 7 + page as u32));
        world.protect(0, 0, 2 * block, 0);
        assert_eq!(world.fault(0, 3, Access::Read), Err(Fault::Segv { mapped: true }));
        let va = |page| World::<G>::va(page);
        let space = &world.processes[0].space;
        let moved = space.mremap(
            at(world, 0),
            va(block),
            va(block),
            MREMAP_MAYMOVE | MREMAP_FIXED,
            at(world, 2 * block),
        );
        assert_eq!(moved, Ok(at(world, 2 * block)));
        world.protect(0, block, 2 * block, RW);
        assert!((block..2 * block).all(|page| world.word(0, page) == 7 + page as u32));
        assert!((2 * block..3 * block).all(|page| world.word(0, page) == 7 + (page - 2 * block) as u32));
        assert_eq!((world.why(0, block), world.why(0, 2 * block)), (Ok(()), Ok(())));
        // What is given back is given back from there too.
        world.protect(0, block, 2 * block, 0);
        world.advise(0, block, 2 * block, MADV_DONTNEED);
        world.protect(0, block, 2 * block, RW);
        assert_eq!(world.word(0, block), 0);
    }

    pub(super) fn a_file_folds_and_ends<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        let block = world.block();
        let space = &world.processes[0].space;
        let va = |page| World::<G>::va(page);
        let map = |page, pages, prot, flags, offset| {
            space.mmap(
                at(world, page),
                va(pages),
                prot,
                flags | MAP_FIXED,
                Some((&world.files[1], va(offset))),
            )
        };
        // It has a block and three pages.
        assert_eq!(map(0, 2 * block, RX, MAP_PRIVATE, 0), Ok(at(world, 0)));
        assert_eq!(world.fault(0, 1, Access::Execute), Ok(Resolution::Changed));
        assert_eq!(world.why(0, 1), Ok(()));
        assert_eq!(world.fault(0, block + 2, Access::Read), Ok(Resolution::Changed));
        assert_eq!(world.fault(0, block + 3, Access::Read), Err(Fault::Bus));
        assert_eq!(world.fault(0, 1, Access::Write), Err(Fault::Segv { mapped: true }));
        // A private copy is written; the file is not.
        assert_eq!(map(2 * block, block, RW, MAP_PRIVATE, 0), Ok(at(world, 2 * block)));
        let used = world.used();
        world.set_word(0, 2 * block + 5, 99);
        assert_eq!((world.why(0, 2 * block), world.used() - used), (Ok(()), block));
        assert_eq!((world.word(0, 2 * block + 5), world.word(0, 5)), (99, 0));
        // A shared one is.
        assert_eq!(map(2 * block, block, RW, MAP_SHARED, 0), Ok(at(world, 2 * block)));
        world.set_word(0, 2 * block + 5, 98);
        assert_eq!((world.why(0, 2 * block), world.word(0, 5)), (Ok(()), 98));
        let mut bytes = [0; 4];
        assert_eq!(world.files[1].read(va(5) + 8, &mut bytes), 4);
        assert_eq!(u32::from_le_bytes(bytes), 98);
        assert_eq!(world.files[1].read(world.files[1].size() - 2, &mut bytes), 2);
        assert_eq!(world.files[1].read(u64::MAX, &mut bytes), 0);
    }

    pub(super) fn a_fault_that_is_over_is_spurious<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        world.switch(0, Some(0));
        world.map(0, 0, world.block(), RW, PRIVATE);
        assert_eq!(world.fault(0, 0, Access::Write), Ok(Resolution::Changed));
        for access in [Access::Read, Access::Write] {
            assert_eq!(world.fault(0, 0, access), Ok(Resolution::Spurious));
        }
        // Without hardware that sets it, the access flag is set by a fault, for all of the block.
        world.advise(0, 0, world.block(), MADV_COLD);
        assert_eq!(world.fault(0, 1, Access::Read), Ok(Resolution::Changed));
        assert_eq!(world.fault(0, 2, Access::Read), Ok(Resolution::Spurious));
        assert_eq!(world.why(0, 0), Ok(()));
    }

    /// An entry that is made old is not flushed, and one that is old needs no flush when it becomes writable. So a TLB may hold
    /// what it was before, and the access faults again.
    pub(super) fn what_a_tlb_still_holds_is_flushed_by_the_next_fault<G: GranuleType + Sync>(
        world: &mut World<'_, G>,
    ) {
        world.switch(0, Some(0));
        world.map(0, 0, world.block(), RW, SHARED);
        let write = model::mmu::Access { kind: model::mmu::Kind::Write, privileged: false };
        let may_fault = |world: &World<'_, G>, page| {
            let outcomes = world.machine.cpu(0).access(VirtAddr::new(at(world, page)), write);
            outcomes.contains(&Outcome::PermissionFault)
        };
        // Clean until it is written to, and young.
        assert_eq!(world.fault(0, 0, Access::Read), Ok(Resolution::Changed));
        world.advise(0, 0, world.block(), MADV_COLD);
        assert_eq!(world.fault(0, 1, Access::Write), Ok(Resolution::Changed));
        // Time passes: walks see what was stored.
        world.machine.cpu(0).publish();
        // Hardware that sets the dirty state does not fault, and walks for that.
        let hardware = world.machine.config().hafdbs == Hafdbs::AfDbm;
        assert_eq!(may_fault(world, 1), !hardware);
        assert_eq!(world.fault(0, 1, Access::Write), Ok(Resolution::Spurious));
        assert!(!may_fault(world, 1), "it faults again and again");
    }

    /// What a user has written is known by the dirty state, which `MADV_FREE` takes.
    pub(super) fn what_was_given_up_is_fetched_as_it_was_written<G: GranuleType + Sync>(
        world: &mut World<'_, G>,
    ) {
        let block = world.block();
        world.map(0, 0, block, RW | PROT_EXEC, PRIVATE);
        assert_eq!(world.fault(0, 0, Access::Write), Ok(Resolution::Changed));
        let folio = (Pfn::new(world.frame(0, 0)).addr(G::GRANULE), World::<G>::va(block));
        assert_eq!(world.machine.take_fetchable(), [folio], "before it can be executed");
        world.protect(0, 0, block, RW);
        for advice in [MADV_FREE, MADV_COLD] {
            // Here the process writes, to pages that are dirty.
            assert_eq!(world.fault(0, 1, Access::Write), Ok(Resolution::Spurious));
            world.advise(0, 0, block, advice);
            world.protect(0, 0, block, RX);
            assert_eq!(world.machine.take_fetchable(), [folio], "what was written before {advice}");
            world.protect(0, 0, block, RW);
            assert_eq!(world.fault(0, 1, Access::Write), Ok(Resolution::Changed));
        }
    }

    /// Two folios that follow one another, of which the second is written, and both are unmapped by one call.
    pub(super) fn what_was_unmapped_is_fetched_as_it_was_written<G: GranuleType + Sync>(
        world: &mut World<'_, G>,
    ) {
        let block = world.block();
        world.map(0, 0, 2 * block, RX, SHARED);
        for page in [0, block] {
            assert_eq!(world.fault(0, page, Access::Execute), Ok(Resolution::Changed));
        }
        let frames = [0, block].map(|page| world.frame(0, page));
        assert_eq!(frames[0] + block, frames[1]);
        let folio = |frame| (Pfn::new(frame).addr(G::GRANULE), World::<G>::va(block));
        assert_eq!(world.machine.take_fetchable(), frames.map(folio));
        world.protect(0, 0, 2 * block, RW);
        assert_eq!(world.fault(0, block, Access::Write), Ok(Resolution::Changed));
        world.advise(0, 0, 2 * block, MADV_DONTNEED);
        world.protect(0, 0, 2 * block, RX);
        for page in [0, block] {
            assert_eq!(world.fault(0, page, Access::Execute), Ok(Resolution::Changed));
        }
        assert_eq!(world.machine.take_fetchable(), [folio(frames[1])]);
    }

    pub(super) fn pages_advised_free_are_taken_when_memory_is_short<G: GranuleType + Sync>(
        world: &mut World<'_, G>,
    ) {
        let block = world.block();
        world.map(0, 0, 3 * block, RW, PRIVATE);
        (0..3 * block).for_each(|page| world.set_word(0, page, 1 + page as u32));
        // All of one block, some of another.
        world.advise(0, 0, block + 4, MADV_FREE);
        world.set_word(0, 2, 77);
        assert!((0..3 * block).all(|page| page == 2 || world.word(0, page) == 1 + page as u32));
        // Dirty is of the block where it is folded, so the first one is kept.
        assert_eq!(world.processes[0].space.reclaim(u64::MAX), Some(4));
        assert_eq!((world.word(0, 2), world.word(0, 3)), (77, 4));
        assert_eq!((world.word(0, block + 3), world.word(0, block + 4)), (0, block as u32 + 5));
        world.advise(0, 0, block, MADV_FREE);
        let free = world.frames.free_frames();
        assert_eq!(world.processes[0].space.reclaim(1), Some(block));
        assert_eq!(world.frames.free_frames() - free, block);
        assert_eq!(world.word(0, 2), 0);
        // A fault has none while there is nothing else, and some after it.
        world.advise(0, 2 * block, block, MADV_FREE);
        let all: Vec<_> = std::iter::from_fn(|| world.frames.alloc(0).ok()).collect();
        assert_eq!(world.fault(0, 0, Access::Write), Err(Fault::OutOfMemory));
        assert_eq!(world.processes[0].space.reclaim(1), Some(block));
        assert_eq!(world.fault(0, 0, Access::Write), Ok(Resolution::Changed));
        assert_eq!(world.word(0, 2 * block + 1), 0);
        drop(all);
        // The last page of a block, whose change could fold it again.
        world.map(0, 0, block, RW, PRIVATE);
        (0..block).for_each(|page| world.set_word(0, page, 77));
        world.advise(0, block - 1, 1, MADV_FREE);
        assert_eq!(world.processes[0].space.reclaim(u64::MAX), Some(1));
        assert_eq!((world.word(0, block - 2), world.word(0, block - 1)), (77, 0));
    }

    /// A page that was used since it was advised goes after those that were not.
    pub(super) fn what_is_young_goes_last<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        let block = world.block();
        world.map(0, 0, 3 * block, RW, PRIVATE);
        (0..3 * block).for_each(|page| world.set_word(0, page, 1 + page as u32));
        world.advise(0, 0, 3 * block, MADV_FREE);
        // Of the first block one page is used, which makes the block young.
        assert_eq!(world.fault(0, 3, Access::Read), Ok(Resolution::Changed));
        let reclaim = |world: &World<'_, G>, pages| world.processes[0].space.reclaim(pages);
        assert_eq!(reclaim(world, 1), Some(block), "the second block");
        assert_eq!((world.word(0, 3), world.word(0, block + 3)), (4, 0));
        // What comes behind goes before it, though it is old now.
        assert_eq!(reclaim(world, 1), Some(block), "the third block");
        assert_eq!((world.word(0, 3), world.word(0, 2 * block + 3)), (4, 0));
        // It is used again before the next round, so it stays again.
        assert_eq!(world.fault(0, 5, Access::Read), Ok(Resolution::Changed));
        assert_eq!(reclaim(world, 1), Some(0));
        assert_eq!(world.word(0, 5), 6);
        assert_eq!(reclaim(world, 1), Some(block), "nobody has used it since");
        assert_eq!(world.word(0, 3), 0);
    }

    /// An idle CPU folds what qualifies, but does not take back what was advised.
    pub(super) fn an_idle_pass_leaves_what_may_be_lost<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        let block = world.block();
        world.map(0, 0, 2 * block, RW, PRIVATE);
        (0..2 * block).for_each(|page| world.set_word(0, page, 1));
        world.advise(0, 0, block / 2, MADV_FREE);
        let space = &world.processes[0].space;
        assert_eq!(space.refold_pass(), 0);
        assert_eq!(space.reclaim(u64::MAX), Some(block / 2));
    }

    pub(super) fn what_moves_keeps_its_blocks_where_it_can<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        let block = world.block();
        let va = |page| World::<G>::va(page);
        world.map(0, 0, 2 * block, RW, PRIVATE);
        (0..2 * block).for_each(|page| world.set_word(0, page, page as u32));
        let space = &world.processes[0].space;
        let moves = |from: u64, pages: u64, new: u64, to: u64| {
            let flags = MREMAP_MAYMOVE | MREMAP_FIXED;
            space.mremap(at(world, from), va(pages), va(new), flags, at(world, to))
        };
        // To the other table.
        assert_eq!(moves(0, 2 * block, 2 * block, 2 * block), Ok(at(world, 2 * block)));
        assert!((0..2 * block).all(|page| world.word(0, 2 * block + page) == page as u32));
        assert_eq!((world.why(0, 2 * block), world.why(0, 3 * block)), (Ok(()), Ok(())));
        // Not congruent; and back.
        assert_eq!(moves(2 * block, block, block, 1), Ok(at(world, 1)));
        assert_eq!(world.why(0, 1), Err(Obstacle::Hole(VirtAddr::new(at(world, 0)))));
        assert!((0..block).all(|page| world.word(0, 1 + page) == page as u32));
        assert_eq!(moves(1, block, block, 2 * block), Ok(at(world, 2 * block)));
        assert_eq!((world.why(0, 2 * block), world.why(0, 3 * block)), (Ok(()), Ok(())));
        // It grows where it is, or elsewhere so that it folds.
        let grown = space.mremap(at(world, 2 * block), va(2 * block), va(3 * block), 0, 0);
        assert_eq!(grown, Ok(at(world, 2 * block)));
        let moved = space.mremap(at(world, 2 * block), va(block), va(2 * block), MREMAP_MAYMOVE, 0).unwrap();
        assert_eq!(space.why_not_folded(VirtAddr::new(moved)), Ok(()));
        assert_eq!(world.fault(0, 2 * block, Access::Read), Err(Fault::Segv { mapped: false }));
        // What is kept is empty.
        let flags = MREMAP_MAYMOVE | MREMAP_DONTUNMAP;
        let away = space.mremap(at(world, 3 * block), va(block), va(block), flags, 0).unwrap();
        assert_eq!((world.word(0, 3 * block + 1), space.why_not_folded(VirtAddr::new(away))), (0, Ok(())));
        // A copy of shared memory.
        world.map(0, 0, 2, RW, SHARED);
        world.set_word(0, 1, 11);
        let copy = space.mremap(at(world, 0), 0, va(2), MREMAP_MAYMOVE, 0).unwrap();
        let mut bytes = [0; 4];
        space.read(copy + va(1) + 8, &mut bytes).unwrap();
        assert_eq!((u32::from_le_bytes(bytes), world.word(0, 1)), (11, 11));
        world.expect_sound();
    }

    /// Two tables that translate nothing else, and a block before and one behind them; what they translated is used again.
    pub(super) fn whole_tables_move_as_they_are<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        world.switch(0, Some(0));
        let (table, block) = (G::GRANULE.level_size(2), World::<G>::va(world.block()));
        let (size, flags) = (2 * table + 2 * block, MREMAP_MAYMOVE | MREMAP_FIXED);
        let from = (1 << 40) + 4 * table - block;
        // The first and the last page of a table too.
        let places =
            [0, block, 5 * block, block + table - World::<G>::va(1), block + table, 2 * table + block];
        let space = &world.processes[0].space;
        let map = || space.mmap(from, size, RW, PRIVATE | MAP_FIXED, None).unwrap();
        let write =
            |start: u64, what: u8| places.iter().try_for_each(|place| space.write(start + place, &[what]));
        let holds = |start: u64, what: u8| {
            places.iter().all(|place| {
                let mut byte = [0];
                space.read(start + place, &mut byte).unwrap();
                byte == [what]
            })
        };
        let folds = || space.counters().get(Counter::FoldedAtOnce);
        map();
        write(from, 1).unwrap();
        for (round, to) in [(1, from + 8 * table), (2, from + 16 * table + 3 * block)] {
            let (tables, before) = (world.board.live_tables(), folds());
            assert_eq!(space.mremap(from, size, size, flags, to), Ok(to));
            let congruent = round == 1;
            // The ends move by their entries, or all does.
            assert_eq!(folds() - before, if congruent { 2 } else { 6 });
            assert!(holds(to, round));
            assert!(places.iter().all(|place| space.why_not_folded(VirtAddr::new(to + place)) == Ok(())));
            let old = |place: &u64| space.handle_fault(VirtAddr::new(from + place), Access::Read);
            assert!(places.iter().all(|place| old(place) == Err(Fault::Segv { mapped: false })));
            assert!(!congruent || world.board.live_tables() == tables, "those that are empty are given back");
            // Other memory where it was, which no TLB may take for this.
            map();
            write(from, round + 1).unwrap();
            assert!(holds(to, round) && holds(from, round + 1));
        }
        world.expect_sound();
        // Where it stays mapped, and empty, nothing else is flushed by the same call.
        let (first, to) = (from + block, from + block + 32 * table);
        let flags = flags | MREMAP_DONTUNMAP;
        assert_eq!(space.mremap(first, 2 * table, 2 * table, flags, to), Ok(to));
        world.expect_sound();
        let mut bytes = [1; 2];
        space.read(first, &mut bytes[..1]).unwrap();
        space.read(to, &mut bytes[1..]).unwrap();
        assert_eq!(bytes, [0, 3]);
        world.expect_sound();
    }

    /// Some of six tables that two above lead to, before the move and after it: not the same two parts.
    pub(super) fn tables_move_over_the_borders_of_those_above<G: GranuleType + Sync>(
        world: &mut World<'_, G>,
    ) {
        world.switch(0, Some(0));
        let (table, above) = (G::GRANULE.level_size(2), G::GRANULE.level_size(1));
        let (size, flags) = (6 * table, MREMAP_MAYMOVE | MREMAP_FIXED);
        let (from, to) = (2 * above - 2 * table, (1 << 46) + above - 3 * table);
        let none = world.board.live_tables();
        for used in [[0, 2, 3, 5].as_slice(), &[4, 5], &[1, 2], &[2]] {
            let space = &world.processes[0].space;
            assert_eq!(space.mmap(from, size, RW, PRIVATE | MAP_FIXED, None), Ok(from));
            used.iter().for_each(|&i| space.write(from + i * table, &[1 + i as u8]).unwrap());
            assert_eq!(space.mremap(from, size, size, flags, to), Ok(to));
            for &i in used {
                let mut byte = [0];
                space.read(to + i * table, &mut byte).unwrap();
                assert_eq!(byte, [1 + i as u8], "table {i} of {used:?}");
            }
            world.expect_sound();
            assert_eq!(space.munmap(to, size), Ok(()));
            assert_eq!(world.board.live_tables(), none, "tables are left of {used:?}");
        }
    }

    pub(super) fn tables_go_with_what_they_translate<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        world.switch(0, Some(0));
        let (block, border) = (world.block(), world.arena().end - world.arena().start);
        let none = world.board.live_tables();
        world.map(0, 0, border, RW, PRIVATE);
        world.fault(0, 0, Access::Write).unwrap();
        let one = world.board.live_tables();
        assert!(one > none);
        world.fault(0, border - 1, Access::Write).unwrap();
        let two = world.board.live_tables();
        assert!(two > one);
        // One translates what is left.
        world.unmap(0, 0, border / 2 - 1);
        assert_eq!(world.board.live_tables(), two);
        world.unmap(0, border / 2 - 1, 1);
        assert_eq!(world.board.live_tables(), one);
        world.unmap(0, border / 2, border / 2);
        assert_eq!(world.board.live_tables(), none);
        world.expect_sound();
        // Nor is the time spent that it takes to look at each page of what is large.
        let space = &world.processes[0].space;
        let huge = space.mmap(0, 1 << 46, 0, PRIVATE, None).unwrap();
        assert!(huge.is_multiple_of(World::<G>::va(block)));
        assert_eq!(space.mprotect(huge, 1 << 46, PROT_READ), Ok(()));
        assert_eq!(space.madvise(huge, 1 << 46, MADV_DONTNEED), Ok(()));
        assert_eq!(space.munmap(huge, 1 << 46), Ok(()));
        assert_eq!(world.board.live_tables(), none);
    }

    pub(super) fn the_heap_grows_and_shrinks<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        let block = world.block();
        let va = |page| World::<G>::va(page);
        let space = &world.processes[0].space;
        let start = at(world, 0) + 5;
        space.set_brk_start(start);
        assert_eq!(space.brk(0), Ok(start));
        assert_eq!(space.brk(start - 1), Ok(start));
        // The rest of a page is there only once the first page behind it is.
        assert_eq!(space.brk(start + va(2 * block)), Ok(start + va(2 * block)));
        world.map(0, 2 * block + 3, 1, RW, PRIVATE);
        world.set_word(0, 2 * block, 3);
        assert_eq!(world.fault(0, 2 * block + 1, Access::Write), Err(Fault::Segv { mapped: false }));
        // A page is left before the next mapping.
        assert_eq!(space.brk(at(world, 2 * block + 2)), Ok(at(world, 2 * block + 2)));
        assert_eq!(space.brk(at(world, 2 * block + 2) + 1), Ok(at(world, 2 * block + 2)));
        for far in [mm::TASK_SIZE, mm::TASK_SIZE + 1, u64::MAX] {
            assert_eq!(space.brk(far), Ok(at(world, 2 * block + 2)));
        }
        assert_eq!(space.brk(start), Ok(start));
        assert_eq!(world.fault(0, 2 * block, Access::Read), Err(Fault::Segv { mapped: false }));
        assert_eq!(space.brk(start + va(2 * block)), Ok(start + va(2 * block)));
        assert_eq!(world.word(0, 2 * block), 0);
    }

    pub(super) fn what_is_in_memory_is_told<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        let block = world.block();
        world.map(0, 0, 2 * block, RW, PRIVATE);
        world.map(0, 2 * block, 1, RW, SHARED);
        world.fault(0, 1, Access::Write).unwrap();
        let len = World::<G>::va(2 * block + 1);
        let mut vec = vec![9; 2 * block as usize + 1];
        assert_eq!(world.processes[0].space.mincore(at(world, 0), len, &mut vec), Ok(()));
        assert!(vec.iter().enumerate().all(|(page, &told)| told == u8::from(page < block as usize)));
        world.fault(0, 2 * block, Access::Read).unwrap();
        world.advise(0, 0, 2 * block + 1, MADV_DONTNEED);
        assert_eq!(world.processes[0].space.mincore(at(world, 0), len, &mut vec), Ok(()));
        // What is shared is still there for others.
        assert!(vec.iter().enumerate().all(|(page, &told)| told == u8::from(page == 2 * block as usize)));
        let short = world.processes[0].space.mincore(at(world, 0), len, &mut vec[1..]);
        assert_eq!(short, Err(mm::Errno::EFAULT));
    }
}
