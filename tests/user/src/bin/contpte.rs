//! Drives each call on page-table entries from EL0, on whole blocks, on parts and across their edges, and what went wrong with
//! each elsewhere. The kernel's self-tests give the argument `here`: then the program asks the kernel after each step whether
//! the block is folded, and has it take pages as if memory were short. Elsewhere it only looks at its memory.
#![no_std]
#![no_main]

use user::fold::{
    self, FOLDED, HOLE, MISALIGNED, MIXED_ATTRIBUTES, NO_TABLE, NOTHING, state, state_is_one_of,
};
use user::println;
use user::start::Environment;
use user::sys::{
    ANONYMOUS, FIXED, READ, READ_EXECUTE, READ_WRITE, exited, in_child, mmap, mprotect, munmap, nr, peek,
    poke, raw, reclaim,
};

const PAGE: usize = 4096;
const PAGES: usize = 16;
const BLOCK: usize = PAGES * PAGE;
/// What one last-level table translates.
const TABLE: usize = 512 * PAGE;
const MREMAP_MAYMOVE_FIXED: usize = 3;
const MADV_DONTNEED: usize = 4;
const MADV_FREE: usize = 8;
const MADV_COLD: usize = 20;
const ALL: usize = usize::MAX;

/// Has pages taken as if memory were short, and how many that are.
#[track_caller]
fn taken(expected: usize, what: &str) {
    if fold::asks() {
        let found = reclaim(ALL).expect("nobody else has this address space");
        assert_eq!(found, expected, "{what}");
    }
}

fn advise(at: usize, bytes: usize, advice: usize) {
    raw(nr::MADVISE, &[at, bytes, advice]).expect("madvise");
}

/// Blocks of memory from an address that is a multiple of `align`, with room around them.
fn blocks(nr: usize, align: usize) -> usize {
    mmap(nr * BLOCK + align, READ_WRITE, ANONYMOUS).expect("memory").next_multiple_of(align)
}

/// What page `page` of a range that was [`written`] holds.
fn value(page: usize) -> u8 {
    1 + (page % 200) as u8
}

/// Folded blocks; each page has another value.
fn written_at(start: usize, nr: usize) -> usize {
    (0..nr * PAGES).for_each(|page| poke(start + page * PAGE, value(page)));
    (0..nr).for_each(|block| state(start + block * BLOCK, FOLDED, "it was written to"));
    start
}

fn written(nr: usize) -> usize {
    written_at(blocks(nr, BLOCK), nr)
}

/// The pages of a range that was [`written`] hold what they held.
#[track_caller]
fn holds(start: usize, mut pages: core::ops::Range<usize>) {
    let wrong = pages.find(|&page| peek(start + page * PAGE) != value(page));
    assert_eq!(wrong, None, "this page holds another value");
}

/// `ptep_get`, `clear_young_dirty_ptes`: young and dirty are those of all entries of a block.
fn young_and_dirty() {
    let start = written(3);
    taken(0, "what is dirty stays");
    advise(start, BLOCK, MADV_FREE);
    state(start, FOLDED, "it is clean, as a whole");
    poke(start + 5 * PAGE, value(5));
    state(start, FOLDED, "a page of it is dirty");
    taken(0, "one dirty page keeps the block");
    holds(start, 0..PAGES);

    // From page 3 of a block to page 5 of the next but one.
    let part = 3..2 * PAGES + 5;
    advise(start + part.start * PAGE, part.len() * PAGE, MADV_COLD);
    (0..3).for_each(|block| state(start + block * BLOCK, FOLDED, "old, partly"));
    holds(start, 0..3 * PAGES);
    advise(start + part.start * PAGE, part.len() * PAGE, MADV_FREE);
    state(start + BLOCK, FOLDED, "wholly in the range");
    taken(part.len(), "what is in the range, and nothing else");
    state(start, if fold::asks() { HOLE } else { FOLDED }, "some of it went");
    holds(start, 0..part.start);
    holds(start, part.end..3 * PAGES);
    println!("young and dirty are of the block, and of no other");
}

