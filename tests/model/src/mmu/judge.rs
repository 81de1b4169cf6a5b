//! What is judged at each new TLB entry: whether it may be there beside the others, and whether the specification
//! knows it.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use arch::VirtAddr;
use arch::features::{BbmLevel, Hafdbs};

use super::bits::{self, ADDRESS, CONTIGUOUS, DBM, slot_of, upper_half};
use super::reference::{AddressSpace, Operation, Page, Verdict, describe};
use super::report::{Event, Rule};
use super::state::State;
use super::tlb::{Place, Tag, WalkPlace};
use crate::descriptor::{Descriptor, decode, leaf_size, root_level};

/// A cached leaf, for people.
struct Shown(Place, u64);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(Place { level, va, tag }, value) = self;
        write!(f, "level {level} {tag:?} {va:#x} -> ")?;
        describe(f, *value)
    }
}

impl State {
    /// A leaf that was not in the TLB is about to be.
    pub(super) fn check_new_leaf(&mut self, cpu: usize, place: Place, value: u64) {
        let others: Vec<u64> = self.cpus[cpu].tlb.leaves(place).iter().map(|leaf| leaf.value).collect();
        for other in others {
            self.check_pair(cpu, (place, value), (place, other));
        }
        if self.cpus[cpu].tlb.has_other_size(place, value)
            && let Some(rule) = self.size_rule(true)
        {
            self.log.violation(rule, Some(cpu), Some(place.va), || {
                format!("{} beside an entry of its group with another Contiguous bit", Shown(place, value))
            });
        }
        self.check_other_tags(cpu, place, value);
        self.check_other_levels(cpu, place, value);
        self.check_frame(cpu, place, value);
    }

    /// Two leaves that translate some address in common, for one context, can be in one TLB.
    fn check_pair(&mut self, cpu: usize, new: (Place, u64), old: (Place, u64)) {
        let ((place, value), (other_place, other)) = (new, old);
        let va = place.va.max(other_place.va);
        let pa = |(place, value): (Place, u64)| (value & ADDRESS) + (va - place.va);
        let frame = |pa: u64| self.contents.get(&pa).copied().unwrap_or(pa);
        let writable = |value: u64| bits::writable(value) || value & DBM != 0;
        let copies = frame(pa(new)) == frame(pa(old)) && !writable(value) && !writable(other);
        if bits::memory_differs(value, other) || pa(new) != pa(old) && !copies {
            self.log.violation(Rule::BreakBeforeMake, Some(cpu), Some(va), || {
                format!("a TLB may hold {} beside {}", Shown(place, value), Shown(other_place, other))
            });
        }
        if place.level != other_place.level
            && let Some(rule) = self.size_rule(false)
        {
            self.log.violation(rule, Some(cpu), Some(va), || {
                format!("a TLB may hold {} beside {}", Shown(place, value), Shown(other_place, other))
            });
        }
    }

    /// What a change of size in place breaks on this machine: of the Contiguous bit alone, or of the level.
    pub(super) fn size_rule(&self, contiguous: bool) -> Option<Rule> {
        match self.config.bbm {
            _ if self.no_abort() => None,
            BbmLevel::Level0 => Some(Rule::SizeChange),
            BbmLevel::Level1 if !contiguous => Some(Rule::SizeChange),
            _ if self.config.conflict_aborts_handled => None,
            _ => Some(Rule::ConflictAbort),
        }
    }

    fn check_other_tags(&mut self, cpu: usize, place: Place, value: u64) {
        let last = place.va + (leaf_size(self.granule, place.level) - 1);
        let tlb = &self.cpus[cpu].tlb;
        let overlap = match place.tag {
            Tag::Asid(_) if tlb.count_global() == 0 => None,
            Tag::Asid(_) => tlb.leaves_within(place.va, last, |tag| tag == Tag::Global).pop(),
            Tag::Global => tlb.leaves_within(place.va, last, |tag| tag != Tag::Global).pop(),
        };
        if let Some((other, leaf)) = overlap {
            self.log.violation(Rule::GlobalOverlap, Some(cpu), Some(place.va), || {
                format!("a TLB may hold {} beside {}", Shown(place, value), Shown(other, leaf.value))
            });
        }
    }

