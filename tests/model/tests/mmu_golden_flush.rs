//! Seeded faults in flushes and conversions that the model must report, each beside the right steps, in which it must find
//! nothing.

mod mmu_rig;

use arch::features::BbmLevel;
use arch::tlbi::{Asid, RangeSize, Space, Tlbi};
use arch::{Granule, Mmu};
use mmu_rig::*;
use pleat_model::mmu::{Config, Rule};
use pleat_model::{GranuleType, K4, K16, K64};

fn plain() -> Config {
    Config::default()
}

// Unmapping.

fn one_invalidation_of_a_group_is_left_out<G: GranuleType>() {
    for left_out in [0, 7, 15] {
        pair::<G>(plain(), &[Rule::Stale], |rig, wrong| {
            let group = 0..rig.group();
            rig.map(group.clone(), DATA | CONT);
            let unmap = rig.begin(group.clone(), None);
            rig.clear(0, group.clone());
            rig.cpu(0).publish();
            for page in group.filter(|&page| !wrong || page != left_out) {
                rig.issue(0, page..page + 1);
            }
            rig.cpu(0).complete();
            rig.end(unmap);
        });
    }
}

#[test]
fn one_of_16_invalidations_is_left_out() {
    one_invalidation_of_a_group_is_left_out::<K4>();
    one_invalidation_of_a_group_is_left_out::<K16>();
    one_invalidation_of_a_group_is_left_out::<K64>();
}

#[test]
fn no_dsb_before_the_invalidation() {
    pair::<K4>(plain(), &[Rule::Stale], |rig, wrong| {
        rig.map(3..4, DATA);
        let unmap = rig.begin(3..4, None);
        rig.clear(0, 3..4);
        if !wrong {
            rig.cpu(0).publish();
        }
        // Before the walkers see that the entry is gone, they may read it again.
        rig.issue(0, 3..4);
        rig.cpu(0).complete();
        rig.end(unmap);
    });
}

#[test]
fn the_dsb_before_the_invalidation_is_another_cpus() {
    pair::<K4>(plain(), &[Rule::Stale], |rig, wrong| {
        rig.map(3..4, DATA);
        let unmap = rig.begin(3..4, None);
        rig.clear(0, 3..4);
        rig.cpu(usize::from(wrong)).publish();
        rig.issue(0, 3..4);
        rig.cpu(0).complete();
        rig.end(unmap);
    });
}

#[test]
fn no_dsb_after_the_invalidation() {
    pair::<K4>(plain(), &[Rule::Stale], |rig, wrong| {
        rig.map(3..4, DATA);
        let unmap = rig.begin(3..4, None);
        rig.clear(0, 3..4);
        rig.cpu(0).publish();
        rig.issue(0, 3..4);
        // `dsb ishst` waits for stores only.
        if wrong {
            rig.cpu(0).publish()
        } else {
            rig.cpu(0).complete()
        }
        rig.end(unmap);
    });
}

#[test]
fn another_cpu_waits_for_the_invalidation() {
    pair::<K4>(plain(), &[Rule::Stale], |rig, wrong| {
        rig.map(3..4, DATA);
        let unmap = rig.begin(3..4, None);
        rig.clear(0, 3..4);
        rig.cpu(0).publish();
        rig.issue(0, 3..4);
        rig.cpu(usize::from(wrong)).complete();
        rig.end(unmap);
    });
}

#[test]
fn an_invalidation_is_not_broadcast() {
    pair::<K4>(plain(), &[Rule::Stale], |rig, wrong| {
        rig.map(3..4, DATA);
        let unmap = rig.begin(3..4, None);
        rig.clear(0, 3..4);
        rig.cpu(0).publish();
        if wrong {
            rig.cpu(0).invalidate_local(rig.tlbi(3));
        } else {
            rig.issue(0, 3..4);
            rig.cpu(0).complete();
        }
        rig.end(unmap);
    });
}

