//! Seeded faults in entries, tables and hardware updates that the model must report, each beside the right steps, in which
//! it must find nothing.

mod mmu_rig;

use arch::features::{BbmLevel, Hafdbs};
use arch::tlbi::{Asid, Space, Tlbi};
use arch::{Granule, Mmu, VirtAddr};
use mmu_rig::*;
use pleat_model::K4;
use pleat_model::mmu::{AddressSpace, Config, Page, Rule};

fn plain() -> Config {
    Config::default()
}

// Permissions and frames.

#[test]
fn a_permission_is_taken_without_a_flush() {
    pair::<K4>(plain(), &[Rule::Stale], |rig, wrong| {
        rig.map(3..4, DATA);
        let protect = rig.begin(3..4, Some(DATA | RDONLY));
        rig.set(0, 3, rig.pte(3, DATA | RDONLY));
        rig.cpu(0).publish();
        if !wrong {
            rig.flush(0, 3..4);
        }
        rig.end(protect);
    });
}

#[test]
fn a_permission_is_given_without_a_flush() {
    // That is right: the old one faults, and the handler looks.
    let rig = Rig::<K4>::new(plain());
    rig.map(3..4, DATA | RDONLY | UXN);
    rig.map(3..4, DATA & !UXN);
    assert_eq!(rig.broken(), []);
}

#[test]
fn a_frame_is_exchanged_without_break_before_make() {
    for config in [plain(), Config { bbm: BbmLevel::Level3, ..plain() }] {
        pair::<K4>(config, &[Rule::BreakBeforeMake], |rig, wrong| {
            rig.map(3..4, DATA);
            let new = rig.pte(9, DATA);
            let page = Some(Page::from_descriptor(new));
            let exchange = rig.machine.begin(USER, &[(rig.va(3), page)]);
            if !wrong {
                rig.clear(0, 3..4);
                rig.flush(0, 3..4);
            }
            rig.set(0, 3, new);
            rig.flush(0, 3..4);
            rig.end(exchange);
        });
    }
}

#[test]
fn a_flush_before_the_entry_is_invalid_is_none() {
    pair::<K4>(plain(), &[Rule::BreakBeforeMake], |rig, wrong| {
        rig.map(3..4, DATA);
        let page = Some(Page::from_descriptor(rig.pte(9, DATA)));
        let exchange = rig.machine.begin(USER, &[(rig.va(3), page)]);
        if wrong {
            rig.flush(0, 3..4);
            rig.clear(0, 3..4);
        } else {
            rig.clear(0, 3..4);
            rig.flush(0, 3..4);
        }
        rig.set(0, 3, rig.pte(9, DATA));
        rig.flush(0, 3..4);
        rig.end(exchange);
    });
}

#[test]
fn read_only_copies_may_be_exchanged_in_place() {
    pair::<K4>(plain(), &[Rule::BreakBeforeMake], |rig, wrong| {
        rig.machine.unwatch(USER);
        rig.machine.set_contents(rig.frame(3), 7);
        rig.machine.set_contents(rig.frame(9), if wrong { 8 } else { 7 });
        rig.set(0, 3, rig.pte(3, DATA | RDONLY));
        rig.set(0, 3, rig.pte(9, DATA | RDONLY));
    });
}

#[test]
fn a_memory_type_is_changed_in_place() {
    pair::<K4>(plain(), &[Rule::BreakBeforeMake], |rig, wrong| {
        rig.machine.unwatch(USER);
        rig.set(0, 3, rig.pte(3, DATA));
        rig.set(0, 3, rig.pte(3, DATA | if wrong { 1 << 2 } else { RDONLY }));
    });
}

#[test]
fn a_frame_is_freed_before_its_flush_is_complete() {
    pair::<K4>(plain(), &[Rule::FrameInUse], |rig, wrong| {
        rig.map(3..4, DATA);
        let unmap = rig.begin(3..4, None);
        rig.clear(0, 3..4);
        rig.cpu(0).publish();
        rig.issue(0, 3..4);
        if wrong {
            rig.machine.free_frame(rig.frame(3));
            rig.cpu(0).complete();
        } else {
            rig.cpu(0).complete();
            rig.machine.free_frame(rig.frame(3));
        }
        rig.end(unmap);
    });
}

