//! The frame allocator, as a kernel uses it. Run on the host on a small map, and in the kernel on the one that it
//! lives on.
//!
//! Each scenario gives everything back, which is checked, and needs no more than a few free frames: what it may
//! not assume, it tries. Nobody else may allocate or free meanwhile. A failure panics.

use core::array::from_fn;

use arch::Pfn;
use mm::frame::{Folio, FrameMap, MAX_ORDER};

/// A scenario: it gets the map that it is to use.
pub type Scenario = fn(&FrameMap<'_>);

/// All of them, by name.
pub const SCENARIOS: &[(&str, Scenario)] = &[
    ("counts_add_up", counts_add_up),
    ("each_order_is_aligned_and_merges_back", each_order_is_aligned_and_merges_back),
    ("fragments_merge_back", fragments_merge_back),
    ("references_keep_a_folio", references_keep_a_folio),
    ("tails_lead_to_their_head", tails_lead_to_their_head),
    ("mappings_are_counted_by_folio", mappings_are_counted_by_folio),
    ("raw_references_come_back", raw_references_come_back),
    ("special_memory_has_no_folio", special_memory_has_no_folio),
];

/// Runs a scenario between two checks.
fn all_given_back(map: &FrameMap<'_>, scenario: impl FnOnce()) {
    let before = map.counts();
    scenario();
    assert_eq!(map.counts(), before, "frames leaked, or were not merged");
    if let Err(inconsistency) = map.check() {
        panic!("{inconsistency}");
    }
}

/// The largest folio of at most `order` that is to be had.
fn largest<'m>(map: &'m FrameMap<'_>, order: u8) -> Folio<'m> {
    (0..=order).rev().find_map(|order| map.alloc(order).ok()).expect("no memory is free at all")
}

/// Free, reserved and allocated frames are all there are.
fn counts_add_up(map: &FrameMap<'_>) {
    all_given_back(map, || {
        let before = map.counts();
        assert!(before.free + before.reserved <= before.total, "{before:?}");
        let in_blocks: u64 = (0..).zip(before.blocks).map(|(order, blocks)| blocks << order).sum();
        assert_eq!(in_blocks, before.free);
        let in_zones: u64 =
            map.zones().iter().map(|zone| zone.range().end.get() - zone.range().start.get()).sum();
        assert_eq!(in_zones, before.total);
        let folio = largest(map, 3);
        let now = map.counts();
        assert_eq!(
            (now.free + folio.frames(), now.reserved, now.total),
            (before.free, before.reserved, before.total)
        );
    });
}

/// An allocation of each order is aligned to its size, disjoint from the others, and leaves no trace.
fn each_order_is_aligned_and_merges_back(map: &FrameMap<'_>) {
    all_given_back(map, || {
        let held: [_; MAX_ORDER as usize + 1] = from_fn(|order| map.alloc(order as u8).ok());
        assert!(held.iter().any(Option::is_some), "no memory is free at all");
        for (order, folio) in (0u8..).zip(&held) {
            let Some(folio) = folio else { continue };
            assert_eq!((folio.order(), folio.refs(), folio.maps()), (order, 1, 0));
            assert!(folio.head().get().is_multiple_of(folio.frames()), "{folio:?}");
            for other in held.iter().flatten().filter(|other| other.head() != folio.head()) {
                assert!(!folio.contains(other.head()), "{folio:?} overlaps {other:?}");
            }
        }
    });
    // One by one as well, each from memory that is whole again.
    for order in 0..=MAX_ORDER {
        all_given_back(map, || drop(map.alloc(order)));
    }
}

/// Single frames that are freed in an order that lets nothing merge until the end.
fn fragments_merge_back(map: &FrameMap<'_>) {
    all_given_back(map, || {
        let free = map.free_frames();
        let mut held: [_; 64] = from_fn(|_| map.alloc(0).ok());
        let taken = held.iter().flatten().count() as u64;
        assert!(taken > 0 && map.free_frames() == free - taken);
        held.iter_mut()
            .filter(|folio| folio.as_ref().is_some_and(|f| f.head().get() % 2 == 0))
            .for_each(|folio| *folio = None);
        let kept = held.iter().flatten().count() as u64;
        assert_eq!(map.free_frames(), free - kept);
        // What was freed is had again, while its neighbours are still in use.
        let again: [_; 64] = from_fn(|_| map.alloc(0).ok());
        for folio in again.iter().flatten() {
            assert!(held.iter().flatten().all(|other| other.head() != folio.head()), "{folio:?} given twice");
        }
    });
}

/// A folio is freed with its last reference and not before, and then can't be had any more.
fn references_keep_a_folio(map: &FrameMap<'_>) {
    all_given_back(map, || {
        let free = map.free_frames();
        let folio = largest(map, 4);
        let (head, frames) = (folio.head(), folio.frames());
        let again = folio.clone();
        let gotten = map.get(head).expect("an allocated folio");
        assert_eq!(folio.refs(), 3);
        drop(folio);
        drop(again);
        assert_eq!((gotten.refs(), map.free_frames()), (1, free - frames));
        drop(gotten);
        assert_eq!(map.free_frames(), free);
        assert!(map.get(head).is_none(), "frame {head}: had after it was freed");
    });
}

/// From each of its frames, a folio is found.
fn tails_lead_to_their_head(map: &FrameMap<'_>) {
    all_given_back(map, || {
        let folio = largest(map, 9);
        for pfn in (0..folio.frames()).map(|i| folio.head().add(i)) {
            assert!(folio.contains(pfn));
            let seen = map.folio(pfn).expect("an allocated folio");
            assert_eq!((seen.head(), seen.order()), (folio.head(), folio.order()));
            let gotten = map.get(pfn).expect("an allocated folio");
            assert_eq!((gotten.head(), gotten.refs()), (folio.head(), 2));
        }
        assert!(!folio.contains(folio.head().add(folio.frames())));
        assert_eq!(folio.refs(), 1);
    });
}

/// Mappings are counted in the folio, whoever counts them.
fn mappings_are_counted_by_folio(map: &FrameMap<'_>) {
    all_given_back(map, || {
        let folio = largest(map, 4);
        let again = folio.clone();
        folio.map_inc(16);
        again.map_inc(1);
        assert_eq!((folio.maps(), again.maps()), (17, 17));
        again.map_dec(16);
        assert_eq!(folio.maps(), 1);
        folio.map_dec(1);
        assert_eq!((folio.maps(), folio.refs()), (0, 2));
    });
}

/// A reference that was kept as a number is the same one when it comes back.
fn raw_references_come_back(map: &FrameMap<'_>) {
    all_given_back(map, || {
        let free = map.free_frames();
        let raw = largest(map, 4).into_raw();
        let folio = map.get(raw.pfn()).expect("a folio that is kept by a raw reference");
        assert_eq!((folio.head(), folio.refs()), (raw.pfn(), 2));
        let frames = folio.frames();
        drop(folio);
        assert_eq!(map.free_frames(), free - frames);
        let folio = map.from_raw(raw);
        assert_eq!((folio.refs(), folio.frames()), (1, frames));
    });
}

/// What is not RAM has no folio; nor can one be had.
fn special_memory_has_no_folio(map: &FrameMap<'_>) {
    all_given_back(map, || {
        let zones = map.zones();
        let above = zones.last().expect("a zone").range().end;
        let below = zones[0].range().start.get().checked_sub(1).map(Pfn::new);
        for pfn in [Some(above), below, Some(Pfn::new(u64::MAX))].into_iter().flatten() {
            assert!(map.folio(pfn).is_none() && map.get(pfn).is_none(), "frame {pfn}");
        }
    });
}

#[cfg(test)]
mod tests {
    use mm::frame::{Frame, Zone};

    use super::*;

    /// On two zones of this many frames each, at odd places, the second with a hole that stays reserved.
    fn run_all_on(len: u64) {
        let records: [Vec<_>; 2] = from_fn(|_| (0..len).map(|_| Frame::new()).collect());
        let zones = [Zone::new(Pfn::new(0x807), &records[0]), Zone::new(Pfn::new(0x40001), &records[1])];
        let map = FrameMap::new(&zones, None);
        map.release(zones[0].range());
        let second = zones[1].range();
        map.release(second.start..second.start.add(len / 2));
        map.release(second.start.add(len / 2 + 1)..second.end);
        for (name, scenario) in SCENARIOS {
            println!("{name} on 2 x {len} frames");
            scenario(&map);
        }
        assert_eq!(map.free_frames(), 2 * len - 1);
    }

    #[test]
    fn all_pass_on_plenty_of_memory() {
        run_all_on(5000);
    }

    #[test]
    fn all_pass_on_almost_none() {
        run_all_on(3);
    }

    #[test]
    #[should_panic(expected = "frames leaked, or were not merged")]
    fn a_leak_is_reported() {
        let records: [_; 4] = from_fn(|_| Frame::new());
        let zones = [Zone::new(Pfn::new(4), &records)];
        let map = FrameMap::new(&zones, None);
        map.release(zones[0].range());
        all_given_back(&map, || drop(map.alloc(0).map(Folio::into_raw)));
    }
}
