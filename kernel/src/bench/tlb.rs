//! Whether the TLB honours the Contiguous bit: loads that depend on each other, over more and more memory, with and without
//! it. On a core that does, one entry reaches 16 times as far, and the knees in the figures move to the right by as much.
//!
//! The addresses form one cycle through all pages, in an order that no prefetcher knows: each is computed from the one
//! before and from what was loaded there, which is 0. All 64 KiB of addresses are the same 64 KiB of memory, of which 64
//! lines are touched: what misses is a TLB, never a data cache, and 128 MiB of addresses need no more than that and their
//! tables.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::arch::naked_asm;

use arch::aarch64::daif;
use arch::aarch64::hardware::{Hardware, LinearMap, linear};
use arch::aarch64::pmu::{CPU_CYCLES, Counts, L1D_TLB_REFILL, Pmu};
use arch::{PteValue, VirtAddr};
use kernel::tlb_reach::Verdict;
use mm::frame::Folio;
use mm::pte::{Pte, UserProt};
use mm::ptep::{clear_ptes, pte_batch_hint, set_ptes};
use mm::{Mm, TableAlloc};

use crate::console::println;
use crate::memory;
use crate::selftest::Scratch;
use crate::selftest::harness::{Context, TestResult, check};
use crate::user::{self, Loaded, UserMm};
use crate::vm::{GRANULE, PAGE};

/// Pages of a block, and the order of its folio.
const BLOCK: usize = 16;
const ORDER: u8 = 4;
const SMALLEST: u64 = 64 << 10;
const LARGEST: u64 = 128 << 20;
/// Where they are mapped, aligned to all of it.
const BASE: u64 = 1 << 32;
/// Loads of one measurement: whole rounds through the pages, however many there are.
const LOADS: u64 = 1 << 17;
const _: () = assert!(LOADS.is_multiple_of(LARGEST / PAGE));
/// Of so many measurements the best counts: what disturbs only adds.
const REPETITIONS: usize = 3;
/// Columns of the plot.
const COLUMNS: u64 = 60;

/// The sizes that are measured, in bytes.
fn sizes() -> impl Iterator<Item = u64> {
    core::iter::successors(Some(SMALLEST), |size| Some(size * 2)).take_while(|&size| size <= LARGEST)
}

/// What one load took, in hundredths.
#[derive(Clone, Copy)]
struct Cost {
    cycles: u64,
    refills: Option<u64>,
}

impl Cost {
    fn of(counts: Counts) -> Self {
        let each = |count: u64| (count * 100 + LOADS / 2) / LOADS;
        Self { cycles: each(counts.cycles), refills: counts.events.map(|events| each(events.into())) }
    }
}

pub(super) fn reach(_: &Context<'_>) -> TestResult {
    let pmu = Pmu::of_this_cpu();
    check!(pmu.is_some(), "this CPU has no PMUv3");
    let pmu = pmu.expect("just checked");
    let mut costs = Vec::new();
    for folded in [false, true] {
        let space = Space::new();
        space.map(folded);
        let wrong = space.blocks().find(|&va| space.is_folded(va) != folded);
        let costs_of = space.measure(&pmu);
        let cycles = space.count(&pmu, CPU_CYCLES, LARGEST);
        space.clear();
        check!(counts_alike(cycles), "the counters do not agree on the same cycles: {cycles:?}");
        check!(wrong.is_none(), "the block at {wrong:x?} should be folded: {folded}");
        costs.push(costs_of);
    }
    let [off, on] = &costs[..] else { unreachable!("there were two") };
    check!(off.iter().chain(on).all(|cost| cost.cycles > 0), "the cycle counter stands still");
    print_table(off, on);
    let refills: Option<Vec<_>> = off.iter().zip(on).map(|(off, on)| off.refills.zip(on.refills)).collect();
    let cycles: Vec<_> = off.iter().zip(on).map(|(off, on)| (off.cycles, on.cycles)).collect();
    println!();
    print_plot("cycles", &cycles);
    match refills {
        Some(refills) => {
            print_plot("L1D TLB refills", &refills);
            println!("# {}", Verdict::of(&refills));
        }
        None => println!(
            "# this PMU has no event L1D_TLB_REFILL, as QEMU's: an emulator's cycles say nothing of a TLB, for which it \
             takes a board"
        ),
    }
    Ok(())
}

/// Whether the event counter, where it counts cycles, has counted what the cycle counter has: so events are believed.
fn counts_alike(cycles: Counts) -> bool {
    cycles.events.is_none_or(|events| u64::from(events).abs_diff(cycles.cycles) <= cycles.cycles / 8)
}

/// An address space, loaded, and the one folio that is mapped in it.
struct Space {
    mm: Arc<UserMm>,
    loaded: Option<Loaded<UserMm>>,
    folio: Folio<'static>,
    /// Dropped last: it gives the tables back.
    tables: Scratch,
}

impl Space {
    fn new() -> Self {
        let tables = Scratch::new(GRANULE);
        let root = tables.alloc_table(0).expect("there is memory for a root table");
        let folio = memory::frames().alloc(ORDER).expect("there is memory for a block");
        let start = linear(folio.head().addr(GRANULE)).get() as *mut u8;
        // SAFETY: the folio was just allocated, is in the linear map, and of this size.
        unsafe { start.write_bytes(0, BLOCK * PAGE as usize) };
        // SAFETY: its tables are pages of the allocator, which are in the linear map.
        let hardware = Hardware(unsafe { LinearMap::new() });
        let mm = Arc::new(Mm::new_user(hardware, root, memory::frames()));
        // SAFETY: what will be mapped is the folio, to which no reference refers.
        let loaded = Some(unsafe { Loaded::new(&mm) });
        Self { mm, loaded, folio, tables }
    }