    fn check_other_levels(&mut self, cpu: usize, place: Place, value: u64) {
        let tlb = &self.cpus[cpu].tlb;
        let last = place.va + (leaf_size(self.granule, place.level) - 1);
        if (0..=3).any(|level| level != place.level && tlb.count(level) > 0) {
            for (other, leaf) in tlb.leaves_within(place.va, last, |tag| tag == place.tag) {
                if other.level != place.level {
                    self.check_pair(cpu, (place, value), (other, leaf.value));
                }
            }
        }
        let walk = (self.cpus[cpu].asid, place.level, place.va);
        if !self.cpus[cpu].tlb.walks(walk).is_empty()
            && let Some(rule) = self.size_rule(false)
        {
            self.log.violation(rule, Some(cpu), Some(place.va), || {
                format!(
                    "a TLB may hold {} beside a table descriptor for the same addresses",
                    Shown(place, value)
                )
            });
        }
    }

    /// A table descriptor that was not cached is about to be.
    pub(super) fn check_new_walk(&mut self, cpu: usize, place: WalkPlace, child: usize) {
        let (asid, level, va) = place;
        if let Some(other) = self.cpus[cpu].tlb.walks(place).first() {
            let (old, new) = (self.tables[other.table].frame.pa(), self.tables[child].frame.pa());
            self.log.violation(Rule::BreakBeforeMake, Some(cpu), Some(va), || {
                format!("level {level} descriptors for ASID {asid} to tables {old} and {new} may be cached together")
            });
        }
        let leaf = [Tag::Asid(asid), Tag::Global].into_iter().find_map(|tag| {
            let place = Place { level, va, tag };
            self.cpus[cpu].tlb.leaves(place).first().map(|leaf| Shown(place, leaf.value))
        });
        if let (Some(leaf), Some(rule)) = (leaf, self.size_rule(false)) {
            self.log.violation(rule, Some(cpu), Some(va), || {
                format!("a TLB may hold {leaf} beside a table descriptor for the same addresses")
            });
        }
    }

    /// A walk of a CPU is led to a table.
    pub(super) fn check_link(&mut self, cpu: usize, child: usize, va: Option<u64>) {
        let table = &self.tables[child];
        let pa = table.frame.pa();
        if !table.live {
            self.log.violation(Rule::TableInUse, Some(cpu), va, || {
                format!("a walk reads table {pa}, which is free")
            });
        } else if let Some(by) = table.unpublished {
            self.log.violation(Rule::TableNotPublished, Some(cpu), va, || {
                format!("a walk reads table {pa}, whose zeroes cpu {by} has not published")
            });
        }
    }

    /// A TLB must not translate to a free frame.
    pub(super) fn check_frame(&mut self, cpu: usize, place: Place, value: u64) {
        let first = value & ADDRESS;
        let last = first + (leaf_size(self.granule, place.level) - 1);
        if let Some(&frame) = self.free_frames.range(first..=last).next() {
            self.log.violation(Rule::FrameInUse, Some(cpu), Some(place.va), || {
                format!("frame {frame:#x} is free, and a TLB may hold {}", Shown(place, value))
            });
        }
    }

    /// What a TLB may hold must be what the specification allows at this time.
    pub(super) fn check_against_reference(&mut self, cpu: usize, place: Place, value: u64) {
        let spaces: Vec<AddressSpace> = match (upper_half(place.va), place.tag) {
            (true, _) => {
                [AddressSpace::Kernel].into_iter().filter(|&s| self.reference.is_watched(s)).collect()
            }
            (false, Tag::Asid(asid)) => {
                let space = AddressSpace::User(arch::tlbi::Asid::new(asid));
                [space].into_iter().filter(|&s| self.reference.is_watched(s)).collect()
            }
            // It would match every ASID.
            (false, Tag::Global) => self.reference.watched().filter(|&s| s != AddressSpace::Kernel).collect(),
        };
        for space in spaces {
            self.check_in_space(cpu, space, place, value);
        }
    }

