// From the first instruction to the first line of Rust.
//
//   _start            the arm64 Image header; boot CPU, MMU off, EL1 or EL2, x0 = device tree. EFI firmware begins
//                     in efi.S instead, which leads here.
//   secondary_start   further CPUs, MMU off, EL1 or EL2, by PSCI or a spin table
//      |  drop_to_el1     configure EL2 so that it stays out of the way, enter EL1
//      |  clear .bss, build_early_tables           (boot CPU only)
//      |  enable_mmu      TTBR0 = this one page at its own address, TTBR1 = the Image up high
//      v
//   *_high            apply the relocations (boot CPU only), drop TTBR0, call Rust
//
// All of it lies in the page behind that of the headers, the only page that is ever mapped at its physical
// address. While the MMU is off memory is Device: no exclusives, no atomics, no DC ZVA, no unaligned
// access (DDI 0487, B2.10). Until the relocations are applied nothing here reads an absolute address.

.set PAGE,      4096
.set BLOCK,     0x200000

// Stage 1 descriptor bits. Text: AF, inner shareable, read-only, UXN, page. Data: AF, inner shareable, UXN, PXN, page.
// Memory type 0 is Normal in MAIR_EL1. A table descriptor is 0b11.
.set TEXT_PAGE, 0x0040000000000783
.set DATA_PAGE, 0x0060000000000703

// `dc operation` for the lines from x0 to x1, and waits for it. Clobbers x0, x2, x3.
.macro dc_range operation
        mrs     x2, ctr_el0
        ubfx    x2, x2, #16, #4                 // DminLine: log2 of words
        mov     x3, #4
        lsl     x2, x3, x2
        sub     x3, x2, #1
        bic     x0, x0, x3
1:      dc      \operation, x0
        add     x0, x0, x2
        cmp     x0, x1
        b.lo    1b
        dsb     sy
.endm

.macro adr_l, reg, symbol
        adrp    \reg, \symbol
        add     \reg, \reg, :lo12:\symbol
.endm

.macro mov_q, reg, value
        movz    \reg, #:abs_g3:\value
        movk    \reg, #:abs_g2_nc:\value
        movk    \reg, #:abs_g1_nc:\value
        movk    \reg, #:abs_g0_nc:\value
.endm

.section .head.text, "ax"
.global _start
_start:
        ccmp    x18, #0, #0xd, pl               // code0: its bytes begin with "MZ"; it changes nothing but flags
        b       primary_start                   // code1
        .quad   0                               // text_offset
        .quad   _image_size                     // from here to the end of .bss
        .quad   0b1010                          // little-endian, 4K pages, anywhere in memory
        .quad   0, 0, 0
        .ascii  "ARM\x64"
        .long   pe_header - _start

// The same file as an EFI application, in the terms of Microsoft's PE format: two sections, linked at 0, where file
// offsets are addresses. Relocations are not the firmware's but those of `_rela_start`: efi.S applies them itself, so
// constants are writable to begin with. Of this page only the headers need be in memory then, and not executable.
pe_header:
        .ascii  "PE\0\0"
        .short  0xaa64                          // Machine: ARM64
        .short  (pe_sections_end - pe_sections) / 40
        .long   0, 0, 0                         // TimeDateStamp, symbol table
        .short  pe_sections - pe_optional_header
        .short  0x22                            // Characteristics: EXECUTABLE_IMAGE, LARGE_ADDRESS_AWARE
pe_optional_header:
        .short  0x20b                           // PE32+
        .byte   0, 0                            // linker version
        .long   _pe_text_size                   // SizeOfCode
        .long   _pe_data_file_size              // SizeOfInitializedData
        .long   _pe_bss_size                    // SizeOfUninitializedData
        .long   _pe_entry
        .long   PAGE                            // BaseOfCode
        .quad   0                               // ImageBase
        .long   PAGE                            // SectionAlignment
        .long   PAGE                            // FileAlignment
        .short  0, 0, 0, 0, 0, 0                // versions: operating system, image, subsystem
        .long   0                               // Win32VersionValue
        .long   _image_size                     // SizeOfImage
        .long   PAGE                            // SizeOfHeaders
        .long   0                               // CheckSum
        .short  10                              // Subsystem: EFI application
        .short  0x100                           // DllCharacteristics: NX_COMPAT
        .quad   0, 0, 0, 0                      // stack and heap: reserve, commit
        .long   0                               // LoaderFlags
        .long   6                               // NumberOfRvaAndSizes
        .quad   0, 0, 0, 0, 0, 0                // export, import, resource, exception, certificate, base relocation
