//! Random operations on the model MMU: see [`pleat_host_tests::property`].
//!
//! What fails is shrunk to a short sequence and printed, with the seed that makes it again: in the line that begins with
//! `cc`, for `property.proptest-regressions` beside this file. `PLEAT_OPERATIONS` says how many operations, in all.

use std::sync::atomic::{AtomicU64, Ordering};

use model::{GranuleType, K4, K16, K64};
use pleat_host_tests::property::{OP_BYTES, Op, Setup, run};
use proptest::prelude::*;

/// Operations of the everyday run.
const OPERATIONS: u64 = 12_000;
/// The longest sequence.
const LENGTH: usize = 120;

/// The operations that were done.
static DONE: AtomicU64 = AtomicU64::new(0);

/// As many sequences as make this share of the operations, by their mean length.
fn config(percent: u64) -> ProptestConfig {
    let operations = std::env::var("PLEAT_OPERATIONS")
        .map_or(OPERATIONS, |number| number.parse().expect("PLEAT_OPERATIONS is a number"));
    let cases = operations * percent / 100 / (LENGTH as u64 / 2) + 1;
    ProptestConfig { cases: cases as u32, ..ProptestConfig::default() }
}

fn setup() -> impl Strategy<Value = Setup> {
    any::<u8>().prop_map(Setup::decode)
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(any::<[u8; OP_BYTES]>().prop_map(Op::decode), 1..LENGTH)
}

fn judge<G: GranuleType + Sync>(setup: Setup, ops: &[Op]) {
    run::<G>(setup, ops);
    DONE.fetch_add(ops.len() as u64, Ordering::Relaxed);
    println!("{} operations done", DONE.load(Ordering::Relaxed));
}

macro_rules! properties {
    ($($name:ident: $granule:ty, $percent:literal;)*) => {
        $(proptest! {
            #![proptest_config(config($percent))]
            #[test]
            fn $name(setup in setup(), ops in ops()) {
                judge::<$granule>(setup, &ops);
            }
        })*
    };
}

properties! {
    no_translation_is_wrong_4k: K4, 75;
    no_translation_is_wrong_16k: K16, 10;
    no_translation_is_wrong_64k: K64, 15;
}
