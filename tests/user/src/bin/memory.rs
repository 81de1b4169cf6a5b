//! The calls on memory, and what is in it.
#![no_std]
#![no_main]

use core::arch::asm;

use user::start::Environment;
use user::sys::{
    self, ANONYMOUS, FIXED, READ, READ_EXECUTE, READ_WRITE, SHARED, errno, in_child, mmap, mprotect, munmap,
    nr, peek, poke, raw,
};
use user::{on_qemu_user, println};

const PAGE: usize = 4096;
const BLOCK: usize = 16 * PAGE;
const SIGSEGV: i32 = 11;
const MREMAP_MAYMOVE: usize = 1;
const MADV_DONTNEED: usize = 4;
const MAP_FIXED_NOREPLACE: usize = 0x10_0000;

fn pattern(at: usize) -> u8 {
    (at / 7) as u8 ^ (at >> 12) as u8
}

fn fill(start: usize, bytes: usize) {
    (0..bytes).step_by(64).for_each(|offset| poke(start + offset, pattern(offset)));
}

fn holds_pattern(start: usize, bytes: usize) -> bool {
    (0..bytes).step_by(64).all(|offset| peek(start + offset) == pattern(offset))
}

fn is_zero(start: usize, bytes: usize) -> bool {
    (0..bytes).step_by(64).all(|offset| peek(start + offset) == 0)
}

fn resident(start: usize) -> u8 {
    let mut vec = [0xff_u8; 1];
    raw(nr::MINCORE, &[start, PAGE, vec.as_mut_ptr() as usize]).expect("it is mapped");
    // SAFETY: the kernel has written it.
    unsafe { vec.as_ptr().read_volatile() & 1 }
}

fn anonymous(on_qemu_user: bool) {
    let size = 8 * BLOCK;
    let start = mmap(size, READ_WRITE, ANONYMOUS).expect("memory");
    assert!(is_zero(start, size), "anonymous memory is not zero");
    fill(start, size);
    assert!(holds_pattern(start, size));
    println!("anonymous memory is zero, and keeps what is written");

    assert_eq!(resident(start), 1);
    raw(nr::MADVISE, &[start + BLOCK, 2 * BLOCK, MADV_DONTNEED]).expect("madvise");
    assert!(holds_pattern(start, BLOCK) && is_zero(start + BLOCK, 2 * BLOCK));
    println!("madvise: what is not needed is zero again");

    let tagged = |at: usize| at | 0x55 << 56;
    raw(nr::MADVISE, &[start + BLOCK, BLOCK, MADV_DONTNEED]).expect("madvise");
    poke(tagged(start + BLOCK), 7);
    assert_eq!((peek(start + BLOCK), peek(tagged(start + BLOCK)), peek(tagged(start))), (7, 7, pattern(0)));
    println!("the top byte of an address is ignored");

    mprotect(start, PAGE, READ).expect("mprotect");
    assert_eq!(peek(start), pattern(0));
    assert_eq!(
        in_child(|| {
            poke(start, 1);
            0
        }),
        SIGSEGV
    );
    assert_eq!(
        in_child(|| {
            poke(start + PAGE, 1);
            0
        }),
        0
    );
    mprotect(start, PAGE, 0).expect("mprotect");
    assert_eq!(in_child(|| i32::from(peek(start))), SIGSEGV);
    mprotect(start, PAGE, READ_WRITE).expect("mprotect");
    assert_eq!(peek(start), pattern(0));
    println!("mprotect: reads and writes are refused, and allowed again");

    munmap(start + PAGE, PAGE).expect("munmap");
    assert_eq!(in_child(|| i32::from(peek(start + PAGE))), SIGSEGV);
    assert_eq!(mprotect(start, 3 * PAGE, READ), Err(errno::ENOMEM));
    let again =
        raw(nr::MMAP, &[start + PAGE, PAGE, READ_WRITE, ANONYMOUS | MAP_FIXED_NOREPLACE, usize::MAX, 0]);
    assert_eq!(again, Ok(start + PAGE));
    let twice =
        raw(nr::MMAP, &[start + PAGE, PAGE, READ_WRITE, ANONYMOUS | MAP_FIXED_NOREPLACE, usize::MAX, 0]);
    match twice {
        // It takes the address for a hint.
        Ok(elsewhere) if on_qemu_user => _ = munmap(elsewhere, PAGE).expect("munmap"),
        twice => assert_eq!(twice, Err(errno::EEXIST)),
    }
    mprotect(start, PAGE, READ_WRITE).expect("mprotect");
    assert!(is_zero(start + PAGE, PAGE));
    poke(start + PAGE, 7);
    let over = raw(nr::MMAP, &[start, 2 * PAGE, READ_WRITE, ANONYMOUS | FIXED, usize::MAX, 0]);
    assert_eq!((over, peek(start + PAGE)), (Ok(start), 0));
    println!("munmap and fixed mappings");
    munmap(start, size).expect("munmap");
    munmap(start, size).expect("nothing there is no error");
}