/// `ptep_clear_flush_young`, `ptep_set_access_flags`: aging.
fn aging() {
    let start = written(2);
    advise(start, 2 * BLOCK, MADV_FREE);
    holds(start, 3..4);
    taken(PAGES, "the block that nobody has used");
    state(start, FOLDED, "the other is old now, as a whole");
    holds(start, 0..PAGES);
    state(start, FOLDED, "and young again");
    taken(0, "it was used since");
    taken(PAGES, "but not since then");
    state(start, HOLE, "it is gone");
    println!("what was used lately stays, and stays folded");
}

/// `ptep_set_access_flags`: no fault comes again and again, on CPUs that set neither flag.
fn access_flags() {
    let start = written(1);
    advise(start, BLOCK, MADV_COLD);
    for page in [7, 0, PAGES - 1] {
        holds(start, page..page + 1);
        state(start, FOLDED, "read again");
    }
    advise(start, BLOCK, MADV_FREE);
    for page in [7, 0, PAGES - 1] {
        poke(start + page * PAGE, value(page));
        state(start, FOLDED, "written again");
    }
    // Dirty, read-only, writable, and written to.
    for bytes in [PAGE, BLOCK] {
        mprotect(start, bytes, READ).expect("mprotect");
        mprotect(start, bytes, READ_WRITE).expect("mprotect");
        poke(start, value(0));
        state(start, FOLDED, "dirty before and after");
    }
    taken(0, "nothing was lost of it");
    holds(start, 0..PAGES);
    println!("each access ends");
}

/// `set_ptes`: the last of a block's pages folds it, where addresses and frames agree.
fn one_by_one() {
    let start = written(2);
    let to = blocks(4, BLOCK);
    munmap(to, 4 * BLOCK).expect("munmap");
    let move_page = |from: usize, to: usize| {
        assert_eq!(raw(nr::MREMAP, &[from, PAGE, PAGE, MREMAP_MAYMOVE_FIXED, to]), Ok(to));
    };
    for page in 0..PAGES {
        move_page(start + page * PAGE, to + page * PAGE);
        state(to, if page == PAGES - 1 { FOLDED } else { HOLE }, "upwards");
    }
    for page in (0..PAGES).rev() {
        move_page(start + BLOCK + page * PAGE, to + BLOCK + page * PAGE);
        state(to + BLOCK, if page == 0 { FOLDED } else { HOLE }, "downwards");
    }
    holds(to, 0..2 * PAGES);
    println!("pages that come one by one make a block");
}

/// `ptep_clear`, `get_and_clear_ptes`: partial ends keep what they had.
fn clearing() {
    let start = written(4);
    munmap(start + 4 * PAGE, PAGE).expect("munmap");
    state(start, HOLE, "one page is gone");
    munmap(start + BLOCK + 3 * PAGE, 2 * BLOCK + 2 * PAGE).expect("munmap");
    state(start + BLOCK, HOLE, "its end is gone");
    state(start + 2 * BLOCK, HOLE, "all of it is gone");
    state(start + 3 * BLOCK, HOLE, "its begin is gone");
    taken(0, "what is left is as dirty as it was");
    holds(start, 0..4);
    holds(start, 5..PAGES + 3);
    holds(start, 3 * PAGES + 5..4 * PAGES);
    println!("what is left of a block is as it was");
}

