//! The machine that tests run on.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::marker::PhantomData;
use core::ptr;

use arch::mmu::{Features, Hafdbs, Slot};
use arch::tlbi::Tlbi;
use arch::{Granule, Mmu, PhysAddr, TableFrame, VirtAddr};
use spin::{Mutex, Once};

use crate::checker::Checker;
use crate::descriptor::{Descriptor, TTBR1_BASE, decode, leaf_size, reachable_slots, root_level};
use crate::event::Event;
use crate::violation::Violation;

/// A translation granule as a type.
pub trait GranuleType {
    /// Which it is.
    const GRANULE: Granule;
}

macro_rules! granule_types {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $($(#[$doc])*
        pub struct $name;

        impl GranuleType for $name {
            const GRANULE: Granule = Granule::$name;
        })*
    };
}
granule_types! {
    /// Pages of 4 KiB.
    K4
    /// Pages of 16 KiB.
    K16
    /// Pages of 64 KiB.
    K64
}

/// A leaf that [`Recorder::leaves`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The first address that it translates.
    pub va: VirtAddr,
    /// The level of its table.
    pub level: u8,
    /// The first physical address.
    pub pa: PhysAddr,
    /// The descriptor in memory.
    pub raw: u64,
}

/// Where table frames begin: so high that every bit of an address field is used by some.
const FRAMES: u64 = 0xffff_f000_0000;

/// An MMU without a machine: its tables are in host memory, and what it is told is recorded and judged.
///
/// A reference to it implements [`Mmu`], so that several address spaces and the test can share it.
pub struct Recorder<G> {
    /// Frames for tables, each made when it is allocated, and never moved or freed.
    frames: Box<[Once<Box<[Slot]>>]>,
    state: Mutex<State>,
    granule: PhantomData<G>,
}

struct State {
    /// The tables so far, in the order of their frames.
    tables: Vec<TableFrame>,
    /// The frame whose slots begin at an address of the host.
    by_address: BTreeMap<usize, usize>,
    /// How many more tables may be allocated; `None` for no limit.
    left: Option<usize>,
    /// The events of the operation that is going on.
    events: Vec<Event>,
    checker: Checker,
}

impl State {
    fn record(&mut self, event: Event) {
        self.checker.observe(&event);
        self.events.push(event);
    }
}

impl<G: GranuleType> Recorder<G> {
    /// A machine with memory for this many tables.
    pub fn new(frames: usize) -> Self {
        Self {
            frames: (0..frames).map(|_| Once::new()).collect(),
            state: Mutex::new(State {
                tables: Vec::new(),
                by_address: BTreeMap::new(),
                left: None,
                events: Vec::new(),
                checker: Checker::new(G::GRANULE),
            }),
            granule: PhantomData,
        }
    }

    /// A root table for TTBR1, published as by the code that would load it. It doesn't count against
    /// [`limit_tables`](Self::limit_tables).
    ///
    /// # Panics
    /// Where the memory is used up.
    pub fn new_root(&self) -> TableFrame {
        let mut state = self.state.lock();
        let root = self.new_table(&mut state, root_level(G::GRANULE)).expect("memory for a root table");
        state.record(Event::Publish);
        root
    }

    /// A zeroed table of `level`, or `None` where the memory is used up or the limit is reached.
    pub fn alloc_table(&self, level: u8) -> Option<TableFrame> {
        let mut state = self.state.lock();
        if let Some(left) = &mut state.left {
            *left = left.checked_sub(1)?;
        }
        self.new_table(&mut state, level)
    }

    /// Lets `n` more allocations succeed and those after it fail; `None` lets all succeed.
    pub fn limit_tables(&self, n: Option<usize>) {
        self.state.lock().left = n;
    }

    fn new_table(&self, state: &mut State, level: u8) -> Option<TableFrame> {
        let index = state.tables.len();
        let slots = self
            .frames
            .get(index)?
            .call_once(|| (0..G::GRANULE.page_size() / 8).map(|_| Slot::new()).collect());
        let pa = PhysAddr::new(FRAMES + index as u64 * G::GRANULE.page_size());
        // SAFETY: the frame is given out once; `slots` finds it, zeroed and a page long.
        let table = unsafe { TableFrame::new(pa, level) };
        state.tables.push(table);
        state.by_address.insert(ptr::from_ref(&slots[0]).addr(), index);
        state.record(Event::Create(table));
        Some(table)
    }