pe_sections:
        .ascii  ".text\0\0\0"
        .long   _pe_text_size, PAGE             // VirtualSize, VirtualAddress
        .long   _pe_text_size, PAGE             // SizeOfRawData, PointerToRawData
        .long   0, 0, 0
        .long   0x60000020                      // CNT_CODE, MEM_EXECUTE, MEM_READ
        .ascii  ".data\0\0\0"
        .long   _pe_data_size, _pe_data_start
        .long   _pe_data_file_size, _pe_data_start
        .long   0, 0, 0
        .long   0xc0000040                      // CNT_INITIALIZED_DATA, MEM_READ, MEM_WRITE
pe_sections_end:

.section .idmap.text, "ax"
// Boot CPU. x19 = counter, x20 = device tree, x21 = physical address of the Image, x22 = EL it was entered at.
primary_start:
        mov     x20, x0
        adr_l   x21, _image_start
        bl      drop_to_el1
        mov     x22, x0
        mrs     x19, cntvct_el0                 // so that the boot can say what it cost

        // .bss. The boot loader need not have cleaned it: a dirty line of it in a cache must not be written back over
        // the zeroes, and a stale one not be there when the caches are switched on. So it is invalidated twice.
        adr_l   x0, _bss_start
        adr_l   x1, _bss_end
        bl      invalidate_dcache
        adr_l   x0, _bss_start
        adr_l   x1, _bss_end
1:      stp     xzr, xzr, [x0], #16
        cmp     x0, x1
        b.lo    1b

        bl      build_early_tables

        dmb     sy
        adr_l   x0, _bss_start
        adr_l   x1, _bss_end
        bl      invalidate_dcache

        adr_l   x0, primary_high
        adr_l   x1, early_root
        b       enable_mmu

// Further CPUs. Everything they need to know is read after the MMU is on.
.global secondary_start
secondary_start:
        adr_l   x21, _image_start
        bl      drop_to_el1
        mov     x22, x0
        adr_l   x0, secondary_high
        adr_l   x1, init_root
        b       enable_mmu

// Enters EL1 with interrupts masked. Returns the EL it was called at (1 or 2). Clobbers x0 to x3.
drop_to_el1:
        msr     daifset, #0xf
        msr     spsel, #1                       // whoever ran before may have used SP_EL0
        mrs     x0, CurrentEL
        lsr     x0, x0, #2
        cmp     x0, #2
        b.eq    2f
        b.hi    3f
        // EL1: MMU and caches off, whatever ran before (the boot protocol asks for it).
        mov_q   x1, 0x30d00800                  // the RES1 bits of SCTLR_EL1
        msr     sctlr_el1, x1
        isb
        ret

2:      // Stage 2 off, EL1 is AArch64, nothing that the kernel does traps (DDI 0487, D24.2: most fields reset to UNKNOWN).
        // What comes to EL2 all the same, such as an HVC, is answered there.
        adr_l   x1, el2_vectors
        msr     vbar_el2, x1
        mov     x1, #(1 << 31)                  // HCR_EL2.RW
        msr     hcr_el2, x1
        isb
        mrs     x1, midr_el1
        msr     vpidr_el2, x1
        mrs     x1, mpidr_el1
        msr     vmpidr_el2, x1
        msr     vttbr_el2, xzr
        msr     hstr_el2, xzr
        mov     x1, #0x33ff                     // CPTR_EL2: RES1 bits; of SVE and SME, which the kernel has not, the traps
        msr     cptr_el2, x1
        mov     x1, #3                          // CNTHCTL_EL2: EL1PCEN, EL1PCTEN
        msr     cnthctl_el2, x1
        msr     cntvoff_el2, xzr
        mrs     x1, id_aa64dfr0_el1             // PMUVer: 0 and 0b1111 mean that there is no PMUv3
        ubfx    x1, x1, #8, #4
        add     x2, x1, #1
        tst     x2, #0b1110
        mov     x1, xzr
        b.eq    7f
        mrs     x1, pmcr_el0                    // MDCR_EL2.HPMN = all counters to EL1, no traps
        ubfx    x1, x1, #11, #5
