//! What must be true after each operation.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::ControlFlow;

use arch::granule::LAST_LEVEL;
use arch::{PteFlags, PteValue, VirtAddr};
use mm::Access;
use mm::contpte::Obstacle;
use mm::mman::{PROT_EXEC, PROT_WRITE};
use mm::pte::Pte;
use model::GranuleType;
use model::mmu::Outcome;

use super::access::model_access;
use super::world::{CPUS, PROCESSES, World};

/// For each frame, how often it is mapped, and by which process and page it may be written to as its own.
type Frames = BTreeMap<u64, (u32, Option<(usize, u64)>)>;

impl<G: GranuleType + Sync> World<'_, G> {
    /// Checks everything, after `what`.
    ///
    /// # Panics
    /// Where something is not as it must be.
    pub fn check(&mut self, what: &str) {
        if let Err(violations) = self.machine.check() {
            let mut text = String::new();
            violations.iter().for_each(|violation| _ = write!(text, "\n{violation}"));
            panic!("{what} on {:?}: {text}", self.setup);
        }
        if let Err(why) = self.check_mappings() {
            panic!("{what} on {:?}: {why}", self.setup);
        }
        self.check_accesses(what);
    }

    /// The valid entries of a process.
    fn entries(&self, process: usize) -> BTreeMap<u64, PteValue> {
        let mut entries = BTreeMap::new();
        let reference = &self.processes[process].reference;
        let arena = self.arena();
        let of_tables = self.of_tables();
        let outside = [0..of_tables.start, of_tables.end..u64::MAX].map(|range| reference.pages.range(range));
        let outside =
            outside.into_iter().flatten().map(|(&page, _)| page).filter(|page| !arena.contains(page));
        let ranges = outside.map(|page| page..page + 1).chain([arena.clone()]).chain(self.parts_of_tables());
        for range in ranges {
            let size = Self::va(range.end - range.start);
            let _ = self.processes[process].space.walk(VirtAddr::new(Self::va(range.start)), size, |leaf| {
                assert!(leaf.level == LAST_LEVEL);
                entries.insert(leaf.va.get() / G::GRANULE.page_size(), leaf.pte);
                ControlFlow::<()>::Continue(())
            });
        }
        entries
    }

    /// What is mapped is what is meant, and nobody else's where it must not be.
    fn check_mappings(&mut self) -> Result<(), String> {
        let mut frames = Frames::new();
        for process in 0..PROCESSES {
            let entries = self.entries(process);
            for (&page, &pte) in &entries {
                let here = || format!("page {page:#x} of {process} is {pte:?}");
                let Some(meant) = self.processes[process].reference.get(page) else { return Err(here()) };
                let executable = !pte.flags().contains(PteFlags::UXN);
                if meant.prot == 0
                    || pte.is_writable() && meant.prot & PROT_WRITE == 0
                    || executable != (meant.prot & PROT_EXEC != 0)
                {
                    return Err(format!("{}, and not {meant:?}", here()));
                }
                let pfn = pte.pa().pfn(G::GRANULE);
                self.saw(process, page, self.token_in(pfn));
                let frame = frames.entry(pfn.get()).or_default();
                frame.0 += 1;
                if pte.is_writable() && meant.kind.is_private() {
                    frame.1 = Some((process, page));
                }
            }
            self.check_blocks(process, &entries)?;
        }
        if let Some((pfn, frame)) = frames.iter().find(|(_, (count, own))| *count > 1 && own.is_some()) {
            return Err(format!("frame {pfn:#x} is written by one of several: {frame:?}"));
        }
        self.check_counts(&frames)
    }

    /// A block is folded as a whole or not at all.
    fn check_blocks(&self, process: usize, entries: &BTreeMap<u64, PteValue>) -> Result<(), String> {
        for first in self.arena().step_by(self.block() as usize) {
            let block = || entries.range(first..first + self.block());
            let folded = block().filter(|(_, pte)| pte.is_folded()).count() as u64;
            if folded != 0 && folded != self.block() {
                return Err(format!("block of {first:#x} of {process}: {folded} entries are folded"));
            }
        }
        Ok(())
    }

    /// Mappings are counted as they are: those that are valid, and those that are held for pages that may not be accessed.
    fn check_counts(&self, frames: &Frames) -> Result<(), String> {
        let of_tables = self.of_tables();
        let held = self.processes.iter().any(|process| {
            let pages = &process.reference.pages;
            let others = [0..of_tables.start, of_tables.end..u64::MAX].map(|range| pages.range(range));
            let others = others.into_iter().flatten().map(|(_, page)| page);
            // All of a mapping is alike.
            let used = self.used_of_tables().filter_map(|page| pages.get(&page));
            others.chain(used).any(|page| page.prot == 0)
        });
        let mut folios: BTreeMap<u64, u32> = BTreeMap::new();
        for (&pfn, &(count, _)) in frames {
            let folio = self.frames.folio(arch::Pfn::new(pfn)).expect("a frame that is mapped has a folio");
            *folios.entry(folio.head().get()).or_default() += count;
        }
        for (head, count) in folios {
            let folio = self.frames.folio(arch::Pfn::new(head)).expect("as before");
            // The block of zeroes is not counted.
            let zeroes =
                folio.maps() == 0 && (0..folio.frames()).all(|i| self.token_in(folio.head().add(i)) == 0);
            if folio.maps() != count && !zeroes && !(held && folio.maps() > count) {
                return Err(format!("{folio:?} is mapped {count} times"));
            }
        }
        Ok(())
    }

    /// No access is possible that is not meant, by anything that a TLB may still hold.
    fn check_accesses(&self, what: &str) {
        for (cpu, process) in
            self.loaded.iter().enumerate().filter_map(|(cpu, loaded)| Some((cpu, (*loaded)?)))
        {
            assert!(cpu < CPUS);
            let step = (self.block() / 8).max(1) as usize;
            let odd = self.next_token as usize % step;
            for page in self.arena().skip(odd).step_by(step).chain(self.used_of_tables()) {
                for access in [Access::Read, Access::Write, Access::Execute] {
                    let va = VirtAddr::new(Self::va(page));
                    let expected = self.expected(process, page, access);
                    for outcome in self.machine.cpu(cpu).access(va, model_access(access)) {
                        let (Outcome::Done(pa) | Outcome::DoneAndDirty(pa)) = outcome else { continue };
                        let meant = self.processes[process].reference.get(page);
                        assert_eq!(expected, Ok(()), "{what}: {access:?} of {page:#x} may be done");
                        let holds = self.token_in(pa.pfn(G::GRANULE));
                        let meant = meant.expect("what may be accessed is mapped");
                        assert_eq!(
                            holds,
                            self.meant(meant),
                            "{what}: {access:?} of {page:#x} may go to {pa}"
                        );
                    }
                }
            }
        }
    }

    /// Nothing in the range is left that a refold would fold.
    pub(super) fn expect_refolded(&self, process: usize, range: &std::ops::Range<u64>) {
        for page in range.clone().step_by(self.block() as usize).chain([range.end - 1]) {
            let why = self.processes[process].space.why_not_folded(VirtAddr::new(Self::va(page)));
            assert_ne!(why, Err(Obstacle::None), "the block of {page:#x} was not folded again");
        }
    }
}