    /// How many tables there are, roots among them.
    pub fn tables(&self) -> usize {
        self.state.lock().tables.len()
    }

    /// What happened since the last operation ended.
    pub fn events(&self) -> Vec<Event> {
        self.state.lock().events.clone()
    }

    /// Ends an operation of the code under test.
    ///
    /// # Errors
    /// As [`Checker::end_operation`].
    pub fn end_operation(&self) -> Result<(), Vec<Violation>> {
        let mut state = self.state.lock();
        state.events.clear();
        state.checker.end_operation()
    }

    /// Every leaf that a walk from `root` can reach, in ascending order, read from memory.
    ///
    /// # Panics
    /// Where `root` is not a root table, or a descriptor leads nowhere.
    pub fn leaves(&self, root: TableFrame) -> Vec<Leaf> {
        assert_eq!(root.level(), root_level(G::GRANULE), "not a root table");
        let mut leaves = Vec::new();
        self.collect(root.pa().get(), root.level(), TTBR1_BASE, &mut leaves);
        leaves
    }

    fn collect(&self, table: u64, level: u8, base: u64, leaves: &mut Vec<Leaf>) {
        let slots = self.frame(table).expect("a table descriptor leads nowhere");
        for (slot, index) in slots[..reachable_slots(G::GRANULE, level)].iter().zip(0..) {
            let (raw, va) = (slot.load(), base + index * leaf_size(G::GRANULE, level));
            match decode(G::GRANULE, level, raw) {
                Descriptor::Invalid | Descriptor::Reserved => {}
                Descriptor::Table(next) => self.collect(next, level + 1, va, leaves),
                Descriptor::Leaf(pa) => {
                    leaves.push(Leaf { va: VirtAddr::new(va), level, pa: PhysAddr::new(pa), raw });
                }
            }
        }
    }

    fn frame(&self, pa: u64) -> Option<&[Slot]> {
        let index = pa.checked_sub(FRAMES)? / G::GRANULE.page_size();
        self.frames.get(usize::try_from(index).ok()?)?.get().map(|slots| &**slots)
    }
}

// SAFETY: a frame's slots are made once, at its allocation, a page of them, and stay where they are until
// the recorder is dropped, which outlives the reference.
unsafe impl<G: GranuleType> Mmu for &Recorder<G> {
    const GRANULE: Granule = G::GRANULE;

    fn slots(&self, frame: TableFrame) -> &[Slot] {
        self.frame(frame.pa().get()).expect("a table of this machine")
    }

    unsafe fn store(&self, slot: &Slot, raw: u64) {
        // SAFETY: the caller keeps the contract of `store`, which is that of `swap`.
        unsafe { self.swap(slot, raw) };
    }

    unsafe fn swap(&self, slot: &Slot, raw: u64) -> u64 {
        let mut state = self.state.lock();
        let address = ptr::from_ref(slot).addr();
        let (&start, &frame) = state.by_address.range(..=address).next_back().expect("a slot of a table");
        let (table, index) = (state.tables[frame], (address - start) / size_of::<Slot>());
        let old = slot.load();
        // SAFETY: the caller keeps the contract of `Slot::store`, which is the same.
        unsafe { slot.store(raw) };
        state.record(Event::Store { table, index, old, new: raw });
        old
    }

    unsafe fn compare_exchange(&self, slot: &Slot, current: u64, new: u64) -> Result<(), u64> {
        // Nothing else writes to the tables, so the two steps are one.
        let old = slot.load();
        if old != current {
            return Err(old);
        }
        // SAFETY: the caller keeps the contract of `compare_exchange`, which is that of `swap`.
        unsafe { self.swap(slot, new) };
        Ok(())
    }

    fn features(&self) -> Features {
        Features { tlb_range: false, hafdbs: Hafdbs::None, bbm_no_abort: false }
    }

    fn publish(&self) {
        self.state.lock().record(Event::Publish);
    }

    fn invalidate(&self, operation: Tlbi) {
        self.state.lock().record(Event::Invalidate(operation));
    }

    fn complete(&self) {
        self.state.lock().record(Event::Complete);
    }

    /// Concerns no other CPU, and so none of what is judged.
    fn invalidate_local(&self, _: Tlbi) {}
}
