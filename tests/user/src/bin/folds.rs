//! What folds and unfolds blocks of memory, by what a program does. The kernel's self-tests give the argument `here`: then the
//! program asks the kernel for the state of the block after each step, by a call that Linux does not have. Elsewhere it only
//! looks at its memory.
#![no_std]
#![no_main]

use core::arch::global_asm;

use user::fold::{
    self, DISCONTIGUOUS, FOLDED, HOLE, MISALIGNED, MIXED_ATTRIBUTES, NOTHING, fold_state, state,
    state_is_one_of,
};
use user::println;
use user::start::Environment;
use user::sys::{
    ANONYMOUS, READ, READ_WRITE, SHARED, exited, in_child, mmap, mprotect, munmap, now, nr, open, peek, poke,
    raw, sleep,
};

const PAGE: usize = 4096;
const BLOCK: usize = 16 * PAGE;
const MREMAP_MAYMOVE_FIXED: usize = 3;
const MAP_PRIVATE: usize = 2;
const MADV_DONTNEED: usize = 4;
const MADV_FREE: usize = 8;
const MADV_COLD: usize = 20;
const MADV_POPULATE_READ: usize = 22;
const MADV_POPULATE_WRITE: usize = 23;

/// Two blocks of fresh memory, aligned, with room around them.
fn blocks() -> usize {
    let memory = mmap(4 * BLOCK, READ_WRITE, ANONYMOUS).expect("memory");
    memory.next_multiple_of(BLOCK)
}

fn written() -> usize {
    let start = blocks();
    poke(start, 1);
    poke(start + BLOCK, 2);
    state(start, FOLDED, "one write makes a block");
    state(start + BLOCK, FOLDED, "and another the next");
    start
}

fn first_use() {
    let start = blocks();
    assert_eq!(peek(start), 0);
    state(start, FOLDED, "what is read first is the block of zeroes");
    poke(start + 5 * PAGE, 7);
    state(start, FOLDED, "what is written replaces it by a block");
    assert_eq!((peek(start), peek(start + 5 * PAGE)), (0, 7));
    raw(nr::MADVISE, &[start + BLOCK, BLOCK, MADV_POPULATE_WRITE]).expect("madvise");
    state(start + BLOCK, FOLDED, "populated for writing");
    raw(nr::MADVISE, &[start + BLOCK, BLOCK, MADV_DONTNEED]).expect("madvise");
    raw(nr::MADVISE, &[start + BLOCK, BLOCK, MADV_POPULATE_READ]).expect("madvise");
    state(start + BLOCK, FOLDED, "populated for reading");
    println!("memory comes in blocks");
}

fn permissions() {
    let start = written();
    mprotect(start + 3 * PAGE, PAGE, READ).expect("mprotect");
    state(start, MIXED_ATTRIBUTES, "one page is protected");
    state(start + BLOCK, FOLDED, "the other block is not touched");
    mprotect(start + 3 * PAGE, PAGE, READ_WRITE).expect("mprotect");
    state(start, FOLDED, "the page is as the others again");
    mprotect(start + 8 * PAGE, BLOCK, READ).expect("mprotect");
    state(start, MIXED_ATTRIBUTES, "a half is protected");
    state(start + BLOCK, MIXED_ATTRIBUTES, "and a half of the next");
    mprotect(start, 2 * BLOCK, READ).expect("mprotect");
    state(start, FOLDED, "both are read-only");
    mprotect(start, 2 * BLOCK, READ_WRITE).expect("mprotect");
    poke(start + PAGE, 9);
    state(start, FOLDED, "and writable again");
    mprotect(start, BLOCK, 0).expect("mprotect");
    mprotect(start, BLOCK, READ_WRITE).expect("mprotect");
    state(start, FOLDED, "not accessible, and accessible again");
    assert_eq!((peek(start), peek(start + PAGE), peek(start + BLOCK)), (1, 9, 2));
    println!("mprotect unfolds what it has to, and what it undoes folds again");
}

fn unmapping() {
    let start = written();
    munmap(start + 7 * PAGE, PAGE).expect("munmap");
    state(start, HOLE, "a page is gone");
    let flags = ANONYMOUS | 0x10;
    assert_eq!(
        raw(nr::MMAP, &[start + 7 * PAGE, PAGE, READ_WRITE, flags, usize::MAX, 0]),
        Ok(start + 7 * PAGE)
    );
    poke(start + 7 * PAGE, 3);
    state(start, DISCONTIGUOUS, "another folio's page came in its place");
    raw(nr::MADVISE, &[start + BLOCK + 2 * PAGE, 3 * PAGE, MADV_DONTNEED]).expect("madvise");
    state(start + BLOCK, HOLE, "pages are given back");
    assert_eq!(peek(start + BLOCK + 2 * PAGE), 0);
    raw(nr::MADVISE, &[start, 2 * BLOCK, MADV_DONTNEED]).expect("madvise");
    poke(start, 4);
    poke(start + BLOCK, 5);
    state(start, FOLDED, "a new block");
    state(start + BLOCK, FOLDED, "and another");
    raw(nr::MADVISE, &[start, BLOCK, MADV_COLD]).expect("madvise");
    state(start, FOLDED, "a block that is cold stays one");
    raw(nr::MADVISE, &[start, BLOCK, MADV_FREE]).expect("madvise");
    state(start, FOLDED, "one that may be freed too");
    poke(start, 6);
    raw(nr::MADVISE, &[start + 2 * PAGE, 3 * PAGE, MADV_COLD]).expect("madvise");
    state(start, FOLDED, "one of which a part is cold");
    raw(nr::MADVISE, &[start + BLOCK + 2 * PAGE, 3 * PAGE, MADV_FREE]).expect("madvise");
    // A CPU that has nothing to do may have folded it meanwhile.
    state_is_one_of(start + BLOCK, &[NOTHING, FOLDED], "one of which a part may be freed");
    assert_eq!((peek(start), peek(start + BLOCK)), (6, 5));
    println!("what goes in parts unfolds, what comes as a whole folds");
}

