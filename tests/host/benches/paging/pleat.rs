//! pleat-mm, through its public API alone, as a kernel calls it for ranges of user memory.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::ptr;

use arch::mmu::{Features, Hafdbs, Slot};
use arch::tlbi::Tlbi;
use arch::{Granule, Mmu, Pfn, PhysAddr, PteValue, TableFrame, VirtAddr};
use mm::asid::AsidAllocator;
use mm::contpte::cont_ptes;
use mm::frame::{Folio, Frame, FrameMap, Zone};
use mm::pte::{Pte, UserProt};
use mm::ptep::*;
use mm::{Mm, PteGuard, TableAlloc, VA_BITS};

use crate::{FIRST_PA, FIRST_VA, PAGE, PAGES, Subject, descriptor};

/// Hardware sets neither access flag nor dirty state, and invalidates page by page.
pub(crate) const CORTEX_A72: Features =
    Features { tlb_range: false, hafdbs: Hafdbs::None, bbm_no_abort: false };
/// Hardware sets both, and invalidates ranges.
pub(crate) const MAX: Features = Features { tlb_range: true, hafdbs: Hafdbs::AfDbm, bbm_no_abort: false };

/// Tables in host memory, at the addresses that descriptors tell. Of barriers and invalidations only finding out which are
/// needed is left: aarch64-paging compiles its own to nothing where the target is not aarch64, and has tables likewise.
pub(crate) struct Memory(Features);

// SAFETY: the address of a table is that of its 512 slots, which stay until `Tables::free`.
unsafe impl Mmu for Memory {
    const GRANULE: Granule = Granule::K4;

    #[inline]
    fn slots(&self, frame: TableFrame) -> &[Slot] {
        let slots = ptr::with_exposed_provenance(frame.pa().get() as usize);
        // SAFETY: each `TableFrame` here was made by `Tables`, and is not used after `Tables::free`.
        unsafe { std::slice::from_raw_parts(slots, Self::GRANULE.entries()) }
    }

    #[inline]
    fn features(&self) -> Features {
        self.0
    }

    #[inline]
    fn publish(&self) {}

    #[inline]
    fn invalidate(&self, _: Tlbi) {}

    #[inline]
    fn complete(&self) {}

    #[inline]
    fn invalidate_local(&self, _: Tlbi) {}
}

/// Translation tables of one address space, from the allocator that aarch64-paging takes its own from.
#[derive(Default)]
struct Tables(RefCell<Vec<*mut u8>>);

impl Tables {
    const LAYOUT: Layout = match Layout::from_size_align(PAGE as usize, PAGE as usize) {
        Ok(layout) => layout,
        Err(_) => panic!("no layout"),
    };

    /// # Safety
    /// No table of these is used afterwards.
    unsafe fn free(self) {
        for table in self.0.into_inner() {
            // SAFETY: allocated by `alloc_table`, with this layout; the caller vouches for the rest.
            unsafe { dealloc(table, Self::LAYOUT) };
        }
    }
}

impl TableAlloc for Tables {
    fn alloc_table(&self, level: u8) -> Option<TableFrame> {
        // SAFETY: the layout is not empty.
        let table = unsafe { alloc_zeroed(Self::LAYOUT) };
        if table.is_null() {
            handle_alloc_error(Self::LAYOUT);
        }
        self.0.borrow_mut().push(table);
        let pa = PhysAddr::new(table.expose_provenance() as u64);
        // SAFETY: a zeroed, aligned page of its own, which `Memory::slots` finds.
        Some(unsafe { TableFrame::new(pa, level) })
    }
}

/// The 1 GiB of memory that is mapped, in folios of one order.
pub(crate) struct Frames {
    map: &'static FrameMap<'static>,
    /// In ascending order.
    folios: Vec<Folio<'static>>,
}

impl Frames {
    pub(crate) fn new(order: u8) -> Self {
        let records: &'static [Frame] = (0..PAGES).map(|_| Frame::new()).collect::<Vec<_>>().leak();
        let first = Pfn::new(FIRST_PA / PAGE);
        let zones: &'static [Zone<'static>] = vec![Zone::new(first, records)].leak();
        let map: &'static FrameMap<'static> = Box::leak(Box::new(FrameMap::new(zones, None)));
        map.release(zones[0].range());
        let mut folios: Vec<_> =
            (0..PAGES >> order).map(|_| map.alloc(order).expect("a free frame")).collect();
        folios.sort_by_key(|folio| folio.head());
        Self { map, folios }
    }
}

