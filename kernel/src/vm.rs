//! The kernel's address space, `init_mm`: what is mapped, where, and from which memory its tables come.
//!
//! ```text
//! 0xffff_0000_0000_0000  linear map   physical memory, without text, constants and no-map ranges
//! 0xffff_8000_0000_0000  Image        text RX │ constants RO │ data RW, as the linker placed it
//! 0xffff_8000_4000_0000  device tree  RO
//! 0xffff_8000_8000_0000  devices      RW, Device-nGnRE, a page left out after each
//! 0xffff_8000_c000_0000  stacks       RW, of the CPUs but the first, and of tasks; a guard below each
//! 0xffff_8001_0000_0000  heap         RW, grows upwards
//! ```
//!
//! Each window begins on a boundary of 1 GiB and agrees with physical addresses modulo 2 MiB wherever it may,
//! so that blocks and Contiguous groups fit.

use core::cell::UnsafeCell;
use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use arch::aarch64::hardware::{Hardware, ImageWindow, LINEAR_BASE, LinearMap, linear};
use arch::aarch64::trap::STACK_SIZE;
use arch::aarch64::{boot, daif, probe};
use arch::esr::Esr;
use arch::{Granule, MemoryType, PhysAddr, TableFrame, VirtAddr};
use kernel::memblock::{self, MemBlock};
use kernel::platform::{MAX_CPUS, PhysRange};
use mm::ptdump::Marker;
use mm::{KernelProt, MapError, Mapping, Mm, TableAlloc, create_pgd_mapping};
use spin::{Mutex, Once};

use crate::cpu::{self, StackArea};
use crate::image::{self, Image};
use crate::memory;

/// The granule of this kernel.
pub(crate) const GRANULE: Granule = Granule::K4;
/// Bytes of a page.
pub(crate) const PAGE: u64 = GRANULE.page_size();

const FDT_WINDOW: u64 = 0xffff_8000_4000_0000;
const DEVICE_WINDOW: Range<u64> = 0xffff_8000_8000_0000..0xffff_8000_c000_0000;
const STACK_WINDOW: u64 = 0xffff_8000_c000_0000;
/// Where the heap is, once it has grown so far.
pub(crate) const HEAP_WINDOW: Range<u64> = 0xffff_8001_0000_0000..0xffff_8011_0000_0000;

/// The windows, for a dump of the tables.
pub(crate) const MARKERS: &[Marker<'_>] = &[
    Marker { start: VirtAddr::new(LINEAR_BASE), name: "linear map" },
    Marker { start: VirtAddr::new(boot::IMAGE_BASE), name: "Image" },
    Marker { start: VirtAddr::new(FDT_WINDOW), name: "device tree" },
    Marker { start: VirtAddr::new(DEVICE_WINDOW.start), name: "devices" },
    Marker { start: VirtAddr::new(STACK_WINDOW), name: "stacks" },
    Marker { start: VirtAddr::new(HEAP_WINDOW.start), name: "heap" },
    #[cfg(feature = "selftest")]
    Marker { start: VirtAddr::new(SCRATCH_WINDOW), name: "self-tests" },
];

/// Blocks that begin at the same offset in both address spaces fit as blocks.
const CONGRUENCE: u64 = 2 << 20;

static IMAGE: Once<Image> = Once::new();
/// The kernel's address space while its tables all lie in the Image.
static EARLY_MM: Once<Mm<'static, Hardware<ImageWindow>>> = Once::new();
/// The same address space, its tables reached through the linear map. Empty until there is one.
static INIT_MM: Once<Mm<'static, Hardware<LinearMap>>> = Once::new();

/// Pages of `.bss` for the tables that are needed before memory is known: the Image takes up to 11, the
/// device tree and the first devices 6, the linear map of two ranges 10 each.
const POOL_PAGES: usize = 40;
#[repr(C, align(4096))]
struct Pool(UnsafeCell<[[u64; 512]; POOL_PAGES]>);
// SAFETY: the pages are handed out once each, as table frames, and reached through `Hardware` only.
unsafe impl Sync for Pool {}
static POOL: Pool = Pool(UnsafeCell::new([[0; 512]; POOL_PAGES]));
static POOL_USED: AtomicUsize = AtomicUsize::new(0);

/// Where the next device is mapped.
static NEXT_DEVICE: Mutex<u64> = Mutex::new(DEVICE_WINDOW.start);

