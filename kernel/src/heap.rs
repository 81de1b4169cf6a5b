//! The heap. Small blocks are those of `linked_list_allocator` in a window of `init_mm`, which grows by frames that are mapped
//! at its end; a large block is a folio of its own, in the linear map.
//!
//! The allocator needs new memory directly after what it has, hence the window. It grows outside of the heap's
//! lock, so that what is needed to map frames may take its own locks; and never in interrupt context, where
//! those locks may be held by what was interrupted. It never shrinks, so what processes may have much of must be in large
//! blocks, which are given back: their mappings above all. Large blocks of more than a frame are in the window too where memory is
//! in pieces.
//!
//! After boot nothing is allocated that can't fail: `try_reserve` of `Vec`, and [`try_arc`].

use alloc::alloc::{alloc, dealloc};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU64, Ordering};

use arch::VirtAddr;
use arch::aarch64::daif;
use arch::aarch64::hardware::{in_linear_map, linear};
use kernel::platform::MAX_CPUS;
use linked_list_allocator::Heap;
use mm::frame::{Folio, MAX_ORDER};
use spin::Mutex;

use crate::lock::IrqMutex;
use crate::vm::{GRANULE, HEAP_WINDOW, PAGE};
use crate::{cpu, memory, process, trap, vm};

/// A block of more bytes is large: it takes most of a frame.
const LARGEST_SMALL: usize = PAGE as usize / 2;

/// Frames come in folios of 64 KiB where there are any, so that they fold into one TLB entry.
const PREFERRED_ORDER: u8 = 4;

struct KernelHeap {
    heap: IrqMutex<Heap>,
    /// One past the mapped part of the window; locked while it grows.
    end: Mutex<u64>,
    /// Frames in the window.
    frames: AtomicU64,
}

#[global_allocator]
static HEAP: KernelHeap = KernelHeap {
    heap: IrqMutex::new(Heap::empty()),
    end: Mutex::new(HEAP_WINDOW.start),
    frames: AtomicU64::new(0),
};

/// The order of the folio that is a large block; `None` where the block is a small one, or larger than any folio.
fn large_order(layout: Layout) -> Option<u8> {
    let frames = layout.size().max(layout.align()).div_ceil(PAGE as usize);
    let order = frames.checked_next_power_of_two()?.ilog2() as u8;
    (layout.size() > LARGEST_SMALL && order <= MAX_ORDER).then_some(order)
}

impl KernelHeap {
    fn try_alloc(&self, layout: Layout) -> Option<NonNull<u8>> {
        self.heap.lock().allocate_first_fit(layout).ok()
    }

    /// Maps frames for at least `bytes` more at the end. `false` where there is not so much memory or room in the
    /// window. What was mapped until another CPU took the rest belongs to the heap all the same.
    fn grow(&self, end: &mut u64, bytes: u64) -> bool {
        // A request that can't be met must not use up all memory before it fails.
        if bytes > HEAP_WINDOW.end - *end || bytes.div_ceil(PAGE) > memory::frames().free_frames() {
            return false;
        }
        let target = *end + bytes;
        while *end < target {
            let Some(folio) =
                [PREFERRED_ORDER, 0].into_iter().find_map(|order| memory::frames().alloc(order).ok())
            else {
                return false;
            };
            let size = folio.frames() * PAGE;
            if size > HEAP_WINDOW.end - *end
                || vm::map_heap(VirtAddr::new(*end), folio.head().addr(GRANULE), size).is_err()
            {
                return false;
            }
            self.frames.fetch_add(folio.frames(), Ordering::Relaxed);
            // The reference is the heap's from now on; it never shrinks.
            let _ = Folio::into_raw(folio);
            let mut heap = self.heap.lock();
            // SAFETY: the bytes from `end` on are mapped, and nobody else's: the window is the heap's, and its end
            // is locked. They follow directly on what the heap has.
            unsafe {
                if heap.size() == 0 {
                    heap.init(*end as *mut u8, size as usize);
                } else {
                    heap.extend(size as usize);
                }
            }
            *end += size;
        }
        true
    }
}

