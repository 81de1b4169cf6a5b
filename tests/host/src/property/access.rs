//! Accesses by EL0, with their faults handled as a kernel does.

use arch::features::Hafdbs;
use arch::granule::LAST_LEVEL;
use arch::tlbi::{Space, Tlbi};
use arch::{Mmu, PteFlags, PteValue};
use mm::pte::Pte;
use mm::ptep::{ptep_get, ptep_set_access_flags};
use model::GranuleType;
use model::mmu::{Access, Flag, Kind, Outcome, Update};

use super::reference::{Page, is_writable};
use super::world::{CPUS, World};

/// Faults that an access may take before it must go on: one for a walk that came early, one for the access flag, one for the
/// dirty state, and one for what its own TLB still holds.
const FAULTS: usize = 4;

const READ: Access = Access { kind: Kind::Read, privileged: false };
const WRITE: Access = Access { kind: Kind::Write, privileged: false };

impl<G: GranuleType + Sync> World<'_, G> {
    /// An access to a page by a CPU: in the address space that it has loaded, or else in this one. Hardware updates the
    /// entry of page `by` of a folded block.
    pub(super) fn touch(&mut self, cpu: usize, space: usize, page: usize, write: bool, by: u8) {
        if self.loaded[cpu].is_none() {
            self.switch(cpu, Some(space));
        }
        let space = self.loaded[cpu].unwrap_or(space);
        let meant = self.spaces[space].reference.get(page);
        let access = if write { WRITE } else { READ };
        for _ in 0..=FAULTS {
            let outcomes = self.machine.cpu(cpu).access(self.va(page), access);
            let faults = outcomes.iter().any(|&outcome| self.is_fault(outcome, meant));
            let permitted = meant.is_some_and(|page| !write || is_writable(page.prot));
            if !permitted {
                let done = outcomes
                    .iter()
                    .find(|outcome| matches!(outcome, Outcome::Done(_) | Outcome::DoneAndDirty(_)));
                assert_eq!(done, None, "an access that is not permitted, to page {page} of {space}");
                return;
            }
            if !faults {
                let dirties = outcomes.iter().any(|outcome| matches!(outcome, Outcome::DoneAndDirty(_)));
                return self.hardware_updates(cpu, space, page, dirties, by);
            }
            self.handle_fault(cpu, space, page, write);
        }
        panic!("the fault at page {page} of {space} comes again and again");
    }

    /// Whether it is a fault.
    ///
    /// # Panics
    /// Where it is none, and goes to another frame than that of the page; or should never be.
    fn is_fault(&self, outcome: Outcome, meant: Option<Page>) -> bool {
        match outcome {
            Outcome::Done(pa) | Outcome::DoneAndDirty(pa) => {
                let frame = meant.map(|page| page.pfn.addr(G::GRANULE));
                assert_eq!(Some(pa), frame, "an access may go to another frame");
                false
            }
            Outcome::TranslationFault | Outcome::AccessFlagFault | Outcome::PermissionFault => true,
            Outcome::ConflictAbort | Outcome::Amalgam => panic!("an access may end in {outcome:?}"),
        }
    }

    fn handle_fault(&mut self, cpu: usize, space: usize, page: usize, write: bool) {
        let (va, raw) = (self.va(page), self.raw(space, page));
        let mut guard = self.lock(space, page);
        let pte = ptep_get(&guard, va);
        assert!(pte.is_valid() && (!write || pte.is_writable()), "page {page} of {space} is {pte:?}");
        let wanted = if write { pte.mkyoung().mkdirty() } else { pte.mkyoung() };
        let changed = ptep_set_access_flags(&mut guard, va, wanted);
        drop(guard);
        // What was cached as read-only is flushed; what was not young could not be.
        if changed && write && raw.is_young() && raw.flags().contains(PteFlags::RDONLY) {
            for cpu in (0..CPUS).filter(|&cpu| self.loaded[cpu] == Some(space)) {
                let outcomes = self.machine.cpu(cpu).access(va, WRITE);
                let stale = outcomes.contains(&Outcome::PermissionFault);
                assert!(!stale, "cpu {cpu} may still find page {page} of {space} read-only");
            }
        }
        if !changed {
            let asid =
                self.spaces[space].mm.context().and_then(|context| context.asid()).expect("it is loaded");
            self.machine.cpu(cpu).invalidate_local(Tlbi::Page {
                va,
                space: Space::Asid(asid),
                last_level: true,
                granule: G::GRANULE,
                level: Some(LAST_LEVEL),
            });
        }
        // Time passes: what another CPU has stored is seen by walks at last.
        (0..CPUS).for_each(|cpu| self.machine.cpu(cpu).publish());
        self.spaces[space].reference.change(page..page + 1, |page| {
            page.young = true;
            page.dirty |= write;
        });
    }

    /// What the access changes in memory.
    fn hardware_updates(&mut self, cpu: usize, space: usize, page: usize, dirties: bool, by: u8) {
        let through = if self.folded(space, page) {
            page / self.block() * self.block() + usize::from(by) % self.block()
        } else {
            page
        };
        let Some((table, index)) = self.entry(space, through) else { return };
        let raw = self.raw(space, through);
        let flag = if dirties && raw.flags().contains(PteFlags::RDONLY) {
            Flag::Dirty
        } else if self.setup.hafdbs != Hafdbs::None && !raw.is_young() {
            Flag::Accessed
        } else {
            return;
        };
        if self.machine.agent_do(Update { cpu, table, index, flag }) {
            self.spaces[space].reference.change(through..through + 1, |page| {
                page.young = true;
                page.dirty |= flag == Flag::Dirty;
            });
        }
    }

    fn raw(&self, space: usize, page: usize) -> PteValue {
        self.spaces[space].mm.leaf(self.va(page)).map_or(PteValue::NONE, |leaf| leaf.pte)
    }
}
