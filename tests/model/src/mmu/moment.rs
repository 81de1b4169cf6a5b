//! A store by EL0 at one moment of what software does, so that a test can go through all of them.

use alloc::vec::Vec;

use arch::granule::LAST_LEVEL;
use arch::{PhysAddr, VirtAddr};

use super::access::{Access, Kind, Outcome};
use super::agent::{Flag, Update};
use super::bits::{CONTIGUOUS, slot_of};
use super::state::State;

/// A store that a CPU makes at EL0, in the context that it has loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Write {
    /// The CPU.
    pub cpu: usize,
    /// The address.
    pub va: VirtAddr,
    /// What it stores.
    pub value: u32,
    /// Of a folded block, the page whose entry hardware makes dirty, by its number in the block.
    pub by: usize,
    /// Where both are possible, it goes by what says dirty already, and makes no entry dirty.
    pub stale: bool,
}

/// What came of a [`Write`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Came {
    /// Software was done before.
    NotReached,
    /// It faulted, and nothing is written.
    Faulted,
    /// It was done.
    Done {
        /// Where.
        pa: PhysAddr,
        /// It could be done by what says dirty already, and by making an entry dirty.
        both: bool,
    },
}

/// When, and what came of it.
pub(super) struct Moment {
    /// Steps before it.
    left: u64,
    write: Write,
    /// Places in last-level tables.
    near: Vec<usize>,
    came: Came,
}

impl State {
    pub(super) fn write_before(&mut self, number: u64, write: Write, near: &[VirtAddr]) {
        let near = near.iter().map(|va| slot_of(self.granule, LAST_LEVEL, va.get())).collect();
        self.moment = Some(Moment { left: number, write, near, came: Came::NotReached });
    }

    pub(super) fn moment_is_over(&mut self) -> Came {
        self.moment.take().map_or(Came::NotReached, |moment| moment.came)
    }

    /// Software is about to access a slot.
    pub(super) fn step_at(&mut self, table: usize, index: usize) {
        if self.moment.as_ref().is_some_and(|moment| moment.near.contains(&index))
            && self.level(table) == LAST_LEVEL
        {
            self.step();
        }
    }

    /// Software is about to do something that may make a difference.
    pub(super) fn step(&mut self) {
        let Some(moment) = self.moment.as_mut().filter(|moment| moment.came == Came::NotReached) else {
            return;
        };
        if moment.left > 0 {
            moment.left -= 1;
            return;
        }
        let write = moment.write;
        let came = self.write_at_el0(write);
        if let Came::Done { pa, .. } = came {
            self.written = Some((pa, write.value));
        }
        if let Some(moment) = &mut self.moment {
            moment.came = came;
        }
    }

    /// Does the store if it may be done, with what it sets in an entry.
    fn write_at_el0(&mut self, write: Write) -> Came {
        const ACCESS: Access = Access { kind: Kind::Write, privileged: false };
        let Write { cpu, va, by, stale, .. } = write;
        let va = va.get();
        let outcomes = self.access(cpu, va, ACCESS);
        let find = |dirties: bool| {
            outcomes.iter().find_map(|&outcome| match outcome {
                Outcome::Done(pa) if !dirties => Some(pa),
                Outcome::DoneAndDirty(pa) if dirties => Some(pa),
                _ => None,
            })
        };
        let (plain, dirties) = (find(false), find(true));
        let both = plain.is_some() && dirties.is_some();
        match (plain, dirties) {
            (Some(pa), None) => {
                if !self.hits(cpu, va, ACCESS, Outcome::Done(pa)) {
                    self.set_flag(cpu, va, by, Flag::Accessed);
                }
                Came::Done { pa, both }
            }
            (Some(pa), Some(_)) if stale => Came::Done { pa, both },
            (_, Some(pa)) => {
                self.set_flag(cpu, va, by, Flag::Dirty);
                Came::Done { pa, both }
            }
            (None, None) => Came::Faulted,
        }
    }

    /// Sets a flag in an entry that translates an address: of a folded block in that of page `by`, or in another where that one
    /// has it already or is folded no more.
    fn set_flag(&mut self, cpu: usize, va: u64, by: usize, flag: Flag) {
        let group = self.granule.cont_entries(LAST_LEVEL);
        let own = slot_of(self.granule, LAST_LEVEL, va);
        let first = own - own % group;
        for table in self.tables_for(cpu, LAST_LEVEL, va, &[]) {
            let frame = self.tables[table].frame;
            let folded = |index: usize| self.tables[table].current(index) & CONTIGUOUS != 0;
            let members = [first + by % group, own].into_iter().chain(first..first + group);
            let through: Vec<usize> = members.filter(|&index| index == own || folded(index)).collect();
            if through.into_iter().any(|index| self.agent_do(Update { cpu, table: frame, index, flag })) {
                return;
            }
        }
    }
}
