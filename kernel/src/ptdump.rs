//! Page tables over serial, before anything runs: the boot argument `ptdump=`.

use arch::Mmu;
use kernel::bootargs;
use log::error;
use mm::ptdump::{Line, Ptdump};
use mm::ptep::LocklessGuard;

use crate::console::println;
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
        println!("ptdump: no efi_mm: this kernel makes no EFI runtime calls yet");
    }
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
