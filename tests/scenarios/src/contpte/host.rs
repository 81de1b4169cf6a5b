//! The scenarios on the model MMU, with plain memory behind the frames.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use arch::features::{BbmLevel, Hafdbs};
use arch::granule::LAST_LEVEL;
use arch::mmu::Entry;
use arch::tlbi::Asid;
use arch::{Pfn, PhysAddr, PteValue, Table, TableFrame, VirtAddr};
use mm::asid::AsidAllocator;
use mm::frame::{Frame, FrameHooks, FrameMap, Zone};
use mm::pte::Pte;
use mm::ptep::{LocklessGuard, ptep_get_lockless};
use mm::{Mm, TableAlloc};
use model::mmu::{self, AddressSpace, Config, Flag, Kind, Outcome, Page, Update};
use model::{GranuleType, K4, K16, K64};

use super::fault::{Resolution, resolve};
use super::{Access, Fault, Machine, scenarios};

const CPUS: usize = 2;
const ASIDS: u32 = 256;

/// Frames that are given out are known to the model: a freed one must be in no TLB.
struct Hooks<'a, G>(&'a mmu::Machine<G>);

impl<G: GranuleType> FrameHooks for Hooks<'_, G> {
    fn on_free(&self, frame: Pfn) {
        self.0.free_frame(frame.addr(G::GRANULE));
    }

    fn on_reuse(&self, frame: Pfn) {
        self.0.alloc_frame(frame.addr(G::GRANULE));
    }
}

/// Tables of the model, each noted so that it can be freed.
struct Tables<'m, G> {
    machine: &'m mmu::Machine<G>,
    given: RefCell<Vec<TableFrame>>,
}

impl<G: GranuleType> TableAlloc for Tables<'_, G> {
    fn alloc_table(&self, level: u8) -> Option<TableFrame> {
        let table = self.machine.running().alloc_table(level)?;
        self.given.borrow_mut().push(table);
        Some(table)
    }
}

struct Host<'m, G: GranuleType> {
    machine: &'m mmu::Machine<G>,
    frames: &'m FrameMap<'m>,
    tables: Tables<'m, G>,
    root: TableFrame,
    mm: Mm<'m, &'m mmu::Machine<G>>,
    asid: Asid,
    memory: RefCell<BTreeMap<u64, u8>>,
    resolved: Cell<u64>,
}

impl<'m, G: GranuleType> Host<'m, G> {
    fn space(&self) -> AddressSpace {
        AddressSpace::User(self.asid)
    }

    fn panic_if_violated(&self) {
        if let Err(violations) = self.machine.check() {
            violations.iter().for_each(|violation| println!("{violation}"));
            panic!("{} violations", violations.len());
        }
    }

    /// The last-level table for an address.
    fn last_table(&self, va: VirtAddr) -> TableFrame {
        let mut frame = self.root;
        while frame.level() != LAST_LEVEL {
            let table = Table::new(&self.machine, frame);
            let Entry::Table(next) = table.entry(G::GRANULE.index(va.get(), frame.level())) else {
                panic!("{va} was accessed, and has no table");
            };
            frame = next;
        }
        frame
    }

    fn lockless(&self, va: VirtAddr) -> PteValue {
        ptep_get_lockless(&self.mm, va, &LocklessGuard::interrupts_masked()).expect("nobody else is there")
    }

    /// Hardware sets a flag for an access: in any entry of a block, and not necessarily in that of the page.
    fn update(&self, cpu: usize, va: VirtAddr, flag: Flag) {
        let index = G::GRANULE.index(va.get(), LAST_LEVEL);
        let group = if self.lockless(va).is_folded() { G::GRANULE.cont_entries(LAST_LEVEL) } else { 1 };
        let first = index - index % group;
        let table = self.last_table(va);
        let other = (1..=group).map(|step| first + (index - first + 7 * step) % group);
        let mut updates = other.map(|index| Update { cpu, table, index, flag });
        assert!(updates.any(|update| self.machine.agent_do(update)), "{va}: no entry to set {flag:?} in");
    }

