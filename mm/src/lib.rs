#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod address_space;
pub mod asid;
pub mod contpte;
pub mod counters;
#[cfg(feature = "efi")]
mod efi;
mod errno;
mod file;
pub mod frame;
mod guard;
mod icache;
mod memory;
mod mm_struct;
pub mod mman;
pub mod pgd;
pub mod ptdump;
pub mod pte;
pub mod ptep;
mod raw;
mod runs;
mod shared;
mod sync;
pub mod tlb;
mod vma;
mod vmas;
mod walk;

pub use address_space::{Access, AddressSpace, Fault, Resolution, TASK_SIZE, ThpPolicy};

#[cfg(feature = "efi")]
pub use efi::{EfiMapError, EfiMapping, EfiMemory, EfiMm, EfiProt, EfiProtError};
pub use errno::{ERRNOS, Errno};
pub use file::File;
pub use guard::{PteGuard, TablePair};
pub use memory::{Memory, PhysMem, UserTables};
pub use mm_struct::{Mm, VA_BITS};
pub use pgd::{KernelProt, MapError, Mapping, TableAlloc, create_pgd_mapping};
pub use vma::Prot;
pub use vmas::MAX_MAP_COUNT;
pub use walk::Leaf;