#[test]
fn a_page_of_a_group_is_freed_after_the_flush_of_another() {
    pair::<K4>(plain(), &[Rule::FrameInUse], |rig, wrong| {
        rig.map(0..16, DATA | CONT);
        let unmap = rig.begin(0..16, None);
        rig.clear(0, 0..16);
        rig.flush(0, 0..if wrong { 8 } else { 16 });
        rig.machine.free_frame(rig.frame(8));
        rig.flush(0, 8..16);
        rig.end(unmap);
    });
}

#[test]
fn a_free_frame_is_mapped() {
    pair::<K4>(plain(), &[Rule::FrameInUse], |rig, wrong| {
        rig.machine.free_frame(rig.frame(3));
        if !wrong {
            rig.machine.alloc_frame(rig.frame(3));
        }
        rig.map(3..4, DATA);
    });
}

// Tables.

#[test]
fn a_table_is_freed_after_a_flush_of_leaves_only() {
    for space in [Space::Asid(ASID), Space::All] {
        pair::<K4>(plain(), &[Rule::TableInUse], |rig, wrong| {
            rig.store(0, rig.tables[2], rig.index(2), 0);
            rig.cpu(0).publish();
            let (va, granule) = (rig.va(0), Granule::K4);
            rig.cpu(0).invalidate(Tlbi::Page { va, space, last_level: wrong, granule, level: None });
            rig.cpu(0).complete();
            rig.machine.free_table(rig.last_table());
        });
    }
}

#[test]
fn a_table_is_freed_after_a_flush_for_another_asid_or_with_a_hint() {
    for (space, level) in [(Space::Asid(Asid::new(2)), None), (Space::Asid(ASID), Some(3))] {
        pair::<K4>(plain(), &[Rule::TableInUse], |rig, wrong| {
            rig.store(0, rig.tables[2], rig.index(2), 0);
            rig.cpu(0).publish();
            let (va, granule) = (rig.va(0), Granule::K4);
            let (space, level) = if wrong { (space, level) } else { (Space::Asid(ASID), None) };
            rig.cpu(0).invalidate(Tlbi::Page { va, space, last_level: false, granule, level });
            rig.cpu(0).complete();
            rig.machine.free_table(rig.last_table());
        });
    }
}

#[test]
fn leaves_of_a_table_come_back_through_a_cached_descriptor() {
    // The entry in the table is still valid; the flush takes the leaf, not what leads to it.
    pair::<K4>(plain(), &[Rule::Stale], |rig, wrong| {
        rig.map(3..4, DATA);
        let unmap = rig.begin(3..4, None);
        rig.store(0, rig.tables[2], rig.index(2), 0);
        rig.cpu(0).publish();
        let (va, space, granule) = (rig.va(3), Space::Asid(ASID), Granule::K4);
        rig.cpu(0).invalidate(Tlbi::Page { va, space, last_level: wrong, granule, level: None });
        rig.cpu(0).complete();
        rig.end(unmap);
    });
}

#[test]
fn a_table_is_linked_before_its_zeroes_are_published() {
    pair::<K4>(plain(), &[Rule::TableNotPublished], |rig, wrong| {
        let table = rig.cpu(0).alloc_table(3).unwrap();
        if !wrong {
            rig.cpu(0).publish();
        }
        rig.store(0, rig.tables[2], rig.index(2) + 1, table.pa().get() | 0b11);
    });
}

#[test]
fn a_block_becomes_a_table_in_place() {
    let block = |bits: u64| PA | bits & !0b10;
    for (bbm, rules) in [(BbmLevel::Level0, Rule::SizeChange), (BbmLevel::Level1, Rule::SizeChange)] {
        pair::<K4>(Config { bbm, ..plain() }, &[rules], |rig, wrong| {
            rig.machine.unwatch(USER);
            let (table, index) = (rig.tables[2], rig.index(2) + 1);
            let child = rig.cpu(0).alloc_table(3).unwrap();
            rig.store(0, table, index, block(DATA));
            for page in 0..512 {
                rig.store(0, child, page, rig.pte(page, DATA));
            }
            rig.cpu(0).publish();
            if !wrong {
                rig.store(0, table, index, 0);
                rig.cpu(0).publish();
                let (va, granule) = (VirtAddr::new(VA + (2 << 20)), Granule::K4);
                let space = Space::Asid(ASID);
                rig.cpu(0).invalidate(Tlbi::Page { va, space, last_level: true, granule, level: Some(2) });
                rig.cpu(0).complete();
            }
            rig.store(0, table, index, child.pa().get() | 0b11);
        });
    }
}

