//! The machine's state, and what happens to it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;

use arch::features::{BbmLevel, Hafdbs};
use arch::mmu::Slot;
use arch::tlbi::{Asid, Space, Tlbi};
use arch::{Granule, PhysAddr, TableFrame};

use super::Config;
use super::agent::Agent;
use super::bits::{self, CONTIGUOUS, DBM, DIRTY, RDONLY, VALID};
use super::memory::TableState;
use super::moment::Moment;
use super::reference::Reference;
use super::report::{Event, Log, Rule};
use super::tlb::{self, Tlb};
use crate::descriptor::{Descriptor, decode};

/// Where table frames begin: so high that every bit of an address field is used by some.
const FRAMES: u64 = 0xffff_f000_0000;

/// A CPU: what it translates by, what it may hold, and what it has not yet waited for.
pub(super) struct Cpu {
    pub(super) ttbr0: Option<usize>,
    pub(super) ttbr1: Option<usize>,
    /// Of the TTBR0 that was loaded last.
    pub(super) asid: u16,
    pub(super) tlb: Tlb,
    /// Slots that were stored to since the last DSB.
    unpublished: Vec<(usize, usize)>,
    /// Groups that were stored to since the last `dsb ish`: table, first slot.
    touched: BTreeSet<(usize, usize)>,
    /// Operations of its own that a DSB has completed for the others, and that still want an ISB here.
    before_isb: Vec<Pending>,
}

/// An operation that was issued, and when.
#[derive(Clone, Copy)]
pub(super) struct Pending {
    cpu: usize,
    pub(super) operation: Tlbi,
    pub(super) at: u64,
}

pub(super) struct State {
    pub(super) granule: Granule,
    pub(super) config: Config,
    pub(super) tables: Vec<TableState>,
    by_address: BTreeMap<usize, usize>,
    pub(super) cpus: Vec<Cpu>,
    pending: Vec<Pending>,
    pub(super) clock: u64,
    pub(super) reference: Reference,
    /// Addresses of frames that are free.
    pub(super) free_frames: BTreeSet<u64>,
    /// What is in a frame, where it is not something of its own.
    pub(super) contents: BTreeMap<u64, u64>,
    pub(super) agent: Option<Agent>,
    pub(super) moment: Option<Moment>,
    /// What a CPU has stored, and nobody has put into memory yet.
    pub(super) written: Option<(PhysAddr, u32)>,
    /// What was made visible to instruction fetches: first addresses, and bytes.
    pub(super) fetchable: Vec<(PhysAddr, u64)>,
    pub(super) log: Log,
}

impl State {
    pub(super) fn new(granule: Granule, config: Config) -> Self {
        let cpu = || Cpu {
            ttbr0: None,
            ttbr1: None,
            asid: 0,
            tlb: Tlb::new(granule),
            unpublished: Vec::new(),
            touched: BTreeSet::new(),
            before_isb: Vec::new(),
        };
        Self {
            granule,
            config,
            tables: Vec::new(),
            by_address: BTreeMap::new(),
            cpus: (0..config.cpus).map(|_| cpu()).collect(),
            pending: Vec::new(),
            clock: 0,
            reference: Reference::default(),
            free_frames: BTreeSet::new(),
            contents: BTreeMap::new(),
            agent: None,
            moment: None,
            written: None,
            fetchable: Vec::new(),
            log: Log::default(),
        }
    }

    fn tick(&mut self, event: Event) {
        self.clock += 1;
        self.log.event(event);
    }

    pub(super) fn add_table(&mut self, cpu: usize, level: u8, slots: Arc<[Slot]>) -> TableFrame {
        let index = self.tables.len();
        let pa = PhysAddr::new(FRAMES + index as u64 * self.granule.page_size());
        // SAFETY: the frame is given out once; `Machine::slots` finds it, zeroed and a page long.
        let frame = unsafe { TableFrame::new(pa, level) };
        self.by_address.insert(core::ptr::from_ref(&slots[0]).addr(), index);
        self.tables.push(TableState::new(frame, slots, cpu));
        frame
    }

    /// The table in the frame at a physical address, freed or not.
    pub(super) fn table_at(&self, pa: u64) -> Option<usize> {
        let index = usize::try_from(pa.checked_sub(FRAMES)? / self.granule.page_size()).ok()?;
        (index < self.tables.len()).then_some(index)
    }

