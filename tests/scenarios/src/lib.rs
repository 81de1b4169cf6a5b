//! Scenarios: each runs unchanged on the host, against doubles that judge what they see, and in the kernel, on the
//! machine itself.
//!
//! ```text
//!  cargo test ──▶ host double ──┐                    ┌──▶ frames   the allocator
//!                               ├──▶ a scenario of ──┼──▶ mapping  create_pgd_mapping
//!  kernel self-test ──▶ machine ┘                    └──▶ contpte  folded blocks, by the public ptep API
//! ```
//!
//! They panic where something is not as it must be, and give back what they take.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod contpte;
pub mod frames;
pub mod mapping;
