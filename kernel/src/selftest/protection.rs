//! What must fault does, shown by faulting on purpose; and what must not, doesn't.

use alloc::boxed::Box;
use core::arch::naked_asm;
use core::hint::black_box;
use core::sync::atomic::AtomicU32;

use arch::aarch64::hardware::linear;
use arch::aarch64::probe::{self, Fault};
use arch::esr::{Access, Esr, ExceptionClass};
use arch::{PhysAddr, VirtAddr};

use super::harness::{Context, TestResult, check};
use crate::cpu::StackArea;
use crate::vm::GRANULE;
use crate::{cpu, image, memory, smp, vm};

/// A function that does nothing, to be called where calls are allowed and copied to where they are not.
#[unsafe(naked)]
extern "C" fn only_returns() {
    naked_asm!("ret")
}

/// `ret`
const RET: u32 = 0xd65f_03c0;

fn text() -> VirtAddr {
    VirtAddr::new(only_returns as *const () as u64)
}

/// Loads from `va`. Only for addresses of memory, or where nothing is mapped.
fn load(va: VirtAddr) -> Result<u8, Fault> {
    // SAFETY: reading memory has no effect.
    unsafe { probe::load(va) }
}

/// Fails the test unless `result` is a translation fault of this access at `va`.
pub(super) fn expect_unmapped<T>(result: Result<T, Fault>, va: VirtAddr, what: &str) -> TestResult {
    let Err(fault) = result else {
        check!(false, "{what}: {va} is mapped");
        return Ok(());
    };
    let unmapped = fault.esr.abort().is_some_and(|abort| abort.is_translation_fault());
    check!(
        unmapped && fault.far == va,
        "{what}: {} at {} instead of a translation fault at {va}",
        fault.esr,
        fault.far
    );
    Ok(())
}

/// Fails the test unless `result` is a permission fault at `va`.
pub(super) fn expect_forbidden<T>(result: Result<T, Fault>, va: VirtAddr, what: &str) -> TestResult {
    let Err(fault) = result else {
        check!(false, "{what}: {va} allowed it");
        return Ok(());
    };
    let forbidden = fault.esr.abort().is_some_and(|abort| abort.is_permission_fault());
    check!(
        forbidden && fault.far == va,
        "{what}: {} at {} instead of a permission fault at {va}",
        fault.esr,
        fault.far
    );
    Ok(())
}

/// The means of the other tests: a fault comes back with its syndrome, and what is allowed does not fault.
pub(crate) fn faults_come_back(_: &Context<'_>) -> TestResult {
    let value = 0x5a;
    let va = VirtAddr::new(&raw const value as u64);
    check!(matches!(load(va), Ok(0x5a)), "a load from the stack faulted, or read something else");
    // SAFETY: the function does nothing but return.
    check!(unsafe { probe::call(text()) }.is_ok(), "a call of a function faulted");

    let nowhere = VirtAddr::new(0xffff_9000_0000_0123);
    expect_unmapped(load(nowhere), nowhere, "load")?;
    // SAFETY: nothing is mapped there.
    let fault = unsafe { probe::store(nowhere, 1) }.expect_err("nothing is mapped there");
    check!(fault.esr.class() == ExceptionClass::DataAbortSame, "a store: {}", fault.esr);
    check!(fault.esr.abort().is_some_and(|abort| abort.access == Access::Write), "a store: {}", fault.esr);
    let nowhere = VirtAddr::new(0xffff_9000_0000_0100);
    // SAFETY: nothing is mapped there.
    let fault = unsafe { probe::call(nowhere) }.expect_err("nothing is mapped there");
    check!(fault.esr.class() == ExceptionClass::InstructionAbortSame, "a call: {}", fault.esr);
    check!(fault.far == nowhere, "a call: FAR is {}", fault.far);
    Ok(())
}

pub(crate) fn text_is_read_only(_: &Context<'_>) -> TestResult {
    for va in [text(), image::start(), VirtAddr::new(image::text_end().get() - 1)] {
        // SAFETY: the store must fault; if it doesn't, it writes what was there.
        expect_forbidden(unsafe { probe::store(va, load(va).unwrap_or(0)) }, va, "store to text")?;
    }
    Ok(())
}

