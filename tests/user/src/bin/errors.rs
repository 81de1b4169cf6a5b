//! Calls with bad pointers, lengths at the edges and ranges that wrap: the errno that Linux gives.
#![no_std]
#![no_main]

use user::start::Environment;
use user::sys::{
    self, ANONYMOUS, Errno, FIXED, READ, READ_WRITE, errno::*, mmap, mprotect, munmap, nr, peek, poke, raw,
};
use user::{on_qemu_user, println};

const PAGE: usize = 4096;
const SIGCHLD: usize = 17;
/// An address of the kernel's, one that is no address, and the page at 0.
const BAD: [usize; 3] = [0xffff_0000_4000_0000, 0x0123_0000_0000_0000, 8];
const MAX: usize = usize::MAX;
/// The last page that a user may map.
const LAST: usize = (1 << 48) - PAGE;

fn expect(what: &str, result: sys::Result, expected: Errno) {
    assert_eq!(result, Err(expected), "{what}");
}

fn pointers(readable: usize, edge: usize, on_qemu_user: bool) {
    for bad in BAD {
        expect("write", raw(nr::WRITE, &[1, bad, 1]), EFAULT);
        expect("writev", raw(nr::WRITEV, &[1, bad, 1]), EFAULT);
        expect("uname", raw(nr::UNAME, &[bad]), EFAULT);
        expect("getrandom", raw(nr::GETRANDOM, &[bad, 8, 0]), EFAULT);
        expect("clock_gettime", raw(nr::CLOCK_GETTIME, &[1, bad]), EFAULT);
        if !on_qemu_user {
            expect("nanosleep", raw(nr::NANOSLEEP, &[bad, 0]), EFAULT);
            expect("clock_nanosleep", raw(nr::CLOCK_NANOSLEEP, &[1, 0, bad, 0]), EFAULT);
            expect("clock_getres", raw(nr::CLOCK_GETRES, &[1, bad]), EFAULT);
        }
        expect("openat", raw(nr::OPENAT, &[MAX - 99, bad, 0]), EFAULT);
        expect("execve", raw(nr::EXECVE, &[bad, 0, 0]), EFAULT);
        expect("mincore", raw(nr::MINCORE, &[readable & !(PAGE - 1), PAGE, bad]), EFAULT);
    }
    // Memory that may be read and not written.
    expect("uname, read-only", raw(nr::UNAME, &[readable]), EFAULT);
    expect("getrandom, read-only", raw(nr::GETRANDOM, &[readable, 8, 0]), EFAULT);
    expect("clock_gettime, read-only", raw(nr::CLOCK_GETTIME, &[1, readable]), EFAULT);
    expect("fstat, read-only", raw(nr::FSTAT, &[1, readable]), EFAULT);
    expect("mincore, read-only", raw(nr::MINCORE, &[readable & !(PAGE - 1), PAGE, readable]), EFAULT);
    println!("bad pointers are EFAULT");

    // The last bytes before a page that is not there: up to the edge is fine, one more is not.
    assert_eq!(raw(nr::GETRANDOM, &[edge - 16, 16, 0]), Ok(16));
    expect("uname across the edge", raw(nr::UNAME, &[edge - 389]), EFAULT);
    assert_eq!(raw(nr::UNAME, &[edge - 390]), Ok(0));
    expect("a time across the edge", raw(nr::CLOCK_GETTIME, &[1, edge - 15]), EFAULT);
    assert_eq!(raw(nr::CLOCK_GETTIME, &[1, edge - 16]), Ok(0));
    expect("a state across the edge", raw(nr::FSTAT, &[1, edge - 127]), EFAULT);
    assert_eq!(raw(nr::FSTAT, &[1, edge - 128]), Ok(0));
    if !on_qemu_user {
        assert_eq!(raw(nr::GETRANDOM, &[edge - 16, 300, 0]), Ok(16), "what there is room for");
        expect("a resolution across the edge", raw(nr::CLOCK_GETRES, &[1, edge - 15]), EFAULT);
        assert_eq!(raw(nr::CLOCK_GETRES, &[1, edge - 16]), Ok(0));
        expect("a duration across the edge", raw(nr::NANOSLEEP, &[edge - 8, 0]), EFAULT);
    }
    (edge - 4..edge).for_each(|at| poke(at, b'x'));
    expect("a path without its NUL", raw(nr::OPENAT, &[MAX - 99, edge - 4, 0]), EFAULT);
    poke(edge - 1, 0);
    expect("a path that ends at the edge", raw(nr::OPENAT, &[MAX - 99, edge - 4, 0]), ENOENT);
    println!("ranges that end at the edge are whole, one byte more is not");
}

