//! Exception entry: the vectors, what they save, and what they need to know of a CPU.

use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, AtomicU64};

/// log2 of the bytes of a kernel stack.
pub const STACK_SHIFT: u32 = 15;
/// Bytes of a kernel stack.
pub const STACK_SIZE: u64 = 1 << STACK_SHIFT;

/// Added to the vector number where the frame was saved to the overflow stack.
pub const OVERFLOW_FLAG: u64 = 0x100;

/// SPSR_EL1: EL1 with its own stack pointer, D, A, I and F masked.
pub const EL1H_MASKED: u64 = 0x3c5;

/// What the entry code knows of its CPU, through TPIDR_EL1. The kernel owns one for each CPU.
#[repr(C)]
#[derive(Debug)]
pub struct CpuLocal {
    /// The lowest address of the stack, which is [`STACK_SIZE`] bytes.
    pub stack_base: AtomicPtr<u8>,
    /// One past its highest address.
    pub stack_top: AtomicPtr<u8>,
    /// One past the highest address of the stack for a fault with the other one out of bounds.
    pub overflow_top: AtomicPtr<u8>,
    /// Index of the CPU: 0 is the one that booted.
    pub index: AtomicU64,
}

/// The registers of an interrupted context, as the vectors save them.
#[repr(C, align(16))]
#[derive(Clone, Debug)]
pub struct TrapFrame {
    /// x0 to x30.
    pub x: [u64; 31],
    /// The stack pointer before the exception: of EL0 where it came from there, and where it returns there, for that.
    pub sp: u64,
    /// ELR_EL1: where it goes on.
    pub elr: u64,
    /// SPSR_EL1.
    pub spsr: u64,
    /// ESR_EL1; meaningless for interrupts.
    pub esr: u64,
    /// FAR_EL1; meaningless for interrupts.
    pub far: u64,
}

const _: () = assert!(size_of::<TrapFrame>() == 36 * 8);
const _: () = assert!(offset_of!(TrapFrame, elr) == 32 * 8 && offset_of!(TrapFrame, esr) == 34 * 8);

global_asm!(
    include_str!("vectors.S"),
    stack_base = const offset_of!(CpuLocal, stack_base),
    overflow_top = const offset_of!(CpuLocal, overflow_top),
    frame_size = const size_of::<TrapFrame>(),
    stack_shift = const STACK_SHIFT,
    overflow_flag = const OVERFLOW_FLAG,
);
