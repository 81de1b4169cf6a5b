//! The tables of `init_mm`: what is mapped, how, and that nothing else is.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::ops::ControlFlow;

use arch::aarch64::hardware::{Hardware, LinearMap, linear};
use arch::{Granule, MemoryType, PhysAddr, PteFlags, PteValue, TableFrame, VirtAddr};
use kernel::platform::PhysRange;
use mm::frame::Folio;
use mm::ptep::{LocklessGuard, set_ptes};
use mm::{KernelProt, Leaf, Mapping, Mm, TableAlloc};
use scenarios::mapping::Machine;

use super::harness::{Context, TestResult, Unmet, check};
use crate::console::println;
use crate::vm::{GRANULE, PAGE};
use crate::{cpu, image, memory, smp, vm};

/// The half of the address space that `init_mm` translates.
const KERNEL_HALF: (VirtAddr, u64) = (VirtAddr::new(0xffff_0000_0000_0000), 1 << 48);

/// Calls `visit` with every leaf of `init_mm`.
fn each_leaf(mut visit: impl FnMut(Leaf) -> TestResult) -> TestResult {
    let (start, size) = KERNEL_HALF;
    let walk = vm::init_mm().walk(start, size, |leaf| match visit(leaf) {
        Ok(()) => ControlFlow::Continue(()),
        Err(unmet) => ControlFlow::Break(unmet),
    });
    match walk {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(unmet) => Err(unmet),
    }
}

/// What no leaf of a kernel's address space may be, told by its dump. Returns how many ranges it has.
fn nothing_is_forbidden(mm: &Mm<'_, Hardware<LinearMap>>) -> Result<usize, Unmet> {
    let mut ranges = 0;
    for range in mm.ptdump(&[], &LocklessGuard::tables_stay()).ranges() {
        ranges += 1;
        let flags = range.pte.flags();
        check!(!range.is_writable_and_executable(), "writable and executable: {range}");
        check!(flags.contains(PteFlags::UXN), "executable by EL0: {range}");
        check!(!flags.contains(PteFlags::USER), "accessible by EL0: {range}");
        check!(!flags.contains(PteFlags::NG), "not global: {range}");
        check!(flags.contains(PteFlags::AF), "without the access flag: {range}");
        let device = range.pte.memory() == Some(MemoryType::Device);
        check!(!device || flags.contains(PteFlags::PXN), "registers that are executable: {range}");
    }
    Ok(ranges)
}

pub(crate) fn no_leaf_is_writable_and_executable(_: &Context<'_>) -> TestResult {
    let ranges = nothing_is_forbidden(vm::init_mm())?;
    check!(ranges > 10, "only {ranges} ranges: the dump saw next to nothing");
    // The same of a table that is not loaded, with one such page.
    let scratch = Scratch::new(GRANULE);
    let mm = scratch.new_mm();
    let va = KERNEL_HALF.0;
    let flags = PteFlags::AF | PteFlags::UXN | PteFlags::INNER_SHAREABLE;
    let pte = PteValue::leaf(PhysAddr::new(0), MemoryType::Normal, flags);
    set_ptes(&mut mm.lock_table(va, &scratch).expect("there is memory for tables"), va, pte, 1);
    check!(nothing_is_forbidden(&mm).is_err(), "a page that is writable and executable was not noticed");
    Ok(())
}

/// The first address of each range that is mapped alike: each part of the Image, each device, each stack, and so on.
pub(super) fn parts() -> Vec<VirtAddr> {
    const PERMISSION: PteFlags = PteFlags::RDONLY.union(PteFlags::PXN).union(PteFlags::UXN);
    let mut parts = Vec::new();
    let mut before = None;
    let all = each_leaf(|Leaf { va, level, pte }| {
        let kind = (pte.flags().intersection(PERMISSION), pte.memory());
        if before != Some((va.get(), kind)) {
            parts.push(va);
        }
        before = Some((va.get() + GRANULE.level_size(level), kind));
        Ok(())
    });
    assert!(all.is_ok(), "no leaf was found wanting");
    parts
}

