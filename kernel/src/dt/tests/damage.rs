//! Damaged and hostile trees: whatever the bytes are, `parse` returns, and does not panic.

use core::ops::Range;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::builder::{Writer, big_endian};
use super::*;

/// Parses, and shows an error as the kernel would.
fn survives(blob: &[u8]) -> Result<(), DtError> {
    parse(blob).map(drop).inspect_err(|error| assert!(!error.to_string().contains('\n')))
}

/// The blob with a header that says how long it is, so that it is read beyond the header.
fn with_its_size(mut blob: Vec<u8>) -> Vec<u8> {
    let size = blob.len() as u32;
    if let Some(field) = blob.get_mut(4..8) {
        field.copy_from_slice(&size.to_be_bytes());
    }
    blob
}

#[test]
fn every_truncation_is_survived() {
    for blob in ALL {
        for len in 0..blob.len() {
            assert!(survives(&blob[..len]).is_err());
            assert!(survives(&with_its_size(blob[..len].to_vec())).is_err());
        }
    }
}

/// Every word replaced by each of the values that are most wrong in lengths, offsets and tokens.
#[test]
fn every_word_may_be_wrong() {
    let (mut fine, mut refused) = (0, 0);
    for at in (0..RPI4.len() & !3).step_by(4) {
        let mut blob = RPI4.to_vec();
        let field: &mut [u8; 4] = (&mut blob[at..at + 4]).try_into().unwrap();
        let word = u32::from_be_bytes(*field);
        let more = [word ^ 1, word.wrapping_add(4), !word, word.swap_bytes()];
        for value in
            [0, 1, 2, 3, 4, 9, i32::MAX as u32, 1 << 31, u32::MAX - 2, u32::MAX].into_iter().chain(more)
        {
            blob[at..at + 4].copy_from_slice(&value.to_be_bytes());
            match survives(&blob) {
                Ok(()) => fine += 1,
                Err(_) => refused += 1,
            }
        }
    }
    // It is not one check that ends them all.
    assert!(fine > 1000 && refused > 1000, "{fine} {refused}");
}

#[test]
fn blobs_that_break_the_format_are_refused() {
    const TEXT_AND_END: [u32; 2] = [0, 2];
    let error = |structure: &[u32], strings: &[u8]| {
        let blob = Writer::raw(big_endian(structure), strings).blob(&[]);
        // The structure block begins behind the header and an empty reservation block.
        match parse(&blob).unwrap_err() {
            DtError::Malformed { offset, what } => Err((offset - HEADER_SIZE - 16, what)),
            error => Ok(error),
        }
    };
    let token = |offset| Err((offset, "unexpected token"));
    // A root and nothing else; with padding before the end, which the writer adds.
    assert_eq!(error(&[1, 0, 2], b""), Ok(DtError::NoGic));
    assert_eq!(error(&[1, 0, 4, 2, 4], b""), Ok(DtError::NoGic));
    assert_eq!(error(&[], b""), token(0));
    assert_eq!(error(&[4, 1, 0, 2], b""), token(0));
    assert_eq!(error(&[2], b""), token(0));
    assert_eq!(error(&[1, 0], b""), token(8));
    assert_eq!(error(&[1, 0, 2, 2], b""), token(12));
    assert_eq!(error(&[1, 0, 2, 1, 0, 2], b""), token(12));
    assert_eq!(error(&[1, 0, 5, 2], b""), token(8));
    // A property; one behind a child; one behind the root.
    assert_eq!(error(&[1, 0, 3, 0, 0, 2], b"p\0"), Ok(DtError::NoGic));
    assert_eq!(error(&[1, 0, 1, 0, 2, 3, 0, 0, 2], b"p\0"), token(20));
    assert_eq!(error(&[1, 0, 2, 3, 0, 0], b"p\0"), token(12));
    // Its value ends with the block, or behind it.
    assert_eq!(error(&[1, 0, 3, 8, 0, 2], b"p\0"), Err((28, "the blob or block ends too early")));
    assert_eq!(error(&[1, 0, 3, 9, 0, 2], b"p\0"), Err((20, "a property ends outside its block")));
    assert_eq!(error(&[1, 0, 3, !0, 0, 2], b"p\0"), Err((20, "a property ends outside its block")));
    // Names without an end, outside the block, not UTF-8, too long.
    let name = Err((8, "bad name of a property"));
    assert_eq!(error(&[1, 0, 3, 0, 0, 2], b"p"), name);
    assert_eq!(error(&[1, 0, 3, 0, 2, 2], b"p\0"), name);
    assert_eq!(error(&[1, 0, 3, 0, !0, 2], b"p\0"), name);
    assert_eq!(error(&[1, 0, 3, 0, 0, 2], b"\xff\0"), name);
    let long = |more| error(&[1, 0, 3, 0, 0, 2], &[long_name(more).as_bytes(), &[0]].concat());
    assert_eq!(long(0), Ok(DtError::NoGic));
    assert_eq!(long(1), name);
    assert_eq!(error(&[1, 0xff00_0000, 2], b""), Err((4, "bad name of a node")));
    let node = [&[1, 0, 1, u32::from_be_bytes(*b"abcd")], &TEXT_AND_END[..], &[2]].concat();
    assert_eq!(error(&node, b""), Ok(DtError::NoGic));
}

