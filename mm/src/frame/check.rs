//! The allocator's invariants, checked over every frame: a self-test, and the oracle of the property tests.

use core::fmt;

use arch::Pfn;

use super::buddy::{FreeLists, Zone};
use super::record::{NIL, State};
use super::{FrameMap, MAX_ORDER, ORDERS};

/// The first invariant that was found broken, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inconsistency {
    /// The block or folio that begins here has a larger order than there is, or isn't a multiple of its size.
    Misplaced(Pfn),
    /// The block or folio that begins here reaches beyond its zone.
    Overlong(Pfn),
    /// A frame inside a block or folio is not the rest of it.
    Torn {
        /// Where the block or folio begins.
        head: Pfn,
        /// The frame that disagrees.
        frame: Pfn,
    },
    /// The rest of a block or folio, outside of any.
    Stray(Pfn),
    /// This block and its buddy are both free and should be one.
    Unmerged(Pfn),
    /// A reference count on a frame that has none, or a folio without a reference.
    References(Pfn),
    /// The free list of this order has at this frame something that isn't a block of it, or a link back that
    /// isn't to where the list came from.
    Link {
        /// Which list.
        order: u8,
        /// The frame it led to.
        frame: Pfn,
    },
    /// The free blocks of this order, by three ways of counting that should agree.
    Blocks {
        /// Which order.
        order: u8,
        /// Blocks among the frames.
        found: u32,
        /// Blocks in the free list.
        listed: u32,
        /// The counter.
        counted: u32,
    },
    /// The reserved frames of a zone.
    Reserved {
        /// The zone's first frame.
        zone: Pfn,
        /// Reserved ones among the frames.
        found: u32,
        /// The counter.
        counted: u32,
    },
}

impl fmt::Display for Inconsistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misplaced(pfn) => write!(f, "frame {pfn}: not aligned to its order"),
            Self::Overlong(pfn) => write!(f, "frame {pfn}: reaches beyond its zone"),
            Self::Torn { head, frame } => write!(f, "frame {frame}: not the rest of {head}"),
            Self::Stray(pfn) => write!(f, "frame {pfn}: the rest of nothing"),
            Self::Unmerged(pfn) => write!(f, "frame {pfn}: not merged with its free buddy"),
            Self::References(pfn) => write!(f, "frame {pfn}: references disagree with its state"),
            Self::Link { order, frame } => write!(f, "frame {frame}: wrong link in list {order}"),
            Self::Blocks { order, found, listed, counted } => {
                write!(f, "order {order}: {found} free blocks, {listed} listed, {counted} counted")
            }
            Self::Reserved { zone, found, counted } => {
                write!(f, "zone {zone}: {found} frames reserved, {counted} counted")
            }
        }
    }
}

impl core::error::Error for Inconsistency {}

impl FrameMap<'_> {
    /// Checks every invariant of the allocator, a zone at a time under its lock:
    /// - each frame is reserved, or belongs to exactly one free block or folio, which is naturally aligned and
    ///   inside its zone;
    /// - no two free buddies are apart;
    /// - folios have references, and nothing else has;
    /// - each free block is once in the list of its order, and nothing else is in one;
    /// - the counters are right.
    ///
    /// Takes some instructions for each frame. Nobody else may be allocating or freeing meanwhile: a folio that
    /// is under way between its list and its first or last reference would be reported.
    ///
    /// # Errors
    /// The first broken invariant.
    pub fn check(&self) -> Result<(), Inconsistency> {
        self.zones().iter().try_for_each(|zone| {
            let lists = &*zone.lists();
            let mut found = [0; ORDERS];
            let reserved = check_frames(zone, &mut found)?;
            if reserved != lists.reserved {
                let (zone, counted) = (zone.pfn(0), lists.reserved);
                return Err(Inconsistency::Reserved { zone, found: reserved, counted });
            }
            (0..=MAX_ORDER).try_for_each(|order| check_list(zone, lists, order, found[usize::from(order)]))
        })
    }
}

/// Walks the frames in address order, a block or folio at a time. Counts the free blocks of each order into
/// `found` and returns the number of reserved frames.
fn check_frames(zone: &Zone<'_>, found: &mut [u32; ORDERS]) -> Result<u32, Inconsistency> {
    let mut reserved = 0;
    let mut index = 0;
    while index < zone.len() {
        let (order, state) = match zone.frame(index).state() {
            State::Reserved => {
                reserved += 1;
                check_refs(zone, index, false)?;
                index += 1;
                continue;
            }
            state @ (State::FreeHead { order } | State::Head { order }) => (order, state),
            State::FreeBody | State::Tail { .. } => return Err(Inconsistency::Stray(zone.pfn(index))),
        };
        let head = zone.pfn(index);
        if order > MAX_ORDER || head.get().trailing_zeros() < u32::from(order) {
            return Err(Inconsistency::Misplaced(head));
        }
        if zone.len() - index < 1 << order {
            return Err(Inconsistency::Overlong(head));
        }
        let free = state == State::FreeHead { order };
        check_refs(zone, index, !free)?;
        for distance in 1..1 << order {
            let expected = if free { State::FreeBody } else { State::Tail { distance } };
            if zone.frame(index + distance).state() != expected {
                return Err(Inconsistency::Torn { head, frame: zone.pfn(index + distance) });
            }
            check_refs(zone, index + distance, false)?;
        }
        if free {
            if order < MAX_ORDER
                && zone.buddy(index, order).is_some_and(|buddy| zone.frame(buddy).state() == state)
            {
                return Err(Inconsistency::Unmerged(head));
            }
            found[usize::from(order)] += 1;
        }
        index += 1 << order;
    }
    Ok(reserved)
}

