//! Opens files when all memory is taken: each is opened, or there is no memory for it, and nothing worse. A crowd of children
//! does, since a process may have few descriptors, each with a name as long as can be.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

use user::println;
use user::start::Environment;
use user::sys::{
    self, ANONYMOUS, READ_WRITE, SHARED, errno::ENOMEM, exit, exited, fork, mmap, nr, raw, wait,
};

const PAGE: usize = 4096;
const STEP: usize = 1 << 20;
const CHILDREN: u32 = 40;
const FILES: usize = 60;
const NAME: usize = 4000;
const MADV_POPULATE_WRITE: usize = 23;

/// What all of them share.
struct Shared {
    ready: AtomicU32,
    starved: AtomicU32,
    opened: AtomicU32,
    refused: AtomicU32,
    tried: AtomicU32,
    enough: AtomicU32,
}

fn wait_for(what: &AtomicU32, value: u32) {
    while what.load(Ordering::Acquire) < value {
        let _ = raw(nr::SCHED_YIELD, &[]);
    }
}

fn child(shared: &Shared, directory: usize, name: &[u8]) -> i32 {
    let open = || raw(nr::OPENAT, &[directory, name.as_ptr() as usize, 0]);
    // Once while there is memory, for the pages that it takes.
    let first = open().expect("there is memory");
    raw(nr::CLOSE, &[first]).expect("it was just opened");
    shared.ready.fetch_add(1, Ordering::AcqRel);
    wait_for(&shared.starved, 1);
    let mut status = 0;
    for _ in 0..FILES {
        match open() {
            Ok(_) => shared.opened.fetch_add(1, Ordering::AcqRel),
            Err(ENOMEM) => shared.refused.fetch_add(1, Ordering::AcqRel),
            Err(sys::Errno(number)) => {
                status = number;
                0
            }
        };
    }
    shared.tried.fetch_add(1, Ordering::AcqRel);
    // Nobody gives anything back before all have tried.
    wait_for(&shared.enough, 1);
    status
}

#[unsafe(no_mangle)]
fn main(_: Environment) -> i32 {
    let shared = mmap(PAGE, READ_WRITE, SHARED).expect("memory");
    // SAFETY: a page of zeroes of this program's, which is mapped for good.
    let shared = unsafe { &*(shared as *const Shared) };
    shared.ready.store(0, Ordering::Release);
    let directory = sys::open(b"/bin\0").expect("there is a directory");
    let mut name = [0; NAME];
    name[..NAME - 1].as_chunks_mut().0.iter_mut().for_each(|step| *step = *b"./");
    for _ in 0..CHILDREN {
        if fork().expect("there is memory") == 0 {
            exit(child(shared, directory, &name));
        }
    }
    wait_for(&shared.ready, CHILDREN);
    // Everything, in ever smaller steps.
    let mut bytes = STEP;
    while bytes >= PAGE {
        let start = mmap(bytes, READ_WRITE, ANONYMOUS).unwrap_or(0);
        if start == 0 || raw(nr::MADVISE, &[start, bytes, MADV_POPULATE_WRITE]) == Err(ENOMEM) {
            bytes /= 2;
        }
    }
    shared.starved.store(1, Ordering::Release);
    wait_for(&shared.tried, CHILDREN);
    let (opened, refused) = (&shared.opened, &shared.refused);
    let (opened, refused) = (opened.load(Ordering::Acquire), refused.load(Ordering::Acquire));
    shared.enough.store(1, Ordering::Release);
    for _ in 0..CHILDREN {
        assert_eq!(wait(-1).map(|(_, status)| status), Ok(exited(0)));
    }
    assert_eq!(opened + refused, CHILDREN * FILES as u32);
    assert!(refused > 0, "there was memory for all");
    println!("files were opened as long as there was memory");
    0
}
