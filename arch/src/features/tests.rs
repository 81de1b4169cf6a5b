//! Golden values: the registers as read at EL1 of QEMU 10.0.2's models of real cores, `-M virt`, one
//! with `gic-version=3`.

use std::string::ToString;

use proptest::prelude::*;

use super::*;

const A53: IdRegisters = IdRegisters {
    mmfr0: 0x0000_0000_0000_1122,
    mmfr1: 0,
    mmfr2: 0,
    pfr0: 0x0000_0000_0000_0022,
    isar0: 0x0000_0000_0001_1120,
    isar2: 0,
    ctr: 0x0000_0000_8444_8004,
};
const A72: IdRegisters = IdRegisters {
    mmfr0: 0x0000_0000_0000_1124,
    mmfr1: 0,
    mmfr2: 0,
    pfr0: 0x0000_0000_0000_0022,
    isar0: 0x0000_0000_0001_1120,
    isar2: 0,
    ctr: 0x0000_0000_8444_c004,
};
const N1: IdRegisters = IdRegisters {
    mmfr0: 0x0000_0000_0010_1125,
    mmfr1: 0x0000_0000_1021_2122,
    mmfr2: 0x0000_0000_0000_1011,
    pfr0: 0x1100_0000_1111_0012, // gic-version=3
    isar0: 0x0000_1000_1021_1120,
    isar2: 0,
    ctr: 0x0000_0000_8444_c004,
};
const V1: IdRegisters = IdRegisters {
    mmfr0: 0x0000_0000_0010_1125,
    mmfr1: 0x0000_0000_1021_2122,
    mmfr2: 0x0220_0111_0210_1011,
    pfr0: 0x1101_0001_2011_0012,
    isar0: 0x1011_1111_1021_2120,
    isar2: 0,
    ctr: 0x0000_0000_b444_c004,
};
const N2: IdRegisters = IdRegisters {
    mmfr0: 0x0000_0222_0010_1125,
    mmfr1: 0x0000_0000_1021_2122,
    mmfr2: 0x1221_0111_1210_1011,
    pfr0: 0x1201_0011_2011_0012,
    isar0: 0x1221_1111_1021_2120,
    isar2: 0,
    ctr: 0x0000_0004_b444_c004,
};
const MAX: IdRegisters = IdRegisters {
    mmfr0: 0x2100_0323_1020_1126,
    mmfr1: 0x0110_1120_1031_2122,
    mmfr2: 0x1221_0111_1201_1011,
    pfr0: 0x1301_0011_2011_0022,
    isar0: 0x1221_1111_1021_2120,
    isar2: 0x0000_0000_0011_0012,
    ctr: 0x0000_0000_b444_c004,
};

/// Cortex-A72: Armv8.0, nothing optional.
const A72_FEATURES: CpuFeatures = CpuFeatures {
    pa_bits: 44,
    asid_bits: 16,
    granules: Granules { k4: true, k16: false, k64: true },
    hafdbs: Hafdbs::None,
    pan: false,
    ets2: false,
    bbm: BbmLevel::Level0,
    bbm_no_abort: false,
    ttl: false,
    e0pd: false,
    fp_simd: true,
    gic_system_registers: false,
    lse: false,
    tlbi_os: false,
    tlbi_range: false,
    rng: false,
    mops: false,
    caches: CacheType { dcache_line: 64, icache_line: 64, idc: false, dic: false, icache_pipt: true },
};
const N1_FEATURES: CpuFeatures = CpuFeatures {
    pa_bits: 48,
    granules: Granules { k4: true, k16: true, k64: true },
    hafdbs: Hafdbs::AfDbm,
    pan: true,
    lse: true,
    gic_system_registers: true,
    ..A72_FEATURES
};
const V1_FEATURES: CpuFeatures = CpuFeatures {
    rng: true,
    bbm: BbmLevel::Level2,
    gic_system_registers: false,
    caches: CacheType { idc: true, dic: true, ..A72_FEATURES.caches },
    ..N1_FEATURES
};
const N2_FEATURES: CpuFeatures =
    CpuFeatures { tlbi_os: true, tlbi_range: true, ttl: true, e0pd: true, ..V1_FEATURES };
const MAX_FEATURES: CpuFeatures = CpuFeatures { pa_bits: 52, ets2: true, mops: true, ..N2_FEATURES };

#[test]
fn cores_are_what_their_manuals_say() {
    assert_eq!(CpuFeatures::decode(&A72), A72_FEATURES);
    let a53 = CpuFeatures {
        pa_bits: 40,
        caches: CacheType { icache_pipt: false, ..A72_FEATURES.caches },
        ..A72_FEATURES
    };
    assert_eq!(CpuFeatures::decode(&A53), a53);
    assert_eq!(CpuFeatures::decode(&N1), N1_FEATURES);
    assert_eq!(CpuFeatures::decode(&V1), V1_FEATURES);
    assert_eq!(CpuFeatures::decode(&N2), N2_FEATURES);
    assert_eq!(CpuFeatures::decode(&MAX), MAX_FEATURES);
}

