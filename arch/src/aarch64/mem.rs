//! `memcpy` and `memmove`, which compiled code calls.

use core::arch::global_asm;

global_asm!(include_str!("mem.S"));
