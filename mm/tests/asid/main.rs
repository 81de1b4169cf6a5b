//! The allocator of ASIDs, on a [`Machine`] that knows what TLBs may hold.

mod address_space;
mod machine;
mod property;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, RwLock, mpsc};
use std::time::Duration;

use arch::tlbi::{Asid, Tlbi};
use machine::{Fault, Machine};
use pleat_mm::asid::{AsidAllocator, Context};

/// An allocator with its bitmap. It is leaked: it borrows the bitmap.
fn allocator<const CPUS: usize>(asids: u32) -> AsidAllocator<'static, CPUS> {
    // What is in the bitmap before does not matter.
    let words = vec![0xaaaa_5555_aaaa_5555; AsidAllocator::<CPUS>::words(asids)];
    AsidAllocator::new(asids, words.leak())
}

/// Mm number `mm` on a CPU, as the scheduler does it.
fn run<const CPUS: usize>(
    allocator: &AsidAllocator<'_, CPUS>,
    machine: &Machine,
    cpu: usize,
    (mm, context): (usize, &Context),
) -> u16 {
    machine.unload(cpu);
    let asid = allocator.switch_to(machine, cpu, context);
    machine.load(cpu, asid, mm).unwrap();
    asid.get()
}

fn contexts(n: usize) -> Vec<Context> {
    (0..n).map(|_| Context::new()).collect()
}

#[test]
fn every_asid_but_the_fixed_ones_is_used_before_one_is_taken_back() {
    for asids in [4, 63, 64, 65, 256, 1 << 16] {
        let (allocator, machine) = (allocator::<1>(asids), Machine::new(1, asids, Fault::None));
        let mms = contexts(asids as usize - 2);
        let mut seen: Vec<u16> = mms.iter().enumerate().map(|mm| run(&allocator, &machine, 0, mm)).collect();
        seen.sort_unstable();
        let expected: Vec<u16> = (2..=(asids - 1) as u16).collect();
        assert_eq!((seen, allocator.generation(), machine.issued()), (expected, 1, vec![]), "{asids} ASIDs");
        run(&allocator, &machine, 0, (mms.len(), &Context::new()));
        assert_eq!((allocator.generation(), machine.issued()), (2, vec![Tlbi::All]), "{asids} ASIDs");
    }
}

#[test]
fn an_mm_that_never_ran_has_no_asid_and_its_release_is_nothing() {
    let (allocator, machine) = (allocator::<1>(4), Machine::new(1, 4, Fault::None));
    let context = Context::new();
    assert_eq!(context.asid(), None);
    allocator.release(&machine, &context);
    assert_eq!(machine.issued(), []);
    run(&allocator, &machine, 0, (0, &context));
    assert_eq!(context.asid(), Some(Asid::new(2)));
}

#[test]
fn a_rollover_leaves_running_mms_their_asid_and_takes_it_from_all_others() {
    let (allocator, machine) = (allocator::<3>(5), Machine::new(3, 5, Fault::None));
    let mms = contexts(4);
    let mms: Vec<_> = mms.iter().enumerate().collect();
    assert_eq!([0, 1, 2].map(|mm| run(&allocator, &machine, mm, mms[mm])), [2, 3, 4]);
    // Both threads of mm 1 and none of mm 0 run now.
    assert_eq!(run(&allocator, &machine, 0, mms[1]), 3);
    assert_eq!(
        run(&allocator, &machine, 2, mms[3]),
        2,
        "mm 0 and mm 2 lost theirs, the lowest is given first"
    );
    assert_eq!((allocator.generation(), machine.issued()), (2, vec![Tlbi::All]));
    assert_eq!(mms[1].1.asid(), Some(Asid::new(3)));
    assert_eq!(run(&allocator, &machine, 2, mms[0]), 4, "another than before");
}

#[test]
fn what_runs_through_many_rollovers_without_a_switch_keeps_its_asid() {
    let (allocator, machine) = (allocator::<2>(4), Machine::new(2, 4, Fault::None));
    let (runner, mms) = (Context::new(), contexts(5));
    let kept = run(&allocator, &machine, 0, (9, &runner));
    for mm in mms.iter().enumerate() {
        run(&allocator, &machine, 1, mm);
    }
    assert_eq!((allocator.generation(), runner.asid()), (5, Some(Asid::new(kept))));
    // A second thread finds it, and what it finds is kept for the first one too.
    assert_eq!(run(&allocator, &machine, 1, (9, &runner)), kept);
    for mm in mms.iter().enumerate() {
        run(&allocator, &machine, 1, mm);
    }
    assert_eq!((allocator.generation(), run(&allocator, &machine, 0, (9, &runner))), (10, kept));
}

