//! Barriers, and the event that is sent after one, each under the name of its instruction (DDI 0487, B2.3.12).

use core::arch::asm;

macro_rules! barrier {
    ($name:ident, $instruction:literal, $doc:literal) => {
        #[doc = $doc]
        #[inline(always)]
        pub fn $name() {
            // SAFETY: a barrier only orders. Not `nomem`: the compiler must not move accesses over it.
            unsafe { asm!($instruction, options(nostack, preserves_flags)) }
        }
    };
}

barrier!(
    dsb_ish,
    "dsb ish",
    "Earlier accesses and TLB maintenance have completed for the Inner Shareable domain."
);
barrier!(dsb_ishst, "dsb ishst", "Earlier stores have completed for the Inner Shareable domain.");
barrier!(dsb_nsh, "dsb nsh", "Earlier accesses and TLB maintenance have completed for this CPU.");
barrier!(dsb_nshst, "dsb nshst", "Earlier stores have completed for this CPU.");
barrier!(dsb_sy, "dsb sy", "Earlier accesses and maintenance have completed for the full system.");
barrier!(isb, "isb", "Later instructions see the effects of earlier context changes.");
barrier!(
    sev,
    "sev",
    "CPUs that wait by WFE go on. No barrier: what they are to see is completed by one before it."
);