fn remap() {
    let start = mmap(2 * BLOCK, READ_WRITE, ANONYMOUS).expect("memory");
    fill(start, 2 * BLOCK);
    let grown = raw(nr::MREMAP, &[start, 2 * BLOCK, 64 * BLOCK, MREMAP_MAYMOVE]).expect("mremap");
    assert!(holds_pattern(grown, 2 * BLOCK) && is_zero(grown + 2 * BLOCK, 62 * BLOCK));
    assert_eq!(raw(nr::MREMAP, &[grown, 64 * BLOCK, PAGE, 0]), Ok(grown));
    assert!(holds_pattern(grown, PAGE));
    assert_eq!(in_child(|| i32::from(peek(grown + PAGE))), SIGSEGV);
    munmap(grown, PAGE).expect("munmap");
    println!("mremap: what moves keeps its contents");
}

fn heap() {
    let start = raw(nr::BRK, &[0]).expect("brk");
    assert_eq!(raw(nr::BRK, &[start + 3 * BLOCK]), Ok(start + 3 * BLOCK));
    assert!(is_zero(start, 3 * BLOCK));
    fill(start, 3 * BLOCK);
    assert_eq!(raw(nr::BRK, &[start + PAGE]), Ok(start + PAGE));
    assert!(holds_pattern(start, PAGE));
    assert_eq!(raw(nr::BRK, &[start + 2 * BLOCK]), Ok(start + 2 * BLOCK));
    let after = (start + PAGE).next_multiple_of(PAGE);
    assert!(is_zero(after, start + 2 * BLOCK - after));
    assert_eq!(raw(nr::BRK, &[start]), Ok(start));
    println!("brk: the heap grows, shrinks, and is zero where it grows again");
}

fn shared() {
    let start = mmap(BLOCK, READ_WRITE, SHARED).expect("memory");
    let private = mmap(BLOCK, READ_WRITE, ANONYMOUS).expect("memory");
    fill(private, BLOCK);
    let status = in_child(|| {
        assert!(holds_pattern(private, BLOCK));
        fill(start, BLOCK);
        (0..BLOCK).step_by(64).for_each(|offset| poke(private + offset, 0xee));
        0
    });
    assert_eq!(status, 0);
    assert!(holds_pattern(start, BLOCK), "shared memory is not shared");
    assert!(holds_pattern(private, BLOCK), "private memory is shared");
    munmap(start, BLOCK).expect("munmap");
    munmap(private, BLOCK).expect("munmap");
    println!("shared memory is shared with a child, private is not");
}

/// Many tables: each read is far enough from the one before to need its own. What the kernel knows them by goes with them.
fn tables() {
    const TABLES: usize = 700;
    const TABLE: usize = 512 * PAGE;
    let start = mmap(TABLES * TABLE, READ, ANONYMOUS).expect("addresses");
    assert!((start..start + TABLES * TABLE).step_by(TABLE).all(|at| peek(at) == 0));
    munmap(start, TABLES * TABLE).expect("munmap");
    println!("memory that is far apart reads as zero");
}

/// Writes instructions and executes them, after the maintenance that the architecture asks a program for.
fn code() {
    const RETURN_42: [u32; 2] = [0x5280_0540, 0xd65f_03c0]; // mov w0, #42; ret
    let start = mmap(PAGE, READ_WRITE, ANONYMOUS).expect("memory");
    // SAFETY: the page was just mapped for it. Then there is a function at its begin.
    let result = unsafe {
        (start as *mut [u32; 2]).write_volatile(RETURN_42);
        asm!("dc cvau, {0}", "dsb ish", "ic ivau, {0}", "dsb ish", "isb", in(reg) start);
        mprotect(start, PAGE, READ_EXECUTE).expect("mprotect");
        core::mem::transmute::<usize, extern "C" fn() -> i32>(start)()
    };
    assert_eq!(result, 42);
    mprotect(start, PAGE, READ).expect("mprotect");
    // SAFETY: the child is killed by it.
    let status = in_child(|| unsafe { core::mem::transmute::<usize, extern "C" fn() -> i32>(start)() });
    assert_eq!(status, SIGSEGV);
    munmap(start, PAGE).expect("munmap");
    println!("code is executed where it may be");
}

#[unsafe(no_mangle)]
fn main(environment: Environment) -> i32 {
    anonymous(on_qemu_user(environment));
    remap();
    heap();
    shared();
    tables();
    code();
    sys::exit(0)
}
