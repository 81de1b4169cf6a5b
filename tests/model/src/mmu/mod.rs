//! A model of the MMU: for each CPU, the set of *all* translations that the architecture lets a TLB hold.
//!
//! ```text
//!  code under test
//!        │ arch::Mmu: load, store, publish, invalidate, complete         the test: begin(operation, pages), end
//!        ▼                                                                           │
//!   memory: what a walker may read ──▶ TLBs: all that walks could ever yield ──▶ judge ──▶ Violation
//!        ▲                              and that no completed invalidation has taken away
//!   agent: hardware sets AF and dirty; a CPU writes at one moment
//! ```
//!
//! There is no chance in it, but for the agent if a test asks for that: a CPU caches everything that it might cache,
//! and a violation is something that *some* hardware could do.
//!
//! * A store may be seen by walkers at once, and is seen for certain after a DSB of its own CPU ([`Mmu::publish`]).
//! * A valid leaf with the access flag is cached at once. With the Contiguous bit it is cached for its whole group,
//!   even while the others are invalid (RSKQHL). Faults are never cached (RXCLRD). Table descriptors are, for the ASID
//!   at the time.
//! * An invalidation takes away what it covers, page by page, when its own CPU has completed it ([`Mmu::complete`]);
//!   but not what a walk could yield since it was issued. Without the right ASID, granule and level it takes nothing.
//! * Entries that can be in one TLB together must not contradict each other (RWHZWS): [`Rule`].
//! * Of the address spaces that a test [watches](Machine::watch), every cached translation must be one that the
//!   specification allows: the page's own, or during an operation also the one before it.
//!
//! The test decides which CPU acts next: everything happens in one order, which is what a lock makes of it. Two things
//! are simpler than in the architecture, and always to the side of more violations: walkers of all CPUs see a store
//! after the same DSB, and hardware may hold any number of entries for as long as it likes.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicUsize, Ordering};

use arch::features::{BbmLevel, Hafdbs};
use arch::mmu::{Features, Slot};
use arch::tlbi::{Asid, Tlbi};
use arch::{Granule, Mmu, PhysAddr, TableFrame, VirtAddr};
use spin::{Mutex, Once};

use crate::GranuleType;
use crate::descriptor::root_level;

mod access;
mod agent;
mod bits;
mod judge;
mod memory;
mod moment;
mod reference;
mod report;
mod state;
mod tlb;
mod walker;

pub use access::{Access, Kind, Outcome};
pub use agent::{Flag, Update};
pub use moment::{Came, Write};
pub use reference::{AddressSpace, Operation, Page};
pub use report::{Event, Rule, Violation};

use agent::Agent;
use state::State;

/// What machine it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// How many CPUs, 1 to 4.
    pub cpus: usize,
    /// Break-before-make level, of each CPU.
    pub bbm: BbmLevel,
    /// All CPUs are of models with FEAT_BBML2 that are known not to abort.
    pub no_abort_listed: bool,
    /// What hardware sets in descriptors.
    pub hafdbs: Hafdbs,
    /// Bits of an ASID, 8 or 16.
    pub asid_bits: u32,
    /// FEAT_TLBIRANGE.
    pub tlb_range: bool,
    /// FEAT_ETS2.
    pub ets2: bool,
    /// Software handles TLB conflict aborts; else one that is possible is a violation.
    pub conflict_aborts_handled: bool,
}

impl Default for Config {
    /// Two CPUs that can nothing that they need not: BBM level 0, no hardware updates, 8 bits of ASID.
    fn default() -> Self {
        Self {
            cpus: 2,
            bbm: BbmLevel::Level0,
            no_abort_listed: false,
            hafdbs: Hafdbs::None,
            asid_bits: 8,
            tlb_range: false,
            ets2: false,
            conflict_aborts_handled: false,
        }
    }
}

/// A machine with translation tables in host memory. See the [module](self).
///
/// A reference to it is an [`Mmu`]: that of the CPU that [`run_on`](Self::run_on) has chosen.
pub struct Machine<G> {
    /// Frames for tables, each made when it is allocated, and never moved or used again.
    frames: Box<[Once<Arc<[Slot]>>]>,
    state: Mutex<State>,
    running: AtomicUsize,
    config: Config,
    granule: PhantomData<fn() -> G>,
}

