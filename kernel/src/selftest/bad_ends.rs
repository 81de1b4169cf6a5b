//! Tests that end badly, each in its own way: they show that the verdict can be negative.

use alloc::vec::Vec;
use core::hint::black_box;

use arch::aarch64::daif;
use arch::aarch64::hardware::linear;
use mm::frame::Folio;

use super::harness::{Context, TestResult, check};
use crate::vm::GRANULE;
use crate::{memory, panic, smp};

pub(crate) fn fails(_: &Context<'_>) -> TestResult {
    check!(black_box(1) == 2, "this test fails because it was asked to");
    Ok(())
}

pub(crate) fn panics(_: &Context<'_>) -> TestResult {
    panic!("this test panics because it was asked to");
}

/// Another CPU panics, and this one does not wait for it.
pub(crate) fn panics_elsewhere(_: &Context<'_>) -> TestResult {
    fn panic_here() {
        panic!("this CPU panics because it was asked to");
    }
    let _ = smp::spawn_on(1, panic_here);
    // Until it has begun, there is nothing to be noticed.
    while !panic::is_reporting() {
        core::hint::spin_loop();
    }
    Ok(())
}

pub(crate) fn faults(_: &Context<'_>) -> TestResult {
    let nowhere = black_box(0x10) as *const u64;
    // SAFETY: nothing is mapped there, which is the point: the load faults.
    let value = unsafe { nowhere.read_volatile() };
    check!(false, "address 0x10 was read: {value:#x}");
    Ok(())
}

pub(crate) fn overflows(_: &Context<'_>) -> TestResult {
    #[inline(never)]
    #[expect(unconditional_recursion, reason = "the stack is to overflow")]
    fn recurse(depth: u64) -> u64 {
        let frame = black_box([depth; 32]);
        // Not a tail call: the frame is used after it.
        recurse(depth + 1) + frame[black_box(0)]
    }
    check!(recurse(0) == 0, "endless recursion came to an end");
    Ok(())
}

pub(crate) fn hangs(_: &Context<'_>) -> TestResult {
    loop {
        core::hint::spin_loop();
    }
}

pub(crate) fn hangs_masked(context: &Context<'_>) -> TestResult {
    daif::save_and_mask();
    hangs(context)
}

pub(crate) fn leaks(_: &Context<'_>) -> TestResult {
    let folio = memory::frames().alloc(0).expect("there is memory");
    let _ = Folio::into_raw(folio);
    Ok(())
}

pub(crate) fn writes_to_free_memory(_: &Context<'_>) -> TestResult {
    let frames = memory::frames();
    let folio = frames.alloc(0).expect("there is memory");
    let stale = linear(folio.head().addr(GRANULE)).get() as *mut u64;
    drop(folio);
    // SAFETY: none: the frame is free. It is mapped, so that nothing but the poison can notice.
    unsafe { stale.write_volatile(1) };
    // The frame comes back at the latest when all are allocated.
    let mut all = Vec::new();
    while let Ok(folio) = frames.alloc(0) {
        all.push(folio);
    }
    check!(false, "nothing noticed the write to a free frame among {}", all.len());
    Ok(())
}
