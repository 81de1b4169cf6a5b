//! References to folios. Frames that were allocated together are one folio; it is counted as a whole, in the
//! record of its head, however many of its pages are used.

use core::fmt;
use core::ops::Deref;

use arch::Pfn;

use super::buddy::Zone;
use super::record::{Frame, MAX_COUNT, State};
use super::{FrameMap, OutOfMemory};

/// What an allocated folio looks like: where it is, how large, how often used.
///
/// Holds no reference: the place and the size are true for as long as somebody else holds one. The caller knows
/// who (a page table entry under its lock, say), or uses a [`Folio`].
#[derive(Clone, Copy)]
pub struct FolioRef<'m> {
    zone: &'m Zone<'m>,
    index: u32,
    order: u8,
}

impl<'m> FolioRef<'m> {
    /// The folio whose head is at `index`.
    ///
    /// # Panics
    /// Where there is no head: naming the frame.
    #[inline]
    pub(super) fn at_head(zone: &'m Zone<'m>, index: u32) -> Self {
        match zone.frame(index).order_of_head() {
            Some(order) => Self { zone, index, order },
            None => Self::no_head(zone, index),
        }
    }

    #[cold]
    fn no_head(zone: &Zone<'_>, index: u32) -> ! {
        panic!("frame {}: {:?} where a folio's head should be", zone.pfn(index), zone.frame(index).state())
    }

    /// The folio that a frame belongs to, or what the frame is instead.
    ///
    /// # Panics
    /// As [`Self::at_head`].
    #[inline(always)]
    pub(super) fn of(zone: &'m Zone<'m>, index: u32) -> Result<Self, State> {
        match zone.frame(index).order_of_head() {
            Some(order) => Ok(Self { zone, index, order }),
            None => Self::of_no_head(zone, index),
        }
    }

    #[inline(never)]
    fn of_no_head(zone: &'m Zone<'m>, index: u32) -> Result<Self, State> {
        match zone.frame(index).state() {
            State::Tail { distance } => Ok(Self::at_head(zone, index - distance)),
            other => Err(other),
        }
    }

    /// Whether this is the same folio.
    #[inline]
    pub(crate) fn is(&self, other: &FolioRef<'_>) -> bool {
        self.index == other.index && core::ptr::eq(self.zone, other.zone)
    }

    /// The first frame, a multiple of [`Self::frames`].
    pub fn head(&self) -> Pfn {
        self.zone.pfn(self.index)
    }

    /// log2 of the number of frames, at most [`MAX_ORDER`](super::MAX_ORDER).
    pub fn order(&self) -> u8 {
        self.order
    }

    /// The number of frames.
    pub fn frames(&self) -> u64 {
        1 << self.order
    }

    /// Whether a frame is one of this folio's.
    pub fn contains(&self, pfn: Pfn) -> bool {
        pfn.get() & !(self.frames() - 1) == self.head().get()
    }

    /// The references to any of its pages, at this moment. A racing [`FrameMap::get`] may hold one for a short
    /// time, so 1 says that the folio is not shared, but 2 doesn't say that it is.
    pub fn refs(&self) -> u32 {
        self.record().refs()
    }

    /// The mappings of any of its pages, at this moment.
    pub fn maps(&self) -> u32 {
        self.record().maps()
    }

    /// Says that the folio was written, after it was: by the kernel, through whatever mapping; or by a user, as the
    /// dirty state of an entry told that is now made clean or given up. Before it is mapped executable again, the
    /// instruction caches are maintained again.
    pub fn mark_written(&self) {
        self.record().count_write();
    }

    /// Has `maintain` make the whole folio visible to instruction fetches of every CPU, unless that was done since it
    /// was last written.
    pub(crate) fn make_fetchable(&self, maintain: impl FnOnce()) {
        if let Some(writes) = self.record().unfetchable_writes() {
            maintain();
            self.record().set_fetchable(writes);
        }
    }

    /// Counts `n` more mappings by page tables. One reference stands for all of them: it is taken with the first ones, and
    /// given back with the last by [`FrameMap::sub_mappings`]. The caller has a reference, or a mapping that stays.
    ///
    /// # Errors
    /// [`OutOfMemory`] beyond 2^31 mappings; none was counted then.
    #[inline]
    pub(crate) fn add_mappings(&self, n: u32) -> Result<(), OutOfMemory> {
        let maps = self.record().add_maps(n);
        if maps > MAX_COUNT - n {
            self.record().sub_maps(n);
            return Err(OutOfMemory { order: self.order });
        }
        if maps == 0 {
            self.record().add_ref();
        }
        Ok(())
    }

    fn record(&self) -> &'m Frame {
        self.zone.frame(self.index)
    }
}

impl FrameMap<'_> {
    /// Counts `n` mappings less of those that [`FolioRef::add_mappings`] counted; with the last, the reference that stands for
    /// them is given back, and the folio is free if it was the last. No TLB may hold any of them.
    ///
    /// # Panics
    /// Where there are fewer: naming the frame.
    pub(crate) fn sub_mappings(&self, folio: FolioRef<'_>, n: u32) {
        let maps = folio.record().sub_maps(n);
        assert!(maps >= n, "frame {}: unmapped {n} times, mapped {maps} times", folio.head());
        if maps == n {
            drop(Folio::adopt(self, folio));
        }
    }
}

