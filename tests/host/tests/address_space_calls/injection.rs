//! No memory: at each allocation, one after the other, alone and with all that follow.

use mm::mman::*;
use mm::{Access, Errno, Fault, ThpPolicy};
use model::{GranuleType, K4, K16, K64};
use pleat_host_tests::address_space::{World, with_memory};
use pleat_host_tests::property::Setup;

use super::{CORTEX_A72, Calls, NEOVERSE, PRIVATE, RW, SHARED, at};

/// What is left undone where there is no memory for it.
fn only_for_memory(result: Result<(), Errno>) {
    assert!(matches!(result, Ok(()) | Err(Errno::OutOfMemory)), "{result:?}");
}

/// Some of everything that allocates.
fn script<G: GranuleType + Sync>(world: &mut World<'_, G>) {
    let block = world.block();
    let va = |page| World::<G>::va(page);
    let touch = |world: &World<'_, G>, process: usize, page: u64, access| {
        let result = world.fault(process, page, access);
        assert!(matches!(result, Ok(_) | Err(Fault::OutOfMemory)), "{result:?}");
    };
    world.map(0, 0, 2 * block + 3, RW, PRIVATE | MAP_POPULATE);
    for page in [1, block + 1, 2 * block + 1] {
        touch(world, 0, page, Access::Write);
    }
    world.map(0, 3 * block, block, RW, PRIVATE);
    touch(world, 0, 3 * block, Access::Read);
    touch(world, 0, 3 * block, Access::Write);
    world.map(0, 2 * block + 3, 5, RW, SHARED);
    touch(world, 0, 2 * block + 4, Access::Write);
    let space = &world.processes[0].space;
    let file = Some((&world.files[1], 0));
    assert_eq!(space.mmap(at(world, 0), va(block), RW, MAP_PRIVATE | MAP_FIXED, file), Ok(at(world, 0)));
    touch(world, 0, 2, Access::Read);
    touch(world, 0, 2, Access::Write);
    only_for_memory(space.madvise(at(world, 0), va(block), MADV_POPULATE_WRITE));
    only_for_memory(world.fork(0, 0, 1));
    if world.processes[1].reference.pages.is_empty() && world.fault(1, block + 1, Access::Read).is_ok() {
        touch(world, 1, block + 1, Access::Write);
        touch(world, 0, block + 1, Access::Write);
        touch(world, 1, 3 * block + 2, Access::Write);
    }
    let space = &world.processes[0].space;
    let flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    only_for_memory(space.mremap(at(world, block), va(block), va(block), flags, 1 << 41).map(drop));
    only_for_memory(
        space.mremap(at(world, 3 * block), va(block), va(3 * block), MREMAP_MAYMOVE, 0).map(drop),
    );
    // Of a table that moves as a whole, those above it are missing.
    let table = G::GRANULE.level_size(2);
    let (from, to) = ((1 << 40) + table, (1 << 43) + table);
    assert_eq!(space.mmap(from, table, RW, PRIVATE | MAP_FIXED, None), Ok(from));
    let written = space.write(from, &[7]);
    only_for_memory(written);
    let moved = space.mremap(from, table, table, flags, to);
    only_for_memory(moved.map(drop));
    let mut byte = [0];
    if written.is_ok() && space.read(moved.unwrap_or(from), &mut byte).is_ok() {
        assert_eq!(byte, [7]);
    }
    let mut bytes = [1; 64];
    only_for_memory(space.write(at(world, 2 * block) + va(1) - 32, &bytes));
    only_for_memory(space.read(at(world, 2 * block) + va(1) - 32, &mut bytes));
    only_for_memory(space.mprotect(at(world, 2 * block), va(2), PROT_READ));
    only_for_memory(space.munmap(at(world, 2 * block), va(2)));
}

fn each_allocation_fails<G: GranuleType + Sync>(setup: Setup, policy: ThpPolicy) {
    for for_good in [false, true] {
        for after in 0.. {
            let mut failed = 0;
            // What was lost is looked for at the end.
            with_memory::<G>(setup, 24, policy, |world| {
                world.switch(0, Some(0));
                world.board.fail(after, for_good);
                script(world);
                failed = world.board.fail_no_more();
                world.expect_sound();
                // Nothing is in the way of going on.
                world.map(0, 0, 1, RW, PRIVATE);
                world.set_word(0, 0, 5);
            });
            if failed == 0 {
                assert!(after > 15, "only {after} allocations");
                break;
            }
        }
    }
}

/// A move to where something is mapped, for which tables are missing, of less than there is: where one is refused, all is as it
/// was; and none is asked for after something has changed.
fn a_move_that_fails_changes_nothing<G: GranuleType + Sync>() {
    with_memory::<G>(CORTEX_A72, 24, ThpPolicy::Always, |world| {
        world.switch(0, Some(0));
        let (table, block) = (G::GRANULE.level_size(2), World::<G>::va(world.block()));
        let flags = MREMAP_MAYMOVE | MREMAP_FIXED;
        // By their entries, and as a table with some before it.
        for (from, to) in [((1 << 40) + block, 1 << 43), ((1 << 41) - block, (1 << 42) - block)] {
            let (len, new_len) = (table + 4 * block, table + 2 * block);
            let (tail, other) = (from + new_len + block, to + block);
            let space = &world.processes[0].space;
            let map = |at, size| assert_eq!(space.mmap(at, size, RW, PRIVATE | MAP_FIXED, None), Ok(at));
            map(from, len);
            map(other, block);
            let unmoved = [(from, 1), (from + table, 2), (tail, 3), (other, 4)];
            for (at, what) in unmoved {
                space.write(at, &[what]).unwrap();
            }
            let holds = |(at, what)| {
                let mut byte = [0];
                assert_eq!((space.read(at, &mut byte), byte), (Ok(()), [what]));
            };
            let before = world.board.live_tables();
            for after in 0.. {
                world.board.fail(after, true);
                let result = space.mremap(from, len, new_len, flags, to);
                if world.board.fail_no_more() == 0 {
                    assert_eq!(result, Ok(to));
                    assert!(after > 0, "no table was missing");
                    break;
                }
                assert_eq!(result, Err(Errno::OutOfMemory));
                unmoved.into_iter().for_each(holds);
                assert_eq!(world.board.live_tables(), before, "tables that nothing needs");
            }
            [(to, 1), (to + table, 2), (other, 0)].into_iter().for_each(holds);
            for at in [from, from + table, tail] {
                assert_eq!(space.read(at, &mut [0]), Err(Errno::EFAULT));
            }
            world.expect_sound();
            assert_eq!(space.munmap(to, new_len), Ok(()));
        }
    });
}

#[test]
fn a_move_that_fails_changes_nothing_in_any_granule() {
    a_move_that_fails_changes_nothing::<K4>();
    a_move_that_fails_changes_nothing::<K16>();
    a_move_that_fails_changes_nothing::<K64>();
}

#[test]
fn each_allocation_fails_4k() {
    for setup in [CORTEX_A72, NEOVERSE] {
        each_allocation_fails::<K4>(setup, ThpPolicy::Always);
    }
}

#[test]
fn each_allocation_fails_without_blocks() {
    each_allocation_fails::<K4>(CORTEX_A72, ThpPolicy::Never);
}

#[test]
fn each_allocation_fails_16k() {
    each_allocation_fails::<K16>(CORTEX_A72, ThpPolicy::Always);
}

#[test]
fn each_allocation_fails_64k() {
    each_allocation_fails::<K64>(NEOVERSE, ThpPolicy::Always);
}