// SAFETY: what `Heap` gives out is disjoint, aligned and of the size asked for; it is behind a lock.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(block) = HANDED[cpu::index()].take(layout) {
            return block.as_ptr();
        }
        if process::injection::denies() {
            return ptr::null_mut();
        }
        // Its locks are not for interrupt context. Where there is no folio of that order, frames that are apart may do.
        if let Some(order) = large_order(layout)
            && !trap::in_interrupt()
            && let Ok(folio) = memory::frames().alloc(order)
        {
            return linear(memory::forget(folio)).get() as *mut u8;
        }
        if let Some(block) = self.try_alloc(layout) {
            return block.as_ptr();
        }
        assert!(!trap::in_interrupt(), "the heap would have to grow in interrupt context");
        let mut end = self.end.lock();
        loop {
            // Another CPU may have grown it meanwhile. The free memory at the end may be in the way of the
            // alignment, and a header may be needed: then once more.
            if let Some(block) = self.try_alloc(layout) {
                return block.as_ptr();
            }
            let Some(bytes) = layout.size().checked_add(layout.align()) else { return ptr::null_mut() };
            if !self.grow(&mut end, bytes as u64) {
                return self.try_alloc(layout).map_or(ptr::null_mut(), NonNull::as_ptr);
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(block) = NonNull::new(block) else { return };
        if let Some(pa) = in_linear_map(VirtAddr::new(block.as_ptr() as u64)) {
            assert!(!trap::in_interrupt(), "a large block is freed in interrupt context");
            let order = large_order(layout).expect("a block in the linear map is a large one");
            // SAFETY: what is in the linear map is a folio of this order that `alloc` gave out, and nobody uses it any more.
            return unsafe { memory::free_forgotten(pa, order) };
        }
        // SAFETY: the caller got it from `alloc` with this layout.
        unsafe { self.heap.lock().deallocate(block, layout) }
    }
}

/// A block that [`try_arc`] has allocated, on its way to the `Arc` that will ask for it.
struct Handed(Cell<Option<(NonNull<u8>, Layout)>>);

// SAFETY: each is used by its own CPU only, and set while interrupts are masked.
unsafe impl Sync for Handed {}

static HANDED: [Handed; MAX_CPUS] = [const { Handed(Cell::new(None)) }; MAX_CPUS];

impl Handed {
    /// The block, if there is one of this layout.
    fn take(&self, layout: Layout) -> Option<NonNull<u8>> {
        let (block, of) = self.0.get()?;
        (of == layout).then(|| {
            self.0.set(None);
            block
        })
    }
}

/// An `Arc`, or `None` where there is no memory for it; `Arc::new` would end the kernel then, and `Arc::try_new` is not stable.
/// So the block is allocated here, and given to `Arc::new` when it allocates.
///
/// # Panics
/// Where `Arc` has not the layout that it is known to have: with another toolchain.
pub(crate) fn try_arc<T>(value: T) -> Option<Arc<T>> {
    /// What an `Arc` points to: its two counts, and the value.
    #[repr(C)]
    struct ArcInner<T>(usize, usize, T);

    let layout = Layout::new::<ArcInner<T>>();
    // SAFETY: it has the counts, so it is not empty.
    let block = NonNull::new(unsafe { alloc(layout) })?;
    daif::masked(|| {
        let handed = &HANDED[cpu::index()];
        handed.0.set(Some((block, layout)));
        let arc = Arc::new(value);
        if let Some(block) = handed.take(layout) {
            // SAFETY: it was allocated with this layout, and nobody has taken it.
            unsafe { dealloc(block.as_ptr(), layout) };
            panic!("Arc has another layout than {layout:?}");
        }
        Some(arc)
    })
}

/// A copy, or `None` where there is no memory for it.
pub(crate) fn try_copy(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(bytes.len()).ok()?;
    copy.extend_from_slice(bytes);
    Some(copy)
}

/// Bytes that small blocks have.
pub(crate) fn used() -> usize {
    HEAP.heap.lock().used()
}

/// Frames that the heap holds for small blocks.
pub(crate) fn frames() -> u64 {
    HEAP.frames.load(Ordering::Relaxed)
}
