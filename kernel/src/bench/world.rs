//! An address space whose calls are counted, and how one call is.

use alloc::format;

use arch::Mmu;
use arch::aarch64::daif;
use arch::aarch64::hardware::{Hardware, LinearMap};
use arch::mmu::Features;
use arch::{MemoryType, PteFlags, PteValue, VirtAddr};
use mm::counters::Counter;
use mm::frame::Folio;
use mm::pte::{Pte, UserProt};
use mm::ptep::{clear_ptes, set_ptes};
use mm::{Mm, PteGuard, TableAlloc};

use super::operations::{Counted, Counting, Least, Operations};
use super::{REPETITIONS, overhead};
use crate::selftest::Scratch;
use crate::selftest::harness::Unmet;
use crate::vm::{GRANULE, PAGE};
use crate::{cpu, memory, user};

/// Pages of the block, and the order of its folio.
const PAGES: usize = 16;
const ORDER: u8 = 4;

pub(super) type Guard<'a, M> = PteGuard<'a, 'static, M>;

/// Changes an entry before it is set.
pub(super) type Change = fn(PteValue) -> PteValue;

/// What the block is before the call.
#[derive(Clone, Copy)]
pub(super) enum State {
    /// No page of it is mapped.
    Empty,
    /// All of its pages are, and it is not folded, though it might be.
    Pages(Change),
    /// It is folded.
    Folded(Change),
    /// All but the last page, whose setting folds it.
    AllButLast,
    /// The same; but one of them may not be written to, so it can't be folded.
    AllButLastMixed,
}

/// Where a call is made, with which arguments.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub va: VirtAddr,
    pub pte: PteValue,
    pub nr: usize,
}

/// One call in one situation.
pub(super) struct Row<M: Counted> {
    pub call: &'static str,
    pub on: &'static str,
    pub state: State,
    /// The first page, and how many.
    pub page: usize,
    pub nr: usize,
    /// The frame of its folio that the entry maps: that of the page.
    pub frame: usize,
    /// What the entry is that is set: young, clean and writable.
    pub pte: Change,
    /// Makes the call and returns the ticks that it took, with [`overhead`].
    pub run: fn(&mut Guard<'_, M>, At) -> u64,
    pub least: fn(Least) -> Operations,
    /// Pages whose flush the call must leave to the guard.
    pub owed: u64,
}

impl<M: Counted> Row<M> {
    pub(super) fn new(
        (call, on): (&'static str, &'static str),
        state: State,
        (page, nr): (usize, usize),
        run: fn(&mut Guard<'_, M>, At) -> u64,
        least: fn(Least) -> Operations,
    ) -> Self {
        Self { call, on, state, page, nr, frame: page, pte: |pte| pte, run, least, owed: 0 }
    }

    pub(super) fn pte(self, pte: Change) -> Self {
        Self { pte, ..self }
    }

    pub(super) fn frame(self, frame: usize) -> Self {
        Self { frame, ..self }
    }

    pub(super) fn owes(self, owed: u64) -> Self {
        Self { owed, ..self }
    }
}

/// What a call cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cost {
    /// Instructions of the call, without its return.
    pub instructions: u64,
    /// What the call told the MMU.
    pub issued: Operations,
    /// What the guard tells it because of the call, before it releases the lock or the page becomes valid again.
    pub owed: Operations,
    /// How often the gate of `contpte` refused.
    pub refused: u64,
}

/// Whose address space.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    User,
    Kernel,
}

/// An address space with a folio of one block.
struct World<M: Counted> {
    mm: Mm<'static, M>,
    folio: Folio<'static>,
    owner: Owner,
    /// Dropped last: it gives the tables back.
    tables: Scratch,
}

impl<M: Counted> World<M> {
    fn new(owner: Owner) -> Self {
        let tables = Scratch::new(crate::vm::GRANULE);
        let root = tables.alloc_table(0).expect("there is memory for a root table");
        let folio = memory::frames().alloc(ORDER).expect("there is memory for a block");
        let mm = match owner {
            Owner::User => Mm::new_user(M::new(), root, memory::frames()),
            Owner::Kernel => Mm::new_kernel(M::new(), root),
        };
        if let Some(context) = mm.context() {
            // It needs an ASID, or nothing would be flushed. What is in TTBR0 does not matter to what is counted.
            daif::masked(|| {
                user::asids().switch_to(mm.mmu(), cpu::index(), context);
                user::asids().leave(cpu::index());
            });
        }
        Self { mm, folio, owner, tables }
    }

