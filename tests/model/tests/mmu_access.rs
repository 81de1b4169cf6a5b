//! What the model says that single accesses may end in, and what hardware may update.

mod mmu_rig;

use std::collections::BTreeSet;

use arch::features::{BbmLevel, Hafdbs};
use arch::tlbi::{Asid, Space, Tlbi};
use arch::{Granule, Mmu};
use mmu_rig::*;
use pleat_model::K4;
use pleat_model::mmu::Outcome::*;
use pleat_model::mmu::{Access, Came, Config, Flag, Kind, Outcome, Write};

const READ: Access = Access { kind: Kind::Read, privileged: false };
const WRITE: Access = Access { kind: Kind::Write, privileged: false };
const EXECUTE: Access = Access { kind: Kind::Execute, privileged: false };

impl Rig<K4> {
    fn access(&self, cpu: usize, page: usize, access: Access) -> Vec<Outcome> {
        self.cpu(cpu).access(self.va(page), access).into_iter().collect()
    }

    /// Without the specification: these tests ask for themselves.
    fn unjudged(config: Config) -> Self {
        let rig = Self::new(config);
        rig.machine.unwatch(USER);
        rig
    }
}

#[test]
fn an_access_sees_the_page_or_faults_by_permission() {
    let rig = Rig::unjudged(Config::default());
    assert_eq!(rig.access(0, 3, READ), [TranslationFault]);
    rig.map(3..4, DATA & !UXN | RDONLY);
    let done = Done(rig.frame(3));
    for (access, outcome) in [(READ, done), (WRITE, PermissionFault), (EXECUTE, done)] {
        for cpu in 0..2 {
            assert_eq!(rig.access(cpu, 3, access), [outcome], "{access:?}");
        }
    }
    // PXN.
    assert_eq!(rig.access(0, 3, Access { privileged: true, ..EXECUTE }), [PermissionFault]);
    rig.map(4..5, DATA & !(1 << 6));
    assert_eq!(rig.access(0, 4, READ), [PermissionFault]);
    assert_eq!(rig.access(0, 4, Access { privileged: true, ..WRITE }), [Done(rig.frame(4))]);
}

#[test]
fn a_store_is_maybe_seen_until_a_dsb_of_its_cpu() {
    let rig = Rig::unjudged(Config::default());
    rig.set(0, 3, rig.pte(3, DATA));
    assert_eq!(rig.access(1, 3, READ), [Done(rig.frame(3)), TranslationFault]);
    rig.cpu(1).publish();
    assert_eq!(rig.access(1, 3, READ), [Done(rig.frame(3)), TranslationFault]);
    rig.cpu(0).publish();
    assert_eq!(rig.access(1, 3, READ), [Done(rig.frame(3))]);
}

#[test]
fn other_contexts_see_nothing_of_it() {
    let rig = Rig::unjudged(Config::default());
    rig.map(3..4, DATA);
    rig.cpu(1).load_ttbr0(None, Asid::new(2));
    assert_eq!(rig.access(1, 3, READ), [TranslationFault]);
    // A CPU that was in the context may have kept it.
    rig.clear(0, 3..4);
    rig.cpu(0).publish();
    rig.cpu(1).load_ttbr0(Some(rig.tables[0]), ASID);
    assert_eq!(rig.access(1, 3, READ), [Done(rig.frame(3)), TranslationFault]);
    // It has not, after the flush; and one that comes later finds nothing.
    rig.flush(0, 3..4);
    assert_eq!(rig.access(1, 3, READ), [TranslationFault]);
    assert_eq!(rig.machine.check(), Ok(()));
}

#[test]
fn one_entry_of_a_group_translates_all_of_it() {
    let rig = Rig::unjudged(Config::default());
    rig.map(5..6, DATA | CONT);
    for page in 0..16 {
        let fault = (page != 5).then_some(TranslationFault);
        let expected: BTreeSet<Outcome> = [Done(rig.frame(page))].into_iter().chain(fault).collect();
        assert_eq!(rig.cpu(1).access(rig.va(page), READ), expected, "page {page}");
    }
    assert_eq!(rig.access(0, 16, READ), [TranslationFault]);
    // A flush of page 7 takes its part, which the entry in memory gives back.
    rig.flush(0, 7..8);
    assert_eq!(rig.access(0, 7, READ), [Done(rig.frame(7)), TranslationFault]);
    // Once that is gone, the flush of some pages leaves the others.
    rig.clear(0, 5..6);
    rig.flush(0, 7..8);
    assert_eq!(rig.access(0, 7, READ), [TranslationFault]);
    assert_eq!(rig.access(0, 8, READ), [Done(rig.frame(8)), TranslationFault]);
    rig.flush(0, 0..16);
    assert_eq!(rig.access(0, 8, READ), [TranslationFault]);
}