/// `modify_prot_start` and `modify_prot_commit`, and entries that are not valid.
fn protecting() {
    let start = written(3);
    mprotect(start + 8 * PAGE, 2 * BLOCK, READ).expect("mprotect");
    state(start, MIXED_ATTRIBUTES, "its end");
    state(start + BLOCK, FOLDED, "all of it");
    state(start + 2 * BLOCK, MIXED_ATTRIBUTES, "its begin");
    mprotect(start, 3 * BLOCK, READ_WRITE).expect("mprotect");
    (0..3).for_each(|block| state(start + block * BLOCK, FOLDED, "writable again"));
    // What may not be accessed has entries that are not valid, and is forked, moved and given back so.
    mprotect(start + 2 * PAGE, BLOCK, 0).expect("mprotect");
    state(start, HOLE, "its end is not valid");
    state(start + BLOCK, HOLE, "its begin is not valid");
    let status = in_child(|| {
        mprotect(start, 3 * BLOCK, READ_WRITE).expect("mprotect");
        holds(start, 0..3 * PAGES);
        (0..3 * PAGES).for_each(|page| poke(start + page * PAGE, 0));
        0
    });
    assert_eq!(status, exited(0));
    munmap(start + PAGES * PAGE, PAGE).expect("munmap");
    mprotect(start, BLOCK, READ_WRITE).expect("mprotect");
    state(start, MIXED_ATTRIBUTES, "valid again, but for what fork has write-protected");
    poke(start, value(0));
    state(start, FOLDED, "which a write takes back");
    holds(start, 0..PAGES);
    mprotect(start + BLOCK + PAGE, BLOCK - PAGE, READ_WRITE).expect("mprotect");
    holds(start, PAGES + 1..3 * PAGES);
    println!("permissions come and go");
}

/// `wrprotect_ptes`: fork, and what is done to parts of what is shared then.
fn copying() {
    let start = written(3);
    // A block of which a half is another mapping.
    mprotect(start + 8 * PAGE, 8 * PAGE, READ).expect("mprotect");
    let status = in_child(|| {
        state_is_one_of(start, &[NOTHING, FOLDED], "two mappings, neither of which may be written to now");
        state(start + BLOCK, FOLDED, "shared");
        // Permission that comes back must not make writable what is shared: from the middle of a folio, and of a half.
        mprotect(start, BLOCK, READ_WRITE).expect("mprotect");
        mprotect(start + BLOCK + 8 * PAGE, 4 * PAGE, READ).expect("mprotect");
        mprotect(start + BLOCK + 8 * PAGE, 4 * PAGE, READ_WRITE).expect("mprotect");
        (0..3 * PAGES).for_each(|page| poke(start + page * PAGE, 0));
        (0..3).for_each(|block| state(start + block * BLOCK, FOLDED, "copied"));
        0
    });
    assert_eq!(status, exited(0));
    holds(start, 0..3 * PAGES);
    mprotect(start, BLOCK, READ_WRITE).expect("mprotect");
    poke(start + PAGE, value(1));
    (0..3).for_each(|block| state_is_one_of(start + block * BLOCK, &[FOLDED, NOTHING], "nobody else's"));
    // A part is given back by the child, which writes to others of the block.
    let status = in_child(|| {
        advise(start + BLOCK + 3 * PAGE, 2 * PAGE, MADV_DONTNEED);
        poke(start + BLOCK + 5 * PAGE, 0);
        assert_eq!((peek(start + BLOCK + 3 * PAGE), peek(start + BLOCK + 5 * PAGE)), (0, 0));
        holds(start, PAGES + 6..2 * PAGES);
        0
    });
    assert_eq!(status, exited(0));
    holds(start, 0..3 * PAGES);
    println!("what is shared is nobody's to write");
}

/// Batches that would go on: over the edge of a folio, a mapping, and a table.
fn edges() {
    // Two blocks before the edge of a table, and two behind it.
    let edge = blocks(TABLE / BLOCK + 4, TABLE) + TABLE;
    let start = written_at(edge - 2 * BLOCK, 4);
    for (prot, expected) in [(READ, MIXED_ATTRIBUTES), (READ_WRITE, FOLDED)] {
        mprotect(start + PAGE, 4 * BLOCK - 2 * PAGE, prot).expect("mprotect");
        state(start, expected, "before the edge of the table");
        state(edge - BLOCK, FOLDED, "at it");
        state(edge, FOLDED, "behind it");
        state(edge + BLOCK, expected, "one further");
    }
    advise(edge - PAGE, 2 * PAGE, MADV_FREE);
    taken(2, "one on each side of the edge");
    assert!(raw(nr::MADVISE, &[edge - PAGE, 2 * PAGE, MADV_DONTNEED]).is_ok());
    holds(start, 0..2 * PAGES - 1);
    holds(start, 2 * PAGES + 1..4 * PAGES);
    // Not congruent, and over the edge.
    let to = blocks(TABLE / BLOCK + 4, TABLE) + TABLE - 3 * PAGE;
    assert_eq!(raw(nr::MREMAP, &[start, BLOCK, BLOCK, MREMAP_MAYMOVE_FIXED, to]), Ok(to));
    state_is_one_of(to + 3 * PAGE, &[MISALIGNED, HOLE], "behind the edge, it is not congruent");
    holds(to, 0..PAGES);
    println!("no batch goes too far");
}

