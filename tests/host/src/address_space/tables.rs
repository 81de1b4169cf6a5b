//! Mappings that fill a last-level table, so that the table itself may move. Of each some pages are used: all would take long.

use std::ops::Range;

use mm::mman::*;
use model::GranuleType;

use super::op::{OfTable, What};
use super::world::World;

/// Tables that may be filled, apart from each other.
const SLOTS: u64 = 3;

impl<G: GranuleType + Sync> World<'_, G> {
    /// Pages that a table translates.
    fn table(&self) -> u64 {
        G::GRANULE.entries() as u64
    }

    /// The first page of the table that may be filled.
    fn slot(&self, nr: u8) -> u64 {
        (1 << 42) / G::GRANULE.page_size() + u64::from(nr) % SLOTS * 4 * self.table()
    }

    /// The pages that a table translates, with a block before them and one behind.
    fn around(&self, slot: u8) -> Range<u64> {
        self.slot(slot) - self.block()..self.slot(slot) + self.table() + self.block()
    }

    /// The pages that these operations are for.
    pub(super) fn of_tables(&self) -> Range<u64> {
        self.around(0).start..self.around(SLOTS as u8 - 1).end
    }

    /// Where the pages may be that are used: by a block before or behind where they were once.
    pub(super) fn parts_of_tables(&self) -> impl Iterator<Item = Range<u64>> {
        let (block, table) = (self.block(), self.table());
        (0..SLOTS as u8).flat_map(move |slot| {
            let start = self.slot(slot);
            let middle = start + table / 2;
            let end = start + table;
            [
                start - block..start + 2 * block,
                middle - 2 * block..middle + block,
                end - 2 * block..end + block,
            ]
        })
    }

    /// The pages of a table, or next to it, that are used.
    fn used(&self, slot: u8) -> [u64; 6] {
        let (block, table) = (self.block(), self.table());
        [0, 1, block / 2, table / 2, table, table + 1].map(|page| self.slot(slot) - 1 + page)
    }

    /// The pages of all tables that are used.
    pub(super) fn used_of_tables(&self) -> impl Iterator<Item = u64> {
        (0..SLOTS as u8).flat_map(|slot| self.used(slot))
    }

    /// From the first page that is mapped of a table and what is next to it, to the last.
    fn mapped_of_table(&self, process: usize, slot: u8) -> Option<Range<u64>> {
        let mapped = self.processes[process].reference.pages.range(self.around(slot));
        let mut mapped = mapped.map(|(&page, _)| page);
        let first = mapped.next()?;
        Some(first..mapped.next_back().unwrap_or(first) + 1)
    }

    /// Maps a table, with a block before it and one behind or without, and writes to some pages.
    fn map_table(&mut self, process: usize, slot: u8) -> Range<u64> {
        let start = self.slot(slot);
        let (before, behind) = (u64::from(slot / 4 % 2), u64::from(slot / 8 % 2));
        let range = start - before * self.block()..start + self.table() + behind * self.block();
        self.map(process, range.clone(), What::Anonymous, PROT_READ | PROT_WRITE, false);
        let used = self.used(slot).into_iter().filter(|page| range.contains(page));
        used.take(3).for_each(|page| self.kernel_writes(process, page));
        range
    }

    /// Does something with what is mapped of a table, or of another one, or of one that is mapped for it.
    pub(super) fn of_table(&mut self, cpu: usize, process: usize, slot: u8, what: OfTable) {
        let process = match what {
            // Of the process that the CPU has loaded.
            OfTable::Access { .. } => self.loaded[cpu].unwrap_or(process),
            _ => process,
        };
        let mut slots = (0..SLOTS as u8).map(|more| slot.wrapping_add(more));
        let found = slots.find_map(|slot| Some((slot, self.mapped_of_table(process, slot)?)));
        let (slot, range) = found.unwrap_or_else(|| (slot, self.map_table(process, slot)));
        match what {
            OfTable::Access { page, access, by } => {
                let pages = self.used(slot);
                self.touch(cpu, process, pages[usize::from(page) % pages.len()], access, by);
            }
            OfTable::Move { to, flags, blocks } => {
                // As much before the table there as here, so that it may move as it is; or a block more or less.
                let (block, len) = (self.block(), range.end - range.start);
                let around = self.around(to);
                let same = around.start + (range.start - self.around(slot).start);
                let target = match to / 4 % 8 {
                    0 if same >= around.start + block => same - block,
                    0 => same + block,
                    _ => same,
                };
                let new_len =
                    (len + block).saturating_sub(u64::from(blocks) * block).min(around.end - target);
                let new_len = if flags & MREMAP_DONTUNMAP == 0 { new_len } else { len };
                self.remap_to(process, range, target, new_len, flags);
            }
            OfTable::Protect { prot } => self.protect(process, &range, prot),
            OfTable::Forget { page } => {
                let pages = self.used(slot);
                let first = pages[usize::from(page) % pages.len()];
                self.advise(process, &(first..first + 1), MADV_DONTNEED);
            }
        }
    }
}
