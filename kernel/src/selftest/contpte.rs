//! Folded blocks on the real MMU: a user's address space in TTBR0, its memory used through the mapping while it is folded,
//! unfolded and protected, by one CPU and by two at once.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arch::aarch64::hardware::{Hardware, LinearMap, linear};
use arch::aarch64::probe::{self, Fault};
use arch::tlbi::Tlbi;
use arch::{Mmu, PteValue, VirtAddr};
use mm::contpte::{refold, why_not_folded};
use mm::counters::Counter;
use mm::frame::Folio;
use mm::pte::{Pte, UserProt};
use mm::ptep::{
    clear_ptes, modify_prot_commit, modify_prot_start, ptep_get, ptep_get_and_clear, ptep_set_access_flags,
    set_ptes, wrprotect_ptes,
};
use mm::{Mm, TableAlloc};

use super::harness::{Context, TestResult, Unmet, check};
use super::mapping::Scratch;
use crate::user::{self, Loaded, UserMm};
use crate::vm::{GRANULE, PAGE};
use crate::{cpu, memory, smp, timer};

/// Where the block is mapped, and its pages.
const BASE: u64 = 0x40_0000;
const PAGES: usize = 16;
const ORDER: u8 = 4;

fn va(page: usize) -> VirtAddr {
    VirtAddr::new(BASE + page as u64 * PAGE)
}

/// A user's address space with a folio of one block, which is not mapped yet.
struct World {
    mm: Arc<UserMm>,
    folio: Folio<'static>,
    /// Dropped last: it gives the tables back.
    tables: Scratch,
}

impl World {
    fn new() -> Self {
        let tables = Scratch::new();
        let root = tables.alloc_table(0).expect("there is memory for a root table");
        let folio = memory::frames().alloc(ORDER).expect("there is memory for a block");
        // SAFETY: its tables are pages of the allocator, which are in the linear map.
        let hardware = Hardware(unsafe { LinearMap::new() });
        Self { mm: Arc::new(Mm::new_user(hardware, root, memory::frames())), folio, tables }
    }

    fn pte(&self, page: usize, prot: UserProt) -> PteValue {
        PteValue::new_user(self.folio.head().add(page as u64).addr(GRANULE), prot)
    }

    /// What is in memory at the beginning of a page, by the linear map.
    fn in_memory(&self, page: usize) -> u8 {
        let address = linear(self.folio.head().add(page as u64).addr(GRANULE)).get() as *const u8;
        // SAFETY: the folio is this world's, and its bytes are written by probes only.
        unsafe { address.read_volatile() }
    }

