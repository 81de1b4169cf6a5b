//! Calls with bad pointers, lengths at the edges and ranges that wrap: the errno that Linux gives.
#![no_std]
#![no_main]

use user::start::Environment;
use user::sys::{self, ANONYMOUS, Errno, READ, READ_WRITE, errno::*, mmap, mprotect, munmap, nr, poke, raw};
use user::{on_qemu_user, println};

const PAGE: usize = 4096;
/// An address of the kernel's, one that is no address, and the page at 0.
const BAD: [usize; 3] = [0xffff_0000_4000_0000, 0x0123_0000_0000_0000, 8];
const MAX: usize = usize::MAX;

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
        }
        expect("openat", raw(nr::OPENAT, &[MAX - 99, bad, 0]), EFAULT);
        expect("execve", raw(nr::EXECVE, &[bad, 0, 0]), EFAULT);
        expect("mincore", raw(nr::MINCORE, &[readable & !(PAGE - 1), PAGE, bad]), EFAULT);
    }
    // Memory that may be read and not written.
    expect("uname, read-only", raw(nr::UNAME, &[readable]), EFAULT);
    expect("getrandom, read-only", raw(nr::GETRANDOM, &[readable, 8, 0]), EFAULT);
    println!("bad pointers are EFAULT");

    // The last bytes before a page that is not there: up to the edge is fine, one more is not.
    assert_eq!(raw(nr::GETRANDOM, &[edge - 16, 16, 0]), Ok(16));
    expect("uname across the edge", raw(nr::UNAME, &[edge - 389]), EFAULT);
    assert_eq!(raw(nr::UNAME, &[edge - 390]), Ok(0));
    expect("a time across the edge", raw(nr::CLOCK_GETTIME, &[1, edge - 15]), EFAULT);
    assert_eq!(raw(nr::CLOCK_GETTIME, &[1, edge - 16]), Ok(0));
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
    expect("an unknown clock", raw(nr::CLOCK_GETTIME, &[77, now.as_mut_ptr() as usize]), EINVAL);
    expect(
        "getrandom with unknown flags",
        raw(nr::GETRANDOM, &[now.as_mut_ptr() as usize, 8, 0x100]),
        EINVAL,
    );
    println!("times and clocks that can't be are EINVAL");
}

fn processes() {
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
        const SIGCHLD: usize = 17;
        // Where the number can't be stored there is a child all the same.
        let child = match raw(nr::CLONE, &[SETTID_CLEARTID | SIGCHLD, 0, bad, 0, bad]).expect("clone") {
            0 => sys::exit(0),
            child => child,
        };
        expect("wait4 with a bad rusage", raw(nr::WAIT4, &[child, 0, 0, bad]), EFAULT);
        expect("wait4 again", raw(nr::WAIT4, &[child, 0, 0]), ECHILD);
    }
    println!("waiting for nobody is an error");
}

#[unsafe(no_mangle)]
fn main(environment: Environment) -> i32 {
    let page = mmap(2 * PAGE, READ_WRITE, ANONYMOUS).expect("memory");
    munmap(page + PAGE, PAGE).expect("munmap");
    // The program's text.
    let on_qemu_user = on_qemu_user(environment);
    pointers(main as *const () as usize, page + PAGE, on_qemu_user);
    buffers(environment.arg(0).expect("a program has a name"), page + PAGE, on_qemu_user);
    descriptors();
    mappings(on_qemu_user);
    times();
    processes();
    0
}
