//! Registers, frames, heap, timer and the other CPUs.

use alloc::vec::Vec;
use core::hint::black_box;

use aarch64_cpu::registers::{
    CNTV_CVAL_EL0, CurrentEL, DAIF, MAIR_EL1, Readable, SCTLR_EL1, TCR_EL1, TTBR0_EL1, TTBR1_EL1, VBAR_EL1,
};
use arch::aarch64::hardware::linear;
use arch::aarch64::{copy, daif, zero};
use mm::frame::MAX_ORDER;

use super::harness::{Context, TestResult, Unmet, check};
use crate::console::println;
use crate::vm::{GRANULE, PAGE};
use crate::{cpu, heap, memory, smp, timer, vm};

/// Runs `f` on one CPU after the other; fails the test with what the first one objects to.
fn on_every_cpu(f: fn() -> Result<(), &'static str>) -> TestResult {
    for index in 0..cpu::count() {
        let result =
            if index == cpu::index() { f() } else { smp::spawn_on(index, f).expect("the CPU waits").join() };
        check!(result.is_ok(), "CPU {index}: {}", result.unwrap_err());
    }
    Ok(())
}

/// The state that the boot assembly owes, on every CPU.
pub(crate) fn registers(_: &Context<'_>) -> TestResult {
    fn here() -> Result<(), &'static str> {
        let expect = |condition: bool, what| if condition { Ok(()) } else { Err(what) };
        expect(CurrentEL.read(CurrentEL::EL) == 1, "it does not run at EL1")?;
        expect(SCTLR_EL1.is_set(SCTLR_EL1::M), "the MMU is off")?;
        expect(SCTLR_EL1.is_set(SCTLR_EL1::C) && SCTLR_EL1.is_set(SCTLR_EL1::I), "caches are off")?;
        expect(TTBR1_EL1.get_baddr() == vm::init_mm().root().get(), "TTBR1 is not init_mm")?;
        expect(TTBR0_EL1.get_baddr() != 0, "TTBR0 translates by frame 0")?;
        expect(MAIR_EL1.get() == arch::descriptor::MAIR, "MAIR_EL1 is not what descriptors mean")?;
        expect(TCR_EL1.read(TCR_EL1::T1SZ) == 16, "TTBR1 does not translate 48 bits")?;
        expect(VBAR_EL1.get().is_multiple_of(0x800) && VBAR_EL1.get() != 0, "there are no vectors")?;
        expect(!DAIF.is_set(DAIF::A), "SErrors are masked")?;
        expect(!DAIF.is_set(DAIF::I), "interrupts are masked")
    }
    on_every_cpu(here)
}

pub(crate) fn frames_check(context: &Context<'_>) -> TestResult {
    let frames = memory::frames();
    let found = frames.check();
    check!(found.is_ok(), "the frame map contradicts itself: {found:?}");
    let counts = frames.counts();
    let described = kernel::memblock::total(context.memblock.ram()) / PAGE;
    check!(counts.total == described, "{} frames, but {described} are described", counts.total);
    check!(counts.free > counts.total / 2, "only {} of {} frames are free", counts.free, counts.total);
    Ok(())
}

pub(crate) fn frames_scenarios(_: &Context<'_>) -> TestResult {
    for (name, scenario) in scenarios::frames::SCENARIOS {
        println!("# scenario {name}");
        scenario(memory::frames());
        let found = memory::frames().check();
        check!(found.is_ok(), "after {name}: {found:?}");
    }
    Ok(())
}

/// Memory is zeroed and copied as asked, and what is beside it stays, whatever the CPU does it by.
pub(crate) fn zero_and_copy(_: &Context<'_>) -> TestResult {
    let folio = memory::frames().alloc(2).expect("there is memory");
    let start = linear(folio.head().addr(GRANULE)).get() as *mut u8;
    let (size, from) = (2 * PAGE as usize, 2 * PAGE as usize);
    let pattern = |i: usize| (i % 251) as u8 + 1;
    for (offset, bytes) in [(0, size), (0, 0), (1, 1), (64, 128), (127, 4096), (5, 200), (128, 127)] {
        // SAFETY: the frames were just allocated; so below.
        (0..2 * size).for_each(|i| unsafe { start.add(i).write_volatile(pattern(i)) });
        // SAFETY: as above.
        let read = |i: usize| unsafe { start.add(i).read_volatile() };
        // SAFETY: inside of the first half, and from the second half to it.
        unsafe { zero::zero(start.add(offset), bytes) };
        let zeroed = (0..size)
            .find(|i| read(*i) != if (offset..offset + bytes).contains(i) { 0 } else { pattern(*i) });
        check!(zeroed.is_none(), "zeroing {bytes} bytes at {offset}: byte {zeroed:?} is wrong");
        // SAFETY: as above.
        unsafe { copy::copy(start.add(offset), start.add(from + 3 * (offset % 2)), bytes) };
        let source = |i: usize| from + 3 * (offset % 2) + i - offset;
        let copied = (0..size).find(|&i| {
            let inside = (offset..offset + bytes).contains(&i);
            read(i) != if inside { pattern(source(i)) } else { pattern(i) }
        });
        check!(copied.is_none(), "copying {bytes} bytes to {offset}: byte {copied:?} is wrong");
    }
    moves_overlap(start, pattern)
}