7:      msr     mdcr_el2, x1

        // GICv3 system registers for EL1.
        mrs     x1, id_aa64pfr0_el1
        ubfx    x1, x1, #24, #4
        cbz     x1, 4f
        mrs     x1, S3_4_C12_C9_5               // ICC_SRE_EL2
        orr     x1, x1, #1                      // SRE
        orr     x1, x1, #8                      // Enable
        msr     S3_4_C12_C9_5, x1
        isb
        mrs     x1, S3_4_C12_C9_5               // Where it does not stick, firmware uses the GIC as a GICv2,
        tbz     x1, #0, 4f                      // and the system registers are UNDEFINED
        msr     S3_4_C12_C11_0, xzr             // ICH_HCR_EL2
4:
        // Fine-grained traps (FEAT_FGT) and the extended configuration (FEAT_HCX).
        mrs     x1, id_aa64mmfr0_el1
        ubfx    x1, x1, #56, #4
        cbz     x1, 5f
        msr     S3_4_C1_C1_4, xzr               // HFGRTR_EL2
        msr     S3_4_C1_C1_5, xzr               // HFGWTR_EL2
        msr     S3_4_C1_C1_6, xzr               // HFGITR_EL2
        msr     S3_4_C3_C1_4, xzr               // HDFGRTR_EL2
        msr     S3_4_C3_C1_5, xzr               // HDFGWTR_EL2
        mrs     x1, id_aa64pfr0_el1
        ubfx    x1, x1, #44, #4                 // FEAT_AMUv1
        cbz     x1, 5f
        msr     S3_4_C3_C1_6, xzr               // HAFGRTR_EL2
5:      mrs     x1, id_aa64mmfr1_el1
        ubfx    x1, x1, #40, #4
        cbz     x1, 6f
        mrs     x1, S3_0_C0_C6_2                // ID_AA64ISAR2_EL1
        tst     x1, #0xf0000                    // FEAT_MOPS: its instructions are UNDEFINED without MSCEn
        cset    x1, ne
        lsl     x1, x1, #11
        msr     S3_4_C1_C2_2, x1                // HCRX_EL2
6:
        mov_q   x1, 0x30d00800
        msr     sctlr_el1, x1
        mov     x1, #0x3c5                      // SPSR_EL2: EL1h, DAIF masked
        msr     spsr_el2, x1
        msr     elr_el2, x30
        eret

3:      adr_l   x1, el3_message

// Says the NUL-terminated text at x1 and ends the machine with status 2, both by semihosting; there
// is no other console this early. Where nobody answers, as on a board, `hlt` is undefined: then the CPU just stops.
// MMU off. Does not return.
early_fatal:
        adr_l   x2, el2_vectors                 // at any EL: its own synchronous exceptions lead to `stop`
        mrs     x0, CurrentEL
        cmp     x0, #(2 << 2)
        b.lo    1f
        b.hi    2f
        msr     vbar_el2, x2
        b       3f
1:      msr     vbar_el1, x2
        b       3f
2:      msr     vbar_el3, x2
3:      isb
        mov     x0, #0x04                       // SYS_WRITE0
        hlt     #0xf000
        adr_l   x1, early_fatal_block
        mov     x0, #0x18                       // SYS_EXIT
        hlt     #0xf000
stop:   wfi
        b       stop

