//! Instructions that must not run before the MMU and the caches are on.
//!
//! Memory is Device to a core until then, and on real hardware exclusives and atomic read-modify-writes
//! to Device memory need not work, and `DC ZVA` faults (DDI 0487, B2.10 and C6.2.110). QEMU lets all of
//! them pass, so a boot there shows nothing.

use std::fmt;

/// A forbidden instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Its address in the ELF file.
    pub address: u64,
    /// Its encoding.
    pub word: u32,
    /// Which kind it is of.
    pub kind: Kind,
}

/// What is forbidden.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `LDXR`, `LDAXR`, `STXR`, `STLXR`, and their pair and sized forms.
    Exclusive,
    /// `CAS`, `CASP` and their variants.
    CompareAndSwap,
    /// `LDADD`, `LDCLR`, `SWP` and all others of FEAT_LSE's and FEAT_LSE128's atomic memory operations.
    Atomic,
    /// `DC ZVA`, `DC GVA`, `DC GZVA`.
    ZeroByVa,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Exclusive => "an exclusive load or store",
            Kind::CompareAndSwap => "a compare-and-swap",
            Kind::Atomic => "an atomic memory operation",
            Kind::ZeroByVa => "a DC ZVA",
        };
        write!(f, "{:#x}: {:08x} is {kind}", self.address, self.word)
    }
}

/// Which kind of forbidden instruction this is (DDI 0487, C4.1.94 "Loads and Stores", C5.3 for `DC`).
pub fn classify(word: u32) -> Option<Kind> {
    let bit = |n: u32| word >> n & 1 == 1;
    // Load/store exclusive, ordered, and compare-and-swap: bits 29:24 are 0b001000.
    if word & 0x3f00_0000 == 0x0800_0000 {
        return match (bit(23), bit(21)) {
            (false, false) => Some(Kind::Exclusive),
            // The pair forms: exclusive with size 0b1x, CASP with 0b0x.
            (false, true) if bit(31) => Some(Kind::Exclusive),
            (false, true) | (true, true) => Some(Kind::CompareAndSwap),
            // LDAR, STLR and the LORegion forms are plain accesses with an order.
            (true, false) => None,
        };
    }
    // Atomic memory operations: size 111 V=0 00 A R 1 Rs o3 opc 00.
    if word & 0x3f20_0c00 == 0x3820_0000 {
        // LDAPR (o3 = 1, opc = 0b100) is a plain load.
        return (word & 0xf000 != 0xc000).then_some(Kind::Atomic);
    }
    // 128-bit atomic memory operations: 0 0 011001 A R 1 Rt2 o3 opc 00.
    if word & 0xff20_0c00 == 0x1920_0000 {
        return Some(Kind::Atomic);
    }
    // SYS #3, C7, C4, #op2, Xt with op2 1 (ZVA), 3 (GVA) or 4 (GZVA).
    match word & 0xffff_ffe0 {
        0xd50b_7420 | 0xd50b_7460 | 0xd50b_7480 => Some(Kind::ZeroByVa),
        _ => None,
    }
}

