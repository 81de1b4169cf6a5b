//! The operations, each done and said.

use std::ops::Range;

use arch::{Mmu, PteValue, TableFrame};
use mm::contpte::{self, Obstacle};
use mm::frame::Folio;
use mm::pte::{Pte, UserProt};
use mm::ptep::*;
use model::GranuleType;
use model::mmu::{Flag, Update};

use super::op::{Op, Order, Step, Within};
use super::reference::{Page, Slack, is_writable, read_only};
use super::world::{SPACES, Space, World};

/// Pages that are copied at a time.
const COPIES: usize = 5;

/// Young and dirty of an entry.
fn flags_of(pte: PteValue) -> Slack {
    Slack { young: pte.is_young(), dirty: pte.is_dirty() }
}

/// What hardware has set, where, in the course of an operation.
#[derive(Clone, Copy)]
pub(super) struct Set {
    space: usize,
    page: usize,
    flag: Flag,
}

impl<'m, G: GranuleType + Sync> World<'m, G> {
    /// Does an operation.
    pub(super) fn apply(&mut self, op: &Op) {
        self.machine.run_on(op.cpu);
        for space in &mut self.spaces {
            space.reference.slack.clear();
            space.reference.may_lose_young.clear();
        }
        if op.agent != 0 {
            self.machine.agent_at_random(u64::from(op.agent), 1 + u32::from(op.agent % 8));
        }
        let Op { cpu, space, step, .. } = *op;
        match step {
            Step::Access { at, write, by } => {
                self.touch(cpu, space, self.mapped_range(space, at).start, write, by)
            }
            Step::Map { at, folio, from, prot, order } => {
                self.map(space, self.range(at), folio, from, prot, order);
            }
            Step::Clear { at, one_by_one } => self.clear(space, self.mapped_range(space, at), one_by_one),
            Step::WriteProtect { at } => self.write_protect(space, self.mapped_range(space, at)),
            Step::ClearYoung { at, flush } => {
                self.clear_young(space, self.mapped_range(space, at).start, flush)
            }
            Step::ClearYoungDirty { at, what } => {
                self.clear_young_dirty(space, self.mapped_range(space, at), what)
            }
            Step::Protect { at, prot, split } => {
                self.protect(space, self.mapped_range(space, at), prot, split)
            }
            Step::Replace { at, prot } => self.replace(space, self.mapped_range(space, at), prot),
            Step::SetPte { at } => self.set_pte(space, self.mapped_range(space, at).start),
            Step::Copy { at, reuse: true } => self.reuse(space, self.mapped_range(space, at).start),
            Step::Copy { at, reuse: false } => self.copy(space, self.mapped_range(space, at)),
            Step::Several { at } => self.several(space, self.mapped_range(space, at)),
            Step::Move { at, block, page } => {
                self.move_pages(space, self.mapped_range(space, at), self.place(block, page))
            }
            Step::Share { at, with } if with != space => {
                self.share(space, with, self.mapped_range(space, at))
            }
            Step::Share { .. } => {}
            Step::Refold { at } => self.refold(space, self.mapped_range(space, at)),
            Step::Switch { none } => self.switch(cpu, (!none).then_some(space)),
            Step::Forget { folio } => self.forget(folio),
            Step::Exit => self.exit(cpu, space),
            Step::Barrier => self.mmu().publish(),
        }
        self.machine.agent_rests();
        self.note_updates(|_| false);
    }

    /// Ends everything.
    pub(super) fn end(&mut self) {
        for space in 0..SPACES {
            self.exit(0, space);
        }
        self.check("the end");
        self.all_is_given_back();
    }

    fn exit(&mut self, cpu: usize, space: usize) {
        for table in 0..self.pages() / self.table_pages() {
            let first = table * self.table_pages();
            self.clear(space, first..first + self.table_pages(), false);
        }
        self.machine.agent_rests();
        self.note_updates(|_| false);
        self.replace_space(cpu, space);
    }

    fn reference(&self, space: usize, page: usize) -> Option<Page> {
        self.spaces[space].reference.get(page)
    }

