//! System calls of Linux arm64: number in x8, arguments in x0 to x5, result or negative errno in x0.

use core::arch::asm;

/// An error number of Linux's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

/// What a call returns.
pub type Result<T = usize> = core::result::Result<T, Errno>;

/// Numbers of system calls.
#[expect(missing_docs, reason = "they are Linux's")]
pub mod nr {
    pub const OPENAT: usize = 56;
    pub const CLOSE: usize = 57;
    pub const LSEEK: usize = 62;
    pub const READ: usize = 63;
    pub const WRITE: usize = 64;
    pub const WRITEV: usize = 66;
    pub const PREAD64: usize = 67;
    pub const FSTAT: usize = 80;
    pub const EXIT_GROUP: usize = 94;
    pub const NANOSLEEP: usize = 101;
    pub const CLOCK_GETTIME: usize = 113;
    pub const CLOCK_GETRES: usize = 114;
    pub const CLOCK_NANOSLEEP: usize = 115;
    pub const SCHED_YIELD: usize = 124;
    pub const UNAME: usize = 160;
    pub const GETPID: usize = 172;
    pub const GETPPID: usize = 173;
    pub const GETTID: usize = 178;
    pub const BRK: usize = 214;
    pub const MUNMAP: usize = 215;
    pub const MREMAP: usize = 216;
    pub const CLONE: usize = 220;
    pub const EXECVE: usize = 221;
    pub const MMAP: usize = 222;
    pub const MPROTECT: usize = 226;
    pub const MINCORE: usize = 232;
    pub const MADVISE: usize = 233;
    pub const WAIT4: usize = 260;
    pub const GETRANDOM: usize = 278;
}

/// Error numbers.
#[expect(missing_docs, reason = "they are Linux's")]
pub mod errno {
    use super::Errno;
    pub const EPERM: Errno = Errno(1);
    pub const ENOENT: Errno = Errno(2);
    pub const ESRCH: Errno = Errno(3);
    pub const E2BIG: Errno = Errno(7);
    pub const ENOEXEC: Errno = Errno(8);
    pub const EBADF: Errno = Errno(9);
    pub const ECHILD: Errno = Errno(10);
    pub const ENOMEM: Errno = Errno(12);
    pub const EACCES: Errno = Errno(13);
    pub const EFAULT: Errno = Errno(14);
    pub const EEXIST: Errno = Errno(17);
    pub const ENODEV: Errno = Errno(19);
    pub const ENOTDIR: Errno = Errno(20);
    pub const EISDIR: Errno = Errno(21);
    pub const EINVAL: Errno = Errno(22);
    pub const ESPIPE: Errno = Errno(29);
    pub const ENAMETOOLONG: Errno = Errno(36);
    pub const ENOSYS: Errno = Errno(38);
    pub const EOPNOTSUPP: Errno = Errno(95);
}

/// Makes a call.
///
/// # Safety
/// What the call does to memory must be what the caller may do.
pub unsafe fn call(number: usize, args: [usize; 6]) -> Result {
    let result: isize;
    // SAFETY: the caller's contract; the kernel keeps all registers but x0.
    unsafe {
        asm!(
            "svc #0",
            in("x8") number,
            inlateout("x0") args[0] => result,
            in("x1") args[1],
            in("x2") args[2],
            in("x3") args[3],
            in("x4") args[4],
            in("x5") args[5],
            options(nostack),
        );
    }
    to_result(result)
}

fn to_result(x0: isize) -> Result {
    if (-4095..0).contains(&x0) { Err(Errno(-x0 as i32)) } else { Ok(x0 as usize) }
}

/// Makes a call that changes no memory that the compiler knows of, or none at all; pointers may be bad on purpose.
pub fn raw(number: usize, args: &[usize]) -> Result {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    // SAFETY: the callers pass addresses of memory that they have mapped for it, or none.
    unsafe { call(number, all) }
}

/// Ends the process.
pub fn exit(status: i32) -> ! {
    let _ = raw(nr::EXIT_GROUP, &[status as usize]);
    loop {
        core::hint::spin_loop();
    }
}

/// `write`
pub fn write(fd: usize, bytes: &[u8]) -> Result {
    raw(nr::WRITE, &[fd, bytes.as_ptr() as usize, bytes.len()])
}

/// `read`
pub fn read(fd: usize, bytes: &mut [u8]) -> Result {
    raw(nr::READ, &[fd, bytes.as_mut_ptr() as usize, bytes.len()])
}

/// `openat` of a path that ends with a NUL, for reading.
pub fn open(path: &[u8]) -> Result {
    assert_eq!(path.last(), Some(&0));
    const AT_FDCWD: usize = -100_isize as usize;
    raw(nr::OPENAT, &[AT_FDCWD, path.as_ptr() as usize, 0])
}

const SIGCHLD: usize = 17;

/// `clone` as fork: `Ok(0)` in the child.
pub fn fork() -> Result {
    raw(nr::CLONE, &[SIGCHLD])
}

