//! How many TLB invalidations a call issues, and how many faults it takes: by the block of 16 pages of 4 KiB.

use mm::counters::Counter;
use mm::mman::*;
use mm::{Access, Resolution, ThpPolicy};
use model::{GranuleType, K4};
use pleat_host_tests::address_space::{World, with_memory, with_world};
use pleat_host_tests::property::Setup;

use super::{CORTEX_A72, Calls, NEOVERSE, PRIVATE, RW, at};

/// Blocks of a table that are used.
const BLOCKS: u64 = 3;
const PAGES: u64 = 16;

/// What was issued in the parent for `act`.
fn issued<'m>(world: &mut World<'m, K4>, act: impl FnOnce(&mut World<'m, K4>)) -> u64 {
    let count = |world: &World<'m, K4>| world.processes[0].space.counters().get(Counter::TlbInvalidations);
    let before = count(world);
    act(world);
    count(world) - before
}

/// A write fault at one page of each block.
fn one_fault_each(world: &World<'_, K4>) {
    for block in 0..BLOCKS {
        assert_eq!(world.fault(0, block * PAGES + 5, Access::Write), Ok(Resolution::Changed));
    }
    for page in 0..BLOCKS * PAGES {
        assert_eq!(world.fault(0, page, Access::Write), Ok(Resolution::Spurious));
    }
}

fn one_page_each(world: &World<'_, K4>, act: impl Fn(&World<'_, K4>, u64)) {
    (0..BLOCKS).for_each(|block| act(world, block * PAGES + 5));
}

/// The name of each step with the invalidations that it issued.
fn steps(setup: Setup) -> Vec<(&'static str, u64)> {
    let mut found = Vec::new();
    with_world::<K4>(setup, |world| {
        world.switch(0, Some(0));
        let all = BLOCKS * PAGES;
        let mut step = |name, issued| found.push((name, issued));
        world.map(0, 0, all, RW, PRIVATE);
        let n = issued(world, |world| one_fault_each(world));
        step("first touch", n);
        let n = issued(world, |world| world.protect(0, 0, all, PROT_READ));
        step("mprotect of all, read only", n);
        let n = issued(world, |world| world.protect(0, 0, all, RW));
        step("mprotect of all, back", n);
        let n =
            issued(world, |world| one_page_each(world, |world, page| world.protect(0, page, 1, PROT_READ)));
        step("mprotect of one page each, read only", n);
        let n = issued(world, |world| one_page_each(world, |world, page| world.protect(0, page, 1, RW)));
        step("mprotect of one page each, back and refolded", n);
        let n = issued(world, |world| world.fork(0, 0, 1).expect("there is memory"));
        step("fork", n);
        world.exit(1, 1);
        let n = issued(world, |world| one_fault_each(world));
        step("the parent writes after the child's end", n);
        world.fork(0, 0, 1).expect("there is memory");
        let n = issued(world, |world| one_fault_each(world));
        step("the parent copies", n);
        world.exit(1, 1);
        let n = issued(world, |world| {
            let (va, flags) = (World::<K4>::va(all), MREMAP_MAYMOVE | MREMAP_FIXED);
            let (from, to) = (at(world, 0), at(world, all));
            assert_eq!(world.processes[0].space.mremap(from, va, va, flags, to), Ok(to));
            assert_eq!(world.processes[0].space.mremap(to, va, va, flags, from), Ok(from));
        });
        step("mremap there and back", n);
        let n = issued(world, |world| {
            one_page_each(world, |world, page| world.advise(0, page, 1, MADV_DONTNEED))
        });
        step("DONTNEED of one page each", n);
        let n = issued(world, |world| one_page_each(world, |world, page| world.set_word(0, page, 1)));
        step("touched again", n);
        let n = issued(world, |world| world.advise(0, 0, all, MADV_DONTNEED));
        step("DONTNEED of all", n);
        one_fault_each(world);
        let n = issued(world, |world| world.unmap(0, 0, all));
        step("munmap of all, with its table", n);
    });
    found
}