/// Each field, set to a value in the registers of a CPU that has everything, changes its own part of
/// the answer and no other.
#[test]
fn each_field_is_read_from_its_own_bits() {
    fn set(register: &mut u64, shift: u32, value: u64) {
        *register = *register & !(0xf << shift) | value << shift;
    }
    type Row = (fn(&mut IdRegisters), fn(&mut CpuFeatures));
    let rows: [Row; 47] = [
        (|id| set(&mut id.mmfr0, 0, 0), |f| f.pa_bits = 32),
        (|id| set(&mut id.mmfr0, 0, 1), |f| f.pa_bits = 36),
        (|id| set(&mut id.mmfr0, 0, 2), |f| f.pa_bits = 40),
        (|id| set(&mut id.mmfr0, 0, 3), |f| f.pa_bits = 42),
        (|id| set(&mut id.mmfr0, 0, 4), |f| f.pa_bits = 44),
        (|id| set(&mut id.mmfr0, 0, 5), |f| f.pa_bits = 48),
        (|id| set(&mut id.mmfr0, 0, 7), |f| f.pa_bits = 56),
        (|id| set(&mut id.mmfr0, 0, 15), |f| f.pa_bits = 56),
        (|id| set(&mut id.mmfr0, 4, 0), |f| f.asid_bits = 8),
        (|id| set(&mut id.mmfr0, 4, 1), |f| f.asid_bits = 8),
        (|id| set(&mut id.mmfr0, 20, 0), |f| f.granules.k16 = false),
        (|id| set(&mut id.mmfr0, 20, 1), |_| ()),
        (|id| set(&mut id.mmfr0, 24, 15), |f| f.granules.k64 = false),
        (|id| set(&mut id.mmfr0, 28, 0), |_| ()),
        (|id| set(&mut id.mmfr0, 28, 15), |f| f.granules.k4 = false),
        (|id| set(&mut id.mmfr1, 0, 0), |f| f.hafdbs = Hafdbs::None),
        (|id| set(&mut id.mmfr1, 0, 1), |f| f.hafdbs = Hafdbs::Af),
        (|id| set(&mut id.mmfr1, 0, 3), |_| ()),
        (|id| set(&mut id.mmfr1, 0, 4), |_| ()),
        (|id| set(&mut id.mmfr1, 20, 0), |f| f.pan = false),
        (|id| set(&mut id.mmfr1, 20, 1), |_| ()),
        (|id| set(&mut id.mmfr1, 36, 0), |f| f.ets2 = false),
        (|id| set(&mut id.mmfr1, 36, 1), |f| f.ets2 = false),
        (|id| set(&mut id.mmfr1, 36, 3), |_| ()),
        (|id| set(&mut id.mmfr2, 48, 0), |f| f.ttl = false),
        (|id| set(&mut id.mmfr2, 52, 0), |f| f.bbm = BbmLevel::Level0),
        (|id| set(&mut id.mmfr2, 52, 1), |f| f.bbm = BbmLevel::Level1),
        (|id| set(&mut id.mmfr2, 52, 3), |f| (f.bbm, f.bbm_no_abort) = (BbmLevel::Level3, true)),
        (|id| set(&mut id.mmfr2, 52, 4), |f| (f.bbm, f.bbm_no_abort) = (BbmLevel::Level3, true)),
        (|id| set(&mut id.mmfr2, 60, 0), |f| f.e0pd = false),
        (|id| set(&mut id.pfr0, 16, 15), |f| f.fp_simd = false),
        (|id| set(&mut id.pfr0, 20, 15), |f| f.fp_simd = false),
        (|id| set(&mut id.pfr0, 24, 1), |f| f.gic_system_registers = true),
        (|id| set(&mut id.pfr0, 24, 3), |f| f.gic_system_registers = true),
        (|id| set(&mut id.isar0, 20, 0), |f| f.lse = false),
        (|id| set(&mut id.isar0, 20, 3), |_| ()),
        (|id| set(&mut id.isar0, 56, 0), |f| (f.tlbi_os, f.tlbi_range) = (false, false)),
        (|id| set(&mut id.isar0, 56, 1), |f| f.tlbi_range = false),
        (|id| set(&mut id.isar0, 60, 0), |f| f.rng = false),
        (|id| set(&mut id.isar0, 60, 2), |_| ()),
        (|id| set(&mut id.isar2, 16, 0), |f| f.mops = false),
        (|id| set(&mut id.ctr, 16, 3), |f| f.caches.dcache_line = 32),
        (|id| set(&mut id.ctr, 0, 5), |f| f.caches.icache_line = 128),
        (|id| id.ctr ^= 1 << 28, |f| f.caches.idc = false),
        (|id| id.ctr ^= 1 << 29, |f| f.caches.dic = false),
        (|id| id.ctr ^= 1 << 14, |f| f.caches.icache_pipt = false),
        (|id| id.ctr ^= 1 << 15, |f| f.caches.icache_pipt = false),
    ];
    for (row, (change, expect)) in rows.into_iter().enumerate() {
        let (mut id, mut expected) = (MAX, MAX_FEATURES);
        change(&mut id);
        expect(&mut expected);
        assert_eq!(CpuFeatures::decode(&id), expected, "row {row}");
    }
}

