// A machine for tests of entries: tables in host memory, and what it is told judged by what a TLB may hold (`tlb.rs`).
//
// Also included into the examples of the documentation; so without inner attributes.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use arch::granule::LAST_LEVEL;
use arch::mmu::{Features, Hafdbs, Slot};
use arch::tlbi::{Asid, Space, Tlbi};
use arch::{Entry, Granule, Mmu, Pfn, PhysAddr, PteFlags, PteValue, Table, TableFrame, VirtAddr};
use pleat_mm::asid::AsidAllocator;
use pleat_mm::frame::{Folio, Frame, FrameMap, Zone};
use pleat_mm::pte::{Pte, UserProt};
use pleat_mm::ptep::{modify_prot_commit, modify_prot_start, ptep_get, ptep_set_access_flags, set_ptes};
use pleat_mm::{Mm, PteGuard, TableAlloc};

use self::tlb::{Event, Tlb};

/// A granule as a type.
pub trait GranuleType: 'static {
    const GRANULE: Granule;
}

pub struct K4;
pub struct K16;
pub struct K64;

impl GranuleType for K4 {
    const GRANULE: Granule = Granule::K4;
}
impl GranuleType for K16 {
    const GRANULE: Granule = Granule::K16;
}
impl GranuleType for K64 {
    const GRANULE: Granule = Granule::K64;
}

/// The tables, by address. What it is told is counted, and if wanted, recorded and judged.
pub struct Plain<G> {
    tables: Mutex<BTreeMap<u64, &'static [Slot]>>,
    pub features: Features,
    pub invalidations: AtomicU64,
    tlb: Option<Mutex<Tlb>>,
    granule: PhantomData<fn() -> G>,
}

impl<G: GranuleType> Plain<G> {
    pub fn new(hafdbs: Hafdbs, tlb_range: bool, bbm_no_abort: bool) -> Self {
        Self::with_tlb(Features { tlb_range, hafdbs, bbm_no_abort }, None)
    }

    /// One that records and judges what is done to its only last-level table.
    pub fn judging(features: Features, space: Space) -> Self {
        Self::with_tlb(features, Some(Mutex::new(Tlb::new(G::GRANULE, features, space))))
    }

    fn with_tlb(features: Features, tlb: Option<Mutex<Tlb>>) -> Self {
        Self {
            tables: Mutex::default(),
            features,
            invalidations: AtomicU64::new(0),
            tlb,
            granule: PhantomData,
        }
    }

    /// What was recorded and judged.
    ///
    /// # Panics
    /// Where it does neither.
    pub fn tlb(&self) -> std::sync::MutexGuard<'_, Tlb> {
        self.tlb
            .as_ref()
            .expect("a machine that judges")
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn tell(&self, event: Event) {
        if self.tlb.is_some() {
            self.tlb().observe(event);
        }
    }

    /// A store to a slot of the last-level table.
    fn stored(&self, slot: &Slot, old: u64, new: u64, atomic: bool) {
        if self.tlb.is_none() {
            return;
        }
        let tables = self.tables.lock().unwrap();
        let mut tlb = self.tlb();
        let Some(frame) = tlb.table else { return };
        let slots = tables[&frame].as_ptr_range();
        if slots.contains(&std::ptr::from_ref(slot)) {
            let index = (std::ptr::from_ref(slot).addr() - slots.start.addr()) / size_of::<Slot>();
            tlb.observe(Event::Store { index, old, new, atomic });
        }
    }

    /// Hardware replaces an entry of the last-level table, as it may for access flag and dirty state.
    pub fn hardware_sets(&self, index: usize, change: impl FnOnce(u64) -> u64) {
        let tables = self.tables.lock().unwrap();
        let mut tlb = self.tlb();
        let slot = &tables[&tlb.table.expect("a last-level table")][index];
        let new = change(slot.load());
        // SAFETY: of a leaf, only access flag and dirty state change.
        unsafe { slot.store(new) };
        tlb.hardware_set(index, new);
    }
}

impl<G: GranuleType> TableAlloc for Plain<G> {
    fn alloc_table(&self, level: u8) -> Option<TableFrame> {
        let mut tables = self.tables.lock().unwrap();
        let pa = 0x8000_0000 + tables.len() as u64 * G::GRANULE.page_size();
        let slots: Vec<Slot> = (0..G::GRANULE.entries()).map(|_| Slot::new()).collect();
        tables.insert(pa, slots.leak());
        if level == LAST_LEVEL && self.tlb.is_some() {
            let other = self.tlb().table.replace(pa);
            assert!(other.is_none(), "only one last-level table is judged");
        }
        // SAFETY: a zeroed table of its own, which lives for ever, and which `slots` finds.
        Some(unsafe { TableFrame::new(PhysAddr::new(pa), level) })
    }
}

// SAFETY: each frame has slots of its own, which never move.
unsafe impl<G: GranuleType> Mmu for &Plain<G> {
    const GRANULE: Granule = G::GRANULE;