/// The forbidden ones among instructions, given with their addresses.
pub fn violations(code: impl IntoIterator<Item = (u64, u32)>) -> Vec<Violation> {
    code.into_iter()
        .filter_map(|(address, word)| classify(word).map(|kind| Violation { address, word, kind }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Encodings as LLVM's assembler made them.
    const FORBIDDEN: &[(u32, Kind, &str)] = &[
        (0xc85f_7c20, Kind::Exclusive, "ldxr x0, [x1]"),
        (0x885f_fc20, Kind::Exclusive, "ldaxr w0, [x1]"),
        (0xc802_7c20, Kind::Exclusive, "stxr w2, x0, [x1]"),
        (0x8802_fc20, Kind::Exclusive, "stlxr w2, w0, [x1]"),
        (0xc87f_0c20, Kind::Exclusive, "ldxp x0, x3, [x1]"),
        (0xc822_8c20, Kind::Exclusive, "stlxp w2, x0, x3, [x1]"),
        (0x085f_7c20, Kind::Exclusive, "ldxrb w0, [x1]"),
        (0x4802_fc20, Kind::Exclusive, "stlxrh w2, w0, [x1]"),
        (0xc8e0_fc41, Kind::CompareAndSwap, "casal x0, x1, [x2]"),
        (0x08a0_7c41, Kind::CompareAndSwap, "casb w0, w1, [x2]"),
        (0x4820_7c82, Kind::CompareAndSwap, "casp x0, x1, x2, x3, [x4]"),
        (0x0860_fc82, Kind::CompareAndSwap, "caspal w0, w1, w2, w3, [x4]"),
        (0xf820_0041, Kind::Atomic, "ldadd x0, x1, [x2]"),
        (0xb8e0_0041, Kind::Atomic, "ldaddal w0, w1, [x2]"),
        (0xf820_105f, Kind::Atomic, "stclr x0, [x2]"),
        (0xf8e0_8041, Kind::Atomic, "swpal x0, x1, [x2]"),
        (0x3820_3041, Kind::Atomic, "ldsetb w0, w1, [x2]"),
        (0x7820_6041, Kind::Atomic, "ldumaxh w0, w1, [x2]"),
        (0x1921_8040, Kind::Atomic, "swpp x0, x1, [x2]"),
        (0x19e1_1040, Kind::Atomic, "ldclrpal x0, x1, [x2]"),
        (0xd50b_7420, Kind::ZeroByVa, "dc zva, x0"),
        (0xd50b_743e, Kind::ZeroByVa, "dc zva, x30"),
        (0xd50b_7461, Kind::ZeroByVa, "dc gva, x1"),
        (0xd50b_7482, Kind::ZeroByVa, "dc gzva, x2"),
    ];
    const ALLOWED: &[(u32, &str)] = &[
        (0xc8df_fc20, "ldar x0, [x1]"),
        (0x889f_fc20, "stlr w0, [x1]"),
        (0xc8df_7c20, "ldlar x0, [x1]"),
        (0xf8bf_c020, "ldapr x0, [x1]"),
        (0x38bf_c020, "ldaprb w0, [x1]"),
        (0xf940_0020, "ldr x0, [x1]"),
        (0xf862_6820, "ldr x0, [x1, x2]"),
        (0xf822_7820, "str x0, [x1, x2, lsl #3]"),
        (0xa8c1_0440, "ldp x0, x1, [x2], #16"),
        (0xa881_7c1f, "stp xzr, xzr, [x0], #16"),
        (0xf85f_8020, "ldur x0, [x1, #-8]"),
        (0xd940_8020, "ldapur x0, [x1, #8]"),
        (0xf820_0420, "ldraa x0, [x1]"),
        (0xf840_0820, "ldtr x0, [x1]"),
        (0xf980_0020, "prfm pldl1keep, [x1]"),
        (0x3822_6820, "strb w0, [x1, x2]"),
        (0xb8a2_6820, "ldrsw x0, [x1, x2]"),
        (0xa840_0440, "ldnp x0, x1, [x2]"),
        (0xd508_7620, "dc ivac, x0"),
        (0xd50b_7a20, "dc cvac, x0"),
        (0xd50b_7e23, "dc civac, x3"),
        (0xd508_751f, "ic iallu"),
        (0xd503_3f9f, "dsb sy"),
    ];

    #[test]
    fn forbidden_instructions_are_recognized() {
        for &(word, kind, text) in FORBIDDEN {
            assert_eq!(classify(word), Some(kind), "{text}");
        }
    }

    #[test]
    fn allowed_instructions_are_not() {
        for &(word, text) in ALLOWED {
            assert_eq!(classify(word), None, "{text}");
        }
    }

    #[test]
    fn a_violation_is_found_and_named_where_it_stands() {
        let code = [(0x40, 0xd503_3f9f), (0x44, 0xc85f_7c20), (0x48, 0xa881_7c1f), (0x4c, 0xd50b_7420)];
        let found: Vec<_> = violations(code).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["0x44: c85f7c20 is an exclusive load or store", "0x4c: d50b7420 is a DC ZVA"]);
    }
}
