//! Random sequences of operations, until there were enough.
//!
//! What fails is shrunk to a short sequence and printed, with the seed that makes it again: in the line that begins with `cc`,
//! for the file beside the test program that ends with `.proptest-regressions`. `PLEAT_OPERATIONS` says how many operations,
//! in all.

use std::cell::Cell;
use std::fmt::Debug;

use pleat_host_tests::property::Setup;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// The sequences of a test program.
pub(crate) struct Sequences<S> {
    /// Its source.
    pub(crate) file: &'static str,
    /// How many operations the everyday run does.
    pub(crate) operations: u64,
    /// The longest sequence.
    pub(crate) length: usize,
    /// An operation.
    pub(crate) op: S,
}

impl<S: Strategy> Sequences<S>
where
    S::Value: Debug,
{
    /// Runs at least this share of the operations, in sequences, each on a machine of some kind.
    pub(crate) fn judge(self, name: &'static str, percent: u64, run: impl Fn(Setup, &[S::Value])) {
        let operations = std::env::var("PLEAT_OPERATIONS")
            .map_or(self.operations, |number| number.parse().expect("PLEAT_OPERATIONS is a number"));
        let setup = any::<u8>().prop_map(Setup::decode);
        let ops = prop::collection::vec(self.op, 1..self.length);
        let config = ProptestConfig {
            cases: 16,
            max_shrink_iters: 4096,
            source_file: Some(self.file),
            test_name: Some(name),
            ..ProptestConfig::default()
        };
        let (strategy, done) = ((setup, ops), Cell::new(0));
        let mut seeds = TestRunner::new(config.clone());
        while done.get() < operations * percent / 100 {
            // A runner runs its cases once.
            let mut runner = TestRunner::new_with_rng(config.clone(), seeds.new_rng());
            let result = runner.run(&strategy, |(setup, ops)| {
                run(setup, &ops);
                done.set(done.get() + ops.len() as u64);
                Ok(())
            });
            result.unwrap_or_else(|failure| panic!("{failure}"));
        }
        println!("{name}: {} operations", done.get());
    }
}
