//! The real MMU of this machine: [`Mmu`] by loads and stores through a window onto physical memory, TLBI
//! and barriers.

use core::arch::asm;
use core::ptr;
use core::sync::atomic::{AtomicU8, Ordering};

use super::{barrier, icache};
use crate::addr::PA_BITS;
use crate::mmu::{Features, Hafdbs, Slot};
use crate::tlbi::{Form, Tlbi};
use crate::{Granule, Mmu, PhysAddr, TableFrame, VirtAddr};

/// Where the linear map begins: physical address `pa` is at `LINEAR_BASE + pa`, if it is mapped at all.
pub const LINEAR_BASE: u64 = 0xffff_0000_0000_0000;

/// Bits of a physical address that the linear map can reach: the image and all windows are above it.
pub const LINEAR_BITS: u32 = PA_BITS - 1;

/// What all CPUs have in common, packed: see [`configure`]. Nothing, until that is known, which is right on every CPU.
static FEATURES: AtomicU8 = AtomicU8::new(0);

const TTL: u8 = 1 << 0;
const TLB_RANGE: u8 = 1 << 1;
const BBM_NO_ABORT: u8 = 1 << 2;
const HAF: u8 = 1 << 3;
const HD: u8 = 1 << 4;

/// Says what all CPUs have in common: FEAT_TTL and `features`.
///
/// # Safety
/// Every CPU that will run must have it, and TCR_EL1.HA and HD be set on it as `features.hafdbs` says.
pub unsafe fn configure(ttl: bool, features: Features) {
    let hafdbs = match features.hafdbs {
        Hafdbs::None => 0,
        Hafdbs::Af => HAF,
        Hafdbs::AfDbm => HAF | HD,
    };
    let flag = |condition, flag| if condition { flag } else { 0 };
    let packed = flag(ttl, TTL)
        | flag(features.tlb_range, TLB_RANGE)
        | flag(features.bbm_no_abort, BBM_NO_ABORT)
        | hafdbs;
    FEATURES.store(packed, Ordering::Relaxed);
}

/// The address of `pa` in the linear map. Whether something is mapped there is another question.
///
/// # Panics
/// Where `pa` has more than [`LINEAR_BITS`] bits.
pub fn linear(pa: PhysAddr) -> VirtAddr {
    assert!(pa.get() >> LINEAR_BITS == 0, "{pa} is beyond the linear map");
    VirtAddr::new(LINEAR_BASE + pa.get())
}

/// What an address of the linear map is the address of, or `None` for one that is elsewhere.
pub fn in_linear_map(va: VirtAddr) -> Option<PhysAddr> {
    let pa = va.get().checked_sub(LINEAR_BASE)?;
    (pa >> LINEAR_BITS == 0).then(|| PhysAddr::new(pa))
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

/// This machine's MMU, its tables seen through `W`. Their pages have 2^`PAGE_SHIFT` bytes: 4 KiB, which is the kernel's
/// own granule, or the 16 KiB or 64 KiB of a user's address space ([`set_user_granule`](super::boot::set_user_granule)).
pub struct Hardware<W: Window, const PAGE_SHIFT: u32 = { Granule::K4.page_shift() }>(pub W);

// SAFETY: a window is linear, so the same frame is at the same address always, and all of it is mapped.
unsafe impl<W: Window, const PAGE_SHIFT: u32> Mmu for Hardware<W, PAGE_SHIFT> {
    const GRANULE: Granule = Granule::of_page_shift(PAGE_SHIFT);

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
        let operation =
            if FEATURES.load(Ordering::Relaxed) & TTL != 0 { operation } else { without_hint(operation) };
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

    fn invalidate_pages(&self, first: Tlbi, pages: u64) {
        let Tlbi::Page { granule, .. } = first else { panic!("{first:?} is not of one page") };
        let first = if FEATURES.load(Ordering::Relaxed) & TTL != 0 { first } else { without_hint(first) };
        // The address is the lowest field, in units of 4 KiB; beyond the last page nothing is issued.
        let mut operand = first.operand();
        let step = granule.page_size() >> Granule::K4.page_shift();
        macro_rules! each {
            ($name:literal) => {
                for _ in 0..pages {
                    // SAFETY: as in `invalidate`.
                    unsafe {
                        asm!(concat!("tlbi ", $name, ", {}"), in(reg) operand, options(nostack, preserves_flags));
                    }
                    operand = operand.wrapping_add(step);
                }
            };
        }
        match first.form() {
            Form::Vae1is => each!("vae1is"),
            Form::Vale1is => each!("vale1is"),
            Form::Vaae1is => each!("vaae1is"),
            Form::Vaale1is => each!("vaale1is"),
            _ => unreachable!("a page has no other form"),
        }
    }

    fn complete(&self) {
        barrier::dsb_ish();
        barrier::isb();
    }

    fn features(&self) -> Features {
        let packed = FEATURES.load(Ordering::Relaxed);
        Features {
            tlb_range: packed & TLB_RANGE != 0,
            bbm_no_abort: packed & BBM_NO_ABORT != 0,
            hafdbs: match packed & (HAF | HD) {
                0 => Hafdbs::None,
                HAF => Hafdbs::Af,
                _ => Hafdbs::AfDbm,
            },
        }
    }

    fn invalidate_local(&self, operation: Tlbi) {
        barrier::dsb_nshst();
        let operation = without_hint(operation);
        let operand = operation.operand();
        // SAFETY: as in `invalidate`; the forms that are not broadcast, and whole where there is no such form.
        unsafe {
            match operation.form() {
                Form::Vae1is | Form::Vale1is => {
                    asm!("tlbi vae1, {}", in(reg) operand, options(nostack, preserves_flags));
                }
                Form::Vaae1is | Form::Vaale1is => {
                    asm!("tlbi vaae1, {}", in(reg) operand, options(nostack, preserves_flags));
                }
                Form::Aside1is => asm!("tlbi aside1, {}", in(reg) operand, options(nostack, preserves_flags)),
                _ => asm!("tlbi vmalle1", options(nostack, preserves_flags)),
            }
        }
        barrier::dsb_nsh();
        barrier::isb();
    }

    /// Through the window: the memory must be in it, or this faults.
    fn sync_icache(&self, start: PhysAddr, size: u64) {
        icache::sync(VirtAddr::new(self.0.offset().wrapping_add(start.get())), size);
    }

    unsafe fn store_block(&self, slots: &[Slot], first: u64, step: u64) {
        let mut raw = first;
        for pair in slots.chunks(2) {
            let [_, _] = pair else {
                // SAFETY: the caller vouches for each value.
                unsafe { self.store(&pair[0], raw) };
                continue;
            };
            // SAFETY: two slots side by side, of which hardware changes none while they are invalid. A store pair of
            // X registers is two single-copy atomic stores of 8 bytes (B2.2.1); SIMD registers would promise less.
            unsafe {
                asm!("stp {}, {}, [{}]", in(reg) raw, in(reg) raw.wrapping_add(step), in(reg) pair.as_ptr(),
                    options(nostack, preserves_flags));
            }
            raw = raw.wrapping_add(2 * step);
        }
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
