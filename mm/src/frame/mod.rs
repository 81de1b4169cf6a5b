//! Physical memory: who owns which frame of RAM.
//!
//! Every frame of RAM has a [`Frame`] record. The frames that are for use are free, in blocks of 2^order frames,
//! or belong to a [`Folio`]: a block that was allocated at once, and that is counted at once, whichever of its
//! pages is used. What is not RAM, or was never released to the allocator (the kernel's image, what firmware
//! keeps), is *special*: it has no folio and is never counted.
//!
//! ```text
//!   RAM that the kernel found                                    MAX_ORDER
//!        │ Zone::new: all reserved                    free lists   …  ├─ block ─ block
//!        │ FrameMap::release: in the largest           of a zone   1  ├─ block
//!        ▼ aligned blocks                            (its lock)    0  └─
//!   ┌──────────┐     release      ┌───────────────────────────────────────┐
//!   │ reserved │ ───────────────▶ │ free: no two free buddies are apart   │ ◀──┐
//!   └──────────┘                  └───────────────────────────────────────┘    │
//!                                     │ alloc(order): split, keep the half     │ merge with the buddies
//!                                     │ FrameHooks::on_reuse                   │ FrameHooks::on_free
//!                                     ▼ publish: refs = 1                      │ refs = 0
//!   get(pfn): one more, if any    ┌───────────────────────────────────────┐    │
//!   clone: one more        ─────▶ │ folio: refs ≥ 1, maps; its tails tell │ ───┘
//!   drop: one less                │ where the head is                     │
//!                                 └───────────────────────────────────────┘
//!                                     │ into_raw        ▲ from_raw
//!                                     ▼                 │
//!                                   a page table entry
//! ```
//!
//! # Locks and order
//! Each zone has one lock, around its free lists. It is a spinning one that leaves interrupts alone, so nothing
//! here may be called in interrupt context, except [`FrameMap::folio`] and what only reads counts. It is the
//! innermost lock of memory management and is never held while a hook runs.
//!
//! The counts are atomic and need no lock. Frames between the free list and their first reference, or between
//! their last reference and the free list, have a count of 0 and so can't be had by [`FrameMap::get`]; in both
//! places the hooks run. All of it uses atomic read-modify-writes: the MMU and the caches must be on.
//!
//! # Not by numbers alone
//! The kernel turns frame numbers into pointers, and that is sound because a frame has one owner. Two methods
//! have to be trusted with a number: [`FrameMap::release`], with frames that nothing else uses, and
//! [`Zone::new`], with frames that are RAM.

mod buddy;
mod check;
mod folio;
mod record;

use core::fmt;
use core::ops::Range;

use arch::Pfn;

pub use buddy::Zone;
pub use check::Inconsistency;
pub use folio::{Folio, FolioRef, RawFolio};
pub use record::Frame;
use record::State;

/// The largest order: a folio has at most 2^10 frames (4 MiB in pages of 4 KiB).
pub const MAX_ORDER: u8 = 10;
/// How many orders there are, 0 to [`MAX_ORDER`].
pub const ORDERS: usize = MAX_ORDER as usize + 1;

/// No zone has a free block of this order, or a hook refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfMemory {
    /// The order that was asked for.
    pub order: u8,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "out of memory: no free block of order {}", self.order)
    }
}

impl core::error::Error for OutOfMemory {}

/// What the kernel does with frames that come and go: poison, and make allocations fail on purpose.
///
/// Called without a lock, while nobody else can reach the frame. A hook must not allocate or free.
pub trait FrameHooks: Sync {
    /// Whether an allocation of `order` may go on. If not, it fails with [`OutOfMemory`].
    fn admit(&self, order: u8) -> bool {
        let _ = order;
        true
    }

    /// The folio that this frame belonged to lost its last reference. Called for each of its frames, before any
    /// of them can be allocated again. Not called for frames that are released.
    fn on_free(&self, frame: Pfn) {
        let _ = frame;
    }

    /// This frame, for which [`Self::on_free`] was called some time ago and which has been free since, is about
    /// to be allocated. Not called for a frame that was never allocated before, so that memory need not be
    /// poisoned when it is released.
    fn on_reuse(&self, frame: Pfn) {
        let _ = frame;
    }
}

/// How many frames there are, and of what kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Frames with a record.
    pub total: u64,
    /// Frames that were never released.
    pub reserved: u64,
    /// Free frames.
    pub free: u64,
    /// Free blocks of each order, which together are the free frames.
    pub blocks: [u64; ORDERS],
}

/// All RAM of the machine: every frame's record, and the allocator.
///
/// # Examples
/// ```
/// use arch::Pfn;
/// use pleat_mm::frame::{Frame, FrameMap, Zone};
///
/// let records = [const { Frame::new() }; 64];
/// let zones = [Zone::new(Pfn::new(0x40000), &records)];
/// let map = FrameMap::new(&zones, None);
/// map.release(Pfn::new(0x40008)..Pfn::new(0x40040));
///
/// let folio = map.alloc(4)?;
/// assert_eq!((folio.head(), folio.frames()), (Pfn::new(0x40010), 16));
/// assert_eq!(map.get(Pfn::new(0x4001f)).unwrap().head(), folio.head());
/// assert!(map.folio(Pfn::new(0x40000)).is_none(), "still reserved");
/// drop(folio);
/// assert_eq!(map.free_frames(), 56);
/// # Ok::<(), pleat_mm::frame::OutOfMemory>(())
/// ```
pub struct FrameMap<'m> {
    zones: &'m [Zone<'m>],
    hooks: Option<&'m dyn FrameHooks>,
}

