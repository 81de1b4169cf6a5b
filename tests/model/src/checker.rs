//! Judges a sequence of events.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use core::mem;

use arch::tlbi::{Space, Tlbi};
use arch::{Granule, TableFrame, VirtAddr};

use crate::Event;
use crate::descriptor::{
    CONTIGUOUS, Descriptor, NON_GLOBAL, PERMISSIONS, TTBR1_BASE, VALID, decode, leaf_size, reachable_slots,
    root_level,
};
use crate::violation::{Phase, Place, Violation};

/// Follows the events and collects what is wrong with them.
///
/// A table of the root level is a root of TTBR1; there may be several. Every valid leaf in a table that
/// a root leads to counts as held by a TLB from its store on.
pub struct Checker {
    granule: Granule,
    tables: BTreeMap<u64, Shadow>,
    /// Old values that TLBs may hold, by the address that they translate.
    stale: BTreeMap<u64, Vec<Stale>>,
    /// Valid entries and new tables that walkers may not see yet.
    unpublished_stores: Vec<Place>,
    unpublished_tables: Vec<TableFrame>,
    /// Groups that the operation wrote to: physical address of the table, first slot.
    touched: BTreeSet<(u64, usize)>,
    violations: Vec<Violation>,
}

/// What is known of a table.
struct Shadow {
    frame: TableFrame,
    slots: Vec<u64>,
    /// The slot that leads to it.
    parent: Option<Place>,
}

struct Stale {
    at: Place,
    old: u64,
    phase: Phase,
}

impl Checker {
    /// For tables of this granule, of which there are none yet.
    pub fn new(granule: Granule) -> Self {
        Self {
            granule,
            tables: BTreeMap::new(),
            stale: BTreeMap::new(),
            unpublished_stores: Vec::new(),
            unpublished_tables: Vec::new(),
            touched: BTreeSet::new(),
            violations: Vec::new(),
        }
    }

    /// Takes note of what happened next.
    pub fn observe(&mut self, event: &Event) {
        match *event {
            Event::Create(frame) => {
                let slots = vec![0; self.granule.page_size() as usize / 8];
                self.tables.insert(frame.pa().get(), Shadow { frame, slots, parent: None });
                self.unpublished_tables.push(frame);
            }
            Event::Store { table, index, old, new } => self.store(Place { table, index }, old, new),
            Event::Publish => self.publish(),
            Event::Invalidate(operation) => self.invalidate(operation),
            Event::Complete => {
                // `dsb ish` waits for all that `dsb ishst` waits for, and for the invalidations.
                self.publish();
                self.stale.retain(|_, entries| {
                    entries.retain(|entry| entry.phase != Phase::Invalidated);
                    !entries.is_empty()
                });
            }
        }
    }

    /// Ends an operation: what it owed must have been done. The next one starts with a clean slate.
    ///
    /// # Errors
    /// All that was wrong, in the order in which it was noticed.
    pub fn end_operation(&mut self) -> Result<(), Vec<Violation>> {
        let mut found = mem::take(&mut self.violations);
        found.extend(mem::take(&mut self.unpublished_tables).into_iter().map(Violation::TableNotPublished));
        found.extend(mem::take(&mut self.unpublished_stores).into_iter().map(Violation::StoreNotPublished));
        for (va, entries) in mem::take(&mut self.stale) {
            let va = VirtAddr::new(va);
            found.extend(entries.iter().map(|entry| Violation::Stale(entry.at, va, entry.phase)));
        }
        for (pa, first) in mem::take(&mut self.touched) {
            if !self.group_is_sound(pa, first) {
                found.push(Violation::BrokenGroup(Place { table: self.tables[&pa].frame, index: first }));
            }
        }
        if found.is_empty() { Ok(()) } else { Err(found) }
    }

