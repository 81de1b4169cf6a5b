//! Permissions: as mprotect changes them, as fork takes them, and as faults give them back.

use arch::Mmu;
use mm::contpte::refold;
use mm::counters::Counter;
use mm::pte::{Pte, UserProt};
use mm::ptep::{
    YoungDirty, clear_young_dirty_ptes, modify_prot_commit, modify_prot_start, ptep_get, ptep_get_and_clear,
    ptep_set_access_flags, set_ptes, wrprotect_ptes,
};

use super::Machine;
use super::world::{Page, World};

const RW: UserProt = UserProt::ReadWrite;
const RO: UserProt = UserProt::Read;

/// Changes the permission of some pages, as mprotect does.
fn mprotect<'m, S: Machine<'m>>(world: &World<'_, 'm, S>, first: usize, nr: usize, prot: UserProt) {
    world.protect(first..first + nr, prot, |guard| {
        let old = modify_prot_start(guard, World::<S>::va(first), nr);
        modify_prot_commit(guard, World::<S>::va(first), old.with_prot(prot), nr);
    });
}

/// Takes the permission to write from some pages, as fork does.
fn wrprotect<'m, S: Machine<'m>>(world: &World<'_, 'm, S>, first: usize, nr: usize) {
    world.protect(first..first + nr, RO, |guard| wrprotect_ptes(guard, World::<S>::va(first), nr));
}

/// A block keeps its size whatever its permission is.
pub(super) fn mprotect_of_a_block<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let _folio = world.block(0, RW);
    world.write(0, 3, 0x13);
    for round in 0..2 {
        mprotect(&world, 0, block, RO);
        world.expect_folded(0, true);
        assert!(world.get(0).is_dirty(), "page 3 was written to");
        world.expect_no_write(3);
        world.expect_no_write(block - 1);
        mprotect(&world, 0, block, RW);
        world.expect_folded(0, true);
        world.write(1, 3, 0x20 + round);
        world.write(0, block - 1, 0x30 + round);
    }
    let counters = world.mm().counters();
    assert_eq!((counters.blocks_folded(), counters.get(Counter::Folds)), (1, 0));
    world.finish();
}

/// A half can't be protected as part of the block; when it is the same again, a refold finds it.
pub(super) fn mprotect_of_half_a_block<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let _folio = world.block(0, RW);
    for first in [0, block / 2] {
        mprotect(&world, first, block / 2, RO);
        world.expect_folded(0, false);
        world.expect_no_write(first);
        world.expect_no_write(first + block / 2 - 1);
        world.write(0, (first + block / 2) % block, 0x44);
        world.refold(0..block, 0);
        mprotect(&world, first, block / 2, RW);
        world.write(1, first, 0x45);
        world.refold(0..block, 1);
    }
    assert_eq!(world.counter(Counter::UnfoldsByClear), 2);
    world.finish();
}

/// One page, wherever it is in its block.
pub(super) fn mprotect_of_one_page<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let _folio = world.block(0, RW);
    for page in [0, 1, block / 2, block - 1] {
        mprotect(&world, page, 1, RO);
        world.expect_folded(page, false);
        world.expect_no_write(page);
        world.write(1, page ^ 1, 0x46);
        mprotect(&world, page, 1, RW);
        // By the last page it folds itself.
        let folded = page == block - 1;
        world.expect_folded(page, folded);
        world.refold(0..block, usize::from(!folded));
        world.write(0, page, 0x47);
    }
    world.finish();
}

/// A batch that begins in one block and ends in the next.
pub(super) fn mprotect_across_blocks<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let _folio = world.two_blocks(RW);
    world.write(0, 0, 0x48);
    mprotect(&world, 3, block, RO);
    for page in [3, block - 1, block, block + 2] {
        world.expect_no_write(page);
    }
    for page in [0, 2, block + 3, 2 * block - 1] {
        world.write(1, page, 0x49);
    }
    mprotect(&world, 3, block, RW);
    world.refold(0..2 * block, 2);
    // And one that covers one of them wholly: that one is folded at once.
    mprotect(&world, 3, 2 * block - 3, RO);
    world.expect_folded(0, false);
    world.expect_folded(block, true);
    world.expect_no_write(2 * block - 1);
    world.finish();
}

/// Cleared as one, committed as two that differ: nothing may be valid beside what was one entry.
pub(super) fn mprotect_in_pieces<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let folio = world.block(0, RW);
    world.write(0, 1, 0x4a);
    let half = block / 2;
    let meant = |page: usize| {
        Some(Page { pfn: folio.head().add(page as u64), prot: if page < half { RO } else { RW } })
    };
    world.change(0..block, meant, |guard| {
        let old = modify_prot_start(guard, World::<S>::va(0), block);
        let rest = old.advance(half as u64 * S::M::GRANULE.page_size());
        modify_prot_commit(guard, World::<S>::va(0), old.with_prot(RO), half);
        modify_prot_commit(guard, World::<S>::va(half), rest.with_prot(RW), half);
    });
    world.expect_folded(0, false);
    world.expect_no_write(half - 1);
    world.write(1, half, 0x4b);
    world.finish();
}