    fn expect_folded(&self, expected: bool) -> TestResult {
        match (why_not_folded(&self.mm, va(0)), expected) {
            (Ok(()), true) | (Err(_), false) => Ok(()),
            (Ok(()), false) => Err(Unmet::Failed("the block is still folded".into())),
            (Err(obstacle), true) => {
                Err(Unmet::Failed(alloc::format!("the block is not folded: {obstacle}")))
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut guard) = self.mm.lock_present_table(va(0)) {
            clear_ptes(&mut guard, va(0), PAGES);
        }
        user::release(&self.mm);
    }
}

/// Resolves a fault at `va` as a fault handler does: waits for the lock, and lets the access go on if the entry allows it.
fn resolve(mm: &UserMm, va: VirtAddr, write: bool) -> bool {
    let Some(mut guard) = mm.lock_present_table(va) else { return false };
    let pte = ptep_get(&guard, va);
    if !pte.is_valid() || write && !pte.is_writable() {
        return false;
    }
    let wanted = if write { pte.mkyoung().mkdirty() } else { pte.mkyoung() };
    if !ptep_set_access_flags(&mut guard, va, wanted) {
        // Nothing to change: the entry has become right since, or this CPU's TLB still holds it as it was.
        mm.mmu().invalidate_local(Tlbi::All);
    }
    true
}

/// Writes a byte through the mapping, resolving faults as they come; the fault that can't be resolved.
fn store(mm: &UserMm, va: VirtAddr, value: u8, faults: &AtomicU64) -> Result<(), Fault> {
    loop {
        // SAFETY: what is mapped there is the test's own folio.
        match unsafe { probe::store(va, value) } {
            Err(_) if resolve(mm, va, true) => _ = faults.fetch_add(1, Ordering::Relaxed),
            result => return result,
        }
    }
}

/// Reads a byte through the mapping, as [`store`].
fn load(mm: &UserMm, va: VirtAddr, faults: &AtomicU64) -> Result<u8, Fault> {
    loop {
        // SAFETY: what is mapped there is the test's own folio.
        match unsafe { probe::load(va) } {
            Err(_) if resolve(mm, va, false) => _ = faults.fetch_add(1, Ordering::Relaxed),
            result => return result,
        }
    }
}

/// One CPU: each state of the block is seen both by the tables and by what an access finds.
pub(crate) fn a_block_is_used_while_it_changes(_: &Context<'_>) -> TestResult {
    let world = World::new();
    let faults = AtomicU64::new(0);
    // SAFETY: only the folio of this test is mapped.
    let loaded = unsafe { Loaded::new(&world.mm) };
    let lock = || world.mm.lock_table(va(0), &world.tables).expect("there is memory for tables");

    // Page by page, as faults come: the last one folds it.
    for page in 0..PAGES {
        world.expect_folded(false)?;
        set_ptes(&mut lock(), va(page), world.pte(page, UserProt::ReadWrite), 1);
        check!(
            store(&world.mm, va(page), 0x40 + page as u8, &faults).is_ok(),
            "a store to page {page} faulted"
        );
    }
    // Where hardware or the handler made some pages dirty before, that is no obstacle.
    world.expect_folded(true)?;
    for page in 0..PAGES {
        let expected = 0x40 + page as u8;
        check!(
            load(&world.mm, va(page), &faults).is_ok_and(|found| found == expected),
            "page {page} was lost"
        );
        check!(world.in_memory(page) == expected, "page {page} is another frame");
        check!(ptep_get(&lock(), va(page)).is_dirty(), "page {page} was written to, and is clean");
    }

    // One page goes: the others stay.
    let gone = ptep_get_and_clear(&mut lock(), va(5));
    check!(gone.is_valid() && gone.is_dirty(), "the cleared entry was {gone:?}");
    world.expect_folded(false)?;
    let fault = load(&world.mm, va(5), &faults).map_err(|fault| fault.esr.abort());
    check!(
        matches!(fault, Err(Some(abort)) if abort.is_translation_fault_at(3)),
        "a page that was cleared: {fault:?}"
    );
    check!(load(&world.mm, va(6), &faults).is_ok_and(|found| found == 0x46), "page 6 went with page 5");

    // It comes back, out of order: a refold finds it.
    set_ptes(&mut lock(), va(5), world.pte(5, UserProt::ReadWrite).mkdirty(), 1);
    check!(refold(&mut lock(), va(0), PAGES) == 1, "the block was not folded again");
    world.expect_folded(true)?;
    check!(load(&world.mm, va(5), &faults).is_ok_and(|found| found == 0x45), "page 5 came back as another");

    // Write protection of the whole keeps it folded, of a part does not.
    wrprotect_ptes(&mut lock(), va(0), PAGES);
    world.expect_folded(true)?;
    let fault = store(&world.mm, va(3), 0, &faults).map_err(|fault| fault.esr.abort());
    check!(matches!(fault, Err(Some(abort)) if abort.is_permission_fault()), "a protected page: {fault:?}");
    check!(world.in_memory(3) == 0x43, "a protected page was written to");

    // As mprotect does it: the permission comes back, and the block with it.
    {
        let mut guard = lock();
        let old = modify_prot_start(&mut guard, va(0), PAGES);
        modify_prot_commit(&mut guard, va(0), old.with_prot(UserProt::ReadWrite), PAGES);
    }
    world.expect_folded(true)?;
    check!(store(&world.mm, va(3), 0x33, &faults).is_ok(), "a store after mprotect faulted");
    check!(world.in_memory(3) == 0x33, "the store went elsewhere");

    let counters = world.mm.counters();
    check!(counters.get(Counter::Folds) == 1 && counters.get(Counter::Refolds) == 1, "{counters:?}");
    drop(loaded);
    Ok(())
}

/// Two CPUs: one uses the block all the time, the other unfolds, folds and protects it. No write is lost, no fault is
/// without reason, and some of them waited for the lock.
pub(crate) fn a_block_is_used_while_another_cpu_changes_it(_: &Context<'_>) -> TestResult {
    if cpu::count() < 2 {
        return Err(Unmet::Skipped("there is one CPU"));
    }
    const ROUNDS: usize = 2000;
    let world = World::new();
    let lock = || world.mm.lock_table(va(0), &world.tables).expect("there is memory for tables");
    set_ptes(&mut lock(), va(0), world.pte(0, UserProt::ReadWrite), PAGES);
    world.expect_folded(true)?;

    let (stop, faults) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let user = {
        let (mm, stop, faults) = (world.mm.clone(), stop.clone(), faults.clone());
        smp::spawn_on(1, move || {
            // SAFETY: only the folio of this test is mapped.
            let _loaded = unsafe { Loaded::new(&mm) };
            let mut round = 0_u8;
            while !stop.load(Ordering::Relaxed) {
                round = round.wrapping_add(1);
                for page in 0..PAGES {
                    let value = round ^ page as u8;
                    store(&mm, va(page), value, &faults).map_err(|fault| (page, fault.esr, value, 0))?;
                    let found = load(&mm, va(page), &faults).map_err(|fault| (page, fault.esr, value, 0))?;
                    if found != value {
                        return Err((page, arch::esr::Esr::new(0), value, found));
                    }
                }
            }
            Ok(round)
        })
        .expect("the CPU waits")
    };
    // On a busy emulator the other CPU may not have run yet.
    let deadline = timer::now() + 20 * timer::frequency();
    let mut round = 0;
    while round < ROUNDS || faults.load(Ordering::Relaxed) == 0 && timer::now() < deadline {
        round += 1;
        let page = round % PAGES;
        // Taken away and given back under one lock: whoever faults waits, and finds it again.
        let mut guard = lock();
        let old = modify_prot_start(&mut guard, va(page), 1);
        modify_prot_commit(&mut guard, va(page), old, 1);
        drop(guard);
        let mut guard = lock();
        refold(&mut guard, va(0), PAGES);
        let old = modify_prot_start(&mut guard, va(0), PAGES);
        modify_prot_commit(&mut guard, va(0), old.with_prot(UserProt::ReadWrite), PAGES);
    }
    stop.store(true, Ordering::Relaxed);
    let result = user.join();
    check!(result.is_ok(), "page, fault, written, read: {result:?}");
    world.expect_folded(true)?;
    let waited = faults.load(Ordering::Relaxed);
    crate::console::println!("# {waited} faults waited for the lock");
    check!(waited > 0, "no access met a conversion: nothing was shown");
    Ok(())
}
