//! The real MMU of this machine: [`Mmu`] by loads and stores through a window onto physical memory, TLBI
//! and barriers.

use core::arch::asm;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};

use super::barrier;
use crate::addr::PA_BITS;
use crate::mmu::Slot;
use crate::tlbi::{Form, Tlbi};
use crate::{Granule, Mmu, PhysAddr, TableFrame, VirtAddr};

/// Where the linear map begins: physical address `pa` is at `LINEAR_BASE + pa`, if it is mapped at all.
pub const LINEAR_BASE: u64 = 0xffff_0000_0000_0000;

/// Bits of a physical address that the linear map can reach: the image and all windows are above it.
pub const LINEAR_BITS: u32 = PA_BITS - 1;

/// Whether the CPUs have FEAT_TTL. Without it the level hint must be left out.
static HAS_TTL: AtomicBool = AtomicBool::new(false);

/// Says that every CPU has FEAT_TTL (ID_AA64MMFR2_EL1.TTL). Until then no level hints are given, which is
/// right on every CPU.
pub fn use_level_hints() {
    HAS_TTL.store(true, Ordering::Relaxed);
}

/// The address of `pa` in the linear map. Whether something is mapped there is another question.
///
/// # Panics
/// Where `pa` has more than [`LINEAR_BITS`] bits.
pub fn linear(pa: PhysAddr) -> VirtAddr {
    assert!(pa.get() >> LINEAR_BITS == 0, "{pa} is beyond the linear map");
    VirtAddr::new(LINEAR_BASE + pa.get())
}

/// A window onto physical memory: how table frames are reached.
///
/// # Safety
/// For every [`TableFrame`] that is handed to a [`Hardware`] with this window, `offset` plus its physical
/// address must be a virtual address at which the frame is mapped readable, writable and cacheable.
pub unsafe trait Window {
    /// By what virtual addresses exceed physical ones.
    fn offset(&self) -> u64;
}

/// The linear map.
pub struct LinearMap(());

impl LinearMap {
    /// Use of the linear map.
    ///
    /// # Safety
    /// Every frame that is used as a table must be in the linear map.
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

// SAFETY: whoever made it vouches for the linear map.
unsafe impl Window for LinearMap {
    fn offset(&self) -> u64 {
        LINEAR_BASE
    }
}

/// The Image where it runs: how tables inside of it are reached before there is a linear map.
pub struct ImageWindow {
    offset: u64,
}

impl ImageWindow {
    /// The Image, whose virtual addresses exceed its physical ones by `offset`.
    ///
    /// # Safety
    /// The offset must be right, and no frame outside of the Image be used as a table.
    pub const unsafe fn new(offset: u64) -> Self {
        Self { offset }
    }
}

// SAFETY: whoever made it vouches for the offset.
unsafe impl Window for ImageWindow {
    fn offset(&self) -> u64 {
        self.offset
    }
}

/// This machine's MMU with the 4 KiB granule, its tables seen through `W`.
pub struct Hardware<W: Window>(pub W);

// SAFETY: a window is linear, so the same frame is at the same address always, and all of it is mapped.
unsafe impl<W: Window> Mmu for Hardware<W> {
    const GRANULE: Granule = Granule::K4;

    fn slots(&self, frame: TableFrame) -> &[Slot] {
        let start = ptr::with_exposed_provenance(self.0.offset().wrapping_add(frame.pa().get()) as usize);
        // SAFETY: the window maps the frame, which is a page of slots by the contract of `TableFrame`.
        unsafe { core::slice::from_raw_parts(start, Self::GRANULE.entries()) }
    }

    fn publish(&self) {
        barrier::dsb_ishst();
        barrier::isb();
    }

    fn invalidate(&self, operation: Tlbi) {
        let operation = if HAS_TTL.load(Ordering::Relaxed) { operation } else { without_hint(operation) };
        let operand = operation.operand();
        macro_rules! tlbi {
            ($($name:literal),*) => {
                // SAFETY: an invalidation only makes walkers read the tables again. Not `nomem`: stores of
                // descriptors come before it. FEAT_TLBIRANGE's forms are issued where the CPU has them.
                unsafe {
                    asm!($(".arch_extension tlb-rmi", concat!("tlbi ", $name, ", {}"),)*
                        in(reg) operand, options(nostack, preserves_flags))
                }
            };
        }
        match operation.form() {
            // SAFETY: as above.
            Form::Vmalle1is => unsafe { asm!("tlbi vmalle1is", options(nostack, preserves_flags)) },
            Form::Aside1is => tlbi!("aside1is"),
            Form::Vae1is => tlbi!("vae1is"),
            Form::Vale1is => tlbi!("vale1is"),
            Form::Vaae1is => tlbi!("vaae1is"),
            Form::Vaale1is => tlbi!("vaale1is"),
            Form::Rvae1is => tlbi!("rvae1is"),
            Form::Rvale1is => tlbi!("rvale1is"),
            Form::Rvaae1is => tlbi!("rvaae1is"),
            Form::Rvaale1is => tlbi!("rvaale1is"),
        }
    }

    fn complete(&self) {
        barrier::dsb_ish();
        barrier::isb();
    }
}

/// The same operation without its level hint.
fn without_hint(operation: Tlbi) -> Tlbi {
    match operation {
        Tlbi::Page { va, space, last_level, granule, level: _ } => {
            Tlbi::Page { va, space, last_level, granule, level: None }
        }
        Tlbi::Range { start, size, space, last_level, granule, level: _ } => {
            Tlbi::Range { start, size, space, last_level, granule, level: None }
        }
        Tlbi::All | Tlbi::Asid(_) => operation,
    }
}