impl fmt::Debug for FolioRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (head, order, refs, maps) = (self.head(), self.order, self.refs(), self.maps());
        write!(f, "folio {head} of order {order}, {refs} references, {maps} mappings")
    }
}

/// A reference to an allocated folio. Cloning takes another one; dropping gives it back, and the last one frees
/// the frames.
///
/// Like [`FrameMap::alloc`], dropping may take a zone's lock: not in interrupt context.
pub struct Folio<'m> {
    map: &'m FrameMap<'m>,
    folio: FolioRef<'m>,
}

impl<'m> Folio<'m> {
    /// The only reference to a folio that was just taken from its zone.
    pub(super) fn publish(map: &'m FrameMap<'m>, zone: &'m Zone<'m>, head: u32) -> Self {
        let folio = FolioRef::at_head(zone, head);
        folio.record().publish();
        Self { map, folio }
    }

    /// A new reference to the folio whose head is at `head`, unless it has none: then it is free, or about to be.
    pub(super) fn try_get(map: &'m FrameMap<'m>, zone: &'m Zone<'m>, head: u32) -> Option<Self> {
        let refs = zone.frame(head).add_ref_unless_zero()?;
        assert!(refs <= MAX_COUNT, "frame {}: too many references", zone.pfn(head));
        // From here the folio stays, so the order that is read now is its own.
        Some(Self { map, folio: FolioRef::at_head(zone, head) })
    }

    /// The reference that was turned into `raw`.
    pub(super) fn adopt(map: &'m FrameMap<'m>, folio: FolioRef<'m>) -> Self {
        assert!(folio.refs() != 0, "frame {}: a reference to a free folio", folio.head());
        Self { map, folio }
    }

    /// Counts `n` more mappings of the folio's pages.
    ///
    /// # Panics
    /// Beyond 2^31 mappings: naming the frame.
    pub fn map_inc(&self, n: u32) {
        let maps = self.record().add_maps(n);
        assert!(maps <= MAX_COUNT && n <= MAX_COUNT, "frame {}: too many mappings", self.head());
    }

    /// Counts `n` mappings of the folio's pages less.
    ///
    /// # Panics
    /// Where there are fewer: naming the frame.
    pub fn map_dec(&self, n: u32) {
        let maps = self.record().sub_maps(n);
        assert!(maps >= n, "frame {}: unmapped {n} times, mapped {maps} times", self.head());
    }

    /// Turns the reference into one that is kept outside the type system, in a page table entry for instance.
    /// Unless [`FrameMap::from_raw`] takes it back, the folio is never freed.
    pub fn into_raw(self) -> RawFolio {
        let raw = RawFolio(self.head());
        core::mem::forget(self);
        raw
    }
}

impl<'m> Deref for Folio<'m> {
    type Target = FolioRef<'m>;

    fn deref(&self) -> &FolioRef<'m> {
        &self.folio
    }
}

impl Clone for Folio<'_> {
    /// # Panics
    /// Beyond 2^31 references: naming the frame.
    fn clone(&self) -> Self {
        let refs = self.record().add_ref();
        assert!(refs != 0 && refs <= MAX_COUNT, "frame {}: reference taken on {refs}", self.head());
        Self { map: self.map, folio: self.folio }
    }
}

impl Drop for Folio<'_> {
    /// # Panics
    /// Where the last reference goes while the folio is mapped, or there was none left: naming the frame.
    fn drop(&mut self) {
        match self.record().sub_ref() {
            0 => panic!("frame {}: reference dropped on a free folio", self.head()),
            1 => {
                assert!(self.maps() == 0, "frame {}: freed while mapped {} times", self.head(), self.maps());
                self.map.free(self.zone, self.index, self.order);
            }
            _ => {}
        }
    }
}

impl fmt::Debug for Folio<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.folio.fmt(f)
    }
}

/// A reference to a folio that no [`Folio`] stands for. It can't be copied and comes only from
/// [`Folio::into_raw`], so that safe code outside this crate can't give back a reference that it doesn't have.
#[must_use = "dropping a raw reference leaks the folio"]
#[derive(PartialEq, Eq, Debug)]
pub struct RawFolio(Pfn);