/// What looks at a buffer looks at all of it, before it looks for what to read or to write.
fn buffers(own: &[u8], edge: usize, on_qemu_user: bool) {
    let mut path = [0; 4096];
    path[..own.len()].copy_from_slice(own);
    let fd = sys::open(&path[..own.len() + 1]).expect("the program's own file");
    for bad in BAD {
        expect("write", raw(nr::WRITE, &[1, bad, 8]), EFAULT);
        expect("read", raw(nr::READ, &[fd, bad, 8]), EFAULT);
        expect("pread64", raw(nr::PREAD64, &[fd, bad, 8, 0]), EFAULT);
        expect("fstat", raw(nr::FSTAT, &[fd, bad]), EFAULT);
    }
    for bad in &BAD[..2] {
        expect("read from the console", raw(nr::READ, &[0, *bad, 8]), EFAULT);
        if !on_qemu_user {
            expect("write of nothing", raw(nr::WRITE, &[1, *bad, 0]), EFAULT);
            expect("read of nothing", raw(nr::READ, &[fd, *bad, 0]), EFAULT);
            expect("pread64 of nothing", raw(nr::PREAD64, &[fd, *bad, 0, 0]), EFAULT);
            expect("getrandom of nothing", raw(nr::GETRANDOM, &[*bad, 0, 0]), EFAULT);
        }
    }
    for count in [MAX, MAX - 16, isize::MAX as usize, 1 << 48] {
        expect("write of too much", raw(nr::WRITE, &[1, edge - 16, count]), EFAULT);
        expect("read of too much", raw(nr::READ, &[fd, edge - 16, count]), EFAULT);
        expect("pread64 of too much", raw(nr::PREAD64, &[fd, edge - 16, count, 0]), EFAULT);
    }
    raw(nr::LSEEK, &[fd, 0, 2]).expect("lseek");
    expect("read at the end", raw(nr::READ, &[fd, BAD[0], 8]), EFAULT);
    expect("pread64 behind the end", raw(nr::PREAD64, &[fd, BAD[0], 8, i64::MAX as usize]), EFAULT);
    assert_eq!(raw(nr::PREAD64, &[fd, edge - 16, 16, i64::MAX as usize - 16]), Ok(0));
    if !on_qemu_user {
        // What can be stored counts: the emulator looks at all of it first.
        raw(nr::LSEEK, &[fd, 0, 0]).expect("lseek");
        assert_eq!(raw(nr::READ, &[fd, edge - 4, 20]), Ok(4));
        assert_eq!(raw(nr::PREAD64, &[fd, edge - 1000, 2000, 0]), Ok(1000));
        expect("read behind the edge", raw(nr::READ, &[fd, edge, 20]), EFAULT);
    }
    pieces_that_can_not_be(fd, edge, on_qemu_user);
    if !on_qemu_user {
        for piece in [[BAD[0], 0], [BAD[0], 1], [edge - 16, isize::MAX as usize]] {
            let pieces = [[edge - 16, 1], piece];
            expect("writev", raw(nr::WRITEV, &[1, pieces.as_ptr() as usize, 2]), EFAULT);
        }
    }
    raw(nr::CLOSE, &[fd]).expect("close");
    println!("buffers that are not the program's are EFAULT, as a whole");

    let path = path.as_ptr() as usize;
    // Pointers without an end: one, and then memory that is not there.
    // SAFETY: the last word of a page of this program's.
    unsafe { ((edge - 8) as *mut usize).write(path) };
    for bad in [BAD[0], BAD[1], BAD[2], MAX, MAX - 7, edge - 8] {
        expect("execve, argv", raw(nr::EXECVE, &[path, bad, 0]), EFAULT);
        expect("execve, envp", raw(nr::EXECVE, &[path, 0, bad]), EFAULT);
    }
    // A pointer that leads nowhere.
    for bad in BAD {
        let pointers = [path, bad, 0];
        expect("execve, argv", raw(nr::EXECVE, &[path, pointers.as_ptr() as usize, 0]), EFAULT);
        expect("execve, envp", raw(nr::EXECVE, &[path, 0, pointers.as_ptr() as usize]), EFAULT);
    }
    println!("arguments that can't be read are EFAULT");
}

