// From one kernel stack to another, and the registers of EL0 that the kernel does not use.

.section .text.task, "ax"
// x0 = where to save this context, x1 = the one to go on with. What the procedure call standard lets a call change is
// nobody's.
.global switch_context
switch_context:
        stp     x19, x20, [x0]
        stp     x21, x22, [x0, #2 * 8]
        stp     x23, x24, [x0, #4 * 8]
        stp     x25, x26, [x0, #6 * 8]
        stp     x27, x28, [x0, #8 * 8]
        stp     x29, x30, [x0, #10 * 8]
        mov     x9, sp
        str     x9, [x0, #12 * 8]
        ldp     x19, x20, [x1]
        ldp     x21, x22, [x1, #2 * 8]
        ldp     x23, x24, [x1, #4 * 8]
        ldp     x25, x26, [x1, #6 * 8]
        ldp     x27, x28, [x1, #8 * 8]
        ldp     x29, x30, [x1, #10 * 8]
        ldr     x9, [x1, #12 * 8]
        mov     sp, x9
        ret

.arch_extension fp
.arch_extension simd
// x0 = an `FpState`
.global save_fp
save_fp:
        stp     q0, q1, [x0]
        stp     q2, q3, [x0, #2 * 16]
        stp     q4, q5, [x0, #4 * 16]
        stp     q6, q7, [x0, #6 * 16]
        stp     q8, q9, [x0, #8 * 16]
        stp     q10, q11, [x0, #10 * 16]
        stp     q12, q13, [x0, #12 * 16]
        stp     q14, q15, [x0, #14 * 16]
        stp     q16, q17, [x0, #16 * 16]
        stp     q18, q19, [x0, #18 * 16]
        stp     q20, q21, [x0, #20 * 16]
        stp     q22, q23, [x0, #22 * 16]
        stp     q24, q25, [x0, #24 * 16]
        stp     q26, q27, [x0, #26 * 16]
        stp     q28, q29, [x0, #28 * 16]
        stp     q30, q31, [x0, #30 * 16]
        mrs     x1, fpcr
        mrs     x2, fpsr
        add     x0, x0, #32 * 16
        stp     x1, x2, [x0]
        ret

.global load_fp
load_fp:
        ldp     q0, q1, [x0]
        ldp     q2, q3, [x0, #2 * 16]
        ldp     q4, q5, [x0, #4 * 16]
        ldp     q6, q7, [x0, #6 * 16]
        ldp     q8, q9, [x0, #8 * 16]
        ldp     q10, q11, [x0, #10 * 16]
        ldp     q12, q13, [x0, #12 * 16]
        ldp     q14, q15, [x0, #14 * 16]
        ldp     q16, q17, [x0, #16 * 16]
        ldp     q18, q19, [x0, #18 * 16]
        ldp     q20, q21, [x0, #20 * 16]
        ldp     q22, q23, [x0, #22 * 16]
        ldp     q24, q25, [x0, #24 * 16]
        ldp     q26, q27, [x0, #26 * 16]
        ldp     q28, q29, [x0, #28 * 16]
        ldp     q30, q31, [x0, #30 * 16]
        add     x0, x0, #32 * 16
        ldp     x1, x2, [x0]
        msr     fpcr, x1
        msr     fpsr, x2
        ret
.arch_extension nosimd
.arch_extension nofp
