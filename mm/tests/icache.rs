//! The instruction cache duty: maintenance before a user may execute what was written, and no more often.

mod common;

use std::sync::Mutex;

use arch::mmu::{Features, Hafdbs, Slot};
use arch::tlbi::Tlbi;
use arch::{Granule, MemoryType, Mmu, Pfn, PhysAddr, PteFlags, PteValue, TableFrame, VirtAddr};
use common::{GranuleType, K4, K16, K64, Plain, frames};
use pleat_mm::frame::{Folio, FrameMap};
use pleat_mm::pte::{Pte, UserProt};
use pleat_mm::ptep::{get_and_clear_ptes, modify_prot_commit, modify_prot_start, set_pte, set_ptes};
use pleat_mm::{Mm, TableAlloc, contpte};

const VA: u64 = 0x40_0000_0000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Event {
    /// The maintenance of these bytes is complete.
    Fetchable(PhysAddr, u64),
    /// An entry that EL0 may execute became valid.
    Executable(PhysAddr),
}
use Event::*;

type Hook = Box<dyn FnOnce() + Send>;

/// Records maintenance and stores, in their order.
struct Recorder<G: 'static> {
    plain: &'static Plain<G>,
    events: Mutex<Vec<Event>>,
    /// What happens during the next maintenance.
    meanwhile: Mutex<Option<Hook>>,
}

impl<G: GranuleType> Recorder<G> {
    fn new() -> &'static Self {
        let plain = Box::leak(Box::new(Plain::new(Hafdbs::None, false, false)));
        Box::leak(Box::new(Self { plain, events: Mutex::default(), meanwhile: Mutex::default() }))
    }

    fn user(&'static self, frames: &'static FrameMap<'static>) -> Mm<'static, &'static Self> {
        let root = self.plain.alloc_table(G::GRANULE.start_level(48)).unwrap();
        Mm::new_user(self, root, frames)
    }

    /// What happened since this was last asked.
    fn events(&self) -> Vec<Event> {
        std::mem::take(&mut self.events.lock().unwrap())
    }
}

// SAFETY: the slots are those of `Plain`, which keeps the contract.
unsafe impl<G: GranuleType> Mmu for &Recorder<G> {
    const GRANULE: Granule = G::GRANULE;

    fn slots(&self, frame: TableFrame) -> &[Slot] {
        self.plain.slots(frame)
    }

    unsafe fn store(&self, slot: &Slot, raw: u64) {
        let flags = PteFlags::from_bits_truncate(raw);
        // Tables have neither flag.
        if flags.contains(PteFlags::VALID | PteFlags::USER) && !flags.contains(PteFlags::UXN) {
            let pa = PhysAddr::new(raw & 0xffff_ffff_f000);
            self.events.lock().unwrap().push(Executable(pa));
        }
        // SAFETY: the caller keeps the contract.
        unsafe { slot.store(raw) };
    }

    fn features(&self) -> Features {
        self.plain.features
    }

    fn publish(&self) {}

    fn invalidate(&self, _: Tlbi) {}

    fn invalidate_local(&self, _: Tlbi) {}

    fn complete(&self) {}

    fn sync_icache(&self, start: PhysAddr, size: u64) {
        let hook = self.meanwhile.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
        self.events.lock().unwrap().push(Fetchable(start, size));
    }
}

/// Maps page `page` of a folio, at the same page of the address space.
fn map<G: GranuleType>(mm: &Mm<'static, &'static Recorder<G>>, folio: &Folio<'_>, page: u64, prot: UserProt) {
    let plain = mm.mmu().plain;
    let va = VirtAddr::new(VA + page * G::GRANULE.page_size());
    set_ptes(&mut mm.lock_table(va, plain).unwrap(), va, pte::<G>(folio, page, prot), 1);
}

fn pte<G: GranuleType>(folio: &Folio<'_>, page: u64, prot: UserProt) -> PteValue {
    PteValue::new_user(pa::<G>(folio, page), prot)
}

fn pa<G: GranuleType>(folio: &Folio<'_>, page: u64) -> PhysAddr {
    folio.head().add(page).addr(G::GRANULE)
}

/// The maintenance of all of a folio.
fn all<G: GranuleType>(folio: &Folio<'_>) -> Event {
    Fetchable(pa::<G>(folio, 0), folio.frames() * G::GRANULE.page_size())
}

