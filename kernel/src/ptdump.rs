//! Page tables over serial, before anything runs: the boot argument `ptdump=`.

use arch::Mmu;
#[cfg(feature = "efi")]
use arch::VirtAddr;
use kernel::bootargs;
use log::error;
#[cfg(feature = "efi")]
use mm::ptdump::Marker;
use mm::ptdump::{Line, Ptdump};
use mm::ptep::LocklessGuard;

use crate::console::println;
#[cfg(feature = "efi")]
use crate::efi_runtime;
use crate::vm;

/// For `init_mm` and `efi_mm`, whose tables are never freed. So interrupts stay unmasked: a UART takes its time.
const TABLES_STAY: &LocklessGuard = &LocklessGuard::tables_stay();

/// Prints what is asked for. In `init_mm` what is writable and executable is an error, and reported as one.
pub(crate) fn run(tables: bootargs::Ptdump) {
    use bootargs::Ptdump::{All, EfiMm, InitMm};
    if matches!(tables, InitMm | All) {
        let bytes = print("init_mm", vm::init_mm().ptdump(vm::MARKERS, TABLES_STAY));
        if bytes > 0 {
            error!("init_mm: {} KiB are writable and executable", bytes / 1024);
        }
    }
    if matches!(tables, EfiMm | All) {
        print_efi_mm();
    }
}

/// What is writable and executable there is so because firmware says no more of its code.
#[cfg(feature = "efi")]
fn print_efi_mm() {
    match efi_runtime::efi_mm() {
        Some(efi_mm) => {
            const MARKERS: &[Marker] = &[Marker { start: VirtAddr::new(0), name: "EFI runtime services" }];
            print("efi_mm", efi_mm.ptdump(MARKERS, TABLES_STAY));
        }
        None => println!("ptdump: no efi_mm: there are no EFI runtime services"),
    }
}

#[cfg(not(feature = "efi"))]
fn print_efi_mm() {
    println!("ptdump: no efi_mm: this kernel was built without the feature `efi`");
}

/// Prints a dump line by line, under the name of the address space, and then how many bytes EL1 may write to and execute,
/// which it returns.
fn print<M: Mmu>(name: &str, dump: Ptdump<'_, '_, M>) -> u64 {
    println!("ptdump: {name}");
    let mut bytes = 0;
    for line in dump {
        println!("{line}");
        match line {
            Line::Range(range) if range.is_writable_and_executable() => bytes += range.size,
            Line::Range(_) | Line::Marker(_) => {}
        }
    }
    println!("ptdump: {name}: {} KiB W+X", bytes / 1024);
    bytes
}
