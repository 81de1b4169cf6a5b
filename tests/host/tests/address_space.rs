//! Random calls of whole address spaces on the model MMU: see [`pleat_host_tests::address_space`].
//!
//! What fails is shrunk to a short sequence and printed, with the seed that makes it again: in the line that begins with
//! `cc`, for `address_space.proptest-regressions` beside this file. `PLEAT_OPERATIONS` says how many operations, in all.

use std::cell::Cell;

use model::{GranuleType, K4, K16, K64};
use pleat_host_tests::address_space::{OP_BYTES, Op, run};
use pleat_host_tests::property::Setup;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// Operations of the everyday run.
const OPERATIONS: u64 = 10_000;
/// The longest sequence.
const LENGTH: usize = 200;

/// At least this share of the operations, in sequences.
fn judge<G: GranuleType + Sync>(name: &'static str, percent: u64) {
    let operations = std::env::var("PLEAT_OPERATIONS")
        .map_or(OPERATIONS, |number| number.parse().expect("PLEAT_OPERATIONS is a number"));
    let setup = any::<u8>().prop_map(Setup::decode);
    let ops = prop::collection::vec(any::<[u8; OP_BYTES]>().prop_map(Op::decode), 1..LENGTH);
    let config = ProptestConfig {
        cases: 16,
        max_shrink_iters: 4096,
        source_file: Some(file!()),
        test_name: Some(name),
        ..ProptestConfig::default()
    };
    let (strategy, done) = ((setup, ops), Cell::new(0));
    let mut seeds = TestRunner::new(config.clone());
    while done.get() < operations * percent / 100 {
        // A runner runs its cases once.
        let mut runner = TestRunner::new_with_rng(config.clone(), seeds.new_rng());
        let result = runner.run(&strategy, |(setup, ops)| {
            run::<G>(setup, &ops);
            done.set(done.get() + ops.len() as u64);
            Ok(())
        });
        result.unwrap_or_else(|failure| panic!("{failure}"));
    }
    println!("{name}: {} operations", done.get());
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