/// Memory for tables between the linear map's first range and the allocator: zeroed, in the linear map.
static CHUNK: Mutex<Option<PhysRange>> = Mutex::new(None);

/// Where tables of `init_mm` come from: the pool, the chunk, then the allocator.
struct InitTables;

impl TableAlloc for InitTables {
    fn alloc_table(&self, level: u8) -> Option<TableFrame> {
        let pa = pool_page().or_else(chunk_page).or_else(memory::alloc_zeroed_page)?;
        // SAFETY: a zeroed page of its own, from one of three owners that never give it again. Those of the
        // pool are in the Image, whose data is in the linear map too; the others only in the linear map, and
        // only handed out once that exists.
        Some(unsafe { TableFrame::new(pa, level) })
    }
}

fn pool_page() -> Option<PhysAddr> {
    let index =
        POOL_USED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < POOL_PAGES).then_some(n + 1));
    let va = POOL.0.get() as u64 + index.ok()? as u64 * PAGE;
    Some(image().physical(VirtAddr::new(va)))
}

fn chunk_page() -> Option<PhysAddr> {
    let mut chunk = CHUNK.lock();
    let range = chunk.as_mut().filter(|range| range.start < range.end)?;
    let page = range.start;
    range.start = PhysAddr::new(page.get() + PAGE);
    Some(page)
}

/// Where the Image is.
///
/// # Panics
/// Before [`enter_init_mm`].
pub(crate) fn image() -> Image {
    *IMAGE.get().expect("the Image's place is the first thing that is known")
}

/// The kernel's address space.
///
/// # Panics
/// Before [`map_memory`].
pub(crate) fn init_mm() -> &'static Mm<'static, Hardware<LinearMap>> {
    INIT_MM.get().expect("init_mm is used before memory is mapped")
}

/// Maps `mapping` in `init_mm`.
fn map(mapping: &Mapping) -> Result<(), MapError> {
    match (INIT_MM.get(), EARLY_MM.get()) {
        (Some(mm), _) => create_pgd_mapping(mm, mapping, &InitTables),
        (None, Some(mm)) => create_pgd_mapping(mm, mapping, &InitTables),
        (None, None) => panic!("mapping before there is an address space"),
    }
}

/// Maps the range at its place in the linear map.
fn map_linear(range: PhysRange) -> Result<(), MapError> {
    map(&Mapping {
        va: linear(range.start),
        pa: range.start,
        size: range.size(),
        prot: KernelProt::ReadWrite,
        memory: MemoryType::Normal,
    })
}

/// Maps the Image, each part with its own permissions, and leaves the tables of the boot code.
///
/// # Errors
/// Where the Image is larger than the tables for it.
pub(crate) fn enter_init_mm(image: Image) -> Result<(), MapError> {
    IMAGE.call_once(|| image);
    let root = image.physical(boot::image::init_root_table());
    // SAFETY: the window is the Image at its offset; its root table is a page that the boot code zeroed and
    // nothing else uses. Until the linear map exists tables come from the pool, which is in the Image.
    let mm = unsafe { Mm::new_kernel(Hardware(ImageWindow::new(image.offset())), TableFrame::new(root, 0)) };
    EARLY_MM.call_once(|| mm);

    let map_part = |start: VirtAddr, end: VirtAddr, prot| {
        if start == end {
            return Ok(());
        }
        let size = end.get() - start.get();
        map(&Mapping { va: start, pa: image.physical(start), size, prot, memory: MemoryType::Normal })
    };
    map_part(image::start(), image::text_end(), KernelProt::ReadExecute)?;
    map_part(image::text_end(), image::rodata_end(), KernelProt::ReadOnly)?;
    let mut start = image::rodata_end();
    for guard in cpu::boot_guards() {
        map_part(start, guard, KernelProt::ReadWrite)?;
        start = VirtAddr::new(guard.get() + cpu::GUARD_SIZE);
    }
    map_part(start, image::end(), KernelProt::ReadWrite)?;

    // SAFETY: the tables map all of the Image where it is, but the guards, which nothing uses.
    daif::masked(|| unsafe { boot::load_kernel_root(root, image.offset()) });
    Ok(())
}