impl<'m> FrameMap<'m> {
    /// The map of these zones.
    ///
    /// # Panics
    /// Where they are not in ascending order, or overlap: naming the frame.
    pub fn new(zones: &'m [Zone<'m>], hooks: Option<&'m dyn FrameHooks>) -> Self {
        for pair in zones.windows(2) {
            let (end, next) = (pair[0].range().end, pair[1].range().start);
            assert!(end <= next, "frame {next}: a zone begins before the previous one ends at {end}");
        }
        Self { zones, hooks }
    }

    /// Hands reserved frames to the allocator. They must be RAM that nothing else uses, nor ever will but by
    /// allocating it.
    ///
    /// # Panics
    /// Where a frame of the range is not reserved, or the range is not within one zone: naming the frame.
    pub fn release(&self, range: Range<Pfn>) {
        if range.is_empty() {
            return;
        }
        let Some((zone, first)) = self.locate(range.start) else {
            panic!("frame {}: released, but it is not RAM", range.start);
        };
        let zone_end = zone.range().end;
        assert!(
            range.end <= zone_end,
            "frame {zone_end}: released from {} on, across a zone's end",
            range.start
        );
        let count = (range.end.get() - range.start.get()) as u32;
        zone.release(first..first + count);
    }

    /// Allocates 2^order frames, naturally aligned, from the first zone that has them. Their contents are
    /// whatever was left there.
    ///
    /// # Errors
    /// [`OutOfMemory`]; a smaller order may still be had.
    ///
    /// # Panics
    /// Where `order` is above [`MAX_ORDER`].
    pub fn alloc(&self, order: u8) -> Result<Folio<'_>, OutOfMemory> {
        assert!(order <= MAX_ORDER, "there is no order {order}");
        if let Some(hooks) = self.hooks
            && !hooks.admit(order)
        {
            return Err(OutOfMemory { order });
        }
        let taken = self.zones.iter().find_map(|zone| Some((zone, zone.take(order)?)));
        let (zone, head) = taken.ok_or(OutOfMemory { order })?;
        if let Some(hooks) = self.hooks {
            let frames = (head..head + (1 << order)).filter(|&index| zone.frame(index).is_recycled());
            frames.for_each(|index| hooks.on_reuse(zone.pfn(index)));
        }
        Ok(Folio::publish(self, zone, head))
    }

    /// Frees a folio that has no reference any more.
    fn free(&self, zone: &Zone<'_>, head: u32, order: u8) {
        if let Some(hooks) = self.hooks {
            (head..head + (1 << order)).for_each(|index| hooks.on_free(zone.pfn(index)));
        }
        zone.give(head, order);
    }

    /// The folio that a frame belongs to, or `None` where the frame is special: not RAM, or reserved.
    ///
    /// The caller knows that the frame is in use, and by whom it stays so. Who doesn't, uses [`Self::get`].
    ///
    /// # Panics
    /// Where the frame is free: naming it.
    #[inline(always)]
    pub fn folio(&self, pfn: Pfn) -> Option<FolioRef<'_>> {
        let (zone, index) = self.locate(pfn)?;
        match FolioRef::of(zone, index) {
            Ok(folio) => Some(folio),
            Err(State::Reserved) => None,
            Err(free) => panic!("frame {pfn}: used while {free:?}"),
        }
    }

    /// A new reference to the folio that a frame belongs to, whatever other CPUs do meanwhile; `None` where the
    /// frame is special or free. Always succeeds while somebody holds a reference.
    pub fn get(&self, pfn: Pfn) -> Option<Folio<'_>> {
        let (zone, index) = self.locate(pfn)?;
        loop {
            let head = zone.head_of(index).ok()?;
            let folio = Folio::try_get(self, zone, head)?;
            if folio.contains(pfn) {
                return Some(folio);
            }
            // Between the two, the folio was freed and its head allocated in a smaller one. Dropping gives that
            // one's reference back; the state that is read next is newer. Each turn needs another such change.
        }
    }

    /// Takes back a reference that [`Folio::into_raw`] gave away.
    ///
    /// # Panics
    /// Where the frame has no folio, as it can't be if the reference is of this map: naming the frame.
    pub fn from_raw(&self, raw: RawFolio) -> Folio<'_> {
        let pfn = raw.pfn();
        let Some((zone, index)) = self.locate(pfn) else { panic!("frame {pfn}: from_raw of special memory") };
        match zone.head_of(index) {
            Ok(head) => Folio::adopt(self, FolioRef::at_head(zone, head)),
            Err(state) => panic!("frame {pfn}: from_raw while {state:?}"),
        }
    }

    /// The number of free frames.
    pub fn free_frames(&self) -> u64 {
        self.counts().free
    }

    /// The counts over all zones. Each zone's are of one moment, but not all of the same.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        self.zones.iter().for_each(|zone| zone.count(&mut counts));
        counts
    }

    /// The zones, in ascending order.
    pub fn zones(&self) -> &'m [Zone<'m>] {
        self.zones
    }

    /// The zone of a frame and its index there.
    #[inline]
    fn locate(&self, pfn: Pfn) -> Option<(&'m Zone<'m>, u32)> {
        self.zones.iter().find_map(|zone| Some((zone, zone.index(pfn)?)))
    }
}

impl fmt::Debug for FrameMap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameMap").field("counts", &self.counts()).finish_non_exhaustive()
    }
}
