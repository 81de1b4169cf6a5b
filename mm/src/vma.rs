//! What a process has mapped: virtual memory areas (VMAs), in order of their addresses.

use alloc::vec::Vec;
use core::ops::Range;

use bitflags::bitflags;

use crate::errno::Errno;
use crate::file::File;
use crate::pte::UserProt;
use crate::shared::Shared;

/// The most VMAs that an address space may have, as in Linux.
pub const MAX_MAP_COUNT: usize = 65530;

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
    fn continues(&self, next: &Self, page_shift: u32) -> bool {
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

/// The mappings of an address space, in order and apart. Look-up takes logarithmic time.
///
/// Changes are made in two steps: [`Self::reserve`] is what may fail, and what comes after it can't.
pub(crate) struct Vmas<'m> {
    list: Vec<Vma<'m>>,
    page_shift: u32,
}

impl<'m> Vmas<'m> {
    pub(crate) const fn new(page_shift: u32) -> Self {
        Self { list: Vec::new(), page_shift }
    }

    pub(crate) fn as_slice(&self) -> &[Vma<'m>] {
        &self.list
    }

    /// The index of the first mapping that ends behind `va`.
    pub(crate) fn first_behind(&self, va: u64) -> usize {
        self.list.partition_point(|vma| vma.end <= va)
    }

    /// The mapping of an address.
    pub(crate) fn find(&self, va: u64) -> Option<&Vma<'m>> {
        self.list.get(self.first_behind(va)).filter(|vma| vma.start <= va)
    }

    /// The mappings that have some of a range.
    pub(crate) fn overlapping(&self, range: &Range<u64>) -> &[Vma<'m>] {
        let first = self.first_behind(range.start);
        let count = self.list[first..].partition_point(|vma| vma.start < range.end);
        &self.list[first..first + count]
    }

    /// Makes room for a change that cuts mappings at both ends of a range and adds `more`.
    ///
    /// # Errors
    /// [`Errno::ENOMEM`], also beyond [`MAX_MAP_COUNT`].
    pub(crate) fn reserve(&mut self, range: &Range<u64>, more: usize) -> Result<(), Errno> {
        let cuts = [range.start, range.end].into_iter().filter(|&at| self.is_inside(at)).count();
        // Linux refuses one that has more than it may when it begins.
        if self.list.len() + cuts + more > MAX_MAP_COUNT {
            return Err(Errno::ENOMEM);
        }
        self.list.try_reserve(2 + more).map_err(|_| Errno::ENOMEM)
    }

    /// Whether an address is inside of a mapping, and not its first.
    fn is_inside(&self, va: u64) -> bool {
        self.find(va).is_some_and(|vma| vma.start < va)
    }

    /// Cuts mappings at both ends of a range, after [`Self::reserve`]. Returns the indices of those inside.
    pub(crate) fn cut(&mut self, range: &Range<u64>) -> Range<usize> {
        for at in [range.start, range.end] {
            let index = self.first_behind(at);
            if self.is_inside(at) {
                let upper = self.list[index].part(at..self.list[index].end, self.page_shift);
                self.list[index].end = at;
                self.list.insert(index + 1, upper);
            }
        }
        let first = self.first_behind(range.start);
        first..first + self.list[first..].partition_point(|vma| vma.start < range.end)
    }

    /// Takes the mappings of a range out, after [`Self::reserve`].
    pub(crate) fn remove(&mut self, range: &Range<u64>) {
        let indices = self.cut(range);
        self.list.drain(indices);
    }

    /// Adds a mapping where there is none, after [`Self::reserve`] of one more, and merges it with its neighbours.
    pub(crate) fn insert(&mut self, vma: Vma<'m>) {
        let index = self.first_behind(vma.start);
        debug_assert!(self.list.get(index).is_none_or(|next| next.start >= vma.end), "mappings overlap");
        self.list.insert(index, vma);
        self.merge(index..index + 1);
    }

    /// Changes the permission of a range, after [`Self::reserve`].
    pub(crate) fn protect(&mut self, range: &Range<u64>, prot: Prot) {
        let indices = self.cut(range);
        self.list[indices.clone()].iter_mut().for_each(|vma| vma.prot = prot);
        self.merge(indices);
    }

    /// Merges these mappings with each other and with their neighbours, where they are one.
    fn merge(&mut self, indices: Range<usize>) {
        let mut index = indices.end.min(self.list.len().saturating_sub(1));
        let first = indices.start.saturating_sub(1);
        while index > first {
            if self.list[index - 1].continues(&self.list[index], self.page_shift) {
                self.list[index - 1].end = self.list[index].end;
                self.list.remove(index);
            }
            index -= 1;
        }
    }

    /// The same mappings, for a child.
    ///
    /// # Errors
    /// [`Errno::ENOMEM`]
    pub(crate) fn try_clone(&self) -> Result<Self, Errno> {
        let mut list = Vec::new();
        list.try_reserve_exact(self.list.len()).map_err(|_| Errno::ENOMEM)?;
        list.extend(self.list.iter().cloned());
        Ok(Self { list, page_shift: self.page_shift })
    }

    /// All around a range in which nothing is mapped that has no mapping either, between 0 and `top`.
    pub(crate) fn gap_around(&self, range: &Range<u64>, top: u64) -> Range<u64> {
        let next = self.first_behind(range.start);
        let start = next.checked_sub(1).map_or(0, |index| self.list[index].end);
        let end = self.list.get(next).map_or(top, |vma| vma.start);
        start..end
    }

    /// The first address of the highest gap of `size` bytes that ends at or below `top`, begins at or above `bottom`, and is
    /// congruent to `phase` modulo `align`.
    pub(crate) fn gap_below(&self, bottom: u64, top: u64, size: u64, align: u64, phase: u64) -> Option<u64> {
        let mut end = top;
        let below = self.list.partition_point(|vma| vma.start < top);
        let starts = self.list[..below].iter().rev().map(|vma| (vma.start, vma.end)).chain([(0, bottom)]);
        for (vma_start, vma_end) in starts {
            let start = end.checked_sub(size).map(|start| {
                let excess = start.wrapping_sub(phase) & (align - 1);
                start.wrapping_sub(excess)
            });
            if let Some(start) = start
                && start <= end
                && start >= vma_end.max(bottom)
            {
                return Some(start);
            }
            end = end.min(vma_start);
            if end < bottom {
                return None;
            }
        }
        None
    }

    /// The first address of the lowest gap of `size` bytes from `bottom` on that ends at or below `top`.
    pub(crate) fn gap_above(&self, bottom: u64, top: u64, size: u64) -> Option<u64> {
        let mut start = bottom;
        for vma in &self.list[self.first_behind(bottom)..] {
            if vma.start.saturating_sub(start) >= size {
                break;
            }
            start = start.max(vma.end);
        }
        (start.checked_add(size)? <= top).then_some(start)
    }
}
