//! What each page is meant to be, and that it is so after each change.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::marker::PhantomData;
use core::ops::Range;

use arch::{Mmu, Pfn, PhysAddr, PteFlags, PteValue, VirtAddr};
use mm::contpte::{cont_ptes, refold, why_not_folded};
use mm::counters::Counter;
use mm::frame::Folio;
use mm::pte::{Pte, UserProt};
use mm::ptep::{clear_ptes, pte_batch_hint, ptep_get, ptep_get_lockless, set_ptes};
use mm::{Mm, PteGuard};

use super::{Access, Fault, Machine};

/// Where the pages of a scenario begin: so that a last-level table of any granule does.
const BASE: u64 = 0x40_0000_0000;
/// Where in a page its byte is: not where code begins.
const BYTE: u64 = 0x123;

/// What a page is meant to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Page {
    pub(super) pfn: Pfn,
    pub(super) prot: UserProt,
}

impl Page {
    /// The entry for it: young and clean.
    pub(super) fn pte<M: Mmu>(self) -> PteValue {
        PteValue::new_user(self.pfn.addr(M::GRANULE), self.prot)
    }
}

/// The pages of one scenario, by their number from [`BASE`] on.
pub(super) struct World<'s, 'm, S: Machine<'m>> {
    pub(super) machine: &'s S,
    /// Those that are mapped or once were.
    pages: RefCell<BTreeMap<usize, Option<Page>>>,
    /// The byte of each frame that was given out.
    bytes: RefCell<BTreeMap<Pfn, u8>>,
    next_byte: Cell<u8>,
    lifetime: PhantomData<&'m ()>,
}