/// What `writev` looks at before it writes: how many pieces there are, where they are, and how long each is.
fn pieces_that_can_not_be(file: usize, edge: usize, on_qemu_user: bool) {
    const IOV_MAX: usize = 1024;
    let none = [[0_usize; 2]; IOV_MAX + 1];
    let none = none.as_ptr() as usize;
    assert_eq!(raw(nr::WRITEV, &[1, none, IOV_MAX]), Ok(0));
    for count in [IOV_MAX + 1, 1 << 32, i64::MAX as usize, MAX] {
        expect("writev of too many pieces", raw(nr::WRITEV, &[1, none, count]), EINVAL);
        expect("that are not there", raw(nr::WRITEV, &[1, BAD[0], count]), EINVAL);
        if !on_qemu_user {
            expect("to what is not open", raw(nr::WRITEV, &[1000, none, count]), EBADF);
        }
    }
    for bad in [edge - 8, MAX, MAX - 7, MAX - 15] {
        expect("writev across the edge", raw(nr::WRITEV, &[1, bad, 1]), EFAULT);
    }
    for length in [MAX, 1 << 63] {
        let pieces = [[edge - 1, 1], [edge - 1, length]];
        expect("writev of less than nothing", raw(nr::WRITEV, &[1, pieces.as_ptr() as usize, 2]), EINVAL);
    }
    expect("write to what is open for reading", raw(nr::WRITE, &[file, edge - 1, 1]), EBADF);
    expect("writev to it", raw(nr::WRITEV, &[file, none, 1]), EBADF);
    println!("pieces that are too many or too long are EINVAL");
}

/// Offsets and paths.
fn files(own: &[u8], on_qemu_user: bool) {
    const AT_FDCWD: usize = MAX - 99;
    const DIRECTORY: usize = 0o4_0000;
    const CREATE: usize = 0o100;
    const EXCLUSIVE: usize = 0o200;
    let mut path = [0; 4096];
    path[..own.len()].copy_from_slice(own);
    let own = path.as_ptr() as usize;
    let fd = raw(nr::OPENAT, &[AT_FDCWD, own, 0]).expect("the program's own file");
    for (offset, whence) in [(0, 77), (0, MAX), (MAX, 0), (1 << 63, 1), (1 << 63, 2), (i64::MAX as usize, 2)]
    {
        expect("lseek", raw(nr::LSEEK, &[fd, offset, whence]), EINVAL);
    }
    expect("lseek of the output", raw(nr::LSEEK, &[1, 0, 0]), ESPIPE);
    expect("pread64 before the start", raw(nr::PREAD64, &[fd, path.as_ptr() as usize, 1, MAX]), EINVAL);
    expect("pread64 of the output", raw(nr::PREAD64, &[1, path.as_ptr() as usize, 1, 0]), ESPIPE);

    let relative = c"x".as_ptr() as usize;
    for directory in [fd, 1] {
        expect("a path from a file", raw(nr::OPENAT, &[directory, relative, 0]), ENOTDIR);
    }
    for directory in [1000, MAX, i32::MIN as usize] {
        expect("a path from nowhere", raw(nr::OPENAT, &[directory, relative, 0]), EBADF);
    }
    let root = c"/".as_ptr() as usize;
    let from_the_root = raw(nr::OPENAT, &[1000, root, 0]).expect("a path that begins at the root");
    raw(nr::CLOSE, &[from_the_root]).expect("close");
    let long = [b'a'; 4097];
    expect("a path that is too long", raw(nr::OPENAT, &[AT_FDCWD, long.as_ptr() as usize, 0]), ENAMETOOLONG);
    expect("a directory that is a file", raw(nr::OPENAT, &[AT_FDCWD, own, DIRECTORY]), ENOTDIR);
    expect("a new file that is there", raw(nr::OPENAT, &[AT_FDCWD, own, CREATE | EXCLUSIVE]), EEXIST);
    if !on_qemu_user {
        // Since Linux 6.4.
        let flags = CREATE | DIRECTORY;
        expect("a new directory", raw(nr::OPENAT, &[AT_FDCWD, c"/new".as_ptr() as usize, flags]), EINVAL);
    }
    for flags in [1, 2, CREATE] {
        expect("a directory to write to", raw(nr::OPENAT, &[AT_FDCWD, root, flags]), EISDIR);
    }
    raw(nr::CLOSE, &[fd]).expect("close");
    let mut path = [b'a'; 300];
    path[0] = b'/';
    for (name, error) in [(255, ENOENT), (256, ENAMETOOLONG)] {
        path[1 + name] = 0;
        expect("a long name", raw(nr::OPENAT, &[AT_FDCWD, path.as_ptr() as usize, 0]), error);
        path[1 + name] = b'a';
    }
    println!("offsets and paths that can't be have Linux's errors");
}

