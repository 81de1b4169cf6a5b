//! Whether blocks are folded, as the kernel's self-tests tell their programs. Elsewhere, on Linux too, the same program only looks
//! at its memory.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::println;
use crate::start::Environment;
use crate::sys::{Result, raw};

/// It is folded.
pub const FOLDED: usize = 0;
/// There is no table.
pub const NO_TABLE: usize = 2;
/// A page is not mapped.
pub const HOLE: usize = 3;
/// Addresses and frames are not congruent.
pub const MISALIGNED: usize = 4;
/// A page is not of the others' folio, and does not follow on them.
pub const DISCONTIGUOUS: usize = 7;
/// Permissions differ.
pub const MIXED_ATTRIBUTES: usize = 8;
/// Nothing: who looks for blocks to fold folds it.
pub const NOTHING: usize = 9;

/// Whether the block that holds an address is folded, or the number of what is in the way. Only the kernel's self-tests have
/// this call.
pub fn fold_state(at: usize) -> Result {
    const FOLD_STATE: usize = 0xf01d;
    raw(FOLD_STATE, &[at])
}

/// Whether the program was given the argument `here`.
static ASKS: AtomicBool = AtomicBool::new(false);

/// Has [`state`] ask the kernel, where the program was given the argument `here`.
pub fn init(environment: Environment) {
    ASKS.store(environment.arg(1) == Some(b"here"), Ordering::Relaxed);
    if !asks() {
        println!("without the argument `here` nobody is asked what is folded");
    }
}

/// Whether the kernel is asked.
pub fn asks() -> bool {
    ASKS.load(Ordering::Relaxed)
}

/// The block that holds an address is in this state.
///
/// # Panics
/// Where it is in another, and the kernel is asked.
#[track_caller]
pub fn state(at: usize, expected: usize, what: &str) {
    state_is_one_of(at, &[expected], what);
}

/// The same, for one of several states.
///
/// # Panics
/// As [`state`].
#[track_caller]
pub fn state_is_one_of(at: usize, expected: &[usize], what: &str) {
    if asks() {
        let found = fold_state(at).expect("the kernel's self-tests have this call");
        assert!(expected.contains(&found), "{what}: {found}, and not of {expected:?}");
    }
}