// Fills the early tables: this page, the Image's second, at its own address in `idmap_root`, the Image at its high
// address in `early_root`. Table pages are zero. Clobbers x0 to x10.
build_early_tables:
        // The one page of the identity map.
        adr_l   x0, idmap_root
        adr_l   x1, idmap_l1
        adr_l   x2, idmap_l2
        adr_l   x3, idmap_l3
        add     x6, x21, #PAGE
        orr     x4, x1, #3
        ubfx    x5, x6, #39, #9
        str     x4, [x0, x5, lsl #3]
        orr     x4, x2, #3
        ubfx    x5, x6, #30, #9
        str     x4, [x1, x5, lsl #3]
        orr     x4, x3, #3
        ubfx    x5, x6, #21, #9
        str     x4, [x2, x5, lsl #3]
        mov_q   x4, TEXT_PAGE
        orr     x4, x4, x6
        ubfx    x5, x6, #12, #9
        str     x4, [x3, x5, lsl #3]

        // The Image: the last-level tables lie side by side, so they are filled as one array.
        adr_l   x0, early_root
        adr_l   x1, early_l1
        adr_l   x2, early_l2
        adr_l   x3, early_l3
        mov_q   x6, {image_base}
        orr     x4, x1, #3
        ubfx    x5, x6, #39, #9
        str     x4, [x0, x5, lsl #3]
        orr     x4, x2, #3
        ubfx    x5, x6, #30, #9
        str     x4, [x1, x5, lsl #3]
        mov     x4, #{early_l3_tables}
        orr     x5, x3, #3
1:      str     x5, [x2], #8
        add     x5, x5, #PAGE
        subs    x4, x4, #1
        b.ne    1b

        ubfx    x5, x21, #12, #9                // first page within its 2 MiB
        add     x3, x3, x5, lsl #3
        mov     x4, x21
        adr_l   x6, _text_end
        adr_l   x7, _image_end
        mov_q   x8, TEXT_PAGE
        mov_q   x9, DATA_PAGE
2:      cmp     x4, x6
        csel    x10, x8, x9, lo
        orr     x10, x10, x4
        str     x10, [x3], #8
        add     x4, x4, #PAGE
        cmp     x4, x7
        b.lo    2b
        ret

// Invalidates the data cache from x0 to x1 to the point of coherency. Clobbers x0, x2, x3.
invalidate_dcache:
        dc_range ivac
        ret

// Switches the MMU on and goes to the label at x0 (physical) by its high address. x1 = root table for
// TTBR1 (physical), x21 = physical address of the Image. Sets x23 = high minus physical address.
enable_mmu:
        mov_q   x23, {image_base}
        and     x2, x21, #(BLOCK - 1)
        add     x23, x23, x2
        sub     x23, x23, x21
        add     x0, x0, x23

        mrs     x4, id_aa64mmfr0_el1
        ubfx    x5, x4, #28, #4                 // TGran4: 0b1111 is not supported
        cmp     x5, #0xf
        b.eq    3f

        mov_q   x2, {mair}
        msr     mair_el1, x2
        mov_q   x2, {tcr}
        and     x3, x4, #0xf                    // PARange, at most 48 bits, to TCR_EL1.IPS
        mov     x5, #5
        cmp     x3, x5
        csel    x3, x3, x5, lo
        bfi     x2, x3, #32, #3
        ubfx    x3, x4, #4, #4                  // ASIDBits: 0b0010 is 16 bits, to TCR_EL1.AS
        lsr     x3, x3, #1
        bfi     x2, x3, #36, #1
        msr     tcr_el1, x2
        adr_l   x2, idmap_root
        msr     ttbr0_el1, x2
        msr     ttbr1_el1, x1
        isb
        tlbi    vmalle1
        ic      iallu
        dsb     nsh
        isb
        msr     cpacr_el1, xzr                  // no FP, no SIMD: the kernel has none
        msr     mdscr_el1, xzr                  // no debug exceptions
        mov_q   x2, {sctlr}
        msr     sctlr_el1, x2
        isb
        br      x0

3:      adr_l   x1, granule_message
        b       early_fatal

primary_high:
        add     x0, x21, x23                    // high address of the Image
        bl      apply_relocations
        adr_l   x0, pleat_boot_cpu
        bl      set_up_cpu
        mov     x0, x20
        mov     x1, x21
        mov     x2, x22
        mov     x3, x19
        bl      pleat_primary
        b       .

secondary_high:
        adr_l   x0, pleat_secondary_cpu
        ldr     x0, [x0]
        bl      set_up_cpu
        bl      pleat_secondary
        b       .

// x0 = this CPU's `CpuLocal`: stack, vectors, and nothing in TTBR0. Clobbers x1.
set_up_cpu:
        msr     tpidr_el1, x0
        ldr     x1, [x0, #{stack_top}]
        mov     sp, x1
        msr     tpidrro_el0, xzr
        adr_l   x1, vectors
        msr     vbar_el1, x1
        adr_l   x1, empty_table
        sub     x1, x1, x23
        msr     ttbr0_el1, x1
        isb
        tlbi    vmalle1
        dsb     nsh
        isb
        msr     daifclr, #4                     // SError: what is lost is said
        mov     x29, xzr
        ret

// replace_ttbr1(x0 = new root, x1 = idmap_root, x2 = empty_table, x3 = this page's alias of
// `replace_ttbr1_low`; all physical). The old and the new tables may map the kernel by different sizes, so
// neither may be live together with the other (DDI 0487, D8.16.1): in between, TTBR1 is empty, and
// only the identity map of this page translates.
.global replace_ttbr1
replace_ttbr1:
        msr     ttbr0_el1, x1
        isb
        mov     x4, x30
        blr     x3
        msr     ttbr0_el1, x2
        isb
        tlbi    vmalle1
        dsb     nsh
        isb
        ret     x4

.global replace_ttbr1_low
replace_ttbr1_low:
        msr     ttbr1_el1, x2
        isb
        tlbi    vmalle1
        dsb     nsh
        isb
        msr     ttbr1_el1, x0
        isb
        ret

// EL2 after it was left: HVC gets NOT_SUPPORTED, as from firmware that has no such call; anything else ends the machine.
.section .text.el2_vectors, "ax"
.balign 0x800
el2_vectors:
        .rept   4
        .balign 0x80
        b       el2_unexpected
        .endr
        .balign 0x80
        b       stop                            // from this level: the `hlt` of early_fatal, see there
        .rept   3
        .balign 0x80
        b       el2_unexpected
        .endr
        .balign 0x80
        mrs     x0, esr_el2                     // x0 is the caller's to lose
        lsr     x0, x0, #26
        cmp     x0, #0x16                       // HVC from AArch64
        b.ne    el2_unexpected
        mov     x0, #-1
        eret
        .rept   7
        .balign 0x80
        b       el2_unexpected
        .endr
el2_unexpected:
        adr_l   x1, el2_message
        b       early_fatal

.section .idmap.text, "ax"
el2_message:
        .asciz  "pleat: fatal: an exception was taken to EL2 after the kernel had left it\n"
el3_message:
        .asciz  "pleat: fatal: started at EL3; the boot protocol asks for EL2 or EL1\n"
granule_message:
        .asciz  "pleat: fatal: this CPU has no 4 KiB translation granule\n"
        .balign 8
early_fatal_block:
        .quad   0x20026, 2                      // ADP_Stopped_ApplicationExit, status

.section .bss.page_tables, "aw", %nobits
.balign PAGE
idmap_root:     .skip PAGE
idmap_l1:       .skip PAGE
idmap_l2:       .skip PAGE
idmap_l3:       .skip PAGE
early_root:     .skip PAGE
early_l1:       .skip PAGE
early_l2:       .skip PAGE
early_l3:       .skip PAGE * {early_l3_tables}
.global idmap_root, empty_table, init_root
// What TTBR0 holds while no user address space is loaded.
empty_table:    .skip PAGE
// The root of init_mm.
init_root:      .skip PAGE