/// What is too long for a new program.
fn arguments(own: &[u8]) {
    const MAX_ARG_STRLEN: usize = 128 << 10;
    let mut path = [0; 4096];
    path[..own.len()].copy_from_slice(own);
    let path = path.as_ptr() as usize;
    let text = mmap(2 * MAX_ARG_STRLEN, READ_WRITE, ANONYMOUS).expect("memory");
    (0..MAX_ARG_STRLEN).for_each(|at| poke(text + at, b'a'));
    for pointers in [[text, 0], [path, text]] {
        let pointers = [pointers[0], pointers[1], 0];
        expect("execve, argv", raw(nr::EXECVE, &[path, pointers.as_ptr() as usize, 0]), E2BIG);
        expect("execve, envp", raw(nr::EXECVE, &[path, 0, pointers.as_ptr() as usize]), E2BIG);
    }
    // Each may be, but not all of them: where the stack is not limited, Linux's limit is 6 MiB.
    let mut many = [text + 1; 64];
    many[63] = 0;
    expect("execve, many", raw(nr::EXECVE, &[path, many.as_ptr() as usize, 0]), E2BIG);
    // The program is looked for first.
    let none = c"/none".as_ptr() as usize;
    expect("execve, none, many", raw(nr::EXECVE, &[none, many.as_ptr() as usize, 0]), ENOENT);
    munmap(text, 2 * MAX_ARG_STRLEN).expect("munmap");
    println!("arguments that are too long are E2BIG");
}

fn descriptors() {
    for fd in [3, 63, 64, 1000, MAX, i32::MIN as usize] {
        expect("write", raw(nr::WRITE, &[fd, 0, 0]), EBADF);
        expect("read", raw(nr::READ, &[fd, 0, 0]), EBADF);
        expect("close", raw(nr::CLOSE, &[fd]), EBADF);
        expect("lseek", raw(nr::LSEEK, &[fd, 0, 0]), EBADF);
        expect("fstat", raw(nr::FSTAT, &[fd, 0]), EBADF);
        expect("mmap", raw(nr::MMAP, &[0, PAGE, READ, 2, fd, 0]), EBADF);
    }
    println!("descriptors that are not open are EBADF");
}

fn mmap_at(at: usize, bytes: usize) -> sys::Result {
    raw(nr::MMAP, &[at, bytes, READ, ANONYMOUS | FIXED, MAX, 0])
}