impl<'s, 'm, S: Machine<'m>> World<'s, 'm, S> {
    /// PTEs of a block.
    pub(super) const BLOCK: usize = cont_ptes::<S::M>();

    pub(super) fn new(machine: &'s S) -> Self {
        let (pages, bytes) = (RefCell::default(), RefCell::default());
        Self { machine, pages, bytes, next_byte: Cell::new(1), lifetime: PhantomData }
    }

    pub(super) fn mm(&self) -> &'s Mm<'m, S::M> {
        self.machine.mm()
    }

    pub(super) fn va(page: usize) -> VirtAddr {
        VirtAddr::new(BASE + page as u64 * S::M::GRANULE.page_size())
    }

    fn byte_at(pfn: Pfn) -> PhysAddr {
        PhysAddr::new(pfn.addr(S::M::GRANULE).get() + BYTE)
    }

    fn byte_va(page: usize) -> VirtAddr {
        VirtAddr::new(Self::va(page).get() + BYTE)
    }

    /// A folio of this many pages, each with a byte of its own.
    pub(super) fn alloc(&self, pages: usize) -> Folio<'m> {
        let folio = self.machine.frames().alloc(pages.ilog2() as u8).expect("memory for a scenario");
        for pfn in (0..pages as u64).map(|page| folio.head().add(page)) {
            let byte = self.next_byte.get();
            // 251 is a prime: pages at the same place in different blocks differ.
            self.next_byte.set(byte % 251 + 1);
            self.set_byte(pfn, byte);
        }
        folio
    }

    /// What the byte of a frame is meant to be from now on, and is.
    pub(super) fn set_byte(&self, pfn: Pfn, byte: u8) {
        self.machine.set_byte(Self::byte_at(pfn), byte);
        self.bytes.borrow_mut().insert(pfn, byte);
    }

    /// Sets a byte at the beginning of a frame, which is not looked at.
    pub(super) fn set_code(&self, pfn: Pfn, offset: u64, byte: u8) {
        self.machine.set_byte(PhysAddr::new(pfn.addr(S::M::GRANULE).get() + offset), byte);
    }

    /// What the byte of a frame is meant to be.
    pub(super) fn byte(&self, pfn: Pfn) -> u8 {
        self.bytes.borrow()[&pfn]
    }

    /// What a page is meant to be.
    pub(super) fn page(&self, page: usize) -> Page {
        self.meant(page).expect("a page that is mapped")
    }

    fn meant(&self, page: usize) -> Option<Page> {
        self.pages.borrow().get(&page).copied().flatten()
    }

    pub(super) fn lock(&self, page: usize) -> PteGuard<'s, 'm, S::M> {
        self.mm().lock_table(Self::va(page), self.machine.tables()).expect("memory for tables")
    }

    /// The entry of a page as [`ptep_get`] tells it.
    pub(super) fn get(&self, page: usize) -> PteValue {
        ptep_get(&self.lock(page), Self::va(page))
    }

    pub(super) fn counter(&self, counter: Counter) -> u64 {
        self.mm().counters().get(counter)
    }

    /// Runs `act` with the table of `pages` locked. It makes of each page what `meant` says. When the lock is released,
    /// that is what everybody sees, as is tried.
    pub(super) fn change<R>(
        &self,
        pages: Range<usize>,
        meant: impl Fn(usize) -> Option<Page>,
        act: impl FnOnce(&mut PteGuard<'_, 'm, S::M>) -> R,
    ) -> R {
        let result = self.change_unseen(pages, meant, act);
        self.see();
        result
    }

    /// As [`Self::change`], and it is not tried.
    pub(super) fn change_unseen<R>(
        &self,
        pages: Range<usize>,
        meant: impl Fn(usize) -> Option<Page>,
        act: impl FnOnce(&mut PteGuard<'_, 'm, S::M>) -> R,
    ) -> R {
        let entry = |page| meant(page).map_or(PteValue::NONE, Page::pte::<S::M>);
        let entries: Vec<_> = pages.clone().map(|page| (Self::va(page), entry(page))).collect();
        let operation = self.machine.begin(&entries);
        let result = act(&mut self.lock(pages.start));
        self.machine.end(operation);
        self.pages.borrow_mut().extend(pages.map(|page| (page, meant(page))));
        result
    }

    /// As [`Self::change`], of pages that stay what they are.
    pub(super) fn same<R>(
        &self,
        pages: Range<usize>,
        act: impl FnOnce(&mut PteGuard<'_, 'm, S::M>) -> R,
    ) -> R {
        let meant = self.pages.borrow().clone();
        self.change(pages, |page| meant.get(&page).copied().flatten(), act)
    }

    /// As [`Self::change`], of pages that change their permission only.
    pub(super) fn protect<R>(
        &self,
        pages: Range<usize>,
        prot: UserProt,
        act: impl FnOnce(&mut PteGuard<'_, 'm, S::M>) -> R,
    ) -> R {
        let meant = self.pages.borrow().clone();
        let meant = |page: usize| meant.get(&page).copied().flatten().map(|page| Page { prot, ..page });
        self.change(pages, meant, act)
    }

    /// Runs `act` with the table of the first pages locked. All pages stay what they are; nothing is looked at.
    pub(super) fn quietly<R>(&self, act: impl FnOnce(&mut PteGuard<'_, 'm, S::M>) -> R) -> R {
        act(&mut self.lock(0))
    }

    /// Maps `nr` pages from `page` on, in one batch, to frames from `pfn` on.
    pub(super) fn set(&self, page: usize, nr: usize, pfn: Pfn, prot: UserProt) {
        let meant = |at: usize| Some(Page { pfn: pfn.add((at - page) as u64), prot });
        let pte = Page { pfn, prot }.pte::<S::M>();
        self.change(page..page + nr, meant, |guard| set_ptes(guard, Self::va(page), pte, nr));
    }

    /// A block of a folio of its own, mapped and folded.
    pub(super) fn block(&self, page: usize, prot: UserProt) -> Folio<'m> {
        let folio = self.alloc(Self::BLOCK);
        self.set(page, Self::BLOCK, folio.head(), prot);
        self.expect_folded(page, true);
        folio
    }

    /// Two blocks of one folio, mapped and folded.
    pub(super) fn two_blocks(&self, prot: UserProt) -> Folio<'m> {
        let folio = self.alloc(2 * Self::BLOCK);
        self.set(0, 2 * Self::BLOCK, folio.head(), prot);
        self.expect_folded(0, true);
        self.expect_folded(Self::BLOCK, true);
        folio
    }

    /// Whether the block of a page is folded, as everyone tells it who knows.
    #[track_caller]
    pub(super) fn expect_folded(&self, page: usize, expected: bool) {
        let why = why_not_folded(self.mm(), Self::va(page));
        assert_eq!(why.is_ok(), expected, "page {page}: {why:?}");
        let guard = self.lock(page);
        assert_eq!(ptep_get(&guard, Self::va(page)).is_folded(), expected, "page {page}");
        let hint = if expected { Self::BLOCK - page % Self::BLOCK } else { 1 };
        assert_eq!(pte_batch_hint(&guard, Self::va(page)), hint, "page {page}");
    }

    /// Folds these blocks again, and whether that many could be.
    #[track_caller]
    pub(super) fn refold(&self, pages: Range<usize>, blocks: usize) {
        let folded = self.same(pages.clone(), |guard| refold(guard, Self::va(pages.start), pages.len()));
        assert_eq!(folded, blocks, "blocks of pages {pages:?}");
    }

    /// A CPU writes a byte to a page, and finds it. It must be noticed.
    #[track_caller]
    pub(super) fn write(&self, cpu: usize, page: usize, byte: u8) {
        let (cpu, va) = (self.cpu(cpu), Self::byte_va(page));
        assert_eq!(
            self.machine.access(cpu, &[(va, Access::Write(byte))]),
            [Ok(byte)],
            "page {page}, CPU {cpu}"
        );
        let Page { pfn, .. } = self.page(page);
        assert_eq!(
            self.machine.byte(Self::byte_at(pfn)),
            byte,
            "page {page}: the write of CPU {cpu} went elsewhere"
        );
        self.bytes.borrow_mut().insert(pfn, byte);
        assert!(self.get(page).is_dirty(), "page {page} was written to, and is clean");
    }

    /// Every CPU tries to write to a page, and can't.
    #[track_caller]
    pub(super) fn expect_no_write(&self, page: usize) {
        for cpu in 0..self.machine.cpus() {
            let result = self.machine.access(cpu, &[(Self::byte_va(page), Access::Write(0xee))]);
            assert_eq!(result, [Err(Fault::Permission)], "page {page}, CPU {cpu}");
        }
        let Page { pfn, .. } = self.page(page);
        assert_eq!(self.machine.byte(Self::byte_at(pfn)), self.byte(pfn), "page {page} was written to");
    }

    /// A CPU reads a page.
    #[track_caller]
    pub(super) fn read(&self, cpu: usize, page: usize) {
        let (cpu, va) = (self.cpu(cpu), Self::byte_va(page));
        let expected = self.byte(self.page(page).pfn);
        assert_eq!(self.machine.access(cpu, &[(va, Access::Read)]), [Ok(expected)], "page {page}, CPU {cpu}");
    }

    /// Every CPU executes the beginning of a page.
    #[track_caller]
    pub(super) fn expect_execute(&self, page: usize, expected: Result<u8, Fault>) {
        for cpu in 0..self.machine.cpus() {
            let result = self.machine.access(cpu, &[(Self::va(page), Access::Execute)]);
            assert_eq!(result, [expected], "page {page}, CPU {cpu}");
        }
    }

    /// Uses the pages from another CPU while `act` runs.
    pub(super) fn while_used(&self, pages: Range<usize>, mut act: impl FnMut()) {
        let addresses: Vec<_> = pages.clone().map(Self::byte_va).collect();
        self.machine.while_used(&addresses, &mut act);
        for pfn in pages.map(|page| self.page(page).pfn) {
            self.bytes.borrow_mut().insert(pfn, self.machine.byte(Self::byte_at(pfn)));
        }
        self.see();
    }

    /// A CPU of this number, or the one there is.
    fn cpu(&self, cpu: usize) -> usize {
        cpu.min(self.machine.cpus() - 1)
    }

    /// What the tables say of the pages, and what every CPU reads, is what is meant. Afterwards all are young.
    #[track_caller]
    pub(super) fn see(&self) {
        let shown = self.shown();
        for &page in &shown {
            self.check_entry(page);
        }
        let reads: Vec<_> = shown.iter().map(|&page| (Self::byte_va(page), Access::Read)).collect();
        let meant = |page| self.meant(page).map_or(Err(Fault::Translation), |page| Ok(self.byte(page.pfn)));
        for cpu in 0..self.machine.cpus() {
            for (page, result) in shown.iter().zip(self.machine.access(cpu, &reads)) {
                assert_eq!(result, meant(*page), "page {page}, CPU {cpu}");
            }
        }
        for &page in shown.iter().filter(|&&page| self.meant(page).is_some()) {
            assert!(self.get(page).is_young(), "page {page} was read, and is old");
        }
        self.machine.check();
    }

    /// Whether a page is always looked at: each one, or where blocks are large, those at their edges.
    pub(super) fn is_shown(page: usize) -> bool {
        Self::BLOCK <= 16 || [0, 1, Self::BLOCK / 2, Self::BLOCK - 1].contains(&(page % Self::BLOCK))
    }

    /// The pages that are looked at: of those that are mapped or once were, and those beside them, what
    /// [`Self::is_shown`] says, and what differs from its neighbours.
    fn shown(&self) -> Vec<usize> {
        let prot = |page: usize| self.meant(page).map(|page| page.prot);
        let near = |page: usize| [page.checked_sub(1), Some(page), Some(page + 1)].into_iter().flatten();
        let candidates: BTreeSet<usize> = self.pages.borrow().keys().flat_map(|&page| near(page)).collect();
        let differs = |page: usize| near(page).any(|other| prot(other) != prot(page));
        candidates.into_iter().filter(|&page| Self::is_shown(page) || differs(page)).collect()
    }

    /// The entry of a page is what is meant, with and without the lock, and so is its block.
    #[track_caller]
    fn check_entry(&self, page: usize) {
        let va = Self::va(page);
        let pte = self.get(page);
        let mut lockless = Ok(PteValue::NONE);
        self.machine.masked(&mut |masked| lockless = ptep_get_lockless(self.mm(), va, masked));
        assert_eq!(lockless, Ok(pte), "page {page}");
        let Some(meant) = self.meant(page) else {
            assert!(!pte.is_valid(), "page {page} is {pte:?}");
            return;
        };
        let expected = meant.pte::<S::M>();
        let without_special = pte.without(PteFlags::SPECIAL).attributes();
        assert_eq!(without_special, expected.attributes(), "page {page}");
        if pte.is_folded() {
            let first = page - page % Self::BLOCK;
            for other in [first, first + Self::BLOCK - 1] {
                assert!(self.get(other).is_folded(), "page {page} is folded, and page {other} is not");
            }
        }
    }

    /// Unmaps what is left. All frames that the scenario still has may be freed then.
    pub(super) fn finish(self) {
        let mut left: Vec<usize> = self.pages.borrow().keys().copied().collect();
        left.retain(|&page| self.meant(page).is_some());
        let table = |page: usize| page / S::M::GRANULE.entries();
        for run in left.chunk_by(|&one, &next| next == one + 1 && table(one) == table(next)) {
            self.change(
                run[0]..run[0] + run.len(),
                |_| None,
                |guard| {
                    clear_ptes(guard, Self::va(run[0]), run.len());
                },
            );
        }
    }
}
