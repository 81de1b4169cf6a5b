//! Each list at both ends of its revisions, and machines of several models.

use proptest::prelude::*;

use super::*;
use crate::features::IdRegisters;

/// What a CPU that has everything of Armv8.7 reports, at this level.
fn reports(bbm: BbmLevel, hafdbs: Hafdbs) -> CpuFeatures {
    CpuFeatures::decode(&IdRegisters {
        mmfr1: hafdbs as u64,
        mmfr2: (bbm as u64) << 52,
        ..Default::default()
    })
}

fn midr(implementer: u8, part: u16, variant: u8, revision: u8) -> Midr {
    let bits = u64::from(implementer) << 24 | u64::from(variant) << 20 | 0xf << 16;
    Midr::new(bits | u64::from(part) << 4 | u64::from(revision))
}

const X4: u16 = 0xd82;
const V3AE: u16 = 0xd83;
const V3: u16 = 0xd84;
const A55: u16 = 0xd05;
const A510: u16 = 0xd46;

fn no_abort(bbm: BbmLevel, midr: Midr) -> bool {
    reports(bbm, Hafdbs::AfDbm).on_model(midr).bbm_no_abort
}

fn hafdbs(midr: Midr) -> Hafdbs {
    reports(BbmLevel::Level0, Hafdbs::AfDbm).on_model(midr).hafdbs
}

#[test]
fn the_shortcut_begins_with_a_revision() {
    for (part, first) in [(X4, 3), (V3AE, 2), (V3, 2)] {
        for revision in 0..16 {
            let listed = no_abort(BbmLevel::Level2, midr(ARM, part, 0, revision));
            assert_eq!(listed, revision >= first, "{part:#x} r0p{revision}");
        }
        // A new variant, the same number of another maker, the models beside it.
        assert!(!no_abort(BbmLevel::Level2, midr(ARM, part, 1, 0xf)));
        assert!(!no_abort(BbmLevel::Level2, midr(QUALCOMM, part, 0, 0xf)));
    }
    for part in [X4 - 1, V3 + 1] {
        assert!(!no_abort(BbmLevel::Level2, midr(ARM, part, 0, 0xf)));
    }
}

#[test]
fn the_level_must_be_reported_too() {
    let (listed, other) = (midr(ARM, X4, 0, 3), midr(ARM, 0xd0c, 4, 1));
    for (bbm, on_list, elsewhere) in [
        (BbmLevel::Level0, false, false),
        (BbmLevel::Level1, false, false),
        (BbmLevel::Level2, true, false),
        (BbmLevel::Level3, true, true),
    ] {
        assert_eq!((no_abort(bbm, listed), no_abort(bbm, other)), (on_list, elsewhere), "{bbm:?}");
    }
    // `-cpu max` of QEMU reports level 2, and is no model at all.
    assert!(!no_abort(BbmLevel::Level2, Midr::new(0x000f_0510)));
    // AmpereOne reports none.
    assert!(!no_abort(BbmLevel::Level0, midr(AMPERE, 0xac3, 0, 0)));
}

#[test]
fn errata_take_hardware_updates_away() {
    for (variant, revision) in [(0, 0), (1, 0), (2, 0), (0xf, 0xf)] {
        assert_eq!(hafdbs(midr(ARM, A55, variant, revision)), Hafdbs::Af);
        assert_eq!(hafdbs(midr(QUALCOMM, 0x803, variant, revision)), Hafdbs::Af);
        assert_eq!(hafdbs(midr(AMPERE, 0xac3, variant, revision)), Hafdbs::None);
        assert_eq!(hafdbs(midr(AMPERE, 0xac4, variant, revision)), Hafdbs::None);
    }
    assert_eq!(hafdbs(midr(QUALCOMM, 0x805, 0xd, 0xe)), Hafdbs::Af);
    for (variant, revision, expected) in [
        (0, 0, Hafdbs::Af),
        (0, 2, Hafdbs::Af),
        (0, 3, Hafdbs::AfDbm),
        (1, 0, Hafdbs::AfDbm),
        (1, 2, Hafdbs::AfDbm),
    ] {
        assert_eq!(hafdbs(midr(ARM, A510, variant, revision)), expected, "r{variant}p{revision}");
    }
    // Others keep what they report; and a list gives nothing.
    assert_eq!(hafdbs(midr(ARM, 0xd0c, 4, 1)), Hafdbs::AfDbm);
    assert_eq!(hafdbs(midr(QUALCOMM, A55, 0, 0)), Hafdbs::AfDbm);
    for reported in [Hafdbs::None, Hafdbs::Af] {
        assert_eq!(reports(BbmLevel::Level2, reported).on_model(midr(ARM, A55, 2, 0)).hafdbs, reported);
    }
}

#[test]
fn a_machine_is_as_good_as_its_worst_cpu() {
    use BbmLevel::{Level1, Level2, Level3};
    let cpu = |bbm, midr| reports(bbm, Hafdbs::AfDbm).on_model(midr);
    let machine = |cpus: &[CpuFeatures]| cpus.iter().copied().reduce(CpuFeatures::common).unwrap();

    let (x4, a720) = (midr(ARM, X4, 0, 3), midr(ARM, 0xd81, 0, 2));
    let v3 = midr(ARM, V3, 0, 2);
    // Each by itself, one by its register and one by the list: the least level alone would not tell.
    let mixed = machine(&[cpu(Level3, a720), cpu(Level2, x4), cpu(Level2, v3)]);
    assert!(mixed.bbm_no_abort);
    assert_eq!(mixed.bbm, Level2);
    // One of them is not on the list, is too early, or reports too little; wherever it comes.
    for odd in [cpu(Level2, a720), cpu(Level2, midr(ARM, X4, 0, 2)), cpu(Level1, x4)] {
        assert!(!machine(&[odd, cpu(Level2, x4), cpu(Level3, a720)]).bbm_no_abort);
        assert!(!machine(&[cpu(Level3, a720), cpu(Level2, x4), odd]).bbm_no_abort);
    }

    // A little cluster takes the dirty state away from the big one.
    let (a55, a76) = (midr(ARM, A55, 1, 0), midr(ARM, 0xd0b, 4, 1));
    assert_eq!(machine(&[cpu(Level2, a55), cpu(Level2, a76)]).hafdbs, Hafdbs::Af);
    assert_eq!(machine(&[cpu(Level2, a76), cpu(Level2, a76)]).hafdbs, Hafdbs::AfDbm);
    assert_eq!(machine(&[cpu(Level2, a55), cpu(Level2, midr(AMPERE, 0xac4, 0, 0))]).hafdbs, Hafdbs::None);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the model, nothing else changes.
    #[test]
    fn a_model_says_nothing_about_the_rest(bits in any::<u64>(), mmfr1 in any::<u64>(), mmfr2 in any::<u64>()) {
        let reported = CpuFeatures::decode(&IdRegisters { mmfr1, mmfr2, ..Default::default() });
        let trusted = reported.on_model(Midr::new(bits));
        let (hafdbs, bbm_no_abort) = (reported.hafdbs, reported.bbm_no_abort);
        prop_assert!(trusted.hafdbs <= hafdbs);
        prop_assert_eq!(CpuFeatures { hafdbs, bbm_no_abort, ..trusted }, reported);
    }
}