/// One CPU of a [`Machine`]: what the code that runs on it has as its [`Mmu`].
pub struct Cpu<'a, G> {
    machine: &'a Machine<G>,
    cpu: usize,
}

impl<G> Clone for Cpu<'_, G> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<G> Copy for Cpu<'_, G> {}

impl<G: GranuleType> Machine<G> {
    /// A machine with memory for this many tables, its CPUs with no TTBR loaded.
    ///
    /// # Panics
    /// Where there are not 1 to 4 CPUs, or ASIDs have neither 8 nor 16 bits.
    pub fn new(config: Config, tables: usize) -> Self {
        assert!((1..=4).contains(&config.cpus) && [8, 16].contains(&config.asid_bits), "{config:?}");
        Self {
            frames: (0..tables).map(|_| Once::new()).collect(),
            state: Mutex::new(State::new(G::GRANULE, config)),
            running: AtomicUsize::new(0),
            config,
            granule: PhantomData,
        }
    }

    /// What machine it is.
    pub fn config(&self) -> Config {
        self.config
    }

    /// The CPU of this number.
    ///
    /// # Panics
    /// Where there is none.
    pub fn cpu(&self, cpu: usize) -> Cpu<'_, G> {
        assert!(cpu < self.config.cpus, "no CPU {cpu}");
        Cpu { machine: self, cpu }
    }

    /// From now on the CPU of this number is the one that a `&Machine` acts for.
    ///
    /// # Panics
    /// Where there is none.
    pub fn run_on(&self, cpu: usize) {
        assert!(cpu < self.config.cpus, "no CPU {cpu}");
        self.running.store(cpu, Ordering::Relaxed);
    }

    /// The CPU that a `&Machine` acts for.
    pub fn running(&self) -> Cpu<'_, G> {
        self.cpu(self.running.load(Ordering::Relaxed))
    }

    /// A table is given back. No walk may lead to it any more; it is not given out again.
    ///
    /// # Panics
    /// Where it is no table of this machine; so for every function that takes one.
    pub fn free_table(&self, table: TableFrame) {
        self.state.lock().free_table(table);
    }

    /// The frame at this address is given back: no TLB may translate to it any more, until [`Self::alloc_frame`].
    pub fn free_frame(&self, frame: PhysAddr) {
        self.state.lock().free_frame(frame.get());
    }

    /// The frame at this address is given out.
    pub fn alloc_frame(&self, frame: PhysAddr) {
        self.state.lock().free_frames.remove(&frame.get());
    }

    /// The frame holds what every other frame with this number holds. A frame for which this is not said holds
    /// something of its own.
    pub fn set_contents(&self, frame: PhysAddr, contents: u64) {
        // Numbers must not be mistaken for addresses of frames.
        self.state.lock().contents.insert(frame.get(), !contents);
    }

    /// From now on judges what accesses to this address space may see. Nothing is mapped in it yet.
    pub fn watch(&self, space: AddressSpace) {
        self.state.lock().watch(space);
    }

    /// No longer judges this address space: its ASID is free.
    pub fn unwatch(&self, space: AddressSpace) {
        self.state.lock().reference.unwatch(space);
    }

    /// An operation begins that is to make these pages what is given. Until it [ends](Self::end), they may be seen as
    /// before too.
    pub fn begin(&self, space: AddressSpace, pages: &[(VirtAddr, Option<Page>)]) -> Operation {
        self.state.lock().begin(space, pages)
    }

    /// The operation's maintenance is complete: its pages may only be seen as it has made them.
    ///
    /// # Panics
    /// Where it has ended already.
    pub fn end(&self, operation: Operation) {
        self.state.lock().end(operation);
    }

    /// Judges everything that TLBs may hold once more. It is judged when it is taken up and when an operation on it
    /// ends; what has changed by other ways since is found by this.
    pub fn audit(&self) {
        self.state.lock().audit();
    }

    /// Every update that hardware may make now.
    pub fn agent_choices(&self) -> Vec<Update> {
        self.state.lock().agent_choices()
    }

    /// Makes an update, if memory still has what it needs. Whether it did.
    pub fn agent_do(&self, update: Update) -> bool {
        self.state.lock().agent_do(update)
    }

    /// Lets hardware make updates at random: before and after one in so many loads and stores of software, near the
    /// slot that they are for.
    pub fn agent_at_random(&self, seed: u64, one_in: u32) {
        self.state.lock().agent = Some(Agent::new(seed, one_in));
    }

    /// Ends what [`Self::agent_at_random`] began. The updates that were made can still be taken.
    pub fn agent_rests(&self) {
        self.state.lock().agent_rests();
    }

    /// The updates that were made at random since this was last asked.
    pub fn take_updates(&self) -> Vec<Update> {
        self.state.lock().take_updates()
    }

    /// Lets a CPU make a store at one moment: before step `number` (from 0) that software does from now on. A step is an access
    /// to the last-level entry of one of the pages of `near`, by its place in whatever table, or an invalidation or barrier:
    /// what lies between two steps makes no difference for entries that are not near. One that was not reached is forgotten.
    pub fn write_before(&self, number: u64, write: Write, near: &[VirtAddr]) {
        self.state.lock().write_before(number, write, near);
    }

    /// Ends what [`Self::write_before`] began: what came of it.
    pub fn moment_is_over(&self) -> Came {
        self.state.lock().moment_is_over()
    }

    /// What a CPU has stored by [`Self::write_before`], and where: for whoever has the memory, once, before he looks at it.
    pub fn take_written(&self) -> Option<(PhysAddr, u32)> {
        self.state.lock().written.take()
    }

    /// What was made visible to instruction fetches since this was last called: first addresses, and bytes.
    pub fn take_fetchable(&self) -> Vec<(PhysAddr, u64)> {
        core::mem::take(&mut self.state.lock().fetchable)
    }

    /// What was found so far.
    ///
    /// # Errors
    /// The violations, in the order in which they were noticed, each rule once for each CPU and address. They are
    /// forgotten then.
    pub fn check(&self) -> Result<(), Vec<Violation>> {
        let mut state = self.state.lock();
        if state.log.violations().is_empty() { Ok(()) } else { Err(state.log.take()) }
    }

    /// How many translations and table descriptors the TLB of a CPU may hold.
    pub fn cached(&self, cpu: usize) -> usize {
        self.state.lock().cpus[cpu].tlb.len()
    }

    fn slots_of(&self, frame: TableFrame) -> &[Slot] {
        let index = self.state.lock().table(frame);
        self.frames[index].get().expect("a table of this machine")
    }
}