/// What compiled code copies by, for all alignments of both sides to words: upwards, downwards, apart.
fn moves_overlap(start: *mut u8, pattern: impl Fn(usize) -> u8) -> TestResult {
    const SIZE: usize = 340;
    for (to, from) in (0..24).flat_map(|to| (0..24).map(move |from| (to, from))) {
        for (bytes, apart) in (0..80).chain([127, 128, 130]).flat_map(|bytes| [(bytes, 0), (bytes, 160)]) {
            let (to, from) = (black_box(8 + to + apart), black_box(8 + from));
            // SAFETY: the caller's frames; so below.
            (0..SIZE).for_each(|i| unsafe { start.add(i).write(pattern(i)) });
            // SAFETY: as above; those that are apart don't overlap.
            unsafe {
                if apart == 0 {
                    start.add(to).copy_from(start.add(from), bytes);
                } else {
                    start.add(to).copy_from_nonoverlapping(start.add(from), bytes);
                }
            }
            let moved = (0..SIZE).find(|&i| {
                let source = if (to..to + bytes).contains(&i) { i - to + from } else { i };
                // SAFETY: as above.
                unsafe { start.add(i).read() != pattern(source) }
            });
            check!(moved.is_none(), "moving {bytes} bytes from {from} to {to}: byte {moved:?} is wrong");
        }
    }
    Ok(())
}

/// Freed frames are filled with the pattern. That a write to one is noticed is shown by
/// `harness.writes_to_free_memory_on_request`.
pub(crate) fn poison(_: &Context<'_>) -> TestResult {
    let folio = memory::frames().alloc(1).expect("there is memory");
    let words: Vec<_> = (0..2 * PAGE / 8).map(|i| linear(folio.head().addr(GRANULE)).get() + i * 8).collect();
    for &word in &words {
        // SAFETY: the frames were just allocated.
        unsafe { (word as *mut u64).write_volatile(word) };
    }
    drop(folio);
    for &word in &words {
        // SAFETY: a free frame is still mapped, and no other CPU allocates now.
        let found = unsafe { (word as *const u64).read_volatile() };
        check!(found == memory::POISON, "{word:#x} of a freed frame holds {found:#x}");
    }
    Ok(())
}

/// Two CPUs allocate, use and free at once.
pub(crate) fn frames_two_cpus(_: &Context<'_>) -> TestResult {
    if cpu::count() < 2 {
        return Err(Unmet::Skipped("there is one CPU"));
    }
    fn churn(seed: u64) -> Result<u64, u64> {
        let frames = memory::frames();
        let mut held = Vec::new();
        let mut random = seed;
        for round in 0..2000_u64 {
            // Xorshift: any order and any victim.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            if held.len() < 32 {
                let order = (random % 5) as u8;
                let Ok(folio) = frames.alloc(order) else { return Err(round) };
                let mark = linear(folio.head().addr(GRANULE)).get() as *mut u64;
                // SAFETY: the folio was just allocated; nobody else may have it.
                unsafe { mark.write_volatile(seed ^ folio.head().get()) };
                held.push(folio);
            } else {
                let folio = held.swap_remove(random as usize % held.len());
                let mark = linear(folio.head().addr(GRANULE)).get() as *const u64;
                // SAFETY: it is still held.
                if unsafe { mark.read_volatile() } != seed ^ folio.head().get() {
                    return Err(round);
                }
            }
        }
        Ok(held.len() as u64)
    }
    let other = smp::spawn_on(1, || churn(0x9e37_79b9_7f4a_7c15)).expect("the CPU waits");
    let mine = churn(0x2545_f491_4f6c_dd1d);
    let theirs = other.join();
    check!(mine.is_ok() && theirs.is_ok(), "a folio had two owners: {mine:?} {theirs:?}");
    let found = memory::frames().check();
    check!(found.is_ok(), "{found:?}");
    Ok(())
}

