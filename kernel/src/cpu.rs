//! CPUs: which one this is, and the stacks that each runs on.

use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use aarch64_cpu::registers::{MPIDR_EL1, Readable, TPIDR_EL1};
use arch::VirtAddr;
use arch::aarch64::trap::{CpuLocal, STACK_SIZE};
use kernel::platform::MAX_CPUS;

/// Bytes of the stack that a fault is handled on when the other one is out of bounds.
pub(crate) const OVERFLOW_STACK_SIZE: u64 = 8 << 10;
/// Bytes that stay unmapped below a stack: one page.
pub(crate) const GUARD_SIZE: u64 = 4 << 10;

/// The stacks of the boot CPU, in `.bss`. Further CPUs get the same layout in the stack window.
#[repr(C, align(4096))]
pub(crate) struct StackArea {
    overflow_guard: [u8; GUARD_SIZE as usize],
    overflow: [u8; OVERFLOW_STACK_SIZE as usize],
    guard: [u8; GUARD_SIZE as usize],
    stack: [u8; STACK_SIZE as usize],
}

/// Offsets within a [`StackArea`], wherever it lies.
impl StackArea {
    /// Bytes of all of it.
    pub(crate) const SIZE: u64 = size_of::<Self>() as u64;
    /// Where the overflow stack begins, above its guard.
    pub(crate) const OVERFLOW: u64 = GUARD_SIZE;
    /// Where the guard of the stack begins.
    pub(crate) const GUARD: u64 = Self::OVERFLOW + OVERFLOW_STACK_SIZE;
    /// Where the stack begins.
    pub(crate) const STACK: u64 = Self::GUARD + GUARD_SIZE;
}

/// Memory of the boot CPU's stacks: written by that CPU's stack pointer only.
struct BootStack(core::cell::UnsafeCell<StackArea>);

// SAFETY: nothing refers to the contents; they are reached through the stack pointer of one CPU.
unsafe impl Sync for BootStack {}

static BOOT_STACK: BootStack = BootStack(core::cell::UnsafeCell::new(StackArea {
    overflow_guard: [0; _],
    overflow: [0; _],
    guard: [0; _],
    stack: [0; _],
}));

/// What the exception entry knows of each CPU. The boot assembly gives the first to the boot CPU.
#[unsafe(export_name = "pleat_boot_cpu")]
static CPUS: [CpuLocal; MAX_CPUS] = {
    let mut cpus = [const {
        CpuLocal {
            stack_base: AtomicPtr::new(null_mut()),
            stack_top: AtomicPtr::new(null_mut()),
            overflow_top: AtomicPtr::new(null_mut()),
            index: AtomicU64::new(0),
        }
    }; MAX_CPUS];
    let area = BOOT_STACK.0.get().cast::<u8>();
    // SAFETY: the three addresses are inside of the area, or one past its end.
    unsafe {
        cpus[0].stack_base = AtomicPtr::new(area.add(StackArea::STACK as usize));
        cpus[0].stack_top = AtomicPtr::new(area.add(StackArea::SIZE as usize));
        cpus[0].overflow_top = AtomicPtr::new(area.add(StackArea::GUARD as usize));
    }
    cpus
};

/// What a CPU that is being started reads to find its own [`CpuLocal`].
#[unsafe(export_name = "pleat_secondary_cpu")]
static STARTING: AtomicPtr<CpuLocal> = AtomicPtr::new(null_mut());

/// How many CPUs run.
static ONLINE: AtomicUsize = AtomicUsize::new(1);

/// Index of the CPU that runs this: 0 is the one that booted.
pub(crate) fn index() -> usize {
    let local = TPIDR_EL1.get() as *const CpuLocal;
    // SAFETY: the boot code set TPIDR_EL1 to an element of `CPUS` before any Rust ran, for good.
    unsafe { (*local).index.load(Ordering::Relaxed) as usize }
}

/// How many CPUs run. Their indices are below it.
pub(crate) fn count() -> usize {
    ONLINE.load(Ordering::Acquire)
}

/// Affinity of the CPU that runs this: Aff3 in bits 39:32, Aff2..0 in 23:0, as device trees write it.
pub(crate) fn mpidr() -> u64 {
    MPIDR_EL1.get() & 0xff_00ff_ffff
}

/// Where the stack of CPU `index` begins: its lowest address.
pub(crate) fn stack_base(index: usize) -> VirtAddr {
    VirtAddr::new(CPUS[index].stack_base.load(Ordering::Relaxed) as u64)
}

/// Says on which stack this CPU runs from its next [`switch`](arch::aarch64::task::switch) on: its lowest address. Returns
/// which it was. Interrupts are masked.
pub(crate) fn set_stack_base(base: VirtAddr) -> VirtAddr {
    let local = &CPUS[index()];
    let top = base.get() + STACK_SIZE;
    local.stack_top.store(top as *mut u8, Ordering::Relaxed);
    VirtAddr::new(local.stack_base.swap(base.get() as *mut u8, Ordering::Relaxed) as u64)
}

/// The one-page guards of the boot CPU's stacks, which the kernel leaves unmapped.
pub(crate) fn boot_guards() -> [VirtAddr; 2] {
    let area = BOOT_STACK.0.get() as u64;
    [VirtAddr::new(area), VirtAddr::new(area + StackArea::GUARD)]
}

/// Says that the stacks of CPU `index`, which will be started next, are the mapped [`StackArea`] at `area`.
pub(crate) fn prepare(index: usize, area: VirtAddr) {
    let local = &CPUS[index];
    let at = |offset| (area.get() + offset) as *mut u8;
    local.stack_base.store(at(StackArea::STACK), Ordering::Relaxed);
    local.stack_top.store(at(StackArea::SIZE), Ordering::Relaxed);
    local.overflow_top.store(at(StackArea::GUARD), Ordering::Relaxed);
    local.index.store(index as u64, Ordering::Relaxed);
    STARTING.store(core::ptr::from_ref(local).cast_mut(), Ordering::Release);
}

/// Called by a CPU when it is ready, after those with lower indices.
pub(crate) fn set_online() {
    ONLINE.store(index() + 1, Ordering::Release);
}