    pub(super) fn table(&self, frame: TableFrame) -> usize {
        self.table_at(frame.pa().get()).expect("a table of this machine")
    }

    pub(super) fn find(&self, slot: &Slot) -> (usize, usize) {
        let address = core::ptr::from_ref(slot).addr();
        let (&start, &table) = self.by_address.range(..=address).next_back().expect("a slot of a table");
        (table, (address - start) / size_of::<Slot>())
    }

    pub(super) fn level(&self, table: usize) -> u8 {
        self.tables[table].frame.level()
    }

    /// Whether a change of size in place never aborts.
    pub(super) fn no_abort(&self) -> bool {
        self.config.bbm == BbmLevel::Level3
            || self.config.no_abort_listed && self.config.bbm >= BbmLevel::Level2
    }

    pub(super) fn store(&mut self, cpu: usize, table: usize, index: usize, new: u64, atomic: bool) {
        let old = self.tables[table].current(index);
        let frame = self.tables[table].frame;
        self.tick(Event::Store { cpu, table: frame, index, old, new });
        if !atomic {
            self.check_lost_dirty(cpu, table, index, old, new);
        }
        self.check_descriptor(cpu, table, index, new);
        self.tables[table].store(index, new, cpu);
        let group = self.granule.cont_entries(frame.level());
        self.cpus[cpu].unpublished.push((table, index));
        self.cpus[cpu].touched.insert((table, index - index % group));
        self.check_mixture(table, index, new);
        self.fill_slot_everywhere(table, index, new);
    }

    /// A store that is not one atomic step with a load of what was there: hardware may have been faster.
    fn check_lost_dirty(&mut self, cpu: usize, table: usize, index: usize, old: u64, new: u64) {
        let leaf = matches!(decode(self.granule, self.level(table), old), Descriptor::Leaf(_));
        let reachable = (0..self.cpus.len()).any(|cpu| !self.bases(cpu, table).is_empty());
        if self.config.hafdbs != Hafdbs::AfDbm || !leaf || !reachable || bits::dirty(new) {
            return;
        }
        let did = bits::hardware_dirty(old) && self.tables[table].has_unseen(index);
        let may = old & (DBM | RDONLY | DIRTY) == DBM | RDONLY;
        if did || may {
            let what = if did { "has" } else { "may have" };
            let frame = self.tables[table].frame;
            self.log.violation(Rule::LostDirty, Some(cpu), None, || {
                format!(
                    "slot {index} of table {}: a plain store of {new:#x} replaces {old:#x}, which hardware {what} \
                     made dirty since it was read",
                    frame.pa()
                )
            });
        }
    }

    fn check_descriptor(&mut self, cpu: usize, table: usize, index: usize, new: u64) {
        let frame = self.tables[table].frame;
        if !self.tables[table].live {
            self.log.violation(Rule::TableInUse, Some(cpu), None, || {
                format!("store to slot {index} of table {}, which is free", frame.pa())
            });
        }
        if decode(self.granule, frame.level(), new) == Descriptor::Reserved {
            self.log.violation(Rule::Reserved, Some(cpu), None, || {
                format!("slot {index} of table {} at level {}: {new:#x}", frame.pa(), frame.level())
            });
        }
    }

    /// No two valid members of a group may differ in the Contiguous bit: as memory is now, at any BBM level; as a walker
    /// may see it, where a change in place is not safe.
    fn check_mixture(&mut self, table: usize, index: usize, new: u64) {
        let state = &self.tables[table];
        let level = state.frame.level();
        let leaf = |raw: u64| matches!(decode(self.granule, level, raw), Descriptor::Leaf(_));
        let group = self.granule.cont_entries(level);
        if group == 1 || !leaf(new) {
            return;
        }
        let differs = |raw: u64| leaf(raw) && (raw ^ new) & CONTIGUOUS != 0;
        let members = index - index % group..index - index % group + group;
        let current = members.clone().map(|other| (other, state.current(other), true));
        let older = state.older_in(members).map(|(other, raw)| (other, raw, false));
        let mut seen = current.chain(older.filter(|_| !self.no_abort()));
        let other = seen.find(|&(other, raw, _)| other != index && differs(raw));
        if let Some((other, raw, current)) = other {
            let pa = state.frame.pa();
            self.log.violation(Rule::MixedGroup, None, None, || {
                let when = if current { "holds" } else { "may still be seen to hold" };
                format!("table {pa}: slot {index} holds {new:#x}, slot {other} of its group {when} {raw:#x}")
            });
        }
    }

