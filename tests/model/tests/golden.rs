//! The checker's own tests: each rule is broken once, on purpose, and must be reported; next to it stands
//! the right sequence, which must pass.

use arch::mmu::Slot;
use arch::tlbi::{Asid, RangeSize, Space, Tlbi};
use arch::{Granule, Mmu, PhysAddr, Table, TableFrame, VirtAddr};
use pleat_model::{Checker, Event, K4, K16, K64, Phase, Place, Recorder, Violation};

/// Attributes of a kernel page: AF, Inner Shareable, UXN, PXN.
const DATA: u64 = 1 << 10 | 0b11 << 8 | 0b11 << 53;
const RDONLY: u64 = 1 << 7;
const NON_GLOBAL: u64 = 1 << 11;
const CONT: u64 = 1 << 52;
const PAGE: u64 = 0b11;
const BLOCK: u64 = 0b01;
const MIB: u64 = 1 << 20;
const MIB_2: u64 = 2 << 20;
/// What the tables of [`Tape`] translate first.
const VA: u64 = 0xffff_8000_0000_0000;

fn table(number: u64, level: u8) -> TableFrame {
    // SAFETY: no machine ever reaches it: the checker takes it for a name.
    unsafe { TableFrame::new(PhysAddr::new(0x10_0000 + number * 0x1000), level) }
}

/// A sequence of events in the making: a root, and one table of each level for [`VA`].
struct Tape {
    checker: Checker,
    tables: [TableFrame; 4],
    slots: Vec<(TableFrame, usize, u64)>,
}

impl Tape {
    /// The tables are linked and published.
    fn new() -> Self {
        let mut tape = Self {
            checker: Checker::new(Granule::K4),
            tables: [0, 1, 2, 3].map(|level| table(level.into(), level)),
            slots: Vec::new(),
        };
        for table in tape.tables {
            tape.event(Event::Create(table));
        }
        tape.event(Event::Publish);
        for (level, index) in [(0, 256), (1, 0), (2, 0)] {
            let next = tape.tables[level + 1].pa().get() | 0b11;
            tape.store(level, index, next);
        }
        tape.event(Event::Publish);
        tape.end(&[]);
        tape
    }

    fn event(&mut self, event: Event) -> &mut Self {
        self.checker.observe(&event);
        self
    }

    fn store_in(&mut self, table: TableFrame, index: usize, new: u64) -> &mut Self {
        let old = self.slots.iter().rev().find(|slot| (slot.0, slot.1) == (table, index)).map_or(0, |s| s.2);
        self.slots.push((table, index, new));
        self.event(Event::Store { table, index, old, new })
    }

    fn store(&mut self, level: usize, index: usize, new: u64) -> &mut Self {
        self.store_in(self.tables[level], index, new)
    }

    fn publish(&mut self) -> &mut Self {
        self.event(Event::Publish)
    }

    fn complete(&mut self) -> &mut Self {
        self.event(Event::Complete)
    }

    fn invalidate(&mut self, operation: Tlbi) -> &mut Self {
        self.event(Event::Invalidate(operation))
    }

    /// The kernel's form for one page.
    fn invalidate_page(&mut self, va: u64, level: Option<u8>) -> &mut Self {
        self.invalidate(by_page(va, level, Space::All))
    }

    /// A group of 16 pages that are mapped already, from [`VA`] to 1 MiB.
    fn with_group(&mut self) -> &mut Self {
        (0..16).for_each(|i| {
            self.store(3, i, (MIB + i as u64 * 0x1000) | DATA | CONT | PAGE);
        });
        self.publish().end(&[])
    }

    /// Ends the operation and compares what is reported.
    #[track_caller]
    fn end(&mut self, violations: &[Violation]) -> &mut Self {
        assert_eq!(self.checker.end_operation().err().unwrap_or_default(), violations);
        self
    }

    fn at(&self, level: usize, index: usize) -> Place {
        Place { table: self.tables[level], index }
    }
}

fn by_page(va: u64, level: Option<u8>, space: Space) -> Tlbi {
    Tlbi::Page { va: VirtAddr::new(va), space, last_level: true, granule: Granule::K4, level }
}

