//! What a process has mapped: VMAs in order of their addresses, and the gaps between them.

mod chunk;
mod maxima;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::ops::Range;

use arrayvec::ArrayVec;

use crate::errno::Errno;
use crate::vma::{Prot, Vma};
use chunk::{CHUNK, Chunk};
use maxima::{Maxima, UNKNOWN};

/// The most VMAs that an address space may have, as in Linux.
pub const MAX_MAP_COUNT: usize = 65530;

/// The most chunks that a change may need: one for each mapping that it adds, or cuts in two.
const SPARE: usize = 3;

/// The mappings of an address space, in order and apart. Look-up takes logarithmic time, and so does a change but for a chunk,
/// for what it takes out, and for the chunks that move where one becomes two or is taken out. To find a gap also takes
/// logarithmic time, but for the widths of those chunks, which are found out again: the highest or the lowest chunk with one as
/// wide is found, and that in it. Where it has to be aligned, the first chunk need not have it, and each is looked into.
///
/// Changes are made in two steps: [`Self::reserve`] is what may fail, and what comes after it can't.
pub(crate) struct Vmas<'m> {
    /// None is empty.
    chunks: Vec<Chunk<'m>>,
    /// Empty chunks, for what is to be added.
    spare: ArrayVec<Chunk<'m>, SPARE>,
    /// The widest gaps of chunks: see [`Self::leaf`].
    maxima: Maxima,
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
        Self { chunks: Vec::new(), spare: ArrayVec::new_const(), maxima: Maxima::new(), count: 0, page_shift }
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Vma<'m>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
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
        rest.iter().chain(self.chunks.iter().skip(place.chunk + 1).flat_map(|chunk| chunk.iter()))
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

    /// Makes room for a change that cuts mappings at both ends of a range and adds `more`.
    ///
    /// # Errors
    /// [`Errno::ENOMEM`] beyond [`MAX_MAP_COUNT`]; [`Errno::OutOfMemory`].
    pub(crate) fn reserve(&mut self, range: &Range<u64>, more: usize) -> Result<(), Errno> {
        let cuts = [range.start, range.end].into_iter().filter(|&at| self.is_inside(at)).count();
        // Linux refuses one that has more than it may when it begins.
        if self.count + cuts + more > MAX_MAP_COUNT {
            return Err(Errno::ENOMEM);
        }
        self.chunks.try_reserve(SPARE).map_err(|_| Errno::OutOfMemory)?;
        self.maxima.reserve(self.chunks.len() + SPARE + 1)?;
        while !self.spare.is_full() {
            self.spare.push(Chunk::new()?);
        }
        Ok(())
    }

    /// Whether an address is inside of a mapping, and not its first.
    fn is_inside(&self, va: u64) -> bool {
        self.find(va).is_some_and(|vma| vma.start < va)
    }

    /// Changes which mappings a chunk has, or where they are: see [`Chunk::change`].
    fn change<R>(&mut self, chunk: usize, act: impl FnOnce(&mut Vec<Vma<'m>>) -> R) -> R {
        let end = |chunk: &Chunk<'m>| chunk.last().map_or(0, |last| last.end);
        let of = &mut self.chunks[chunk];
        let (before, known) = (end(of), of.forget_widest());
        let result = of.change(act);
        let moves_end = end(of) != before;
        if known {
            self.maxima.forget(self.leaf(chunk), self.leaf(chunk));
        }
        if moves_end {
            self.forget(chunk + 1);
        }
        result
    }

    /// Adds a chunk before that of an index, after [`Self::reserve`] and a change of both.
    fn add_chunk(&mut self, index: usize, chunk: Chunk<'m>) {
        self.chunks.insert(index, chunk);
        self.maxima.forget(self.leaf(index), self.leaf(0));
    }

    /// Takes chunks out, with what they have.
    fn take_chunks(&mut self, indices: Range<usize>) {
        if indices.is_empty() {
            return;
        }
        let (index, last) = (indices.start, self.leaf(0));
        for mut chunk in self.chunks.drain(indices) {
            self.count -= chunk.len();
            chunk.change(Vec::clear);
            // Enough of them are freed.
            let _ = self.spare.try_push(chunk);
        }
        self.forget(index);
        self.maxima.forget(self.leaf(index), last);
    }

    /// After a change of the gaps of a chunk. Where its width is not known, none is that comes of it.
    fn forget(&mut self, chunk: usize) {
        if self.chunks.get_mut(chunk).is_some_and(Chunk::forget_widest) {
            self.maxima.forget(self.leaf(chunk), self.leaf(chunk));
        }
    }

    /// Puts a mapping at a place, after [`Self::reserve`].
    fn put(&mut self, place: Place, vma: Vma<'m>) {
        self.count += 1;
        let Place { mut chunk, mut index } = place;
        if chunk == self.chunks.len() {
            match chunk.checked_sub(1) {
                Some(last) => (chunk, index) = (last, self.chunks[last].len()),
                None => {
                    let first = self.spare.pop().expect("a chunk was reserved");
                    self.add_chunk(0, first);
                }
            }
        }
        if self.chunks[chunk].len() == CHUNK {
            let mut upper = self.spare.pop().expect("a chunk was reserved");
            // Mostly each is added below the one before, where there is room, or above it: then none of the chunk's are split off.
            let kept = match index {
                0 | CHUNK => index,
                _ => CHUNK / 2,
            };
            self.change(chunk, |lower| upper.change(|upper| upper.extend(lower.drain(kept..))));
            self.add_chunk(chunk + 1, upper);
            if index > kept || kept == CHUNK {
                (chunk, index) = (chunk + 1, index - kept);
            }
        }
        self.change(chunk, |vmas| vmas.insert(index, vma));
    }

    /// Takes the mappings from one place to another out. What is before them is where it was, or in the chunk before.
    fn take(&mut self, from: Place, to: Place) {
        let len = self.chunks[from.chunk].len();
        let mut drain = |chunk: usize, indices: Range<usize>| {
            self.count -= indices.len();
            self.change(chunk, |vmas| drop(vmas.drain(indices)));
        };
        if from.chunk == to.chunk {
            drain(from.chunk, from.index..to.index);
        } else {
            drain(from.chunk, from.index..len);
            if to.index > 0 {
                drain(to.chunk, 0..to.index);
            }
            self.take_chunks(from.chunk + 1..to.chunk);
        }
        self.tidy(from.chunk);
    }

    /// After mappings of a chunk and of the next were taken out: a few are not worth a chunk of their own.
    fn tidy(&mut self, chunk: usize) {
        for lower in [Some(chunk + 1), Some(chunk), chunk.checked_sub(1)].into_iter().flatten() {
            let Some([one, other]) = self.chunks.get_mut(lower..lower + 2) else { continue };
            if one.len() + other.len() <= CHUNK / 2 {
                one.change(|one| other.change(|other| one.append(other)));
                self.take_chunks(lower + 1..lower + 2);
            }
        }
        if self.chunks.get(chunk).is_some_and(|chunk| chunk.is_empty()) {
            self.take_chunks(chunk..chunk + 1);
        }
    }

    /// Cuts the mapping in two that has what is on either side of an address, if one has, after [`Self::reserve`].
    fn cut(&mut self, at: u64) {
        let place = self.first_behind(at);
        if self.is_inside(at) {
            let shift = self.page_shift;
            let upper = self.change(place.chunk, |vmas| {
                let vma = &mut vmas[place.index];
                let upper = vma.part(at..vma.end, shift);
                vma.end = at;
                upper
            });
            self.put(Place { index: place.index + 1, ..place }, upper);
        }
    }

    /// Takes the mappings of a range out, after [`Self::reserve`]. Cuts one in two where the range is inside it, and else none.
    pub(crate) fn remove(&mut self, range: &Range<u64>) {
        let Some(vma) = self.overlapping(range).next() else { return };
        if vma.start < range.start {
            if range.end < vma.end {
                self.cut(range.end);
            }
            let lower = self.first_behind(range.start);
            self.change(lower.chunk, |vmas| vmas[lower.index].end = range.start);
        }
        let first = self.first_behind(range.start);
        let last = self.first_behind(range.end);
        if self.is_inside(range.end) {
            let shift = self.page_shift;
            self.change(last.chunk, |vmas| {
                let vma = &mut vmas[last.index];
                *vma = vma.part(range.end..vma.end, shift);
            });
        }
        if first != last {
            self.take(first, last);
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
        self.cut(range.start);
        self.cut(range.end);
        let mut place = self.first_behind(range.start);
        while self.at(place).is_some_and(|vma| vma.start < range.end) {
            self.chunks[place.chunk].protect(place.index, prot);
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
                self.take(behind, self.next(behind));
                place = self.first_behind(start);
                self.change(place.chunk, |vmas| vmas[place.index].end = end);
            } else {
                place = behind;
            }
        }
    }

    /// The same mappings, for a child.
    ///
    /// # Errors
    /// [`Errno::OutOfMemory`]
    pub(crate) fn try_clone(&self) -> Result<Self, Errno> {
        let mut clone = Self::new(self.page_shift);
        clone.chunks.try_reserve_exact(self.chunks.len()).map_err(|_| Errno::OutOfMemory)?;
        clone.maxima.reserve(self.chunks.len() + 1)?;
        for chunk in &self.chunks {
            clone.chunks.push(chunk.try_clone()?);
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

    /// Where the mappings before a chunk end.
    fn end_before(&self, chunk: usize) -> u64 {
        chunk.checked_sub(1).and_then(|before| self.chunks[before].last()).map_or(0, |vma| vma.end)
    }

    /// The gaps before the mappings of a chunk, or, of the one behind the last, that behind all mappings, which has no end.
    fn gaps(&self, chunk: usize) -> impl DoubleEndedIterator<Item = Range<u64>> {
        let before = self.end_before(chunk);
        let behind = (chunk == self.chunks.len()).then_some(before..u64::MAX);
        self.chunks.get(chunk).into_iter().flat_map(move |chunk| chunk.gaps(before)).chain(behind)
    }

    /// The leaf of [`Self::maxima`] that has the width of the widest of [`Self::gaps`], and the chunk of a leaf. The highest comes
    /// first: mostly chunks are added below the others, and then those keep theirs. What is behind all is always wide enough.
    fn leaf(&self, chunk: usize) -> usize {
        self.chunks.len() - chunk
    }

    fn widest(&self, leaf: usize) -> u64 {
        let Some(chunk) = self.chunks.len().checked_sub(leaf) else { return 0 };
        let before = || self.end_before(chunk);
        self.chunks.get(chunk).map_or(UNKNOWN - 1, |chunk| chunk.widest(before))
    }

    /// From the highest down: those that begin below `top` of chunks that have one of `size` bytes, and maybe others.
    fn gaps_below(&self, top: u64, size: u64) -> impl Iterator<Item = Range<u64>> {
        let above = self.chunks.partition_point(|chunk| chunk.first().is_some_and(|vma| vma.start < top));
        let next = move |leaf| self.maxima.next(leaf, size, |leaf| self.widest(leaf));
        let leaves = core::iter::successors(next(self.leaf(above)), move |leaf| next(leaf + 1));
        leaves.flat_map(|leaf| self.gaps(self.leaf(leaf)).rev())
    }

    /// From the lowest up: those that end above `bottom` of chunks that have one of `size` bytes, and maybe others.
    fn gaps_above(&self, bottom: u64, size: u64) -> impl Iterator<Item = Range<u64>> {
        let first = self.first_behind(bottom).chunk;
        let previous = move |leaf| self.maxima.previous(leaf, size, |leaf| self.widest(leaf));
        let leaves =
            core::iter::successors(previous(self.leaf(first)), move |leaf| previous(leaf.checked_sub(1)?));
        leaves.flat_map(|leaf| self.gaps(self.leaf(leaf)))
    }

    /// The first address of the highest gap of `size` bytes that ends at or below `top`, begins at or above `bottom`, and is
    /// congruent to `phase` modulo `align`, a power of two.
    pub(crate) fn gap_below(&self, bottom: u64, top: u64, size: u64, align: u64, phase: u64) -> Option<u64> {
        let mut gaps = self.gaps_below(top, size).take_while(|gap| gap.end >= bottom);
        gaps.find_map(|gap| {
            let start = gap.end.min(top).checked_sub(size)?;
            let start = start.checked_sub(start.wrapping_sub(phase) & (align - 1))?;
            (start >= gap.start.max(bottom)).then_some(start)
        })
    }

    /// The first address of the lowest gap of `size` bytes from `bottom` on, if it ends at or below `top`.
    pub(crate) fn gap_above(&self, bottom: u64, top: u64, size: u64) -> Option<u64> {
        let first_in = |gap: Range<u64>| {
            let start = gap.start.max(bottom);
            (gap.end.saturating_sub(start) >= size).then_some(start)
        };
        let start = self.gaps_above(bottom, size).find_map(first_in)?;
        (start.checked_add(size)? <= top).then_some(start)
    }
}
