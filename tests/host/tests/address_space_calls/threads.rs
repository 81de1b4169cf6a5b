//! Several threads of a process at once: none waits for ever, none finds what should not be, and nothing is lost.
//!
//! What a TLB may hold is not judged here: to the model, all threads are one CPU.

use std::sync::atomic::{AtomicBool, Ordering};

use arch::VirtAddr;
use mm::mman::*;
use mm::{Access, Errno, Fault};
use model::{GranuleType, K4, K16, K64};
use pleat_host_tests::address_space::{World, with_world};

use super::{Calls, NEOVERSE, PRIVATE, RW, SHARED, at};

/// Rounds of each thread.
const ROUNDS: u64 = 40;

fn threads_at_once<G: GranuleType + Sync>(world: &mut World<'_, G>) {
    let (block, va) = (world.block(), World::<G>::va);
    world.map(0, 0, 2 * block, RW, PRIVATE);
    world.map(0, 2 * block, block, RW, SHARED);
    let space = &world.processes[0].space;
    let (first, over) = (at(world, 0), &AtomicBool::new(false));
    let world = &*world;
    std::thread::scope(|scope| {
        // Each has a page of every block to itself, which keeps what was written there.
        let users = (0..2_u64).map(|user| {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    for page in [user, block + 7 + user, 2 * block + user] {
                        let word = [(round * 2 + user) as u8; 4];
                        space.write(first + va(page), &word).expect("it may be written");
                        let mut found = [0; 4];
                        space.read(first + va(page), &mut found).expect("it may be read");
                        assert_eq!(found, word, "page {page} in round {round}");
                        let result = space.handle_fault(VirtAddr::new(first + va(page)), Access::Read);
                        assert!(result.is_ok(), "{result:?}");
                    }
                }
            })
        });
        let users: Vec<_> = users.collect();
        // Changes what is around them, or what may come back.
        scope.spawn(move || {
            for round in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let page = first + va(block + 3);
                space.mprotect(page, va(2), [PROT_READ, 0][round % 2]).expect("it is mapped");
                space.mprotect(page, va(2), RW).expect("it is mapped");
                space.madvise(page, va(2), [MADV_DONTNEED, MADV_FREE][round % 2]).expect("it is mapped");
                space.refold_pass();
                space.reclaim(1);
                let other =
                    space.mmap(0, va(block), RW, PRIVATE | MAP_POPULATE, None).expect("there is room");
                let flags = MREMAP_MAYMOVE;
                let moved = space.mremap(other, va(block), va(2 * block), flags, 0).expect("there is room");
                space.munmap(moved, va(2 * block)).expect("it is mapped");
            }
        });
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let (mm, _) = world.new_mm().expect("a root table");
                match space.fork(mm) {
                    Ok(child) => {
                        let result = child.handle_fault(VirtAddr::new(first + va(block)), Access::Write);
                        assert!(matches!(result, Ok(_) | Err(Fault::OutOfMemory)), "{result:?}");
                    }
                    Err(errno) => assert_eq!(errno, Errno::OutOfMemory),
                }
            }
        });
        users.into_iter().for_each(|user| user.join().expect("it found what it wrote"));
        over.store(true, Ordering::Relaxed);
    });
    // Of no interest: see above.
    let _ = world.machine.check();
}

#[test]
fn threads_at_once_4k() {
    with_world::<K4>(NEOVERSE, threads_at_once);
}

#[test]
fn threads_at_once_16k() {
    with_world::<K16>(NEOVERSE, threads_at_once);
}

#[test]
fn threads_at_once_64k() {
    with_world::<K64>(NEOVERSE, threads_at_once);
}
