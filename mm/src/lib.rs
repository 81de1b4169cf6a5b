#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

pub mod frame;
mod mm_struct;
pub mod pgd;
mod raw;
mod walk;

pub use mm_struct::{Mm, VA_BITS};
pub use pgd::{KernelProt, MapError, Mapping, TableAlloc, create_pgd_mapping};
pub use walk::Leaf;