#[test]
fn a_mixed_group_may_do_anything() {
    for (bbm, aborts, anything) in [
        (BbmLevel::Level0, true, true),
        (BbmLevel::Level1, true, false),
        (BbmLevel::Level2, true, false),
        (BbmLevel::Level3, false, false),
    ] {
        let rig = Rig::unjudged(Config { bbm, ..Config::default() });
        rig.map(0..1, DATA);
        rig.map(1..2, DATA | CONT);
        let outcomes = rig.cpu(0).access(rig.va(0), READ);
        assert!(outcomes.contains(&Done(rig.frame(0))));
        assert_eq!(outcomes.contains(&ConflictAbort), aborts, "{bbm:?}");
        assert_eq!(outcomes.contains(&Amalgam), anything, "{bbm:?}");
        assert!(rig.machine.check().is_err());
    }
}

#[test]
fn who_sets_the_access_flag() {
    for (hafdbs, outcome) in [(Hafdbs::None, None), (Hafdbs::Af, Some(())), (Hafdbs::AfDbm, Some(()))] {
        let rig = Rig::unjudged(with_hafdbs(hafdbs));
        rig.map(3..4, DATA & !AF);
        let expected = if outcome.is_some() { Done(rig.frame(3)) } else { AccessFlagFault };
        assert_eq!(rig.access(0, 3, READ), [expected]);
        let choices = rig.machine.agent_choices();
        assert_eq!(choices.len(), if outcome.is_some() { 2 } else { 0 }, "one for each CPU");
        // Not cached until it is set.
        let cached = rig.machine.cached(0);
        for update in choices {
            assert_eq!((update.index, update.flag), (3, Flag::Accessed));
            // The second finds it done.
            let first = rig.machine.cached(0) == cached;
            assert_eq!(rig.machine.agent_do(update), first);
            assert_eq!(rig.get(0, 3), rig.pte(3, DATA));
        }
    }
}

#[test]
fn who_sets_the_dirty_state() {
    for hafdbs in [Hafdbs::None, Hafdbs::Af, Hafdbs::AfDbm] {
        let rig = Rig::unjudged(with_hafdbs(hafdbs));
        rig.map(3..4, CLEAN);
        let hardware = hafdbs == Hafdbs::AfDbm;
        let expected = if hardware { DoneAndDirty(rig.frame(3)) } else { PermissionFault };
        assert_eq!(rig.access(1, 3, WRITE), [expected]);
        assert_eq!(rig.access(1, 3, READ), [Done(rig.frame(3))]);
        assert_eq!(rig.machine.agent_choices().is_empty(), !hardware);
        for update in rig.machine.agent_choices() {
            rig.machine.agent_do(update);
        }
        if hardware {
            assert_eq!(rig.get(0, 3), rig.pte(3, CLEAN & !RDONLY));
            assert!(rig.access(1, 3, WRITE).contains(&Done(rig.frame(3))));
        }
    }
}

#[test]
fn hardware_makes_nothing_dirty_that_has_lost_dbm() {
    let rig = Rig::unjudged(with_hafdbs(Hafdbs::AfDbm));
    rig.map(3..4, CLEAN);
    // The entry with DBM is still cached, but hardware looks at memory before it writes.
    rig.swap(0, 3, rig.pte(3, DATA | RDONLY));
    assert_eq!(rig.access(0, 3, WRITE), [PermissionFault]);
    assert!(rig.machine.agent_choices().is_empty());
}

#[test]
fn any_entry_of_a_group_may_be_updated() {
    let rig = Rig::unjudged(with_hafdbs(Hafdbs::AfDbm));
    rig.map(0..16, CLEAN | CONT);
    let slots: BTreeSet<usize> = rig.machine.agent_choices().iter().map(|update| update.index).collect();
    assert_eq!(slots, (0..16).collect());
    // By one that is dirty, writes to all of them go unnoticed, which is why software gathers.
    let update = rig.machine.agent_choices().into_iter().find(|update| update.index == 9).unwrap();
    assert!(rig.machine.agent_do(update));
    assert!(rig.access(0, 2, WRITE).contains(&Done(rig.frame(2))));
    rig.cpu(0).complete();
    assert_eq!(rig.machine.check(), Ok(()));
}

#[test]
fn an_agent_at_random_is_at_times_faster() {
    let found = (0..64).filter(|&seed| {
        let rig = Rig::unjudged(with_hafdbs(Hafdbs::Af));
        rig.machine.agent_at_random(seed, 2);
        rig.map(0..1, DATA & !AF);
        for _ in 0..8 {
            rig.get(0, 0);
        }
        let updates = rig.machine.take_updates();
        assert!(updates.iter().all(|update| update.flag == Flag::Accessed && update.index == 0));
        assert_eq!(updates.is_empty(), !rig.machine.agent_choices().is_empty(), "it is told");
        !updates.is_empty()
    });
    assert!((8..64).contains(&found.count()));
}