/// Taking away one capability of one CPU takes it away from both, and nothing else.
#[test]
fn common_is_the_lesser_in_every_part() {
    let full =
        CpuFeatures { gic_system_registers: true, bbm: BbmLevel::Level3, bbm_no_abort: true, ..MAX_FEATURES };
    let less: [fn(&mut CpuFeatures); 22] = [
        |f| f.pa_bits = 44,
        |f| f.asid_bits = 8,
        |f| f.granules.k4 = false,
        |f| f.granules.k16 = false,
        |f| f.granules.k64 = false,
        |f| f.hafdbs = Hafdbs::Af,
        |f| f.pan = false,
        |f| f.ets2 = false,
        |f| f.bbm = BbmLevel::Level2,
        |f| f.bbm_no_abort = false,
        |f| f.ttl = false,
        |f| f.e0pd = false,
        |f| f.fp_simd = false,
        |f| f.gic_system_registers = false,
        |f| f.lse = false,
        |f| (f.tlbi_os, f.tlbi_range) = (false, false),
        |f| f.rng = false,
        |f| f.mops = false,
        |f| f.caches.dcache_line = 32,
        |f| f.caches.icache_line = 32,
        |f| (f.caches.idc, f.caches.dic) = (false, false),
        |f| f.caches.icache_pipt = false,
    ];
    let mut least = full;
    for (row, weaken) in less.into_iter().enumerate() {
        let mut weak = full;
        weaken(&mut weak);
        assert_ne!(weak, full, "row {row}");
        assert_eq!(full.common(weak), weak, "row {row}");
        assert_eq!(weak.common(full), weak, "row {row}");
        weaken(&mut least);
        // Two CPUs that lack different things have neither.
        let mut other = full;
        (less[(row + 1) % less.len()])(&mut other);
        let mut both = weak;
        (less[(row + 1) % less.len()])(&mut both);
        assert_eq!(weak.common(other), both, "row {row}");
    }
    assert_eq!(
        less.into_iter().fold(full, |all, weaken| {
            let mut weak = full;
            weaken(&mut weak);
            all.common(weak)
        }),
        least
    );
    assert_eq!(CpuFeatures::decode(&MAX).common(CpuFeatures::decode(&A72)), A72_FEATURES);
}

#[test]
fn granules_are_asked_one_by_one() {
    let only = |k4, k16, k64| Granules { k4, k16, k64 };
    for (granules, expected) in [
        (only(true, false, false), [true, false, false]),
        (only(false, true, false), [false, true, false]),
        (only(false, false, true), [false, false, true]),
    ] {
        assert_eq!(Granule::ALL.map(|granule| granules.supports(granule)), expected);
    }
}

#[test]
fn midr_names_the_core() {
    // Cortex-A72 r0p3, Neoverse N1 r4p1
    assert_eq!(Midr::new(0x410f_d083).to_string(), "implementer 0x41 part 0xd08 r0p3");
    assert_eq!(Midr::new(0x414f_d0c1).to_string(), "implementer 0x41 part 0xd0c r4p1");
    assert_eq!(Midr::new(0x414f_d0c1).get(), 0x414f_d0c1);
}

fn any_features() -> impl Strategy<Value = CpuFeatures> {
    any::<[u64; 7]>().prop_map(|[mmfr0, mmfr1, mmfr2, pfr0, isar0, isar2, ctr]| {
        CpuFeatures::decode(&IdRegisters { mmfr0, mmfr1, mmfr2, pfr0, isar0, isar2, ctr })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Any order of CPUs gives the same answer, whatever their registers hold.
    #[test]
    fn common_does_not_depend_on_order(a in any_features(), b in any_features(), c in any_features()) {
        prop_assert_eq!(a.common(a), a);
        prop_assert_eq!(a.common(b), b.common(a));
        prop_assert_eq!(a.common(b).common(c), a.common(b.common(c)));
    }
}

#[test]
fn hardware_updates_what_is_old_or_clean() {
    let pte =
        |flags: PteFlags| PteValue::leaf(crate::PhysAddr::new(0x1000), crate::MemoryType::Normal, flags);
    let (af, clean) = (PteFlags::AF, PteFlags::DBM | PteFlags::RDONLY);
    for (entry, by_af, by_dbm) in [
        (pte(af), false, false),
        (pte(PteFlags::empty()), true, true),
        (pte(af | clean), false, true),
        (pte(clean), true, true),
        (pte(af | PteFlags::DBM), false, false),
        (pte(af | PteFlags::RDONLY), false, false),
        (pte(clean).without(PteFlags::VALID), false, false),
        (PteValue::NONE, false, false),
    ] {
        assert!(!Hafdbs::None.may_update(entry), "{entry:?}");
        assert_eq!(Hafdbs::Af.may_update(entry), by_af, "{entry:?}");
        assert_eq!(Hafdbs::AfDbm.may_update(entry), by_dbm, "{entry:?}");
    }
}
