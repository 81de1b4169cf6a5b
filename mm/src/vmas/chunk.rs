//! A few mappings that follow one another.

use alloc::vec::Vec;
use core::ops::{Deref, Range};
use core::sync::atomic::{AtomicU64, Ordering};

use super::maxima::UNKNOWN;
use crate::errno::Errno;
use crate::vma::{Prot, Vma};

/// The most VMAs of a chunk, which then takes most of a page of 4 KiB: what is moved where one is added or taken out.
pub(super) const CHUNK: usize = 64;

/// Mappings in order and apart, with room for [`CHUNK`]. They are read as a slice.
pub(super) struct Chunk<'m> {
    vmas: Vec<Vma<'m>>,
    /// Bytes of the widest gap before one of them, so that who looks for a wider one need not look at each; or [`UNKNOWN`]
    /// since a change. Who looks for a gap finds it out, under the lock of who only reads: all find the same.
    widest: AtomicU64,
}

impl<'m> Chunk<'m> {
    /// One without mappings.
    ///
    /// # Errors
    /// [`Errno::OutOfMemory`]
    pub(super) fn new() -> Result<Self, Errno> {
        let mut vmas = Vec::new();
        vmas.try_reserve_exact(CHUNK).map_err(|_| Errno::OutOfMemory)?;
        Ok(Self { vmas, widest: AtomicU64::new(UNKNOWN) })
    }

    /// The same mappings.
    ///
    /// # Errors
    /// [`Errno::OutOfMemory`]
    pub(super) fn try_clone(&self) -> Result<Self, Errno> {
        let mut clone = Self::new()?;
        clone.vmas.extend(self.vmas.iter().cloned());
        Ok(clone)
    }

    /// Changes which mappings there are, or where they are; they are at most [`CHUNK`] after it, so that nothing is allocated.
    pub(super) fn change<R>(&mut self, act: impl FnOnce(&mut Vec<Vma<'m>>) -> R) -> R {
        let result = act(&mut self.vmas);
        debug_assert!(self.vmas.len() <= CHUNK, "too many mappings in a chunk");
        self.forget_widest();
        result
    }

    /// Changes the permission of one, which stays where it is.
    pub(super) fn protect(&mut self, index: usize, prot: Prot) {
        self.vmas[index].prot = prot;
    }

    /// For a change of what is before them. Whether it was known.
    pub(super) fn forget_widest(&mut self) -> bool {
        core::mem::replace(self.widest.get_mut(), UNKNOWN) != UNKNOWN
    }

    /// The gaps before each of them, some of which may be empty, where what is before the first ends at `before`.
    pub(super) fn gaps(&self, before: u64) -> impl DoubleEndedIterator<Item = Range<u64>> {
        let first = self.vmas.first().map(|first| before..first.start);
        first.into_iter().chain(self.vmas.windows(2).map(|pair| pair[0].end..pair[1].start))
    }

    /// Bytes of the widest of [`Self::gaps`]; for what is known, nothing else is looked at.
    pub(super) fn widest(&self, before: impl FnOnce() -> u64) -> u64 {
        match self.widest.load(Ordering::Relaxed) {
            UNKNOWN => {
                let widest = self.gaps(before()).map(|gap| gap.end - gap.start).max().unwrap_or(0);
                self.widest.store(widest, Ordering::Relaxed);
                widest
            }
            widest => widest,
        }
    }
}

impl<'m> Deref for Chunk<'m> {
    type Target = [Vma<'m>];

    fn deref(&self) -> &Self::Target {
        &self.vmas
    }
}
