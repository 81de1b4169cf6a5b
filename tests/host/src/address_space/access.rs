//! Accesses by EL0, with their faults handled as a kernel does.

use std::collections::BTreeSet;

use arch::features::Hafdbs;
use arch::granule::LAST_LEVEL;
use arch::{Entry, Mmu, PteFlags, PteValue, Table, TableFrame, VirtAddr};
use mm::pte::Pte;
use mm::{Access, Fault};
use model::GranuleType;
use model::mmu::{self, Flag, Outcome, Update};

use super::reference::Kind;
use super::world::{CPUS, World};

/// Faults that an access may take before it must go on: what is missing, a copy, the access flag, the dirty state, and what
/// its own TLB still holds or its walk does not see yet.
const FAULTS: usize = 6;

pub(super) fn model_access(access: Access) -> mmu::Access {
    let kind = match access {
        Access::Read => mmu::Kind::Read,
        Access::Write => mmu::Kind::Write,
        Access::Execute => mmu::Kind::Execute,
    };
    mmu::Access { kind, privileged: false }
}

impl<G: GranuleType + Sync> World<'_, G> {
    /// What an access to a page must come to.
    pub(super) fn expected(&self, process: usize, page: u64, access: Access) -> Result<(), Fault> {
        match self.processes[process].reference.get(page) {
            None => Err(Fault::Segv { mapped: false }),
            Some(page) if !page.permits(access) => Err(Fault::Segv { mapped: true }),
            Some(page) if self.is_beyond(page) => Err(Fault::Bus),
            Some(_) => Ok(()),
        }
    }

    /// An access to a page by a CPU: of the process that it has loaded, or else of this one. Hardware updates the entry of page
    /// `by` of a folded block.
    ///
    /// # Panics
    /// Where it is not what is meant.
    pub fn touch(&mut self, cpu: usize, process: usize, page: u64, access: Access, by: u8) {
        if self.loaded[cpu].is_none() {
            self.switch(cpu, Some(process));
        }
        self.machine.run_on(cpu);
        let process = self.loaded[cpu].unwrap_or(process);
        let va = VirtAddr::new(Self::va(page));
        let expected = self.expected(process, page, access);
        for _ in 0..=FAULTS {
            let outcomes = self.machine.cpu(cpu).access(va, model_access(access));
            let (mut done, mut faults) = (BTreeSet::new(), false);
            for outcome in &outcomes {
                match outcome {
                    Outcome::Done(pa) | Outcome::DoneAndDirty(pa) => _ = done.insert(*pa),
                    Outcome::TranslationFault | Outcome::AccessFlagFault | Outcome::PermissionFault => {
                        faults = true;
                    }
                    Outcome::ConflictAbort | Outcome::Amalgam => panic!("may end in {outcome:?}"),
                }
            }
            if let Err(fault) = expected {
                assert!(
                    done.is_empty(),
                    "{access:?} of page {page:#x} may end in {outcomes:?}, not {fault:?}"
                );
                let result = self.processes[process].space.handle_fault(va, access);
                assert!(
                    result == Err(fault) || result == Err(Fault::OutOfMemory) && self.is_short(),
                    "{access:?} of page {page:#x} is {result:?}, not {fault:?}"
                );
                return;
            }
            if !faults {
                assert_eq!(done.len(), 1, "{access:?} of page {page:#x} may go to several frames");
                let pa = *done.first().expect("one");
                let dirties = outcomes.iter().any(|outcome| matches!(outcome, Outcome::DoneAndDirty(_)));
                self.hardware_updates(cpu, process, page, dirties, by);
                return self.perform(process, page, access, pa.pfn(G::GRANULE));
            }
            match self.processes[process].space.handle_fault(va, access) {
                Ok(_) => {}
                Err(Fault::OutOfMemory) if self.is_short() => {
                    if self.reclaim() == 0 {
                        return;
                    }
                }
                Err(fault) => panic!("{access:?} of page {page:#x} is {fault:?}"),
            }
            // Time passes: what another CPU has stored is seen by walks at last.
            (0..CPUS).for_each(|cpu| self.machine.cpu(cpu).publish());
        }
        panic!("{access:?} of page {page:#x} faults again and again");
    }

    /// Takes what may be taken of all processes; how many pages. What is young goes in the second round.
    fn reclaim(&self) -> u64 {
        let round =
            || self.processes.iter().filter_map(|process| process.space.reclaim(u64::MAX)).sum::<u64>();
        round() + round()
    }

    fn perform(&mut self, process: usize, page: u64, access: Access, pfn: arch::Pfn) {
        if access == Access::Write {
            let token = self.new_token();
            self.write_token(pfn, token);
            self.wrote(process, page, token);
        } else {
            self.saw(process, page, self.token_in(pfn));
        }
    }

    /// A page was seen to hold this.
    ///
    /// # Panics
    /// Where it should not.
    pub(super) fn saw(&mut self, process: usize, page: u64, token: u32) {
        let meant = self.processes[process].reference.get(page).expect("a page that is mapped");
        let seen = match meant.kind {
            // Of a page that held zeroes it can't be told.
            Kind::Anonymous { free: true, token: before } if token == 0 && before != 0 => {
                Kind::Anonymous { token: 0, free: false }
            }
            // It was copied, with the block that it is in, before the file was written: whether a private mapping sees that
            // is not specified.
            Kind::Private { file, page, copy: None } if self.file_history.contains(&(file, page, token)) => {
                Kind::Private { file, page, copy: Some(token) }
            }
            kind => {
                let meant_token = self.meant(meant);
                assert_eq!(token, meant_token, "page {page:#x} of {process}, {meant:?}, holds another");
                kind
            }
        };
        self.processes[process].reference.pages.get_mut(&page).expect("as before").kind = seen;
    }

    /// What the access changes in memory.
    fn hardware_updates(&mut self, cpu: usize, process: usize, page: u64, dirties: bool, by: u8) {
        let folded = self.raw(process, page).is_some_and(|(.., pte)| pte.is_folded());
        let through =
            if folded { page / self.block() * self.block() + u64::from(by) % self.block() } else { page };
        let Some((table, index, pte)) = self.raw(process, through) else { return };
        let flag = if dirties && pte.flags().contains(PteFlags::RDONLY) {
            Flag::Dirty
        } else if self.setup.hafdbs != Hafdbs::None && !pte.is_young() {
            Flag::Accessed
        } else {
            return;
        };
        self.machine.agent_do(Update { cpu, table, index, flag });
    }

    /// The entry of a page, and where it is.
    fn raw(&self, process: usize, page: u64) -> Option<(TableFrame, usize, PteValue)> {
        let va = Self::va(page);
        let mut table = Table::new(&self.machine, self.processes[process].root);
        while table.level() != LAST_LEVEL {
            let Entry::Table(child) = table.entry(G::GRANULE.index(va, table.level())) else { return None };
            table = Table::new(&self.machine, child);
        }
        let index = G::GRANULE.index(va, LAST_LEVEL);
        Some((table.frame(), index, table.leaf(index)))
    }
}
