//! What must be true after each operation.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::ControlFlow;

use arch::PteValue;
use arch::granule::LAST_LEVEL;
use mm::pte::Pte;
use mm::ptep::{LocklessGuard, pte_batch_hint, ptep_get, ptep_get_lockless};
use model::GranuleType;

use super::reference::{Page, prot_of};
use super::world::{SPACES, World};

impl<G: GranuleType + Sync> World<'_, G> {
    /// Checks everything, after `what`.
    pub(super) fn check(&mut self, what: &str) {
        if let Err(violations) = self.machine.check() {
            let mut text = String::new();
            violations.iter().for_each(|violation| _ = write!(text, "\n{violation}"));
            panic!("{what} on {:?}: {text}", self.setup);
        }
        for space in 0..SPACES {
            let entries = self.entries(space);
            for block in (0..self.pages()).step_by(self.block()) {
                if let Err(why) = self.check_block(space, block, &entries) {
                    panic!("{what} on {:?}: space {space}, {why}", self.setup);
                }
            }
        }
    }

    /// The valid entries in memory.
    fn entries(&self, space: usize) -> BTreeMap<usize, PteValue> {
        let mut entries = BTreeMap::new();
        for first in (0..self.pages()).step_by(self.table_pages()) {
            let (base, size) = (self.va(first), self.table_pages() as u64 * G::GRANULE.page_size());
            let _ = self.spaces[space].mm.walk(base, size, |leaf| {
                let page = (leaf.va.get() - base.get()) / G::GRANULE.page_size();
                assert!(leaf.level == LAST_LEVEL);
                entries.insert(first + page as usize, leaf.pte);
                ControlFlow::<()>::Continue(())
            });
        }
        entries
    }

    /// A block is folded as a whole or not at all, and is what is meant.
    fn check_block(
        &mut self,
        space: usize,
        first: usize,
        entries: &BTreeMap<usize, PteValue>,
    ) -> Result<(), String> {
        let block = first..first + self.block();
        let in_block = || entries.range(block.clone()).map(|(&page, &pte)| (page, pte));
        let folded = in_block().filter(|(_, pte)| pte.is_folded()).count();
        if folded != 0 {
            if folded != self.block() {
                return Err(format!("block of {first}: {folded} entries are folded"));
            }
            let head = entries[&first].attributes();
            let bytes = |page: usize| (page - first) as u64 * G::GRANULE.page_size();
            if !head.pa().is_aligned(bytes(block.end)) {
                return Err(format!("block of {first}: is folded at {}", head.pa()));
            }
            if let Some((page, pte)) =
                in_block().find(|&(page, pte)| pte.attributes() != head.advance(bytes(page)))
            {
                return Err(format!("page {page}: {pte:?} does not fit {head:?}"));
            }
            self.spread(space, block.clone());
        }
        let any = |test: fn(PteValue) -> bool| in_block().any(|(_, pte)| test(pte));
        let of_block = (folded != 0).then(|| (any(PteValue::is_young), any(PteValue::is_dirty)));
        for page in block.clone() {
            let found = entries.get(&page).map(|pte| {
                let (young, dirty) = of_block.unwrap_or((pte.is_young(), pte.is_dirty()));
                Page { pfn: pte.pa().pfn(G::GRANULE), prot: prot_of(*pte), young, dirty }
            });
            let hafdbs = self.setup.hafdbs;
            let agreed = self.spaces[space].reference.agree(page, found, hafdbs);
            agreed.map_err(|why| format!("page {page}: {why}"))?;
        }
        self.check_getters(space, first, folded != 0)
    }

    /// Young and dirty are of the block where it is folded.
    fn spread(&mut self, space: usize, block: std::ops::Range<usize>) {
        let reference = &mut self.spaces[space].reference;
        let pages = || reference.pages.range(block.clone()).map(|(_, page)| page);
        let (young, dirty) = (pages().any(|page| page.young), pages().any(|page| page.dirty));
        reference.change(block, |page| (page.young, page.dirty) = (young, dirty));
    }

    /// The getters tell the same, at one page of the block after the other.
    fn check_getters(&self, space: usize, first: usize, folded: bool) -> Result<(), String> {
        self.checked.set(self.checked.get() + 1);
        let within = self.checked.get() % self.block();
        let (page, va) = (first + within, self.va(first + within));
        if self.entry(space, page).is_none() {
            return Ok(());
        }
        let guard = self.lock(space, page);
        let pte = ptep_get(&guard, va);
        let found = pte.is_valid().then(|| Page {
            pfn: pte.pa().pfn(G::GRANULE),
            prot: prot_of(pte),
            young: pte.is_young(),
            dirty: pte.is_dirty(),
        });
        let meant = self.spaces[space].reference.get(page);
        let left = if folded { self.block() - within } else { 1 };
        let lockless = ptep_get_lockless(&self.spaces[space].mm, va, &LocklessGuard::interrupts_masked());
        if found != meant || lockless != Ok(pte) || pte_batch_hint(&guard, va) != left {
            return Err(format!(
                "page {page}: {found:?} by its getter, {lockless:?} without the lock; {meant:?} is meant"
            ));
        }
        Ok(())
    }
}
