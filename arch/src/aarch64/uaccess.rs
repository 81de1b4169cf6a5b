//! Copies between the kernel and a user: by unprivileged loads and stores, so that the user's own permissions count, also
//! where PAN keeps the kernel's accesses from user memory.

use super::probe::{Fault, Outcome, result};
use crate::VirtAddr;

unsafe extern "C" {
    fn uaccess_copy_from(to: *mut u8, from: u64, bytes: usize) -> Outcome;
    fn uaccess_copy_to(to: u64, from: *const u8, bytes: usize) -> Outcome;
}

/// The granularity of a copy: a multiple of this that is no larger than any page does not straddle pages.
const SMALLEST_PAGE: u64 = 4096;

fn expect_one_page(va: VirtAddr, bytes: usize) {
    let left = SMALLEST_PAGE - va.get() % SMALLEST_PAGE;
    assert!(bytes as u64 <= left, "{bytes} bytes at {va} are not in one page");
}

/// Copies from the user's `from` on, all of it in one page of 4 KiB, to `to`.
///
/// # Errors
/// The first fault. What `to` holds then is of no use.
///
/// # Panics
/// Where the bytes are not in one page.
pub fn copy_from_user(to: &mut [u8], from: VirtAddr) -> Result<(), Fault> {
    expect_one_page(from, to.len());
    // SAFETY: `to` is exclusively borrowed. An unprivileged load reads what EL0 may read and has no side effect: user
    // mappings are of memory only. A fault is fixed up.
    result(unsafe { uaccess_copy_from(to.as_mut_ptr(), from.get(), to.len()) }).map(|_| ())
}

/// Copies `from` to the user's `to`, all of it in one page of 4 KiB.
///
/// # Errors
/// The first fault. Some of it may have been written.
///
/// # Panics
/// Where the bytes are not in one page.
///
/// # Safety
/// What TTBR0 maps writable at EL0 must be memory that no Rust reference refers to.
pub unsafe fn copy_to_user(to: VirtAddr, from: &[u8]) -> Result<(), Fault> {
    expect_one_page(to, from.len());
    // SAFETY: an unprivileged store writes what EL0 may write, which the caller vouches for. A fault is fixed up.
    result(unsafe { uaccess_copy_to(to.get(), from.as_ptr(), from.len()) }).map(|_| ())
}
