//! User address spaces on this machine: their ASIDs, and how one gets into TTBR0.

use alloc::sync::Arc;
use alloc::vec;
use core::marker::PhantomData;

use arch::aarch64::hardware::{Hardware, LinearMap};
use arch::aarch64::{boot, daif};
use arch::{Granule, Mmu, PhysAddr};
use kernel::platform::MAX_CPUS;
use mm::asid::{AsidAllocator, Context};
use mm::{AddressSpace, Mm};
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

/// What may be loaded into TTBR0.
pub(crate) trait UserRoot {
    /// The machine that it is translated by.
    type Mmu: Mmu;

    /// Where its root table is.
    fn root(&self) -> PhysAddr;
    /// Its ASID, or `None` where it is no user's.
    fn context(&self) -> Option<&Context>;
    fn mmu(&self) -> &Self::Mmu;
}

impl<M: Mmu> UserRoot for Mm<'_, M> {
    type Mmu = M;

    fn root(&self) -> PhysAddr {
        self.root()
    }

    fn context(&self) -> Option<&Context> {
        self.context()
    }

    fn mmu(&self) -> &M {
        self.mmu()
    }
}

impl<M: Mmu> UserRoot for AddressSpace<'_, M> {
    type Mmu = M;

    fn root(&self) -> PhysAddr {
        self.root()
    }

    fn context(&self) -> Option<&Context> {
        Some(self.context())
    }

    fn mmu(&self) -> &M {
        self.mmu()
    }
}

/// An address space that this CPU has loaded into TTBR0, until it is dropped, on the same CPU.
pub(crate) struct Loaded<T: UserRoot>(
    #[expect(dead_code, reason = "it keeps the tables")] Arc<T>,
    PhantomData<*const ()>,
);

impl<T: UserRoot> Loaded<T> {
    const GRANULE: Granule = T::Mmu::GRANULE;

    /// Loads `space`.
    ///
    /// # Panics
    /// Where it is no user's, or not every CPU has its granule.
    ///
    /// # Safety
    /// What it maps must not be memory that Rust references elsewhere refer to. TTBR0 must translate nothing.
    pub(crate) unsafe fn new(space: &Arc<T>) -> Self {
        let context = space.context().expect("a user's address space");
        assert!(features::common().granules.supports(Self::GRANULE), "a granule that some CPU has not");
        daif::masked(|| {
            if Self::GRANULE != GRANULE {
                // SAFETY: the CPU has it; the caller vouches for TTBR0.
                unsafe { boot::set_user_granule(Self::GRANULE) };
            }
            let asid = asids().switch_to(space.mmu(), cpu::index(), context);
            // SAFETY: the tables live as long as `space`; the ASID is its own. The caller vouches for the rest.
            unsafe { boot::load_user_root(space.root(), asid) };
        });
        Self(space.clone(), PhantomData)
    }
}

impl<T: UserRoot> Drop for Loaded<T> {
    fn drop(&mut self) {
        daif::masked(|| {
            boot::unload_user_root(vm::image().offset());
            if Self::GRANULE != GRANULE {
                // SAFETY: every CPU has the kernel's granule, and TTBR0 translates nothing now.
                unsafe { boot::set_user_granule(GRANULE) };
            }
            asids().leave(cpu::index());
        });
    }
}

/// Gives the ASID of an address space back, which no CPU has loaded any more.
pub(crate) fn release(space: &impl UserRoot) {
    if let Some(context) = space.context() {
        daif::masked(|| asids().release(space.mmu(), context));
    }
}
