//! What one access may do.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use arch::PhysAddr;
use arch::features::Hafdbs;

use super::bits::{self, ADDRESS, AF, DBM, PXN, RDONLY, USER, UXN, slot_of};
use super::report::Rule;
use super::state::State;
use super::tlb::{Leaf, Place, Tag};
use crate::descriptor::{Descriptor, decode, leaf_size, root_level};

/// What an access does with the memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Load.
    Read,
    /// Store.
    Write,
    /// Instruction fetch.
    Execute,
}

/// An access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// What it does.
    pub kind: Kind,
    /// From EL1; else from EL0.
    pub privileged: bool,
}

/// What an access may end in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    /// The access goes to this address.
    Done(PhysAddr),
    /// The same, after hardware has made a descriptor in memory dirty.
    DoneAndDirty(PhysAddr),
    /// Translation fault.
    TranslationFault,
    /// Access flag fault.
    AccessFlagFault,
    /// Permission fault.
    PermissionFault,
    /// TLB conflict abort.
    ConflictAbort,
    /// Any translation, also one that no descriptor has (RNGLXZ).
    Amalgam,
}

impl State {
    /// All that an access may end in, by what TLBs may hold and what a walk may read. Nothing changes.
    pub(super) fn access(&self, cpu: usize, va: u64, access: Access) -> BTreeSet<Outcome> {
        let mut outcomes = BTreeSet::new();
        let found = self.cached_leaves(cpu, va);
        for (place, leaf) in &found {
            outcomes.insert(self.through(cpu, *place, leaf.value, va, access));
        }
        for (place, leaf) in &found {
            let other_cont = self.cpus[cpu].tlb.has_other_size(*place, leaf.value);
            let other_level = found.iter().any(|(other, _)| other.level != place.level);
            let rules = [(other_cont, true), (other_level, false)];
            for rule in
                rules.into_iter().filter(|(differs, _)| *differs).filter_map(|(_, c)| self.size_rule(c))
            {
                outcomes.insert(Outcome::ConflictAbort);
                if rule == Rule::SizeChange {
                    outcomes.insert(Outcome::Amalgam);
                }
            }
        }
        self.walk_outcomes(cpu, va, access, &mut outcomes);
        outcomes
    }

    /// What the TLB may hold for an address in the CPU's present context.
    fn cached_leaves(&self, cpu: usize, va: u64) -> Vec<(Place, Leaf)> {
        let tags = [Tag::Asid(self.cpus[cpu].asid), Tag::Global];
        let page = va & !(self.granule.page_size() - 1);
        self.cpus[cpu].tlb.leaves_within(page, page, |tag| tags.contains(&tag))
    }

    /// Whether an access may end so by what the TLB may hold, without a walk.
    pub(super) fn hits(&self, cpu: usize, va: u64, access: Access, outcome: Outcome) -> bool {
        let found = self.cached_leaves(cpu, va);
        found.iter().any(|(place, leaf)| self.through(cpu, *place, leaf.value, va, access) == outcome)
    }

    /// What a walk by the tables adds: faults, and entries whose access flag hardware sets first.
    fn walk_outcomes(&self, cpu: usize, va: u64, access: Access, outcomes: &mut BTreeSet<Outcome>) {
        let root = root_level(self.granule);
        if self.tables_for(cpu, root, va, &[]).is_empty() {
            outcomes.insert(Outcome::TranslationFault);
        }
        for level in root..=3 {
            let slot = slot_of(self.granule, level, va);
            for table in self.tables_for(cpu, level, va, &[]) {
                for raw in self.tables[table].possible(slot) {
                    match decode(self.granule, level, raw) {
                        Descriptor::Invalid | Descriptor::Reserved => {
                            outcomes.insert(Outcome::TranslationFault);
                        }
                        Descriptor::Leaf(_) if raw & AF == 0 => {
                            // Hardware updates what is in memory now, nothing older.
                            let updates =
                                self.config.hafdbs >= Hafdbs::Af && raw == self.tables[table].current(slot);
                            outcomes.insert(if updates {
                                let value = bits::cached_part(raw);
                                let place = Place {
                                    level,
                                    va: va & !(leaf_size(self.granule, level) - 1),
                                    tag: self.tag(cpu, value),
                                };
                                self.through(cpu, place, value, va, access)
                            } else {
                                Outcome::AccessFlagFault
                            });
                        }
                        Descriptor::Leaf(_) | Descriptor::Table(_) => {}
                    }
                }
            }
        }
    }

    /// What an access by one entry ends in.
    fn through(&self, cpu: usize, place: Place, value: u64, va: u64, access: Access) -> Outcome {
        let pa = PhysAddr::new((value & ADDRESS) + (va - place.va));
        let user = value & USER != 0;
        let may = match (access.kind, access.privileged) {
            (_, false) if !user => false,
            (Kind::Execute, false) => value & UXN == 0,
            // What EL0 may write to, EL1 never executes.
            (Kind::Execute, true) => value & PXN == 0 && !(user && bits::writable(value)),
            (Kind::Read | Kind::Write, _) => true,
        };
        match access.kind {
            _ if !may => Outcome::PermissionFault,
            Kind::Write if value & RDONLY == 0 => Outcome::Done(pa),
            Kind::Write if value & DBM != 0 && self.may_become_writable(cpu, place, value) => {
                Outcome::DoneAndDirty(pa)
            }
            Kind::Write => Outcome::PermissionFault,
            Kind::Read | Kind::Execute => Outcome::Done(pa),
        }
    }
}
