//! Operations, and how bytes become one.

use mm::pte::UserProt;
use mm::ptep::YoungDirty;

/// Bytes of an operation.
pub const OP_BYTES: usize = 8;

/// Which pages: a place in blocks, so that it means the same in every granule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pages {
    /// The block, of all that an address space has.
    pub block: u8,
    /// The page in it.
    pub page: Within,
    /// How many.
    pub length: Length,
}

/// A page of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Within {
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
    /// One.
    One,
    /// This many blocks.
    Blocks(u8),
    /// One less, or more, than this many blocks.
    About(u8, bool),
    /// This many.
    Some(u8),
}

/// Who runs it, and how hardware interferes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Op {
    /// The CPU.
    pub cpu: usize,
    /// The address space.
    pub space: usize,
    /// What sets access flags and dirty states while it runs; 0 for nothing.
    pub agent: u8,
    /// What it does.
    pub step: Step,
}

/// What an operation does. Pages beyond the end of a table are left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// An access by EL0, on the CPU that has the address space loaded, with its faults handled. Hardware updates the entry
    /// of this page of its block.
    Access { at: Pages, write: bool, by: u8 },
    /// Maps pages of a folio, from this one of its blocks and pages on, where nothing is mapped.
    Map { at: Pages, folio: u8, from: Within, prot: UserProt, order: Order },
    /// Unmaps pages, and gives their folios back when that is safe.
    Clear { at: Pages, one_by_one: bool },
    /// Takes the permission to write.
    WriteProtect { at: Pages },
    /// Clears young, with or without a flush.
    ClearYoung { at: Pages, flush: bool },
    /// Clears young, dirty, or both.
    ClearYoungDirty { at: Pages, what: YoungDirty },
    /// Changes the permission of runs of pages, as mprotect does; each run in two commits if it has two pages.
    Protect { at: Pages, prot: UserProt, split: bool },
    /// Sets the entries of single pages anew, with another permission.
    Replace { at: Pages, prot: UserProt },
    /// Sets an entry by its index.
    SetPte { at: Pages },
    /// Unmaps every other page, a few of them, and maps other frames there, under one lock: copy on write. Or makes one writable
    /// where it is.
    Copy { at: Pages, reuse: bool },
    /// Several calls under one lock: takes the permission to write, unmaps the first page, folds what can be folded, and makes
    /// the rest clean.
    Several { at: Pages },
    /// Moves pages, to this block and page, if nothing is mapped there.
    Move { at: Pages, block: u8, page: Within },
    /// Shares pages with another address space, as fork does.
    Share { at: Pages, with: usize },
    /// Folds what can be folded.
    Refold { at: Pages },
    /// Loads the address space into TTBR0, or none.
    Switch { none: bool },
    /// Lets go of a folio that operations take pages from.
    Forget { folio: u8 },
    /// Ends the address space, and begins another.
    Exit,
    /// Invalidates nothing, but orders: a DSB of the CPU.
    Barrier,
}

/// In which order pages are mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// By one call.
    AtOnce,
    /// One by one.
    Upwards,
    /// One by one, the last first.
    Downwards,
}

fn prot(byte: u8) -> UserProt {
    match byte % 8 {
        0..4 => UserProt::ReadWrite,
        4 | 5 => UserProt::Read,
        6 => UserProt::ReadExecute,
        _ => UserProt::ReadWriteExecute,
    }
}

fn within(byte: u8) -> Within {
    match byte % 4 {
        0 | 1 => Within::First,
        2 => Within::Last,
        _ => Within::Any(byte / 4),
    }
}

fn length(byte: u8) -> Length {
    let more = byte / 8;
    match byte % 8 {
        0 | 1 => Length::One,
        2 | 3 => Length::Blocks(1 + more % 3),
        4 => Length::About(1 + more % 2, more % 4 < 2),
        _ => Length::Some(1 + more),
    }
}

impl Op {
    /// The operation of these bytes: any are one, and smaller bytes are a simpler one.
    pub fn decode(bytes: [u8; OP_BYTES]) -> Self {
        let [kind, who, block, page, count, x, y, agent] = bytes;
        let at = Pages { block, page: within(page), length: length(count) };
        let space = usize::from(who / 2 % 4).min(2);
        let step = match kind % 32 {
            0..6 => Step::Access { at, write: x % 2 != 0, by: y },
            6..12 => {
                let order = [Order::AtOnce, Order::Upwards, Order::AtOnce, Order::Downwards];
                Step::Map {
                    at,
                    folio: x,
                    from: within(y),
                    prot: prot(x / 8),
                    order: order[usize::from(y / 64)],
                }
            }
            12 | 13 => Step::Clear { at, one_by_one: x % 4 == 3 },
            14 | 15 => Step::WriteProtect { at },
            16 => Step::ClearYoung { at, flush: x % 2 != 0 },
            17 | 18 => Step::ClearYoungDirty {
                at,
                what: [YoungDirty::Dirty, YoungDirty::Young, YoungDirty::Both][usize::from(x % 3)],
            },
            19..22 => Step::Protect { at, prot: prot(x), split: y % 4 == 3 },
            22 => Step::Replace { at, prot: prot(x) },
            23 => Step::SetPte { at },
            24 => Step::Copy { at, reuse: x % 2 != 0 },
            25 => Step::Move { at, block: x, page: within(y) },
            26 => Step::Share { at, with: usize::from(x % 3) },
            27 => Step::Refold { at },
            28 | 29 => Step::Switch { none: x % 8 == 7 },
            30 => match x % 4 {
                0 | 1 => Step::Forget { folio: y },
                2 => Step::Barrier,
                _ => Step::Exit,
            },
            _ => Step::Several { at },
        };
        Self { cpu: usize::from(who % 2), space, agent, step }
    }
}