#[test]
fn blocks_are_inside_the_blob() {
    let len = VIRT_GIC2.len() as u32;
    let with = |word: usize, change: fn(u32, u32) -> u32| {
        let mut blob = VIRT_GIC2.to_vec();
        let field: &mut [u8; 4] = (&mut blob[4 * word..][..4]).try_into().unwrap();
        *field = change(u32::from_be_bytes(*field), len).to_be_bytes();
        match parse(&blob) {
            Err(DtError::Malformed { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    };
    let structure = "the structure block is not inside the blob or not aligned";
    assert_eq!(with(2, |offset, _| offset + 1), structure);
    assert_eq!(with(2, |_, len| len), structure);
    assert_eq!(with(9, |_, _| u32::MAX), structure);
    assert_eq!(with(9, |size, _| size - 4), "the blob or block ends too early");
    let strings = "the strings block is not inside the blob";
    assert_eq!(with(3, |offset, _| offset + 1), strings);
    assert_eq!(with(8, |size, _| size + 1), strings);
    // Reservations that begin behind the blob, and that do not end in it.
    assert_eq!(with(4, |_, len| len + 1), "an offset leads outside the blob");
    assert_eq!(with(4, |_, len| len - 100), "the blob or block ends too early");
}

/// Linux has trees with such names: what the specification's limit forbids does no harm.
#[test]
fn names_may_be_longer_than_31_characters() {
    let mut tree = Writer::default();
    tree.open("");
    tree.property("snps,dis-del-phy-power-chg-quirk-and-more", &[]);
    tree.open("a-node-with-a-name-of-more-than-31-characters@0");
    (0..2).for_each(|_| tree.close());
    let blob = tree.blob(&[]);
    assert!(Fdt::new(&blob).is_err());
    assert_eq!(survives(&blob), Err(DtError::NoGic));
}

/// Trees as large as one may be: none takes time with the square of its size.
#[test]
fn the_largest_trees_are_read_soon() {
    let many = |count: usize, each: &dyn Fn(&mut Writer, u32)| {
        let mut tree = Writer::default();
        tree.open("");
        (0..count as u32).for_each(|index| each(&mut tree, index));
        tree
    };
    // Bytes taken: 12 for a node with a short name, 12 for an empty property.
    const SHORT: usize = MAX_SIZE / 12 - 100;
    let mut deep = many(SHORT, &|tree, _| tree.open("a"));
    (0..=SHORT).for_each(|_| deep.close());
    let mut wide = many(SHORT, &|tree, _| {
        tree.open("a");
        tree.close();
    });
    wide.close();
    // All with the longest name there may be.
    let mut properties = many(SHORT, &|tree, _| tree.property(&long_name(0), &[]));
    properties.close();
    let mut cpus = many(1, &|tree, _| tree.open("cpus"));
    cpus.property("#address-cells", &big_endian(&[1]));
    cpus.property("#size-cells", &big_endian(&[0]));
    for index in 0..MAX_SIZE as u32 / 28 - 100 {
        cpus.open("cpu");
        cpus.property("reg", &big_endian(&[index]));
        cpus.close();
    }
    (0..2).for_each(|_| cpus.close());

    for tree in [deep, wide, properties, cpus] {
        let blob = tree.blob(&[]);
        assert!((MAX_SIZE / 2..=MAX_SIZE).contains(&blob.len()), "{}", blob.len());
        let start = Instant::now();
        assert_eq!(survives(&blob), Err(DtError::NoGic));
        let _ = cpus_of(&blob);
        // Some seconds, on a machine with nothing else to do; with the square it would be hours.
        assert!(start.elapsed() < Duration::from_secs(200), "{:?}", start.elapsed());
    }
}

fn long_name(more: usize) -> String {
    "x".repeat(format::MAX_PROPERTY_NAME + more)
}

/// What `parse` would do next, had the tree an interrupt controller.
fn cpus_of(blob: &[u8]) -> Result<usize, DtError> {
    cpus::<MAX_CPUS>(&format::open(blob).unwrap().root()).map(|(_, described)| described)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn flipped_bits_are_survived(
        blob in select(&ALL[..]),
        flips in prop::collection::vec((any::<Index>(), 0u8..8), 1..16),
    ) {
        let mut blob = blob.to_vec();
        for (at, bit) in flips {
            *at.get_mut(&mut blob) ^= 1 << bit;
        }
        let _ = survives(&blob);
        let _ = survives(&with_its_size(blob));
    }

    #[test]
    fn overwritten_words_are_survived(
        blob in select(&ALL[..]),
        words in prop::collection::vec((any::<Index>(), prop_oneof![0u32..16, any::<u32>()]), 1..8),
        cut in prop::option::of(any::<Index>()),
    ) {
        let mut blob = blob.to_vec();
        let count = blob.len() / 4;
        for (at, value) in words {
            blob[4 * at.index(count)..][..4].copy_from_slice(&value.to_be_bytes());
        }
        if let Some(cut) = cut {
            blob.truncate(cut.index(blob.len()));
        }
        let _ = survives(&blob);
        let _ = survives(&with_its_size(blob));
    }

    /// Only the values of properties are changed, so that the format is right and all of it is read.
    #[test]
    fn wrong_values_are_survived(
        blob in select(&ALL[..]),
        changes in prop::collection::vec(
            (any::<Index>(), any::<Index>(), prop_oneof![Just(0u8), Just(0xff), any::<u8>()]), 1..40),
    ) {
        let mut blob = blob.to_vec();
        let values = values(&blob);
        for (value, at, byte) in changes {
            *at.get_mut(&mut blob[value.get(&values).clone()]) = byte;
        }
        let format_is_right = !matches!(survives(&blob), Err(DtError::Malformed { .. }));
        prop_assert!(format_is_right);
    }

    /// Bytes without sense behind a header that is right.
    #[test]
    fn noise_is_survived(noise in prop::collection::vec(any::<u8>(), 0..400)) {
        let blob = [&VIRT_GIC2[..HEADER_SIZE], &noise].concat();
        prop_assert!(survives(&with_its_size(blob)).is_err());
    }
}

/// Where in `blob` the values of properties are, as far as they are not empty.
fn values(blob: &[u8]) -> Vec<Range<usize>> {
    fn collect(blob: &[u8], node: FdtNode<'_>, values: &mut Vec<Range<usize>>) {
        for property in node.properties().filter(|property| !property.value().is_empty()) {
            let at = property.value().as_ptr().addr() - blob.as_ptr().addr();
            values.push(at..at + property.value().len());
        }
        node.children().for_each(|child| collect(blob, child, values));
    }
    let mut values = Vec::new();
    collect(blob, format::open(blob).unwrap().root(), &mut values);
    values
}
