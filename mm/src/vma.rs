//! What a process has mapped: virtual memory areas (VMAs), in order of their addresses.

use alloc::vec::Vec;
use core::ops::Range;

use arrayvec::ArrayVec;
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

/// The most VMAs of a chunk: what is moved where one is added or taken out.
const CHUNK: usize = 32;

/// The most chunks that a change may need: it adds mappings at both ends of a range, and at one other place.
const SPARE: usize = 3;

/// The mappings of an address space, in order and apart. Look-up takes logarithmic time, and so does a change but for a chunk.
///
/// Changes are made in two steps: [`Self::reserve`] is what may fail, and what comes after it can't.
pub(crate) struct Vmas<'m> {
    /// None is empty; each has room for [`CHUNK`].
    chunks: Vec<Vec<Vma<'m>>>,
    /// Empty chunks, for what is to be added.
    spare: ArrayVec<Vec<Vma<'m>>, SPARE>,
    count: usize,
    page_shift: u32,
}

/// Where a mapping is: the end is behind the last chunk.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    chunk: usize,
    index: usize,
}

impl<'m> Vmas<'m> {
    pub(crate) const fn new(page_shift: u32) -> Self {
        Self { chunks: Vec::new(), spare: ArrayVec::new_const(), count: 0, page_shift }
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Vma<'m>> {
        self.chunks.iter().flatten()
    }

    /// The place of the first mapping that ends behind `va`.
    fn first_behind(&self, va: u64) -> Place {
        let chunk = self.chunks.partition_point(|chunk| chunk.last().is_none_or(|last| last.end <= va));
        let index = self.chunks.get(chunk).map_or(0, |chunk| chunk.partition_point(|vma| vma.end <= va));
        Place { chunk, index }
    }