// Global entries and the kernel.

#[test]
fn a_global_entry_in_a_users_half() {
    pair::<K4>(plain(), &[Rule::GlobalOverlap], |rig, wrong| {
        rig.map(3..4, DATA);
        let root = rig.tables[0];
        rig.cpu(1).load_ttbr0(Some(root), Asid::new(2));
        rig.map(3..4, DATA);
        if wrong {
            rig.map(3..4, DATA & !NG);
        }
    });
}

#[test]
fn a_kernel_mapping_is_broken_for_a_moment() {
    for wrong in [false, true] {
        let rig = Rig::<K4>::kernel(plain());
        rig.map(3..4, DATA & !NG & !(1 << 6));
        let protect = rig.begin(3..4, Some(DATA & !NG & !(1 << 6) | RDONLY));
        if wrong {
            rig.clear(0, 3..4);
        }
        rig.set(0, 3, rig.pte(3, DATA & !NG & !(1 << 6) | RDONLY));
        rig.cpu(0).publish();
        rig.cpu(0).invalidate(Tlbi::Page {
            va: rig.va(3),
            space: Space::All,
            last_level: true,
            granule: Granule::K4,
            level: Some(3),
        });
        rig.cpu(0).complete();
        rig.end(protect);
        assert_eq!(rig.broken(), if wrong { &[Rule::KernelFault][..] } else { &[] });
    }
}

#[test]
fn a_kernel_mapping_is_not_published() {
    for publish in [true, false] {
        let rig = Rig::<K4>::kernel(plain());
        let map = rig.begin(3..4, Some(DATA & !NG));
        rig.set(0, 3, rig.pte(3, DATA & !NG));
        if publish {
            rig.cpu(0).publish();
        }
        rig.end(map);
        assert_eq!(rig.broken(), if publish { &[][..] } else { &[Rule::KernelFault] });
    }
}

// Hardware updates.

#[test]
fn a_dirty_state_is_overwritten() {
    let config = with_hafdbs(Hafdbs::AfDbm);
    pair::<K4>(config, &[Rule::LostDirty], |rig, wrong| {
        rig.map(3..4, CLEAN);
        let protect = rig.begin(3..4, Some(DATA | RDONLY));
        let old = rig.get(0, 3);
        let new = old & !DBM;
        if wrong {
            rig.set(0, 3, new);
        } else {
            // What it was is looked at.
            assert_eq!(rig.swap(0, 3, new), old);
        }
        rig.flush(0, 3..4);
        rig.end(protect);
    });
    // Elsewhere nobody else writes to the entry.
    let rig = Rig::<K4>::new(with_hafdbs(Hafdbs::Af));
    rig.map(3..4, CLEAN);
    let protect = rig.begin(3..4, Some(DATA | RDONLY));
    rig.set(0, 3, rig.pte(3, DATA | RDONLY));
    rig.flush(0, 3..4);
    rig.end(protect);
    assert_eq!(rig.broken(), []);
}

#[test]
fn a_dirty_state_that_hardware_has_set_is_overwritten() {
    let config = with_hafdbs(Hafdbs::AfDbm);
    pair::<K4>(config, &[Rule::LostDirty], |rig, wrong| {
        rig.map(3..4, CLEAN);
        let update = rig.machine.agent_choices().pop().unwrap();
        assert!(rig.machine.agent_do(update));
        if !wrong {
            assert_eq!(rig.get(0, 3) & RDONLY, 0);
        }
        let clean = rig.begin(3..4, Some(CLEAN));
        rig.set(0, 3, rig.pte(3, CLEAN));
        rig.flush(0, 3..4);
        rig.end(clean);
    });
}

#[test]
fn a_page_is_made_clean_without_a_flush() {
    pair::<K4>(plain(), &[Rule::Stale], |rig, wrong| {
        rig.map(3..4, CLEAN & !RDONLY);
        let clean = rig.begin(3..4, Some(CLEAN));
        rig.set(0, 3, rig.pte(3, CLEAN));
        rig.cpu(0).publish();
        if !wrong {
            rig.flush(0, 3..4);
        }
        rig.end(clean);
    });
}

