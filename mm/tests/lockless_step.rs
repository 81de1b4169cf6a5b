//! `ptep_get_lockless` with one change between two of its loads, at each place where there may be one: what it returns is
//! what the block was before or after. What threads find by chance (`lockless.rs`) and loom in blocks of 4, in one thread
//! and the same in every run.
#![cfg(not(loom))]

use std::cell::{Cell, RefCell};

use arch::mmu::{Features, Hafdbs, Slot};
use arch::tlbi::Tlbi;
use arch::{Granule, Mmu, Pfn, PhysAddr, PteFlags, PteValue, TableFrame, VirtAddr};
use pleat_mm::contpte::{Obstacle, why_not_folded};
use pleat_mm::frame::{Folio, Frame, FrameMap, Zone};
use pleat_mm::pte::{Pte, UserProt};
use pleat_mm::ptep::*;
use pleat_mm::{Mm, PteGuard, TableAlloc};

const BLOCK: usize = 16;
/// One block in the middle of a table.
const FIRST: usize = 32;

/// Whether a load of an entry is to be noticed, and what happens before it.
type OnLoad = Box<dyn FnMut(usize)>;

/// One table of each level, on which something may happen before each load of a leaf.
struct Machine {
    slots: [[Slot; Granule::K4.entries()]; 4],
    on_load: RefCell<Option<OnLoad>>,
}

impl TableAlloc for Machine {
    fn alloc_table(&self, level: u8) -> Option<TableFrame> {
        // SAFETY: each level's table is made once, by whoever maps first; `slots` finds it.
        Some(unsafe { TableFrame::new(PhysAddr::new(u64::from(level) << 12), level) })
    }
}

// SAFETY: each frame has slots of its own, which live as long as the machine.
unsafe impl Mmu for &'static Machine {
    const GRANULE: Granule = Granule::K4;

    fn slots(&self, frame: TableFrame) -> &[Slot] {
        &self.slots[(frame.pa().get() >> 12) as usize]
    }

    fn load(&self, slot: &Slot) -> u64 {
        let index = self.slots[3].iter().position(|other| std::ptr::eq(other, slot));
        // Not while it happens: a change loads, too.
        if let Some(index) = index
            && let Some(mut on_load) = self.on_load.take()
        {
            on_load(index);
            *self.on_load.borrow_mut() = Some(on_load);
        }
        slot.load()
    }

    fn features(&self) -> Features {
        Features { tlb_range: false, hafdbs: Hafdbs::None, bbm_no_abort: false }
    }

    fn publish(&self) {}

    fn invalidate(&self, _: Tlbi) {}

    fn complete(&self) {}

    fn invalidate_local(&self, _: Tlbi) {}
}

fn va(page: usize) -> VirtAddr {
    VirtAddr::new(0x40_0000_0000 + (FIRST + page) as u64 * 0x1000)
}

/// An address space and two folios of a block each; for ever, a test ends soon.
#[derive(Clone, Copy)]
struct World {
    mm: &'static Mm<'static, &'static Machine>,
    folios: &'static [Folio<'static>; 2],
}

impl World {
    fn new() -> Self {
        let records: &'static [Frame] = (0..2 * BLOCK).map(|_| Frame::new()).collect::<Vec<_>>().leak();
        let zones: &'static [Zone<'static>] = vec![Zone::new(Pfn::new(0x1000), records)].leak();
        let frames: &'static FrameMap<'static> = Box::leak(Box::new(FrameMap::new(zones, None)));
        frames.release(zones[0].range());
        let slots = [const { [const { Slot::new() }; Granule::K4.entries()] }; 4];
        let machine: &'static Machine = Box::leak(Box::new(Machine { slots, on_load: RefCell::default() }));
        let root = machine.alloc_table(0).unwrap();
        Self {
            mm: Box::leak(Box::new(Mm::new_user(machine, root, frames))),
            folios: Box::leak(Box::new([(); 2].map(|()| frames.alloc(BLOCK.ilog2() as u8).unwrap()))),
        }
    }

    fn lock(self) -> PteGuard<'static, 'static, &'static Machine> {
        self.mm.lock_table(va(0), *self.mm.mmu()).unwrap()
    }

    /// The folio's entry for a page: young and clean.
    fn pte(self, folio: usize, page: usize, prot: UserProt) -> PteValue {
        PteValue::new_user(self.folios[folio].head().add(page as u64).addr(Granule::K4), prot)
    }

    fn map(self, folio: usize, prot: UserProt) {
        set_ptes(&mut self.lock(), va(0), self.pte(folio, 0, prot), BLOCK);
    }

    fn clear(self) {
        clear_ptes(&mut self.lock(), va(0), BLOCK);
    }

    /// A write to a page by an agent that clears `RDONLY` of its entry alone.
    fn write(self, page: usize) {
        let slot = &self.mm.mmu().slots[3][FIRST + page];
        // SAFETY: of a leaf, only the dirty state changes.
        unsafe { slot.store(slot.load() & !PteFlags::RDONLY.bits()) };
    }

    fn read(self, page: usize) -> Result<PteValue, Busy> {
        ptep_get_lockless(self.mm, va(page), &LocklessGuard::interrupts_masked())
    }
}