/// The fault of a write to a page that is shared: it gets a frame of its own, with what was there.
fn copy_page<'m, S: Machine<'m>>(world: &World<'_, 'm, S>, page: usize) -> mm::frame::Folio<'m> {
    let old = world.page(page).pfn;
    let copy = world.alloc(1);
    world.set_byte(copy.head(), world.byte(old));
    let meant = Page { pfn: copy.head(), prot: RW };
    world.change(
        page..page + 1,
        |_| Some(meant),
        |guard| {
            ptep_get_and_clear(guard, World::<S>::va(page));
            set_ptes(guard, World::<S>::va(page), meant.pte::<S::M>().mkdirty(), 1);
        },
    );
    copy
}

/// Fork of a whole block: it stays folded, until a write takes one page out of it.
pub(super) fn copy_on_write_of_a_block<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let folio = world.block(0, RW);
    world.write(1, 4, 0x5a);
    wrprotect(&world, 0, block);
    world.expect_folded(0, true);
    assert_eq!(world.counter(Counter::UnfoldsByWriteProtect), 0);
    assert!(world.get(4).is_dirty(), "page 4 was written to");
    for page in [0, 4, block - 1] {
        world.expect_no_write(page);
    }
    let copies = [4, block - 1].map(|page| {
        let copy = copy_page(&world, page);
        world.expect_folded(page, false);
        world.write(0, page, 0x5b);
        world.write(1, page, 0x5c);
        world.expect_no_write(page - 1);
        copy
    });
    // Who shares the block finds what was there.
    assert_eq!(world.byte(folio.head().add(4)), 0x5a);
    world.set(2 * block, block, folio.head(), RO);
    world.expect_folded(2 * block, true);
    world.read(1, 2 * block + 4);
    world.finish();
    drop(copies);
}

/// Fork of a part: that is unfolded, and the rest may be written to as before.
pub(super) fn copy_on_write_of_a_part<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let _folio = world.two_blocks(RW);
    world.write(0, block - 1, 0x5d);
    // The last page of the first block, and the first three of the second.
    wrprotect(&world, block - 1, 4);
    assert_eq!(world.counter(Counter::UnfoldsByWriteProtect), 2);
    for page in block - 1..block + 3 {
        world.expect_no_write(page);
    }
    assert!(world.get(block - 1).is_dirty(), "page {} was written to", block - 1);
    for page in [0, block - 2, block + 3, 2 * block - 1] {
        world.write(1, page, 0x5e);
    }
    // One page of a block that is not folded any more; nothing is left to unfold.
    wrprotect(&world, 1, 1);
    assert_eq!(world.counter(Counter::UnfoldsByWriteProtect), 2);
    let copy = copy_page(&world, block);
    world.write(0, block, 0x5f);
    world.finish();
    drop(copy);
}

/// The other one has gone: a write fault gives the permission back, to one page. The block stays as it was where the
/// permission was never taken.
pub(super) fn the_last_owner_writes_again<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let _folio = world.block(0, RW);
    world.write(0, 2, 0x61);
    wrprotect(&world, 0, block);
    world.expect_no_write(2);
    world.protect(2..3, RW, |guard| {
        let pte = ptep_get(guard, World::<S>::va(2)).mkwrite().mkyoung().mkdirty();
        assert!(ptep_set_access_flags(guard, World::<S>::va(2), pte), "the permission was not missing");
        assert!(!ptep_set_access_flags(guard, World::<S>::va(2), pte), "it was missing twice");
    });
    assert_eq!(world.counter(Counter::UnfoldsByAccessFlags), 1);
    world.write(1, 2, 0x62);
    world.expect_no_write(1);
    world.expect_no_write(3);
    // One after the other, until they are alike again.
    world.protect(0..block, RW, |guard| {
        for page in (0..block).filter(|&page| page != 2) {
            let pte = ptep_get(guard, World::<S>::va(page)).mkwrite().mkyoung().mkdirty();
            assert!(ptep_set_access_flags(guard, World::<S>::va(page), pte));
        }
    });
    world.refold(0..block, 1);
    world.write(0, block - 1, 0x63);
    world.finish();
}

/// Two CPUs: one writes and reads, the other takes pages or their permission away and gives them back under one lock, and
/// makes them old and clean. No write is lost.
pub(super) fn a_block_is_used_while_it_changes<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let _folio = world.block(0, RW);
    let va = World::<S>::va;
    world.while_used(0..block, || {
        for page in [0, 3, block - 1] {
            // Unfolded, changed and, but for the last page, folded again.
            world.quietly(|guard| {
                let old = modify_prot_start(guard, va(page), 1);
                modify_prot_commit(guard, va(page), old.with_prot(RW), 1);
            });
            world.quietly(|guard| refold(guard, va(0), block));
            world.quietly(|guard| clear_young_dirty_ptes(guard, va(page), 1, YoungDirty::Both));
            // The permission of all, and back for one: it is unfolded; then for the others.
            world.quietly(|guard| {
                wrprotect_ptes(guard, va(0), block);
                for page in (page..block).chain(0..page) {
                    let pte = ptep_get(guard, va(page)).mkwrite().mkyoung().mkdirty();
                    ptep_set_access_flags(guard, va(page), pte);
                }
            });
            world.quietly(|guard| {
                let old = modify_prot_start(guard, va(0), block);
                modify_prot_commit(guard, va(0), old.with_prot(RW), block);
            });
        }
    });
    world.expect_folded(0, true);
    world.finish();
}
