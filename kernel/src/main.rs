//! The kernel's binary: what happens from the boot assembly's last instruction to the end of the machine.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(
    not(feature = "selftest"),
    expect(dead_code, reason = "the self-tests watch and look at more than the kernel itself does")
)]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a kernel: `./scripts/run` builds it for its own target and boots it");
    std::process::exit(2);
}

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod backtrace;
#[cfg(all(target_os = "none", feature = "selftest"))]
mod bench;
#[cfg(target_os = "none")]
mod boot;
// The bare machine; what is pure is in the library beside this binary.
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod cpu;
#[cfg(all(target_os = "none", feature = "efi"))]
mod efi_runtime;
#[cfg(target_os = "none")]
mod efi_stub;
#[cfg(target_os = "none")]
mod exit;
#[cfg(target_os = "none")]
mod features;
#[cfg(target_os = "none")]
mod gic;
#[cfg(target_os = "none")]
mod heap;
#[cfg(target_os = "none")]
mod image;
#[cfg(target_os = "none")]
mod lock;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod panic;
#[cfg(target_os = "none")]
mod process;
#[cfg(target_os = "none")]
mod psci;
#[cfg(target_os = "none")]
mod ptdump;
#[cfg(all(target_os = "none", feature = "selftest"))]
mod selftest;
#[cfg(target_os = "none")]
mod smp;
#[cfg(target_os = "none")]
mod timer;
#[cfg(target_os = "none")]
mod trap;
#[cfg(target_os = "none")]
mod user;
#[cfg(target_os = "none")]
mod vm;