fn once_per_folio<G: GranuleType>(bytes: u64) {
    let (recorder, frames) = (Recorder::<G>::new(), frames());
    let mms = [(); 3].map(|()| recorder.user(frames));
    let folio = frames.alloc(4).unwrap();
    assert_eq!(all::<G>(&folio), Fetchable(pa::<G>(&folio, 0), bytes));
    map(&mms[0], &folio, 3, UserProt::ReadExecute);
    assert_eq!(recorder.events(), [all::<G>(&folio), Executable(pa::<G>(&folio, 3))], "before the store");
    // Other pages of it, the same one again, and in another address space.
    for (mm, page) in [(0, 4), (0, 3), (1, 3), (1, 0)] {
        map(&mms[mm], &folio, page, UserProt::ReadExecute);
        assert_eq!(recorder.events(), [Executable(pa::<G>(&folio, page))]);
    }
    let other = frames.alloc(0).unwrap();
    map(&mms[2], &other, 0, UserProt::ReadWriteExecute);
    assert_eq!(recorder.events(), [all::<G>(&other), Executable(pa::<G>(&other, 0))]);
}

#[test]
fn the_whole_folio_once_before_the_store_4k() {
    once_per_folio::<K4>(64 << 10);
}

#[test]
fn the_whole_folio_once_before_the_store_16k() {
    once_per_folio::<K16>(256 << 10);
}

#[test]
fn the_whole_folio_once_before_the_store_64k() {
    once_per_folio::<K64>(1 << 20);
}

#[test]
fn again_after_it_was_written() {
    let (recorder, frames) = (Recorder::<K4>::new(), frames());
    let (mm, folio) = (recorder.user(frames), frames.alloc(2).unwrap());
    for _ in 0..3 {
        map(&mm, &folio, 0, UserProt::ReadExecute);
        map(&mm, &folio, 1, UserProt::ReadExecute);
        let stores = [0, 1].map(|page| Executable(pa::<K4>(&folio, page)));
        assert_eq!(recorder.events(), [all::<K4>(&folio), stores[0], stores[1]]);
        folio.mark_written();
    }
}

#[test]
fn again_after_it_was_freed_and_allocated() {
    let (recorder, frames) = (Recorder::<K4>::new(), frames());
    let mm = recorder.user(frames);
    let mut head = None;
    for _ in 0..2 {
        let folio = frames.alloc(2).unwrap();
        assert_eq!(*head.get_or_insert(folio.head()), folio.head(), "the same frames");
        map(&mm, &folio, 0, UserProt::ReadExecute);
        assert_eq!(recorder.events(), [all::<K4>(&folio), Executable(pa::<K4>(&folio, 0))]);
        let va = VirtAddr::new(VA);
        get_and_clear_ptes(&mut mm.lock_present_table(va).unwrap(), va, 1);
    }
}

#[test]
fn a_write_during_the_maintenance_is_not_forgotten() {
    let (recorder, frames) = (Recorder::<K4>::new(), frames());
    let mm = recorder.user(frames);
    let folio = frames.alloc(0).unwrap();
    let written = folio.clone();
    *recorder.meanwhile.lock().unwrap() = Some(Box::new(move || written.mark_written()));
    for _ in 0..2 {
        map(&mm, &folio, 0, UserProt::ReadExecute);
        assert_eq!(recorder.events(), [all::<K4>(&folio), Executable(pa::<K4>(&folio, 0))]);
    }
    map(&mm, &folio, 0, UserProt::ReadExecute);
    assert_eq!(recorder.events(), [Executable(pa::<K4>(&folio, 0))]);
}

#[test]
fn who_maps_it_during_the_maintenance_of_another_cpu_does_not_rely_on_that() {
    let (recorder, frames) = (Recorder::<K4>::new(), frames());
    let (mm, other) = (recorder.user(frames), recorder.user(frames));
    let folio = frames.alloc(1).unwrap();
    let second = folio.clone();
    *recorder.meanwhile.lock().unwrap() =
        Some(Box::new(move || map(&other, &second, 1, UserProt::ReadExecute)));
    map(&mm, &folio, 0, UserProt::ReadExecute);
    let stores = [0, 1].map(|page| Executable(pa::<K4>(&folio, page)));
    assert_eq!(recorder.events(), [all::<K4>(&folio), stores[1], all::<K4>(&folio), stores[0]]);
}