pub(crate) fn constants_are_read_only(_: &Context<'_>) -> TestResult {
    static CONSTANT: u8 = 7;
    // A table of addresses: constant, but only after the relocations were applied.
    static RELOCATED: &[fn(&Context<'_>) -> TestResult] = &[text_is_read_only, constants_are_read_only];
    for va in [&raw const CONSTANT as u64, RELOCATED.as_ptr() as u64, image::rodata_end().get() - 1] {
        let va = VirtAddr::new(va);
        // SAFETY: the store must fault; if it doesn't, it writes what was there.
        expect_forbidden(unsafe { probe::store(va, load(va).unwrap_or(0)) }, va, "store to constants")?;
    }
    check!(
        black_box(RELOCATED)[0] as usize == text_is_read_only as *const () as usize,
        "the relocation is wrong"
    );
    Ok(())
}

pub(crate) fn data_is_not_executable(_: &Context<'_>) -> TestResult {
    static DATA: AtomicU32 = AtomicU32::new(RET);
    let stack = AtomicU32::new(RET);
    let heap = Box::new(AtomicU32::new(RET));
    let folio = memory::frames().alloc(0).expect("there is memory");
    let frame = linear(folio.head().addr(GRANULE));
    // SAFETY: the frame was just allocated.
    unsafe { (frame.get() as *mut u32).write(RET) };
    let of = |code: &AtomicU32| VirtAddr::new(code.as_ptr() as u64);
    for (va, what) in [
        (of(&DATA), "call of data"),
        (of(&stack), "call of the stack"),
        (of(&heap), "call of the heap"),
        (frame, "call of the linear map"),
        (VirtAddr::new(image::text_end().get()), "call of constants"),
    ] {
        // SAFETY: the call must fault; if it doesn't, there is a return instruction (or, of constants, a test
        // that has failed already).
        expect_forbidden(unsafe { probe::call(va) }, va, what)?;
    }
    Ok(())
}

/// Text and constants can't be changed behind their mapping's back.
pub(crate) fn linear_map_has_no_constants(_: &Context<'_>) -> TestResult {
    let constant = vm::image().constant();
    let last = PhysAddr::new(constant.end.get() - 1);
    for pa in [constant.start, vm::image().physical(text()), last] {
        let va = linear(pa);
        expect_unmapped(load(va), va, "linear map of the Image")?;
    }
    Ok(())
}

/// The boot code runs at its physical address for some instructions; nothing of that stays, on any CPU.
pub(crate) fn identity_map_is_gone(_: &Context<'_>) -> TestResult {
    fn check_here() -> Result<(), Fault> {
        let start = VirtAddr::new(vm::image().start.get());
        // SAFETY: if it is mapped, it is the first byte of the Image.
        match unsafe { probe::load(start) } {
            Err(fault) if fault.esr.abort().is_some_and(|abort| abort.is_translation_fault()) => Ok(()),
            Err(fault) => Err(fault),
            Ok(_) => Err(Fault { esr: Esr::new(0), far: start }),
        }
    }
    check!(check_here().is_ok(), "the Image is mapped at its physical address on the boot CPU");
    for index in 1..cpu::count() {
        let result = smp::spawn_on(index, check_here).expect("the CPU waits").join();
        check!(result.is_ok(), "the Image is mapped at its physical address on CPU {index}");
    }
    Ok(())
}

pub(crate) fn guards_below_stacks(_: &Context<'_>) -> TestResult {
    for index in 0..cpu::count() {
        let base = cpu::stack_base(index);
        check!(load(base).is_ok(), "CPU {index}: the lowest byte of the stack is not mapped");
        let offset = StackArea::STACK;
        for below in [offset - StackArea::GUARD, 1, offset] {
            let va = VirtAddr::new(base.get() - below);
            expect_unmapped(load(va), va, "guard below a stack")?;
        }
        let overflow = VirtAddr::new(base.get() - cpu::GUARD_SIZE - 1);
        check!(load(overflow).is_ok(), "CPU {index}: the overflow stack is not mapped");
    }
    Ok(())
}