#[test]
fn the_last_page_of_a_range_is_left_out() {
    let config = Config { tlb_range: true, ..plain() };
    pair::<K4>(config, &[Rule::Stale], |rig, wrong| {
        rig.map(0..32, DATA);
        let unmap = rig.begin(0..32, None);
        rig.clear(0, 0..32);
        rig.cpu(0).publish();
        let pages = if wrong { 31 } else { 32 };
        let space = Space::Asid(ASID);
        for op in Tlbi::range(rig.va(0), pages, space, true, Granule::K4, Some(3)).unwrap() {
            rig.cpu(0).invalidate(op);
        }
        rig.cpu(0).complete();
        rig.end(unmap);
    });
}

#[test]
fn a_range_operation_that_the_machine_does_not_have() {
    for (tlb_range, rules) in [(true, &[][..]), (false, &[Rule::BadOperation])] {
        let rig = Rig::<K4>::new(Config { tlb_range, ..plain() });
        let (start, size) = (rig.va(0), RangeSize::new(0, 7).unwrap());
        let (space, granule) = (Space::Asid(ASID), Granule::K4);
        rig.cpu(0).invalidate(Tlbi::Range { start, size, space, last_level: true, granule, level: Some(3) });
        assert_eq!(rig.broken(), rules);
    }
}

#[test]
fn the_level_hint_is_wrong() {
    for (hint, granule) in [(Some(2), Granule::K4), (Some(1), Granule::K4), (Some(3), Granule::K64)] {
        pair::<K4>(plain(), &[Rule::Stale], |rig, wrong| {
            rig.map(3..4, DATA);
            let unmap = rig.begin(3..4, None);
            rig.clear(0, 3..4);
            rig.cpu(0).publish();
            rig.cpu(0).invalidate(if wrong { rig.tlbi_hint(3, hint, granule) } else { rig.tlbi(3) });
            rig.cpu(0).complete();
            rig.end(unmap);
        });
    }
}

#[test]
fn the_asid_is_wrong() {
    pair::<K4>(plain(), &[Rule::Stale], |rig, wrong| {
        rig.map(3..4, DATA);
        let unmap = rig.begin(3..4, None);
        rig.clear(0, 3..4);
        rig.cpu(0).publish();
        rig.cpu(0).invalidate(Tlbi::Asid(if wrong { Asid::new(2) } else { ASID }));
        rig.cpu(0).complete();
        rig.end(unmap);
    });
}

#[test]
fn an_asid_is_used_again_without_invalidation() {
    pair::<K4>(plain(), &[Rule::Stale], |rig, wrong| {
        rig.map(3..4, DATA);
        for cpu in 0..2 {
            rig.cpu(cpu).load_ttbr0(None, Asid::new(2));
        }
        rig.machine.unwatch(USER);
        if !wrong {
            rig.cpu(0).invalidate(Tlbi::Asid(ASID));
            rig.cpu(0).complete();
        }
        rig.machine.watch(USER);
        let root = rig.cpu(0).new_root();
        rig.cpu(0).load_ttbr0(Some(root), ASID);
    });
}

#[test]
fn a_sibling_survives_the_flush_of_a_group() {
    // It alone may fill the whole group again.
    pair::<K4>(plain(), &[Rule::Stale], |rig, wrong| {
        rig.map(0..16, DATA | CONT);
        let unmap = rig.begin(0..if wrong { 15 } else { 16 }, None);
        rig.clear(0, 0..if wrong { 15 } else { 16 });
        rig.flush(0, 0..16);
        rig.end(unmap);
    });
}

#[test]
fn a_flush_is_raced_by_another_cpus_old_value() {
    pair::<K4>(plain(), &[Rule::Stale], |rig, wrong| {
        rig.map(3..4, DATA);
        let unmap = rig.begin(3..4, None);
        rig.clear(1, 3..4);
        if wrong {
            rig.flush(0, 3..4);
            rig.cpu(1).publish();
        } else {
            rig.cpu(1).publish();
            rig.flush(0, 3..4);
        }
        rig.end(unmap);
    });
}