fn mappings(on_qemu_user: bool) {
    let start = mmap(16 * PAGE, READ_WRITE, ANONYMOUS).expect("memory");
    expect("mmap of nothing", mmap(0, READ, ANONYMOUS), EINVAL);
    expect("mmap of everything", mmap(MAX & !(PAGE - 1), READ, ANONYMOUS), ENOMEM);
    expect("mmap that wraps", mmap(MAX, READ, ANONYMOUS), ENOMEM);
    expect("mmap without a type", mmap(PAGE, READ, 0x20), EINVAL);
    expect("mmap at an odd offset", raw(nr::MMAP, &[0, PAGE, READ, 2, 0, 1]), EINVAL);
    expect("mmap fixed, odd", raw(nr::MMAP, &[start + 1, PAGE, READ, ANONYMOUS | 0x10, MAX, 0]), EINVAL);
    expect("munmap, odd", munmap(start + 1, PAGE), EINVAL);
    expect("munmap of nothing", munmap(start, 0), EINVAL);
    expect("munmap that wraps", munmap(start, MAX & !(PAGE - 1)), EINVAL);
    expect("munmap of the kernel", munmap(BAD[0], PAGE), EINVAL);
    expect("mprotect, odd", mprotect(start + 1, PAGE, READ), EINVAL);
    expect("mprotect that wraps", mprotect(start, MAX & !(PAGE - 1), READ), ENOMEM);
    expect("mprotect of the kernel", mprotect(BAD[0], PAGE, READ), ENOMEM);
    expect("mremap, odd", raw(nr::MREMAP, &[start + 1, PAGE, PAGE, 0]), EINVAL);
    expect("mremap with unknown flags", raw(nr::MREMAP, &[start, PAGE, PAGE, 64]), EINVAL);
    expect("mremap of what is not there", raw(nr::MREMAP, &[PAGE, PAGE, PAGE, 0]), EFAULT);
    expect("madvise, odd", raw(nr::MADVISE, &[start + 1, PAGE, 4]), EINVAL);
    expect("mincore, odd", raw(nr::MINCORE, &[start + 1, PAGE, start]), EINVAL);
    if !on_qemu_user {
        assert_eq!(mprotect(start, 0, READ), Ok(0));
        expect("mremap to nothing", raw(nr::MREMAP, &[start, PAGE, 0, 0]), EINVAL);
        expect("madvise, unknown", raw(nr::MADVISE, &[start, PAGE, 1000]), EINVAL);
    }
    expect("mprotect with unknown bits", mprotect(start, PAGE, 0x100), EINVAL);
    expect("mprotect that grows both ways", mprotect(start, PAGE, 0x300_0000), EINVAL);
    expect("mmap fixed, the kernel", mmap_at(BAD[0], PAGE), ENOMEM);
    expect("mmap fixed, across the end", mmap_at(LAST, 2 * PAGE), ENOMEM);
    expect("mmap fixed, that wraps", mmap_at(MAX & !(PAGE - 1), 2 * PAGE), ENOMEM);
    if !on_qemu_user {
        expect("mmap fixed, the page at 0", mmap_at(0, PAGE), EPERM);
        expect("mmap, checked, without a file", mmap(PAGE, READ, 0x23), EINVAL);
        expect("mmap of the console", raw(nr::MMAP, &[0, PAGE, READ, 2, 1, 0]), ENODEV);
    }
    munmap(start + 15 * PAGE, PAGE).expect("munmap");
    ranges_that_wrap(start, on_qemu_user);
    moves_that_can_not_be(start, on_qemu_user);
    munmap(start + PAGE, PAGE).expect("munmap");
    if !on_qemu_user {
        expect("madvise over a hole", raw(nr::MADVISE, &[start, 3 * PAGE, 4]), ENOMEM);
    }
    expect("mprotect over a hole", mprotect(start, 3 * PAGE, READ_WRITE), ENOMEM);
    expect("mincore over a hole", raw(nr::MINCORE, &[start, 3 * PAGE, start + 8 * PAGE]), ENOMEM);
    munmap(start, 16 * PAGE).expect("munmap");
    let end = raw(nr::BRK, &[0]);
    for bad in [BAD[0], BAD[1], BAD[2], MAX, 1] {
        assert_eq!(raw(nr::BRK, &[bad]), end, "brk changes nothing");
    }
    println!("mappings that can't be have Linux's errors");
}

