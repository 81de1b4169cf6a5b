//! The page-table dump, in the style of Linux's ptdump: what an address space maps, in ranges of equal attributes.
//!
//! ```text
//! ---[ linear map ]---
//! 0xffff000040000000-0xffff000040200000            2M PMD     RW     NX SHD AF         BLK UXN MEM/NORMAL
//! 0xffff00004028c000-0xffff000040290000           16K PTE     RW     NX SHD AF             UXN MEM/NORMAL
//! 0xffff000040290000-0xffff000040400000         1472K PTE     RW     NX SHD AF    CONT     UXN MEM/NORMAL
//! ```
//! From left to right: first address and the one past the last; size; level; `USR` accessible to EL0; `ro` or `RW`, and
//! `DBM` where a write may turn the one into the other; `NX` or `x` for EL1; Inner Shareable; access flag; `nG` not global;
//! Contiguous; `BLK` for blocks; `UXN`, or `ux` where EL0 may execute; memory type; and `W+X` for [what must not
//! be](Range::is_writable_and_executable). What is not mapped has no line.
//!
//! # Contract
//! *Lock:* none, so that a dump of an address space in use changes nothing about it. Each entry is read as it was or as it
//! is when the iterator comes by, pages as by [`ptep_get_lockless`]. The tables must not be freed meanwhile, which is what
//! the [`LocklessGuard`] vouches for: those of `init_mm` and `efi_mm` never are.
//!
//! *Maintenance:* none. *Allocation:* none.

use core::fmt;
use core::ops::ControlFlow;

use arch::granule::LAST_LEVEL;
use arch::{MemoryType, Mmu, PteFlags, PteValue, VirtAddr};

use crate::ptep::{LocklessGuard, ptep_get_lockless};
use crate::{Leaf, Mm, VA_BITS};

/// The name of what is mapped from an address on. No range extends over it, unless a block does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Marker<'a> {
    /// The first address.
    pub start: VirtAddr,
    /// What is there.
    pub name: &'a str,
}

/// A range that is mapped without a hole by leaves of one level and with equal attributes, wherever in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// The first address.
    pub start: VirtAddr,
    /// Bytes.
    pub size: u64,
    /// The level of the tables: 3 for pages.
    pub level: u8,
    /// The first descriptor.
    pub pte: PteValue,
}

/// Where AttrIndx\[2:0\] is in a descriptor.
const ATTR_INDX: u64 = 0b111 << 2;

/// The flags that are told: what is printed where one is set, and where it is clear.
const COLUMNS: [(PteFlags, &str, &str); 8] = [
    (PteFlags::USER, "USR", "   "),
    (PteFlags::RDONLY, "ro", "RW"),
    (PteFlags::DBM, "DBM", "   "),
    (PteFlags::PXN, "NX", "x "),
    (PteFlags::INNER_SHAREABLE, "SHD", "   "),
    (PteFlags::AF, "AF", "  "),
    (PteFlags::NG, "nG", "  "),
    (PteFlags::CONT, "CONT", "    "),
];

/// The attributes that are told of `pte`: all but the frame, and what only software reads.
fn attributes(pte: PteValue) -> u64 {
    let flags = COLUMNS.iter().fold(PteFlags::UXN, |flags, (flag, ..)| flags | *flag);
    pte.raw() & (flags.bits() | ATTR_INDX)
}

impl Range {
    /// Whether EL1 may write there and execute what it has written. By what the descriptors say: neither a control
    /// register nor what EL0 may do makes it better, and what hardware may make writable by DBM is.
    pub fn is_writable_and_executable(&self) -> bool {
        let flags = self.pte.flags();
        let writable = !flags.contains(PteFlags::RDONLY) || flags.contains(PteFlags::DBM);
        writable && !flags.contains(PteFlags::PXN)
    }

    /// The last address.
    fn last(&self) -> u64 {
        self.start.get() + (self.size - 1)
    }

    /// Whether a leaf with this descriptor at `va` belongs to the range.
    fn continues(&self, va: VirtAddr, level: u8, pte: PteValue) -> bool {
        self.last().checked_add(1) == Some(va.get())
            && self.level == level
            && attributes(self.pte) == attributes(pte)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The kernel's half ends with the last address there is.
        let end = u128::from(self.last()) + 1;
        let (mut size, mut units) = (self.size, "KMGT".chars());
        let mut unit = 'B';
        while size.is_multiple_of(1024) {
            let Some(larger) = units.next() else { break };
            (size, unit) = (size / 1024, larger);
        }
        let level = match self.level {
            0 => "PGD",
            1 => "PUD",
            2 => "PMD",
            _ => "PTE",
        };
        write!(f, "{:#018x}-{end:#018x} {size:>12}{unit} {level}", self.start.get())?;
        let flags = self.pte.flags();
        for (flag, set, clear) in COLUMNS {
            write!(f, " {}", if flags.contains(flag) { set } else { clear })?;
        }
        f.write_str(if self.level == LAST_LEVEL { "    " } else { " BLK" })?;
        f.write_str(if flags.contains(PteFlags::UXN) { " UXN " } else { " ux  " })?;
        match self.pte.memory() {
            Some(MemoryType::Normal) => f.write_str("MEM/NORMAL")?,
            Some(MemoryType::NonCacheable) => f.write_str("MEM/NORMAL-NC")?,
            Some(MemoryType::Device) => f.write_str("DEVICE/nGnRE")?,
            None => write!(f, "ATTRINDX={}", (self.pte.raw() & ATTR_INDX) >> ATTR_INDX.trailing_zeros())?,
        }
        if self.is_writable_and_executable() {
            f.write_str(" W+X")?;
        }
        Ok(())
    }
}

