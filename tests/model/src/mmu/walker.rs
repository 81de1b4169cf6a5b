//! Walks: what they put into the TLBs, and what maintenance takes out of them.
//!
//! A TLB holds everything that a walk could ever have yielded and that nothing has removed for certain. An operation
//! removes what no walk could have yielded since it was issued: so each entry knows when that was last the case.

use alloc::format;
use alloc::vec::Vec;

use super::bits::{self, AF, NON_GLOBAL, TTBR1_BASE, slot_of, upper_half};
use super::report::Rule;
use super::state::{Pending, State};
use super::tlb::{self, Leaf, Place, Tag, Walk, WalkPlace, fills};
use crate::descriptor::{Descriptor, decode, leaf_size, reachable_slots, root_level};

impl State {
    /// The addresses from which a table translates on a CPU, in its present context.
    pub(super) fn bases(&self, cpu: usize, table: usize) -> Vec<u64> {
        let this = &self.cpus[cpu];
        let mut bases = Vec::new();
        if this.ttbr0 == Some(table) {
            bases.push(0);
        }
        if this.ttbr1 == Some(table) {
            bases.push(TTBR1_BASE);
        }
        let current = |&&(asid, _, va): &&WalkPlace| asid == this.asid && self.root(cpu, va).is_some();
        bases.extend(this.tlb.reach(table).iter().filter(current).map(|&(_, _, va)| va));
        bases
    }

    fn root(&self, cpu: usize, va: u64) -> Option<usize> {
        let this = &self.cpus[cpu];
        if upper_half(va) { this.ttbr1 } else { this.ttbr0 }
    }

    /// The tables of a level that a walk for `va` may read, in the CPU's present context. `hidden` are cached
    /// descriptors that don't count.
    pub(super) fn tables_for(
        &self,
        cpu: usize,
        level: u8,
        va: u64,
        hidden: &[(WalkPlace, usize)],
    ) -> Vec<usize> {
        let Some(root) = self.root(cpu, va) else { return Vec::new() };
        if level == root_level(self.granule) {
            return alloc::vec![root];
        }
        let this = &self.cpus[cpu];
        let place = (this.asid, level - 1, va & !(leaf_size(self.granule, level - 1) - 1));
        let walks = this.tlb.walks(place).iter().map(|walk| walk.table);
        walks.filter(|&table| !hidden.contains(&(place, table))).collect()
    }

    pub(super) fn tag(&self, cpu: usize, value: u64) -> Tag {
        if value & NON_GLOBAL != 0 { Tag::Asid(self.cpus[cpu].asid) } else { Tag::Global }
    }

    /// A slot has a new value: whatever leads to it, TLBs may take it up.
    pub(super) fn fill_slot_everywhere(&mut self, table: usize, index: usize, raw: u64) {
        if index >= reachable_slots(self.granule, self.level(table)) {
            return;
        }
        for cpu in 0..self.cpus.len() {
            for base in self.bases(cpu, table) {
                let va = base + index as u64 * leaf_size(self.granule, self.level(table));
                self.check_kernel_fault(cpu, self.level(table), va, raw);
                self.fill(cpu, self.level(table), va, raw, false);
            }
        }
    }

    /// A walk on a CPU reads `raw` at a level for `va`.
    fn fill(&mut self, cpu: usize, level: u8, va: u64, raw: u64, rescan: bool) {
        match decode(self.granule, level, raw) {
            // Never cached (RXCLRD).
            Descriptor::Invalid | Descriptor::Reserved => {}
            Descriptor::Leaf(_) if raw & AF == 0 => {}
            Descriptor::Leaf(_) => self.fill_leaf(cpu, level, va, raw),
            Descriptor::Table(pa) => self.fill_walk(cpu, level, va, pa, rescan),
        }
    }

    fn fill_leaf(&mut self, cpu: usize, level: u8, va: u64, raw: u64) {
        let value = bits::cached_part(raw);
        let tag = self.tag(cpu, value);
        let place = Place { level, va, tag };
        self.add_leaf(cpu, place, value, true);
        if self.cpus[cpu].tlb.holds_whole(place, value) {
            return;
        }
        for (other, value) in fills(self.granule, level, va, value).filter(|(other, _)| *other != va) {
            self.add_leaf(cpu, Place { va: other, ..place }, value, false);
        }
        self.cpus[cpu].tlb.is_whole(place, value);
    }

