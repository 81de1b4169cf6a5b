//! Atomics that a model checker can take over: core's, or loom's under `--cfg loom`.
//!
//! Only what is to be explored is taken from here: descriptors in memory, and what page-table code shares with other
//! CPUs without a lock.

pub use core::sync::atomic::Ordering;

#[cfg(not(loom))]
pub use core::sync::atomic::AtomicU64;
#[cfg(loom)]
pub use loom::sync::atomic::AtomicU64;
