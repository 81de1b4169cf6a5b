//! The record that is kept of every frame of RAM, and how it is packed.

use core::sync::atomic::{AtomicU32, Ordering};

/// What is known of one frame of RAM: 16 bytes, Linux's `struct page` in small.
///
/// Which fields mean something depends on the state:
///
/// | state | `refs` | `maps_or_next` | `writes_or_prev` |
/// |---|---|---|---|
/// | reserved | 0 | - | - |
/// | first of a free block | 0 | next free block of this order | previous one |
/// | rest of a free block | 0 | - | - |
/// | head of a folio | references | mappings | what instruction fetches may see |
/// | tail of a folio | 0 | - | - |
///
/// `refs` is shared with nothing: a racing [`FrameMap::get`](super::FrameMap::get) may look at it at any time,
/// and anything but a count would pass for one.
///
/// A record of zero bytes is the same as [`Frame::new`], so that an array of them is made by clearing memory.
#[derive(Debug)]
#[repr(C)]
pub struct Frame {
    state: AtomicU32,
    refs: AtomicU32,
    maps_or_next: AtomicU32,
    writes_or_prev: AtomicU32,
}

// The budget is 32 bytes a frame; a power of two makes the index a shift.
const _: () = assert!(size_of::<Frame>() == 16);

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Not the allocator's: never released to it.
    Reserved,
    /// The first frame of a free block of 2^order frames, linked in the free list of its order.
    FreeHead {
        /// log2 of the block's frames.
        order: u8,
    },
    /// A frame that is free, and not the first of a block in a free list.
    FreeBody,
    /// The first frame of an allocated folio of 2^order frames.
    Head {
        /// log2 of the folio's frames.
        order: u8,
    },
    /// A further frame of an allocated folio.
    Tail {
        /// How many frames before this one its head is.
        distance: u32,
    },
}

// The state word: the tag in bits 2:0, an order or a distance in 15:4, flags from the top. The rest is unused.
const TAG: u32 = 0b111;
const RESERVED: u32 = 0;
const FREE_HEAD: u32 = 1;
const FREE_BODY: u32 = 2;
const HEAD: u32 = 3;
const TAIL: u32 = 4;
const VALUE_SHIFT: u32 = 4;
const VALUE: u32 = 0xfff;
/// The frame was allocated and freed at least once. Kept by every change of state.
const RECYCLED: u32 = 1 << 31;

const _: () = assert!((1 << super::MAX_ORDER) <= VALUE + 1);

impl State {
    const fn encode(self) -> u32 {
        match self {
            Self::Reserved => RESERVED,
            Self::FreeHead { order } => FREE_HEAD | (order as u32) << VALUE_SHIFT,
            Self::FreeBody => FREE_BODY,
            Self::Head { order } => HEAD | (order as u32) << VALUE_SHIFT,
            Self::Tail { distance } => TAIL | distance << VALUE_SHIFT,
        }
    }

    fn decode(word: u32) -> Self {
        let value = word >> VALUE_SHIFT & VALUE;
        match word & TAG {
            RESERVED => Self::Reserved,
            FREE_HEAD => Self::FreeHead { order: value as u8 },
            FREE_BODY => Self::FreeBody,
            HEAD => Self::Head { order: value as u8 },
            TAIL => Self::Tail { distance: value },
            _ => panic!("frame record overwritten: state {word:#x}"),
        }
    }
}

// What instruction fetches may see of a folio: bit 0, and above it how often the folio was written, modulo 2^31.
// Only a count tells whether it was written while the caches were being maintained.
/// They see all that was written so often.
const FETCHABLE: u32 = 1 << 0;
const ONE_WRITE: u32 = 1 << 1;

/// No block: the end of a free list.
pub(super) const NIL: u32 = u32::MAX;

/// The most references or mappings a folio may have. The other half of the range is what makes an overflow
/// noticed before it wraps, however many CPUs race.
pub(super) const MAX_COUNT: u32 = i32::MAX as u32;

impl Frame {
    /// The record of a reserved frame.
    #[expect(clippy::new_without_default, reason = "a record's first state is worth being named")]
    pub const fn new() -> Self {
        Self {
            state: AtomicU32::new(State::Reserved.encode()),
            refs: AtomicU32::new(0),
            maps_or_next: AtomicU32::new(0),
            writes_or_prev: AtomicU32::new(0),
        }
    }

