//! Young and dirty: of a block they are one, whoever sets and clears them.

use arch::Mmu;
use arch::mmu::Hafdbs;
use mm::PteGuard;
use mm::pte::{Pte, UserProt};
use mm::ptep::{
    YoungDirty, clear_young_dirty_ptes, modify_prot_commit, modify_prot_start, ptep_clear_flush_young,
    ptep_get, ptep_set_access_flags, ptep_test_and_clear_young, set_ptes, wrprotect_ptes,
};

use super::Machine;
use super::world::{Page, World};

const RW: UserProt = UserProt::ReadWrite;

fn hafdbs<'m, S: Machine<'m>>(world: &World<'_, 'm, S>) -> Hafdbs {
    world.mm().mmu().features().hafdbs
}

/// The first access to an old page makes it young, by hardware or by one fault; of a folded block by one fault for all.
pub(super) fn old_pages_become_young<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let folio = world.alloc(2 * block);
    let meant = |page: usize| Some(Page { pfn: folio.head().add(page as u64), prot: RW });
    for (first, nr, faults) in [(0, block, 1), (block, 3, 3)] {
        let resolved = machine.resolved();
        let pte = Page { pfn: folio.head().add(first as u64), prot: RW }.pte::<S::M>().mkold();
        // All of them are read here.
        world.change(first..first + nr, meant, |guard| set_ptes(guard, World::<S>::va(first), pte, nr));
        world.expect_folded(first, nr == block);
        let resolved = machine.resolved() - resolved;
        if hafdbs(&world) == Hafdbs::None {
            assert_eq!(resolved, faults, "faults for {nr} old pages");
        }
    }
    world.finish();
}

/// An access to one page makes all of a folded block young, and clearing it is of all.
pub(super) fn young_is_of_the_block<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let folio = world.block(0, RW);
    let single = world.alloc(1);
    world.set(block, 1, single.head(), RW);
    for page in [0, 7, block - 1] {
        let va = World::<S>::va(page);
        world.write(1, page, 0x6a);
        world.quietly(|guard| {
            assert!(ptep_test_and_clear_young(guard, va), "all pages were read");
            assert!(!ptep_test_and_clear_young(guard, va), "it was just cleared");
            for other in [0, 7, block - 1] {
                assert!(!ptep_get(guard, World::<S>::va(other)).is_young(), "page {other} of an old block");
            }
            assert!(ptep_get(guard, World::<S>::va(block)).is_young(), "the page beside the block");
        });
        // A TLB that still has it need not notice an access: the flush comes with cleaning.
        world.same(0..block, |guard| {
            clear_young_dirty_ptes(guard, va, 1, YoungDirty::Both);
            assert!(!ptep_get(guard, World::<S>::va(block - 1)).is_young());
        });
        world.expect_folded(page, true);
    }
    world.finish();
    drop(folio);
}

/// The invalidation is issued with it, and complete once it is waited for: the next access is noticed.
pub(super) fn clearing_young_with_a_flush<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let _folio = world.two_blocks(RW);
    // A page of a folded block, and one that is not in one.
    world.protect(block..block + 1, UserProt::Read, |guard| {
        wrprotect_ptes(guard, World::<S>::va(block), 1);
    });
    for page in [4, block] {
        world.quietly(|guard| {
            assert!(ptep_clear_flush_young(guard, World::<S>::va(page)), "page {page} was read");
            assert!(!ptep_clear_flush_young(guard, World::<S>::va(page)), "page {page} is old");
        });
        world.mm().mmu().complete();
        assert!(!world.get(page).is_young(), "page {page}");
        assert!(world.get(block + 1).is_young(), "page {} was not meant", block + 1);
        let resolved = machine.resolved();
        world.read(1, page);
        assert!(world.get(page).is_young(), "the read of page {page} went unnoticed");
        assert!(hafdbs(&world) != Hafdbs::None || machine.resolved() > resolved, "no fault for page {page}");
    }
    world.finish();
}