/// For each page and each load of the read: `before`, then the read, before whose n-th load `change` happens. It returns
/// the page as it was or as it is, young and dirty of the block included.
fn at_each_load(before: fn(World), change: fn(World)) {
    for page in 0..BLOCK {
        for load in 1.. {
            let w = World::new();
            before(w);
            let old = ptep_get(&w.lock(), va(page));
            let loads = std::rc::Rc::new(Cell::new(0));
            let counter = loads.clone();
            *w.mm.mmu().on_load.borrow_mut() = Some(Box::new(move |_| {
                counter.set(counter.get() + 1);
                if counter.get() == load {
                    change(w);
                }
            }));
            let read = w.read(page).expect("one change is no reason to give up");
            w.mm.mmu().on_load.take();
            let new = ptep_get(&w.lock(), va(page));
            if loads.get() < load {
                assert_eq!((read, new), (old, old), "page {page}, nothing happened");
                break;
            }
            assert!(
                read == old || read == new,
                "page {page}, load {load}: {read:?} is neither {old:?} nor {new:?}"
            );
        }
    }
}

#[test]
fn an_unfold() {
    at_each_load(
        |w| {
            w.map(0, UserProt::ReadWrite);
            w.write(BLOCK - 1);
        },
        // Of each page but the protected one, nothing changes but the Contiguous bit.
        |w| wrprotect_ptes(&mut w.lock(), va(7), 1),
    );
}

#[test]
fn another_folio_that_is_dirty() {
    at_each_load(
        |w| w.map(0, UserProt::ReadWrite),
        |w| {
            w.clear();
            w.map(1, UserProt::ReadWrite);
            w.write(5);
        },
    );
}

#[test]
fn another_permission_of_all_pages() {
    at_each_load(
        |w| {
            w.map(0, UserProt::ReadWrite);
            w.write(3);
        },
        |w| {
            w.clear();
            w.map(0, UserProt::ReadExecute);
        },
    );
}

#[test]
fn a_fold() {
    at_each_load(
        |w| {
            for page in 0..BLOCK - 1 {
                set_ptes(&mut w.lock(), va(page), w.pte(0, page, UserProt::ReadWrite), 1);
            }
        },
        |w| {
            let last = w.pte(0, BLOCK - 1, UserProt::ReadWrite);
            set_ptes(&mut w.lock(), va(BLOCK - 1), last, 1);
            assert_eq!(why_not_folded(w.mm, va(0)), Ok(()));
        },
    );
}

#[test]
fn everything_goes() {
    at_each_load(|w| w.map(0, UserProt::ReadWrite), World::clear);
}

/// A block that is another one at each load is no block; the reader is told so, in finitely many loads.
#[test]
fn a_block_that_never_stays_the_same() {
    let w = World::new();
    w.map(0, UserProt::ReadWrite);
    let loads = std::rc::Rc::new(Cell::new(0));
    let counter = loads.clone();
    *w.mm.mmu().on_load.borrow_mut() = Some(Box::new(move |_| {
        counter.set(counter.get() + 1);
        w.clear();
        w.map(counter.get() % 2, UserProt::ReadWrite);
    }));
    assert_eq!(w.read(9), Err(Busy));
    assert!((64..=64 * 17).contains(&loads.get()), "{} loads", loads.get());
}

/// What is not folded is one load.
#[test]
fn a_page_alone_is_read_once() {
    for map in [
        (|w| set_ptes(&mut w.lock(), va(3), w.pte(0, 3, UserProt::Read), 1)) as fn(World),
        // Nothing is there.
        |w| drop(w.lock()),
    ] {
        let w = World::new();
        map(w);
        let loads = std::rc::Rc::new(Cell::new(0));
        let counter = loads.clone();
        *w.mm.mmu().on_load.borrow_mut() = Some(Box::new(move |_| counter.set(counter.get() + 1)));
        let read = w.read(3);
        assert_eq!(loads.get(), 1);
        w.mm.mmu().on_load.take();
        assert_eq!(read, Ok(ptep_get(&w.lock(), va(3))));
    }
    assert_eq!(World::new().read(3), Ok(PteValue::NONE), "no table");
    assert_eq!(why_not_folded(World::new().mm, va(3)), Err(Obstacle::NoTable));
}