#[test]
fn an_mm_that_came_and_went_since_the_rollover_finds_the_asid_that_was_kept() {
    let (allocator, machine) = (allocator::<2>(5), Machine::new(2, 5, Fault::None));
    let mms = contexts(5);
    let mms: Vec<_> = mms.iter().enumerate().collect();
    assert_eq!([0, 1, 2].map(|mm| run(&allocator, &machine, mm.min(1), mms[mm])), [2, 3, 4]);
    run(&allocator, &machine, 1, mms[3]);
    assert_eq!(allocator.generation(), 2);
    machine.unload(0);
    allocator.leave(0);
    assert_eq!(run(&allocator, &machine, 0, mms[0]), 2);
    assert_eq!(allocator.generation(), 2);
}

#[test]
fn a_released_asid_is_flushed_before_it_is_used_again() {
    let (allocator, machine) = (allocator::<1>(4), Machine::new(1, 4, Fault::None));
    let mms = contexts(3);
    assert_eq!([0, 1].map(|mm| run(&allocator, &machine, 0, (mm, &mms[mm]))), [2, 3]);
    allocator.release(&machine, &mms[0]);
    assert_eq!((mms[0].asid(), machine.issued()), (None, vec![Tlbi::Asid(Asid::new(2))]));
    assert_eq!(run(&allocator, &machine, 0, (2, &mms[2])), 2);
    assert_eq!(allocator.generation(), 1);
}

#[test]
fn the_release_of_an_mm_that_lost_its_asid_leaves_the_next_owner_alone() {
    let (allocator, machine) = (allocator::<1>(4), Machine::new(1, 4, Fault::None));
    let mms = contexts(4);
    assert_eq!([0, 1, 2, 3].map(|mm| run(&allocator, &machine, 0, (mm, &mms[mm]))), [2, 3, 2, 3]);
    allocator.release(&machine, &mms[0]);
    assert_eq!(machine.issued(), [Tlbi::All], "nothing for the release");
    assert_eq!(run(&allocator, &machine, 0, (4, &Context::new())), 2, "no ASID was free: a rollover");
    assert_eq!(allocator.generation(), 3);
}

#[test]
fn the_release_of_an_mm_whose_asid_was_kept_makes_it_free() {
    let (allocator, machine) = (allocator::<2>(4), Machine::new(2, 4, Fault::None));
    let mms = contexts(4);
    assert_eq!([0, 1].map(|mm| run(&allocator, &machine, mm, (mm, &mms[mm]))), [2, 3]);
    assert_eq!(run(&allocator, &machine, 1, (2, &mms[2])), 3);
    machine.unload(0);
    allocator.leave(0);
    allocator.release(&machine, &mms[0]);
    assert_eq!(machine.issued(), [Tlbi::All, Tlbi::Asid(Asid::new(2))]);
    assert_eq!(run(&allocator, &machine, 0, (3, &mms[3])), 2);
    assert_eq!(allocator.generation(), 2);
}

#[test]
#[should_panic(expected = "ASID 2 is released while CPU 0 runs it")]
fn the_release_of_a_running_mm_is_a_bug() {
    let (allocator, machine) = (allocator::<1>(4), Machine::new(1, 4, Fault::None));
    let context = Context::new();
    run(&allocator, &machine, 0, (0, &context));
    allocator.release(&machine, &context);
}

#[test]
#[should_panic(expected = "ASID 2 is released while CPU 0 runs it")]
fn the_release_of_an_mm_that_runs_since_before_the_rollover_is_a_bug() {
    let (allocator, machine) = (allocator::<2>(4), Machine::new(2, 4, Fault::None));
    let mms = contexts(3);
    for (cpu, mm) in [(0, 0), (1, 1), (1, 2)] {
        run(&allocator, &machine, cpu, (mm, &mms[mm]));
    }
    assert_eq!(allocator.generation(), 2);
    allocator.release(&machine, &mms[0]);
}