/// A write to one page makes all of a folded block dirty; cleaning one cleans all, and the next write is noticed.
pub(super) fn dirty_is_of_the_block<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let _folio = world.block(0, RW);
    for (round, page) in [2, 0, block - 1].into_iter().enumerate() {
        assert!(!world.get(page).is_dirty(), "page {page} is clean so far");
        let resolved = machine.resolved();
        world.write(round % 2, page, 0x70 + round as u8);
        let resolved = machine.resolved() - resolved;
        match hafdbs(&world) {
            Hafdbs::None => assert_eq!(resolved, 1, "faults for a write to a clean page"),
            Hafdbs::Af => assert!(resolved >= 1, "no fault for a write to a clean page"),
            Hafdbs::AfDbm => {}
        }
        for other in [0, 1, block / 2, block - 1] {
            assert!(world.get(other).is_dirty(), "page {page} was written to, page {other} is clean");
        }
        world.expect_folded(page, true);
        let what = if round == 1 { YoungDirty::Both } else { YoungDirty::Dirty };
        world.same(0..block, |guard| {
            clear_young_dirty_ptes(guard, World::<S>::va(block / 2), 1, what);
            let pte = ptep_get(guard, World::<S>::va(page));
            assert_eq!((pte.is_dirty(), pte.is_young()), (false, what == YoungDirty::Dirty));
        });
        world.expect_folded(page, true);
    }
    world.finish();
}

/// A range that begins and ends inside of blocks: both are clean and old as a whole, the pages beside them as they were.
pub(super) fn cleaning_across_blocks<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let _folio = world.two_blocks(RW);
    let beside = world.alloc(1);
    world.set(2 * block, 1, beside.head(), RW);
    for what in [YoungDirty::Both, YoungDirty::Dirty, YoungDirty::Young] {
        for page in [0, 2 * block - 1, 2 * block] {
            world.write(1, page, 0x7a);
        }
        let clear = |guard: &mut PteGuard<'_, 'm, S::M>| {
            // Two pages: the last of one block, the first of the next.
            clear_young_dirty_ptes(guard, World::<S>::va(block - 1), 2, what);
            for page in [0, block - 1, block, 2 * block - 1] {
                let pte = ptep_get(guard, World::<S>::va(page));
                assert_eq!(pte.is_dirty(), what == YoungDirty::Young, "page {page}, {what:?}");
                assert_eq!(pte.is_young(), what == YoungDirty::Dirty, "page {page}, {what:?}");
            }
            let pte = ptep_get(guard, World::<S>::va(2 * block));
            assert!(pte.is_dirty() && pte.is_young(), "the page beside the range");
        };
        // Young alone owes no flush: what a TLB still has need not be noticed.
        if what == YoungDirty::Young {
            world.quietly(clear)
        } else {
            world.same(0..2 * block + 1, clear)
        }
        world.expect_folded(0, true);
        world.expect_folded(block, true);
    }
    world.finish();
}

/// A fault that changes no permission leaves the block folded, and is not in vain for any of its pages.
pub(super) fn access_flags_keep_a_block<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let _folio = world.block(0, RW);
    world.same(0..block, |guard| {
        clear_young_dirty_ptes(guard, World::<S>::va(0), block, YoungDirty::Both);
        let pte = ptep_get(guard, World::<S>::va(6));
        assert!(ptep_set_access_flags(guard, World::<S>::va(6), pte.mkyoung()));
        assert!(!ptep_set_access_flags(guard, World::<S>::va(6), pte.mkyoung()), "it is young");
        assert!(!ptep_set_access_flags(guard, World::<S>::va(block - 1), pte.mkyoung()), "all are young");
        assert!(ptep_set_access_flags(guard, World::<S>::va(6), pte.mkyoung().mkdirty()));
        assert!(!ptep_set_access_flags(guard, World::<S>::va(0), pte.mkyoung().mkdirty()), "all are dirty");
    });
    world.expect_folded(0, true);
    // Nobody need notice a write any more.
    let resolved = machine.resolved();
    world.write(0, 0, 0x7b);
    world.write(1, block - 1, 0x7c);
    assert_eq!(machine.resolved(), resolved, "a write to a dirty page faulted");
    world.finish();
}

/// A page that was written to is dirty when it is read-only, and when it may be written to again; then writes to it don't
/// fault for ever.
pub(super) fn dirty_outlives_permissions<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let _folio = world.block(0, RW);
    world.write(0, 5, 0x7d);
    // The whole block, then a part of it.
    for (first, nr) in [(0, block), (4, 3)] {
        world.protect(first..first + nr, UserProt::Read, |guard| {
            wrprotect_ptes(guard, World::<S>::va(first), nr);
        });
        assert!(world.get(5).is_dirty());
        world.expect_no_write(5);
        world.protect(first..first + nr, RW, |guard| {
            let old = modify_prot_start(guard, World::<S>::va(first), nr);
            assert!(old.is_dirty(), "of pages that were written to: {old:?}");
            modify_prot_commit(guard, World::<S>::va(first), old.with_prot(RW), nr);
        });
        assert!(world.get(5).is_dirty());
        world.write(1, 5, 0x7e);
        world.write(0, 4, 0x7f);
    }
    world.refold(0..block, 1);
    world.finish();
}
