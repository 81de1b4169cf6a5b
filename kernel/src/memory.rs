//! Physical memory: the frame map of this machine, and the contents of its frames.

use arch::aarch64::hardware::linear;
use arch::aarch64::zero::zero;
use arch::{Pfn, PhysAddr};
use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use kernel::memblock::MemBlock;
use kernel::platform::{MAX_RANGES, PhysRange};
use mm::frame::{Folio, Frame, FrameHooks, FrameMap, Zone};
use spin::Once;

use crate::process;
use crate::vm::{self, GRANULE, PAGE};

static ZONES: Once<ArrayVec<Zone<'static>, MAX_RANGES>> = Once::new();
static FRAMES: Once<FrameMap<'static>> = Once::new();

/// Frames allocated for good: stacks, and what else is never given back.
static FOR_GOOD: AtomicU64 = AtomicU64::new(0);

/// There is no free memory in one piece for the frames' records.
#[derive(Debug)]
pub(crate) struct NoRoomForFrames {
    bytes: u64,
}

impl fmt::Display for NoRoomForFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no {:#x} bytes free in one piece for the records of all frames", self.bytes)
    }
}

/// All RAM: every frame's record, and the allocator.
///
/// # Panics
/// Before [`init`].
pub(crate) fn frames() -> &'static FrameMap<'static> {
    FRAMES.get().expect("frames are used before memory is known")
}

/// Makes the frame map of all RAM and hands its free memory to the allocator.
///
/// # Errors
/// [`NoRoomForFrames`]
pub(crate) fn init(memblock: &mut MemBlock) -> Result<(), NoRoomForFrames> {
    let count = |range: PhysRange| (range.size() >> GRANULE.page_shift()) as usize;
    let bytes = memblock.ram().map(count).sum::<usize>() as u64 * size_of::<Frame>() as u64;
    let records = memblock.alloc(bytes, PAGE, None).ok_or(NoRoomForFrames { bytes })?;
    // SAFETY: it was just allocated, from memory that is mapped.
    unsafe { clear(PhysRange { start: records, end: PhysAddr::new(records.get() + bytes) }) };

    let mut next = linear(records).get() as *const Frame;
    ZONES.call_once(|| {
        memblock
            .ram()
            .map(|range| {
                // SAFETY: the records lie side by side in memory that was allocated for them, is in the linear
                // map for good, and zeroed, which is a valid `Frame`.
                let records = unsafe { core::slice::from_raw_parts(next, count(range)) };
                // SAFETY: the end of the records of one range, within the same allocation.
                next = unsafe { next.add(records.len()) };
                Zone::new(range.start.pfn(GRANULE), records)
            })
            .collect()
    });
    let zones = ZONES.get().expect("just made");
    FRAMES.call_once(|| FrameMap::new(zones, hooks()));
    for range in memblock.free().chain(vm::take_unused_tables()) {
        frames().release(range.start.pfn(GRANULE)..range.end.pfn(GRANULE));
    }
    Ok(())
}

fn hooks() -> Option<&'static dyn FrameHooks> {
    if cfg!(feature = "selftest") { Some(&Poison) } else { None }
}

/// Fills freed frames with a pattern, and looks whether it is intact when they are used again: who writes to
/// memory that is not his is found out.
struct Poison;

/// What freed frames are filled with.
pub(crate) const POISON: u64 = 0x6b6b_6b6b_6b6b_6b6b;

impl FrameHooks for Poison {
    fn admit(&self, _: u8) -> bool {
        !process::injection::denies()
    }

    fn on_free(&self, frame: Pfn) {
        for word in words(frame) {
            // SAFETY: nobody refers to a free frame.
            unsafe { word.write(POISON) };
        }
    }

    fn on_reuse(&self, frame: Pfn) {
        for word in words(frame) {
            // SAFETY: nobody refers to the frame yet.
            let found = unsafe { word.read_volatile() };
            assert!(found == POISON, "frame {frame}: written to while it was free: {found:#x} at {word:?}");
        }
    }
}

/// The words of a frame, in the linear map.
fn words(frame: Pfn) -> impl Iterator<Item = *mut u64> {
    let start = linear(frame.addr(GRANULE)).get() as *mut u64;
    (0..PAGE as usize / size_of::<u64>()).map(move |i| start.wrapping_add(i))
}

/// Zeroes memory.
///
/// # Safety
/// The range must be in the linear map, and nothing refer to it.
pub(crate) unsafe fn clear(range: PhysRange) {
    // SAFETY: the caller's contract.
    unsafe { zero(linear(range.start).get() as *mut u8, range.size() as usize) }
}

/// Allocates 2^order frames that are never given back.
pub(crate) fn alloc_for_good(order: u8) -> Option<PhysAddr> {
    Some(keep_for_good(FRAMES.get()?.alloc(order).ok()?))
}

/// Never gives a folio back. Where it begins.
pub(crate) fn keep_for_good(folio: Folio<'static>) -> PhysAddr {
    FOR_GOOD.fetch_add(folio.frames(), Ordering::Relaxed);
    forget(folio)
}

/// Forgets the one reference to a folio, which is known by its address alone from now on, until [`free_forgotten`].
pub(crate) fn forget(folio: Folio<'static>) -> PhysAddr {
    Folio::into_raw(folio).pfn().addr(GRANULE)
}

/// Gives back what [`forget`] forgot.
///
/// # Safety
/// It did so, and nobody uses it any more.
///
/// # Panics
/// Where it is no folio of this order that nobody else has.
pub(crate) unsafe fn free_forgotten(pa: PhysAddr, order: u8) {
    let pfn = pa.pfn(GRANULE);
    // With this reference, two.
    let folio = frames().get(pfn).filter(|folio| (folio.order(), folio.refs()) == (order, 2));
    let folio = folio.unwrap_or_else(|| panic!("{pfn} is given back, and was not allocated so"));
    // SAFETY: the second is the forgotten one, which nothing else stands for: it is given back here, once, since the frames
    // are free then.
    drop(unsafe { ptr::read(&folio) });
}

/// Frames that were allocated for good.
pub(crate) fn allocated_for_good() -> u64 {
    FOR_GOOD.load(Ordering::Relaxed)
}

/// A zeroed page that is never given back.
pub(crate) fn alloc_zeroed_page() -> Option<PhysAddr> {
    let pa = alloc_for_good(0)?;
    // SAFETY: it was just allocated, and all the allocator's memory is mapped.
    unsafe { clear(PhysRange { start: pa, end: PhysAddr::new(pa.get() + PAGE) }) };
    Some(pa)
}