    fn add_leaf(&mut self, cpu: usize, place: Place, value: u64, always_judge: bool) {
        let new = !self.cpus[cpu].tlb.holds(place, value);
        if new {
            self.check_new_leaf(cpu, place, value);
            let fresh = self.clock;
            self.cpus[cpu].tlb.insert(place, Leaf { value, fresh });
        }
        if new || always_judge {
            self.check_against_reference(cpu, place, value);
        }
    }

    fn fill_walk(&mut self, cpu: usize, level: u8, va: u64, pa: u64, rescan: bool) {
        let child = self.table_at(pa).filter(|&child| self.level(child) == level + 1);
        let Some(child) = child else {
            return self.log.violation(Rule::LeadsNowhere, Some(cpu), Some(va), || {
                format!("a level {level} descriptor leads to {pa:#x}, where no table of the next level is")
            });
        };
        self.check_link(cpu, child, Some(va));
        let place = (self.cpus[cpu].asid, level, va);
        let known = self.cpus[cpu].tlb.walks(place).iter().any(|walk| walk.table == child);
        if !known {
            self.check_new_walk(cpu, place, child);
            let fresh = self.clock;
            self.cpus[cpu].tlb.insert_walk(place, Walk { table: child, fresh });
        }
        if !known || rescan {
            self.scan(cpu, child, va, rescan);
        }
    }

    /// Everything that walks may read in a table.
    fn scan(&mut self, cpu: usize, table: usize, base: u64, rescan: bool) {
        let level = self.level(table);
        let reachable = reachable_slots(self.granule, level);
        for index in self.tables[table].used().into_iter().take_while(|&index| index < reachable) {
            let va = base + index as u64 * leaf_size(self.granule, level);
            let values: Vec<u64> = self.tables[table].possible(index).collect();
            values.into_iter().for_each(|raw| self.fill(cpu, level, va, raw, rescan));
        }
    }

    /// Everything that walks on a CPU may yield in its present context.
    pub(super) fn fill_context(&mut self, cpu: usize) {
        let (ttbr0, ttbr1, asid) = (self.cpus[cpu].ttbr0, self.cpus[cpu].ttbr1, self.cpus[cpu].asid);
        for (root, base) in [(ttbr0, 0), (ttbr1, TTBR1_BASE)] {
            if let Some(root) = root {
                self.scan(cpu, root, base, true);
            }
        }
        // Descriptors that were cached in an earlier use of the ASID.
        for ((of, _, va), walk) in self.cpus[cpu].tlb.all_walks() {
            if of == asid && self.root(cpu, va).is_some() {
                self.scan(cpu, walk.table, va, true);
            }
        }
    }

    /// Until now a walk could read `raw` in a slot, and no more.
    pub(super) fn stamp_slot(&mut self, table: usize, index: usize, raw: u64) {
        let (level, now) = (self.level(table), self.clock);
        let decoded = decode(self.granule, level, raw);
        for cpu in 0..self.cpus.len() {
            for base in self.bases(cpu, table) {
                let va = base + index as u64 * leaf_size(self.granule, level);
                match decoded {
                    Descriptor::Invalid | Descriptor::Reserved => {}
                    Descriptor::Leaf(_) => {
                        let value = bits::cached_part(raw);
                        let tag = self.tag(cpu, value);
                        self.cpus[cpu].tlb.stamp_filled(Place { level, va, tag }, value, now);
                    }
                    Descriptor::Table(pa) => {
                        let (place, child) = ((self.cpus[cpu].asid, level, va), self.table_at(pa));
                        self.cpus[cpu].tlb.stamp_walk(place, now, |table| Some(table) == child);
                    }
                }
            }
        }
    }