    fn check_in_space(&mut self, cpu: usize, space: AddressSpace, place: Place, value: u64) {
        let (size, page) = (leaf_size(self.granule, place.level), self.granule.page_size());
        let not_allowed = if place.level == 3 {
            self.why_not(cpu, space, place, place.va, value).map(|why| (place.va, why))
        } else {
            let pages = self.reference.pages_within(space, place.va, place.va + (size - 1));
            if (pages.len() as u64) < size / page {
                Some((place.va, String::from("not all of its pages are mapped")))
            } else {
                pages.into_iter().find_map(|va| {
                    let value = value + (va - place.va);
                    self.why_not(cpu, space, place, va, value).map(|why| (va, why))
                })
            }
        };
        if let Some((va, why)) = not_allowed {
            self.log.violation(Rule::Stale, Some(cpu), Some(va), || {
                format!("a TLB may hold {}, but {why}", Shown(place, value))
            });
        }
    }

    /// Why a translation is not allowed.
    fn why_not(&self, cpu: usize, space: AddressSpace, place: Place, va: u64, value: u64) -> Option<String> {
        let mut why = String::from("nothing is mapped there");
        for page in self.reference.allowed(space, va).flatten() {
            let gives = match page.permits(value) {
                Verdict::Permitted => return None,
                Verdict::IfDirty if self.known_dirty(cpu, place, value) => return None,
                Verdict::IfDirty => "writes that are not noticed: the page is clean",
                Verdict::IfNoDbm if !self.may_become_writable(cpu, place, value) => return None,
                Verdict::IfNoDbm => "permission to write, since hardware finds DBM in memory",
                Verdict::Not(what) => what,
            };
            why = format!("{page} does not give {gives}");
        }
        Some(why)
    }

    /// The entries in memory by which software knows of the page that a leaf translates: the page's own, and those of its
    /// group if either they or the leaf are Contiguous.
    fn in_memory(&self, cpu: usize, place: Place, value: u64) -> Vec<u64> {
        let slot = slot_of(self.granule, place.level, place.va);
        let group = self.granule.cont_entries(place.level);
        let first = slot - slot % group;
        let leaf = |raw: u64| matches!(decode(self.granule, place.level, raw), Descriptor::Leaf(_));
        let mut found = Vec::new();
        for table in self.tables_of(cpu, place) {
            let own = self.tables[table].current(slot);
            if value & CONTIGUOUS != 0 || leaf(own) && own & CONTIGUOUS != 0 {
                let members = (first..first + group).map(|index| self.tables[table].current(index));
                found.extend(members.filter(|&raw| leaf(raw) && raw & CONTIGUOUS != 0));
            }
            found.extend(Some(own).filter(|&raw| leaf(raw)));
        }
        found
    }

    /// The tables that have the entry for a cached leaf, whatever the CPU's context is by now.
    fn tables_of(&self, cpu: usize, place: Place) -> Vec<usize> {
        let asid = match place.tag {
            Tag::Asid(asid) => asid,
            Tag::Global => self.cpus[cpu].asid,
        };
        if asid == self.cpus[cpu].asid {
            return self.tables_for(cpu, place.level, place.va, &[]);
        }
        let Some(above) = place.level.checked_sub(1) else { return Vec::new() };
        let va = place.va & !(leaf_size(self.granule, above) - 1);
        self.cpus[cpu].tlb.walks((asid, above, va)).iter().map(|walk| walk.table).collect()
    }

    /// Whether software finds out that the page is dirty.
    fn known_dirty(&self, cpu: usize, place: Place, value: u64) -> bool {
        self.in_memory(cpu, place, value).into_iter().any(bits::dirty)
    }

    /// Whether hardware may make the page writable.
    pub(super) fn may_become_writable(&self, cpu: usize, place: Place, value: u64) -> bool {
        let size = leaf_size(self.granule, place.level);
        let group = size * self.granule.cont_entries(place.level) as u64;
        let same = |raw: u64| (raw ^ value) & ADDRESS & !(group - 1) == 0;
        self.config.hafdbs == Hafdbs::AfDbm
            && self.in_memory(cpu, place, value).into_iter().any(|raw| raw & DBM != 0 && same(raw))
    }

