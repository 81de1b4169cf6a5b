// The entry of EFI firmware, which runs with MMU and caches on and every address mapped to itself, and the way from there
// to `primary_start`.

.section .text.efi, "ax"

// efi_entry(x0 = image handle, x1 = system table). Returns an EFI status where the kernel can't be started.
.global efi_entry
efi_entry:
        stp     x29, x30, [sp, #-32]!
        mov     x29, sp
        stp     x0, x1, [sp, #16]
        adr_l   x0, _image_start
        bl      apply_relocations
        ldp     x0, x1, [sp, #16]
        bl      pleat_efi
        ldp     x29, x30, [sp], #32
        ret

// Relocates the Image to the address x0. Elf64_Rela: offset, type, addend. The link address is 0, so the address is what
// is added. The build checks that all are R_AARCH64_RELATIVE, which is 1027. Done twice where firmware came first: what
// is there is never read. Clobbers x1 to x5.
apply_relocations:
        adr_l   x1, _rela_start
        adr_l   x2, _rela_end
        adr_l   x3, _image_start
1:      cmp     x1, x2
        b.hs    2f
        ldr     x4, [x1]
        ldr     x5, [x1, #16]
        add     x5, x5, x0
        str     x5, [x3, x4]
        add     x1, x1, #24
        b       1b
2:      ret

// leave_firmware(x0 = device tree, x1 = its size in bytes): what the arm64 boot protocol asks for, after boot services
// were left. Does not return.
.global leave_firmware
leave_firmware:
        msr     daifset, #0xf
        mov     x19, x0
        add     x1, x0, x1
        bl      clean_dcache
        adr_l   x0, _image_start
        adr_l   x1, _bss_start
        bl      clean_dcache

        mov     x1, #0x1005                     // SCTLR_ELx: I, C, M
        mrs     x0, CurrentEL
        cmp     x0, #(2 << 2)
        b.eq    1f
        mrs     x0, sctlr_el1
        bic     x0, x0, x1
        msr     sctlr_el1, x0
        b       2f
1:      mrs     x0, sctlr_el2
        bic     x0, x0, x1
        msr     sctlr_el2, x0
2:      isb
        mov     x0, x19
        mov     x1, xzr
        mov     x2, xzr
        mov     x3, xzr
        b       primary_start

// Cleans and invalidates the data cache from x0 to x1 to the point of coherency. Clobbers x0, x2, x3.
clean_dcache:
        dc_range civac
        ret