    fn blocks(&self) -> impl Iterator<Item = VirtAddr> + use<> {
        (BASE..BASE + LARGEST).step_by(BLOCK * PAGE as usize).map(VirtAddr::new)
    }

    /// Maps the folio in each block.
    fn map(&self, folded: bool) {
        let first = PteValue::new_user(self.folio.head().addr(GRANULE), UserProt::Read);
        for block in self.blocks() {
            let mut guard = self.mm.lock_table(block, &self.tables).expect("there is memory for tables");
            if folded {
                set_ptes(&mut guard, block, first, BLOCK);
                continue;
            }
            // The last one first: so nothing folds.
            for page in [BLOCK - 1].into_iter().chain(0..BLOCK - 1) {
                let offset = page as u64 * PAGE;
                set_ptes(&mut guard, VirtAddr::new(block.get() + offset), first.advance(offset), 1);
            }
        }
    }

    fn is_folded(&self, block: VirtAddr) -> bool {
        let guard = self.mm.lock_table(block, &self.tables).expect("its tables are there");
        pte_batch_hint(&guard, block) == BLOCK
    }

    fn clear(&self) {
        for block in self.blocks() {
            let mut guard = self.mm.lock_table(block, &self.tables).expect("its tables are there");
            clear_ptes(&mut guard, block, BLOCK);
        }
    }

    /// Counts cycles and this event of [`LOADS`] loads from so many bytes, after a round through them.
    fn count(&self, pmu: &Pmu, event: u16, size: u64) -> Counts {
        let pages = size / PAGE;
        // SAFETY: all pages are mapped, readable as EL0 reads, and zeroes.
        let load = |loads| unsafe { chain(BASE, pages - 1, loads) };
        daif::masked(|| {
            load(pages);
            pmu.count(event, || load(LOADS)).0
        })
    }

    /// The cost of a load for each size. Interrupts come between two measurements.
    fn measure(&self, pmu: &Pmu) -> Vec<Cost> {
        sizes()
            .map(|size| {
                let counts = (0..REPETITIONS).map(|_| self.count(pmu, L1D_TLB_REFILL, size));
                Cost::of(counts.min_by_key(|counts| counts.cycles).expect("there are some"))
            })
            .collect()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.loaded = None;
        user::release(&*self.mm);
    }
}

/// Makes `loads` loads as EL0 makes them, from pages 0 to `mask` at `base`, each depending on the one before. The order is
/// that of a linear congruential generator of full period (Hull and Dobell: the mask is one less than a power of two, the
/// multiplier 1 modulo 4, the increment odd).
///
/// # Safety
/// All those pages must be mapped readable for EL0, and zeroes.
#[unsafe(naked)]
unsafe extern "C" fn chain(base: u64, mask: u64, loads: u64) -> u64 {
    naked_asm!(
        "movz x5, #0x19, lsl #16", // 1664525
        "movk x5, #0x660d",
        "movz x6, #0x3c6e, lsl #16", // 1013904223
        "movk x6, #0xf35f",
        "mov x3, xzr",
        "1:",
        "madd x3, x3, x5, x6",
        "and x3, x3, x1",
        // One of the 64 lines of the page, so that no set of a cache has them all.
        "add x4, x0, x3, lsl #12",
        "and x7, x3, #63",
        "add x4, x4, x7, lsl #6",
        "ldtr x7, [x4]",
        "add x3, x3, x7",
        "subs x2, x2, #1",
        "b.ne 1b",
        "mov x0, x3",
        "ret",
    )
}

/// Hundredths, as a decimal fraction.
fn decimal(hundredths: u64) -> alloc::string::String {
    alloc::format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

fn size_name(size: u64) -> alloc::string::String {
    if size < 1 << 20 { alloc::format!("{} KiB", size >> 10) } else { alloc::format!("{} MiB", size >> 20) }
}

fn print_table(off: &[Cost], on: &[Cost]) {
    let refills = |cost: &Cost| cost.refills.map_or("-".into(), decimal);
    println!("| memory | cycles a load, CONT off | CONT on | L1D TLB refills a load, CONT off | CONT on |");
    println!("|---:|---:|---:|---:|---:|");
    for (size, (off, on)) in sizes().zip(off.iter().zip(on)) {
        println!(
            "| {} | {} | {} | {} | {} |",
            size_name(size),
            decimal(off.cycles),
            decimal(on.cycles),
            refills(off),
            refills(on)
        );
    }
}

/// One bar for each size without the Contiguous bit, and one with it.
fn print_plot(what: &str, rows: &[(u64, u64)]) {
    let most = rows.iter().map(|&(off, on)| off.max(on)).max().unwrap_or(0).max(1);
    println!("# {what} a load: o CONT off, x CONT on; the longest bar is {}", decimal(most));
    for (size, &(off, on)) in sizes().zip(rows) {
        for (name, mark, value) in [(size_name(size), "o", off), (alloc::string::String::new(), "x", on)] {
            println!("# {name:>8} |{}", mark.repeat((value * COLUMNS / most) as usize));
        }
    }
}
