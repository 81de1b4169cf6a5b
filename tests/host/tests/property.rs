//! Random operations on the model MMU: see [`pleat_host_tests::property`].

mod random;

use model::{GranuleType, K4, K16, K64};
use pleat_host_tests::property::{OP_BYTES, Op, run};
use proptest::prelude::*;
use random::Sequences;

fn judge<G: GranuleType + Sync>(name: &'static str, percent: u64) {
    let op = any::<[u8; OP_BYTES]>().prop_map(Op::decode);
    let sequences = Sequences { file: file!(), operations: 30_000, length: 120, op };
    sequences.judge(name, percent, run::<G>);
}

#[test]
fn no_translation_is_wrong_4k() {
    judge::<K4>("no_translation_is_wrong_4k", 75);
}

#[test]
fn no_translation_is_wrong_16k() {
    judge::<K16>("no_translation_is_wrong_16k", 10);
}

#[test]
fn no_translation_is_wrong_64k() {
    judge::<K64>("no_translation_is_wrong_64k", 15);
}
