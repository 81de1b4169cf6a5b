// A call of EFI runtime services: by the procedure call standard, on a stack of its own, and back even where it faults.

.section .text.efi_call, "ax"
.arch_extension fp
.arch_extension simd

// efi_call(x0 = function, x1 = six arguments, x2 = one past the top of the stack, x3 = the outcome).
.global efi_call
efi_call:
        stp     x29, x30, [sp, #-0x90]!
        mov     x29, sp
        stp     x19, x20, [sp, #0x10]
        stp     x21, x22, [sp, #0x20]
        stp     x23, x24, [sp, #0x30]
        stp     x25, x26, [sp, #0x40]
        stp     x27, x28, [sp, #0x50]
        mrs     x9, daif
        mrs     x10, cpacr_el1
        stp     x9, x10, [sp, #0x60]
        str     x3, [sp, #0x70]

        // Firmware may use FP and SIMD registers, which are a process's.
        orr     x10, x10, #(3 << 20)            // FPEN
        msr     cpacr_el1, x10
        isb
        mrs     x9, fpcr
        mrs     x10, fpsr
        stp     x9, x10, [sp, #0x80]
        sub     sp, sp, #0x200
        all_of_simd stp, sp

        // The top of the stack keeps this one's pointer, for both ways back. While it does, a fault is the firmware's.
        mov     x16, x0
        mov     x17, x1
        mov     x9, sp
        sub     x10, x2, #16
        ldp     x0, x1, [x17]
        ldp     x2, x3, [x17, #16]
        ldp     x4, x5, [x17, #32]
        mov     sp, x10
        str     x9, [sp]
        blr     x16
        mov     x1, xzr                         // it has returned
        b       1f

// Where a fault in between goes on: x0 = ESR_EL1, never 0, x1 = the same, x2 = FAR_EL1, x3 = ELR_EL1, x9 = the top of the
// stack less 16.
.global efi_call_aborted
efi_call_aborted:
        mov     sp, x9

1:      ldr     x9, [sp]
        str     xzr, [sp]
        mov     sp, x9
        all_of_simd ldp, sp
        add     sp, sp, #0x200
        ldp     x9, x10, [sp, #0x80]
        msr     fpcr, x9
        msr     fpsr, x10
        ldr     x9, [sp, #0x70]
        stp     x0, x1, [x9]
        stp     x2, x3, [x9, #16]
        ldp     x9, x10, [sp, #0x60]
        msr     cpacr_el1, x10
        isb
        msr     daif, x9
        ldp     x19, x20, [sp, #0x10]
        ldp     x21, x22, [sp, #0x20]
        ldp     x23, x24, [sp, #0x30]
        ldp     x25, x26, [sp, #0x40]
        ldp     x27, x28, [sp, #0x50]
        ldp     x29, x30, [sp], #0x90
        ret

.purgem all_of_simd
.arch_extension nosimd
.arch_extension nofp
