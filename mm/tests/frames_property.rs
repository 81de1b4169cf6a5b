//! The frame allocator against a plain reference: who has which frame, and nothing else. After each operation all
//! that can be observed has to agree, and the allocator's own check has to pass.

use std::collections::BTreeMap;
use std::mem::ManuallyDrop;

use arch::Pfn;
use pleat_mm::frame::{Counts, Folio, Frame, FrameMap, MAX_ORDER, OutOfMemory, RawFolio, Zone};
use proptest::prelude::*;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
    Reserved,
    Free,
    /// By the folio with this head.
    Folio(u64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Counted {
    order: u8,
    refs: u32,
    maps: u32,
}

struct Reference {
    /// The zones: base and owners.
    zones: Vec<(u64, Vec<Owner>)>,
    folios: BTreeMap<u64, Counted>,
}

impl Reference {
    fn owner(&mut self, pfn: u64) -> Option<&mut Owner> {
        let (base, owners) = self
            .zones
            .iter_mut()
            .find(|(base, owners)| (*base..*base + owners.len() as u64).contains(&pfn))?;
        Some(&mut owners[(pfn - *base) as usize])
    }

    /// The free frames of a zone as the largest naturally aligned blocks: there is only one way to cut them.
    fn blocks(base: u64, owners: &[Owner]) -> Vec<(u64, u8)> {
        let mut blocks = Vec::new();
        let mut index = 0;
        while index < owners.len() {
            let pfn = base + index as u64;
            let fits = |order: &u8| {
                pfn.is_multiple_of(1 << order)
                    && owners
                        .get(index..index + (1 << order))
                        .is_some_and(|block| block.iter().all(|&owner| owner == Owner::Free))
            };
            match (0..=MAX_ORDER).rev().find(fits) {
                Some(order) => {
                    blocks.push((pfn, order));
                    index += 1 << order;
                }
                None => index += 1,
            }
        }
        blocks
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for (base, owners) in &self.zones {
            counts.total += owners.len() as u64;
            counts.reserved += owners.iter().filter(|&&owner| owner == Owner::Reserved).count() as u64;
            counts.free += owners.iter().filter(|&&owner| owner == Owner::Free).count() as u64;
            for (_, order) in Self::blocks(*base, owners) {
                counts.blocks[usize::from(order)] += 1;
            }
        }
        counts
    }

    /// The first zone that can serve `order`.
    fn zone_for(&self, order: u8) -> Option<usize> {
        self.zones
            .iter()
            .position(|(base, owners)| Self::blocks(*base, owners).iter().any(|&(_, o)| o >= order))
    }

    fn set(&mut self, head: u64, order: u8, owner: Owner) {
        for pfn in head..head + (1 << order) {
            *self.owner(pfn).unwrap() = owner;
        }
    }

    fn drop_ref(&mut self, head: u64) {
        let folio = self.folios.get_mut(&head).unwrap();
        folio.refs -= 1;
        if folio.refs == 0 {
            let order = folio.order;
            self.folios.remove(&head);
            self.set(head, order, Owner::Free);
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Alloc { order: u8 },
    Drop { which: prop::sample::Index },
    Clone { which: prop::sample::Index },
    Get { pfn: prop::sample::Index },
    MapInc { which: prop::sample::Index, n: u32 },
    MapDec { which: prop::sample::Index, n: u32 },
    IntoRaw { which: prop::sample::Index },
    FromRaw { which: prop::sample::Index },
    Release { pfn: prop::sample::Index, most: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let any = any::<prop::sample::Index>;
    prop_oneof![
        6 => prop_oneof![3 => 0..=4u8, 1 => 0..=MAX_ORDER].prop_map(|order| Op::Alloc { order }),
        5 => any().prop_map(|which| Op::Drop { which }),
        2 => any().prop_map(|which| Op::Clone { which }),
        2 => any().prop_map(|pfn| Op::Get { pfn }),
        1 => (any(), 1..20u32).prop_map(|(which, n)| Op::MapInc { which, n }),
        1 => (any(), 1..20u32).prop_map(|(which, n)| Op::MapDec { which, n }),
        1 => any().prop_map(|which| Op::IntoRaw { which }),
        1 => any().prop_map(|which| Op::FromRaw { which }),
        1 => (any(), 1..100usize).prop_map(|(pfn, most)| Op::Release { pfn, most }),
    ]
}

/// A zone: how far behind the previous one, how long, and up to where from where it is released at first.
#[derive(Clone, Debug)]
struct Layout {
    gap: u64,
    len: usize,
    released: (prop::sample::Index, prop::sample::Index),
}

fn layout() -> impl Strategy<Value = Layout> {
    let gap = prop_oneof![Just(0), 1..3000u64];
    let len = prop_oneof![6 => 1..200usize, 1 => 1000..2600usize];
    (gap, len, any::<(prop::sample::Index, prop::sample::Index)>()).prop_map(|(gap, len, released)| Layout {
        gap,
        len,
        released,
    })
}

struct Machine<'m> {
    map: &'m FrameMap<'m>,
    reference: Reference,
    // Not dropped when a test fails: a second panic (a folio is still mapped) would hide the first.
    held: Vec<ManuallyDrop<Folio<'m>>>,
    raw: Vec<RawFolio>,
}

impl<'m> Machine<'m> {
    fn release(&mut self, zone: usize, range: std::ops::Range<usize>) {
        let (base, owners) = &mut self.reference.zones[zone];
        let pfn = |index: usize| Pfn::new(*base + index as u64);
        self.map.release(pfn(range.start)..pfn(range.end));
        owners[range].fill(Owner::Free);
    }

    fn step(&mut self, op: Op) -> Result<(), TestCaseError> {
        let reference = &mut self.reference;
        match op {
            Op::Alloc { order } => match (self.map.alloc(order), reference.zone_for(order)) {
                (Err(error), None) => prop_assert_eq!(error, OutOfMemory { order }),
                (Ok(folio), Some(zone)) => {
                    let folio = ManuallyDrop::new(folio);
                    let head = folio.head().get();
                    prop_assert_eq!(folio.order(), order);
                    prop_assert!(head.is_multiple_of(1 << order));
                    let (base, owners) = &reference.zones[zone];
                    prop_assert!((*base..*base + owners.len() as u64).contains(&head), "not the first zone");
                    for pfn in head..head + (1 << order) {
                        prop_assert_eq!(
                            reference.owner(pfn).copied(),
                            Some(Owner::Free),
                            "{:#x} given twice",
                            pfn
                        );
                    }
                    reference.set(head, order, Owner::Folio(head));
                    reference.folios.insert(head, Counted { order, refs: 1, maps: 0 });
                    self.held.push(folio);
                }
                (result, zone) => prop_assert!(false, "{result:?}, but by the reference zone {zone:?}"),
            },
            Op::Drop { which } if !self.held.is_empty() => {
                let which = which.index(self.held.len());
                let head = self.held[which].head().get();
                let folio = reference.folios[&head];
                if folio.refs > 1 || folio.maps == 0 {
                    drop(ManuallyDrop::into_inner(self.held.swap_remove(which)));
                    reference.drop_ref(head);
                }
            }
            Op::Clone { which } if !self.held.is_empty() => {
                let folio = self.held[which.index(self.held.len())].clone();
                reference.folios.get_mut(&folio.head().get()).unwrap().refs += 1;
                self.held.push(folio);
            }
            Op::Get { pfn } => {
                let heads: Vec<_> =
                    reference.folios.iter().map(|(&head, folio)| (head, folio.order)).collect();
                let Some(&(head, order)) = heads.get(pfn.index(heads.len() + 1)) else { return Ok(()) };
                let pfn = head + pfn.index(1 << order) as u64;
                let folio = ManuallyDrop::new(self.map.get(Pfn::new(pfn)).expect("an allocated folio"));
                reference.folios.get_mut(&head).unwrap().refs += 1;
                self.held.push(folio);
            }
            Op::MapInc { which, n } if !self.held.is_empty() => {
                let folio = &self.held[which.index(self.held.len())];
                folio.map_inc(n);
                reference.folios.get_mut(&folio.head().get()).unwrap().maps += n;
            }
            Op::MapDec { which, n } if !self.held.is_empty() => {
                let folio = &self.held[which.index(self.held.len())];
                let counted = reference.folios.get_mut(&folio.head().get()).unwrap();
                let n = n.min(counted.maps);
                folio.map_dec(n);
                counted.maps -= n;
            }
            Op::IntoRaw { which } if !self.held.is_empty() => {
                let folio = self.held.swap_remove(which.index(self.held.len()));
                self.raw.push(ManuallyDrop::into_inner(folio).into_raw());
            }
            Op::FromRaw { which } if !self.raw.is_empty() => {
                let raw = self.raw.swap_remove(which.index(self.raw.len()));
                self.held.push(ManuallyDrop::new(self.map.from_raw(raw)));
            }
            Op::Release { pfn, most } => {
                let zone = pfn.index(reference.zones.len());
                let owners = &reference.zones[zone].1;
                let start = pfn.index(owners.len());
                let run =
                    owners[start..].iter().take(most).take_while(|&&owner| owner == Owner::Reserved).count();
                self.release(zone, start..start + run);
            }
            _ => {}
        }
        Ok(())
    }

    /// All that can be observed is as the reference says.
    fn compare(&self) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.map.check(), Ok(()));
        prop_assert_eq!(self.map.counts(), self.reference.counts());
        for (base, owners) in &self.reference.zones {
            for (pfn, &owner) in (*base..).zip(owners) {
                let got = self.map.get(Pfn::new(pfn)).map(ManuallyDrop::new);
                match owner {
                    Owner::Reserved => {
                        prop_assert!(got.is_none() && self.map.folio(Pfn::new(pfn)).is_none(), "{:#x}", pfn);
                    }
                    Owner::Free => prop_assert!(got.is_none(), "{:#x} is free, but {:?}", pfn, got),
                    Owner::Folio(head) => {
                        let Some(got) = got else {
                            return Err(TestCaseError::fail(format!("{pfn:#x} has no folio")));
                        };
                        // Without the reference that was just taken.
                        drop(ManuallyDrop::into_inner(got));
                        let seen = self.map.folio(Pfn::new(pfn)).unwrap();
                        prop_assert!(seen.head().get() == head && seen.contains(Pfn::new(pfn)));
                        let seen = Counted { order: seen.order(), refs: seen.refs(), maps: seen.maps() };
                        prop_assert_eq!(seen, self.reference.folios[&head]);
                    }
                }
            }
            let end = base + owners.len() as u64;
            let outside = [base.wrapping_sub(1), end].map(|pfn| self.map.get(Pfn::new(pfn)).is_some());
            let expected = [base.wrapping_sub(1), end].map(|pfn| {
                self.reference.folios.iter().any(|(head, folio)| pfn.wrapping_sub(*head) < 1 << folio.order)
            });
            prop_assert_eq!(outside, expected, "around zone {:#x}", base);
        }
        Ok(())
    }

    /// Gives everything back.
    fn finish(mut self) -> Result<(), TestCaseError> {
        self.held.extend(self.raw.drain(..).map(|raw| ManuallyDrop::new(self.map.from_raw(raw))));
        for folio in self.held.drain(..).map(ManuallyDrop::into_inner) {
            folio.map_dec(folio.maps());
            let head = folio.head().get();
            drop(folio);
            self.reference.drop_ref(head);
        }
        prop_assert!(self.reference.folios.is_empty());
        for (_, owners) in &self.reference.zones {
            prop_assert!(owners.iter().all(|owner| !matches!(owner, Owner::Folio(_))));
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn any_sequence_of_operations_agrees_with_the_reference(
        base in 0..5000u64,
        layouts in prop::collection::vec(layout(), 1..4),
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut next = base;
        let records: Vec<Vec<_>> = layouts.iter().map(|layout| (0..layout.len).map(|_| Frame::new()).collect()).collect();
        let zones: Vec<_> = layouts.iter().zip(&records).map(|(layout, records)| {
            let zone = Zone::new(Pfn::new(next + layout.gap), records);
            next = zone.range().end.get();
            zone
        }).collect();
        let map = FrameMap::new(&zones, None);
        let reserved = zones.iter().zip(&records).map(|(zone, records)| {
            (zone.range().start.get(), vec![Owner::Reserved; records.len()])
        });
        let reference = Reference { zones: reserved.collect(), folios: BTreeMap::new() };
        let mut machine = Machine { map: &map, reference, held: Vec::new(), raw: Vec::new() };
        machine.compare()?;
        for (zone, layout) in layouts.iter().enumerate() {
            let (a, b) = (layout.released.0.index(layout.len + 1), layout.released.1.index(layout.len + 1));
            machine.release(zone, a.min(b)..a.max(b));
            machine.compare()?;
        }
        for op in ops {
            machine.step(op)?;
            machine.compare()?;
        }
        machine.finish()?;
        prop_assert_eq!(map.check(), Ok(()));
        let counts = map.counts();
        prop_assert_eq!(counts.free, counts.total - counts.reserved);
    }
}