fn range(start: u64, num: u8, granule: Granule, level: Option<u8>) -> Tlbi {
    let size = RangeSize::new(0, num).expect("a size");
    Tlbi::Range { start: VirtAddr::new(start), size, space: Space::All, last_level: true, granule, level }
}

#[test]
fn a_store_that_is_not_published_is_reported() {
    let mut tape = Tape::new();
    tape.store(3, 5, MIB | DATA | PAGE).publish().end(&[]);
    let at = tape.at(3, 6);
    tape.store(3, 6, MIB | DATA | PAGE).end(&[Violation::StoreNotPublished(at)]);
    // A barrier before it does not do.
    let at = tape.at(3, 7);
    tape.publish().store(3, 7, MIB | DATA | PAGE).end(&[Violation::StoreNotPublished(at)]);
    // `dsb ish` does more than `dsb ishst`; and a store of an invalid entry over one owes nothing.
    tape.store(3, 8, MIB | DATA | PAGE).complete().store(3, 9, 0).end(&[]);
}

#[test]
fn a_table_that_is_linked_before_its_zeroes_are_published_is_reported() {
    let new = table(9, 3);
    let link = new.pa().get() | 0b11;
    let mut tape = Tape::new();
    tape.event(Event::Create(new)).publish().store(2, 1, link).publish().end(&[]);
    let mut tape = Tape::new();
    let at = tape.at(2, 1);
    let linked = Violation::LinkedBeforePublish(at);
    tape.event(Event::Create(new)).store(2, 1, link).publish().end(&[linked]);
    // A barrier from before its creation does not do.
    let mut tape = Tape::new();
    tape.publish().event(Event::Create(new)).store(2, 1, link).publish().end(&[linked]);
}

#[test]
fn a_table_that_is_never_published_is_reported() {
    let new = table(9, 3);
    Tape::new().event(Event::Create(new)).publish().end(&[]);
    Tape::new().event(Event::Create(new)).end(&[Violation::TableNotPublished(new)]);
}

#[test]
fn tables_that_are_linked_wrongly_are_reported() {
    let new = table(9, 3);
    let link = new.pa().get() | 0b11;
    let mut tape = Tape::new();
    let (level_1, other) = (tape.at(1, 1), tape.at(2, 2));
    // At a level too high; a frame that is no table.
    tape.event(Event::Create(new)).publish().store(1, 1, link).publish();
    tape.end(&[Violation::LeadsNowhere(level_1, link)]);
    tape.store(2, 2, 0x5003).publish().end(&[Violation::LeadsNowhere(other, 0x5003)]);
    // Twice; and over another table, or with a block.
    let mut tape = Tape::new();
    let (first, second) = (tape.at(2, 0), tape.at(2, 1));
    let again = tape.tables[3].pa().get() | 0b11;
    tape.store(2, 1, again).publish().end(&[Violation::LinkedTwice(second)]);
    for over in [link, MIB_2 | DATA | BLOCK, 0] {
        let mut tape = Tape::new();
        tape.event(Event::Create(new)).publish().store(2, 0, over).publish();
        tape.end(&[Violation::TableReplaced(first)]);
    }
}

#[test]
fn stores_that_no_walk_can_read_are_reported() {
    let mut tape = Tape::new();
    let (last, block, outside) = (tape.at(3, 1), tape.at(2, 3), Place { table: table(9, 3), index: 0 });
    tape.store(3, 1, MIB | DATA | 0b01).publish().end(&[Violation::Reserved(last, MIB | DATA | 0b01)]);
    let misaligned = MIB | DATA | BLOCK;
    tape.store(2, 3, misaligned).publish().end(&[Violation::Reserved(block, misaligned)]);
    tape.store_in(outside.table, 0, MIB | DATA | PAGE).publish().end(&[Violation::NoSuchTable(outside)]);
    tape.event(Event::Store { table: tape.tables[3], index: 2, old: 7, new: 0 });
    let at = tape.at(3, 2);
    tape.end(&[Violation::OtherOldValue(at, 7)]);

    // A 16K walk of 48 bits reads two slots of its root, by bit 47 alone.
    let mut checker = Checker::new(Granule::K16);
    // SAFETY: as in `table`.
    let [root, next] = [0, 1].map(|n| unsafe { TableFrame::new(PhysAddr::new(n << 14), n as u8) });
    let mut link = |index, expected: &[Violation]| {
        let new = next.pa().get() | 0b11;
        for event in [
            Event::Create(root),
            Event::Create(next),
            Event::Publish,
            Event::Store { table: root, index, old: 0, new },
            Event::Publish,
        ] {
            checker.observe(&event);
        }
        assert_eq!(checker.end_operation().err().unwrap_or_default(), expected);
    };
    link(1, &[]);
    link(2, &[Violation::Unreachable(Place { table: root, index: 2 })]);
}

