//! Random operations of the public API, on the model MMU, against a plain reference.
//!
//! ```text
//!  bytes ──▶ Setup, Op ──▶ World: three address spaces, two CPUs
//!                            │ does the operation by mm's public API       │ says what is meant
//!                            ▼                                             ▼
//!                   pleat_model::mmu::Machine ◀── judged at each step ── Reference
//! ```
//!
//! After each operation: no violation in the model, every block homogeneous and no group mixed, tables and reference
//! agree on frame, permission, young and dirty. Hardware sets access flags and dirty states in the middle of operations.
//!
//! The property tests and the fuzzer feed the same decoder: [`run_bytes`]. What fails panics and says why.

mod access;
mod check;
mod op;
mod reference;
mod steps;
mod world;

use arch::features::{BbmLevel, Hafdbs};
use model::GranuleType;
use model::mmu::Config;

pub use op::{OP_BYTES, Op};

/// On what machine operations run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setup {
    /// Access flag and dirty state by hardware.
    pub hafdbs: Hafdbs,
    /// Break-before-make level.
    pub bbm: BbmLevel,
    /// At level 2: the CPUs are known not to abort.
    pub listed: bool,
    /// Invalidation by range.
    pub tlb_range: bool,
    /// No ISB is needed after a DSB.
    pub ets2: bool,
    /// How many ASIDs there are: 4 is the least for two CPUs, and makes for a rollover every other switch.
    pub asids: u32,
}

impl Setup {
    /// That of a byte: zero is the machine that can least.
    pub fn decode(byte: u8) -> Self {
        let choice = |from: u8, of: u8| byte / from % of;
        let (bbm, listed) = match choice(3, 5) {
            0 => (BbmLevel::Level0, false),
            1 => (BbmLevel::Level3, false),
            2 => (BbmLevel::Level2, true),
            3 => (BbmLevel::Level2, false),
            _ => (BbmLevel::Level1, false),
        };
        Self {
            hafdbs: [Hafdbs::None, Hafdbs::AfDbm, Hafdbs::Af][usize::from(choice(1, 3))],
            bbm,
            listed,
            tlb_range: choice(15, 2) != 0,
            ets2: choice(30, 2) != 0,
            asids: if choice(60, 2) == 0 { 16 } else { 4 },
        }
    }

    pub(crate) fn config(self) -> Config {
        Config {
            cpus: world::CPUS,
            bbm: self.bbm,
            no_abort_listed: self.listed,
            hafdbs: self.hafdbs,
            asid_bits: 8,
            tlb_range: self.tlb_range,
            ets2: self.ets2,
            conflict_aborts_handled: false,
        }
    }
}

/// Does the operations one after the other, then ends all address spaces and looks for what was lost.
///
/// # Panics
/// Where something is not as it must be.
pub fn run<G: GranuleType + Sync>(setup: Setup, ops: &[Op]) {
    world::with_world::<G>(setup, |world| {
        for (at, op) in ops.iter().enumerate() {
            world.apply(op);
            world.check(&format!("operation {at}, {op:?}"));
        }
        world.end();
    });
}

/// The same for what a fuzzer makes: a byte for the [`Setup`], then [`OP_BYTES`] for each operation. What is left over is
/// nothing.
///
/// # Panics
/// As [`run`].
pub fn run_bytes<G: GranuleType + Sync>(bytes: &[u8]) {
    let Some((&setup, ops)) = bytes.split_first() else { return };
    let ops: Vec<Op> = ops.as_chunks().0.iter().map(|&bytes| Op::decode(bytes)).collect();
    run::<G>(Setup::decode(setup), &ops);
}
