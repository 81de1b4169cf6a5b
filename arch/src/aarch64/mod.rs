//! The one hardware implementation, and all assembly.

pub mod barrier;
pub mod boot;
pub mod copy;
pub mod daif;
pub mod dcache;
pub mod efi_call;
pub mod hardware;
pub mod icache;
pub mod icc;
pub mod id;
mod mem;
pub mod pmu;
pub mod probe;
pub mod rng;
pub mod semihosting;
pub mod task;
pub mod trap;
pub mod uaccess;
pub mod zero;
