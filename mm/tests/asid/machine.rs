//! A machine for tests of ASIDs: what its TLBs may hold, and who runs with what.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
#[cfg(not(loom))]
use std::thread::{self, ThreadId};

use arch::mmu::{Features, Hafdbs, Slot};
use arch::tlbi::{Asid, Tlbi};
use arch::{Granule, Mmu, TableFrame};
#[cfg(loom)]
use loom::thread::{self, ThreadId};

/// What is done wrong, to see that it is noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    None,
    /// A rollover issues no flush.
    RolloverNotFlushed,
    /// A release issues no flush.
    ReleaseNotFlushed,
    /// Nobody waits for a flush.
    NotCompleted,
    /// The allocator is not told what other CPUs run.
    RunningForgotten,
    /// A CPU has the previous mm in TTBR0 until it has the next one.
    NotVacated,
    /// The ASID to flush by is read before the descriptors are changed.
    AsidReadEarly,
    /// Each CPU has an ASID of its own for an mm.
    ContextPerCpu,
}

pub(crate) const FAULTS: [Fault; 7] = [
    Fault::RolloverNotFlushed,
    Fault::ReleaseNotFlushed,
    Fault::NotCompleted,
    Fault::RunningForgotten,
    Fault::NotVacated,
    Fault::AsidReadEarly,
    Fault::ContextPerCpu,
];

/// What a TLB may hold: a translation by some version of an mm's descriptors.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Cached {
    asid: Asid,
    mm: usize,
    version: u64,
}

#[derive(Debug)]
struct State {
    /// Each CPU's TTBR0: an ASID and an mm, or a table that translates nothing.
    ttbr: Vec<Option<(Asid, usize)>>,
    /// What any CPU's TLB may hold. Of all CPUs together, since mms move between CPUs, and invalidations go to all.
    tlb: BTreeSet<Cached>,
    /// The version of each mm's descriptors, 0 if never changed.
    versions: BTreeMap<usize, u64>,
    /// Issued, and not complete before its issuer has waited.
    pending: HashMap<ThreadId, Vec<Tlbi>>,
    issued: Vec<Tlbi>,
    published: u64,
}

/// What is done before a flush is complete, once.
pub(crate) type Hook = Box<dyn FnOnce() + Send>;

impl State {
    fn version(&self, mm: usize) -> u64 {
        self.versions.get(&mm).copied().unwrap_or(0)
    }

    /// Whatever TTBR0 leads to may be cached at any time.
    fn fill(&mut self) {
        for (asid, mm) in self.ttbr.clone().into_iter().flatten() {
            self.tlb.insert(Cached { asid, mm, version: self.version(mm) });
        }
    }

    fn invalidate(&mut self, operation: Tlbi) {
        match operation {
            Tlbi::All => self.tlb.clear(),
            Tlbi::Asid(asid) => self.tlb.retain(|cached| cached.asid != asid),
            other => panic!("{other} is no operation on ASIDs"),
        }
    }
}

pub(crate) struct Machine {
    state: Mutex<State>,
    asids: u32,
    fault: Fault,
    meanwhile: Mutex<Option<Hook>>,
}

