//! Scenarios: each runs unchanged on the host, against doubles that judge what they see, and in the kernel, on the
//! machine itself.
//!
//! ```text
//!  cargo test ──▶ host double ──┐                    ┌──▶ frames   the allocator
//!                               ├──▶ a scenario of ──┤
//!  kernel self-test ──▶ machine ┘                    └──▶ mapping  create_pgd_mapping
//! ```
//!
//! They panic where something is not as it must be, and give back what they take.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

pub mod frames;
pub mod mapping;
