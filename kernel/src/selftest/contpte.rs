//! Folded blocks on the real MMU: a user's address space in TTBR0, its memory used through the mapping while it is folded,
//! unfolded and protected, by one CPU and by two at once.

use alloc::vec::Vec;

use arch::{Granule, PteValue, VirtAddr};
use mm::contpte::{refold, why_not_folded};
use mm::frame::FrameMap;
use mm::pte::{Pte, UserProt};
use mm::ptep::{clear_ptes, modify_prot_commit, modify_prot_start, set_ptes};
use scenarios::contpte::scenarios as table;

use super::harness::{Context, TestResult, Unmet, check};
use super::user_space::{UserSpace, with_frames_of};
use crate::console::println;
use crate::vm::{GRANULE, PAGE};
use crate::{cpu, features, memory, timer};

const KERNEL_SHIFT: u32 = GRANULE.page_shift();

/// Runs every scenario in an address space of its own.
fn run_all<const PAGE_SHIFT: u32>(frames: &'static FrameMap<'static>) {
    for (name, scenario) in table::<UserSpace<PAGE_SHIFT>>() {
        println!("# scenario {name}");
        scenario(&UserSpace::new(frames));
    }
}

/// With the kernel's own granule, in the kernel's own frames.
pub(crate) fn scenarios(_: &Context<'_>) -> TestResult {
    run_all::<KERNEL_SHIFT>(memory::frames());
    Ok(())
}

/// The same with another granule in TTBR0.
fn scenarios_with<const PAGE_SHIFT: u32>(missing: &'static str) -> TestResult {
    let granule = Granule::of_page_shift(PAGE_SHIFT);
    if !features::common().granules.supports(granule) {
        return Err(Unmet::Skipped(missing));
    }
    // Eight blocks: of 16 KiB and of 64 KiB pages, one has 2 MiB.
    const FOLIOS: usize = 4;
    // SAFETY: each scenario's address space is gone when it has ended.
    unsafe { with_frames_of(granule, FOLIOS, run_all::<PAGE_SHIFT>) };
    Ok(())
}

pub(crate) fn scenarios_16k(_: &Context<'_>) -> TestResult {
    scenarios_with::<{ Granule::K16.page_shift() }>("there is no 16 KiB granule")
}

pub(crate) fn scenarios_64k(_: &Context<'_>) -> TestResult {
    scenarios_with::<{ Granule::K64.page_shift() }>("there is no 64 KiB granule")
}

/// Two CPUs: one uses the block all the time, the other unfolds, folds and protects it. No write is lost, no fault is
/// without reason, and some of them waited for the lock.
pub(crate) fn a_block_is_used_while_another_cpu_changes_it(_: &Context<'_>) -> TestResult {
    if cpu::count() < 2 {
        return Err(Unmet::Skipped("there is one CPU"));
    }
    const PAGES: usize = 16;
    const ORDER: u8 = 4;
    const ROUNDS: usize = 2000;
    let va = |page: usize| VirtAddr::new(0x40_0000 + page as u64 * PAGE);
    let user = UserSpace::<KERNEL_SHIFT>::new(memory::frames());
    let folio = memory::frames().alloc(ORDER).expect("memory for a block");
    let lock = || user.mm.lock_table(va(0), &user.tables).expect("memory for tables");
    let pte = PteValue::new_user(folio.head().addr(GRANULE), UserProt::ReadWrite);
    set_ptes(&mut lock(), va(0), pte, PAGES);
    let folded = why_not_folded(&user.mm, va(0));
    check!(folded.is_ok(), "the block is not folded: {folded:?}");

    let addresses: Vec<_> = (0..PAGES).map(va).collect();
    user.used_meanwhile(&addresses, &mut || {
        // On a busy emulator the other CPU may not have run yet.
        let deadline = timer::now() + 20 * timer::frequency();
        let mut round = 0;
        while round < ROUNDS || user.faults.spurious() == 0 && timer::now() < deadline {
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
    });
    let folded = why_not_folded(&user.mm, va(0));
    clear_ptes(&mut lock(), va(0), PAGES);
    check!(folded.is_ok(), "the block is not folded: {folded:?}");
    let waited = user.faults.spurious();
    println!("# {waited} faults waited for the lock");
    check!(waited > 0, "no access met a conversion: nothing was shown");
    Ok(())
}