/// A page at index 0 that changes: what becomes of it, and what is reported at once.
fn page_changes_to(new: u64) -> Vec<Violation> {
    let mut tape = Tape::new();
    tape.store(3, 0, MIB | DATA | PAGE).publish().end(&[]);
    tape.store(3, 0, new).publish().invalidate_page(VA, Some(3)).complete();
    tape.checker.end_operation().err().unwrap_or_default()
}

#[test]
fn a_live_leaf_that_changes_in_more_than_permissions_is_reported() {
    let (old, at) = (MIB | DATA | PAGE, Tape::new().at(3, 0));
    let pxn_off = old & !(1 << 53);
    for allowed in [old, old | RDONLY, pxn_off | RDONLY, old | 1 << 51, 0] {
        assert_eq!(page_changes_to(allowed), [], "{allowed:#x}");
    }
    let (device, shareability, af) = (old | 1 << 2, old & !(1 << 8), old & !(1 << 10));
    for forbidden in [old + 0x1000, device, shareability, af, old | NON_GLOBAL] {
        assert_eq!(page_changes_to(forbidden), [Violation::NotBroken(at, old, forbidden)], "{forbidden:#x}");
    }
    // CONT on a page alone breaks the rule of groups as well, twice.
    let reported = page_changes_to(old | CONT);
    assert!(reported.contains(&Violation::NotBroken(at, old, old | CONT)), "{reported:?}");
    assert!(reported.contains(&Violation::BrokenGroup(at)), "{reported:?}");
}

#[test]
fn a_block_that_becomes_a_table_is_reported() {
    let new = table(9, 3);
    let (block, link) = (MIB_2 | DATA | BLOCK, new.pa().get() | 0b11);
    let mut tape = Tape::new();
    let (at, va) = (tape.at(2, 1), VA + MIB_2);
    tape.store(2, 1, block).publish().event(Event::Create(new)).publish().end(&[]);
    tape.store(2, 1, link).publish().invalidate_page(va, None).complete();
    tape.end(&[Violation::NotBroken(at, block, link)]);
    // Broken before it is made, it may.
    let mut tape = Tape::new();
    tape.store(2, 1, block).publish().event(Event::Create(new)).publish().end(&[]);
    tape.store(2, 1, 0).publish().invalidate_page(va, Some(2)).complete();
    tape.store(2, 1, link).publish().end(&[]);
}

#[test]
fn break_before_make_is_followed_step_by_step() {
    let (old, new) = (MIB | DATA | PAGE, MIB_2 | DATA | PAGE);
    let mapped = || {
        let mut tape = Tape::new();
        tape.store(3, 0, old).publish().end(&[]);
        tape
    };
    let broken = Violation::NotBroken(Tape::new().at(3, 0), old, new);
    let mut tape = mapped();
    tape.store(3, 0, 0).publish().invalidate_page(VA, Some(3)).complete();
    tape.store(3, 0, new).publish().end(&[]);
    // Without the barrier before the invalidation, it comes too early, and too early it remains.
    let mut tape = mapped();
    let stale = Violation::Stale(tape.at(3, 0), VirtAddr::new(VA), Phase::Published);
    tape.store(3, 0, 0).invalidate_page(VA, Some(3)).complete();
    tape.store(3, 0, new).publish().end(&[broken, stale]);
    // Without the invalidation.
    tape = mapped();
    tape.store(3, 0, 0).publish().complete().store(3, 0, new).publish().end(&[broken, stale]);
    // Without the barrier after it.
    tape = mapped();
    tape.store(3, 0, 0).publish().invalidate_page(VA, Some(3)).store(3, 0, new).complete().end(&[broken]);
}