#[test]
fn a_batch_before_its_first_store_and_by_index_too() {
    let (recorder, frames) = (Recorder::<K4>::new(), frames());
    let (mm, folio) = (recorder.user(frames), frames.alloc(5).unwrap());
    let va = VirtAddr::new(VA);
    let mut guard = mm.lock_table(va, recorder.plain).unwrap();
    set_ptes(&mut guard, va, pte::<K4>(&folio, 0, UserProt::ReadExecute), 20);
    let events = recorder.events();
    assert_eq!(events[0], all::<K4>(&folio));
    assert_eq!(events[1..], (0..20).map(|page| Executable(pa::<K4>(&folio, page))).collect::<Vec<_>>());
    // A conversion is no new mapping.
    set_ptes(&mut guard, va, pte::<K4>(&folio, 0, UserProt::Read), 1);
    assert!(recorder.events().iter().all(|event| matches!(event, Executable(_))));
    folio.mark_written();
    set_pte(&mut guard, 40, pte::<K4>(&folio, 8, UserProt::ReadExecute)).unwrap();
    assert_eq!(recorder.events(), [all::<K4>(&folio), Executable(pa::<K4>(&folio, 8))]);
}

#[test]
fn nothing_for_what_no_user_executes() {
    let (recorder, frames) = (Recorder::<K4>::new(), frames());
    let (mm, folio) = (recorder.user(frames), frames.alloc(4).unwrap());
    let va = VirtAddr::new(VA);
    let mut guard = mm.lock_table(va, recorder.plain).unwrap();
    for prot in [UserProt::Read, UserProt::ReadWrite] {
        set_ptes(&mut guard, va, pte::<K4>(&folio, 0, prot), 1);
        get_and_clear_ptes(&mut guard, va, 1);
        set_ptes(&mut guard, va, pte::<K4>(&folio, 0, prot), 16);
        get_and_clear_ptes(&mut guard, va, 16);
    }
    // An entry that is not valid may have any bits.
    let invalid = pte::<K4>(&folio, 0, UserProt::ReadExecute).without(PteFlags::VALID);
    set_ptes(&mut guard, va, invalid, 1);
    assert_eq!(recorder.events(), []);
    // Memory without a folio: whoever maps it knows what was written.
    set_ptes(&mut guard, va, pte::<K4>(&folio, 0, UserProt::ReadExecute).mkspecial(), 1);
    assert_eq!(recorder.events(), [Executable(pa::<K4>(&folio, 0))]);
    let elsewhere = Pfn::new(0x10).addr(Granule::K4);
    let va = VirtAddr::new(VA + 0x5000);
    set_ptes(&mut guard, va, PteValue::new_user(elsewhere, UserProt::ReadExecute), 1);
    assert_eq!(recorder.events(), [Executable(elsewhere)]);
}

#[test]
fn nothing_for_the_kernel() {
    let recorder = Recorder::<K4>::new();
    let root = recorder.plain.alloc_table(0).unwrap();
    let mm = Mm::new_kernel(recorder, root);
    let va = VirtAddr::new(0xffff_8000_0000_0000);
    let text = PteValue::leaf(
        Pfn::new(0x1000).addr(Granule::K4),
        MemoryType::Normal,
        PteFlags::AF | PteFlags::INNER_SHAREABLE | PteFlags::RDONLY,
    );
    set_ptes(&mut mm.lock_table(va, recorder.plain).unwrap(), va, text, 1);
    assert_eq!(recorder.events(), []);
}

/// A page that a user wrote, and then makes executable: the dirty state tells.
#[test]
fn what_a_user_wrote_before_it_became_executable() {
    let (recorder, frames) = (Recorder::<K4>::new(), frames());
    let (mm, folio) = (recorder.user(frames), frames.alloc(4).unwrap());
    let va = VirtAddr::new(VA);
    let protect = |pages, prot| {
        let mut guard = mm.lock_present_table(va).unwrap();
        let old = modify_prot_start(&mut guard, va, pages);
        modify_prot_commit(&mut guard, va, old.with_prot(prot), pages);
    };
    map(&mm, &folio, 0, UserProt::ReadExecute);
    assert_eq!(recorder.events().len(), 2);
    protect(1, UserProt::ReadWrite);
    protect(1, UserProt::ReadExecute);
    assert_eq!(recorder.events(), [Executable(pa::<K4>(&folio, 0))], "it was not written");
    let mut guard = mm.lock_present_table(va).unwrap();
    let written = pte::<K4>(&folio, 0, UserProt::ReadWrite).mkdirty();
    set_ptes(&mut guard, va, written, 1);
    drop(guard);
    assert_eq!(recorder.events(), []);
    protect(1, UserProt::ReadExecute);
    assert_eq!(recorder.events(), [all::<K4>(&folio), Executable(pa::<K4>(&folio, 0))]);
    assert_eq!(contpte::why_not_folded(&mm, va), Err(contpte::Obstacle::Hole(VirtAddr::new(VA + 0x1000))));
}