    fn store(&mut self, at: Place, old: u64, new: u64) {
        let (granule, level) = (self.granule, at.table.level());
        let Some(shadow) = self
            .tables
            .get_mut(&at.table.pa().get())
            .filter(|shadow| shadow.frame == at.table && at.index < shadow.slots.len())
        else {
            return self.violations.push(Violation::NoSuchTable(at));
        };
        let held = mem::replace(&mut shadow.slots[at.index], new);
        if held != old {
            self.violations.push(Violation::OtherOldValue(at, old));
        }
        if at.index >= reachable_slots(granule, level) {
            self.violations.push(Violation::Unreachable(at));
        }
        let new_is = decode(granule, level, new);
        match decode(granule, level, held) {
            Descriptor::Table(_) => self.violations.push(Violation::TableReplaced(at)),
            Descriptor::Leaf(_) if held != new => self.leaf_changed(at, held),
            Descriptor::Leaf(_) | Descriptor::Invalid | Descriptor::Reserved => {}
        }
        match new_is {
            Descriptor::Invalid | Descriptor::Leaf(_) => {}
            Descriptor::Reserved => self.violations.push(Violation::Reserved(at, new)),
            Descriptor::Table(pa) => self.link(at, pa, new),
        }
        if new & VALID != 0 {
            // A block that becomes a table differs in bit 1.
            for stale in self.va_of(at).and_then(|va| self.stale.get(&va)).into_iter().flatten() {
                if stale.at == at && (stale.old ^ new) & !PERMISSIONS != 0 {
                    self.violations.push(Violation::NotBroken(at, stale.old, new));
                }
            }
            self.unpublished_stores.push(at);
        }
        self.check_mixture(at, new);
        self.touched.insert((at.table.pa().get(), at.index - at.index % granule.cont_entries(level)));
    }

    /// A valid leaf was overwritten: whatever by, TLBs may still hold it.
    fn leaf_changed(&mut self, at: Place, old: u64) {
        // A table that nothing leads to was never walked.
        if let Some(va) = self.va_of(at) {
            self.stale.entry(va).or_default().push(Stale { at, old, phase: Phase::Stored });
        }
    }

    fn link(&mut self, at: Place, pa: u64, raw: u64) {
        let Some(shadow) = self.tables.get_mut(&pa).filter(|s| s.frame.level() == at.table.level() + 1)
        else {
            return self.violations.push(Violation::LeadsNowhere(at, raw));
        };
        if shadow.parent.replace(at).is_some() {
            self.violations.push(Violation::LinkedTwice(at));
        }
        if self.unpublished_tables.iter().any(|table| table.pa().get() == pa) {
            self.violations.push(Violation::LinkedBeforePublish(at));
        }
    }

    /// After the store of `new` to `at`: no two valid entries of the group, in memory or in a TLB, may
    /// differ in CONT. A table descriptor has no such bit.
    fn check_mixture(&mut self, at: Place, new: u64) {
        if new & VALID == 0 {
            return;
        }
        let level = at.table.level();
        let cont =
            |raw| matches!(decode(self.granule, level, raw), Descriptor::Leaf(_)) && raw & CONTIGUOUS != 0;
        let group = self.granule.cont_entries(level);
        let first = at.index - at.index % group;
        let slots = &self.tables[&at.table.pa().get()].slots[first..first + group];
        let in_memory = slots.iter().any(|&raw| raw & VALID != 0 && cont(raw) != cont(new));
        let cached = self.va_of(Place { index: first, ..at }).is_some_and(|va| {
            self.stale
                .range(va..=va + (group as u64 * leaf_size(self.granule, level) - 1))
                .flat_map(|(_, entries)| entries)
                .any(|entry| entry.at.table == at.table && cont(entry.old) != cont(new))
        });
        if in_memory || cached {
            self.violations.push(Violation::MixedGroup(at));
        }
    }

