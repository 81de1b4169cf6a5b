//! Operations, and how bytes become one.

use mm::mman::*;

/// Bytes of an operation.
pub const OP_BYTES: usize = 10;

/// Pages of the arena: a place in blocks, so that it means the same in every granule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pages {
    /// The block, of all that the arena has.
    pub block: u8,
    /// The page in it.
    pub page: Place,
    /// How many.
    pub length: Length,
}

/// A page of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The first.
    First,
    /// The last.
    Last,
    /// This one, modulo the size of the block.
    Any(u8),
}

/// A number of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Length {
    /// This many blocks.
    Blocks(u8),
    /// One page less, or more, than this many blocks.
    About(u8, bool),
    /// This many.
    Some(u8),
}

/// What is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// Private anonymous memory.
    Anonymous,
    /// Shared anonymous memory.
    Shared,
    /// A file from some page on.
    File { file: u8, block: u8, page: Place, shared: bool },
}

/// Who runs it, and what interferes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Op {
    /// The CPU.
    pub cpu: usize,
    /// The process.
    pub process: usize,
    /// What sets access flags and dirty states while it runs; 0 for nothing.
    pub agent: u8,
    /// Which allocation fails, and whether all after it do.
    pub fails: Option<(u8, bool)>,
    /// What it does.
    pub step: Step,
}

/// What an operation does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// An access by EL0, on the CPU that has the process loaded. Hardware updates the entry of page `by` of the block.
    Access { at: Pages, access: mm::Access, by: u8 },
    /// Maps something, at a fixed address; maybe populated at once, and written to where it may be.
    Map { at: Pages, what: What, prot: u64, populate: bool },
    /// Unmaps.
    Unmap { at: Pages },
    /// Changes permissions.
    Protect { at: Pages, prot: u64 },
    /// Resizes or moves, to this place if it is fixed.
    Remap { at: Pages, to: Pages, flags: u64 },
    /// Advises.
    Advise { at: Pages, advice: i32 },
    /// Begins another process as a copy of this one.
    Fork { child: usize },
    /// Ends a process, and begins an empty one.
    Exit,
    /// Folds what can be folded.
    Refold,
    /// Takes pages that were advised to be free.
    Reclaim { pages: u8 },
    /// The kernel reads all of the memory, or writes to each page.
    Kernel { at: Pages, write: bool },
    /// Asks what is in memory.
    InCore { at: Pages },
    /// Loads the process on a CPU, or none.
    Switch { none: bool },
    /// Does something with memory that fills a table.
    OfTable { slot: u8, what: OfTable },
}

/// What is done with a mapping that fills a last-level table: with pages of it by their numbers among those that are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OfTable {
    /// As [`Step::Access`].
    Access { page: u8, access: mm::Access, by: u8 },
    /// Moves it to where another table is, one block longer but for these blocks.
    Move { to: u8, flags: u64, blocks: u8 },
    /// Changes the permission of all of it.
    Protect { prot: u64 },
    /// Gives a page up.
    Forget { page: u8 },
}

fn place(byte: u8) -> Place {
    match byte % 4 {
        0 | 1 => Place::First,
        2 => Place::Last,
        _ => Place::Any(byte / 4),
    }
}

fn length(byte: u8) -> Length {
    let more = byte / 8;
    match byte % 8 {
        0 | 1 => Length::Some(1),
        2..5 => Length::Blocks(1 + more % 3),
        5 => Length::About(1 + more % 2, more % 4 < 2),
        _ => Length::Some(1 + more),
    }
}

fn prot(byte: u8) -> u64 {
    const RW: u64 = PROT_READ | PROT_WRITE;
    const RX: u64 = PROT_READ | PROT_EXEC;
    match byte % 16 {
        0..8 => RW,
        8..11 => PROT_READ,
        11 => PROT_WRITE,
        12 => RX,
        13 => RW | PROT_EXEC,
        14 => 0,
        _ => PROT_EXEC,
    }
}

fn of_table(what: u8, y: u8, z: u8) -> OfTable {
    let access = if z % 4 == 3 { mm::Access::Read } else { mm::Access::Write };
    match what % 8 {
        0..3 => OfTable::Access { page: y, access, by: z },
        3..6 => {
            let keep = if z % 4 == 3 { MREMAP_DONTUNMAP } else { 0 };
            let blocks = if (z / 4).is_multiple_of(4) { z / 16 % 4 } else { 1 };
            OfTable::Move { to: y, flags: MREMAP_MAYMOVE | MREMAP_FIXED | keep, blocks }
        }
        6 => OfTable::Protect { prot: prot(y) },
        _ => OfTable::Forget { page: y },
    }
}

impl Op {
    /// The operation of these bytes: any are one, and smaller bytes are a simpler one.
    pub fn decode(bytes: [u8; OP_BYTES]) -> Self {
        let [kind, who, block, page, count, x, y, z, agent, fails] = bytes;
        let at = Pages { block, page: place(page), length: length(count) };
        let other = Pages { block: x, page: place(y), length: length(z) };
        let access = match x % 8 {
            0..4 => mm::Access::Write,
            4..7 => mm::Access::Read,
            _ => mm::Access::Execute,
        };
        let step = match kind % 32 {
            0..8 => Step::Access { at, access, by: y },
            8..11 => Step::Kernel { at, write: x % 8 != 7 },
            11..14 => {
                let file = |shared| What::File { file: y % 2, block: y / 2, page: place(page), shared };
                let what = match y % 8 {
                    0..4 => What::Anonymous,
                    4 => What::Shared,
                    5 | 6 => file(false),
                    _ => file(true),
                };
                Step::Map { at, what, prot: prot(x), populate: z % 2 != 0 }
            }
            14 | 28 if x >= 0x80 => Step::OfTable { slot: block, what: of_table(x, y, z) },
            14 => Step::Unmap { at },
            15..18 => Step::Protect { at, prot: prot(x) },
            18 | 19 => {
                let flags = match z % 8 {
                    0..4 => MREMAP_MAYMOVE | MREMAP_FIXED,
                    4 => 0,
                    5 => MREMAP_MAYMOVE,
                    6 => MREMAP_MAYMOVE | MREMAP_DONTUNMAP,
                    _ => MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
                };
                Step::Remap { at, to: other, flags }
            }
            20 | 21 => Step::Advise { at, advice: MADV_DONTNEED },
            22 => Step::Advise { at, advice: MADV_FREE },
            23 => {
                let advices = [MADV_FREE, MADV_COLD, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_WILLNEED];
                Step::Advise { at, advice: advices[usize::from(x % 5)] }
            }
            24 => Step::Fork { child: usize::from(x % 3) },
            25 if x < 0x60 => Step::Exit,
            25 | 26 => Step::Kernel { at, write: true },
            27 => match x % 4 {
                0 => Step::Exit,
                1 | 2 => Step::Refold,
                _ => Step::Advise { at, advice: MADV_COLD },
            },
            28 => Step::InCore { at },
            29 => Step::Advise { at, advice: MADV_FREE },
            30 => Step::Switch { none: x % 8 == 7 },
            _ => Step::Reclaim { pages: x },
        };
        Self {
            cpu: usize::from(who % 2),
            process: [0, 0, 1, 2][usize::from(who / 2 % 4)],
            agent,
            fails: (fails >= 0xe0).then_some((fails % 16 % 6, fails % 2 != 0)),
            step,
        }
    }
}