impl<G: GranuleType> Cpu<'_, G> {
    /// A zeroed table of this level, or `None` where the memory is used up. Its zeroes are not published.
    pub fn alloc_table(&self, level: u8) -> Option<TableFrame> {
        let mut state = self.machine.state.lock();
        let frame = self.machine.frames.get(state.tables.len())?;
        let slots = frame.call_once(|| (0..G::GRANULE.page_size() / 8).map(|_| Slot::new()).collect());
        Some(state.add_table(self.cpu, level, Arc::clone(slots)))
    }

    /// A root table, published.
    ///
    /// # Panics
    /// Where the memory is used up.
    pub fn new_root(&self) -> TableFrame {
        let root = self.alloc_table(root_level(G::GRANULE)).expect("memory for a root table");
        self.publish();
        root
    }

    /// Loads TTBR0: the lower half, and the ASID of both.
    pub fn load_ttbr0(&self, root: Option<TableFrame>, asid: Asid) {
        self.machine.state.lock().load_ttbr(self.cpu, root, Some(asid));
    }

    /// Loads TTBR1: the upper half.
    pub fn load_ttbr1(&self, root: Option<TableFrame>) {
        self.machine.state.lock().load_ttbr(self.cpu, root, None);
    }

    /// All that an access may end in.
    pub fn access(&self, va: VirtAddr, access: Access) -> BTreeSet<Outcome> {
        self.machine.state.lock().access(self.cpu, va.get(), access)
    }

    /// `dsb ish` without the ISB of [`Mmu::complete`].
    pub fn dsb_ish(&self) {
        let mut state = self.machine.state.lock();
        state.step();
        state.complete(self.cpu);
    }

    /// `isb`
    pub fn isb(&self) {
        self.machine.state.lock().isb(self.cpu);
    }

    /// Runs `act` on a slot, with hardware that may be faster, before or after.
    fn on_slot<R>(&self, slot: &Slot, act: impl FnOnce(&mut State, usize, usize) -> R) -> R {
        let mut state = self.machine.state.lock();
        let (table, index) = state.find(slot);
        state.step_at(table, index);
        state.agent_near(table, index);
        let result = act(&mut state, table, index);
        state.agent_near(table, index);
        result
    }
}

