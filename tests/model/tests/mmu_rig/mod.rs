//! A machine with one address space, and steps that tests are made of.
#![allow(dead_code, unreachable_pub, reason = "a module of several test programs, each of which uses a part")]

use std::ops::Range;

use arch::features::Hafdbs;
use arch::tlbi::{Asid, Space, Tlbi};
use arch::{Granule, Mmu, PhysAddr, TableFrame, VirtAddr};
use pleat_model::GranuleType;
use pleat_model::mmu::{AddressSpace, Config, Cpu, Machine, Operation, Page, Rule};

pub const RDONLY: u64 = 1 << 7;
pub const AF: u64 = 1 << 10;
pub const NG: u64 = 1 << 11;
pub const DBM: u64 = 1 << 51;
pub const CONT: u64 = 1 << 52;
pub const UXN: u64 = 1 << 54;
/// A page that EL0 may write to, and hardware need not notice: valid, AF, nG, Inner Shareable, AP[1], PXN, UXN.
pub const DATA: u64 = 0b11 | 1 << 6 | 0b11 << 8 | AF | NG | 0b11 << 53;
/// The same, clean: hardware notices the first write.
pub const CLEAN: u64 = DATA | DBM | RDONLY;

pub const ASID: Asid = Asid::new(1);
pub const USER: AddressSpace = AddressSpace::User(ASID);
/// What the last-level table of a [`Rig`] translates first, in the lower half.
pub const VA: u64 = 0x40_0000_0000;
/// A frame, aligned to any group.
pub const PA: u64 = 0x8000_0000;

pub struct Rig<G> {
    pub machine: Machine<G>,
    /// Tables for [`VA`], or for the same in the upper half, from the root on; the last has the pages.
    pub tables: Vec<TableFrame>,
    base: u64,
}

impl<G: GranuleType> Rig<G> {
    /// A user's space with ASID 1, loaded on all CPUs and watched. Its tables are linked; nothing is mapped.
    pub fn new(config: Config) -> Self {
        let rig = Self::with_base(config, VA);
        for cpu in 0..config.cpus {
            rig.cpu(cpu).load_ttbr0(Some(rig.tables[0]), ASID);
        }
        rig.machine.watch(USER);
        rig
    }

    /// The kernel's space.
    pub fn kernel(config: Config) -> Self {
        let rig = Self::with_base(config, !0 << 48 | VA);
        for cpu in 0..config.cpus {
            rig.cpu(cpu).load_ttbr1(Some(rig.tables[0]));
        }
        rig.machine.watch(AddressSpace::Kernel);
        rig
    }

    fn with_base(config: Config, base: u64) -> Self {
        let machine = Machine::<G>::new(config, 16);
        let mut tables = vec![machine.cpu(0).new_root()];
        while tables.last().unwrap().level() < 3 {
            let level = tables.last().unwrap().level();
            tables.push(machine.cpu(0).alloc_table(level + 1).unwrap());
        }
        machine.cpu(0).publish();
        let rig = Self { machine, tables, base };
        for i in 1..rig.tables.len() {
            rig.store(
                0,
                rig.tables[i - 1],
                rig.index(rig.tables[i - 1].level()),
                rig.tables[i].pa().get() | 0b11,
            );
        }
        rig.cpu(0).publish();
        rig
    }

