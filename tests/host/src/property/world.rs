//! A machine with two CPUs, three address spaces and some memory.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use arch::granule::LAST_LEVEL;
use arch::tlbi::Asid;
use arch::{Entry, Mmu, Pfn, Table, TableFrame, VirtAddr};
use mm::asid::AsidAllocator;
use mm::frame::{Folio, Frame, FrameHooks, FrameMap, Zone};
use mm::{Mm, PteGuard, TableAlloc};
use model::GranuleType;
use model::mmu::{AddressSpace, Machine, Operation};

use super::Setup;
use super::op::{Length, Pages, Within};
use super::reference::{Page, Reference};
use super::steps::Set;

/// CPUs of the machine.
pub(super) const CPUS: usize = 2;
/// Address spaces that are alive at a time.
pub(super) const SPACES: usize = 3;
/// Last-level tables of each of which pages are used.
const TABLES: usize = 2;
/// Blocks of each that are used.
const BLOCKS: usize = 4;
/// Folios that operations take pages from.
const FOLIOS: usize = 6;
/// Blocks of memory.
const MEMORY: usize = 24;
/// What each address space's first table translates first.
const BASE: u64 = 0x40_0000_0000;
/// Tables that the machine has, ever: an address space needs a root, one or two between, and two.
const TABLE_FRAMES: usize = 4096;

pub(super) type UserMm<'m, G> = Mm<'m, &'m Machine<G>>;
pub(super) type Guard<'g, 'm, G> = PteGuard<'g, 'm, &'m Machine<G>>;

/// Frames that come and go are free, or not, for the machine too.
struct Hooks<'m, G>(&'m Machine<G>);

impl<G: GranuleType + Sync> FrameHooks for Hooks<'_, G> {
    fn on_free(&self, frame: Pfn) {
        self.0.free_frame(frame.addr(G::GRANULE));
    }
}

/// Tables for an address space, remembered until they are freed.
pub(super) struct Tables<'m, G> {
    machine: &'m Machine<G>,
    made: RefCell<Vec<TableFrame>>,
}

impl<G: GranuleType> TableAlloc for Tables<'_, G> {
    fn alloc_table(&self, level: u8) -> Option<TableFrame> {
        let table = self.machine.running().alloc_table(level)?;
        self.made.borrow_mut().push(table);
        Some(table)
    }
}

/// An address space.
pub(super) struct Space<'m, G: GranuleType> {
    pub(super) mm: UserMm<'m, G>,
    pub(super) tables: Tables<'m, G>,
    root: TableFrame,
    pub(super) reference: Reference,
    /// A reference to the folio of each page that is mapped.
    pub(super) folios: std::collections::BTreeMap<usize, Folio<'m>>,
    /// The ASID by which the machine knows what is meant.
    watched: Option<Asid>,
}

pub(super) struct World<'m, G: GranuleType> {
    pub(super) setup: Setup,
    pub(super) machine: &'m Machine<G>,
    frames: &'m FrameMap<'m>,
    asids: &'m AsidAllocator<'m, CPUS>,
    /// Translates nothing.
    empty: TableFrame,
    pub(super) spaces: Vec<Space<'m, G>>,
    /// The address space that each CPU has loaded.
    pub(super) loaded: [Option<usize>; CPUS],
    folios: [Option<Folio<'m>>; FOLIOS],
    /// Operations of the machine's specification that are going on.
    open: RefCell<Vec<Operation>>,
    /// What hardware has done in the course of the operation.
    pub(super) noted: RefCell<Vec<Set>>,
    /// Blocks whose getters were checked.
    pub(super) checked: Cell<usize>,
}

