//! The allocator of ASIDs in every order of accesses that the memory model allows: loom. Only with `--cfg loom`:
//! `RUSTFLAGS='--cfg loom' cargo test --release -p pleat-mm --test loom_asid`
#![cfg(loom)]

#[path = "asid/machine.rs"]
#[allow(dead_code, reason = "the other tests of ASIDs use all of it")]
mod machine;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use arch::mmu::{Features, Slot};
use arch::tlbi::Tlbi;
use arch::{Granule, Mmu, TableFrame};
use loom::sync::atomic::{AtomicU64, fence};
use loom::thread;
use machine::{Fault, Machine};
use pleat_mm::asid::{AsidAllocator, Context};

/// Two CPUs, and as few ASIDs as they can do with: two that are assigned.
struct World {
    allocator: AsidAllocator<'static, 2>,
    machine: Machine,
    mms: [Context; 3],
    /// Each write of TTBR0, so that all orders of them are tried. It orders nothing else.
    ttbr: AtomicU64,
}

impl World {
    fn new() -> Self {
        Self {
            // The bitmap is 8 bytes for each execution.
            allocator: AsidAllocator::new(4, vec![0].leak()),
            machine: Machine::new(2, 4, Fault::None),
            mms: [(); 3].map(|()| Context::new()),
            ttbr: AtomicU64::new(0),
        }
    }

    fn vacate(&self, cpu: usize) {
        self.ttbr.fetch_add(1, Ordering::Relaxed);
        self.machine.unload(cpu);
    }

    fn switch_to(&self, cpu: usize, mm: usize) {
        self.vacate(cpu);
        let asid = self.allocator.switch_to(&self.machine, cpu, &self.mms[mm]);
        self.ttbr.fetch_add(1, Ordering::Relaxed);
        self.machine.load(cpu, asid, mm).unwrap();
    }

    fn leave(&self, cpu: usize) {
        self.vacate(cpu);
        self.allocator.leave(cpu);
    }
}

/// What each CPU does after `before`, in every order.
fn explore(before: fn(&World), cpus: [fn(&World); 2]) {
    let executions = Arc::new(AtomicUsize::new(0));
    let inside = executions.clone();
    loom::model(move || {
        inside.fetch_add(1, Ordering::Relaxed);
        let world = Arc::new(World::new());
        before(&world);
        let other = {
            let world = world.clone();
            thread::spawn(move || cpus[1](&world))
        };
        cpus[0](&world);
        other.join().unwrap();
        world.machine.judge().unwrap();
    });
    println!("{} executions", executions.load(Ordering::Relaxed));
}

/// Mm 0 ran on CPU 0, mm 1 runs on CPU 1.
fn one_runs(world: &World) {
    world.switch_to(0, 0);
    world.leave(0);
    world.switch_to(1, 1);
}

#[test]
fn a_switch_by_the_short_way_and_a_rollover() {
    explore(one_runs, [|world| world.switch_to(0, 0), |world| world.switch_to(1, 2)]);
}

#[test]
fn two_switches_and_a_rollover() {
    explore(
        one_runs,
        [
            |world| {
                world.switch_to(0, 0);
                world.switch_to(0, 1);
            },
            |world| world.switch_to(1, 2),
        ],
    );
}

#[test]
fn a_leave_and_a_rollover() {
    explore(
        |world| {
            world.switch_to(0, 0);
            world.switch_to(1, 1);
        },
        [
            |world| {
                world.leave(0);
                // It loses its ASID in the rollover, if that comes first.
                world.switch_to(0, 1);
            },
            |world| world.switch_to(1, 2),
        ],
    );
}

#[test]
fn two_threads_of_an_mm_that_is_new() {
    explore(|_| (), [|world| world.switch_to(0, 0), |world| world.switch_to(1, 0)]);
}

#[test]
fn two_threads_of_an_mm_that_lost_its_asid() {
    explore(
        |world| {
            (0..3).for_each(|mm| world.switch_to(1, mm));
            assert_eq!(world.allocator.generation(), 2);
        },
        [|world| world.switch_to(0, 1), |world| world.switch_to(1, 1)],
    );
}

#[test]
fn a_release_and_a_switch_to_another() {
    explore(
        one_runs,
        [|world| world.allocator.release(&world.machine, &world.mms[0]), |world| world.switch_to(1, 2)],
    );
}

/// A descriptor, with the barrier by which changes to it are published.
struct Descriptor {
    version: AtomicU64,
    walked: Mutex<Option<u64>>,
}

// SAFETY: no `TableFrame` of it is ever made, so `slots` is never called.
unsafe impl Mmu for Descriptor {
    const GRANULE: Granule = Granule::K4;

    fn slots(&self, _: TableFrame) -> &[Slot] {
        unreachable!("there are no tables")
    }

    fn features(&self) -> Features {
        unreachable!("there are no tables")
    }

    fn publish(&self) {
        fence(Ordering::SeqCst);
    }

    fn invalidate(&self, operation: Tlbi) {
        unreachable!("{operation} without a rollover")
    }

    fn complete(&self) {}

    fn invalidate_local(&self, operation: Tlbi) {
        unreachable!("{operation} without a rollover")
    }
}

/// Who finds that an mm has no ASID flushes nothing: then no CPU may walk what was there before.
#[test]
fn a_change_that_is_not_flushed_is_seen_by_who_gets_an_asid() {
    loom::model(|| {
        let allocator = Arc::new(AsidAllocator::<1>::new(4, vec![0].leak()));
        let context = Arc::new(Context::new());
        let mmu = Arc::new(Descriptor { version: AtomicU64::new(0), walked: Mutex::new(None) });
        let walker = {
            let (context, mmu) = (context.clone(), mmu.clone());
            thread::spawn(move || {
                allocator.switch_to(&*mmu, 0, &context);
                *mmu.walked.lock().unwrap() = Some(mmu.version.load(Ordering::Relaxed));
            })
        };
        mmu.version.store(1, Ordering::Relaxed);
        mmu.publish();
        let flushed = context.asid().is_some();
        walker.join().unwrap();
        assert!(
            flushed || *mmu.walked.lock().unwrap() == Some(1),
            "an old descriptor is cached, and nothing flushed"
        );
    });
}