#[test]
fn a_dirty_page_is_known_to_be_dirty_in_other_contexts_too() {
    let rig = Rig::<K4>::new(with_hafdbs(Hafdbs::AfDbm));
    rig.map(0..16, CLEAN | CONT);
    let update = rig.machine.agent_choices().into_iter().find(|update| update.index == 9).unwrap();
    assert!(rig.machine.agent_do(update));
    // By the dirty entry, all of the group may be written to. Software gathers, whatever TTBR0 is.
    rig.cpu(0).load_ttbr0(None, Asid::new(2));
    rig.machine.audit();
    assert_eq!(rig.broken(), []);
    // Nobody gathers what is gone.
    rig.swap(1, 9, rig.pte(9, CLEAN | CONT));
    rig.machine.audit();
    assert_eq!(rig.broken(), [Rule::Stale]);
}

#[test]
fn a_read_only_page_keeps_dbm() {
    pair::<K4>(with_hafdbs(Hafdbs::AfDbm), &[Rule::Stale], |rig, wrong| {
        let map = rig.begin(3..4, Some(DATA | RDONLY));
        rig.set(0, 3, rig.pte(3, DATA | RDONLY | if wrong { DBM } else { 0 }));
        rig.end(map);
    });
    // Without hardware that looks at it, it means nothing.
    let rig = Rig::<K4>::new(plain());
    let map = rig.begin(3..4, Some(DATA | RDONLY));
    rig.set(0, 3, rig.pte(3, CLEAN));
    rig.end(map);
    assert_eq!(rig.broken(), []);
}

// Others.

#[test]
fn a_block_of_entries_is_stored_over_a_valid_one() {
    pair::<K4>(plain(), &[Rule::StoreOverValid], |rig, wrong| {
        rig.map(0..1, DATA);
        let map = rig.begin(0..16, Some(DATA));
        let cpu = rig.cpu(0);
        let slots = &cpu.slots(rig.last_table())[if wrong { 0..16 } else { 1..16 }];
        let first = rig.pte(if wrong { 0 } else { 1 }, DATA);
        // SAFETY: the model reads the table, and judges what it finds.
        unsafe { cpu.store_block(slots, first, 0x1000) };
        rig.end(map);
    });
}

#[test]
fn a_descriptor_is_reserved() {
    pair::<K4>(plain(), &[Rule::Reserved], |rig, wrong| {
        rig.set(0, 3, rig.pte(3, 0) | if wrong { 0b01 } else { 0b10 });
    });
}

#[test]
fn an_asid_has_too_many_bits() {
    for (asid_bits, rules) in [(16, &[][..]), (8, &[Rule::BadOperation])] {
        let rig = Rig::<K4>::new(Config { asid_bits, ..plain() });
        rig.cpu(0).load_ttbr0(None, Asid::new(0x100));
        rig.cpu(0).invalidate(Tlbi::Asid(Asid::new(0x100)));
        assert_eq!(rig.broken(), rules);
    }
}

#[test]
fn an_operation_ends_for_its_own_pages_only() {
    let rig = Rig::<K4>::new(plain());
    rig.map(3..5, DATA);
    let unmap = rig.begin(3..4, None);
    rig.clear(0, 3..4);
    rig.flush(0, 3..4);
    rig.end(unmap);
    assert_eq!(rig.broken(), []);
    rig.machine.watch(AddressSpace::Kernel);
    rig.machine.audit();
    assert_eq!(rig.broken(), []);
}

#[test]
fn a_violation_tells_what_happened() {
    let rig = Rig::<K4>::new(plain());
    rig.map(3..4, DATA);
    let unmap = rig.begin(3..4, None);
    rig.clear(0, 3..4);
    rig.end(unmap);
    let violations = rig.machine.check().unwrap_err();
    let text = violations[0].to_string();
    for part in
        ["Stale", "RSQBCS", "cpu 0", "0x4000003000", "nothing is mapped there", "store 0xfffff0003000[3]"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(rig.machine.check().is_ok(), "told once");
}