    fn slots(&self, frame: TableFrame) -> &[Slot] {
        self.tables.lock().unwrap()[&frame.pa().get()]
    }

    unsafe fn store(&self, slot: &Slot, raw: u64) {
        let old = slot.load();
        // SAFETY: the caller keeps the contract.
        unsafe { slot.store(raw) };
        self.stored(slot, old, raw, false);
    }

    unsafe fn swap(&self, slot: &Slot, raw: u64) -> u64 {
        // SAFETY: the caller keeps the contract.
        let old = unsafe { slot.swap(raw) };
        self.stored(slot, old, raw, true);
        old
    }

    unsafe fn compare_exchange(&self, slot: &Slot, current: u64, new: u64) -> Result<(), u64> {
        // SAFETY: the caller keeps the contract.
        unsafe { slot.compare_exchange(current, new) }?;
        self.stored(slot, current, new, true);
        Ok(())
    }

    fn features(&self) -> Features {
        self.features
    }

    fn publish(&self) {
        self.tell(Event::Publish);
    }

    fn invalidate(&self, operation: Tlbi) {
        self.invalidations.fetch_add(1, Ordering::Relaxed);
        self.tell(Event::Invalidate(operation));
    }

    fn invalidate_local(&self, operation: Tlbi) {
        self.tell(Event::InvalidateLocal(operation));
    }

    fn complete(&self) {
        self.tell(Event::Complete);
    }
}

/// An address space on a machine that judges, and frames for it. For ever: a test ends soon.
pub struct World<G: GranuleType> {
    pub mm: &'static Mm<'static, &'static Plain<G>>,
    pub frames: &'static FrameMap<'static>,
    pub plain: &'static Plain<G>,
    /// The first address of the table that its methods use.
    pub base: u64,
}

/// Without anything that a CPU may lack.
pub const CORTEX_A72: Features = Features { tlb_range: false, hafdbs: Hafdbs::None, bbm_no_abort: false };
/// Hardware sets access flag and dirty state, and invalidates ranges.
pub const AF_DBM: Features = Features { tlb_range: true, hafdbs: Hafdbs::AfDbm, bbm_no_abort: false };

pub const RDONLY: u64 = PteFlags::RDONLY.bits();
pub const AF: u64 = PteFlags::AF.bits();

/// The first that is assigned.
pub const ASID: Asid = Asid::new(2);

impl<G: GranuleType> Default for World<G> {
    fn default() -> Self {
        Self::user(CORTEX_A72)
    }
}

impl<G: GranuleType> World<G> {
    pub fn user(features: Features) -> Self {
        Self::user_on(Plain::judging(features, Space::Asid(ASID)))
    }

    /// One of which nothing is recorded or judged, so that it may have several last-level tables.
    pub fn unjudged() -> Self {
        Self::user_on(Plain::new(Hafdbs::None, false, false))
    }

    fn user_on(plain: Plain<G>) -> Self {
        let frames = frames();
        Self::new(plain, frames, 0x40_0000_0000, |plain, root| {
            let mm = Mm::new_user(plain, root, frames);
            // Else no TLB would hold anything of it.
            let asids = AsidAllocator::<1>::new(8, vec![0].leak());
            assert_eq!(asids.switch_to(&plain, 0, mm.context().expect("a user's")), ASID);
            &*Box::leak(Box::new(mm))
        })
    }

    pub fn kernel(features: Features) -> Self {
        let make = |plain, root| &*Box::leak(Box::new(Mm::new_kernel(plain, root)));
        Self::new(Plain::judging(features, Space::All), frames(), 0xffff_8000_0000_0000, make)
    }

    /// The firmware's, with its locks broken.
    #[cfg(feature = "fault-injection")]
    pub fn efi(features: Features) -> Self {
        let asid = pleat_mm::asid::EFI_ASID;
        let make = |plain, root| {
            let efi_mm: &'static _ = Box::leak(Box::new(pleat_mm::EfiMm::new(plain, root, asid)));
            efi_mm.unprotected()
        };
        Self::new(Plain::judging(features, Space::Asid(asid)), frames(), 0x40_0000_0000, make)
    }

    fn new(
        plain: Plain<G>,
        frames: &'static FrameMap<'static>,
        base: u64,
        make: impl FnOnce(&'static Plain<G>, TableFrame) -> &'static Mm<'static, &'static Plain<G>>,
    ) -> Self {
        let plain: &'static Plain<G> = Box::leak(Box::new(plain));
        let root = plain.alloc_table(G::GRANULE.start_level(48)).unwrap();
        Self { mm: make(plain, root), frames, plain, base }
    }

    /// Pages of a block.
    pub fn block(&self) -> usize {
        G::GRANULE.cont_entries(LAST_LEVEL)
    }

    pub fn va(&self, page: usize) -> VirtAddr {
        VirtAddr::new(self.base + page as u64 * G::GRANULE.page_size())
    }

    pub fn lock(&self) -> PteGuard<'static, 'static, &'static Plain<G>> {
        self.mm.lock_table(self.va(0), self.plain).unwrap()
    }