impl Machine {
    pub(crate) fn new(cpus: usize, asids: u32, fault: Fault) -> Self {
        let state = State {
            ttbr: vec![None; cpus],
            tlb: BTreeSet::new(),
            versions: BTreeMap::new(),
            pending: HashMap::new(),
            issued: vec![],
            published: 0,
        };
        Self { state: Mutex::new(state), asids, fault, meanwhile: Mutex::new(None) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // A test that failed meanwhile has said so.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A CPU loads an mm into TTBR0.
    pub(crate) fn load(&self, cpu: usize, asid: Asid, mm: usize) -> Result<(), String> {
        let mut state = self.state();
        state.ttbr[cpu] = Some((asid, mm));
        state.fill();
        drop(state);
        self.judge()
    }

    /// A CPU loads a table that translates nothing.
    pub(crate) fn unload(&self, cpu: usize) {
        let mut state = self.state();
        state.fill();
        state.ttbr[cpu] = None;
    }

    /// Changes descriptors of an mm; the version that they are of from now on.
    pub(crate) fn change(&self, mm: usize) -> u64 {
        let mut state = self.state();
        state.fill();
        let version = state.version(mm) + 1;
        state.versions.insert(mm, version);
        version
    }

    /// Flushes descriptors that were changed to `version`, by this ASID. Nothing older may be cached then.
    pub(crate) fn flush(&self, mm: usize, version: u64, asid: Option<Asid>) -> Result<(), String> {
        if let Some(asid) = asid {
            self.invalidate(Tlbi::Asid(asid));
            self.complete();
        }
        match self.state().tlb.iter().find(|cached| cached.mm == mm && cached.version < version) {
            Some(stale) => Err(format!("{stale:?} after a flush of version {version} by {asid:?}")),
            None => Ok(()),
        }
    }

    /// What is wrong, if something is: an mm runs with an ASID for which entries of another one may exist, or with two.
    pub(crate) fn judge(&self) -> Result<(), String> {
        let state = self.state();
        let running = || state.ttbr.iter().enumerate().filter_map(|(cpu, ttbr)| Some((cpu, (*ttbr)?)));
        for (cpu, (asid, mm)) in running() {
            if !(2..self.asids).contains(&u32::from(asid.get())) {
                return Err(format!("CPU {cpu} runs mm {mm} with {asid:?}"));
            }
            let (first, last) =
                (Cached { asid, mm: 0, version: 0 }, Cached { asid, mm: usize::MAX, version: u64::MAX });
            if let Some(alien) = state.tlb.range(first..=last).find(|cached| cached.mm != mm) {
                return Err(format!("CPU {cpu} runs mm {mm}, a TLB may hold {alien:?}"));
            }
            if let Some((other, (others, _))) = running().find(|(_, ttbr)| ttbr.1 == mm && ttbr.0 != asid) {
                return Err(format!("CPU {cpu} runs mm {mm} with {asid:?}, CPU {other} with {others:?}"));
            }
        }
        Ok(())
    }

    /// Has the next one that waits for a flush do this first.
    pub(crate) fn meanwhile(&self, hook: Hook) {
        *self.meanwhile.lock().unwrap() = Some(hook);
    }

    /// All operations on ASIDs that were issued, in their order.
    pub(crate) fn issued(&self) -> Vec<Tlbi> {
        self.state().issued.clone()
    }

    /// How often stores were made visible to the walkers.
    pub(crate) fn published(&self) -> u64 {
        self.state().published
    }
}

// SAFETY: no `TableFrame` of it is ever made, so `slots` is never called.
unsafe impl Mmu for Machine {
    const GRANULE: Granule = Granule::K4;

    fn slots(&self, _: TableFrame) -> &[Slot] {
        unreachable!("there are no tables")
    }

    fn features(&self) -> Features {
        Features { tlb_range: false, hafdbs: Hafdbs::None, bbm_no_abort: false }
    }

    fn publish(&self) {
        self.state().published += 1;
    }

    fn invalidate(&self, operation: Tlbi) {
        let mut state = self.state();
        state.issued.push(operation);
        let dropped = match operation {
            Tlbi::All => self.fault == Fault::RolloverNotFlushed,
            _ => self.fault == Fault::ReleaseNotFlushed,
        };
        if !dropped {
            state.pending.entry(thread::current().id()).or_default().push(operation);
        }
    }

    fn complete(&self) {
        let hook = self.meanwhile.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
        if self.fault == Fault::NotCompleted {
            return;
        }
        let mut state = self.state();
        state.fill();
        for operation in state.pending.remove(&thread::current().id()).unwrap_or_default() {
            state.invalidate(operation);
        }
        // What runs is cached again at once.
        state.fill();
    }

    fn invalidate_local(&self, operation: Tlbi) {
        unreachable!("{operation} on one CPU");
    }
}