#[test]
fn without_ets2_a_flush_ends_with_an_isb() {
    let steps = |rig: &Rig<K4>, isb: bool| {
        rig.map(3..4, DATA);
        let unmap = rig.begin(3..4, None);
        rig.clear(0, 3..4);
        rig.cpu(0).publish();
        rig.issue(0, 3..4);
        rig.cpu(0).dsb_ish();
        if isb {
            rig.cpu(0).isb();
        }
        rig.end(unmap);
    };
    pair::<K4>(plain(), &[Rule::Stale], |rig, wrong| steps(rig, !wrong));
    let rig = Rig::new(Config { ets2: true, ..plain() });
    steps(&rig, false);
    assert_eq!(rig.broken(), []);
}

// Conversion.

/// Makes the entries of a group invalid, flushes, and makes them valid again with the other size.
fn convert<G: GranuleType>(rig: &Rig<G>, alive: Option<usize>, zero: bool, flush: bool, bits: u64) {
    let group = 0..rig.group();
    if zero {
        group.clone().filter(|&page| Some(page) != alive).for_each(|page| rig.set(0, page, 0));
    }
    if flush {
        rig.flush(0, group.clone());
    }
    rig.set_all(0, group, bits);
}

fn converting<G: GranuleType>(from: u64, to: u64) {
    let both = [Rule::SizeChange, Rule::MixedGroup];
    for alive in [0, 5, 15] {
        pair::<G>(plain(), &both, |rig, wrong| {
            rig.map(0..rig.group(), DATA | from);
            convert(rig, wrong.then_some(alive), true, true, DATA | to);
        });
    }
    pair::<G>(plain(), &both, |rig, wrong| {
        rig.map(0..rig.group(), DATA | from);
        convert(rig, None, !wrong, true, DATA | to);
    });
    // Without the flush, what is cached is of the other size, and what walkers may see is a mixture.
    pair::<G>(plain(), &both, |rig, wrong| {
        rig.map(0..rig.group(), DATA | from);
        convert(rig, None, true, !wrong, DATA | to);
    });
}

#[test]
fn a_conversion_leaves_out_a_step() {
    converting::<K4>(0, CONT);
    converting::<K4>(CONT, 0);
    converting::<K16>(0, CONT);
    converting::<K16>(CONT, 0);
    converting::<K64>(0, CONT);
    converting::<K64>(CONT, 0);
}

#[test]
fn an_entry_gets_the_bit_while_others_are_valid_without_it() {
    pair::<K4>(plain(), &[Rule::SizeChange, Rule::MixedGroup], |rig, wrong| {
        rig.map(0..15, DATA);
        let map = rig.begin(15..16, Some(DATA));
        rig.set(0, 15, rig.pte(15, DATA | if wrong { CONT } else { 0 }));
        rig.end(map);
    });
}

#[test]
fn a_mixed_group_is_found_without_the_access_flag_too() {
    // Nothing of it is cached.
    pair::<K4>(plain(), &[Rule::MixedGroup], |rig, wrong| {
        let map = rig.begin(0..16, Some(DATA));
        rig.set_all(0, 0..15, DATA & !AF);
        rig.set(0, 15, rig.pte(15, (DATA & !AF) | if wrong { CONT } else { 0 }));
        rig.end(map);
    });
}

#[test]
fn entries_that_are_not_valid_do_not_mix() {
    let rig = Rig::<K4>::new(plain());
    // As swapped-out pages have them.
    rig.set(0, 3, CONT | 0x1230);
    rig.map(4..8, DATA);
    rig.cpu(0).complete();
    assert_eq!(rig.broken(), []);
}

/// The flush of a conversion is left out. Whether software is told that it may be, and what is found.
fn shortcut(bbm: BbmLevel, no_abort_listed: bool) -> (bool, Vec<Rule>) {
    let rig = Rig::<K4>::new(Config { bbm, no_abort_listed, ..plain() });
    rig.map(0..16, DATA);
    convert(&rig, None, true, false, DATA | CONT);
    rig.cpu(0).complete();
    (rig.cpu(0).features().bbm_no_abort, rig.broken())
}

