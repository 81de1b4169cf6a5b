//! EFI tables: memory map, Memory Attributes Table, RT_PROPERTIES. What the property tests do, by the same oracle.
#![no_main]

#[path = "../../../efi/tests/common/mod.rs"]
mod common;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    common::oracle::check_bytes(bytes);
});