    /// A DSB that waits for stores.
    pub(super) fn publish(&mut self, cpu: usize) {
        self.tick(Event::Publish(cpu));
        self.publish_stores(cpu);
    }

    fn publish_stores(&mut self, cpu: usize) {
        for table in self.tables.iter_mut().filter(|table| table.unpublished == Some(cpu)) {
            table.unpublished = None;
        }
        for (table, index) in mem::take(&mut self.cpus[cpu].unpublished) {
            for raw in self.tables[table].publish(index, cpu) {
                self.stamp_slot(table, index, raw);
            }
        }
    }

    pub(super) fn invalidate(&mut self, cpu: usize, operation: Tlbi) {
        self.tick(Event::Invalidate(cpu, operation));
        self.check_operation(cpu, operation);
        self.pending.push(Pending { cpu, operation, at: self.clock });
    }

    fn check_operation(&mut self, cpu: usize, operation: Tlbi) {
        let asid = match operation {
            Tlbi::All => None,
            Tlbi::Asid(asid) => Some(asid),
            Tlbi::Page { space, .. } | Tlbi::Range { space, .. } => match space {
                Space::All => None,
                Space::Asid(asid) => Some(asid),
            },
        };
        let reason = match operation {
            Tlbi::Range { .. } if !self.config.tlb_range => Some("this machine has no range operations"),
            Tlbi::Range { granule, .. } if granule != self.granule => Some("a range in another granule"),
            Tlbi::Range { start, level, .. }
                if !start.is_aligned(crate::descriptor::leaf_size(self.granule, level.unwrap_or(3))) =>
            {
                Some("a range that does not start at a leaf of its level")
            }
            _ if asid.is_some_and(|asid| self.asid_too_wide(asid)) => Some("an ASID of more than 8 bits"),
            _ => None,
        };
        if let Some(reason) = reason {
            self.log.violation(Rule::BadOperation, Some(cpu), None, || format!("{reason}: {operation:?}"));
        }
    }

    fn asid_too_wide(&self, asid: Asid) -> bool {
        u32::from(asid.get()) >> self.config.asid_bits != 0
    }

    /// `dsb ish`: waits for stores, and for the invalidations that this CPU has issued. On this CPU itself they count
    /// from the next ISB on, unless there is FEAT_ETS2.
    pub(super) fn complete(&mut self, cpu: usize) {
        self.tick(Event::Complete(cpu));
        let (mine, others): (Vec<_>, Vec<_>) = self.pending.iter().partition(|pending| pending.cpu == cpu);
        self.pending = others;
        for on in 0..self.cpus.len() {
            if on == cpu && !self.config.ets2 {
                self.cpus[cpu].before_isb.extend_from_slice(&mine);
            } else {
                self.apply(on, &mine);
            }
        }
        self.publish_stores(cpu);
        for (table, first) in mem::take(&mut self.cpus[cpu].touched) {
            self.check_group(cpu, table, first);
        }
    }

    pub(super) fn isb(&mut self, cpu: usize) {
        let pending = mem::take(&mut self.cpus[cpu].before_isb);
        if !pending.is_empty() {
            self.tick(Event::Isb(cpu));
            self.apply(cpu, &pending);
        }
    }

    /// `tlbi …; dsb nsh; isb`. What this CPU has stored is then seen by its own walker, but the others' may go on
    /// reading older values, so nothing is dropped: that only makes more possible.
    pub(super) fn invalidate_local(&mut self, cpu: usize, operation: Tlbi) {
        self.tick(Event::InvalidateLocal(cpu, operation));
        self.check_operation(cpu, operation);
        let at = self.clock;
        self.apply(cpu, &[Pending { cpu, operation, at }]);
    }