    /// One access, in whichever way it may go: faults that are possible are resolved, and everything that it then may do
    /// must be the same.
    fn access_once(&self, cpu: usize, va: VirtAddr, access: Access) -> Result<u8, Fault> {
        let kind = match access {
            Access::Read => Kind::Read,
            Access::Write(_) => Kind::Write,
            Access::Execute => Kind::Execute,
        };
        for _ in 0..8 {
            let outcomes = self.machine.cpu(cpu).access(va, mmu::Access { kind, privileged: false });
            let surprise = || format!("{access:?} of {va} by CPU {cpu} may end in {outcomes:?}");
            let mut done = BTreeSet::new();
            let (mut changed, mut refused) = (false, false);
            let by_tlb = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Done(_)));
            for &outcome in &outcomes {
                match outcome {
                    Outcome::Done(pa) => _ = done.insert((pa, false)),
                    Outcome::DoneAndDirty(pa) => _ = done.insert((pa, true)),
                    Outcome::ConflictAbort | Outcome::Amalgam => {
                        self.panic_if_violated();
                        panic!("{}", surprise());
                    }
                    // A TLB that has it goes by that, and nobody notices.
                    Outcome::AccessFlagFault if by_tlb => {}
                    Outcome::TranslationFault | Outcome::AccessFlagFault | Outcome::PermissionFault => {
                        match resolve(&self.mm, va, access) {
                            Resolution::Changed => {
                                changed = true;
                                self.resolved.set(self.resolved.get() + 1);
                            }
                            Resolution::Spurious => {}
                            Resolution::Refused => refused = true,
                        }
                    }
                }
            }
            if refused {
                // A walk may still find an older entry that was not valid; the handler looks at the one there is.
                let mapped = self.lockless(va).is_valid();
                let expected = if mapped { Outcome::PermissionFault } else { Outcome::TranslationFault };
                let others = outcomes
                    .iter()
                    .filter(|&&o| o != expected && !(mapped && o == Outcome::TranslationFault));
                assert!(outcomes.contains(&expected) && others.count() == 0, "{}", surprise());
                return Err(if mapped { Fault::Permission } else { Fault::Translation });
            }
            if changed {
                continue;
            }
            let frames: BTreeSet<_> = done.iter().map(|&(pa, _)| pa).collect();
            assert_eq!(frames.len(), 1, "{}", surprise());
            let pa = *frames.first().expect("one");
            // Where a TLB has it as dirty, hardware need not look at the entry.
            if done.iter().all(|&(_, dirties)| dirties) {
                self.update(cpu, va, Flag::Dirty);
            } else if self.machine.config().hafdbs != Hafdbs::None && !self.lockless(va).is_young() {
                self.update(cpu, va, Flag::Accessed);
            }
            return Ok(self.perform(pa, access));
        }
        panic!("{access:?} of {va} by CPU {cpu} faults for ever");
    }

    fn perform(&self, pa: PhysAddr, access: Access) -> u8 {
        match access {
            Access::Read => self.byte(pa),
            Access::Write(value) => {
                self.set_byte(pa, value);
                value
            }
            Access::Execute => {
                let bytes = [0, 1, 2, 3].map(|offset| self.byte(PhysAddr::new(pa.get() + offset)));
                let code = u32::from_le_bytes(bytes);
                assert_eq!(code & !(0xffff << 5), 0xd400_0001, "{pa} holds no svc");
                (code >> 5) as u8
            }
        }
    }
}

impl<'m, G: GranuleType> Machine<'m> for Host<'m, G> {
    type M = &'m mmu::Machine<G>;
    type Operation = mmu::Operation;

    fn mm(&self) -> &Mm<'m, Self::M> {
        &self.mm
    }

    fn frames(&self) -> &'m FrameMap<'m> {
        self.frames
    }

    fn tables(&self) -> &dyn TableAlloc {
        &self.tables
    }

    fn cpus(&self) -> usize {
        CPUS
    }

    fn byte(&self, pa: PhysAddr) -> u8 {
        self.memory.borrow().get(&pa.get()).copied().unwrap_or(0)
    }

    fn set_byte(&self, pa: PhysAddr, value: u8) {
        self.memory.borrow_mut().insert(pa.get(), value);
    }

    fn access(&self, cpu: usize, accesses: &[(VirtAddr, Access)]) -> Vec<Result<u8, Fault>> {
        self.machine.run_on(cpu);
        let results = accesses.iter().map(|&(va, access)| self.access_once(cpu, va, access)).collect();
        self.machine.run_on(0);
        results
    }

    fn resolved(&self) -> u64 {
        self.resolved.get()
    }

    /// What other CPUs' TLBs might do at any moment the model knows without accesses; their hardware updates are made at
    /// random.
    fn while_used(&self, addresses: &[VirtAddr], act: &mut dyn FnMut()) {
        for seed in 1..=2 {
            self.machine.agent_at_random(seed, 8);
            act();
            self.machine.agent_at_random(0, u32::MAX);
            for (cpu, value) in [(1, seed as u8), (0, 0x80 | seed as u8)] {
                let writes: Vec<_> = addresses.iter().map(|&va| (va, Access::Write(value))).collect();
                assert!(self.access(cpu, &writes).into_iter().all(|result| result == Ok(value)));
            }
            self.panic_if_violated();
        }
    }

    fn masked(&self, act: &mut dyn FnMut(&LocklessGuard)) {
        act(&LocklessGuard::interrupts_masked());
    }

    fn begin(&self, pages: &[(VirtAddr, PteValue)]) -> mmu::Operation {
        let page = |pte: PteValue| pte.is_valid().then(|| Page::from_descriptor(pte.raw()));
        let pages: Vec<_> = pages.iter().map(|&(va, pte)| (va, page(pte))).collect();
        self.machine.begin(self.space(), &pages)
    }

    fn end(&self, operation: mmu::Operation) {
        self.machine.end(operation);
    }

    fn check(&self) {
        self.machine.audit();
        self.panic_if_violated();
    }
}