/// Every frame that the allocator has is where the linear map says, and writable.
pub(crate) fn linear_map_is_all_of_memory(context: &Context<'_>) -> TestResult {
    let constant = vm::image().constant();
    for range in context.memblock.mapped() {
        // Each page of the first and last 4 MiB, and then one in each 2 MiB: blocks can't differ inside.
        let end = range.end.get();
        let mut pa = range.start.get();
        while pa < end {
            let near = pa - range.start.get() < (4 << 20) || end - pa <= (4 << 20);
            let at = PhysAddr::new(pa);
            let leaf = vm::init_mm().leaf(linear(at));
            if constant.holds(at) {
                check!(leaf.is_none(), "{at} is a constant of the Image, and in the linear map");
            } else {
                let Some(leaf) = leaf else {
                    check!(false, "{at} is RAM, and not in the linear map");
                    return Ok(());
                };
                let offset = linear(at).get() - leaf.va.get();
                check!(leaf.pte.pa().get() + offset == pa, "{at} is mapped to {}", leaf.pte.pa());
                check!(!leaf.pte.flags().contains(PteFlags::RDONLY), "{at} is mapped read-only");
            }
            pa += if near { PAGE } else { 2 << 20 };
        }
    }
    Ok(())
}

/// Every leaf is where one of the windows says, and as it says; in the linear map it is RAM that may be mapped.
pub(crate) fn nothing_but_what_is_needed(context: &Context<'_>) -> TestResult {
    let guards = cpu::boot_guards();
    each_leaf(|leaf| {
        let Leaf { va, level, pte } = leaf;
        let size = GRANULE.level_size(level);
        let (start, end) = (va.get(), va.get() + size);
        let read_only = pte.flags().contains(PteFlags::RDONLY);
        let device = pte.memory() == Some(MemoryType::Device);
        if vm::in_image(start, end) {
            check!(!guards.iter().any(|guard| (start..end).contains(&guard.get())), "{va} maps a guard");
            let constant = end <= image::rodata_end().get();
            check!(read_only == constant && !device, "{va} of the Image is {pte:?}");
        } else if vm::in_device_tree(start, end) {
            check!(read_only && !device, "{va} of the device tree is {pte:?}");
        } else if vm::in_devices(start, end) {
            check!(device, "{va} of a device is {pte:?}");
            let ram = context.memblock.ram().any(|ram| ram.holds(pte.pa()));
            check!(!ram, "{va} maps RAM at {} as a device", pte.pa());
        } else if vm::in_stacks(start, end) || vm::in_heap(start, end) || vm::in_scratch(start, end) {
            check!(!read_only && !device, "{va} of stacks or heap is {pte:?}");
        } else {
            check!(start < arch::aarch64::boot::IMAGE_BASE, "{va} is in no window");
            check!(va == linear(pte.pa()), "{va} of the linear map is mapped to {}", pte.pa());
            let pa = pte.pa().get();
            let mut mapped = context.memblock.mapped();
            let inside = mapped.any(|range| range.start.get() <= pa && pa + size <= range.end.get());
            check!(inside, "{va} of the linear map, {size:#x} bytes, is not RAM alone");
            check!(!read_only && !device, "{va} of the linear map is {pte:?}");
        }
        Ok(())
    })
}

/// Where address and size allow a block or a Contiguous group, there is one.
pub(crate) fn uses_blocks_and_contiguous_groups(context: &Context<'_>) -> TestResult {
    let constant = vm::image().constant();
    for range in context.memblock.mapped() {
        for (level, unit) in [(2, 2_u64 << 20), (1, 1 << 30)] {
            let mut pa = range.start.get().next_multiple_of(unit);
            while pa + unit <= range.end.get() {
                let split = constant.start.get() < pa + unit && pa < constant.end.get();
                let at = linear(PhysAddr::new(pa));
                let leaf = vm::init_mm().leaf(at);
                let found = leaf.map(|leaf| leaf.level);
                check!(split || found.is_some_and(|found| found <= level), "{at}: a leaf at level {found:?}");
                pa += unit;
            }
        }
    }
    // The Image: every aligned 64 KiB with one permission.
    const GROUP: u64 = 64 << 10;
    let parts = [(image::start(), image::text_end()), (image::text_end(), image::rodata_end())];
    let mut groups = 0;
    for (start, end) in parts {
        let mut va = start.get().next_multiple_of(GROUP);
        while va + GROUP <= end.get() {
            let leaf = vm::init_mm().leaf(VirtAddr::new(va));
            let cont = leaf.is_some_and(|leaf| leaf.pte.flags().contains(PteFlags::CONT));
            check!(cont, "{va:#x} of the Image is not Contiguous");
            groups += 1;
            va += GROUP;
        }
    }
    check!(groups > 0, "the Image is too small to have a Contiguous group in its text");
    Ok(())
}

