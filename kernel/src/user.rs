//! User address spaces on this machine: their ASIDs, and how one gets into TTBR0.

use alloc::vec;
use core::marker::PhantomData;

use arch::aarch64::hardware::{Hardware, LinearMap};
use arch::aarch64::{boot, daif};
use kernel::platform::MAX_CPUS;
use mm::Mm;
use mm::asid::AsidAllocator;
use spin::Once;

use crate::{cpu, features, vm};

/// A user's address space on this machine.
pub(crate) type UserMm = Mm<'static, Hardware<LinearMap>>;

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
pub(crate) struct Loaded<'a>(PhantomData<(&'a UserMm, *const ())>);

impl<'a> Loaded<'a> {
    /// Loads `mm`.
    ///
    /// # Panics
    /// Where it is no user's.
    ///
    /// # Safety
    /// What it maps must not be memory that Rust references elsewhere refer to. TTBR0 must translate nothing.
    pub(crate) unsafe fn new(mm: &'a UserMm) -> Self {
        let context = mm.context().expect("a user's address space");
        daif::masked(|| {
            let asid = asids().switch_to(mm.mmu(), cpu::index(), context);
            // SAFETY: the tables live as long as `mm`; the ASID is its own. The caller vouches for the rest.
            unsafe { boot::load_user_root(mm.root(), asid) };
        });
        Self(PhantomData)
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        daif::masked(|| {
            boot::unload_user_root(vm::image().offset());
            asids().leave(cpu::index());
        });
    }
}

/// Gives the ASID of an address space back, which no CPU has loaded any more.
pub(crate) fn release(mm: &UserMm) {
    if let Some(context) = mm.context() {
        daif::masked(|| asids().release(mm.mmu(), context));
    }
}
