//! The checker against sequences that are wrong in one way each, and the right one beside it. What it would let pass
//! here, it would let pass in the code under test.

use arch::mmu::{Entry, Mmu, Table};
use arch::tlbi::{RangeSize, Space, Tlbi};
use arch::{Granule, MemoryType, PhysAddr, PteFlags, PteValue, TableFrame, VirtAddr};
use pleat_model::{Checker, Event, K4, K16, Phase, Place, Recorder, Violation};

/// Where the tables of these tests translate.
const BASE: u64 = 0xffff_8000_0000_0000;

/// A machine with a root and, below it, one table of each level, published.
struct Machine(Recorder<K4>, [TableFrame; 4]);

impl Machine {
    fn new() -> Self {
        let recorder = Recorder::new(8);
        let mut tables = [recorder.new_root(); 4];
        let mmu = &recorder;
        for level in 1..4 {
            tables[level] = recorder.alloc_table(level as u8).unwrap();
            mmu.publish();
            let parent = Table::new(&mmu, tables[level - 1]);
            parent.set_table(Granule::K4.index(BASE, level as u8 - 1), tables[level]);
            mmu.publish();
        }
        recorder.end_operation().unwrap();
        Self(recorder, tables)
    }

    /// Does something with the last-level table, and says what the checker thinks of it.
    fn at_last_level(&self, f: impl FnOnce(&Table<'_, &Recorder<K4>>, &&Recorder<K4>)) -> Vec<Violation> {
        self.at(3, f)
    }

    fn at(&self, level: usize, f: impl FnOnce(&Table<'_, &Recorder<K4>>, &&Recorder<K4>)) -> Vec<Violation> {
        let mmu = &self.0;
        f(&Table::new(&mmu, self.1[level]), &mmu);
        self.0.end_operation().err().unwrap_or_default()
    }
}

fn pte(pa: u64, flags: PteFlags) -> PteValue {
    PteValue::leaf(PhysAddr::new(pa), MemoryType::Normal, flags | PteFlags::AF | PteFlags::UXN)
}

const RW: PteFlags = PteFlags::PXN;
const RO: PteFlags = PteFlags::PXN.union(PteFlags::RDONLY);

fn page(va: u64, level: Option<u8>) -> Tlbi {
    Tlbi::Page { va: VirtAddr::new(va), space: Space::All, last_level: true, granule: Granule::K4, level }
}

/// A machine with a writable page in slot 3.
fn with_page() -> Machine {
    let machine = Machine::new();
    let found = machine.at_last_level(|table, mmu| {
        table.set_leaf(3, pte(0x3000, RW));
        mmu.publish();
    });
    assert_eq!(found, []);
    machine
}

/// A machine with a writable Contiguous group in slots 16 to 31.
fn with_group() -> Machine {
    let machine = Machine::new();
    let found = machine.at_last_level(|table, mmu| {
        for i in 0..16 {
            table.set_leaf(16 + i, pte(0x10000 + 0x1000 * i as u64, RW | PteFlags::CONT));
        }
        mmu.publish();
    });
    assert_eq!(found, []);
    machine
}

#[test]
fn a_permission_change_needs_publish_invalidate_complete() {
    let change = |steps: &dyn Fn(&&Recorder<K4>)| {
        with_page().at_last_level(|table, mmu| {
            table.set_leaf(3, pte(0x3000, RO));
            steps(mmu);
        })
    };
    let va = BASE + 0x3000;
    let right = |mmu: &&Recorder<K4>, operation| {
        mmu.publish();
        mmu.invalidate(operation);
        mmu.complete();
    };
    for operation in [page(va, Some(3)), page(va + 0xfff, None), Tlbi::All] {
        assert_eq!(change(&|mmu| right(mmu, operation)), []);
    }
    let stale = |found: Vec<Violation>, expected: Phase| {
        assert!(
            matches!(found[..], [Violation::Stale(_, at, phase)] if at.get() == va && phase == expected),
            "{found:?}"
        );
    };
    // No invalidation.
    stale(change(&|mmu| mmu.complete()), Phase::Published);
    // Not waited for.
    stale(
        change(&|mmu| {
            mmu.publish();
            mmu.invalidate(page(va, Some(3)));
        }),
        Phase::Invalidated,
    );
    // Issued before the store was visible: a walker may read the old entry after it.
    stale(
        change(&|mmu| {
            mmu.invalidate(page(va, Some(3)));
            mmu.complete();
        }),
        Phase::Published,
    );
    // The page beside it; a wrong level; of an ASID, with the entry global and the operation for all of one.
    stale(change(&|mmu| right(mmu, page(va + 0x1000, Some(3)))), Phase::Published);
    stale(change(&|mmu| right(mmu, page(va, Some(2)))), Phase::Published);
    stale(change(&|mmu| right(mmu, Tlbi::Asid(arch::tlbi::Asid::new(0)))), Phase::Published);
    // A hint for another granule.
    let granule = Tlbi::Page {
        va: VirtAddr::new(va),
        space: Space::All,
        last_level: true,
        granule: Granule::K16,
        level: Some(3),
    };
    stale(change(&|mmu| right(mmu, granule)), Phase::Published);
}

#[test]
fn a_range_covers_its_pages_and_no_more() {
    let clear = |pages: RangeSize| {
        with_group().at_last_level(|table, mmu| {
            for i in 16..32 {
                table.set_leaf(i, PteValue::NONE);
            }
            mmu.publish();
            mmu.invalidate(Tlbi::Range {
                start: VirtAddr::new(BASE + 0x10000),
                size: pages,
                space: Space::All,
                last_level: true,
                granule: Granule::K4,
                level: Some(3),
            });
            mmu.complete();
        })
    };
    assert_eq!(clear(RangeSize::new(0, 7).unwrap()), []);
    // 14 pages: the last two of the block stay.
    let found = clear(RangeSize::new(0, 6).unwrap());
    assert_eq!(found.iter().filter(|v| matches!(v, Violation::Stale(..))).count(), 2, "{found:?}");
}

#[test]
fn a_live_entry_changes_by_break_before_make_only() {
    let flush = |mmu: &&Recorder<K4>| {
        mmu.publish();
        mmu.invalidate(page(BASE + 0x3000, Some(3)));
        mmu.complete();
    };
    for other in [pte(0x4000, RW), pte(0x3000, RW | PteFlags::NG), pte(0x3000, RW | PteFlags::CONT)] {
        // In place.
        let found = with_page().at_last_level(|table, mmu| {
            table.set_leaf(3, other);
            flush(mmu);
        });
        assert!(found.iter().any(|v| matches!(v, Violation::NotBroken(..))), "{other:?}: {found:?}");
        // Broken, but made again before the flush was complete.
        let found = with_page().at_last_level(|table, mmu| {
            table.set_leaf(3, PteValue::NONE);
            mmu.publish();
            mmu.invalidate(page(BASE + 0x3000, Some(3)));
            table.set_leaf(3, other);
            mmu.complete();
        });
        assert!(found.iter().any(|v| matches!(v, Violation::NotBroken(..))), "{other:?}: {found:?}");
    }
    let found = with_page().at_last_level(|table, mmu| {
        table.set_leaf(3, PteValue::NONE);
        flush(mmu);
        table.set_leaf(3, pte(0x4000, RW));
        mmu.publish();
    });
    assert_eq!(found, []);
}

#[test]
fn a_group_is_one_translation_or_none() {
    let set = |index: usize, value: PteValue| {
        with_group().at_last_level(|table, mmu| {
            table.set_leaf(index, value);
            mmu.publish();
            mmu.invalidate(page(BASE + 0x1000 * index as u64, Some(3)));
            mmu.complete();
        })
    };
    // One member without the bit, while the others have it.
    let found = set(20, pte(0x14000, RW));
    assert!(found.iter().any(|v| matches!(v, Violation::MixedGroup(_))), "{found:?}");
    // One member with other permissions.
    let found = set(20, pte(0x14000, RO | PteFlags::CONT));
    assert!(matches!(found[..], [Violation::BrokenGroup(_)]), "{found:?}");
    // All of them.
    let found = with_group().at_last_level(|table, mmu| {
        for i in 0..16 {
            table.set_leaf(16 + i, pte(0x10000 + 0x1000 * i as u64, RO | PteFlags::CONT));
        }
        mmu.publish();
        (0..16).for_each(|i| mmu.invalidate(page(BASE + 0x10000 + 0x1000 * i, Some(3))));
        mmu.complete();
    });
    assert_eq!(found, []);
    // The bit on a page without its group.
    let found = Machine::new().at_last_level(|table, mmu| {
        table.set_leaf(3, pte(0x3000, RW | PteFlags::CONT));
        mmu.publish();
    });
    assert!(matches!(found[..], [Violation::BrokenGroup(_)]), "{found:?}");
    // A conversion that leaves one sibling alive.
    let found = with_group().at_last_level(|table, mmu| {
        for i in 16..31 {
            table.set_leaf(i, PteValue::NONE);
        }
        mmu.publish();
        (0..15).for_each(|i| mmu.invalidate(page(BASE + 0x10000 + 0x1000 * i, Some(3))));
        mmu.complete();
        for i in 0..15 {
            table.set_leaf(16 + i, pte(0x10000 + 0x1000 * i as u64, RW));
        }
        mmu.publish();
    });
    assert!(found.iter().any(|v| matches!(v, Violation::MixedGroup(_))), "{found:?}");
}

#[test]
fn stores_and_tables_are_published() {
    let found = Machine::new().at_last_level(|table, _| table.set_leaf(3, pte(0x3000, RW)));
    assert!(matches!(found[..], [Violation::StoreNotPublished(_)]), "{found:?}");

    let add_table = |publish_first: bool| {
        let machine = Machine::new();
        machine.at(2, |table, mmu| {
            let child = machine.0.alloc_table(3).unwrap();
            if publish_first {
                mmu.publish();
            }
            table.set_table(7, child);
            mmu.publish();
        })
    };
    assert_eq!(add_table(true), []);
    assert!(matches!(add_table(false)[..], [Violation::LinkedBeforePublish(_)]));

    let machine = Machine::new();
    let found = machine.at(2, |_, _| _ = machine.0.alloc_table(3));
    assert!(matches!(found[..], [Violation::TableNotPublished(_)]), "{found:?}");
}

#[test]
fn tables_are_linked_once_and_stay() {
    let machine = Machine::new();
    let found = machine.at(2, |table, mmu| {
        table.set_table(9, machine.1[3]);
        mmu.publish();
    });
    assert!(matches!(found[..], [Violation::LinkedTwice(_)]), "{found:?}");

    let machine = Machine::new();
    let found = machine.at(2, |table, mmu| {
        assert!(matches!(table.entry(0), Entry::Table(_)));
        table.set_leaf(0, pte(0x20_0000, RW));
        mmu.publish();
    });
    assert!(found.iter().any(|v| matches!(v, Violation::TableReplaced(_))), "{found:?}");
}

/// What the checker thinks of these events, from the beginning of the machine to the end of an operation.
fn judge(events: &[Event]) -> Vec<Violation> {
    let mut checker = Checker::new(Granule::K4);
    events.iter().for_each(|event| checker.observe(event));
    checker.end_operation().err().unwrap_or_default()
}

/// Frames of the same address, as tables of the levels that are asked for.
fn same_frame<const N: usize>(levels: [u8; N]) -> [TableFrame; N] {
    levels.map(|level| Recorder::<K4>::new(1).alloc_table(level).unwrap())
}

fn store(table: TableFrame, index: usize, old: u64, new: u64) -> Event {
    Event::Store { table, index, old, new }
}

#[test]
fn a_store_goes_to_a_table_that_exists() {
    let [table, other_level] = same_frame([3, 2]);
    // An invalid entry, which owes nothing.
    let stored = |table, index| judge(&[Event::Create(table), Event::Publish, store(table, index, 0, 0x10)]);
    assert_eq!(stored(table, 511), []);
    let no_such = |table, index| [Violation::NoSuchTable(Place { table, index })];
    // Beyond its end; into a frame that is no table, or is one of another level.
    assert_eq!(stored(table, 512), no_such(table, 512));
    assert_eq!(judge(&[store(table, 511, 0, 0x10)]), no_such(table, 511));
    let found = judge(&[Event::Create(table), Event::Publish, store(other_level, 511, 0, 0x10)]);
    assert_eq!(found, no_such(other_level, 511));
}

#[test]
fn a_slot_holds_what_was_stored_last() {
    let [table] = same_frame([3]);
    let twice = |old| {
        judge(&[Event::Create(table), Event::Publish, store(table, 3, 0, 0x10), store(table, 3, old, 0x20)])
    };
    assert_eq!(twice(0x10), []);
    // Somebody wrote to the memory and told nobody.
    for old in [0, 0x20] {
        assert_eq!(twice(old), [Violation::OtherOldValue(Place { table, index: 3 }, old)]);
    }
}

#[test]
fn a_slot_of_the_root_is_selected_by_some_address() {
    // Bit 47 alone selects in the root of the 16 KiB granule.
    let linked_at = |index| {
        let recorder = Recorder::<K16>::new(2);
        let (root, mmu) = (recorder.new_root(), &recorder);
        let child = recorder.alloc_table(1).unwrap();
        mmu.publish();
        Table::new(&mmu, root).set_table(index, child);
        mmu.publish();
        (root, recorder.end_operation().err().unwrap_or_default())
    };
    assert_eq!(linked_at(1).1, []);
    for index in [2, 2047] {
        let (table, found) = linked_at(index);
        assert_eq!(found, [Violation::Unreachable(Place { table, index })]);
    }
}

#[test]
fn a_valid_descriptor_exists_at_its_level() {
    for (level, reserved, right) in [
        // A page without bit 1.
        (3, 0x3001, 0x3003),
        // Blocks where there are none, or misaligned.
        (0, 1, 0),
        (1, 0x20_0001, 0x4000_0001),
        (2, 0x10_0001, 0x20_0001),
    ] {
        let [table] = same_frame([level]);
        let stored =
            |raw| judge(&[Event::Create(table), Event::Publish, store(table, 3, 0, raw), Event::Publish]);
        assert_eq!(stored(right), []);
        assert_eq!(stored(reserved), [Violation::Reserved(Place { table, index: 3 }, reserved)]);
    }
}

#[test]
fn a_table_descriptor_leads_to_a_table_of_the_next_level() {
    // Where the second table of a machine is: here of level 3, in others not, or not there at all.
    let second = |level| {
        let recorder = Recorder::<K4>::new(2);
        recorder.new_root();
        recorder.alloc_table(level).unwrap()
    };
    let linked = |has: &[u8], to: TableFrame| {
        let recorder = Recorder::<K4>::new(3);
        let mmu = &recorder;
        let parent = recorder.alloc_table(2).unwrap();
        has.iter().for_each(|&level| _ = recorder.alloc_table(level).unwrap());
        mmu.publish();
        Table::new(&mmu, parent).set_table(7, to);
        mmu.publish();
        (Place { table: parent, index: 7 }, recorder.end_operation().err().unwrap_or_default())
    };
    let to = second(3);
    assert_eq!(linked(&[3], to).1, []);
    for has in [&[] as &[u8], &[2], &[1, 3]] {
        let (at, found) = linked(has, to);
        assert_eq!(found, [Violation::LeadsNowhere(at, to.pa().get() | 0b11)], "{has:?}");
    }
}
