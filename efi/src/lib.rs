#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]
#![cfg_attr(not(test), no_std)]

mod bytes;
pub mod mapping;
pub mod memory_attributes;
pub mod memory_map;
pub mod rt_properties;
pub mod runtime;
pub mod virtual_map;

pub use mapping::{efi_create_mapping, efi_memattr_apply_permissions, efi_virtmap_init};
pub use memory_attributes::MemoryAttributes;
pub use memory_map::{MemoryDescriptor, MemoryMap};
pub use rt_properties::RuntimeServices;
pub use runtime::Runtime;