/// What moves as whole tables: with a part of one before and behind it.
fn tables() {
    const NR: usize = 2 * TABLE / BLOCK + 2;
    let start = written_at(blocks(3 * TABLE / BLOCK, TABLE) + TABLE - BLOCK, NR);
    // What a TLB and its walk caches have of the new place must not stay.
    let to = written_at(blocks(3 * TABLE / BLOCK, TABLE) + TABLE - BLOCK, NR);
    (0..NR * PAGES).for_each(|page| poke(to + page * PAGE, 0));
    let bytes = NR * BLOCK;
    assert_eq!(raw(nr::MREMAP, &[start, bytes, bytes, MREMAP_MAYMOVE_FIXED, to]), Ok(to));
    holds(to, 0..NR * PAGES);
    (0..NR).for_each(|block| state(to + block * BLOCK, FOLDED, "moved"));
    state(start + BLOCK, NO_TABLE, "there is nothing where it was");
    state(start + BLOCK + TABLE, NO_TABLE, "nor there");
    let fixed = ANONYMOUS | FIXED;
    assert_eq!(raw(nr::MMAP, &[start, bytes, READ_WRITE, fixed, ALL, 0]), Ok(start));
    assert!((0..NR * PAGES).all(|page| peek(start + page * PAGE) == 0), "new memory has old contents");
    let status = in_child(|| {
        holds(to, 0..NR * PAGES);
        (0..NR * PAGES).for_each(|page| poke(to + page * PAGE, 0));
        0
    });
    assert_eq!(status, exited(0));
    holds(to, 0..NR * PAGES);
    assert_eq!(raw(nr::MREMAP, &[to, bytes, bytes, MREMAP_MAYMOVE_FIXED, start]), Ok(start));
    holds(start, 0..NR * PAGES);
    println!("whole tables move");
}

/// Code that is written, executed, written again and executed: in a block.
fn code() {
    let start = blocks(1, BLOCK);
    for number in [42_u32, 43] {
        let (mov, ret) = (0x5280_0000 | number << 5, 0xd65f_03c0_u32);
        for page in 0..PAGES {
            let at = (start + page * PAGE) as *mut u32;
            // SAFETY: memory of this program's, which is not executed now.
            unsafe {
                at.write_volatile(mov);
                at.add(1).write_volatile(ret);
            }
        }
        mprotect(start, BLOCK, READ_EXECUTE).expect("mprotect");
        state(start, FOLDED, "executable");
        for page in [0, 9, PAGES - 1] {
            // SAFETY: `mov w0, #number; ret`. The kernel makes what was written visible to instruction fetches; QEMU's user
            // emulation sees it as the pages were not executable meanwhile.
            let function =
                unsafe { core::mem::transmute::<usize, extern "C" fn() -> u32>(start + page * PAGE) };
            assert_eq!(function(), number);
        }
        mprotect(start, BLOCK, READ_WRITE).expect("mprotect");
        state(start, FOLDED, "writable");
    }
    let over = raw(nr::MMAP, &[start + PAGE, PAGE, READ, ANONYMOUS | FIXED, ALL, 0]);
    assert_eq!((over, peek(start + PAGE)), (Ok(start + PAGE), 0));
    println!("code that is written is what is executed");
}

#[unsafe(no_mangle)]
fn main(environment: Environment) -> i32 {
    fold::init(environment);
    young_and_dirty();
    aging();
    access_flags();
    one_by_one();
    clearing();
    protecting();
    copying();
    edges();
    tables();
    code();
    0
}
