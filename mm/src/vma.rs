//! A virtual memory area (VMA): pages that are mapped alike.

use core::ops::Range;

use bitflags::bitflags;

use crate::file::File;
use crate::pte::UserProt;
use crate::shared::Shared;

bitflags! {
    /// What a process may do with a mapping: `PROT_*`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Prot: u64 {
        /// `PROT_READ`
        const READ = 1;
        /// `PROT_WRITE`; implies reading.
        const WRITE = 2;
        /// `PROT_EXEC`; implies reading.
        const EXEC = 4;
    }
}

impl Prot {
    /// The permission of an entry, which may be written to only if `writable` too. `None` for `PROT_NONE`.
    pub(crate) fn of_entry(self, writable: bool) -> Option<UserProt> {
        if self.is_empty() {
            return None;
        }
        Some(match (writable && self.contains(Self::WRITE), self.contains(Self::EXEC)) {
            (false, false) => UserProt::Read,
            (false, true) => UserProt::ReadExecute,
            (true, false) => UserProt::ReadWrite,
            (true, true) => UserProt::ReadWriteExecute,
        })
    }
}

/// What is behind a mapping.
#[derive(Clone)]
#[repr(u64)]
pub(crate) enum Backing<'m> {
    /// Memory of the process's own, zero at first.
    Anonymous,
    /// Pages of a file from this one on, which a private mapping copies before it writes to them.
    File { file: &'m File<'m>, page: u64, shared: bool },
    /// Shared anonymous memory from this page on.
    Shared { object: Shared<'m>, page: u64 },
}

/// One mapping: pages with the same permission of what is behind them.
#[derive(Clone)]
pub(crate) struct Vma<'m> {
    pub(crate) start: u64,
    /// Exclusive.
    pub(crate) end: u64,
    pub(crate) prot: Prot,
    pub(crate) backing: Backing<'m>,
}

impl Vma<'_> {
    /// Whether what is written to it is the process's own: copied on write.
    pub(crate) fn is_private(&self) -> bool {
        match self.backing {
            Backing::Anonymous => true,
            Backing::File { shared, .. } => !shared,
            Backing::Shared { .. } => false,
        }
    }

    pub(crate) fn is_anonymous(&self) -> bool {
        matches!(self.backing, Backing::Anonymous)
    }

    /// Whether it may be made writable.
    pub(crate) fn may_write(&self) -> bool {
        !matches!(self.backing, Backing::File { file, shared: true, .. } if file.is_read_only())
    }

    /// The page of its file or object at an address.
    pub(crate) fn page_at(&self, va: u64, page_shift: u32) -> u64 {
        let offset = (va - self.start) >> page_shift;
        match self.backing {
            Backing::Anonymous => offset,
            Backing::File { page, .. } | Backing::Shared { page, .. } => page + offset,
        }
    }
}

impl<'m> Vma<'m> {
    /// A part of it.
    pub(crate) fn part(&self, range: Range<u64>, page_shift: u32) -> Self {
        let at = self.page_at(range.start, page_shift);
        let backing = match &self.backing {
            Backing::Anonymous => Backing::Anonymous,
            Backing::File { file, shared, .. } => Backing::File { file, page: at, shared: *shared },
            Backing::Shared { object, .. } => Backing::Shared { object: object.clone(), page: at },
        };
        Self { start: range.start, end: range.end, prot: self.prot, backing }
    }

    /// Whether the two are one mapping, `next` following directly.
    pub(crate) fn continues(&self, next: &Self, page_shift: u32) -> bool {
        let at = self.page_at(self.end, page_shift);
        self.end == next.start
            && self.prot == next.prot
            && match (&self.backing, &next.backing) {
                (Backing::Anonymous, Backing::Anonymous) => true,
                (
                    Backing::File { file, shared, .. },
                    Backing::File { file: other, page, shared: also_shared },
                ) => core::ptr::eq(*file, *other) && shared == also_shared && *page == at,
                (Backing::Shared { object, .. }, Backing::Shared { object: other, page }) => {
                    object.is_same(other) && *page == at
                }
                _ => false,
            }
    }
}
