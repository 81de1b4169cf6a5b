//! A test double of the MMU: [`Recorder`] holds translation tables in host memory and records every
//! descriptor store, TLB invalidation and barrier; [`Checker`] judges that sequence by the rules of the
//! architecture.
//!
//! ```text
//!  code under test
//!        │ arch::Mmu: store, publish, invalidate, complete
//!        ▼
//!  Recorder ── Event ──▶ Checker ──▶ Violation     at each store, and at the end of an operation
//!        │ tables in memory
//!        ▼
//!  Recorder::leaves                                what a walker would find, by its own reading
//! ```
//!
//! Nothing here shares code with what it judges, except the sizes in [`arch::Granule`]: descriptors are
//! decoded and addresses taken apart anew, in the [`descriptor`] module.
//!
//! What the checker knows is how translations *of one CPU that never sleeps* may be cached: every valid
//! leaf that was ever stored may be in a TLB until an invalidation of it has completed. It sees one
//! sequence of events, so it is right for code that holds a lock.
#![no_std]

extern crate alloc;

mod checker;
pub mod descriptor;
mod event;
pub mod mmu;
mod recorder;
mod violation;

pub use checker::Checker;
pub use event::Event;
pub use recorder::{GranuleType, K4, K16, K64, Leaf, Recorder};
pub use violation::{Phase, Place, Violation};
