//! execve: the program runs itself again, with nothing left of what it had, and what it can't run. Not under QEMU's user
//! emulation, where the machine below would have to run it.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

use user::start::Environment;
use user::sys::{errno, exited, in_child, nr, open, raw};
use user::{println, text};

const AT_FDCWD: usize = -100_isize as usize;
const O_CLOEXEC: usize = 0o200_0000;
/// Descriptors that are open before execve, of which the first is to be closed by it. The console has those below.
const CLOSED: usize = 3;
const KEPT: usize = 4;

global_asm!(
    ".arch_extension fp",
    ".arch_extension simd",
    // Gives each register of FP and SIMD, their control and status, and the thread pointer a value.
    "fill_registers:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "movi v\\n\\().16b, #\\n + 1",
    ".endr",
    "mov x0, #3 << 22", // FPCR.RMode: towards zero
    "msr fpcr, x0",
    "mov x0, #0x1f", // FPSR: IOC, DZC, OFC, UFC, IXC
    "msr fpsr, x0",
    "msr tpidr_el0, x0",
    "ret",
    // All bits that are set in one of V0 to V31.
    "vector_bits:",
    ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "orr v0.16b, v0.16b, v\\n\\().16b",
    ".endr",
    "mov x0, v0.d[0]",
    "mov x1, v0.d[1]",
    "orr x0, x0, x1",
    "ret",
    ".arch_extension nosimd",
    ".arch_extension nofp",
);

unsafe extern "C" {
    /// Changes registers that this program is not compiled to use.
    safe fn fill_registers();
    safe fn vector_bits() -> u64;
}

/// FPCR, FPSR, TPIDR_EL0.
fn other_registers() -> [u64; 3] {
    let (control, status, thread_pointer);
    // SAFETY: reads registers.
    unsafe {
        asm!(".arch_extension fp", "mrs {}, fpcr", "mrs {}, fpsr", "mrs {}, tpidr_el0", ".arch_extension nofp",
            out(reg) control, out(reg) status, out(reg) thread_pointer);
    }
    [control, status, thread_pointer]
}

/// Runs this program again, with arguments by which it knows.
fn run_again(own_path: &[u8]) {
    let mut path = [0; 4096];
    path[..own_path.len()].copy_from_slice(own_path);
    let execve = |path: &[u8], argv: &[*const u8], envp: &[*const u8]| {
        raw(nr::EXECVE, &[path.as_ptr() as usize, argv.as_ptr() as usize, envp.as_ptr() as usize])
    };
    let null = core::ptr::null();
    let status = in_child(|| {
        let closed = raw(nr::OPENAT, &[AT_FDCWD, path.as_ptr() as usize, O_CLOEXEC]);
        assert_eq!((closed, open(&path[..=own_path.len()])), (Ok(CLOSED), Ok(KEPT)));
        fill_registers();
        assert_eq!((vector_bits(), other_registers()), (0x3f3f_3f3f_3f3f_3f3f, [3 << 22, 0x1f, 0x1f]));
        let argv = [path.as_ptr(), c"again".as_ptr().cast(), c"with two words".as_ptr().cast(), null];
        let envp = [c"PLEAT_A=1".as_ptr().cast(), null];
        let error = execve(&path, &argv, &envp).expect_err("it returns only where it fails");
        panic!("execve: {error:?}")
    });
    assert_eq!(status, exited(33));
    assert_eq!(execve(b"/no/such/program\0", &[null], &[null]), Err(errno::ENOENT));
    assert_eq!(execve(b"/\0", &[null], &[null]), Err(errno::EACCES));
    path[own_path.len()] = b'/';
    assert_eq!(execve(&path, &[null], &[null]), Err(errno::ENOTDIR));
    assert_eq!(execve(&[b'a'; 4097], &[null], &[null]), Err(errno::ENAMETOOLONG));
    assert_eq!(raw(nr::EXECVE, &[1, 0, 0]), Err(errno::EFAULT));
    path[own_path.len()] = 0;
    assert_eq!(raw(nr::EXECVE, &[path.as_ptr() as usize, 8, 0]), Err(errno::EFAULT));
    println!("programs that are not there are not run");
}

/// What the program does where it runs itself again.
fn again(environment: Environment) -> i32 {
    assert_eq!((vector_bits(), other_registers()), (0, [0; 3]), "registers of the program before");
    println!("again: registers are zero");
    let mut magic = [0; 4];
    let mut pread = |fd| raw(nr::PREAD64, &[fd, magic.as_mut_ptr() as usize, 4, 0]);
    assert_eq!((pread(CLOSED), pread(KEPT)), (Err(errno::EBADF), Ok(4)));
    println!("again: what was opened with O_CLOEXEC is closed, and nothing else");
    for i in 1..environment.argc() {
        println!("again: argument {}", text(environment.arg(i).expect("there are argc")));
    }
    environment.envp().filter(|setting| setting.starts_with(b"PLEAT_")).for_each(|setting| {
        println!("again: environment {}", text(setting));
    });
    33
}

#[unsafe(no_mangle)]
fn main(environment: Environment) -> i32 {
    if environment.arg(1) == Some(b"again") {
        return again(environment);
    }
    run_again(environment.arg(0).expect("a program has a name"));
    0
}