    /// The members of a group that have the Contiguous bit must be one translation by now.
    fn check_group(&mut self, cpu: usize, table: usize, first: usize) {
        let state = &self.tables[table];
        let level = state.frame.level();
        let (group, size) =
            (self.granule.cont_entries(level), crate::descriptor::leaf_size(self.granule, level));
        let mut common = None;
        for at in 0..group {
            let raw = state.current(first + at);
            let leaf = matches!(decode(self.granule, level, raw), Descriptor::Leaf(_));
            if !leaf || raw & CONTIGUOUS == 0 {
                continue;
            }
            let value = bits::group_value(raw, at, size, group);
            if value.is_none() || common.is_some_and(|common| common != value) {
                let pa = state.frame.pa();
                return self.log.violation(Rule::InconsistentGroup, Some(cpu), None, || {
                    format!("table {pa}: slot {} of a Contiguous group holds {raw:#x}", first + at)
                });
            }
            common = Some(value);
        }
    }

    /// Loads a TTBR, and makes that visible.
    pub(super) fn load_ttbr(&mut self, cpu: usize, root: Option<TableFrame>, asid: Option<Asid>) {
        self.tick(Event::Load(cpu, root, asid));
        if let Some(asid) = asid
            && self.asid_too_wide(asid)
        {
            self.log.violation(Rule::BadOperation, Some(cpu), None, || format!("TTBR0 with {asid:?}"));
        }
        let root = root.map(|frame| self.table(frame));
        if let Some(root) = root {
            self.check_link(cpu, root, None);
        }
        let now = self.clock;
        let this = &mut self.cpus[cpu];
        this.tlb.stamp_all(now);
        match asid {
            Some(asid) => (this.ttbr0, this.asid) = (root, asid.get()),
            None => this.ttbr1 = root,
        }
        self.fill_context(cpu);
    }

    pub(super) fn free_table(&mut self, frame: TableFrame) {
        self.tick(Event::FreeTable(frame));
        let freed = self.table(frame);
        for (cpu, this) in self.cpus.iter().enumerate() {
            let loaded = this.ttbr0 == Some(freed) || this.ttbr1 == Some(freed);
            let cached = this.tlb.reach(freed).first().copied();
            if loaded || cached.is_some() {
                self.log.violation(Rule::TableInUse, Some(cpu), cached.map(|(.., va)| va), || match cached {
                    Some((asid, level, _)) => format!(
                        "table {} is freed; a cached level {level} descriptor for ASID {asid} leads to it",
                        frame.pa()
                    ),
                    None => format!("table {} is freed; a TTBR leads to it", frame.pa()),
                });
            }
        }
        let leads =
            |raw: u64, level: u8| decode(self.granule, level, raw) == Descriptor::Table(frame.pa().get());
        for table in self.tables.iter().filter(|t| t.live && t.frame.level() + 1 == frame.level()) {
            for index in table.used() {
                if table.possible(index).any(|raw| leads(raw, table.frame.level())) {
                    self.log.violation(Rule::TableInUse, None, None, || {
                        format!(
                            "table {} is freed; slot {index} of {} leads to it",
                            frame.pa(),
                            table.frame.pa()
                        )
                    });
                }
            }
        }
        self.tables[freed].live = false;
    }

    pub(super) fn free_frame(&mut self, pa: u64) {
        self.tick(Event::FreeFrame(pa));
        self.free_frames.insert(pa);
        for cpu in 0..self.cpus.len() {
            for (place, leaf) in self.cpus[cpu].tlb.leaves_within(0, u64::MAX, |_| true) {
                self.check_frame(cpu, place, leaf.value);
            }
        }
    }

    /// Reads a slot as a CPU does.
    pub(super) fn load(&mut self, table: usize, index: usize) -> u64 {
        self.tables[table].seen(index);
        self.tables[table].current(index)
    }

    /// Whether all these slots hold invalid entries, as [`arch::Mmu::store_block`] wants it.
    pub(super) fn check_block(&mut self, cpu: usize, slots: &[Slot]) {
        if let Some(slot) = slots.iter().find(|slot| slot.load() & VALID != 0) {
            let (table, index) = self.find(slot);
            let (pa, raw) = (self.tables[table].frame.pa(), slot.load());
            self.log.violation(Rule::StoreOverValid, Some(cpu), None, || {
                format!("slot {index} of table {pa} holds {raw:#x}")
            });
        }
    }

    /// The addresses that an operation is for.
    pub(super) fn span(&self, operation: Tlbi) -> (u64, u64) {
        tlb::span(self.granule, operation).unwrap_or((0, u64::MAX))
    }
}