    /// Pages that follow one another in one folio, with one permission, from the first of `range` on.
    fn run(&self, space: usize, range: &Range<usize>) -> usize {
        let Space { reference, folios, .. } = &self.spaces[space];
        let Some(first) = reference.get(range.start) else { return 0 };
        let folio = &folios[&range.start];
        let same = |i: &usize| {
            let Some(page) = reference.get(range.start + i) else { return false };
            page.pfn == first.pfn.add(*i as u64) && page.prot == first.prot && folio.contains(page.pfn)
        };
        (0..range.len()).take_while(same).count()
    }

    /// The runs in `range`.
    fn runs(&self, space: usize, range: Range<usize>) -> Vec<Range<usize>> {
        let mut runs = Vec::new();
        let mut page = range.start;
        while page < range.end {
            let nr = self.run(space, &(page..range.end));
            let batch = pte_batch(&self.lock(space, page), self.va(page), range.end - page);
            assert_eq!(batch, nr.max(1), "the batch from page {page} of {space}");
            if nr > 0 {
                runs.push(page..page + nr);
            }
            page += nr.max(1);
        }
        runs
    }

    fn map(
        &mut self,
        space: usize,
        range: Range<usize>,
        folio: u8,
        from: Within,
        prot: UserProt,
        order: Order,
    ) {
        let Some(folio) = self.folio(folio) else { return };
        let first = self.place(folio.head().get() as u8, from) as u64 % folio.frames();
        let free = range.clone().take_while(|&page| self.reference(space, page).is_none()).count();
        let nr = free.min((folio.frames() - first) as usize);
        if nr == 0 {
            return;
        }
        let pfn = |i: usize| folio.head().add(first + i as u64);
        let page = |i: usize| Page { pfn: pfn(i), prot, young: true, dirty: false };
        let meant: Vec<_> = (0..nr).map(|i| (range.start + i, Some(page(i)))).collect();
        self.mean(space, &meant);
        let mut guard = self.lock(space, range.start);
        let pte = |i: usize| PteValue::new_user(pfn(i).addr(G::GRANULE), prot);
        let mut set = |i: usize, nr| set_ptes(&mut guard, self.va(range.start + i), pte(i), nr);
        match order {
            Order::AtOnce => set(0, nr),
            Order::Upwards => (0..nr).for_each(|i| set(i, 1)),
            Order::Downwards => (0..nr).rev().for_each(|i| set(i, 1)),
        }
        drop(guard);
        self.complete();
        self.insert(space, meant, &folio);
    }

    fn insert(&mut self, space: usize, pages: Vec<(usize, Option<Page>)>, folio: &Folio<'m>) {
        let space = &mut self.spaces[space];
        for (at, page) in pages {
            space.reference.pages.insert(at, page.expect("a page that is mapped"));
            space.folios.insert(at, folio.clone());
        }
    }