/// A child with the same memory, which runs `child` on a stack of its own. Not under QEMU's user emulation, which has no processes
/// that share memory and are not threads.
pub fn fork_with_same_memory(child: extern "C" fn() -> !) -> Result {
    const CLONE_VM: usize = 0x100;
    const STACK: usize = 64 << 10;
    let stack = mmap(STACK, READ_WRITE, ANONYMOUS)?;
    let result: isize;
    // SAFETY: the child has the stack to itself, and never returns.
    unsafe {
        asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "blr {child}",
            "2:",
            child = in(reg) child,
            in("x8") nr::CLONE,
            inlateout("x0") (CLONE_VM | SIGCHLD) as isize => result,
            in("x1") stack + STACK, in("x2") 0, in("x3") 0, in("x4") 0,
            clobber_abi("C"),
        );
    }
    to_result(result)
}

/// Waits for a child, any where `pid` is -1. Its number and its status.
pub fn wait(pid: isize) -> Result<(usize, i32)> {
    let mut status = 0_i32;
    let pid = raw(nr::WAIT4, &[pid as usize, &raw mut status as usize])?;
    Ok((pid, status))
}

/// The status of a child that exits with `code`.
pub const fn exited(code: i32) -> i32 {
    code << 8
}

/// Runs `child` in a child process and returns its wait status; what `child` returns is its exit status.
pub fn in_child(child: impl FnOnce() -> i32) -> i32 {
    match fork() {
        Ok(0) => exit(child()),
        Ok(pid) => wait(pid as isize).expect("a child can be waited for").1,
        Err(error) => panic!("fork: {error:?}"),
    }
}

/// `PROT_READ`
pub const READ: usize = 1;
/// `PROT_READ | PROT_WRITE`
pub const READ_WRITE: usize = 3;
/// `PROT_READ | PROT_EXEC`
pub const READ_EXECUTE: usize = 5;
/// `MAP_PRIVATE | MAP_ANONYMOUS`
pub const ANONYMOUS: usize = 0x22;
/// `MAP_SHARED | MAP_ANONYMOUS`
pub const SHARED: usize = 0x21;
/// `MAP_FIXED`
pub const FIXED: usize = 0x10;

/// `mmap` without a file, wherever there is room.
pub fn mmap(bytes: usize, prot: usize, flags: usize) -> Result {
    raw(nr::MMAP, &[0, bytes, prot, flags, usize::MAX, 0])
}

/// `munmap`
pub fn munmap(at: usize, bytes: usize) -> Result {
    raw(nr::MUNMAP, &[at, bytes])
}

/// `mprotect`
pub fn mprotect(at: usize, bytes: usize, prot: usize) -> Result {
    raw(nr::MPROTECT, &[at, bytes, prot])
}

/// Reads a byte wherever it is; the process is killed if it may not.
pub fn peek(at: usize) -> u8 {
    // SAFETY: a byte of memory that the program has mapped, or an address that faults.
    unsafe { (at as *const u8).read_volatile() }
}

/// Writes a byte wherever it is; the process is killed if it may not.
pub fn poke(at: usize, value: u8) {
    // SAFETY: a byte of memory that the program has mapped for it, or an address that faults.
    unsafe { (at as *mut u8).write_volatile(value) };
}

/// Nanoseconds of the monotonic clock.
pub fn now() -> u64 {
    let mut time = [0_u64; 2];
    raw(nr::CLOCK_GETTIME, &[1, time.as_mut_ptr() as usize]).expect("the monotonic clock is there");
    time[0] * 1_000_000_000 + time[1]
}

/// Sleeps.
pub fn sleep(nanoseconds: u64) {
    let time = [nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000];
    raw(nr::NANOSLEEP, &[time.as_ptr() as usize, 0]).expect("sleeping is not interrupted");
}

/// Takes pages that were advised MADV_FREE as if memory were short; how many. Only the kernel's self-tests have this call.
pub fn reclaim(pages: usize) -> Result {
    const RECLAIM: usize = 0x4ec1;
    raw(RECLAIM, &[pages])
}

/// How many faults of this address space have waited so far: for who changed mappings, and for the lock of a table. Only the
/// kernel's self-tests have this call.
pub fn faults_waited() -> (u32, u32) {
    const FAULTS_WAITED: usize = 0xf017;
    let both = raw(FAULTS_WAITED, &[]).expect("the kernel has self-tests");
    (both as u32, (both >> 32) as u32)
}

/// Lets the kernel load from an address of this process's, with an abort of this fault status the first three times. Only the
/// kernel's self-tests have this call.
pub fn aborting(at: usize, status: usize) -> Result {
    const ABORTING: usize = 0xab07;
    raw(ABORTING, &[at, status])
}

/// Frames that processes have, and bytes of the kernel's heap. Only the kernel's self-tests have this call.
pub fn memory_used() -> (u32, u32) {
    const MEMORY_USED: usize = 0x05ed;
    let both = raw(MEMORY_USED, &[]).expect("the kernel has self-tests");
    ((both >> 32) as u32, both as u32)
}

/// Makes an allocation fail that the process asks for, of memory or of the kernel's: that after the next `n`, and all behind it
/// where `for_good`. Only the kernel's self-tests have this call.
pub fn fail_nth(n: usize, for_good: bool) -> bool {
    const FAIL_NTH: usize = 0xfa11;
    raw(FAIL_NTH, &[n, for_good.into()]).expect("the kernel has self-tests") == 1
}

/// Lets all allocations succeed again; whether one has failed.
pub fn fail_no_more() -> bool {
    fail_nth(usize::MAX, false)
}