    /// A value that appears in memory must not make an access fault where that is not allowed.
    pub(super) fn check_kernel_fault(&mut self, cpu: usize, level: u8, va: u64, raw: u64) {
        if !upper_half(va) || !self.reference.is_watched(AddressSpace::Kernel) || !self.faults(level, raw) {
            return;
        }
        let last = va + (leaf_size(self.granule, level) - 1);
        for va in self.reference.pages_within(AddressSpace::Kernel, va, last) {
            if self.reference.allowed(AddressSpace::Kernel, va).all(|page| page.is_some()) {
                self.log.violation(Rule::KernelFault, Some(cpu), Some(va), || {
                    format!("an access may fault by {raw:#x} at level {level}; it is mapped all the time")
                });
            }
        }
    }

    /// Whether a walk that reads `raw` ends in a fault.
    pub(super) fn faults(&self, level: u8, raw: u64) -> bool {
        match decode(self.granule, level, raw) {
            Descriptor::Invalid | Descriptor::Reserved => true,
            Descriptor::Leaf(_) => raw & bits::AF == 0 && self.config.hafdbs == Hafdbs::None,
            Descriptor::Table(_) => false,
        }
    }

    pub(super) fn watch(&mut self, space: AddressSpace) {
        self.reference.watch(space);
        self.audit();
    }

    pub(super) fn begin(&mut self, space: AddressSpace, pages: &[(VirtAddr, Option<Page>)]) -> Operation {
        let operation = self.reference.begin(space, pages);
        self.log.event(Event::Operation(operation.0, true));
        operation
    }

    /// From now on an operation is complete: only what it has brought about may be seen.
    pub(super) fn end(&mut self, operation: Operation) {
        self.log.event(Event::Operation(operation.0, false));
        for (space, va) in self.reference.end(operation) {
            self.check_page(space, va);
        }
    }

    fn check_page(&mut self, space: AddressSpace, va: u64) {
        if !self.reference.is_watched(space) {
            return;
        }
        let last = va + (self.granule.page_size() - 1);
        let tag = |tag: Tag| match (space, tag) {
            (AddressSpace::User(asid), Tag::Asid(other)) => asid.get() == other,
            _ => true,
        };
        for cpu in 0..self.cpus.len() {
            for (place, leaf) in self.cpus[cpu].tlb.leaves_within(va, last, tag) {
                self.check_against_reference(cpu, place, leaf.value);
            }
            let mapped = || self.reference.allowed(space, va).all(|page| page.is_some());
            if space == AddressSpace::Kernel
                && self.cpus[cpu].ttbr1.is_some()
                && mapped()
                && self.may_fault(cpu, va)
            {
                self.log.violation(Rule::KernelFault, Some(cpu), Some(va), || {
                    String::from("an access may fault by a walk; it is mapped all the time")
                });
            }
        }
    }

    /// Whether a walk for an address may end in a fault.
    fn may_fault(&self, cpu: usize, va: u64) -> bool {
        (root_level(self.granule)..=3).any(|level| {
            let slot = slot_of(self.granule, level, va);
            self.tables_for(cpu, level, va, &[])
                .into_iter()
                .any(|table| self.tables[table].possible(slot).any(|raw| self.faults(level, raw)))
        })
    }

    /// Judges everything that any TLB may hold by the specification of this moment.
    pub(super) fn audit(&mut self) {
        for cpu in 0..self.cpus.len() {
            for (place, leaf) in self.cpus[cpu].tlb.leaves_within(0, u64::MAX, |_| true) {
                self.check_against_reference(cpu, place, leaf.value);
                self.check_frame(cpu, place, leaf.value);
            }
        }
        if self.reference.is_watched(AddressSpace::Kernel) {
            for va in self.reference.pages_within(AddressSpace::Kernel, 0, u64::MAX) {
                self.check_page(AddressSpace::Kernel, va);
            }
        }
    }
}