/// Two CPUs change the kernel's tables at once: each maps pages of its own into the same last-level tables,
/// writes to them, and finds what it wrote.
pub(crate) fn two_cpus_in_the_page_tables(_: &Context<'_>) -> TestResult {
    if cpu::count() < 2 {
        return Err(Unmet::Skipped("there is one CPU"));
    }
    const ROUNDS: u64 = 64;
    fn rounds(first: u64) -> Result<(), String> {
        for round in 0..ROUNDS {
            let va = VirtAddr::new(vm::SCRATCH_WINDOW + (2 * round + first) * PAGE);
            let pa = memory::alloc_zeroed_page().ok_or_else(|| format!("no page for {va}"))?;
            let mapping =
                Mapping { va, pa, size: PAGE, prot: KernelProt::ReadWrite, memory: MemoryType::Normal };
            vm::map_scratch(&mapping).map_err(|error| format!("{error}"))?;
            let word = va.get() as *mut u64;
            // SAFETY: the page was just mapped for this CPU alone.
            let found = unsafe {
                word.write_volatile(va.get());
                ((linear(pa).get()) as *const u64).read_volatile()
            };
            if found != va.get() {
                return Err(format!("{va}: {found:#x} was read by the linear map"));
            }
        }
        Ok(())
    }
    let other = smp::spawn_on(1, || rounds(1)).expect("the CPU waits");
    let mine = rounds(0);
    let theirs = other.join();
    check!(mine.is_ok() && theirs.is_ok(), "{mine:?} {theirs:?}");
    for i in 0..2 * ROUNDS {
        let va = vm::SCRATCH_WINDOW + i * PAGE;
        // SAFETY: all pages of the window so far were mapped above.
        let found = unsafe { (va as *const u64).read_volatile() };
        check!(found == va, "{va:#x} holds {found:#x}");
    }
    Ok(())
}

/// Tables that are given back at the end. To the scenarios, a machine with address spaces that are never loaded.
pub(crate) struct Scratch {
    granule: Granule,
    tables: RefCell<Vec<Folio<'static>>>,
}

impl Scratch {
    /// For tables of a granule.
    pub(crate) fn new(granule: Granule) -> Self {
        Self { granule, tables: RefCell::new(Vec::new()) }
    }
}

impl TableAlloc for Scratch {
    fn alloc_table(&self, level: u8) -> Option<TableFrame> {
        let order = self.granule.page_shift() - GRANULE.page_shift();
        let folio = memory::frames().alloc(order as u8).ok()?;
        let start = folio.head().addr(GRANULE);
        let end = PhysAddr::new(start.get() + self.granule.page_size());
        // SAFETY: the page was just allocated, and is in the linear map.
        unsafe { memory::clear(PhysRange { start, end }) };
        self.tables.borrow_mut().push(folio);
        // SAFETY: a zeroed page of its own, aligned to its size, in the linear map, kept until every address space of it
        // is gone.
        Some(unsafe { TableFrame::new(start, level) })
    }
}

impl Machine for Scratch {
    type M = Hardware<LinearMap>;

    fn new_mm(&self) -> Mm<'static, Self::M> {
        let root = self.alloc_table(0).expect("there is memory for a root table");
        // SAFETY: its tables are pages of the allocator, which are in the linear map.
        Mm::new_kernel(Hardware(unsafe { LinearMap::new() }), root)
    }

    fn tables(&self) -> &dyn TableAlloc {
        self
    }

    /// What is owed can't be seen on a real machine.
    fn operation_ended(&self) {}
}

pub(crate) fn scenarios(_: &Context<'_>) -> TestResult {
    for (name, scenario) in scenarios::mapping::scenarios::<Scratch>() {
        println!("# scenario {name}");
        scenario(&Scratch::new(GRANULE));
    }
    Ok(())
}