/// Calls `act` with a new world.
pub(super) fn with_world<G: GranuleType + Sync>(setup: Setup, act: impl FnOnce(&mut World<'_, G>)) {
    let machine = Machine::<G>::new(setup.config(), TABLE_FRAMES);
    let block = G::GRANULE.cont_entries(LAST_LEVEL);
    let records: Vec<Frame> = (0..MEMORY * block).map(|_| Frame::new()).collect();
    // Aligned to whatever block.
    let zones = [Zone::new(Pfn::new(0x1_0000), &records)];
    let hooks = Hooks(&machine);
    let frames = FrameMap::new(&zones, Some(&hooks));
    frames.release(zones[0].range());
    for frame in 0..(MEMORY * block) as u64 {
        machine.free_frame(zones[0].range().start.add(frame).addr(G::GRANULE));
    }
    let mut words = vec![0; AsidAllocator::<CPUS>::words(setup.asids)];
    let asids = AsidAllocator::<CPUS>::new(setup.asids, &mut words);
    let empty = machine.cpu(0).new_root();
    let mut world = World {
        setup,
        machine: &machine,
        frames: &frames,
        asids: &asids,
        empty,
        spaces: Vec::new(),
        loaded: [None; CPUS],
        folios: [const { None }; FOLIOS],
        open: RefCell::default(),
        noted: RefCell::default(),
        checked: Cell::new(0),
    };
    for cpu in 0..CPUS {
        machine.cpu(cpu).load_ttbr0(Some(empty), Asid::new(0));
    }
    for _ in 0..SPACES {
        let space = world.new_space();
        world.spaces.push(space);
    }
    act(&mut world);
}

impl<'m, G: GranuleType + Sync> World<'m, G> {
    fn new_space(&self) -> Space<'m, G> {
        let root = self.machine.running().new_root();
        Space {
            mm: Mm::new_user(self.machine, root, self.frames),
            tables: Tables { machine: self.machine, made: RefCell::new(vec![root]) },
            root,
            reference: Reference::default(),
            folios: std::collections::BTreeMap::new(),
            watched: None,
        }
    }

    /// Pages of a block.
    pub(super) fn block(&self) -> usize {
        G::GRANULE.cont_entries(LAST_LEVEL)
    }

    /// Pages of an address space: those of one table are followed by those of the next.
    pub(super) fn pages(&self) -> usize {
        TABLES * self.table_pages()
    }

    /// Pages in use of a table.
    pub(super) fn table_pages(&self) -> usize {
        BLOCKS * self.block()
    }

    pub(super) fn va(&self, page: usize) -> VirtAddr {
        let (table, index) = (page / self.table_pages(), page % self.table_pages());
        let table = table as u64 * G::GRANULE.level_size(LAST_LEVEL - 1);
        VirtAddr::new(BASE + table + index as u64 * G::GRANULE.page_size())
    }

    /// The pages that an operation is for, all of one table.
    pub(super) fn range(&self, pages: Pages) -> Range<usize> {
        let start = self.place(pages.block, pages.page);
        let nr = match pages.length {
            Length::One => 1,
            Length::Blocks(blocks) => usize::from(blocks) * self.block(),
            Length::About(blocks, more) => usize::from(blocks) * self.block() + usize::from(more) * 2 - 1,
            Length::Some(pages) => usize::from(pages),
        };
        let end = (start / self.table_pages() + 1) * self.table_pages();
        start..(start + nr).min(end)
    }

    /// As [`Self::range`], moved on to the next page that is mapped, if there is one and the block's number does not say that
    /// it is to stay: else most operations would find nothing.
    pub(super) fn mapped_range(&self, space: usize, pages: Pages) -> Range<usize> {
        let range = self.range(pages);
        let mapped = &self.spaces[space].reference.pages;
        if pages.block >= 0xe0 || mapped.contains_key(&range.start) {
            return range;
        }
        let Some((&start, _)) = mapped.range(range.start..).next().or_else(|| mapped.iter().next()) else {
            return range;
        };
        let end = (start / self.table_pages() + 1) * self.table_pages();
        start..(start + range.len()).min(end)
    }

    pub(super) fn place(&self, block: u8, page: Within) -> usize {
        let page = match page {
            Within::First => 0,
            Within::Last => self.block() - 1,
            Within::Any(page) => usize::from(page) % self.block(),
        };
        usize::from(block) % (TABLES * BLOCKS) * self.block() + page
    }

    pub(super) fn lock(&self, space: usize, page: usize) -> Guard<'_, 'm, G> {
        let Space { mm, tables, .. } = &self.spaces[space];
        mm.lock_table(self.va(page), tables).expect("there are tables enough")
    }

    /// The last-level table of a page, if there is one, and the index of its entry.
    pub(super) fn entry(&self, space: usize, page: usize) -> Option<(TableFrame, usize)> {
        let va = self.va(page).get();
        let mut table = Table::new(&self.machine, self.spaces[space].root);
        while table.level() != LAST_LEVEL {
            let Entry::Table(child) = table.entry(G::GRANULE.index(va, table.level())) else { return None };
            table = Table::new(&self.machine, child);
        }
        Some((table.frame(), G::GRANULE.index(va, LAST_LEVEL)))
    }

    /// Folio `number`, made if there is none: smaller than a block, as large, or larger. `None` where memory is used up.
    pub(super) fn folio(&mut self, number: u8) -> Option<Folio<'m>> {
        let place = usize::from(number) % FOLIOS;
        if self.folios[place].is_none() {
            let order = self.block().ilog2() as u8;
            let orders = [order, order, order + 1, order - 1, 0, 1];
            self.folios[place] = self.alloc(orders[place]);
        }
        self.folios[place].clone()
    }

    /// A new folio. `None` where memory is used up.
    pub(super) fn alloc(&self, order: u8) -> Option<Folio<'m>> {
        let folio = self.frames.alloc(order).ok()?;
        for frame in 0..folio.frames() {
            self.machine.alloc_frame(folio.head().add(frame).addr(G::GRANULE));
        }
        Some(folio)
    }

    pub(super) fn forget(&mut self, folio: u8) {
        self.folios[usize::from(folio) % FOLIOS] = None;
    }

    fn told(&self, space: usize) -> Option<AddressSpace> {
        self.spaces[space].watched.map(AddressSpace::User)
    }

    /// Tells the machine what pages are meant to be from now on. What they were, they may be until [`Self::complete`].
    pub(super) fn mean(&self, space: usize, pages: &[(usize, Option<Page>)]) {
        self.tell(space, pages, true);
    }

    /// As [`Self::mean`], but where a page may be written to, writes need not be noticed. To be followed by `mean`.
    pub(super) fn mean_unnoticed(&self, space: usize, pages: &[(usize, Option<Page>)]) {
        self.tell(space, pages, false);
    }

    fn tell(&self, space: usize, pages: &[(usize, Option<Page>)], noticed: bool) {
        let Some(told) = self.told(space) else { return };
        let spec = |page: Option<Page>| page.map(|page| page.spec(G::GRANULE, noticed));
        let pages: Vec<_> = pages.iter().map(|&(at, page)| (self.va(at), spec(page))).collect();
        self.open.borrow_mut().push(self.machine.begin(told, &pages));
    }

    /// The maintenance of what was meant is complete.
    pub(super) fn complete(&self) {
        self.open.borrow_mut().drain(..).for_each(|operation| self.machine.end(operation));
    }

    /// Loads an address space into a CPU's TTBR0, or none.
    pub(super) fn switch(&mut self, cpu: usize, space: Option<usize>) {
        self.machine.run_on(cpu);
        let this = self.machine.cpu(cpu);
        this.load_ttbr0(Some(self.empty), Asid::new(0));
        self.loaded[cpu] = space;
        let Some(space) = space else { return self.asids.leave(cpu) };
        let context = self.spaces[space].mm.context().expect("a user's");
        let asid = self.asids.switch_to(&self.machine, cpu, context);
        self.watch(space, asid);
        this.load_ttbr0(Some(self.spaces[space].root), asid);
    }

    /// From now on the machine knows by `asid` what is meant in an address space.
    fn watch(&mut self, space: usize, asid: Asid) {
        if self.spaces[space].watched == Some(asid) {
            return;
        }
        self.unwatch(space);
        if let Some(previous) = self.spaces.iter().position(|space| space.watched == Some(asid)) {
            self.unwatch(previous);
        }
        self.machine.watch(AddressSpace::User(asid));
        self.spaces[space].watched = Some(asid);
        let pages: Vec<_> =
            self.spaces[space].reference.pages.iter().map(|(&at, &page)| (at, Some(page))).collect();
        self.mean(space, &pages);
        self.complete();
    }

    fn unwatch(&mut self, space: usize) {
        if let Some(asid) = self.spaces[space].watched.take() {
            self.machine.unwatch(AddressSpace::User(asid));
        }
    }

    /// Ends an address space, in which nothing is mapped any more, and begins another in its place.
    pub(super) fn replace_space(&mut self, cpu: usize, space: usize) {
        for cpu in (0..CPUS).filter(|&cpu| self.loaded[cpu] == Some(space)).collect::<Vec<_>>() {
            self.switch(cpu, None);
        }
        self.machine.run_on(cpu);
        let context = self.spaces[space].mm.context().expect("a user's");
        self.asids.release(&self.machine, context);
        self.unwatch(space);
        let new = self.new_space();
        let old = std::mem::replace(&mut self.spaces[space], new);
        assert!(old.folios.is_empty(), "pages are mapped");
        assert_eq!(old.mm.counters().blocks_folded(), 0, "blocks are folded in an empty address space");
        // The root comes first, so that no table is freed while one leads to it.
        for table in old.tables.made.into_inner() {
            self.machine.free_table(table);
        }
    }

    /// Nothing was lost: every frame is free once nothing uses it.
    pub(super) fn all_is_given_back(&mut self) {
        self.folios = [const { None }; FOLIOS];
        let frames = (MEMORY * self.block()) as u64;
        assert_eq!(self.frames.free_frames(), frames, "frames are lost");
        self.frames.check().expect("the allocator is consistent");
    }

    /// The MMU of the machine: that of the CPU that runs.
    pub(super) fn mmu(&self) -> impl Mmu + use<'m, G> {
        self.machine
    }
}
