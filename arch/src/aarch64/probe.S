// Accesses that may fault, for tests and for memory that may not be there. A fault at an instruction
// that is listed in the exception table goes on at its fix-up, with x16 = ESR_EL1 and x17 = FAR_EL1.
// Each returns x0 = 0 or the ESR of the fault (never 0: its exception class isn't), and x1 = what was read, or FAR.

.macro extable instruction, fixup
        .pushsection __ex_table, "a"
        .balign 4
        .long   (\instruction - .), (\fixup - .)
        .popsection
.endm

.section .text.probe, "ax"
.global probe_load
probe_load:
1:      ldrb    w1, [x0]
        mov     x0, xzr
        ret
        extable 1b, probe_fault

.global probe_load_word
probe_load_word:
5:      ldr     w1, [x0]
        mov     x0, xzr
        ret
        extable 5b, probe_fault

.global probe_store
probe_store:
2:      strb    w1, [x0]
        mov     x0, xzr
        ret
        extable 2b, probe_fault

// A fetch faults at the target, not here: the handler looks up the return address instead.
.global probe_call
probe_call:
        mov     x2, x30
        blr     x0
3:      mov     x0, xzr
        ret     x2
        extable 3b, 4f
4:      mov     x30, x2
probe_fault:
        mov     x0, x16
        mov     x1, x17
        ret