/// Lengths that are 0 when rounded up, ranges that wrap, that end behind the last address of a user, or are the kernel's. Of
/// 16 pages at `start` the last is unmapped.
fn ranges_that_wrap(start: usize, on_qemu_user: bool) {
    const NORMAL: usize = 0;
    const DONTNEED: usize = 4;
    const POPULATE_READ: usize = 22;
    const POPULATE_WRITE: usize = 23;
    // What QEMU does not survive.
    let ends_at_2_64 = |at: usize, length: usize| matches!(at.wrapping_add(length), MAX | 0);
    poke(start, 1);
    for length in [MAX, MAX & !(PAGE - 1), MAX - start] {
        if on_qemu_user && ends_at_2_64(start, length) {
            continue;
        }
        expect("munmap", munmap(start, length), EINVAL);
        expect("mprotect", mprotect(start, length, READ), ENOMEM);
        expect("mincore", raw(nr::MINCORE, &[start, length, start]), ENOMEM);
        expect("madvise", raw(nr::MADVISE, &[start, length, DONTNEED]), EINVAL);
        if !on_qemu_user {
            for advice in [NORMAL, POPULATE_READ, POPULATE_WRITE] {
                expect("madvise", raw(nr::MADVISE, &[start, length, advice]), EINVAL);
            }
        }
    }
    assert_eq!(peek(start), 1, "what was refused has done nothing");
    poke(start, 2);
    for (at, length) in [(LAST, 2 * PAGE), (LAST + PAGE, PAGE), (BAD[0], PAGE), (MAX & !(PAGE - 1), PAGE)] {
        if on_qemu_user && ends_at_2_64(at, length) {
            continue;
        }
        expect("munmap", munmap(at, length), EINVAL);
        expect("mprotect", mprotect(at, length, READ), ENOMEM);
        expect("mincore", raw(nr::MINCORE, &[at, length, start]), ENOMEM);
        if !on_qemu_user {
            // That end is below the start.
            let expected = if ends_at_2_64(at, length) { EINVAL } else { ENOMEM };
            for advice in [NORMAL, DONTNEED, POPULATE_READ, POPULATE_WRITE] {
                expect("madvise", raw(nr::MADVISE, &[at, length, advice]), expected);
            }
        }
    }
    if !on_qemu_user {
        assert_eq!(munmap(LAST, PAGE), Ok(0), "the last page of a user");
    }
    // One byte for each page, up to the last before the one that is not there.
    let end = start + 15 * PAGE;
    expect("mincore to the edge", raw(nr::MINCORE, &[start, 2 * PAGE, end - 1]), EFAULT);
    assert_eq!(raw(nr::MINCORE, &[start, PAGE + 1, end - 2]), Ok(0));
    for bad in [MAX, MAX & !(PAGE - 1), LAST + PAGE - 1] {
        expect("mincore to what wraps", raw(nr::MINCORE, &[start, 2 * PAGE, bad]), EFAULT);
    }
}