impl RawFolio {
    /// The folio's head.
    pub fn pfn(&self) -> Pfn {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::mem::ManuallyDrop;

    use super::*;

    fn with_map(test: impl FnOnce(&FrameMap<'_>, &Zone<'_>)) {
        let frames: Vec<_> = (0..16).map(|_| Frame::new()).collect();
        let zones = [Zone::new(Pfn::new(0x100), &frames)];
        let map = FrameMap::new(&zones, None);
        map.release(Pfn::new(0x100)..Pfn::new(0x110));
        test(&map, &zones[0]);
    }

    /// A reference that nobody has, as wrong code in this crate could make one.
    fn forged(map: &FrameMap<'_>, pfn: u64) {
        drop(map.from_raw(RawFolio(Pfn::new(pfn))));
    }

    /// A folio that may be mapped when the test panics: dropping it would be a second panic.
    fn still_mapped<'m>(map: &'m FrameMap<'_>) -> ManuallyDrop<Folio<'m>> {
        ManuallyDrop::new(map.alloc(0).unwrap())
    }

    #[test]
    fn a_raw_reference_to_a_tail_is_one_to_the_folio() {
        with_map(|map, _| {
            let raw = map.alloc(2).unwrap().into_raw();
            assert_eq!(raw.pfn(), Pfn::new(0x100));
            let folio = map.from_raw(RawFolio(raw.pfn().add(3)));
            assert_eq!((folio.head(), folio.order(), folio.refs()), (raw.pfn(), 2, 1));
        });
    }

    #[test]
    #[should_panic(expected = "frame 0x104: from_raw while FreeHead { order: 2 }")]
    fn a_second_free_names_the_frame() {
        with_map(|map, _| {
            let _below = map.alloc(2).unwrap();
            let raw = map.alloc(2).unwrap().into_raw();
            let _above = map.alloc(3).unwrap();
            forged(map, 0x104);
            drop(map.from_raw(raw));
        });
    }

    #[test]
    #[should_panic(expected = "frame 0x200: from_raw of special memory")]
    fn a_raw_reference_to_no_ram_names_the_frame() {
        with_map(|map, _| forged(map, 0x200));
    }

    #[test]
    #[should_panic(expected = "frame 0x100: a reference to a free folio")]
    fn a_raw_reference_to_a_folio_without_references_names_the_frame() {
        with_map(|map, zone| {
            zone.take(0);
            forged(map, 0x100);
        });
    }

    #[test]
    #[should_panic(expected = "frame 0x100: reference dropped on a free folio")]
    fn a_reference_too_many_names_the_frame() {
        with_map(|map, zone| {
            let folio = map.alloc(0).unwrap();
            zone.frame(0).break_refs(0);
            drop(folio);
        });
    }

    #[test]
    #[should_panic(expected = "frame 0x100: freed while mapped 16 times")]
    fn a_mapped_folio_is_not_freed() {
        with_map(|map, _| map.alloc(4).unwrap().map_inc(16));
    }

    #[test]
    #[should_panic(expected = "frame 0x100: unmapped 3 times, mapped 2 times")]
    fn more_unmaps_than_maps_name_the_frame() {
        with_map(|map, _| {
            let folio = still_mapped(map);
            folio.map_inc(2);
            folio.map_dec(3);
        });
    }

    #[test]
    #[should_panic(expected = "frame 0x100: reference taken on 2147483648")]
    fn a_clone_too_many_names_the_frame() {
        with_map(|map, zone| {
            let folio = map.alloc(0).unwrap();
            zone.frame(0).break_refs(MAX_COUNT + 1);
            let _ = folio.clone();
        });
    }

    #[test]
    #[should_panic(expected = "frame 0x100: reference taken on 0")]
    fn a_clone_of_a_folio_that_was_freed_names_the_frame() {
        with_map(|map, zone| {
            let folio = still_mapped(map);
            zone.frame(0).break_refs(0);
            let _ = folio.clone();
        });
    }

    /// The race that [`FrameMap::get`] has to notice, held open: the tail's state is old, and where its head was
    /// is a smaller folio by now.
    #[test]
    fn a_get_waits_until_what_it_read_is_true() {
        with_map(|map, zone| {
            let (lower, upper) = (map.alloc(0).unwrap(), map.alloc(0).unwrap());
            zone.frame(1).set_state(State::Tail { distance: 1 });
            std::thread::scope(|scope| {
                let getter = scope.spawn(|| map.get(upper.head()).map(|folio| folio.head()));
                // A second reference to the lower folio shows that the getter is at it.
                while lower.refs() == 1 && !getter.is_finished() {
                    std::thread::yield_now();
                }
                zone.frame(1).set_state(State::Head { order: 0 });
                assert_eq!(getter.join().unwrap(), Some(upper.head()));
            });
            assert_eq!((lower.refs(), upper.refs()), (1, 1));
        });
    }

    #[test]
    #[should_panic(expected = "frame 0x100: too many references")]
    fn a_get_too_many_names_the_frame() {
        with_map(|map, zone| {
            let folio = map.alloc(0).unwrap();
            zone.frame(0).break_refs(MAX_COUNT + 1);
            let _ = map.get(folio.head());
        });
    }

    #[test]
    #[should_panic(expected = "frame 0x100: too many mappings")]
    fn a_mapping_too_many_names_the_frame() {
        with_map(|map, _| {
            let folio = still_mapped(map);
            folio.map_inc(MAX_COUNT);
            folio.map_inc(1);
            folio.map_inc(1);
        });
    }

    #[test]
    #[should_panic(expected = "frame 0x100: too many mappings")]
    fn a_number_of_mappings_that_would_wrap_names_the_frame() {
        with_map(|map, _| still_mapped(map).map_inc(MAX_COUNT + 1));
    }
}
