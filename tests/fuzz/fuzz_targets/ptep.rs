//! Sequences of operations of the public ptep API on the model MMU: what the property tests do, by the same decoder.
//!
//! The first byte is the granule, the rest is for `run_bytes`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pleat_host_tests::property::run_bytes;
use pleat_model::{K4, K16, K64};

fuzz_target!(|bytes: &[u8]| {
    let Some((granule, bytes)) = bytes.split_first() else { return };
    match granule % 4 {
        0 | 1 => run_bytes::<K4>(bytes),
        2 => run_bytes::<K64>(bytes),
        _ => run_bytes::<K16>(bytes),
    }
});
