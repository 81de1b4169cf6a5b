//! By which ASID an [`Mm`] flushes its entries.

use std::collections::BTreeMap;
use std::sync::Mutex;

use arch::mmu::{Features, Hafdbs, Slot};
use arch::tlbi::{Asid, Space, Tlbi};
use arch::{Granule, Mmu, Pfn, PhysAddr, PteValue, TableFrame, VirtAddr};
use pleat_mm::asid::AsidAllocator;
use pleat_mm::frame::{Frame, FrameMap, Zone};
use pleat_mm::pte::{Pte, UserProt};
use pleat_mm::ptep::{clear_ptes, set_ptes};
use pleat_mm::{Mm, TableAlloc};

type Hook = Box<dyn FnOnce()>;

/// Tables, and the operations that were issued.
#[derive(Default)]
struct Tables {
    slots: Mutex<BTreeMap<u64, &'static [Slot]>>,
    issued: Mutex<Vec<Tlbi>>,
    /// What another CPU does when stores have become visible, once.
    published: Mutex<Option<Hook>>,
}

impl TableAlloc for Tables {
    fn alloc_table(&self, level: u8) -> Option<TableFrame> {
        let mut tables = self.slots.lock().unwrap();
        let pa = 0x8000_0000 + tables.len() as u64 * 0x1000;
        let slots: Vec<Slot> = (0..512).map(|_| Slot::new()).collect();
        tables.insert(pa, slots.leak());
        // SAFETY: a zeroed table of its own, which lives for ever, and which `slots` finds.
        Some(unsafe { TableFrame::new(PhysAddr::new(pa), level) })
    }
}

// SAFETY: each frame has slots of its own, which never move.
unsafe impl Mmu for &'static Tables {
    const GRANULE: Granule = Granule::K4;

    fn slots(&self, frame: TableFrame) -> &[Slot] {
        self.slots.lock().unwrap()[&frame.pa().get()]
    }

    fn features(&self) -> Features {
        Features { tlb_range: false, hafdbs: Hafdbs::None, bbm_no_abort: false }
    }

    fn publish(&self) {
        let hook = self.published.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
    }

    fn invalidate(&self, operation: Tlbi) {
        self.issued.lock().unwrap().push(operation);
    }

    fn complete(&self) {}

    fn invalidate_local(&self, operation: Tlbi) {
        unreachable!("{operation} on one CPU");
    }
}

struct World {
    tables: &'static Tables,
    asids: AsidAllocator<'static, 2>,
    mms: Vec<Mm<'static, &'static Tables>>,
}

impl World {
    /// Of 4 ASIDs, two are assigned.
    fn new(mms: usize) -> &'static Self {
        let records: &'static [Frame] = vec![Frame::new(), Frame::new()].leak();
        let zones: &'static [Zone<'static>] = vec![Zone::new(Pfn::new(0x1000), records)].leak();
        let frames: &'static FrameMap<'static> = Box::leak(Box::new(FrameMap::new(zones, None)));
        let tables: &'static Tables = Box::leak(Box::default());
        let mms = (0..mms).map(|_| Mm::new_user(tables, tables.alloc_table(0).unwrap(), frames)).collect();
        Box::leak(Box::new(Self { tables, asids: AsidAllocator::new(4, vec![0].leak()), mms }))
    }

    fn switch_to(&self, cpu: usize, mm: usize) -> Asid {
        self.asids.switch_to(&self.tables, cpu, self.mms[mm].context().unwrap())
    }

    /// Maps a page and unmaps it; the address spaces of what was flushed.
    fn flushes(&self, mm: usize) -> Vec<Space> {
        let va = VirtAddr::new(0x40_0000);
        let mut guard = self.mms[mm].lock_table(va, self.tables).unwrap();
        set_ptes(&mut guard, va, PteValue::new_user(PhysAddr::new(0x1000), UserProt::Read).mkspecial(), 1);
        // The tables that were made are published, and no flush is owed yet.
        self.tables.issued.lock().unwrap().clear();
        clear_ptes(&mut guard, va, 1);
        drop(guard);
        let issued = std::mem::take(&mut *self.tables.issued.lock().unwrap());
        issued
            .into_iter()
            .map(|operation| match operation {
                Tlbi::Page { space, .. } => space,
                other => panic!("{other} for a page"),
            })
            .collect()
    }
}

#[test]
fn an_mm_flushes_by_the_asid_that_it_has_and_not_at_all_without_one() {
    let world = World::new(3);
    assert_eq!(world.flushes(0), [], "it never ran");
    assert_eq!((world.switch_to(0, 0), world.switch_to(0, 1)), (Asid::new(2), Asid::new(3)));
    assert_eq!(world.flushes(0), [Space::Asid(Asid::new(2))]);
    // A rollover; mm 1 runs and keeps its own, mm 0 gets what mm 2 had in the meantime.
    assert_eq!(world.switch_to(1, 2), Asid::new(2));
    assert_eq!(world.asids.generation(), 2);
    assert_eq!(world.flushes(1), [Space::Asid(Asid::new(3))]);
    assert_eq!(world.switch_to(1, 0), Asid::new(2));
    assert_eq!(world.flushes(0), [Space::Asid(Asid::new(2))]);
    world.asids.leave(1);
    world.asids.release(&world.tables, world.mms[0].context().unwrap());
    assert_eq!(world.flushes(0), [], "released");
}

/// The other CPU may walk the old descriptors only if it got its ASID before they were changed.
#[test]
fn the_asid_is_read_after_the_change_is_published() {
    let world = World::new(1);
    let va = VirtAddr::new(0x40_0000);
    let mut guard = world.mms[0].lock_table(va, world.tables).unwrap();
    set_ptes(&mut guard, va, PteValue::new_user(PhysAddr::new(0x1000), UserProt::Read).mkspecial(), 1);
    clear_ptes(&mut guard, va, 1);
    *world.tables.published.lock().unwrap() = Some(Box::new(|| {
        assert_eq!(world.switch_to(1, 0), Asid::new(2));
    }));
    drop(guard);
    let issued = world.tables.issued.lock().unwrap();
    let by = issued.iter().map(|operation| match operation {
        Tlbi::Page { space, .. } => *space,
        other => panic!("{other} for a page"),
    });
    assert_eq!(by.collect::<Vec<_>>(), [Space::Asid(Asid::new(2))]);
}

#[test]
fn the_kernel_has_no_context() {
    let tables: &'static Tables = Box::leak(Box::default());
    assert!(Mm::new_kernel(tables, tables.alloc_table(0).unwrap()).context().is_none());
}