/// Maps the page or pages of the device tree that hold the `size` bytes at `pa`, read-only.
///
/// # Errors
/// As [`create_pgd_mapping`].
pub(crate) fn map_device_tree(pa: PhysAddr, size: u64) -> Result<VirtAddr, MapError> {
    let va = VirtAddr::new(FDT_WINDOW + pa.get() % CONGRUENCE);
    let pages = to_pages(pa, size);
    map(&Mapping {
        va: VirtAddr::new(va.get() & !(PAGE - 1)),
        pa: pages.start,
        size: pages.size(),
        prot: KernelProt::ReadOnly,
        memory: MemoryType::Normal,
    })?;
    Ok(va)
}

/// Maps registers as Device-nGnRE and returns a pointer to the first byte of `range`. For good.
///
/// # Errors
/// As [`create_pgd_mapping`]; also where the window is full.
pub(crate) fn map_device(range: PhysRange) -> Result<NonNull<u8>, MapError> {
    let pages = to_pages(range.start, range.size());
    let mut next = NEXT_DEVICE.lock();
    let mapping = Mapping {
        va: VirtAddr::new(*next),
        pa: pages.start,
        size: pages.size(),
        prot: KernelProt::ReadWrite,
        memory: MemoryType::Device,
    };
    if pages.size() > DEVICE_WINDOW.end - *next {
        return Err(MapError::OutOfRange(mapping));
    }
    map(&mapping)?;
    // An unmapped page between two devices, so that a wrong offset faults.
    *next += pages.size() + PAGE;
    let address = mapping.va.get() + range.start.get() % PAGE;
    Ok(NonNull::new(address as *mut u8).expect("the window is not at 0"))
}

/// The whole pages that hold `size` bytes at `pa`.
fn to_pages(pa: PhysAddr, size: u64) -> PhysRange {
    let end = (pa.get() + size).next_multiple_of(PAGE);
    PhysRange { start: PhysAddr::new(pa.get() & !(PAGE - 1)), end: PhysAddr::new(end) }
}

/// Why memory could not be mapped.
#[derive(Debug)]
pub(crate) enum Error {
    /// A mapping failed.
    Map(MapError),
    /// No free memory for the tables of the linear map: bytes.
    NoMemoryForTables(u64),
    /// RAM that the linear map can't reach.
    BeyondLinearMap(PhysRange),
    /// The device tree promises RAM at this address, and a load from there faults.
    NotThere(PhysAddr, Esr),
    /// The device tree promises RAM at this address, and what is written there is not kept.
    ReadOnly(PhysAddr),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(error) => error.fmt(f),
            Self::NoMemoryForTables(bytes) => {
                write!(f, "no {bytes:#x} bytes of RAM in one piece for page tables")
            }
            Self::BeyondLinearMap(range) => {
                write!(f, "RAM {range} is beyond 128 TiB, which the linear map does not reach")
            }
            Self::NotThere(pa, esr) => {
                write!(f, "the device tree promises RAM at {pa}, and there is none: {esr}")
            }
            Self::ReadOnly(pa) => {
                write!(f, "the device tree promises RAM at {pa}, and what is written there is lost")
            }
        }
    }
}