pub(crate) fn heap_grows(_: &Context<'_>) -> TestResult {
    let before = heap::frames();
    // Larger than any folio, so that it must be put together of several.
    let size = (PAGE << MAX_ORDER) as usize + 12345;
    let mut block: Vec<u8> = Vec::new();
    check!(block.try_reserve_exact(size).is_ok(), "no {size} bytes of heap");
    block.resize(size, 0xa5);
    check!(black_box(&block).iter().all(|&byte| byte == 0xa5), "the heap lost a byte");
    check!(heap::frames() > before, "{size} bytes came from nowhere");
    let grown = heap::frames();
    drop(block);
    let mut again: Vec<u8> = Vec::new();
    check!(again.try_reserve_exact(size).is_ok(), "the memory did not come back");
    check!(heap::frames() == grown, "the heap grew although it had the memory");
    drop(again);
    // What a folio is enough for is given back.
    for bytes in [PAGE / 2 + 1, PAGE, PAGE + 1, PAGE << MAX_ORDER] {
        let free = memory::frames().free_frames();
        let mut block: Vec<u8> = Vec::new();
        check!(block.try_reserve_exact(bytes as usize).is_ok(), "no {bytes} bytes");
        block.resize(bytes as usize, 0xa5);
        check!(black_box(&block).iter().all(|&byte| byte == 0xa5), "a block of {bytes} bytes lost one");
        let taken = free - memory::frames().free_frames();
        check!(taken == bytes.div_ceil(PAGE).next_power_of_two(), "{bytes} bytes took {taken} frames");
        drop(block);
        check!(memory::frames().free_frames() == free, "{bytes} bytes are kept");
    }
    check!(heap::frames() == grown, "the heap grew for a large block");
    // More than there is: an error, no end.
    let mut huge: Vec<u8> = Vec::new();
    check!(huge.try_reserve_exact(1 << 46).is_err(), "the heap gave 64 TiB");
    check!(heap::frames() == grown, "the heap grew for what it could not give");
    Ok(())
}

/// On every CPU the tick follows the counter and does not drift: from one moment to another the comparator has moved by as
/// many whole periods as ticks came and were missed, and it is never late by more than a period.
pub(crate) fn tick_matches_counter(_: &Context<'_>) -> TestResult {
    const TICKS: u64 = 5;
    fn here() -> Result<(), &'static str> {
        let period = timer::frequency() / timer::TICK_HZ;
        // Masked, so that the three are of one moment.
        let sample = || {
            let index = cpu::index();
            daif::masked(|| (timer::ticks(index) + timer::missed(index), CNTV_CVAL_EL0.get(), timer::now()))
        };
        let (first, first_due, begin) = sample();
        loop {
            let (ticks, due, now) = sample();
            if ticks - first >= TICKS {
                let exact = due - first_due == (ticks - first) * period;
                let early = now + period < due;
                return if !exact {
                    Err("the tick drifts")
                } else if early {
                    Err("the tick is early")
                } else {
                    Ok(())
                };
            }
            if now - begin > 100 * TICKS * period {
                return Err("the tick does not come");
            }
            core::hint::spin_loop();
        }
    }
    on_every_cpu(here)
}

pub(crate) fn every_cpu_runs_a_function(context: &Context<'_>) -> TestResult {
    let described = context.platform.cpus.len();
    check!(cpu::count() == described, "{} of {described} CPUs run", cpu::count());
    let handles: Vec<_> = (1..cpu::count())
        .map(|index| smp::spawn_on(index, || (cpu::index(), cpu::mpidr())).expect("the CPU waits"))
        .collect();
    let mut seen: Vec<_> = handles.into_iter().map(smp::JoinHandle::join).collect();
    seen.insert(0, (cpu::index(), cpu::mpidr()));
    for (expected, &(index, mpidr)) in seen.iter().enumerate() {
        check!(index == expected, "CPU {expected} says it is CPU {index}");
        let known = context.platform.cpus.iter().filter(|cpu| cpu.mpidr == mpidr).count();
        check!(known == 1, "CPU {index} has MPIDR {mpidr:#x}, which the tree has {known} times");
        check!(seen.iter().filter(|other| other.1 == mpidr).count() == 1, "two CPUs are {mpidr:#x}");
    }
    check!(smp::spawn_on(0, || ()).is_err(), "the boot CPU took a function");
    check!(smp::spawn_on(cpu::count(), || ()).is_err(), "a CPU that there isn't took a function");
    Ok(())
}