fn moving() {
    let start = written();
    let elsewhere = blocks();
    let to = raw(nr::MREMAP, &[start, BLOCK, BLOCK, MREMAP_MAYMOVE_FIXED, elsewhere]).expect("mremap");
    state(to, FOLDED, "a block moves to a congruent place");
    assert_eq!(peek(to), 1);
    let askew = elsewhere + BLOCK + PAGE;
    let to = raw(nr::MREMAP, &[start + BLOCK, BLOCK, BLOCK, MREMAP_MAYMOVE_FIXED, askew]).expect("mremap");
    state(to, HOLE, "another one to a place that is not: before it is nothing");
    state(to + BLOCK - PAGE, MISALIGNED, "and its last page is the first of a block");
    assert_eq!(peek(to), 2);
    println!("mremap keeps blocks where they fit");
}

fn copies() {
    let start = written();
    let status = in_child(|| {
        state(start, FOLDED, "the child has the block, read-only");
        assert_eq!(peek(start), 1);
        poke(start + 4 * PAGE, 8);
        state(start, FOLDED, "a write of the child copies the block");
        assert_eq!((peek(start), peek(start + 4 * PAGE)), (1, 8));
        0
    });
    assert_eq!(status, exited(0));
    state(start, FOLDED, "the parent has it still");
    poke(start + 4 * PAGE, 9);
    state(start, FOLDED, "the last owner takes the whole block back");
    assert_eq!((peek(start), peek(start + 4 * PAGE)), (1, 9));
    let shared = mmap(4 * BLOCK, READ_WRITE, SHARED).expect("memory").next_multiple_of(BLOCK);
    poke(shared, 1);
    state(shared, FOLDED, "shared memory");
    let status = in_child(|| {
        poke(shared + PAGE, 2);
        state(shared, FOLDED, "and in the child");
        0
    });
    assert_eq!((status, peek(shared + PAGE)), (exited(0), 2));
    println!("fork and copy on write keep blocks");
}

/// What qualifies and was not folded by what changed it is folded by a CPU that has nothing to do.
fn idle() {
    const WRITE: usize = 2;
    const SECOND: u64 = 1_000_000_000;
    let start = written();
    // The same permission for the MMU, but another one for fork, which protects the block in parts for that.
    mprotect(start + 3 * PAGE, PAGE, WRITE).expect("mprotect");
    state(start, FOLDED, "what may be written to may be read");
    assert_eq!(in_child(|| 0), exited(0));
    state_is_one_of(start, &[NOTHING, FOLDED], "protected in parts by fork");
    if fold::asks() {
        let begin = now();
        while fold_state(start) != Ok(FOLDED) && now() - begin < 10 * SECOND {
            sleep(SECOND / 100);
        }
    }
    state(start, FOLDED, "nobody had anything to do");
    assert_eq!(peek(start), 1);
    println!("blocks that can be folded are, in the end");
}

global_asm!(
    // More than two blocks of text, in which one lies wholly.
    ".global long_text",
    "long_text:",
    ".rept 160 * 1024 / 4",
    "nop",
    ".endr",
    "ret",
);

unsafe extern "C" {
    safe fn long_text();
}

/// The program's own text, and its file mapped once more.
fn files(own: &[u8]) {
    long_text();
    let block = (long_text as *const () as usize).next_multiple_of(BLOCK);
    state(block, FOLDED, "the program's text");
    let mut path = [0; 4096];
    path[..own.len()].copy_from_slice(own);
    let fd = open(&path[..own.len() + 1]).expect("the program's own file");
    let size = raw(nr::LSEEK, &[fd, 0, 2]).expect("lseek");
    assert!(size > 2 * BLOCK);
    let around = mmap(4 * BLOCK, 0, ANONYMOUS).expect("room").next_multiple_of(BLOCK);
    let map = |prot| raw(nr::MMAP, &[around, 2 * BLOCK, prot, MAP_PRIVATE | 0x10, fd, 0]);
    assert_eq!((map(READ), peek(around)), (Ok(around), 0x7f));
    state(around, FOLDED, "a file");
    assert_eq!((map(READ_WRITE), peek(around)), (Ok(around), 0x7f));
    state(around, FOLDED, "a file that may be copied");
    poke(around + PAGE, 1);
    assert_eq!((peek(around), peek(around + PAGE)), (0x7f, 1));
    state(around, FOLDED, "a write copies the block");
    println!("files and the program's text are mapped in blocks");
}

#[unsafe(no_mangle)]
fn main(environment: Environment) -> i32 {
    fold::init(environment);
    first_use();
    permissions();
    unmapping();
    moving();
    copies();
    idle();
    files(environment.arg(0).expect("a program has a name"));
    0
}
