//! One range of RAM and its free lists: the binary buddy system (Knowlton 1965; Knuth, TAOCP 1, 2.5).
//!
//! A block of order *n* is 2^n frames whose first frame *number* is a multiple of 2^n, so that a folio is aligned
//! in physical memory whatever the zone's base. Its buddy is the other half of the block of order *n* + 1: the
//! numbers differ in bit *n* only. Two free buddies are always one block.

use core::ops::Range;

use arch::Pfn;
use spin::Mutex;

use super::record::{Frame, NIL, State};
use super::{Counts, MAX_ORDER, ORDERS};

/// A contiguous range of RAM with a record for each of its frames.
#[derive(Debug)]
pub struct Zone<'m> {
    base: Pfn,
    frames: &'m [Frame],
    lists: Mutex<FreeLists>,
}

/// What the zone's lock protects, beside the states and links of the free frames.
#[derive(Debug)]
pub(super) struct FreeLists {
    /// The first block of each order's list, as an index into the zone's frames, or [`NIL`].
    pub(super) first: [u32; ORDERS],
    /// The blocks in each list.
    pub(super) blocks: [u32; ORDERS],
    /// Frames that were never released.
    pub(super) reserved: u32,
}

impl<'m> Zone<'m> {
    /// The zone of the frames from `base` on, one for each of `frames`, all reserved.
    ///
    /// # Panics
    /// Where `frames` is empty or has 2^32 - 1 elements or more, or the last frame's number overflows.
    pub const fn new(base: Pfn, frames: &'m [Frame]) -> Self {
        assert!(!frames.is_empty(), "a zone without frames");
        assert!(frames.len() < NIL as usize, "a zone of 2^32 frames");
        assert!(base.get().checked_add(frames.len() as u64).is_some(), "a zone beyond the last frame number");
        let lists = FreeLists { first: [NIL; ORDERS], blocks: [0; ORDERS], reserved: frames.len() as u32 };
        Self { base, frames, lists: Mutex::new(lists) }
    }

    /// The frames of this zone.
    pub fn range(&self) -> Range<Pfn> {
        self.base..self.base.add(self.frames.len() as u64)
    }

    /// The index of a frame, where it is in this zone.
    pub(super) fn index(&self, pfn: Pfn) -> Option<u32> {
        // One comparison for both ends: below the base, the difference wraps to a large number.
        let index = pfn.get().wrapping_sub(self.base.get());
        if index < self.frames.len() as u64 { Some(index as u32) } else { None }
    }

    pub(super) fn pfn(&self, index: u32) -> Pfn {
        self.base.add(u64::from(index))
    }

