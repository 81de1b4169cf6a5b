//! Folded blocks: a user's memory changed by the public ptep API, and used through the mapping all the while. Run on the
//! host on the model MMU, for each granule, and in the kernel on the real one.
//!
//! ```text
//!   a scenario ──▶ World: what each page is meant to be ──▶ ptep API ──▶ tables
//!                    │ after each change                                   │
//!                    │   the tables say so                                 ▼
//!                    └── every CPU reads so ─────────▶ Machine::access ──▶ MMU
//!                                                        │ a fault          │ model: all that may happen
//!                                                        ▼                  │ kernel: what happens
//!                                                      fault::resolve  ◀────┘
//! ```
//!
//! A failure panics.

use alloc::vec::Vec;

use arch::{Mmu, PhysAddr, PteValue, VirtAddr};
use mm::frame::FrameMap;
use mm::ptep::LocklessGuard;
use mm::{Mm, TableAlloc};

mod clear;
mod execute;
pub mod fault;
mod flags;
mod fold;
#[cfg(test)]
mod host;
mod protect;
mod world;

/// What EL0 does with a byte of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Loads it.
    Read,
    /// Stores this value.
    Write(u8),
    /// Executes what is there, which is an `svc` if it may be: its immediate is what comes of it.
    Execute,
}

/// How an access ended that no fault handler can help.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing is mapped.
    Translation,
    /// The entry has no access flag.
    AccessFlag,
    /// What is mapped does not give the permission.
    Permission,
}

/// A machine on which an empty user address space is loaded, on every CPU that it has.
pub trait Machine<'m> {
    /// Its MMU.
    type M: Mmu + 'm;
    /// An operation that has begun: see [`Self::begin`].
    type Operation;

    /// The address space.
    fn mm(&self) -> &Mm<'m, Self::M>;
    /// Where its frames come from: folios of two blocks can be had, and six blocks in all.
    fn frames(&self) -> &'m FrameMap<'m>;
    /// Where its tables come from.
    fn tables(&self) -> &dyn TableAlloc;
    /// How many CPUs use it. The scenario itself runs on CPU 0.
    fn cpus(&self) -> usize;

    /// A byte of memory, not by the mapping that is under test.
    fn byte(&self, pa: PhysAddr) -> u8;
    /// Sets it.
    fn set_byte(&self, pa: PhysAddr, value: u8);

    /// Makes a CPU do these accesses as EL0, one after the other, resolving faults as [`fault::resolve`] does. What was
    /// read, written or executed, or the fault that could not be resolved.
    ///
    /// # Panics
    /// Where it is not certain what an access ends in.
    fn access(&self, cpu: usize, accesses: &[(VirtAddr, Access)]) -> Vec<Result<u8, Fault>>;
    /// How many faults were resolved so far by a change of an entry.
    fn resolved(&self) -> u64;
    /// Calls `act` while another CPU, if there is one, writes to these addresses and reads them, again and again.
    ///
    /// # Panics
    /// Where it does not read what it wrote, or meets a fault that can't be resolved.
    fn while_used(&self, addresses: &[VirtAddr], act: &mut dyn FnMut());
    /// Calls `act` with interrupts masked.
    fn masked(&self, act: &mut dyn FnMut(&LocklessGuard));

    /// An operation begins that makes these pages what the entries say, or not valid. Until it ends they may be seen
    /// as before.
    fn begin(&self, pages: &[(VirtAddr, PteValue)]) -> Self::Operation;
    /// The operation has ended: what it owes the MMU must have been done.
    fn end(&self, operation: Self::Operation);
    /// Panics where anything was done that the architecture does not allow, if that can be known.
    fn check(&self);
}

/// A scenario.
pub type Scenario<S> = fn(&S);

/// All of them, by name.
pub const fn scenarios<'m, S: Machine<'m>>() -> [(&'static str, Scenario<S>); 31] {
    [
        ("pages_fold_with_the_last", fold::pages_fold_with_the_last),
        ("a_batch_folds_what_it_covers", fold::a_batch_folds_what_it_covers),
        ("out_of_order_is_for_a_refold", fold::out_of_order_is_for_a_refold),
        ("each_obstacle_is_named", fold::each_obstacle_is_named),
        ("an_incongruent_batch_stays_pages", fold::an_incongruent_batch_stays_pages),
        ("set_pte_leaves_a_block_alone", fold::set_pte_leaves_a_block_alone),
        ("a_page_of_a_block_is_set_again", fold::a_page_of_a_block_is_set_again),
        ("one_page_goes", clear::one_page_goes),
        ("a_range_across_blocks_goes", clear::a_range_across_blocks_goes),
        ("whole_blocks_go_as_they_are", clear::whole_blocks_go_as_they_are),
        ("frames_are_free_after_the_flush", clear::frames_are_free_after_the_flush),
        ("another_frame_comes", clear::another_frame_comes),
        ("a_block_moves_to_a_congruent_place", clear::a_block_moves_to_a_congruent_place),
        ("a_block_moves_to_an_incongruent_place", clear::a_block_moves_to_an_incongruent_place),
        ("mprotect_of_a_block", protect::mprotect_of_a_block),
        ("mprotect_of_half_a_block", protect::mprotect_of_half_a_block),
        ("mprotect_of_one_page", protect::mprotect_of_one_page),
        ("mprotect_across_blocks", protect::mprotect_across_blocks),
        ("mprotect_in_pieces", protect::mprotect_in_pieces),
        ("copy_on_write_of_a_block", protect::copy_on_write_of_a_block),
        ("copy_on_write_of_a_part", protect::copy_on_write_of_a_part),
        ("the_last_owner_writes_again", protect::the_last_owner_writes_again),
        ("a_block_is_used_while_it_changes", protect::a_block_is_used_while_it_changes),
        ("old_pages_become_young", flags::old_pages_become_young),
        ("young_is_of_the_block", flags::young_is_of_the_block),
        ("clearing_young_with_a_flush", flags::clearing_young_with_a_flush),
        ("dirty_is_of_the_block", flags::dirty_is_of_the_block),
        ("cleaning_across_blocks", flags::cleaning_across_blocks),
        ("access_flags_keep_a_block", flags::access_flags_keep_a_block),
        ("dirty_outlives_permissions", flags::dirty_outlives_permissions),
        ("code_is_executed_as_it_was_written", execute::code_is_executed_as_it_was_written),
    ]
}
