//! The two semihosting calls the kernel makes ("Semihosting for AArch32 and AArch64", Arm 100863):
//! writing a string and ending the machine with a status.
//!
//! `hlt #0xf000` is an undefined instruction where no debugger or emulator answers it. It therefore
//! stands in the exception table, and the calls return `false` on such a machine. That is why the
//! `semihosting` crate is not used: its `hlt` cannot be given a fix-up.

use core::arch::asm;
use core::ffi::CStr;

/// Writes a NUL-terminated string to the host's console.
const SYS_WRITE0: u64 = 0x04;
/// Ends the application. On AArch64 its parameter is a block of two words, reason and status.
const SYS_EXIT: u64 = 0x18;
/// The reason that lets the host use the status as its own exit status.
const ADP_STOPPED_APPLICATION_EXIT: u64 = 0x2_0026;

/// Makes the call `operation` and returns whether a semihosting host answered it.
///
/// # Safety
/// `parameter` is what `operation` expects; where that is a pointer, it is valid for the host's
/// reads during the call, and `operation` writes no memory.
unsafe fn call(operation: u64, parameter: *const u8) -> bool {
    let answered: u64;
    // SAFETY: the host reads what `parameter` points to, by this function's contract. Where nobody
    // answers, the exception handler continues at label 2 with only x16 and x17 changed. No `nomem`,
    // so that the parameter block is in memory before the call.
    unsafe {
        asm!(
            "1: hlt #0xf000",
            "mov {answered}, #1",
            "2:",
            ".pushsection __ex_table, \"a\"",
            ".balign 4",
            ".long (1b - .), (2b - .)",
            ".popsection",
            answered = inout(reg) 0_u64 => answered,
            inout("x0") operation => _,
            in("x1") parameter,
            out("x16") _,
            out("x17") _,
            options(nostack),
        );
    }
    answered != 0
}

/// Writes `text` to the host's console; `false` where there is no host.
pub fn write0(text: &CStr) -> bool {
    // SAFETY: SYS_WRITE0 reads bytes up to the NUL, which `CStr` guarantees to be there.
    unsafe { call(SYS_WRITE0, text.as_ptr().cast()) }
}

/// Ends the machine with `status`. Returns `false` where there is no host, and `true` where there is
/// one that would not end.
pub fn exit(status: u8) -> bool {
    let block = [ADP_STOPPED_APPLICATION_EXIT, u64::from(status)];
    // SAFETY: SYS_EXIT reads the two words of the block.
    unsafe { call(SYS_EXIT, block.as_ptr().cast()) }
}
