//! The frame allocator through its public interface: to exhaustion, with hooks, from several threads at once.
//! Random sequences of operations are in `frames_property.rs`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arch::Pfn;
use pleat_mm::frame::{Counts, Folio, Frame, FrameHooks, FrameMap, MAX_ORDER, OutOfMemory, Zone};

fn records(n: usize) -> Vec<Frame> {
    (0..n).map(|_| Frame::new()).collect()
}

/// Runs `test` on a map of one zone, all of it released.
fn with_zone(base: u64, len: usize, hooks: Option<&dyn FrameHooks>, test: impl FnOnce(&FrameMap<'_>)) {
    let records = records(len);
    let zones = [Zone::new(Pfn::new(base), &records)];
    let map = FrameMap::new(&zones, hooks);
    map.release(zones[0].range());
    test(&map);
    assert_eq!(map.check(), Ok(()));
    assert_eq!(map.free_frames(), len as u64, "frames leaked");
}

#[test]
fn everything_can_be_allocated_and_given_back() {
    for order in 0..=MAX_ORDER {
        with_zone(0x40123, 5000, None, |map| {
            let before = map.counts();
            let mut held = Vec::new();
            let error = loop {
                match map.alloc(order) {
                    Ok(folio) => held.push(folio),
                    Err(error) => break error,
                }
            };
            assert_eq!(error, OutOfMemory { order });
            let (first, end) = (0x40123u64.next_multiple_of(1 << order) >> order, (0x40123 + 5000) >> order);
            assert_eq!(held.len() as u64, end - first, "every aligned block of order {order}");
            assert_eq!(map.check(), Ok(()));
            drop(held);
            assert_eq!(map.counts(), before);
        });
    }
}

#[test]
fn fragmented_memory_merges_to_the_largest_blocks() {
    with_zone(0x1000, 0x1000, None, |map| {
        let before = map.counts();
        assert_eq!(before.blocks[usize::from(MAX_ORDER)], 4);
        let mut held: Vec<_> = (0..0x1000).map(|_| map.alloc(0).unwrap()).collect();
        assert_eq!(map.alloc(0).err(), Some(OutOfMemory { order: 0 }));
        // Every other frame, so that nothing merges …
        held.retain(|folio| folio.head().get() % 2 == 1);
        assert_eq!((map.counts().blocks[0], map.free_frames()), (0x800, 0x800));
        assert_eq!(map.alloc(1).err(), Some(OutOfMemory { order: 1 }));
        assert_eq!(map.check(), Ok(()));
        // … then the rest.
        drop(held);
        assert_eq!(map.counts(), before);
    });
}

#[test]
fn zones_are_used_in_order_and_never_merged() {
    let (low, high) = (records(8), records(8));
    let zones = [Zone::new(Pfn::new(8), &low), Zone::new(Pfn::new(16), &high)];
    let map = FrameMap::new(&zones, None);
    map.release(zones[0].range());
    map.release(zones[1].range());
    let mut blocks = [0; 11];
    blocks[3] = 2;
    assert_eq!(map.counts(), Counts { total: 16, reserved: 0, free: 16, blocks });
    assert_eq!(map.alloc(4).err(), Some(OutOfMemory { order: 4 }));
    let [first, second, third] = [2, 3, 2].map(|order| map.alloc(order).unwrap());
    assert_eq!([&first, &second, &third].map(|folio| folio.head().get()), [8, 16, 12]);
    assert_eq!(map.get(Pfn::new(23)).unwrap().head().get(), 16);
}

#[test]
#[should_panic(expected = "frame 0xb: a zone begins before the previous one ends at 0xc")]
fn overlapping_zones_are_refused() {
    let records = records(4);
    FrameMap::new(&[Zone::new(Pfn::new(8), &records), Zone::new(Pfn::new(11), &records)], None);
}

#[test]
#[should_panic(expected = "frame 0x8: a zone begins before the previous one ends at 0xe")]
fn unsorted_zones_are_refused() {
    let records = records(2);
    FrameMap::new(&[Zone::new(Pfn::new(12), &records), Zone::new(Pfn::new(8), &records)], None);
}

#[test]
#[should_panic(expected = "frame 0x7: released, but it is not RAM")]
fn only_ram_is_released() {
    with_zone(8, 8, None, |map| map.release(Pfn::new(7)..Pfn::new(9)));
}

#[test]
fn an_empty_release_does_nothing_wherever_it_is() {
    with_zone(8, 8, None, |map| {
        let before = map.counts();
        let pfns = [0, 8, 16, 1000].map(Pfn::new);
        pfns.into_iter().for_each(|pfn| map.release(pfn..pfn));
        map.release(pfns[3]..pfns[0]);
        assert_eq!(map.counts(), before);
    });
}

#[test]
#[should_panic(expected = "frame 0x10: released from 0x8 on, across a zone's end")]
fn a_release_stays_in_its_zone() {
    with_zone(8, 8, None, |map| map.release(Pfn::new(8)..Pfn::new(17)));
}

#[test]
#[should_panic(expected = "frame 0x9: used while FreeBody")]
fn a_free_frame_has_no_folio() {
    with_zone(8, 8, None, |map| assert!(map.folio(Pfn::new(9)).is_none()));
}

#[test]
#[should_panic(expected = "there is no order 11")]
fn an_order_too_large_is_refused() {
    with_zone(8, 8, None, |map| drop(map.alloc(MAX_ORDER + 1)));
}

// ---- hooks ----

/// One word of memory for each frame, poisoned while the frame is free.
struct Memory {
    base: u64,
    words: Vec<AtomicU64>,
}

const POISON: u64 = 0x6b6b_6b6b_6b6b_6b6b;

impl Memory {
    fn new(base: u64, len: usize) -> Self {
        Self { base, words: (0..len).map(|_| AtomicU64::new(0)).collect() }
    }

    fn word(&self, pfn: Pfn) -> &AtomicU64 {
        &self.words[(pfn.get() - self.base) as usize]
    }
}

// Relaxed: that the allocator orders these accesses is a part of what is tested.
impl FrameHooks for Memory {
    fn on_free(&self, frame: Pfn) {
        assert_ne!(self.word(frame).swap(POISON, Ordering::Relaxed), POISON, "frame {frame}: freed twice");
    }

    fn on_reuse(&self, frame: Pfn) {
        assert_eq!(self.word(frame).swap(0, Ordering::Relaxed), POISON, "frame {frame}: written while free");
    }
}

#[test]
fn hooks_see_each_frame_that_is_freed_and_then_reused() {
    struct Log(Mutex<Vec<(char, u64)>>);
    impl FrameHooks for Log {
        fn on_free(&self, frame: Pfn) {
            self.0.lock().unwrap().push(('f', frame.get()));
        }
        fn on_reuse(&self, frame: Pfn) {
            self.0.lock().unwrap().push(('r', frame.get()));
        }
    }
    let log = Log(Mutex::default());
    let seen = || std::mem::take(&mut *log.0.lock().unwrap());
    with_zone(8, 8, Some(&log), |map| {
        let folio = map.alloc(1).unwrap();
        let again = folio.clone();
        drop(folio);
        assert_eq!(seen(), [], "a first allocation, and a reference that is not the last");
        drop(again);
        assert_eq!(seen(), [('f', 8), ('f', 9)]);
        let all = map.alloc(3).unwrap();
        assert_eq!(seen(), [('r', 8), ('r', 9)], "the rest is allocated for the first time");
        drop(all);
        assert_eq!(seen(), (8..16).map(|pfn| ('f', pfn)).collect::<Vec<_>>());
        drop(map.alloc(0));
        assert_eq!(seen(), [('r', 8), ('f', 8)]);
    });
}

#[test]
#[should_panic(expected = "frame 0x9: written while free")]
fn a_write_after_free_is_found() {
    let memory = Memory::new(8, 8);
    with_zone(8, 8, Some(&memory), |map| {
        drop(map.alloc(3));
        memory.word(Pfn::new(9)).store(1, Ordering::Relaxed);
        drop(map.alloc(1));
    });
}

#[test]
fn each_allocation_in_turn_can_be_made_to_fail() {
    struct FailAfter(AtomicU32);
    impl FrameHooks for FailAfter {
        fn admit(&self, _order: u8) -> bool {
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
        }
    }
    for allowed in 0..4 {
        let hooks = FailAfter(AtomicU32::new(allowed));
        with_zone(0, 16, Some(&hooks), |map| {
            let held: Vec<_> = (0..4).map(|order| map.alloc(order)).collect();
            let failed: Vec<_> = held.iter().filter_map(|folio| folio.as_ref().err()).collect();
            let expected: Vec<_> = (allowed as u8..4).map(|order| OutOfMemory { order }).collect();
            assert_eq!(failed, expected.iter().collect::<Vec<_>>());
        });
    }
}

// ---- threads ----

/// Fewer under Miri, which is about a thousand times slower and explores weak memory instead.
const ROUNDS: usize = if cfg!(miri) { 60 } else { 40_000 };

/// A small generator (xorshift64), so that each thread's choices are its own and the same in every run.
struct Choices(u64);

impl Choices {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// Two threads allocate, write their name into each frame, and free. Two others get any frame they like at any
/// time, so that the last reference is often theirs.
#[test]
fn threads_never_share_a_frame_and_never_lose_one() {
    const LEN: usize = 75;
    let memory = Memory::new(0x13, LEN);
    with_zone(0x13, LEN, Some(&memory), |map| {
        let before = map.counts();
        let done = AtomicBool::new(false);
        let gotten = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let owners: Vec<_> = [1u64, 2]
                .map(|name| {
                    let memory = &memory;
                    scope.spawn(move || {
                        let mut choices = Choices(name);
                        let mut held: Vec<Folio<'_>> = Vec::new();
                        for _ in 0..ROUNDS {
                            if held.len() < 8 && choices.below(2) == 0 {
                                let Ok(folio) = map.alloc(choices.below(5) as u8) else { continue };
                                for i in 0..folio.frames() {
                                    let was = memory.word(folio.head().add(i)).swap(name, Ordering::Relaxed);
                                    assert_eq!(was, 0, "{folio:?} is in use");
                                }
                                held.push(folio);
                            } else if !held.is_empty() {
                                let folio = held.swap_remove(choices.below(held.len()));
                                assert!(map.get(folio.head().add(folio.frames() - 1)).is_some());
                                for i in 0..folio.frames() {
                                    assert_eq!(
                                        memory.word(folio.head().add(i)).load(Ordering::Relaxed),
                                        name
                                    );
                                }
                            }
                        }
                    })
                })
                .into();
            for name in [3, 4] {
                let (done, gotten) = (&done, &gotten);
                scope.spawn(move || {
                    let mut choices = Choices(name);
                    while !done.load(Ordering::Relaxed) {
                        let pfn = Pfn::new(0x13 + choices.below(LEN) as u64);
                        let Some(folio) = map.get(pfn) else { continue };
                        assert!(folio.contains(pfn) && folio.order() < 5 && folio.refs() >= 1);
                        let again = folio.clone();
                        again.map_inc(2);
                        again.map_dec(2);
                        gotten.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            // `done` even if an owner failed: else the scope would wait for ever.
            let owners: Vec<_> = owners.into_iter().map(|owner| owner.join()).collect();
            done.store(true, Ordering::Relaxed);
            owners
                .into_iter()
                .for_each(|owner| owner.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        });
        assert!(gotten.into_inner() > 0, "nothing was ever raced");
        assert_eq!(map.counts(), before);
    });
}