    pub(super) fn frame(&self, index: u32) -> &'m Frame {
        &self.frames[index as usize]
    }

    /// The head of the folio that a frame belongs to, or what the frame is instead.
    pub(super) fn head_of(&self, index: u32) -> Result<u32, State> {
        match self.frame(index).state() {
            State::Head { .. } => Ok(index),
            State::Tail { distance } => Ok(index - distance),
            other => Err(other),
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.frames.len() as u32
    }

    pub(super) fn lists(&self) -> spin::MutexGuard<'_, FreeLists> {
        self.lists.lock()
    }

    /// The buddy of the block of `order` at `index`, where it is wholly in the zone.
    pub(super) fn buddy(&self, index: u32, order: u8) -> Option<u32> {
        let buddy = self.index(Pfn::new(self.pfn(index).get() ^ (1 << order)))?;
        if self.len() - buddy >= 1 << order { Some(buddy) } else { None }
    }

    /// Adds the zone's counts to `counts`.
    pub(super) fn count(&self, counts: &mut Counts) {
        let lists = self.lists();
        counts.total += u64::from(self.len());
        counts.reserved += u64::from(lists.reserved);
        for (order, &blocks) in lists.blocks.iter().enumerate() {
            counts.blocks[order] += u64::from(blocks);
            counts.free += u64::from(blocks) << order;
        }
    }

    /// Takes a block of `order` off the free lists and makes it a folio without a reference; its index.
    pub(super) fn take(&self, order: u8) -> Option<u32> {
        let index = {
            let lists = &mut *self.lists();
            let found = (order..=MAX_ORDER).find(|&found| lists.first[usize::from(found)] != NIL)?;
            let index = lists.first[usize::from(found)];
            self.unlink(lists, index, found);
            // Keep the lower half and give the upper one back, until the size fits.
            for half in (order..found).rev() {
                self.link(lists, index + (1 << half), half);
            }
            index
        };
        // The block is in no list, so nobody merges it, and has no reference, so nobody gets one.
        self.frame(index).set_state(State::Head { order });
        for distance in 1..1 << order {
            self.frame(index + distance).set_state(State::Tail { distance });
        }
        Some(index)
    }

    /// Gives a folio's frames back. The caller owns them: it has dropped the last reference.
    pub(super) fn give(&self, index: u32, order: u8) {
        for frame in index..index + (1 << order) {
            self.frame(frame).recycle();
        }
        self.insert(&mut self.lists(), index, order);
    }

    /// Makes reserved frames free, in the largest blocks that their numbers allow.
    ///
    /// # Panics
    /// Where one of them is not reserved; then none was changed.
    pub(super) fn release(&self, indices: Range<u32>) {
        let lists = &mut *self.lists();
        // Once over all of RAM at boot: two short loops, with the check that fails kept out of them.
        let frames = &self.frames[indices.start as usize..indices.end as usize];
        if let Some(used) = frames.iter().position(|frame| !frame.is_reserved()) {
            let pfn = self.pfn(indices.start + used as u32);
            panic!("frame {pfn}: released while {:?}", frames[used].state());
        }
        for frame in frames {
            frame.set_state(State::FreeBody);
        }
        lists.reserved -= indices.len() as u32;
        let mut index = indices.start;
        while index < indices.end {
            let aligned = self.pfn(index).get().trailing_zeros();
            let fitting = (indices.end - index).ilog2();
            let order = aligned.min(fitting).min(u32::from(MAX_ORDER)) as u8;
            self.insert(lists, index, order);
            index += 1 << order;
        }
    }

    /// Puts a block of frames that are all [`State::FreeBody`] on its list, merged with its buddy, and with the
    /// buddy of that, as long as those are free.
    fn insert(&self, lists: &mut FreeLists, mut index: u32, mut order: u8) {
        while order < MAX_ORDER
            && let Some(buddy) = self.buddy(index, order)
            && self.frame(buddy).state() == (State::FreeHead { order })
        {
            self.unlink(lists, buddy, order);
            index = index.min(buddy);
            order += 1;
        }
        self.link(lists, index, order);
    }

    /// Puts a block first on its list. A frame is [`State::FreeHead`] from here until [`Self::unlink`].
    fn link(&self, lists: &mut FreeLists, index: u32, order: u8) {
        let first = &mut lists.first[usize::from(order)];
        let block = self.frame(index);
        block.set_state(State::FreeHead { order });
        block.set_next(*first);
        block.set_prev(NIL);
        if *first != NIL {
            self.frame(*first).set_prev(index);
        }
        *first = index;
        lists.blocks[usize::from(order)] += 1;
    }

    /// Takes a block off its list.
    fn unlink(&self, lists: &mut FreeLists, index: u32, order: u8) {
        let block = self.frame(index);
        let (next, prev) = (block.next(), block.prev());
        if prev == NIL {
            lists.first[usize::from(order)] = next;
        } else {
            self.frame(prev).set_next(next);
        }
        if next != NIL {
            self.frame(next).set_prev(prev);
        }
        block.set_state(State::FreeBody);
        lists.blocks[usize::from(order)] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(n: usize) -> Vec<Frame> {
        (0..n).map(|_| Frame::new()).collect()
    }

    /// The free blocks in address order, as (frame number, order).
    fn blocks(zone: &Zone<'_>) -> Vec<(u64, u8)> {
        (0..zone.len())
            .filter_map(|index| match zone.frame(index).state() {
                State::FreeHead { order } => Some((zone.pfn(index).get(), order)),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn blocks_are_aligned_by_frame_number_not_by_index() {
        let frames = frames(29);
        let zone = Zone::new(Pfn::new(0x40003), &frames);
        zone.release(0..29);
        assert_eq!(
            blocks(&zone),
            [(0x40003, 0), (0x40004, 2), (0x40008, 3), (0x40010, 4)],
            "[0x40003, 0x40020) in naturally aligned blocks"
        );
    }

    #[test]
    fn a_split_keeps_the_lower_half_and_a_free_restores_it() {
        let frames = frames(1 << MAX_ORDER);
        let zone = Zone::new(Pfn::new(1 << MAX_ORDER), &frames);
        zone.release(0..zone.len());
        assert_eq!(blocks(&zone), [(0x400, 10)]);
        assert_eq!(zone.take(7), Some(0));
        assert_eq!(blocks(&zone), [(0x480, 7), (0x500, 8), (0x600, 9)]);
        assert_eq!(zone.take(0), Some(0x80), "the smallest block that is large enough");
        zone.give(0, 7);
        assert_eq!(zone.take(10), None);
        zone.give(0x80, 0);
        assert_eq!(blocks(&zone), [(0x400, 10)]);
    }

    #[test]
    fn no_block_is_larger_than_the_largest_order_and_none_leaves_the_zone() {
        let frames = frames((2 << MAX_ORDER) + 3);
        let zone = Zone::new(Pfn::new(0), &frames);
        zone.release(0..zone.len());
        assert_eq!(blocks(&zone), [(0, 10), (0x400, 10), (0x800, 1), (0x802, 0)]);
        assert_eq!(zone.buddy(0x800, 1), None, "its second frame would be past the end");
        assert_eq!(zone.buddy(0x802, 0), None);
    }

    #[test]
    fn frames_released_apart_are_merged() {
        let frames = frames(8);
        let zone = Zone::new(Pfn::new(8), &frames);
        for index in [3, 0, 6, 1, 7, 2, 5] {
            zone.release(index..index + 1);
        }
        assert_eq!(blocks(&zone), [(8, 2), (13, 0), (14, 1)]);
        assert_eq!(zone.lists().reserved, 1);
        zone.release(4..5);
        assert_eq!(blocks(&zone), [(8, 3)]);
    }

    #[test]
    #[should_panic(expected = "frame 0x102: released while FreeHead { order: 1 }")]
    fn a_second_release_names_the_frame() {
        let frames = frames(4);
        let zone = Zone::new(Pfn::new(0x100), &frames);
        zone.release(2..4);
        zone.release(0..3);
    }

    #[test]
    fn a_refused_release_changes_nothing() {
        let frames = frames(4);
        let zone = Zone::new(Pfn::new(0x100), &frames);
        zone.release(3..4);
        let release = std::panic::AssertUnwindSafe(|| zone.release(0..4));
        assert!(std::panic::catch_unwind(release).is_err());
        assert_eq!((blocks(&zone), zone.lists().reserved), ([(0x103, 0)].to_vec(), 3));
    }

    #[test]
    #[should_panic(expected = "a zone beyond the last frame number")]
    fn a_zone_ends_within_the_frame_numbers() {
        Zone::new(Pfn::new(u64::MAX), &frames(2));
    }

    #[test]
    #[should_panic(expected = "a zone without frames")]
    fn a_zone_has_frames() {
        Zone::new(Pfn::new(1), &[]);
    }
}