/// Runs a scenario on a machine of its own, and checks that nothing is left.
fn run<G: GranuleType>(config: Config, scenario: impl for<'m> FnOnce(&Host<'m, G>)) {
    let machine = mmu::Machine::<G>::new(config, 32);
    let hooks = Hooks(&machine);
    let block = G::GRANULE.cont_entries(LAST_LEVEL) as u64;
    let first = PhysAddr::new(0x8000_0000).pfn(G::GRANULE);
    let records: Vec<Frame> = (0..8 * block).map(|_| Frame::new()).collect();
    let zones = [Zone::new(first, &records)];
    let frames = FrameMap::new(&zones, Some(&hooks));
    frames.release(zones[0].range());
    let before = frames.counts();

    let asids = AsidAllocator::<CPUS>::words(ASIDS);
    let mut words = vec![0; asids];
    let asids = AsidAllocator::<CPUS>::new(ASIDS, &mut words);
    let root = machine.cpu(0).new_root();
    let mm = Mm::new_user(&machine, root, &frames);
    let context = mm.context().expect("a user's address space");
    let mut asid = Asid::new(0);
    for cpu in 0..CPUS {
        machine.run_on(cpu);
        asid = asids.switch_to(mm.mmu(), cpu, context);
        machine.cpu(cpu).load_ttbr0(Some(root), asid);
    }
    machine.run_on(0);
    let tables = Tables { machine: &machine, given: RefCell::default() };
    let (memory, resolved) = (RefCell::default(), Cell::new(0));
    let host = Host { machine: &machine, frames: &frames, tables, root, mm, asid, memory, resolved };
    machine.watch(host.space());

    scenario(&host);

    assert_eq!(frames.counts(), before, "frames leaked, or were not merged");
    frames.check().expect("the frames are as they should be");
    for cpu in 0..CPUS {
        machine.cpu(cpu).load_ttbr0(None, Asid::new(0));
        asids.leave(cpu);
    }
    asids.release(host.mm.mmu(), host.mm.context().expect("a user's address space"));
    // From the root on: no table that leads to a freed one is left.
    let tables = host.tables.given.borrow();
    [&host.root].into_iter().chain(tables.iter()).for_each(|&table| machine.free_table(table));
    host.panic_if_violated();
}

/// Every machine there is.
fn configs() -> impl Iterator<Item = Config> {
    let bbm = [
        (BbmLevel::Level0, false),
        (BbmLevel::Level1, false),
        (BbmLevel::Level2, false),
        (BbmLevel::Level2, true),
        (BbmLevel::Level3, false),
    ];
    [Hafdbs::None, Hafdbs::Af, Hafdbs::AfDbm].into_iter().flat_map(move |hafdbs| {
        bbm.into_iter().map(move |(bbm, no_abort_listed)| {
            // Newer machines have these as well.
            let newer = bbm >= BbmLevel::Level2;
            Config {
                cpus: CPUS,
                bbm,
                no_abort_listed,
                hafdbs,
                tlb_range: newer,
                ets2: newer,
                ..Config::default()
            }
        })
    })
}

fn run_all<G: GranuleType>() {
    for config in configs() {
        println!("{config:?}");
        for (index, (name, _)) in scenarios::<Host<'_, G>>().into_iter().enumerate() {
            println!("{name}");
            run::<G>(config, |host| scenarios()[index].1(host));
        }
    }
}

#[test]
fn with_pages_of_4k() {
    run_all::<K4>();
}

#[test]
fn with_pages_of_16k() {
    run_all::<K16>();
}

#[test]
fn with_pages_of_64k() {
    run_all::<K64>();
}