/// Each with the invalidations for three blocks on a CPU without range operations, and on one with them.
#[test]
fn invalidations_are_as_few_as_that() {
    let expected = [
        ("first touch", 0, 0),
        ("mprotect of all, read only", 48, 1),
        ("mprotect of all, back", 48, 1),
        ("mprotect of one page each, read only", 48, 3),
        // One for each page, and one for each block that is folded again.
        ("mprotect of one page each, back and refolded", 51, 6),
        ("fork", 48, 1),
        ("the parent writes after the child's end", 48, 3),
        ("the parent copies", 48, 3),
        // Each way one, of all, and two of the tables that are left.
        ("mremap there and back", 100, 6),
        ("DONTNEED of one page each", 48, 3),
        ("touched again", 0, 0),
        ("DONTNEED of all", 48, 1),
        ("munmap of all, with its table", 51, 4),
    ];
    let (without, with) = (steps(CORTEX_A72), steps(NEOVERSE));
    for (i, (name, one_by_one, by_range)) in expected.into_iter().enumerate() {
        assert_eq!((without[i], with[i]), ((name, one_by_one), (name, by_range)));
    }
    assert_eq!((without.len(), with.len()), (expected.len(), expected.len()));
}

/// The invalidations for so many whole tables that move.
fn moving_tables(setup: Setup, tables: u64) -> u64 {
    let mut count = 0;
    with_memory::<K4>(setup, 64, ThpPolicy::Always, |world| {
        world.switch(0, Some(0));
        let (table, from, to) = (K4::GRANULE.level_size(2), 1 << 40, 1 << 41);
        let (size, flags) = (tables * table, MREMAP_MAYMOVE | MREMAP_FIXED);
        let space = &world.processes[0].space;
        assert_eq!(space.mmap(from, size, RW, PRIVATE | MAP_FIXED, None), Ok(from));
        (0..tables).for_each(|i| space.write(from + i * table, &[1]).unwrap());
        let moves = |world: &mut World<'_, K4>| {
            assert_eq!(world.processes[0].space.mremap(from, size, size, flags, to), Ok(to));
        };
        count = issued(world, moves);
        world.expect_sound();
    });
    count
}

/// Where all that a table translates takes one operation for the whole address space, 32 tables take one.
#[test]
fn tables_that_move_are_flushed_together() {
    // The tables above them are left where they were, and freed.
    const LEFT: u64 = 2;
    for (tables, flushes) in [(1, 1), (32, 1), (33, 2)] {
        assert_eq!(moving_tables(CORTEX_A72, tables), flushes + LEFT, "{tables} tables");
        assert_eq!(moving_tables(NEOVERSE, tables), tables + LEFT, "{tables} tables, by ranges");
    }
}

/// Of a table of pages few are there: what was issued for each call.
fn sparse(setup: Setup) -> Vec<(&'static str, u64)> {
    let mut found = Vec::new();
    with_memory::<K4>(setup, 64, ThpPolicy::Never, |world| {
        world.switch(0, Some(0));
        let page = World::<K4>::va(1);
        let (table, from, flags) = (K4::GRANULE.level_size(2), 1 << 40, MREMAP_MAYMOVE | MREMAP_FIXED);
        // The table is not left empty, nor moved as it is.
        let (size, to) = (table - 64 * page, (1 << 41) + page);
        let space = &world.processes[0].space;
        assert_eq!(space.mmap(from, table, RW, PRIVATE | MAP_FIXED, None), Ok(from));
        space.write(from + table - page, &[1]).unwrap();
        space.write(from + 3 * page, &[1]).unwrap();
        let mut step = |name, act: &dyn Fn()| {
            let count = || space.counters().get(Counter::TlbInvalidations);
            let before = count();
            act();
            found.push((name, count() - before));
        };
        step("mprotect, one page", &|| space.mprotect(from, size, PROT_READ).unwrap());
        step("mprotect, one page, back", &|| space.mprotect(from, size, RW).unwrap());
        step("mremap, one page", &|| assert_eq!(space.mremap(from, size, size, flags, to), Ok(to)));
        step("mremap, one page, back", &|| assert_eq!(space.mremap(to, size, size, flags, from), Ok(from)));
        step("fork, two pages far apart", &|| {
            let (mm, _) = world.new_mm().expect("a root table");
            drop(space.fork(mm).expect("memory"));
        });
        world.expect_sound();
    });
    found
}

/// A page alone takes one operation, however wide the range is of which it is all that is there.
#[test]
fn what_is_not_there_is_not_invalidated() {
    // A table that is left is freed, which takes three, the tables above it among them.
    const LEFT: u64 = 3;
    let expected = [
        ("mprotect, one page", 1),
        ("mprotect, one page, back", 1),
        ("mremap, one page", 1),
        ("mremap, one page, back", 1 + LEFT),
        ("fork, two pages far apart", 2),
    ];
    assert_eq!(sparse(CORTEX_A72), expected);
}
