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
        all_of_simd stp, x0
        mrs     x1, fpcr
        mrs     x2, fpsr
        add     x0, x0, #32 * 16
        stp     x1, x2, [x0]
        ret

.global load_fp
load_fp:
        all_of_simd ldp, x0
        add     x0, x0, #32 * 16
        ldp     x1, x2, [x0]
        msr     fpcr, x1
        msr     fpsr, x2
        ret

.purgem all_of_simd
.arch_extension nosimd
.arch_extension nofp