/// A page at index 3 becomes read-only; then these events. What is reported.
fn read_only_then(events: &[Event]) -> Vec<Violation> {
    let mut tape = Tape::new();
    tape.store(3, 3, MIB | DATA | PAGE).publish().end(&[]);
    tape.store(3, 3, MIB | DATA | RDONLY | PAGE);
    for &event in events {
        tape.event(event);
    }
    tape.checker.end_operation().err().unwrap_or_default()
}

#[test]
fn the_maintenance_of_a_changed_permission_is_complete_or_reported() {
    use Event::{Complete, Invalidate, Publish};
    let va = VA + 0x3000;
    let right = by_page(va, Some(3), Space::All);
    let (at, address) = (Tape::new().at(3, 3), VirtAddr::new(va));
    let stale = |phase| vec![Violation::Stale(at, address, phase)];

    assert_eq!(read_only_then(&[Publish, Invalidate(right), Complete]), []);
    assert_eq!(read_only_then(&[Complete, Invalidate(right), Complete]), []);
    // One of the three left out, or out of order.
    assert_eq!(read_only_then(&[Publish, Complete]), stale(Phase::Published));
    assert_eq!(read_only_then(&[Publish, Invalidate(right)]), stale(Phase::Invalidated));
    assert_eq!(read_only_then(&[Publish, Complete, Invalidate(right)]), stale(Phase::Invalidated));
    // `dsb ishst` does not wait for an invalidation.
    assert_eq!(read_only_then(&[Publish, Invalidate(right), Publish]), stale(Phase::Invalidated));
    assert_eq!(read_only_then(&[Invalidate(right), Complete]), stale(Phase::Published));
    assert_eq!(read_only_then(&[]), [vec![Violation::StoreNotPublished(at)], stale(Phase::Stored)].concat());
}

#[test]
fn an_invalidation_of_something_else_does_not_count() {
    use Event::{Complete, Invalidate, Publish};
    let va = VA + 0x3000;
    let covers = |operation| read_only_then(&[Publish, Invalidate(operation), Complete]).is_empty();
    let page = |va, level, space| by_page(va, level, space);
    let k16 = |level| Tlbi::Page {
        va: VirtAddr::new(va),
        space: Space::All,
        last_level: true,
        granule: Granule::K16,
        level,
    };
    let asid = Asid::new(1);
    let rows = [
        (true, page(va, Some(3), Space::All)),
        (true, page(va, None, Space::All)),
        (true, page(va + 0xff8, None, Space::All)),
        (true, page(va, Some(3), Space::Asid(asid))),
        (true, Tlbi::All),
        (false, Tlbi::Asid(asid)),
        (false, page(va + 0x1000, Some(3), Space::All)),
        (false, page(va - 0x1000, None, Space::All)),
        (false, page(va & !(1 << 47), Some(3), Space::All)),
        (false, page(va, Some(2), Space::All)),
        // Without a level the granule is not told.
        (true, k16(None)),
        (false, k16(Some(3))),
        (true, range(VA, 1, Granule::K4, Some(3))),
        (true, range(va, 0, Granule::K4, None)),
        (true, range(VA + 0x2000, 0, Granule::K4, None)),
        (false, range(VA, 0, Granule::K4, Some(3))),
        (false, range(VA + 0x4000, 7, Granule::K4, Some(3))),
        (false, range(VA, 1, Granule::K16, None)),
        (false, range(VA, 1, Granule::K4, Some(2))),
        // Misaligned for its level.
        (false, range(VA + 0x800, 1, Granule::K4, Some(3))),
    ];
    for (expected, operation) in rows {
        assert_eq!(covers(operation), expected, "{operation:?}");
    }
}

#[test]
fn a_non_global_entry_needs_more_than_one_asid() {
    let mut tape = Tape::new();
    tape.store(3, 0, MIB | DATA | NON_GLOBAL | PAGE).publish().end(&[]);
    let stale = Violation::Stale(tape.at(3, 0), VirtAddr::new(VA), Phase::Published);
    let one = by_page(VA, Some(3), Space::Asid(Asid::new(1)));
    tape.store(3, 0, MIB | DATA | NON_GLOBAL | RDONLY | PAGE)
        .publish()
        .invalidate(one)
        .complete()
        .end(&[stale]);
    tape.store(3, 0, MIB | DATA | NON_GLOBAL | PAGE)
        .publish()
        .invalidate_page(VA, Some(3))
        .complete()
        .end(&[]);
}