/// A line of a dump, without its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line<'a> {
    /// The name of what follows. It comes also where nothing does.
    Marker(&'a str),
    /// What is mapped.
    Range(Range),
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Marker(name) => write!(f, "---[ {name} ]---"),
            Self::Range(range) => range.fmt(f),
        }
    }
}

/// A dump: the lines in ascending order of their addresses. Made by [`Mm::ptdump`], or by `EfiMm::ptdump`.
///
/// # Examples
/// ```
/// # mod machine { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/machine.rs")); }
/// # let machine::World { mm, frames, plain: tables, .. } = machine::World::<machine::K4>::default();
/// use arch::{PteValue, VirtAddr};
/// use pleat_mm::ptdump::Marker;
/// use pleat_mm::pte::{Pte, UserProt};
/// use pleat_mm::ptep::{LocklessGuard, set_ptes};
///
/// let folio = frames.alloc(5)?;
/// let pte = PteValue::new_user(folio.head().addr(mm.granule()), UserProt::Read);
/// let va = VirtAddr::new(0x40_0000);
/// set_ptes(&mut mm.lock_table(va, tables)?, va, pte, 20);
///
/// let markers = [Marker { start: va, name: "heap" }];
/// // Interrupts are masked by who makes the guard, as for every lockless read of a user's tables.
/// let lines: Vec<_> = mm.ptdump(&markers, &LocklessGuard::interrupts_masked()).map(|line| line.to_string()).collect();
/// assert_eq!(lines, [
///     "---[ heap ]---",
///     "0x0000000000400000-0x0000000000410000           64K PTE USR ro     NX SHD AF nG CONT     UXN MEM/NORMAL",
///     "0x0000000000410000-0x0000000000414000           16K PTE USR ro     NX SHD AF nG          UXN MEM/NORMAL",
/// ]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Ptdump<'a, 'm, M: Mmu> {
    mm: &'a Mm<'m, M>,
    guard: &'a LocklessGuard,
    /// What was not reached yet, in ascending order.
    markers: &'a [Marker<'a>],
    /// The first address that was not read yet, unless all were.
    next: Option<VirtAddr>,
    /// What was read, and must wait for a marker.
    range: Option<Range>,
}

impl<'m, M: Mmu> Mm<'m, M> {
    /// What this address space maps, without its lock: see [`ptdump`](crate::ptdump). A page of a folded block that keeps
    /// changing while it is read, which only a user's can, is told as its entry alone says.
    ///
    /// # Panics
    /// Where `markers` are not in ascending order, or the guard is for tables that are never freed and this is a user's
    /// address space.
    pub fn ptdump<'a>(&'a self, markers: &'a [Marker<'a>], guard: &'a LocklessGuard) -> Ptdump<'a, 'm, M> {
        assert!(guard.vouches_for(self), "the tables of a user's address space may be freed");
        assert!(markers.is_sorted_by_key(|marker| marker.start.get()), "markers out of order");
        Ptdump { mm: self, guard, markers, next: Some(self.first_address()), range: None }
    }
}

impl<'a, 'm, M: Mmu> Ptdump<'a, 'm, M> {
    /// The ranges alone.
    pub fn ranges(self) -> impl Iterator<Item = Range> + use<'a, 'm, M> {
        self.filter_map(|line| match line {
            Line::Range(range) => Some(range),
            Line::Marker(_) => None,
        })
    }

    /// The next range, as long as it can be.
    fn read_range(&mut self) -> Option<Range> {
        let start = self.next?.get();
        let last = self.mm.first_address().get() + ((1 << VA_BITS) - 1);
        let mut range: Option<Range> = None;
        let mut boundary = None;
        let _ = self.mm.walk(VirtAddr::new(start), last - start + 1, |leaf| {
            let Leaf { va, level, pte } = self.read(leaf);
            let size = M::GRANULE.level_size(level);
            match &mut range {
                // Cleared since the walk came by.
                _ if !pte.is_valid() => {}
                None => {
                    range = Some(Range { start: va, size, level, pte });
                    boundary =
                        self.markers.iter().map(|marker| marker.start).find(|start| start.get() > va.get());
                }
                Some(range)
                    if range.continues(va, level, pte) && boundary.is_none_or(|b| va.get() < b.get()) =>
                {
                    range.size += size;
                }
                Some(_) => return ControlFlow::Break(()),
            }
            ControlFlow::Continue(())
        });
        self.next = range.filter(|range| range.last() < last).map(|range| VirtAddr::new(range.last() + 1));
        range
    }

    /// The leaf by the lockless read. Only pages are ever folded.
    fn read(&self, leaf: Leaf) -> Leaf {
        if leaf.level != LAST_LEVEL {
            return leaf;
        }
        Leaf { pte: ptep_get_lockless(self.mm, leaf.va, self.guard).unwrap_or(leaf.pte), ..leaf }
    }
}

impl<'a, M: Mmu> Iterator for Ptdump<'a, '_, M> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        if self.range.is_none() {
            self.range = self.read_range();
        }
        let reached =
            |marker: &Marker<'_>| self.range.is_none_or(|range| marker.start.get() <= range.start.get());
        match self.markers.split_first() {
            Some((marker, rest)) if reached(marker) => {
                self.markers = rest;
                Some(Line::Marker(marker.name))
            }
            _ => self.range.take().map(Line::Range),
        }
    }
}
