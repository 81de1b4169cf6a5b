#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), no_std)]

pub mod addr;
pub mod cpu_models;
pub mod descriptor;
pub mod esr;
pub mod features;
pub mod granule;
pub mod mmu;
pub mod sync;
pub mod tlbi;

#[cfg(all(target_arch = "aarch64", target_os = "none"))]
pub mod aarch64;

pub use addr::{Pfn, PhysAddr, VirtAddr};
pub use descriptor::{MemoryType, PteFlags, PteValue};
pub use granule::Granule;
pub use mmu::{Entry, Mmu, Table, TableFrame};