    /// Whether the group of slots from `first` has no valid CONT entry, or is one translation.
    fn group_is_sound(&self, pa: u64, first: usize) -> bool {
        let shadow = &self.tables[&pa];
        let level = shadow.frame.level();
        let slots = &shadow.slots[first..first + self.granule.cont_entries(level)];
        if slots.iter().all(|raw| raw & VALID == 0 || raw & CONTIGUOUS == 0) {
            return true;
        }
        let Descriptor::Leaf(base) = decode(self.granule, level, slots[0]) else { return false };
        let size = leaf_size(self.granule, level);
        base.is_multiple_of(size * slots.len() as u64)
            && slots.iter().zip(0..).all(|(&raw, i)| raw == slots[0] + i * size)
    }

    fn publish(&mut self) {
        self.unpublished_stores.clear();
        self.unpublished_tables.clear();
        for entry in self.stale.values_mut().flatten().filter(|entry| entry.phase == Phase::Stored) {
            entry.phase = Phase::Published;
        }
    }

    fn invalidate(&mut self, operation: Tlbi) {
        let granule = self.granule;
        // Only where an entry that begins here may be covered.
        let nearby = match operation {
            Tlbi::All | Tlbi::Asid(_) => 0..=u64::MAX,
            Tlbi::Page { va, .. } => va.get() & !(leaf_size(granule, root_level(granule)) - 1)..=va.get(),
            Tlbi::Range { start, size, .. } => {
                let bytes = size.pages() << granule.page_size().ilog2();
                let first = start.get() & !(leaf_size(granule, root_level(granule)) - 1);
                first..=start.get().saturating_add(bytes - 1)
            }
        };
        for (&va, entries) in self.stale.range_mut(nearby) {
            for entry in entries.iter_mut().filter(|entry| entry.phase == Phase::Published) {
                if covers(granule, operation, va, entry.at.table.level(), entry.old) {
                    entry.phase = Phase::Invalidated;
                }
            }
        }
    }

    /// The first address that an entry translates; `None` where no root leads to it.
    fn va_of(&self, at: Place) -> Option<u64> {
        let (mut va, mut at) = (TTBR1_BASE, at);
        loop {
            let level = at.table.level();
            if at.index >= reachable_slots(self.granule, level) {
                return None;
            }
            va |= (at.index as u64) * leaf_size(self.granule, level);
            if level == root_level(self.granule) {
                return Some(va);
            }
            at = self.tables.get(&at.table.pa().get())?.parent?;
        }
    }
}

/// Whether `operation` must invalidate what a TLB holds of the leaf `raw`, which translates from `va` on
/// and is in a table of `level`. A member of a Contiguous group counts by itself (RLQLSD).
fn covers(granule: Granule, operation: Tlbi, va: u64, level: u8, raw: u64) -> bool {
    let global = raw & NON_GLOBAL == 0;
    // A wrong hint lets the hardware invalidate nothing (RSQXYZ, RXKMMX). Which ASID a non-global entry
    // has is not known here, so only the forms for every ASID count.
    let hint_fits = |hint: Option<u8>| hint.is_none_or(|hint| hint == level);
    let space_fits = |space: Space| global || space == Space::All;
    let size = leaf_size(granule, level);
    match operation {
        Tlbi::All => true,
        Tlbi::Asid(_) => false,
        Tlbi::Page { va: page, space, granule: tables, level: hint, last_level: _ } => {
            // Without a level, the operand doesn't say the granule.
            (hint.is_none() || tables == granule)
                && hint_fits(hint)
                && space_fits(space)
                && page.get() & !(size - 1) == va
        }
        Tlbi::Range { start, size: pages, space, granule: tables, level: hint, last_level: _ } => {
            let last = start.get().saturating_add((pages.pages() << granule.page_size().ilog2()) - 1);
            let aligned = start.is_aligned(hint.map_or(granule.page_size(), |hint| leaf_size(granule, hint)));
            tables == granule
                && aligned
                && hint_fits(hint)
                && space_fits(space)
                && start.get() <= va + (size - 1)
                && va <= last
        }
    }
}