/// As above.
fn moves_that_can_not_be(start: usize, on_qemu_user: bool) {
    const MAYMOVE: usize = 1;
    const MOVES_TO: usize = 3;
    const DONTUNMAP: usize = 4;
    const WHOLE: usize = MAX & !(PAGE - 1);
    let mremap = |length, new_length, flags, to| raw(nr::MREMAP, &[start, length, new_length, flags, to]);
    expect("mremap to all there is", mremap(PAGE, WHOLE, MAYMOVE, 0), ENOMEM);
    expect("mremap that has no room", mremap(PAGE, 2 * PAGE, 0, 0), ENOMEM);
    expect("mremap to a fixed place that may not move", mremap(PAGE, PAGE, 2, start + 8 * PAGE), EINVAL);
    expect("mremap to an odd place", mremap(PAGE, PAGE, MOVES_TO, start + 8 * PAGE + 1), EINVAL);
    expect("mremap to itself", mremap(2 * PAGE, 2 * PAGE, MOVES_TO, start + PAGE), EINVAL);
    expect("mremap of what ends earlier", mremap(16 * PAGE, 17 * PAGE, MAYMOVE, 0), EFAULT);
    if !on_qemu_user {
        expect("mremap to a length that wraps", mremap(PAGE, MAX, MAYMOVE, 0), EINVAL);
        for to in [LAST, LAST + PAGE, BAD[0], WHOLE] {
            expect("mremap to the kernel", mremap(PAGE, 2 * PAGE, MOVES_TO, to), EINVAL);
        }
        expect("mremap to the page at 0", mremap(PAGE, PAGE, MOVES_TO, 0), EPERM);
        expect("mremap from a length that wraps", mremap(MAX, PAGE, MAYMOVE, 0), EINVAL);
        expect("mremap that shrinks all there is", mremap(WHOLE, PAGE, MAYMOVE, 0), EINVAL);
        expect("mremap that copies private memory", mremap(0, PAGE, MAYMOVE, 0), EINVAL);
        expect("mremap that keeps and may not move", mremap(PAGE, PAGE, DONTUNMAP, 0), EINVAL);
        expect("mremap that keeps and grows", mremap(PAGE, 2 * PAGE, MAYMOVE | DONTUNMAP, 0), EINVAL);
    }
    for bad in [BAD[0], BAD[1] & !(PAGE - 1), LAST, WHOLE] {
        expect("mremap of the kernel", raw(nr::MREMAP, &[bad, PAGE, PAGE, MAYMOVE]), EFAULT);
    }
    assert_eq!(peek(start), 2, "what was refused has done nothing");
    println!("ranges and moves that can't be have Linux's errors");
}

fn times() {
    let time = |seconds: i64, nanoseconds: i64| {
        let time = [seconds, nanoseconds];
        raw(nr::NANOSLEEP, &[time.as_ptr() as usize, 0])
    };
    assert_eq!(time(0, 0), Ok(0));
    for (seconds, nanoseconds) in [(-1, 0), (0, -1), (0, 1_000_000_000), (i64::MIN, 0)] {
        expect("nanosleep", time(seconds, nanoseconds), EINVAL);
    }
    let mut now = [0_u64; 2];
    for clock in [0, 1, 4, 5, 6, 7] {
        assert_eq!(raw(nr::CLOCK_GETTIME, &[clock, now.as_mut_ptr() as usize]), Ok(0), "clock {clock}");
        assert_eq!(raw(nr::CLOCK_GETRES, &[clock, 0]), Ok(0));
    }
    let at = now.as_mut_ptr() as usize;
    for unknown in [10, 77, i32::MAX as usize] {
        expect("an unknown clock", raw(nr::CLOCK_GETTIME, &[unknown, at]), EINVAL);
        expect("its resolution", raw(nr::CLOCK_GETRES, &[unknown, at]), EINVAL);
        expect("sleeping by it", raw(nr::CLOCK_NANOSLEEP, &[unknown, 0, at, 0]), EINVAL);
    }
    for without_alarms in [3, 4, 5, 6] {
        expect(
            "a clock that wakes nobody",
            raw(nr::CLOCK_NANOSLEEP, &[without_alarms, 0, at, 0]),
            EOPNOTSUPP,
        );
    }
    let never = [0_i64, 1_000_000_000];
    for flags in [0, 1] {
        expect("no time", raw(nr::CLOCK_NANOSLEEP, &[1, flags, never.as_ptr() as usize, 0]), EINVAL);
    }
    let both_kinds = raw(nr::GETRANDOM, &[at, 8, 2 | 4]);
    expect("getrandom that may and must not wait", both_kinds, EINVAL);
    expect(
        "getrandom with unknown flags",
        raw(nr::GETRANDOM, &[now.as_mut_ptr() as usize, 8, 0x100]),
        EINVAL,
    );
    println!("times and clocks that can't be are EINVAL");
}

/// What `clone` does not look at: with a signal that is none, the parent is sent none, and the child is no usual one.
fn signals_that_are_none() {
    const WCLONE: usize = 0x8000_0000;
    for signal in [0, 64, 65, 128, 255] {
        let child = match raw(nr::CLONE, &[signal]).expect("clone") {
            0 => sys::exit(signal as i32),
            child => child,
        };
        let mut status = 0_i32;
        expect("wait4 for usual children", raw(nr::WAIT4, &[child, 0, 0]), ECHILD);
        assert_eq!(raw(nr::WAIT4, &[child, &raw mut status as usize, WCLONE]), Ok(child));
        assert_eq!(status, sys::exited(signal as i32));
    }
}

