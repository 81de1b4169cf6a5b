#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

pub mod asid;
pub mod contpte;
pub mod counters;
#[cfg(feature = "efi")]
mod efi;
pub mod frame;
mod guard;
mod icache;
mod mm_struct;
pub mod pgd;
pub mod ptdump;
pub mod pte;
pub mod ptep;
mod raw;
mod sync;
pub mod tlb;
mod walk;

#[cfg(feature = "efi")]
pub use efi::{EfiMapError, EfiMapping, EfiMemory, EfiMm, EfiProt, EfiProtError};
pub use guard::{PteGuard, TablePair};
pub use mm_struct::{Mm, VA_BITS};
pub use pgd::{KernelProt, MapError, Mapping, TableAlloc, create_pgd_mapping};
pub use walk::Leaf;