    fn va(&self, page: usize) -> VirtAddr {
        let base = match self.owner {
            Owner::User => 0x40_0000,
            Owner::Kernel => 0xffff_0000_0040_0000,
        };
        VirtAddr::new(base + page as u64 * PAGE)
    }

    fn pte(&self, frame: usize) -> PteValue {
        let pa = self.folio.head().add(frame as u64).addr(GRANULE);
        match self.owner {
            Owner::User => PteValue::new_user(pa, UserProt::ReadWrite),
            Owner::Kernel => {
                let flags = PteFlags::AF | PteFlags::PXN | PteFlags::UXN | PteFlags::INNER_SHAREABLE;
                PteValue::leaf(pa, MemoryType::Normal, flags)
            }
        }
    }

    fn lock(&self) -> Guard<'_, M> {
        self.mm.lock_table(self.va(0), &self.tables).expect("there is memory for tables")
    }

    fn prepare(&self, guard: &mut Guard<'_, M>, state: State) {
        let mut set = |page, change: Change| set_ptes(guard, self.va(page), change(self.pte(page)), 1);
        match state {
            State::Empty => {}
            // The last one first: so nothing folds.
            State::Pages(change) => {
                [PAGES - 1].into_iter().chain(0..PAGES - 1).for_each(|page| set(page, change))
            }
            State::Folded(change) => set_ptes(guard, self.va(0), change(self.pte(0)), PAGES),
            State::AllButLast => (0..PAGES - 1).for_each(|page| set(page, |pte| pte)),
            State::AllButLastMixed => (0..PAGES - 1)
                .for_each(|page| set(page, if page == PAGES - 2 { PteValue::wrprotect } else { |pte| pte })),
        }
    }

    /// The cost of the call, if it is always the same. No interrupt may come in between.
    fn cost(&self, row: &Row<M>) -> Result<Cost, Unmet> {
        let mut first = None;
        for _ in 0..REPETITIONS {
            let mut guard = self.lock();
            self.prepare(&mut guard, row.state);
            guard.flush();
            let at = At { va: self.va(row.page), pte: (row.pte)(self.pte(row.frame)), nr: row.nr };
            let mmu = self.mm.mmu();
            let refused = self.mm.counters().get(Counter::RefusedByGate);
            mmu.take();
            let ticks = (row.run)(&mut guard, at);
            let issued = mmu.take();
            guard.flush();
            let cost = Cost {
                // Where the counter does not count instructions, this may be less than nothing.
                instructions: ticks.saturating_sub(overhead()),
                issued,
                owed: mmu.take(),
                refused: self.mm.counters().get(Counter::RefusedByGate) - refused,
            };
            clear_ptes(&mut guard, self.va(0), PAGES);
            let first = *first.get_or_insert(cost);
            if cost != first {
                let Row { call, on, .. } = row;
                return Err(Unmet::Failed(format!(
                    "{call}, {on}: one time {first:?}, another time {cost:?}"
                )));
            }
        }
        Ok(first.expect("it was repeated"))
    }
}

impl<M: Counted> Drop for World<M> {
    fn drop(&mut self) {
        if let Some(context) = self.mm.context() {
            daif::masked(|| user::asids().release(self.mm.mmu(), context));
        }
    }
}

/// Two worlds: instructions are counted on the hardware as it is, operations on one that counts them, which costs
/// instructions itself.
pub(super) struct Scales {
    plain: World<Hardware<LinearMap>>,
    counting: World<Counting>,
}

impl Scales {
    pub(super) fn new(owner: Owner) -> Self {
        Self { plain: World::new(owner), counting: World::new(owner) }
    }

    pub(super) fn features(&self) -> Features {
        self.plain.mm.mmu().features()
    }

    /// The cost of a call that is given for both.
    pub(super) fn weigh(
        &self,
        plain: &Row<Hardware<LinearMap>>,
        counting: &Row<Counting>,
    ) -> Result<Cost, Unmet> {
        daif::masked(|| {
            let instructions = self.plain.cost(plain)?.instructions;
            Ok(Cost { instructions, ..self.counting.cost(counting)? })
        })
    }
}