#[test]
fn a_global_entry_is_for_all_asids_and_goes_with_any() {
    let rig = Rig::unjudged(Config { cpus: 1, ..Config::default() });
    rig.map(3..4, DATA & !NG);
    rig.cpu(0).load_ttbr0(None, Asid::new(2));
    assert_eq!(rig.access(0, 3, READ), [Done(rig.frame(3)), TranslationFault]);
    rig.cpu(0).invalidate(Tlbi::Asid(ASID));
    rig.cpu(0).complete();
    assert_eq!(rig.access(0, 3, READ), [Done(rig.frame(3)), TranslationFault]);
    let space = Space::Asid(Asid::new(7));
    rig.cpu(0).invalidate(Tlbi::Page {
        va: rig.va(3),
        space,
        last_level: true,
        granule: Granule::K4,
        level: None,
    });
    rig.cpu(0).complete();
    assert_eq!(rig.access(0, 3, READ), [TranslationFault]);
}

#[test]
fn a_local_invalidation_is_for_its_own_cpu() {
    let rig = Rig::unjudged(Config::default());
    rig.map(3..4, DATA | RDONLY);
    rig.set(1, 3, rig.pte(3, DATA));
    rig.cpu(1).publish();
    assert_eq!(rig.access(0, 3, WRITE), [Done(rig.frame(3)), PermissionFault]);
    rig.cpu(0).invalidate_local(rig.tlbi(3));
    assert_eq!(rig.access(0, 3, WRITE), [Done(rig.frame(3))]);
    assert_eq!(rig.access(1, 3, WRITE), [Done(rig.frame(3)), PermissionFault]);
}

#[test]
fn what_is_cached_stays_bounded() {
    let rig = Rig::unjudged(with_hafdbs(Hafdbs::AfDbm));
    let mut most = 0;
    for round in 0..200 {
        rig.set_all(
            0,
            0..16,
            CLEAN & if round % 3 == 0 { !AF } else { !0 } & if round % 2 == 0 { !RDONLY } else { !0 },
        );
        most = most.max(rig.machine.cached(0));
    }
    assert!(most <= 16 * 2 + 3, "{most}");
}

/// A store to page 3 by CPU 1, with what it makes dirty in a group told by page 9.
fn write_to(rig: &Rig<K4>) -> Write {
    Write { cpu: 1, va: rig.va(3), value: 7, by: 9, stale: false }
}

#[test]
fn a_write_comes_before_the_step_that_is_named() {
    let rig = Rig::unjudged(with_hafdbs(Hafdbs::AfDbm));
    rig.map(3..4, CLEAN);
    rig.machine.write_before(1, write_to(&rig), &[rig.va(3)]);
    assert_eq!(rig.get(0, 3), rig.pte(3, CLEAN));
    // Not near.
    rig.get(0, 4);
    assert_eq!(rig.machine.take_written(), None);
    assert_eq!(rig.get(0, 3), rig.pte(3, CLEAN & !RDONLY));
    assert_eq!(rig.machine.take_written(), Some((rig.frame(3), 7)));
    assert_eq!(rig.machine.moment_is_over(), Came::Done { pa: rig.frame(3), both: false });
    // By what says dirty, and by the older entry that may be cached too.
    for stale in [true, false] {
        rig.swap(0, 3, rig.pte(3, CLEAN));
        rig.machine.write_before(0, Write { stale, ..write_to(&rig) }, &[]);
        rig.cpu(0).publish();
        assert_eq!(rig.machine.moment_is_over(), Came::Done { pa: rig.frame(3), both: true });
        assert_eq!(rig.get(0, 3), rig.pte(3, if stale { CLEAN } else { CLEAN & !RDONLY }));
    }
}

#[test]
fn a_write_at_a_moment_faults_or_is_not_reached() {
    let rig = Rig::unjudged(with_hafdbs(Hafdbs::AfDbm));
    for (steps, came) in [(0, Came::NotReached), (1, Came::Faulted)] {
        rig.machine.write_before(0, write_to(&rig), &[]);
        (0..steps).for_each(|_| rig.cpu(0).complete());
        assert_eq!(rig.machine.moment_is_over(), came);
    }
    assert_eq!(rig.machine.take_written(), None);
}

#[test]
fn a_write_at_a_moment_makes_the_entry_dirty_that_is_named() {
    let rig = Rig::unjudged(with_hafdbs(Hafdbs::AfDbm));
    rig.map(0..16, CLEAN | CONT);
    rig.machine.write_before(0, write_to(&rig), &[]);
    rig.cpu(0).publish();
    assert!(matches!(rig.machine.moment_is_over(), Came::Done { .. }));
    let dirty = (0..16).filter(|&page| rig.get(0, page) & RDONLY == 0);
    assert_eq!(dirty.collect::<Vec<_>>(), [9]);
    // Young without it, where nothing is cached.
    let rig = Rig::unjudged(with_hafdbs(Hafdbs::AfDbm));
    rig.map(3..4, DATA & !AF);
    rig.machine.write_before(0, write_to(&rig), &[]);
    rig.cpu(0).publish();
    assert!(matches!(rig.machine.moment_is_over(), Came::Done { .. }));
    assert_eq!(rig.get(0, 3), rig.pte(3, DATA));
}
