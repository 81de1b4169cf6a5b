//! Hardware that sets access flags and dirty states, where and when it may.

use alloc::vec::Vec;

use arch::TableFrame;
use arch::features::Hafdbs;

use super::bits::{AF, DBM, RDONLY};
use super::report::Event;
use super::state::State;
use crate::descriptor::{Descriptor, decode, reachable_slots};

/// What hardware may set in a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Flag {
    /// The access flag.
    Accessed,
    /// The dirty state, and the access flag with it.
    Dirty,
}

/// One update that hardware may make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Update {
    /// The CPU whose walker makes it.
    pub cpu: usize,
    /// The table.
    pub table: TableFrame,
    /// The slot in it.
    pub index: usize,
    /// What it sets.
    pub flag: Flag,
}

/// Makes updates at random, near the slots that software is busy with.
pub(super) struct Agent {
    random: u64,
    /// 0 for none.
    one_in: u32,
    done: Vec<Update>,
}

impl Agent {
    pub(super) fn new(seed: u64, one_in: u32) -> Self {
        // The generator must not begin at zero.
        Self { random: seed ^ 0x9e37_79b9_7f4a_7c15 | 1, one_in: one_in.max(1), done: Vec::new() }
    }

    /// A number below `bound`: xorshift64.
    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as usize % bound
    }
}

/// What a descriptor becomes by an update, if it may be made.
fn updated(hafdbs: Hafdbs, raw: u64, flag: Flag) -> Option<u64> {
    match flag {
        Flag::Accessed if hafdbs >= Hafdbs::Af && raw & AF == 0 => Some(raw | AF),
        Flag::Dirty if hafdbs == Hafdbs::AfDbm && raw & (DBM | RDONLY) == DBM | RDONLY => {
            Some((raw | AF) & !RDONLY)
        }
        Flag::Accessed | Flag::Dirty => None,
    }
}

impl State {
    /// Every update that hardware may make now: to any entry that a walk can reach.
    pub(super) fn agent_choices(&self) -> Vec<Update> {
        let mut choices = Vec::new();
        for (cpu, table) in (0..self.cpus.len()).flat_map(|cpu| (0..self.tables.len()).map(move |t| (cpu, t)))
        {
            if self.bases(cpu, table).is_empty() {
                continue;
            }
            let (frame, level) = (self.tables[table].frame, self.level(table));
            for index in self.tables[table].used() {
                let flags = [Flag::Accessed, Flag::Dirty].into_iter();
                let updates = flags.map(|flag| Update { cpu, table: frame, index, flag });
                choices.extend(
                    updates
                        .filter(|_| index < reachable_slots(self.granule, level))
                        .filter(|update| self.new_value(table, index, update.flag).is_some()),
                );
            }
        }
        choices
    }

    fn new_value(&self, table: usize, index: usize, flag: Flag) -> Option<u64> {
        let raw = self.tables[table].current(index);
        let leaf = matches!(decode(self.granule, self.level(table), raw), Descriptor::Leaf(_));
        if leaf { updated(self.config.hafdbs, raw, flag) } else { None }
    }

    /// Makes an update, in one atomic step, if memory still has what it needs. Whether it does.
    pub(super) fn agent_do(&mut self, update: Update) -> bool {
        let Update { cpu, table: frame, index, flag } = update;
        let table = self.table(frame);
        if self.bases(cpu, table).is_empty() {
            return false;
        }
        let Some(new) = self.new_value(table, index, flag) else { return false };
        let old = self.tables[table].current(index);
        self.clock += 1;
        self.log.event(Event::Update { cpu, table: frame, index, old, new });
        self.tables[table].update(index, new, flag == Flag::Dirty);
        self.stamp_slot(table, index, old);
        self.fill_slot_everywhere(table, index, new);
        true
    }

    /// Software is about to touch a slot, or has just done so: at times hardware is faster.
    pub(super) fn agent_near(&mut self, table: usize, index: usize) {
        let Some(agent) = &mut self.agent else { return };
        let one_in = agent.one_in as usize;
        if one_in == 0 || agent.below(one_in) != 0 {
            return;
        }
        let frame = self.tables[table].frame;
        let group = self.granule.cont_entries(frame.level());
        let near = index - index % group + agent.below(group);
        let cpu = agent.below(self.cpus.len());
        let flag = if agent.below(2) == 0 { Flag::Accessed } else { Flag::Dirty };
        let update = Update { cpu, table: frame, index: near, flag };
        if self.agent_do(update)
            && let Some(agent) = &mut self.agent
        {
            agent.done.push(update);
        }
    }

    pub(super) fn agent_rests(&mut self) {
        if let Some(agent) = &mut self.agent {
            agent.one_in = 0;
        }
    }

    /// The updates that the random agent has made since this was last asked.
    pub(super) fn take_updates(&mut self) -> Vec<Update> {
        self.agent.as_mut().map_or_else(Vec::new, |agent| core::mem::take(&mut agent.done))
    }
}