fn check_refs(zone: &Zone<'_>, index: u32, expected: bool) -> Result<(), Inconsistency> {
    if (zone.frame(index).refs() != 0) == expected {
        Ok(())
    } else {
        Err(Inconsistency::References(zone.pfn(index)))
    }
}

/// Walks one free list. It ends even if the links form a ring: the frame where the ring closes has two
/// predecessors and only one link back.
fn check_list(zone: &Zone<'_>, lists: &FreeLists, order: u8, found: u32) -> Result<(), Inconsistency> {
    let mut listed = 0;
    let (mut prev, mut index) = (NIL, lists.first[usize::from(order)]);
    while index != NIL {
        // A link out of the zone is named as the frame that it would be.
        if index >= zone.len()
            || zone.frame(index).state() != (State::FreeHead { order })
            || zone.frame(index).prev() != prev
        {
            return Err(Inconsistency::Link { order, frame: zone.pfn(index) });
        }
        listed += 1;
        (prev, index) = (index, zone.frame(index).next());
    }
    let counted = lists.blocks[usize::from(order)];
    if listed == found && counted == found {
        Ok(())
    } else {
        Err(Inconsistency::Blocks { order, found, listed, counted })
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Frame;
    use super::*;

    /// A zone [0x102, 0x140): 0x102 is reserved, the rest was released. Then `fault` breaks it.
    fn after(fault: impl FnOnce(&FrameMap<'_>, &Zone<'_>)) -> Result<(), Inconsistency> {
        let frames: Vec<_> = (0x102..0x140).map(|_| Frame::new()).collect();
        let zones = [Zone::new(Pfn::new(0x102), &frames)];
        let map = FrameMap::new(&zones, None);
        map.release(Pfn::new(0x103)..Pfn::new(0x140));
        assert_eq!(map.check(), Ok(()));
        fault(&map, &zones[0]);
        map.check()
    }

    fn at<'z>(zone: &'z Zone<'_>, pfn: u64) -> &'z Frame {
        zone.frame(zone.index(Pfn::new(pfn)).unwrap())
    }

    /// Leaks an order-2 folio at 0x104.
    fn leak_folio(map: &FrameMap<'_>) {
        assert_eq!(map.alloc(2).unwrap().into_raw().pfn(), Pfn::new(0x104));
    }

    #[test]
    fn a_sound_map_passes() {
        assert_eq!(after(|_, _| ()), Ok(()));
        assert_eq!(after(|map, _| leak_folio(map)), Ok(()));
    }

    #[test]
    fn a_head_of_the_wrong_order_is_found() {
        let fault = |order| after(move |_, zone| at(zone, 0x104).set_state(State::FreeHead { order }));
        assert_eq!(fault(3), Err(Inconsistency::Misplaced(Pfn::new(0x104))));
        assert_eq!(fault(MAX_ORDER + 1), Err(Inconsistency::Misplaced(Pfn::new(0x104))));
        assert_eq!(fault(1), Err(Inconsistency::Stray(Pfn::new(0x106))));
        // Aligned and inside, but of an order that no list has.
        let frames: Vec<_> = (0..2 << MAX_ORDER).map(|_| Frame::new()).collect();
        let zones = [Zone::new(Pfn::new(2 << MAX_ORDER), &frames)];
        zones[0].frame(0).set_state(State::FreeHead { order: MAX_ORDER + 1 });
        let found = FrameMap::new(&zones, None).check();
        assert_eq!(found, Err(Inconsistency::Misplaced(Pfn::new(2 << MAX_ORDER))));
    }

    #[test]
    fn a_block_beyond_the_zone_is_found() {
        let frames: Vec<_> = (0x100..0x117).map(|_| Frame::new()).collect();
        let zones = [Zone::new(Pfn::new(0x100), &frames)];
        let map = FrameMap::new(&zones, None);
        map.release(zones[0].range());
        at(&zones[0], 0x110).set_state(State::FreeHead { order: 3 });
        assert_eq!(map.check(), Err(Inconsistency::Overlong(Pfn::new(0x110))));
    }

    #[test]
    fn a_torn_block_or_folio_is_found() {
        let torn = |head, frame| Err(Inconsistency::Torn { head: Pfn::new(head), frame: Pfn::new(frame) });
        assert_eq!(after(|_, zone| at(zone, 0x12f).set_state(State::Reserved)), torn(0x120, 0x12f));
        let folio = |state| {
            after(move |map, zone| {
                leak_folio(map);
                at(zone, 0x106).set_state(state);
            })
        };
        assert_eq!(folio(State::FreeBody), torn(0x104, 0x106));
        assert_eq!(folio(State::Tail { distance: 1 }), torn(0x104, 0x106));
        assert_eq!(folio(State::Head { order: 0 }), torn(0x104, 0x106));
    }

    #[test]
    fn a_stray_frame_is_found() {
        for state in [State::FreeBody, State::Tail { distance: 1 }] {
            let stray = after(move |_, zone| at(zone, 0x103).set_state(state));
            assert_eq!(stray, Err(Inconsistency::Stray(Pfn::new(0x103))));
        }
    }

    #[test]
    fn free_buddies_apart_are_found() {
        let unmerged = after(|_, zone| {
            at(zone, 0x104).set_state(State::FreeHead { order: 1 });
            at(zone, 0x106).set_state(State::FreeHead { order: 1 });
        });
        assert_eq!(unmerged, Err(Inconsistency::Unmerged(Pfn::new(0x104))));
    }

    #[test]
    fn wrong_references_are_found() {
        let refs = |pfn, refs| {
            after(move |map, zone| {
                leak_folio(map);
                at(zone, pfn).break_refs(refs);
            })
        };
        let head_without = refs(0x104, 0);
        assert_eq!(head_without, Err(Inconsistency::References(Pfn::new(0x104))));
        // A tail, a reserved frame, and the first and another one of a free block.
        for pfn in [0x105, 0x102, 0x108, 0x109] {
            assert_eq!(refs(pfn, 1), Err(Inconsistency::References(Pfn::new(pfn))), "{pfn:#x}");
        }
    }

    /// Two blocks of order 3 in one list: 0x108, which is first, and then 0x128.
    fn two_blocks(map: &FrameMap<'_>, zone: &Zone<'_>) {
        let order_3 = map.alloc(3).unwrap();
        let order_4 = map.alloc(4).unwrap();
        let lower_half = map.alloc(3).unwrap();
        assert_eq!((order_3.head(), order_4.head()), (Pfn::new(0x108), Pfn::new(0x110)));
        assert_eq!(lower_half.head(), Pfn::new(0x120));
        drop(order_3);
        let _ = (order_4.into_raw(), lower_half.into_raw());
        assert_eq!(zone.pfn(zone.lists().first[3]), Pfn::new(0x108));
        assert_eq!(zone.pfn(at(zone, 0x108).next()), Pfn::new(0x128));
        assert_eq!(map.check(), Ok(()));
    }

    #[test]
    fn wrong_links_are_found() {
        let index = |pfn: u64| (pfn - 0x102) as u32;
        let link = |fault: fn(&Zone<'_>, &dyn Fn(u64) -> u32)| {
            after(|map, zone| {
                two_blocks(map, zone);
                fault(zone, &index);
            })
        };
        let wrong = |frame| Err(Inconsistency::Link { order: 3, frame: Pfn::new(frame) });
        // The way back is lost.
        assert_eq!(link(|zone, _| at(zone, 0x128).set_prev(NIL)), wrong(0x128));
        // A ring.
        assert_eq!(link(|zone, index| at(zone, 0x128).set_next(index(0x108))), wrong(0x108));
        // A block of a larger order in the list, and a frame inside a block, both linked back.
        let other_order = link(|zone, index| {
            at(zone, 0x128).set_next(index(0x130));
            at(zone, 0x130).set_prev(index(0x128));
        });
        assert_eq!(other_order, wrong(0x130));
        let inside = link(|zone, index| {
            at(zone, 0x128).set_next(index(0x109));
            at(zone, 0x109).set_prev(index(0x128));
        });
        assert_eq!(inside, wrong(0x109));
        // A frame outside the zone.
        assert_eq!(link(|zone, index| at(zone, 0x128).set_next(index(0x1000))), wrong(0x1000));
    }

    #[test]
    fn a_block_that_is_not_listed_is_found() {
        let lost = after(|map, zone| {
            two_blocks(map, zone);
            at(zone, 0x108).set_next(NIL);
        });
        assert_eq!(lost, Err(Inconsistency::Blocks { order: 3, found: 2, listed: 1, counted: 2 }));
    }

    #[test]
    fn wrong_counters_are_found() {
        let blocks = after(|_, zone| zone.lists().blocks[2] += 1);
        assert_eq!(blocks, Err(Inconsistency::Blocks { order: 2, found: 1, listed: 1, counted: 2 }));
        let reserved = after(|_, zone| zone.lists().reserved -= 1);
        let zone = Pfn::new(0x102);
        assert_eq!(reserved, Err(Inconsistency::Reserved { zone, found: 1, counted: 0 }));
    }
}
