//! Calls of the public API, compiled for the machine with and without the feature `efi` of `mm`: `scripts/test` builds both
//! with `--emit=asm`, and a test looks for what the feature costs. On a host there is nothing in it.
#![no_std]
#![cfg(target_os = "none")]
#![forbid(unsafe_code)]

use arch::aarch64::hardware::{Hardware, LinearMap};
use arch::{PteValue, VirtAddr};
use mm::{PteGuard, contpte, ptep};

/// One page: the path that pays nothing for contpte.
#[inline(never)]
pub fn set_one(guard: &mut PteGuard<'_, '_, Hardware<LinearMap>>, index: usize, pte: PteValue) -> bool {
    ptep::set_pte(guard, index, pte).is_ok()
}

/// A block: through the gate.
#[inline(never)]
pub fn refold_block(guard: &mut PteGuard<'_, '_, Hardware<LinearMap>>, va: VirtAddr) -> usize {
    contpte::refold(guard, va, 16)
}
