//! Boots the kernel in QEMU and judges what it says; and runs the mm crate on the model of the MMU.
//!
//! ```text
//! tests/*.rs ── Boot ──> scripts/run ──> QEMU ──> the kernel
//!     │           └──<── Outcome: exit status, console, the script's verdict
//!     ├── ktap      whether what was printed is KTAP and agrees with itself
//!     ├── suite     machines that must pass the whole suite
//!     ├── cpio      initial RAM disks
//!     ├── tree      device trees: QEMU's own, edited or broken
//!     ├── stand_in  a few instructions that print a text and end: a kernel that lies
//!     ├── image     the files that the build made
//!     └── early     which instructions must not run before the MMU is on
//! ```
//!
//! `scripts/run` is the only place that knows QEMU's command line. The tests that boot something are run by name only, as
//! `scripts/test` does once QEMU and the kernel's Image are there. What repeats others on another machine is ignored without
//! `--include-ignored`, which is `scripts/test --long`.
#![forbid(unsafe_code)]

pub mod address_space;
pub mod boot;
pub mod cpio;
pub mod early;
pub mod image;
pub mod ktap;
pub mod property;
pub mod stand_in;
pub mod suite;
pub mod tree;
