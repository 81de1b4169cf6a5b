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

// As EL0 would: its permissions count.
.global probe_load_user
probe_load_user:
6:      ldtrb   w1, [x0]
        mov     x0, xzr
        ret
        extable 6b, probe_fault

.global probe_store_user
probe_store_user:
7:      sttrb   w1, [x0]
        mov     x0, xzr
        ret
        extable 7b, probe_fault

// Goes to EL0, with interrupts masked, and comes back by the next exception, which must be one: an SVC, or a fault. The
// handler looks up x30, restores all registers, and returns to the fix-up at EL1, with interrupts masked.
.global probe_execute_user
probe_execute_user:
        mrs     x2, daif
        mov     x3, x30
        mov     x1, #0x3c0                      // EL0t, DAIF
        msr     daifset, #0xf                   // what is in ELR and SPSR stays there
        msr     elr_el1, x0
        msr     spsr_el1, x1
        adr     x30, 8f
8:      eret
        extable 8b, 9f
9:      msr     daif, x2
        mov     x30, x3
        b       probe_fault

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
