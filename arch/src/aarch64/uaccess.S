// Copies between the kernel and a user, whose permissions count (LDTR, STTR). A fault is fixed up, and comes back as it
// does from a probe. The user's bytes lie in one page, so that a copy that was ended by a fault can be made again.

.section .text.uaccess, "ax"
// x0 = to (the kernel's), x1 = from (the user's), x2 = bytes
.global uaccess_copy_from
uaccess_copy_from:
        subs    x2, x2, #8
        b.lo    2f
1:      ldtr    x3, [x1]
        add     x1, x1, #8
        str     x3, [x0], #8
        subs    x2, x2, #8
        b.hs    1b
2:      adds    x2, x2, #8
        b.eq    4f
3:      ldtrb   w3, [x1]
        add     x1, x1, #1
        strb    w3, [x0], #1
        subs    x2, x2, #1
        b.ne    3b
4:      mov     x0, xzr
        ret
        extable 1b, probe_fault
        extable 3b, probe_fault

// x0 = to (the user's), x1 = from (the kernel's), x2 = bytes
.global uaccess_copy_to
uaccess_copy_to:
        subs    x2, x2, #8
        b.lo    2f
        ldr     x3, [x1], #8
1:      sttr    x3, [x0]
        add     x0, x0, #8
        subs    x2, x2, #8
        b.lo    2f
        ldr     x3, [x1], #8
        b       1b
2:      adds    x2, x2, #8
        b.eq    4f
        ldrb    w3, [x1], #1
3:      sttrb   w3, [x0]
        add     x0, x0, #1
        subs    x2, x2, #1
        b.eq    4f
        ldrb    w3, [x1], #1
        b       3b
4:      mov     x0, xzr
        ret
        extable 1b, probe_fault
        extable 3b, probe_fault
