//! Translation tables in memory, and which of their values a walker may read.
//!
//! A store is seen by every CPU's loads at once. Walkers, its own CPU's among them, may read what was there before
//! until that CPU has executed a DSB: so a slot has one value and may have older ones.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use arch::TableFrame;
use arch::mmu::Slot;

/// A table, or what was one.
pub(super) struct TableState {
    pub(super) frame: TableFrame,
    pub(super) slots: Arc<[Slot]>,
    /// Not freed.
    pub(super) live: bool,
    /// The CPU that zeroed it, until a DSB of it.
    pub(super) unpublished: Option<usize>,
    older: BTreeMap<usize, History>,
    /// Slots whose dirty state hardware has set, and that no CPU has read since.
    unseen: BTreeSet<usize>,
}

/// Values that a walker may read beside the current one, oldest first, with the CPUs that stored them.
struct History {
    older: Vec<(u64, Option<usize>)>,
    /// Who stored the current one.
    writer: usize,
}

impl TableState {
    pub(super) fn new(frame: TableFrame, slots: Arc<[Slot]>, cpu: usize) -> Self {
        let (older, unseen) = (BTreeMap::new(), BTreeSet::new());
        Self { frame, slots, live: true, unpublished: Some(cpu), older, unseen }
    }

    /// What loads read.
    pub(super) fn current(&self, index: usize) -> u64 {
        self.slots[index].load()
    }

    /// What a walker may read, the current value last.
    pub(super) fn possible(&self, index: usize) -> impl Iterator<Item = u64> + '_ {
        let older = if self.older.is_empty() { None } else { self.older.get(&index) };
        older.into_iter().flat_map(|h| h.older.iter().map(|(raw, _)| *raw)).chain([self.current(index)])
    }

    /// The slots of a range with what a walker may read there that is not the current value.
    pub(super) fn older_in(&self, slots: Range<usize>) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.older.range(slots).flat_map(|(&index, h)| h.older.iter().map(move |(raw, _)| (index, *raw)))
    }

    /// The slots of which a walker may read something else than 0.
    pub(super) fn used(&self) -> Vec<usize> {
        let nonzero = |&i: &usize| self.current(i) != 0 || self.older.contains_key(&i);
        (0..self.slots.len()).filter(nonzero).collect()
    }

    /// A store by a CPU.
    pub(super) fn store(&mut self, index: usize, raw: u64, cpu: usize) {
        let old = self.current(index);
        let history = self.older.entry(index).or_insert(History { older: Vec::new(), writer: cpu });
        let writer = if history.older.is_empty() { None } else { Some(history.writer) };
        // The same value by the same CPU, later: whatever drops the one drops the other.
        history.older.retain(|&other| other != (old, writer));
        history.older.push((old, writer));
        history.writer = cpu;
        self.write(index, raw);
        self.unseen.remove(&index);
    }

    /// An update by hardware. It is one with the store before it: what was there is less than what is now, and the
    /// TLBs know it already.
    pub(super) fn update(&mut self, index: usize, raw: u64, sets_dirty: bool) {
        self.write(index, raw);
        if sets_dirty {
            self.unseen.insert(index);
        }
    }

    fn write(&self, index: usize, raw: u64) {
        // SAFETY: the model's own walker is all that reads the table; it doesn't trust what it finds there.
        unsafe { self.slots[index].store(raw) }
    }

    /// A CPU reads the slot, and so learns what hardware has set.
    pub(super) fn seen(&mut self, index: usize) {
        self.unseen.remove(&index);
    }

    /// Whether the slot has a dirty state that nobody has read.
    pub(super) fn has_unseen(&self, index: usize) -> bool {
        self.unseen.contains(&index)
    }

    /// A DSB of `cpu`: what its last store to the slot has overwritten can't be read any more. Returns that.
    pub(super) fn publish(&mut self, index: usize, cpu: usize) -> Vec<u64> {
        let Some(history) = self.older.get_mut(&index) else { return Vec::new() };
        let keep_from = if history.writer == cpu {
            history.older.len()
        } else {
            history.older.iter().rposition(|&(_, writer)| writer == Some(cpu)).unwrap_or(0)
        };
        let dropped = history.older.drain(..keep_from).map(|(raw, _)| raw).collect();
        if history.older.is_empty() {
            self.older.remove(&index);
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use arch::PhysAddr;

    fn table() -> TableState {
        // SAFETY: no machine ever reaches it.
        let frame = unsafe { TableFrame::new(PhysAddr::new(0x1000), 3) };
        TableState::new(frame, (0..512).map(|_| Slot::new()).collect(), 0)
    }

    fn possible(table: &TableState) -> Vec<u64> {
        table.possible(7).collect()
    }

    #[test]
    fn a_dsb_drops_what_its_own_cpu_has_overwritten() {
        let mut table = table();
        table.store(7, 1, 0);
        table.store(7, 2, 1);
        assert_eq!(possible(&table), [0, 1, 2]);
        assert_eq!(table.publish(7, 2), []);
        // Cpu 0 has overwritten 0 by 1. That cpu 1 has overwritten 1 is not known to be seen.
        assert_eq!(table.publish(7, 0), [0]);
        assert_eq!(possible(&table), [1, 2]);
        assert_eq!(table.publish(7, 1), [1]);
        assert_eq!(possible(&table), [2]);
    }

    #[test]
    fn a_dsb_drops_older_stores_of_others_too() {
        let mut table = table();
        table.store(7, 1, 0);
        table.store(7, 2, 1);
        assert_eq!(table.publish(7, 1), [0, 1]);
        assert_eq!(possible(&table), [2]);
    }

    #[test]
    fn repeated_stores_take_no_more_room() {
        let mut table = table();
        for _ in 0..1000 {
            table.store(7, 1, 0);
            table.store(7, 2, 0);
        }
        assert!(possible(&table).len() <= 4, "{:?}", possible(&table));
        assert_eq!(table.used(), vec![7]);
        table.publish(7, 0);
        assert_eq!(possible(&table), [2]);
    }
}