/// Pages of one folio that are in one table: what one call may change.
struct Batch {
    va: VirtAddr,
    page: usize,
    nr: usize,
}

/// An address space, and how it is to be filled.
pub(crate) struct Pleat {
    mm: Mm<'static, Memory>,
    tables: Tables,
    first_va: u64,
    batches: Vec<Batch>,
    folds: bool,
}

impl Pleat {
    /// Maps `frames` at `offset` pages behind the first address, a folio at a time: folded where their size and the offset
    /// permit. If `live`, it has an ASID, so that what a TLB may hold is invalidated.
    pub(crate) fn new(features: Features, frames: &Frames, offset: usize, live: bool) -> Self {
        let tables = Tables::default();
        let root = tables.alloc_table(Granule::K4.start_level(VA_BITS)).expect("a table");
        let mm = Mm::new_user(Memory(features), root, frames.map);
        if live {
            let mut words = [0; AsidAllocator::<1>::words(1 << 8)];
            let context = mm.context().expect("a user's");
            AsidAllocator::<1>::new(1 << 8, &mut words).switch_to(mm.mmu(), 0, context);
        }
        let first_va = FIRST_VA + offset as u64 * PAGE;
        let entries = Granule::K4.entries();
        let mut batches = Vec::new();
        let mut page = 0;
        for folio in &frames.folios {
            let end = page + folio.frames() as usize;
            while page < end {
                let nr = (end - page).min(entries - (page + offset) % entries);
                batches.push(Batch { va: VirtAddr::new(first_va + page as u64 * PAGE), page, nr });
                page += nr;
            }
        }
        let folds = offset.is_multiple_of(cont_ptes::<Memory>())
            && frames.folios[0].frames() as usize >= cont_ptes::<Memory>();
        Self { mm, tables, first_va, batches, folds }
    }

    /// Calls `change` with every batch, and the lock of its table, which `lock` takes once for all that it has.
    #[inline(always)]
    fn each<'a>(
        &'a self,
        lock: impl Fn(VirtAddr) -> PteGuard<'a, 'static, Memory>,
        mut change: impl FnMut(&mut PteGuard<'a, 'static, Memory>, &Batch),
    ) {
        let table = |batch: &Batch| batch.va.get() >> Granule::K4.level_shift(2);
        for batches in self.batches.chunk_by(|one, next| table(one) == table(next)) {
            let mut guard = lock(batches[0].va);
            for batch in batches {
                change(&mut guard, batch);
            }
        }
    }

    fn lock(&self, va: VirtAddr) -> PteGuard<'_, 'static, Memory> {
        self.mm.lock_present_table(va).expect("a table")
    }
}

impl Subject for Pleat {
    fn map(&mut self) {
        let lock = |va| self.mm.lock_table(va, &self.tables).expect("a table");
        self.each(lock, |guard, batch| {
            set_ptes(guard, batch.va, descriptor(batch.page, UserProt::ReadWrite), batch.nr);
        });
    }

    fn protect(&mut self) {
        self.each(
            |va| self.lock(va),
            |guard, batch| {
                let (mut va, mut left) = (batch.va, batch.nr);
                while left > 0 {
                    let nr = pte_batch(guard, va, left);
                    let pte = modify_prot_start(guard, va, nr);
                    modify_prot_commit(guard, va, pte.with_prot(UserProt::Read), nr);
                    va = VirtAddr::new(va.get() + nr as u64 * PAGE);
                    left -= nr;
                }
            },
        );
    }

    fn write_protect(&mut self) {
        self.each(|va| self.lock(va), |guard, batch| wrprotect_ptes(guard, batch.va, batch.nr));
    }

    fn unmap(&mut self) {
        self.each(
            |va| self.lock(va),
            |guard, batch| {
                // Which folio it was, and whether it was written, is what a kernel goes on with.
                black_box(get_and_clear_ptes(guard, batch.va, batch.nr));
            },
        );
    }

    fn free_tables(self: Box<Self>) {
        let Self { tables, .. } = *self;
        // SAFETY: the mm, which alone used them, went with `self`.
        unsafe { tables.free() };
    }

    fn pages(&self, visit: &mut dyn FnMut(usize, PteValue)) {
        let _: ControlFlow<()> = self.mm.walk(VirtAddr::new(self.first_va), PAGES as u64 * PAGE, |leaf| {
            visit(((leaf.va.get() - self.first_va) / PAGE) as usize, leaf.pte);
            ControlFlow::Continue(())
        });
    }

    fn folds(&self) -> bool {
        self.folds
    }
}