    /// Whether a walk on a CPU may yield a leaf now.
    pub(super) fn derivable(
        &self,
        cpu: usize,
        place: Place,
        value: u64,
        hidden: &[(WalkPlace, usize)],
    ) -> bool {
        let Place { level, va, tag } = place;
        if tag != self.tag(cpu, value) {
            return false;
        }
        let slot = slot_of(self.granule, level, va);
        self.tables_for(cpu, level, va, hidden).into_iter().any(|table| {
            let yields = |index: usize| {
                self.tables[table].possible(index).any(|raw| {
                    let leaf =
                        raw & AF != 0 && matches!(decode(self.granule, level, raw), Descriptor::Leaf(_));
                    let (size, group) = (leaf_size(self.granule, level), self.granule.cont_entries(level));
                    let cached = bits::cached_part(raw);
                    let filled = || bits::of_group(cached, index % group, slot % group, size, group);
                    leaf && if index == slot { cached == value } else { filled() == value }
                })
            };
            if yields(slot) {
                return true;
            }
            let group = self.granule.cont_entries(level);
            let first = slot - slot % group;
            value & bits::CONTIGUOUS != 0
                && (first..first + group).any(|index| index != slot && yields(index))
        })
    }

    /// Whether a walk on a CPU may yield a cached table descriptor now.
    fn walk_derivable(
        &self,
        cpu: usize,
        place: WalkPlace,
        child: usize,
        hidden: &[(WalkPlace, usize)],
    ) -> bool {
        let (asid, level, va) = place;
        if asid != self.cpus[cpu].asid {
            return false;
        }
        let pa = self.tables[child].frame.pa().get();
        let slot = slot_of(self.granule, level, va);
        self.tables_for(cpu, level, va, hidden).into_iter().any(|table| {
            let mut values = self.tables[table].possible(slot);
            values.any(|raw| decode(self.granule, level, raw) == Descriptor::Table(pa))
        })
    }

    /// Operations have been completed on a CPU: what they cover is gone, unless it may have come back since.
    pub(super) fn apply(&mut self, cpu: usize, operations: &[Pending]) {
        let mut gone: Vec<(WalkPlace, usize)> = Vec::new();
        for pending in operations {
            let hidden = self.covered_walks(cpu, pending);
            let (first, last) = self.span(pending.operation);
            let tag = |tag| tlb::covers_tag(pending.operation, tag);
            for (place, leaf) in self.cpus[cpu].tlb.leaves_within(first, last, tag) {
                if tlb::fits_level(self.granule, pending.operation, place.level)
                    && leaf.fresh < pending.at
                    && !self.derivable(cpu, place, leaf.value, &hidden)
                {
                    self.cpus[cpu].tlb.remove(place, leaf.value);
                }
            }
            gone.extend(hidden);
        }
        // By these descriptors walks could yield what is below them, until now.
        let now = self.clock;
        for &((_, level, va), _) in &gone {
            let last = va + (leaf_size(self.granule, level) - 1);
            for (place, leaf) in self.cpus[cpu].tlb.leaves_within(va, last, |_| true) {
                if self.derivable(cpu, place, leaf.value, &[]) {
                    self.cpus[cpu].tlb.stamp(place, leaf.value, now);
                }
            }
            for (place, walk) in self.cpus[cpu].tlb.walks_within(va, last) {
                if self.walk_derivable(cpu, place, walk.table, &[]) {
                    self.cpus[cpu].tlb.stamp_walk(place, now, |table| table == walk.table);
                }
            }
        }
        for (place, table) in gone {
            self.cpus[cpu].tlb.remove_walk(place, table);
        }
    }

    /// The cached table descriptors that an operation removes, those of upper levels first.
    fn covered_walks(&self, cpu: usize, pending: &Pending) -> Vec<(WalkPlace, usize)> {
        let mut covered = Vec::new();
        if !tlb::covers_walks(self.granule, pending.operation) {
            return covered;
        }
        let (first, last) = self.span(pending.operation);
        for (place, walk) in self.cpus[cpu].tlb.walks_within(first, last) {
            let matched = tlb::covers_tag(pending.operation, Tag::Asid(place.0));
            if matched && walk.fresh < pending.at && !self.walk_derivable(cpu, place, walk.table, &covered) {
                covered.push((place, walk.table));
            }
        }
        covered
    }
}