#[test]
fn one_invalidation_covers_a_block() {
    let (block, va) = (MIB_2 | DATA | BLOCK, VA + MIB_2);
    for (operation, covers) in [
        (by_page(va, Some(2), Space::All), true),
        (by_page(va + 0x5000, None, Space::All), true),
        (range(va + MIB, 0, Granule::K4, None), true),
        (by_page(va, Some(3), Space::All), false),
        (by_page(va - 1, Some(2), Space::All), false),
        (range(VA, 31, Granule::K4, None), false),
    ] {
        let mut tape = Tape::new();
        tape.store(2, 1, block).publish().end(&[]);
        tape.store(2, 1, block | RDONLY).publish().invalidate(operation).complete();
        let stale = Violation::Stale(tape.at(2, 1), VirtAddr::new(va), Phase::Published);
        tape.end(if covers { &[] } else { std::slice::from_ref(&stale) });
    }
}

#[test]
fn each_member_of_a_group_needs_its_own_invalidation() {
    let change = |invalidated: &[usize]| {
        let mut tape = Tape::new();
        tape.with_group();
        (0..16).for_each(|i| {
            tape.store(3, i, (MIB + i as u64 * 0x1000) | DATA | CONT | RDONLY | PAGE);
        });
        tape.publish();
        for &i in invalidated {
            tape.invalidate_page(VA + i as u64 * 0x1000, Some(3));
        }
        tape.complete();
        tape.checker.end_operation().err().unwrap_or_default()
    };
    let all: Vec<_> = (0..16).collect();
    assert_eq!(change(&all), []);
    let last = Violation::Stale(Tape::new().at(3, 15), VirtAddr::new(VA + 0xf000), Phase::Published);
    assert_eq!(change(&all[..15]), [last]);
    assert_eq!(change(&all[..1]).len(), 15);
}

#[test]
fn a_group_with_and_without_cont_is_reported_at_any_moment() {
    let (page, second) = (MIB | DATA | PAGE, (MIB + 0x1000) | DATA | PAGE);
    let mut tape = Tape::new();
    let at = tape.at(3, 1);
    let mixed = Violation::MixedGroup(at);
    // Invalid siblings don't matter, and neither does the next group.
    tape.store(3, 0, page).store(3, 15, 0).store(3, 16, page | CONT).store(3, 16, 0);
    tape.store(3, 1, second | CONT);
    // Gone again before the end, it was there all the same.
    tape.store(3, 1, 0).publish().invalidate_page(VA + 0x1000, Some(3));
    tape.invalidate_page(VA + 0x10000, Some(3)).complete().end(&[mixed]);

    // A sibling that is no longer in memory, but may be in a TLB.
    let mut tape = Tape::new();
    tape.with_group();
    (0..16).for_each(|i| {
        tape.store(3, i, 0);
    });
    tape.publish();
    (1..16).for_each(|i| {
        tape.invalidate_page(VA + i * 0x1000, Some(3));
    });
    tape.complete().store(3, 1, second).publish();
    let stale = Violation::Stale(tape.at(3, 0), VirtAddr::new(VA), Phase::Published);
    tape.end(&[mixed, stale]);

    // A table among blocks.
    let mut tape = Tape::new();
    let at = tape.at(2, 1);
    let reported = tape.store(2, 1, MIB_2 | DATA | CONT | BLOCK).publish().checker.end_operation().err();
    assert!(reported.is_some_and(|reported| reported.contains(&Violation::MixedGroup(at))));
}