    pub fn cpu(&self, cpu: usize) -> Cpu<'_, G> {
        self.machine.cpu(cpu)
    }

    /// The slot for the rig's address in the table of a level.
    pub fn index(&self, level: u8) -> usize {
        (self.base & !0 >> 16) as usize >> G::GRANULE.level_shift(level) & (G::GRANULE.entries() - 1)
    }

    pub fn last_table(&self) -> TableFrame {
        *self.tables.last().unwrap()
    }

    pub fn page_size(&self) -> u64 {
        G::GRANULE.page_size()
    }

    /// Entries of a Contiguous group of pages.
    pub fn group(&self) -> usize {
        G::GRANULE.cont_entries(3)
    }

    pub fn va(&self, page: usize) -> VirtAddr {
        VirtAddr::new(self.base + page as u64 * self.page_size())
    }

    /// The descriptor of a page, mapped to the frame at the same place from [`PA`] on.
    pub fn pte(&self, page: usize, bits: u64) -> u64 {
        (PA + page as u64 * self.page_size()) | bits
    }

    pub fn frame(&self, page: usize) -> PhysAddr {
        PhysAddr::new(PA + page as u64 * self.page_size())
    }

    pub fn store(&self, cpu: usize, table: TableFrame, index: usize, raw: u64) {
        let cpu = self.cpu(cpu);
        // SAFETY: the model reads the table, and judges what it finds.
        unsafe { cpu.store(&cpu.slots(table)[index], raw) }
    }

    /// Stores the entry of a page: a plain store.
    pub fn set(&self, cpu: usize, page: usize, raw: u64) {
        self.store(cpu, self.last_table(), page, raw);
    }

    /// Stores the entries of pages, each with its frame.
    pub fn set_all(&self, cpu: usize, pages: Range<usize>, bits: u64) {
        pages.for_each(|page| self.set(cpu, page, self.pte(page, bits)));
    }

    /// Exchanges the entry of a page.
    pub fn swap(&self, cpu: usize, page: usize, raw: u64) -> u64 {
        let cpu = self.cpu(cpu);
        // SAFETY: as in `store`.
        unsafe { cpu.swap(&cpu.slots(self.last_table())[page], raw) }
    }

    pub fn get(&self, cpu: usize, page: usize) -> u64 {
        let cpu = self.cpu(cpu);
        cpu.load(&cpu.slots(self.last_table())[page])
    }

    pub fn clear(&self, cpu: usize, pages: Range<usize>) {
        pages.for_each(|page| self.set(cpu, page, 0));
    }

    /// The usual operation for a page: last level, with the hint.
    pub fn tlbi(&self, page: usize) -> Tlbi {
        self.tlbi_hint(page, Some(3), G::GRANULE)
    }

    pub fn tlbi_hint(&self, page: usize, level: Option<u8>, granule: Granule) -> Tlbi {
        Tlbi::Page { va: self.va(page), space: Space::Asid(ASID), last_level: true, granule, level }
    }

    pub fn issue(&self, cpu: usize, pages: Range<usize>) {
        pages.for_each(|page| self.cpu(cpu).invalidate(self.tlbi(page)));
    }

    /// DSB, TLBI for each page, DSB.
    pub fn flush(&self, cpu: usize, pages: Range<usize>) {
        self.cpu(cpu).publish();
        self.issue(cpu, pages);
        self.cpu(cpu).complete();
    }

    /// The pages become these by an operation.
    pub fn begin(&self, pages: Range<usize>, bits: Option<u64>) -> Operation {
        let space = if self.base == VA { USER } else { AddressSpace::Kernel };
        let meant = |page| bits.map(|bits| Page::from_descriptor(self.pte(page, bits)));
        let pages: Vec<_> = pages.map(|page| (self.va(page), meant(page))).collect();
        self.machine.begin(space, &pages)
    }

    pub fn end(&self, operation: Operation) {
        self.machine.end(operation);
    }

    /// Pages are mapped, published.
    pub fn map(&self, pages: Range<usize>, bits: u64) {
        let map = self.begin(pages.clone(), Some(bits));
        self.set_all(0, pages, bits);
        self.cpu(0).publish();
        self.end(map);
    }

    /// The rules that were broken, each once.
    pub fn broken(&self) -> Vec<Rule> {
        let Err(violations) = self.machine.check() else { return Vec::new() };
        let mut rules: Vec<Rule> = violations.iter().map(|v| v.rule).collect();
        rules.sort();
        rules.dedup();
        rules
    }
}

/// The same steps right and wrong: nothing is found in the first, and this in the second.
#[track_caller]
pub fn pair<G: GranuleType>(config: Config, rules: &[Rule], steps: impl Fn(&Rig<G>, bool)) {
    let right = Rig::new(config);
    steps(&right, false);
    if let Err(violations) = right.machine.check() {
        panic!("found in the right steps: {}", violations[0]);
    }
    let wrong = Rig::new(config);
    steps(&wrong, true);
    assert_eq!(wrong.broken(), rules, "found in the wrong steps");
}

pub fn with_hafdbs(hafdbs: Hafdbs) -> Config {
    Config { hafdbs, ..Config::default() }
}