#[test]
fn the_short_way_takes_no_lock_and_issues_nothing() {
    let allocator: &'static AsidAllocator<'static, 2> = Box::leak(Box::new(allocator(8)));
    let machine: &'static Machine = Box::leak(Box::new(Machine::new(2, 8, Fault::None)));
    let mms: &'static [Context] = contexts(3).leak();
    let asids = [0, 1].map(|mm| run(allocator, machine, 0, (mm, &mms[mm])));
    run(allocator, machine, 1, (2, &mms[2]));
    machine.unload(1);
    allocator.leave(1);
    let published = machine.published();
    // While a release waits for its flush, with the lock.
    let (done, result) = mpsc::channel();
    machine.meanwhile(Box::new(move || {
        std::thread::spawn(move || {
            for _ in 0..3 {
                assert_eq!([0, 1].map(|mm| run(allocator, machine, 0, (mm, &mms[mm]))), asids);
                machine.unload(0);
                allocator.leave(0);
            }
            done.send((machine.issued().len(), machine.published())).unwrap();
        });
        let in_time = result.recv_timeout(Duration::from_secs(20));
        // Only what the release issued.
        assert_eq!(in_time, Ok((1, published + 1)), "it waits for the lock");
    }));
    allocator.release(machine, &mms[2]);
}

#[test]
fn a_new_asid_is_published_before_it_is_loaded() {
    let (allocator, machine) = (allocator::<2>(4), Machine::new(2, 4, Fault::None));
    let context = Context::new();
    allocator.switch_to(&machine, 0, &context);
    assert_eq!(machine.published(), 1);
    allocator.switch_to(&machine, 1, &context);
    assert_eq!(machine.published(), 1, "the same ASID, by the long way, as CPU 1 is new");
}

macro_rules! refused {
    ($($name:ident: $cpus:literal CPUs, $asids:expr, $words:literal, $expected:literal;)*) => {
        $(#[test]
        #[should_panic(expected = $expected)]
        fn $name() {
            AsidAllocator::<$cpus>::new($asids, &mut [0; $words]);
        })*
    };
}

refused! {
    fewer_asids_than_cpus_are_refused: 3 CPUs, 4, 1, "4 ASIDs are too few for 3 CPUs";
    more_asids_than_16_bits_are_refused: 1 CPUs, (1 << 16) + 1, 2, "65537 ASIDs are more than 16 bits";
    a_bitmap_too_small_is_refused: 1 CPUs, 65, 1, "a bitmap too small for 65 ASIDs";
}

/// CPUs as threads, that switch, change descriptors and flush them, let mms exit, all at once.
fn stress<const CPUS: usize>(asids: u32, switches: usize) -> u64 {
    const MMS: usize = 12;
    struct Process {
        number: usize,
        context: Context,
    }
    let (allocator, machine) = (allocator::<CPUS>(asids), Machine::new(CPUS, asids, Fault::None));
    // Who runs a process, or has run it last, holds it for reading; who lets it exit, for writing.
    let processes: Vec<RwLock<Process>> =
        (0..MMS).map(|number| RwLock::new(Process { number, context: Context::new() })).collect();
    let (next, start, failed) = (AtomicUsize::new(MMS), Barrier::new(CPUS), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for cpu in 0..CPUS {
            let (allocator, machine, processes) = (&allocator, &machine, &processes);
            let (next, start, failed) = (&next, &start, &failed);
            scope.spawn(move || {
                let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(cpu as u64 + 1);
                let mut draw = |n: usize| {
                    // xorshift64 (Marsaglia 2003)
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    (random >> 33) as usize % n
                };
                let stop = |result: Result<(), String>| {
                    if let Err(violation) = result {
                        failed.store(true, Ordering::Relaxed);
                        panic!("{violation}");
                    }
                };
                let mut previous = None;
                start.wait();
                for _ in 0..switches {
                    if failed.load(Ordering::Relaxed) {
                        break;
                    }
                    let index = draw(MMS);
                    machine.unload(cpu);
                    if draw(8) == 0 {
                        allocator.leave(cpu);
                        drop(previous.take());
                        if let Ok(mut process) = processes[index].try_write() {
                            allocator.release(machine, &process.context);
                            process.number = next.fetch_add(1, Ordering::Relaxed);
                        }
                        continue;
                    }
                    let Ok(process) = processes[index].try_read() else { continue };
                    let asid = allocator.switch_to(machine, cpu, &process.context);
                    stop(machine.load(cpu, asid, process.number));
                    if draw(2) == 0 {
                        let version = machine.change(process.number);
                        stop(machine.flush(process.number, version, process.context.asid()));
                    }
                    // The slot names the new one only now.
                    previous = Some(process);
                }
                machine.unload(cpu);
                allocator.leave(cpu);
                drop(previous);
            });
        }
    });
    allocator.generation()
}

#[test]
fn cpus_that_switch_at_once_never_meet_each_others_entries() {
    let generations = [stress::<2>(4, 20_000), stress::<4>(8, 10_000), stress::<4>(256, 10_000)];
    assert!(generations[0] > 1000 && generations[1] > 500, "too few rollovers: {generations:?}");
}