    /// Forgets what is mapped, and returns the references to its folios.
    fn remove(&mut self, space: usize, range: &Range<usize>) -> Vec<Folio<'m>> {
        let space = &mut self.spaces[space];
        range.clone().for_each(|page| _ = space.reference.pages.remove(&page));
        range.clone().filter_map(|page| space.folios.remove(&page)).collect()
    }

    fn clear(&mut self, space: usize, range: Range<usize>, one_by_one: bool) {
        let nothing: Vec<_> = range.clone().map(|page| (page, None)).collect();
        let was = range.clone().filter_map(|page| self.reference(space, page)).collect::<Vec<_>>();
        let first = self.reference(space, range.start);
        let folios = self.remove(space, &range);
        self.mean(space, &nothing);
        let mut guard = self.lock(space, range.start);
        let cleared = if one_by_one {
            range.clone().for_each(|page| ptep_clear(&mut guard, self.va(page)));
            PteValue::NONE
        } else {
            get_and_clear_ptes(&mut guard, self.va(range.start), range.len())
        };
        folios.into_iter().for_each(|folio| guard.free_after_flush(folio));
        drop(guard);
        self.complete();
        if one_by_one {
            return;
        }
        assert_eq!(cleared.is_valid(), first.is_some(), "the cleared entry is {cleared:?}");
        let Some(first) = first else { return };
        assert_eq!(cleared.pa(), first.pfn.addr(G::GRANULE), "the cleared entry is of another frame");
        // Of these pages what hardware has set must be told; of others of their blocks, it may.
        let blocks = self.whole_blocks(&range);
        let mut must = Slack { young: was.iter().any(|p| p.young), dirty: was.iter().any(|p| p.dirty) };
        let mut may = must;
        for set in self.updates().into_iter().filter(|set| set.space == space) {
            let flags = Slack { young: true, dirty: set.flag == Flag::Dirty };
            if range.contains(&set.page) {
                must = Slack { young: true, dirty: must.dirty | flags.dirty };
            }
            if blocks.contains(&set.page) {
                may = Slack { young: true, dirty: may.dirty | flags.dirty };
            }
        }
        let is = flags_of(cleared);
        let ok = |must: bool, may: bool, is: bool| (is || !must) && (may || must || !is);
        assert!(
            ok(must.young, may.young, is.young) && ok(must.dirty, may.dirty, is.dirty),
            "the cleared range is {is:?}, and not {must:?} or {may:?}"
        );
    }

    fn write_protect(&mut self, space: usize, range: Range<usize>) {
        self.spaces[space].reference.change(range.clone(), |page| page.prot = read_only(page.prot));
        self.mean_again(space, &range);
        wrprotect_ptes(&mut self.lock(space, range.start), self.va(range.start), range.len());
        self.complete();
    }

    /// `range`, with the whole of the block at either end.
    fn whole_blocks(&self, range: &Range<usize>) -> Range<usize> {
        let block = self.block();
        range.start / block * block..(range.end - 1) / block * block + block
    }

    /// Tells the machine what is meant by now.
    fn mean_again(&self, space: usize, range: &Range<usize>) {
        let meant: Vec<_> =
            range.clone().filter_map(|page| Some((page, Some(self.reference(space, page)?)))).collect();
        self.mean(space, &meant);
    }

    /// `range`, with the whole of the block at either end where it is folded.
    fn expand(&self, space: usize, range: Range<usize>) -> Range<usize> {
        let block = self.block();
        let (mut start, mut end) = (range.start, range.end);
        if self.folded(space, start) {
            start = start / block * block;
        }
        if self.folded(space, end - 1) {
            end = (end - 1) / block * block + block;
        }
        start..end
    }

    pub(super) fn folded(&self, space: usize, page: usize) -> bool {
        contpte::why_not_folded(&self.spaces[space].mm, self.va(page)).is_ok()
    }

    fn clear_young(&mut self, space: usize, page: usize, flush: bool) {
        let range = self.expand(space, page..page + 1);
        let expected = self.reference(space, page).is_some_and(|page| page.young);
        let mut guard = self.lock(space, page);
        let young = if flush {
            ptep_clear_flush_young(&mut guard, self.va(page))
        } else {
            ptep_test_and_clear_young(&mut guard, self.va(page))
        };
        drop(guard);
        let by_hardware = || self.updates().iter().any(|set| set.space == space && range.contains(&set.page));
        assert!(young == expected || young && by_hardware(), "young is {young}");
        self.spaces[space].reference.change(range.clone(), |page| page.young = false);
        self.note_updates(|set| set.space == space && range.contains(&set.page));
    }

    fn clear_young_dirty(&mut self, space: usize, range: Range<usize>, what: YoungDirty) {
        let (start, nr) = (range.start, range.len());
        let range = self.expand(space, range);
        // A write through an old translation goes unnoticed until the flush.
        let meant: Vec<_> =
            range.clone().filter_map(|page| Some((page, Some(self.reference(space, page)?)))).collect();
        self.mean_unnoticed(space, &meant);
        self.mean(space, &meant);
        clear_young_dirty_ptes(&mut self.lock(space, start), self.va(start), nr, what);
        self.complete();
        self.spaces[space].reference.change(range.clone(), |page| {
            page.young &= what == YoungDirty::Dirty;
            page.dirty &= what == YoungDirty::Young;
        });
        self.note_updates(|set| set.space == space && range.contains(&set.page));
    }

    fn protect(&mut self, space: usize, range: Range<usize>, prot: UserProt, split: bool) {
        for run in self.runs(space, range) {
            let middle = if split && run.len() > 1 { run.start + run.len() / 2 } else { run.end };
            let prot_at = |page: usize| if page < middle { prot } else { read_only(prot) };
            let old: Vec<_> = run.clone().filter_map(|page| self.reference(space, page)).collect();
            let (young, dirty) = (old.iter().any(|page| page.young), old.iter().any(|page| page.dirty));
            let meant: Vec<_> = run
                .clone()
                .zip(&old)
                .map(|(page, old)| (page, Some(Page { prot: prot_at(page), young, dirty, ..*old })))
                .collect();
            self.mean(space, &meant);
            let mut guard = self.lock(space, run.start);
            let pte = modify_prot_start(&mut guard, self.va(run.start), run.len());
            for part in [run.start..middle, middle..run.end].into_iter().filter(|part| !part.is_empty()) {
                let offset = (part.start - run.start) as u64 * G::GRANULE.page_size();
                let pte = pte.with_prot(prot_at(part.start)).advance(offset);
                modify_prot_commit(&mut guard, self.va(part.start), pte, part.len());
            }
            drop(guard);
            self.complete();
            for (at, page) in meant {
                self.spaces[space].reference.pages.insert(at, page.expect("a page of the run"));
            }
            // What hardware set in one of their blocks before is told of all.
            let blocks = self.whole_blocks(&run);
            for set in
                self.updates().into_iter().filter(|set| set.space == space && blocks.contains(&set.page))
            {
                run.clone().for_each(|page| self.may_be(space, page, set.flag));
            }
        }
    }

    fn replace(&mut self, space: usize, range: Range<usize>, prot: UserProt) {
        for page in range {
            let Some(old) = self.reference(space, page) else { continue };
            let new = Page { prot, ..old };
            self.mean(space, &[(page, Some(new))]);
            let mut guard = self.lock(space, page);
            let pte = ptep_get(&guard, self.va(page)).with_prot(prot);
            set_ptes(&mut guard, self.va(page), pte, 1);
            drop(guard);
            self.complete();
            let reference = &mut self.spaces[space].reference;
            reference.pages.insert(page, new);
            reference.may_lose_young.push(page);
        }
    }

    fn set_pte(&mut self, space: usize, page: usize) {
        let Some(old) = self.reference(space, page) else { return };
        let Some((_, index)) = self.entry(space, page) else { return };
        let folded = self.folded(space, page);
        let mut guard = self.lock(space, page);
        let pte = ptep_get(&guard, self.va(page)).mkyoung();
        let result = set_pte(&mut guard, index, pte);
        drop(guard);
        assert_eq!(result, if folded { Err(Folded { index }) } else { Ok(()) });
        if !folded {
            self.spaces[space].reference.pages.insert(page, Page { young: true, ..old });
        }
    }

    /// Copy on write where only this address space has the page: it becomes writable where it is.
    fn reuse(&mut self, space: usize, page: usize) {
        let Some(old) = self.reference(space, page) else { return };
        if is_writable(old.prot) {
            return;
        }
        let prot = if old.prot == UserProt::Read { UserProt::ReadWrite } else { UserProt::ReadWriteExecute };
        let new = Page { prot, young: true, dirty: true, ..old };
        self.mean(space, &[(page, Some(new))]);
        let mut guard = self.lock(space, page);
        let request = ptep_get(&guard, self.va(page)).mkwrite().mkyoung().mkdirty();
        assert!(ptep_set_access_flags(&mut guard, self.va(page), request), "nothing changed");
        drop(guard);
        self.complete();
        self.spaces[space].reference.pages.insert(page, new);
    }

    /// Copy on write of every other page, under one lock: so several ranges are owed a flush, apart from each other.
    fn copy(&mut self, space: usize, range: Range<usize>) {
        let mut copies = Vec::new();
        for page in range.step_by(2).filter(|&page| self.reference(space, page).is_some()).take(COPIES) {
            let Some(folio) = self.alloc(0) else { break };
            let new = Page { pfn: folio.head(), prot: UserProt::ReadWrite, young: true, dirty: false };
            copies.push((page, new, folio));
        }
        let Some(&(first, ..)) = copies.first() else { return };
        let mut freed = Vec::new();
        copies.iter().for_each(|&(page, ..)| freed.extend(self.remove(space, &(page..page + 1))));
        self.mean(space, &copies.iter().map(|&(page, new, _)| (page, Some(new))).collect::<Vec<_>>());
        let mut guard = self.lock(space, first);
        copies.iter().for_each(|&(page, ..)| ptep_clear(&mut guard, self.va(page)));
        freed.into_iter().for_each(|folio| guard.free_after_flush(folio));
        // The last first: what is owed for it was owed last.
        for (page, new, _) in copies.iter().rev() {
            let pte = PteValue::new_user(new.pfn.addr(G::GRANULE), new.prot);
            set_ptes(&mut guard, self.va(*page), pte, 1);
        }
        drop(guard);
        self.complete();
        let copied: Vec<usize> = copies.iter().map(|&(page, ..)| page).collect();
        copies.into_iter().for_each(|(page, new, folio)| self.insert(space, vec![(page, Some(new))], &folio));
        // Of the pages before, or of these.
        self.note_updates(|set| set.space == space && copied.contains(&set.page));
    }

    /// What one call owes is there when the next comes.
    fn several(&mut self, space: usize, range: Range<usize>) {
        let (start, nr) = (range.start, range.len());
        let freed = self.remove(space, &(start..start + 1));
        self.spaces[space].reference.change(range.clone(), |page| page.prot = read_only(page.prot));
        let meant: Vec<_> = range.clone().map(|page| (page, self.reference(space, page))).collect();
        self.mean_unnoticed(space, &meant);
        self.mean(space, &meant);
        let mut guard = self.lock(space, start);
        wrprotect_ptes(&mut guard, self.va(start), nr);
        ptep_clear(&mut guard, self.va(start));
        freed.into_iter().for_each(|folio| guard.free_after_flush(folio));
        contpte::refold(&mut guard, self.va(start), nr);
        let cleaned = self.expand(space, range);
        clear_young_dirty_ptes(&mut guard, self.va(start), nr, YoungDirty::Dirty);
        drop(guard);
        self.complete();
        self.spaces[space].reference.change(cleaned.clone(), |page| page.dirty = false);
        // A refold spreads what the call after it takes away, in part.
        let blocks = self.whole_blocks(&cleaned);
        for page in blocks.clone() {
            self.may_be(space, page, Flag::Accessed);
        }
        self.note_updates(|set| set.space == space && blocks.contains(&set.page));
    }

    fn move_pages(&mut self, space: usize, range: Range<usize>, to: usize) {
        let table_end = (to / self.table_pages() + 1) * self.table_pages();
        let free = (to..table_end).take_while(|&page| self.reference(space, page).is_none()).count();
        let nr = self.run(space, &range).min(free);
        if nr == 0 {
            return;
        }
        let from = range.start..range.start + nr;
        let was: Vec<_> = from.clone().filter_map(|page| self.reference(space, page)).collect();
        let (young, dirty) = (was.iter().any(|page| page.young), was.iter().any(|page| page.dirty));
        let meant: Vec<_> =
            was.iter().enumerate().map(|(i, &page)| (to + i, Some(Page { young, dirty, ..page }))).collect();
        let folio = self.spaces[space].folios[&from.start].clone();
        self.remove(space, &from);
        self.mean(space, &from.clone().map(|page| (page, None)).collect::<Vec<_>>());
        self.mean(space, &meant);
        let (source, destination) = (self.va(from.start), self.va(to));
        let Space { mm, tables, .. } = &self.spaces[space];
        let mut pair = mm.lock_two_tables(source, destination, tables).expect("there are tables enough");
        match pair.both() {
            (one, None) => {
                let pte = get_and_clear_ptes(one, source, nr);
                set_ptes(one, destination, pte, nr);
            }
            (one, Some(other)) => {
                let pte = get_and_clear_ptes(one, source, nr);
                set_ptes(other, destination, pte, nr);
            }
        }
        drop(pair);
        self.complete();
        self.insert(space, meant, &folio);
        let blocks = self.whole_blocks(&from);
        for set in self.updates().into_iter().filter(|set| set.space == space && blocks.contains(&set.page)) {
            (to..to + nr).for_each(|page| self.may_be(space, page, set.flag));
        }
    }

    fn share(&mut self, space: usize, with: usize, range: Range<usize>) {
        for run in self.runs(space, range) {
            if run.clone().any(|page| self.reference(with, page).is_some()) {
                continue;
            }
            self.spaces[space].reference.change(run.clone(), |page| page.prot = read_only(page.prot));
            self.mean_again(space, &run);
            let meant: Vec<_> = run
                .clone()
                .filter_map(|page| Some((page, Some(self.reference(space, page)?))))
                .map(|(at, page)| (at, page.map(|page| Page { young: false, dirty: false, ..page })))
                .collect();
            self.mean(with, &meant);
            let (mut parent, mut child) = (self.lock(space, run.start), self.lock(with, run.start));
            wrprotect_ptes(&mut parent, self.va(run.start), run.len());
            let pte = ptep_get(&parent, self.va(run.start)).mkclean().mkold();
            set_ptes(&mut child, self.va(run.start), pte, run.len());
            drop((parent, child));
            self.complete();
            let folio = self.spaces[space].folios[&run.start].clone();
            self.insert(with, meant, &folio);
        }
    }

    fn refold(&mut self, space: usize, range: Range<usize>) {
        let block = self.block();
        contpte::refold(&mut self.lock(space, range.start), self.va(range.start), range.len());
        for start in (range.start / block * block..range.end).step_by(block) {
            let why = contpte::why_not_folded(&self.spaces[space].mm, self.va(start));
            assert_ne!(why, Err(Obstacle::None), "a refold left the block of page {start}");
        }
    }

    /// What hardware did since the last [`Self::note_updates`].
    fn updates(&self) -> Vec<Set> {
        let mut noted = self.noted.borrow_mut();
        for Update { table, index, flag, .. } in self.machine.take_updates() {
            let (space, page) = self.page_of(table, index);
            noted.push(Set { space, page, flag });
        }
        noted.clone()
    }

    fn page_of(&self, table: TableFrame, index: usize) -> (usize, usize) {
        let tables = self.pages() / self.table_pages();
        let place = (0..SPACES).flat_map(|space| (0..tables).map(move |number| (space, number)));
        place
            .into_iter()
            .find_map(|(space, number)| {
                let first = number * self.table_pages();
                let (frame, start) = self.entry(space, first)?;
                (frame == table).then(|| (space, first + index - start))
            })
            .expect("hardware updates tables that are in use")
    }

    /// Takes note of what hardware did: what it set, it set; unless `cleared` says that the operation took such flags away,
    /// before or after. The rest of the block may have got it too, if it was folded at some time.
    fn note_updates(&mut self, cleared: impl Fn(&Set) -> bool) {
        self.updates();
        for set in self.noted.take() {
            let dirty = set.flag == Flag::Dirty;
            if !cleared(&set)
                && let Some(page) = self.spaces[set.space].reference.pages.get_mut(&set.page)
            {
                page.young = true;
                page.dirty |= dirty;
            }
            let first = set.page / self.block() * self.block();
            (first..first + self.block()).for_each(|page| self.may_be(set.space, page, set.flag));
        }
    }

    fn may_be(&mut self, space: usize, page: usize, flag: Flag) {
        let slack = self.spaces[space].reference.slack.entry(page).or_default();
        slack.young = true;
        slack.dirty |= flag == Flag::Dirty;
    }
}
