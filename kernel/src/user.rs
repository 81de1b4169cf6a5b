//! User address spaces on this machine: their ASIDs, and how one gets into TTBR0.

use alloc::sync::Arc;
use alloc::vec;
use core::marker::PhantomData;

use arch::aarch64::hardware::{Hardware, LinearMap};
use arch::aarch64::{boot, daif};
use kernel::platform::MAX_CPUS;
use mm::Mm;
use mm::asid::AsidAllocator;
use spin::Once;

use crate::vm::GRANULE;
use crate::{cpu, features, vm};

/// A user's address space on this machine, with pages of 2^`PAGE_SHIFT` bytes.
pub(crate) type UserMm<const PAGE_SHIFT: u32 = { GRANULE.page_shift() }> =
    Mm<'static, Hardware<LinearMap, PAGE_SHIFT>>;

pub(crate) type Asids = AsidAllocator<'static, MAX_CPUS>;

static ASIDS: Once<Asids> = Once::new();

/// The allocator of ASIDs. Made at the first call, which allocates.
pub(crate) fn asids() -> &'static Asids {
    ASIDS.call_once(|| {
        let asids = 1 << features::common().asid_bits;
        AsidAllocator::new(asids, vec![0; Asids::words(asids)].leak())
    })
}

/// An address space that this CPU has loaded into TTBR0, until it is dropped, on the same CPU.
pub(crate) struct Loaded<const PAGE_SHIFT: u32>(Arc<UserMm<PAGE_SHIFT>>, PhantomData<*const ()>);

impl<const PAGE_SHIFT: u32> Loaded<PAGE_SHIFT> {
    /// Loads `mm`.
    ///
    /// # Panics
    /// Where it is no user's, or not every CPU has its granule.
    ///
    /// # Safety
    /// What it maps must not be memory that Rust references elsewhere refer to. TTBR0 must translate nothing.
    pub(crate) unsafe fn new(mm: &Arc<UserMm<PAGE_SHIFT>>) -> Self {
        let context = mm.context().expect("a user's address space");
        assert!(features::common().granules.supports(mm.granule()), "a granule that some CPU has not");
        daif::masked(|| {
            if mm.granule() != GRANULE {
                // SAFETY: the CPU has it; the caller vouches for TTBR0.
                unsafe { boot::set_user_granule(mm.granule()) };
            }
            let asid = asids().switch_to(mm.mmu(), cpu::index(), context);
            // SAFETY: the tables live as long as `mm`; the ASID is its own. The caller vouches for the rest.
            unsafe { boot::load_user_root(mm.root(), asid) };
        });
        Self(mm.clone(), PhantomData)
    }
}

impl<const PAGE_SHIFT: u32> Drop for Loaded<PAGE_SHIFT> {
    fn drop(&mut self) {
        daif::masked(|| {
            boot::unload_user_root(vm::image().offset());
            if self.0.granule() != GRANULE {
                // SAFETY: every CPU has the kernel's granule, and TTBR0 translates nothing now.
                unsafe { boot::set_user_granule(GRANULE) };
            }
            asids().leave(cpu::index());
        });
    }
}

/// Gives the ASID of an address space back, which no CPU has loaded any more.
pub(crate) fn release<const PAGE_SHIFT: u32>(mm: &UserMm<PAGE_SHIFT>) {
    if let Some(context) = mm.context() {
        daif::masked(|| asids().release(mm.mmu(), context));
    }
}
