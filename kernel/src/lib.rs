//! (being written)
#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]

pub mod bootargs;
pub mod dt;
pub mod glob;
pub mod memblock;
pub mod platform;
