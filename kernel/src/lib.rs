//! What the kernel decides from bytes, before it touches the machine: the library half of the kernel, without
//! unsafe code and without a heap, tested on the host.
//!
//! ```text
//!  under EFI: memory map, load options, initrd, tables ──▶ efi_boot, efi_tables ──▶ a copy of the
//! device tree blob ──▶ dt::parse ──▶ platform::Platform ──┬─▶ bootargs::BootArgs
//!                                                         ├─▶ memblock::MemBlock ──▶ linear map, frames
//! Image, blob, initrd: where they are ────────────────────┘
//!                                                         └─▶ console, interrupt controller, timer, CPUs
//! initial RAM disk ──▶ cpio::Archive ──▶ program::Program, initial_stack::InitialStack ──▶ processes
//! console ──▶ line::Line ──▶ their `read`
//! ```
//!
//! The binary half (`main.rs` and the modules that it names) is built for `aarch64-unknown-none-softfloat` only.
#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]

pub mod bootargs;
pub mod cpio;
pub mod dt;
pub mod efi_boot;
pub mod efi_tables;
pub mod glob;
pub mod initial_stack;
pub mod line;
pub mod memblock;
pub mod platform;
pub mod program;
pub mod tlb_reach;
