//! execve: the program runs itself again, and what it can't run. Not under QEMU's user emulation, where the machine below would
//! have to run it.
#![no_std]
#![no_main]

use user::start::Environment;
use user::sys::{errno, exited, in_child, nr, raw};
use user::{println, text};

/// Runs this program again, with arguments by which it knows.
fn run_again(own_path: &[u8]) {
    let mut path = [0; 4096];
    path[..own_path.len()].copy_from_slice(own_path);
    let execve = |path: &[u8], argv: &[*const u8], envp: &[*const u8]| {
        raw(nr::EXECVE, &[path.as_ptr() as usize, argv.as_ptr() as usize, envp.as_ptr() as usize])
    };
    let null = core::ptr::null();
    let status = in_child(|| {
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
