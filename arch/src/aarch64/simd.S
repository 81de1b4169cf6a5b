// Stores or loads q0 to q31, to or from 512 bytes at `base`: `stp` or `ldp`. For the files that are assembled behind this one,
// which purge it.
.macro all_of_simd instruction, base
        \instruction    q0, q1, [\base, #0x000]
        \instruction    q2, q3, [\base, #0x020]
        \instruction    q4, q5, [\base, #0x040]
        \instruction    q6, q7, [\base, #0x060]
        \instruction    q8, q9, [\base, #0x080]
        \instruction    q10, q11, [\base, #0x0a0]
        \instruction    q12, q13, [\base, #0x0c0]
        \instruction    q14, q15, [\base, #0x0e0]
        \instruction    q16, q17, [\base, #0x100]
        \instruction    q18, q19, [\base, #0x120]
        \instruction    q20, q21, [\base, #0x140]
        \instruction    q22, q23, [\base, #0x160]
        \instruction    q24, q25, [\base, #0x180]
        \instruction    q26, q27, [\base, #0x1a0]
        \instruction    q28, q29, [\base, #0x1c0]
        \instruction    q30, q31, [\base, #0x1e0]
.endm
