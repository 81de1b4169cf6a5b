//! Random calls of whole address spaces, on the model MMU, against the bytes and permissions that each page is meant to have.
//!
//! ```text
//!  bytes ──▶ Setup, Op ──▶ World: three processes, two CPUs, two files, little memory
//!                            │ does the call                               │ says what is meant
//!                            ▼                                             ▼
//!         mm::AddressSpace ──▶ pleat_model::mmu::Machine          Reference: per page, permission and contents
//!                                     │ judged at each step ──────────────── agree after each call
//! ```
//!
//! After each operation: no violation in the model; what is mapped has the contents and no more than the permission that
//! is meant; a private page that may be written to is nobody else's; mappings are counted as they are; no access that is
//! not meant is possible on any CPU. Hardware sets access flags and dirty states in the middle of operations, allocations
//! fail at random. At the end every frame and every table was given back.

mod access;
mod board;
mod check;
mod op;
mod reference;
mod steps;
mod tables;
mod world;

use model::GranuleType;

pub use board::Board;
pub use op::{OP_BYTES, Op};
pub use world::{World, with_memory, with_world};

use crate::property::Setup;

/// Does the operations one after the other, then ends all processes and looks for what was lost.
///
/// # Panics
/// Where something is not as it must be.
pub fn run<G: GranuleType + Sync>(setup: Setup, ops: &[Op]) {
    with_world::<G>(setup, |world| {
        for (at, op) in ops.iter().enumerate() {
            world.apply(op);
            world.check(&format!("operation {at}, {op:?}"));
        }
        world.end();
    });
}
