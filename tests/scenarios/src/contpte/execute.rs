//! Pages that a user may execute: what is fetched is what was written before.

use arch::Pfn;
use mm::pte::{Pte, UserProt};
use mm::ptep::{modify_prot_commit, modify_prot_start};

use super::world::World;
use super::{Fault, Machine};

/// The instruction at the beginning of a page.
fn write_code<'m, S: Machine<'m>>(world: &World<'_, 'm, S>, pfn: Pfn, number: u8) {
    let svc = 0xd400_0001 | u32::from(number) << 5;
    for (offset, byte) in (0..).zip(svc.to_le_bytes()) {
        world.set_code(pfn, offset, byte);
    }
}

/// A block with code, executed by every CPU; not while it may be written to; and what was written then is executed next.
pub(super) fn code_is_executed_as_it_was_written<'m, S: Machine<'m>>(machine: &S) {
    let world = World::new(machine);
    let block = World::<S>::BLOCK;
    let folio = world.alloc(block);
    let pages = [0, 1, block - 1];
    for page in 0..block {
        write_code(&world, folio.head().add(page as u64), page as u8 + 1);
    }
    world.set(0, block, folio.head(), UserProt::ReadExecute);
    world.expect_folded(0, true);
    for round in 0..2_u8 {
        for page in pages {
            world.expect_execute(page, Ok(page as u8 + 1 + round));
            world.expect_no_write(page);
        }
        for (prot, execute) in [(UserProt::ReadWrite, false), (UserProt::ReadExecute, true)] {
            world.protect(0..block, prot, |guard| {
                let old = modify_prot_start(guard, World::<S>::va(0), block);
                modify_prot_commit(guard, World::<S>::va(0), old.with_prot(prot), block);
            });
            world.expect_folded(0, true);
            if !execute {
                world.expect_execute(1, Err(Fault::Permission));
                for page in 0..block {
                    write_code(&world, folio.head().add(page as u64), page as u8 + 2 + round);
                }
                folio.mark_written();
            }
        }
    }
    // One page of it loses the permission.
    world.protect(1..2, UserProt::Read, |guard| {
        let old = modify_prot_start(guard, World::<S>::va(1), 1);
        modify_prot_commit(guard, World::<S>::va(1), old.with_prot(UserProt::Read), 1);
    });
    world.expect_execute(1, Err(Fault::Permission));
    world.expect_execute(0, Ok(3));
    world.finish();
}
