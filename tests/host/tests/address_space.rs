//! Random calls of whole address spaces on the model MMU: see [`pleat_host_tests::address_space`].

mod random;

use model::{GranuleType, K4, K16, K64};
use pleat_host_tests::address_space::{OP_BYTES, Op, run};
use proptest::prelude::*;
use random::Sequences;

fn judge<G: GranuleType + Sync>(name: &'static str, percent: u64) {
    let op = any::<[u8; OP_BYTES]>().prop_map(Op::decode);
    let sequences = Sequences { file: file!(), operations: 10_000, length: 200, op };
    sequences.judge(name, percent, run::<G>);
}

#[test]
fn address_spaces_are_what_is_meant_4k() {
    judge::<K4>("address_spaces_are_what_is_meant_4k", 75);
}

#[test]
fn address_spaces_are_what_is_meant_16k() {
    judge::<K16>("address_spaces_are_what_is_meant_16k", 10);
}

#[test]
fn address_spaces_are_what_is_meant_64k() {
    judge::<K64>("address_spaces_are_what_is_meant_64k", 15);
}