fn processes(on_qemu_user: bool) {
    // A thread without its process's signal handlers, and these without its memory.
    for flags in [0x1_0000, 0x800, 0x1_0800] {
        expect("clone", raw(nr::CLONE, &[flags | SIGCHLD]), EINVAL);
    }
    if !on_qemu_user {
        signals_that_are_none();
    }
    expect("wait4 with unknown options", raw(nr::WAIT4, &[MAX, 0, 0x1000]), EINVAL);
    expect("wait4 for nobody", raw(nr::WAIT4, &[MAX, 0, 0]), ECHILD);
    expect("wait4 for a stranger", raw(nr::WAIT4, &[1, 0, 0]), ECHILD);
    // A status that can't be stored: the child is gone all the same.
    let child = match sys::fork().expect("fork") {
        0 => sys::exit(0),
        child => child,
    };
    expect("wait4 to a bad pointer", raw(nr::WAIT4, &[child, 8, 0]), EFAULT);
    expect("wait4 again", raw(nr::WAIT4, &[child, 0, 0]), ECHILD);
    for bad in BAD {
        const SETTID_CLEARTID: usize = 0x10_0000 | 0x20_0000 | 0x100_0000;
        // Where the number can't be stored there is a child all the same.
        let child = match raw(nr::CLONE, &[SETTID_CLEARTID | SIGCHLD, 0, bad, 0, bad]).expect("clone") {
            0 => sys::exit(0),
            child => child,
        };
        expect("wait4 with a bad rusage", raw(nr::WAIT4, &[child, 0, 0, bad]), EFAULT);
        expect("wait4 again", raw(nr::WAIT4, &[child, 0, 0]), ECHILD);
    }
    expect("wait4 for a group that can't be", raw(nr::WAIT4, &[i32::MIN as usize, 0, 0]), ESRCH);
    expect("wait4 for another's child", raw(nr::WAIT4, &[1 << 20, 0, 0]), ECHILD);
    expect("wait4 for another group", raw(nr::WAIT4, &[-(1 << 20_isize) as usize, 0, 0]), ECHILD);
    println!("waiting for nobody is an error");
}

/// What the kernel's accesses to a program's memory may meet: that an entry explains, or nothing that it could change. Only the
/// kernel's self-tests can make it so.
fn aborts(page: usize) {
    // Levels 0 to 3 of translation, access flag and permission faults.
    for status in [0b000100, 0b000111, 0b001011, 0b001111] {
        assert_eq!(sys::aborting(page, status), Ok(0), "status {status:#b}");
        expect("where nothing is mapped", sys::aborting(page + PAGE, status), EFAULT);
    }
    // Address size, External, on a walk, parity, alignment, TLB conflict, hardware update, reserved.
    for status in
        [0b000000, 0b010000, 0b010111, 0b011000, 0b011111, 0b100001, 0b110000, 0b110001, 0b110101, 0b111111]
    {
        expect("what memory itself answers", sys::aborting(page, status), EFAULT);
    }
    println!("aborts that no entry explains are EFAULT");
}

#[unsafe(no_mangle)]
fn main(environment: Environment) -> i32 {
    let page = mmap(2 * PAGE, READ_WRITE, ANONYMOUS).expect("memory");
    munmap(page + PAGE, PAGE).expect("munmap");
    // The program's text.
    let on_qemu_user = on_qemu_user(environment);
    pointers(main as *const () as usize, page + PAGE, on_qemu_user);
    let own = environment.arg(0).expect("a program has a name");
    buffers(own, page + PAGE, on_qemu_user);
    files(own, on_qemu_user);
    arguments(own);
    descriptors();
    mappings(on_qemu_user);
    times();
    if environment.arg(1) == Some(b"here") {
        aborts(page);
    }
    processes(on_qemu_user);
    0
}
