//! A machine with two CPUs, three processes, three files and little memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use arch::granule::LAST_LEVEL;
use arch::tlbi::Asid;
use arch::{Pfn, TableFrame};
use mm::asid::AsidAllocator;
use mm::frame::{Frame, FrameMap, Zone};
use mm::{AddressSpace, Errno, File, Memory, Mm, ThpPolicy};
use model::GranuleType;
use model::mmu::Machine;

use super::board::Board;
use super::op::{Length, Op, Pages, Place};
use super::reference::{Kind, Page, Reference, Token};
use crate::property::Setup;

/// CPUs of the machine.
pub(super) const CPUS: usize = 2;
/// Processes that are alive at a time.
pub(super) const PROCESSES: usize = 3;
/// Blocks of memory: more than all processes can use, or less.
const ENOUGH: usize = 40;
const LITTLE: usize = 16;
/// Tables that the machine has, ever.
const TABLE_FRAMES: usize = 1 << 14;
/// Where in a page its token is.
const TOKEN_AT: u64 = 40;
/// What the tokens of files begin with.
const OF_FILES: Token = 0x7000_0000;

pub(super) type Space<'m, G> = AddressSpace<'m, &'m Machine<G>>;

/// A process.
pub struct Process<'m, G: GranuleType> {
    pub space: Space<'m, G>,
    pub root: TableFrame,
    pub reference: Reference,
}

/// Shared anonymous memory: how many pages, and what was written to them.
pub(super) struct Object {
    pub(super) pages: u64,
    pub(super) tokens: BTreeMap<u64, Token>,
}

/// The machine, and what runs on it.
pub struct World<'m, G: GranuleType> {
    pub(super) setup: Setup,
    /// The model.
    pub machine: &'m Machine<G>,
    /// Its memory.
    pub board: &'m Board<'m, G>,
    /// All RAM.
    pub frames: &'m FrameMap<'m>,
    /// Where address spaces take it from.
    pub memory: &'m Memory<'m>,
    asids: &'m AsidAllocator<'m, CPUS>,
    empty: TableFrame,
    /// The processes.
    pub processes: Vec<Process<'m, G>>,
    pub(super) loaded: [Option<usize>; CPUS],
    /// Three files, of which the last may not be written to.
    pub files: &'m [File<'m>],
    pub(super) file_tokens: Vec<Vec<Token>>,
    /// What was in a page of a file before.
    pub(super) file_history: BTreeSet<(usize, u64, Token)>,
    pub(super) objects: Vec<Object>,
    /// The next token to be written.
    pub(super) next_token: Token,
    free_at_first: u64,
}

