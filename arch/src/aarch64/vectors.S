// The exception vectors (DDI 0487, D1.3.1.4): all sixteen save a `TrapFrame` and call
// `pleat_trap(frame, vector)`.
//
// A stack overflow faults on the unmapped guard below the stack, and the fault would again be saved to
// that stack. So the stack pointer is compared with the stack's bounds first, with nothing but x0, whose
// value waits in TPIDRRO_EL0: EL0 can read that register, so it is zeroed again before an exception returns.

.macro save_frame
        stp     x2, x3, [sp, #2 * 8]
        stp     x4, x5, [sp, #4 * 8]
        stp     x6, x7, [sp, #6 * 8]
        stp     x8, x9, [sp, #8 * 8]
        stp     x10, x11, [sp, #10 * 8]
        stp     x12, x13, [sp, #12 * 8]
        stp     x14, x15, [sp, #14 * 8]
        stp     x16, x17, [sp, #16 * 8]
        stp     x18, x19, [sp, #18 * 8]
        stp     x20, x21, [sp, #20 * 8]
        stp     x22, x23, [sp, #22 * 8]
        stp     x24, x25, [sp, #24 * 8]
        stp     x26, x27, [sp, #26 * 8]
        stp     x28, x29, [sp, #28 * 8]
        mrs     x2, elr_el1
        mrs     x3, spsr_el1
        mrs     x4, esr_el1
        mrs     x5, far_el1
        stp     x2, x3, [sp, #32 * 8]
        stp     x4, x5, [sp, #34 * 8]
.endm

.macro vector number
.balign 0x80
        msr     tpidrro_el0, x0
        mrs     x0, tpidr_el1
        ldr     x0, [x0, #{stack_base}]
        sub     x0, sp, x0
        sub     x0, x0, #{frame_size}
        lsr     x0, x0, #{stack_shift}
        cbnz    x0, 9f
        mrs     x0, tpidrro_el0
        sub     sp, sp, #{frame_size}
        stp     x0, x1, [sp]
        .if     \number < 8
        add     x0, sp, #{frame_size}
        .else                                   // from EL0
        mrs     x0, sp_el0
        .endif
        stp     x30, x0, [sp, #30 * 8]
        mov     x1, #\number
        b       trap_common
9:      // Out of bounds: to the overflow stack of this CPU.
        mrs     x0, tpidr_el1
        ldr     x0, [x0, #{overflow_top}]
        sub     x0, x0, #{frame_size}
        str     x1, [x0, #8]
        mov     x1, sp
        stp     x30, x1, [x0, #30 * 8]
        mov     sp, x0
        mrs     x0, tpidrro_el0
        str     x0, [sp]
        mov     x1, #\number + {overflow_flag}
        b       trap_common
.endm

.section .text.vectors, "ax"
.balign 0x800
.global vectors
vectors:
        // Current EL with SP_EL0, current EL with SP_ELx, lower EL AArch64, lower EL AArch32;
        // each synchronous, IRQ, FIQ, SError.
        .irp    number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        vector  \number
        .endr

trap_common:
        save_frame
        mov     x0, sp
        mov     x29, xzr                        // the backtrace goes on through the frame
        bl      pleat_trap

        // Back to where it happened, or where the handler set ELR to. A new task comes from here too, with its frame at SP.
.global trap_return
trap_return:
        ldp     x2, x3, [sp, #32 * 8]
        msr     elr_el1, x2
        msr     spsr_el1, x3
        tst     x3, #0xf
        b.ne    1f
        ldr     x2, [sp, #31 * 8]               // to EL0
        msr     sp_el0, x2
1:      msr     tpidrro_el0, xzr
        ldp     x2, x3, [sp, #2 * 8]
        ldp     x4, x5, [sp, #4 * 8]
        ldp     x6, x7, [sp, #6 * 8]
        ldp     x8, x9, [sp, #8 * 8]
        ldp     x10, x11, [sp, #10 * 8]
        ldp     x12, x13, [sp, #12 * 8]
        ldp     x14, x15, [sp, #14 * 8]
        ldp     x16, x17, [sp, #16 * 8]
        ldp     x18, x19, [sp, #18 * 8]
        ldp     x20, x21, [sp, #20 * 8]
        ldp     x22, x23, [sp, #22 * 8]
        ldp     x24, x25, [sp, #24 * 8]
        ldp     x26, x27, [sp, #26 * 8]
        ldp     x28, x29, [sp, #28 * 8]
        ldr     x30, [sp, #30 * 8]
        ldp     x0, x1, [sp]
        add     sp, sp, #{frame_size}
        eret