#[test]
fn a_group_that_is_no_single_translation_is_reported() {
    let group = |entry: &dyn Fn(u64) -> u64| {
        let mut tape = Tape::new();
        (0..16).for_each(|i| {
            tape.store(3, i, entry(i as u64));
        });
        tape.publish();
        let at = tape.at(3, 0);
        match tape.checker.end_operation() {
            Ok(()) => false,
            Err(reported) => {
                assert_eq!(reported, [Violation::BrokenGroup(at)]);
                true
            }
        }
    };
    let right = |i| (MIB + i * 0x1000) | DATA | CONT | PAGE;
    assert!(!group(&right));
    assert!(!group(&|i| if i == 3 { 0 } else { right(i) & !CONT }), "without CONT a hole is no fault");
    assert!(group(&|i| if i == 3 { 0 } else { right(i) }), "a hole");
    assert!(group(&|i| if i == 0 { 0 } else { right(i) }), "a hole at its beginning");
    assert!(group(&|i| if i == 9 { right(10) } else { right(i) }), "not consecutive");
    assert!(group(&|i| right(i) + 0x1000), "misaligned");
    assert!(group(&|i| if i == 15 { right(i) | RDONLY } else { right(i) }), "another permission");
    assert!(group(&|i| if i == 0 { right(i) | 1 << 2 } else { right(i) }), "another memory type");
    // The permissions of a part of it.
    let mut tape = Tape::new();
    let at = tape.with_group().at(3, 0);
    tape.store(3, 4, right(4) | RDONLY).publish().invalidate_page(VA + 0x4000, Some(3)).complete();
    tape.end(&[Violation::BrokenGroup(at)]);
}

/// The broken callers go through the recorder: what it tells the checker is what they did.
#[test]
fn the_recorder_sees_what_a_caller_leaves_out() {
    let recorder = Recorder::<K4>::new(4);
    let root = recorder.new_root();
    let mmu = &recorder;
    let link = |parent: TableFrame, index, published: bool| {
        let table = recorder.alloc_table(parent.level() + 1).expect("memory");
        if published {
            mmu.publish();
        }
        Table::new(&mmu, parent).set_table(index, table);
        mmu.publish();
        table
    };
    let level_1 = link(root, 256, true);
    assert_eq!(recorder.end_operation(), Ok(()));
    let level_2 = link(level_1, 0, false);
    let place = Place { table: level_1, index: 0 };
    assert_eq!(recorder.end_operation(), Err(vec![Violation::LinkedBeforePublish(place)]));

    let table = Table::new(&mmu, level_2);
    let pte = |flags| {
        arch::PteValue::leaf(PhysAddr::new(MIB_2), arch::MemoryType::Normal, arch::PteFlags::AF | flags)
    };
    table.set_leaf(1, pte(arch::PteFlags::empty()));
    mmu.publish();
    assert_eq!(recorder.end_operation(), Ok(()));
    table.set_leaf(1, pte(arch::PteFlags::RDONLY));
    let events = recorder.events();
    let (old, new) = (MIB_2 | (1 << 10) | BLOCK, MIB_2 | (1 << 10) | RDONLY | BLOCK);
    assert_eq!(events, [Event::Store { table: level_2, index: 1, old, new }]);
    mmu.publish();
    mmu.complete();
    let place = Place { table: level_2, index: 1 };
    let va = VirtAddr::new(VA + MIB_2);
    assert_eq!(recorder.end_operation(), Err(vec![Violation::Stale(place, va, Phase::Published)]));
    assert!(recorder.events().is_empty());

    let leaves = recorder.leaves(root);
    let expected = pleat_model::Leaf { va, level: 2, pa: PhysAddr::new(MIB_2), raw: new };
    assert_eq!(leaves, [expected]);
}

#[test]
fn tables_run_out_when_told() {
    let recorder = Recorder::<K16>::new(5);
    recorder.limit_tables(Some(2));
    recorder.new_root();
    assert_eq!([1, 2, 3].map(|level| recorder.alloc_table(level).is_some()), [true, true, false]);
    assert_eq!(recorder.tables(), 3);
    recorder.limit_tables(None);
    assert_eq!([1, 2, 3].map(|level| recorder.alloc_table(level).is_some()), [true, true, false]);
}

#[test]
fn each_frame_has_its_own_slots() {
    let recorder = Recorder::<K64>::new(2);
    let mmu = &recorder;
    let [first, second] = [1, 2].map(|level| recorder.alloc_table(level).expect("memory"));
    let slots: [&[Slot]; 2] = [mmu.slots(first), mmu.slots(second)];
    assert_eq!(slots.map(<[Slot]>::len), [8192; 2]);
    assert!(!slots[0].as_ptr_range().contains(&slots[1].as_ptr()));
    assert_eq!(second.pa().get() - first.pa().get(), 1 << 16);
}