/// Calls `act` with a new world, and looks for what was lost after it.
///
/// # Panics
/// Where something is not as it must be.
pub fn with_world<G: GranuleType + Sync>(setup: Setup, act: impl FnOnce(&mut World<'_, G>)) {
    // Where ASIDs are short, so is memory.
    let blocks = if setup.asids < 16 { LITTLE } else { ENOUGH };
    with_memory::<G>(setup, blocks, ThpPolicy::Always, act);
}

/// As [`with_world`], with so many blocks of memory.
///
/// # Panics
/// As [`with_world`].
pub fn with_memory<G: GranuleType + Sync>(
    setup: Setup,
    blocks: usize,
    policy: ThpPolicy,
    act: impl FnOnce(&mut World<'_, G>),
) {
    let machine = Machine::<G>::new(setup.config(), TABLE_FRAMES);
    let block = G::GRANULE.cont_entries(LAST_LEVEL);
    let records: Vec<Frame> = (0..blocks * block).map(|_| Frame::new()).collect();
    let zones = [Zone::new(Pfn::new(0x1_0000), &records)];
    let board = Board::new(&machine);
    let frames = FrameMap::new(&zones, Some(&board));
    frames.release(zones[0].range());
    let memory = Memory::new(&frames, &board, &board, G::GRANULE).expect("memory for zeroes");
    // One that ends with a block, one that does not, and one that may not be written to.
    let sizes = [2 * block, block + 3, 1];
    let tokens = |(file, pages): (usize, usize)| -> Vec<Token> {
        (0..pages).map(|page| OF_FILES + (file * 0x1_0000 + page) as Token).collect()
    };
    let file_tokens: Vec<Vec<Token>> = sizes.into_iter().enumerate().map(tokens).collect();
    let mut files: Vec<File<'_>> = file_tokens.iter().map(|tokens| file_of::<G>(&memory, tokens)).collect();
    let last = files.pop().map(File::read_only);
    files.extend(last);
    let mut words = vec![0; AsidAllocator::<CPUS>::words(setup.asids)];
    let asids = AsidAllocator::<CPUS>::new(setup.asids, &mut words);
    let empty = machine.cpu(0).new_root();
    for cpu in 0..CPUS {
        machine.cpu(cpu).load_ttbr0(Some(empty), Asid::new(0));
    }
    let mut world = World {
        setup,
        machine: &machine,
        board: &board,
        frames: &frames,
        memory: &memory,
        asids: &asids,
        empty,
        processes: Vec::new(),
        loaded: [None; CPUS],
        files: &files,
        file_tokens,
        file_history: BTreeSet::new(),
        objects: Vec::new(),
        next_token: 1,
        free_at_first: frames.free_frames(),
    };
    for _ in 0..PROCESSES {
        let mm = world.new_mm().expect("a root table");
        let process = world.new_process(mm, |mm| Ok(AddressSpace::new(mm, &memory, policy)));
        world.processes.push(process.expect("nothing that could fail"));
    }
    act(&mut world);
    world.end_all();
}

/// A file with these tokens, one in each page but for the last bytes of the last.
fn file_of<'m, G: GranuleType + Sync>(memory: &'m Memory<'m>, tokens: &[Token]) -> File<'m> {
    let page = G::GRANULE.page_size() as usize;
    let mut bytes = vec![0; tokens.len() * page - 17];
    for (at, token) in tokens.iter().enumerate() {
        let at = at * page + TOKEN_AT as usize;
        bytes[at..at + 4].copy_from_slice(&token.to_le_bytes());
    }
    File::new(memory, &bytes).expect("memory for a file")
}

impl<'m, G: GranuleType + Sync> World<'m, G> {
    /// Pages of a block.
    pub fn block(&self) -> u64 {
        G::GRANULE.cont_entries(LAST_LEVEL) as u64
    }

    /// Blocks on either side of a border between two tables.
    fn half(&self) -> u64 {
        if self.block() > 64 { 2 } else { 3 }
    }

    /// The pages that operations are for: across the border of two tables.
    pub fn arena(&self) -> Range<u64> {
        let border = 0x40_0000_0000 / G::GRANULE.page_size();
        border - self.half() * self.block()..border + self.half() * self.block()
    }

    /// The address of a page.
    pub fn va(page: u64) -> u64 {
        page * G::GRANULE.page_size()
    }

    /// The pages that an operation is for.
    pub(super) fn range(&self, pages: Pages) -> Range<u64> {
        let start = self.place(pages.block, pages.page);
        start..(start + self.length(pages.length)).min(self.arena().end)
    }

    pub(super) fn length(&self, length: Length) -> u64 {
        match length {
            Length::Blocks(blocks) => u64::from(blocks) * self.block(),
            Length::About(blocks, more) => u64::from(blocks) * self.block() + u64::from(more) * 2 - 1,
            Length::Some(pages) => u64::from(pages),
        }
    }

    /// As [`Self::range`], moved on to the next page that is mapped, if there is one and the block's number does not say that
    /// it is to stay.
    pub(super) fn mapped_range(&self, process: usize, pages: Pages) -> Range<u64> {
        let range = self.range(pages);
        let mapped = &self.processes[process].reference.pages;
        if pages.block >= 0xe0 || mapped.contains_key(&range.start) {
            return range;
        }
        let arena = self.arena();
        let in_arena =
            || mapped.range(range.start..arena.end).next().or_else(|| mapped.range(arena.clone()).next());
        let Some((&start, _)) = in_arena() else { return range };
        start..(start + (range.end - range.start)).min(arena.end)
    }

    pub(super) fn place(&self, block: u8, page: Place) -> u64 {
        let page = match page {
            Place::First => 0,
            Place::Last => self.block() - 1,
            Place::Any(page) => u64::from(page) % self.block(),
        };
        self.arena().start + u64::from(block) % (2 * self.half()) * self.block() + page
    }

    /// Whether memory is short, or was made so.
    pub(super) fn is_short(&self) -> bool {
        self.frames.free_frames() == 0 || self.board.has_failed()
    }

    /// An mm for a new process, and its root table.
    pub fn new_mm(&self) -> Option<(Mm<'m, &'m Machine<G>>, TableFrame)> {
        let root = self.board.new_root()?;
        Some((Mm::new_user(self.machine, root, self.frames), root))
    }

    pub(super) fn new_process(
        &self,
        (mm, root): (Mm<'m, &'m Machine<G>>, TableFrame),
        make: impl FnOnce(Mm<'m, &'m Machine<G>>) -> Result<Space<'m, G>, Errno>,
    ) -> Result<Process<'m, G>, Errno> {
        Ok(Process { space: make(mm)?, root, reference: Reference::default() })
    }

    /// Puts another process in the place of one, which ends.
    pub(super) fn replace(&mut self, cpu: usize, place: usize, process: Process<'m, G>) {
        self.unload(place);
        self.machine.run_on(cpu);
        // Before it is dropped, or after all its entries are: either way nothing of it may be left.
        self.asids.release(&self.machine, self.processes[place].space.context());
        self.processes[place] = process;
    }

    fn unload(&mut self, process: usize) {
        for cpu in (0..CPUS).filter(|&cpu| self.loaded[cpu] == Some(process)).collect::<Vec<_>>() {
            self.switch(cpu, None);
        }
    }

    /// Loads a process into a CPU's TTBR0, or none.
    pub fn switch(&mut self, cpu: usize, process: Option<usize>) {
        self.machine.run_on(cpu);
        let this = self.machine.cpu(cpu);
        this.load_ttbr0(Some(self.empty), Asid::new(0));
        self.loaded[cpu] = process;
        let Some(process) = process else { return self.asids.leave(cpu) };
        let process = &self.processes[process];
        let asid = self.asids.switch_to(&self.machine, cpu, process.space.context());
        this.load_ttbr0(Some(process.root), asid);
    }

    /// What a page is meant to hold.
    pub(super) fn meant(&self, page: Page) -> Token {
        let of_file = |file: usize, page: u64| self.file_tokens[file][page as usize];
        match page.kind {
            Kind::Anonymous { token, .. } => token,
            Kind::Private { copy: Some(token), .. } => token,
            Kind::Private { file, page, copy: None } | Kind::File { file, page } => of_file(file, page),
            Kind::Shared { object, page } => {
                self.objects[object as usize].tokens.get(&page).copied().unwrap_or(0)
            }
        }
    }

    /// Whether there is nothing behind a page: it is beyond the end.
    pub(super) fn is_beyond(&self, page: Page) -> bool {
        match page.kind {
            Kind::Anonymous { .. } => false,
            Kind::Private { file, page, .. } | Kind::File { file, page } => {
                page >= self.file_tokens[file].len() as u64
            }
            Kind::Shared { object, page } => page >= self.objects[object as usize].pages,
        }
    }

    /// A token was written to a page.
    pub(super) fn wrote(&mut self, process: usize, page: u64, written: Token) {
        let meant = self.processes[process].reference.pages.get_mut(&page).expect("a page that is mapped");
        match &mut meant.kind {
            kind @ Kind::Anonymous { .. } => *kind = Kind::Anonymous { token: written, free: false },
            Kind::Private { copy, .. } => *copy = Some(written),
            Kind::File { file, page } => {
                let before = std::mem::replace(&mut self.file_tokens[*file][*page as usize], written);
                self.file_history.insert((*file, *page, before));
            }
            Kind::Shared { object, page } => {
                self.objects[*object as usize].tokens.insert(*page, written);
            }
        }
    }

    /// The token in a frame.
    pub(super) fn token_in(&self, pfn: Pfn) -> Token {
        let mut bytes = [0; 4];
        self.board.read_frame(pfn, TOKEN_AT, &mut bytes);
        Token::from_le_bytes(bytes)
    }

    pub(super) fn write_token(&self, pfn: Pfn, token: Token) {
        self.board.write_frame(pfn, TOKEN_AT, &token.to_le_bytes());
    }

    /// The address of a page's token.
    pub(super) fn token_va(page: u64) -> u64 {
        Self::va(page) + TOKEN_AT
    }

    /// A token that was never used.
    pub(super) fn new_token(&mut self) -> Token {
        self.next_token += 1;
        self.next_token
    }

    /// Does an operation.
    pub fn apply(&mut self, op: &Op) {
        self.machine.run_on(op.cpu);
        if op.agent != 0 {
            self.machine.agent_at_random(u64::from(op.agent), 1 + u32::from(op.agent % 8));
        }
        if let Some((after, for_good)) = op.fails {
            self.board.fail(u64::from(after), for_good);
        }
        self.step(op);
        self.machine.agent_rests();
        self.machine.take_updates();
        self.board.fail_no_more();
    }

    /// Ends everything, after it was read once more.
    pub fn end(&mut self) {
        for process in 0..PROCESSES {
            let (of_tables, used) = (self.of_tables(), self.used_of_tables().collect::<BTreeSet<_>>());
            // All of a table would take long.
            let read = |page: &u64| {
                !of_tables.contains(page) || page.is_multiple_of(self.block()) || used.contains(page)
            };
            let pages: Vec<u64> =
                self.processes[process].reference.pages.keys().copied().filter(read).collect();
            pages.into_iter().for_each(|page| self.kernel_reads(process, page));
            self.exit(0, process);
            self.check("the end of a process");
        }
    }

    /// Ends a process, and begins an empty one.
    pub fn exit(&mut self, cpu: usize, process: usize) {
        let Some(mm) = self.new_mm() else { return };
        let memory = self.memory;
        let new = self.new_process(mm, |mm| Ok(AddressSpace::new(mm, memory, ThpPolicy::Always)));
        self.replace(cpu, process, new.expect("nothing that could fail"));
    }

    /// Ends all processes, and looks for what was lost.
    fn end_all(mut self) {
        self.board.fail_no_more();
        (0..PROCESSES).for_each(|process| self.unload(process));
        for process in &self.processes {
            self.asids.release(&self.machine, process.space.context());
        }
        self.processes.clear();
        assert_eq!(self.board.live_tables(), 0, "tables are lost");
        assert_eq!(self.frames.free_frames(), self.free_at_first, "frames are lost");
        self.frames.check().expect("the allocator is consistent");
    }
}