impl From<MapError> for Error {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

/// Maps all memory in the linear map, but text, constants and no-map ranges. From here on the tables are
/// reached through it.
///
/// # Errors
/// See [`Error`].
pub(crate) fn map_memory(memblock: &mut MemBlock) -> Result<(), Error> {
    use arch::aarch64::hardware::LINEAR_BITS;
    let image = image();
    if let Some(range) = memblock.mapped().find(|range| (range.end.get() - 1) >> LINEAR_BITS != 0) {
        return Err(Error::BeyondLinearMap(range));
    }
    // First with tables from the pool: the range that holds the Image, so the pool itself, and the one with most
    // free memory, for the tables of the rest.
    let holding = memblock.mapped().find(|range| range.holds(image.start));
    let free_in = |range: &PhysRange| memblock::total(memblock.free().filter(|free| range.holds(free.start)));
    let roomiest = memblock.mapped().max_by_key(free_in).ok_or(Error::NoMemoryForTables(PAGE))?;
    for range in holding.into_iter().chain([roomiest]) {
        map_around_constants(range)?;
        expect_ram(memblock, range)?;
    }
    let root = image.physical(boot::image::init_root_table());
    // SAFETY: the same root as before. All its tables so far are of the pool, which is in the Image's data; that
    // is in the linear map now. Further ones are allocated from memory that is.
    INIT_MM.call_once(|| unsafe { Mm::new_kernel(Hardware(LinearMap::new()), TableFrame::new(root, 0)) });

    // Both ends of a range and of the hole in it may need a table of each level.
    let bytes = (memblock.mapped().count() as u64 + 1) * 12 * PAGE;
    let chunk = memblock.alloc(bytes, PAGE, Some(roomiest)).ok_or(Error::NoMemoryForTables(bytes))?;
    let chunk = PhysRange { start: chunk, end: PhysAddr::new(chunk.get() + bytes) };
    // SAFETY: it was just allocated, in a range that is mapped.
    unsafe { memory::clear(chunk) };
    *CHUNK.lock() = Some(chunk);
    for range in memblock.mapped() {
        map_around_constants(range)?;
        expect_ram(memblock, range)?;
    }
    Ok(())
}

/// A device tree may promise memory that is not there: reads and writes the first and last page of all that is free in a
/// range, which is mapped.
fn expect_ram(memblock: &MemBlock, range: PhysRange) -> Result<(), Error> {
    for free in memblock.free().filter_map(|free| free.intersection(&range)) {
        for page in [free.start, PhysAddr::new(free.end.get() - PAGE)] {
            let kept = load_or_fault(page)?;
            for pattern in [0x5a, 0xa5] {
                // SAFETY: the page is free memory, or none.
                unsafe { probe::store(linear(page), pattern) }
                    .map_err(|fault| Error::NotThere(page, fault.esr))?;
                if load_or_fault(page)? != pattern {
                    return Err(Error::ReadOnly(page));
                }
            }
            // SAFETY: as above.
            unsafe { probe::store(linear(page), kept) }.map_err(|fault| Error::NotThere(page, fault.esr))?;
        }
    }
    Ok(())
}

fn load_or_fault(pa: PhysAddr) -> Result<u8, Error> {
    // SAFETY: reading memory has no effect; where there is none, the load faults.
    unsafe { probe::load(linear(pa)) }.map_err(|fault| Error::NotThere(pa, fault.esr))
}

/// Maps a range in the linear map but for the part that is the Image's text and constants: the linear map
/// would make them writable, or stay in the way of making them so.
fn map_around_constants(range: PhysRange) -> Result<(), MapError> {
    let hole = image().constant();
    let pieces = if range.contains(&hole) {
        [PhysRange { end: hole.start, ..range }, PhysRange { start: hole.end, ..range }]
    } else {
        [range, PhysRange { start: range.end, ..range }]
    };
    pieces.into_iter().filter(|piece| piece.start < piece.end).try_for_each(map_linear)
}

/// What is left of the memory for tables, now that the allocator takes over.
pub(crate) fn take_unused_tables() -> Option<PhysRange> {
    CHUNK.lock().take().filter(|range| range.start < range.end)
}

/// Where the stacks of a CPU but the first are.
fn stack_area(index: usize) -> u64 {
    STACK_WINDOW + index as u64 * StackArea::SIZE.next_multiple_of(64 << 10)
}

/// Maps stacks for CPU `index` and returns where the [`StackArea`] is. For good.
///
/// # Errors
/// Where there is no memory.
pub(crate) fn map_stacks(index: usize) -> Result<VirtAddr, MapError> {
    let area = stack_area(index);
    for (offset, size) in [
        (StackArea::OVERFLOW, cpu::OVERFLOW_STACK_SIZE),
        (StackArea::STACK, StackArea::SIZE - StackArea::STACK),
    ] {
        let va = VirtAddr::new(area + offset);
        let order = (size / PAGE).ilog2() as u8;
        let pa = memory::alloc_for_good(order).ok_or(MapError::OutOfTables(va))?;
        map(&Mapping { va, pa, size, prot: KernelProt::ReadWrite, memory: MemoryType::Normal })?;
    }
    Ok(VirtAddr::new(area))
}

/// Maps the stack of EFI runtime services, of [`STACK_SIZE`] bytes behind those of the CPUs, and returns its lowest address.
/// For good.
///
/// # Errors
/// Where there is no memory.
#[cfg(feature = "efi")]
pub(crate) fn map_efi_stack() -> Result<VirtAddr, MapError> {
    let va = efi_stack();
    map_stack(va)?;
    Ok(va)
}

/// Where the stack of EFI runtime services is: behind those of the CPUs, above a guard.
#[cfg(feature = "efi")]
fn efi_stack() -> VirtAddr {
    VirtAddr::new(stack_area(MAX_CPUS) + cpu::GUARD_SIZE)
}

/// Where the kernel stack `index` of tasks is: behind that of EFI runtime services, above a guard.
pub(crate) fn task_stack(index: usize) -> VirtAddr {
    VirtAddr::new(stack_area(MAX_CPUS + 1 + index) + cpu::GUARD_SIZE)
}

/// Maps the kernel stack `index` of tasks. For good.
///
/// # Errors
/// Where there is no memory.
pub(crate) fn map_task_stack(index: usize) -> Result<(), MapError> {
    map_stack(task_stack(index))
}

/// Maps a stack of [`STACK_SIZE`] bytes at `va`.
fn map_stack(va: VirtAddr) -> Result<(), MapError> {
    let order = (STACK_SIZE / PAGE).ilog2() as u8;
    let folio = memory::frames().alloc(order).map_err(|_| MapError::OutOfTables(va))?;
    let pa = folio.head().addr(GRANULE);
    map(&Mapping { va, pa, size: STACK_SIZE, prot: KernelProt::ReadWrite, memory: MemoryType::Normal })?;
    memory::keep_for_good(folio);
    Ok(())
}

/// Maps `size` bytes of physical memory at `va` in the heap's window.
///
/// # Errors
/// As [`create_pgd_mapping`].
pub(crate) fn map_heap(va: VirtAddr, pa: PhysAddr, size: u64) -> Result<(), MapError> {
    map(&Mapping { va, pa, size, prot: KernelProt::ReadWrite, memory: MemoryType::Normal })
}

/// Where self-tests map what they need.
#[cfg(feature = "selftest")]
pub(crate) const SCRATCH_WINDOW: u64 = 0xffff_8020_0000_0000;

/// Maps memory of a self-test. For good.
///
/// # Errors
/// As [`create_pgd_mapping`].
#[cfg(feature = "selftest")]
pub(crate) fn map_scratch(mapping: &Mapping) -> Result<(), MapError> {
    assert!(mapping.va.get() >= SCRATCH_WINDOW, "{} is not a self-test's", mapping.va);
    map(mapping)
}

/// Where each window is used so far, for the self-test that looks for what is mapped elsewhere.
#[cfg(feature = "selftest")]
mod windows {
    use super::*;