#[test]
fn the_flush_of_a_conversion_may_be_left_out_where_nothing_aborts() {
    assert_eq!(shortcut(BbmLevel::Level3, false), (true, vec![]));
    assert_eq!(shortcut(BbmLevel::Level2, true), (true, vec![]));
    // The feature alone is not enough.
    assert_eq!(shortcut(BbmLevel::Level2, false), (false, vec![Rule::ConflictAbort, Rule::MixedGroup]));
    assert_eq!(shortcut(BbmLevel::Level1, false), (false, vec![Rule::ConflictAbort, Rule::MixedGroup]));
    assert_eq!(shortcut(BbmLevel::Level0, false), (false, vec![Rule::SizeChange, Rule::MixedGroup]));
}

#[test]
fn even_where_nothing_aborts_the_entries_must_be_invalid_between() {
    let config = Config { bbm: BbmLevel::Level3, ..plain() };
    pair::<K4>(config, &[Rule::MixedGroup], |rig, wrong| {
        rig.map(0..16, DATA);
        convert(rig, None, !wrong, false, DATA | CONT);
    });
}

#[test]
fn a_conversion_in_place_is_not_published_before_another_cpu_flushes() {
    // Its DSB is not for the first CPU's stores: a walker may still read the old value of a sibling, for the whole group.
    let config = Config { bbm: BbmLevel::Level3, ..plain() };
    pair::<K4>(config, &[Rule::Stale], |rig, wrong| {
        rig.map(0..16, DATA | CONT);
        convert(rig, None, true, false, DATA);
        if !wrong {
            rig.cpu(0).publish();
        }
        let unmap = rig.begin(3..4, None);
        rig.clear(1, 3..4);
        rig.flush(1, 3..4);
        rig.end(unmap);
    });
}

#[test]
fn the_relaxation_is_for_the_size_only() {
    let config = Config { bbm: BbmLevel::Level3, ..plain() };
    pair::<K4>(config, &[Rule::BreakBeforeMake], |rig, wrong| {
        rig.machine.unwatch(USER);
        rig.set_all(0, 0..16, DATA);
        rig.clear(0, 0..16);
        let other = if wrong { 0x10_0000 } else { 0 };
        (0..16).for_each(|page| rig.set(0, page, rig.pte(page, DATA | CONT) + other));
    });
}

#[test]
fn a_member_of_a_group_is_left_behind_by_a_change() {
    // With the flush done, a walk of this one entry still gives its permission to all.
    pair::<K4>(plain(), &[Rule::InconsistentGroup, Rule::Stale], |rig, wrong| {
        rig.map(0..16, DATA | CONT);
        let protect = rig.begin(0..16, Some(DATA | RDONLY));
        rig.set_all(0, 0..if wrong { 15 } else { 16 }, DATA | CONT | RDONLY);
        rig.flush(0, 0..16);
        rig.end(protect);
    });
}

#[test]
fn a_group_is_not_aligned() {
    pair::<K4>(plain(), &[Rule::InconsistentGroup], |rig, wrong| {
        rig.machine.unwatch(USER);
        let offset = if wrong { 0x1000 } else { 0x1_0000 };
        (0..16).for_each(|page| rig.set(0, page, rig.pte(page, DATA | CONT | RDONLY) + offset));
        // What the sixteen give is the same memory each time, so that nothing else is found.
        (0..40).for_each(|page| rig.machine.set_contents(rig.frame(page), 1));
        rig.cpu(0).complete();
        if wrong {
            // An entry of the group with the VA's bits, and one by itself, are two addresses.
            let broken = rig.machine.check().unwrap_err();
            assert!(broken.iter().any(|v| v.rule == Rule::BreakBeforeMake));
            rig.set(0, 0, rig.pte(0, DATA | CONT | RDONLY) + offset);
            rig.cpu(0).complete();
        }
    });
}