    // Relaxed throughout: a state changes under its zone's lock, or while the one that changes it owns the frame
    // alone (taken off its list and not yet published, or its last reference gone). Others learn of it by the
    // lock, or by the reference count, which is published with Release and taken with Acquire.

    pub(super) fn state(&self) -> State {
        State::decode(self.state.load(Ordering::Relaxed))
    }

    /// log2 of the number of frames of the folio that this frame is the head of, if it is one.
    #[inline(always)]
    pub(super) fn order_of_head(&self) -> Option<u8> {
        let word = self.state.load(Ordering::Relaxed);
        (word & TAG == HEAD).then_some((word >> VALUE_SHIFT & VALUE) as u8)
    }

    pub(super) fn is_reserved(&self) -> bool {
        self.state.load(Ordering::Relaxed) & TAG == RESERVED
    }

    pub(super) fn set_state(&self, state: State) {
        // Not a read-modify-write: nobody else writes at this time.
        let kept = self.state.load(Ordering::Relaxed) & RECYCLED;
        self.state.store(state.encode() | kept, Ordering::Relaxed);
    }

    pub(super) fn is_recycled(&self) -> bool {
        self.state.load(Ordering::Relaxed) & RECYCLED != 0
    }

    /// Marks a frame as free and recycled.
    pub(super) fn recycle(&self) {
        self.state.store(State::FreeBody.encode() | RECYCLED, Ordering::Relaxed);
    }

    // Links: only under the zone's lock.

    pub(super) fn next(&self) -> u32 {
        self.maps_or_next.load(Ordering::Relaxed)
    }

    pub(super) fn set_next(&self, index: u32) {
        self.maps_or_next.store(index, Ordering::Relaxed);
    }

    pub(super) fn prev(&self) -> u32 {
        self.writes_or_prev.load(Ordering::Relaxed)
    }

    pub(super) fn set_prev(&self, index: u32) {
        self.writes_or_prev.store(index, Ordering::Relaxed);
    }

    // Counts of a folio, in the record of its head.

    /// Makes a folio whose states are written, and which nobody else knows, one with a single reference and no
    /// mapping, which instruction fetches may see as it was long ago.
    pub(super) fn publish(&self) {
        self.maps_or_next.store(0, Ordering::Relaxed);
        self.writes_or_prev.store(0, Ordering::Relaxed);
        // Release: who finds the count above 0, with Acquire, finds the states of this folio too. Later changes
        // of the count are read-modify-writes and so belong to the same release sequence.
        self.refs.store(1, Ordering::Release);
    }

    pub(super) fn refs(&self) -> u32 {
        self.refs.load(Ordering::Relaxed)
    }

    /// Takes one more reference where there is one already, and returns how many there were.
    pub(super) fn add_ref(&self) -> u32 {
        // Relaxed: the caller's own reference keeps the folio, as in `Arc::clone`.
        self.refs.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes a reference unless there is none, and returns how many there were.
    pub(super) fn add_ref_unless_zero(&self) -> Option<u32> {
        let more = |refs: u32| if refs == 0 { None } else { Some(refs + 1) };
        // Acquire: pairs with `publish`.
        self.refs.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).ok()
    }

    /// Gives a reference back and returns how many there were. With 1, the caller owns the frames alone.
    pub(super) fn sub_ref(&self) -> u32 {
        // Release: what was done with the folio comes before its end, whoever drops the last reference …
        let refs = self.refs.fetch_sub(1, Ordering::Release);
        if refs == 1 {
            // … and Acquire: that one sees it all done before it frees. A fence, as only the last needs it.
            core::sync::atomic::fence(Ordering::Acquire);
        }
        refs
    }

    // A mapping may be counted without a reference of its own: see `FolioRef::add_mappings`. So the count orders what was
    // done through a mapping before it was given up (Release) before what its last holder does after (Acquire): to free the
    // folio, or to write to it as its own.

    pub(super) fn maps(&self) -> u32 {
        self.maps_or_next.load(Ordering::Acquire)
    }

    /// Counts `n` more mappings and returns how many there were.
    pub(super) fn add_maps(&self, n: u32) -> u32 {
        self.maps_or_next.fetch_add(n, Ordering::Relaxed)
    }

