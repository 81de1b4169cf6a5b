//! What was measured, as text.

use crate::{MARK, OPERATIONS, TARGET, Times};

/// Width of a name, and of a number before its mark.
const NAME: usize = 56;
const NUMBER: usize = 11;

/// The names of the operations, below a title.
pub(crate) fn header(title: &str) {
    print!("\n{title:NAME$}");
    OPERATIONS.iter().for_each(|operation| print!("{operation:>NUMBER$} "));
    println!();
}

/// A line of times: the middle of all rounds.
pub(crate) fn times(name: &str, rounds: &[Times]) {
    print!("{name:NAME$}");
    for operation in 0..OPERATIONS.len() {
        let times = rounds.iter().map(|round| round[operation]);
        print!("{:NUMBER$} ", median(times).as_micros());
    }
    println!();
}

/// A line of ratios, with a mark where one is below the target: the middle of all rounds, in each of which both ran, so
/// that a machine that changes its speed does not matter.
pub(crate) fn ratios(name: &str, ours: &[Times], reference: &[Times]) {
    print!("{name:NAME$}");
    for operation in 0..OPERATIONS.len() {
        let seconds = |round: &Times| round[operation].as_secs_f64();
        let ratio = median(ours.iter().zip(reference).map(|(ours, other)| seconds(other) / seconds(ours)));
        let mark = if ratio < TARGET { MARK } else { ' ' };
        print!("{ratio:NUMBER$.2}{mark}");
    }
    println!();
}

/// The middle one.
fn median<T: PartialOrd>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<_> = values.collect();
    values.sort_by(|one, other| one.partial_cmp(other).expect("comparable"));
    let middle = values.len() / 2;
    values.swap_remove(middle)
}
