// What compilers call to copy memory, in place of what comes with Rust's core: that copies a word at a time, and every value of
// more than 32 bytes is moved by a call, since code for this target may not rely on unaligned accesses. Nor does this: it also
// runs with the MMU off.

.section .text.mem, "ax"
// x0 = to, x1 = from, x2 = bytes; returns x0. The two may overlap if `to` is below `from`.
.global memcpy
memcpy:
        mov     x3, x0
        eor     x4, x0, x1
        tst     x4, #7
        b.ne    7f
        ands    x4, x3, #7
        b.ne    6f
1:      subs    x2, x2, #32
        b.lo    3f
2:      ldp     x4, x5, [x1]
        ldp     x6, x7, [x1, #16]
        add     x1, x1, #32
        stp     x4, x5, [x3]
        stp     x6, x7, [x3, #16]
        add     x3, x3, #32
        subs    x2, x2, #32
        b.hs    2b
3:      // The bits below are those of what is left.
        tbz     x2, #4, 4f
        ldp     x4, x5, [x1], #16
        stp     x4, x5, [x3], #16
4:      tbz     x2, #3, 5f
        ldr     x4, [x1], #8
        str     x4, [x3], #8
5:      ands    x2, x2, #7
        b.ne    8f
        ret
6:      // As far as the first whole word.
        cbz     x2, 9f
        ldrb    w4, [x1], #1
        strb    w4, [x3], #1
        sub     x2, x2, #1
        ands    x4, x3, #7
        b.ne    6b
        b       1b
7:      // Not alike: by halves of words, if both are aligned to them; else by words that are put together from two.
        orr     x4, x0, x1
        tst     x4, #3
        b.ne    13f
        subs    x2, x2, #4
        b.lo    10f
11:     ldr     w4, [x1], #4
        str     w4, [x3], #4
        subs    x2, x2, #4
        b.hs    11b
10:     and     x2, x2, #3
8:      cbz     x2, 9f
12:     ldrb    w4, [x1], #1
        strb    w4, [x3], #1
        subs    x2, x2, #1
        b.ne    12b
9:      ret
13:     cmp     x2, #16
        b.lo    8b
14:     ands    x4, x3, #7
        b.eq    15f
        ldrb    w4, [x1], #1
        strb    w4, [x3], #1
        sub     x2, x2, #1
        b       14b
15:     ubfiz   x5, x1, #3, #3                  // bits of the first word that come before
        neg     x6, x5
        bic     x1, x1, #7
        ldr     x7, [x1], #8
        sub     x2, x2, #8
16:     ldr     x8, [x1], #8                    // some of it is to be copied
        lsr     x7, x7, x5
        lsl     x4, x8, x6
        orr     x7, x7, x4
        str     x7, [x3], #8
        mov     x7, x8
        subs    x2, x2, #8
        b.hs    16b
        add     x1, x1, x5, lsr #3
        sub     x1, x1, #8
        and     x2, x2, #7
        b       8b

// As above; the two may overlap.
.global memmove
memmove:
        sub     x4, x0, x1
        cmp     x4, x2
        b.hs    memcpy
        // Downwards.
        add     x3, x0, x2
        add     x1, x1, x2
        orr     x4, x3, x1
        orr     x4, x4, x2
        tst     x4, #7
        b.ne    4f
        subs    x2, x2, #32
        b.lo    2f
1:      ldp     x4, x5, [x1, #-16]
        ldp     x6, x7, [x1, #-32]!
        stp     x4, x5, [x3, #-16]
        stp     x6, x7, [x3, #-32]!
        subs    x2, x2, #32
        b.hs    1b
2:      tbz     x2, #4, 3f
        ldp     x4, x5, [x1, #-16]!
        stp     x4, x5, [x3, #-16]!
3:      tbz     x2, #3, 5f
        ldr     x4, [x1, #-8]
        str     x4, [x3, #-8]
        ret
4:      ldrb    w4, [x1, #-1]!
        strb    w4, [x3, #-1]!
        subs    x2, x2, #1
        b.ne    4b
5:      ret