    fn within(start: u64, end: u64, window: Range<u64>) -> bool {
        window.start <= start && end <= window.end
    }

    pub(crate) fn in_image(start: u64, end: u64) -> bool {
        within(start, end, image::start().get()..image::end().get())
    }

    pub(crate) fn in_device_tree(start: u64, end: u64) -> bool {
        let bytes = (kernel::dt::MAX_SIZE as u64 + CONGRUENCE).next_multiple_of(PAGE);
        within(start, end, FDT_WINDOW..FDT_WINDOW + bytes)
    }

    pub(crate) fn in_devices(start: u64, end: u64) -> bool {
        within(start, end, DEVICE_WINDOW.start..*NEXT_DEVICE.lock())
    }

    pub(crate) fn in_stacks(start: u64, end: u64) -> bool {
        (1..cpu::count()).any(|index| {
            let area = stack_area(index);
            within(start, end, area + StackArea::OVERFLOW..area + StackArea::GUARD)
                || within(start, end, area + StackArea::STACK..area + StackArea::SIZE)
        }) || (0..crate::process::stack::made()).any(|index| is_stack(task_stack(index), start, end))
            || in_efi_stack(start, end)
    }

    fn is_stack(base: VirtAddr, start: u64, end: u64) -> bool {
        within(start, end, base.get()..base.get() + STACK_SIZE)
    }

    #[cfg(feature = "efi")]
    fn in_efi_stack(start: u64, end: u64) -> bool {
        crate::efi_runtime::services().is_some() && is_stack(efi_stack(), start, end)
    }

    #[cfg(not(feature = "efi"))]
    fn in_efi_stack(_: u64, _: u64) -> bool {
        false
    }

    pub(crate) fn in_heap(start: u64, end: u64) -> bool {
        within(start, end, HEAP_WINDOW.start..HEAP_WINDOW.start + crate::heap::frames() * PAGE)
    }

    pub(crate) fn in_scratch(start: u64, end: u64) -> bool {
        within(start, end, SCRATCH_WINDOW..SCRATCH_WINDOW + 128 * PAGE)
    }
}
#[cfg(feature = "selftest")]
pub(crate) use windows::{in_device_tree, in_devices, in_heap, in_image, in_scratch, in_stacks};