    /// A folio of this many pages, which stays allocated whoever drops it.
    pub fn folio(&self, pages: usize) -> Folio<'static> {
        let folio = self.frames.alloc(pages.ilog2() as u8).unwrap();
        let _ = folio.clone().into_raw();
        folio
    }

    /// The entry for a page of a folio, young and clean.
    pub fn pte(&self, folio: &Folio<'_>, page: usize, prot: UserProt) -> PteValue {
        PteValue::new_user(folio.head().add(page as u64).addr(G::GRANULE), prot)
    }

    /// Maps pages of a new folio, folded where they fill blocks. Nothing is recorded of it.
    pub fn map(&self, page: usize, nr: usize, prot: UserProt) -> Folio<'static> {
        let folio = self.folio(nr.next_power_of_two());
        set_ptes(&mut self.lock(), self.va(page), self.pte(&folio, 0, prot), nr);
        self.plain.tlb().events.clear();
        folio
    }

    /// Entry `index` of the table, as it is.
    pub fn raw(&self, index: usize) -> PteValue {
        // SAFETY: the root that the mm was made with.
        let root = unsafe { TableFrame::new(self.mm.root(), G::GRANULE.start_level(48)) };
        let mut table = Table::new(self.mm.mmu(), root);
        while table.level() != LAST_LEVEL {
            let Entry::Table(child) = table.entry(G::GRANULE.index(self.base, table.level())) else {
                panic!("no table")
            };
            table = Table::new(self.mm.mmu(), child);
        }
        table.leaf(index)
    }

    /// Whether all of these entries are folded.
    ///
    /// # Panics
    /// Where only some are.
    pub fn folded(&self, mut pages: std::ops::Range<usize>) -> bool {
        let count = pages.clone().filter(|&page| self.raw(page).is_folded()).count();
        assert!(count == 0 || count == pages.len(), "{count} of {pages:?} are folded");
        pages.next().is_some() && count != 0
    }

    /// A write by EL0 to a page, through its own entry. Returns the faults that it took.
    pub fn write(&self, page: usize) -> usize {
        let by_hardware = self.plain.features.hafdbs == Hafdbs::AfDbm;
        for faults in 0..3 {
            let raw = self.raw(page);
            assert!(raw.is_valid() && raw.is_writable(), "page {page} may not be written: {raw:?}");
            if by_hardware {
                self.plain.hardware_sets(page, |raw| raw & !RDONLY | AF);
                return faults;
            }
            if raw.is_young() && raw.raw() & RDONLY == 0 {
                return faults;
            }
            let mut guard = self.lock();
            let request = ptep_get(&guard, self.va(page)).mkyoung().mkdirty();
            ptep_set_access_flags(&mut guard, self.va(page), request);
        }
        panic!("the fault at page {page} comes again and again")
    }

    /// Changes the permission of pages as one batch. Returns the first as it was.
    pub fn protect(&self, page: usize, nr: usize, prot: UserProt) -> PteValue {
        let mut guard = self.lock();
        let old = modify_prot_start(&mut guard, self.va(page), nr);
        modify_prot_commit(&mut guard, self.va(page), old.with_prot(prot), nr);
        old
    }

    /// What was issued since it was last asked.
    pub fn maintenance(&self) -> String {
        self.plain.tlb().take_maintenance()
    }

    /// Nothing is wrong, and nothing is held that differs from memory. Only where nothing is owed.
    #[track_caller]
    pub fn check(&self) {
        let violations = self.plain.tlb().violations();
        assert!(violations.is_empty(), "{violations:#?}");
    }
}

/// How [`World::maintenance`] tells the invalidation of these pages on such a CPU, with what comes before it.
pub fn flush(features: Features, pages: std::ops::Range<usize>) -> String {
    let (start, end) = (pages.start, pages.end);
    let words = if !features.tlb_range || pages.len() == 1 {
        format!("pages({start}..{end})")
    } else if pages.len().is_multiple_of(2) {
        format!("range({start}..{end})")
    } else {
        format!("range({start}..{}) pages({}..{end})", end - 1, end - 1)
    };
    format!("publish {words}")
}

/// 64 MiB or more of free memory.
pub fn frames() -> &'static FrameMap<'static> {
    let records: &'static [Frame] = (0..2048).map(|_| Frame::new()).collect::<Vec<_>>().leak();
    let zones: &'static [Zone<'static>] = vec![Zone::new(Pfn::new(0x1000), records)].leak();
    let frames: &'static FrameMap<'static> = Box::leak(Box::new(FrameMap::new(zones, None)));
    frames.release(zones[0].range());
    frames
}

pub mod tlb {
    include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/tlb.rs"));
}