// SAFETY: a frame's slots are made once, at its allocation, a page of them, and stay where they are until the machine
// is dropped, which outlives the handle.
unsafe impl<G: GranuleType> Mmu for Cpu<'_, G> {
    const GRANULE: Granule = G::GRANULE;

    fn slots(&self, frame: TableFrame) -> &[Slot] {
        self.machine.slots_of(frame)
    }

    fn load(&self, slot: &Slot) -> u64 {
        self.on_slot(slot, |state, table, index| state.load(table, index))
    }

    unsafe fn store(&self, slot: &Slot, raw: u64) {
        self.on_slot(slot, |state, table, index| state.store(self.cpu, table, index, raw, false));
    }

    unsafe fn swap(&self, slot: &Slot, raw: u64) -> u64 {
        self.on_slot(slot, |state, table, index| {
            let old = state.load(table, index);
            state.store(self.cpu, table, index, raw, true);
            old
        })
    }

    unsafe fn compare_exchange(&self, slot: &Slot, current: u64, new: u64) -> Result<(), u64> {
        self.on_slot(slot, |state, table, index| {
            let old = state.load(table, index);
            if old != current {
                return Err(old);
            }
            state.store(self.cpu, table, index, new, true);
            Ok(())
        })
    }

    unsafe fn store_block(&self, slots: &[Slot], first: u64, step: u64) {
        self.machine.state.lock().check_block(self.cpu, slots);
        let mut raw = first;
        for slot in slots {
            // SAFETY: the caller vouches for each value.
            unsafe { self.store(slot, raw) };
            raw = raw.wrapping_add(step);
        }
    }

    fn features(&self) -> Features {
        let Config { tlb_range, hafdbs, .. } = self.machine.config;
        let bbm_no_abort = self.machine.state.lock().no_abort();
        Features { tlb_range, hafdbs, bbm_no_abort }
    }

    fn publish(&self) {
        let mut state = self.machine.state.lock();
        state.step();
        state.publish(self.cpu);
        state.isb(self.cpu);
    }

    fn invalidate(&self, operation: Tlbi) {
        let mut state = self.machine.state.lock();
        state.step();
        state.invalidate(self.cpu, operation);
    }

    fn complete(&self) {
        self.dsb_ish();
        self.isb();
    }

    fn invalidate_local(&self, operation: Tlbi) {
        let mut state = self.machine.state.lock();
        state.step();
        state.invalidate_local(self.cpu, operation);
        state.isb(self.cpu);
    }
}

// SAFETY: as for `Cpu`.
unsafe impl<G: GranuleType> Mmu for &Machine<G> {
    const GRANULE: Granule = G::GRANULE;

    fn slots(&self, frame: TableFrame) -> &[Slot] {
        self.slots_of(frame)
    }

    fn load(&self, slot: &Slot) -> u64 {
        self.running().load(slot)
    }

    unsafe fn store(&self, slot: &Slot, raw: u64) {
        // SAFETY: the caller keeps the same contract; so below.
        unsafe { self.running().store(slot, raw) }
    }

    unsafe fn swap(&self, slot: &Slot, raw: u64) -> u64 {
        // SAFETY: as above.
        unsafe { self.running().swap(slot, raw) }
    }

    unsafe fn compare_exchange(&self, slot: &Slot, current: u64, new: u64) -> Result<(), u64> {
        // SAFETY: as above.
        unsafe { self.running().compare_exchange(slot, current, new) }
    }

    unsafe fn store_block(&self, slots: &[Slot], first: u64, step: u64) {
        // SAFETY: as above.
        unsafe { self.running().store_block(slots, first, step) }
    }

    fn features(&self) -> Features {
        self.running().features()
    }

    fn publish(&self) {
        self.running().publish();
    }

    fn invalidate(&self, operation: Tlbi) {
        self.running().invalidate(operation);
    }

    fn complete(&self) {
        self.running().complete();
    }

    fn sync_icache(&self, start: PhysAddr, size: u64) {
        self.state.lock().fetchable.push((start, size));
    }

    fn invalidate_local(&self, operation: Tlbi) {
        self.running().invalidate_local(operation);
    }
}