    fn at(&self, place: Place) -> Option<&Vma<'m>> {
        self.chunks.get(place.chunk)?.get(place.index)
    }

    /// The place behind that of a mapping.
    fn next(&self, Place { chunk, index }: Place) -> Place {
        if index + 1 < self.chunks[chunk].len() {
            Place { chunk, index: index + 1 }
        } else {
            Place { chunk: chunk + 1, index: 0 }
        }
    }

    /// All from a place on.
    fn from(&self, place: Place) -> impl Iterator<Item = &Vma<'m>> {
        let rest = self.chunks.get(place.chunk).map_or(&[][..], |chunk| &chunk[place.index..]);
        rest.iter().chain(self.chunks.iter().skip(place.chunk + 1).flatten())
    }

    /// The mapping of an address.
    pub(crate) fn find(&self, va: u64) -> Option<&Vma<'m>> {
        self.at(self.first_behind(va)).filter(|vma| vma.start <= va)
    }

    /// The mappings that have some of a range.
    pub(crate) fn overlapping(&self, range: &Range<u64>) -> impl Iterator<Item = &Vma<'m>> {
        let end = range.end;
        self.from(self.first_behind(range.start)).take_while(move |vma| vma.start < end)
    }

    /// Whether nothing is mapped in a range.
    pub(crate) fn is_free(&self, range: &Range<u64>) -> bool {
        self.overlapping(range).next().is_none()
    }

    /// Makes room for a change that cuts mappings at both ends of a range and adds `more`, at one other place.
    ///
    /// # Errors
    /// [`Errno::ENOMEM`], also beyond [`MAX_MAP_COUNT`].
    pub(crate) fn reserve(&mut self, range: &Range<u64>, more: usize) -> Result<(), Errno> {
        let cuts = [range.start, range.end].into_iter().filter(|&at| self.is_inside(at)).count();
        // Linux refuses one that has more than it may when it begins.
        if self.count + cuts + more > MAX_MAP_COUNT {
            return Err(Errno::ENOMEM);
        }
        self.chunks.try_reserve(SPARE).map_err(|_| Errno::ENOMEM)?;
        while !self.spare.is_full() {
            self.spare.push(Self::empty_chunk()?);
        }
        Ok(())
    }

    fn empty_chunk() -> Result<Vec<Vma<'m>>, Errno> {
        let mut chunk = Vec::new();
        chunk.try_reserve_exact(CHUNK).map_err(|_| Errno::ENOMEM)?;
        Ok(chunk)
    }

    /// Whether an address is inside of a mapping, and not its first.
    fn is_inside(&self, va: u64) -> bool {
        self.find(va).is_some_and(|vma| vma.start < va)
    }

    /// Puts a mapping at a place, after [`Self::reserve`].
    fn put(&mut self, place: Place, vma: Vma<'m>) {
        self.count += 1;
        let Place { mut chunk, mut index } = place;
        if chunk == self.chunks.len() {
            match chunk.checked_sub(1) {
                Some(last) => (chunk, index) = (last, self.chunks[last].len()),
                None => self.chunks.push(self.spare.pop().expect("a chunk was reserved")),
            }
        }
        if self.chunks[chunk].len() == CHUNK {
            let mut upper = self.spare.pop().expect("a chunk was reserved");
            // Mostly each is added below the one before, where there is room, or above it: then none of the chunk's are split off.
            let kept = match index {
                0 | CHUNK => index,
                _ => CHUNK / 2,
            };
            upper.extend(self.chunks[chunk].drain(kept..));
            self.chunks.insert(chunk + 1, upper);
            if index > kept || kept == CHUNK {
                (chunk, index) = (chunk + 1, index - kept);
            }
        }
        self.chunks[chunk].insert(index, vma);
    }

    /// Takes mappings of one chunk out. What is left is where it was, or in the chunk before.
    fn take(&mut self, chunk: usize, indices: Range<usize>) {
        self.count -= indices.len();
        self.chunks[chunk].drain(indices);
        // A few are not worth a chunk of their own.
        for lower in [Some(chunk), chunk.checked_sub(1)].into_iter().flatten() {
            let Some([one, other]) = self.chunks.get_mut(lower..lower + 2) else { continue };
            if one.len() + other.len() <= CHUNK / 2 {
                one.append(other);
                self.give_back(lower + 1);
            }
        }
        if self.chunks.get(chunk).is_some_and(Vec::is_empty) {
            self.give_back(chunk);
        }
    }

    /// Takes an empty chunk out.
    fn give_back(&mut self, chunk: usize) {
        let empty = self.chunks.remove(chunk);
        debug_assert!(empty.is_empty(), "a chunk that is not empty");
        // Enough of them are freed.
        let _ = self.spare.try_push(empty);
    }

    /// Cuts mappings at both ends of a range, after [`Self::reserve`].
    fn cut(&mut self, range: &Range<u64>) {
        for at in [range.start, range.end] {
            let place = self.first_behind(at);
            if self.is_inside(at) {
                let vma = &mut self.chunks[place.chunk][place.index];
                let upper = vma.part(at..vma.end, self.page_shift);
                vma.end = at;
                self.put(Place { index: place.index + 1, ..place }, upper);
            }
        }
    }

    /// Takes the mappings of a range out, after [`Self::reserve`].
    pub(crate) fn remove(&mut self, range: &Range<u64>) {
        self.cut(range);
        loop {
            let Place { chunk, index } = self.first_behind(range.start);
            let Some(all) = self.chunks.get(chunk) else { return };
            let nr = all[index..].partition_point(|vma| vma.start < range.end);
            if nr == 0 {
                return;
            }
            self.take(chunk, index..index + nr);
        }
    }

    /// Adds a mapping where there is none, after [`Self::reserve`] of one more, and merges it with its neighbours.
    pub(crate) fn insert(&mut self, vma: Vma<'m>) {
        let range = vma.start..vma.end;
        let place = self.first_behind(vma.start);
        debug_assert!(self.is_free(&range), "mappings overlap");
        self.put(place, vma);
        self.merge(&range);
    }

    /// Changes the permission of a range, after [`Self::reserve`].
    pub(crate) fn protect(&mut self, range: &Range<u64>, prot: Prot) {
        self.cut(range);
        let mut place = self.first_behind(range.start);
        while let Some(vma) = self.chunks.get_mut(place.chunk).and_then(|chunk| chunk.get_mut(place.index))
            && vma.start < range.end
        {
            vma.prot = prot;
            place = self.next(place);
        }
        self.merge(range);
    }

    /// Merges the mappings of a range with each other and with their neighbours, where they are one.
    fn merge(&mut self, range: &Range<u64>) {
        let mut place = self.first_behind(range.start.saturating_sub(1));
        while let Some(vma) = self.at(place)
            && vma.end <= range.end
        {
            let behind = self.next(place);
            let Some(next) = self.at(behind) else { return };
            if vma.continues(next, self.page_shift) {
                let (start, end) = (vma.start, next.end);
                self.chunks[place.chunk][place.index].end = end;
                self.take(behind.chunk, behind.index..behind.index + 1);
                place = self.first_behind(start);
            } else {
                place = behind;
            }
        }
    }

    /// The same mappings, for a child.
    ///
    /// # Errors
    /// [`Errno::ENOMEM`]
    pub(crate) fn try_clone(&self) -> Result<Self, Errno> {
        let mut clone = Self::new(self.page_shift);
        clone.chunks.try_reserve_exact(self.chunks.len()).map_err(|_| Errno::ENOMEM)?;
        for chunk in &self.chunks {
            let mut copy = Self::empty_chunk()?;
            copy.extend(chunk.iter().cloned());
            clone.chunks.push(copy);
        }
        clone.count = self.count;
        Ok(clone)
    }

    /// All around a range in which nothing is mapped that has no mapping either, between 0 and `top`.
    pub(crate) fn gap_around(&self, range: &Range<u64>, top: u64) -> Range<u64> {
        let Place { chunk, index } = self.first_behind(range.start);
        let before = match index.checked_sub(1) {
            Some(index) => self.chunks.get(chunk).and_then(|chunk| chunk.get(index)),
            None => chunk.checked_sub(1).and_then(|chunk| self.chunks[chunk].last()),
        };
        let next = self.at(Place { chunk, index });
        before.map_or(0, |vma| vma.end)..next.map_or(top, |vma| vma.start)
    }

    /// The first address of the highest gap of `size` bytes that ends at or below `top`, begins at or above `bottom`, and is
    /// congruent to `phase` modulo `align`.
    pub(crate) fn gap_below(&self, bottom: u64, top: u64, size: u64, align: u64, phase: u64) -> Option<u64> {
        let mut end = top;
        let below = self.iter().rev().skip_while(|vma| vma.start >= top);
        let starts = below.map(|vma| (vma.start, vma.end)).chain([(0, bottom)]);
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
        for vma in self.from(self.first_behind(bottom)) {
            if vma.start.saturating_sub(start) >= size {
                break;
            }
            start = start.max(vma.end);
        }
        (start.checked_add(size)? <= top).then_some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIFT: u32 = 12;
    const PAGES: usize = 900;

    /// The permission of each page, `None` where nothing is mapped.
    type Model = Vec<Option<Prot>>;

    /// The runs of pages that are alike.
    fn runs(model: &Model) -> Vec<(u64, u64, Prot)> {
        let mut runs: Vec<(u64, u64, Prot)> = Vec::new();
        for (page, prot) in model.iter().enumerate() {
            let (start, Some(prot)) = ((page as u64) << SHIFT, *prot) else { continue };
            match runs.last_mut() {
                Some(last) if last.1 == start && last.2 == prot => last.1 = start + (1 << SHIFT),
                _ => runs.push((start, start + (1 << SHIFT), prot)),
            }
        }
        runs
    }

    fn check(vmas: &Vmas<'_>, model: &Model) {
        let all: Vec<_> = vmas.iter().map(|vma| (vma.start, vma.end, vma.prot)).collect();
        assert_eq!(all, runs(model));
        assert_eq!(vmas.count, all.len());
        assert!(vmas.chunks.iter().all(|chunk| (1..=CHUNK).contains(&chunk.len())));
        let few = |pair: &[Vec<_>]| pair[0].len() + pair[1].len() <= CHUNK / 4;
        assert!(!vmas.chunks.windows(2).any(few), "two chunks of few");
        for (page, prot) in model.iter().enumerate() {
            let at = (page as u64) << SHIFT;
            assert_eq!(vmas.find(at + 5).map(|vma| vma.prot), *prot);
        }
    }

    /// Upwards as a program is loaded, downwards as `mmap` places them.
    #[test]
    fn what_is_added_in_order_fills_its_chunks() {
        let upwards: Vec<u64> = (0..10 * CHUNK as u64).collect();
        let downwards: Vec<u64> = upwards.iter().rev().copied().collect();
        for pages in [upwards, downwards] {
            let mut vmas = Vmas::new(SHIFT);
            for page in pages {
                let (start, end) = (page << SHIFT, (page + 1) << SHIFT);
                let prot = [Prot::READ, Prot::WRITE][page as usize % 2];
                vmas.reserve(&(start..end), 1).unwrap();
                vmas.insert(Vma { start, end, prot, backing: Backing::Anonymous });
            }
            assert_eq!((vmas.count, vmas.chunks.len()), (10 * CHUNK, 10));
            assert!(vmas.iter().is_sorted_by_key(|vma| vma.start));
        }
    }

    /// Against a plain map of pages, with so many mappings that chunks are split, merged and given back.
    #[test]
    fn random_changes_are_those_of_a_plain_map() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % below as u64) as usize
        };
        let (mut vmas, mut model) = (Vmas::new(SHIFT), vec![None; PAGES]);
        let (mut most, mut fewest_after) = (0, usize::MAX);
        for step in 0..6000 {
            // Now many small ones, now few large ones.
            let longest = if step % 2000 < 1700 { 3 } else { 200 };
            let first = random(PAGES);
            let pages = first..(first + 1 + random(longest)).min(PAGES);
            let range = (pages.start as u64) << SHIFT..(pages.end as u64) << SHIFT;
            let prot = [Prot::READ, Prot::WRITE, Prot::EXEC][random(3)];
            let clone = vmas.try_clone().unwrap();
            if random(8) == 0 {
                vmas = clone;
            }
            match random(4) {
                0 => {
                    vmas.reserve(&range, 0).unwrap();
                    vmas.remove(&range);
                    model[pages].fill(None);
                }
                1 => {
                    vmas.reserve(&range, 0).unwrap();
                    vmas.protect(&range, prot);
                    model[pages].iter_mut().flatten().for_each(|page| *page = prot);
                }
                _ => {
                    vmas.reserve(&range, 1).unwrap();
                    vmas.remove(&range);
                    vmas.insert(Vma {
                        start: range.start,
                        end: range.end,
                        prot,
                        backing: Backing::Anonymous,
                    });
                    model[pages].fill(Some(prot));
                }
            }
            check(&vmas, &model);
            most = most.max(vmas.chunks.len());
            if most > 8 {
                fewest_after = fewest_after.min(vmas.chunks.len());
            }
            let first = random(PAGES);
            let end = (first + 1 + random(20)).min(PAGES);
            let range = (first as u64) << SHIFT..(end as u64) << SHIFT;
            assert_eq!(vmas.is_free(&range), model[first..end].iter().all(Option::is_none));
        }
        assert!(most > 8 && fewest_after <= most / 2, "{most} chunks at most, {fewest_after} after that");
    }
}