    /// Counts `n` mappings less and returns how many there were.
    pub(super) fn sub_maps(&self, n: u32) -> u32 {
        self.maps_or_next.fetch_sub(n, Ordering::AcqRel)
    }

    /// Counts a write: what instruction fetches see is older.
    pub(super) fn count_write(&self) {
        let written = |writes: u32| Some((writes & !FETCHABLE).wrapping_add(ONE_WRITE));
        // Release: who reads the count maintains the caches after what was written before. Never fails.
        let _ = self.writes_or_prev.fetch_update(Ordering::Release, Ordering::Relaxed, written);
    }

    /// The writes so far, as a number for [`Self::set_fetchable`], or `None` where instruction fetches see them all.
    pub(super) fn unfetchable_writes(&self) -> Option<u32> {
        // Acquire: pairs with both of the others.
        let writes = self.writes_or_prev.load(Ordering::Acquire);
        if writes & FETCHABLE == 0 { Some(writes) } else { None }
    }

    /// Instruction fetches see all of `writes`. Nothing changes where there was one more meanwhile.
    pub(super) fn set_fetchable(&self, writes: u32) {
        let set = writes | FETCHABLE;
        // Release: who finds it set comes after the maintenance. If it fails, another CPU has maintained the caches too,
        // or the folio was written again and the next one does.
        let _ = self.writes_or_prev.compare_exchange(writes, set, Ordering::Release, Ordering::Relaxed);
    }
}

#[cfg(test)]
impl Frame {
    /// Puts any reference count in, for tests that break a record on purpose.
    pub(super) fn break_refs(&self, refs: u32) {
        self.refs.store(refs, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::MAX_ORDER;
    use super::*;

    #[test]
    fn a_new_record_is_zero_and_reserved() {
        let Frame { state, refs, maps_or_next, writes_or_prev } = Frame::new();
        assert_eq!([state, refs, maps_or_next, writes_or_prev].map(AtomicU32::into_inner), [0; 4]);
        assert_eq!(Frame::new().state(), State::Reserved);
    }

    #[test]
    fn states_survive_their_encoding_and_keep_the_recycled_mark() {
        let frame = Frame::new();
        let orders = (0..=MAX_ORDER).flat_map(|order| [State::FreeHead { order }, State::Head { order }]);
        let tails = (1..1 << MAX_ORDER).map(|distance| State::Tail { distance });
        for recycled in [false, true] {
            for state in
                [State::Reserved, State::FreeBody].into_iter().chain(orders.clone()).chain(tails.clone())
            {
                frame.set_state(state);
                assert_eq!((frame.state(), frame.is_recycled()), (state, recycled));
            }
            frame.recycle();
            assert_eq!(frame.state(), State::FreeBody);
        }
    }

    #[test]
    #[should_panic(expected = "frame record overwritten: state 0x7")]
    fn an_unknown_state_is_reported() {
        State::decode(7);
    }

    #[test]
    fn a_reference_is_never_taken_on_none() {
        let frame = Frame::new();
        assert_eq!(frame.add_ref_unless_zero(), None);
        frame.publish();
        assert_eq!(frame.add_ref_unless_zero(), Some(1));
        assert_eq!((frame.sub_ref(), frame.sub_ref()), (2, 1));
        assert_eq!(frame.add_ref_unless_zero(), None);
    }

    #[test]
    fn a_write_during_the_maintenance_is_not_taken_for_one_before() {
        let frame = Frame::new();
        frame.publish();
        let before = frame.unfetchable_writes().unwrap();
        frame.count_write();
        frame.set_fetchable(before);
        let after = frame.unfetchable_writes().expect("written since");
        // Two CPUs at once.
        frame.set_fetchable(after);
        frame.set_fetchable(after);
        assert_eq!(frame.unfetchable_writes(), None);
        frame.count_write();
        assert_ne!(frame.unfetchable_writes(), Some(after));
    }

    #[test]
    fn the_count_of_writes_wraps_beside_its_flag() {
        let frame = Frame::new();
        frame.writes_or_prev.store(u32::MAX, Ordering::Relaxed);
        assert_eq!(frame.unfetchable_writes(), None);
        frame.count_write();
        assert_eq!(frame.unfetchable_writes(), Some(0));
    }
}
