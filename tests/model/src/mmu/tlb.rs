//! What a TLB may hold: grow-only sets of leaves and of table descriptors, and what a maintenance operation takes
//! from them.
//!
//! A leaf that was made of a Contiguous group is kept as its pages: an operation takes one of them, the others stay
//! (RLQLSD).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use arch::tlbi::{Asid, Space, Tlbi};
use arch::{Granule, VirtAddr};

use super::bits::{self, CONTIGUOUS};
use crate::descriptor::leaf_size;

/// Which contexts an entry is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Tag {
    Asid(u16),
    Global,
}

/// An address as a TLB looks it up: the entry of a level that translates it, for a context.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    pub(super) level: u8,
    pub(super) va: u64,
    pub(super) tag: Tag,
}

/// A translation of one page or block. Entries of a group are one of these for each page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Leaf {
    /// The cached part of a descriptor.
    pub(super) value: u64,
    /// When a walk was last known to yield it.
    pub(super) fresh: u64,
}

/// The leaves of one Contiguous group of addresses, or of one address where the level has no groups.
struct Group {
    leaves: Vec<Vec<Leaf>>,
    contiguous: usize,
    single: usize,
    /// Every member has its leaf of a folded block: what the first one's is.
    whole: Option<u64>,
    /// The first one of a folded block that was stamped last, and when.
    stamped: Option<(Option<u64>, u64)>,
}

/// A cached table descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Walk {
    /// The table that it leads to.
    pub(super) table: usize,
    /// When a walk was last known to yield it.
    pub(super) fresh: u64,
}

/// Where a cached table descriptor is looked up: ASID, level of the descriptor, first address.
pub(super) type WalkPlace = (u16, u8, u64);

pub(super) struct Tlb {
    granule: Granule,
    groups: BTreeMap<(u8, u64, Tag), Group>,
    by_level: [usize; 4],
    global: usize,
    walks: BTreeMap<WalkPlace, Vec<Walk>>,
    /// Where table descriptors lead to each table from.
    reach: BTreeMap<usize, Vec<WalkPlace>>,
}

impl Tlb {
    pub(super) fn new(granule: Granule) -> Self {
        let (groups, walks, reach) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { granule, groups, by_level: [0; 4], global: 0, walks, reach }
    }

    fn group_bytes(&self, level: u8) -> u64 {
        leaf_size(self.granule, level) * self.granule.cont_entries(level) as u64
    }

    fn key(&self, place: Place) -> ((u8, u64, Tag), usize) {
        let bytes = self.group_bytes(place.level);
        let member = place.va % bytes / leaf_size(self.granule, place.level);
        ((place.level, place.va & !(bytes - 1), place.tag), member as usize)
    }

    /// What it may hold for a place.
    pub(super) fn leaves(&self, place: Place) -> &[Leaf] {
        let (key, member) = self.key(place);
        self.groups.get(&key).map_or(&[], |group| &group.leaves[member])
    }

    /// Whether it may hold entries with another Contiguous bit in the group of a place.
    pub(super) fn has_other_size(&self, place: Place, value: u64) -> bool {
        let (key, _) = self.key(place);
        self.groups.get(&key).is_some_and(|group| {
            if value & CONTIGUOUS != 0 { group.single > 0 } else { group.contiguous > 0 }
        })
    }

    pub(super) fn holds(&self, place: Place, value: u64) -> bool {
        self.leaves(place).iter().any(|leaf| leaf.value == value)
    }

    /// Whether it may hold all that the entry at a place, with this cached part, fills; so one look serves for each of a folded
    /// block's entries.
    pub(super) fn holds_whole(&self, place: Place, value: u64) -> bool {
        let (key, _) = self.key(place);
        self.groups
            .get(&key)
            .is_some_and(|group| group.whole.is_some() && group.whole == self.first_of(place, value))
    }

    /// All that the entry at a place fills was inserted.
    pub(super) fn is_whole(&mut self, place: Place, value: u64) {
        let (first, (key, _)) = (self.first_of(place, value), self.key(place));
        if let (Some(first), Some(group)) = (first, self.groups.get_mut(&key)) {
            group.whole = Some(first);
        }
    }

    /// What the entry at a place makes of the first page of its group, if it has the address of its place itself.
    fn first_of(&self, place: Place, value: u64) -> Option<u64> {
        let (_, member) = self.key(place);
        let (size, group) = (leaf_size(self.granule, place.level), self.granule.cont_entries(place.level));
        let first = bits::group_first(value, size, group)?;
        (bits::of_group(first, 0, member, size, group) == value).then_some(first)
    }

    /// How many leaves of a level it may hold.
    pub(super) fn count(&self, level: u8) -> usize {
        self.by_level[usize::from(level)]
    }

    /// How many global leaves it may hold.
    pub(super) fn count_global(&self) -> usize {
        self.global
    }

    pub(super) fn insert(&mut self, place: Place, leaf: Leaf) {
        let (key, member) = self.key(place);
        let entries = self.granule.cont_entries(place.level);
        let group = self.groups.entry(key).or_insert_with(|| Group {
            leaves: (0..entries).map(|_| Vec::new()).collect(),
            contiguous: 0,
            single: 0,
            whole: None,
            stamped: None,
        });
        group.leaves[member].push(leaf);
        *if leaf.value & CONTIGUOUS != 0 { &mut group.contiguous } else { &mut group.single } += 1;
        self.by_level[usize::from(place.level)] += 1;
        self.global += usize::from(place.tag == Tag::Global);
    }

    pub(super) fn remove(&mut self, place: Place, value: u64) {
        let (key, member) = self.key(place);
        let Some(group) = self.groups.get_mut(&key) else { return };
        let before = group.leaves[member].len();
        group.leaves[member].retain(|leaf| leaf.value != value);
        group.whole = None;
        let removed = before - group.leaves[member].len();
        *if value & CONTIGUOUS != 0 { &mut group.contiguous } else { &mut group.single } -= removed;
        self.by_level[usize::from(place.level)] -= removed;
        self.global -= if place.tag == Tag::Global { removed } else { 0 };
        if group.contiguous + group.single == 0 {
            self.groups.remove(&key);
        }
    }

    /// A walk that reads the entry at a place, with this cached part, could yield what it fills until now.
    pub(super) fn stamp_filled(&mut self, place: Place, value: u64, now: u64) {
        let (key, at) = self.key(place);
        let first = self.first_of(place, value);
        let (size, entries) = (leaf_size(self.granule, place.level), self.granule.cont_entries(place.level));
        let Some(group) = self.groups.get_mut(&key) else { return };
        if first.is_some() && group.stamped == Some((first, now)) {
            return;
        }
        let members = if value & CONTIGUOUS != 0 { 0..entries } else { at..at + 1 };
        for to in members {
            let value = bits::of_group(value, at, to, size, entries);
            let leaves = group.leaves[to].iter_mut();
            leaves.filter(|leaf| leaf.value == value).for_each(|leaf| leaf.fresh = now);
        }
        group.stamped = Some((first, now));
    }

    /// A walk could yield one leaf until now.
    pub(super) fn stamp(&mut self, place: Place, value: u64, now: u64) {
        let (key, member) = self.key(place);
        let leaves = self.groups.get_mut(&key).into_iter().flat_map(|group| &mut group.leaves[member]);
        leaves.filter(|leaf| leaf.value == value).for_each(|leaf| leaf.fresh = now);
    }

    /// A walk could yield everything until now.
    pub(super) fn stamp_all(&mut self, now: u64) {
        let leaves = self.groups.values_mut().flat_map(|group| group.leaves.iter_mut().flatten());
        leaves.for_each(|leaf| leaf.fresh = now);
        self.walks.values_mut().flatten().for_each(|walk| walk.fresh = now);
    }

    /// Every leaf that translates some of `first..=last`, for a context that is matched.
    pub(super) fn leaves_within(
        &self,
        first: u64,
        last: u64,
        which: impl Fn(Tag) -> bool,
    ) -> Vec<(Place, Leaf)> {
        let mut found = Vec::new();
        for level in (0..=3).filter(|&level| self.count(level) > 0) {
            let (size, bytes) = (leaf_size(self.granule, level), self.group_bytes(level));
            let range = (level, first & !(bytes - 1), Tag::Asid(0))..=(level, last, Tag::Global);
            for (&(_, base, tag), group) in self.groups.range(range).filter(|((_, _, tag), _)| which(*tag)) {
                for (leaves, i) in group.leaves.iter().zip(0..) {
                    let va = base + i * size;
                    if va <= last && va + (size - 1) >= first {
                        found.extend(leaves.iter().map(|&leaf| (Place { level, va, tag }, leaf)));
                    }
                }
            }
        }
        found
    }

    /// The tables that cached descriptors lead to from a place.
    pub(super) fn walks(&self, place: WalkPlace) -> &[Walk] {
        self.walks.get(&place).map_or(&[], |walks| walks)
    }

    /// All cached descriptors within `first..=last`, those of upper levels first.
    pub(super) fn walks_within(&self, first: u64, last: u64) -> Vec<(WalkPlace, Walk)> {
        let mut found: Vec<_> = self
            .walks
            .iter()
            .filter(|((_, level, va), _)| *va <= last && va + (leaf_size(self.granule, *level) - 1) >= first)
            .flat_map(|(&place, walks)| walks.iter().map(move |&walk| (place, walk)))
            .collect();
        found.sort_by_key(|((_, level, _), _)| *level);
        found
    }

    pub(super) fn all_walks(&self) -> Vec<(WalkPlace, Walk)> {
        self.walks_within(0, u64::MAX)
    }

    /// From where cached descriptors lead to a table.
    pub(super) fn reach(&self, table: usize) -> &[WalkPlace] {
        self.reach.get(&table).map_or(&[], |places| places)
    }

    pub(super) fn insert_walk(&mut self, place: WalkPlace, walk: Walk) {
        self.walks.entry(place).or_default().push(walk);
        self.reach.entry(walk.table).or_default().push(place);
    }

    pub(super) fn remove_walk(&mut self, place: WalkPlace, table: usize) {
        if let Some(walks) = self.walks.get_mut(&place) {
            walks.retain(|walk| walk.table != table);
            if walks.is_empty() {
                self.walks.remove(&place);
            }
        }
        if let Some(places) = self.reach.get_mut(&table) {
            places.retain(|&other| other != place);
            if places.is_empty() {
                self.reach.remove(&table);
            }
        }
    }

    pub(super) fn stamp_walk(&mut self, place: WalkPlace, now: u64, which: impl Fn(usize) -> bool) {
        let walks = self.walks.get_mut(&place).into_iter().flatten();
        walks.filter(|walk| which(walk.table)).for_each(|walk| walk.fresh = now);
    }

    /// How many leaves and table descriptors it may hold.
    pub(super) fn len(&self) -> usize {
        self.by_level.iter().sum::<usize>() + self.walks.values().map(Vec::len).sum::<usize>()
    }
}

/// The bits of an address that a TLBI operand has.
const OPERAND: u64 = (1 << 56) - 1;

/// The addresses that an operation is for, sign-extended from what its operand can say; `None` for all.
pub(super) fn span(granule: Granule, operation: Tlbi) -> Option<(u64, u64)> {
    let extend = |va: VirtAddr| ((va.get() << 8) as i64 >> 8) as u64;
    let page = |va: VirtAddr| extend(va) & !(granule.page_size() - 1);
    match operation {
        Tlbi::All | Tlbi::Asid(_) => None,
        Tlbi::Page { va, .. } => Some((page(va), page(va) | (granule.page_size() - 1))),
        Tlbi::Range { start, size, .. } => {
            let bytes = size.pages() << granule.page_size().ilog2();
            Some((page(start), page(start).saturating_add(bytes - 1)))
        }
    }
}

/// Whether an operation must remove what a TLB holds for contexts of a tag, if the address and level fit.
pub(super) fn covers_tag(operation: Tlbi, tag: Tag) -> bool {
    let asid_is = |asid: Asid| tag == Tag::Asid(asid.get());
    match operation {
        Tlbi::All => true,
        // Global entries stay.
        Tlbi::Asid(asid) => asid_is(asid),
        Tlbi::Page { space, .. } | Tlbi::Range { space, .. } => match space {
            Space::All => true,
            // Global ones go, whatever the ASID.
            Space::Asid(asid) => tag == Tag::Global || asid_is(asid),
        },
    }
}

/// Whether granule, level hint and alignment of an operation are right for leaves of a level: else nothing need be
/// invalidated (RSQXYZ, RXKMMX, ITYBWT).
pub(super) fn fits_level(granule: Granule, operation: Tlbi, leaf_level: u8) -> bool {
    match operation {
        Tlbi::All | Tlbi::Asid(_) => true,
        // Without a level, the operand doesn't tell the granule.
        Tlbi::Page { granule: tables, level, .. } => {
            level.is_none_or(|l| tables == granule && l == leaf_level)
        }
        Tlbi::Range { granule: tables, level, start, .. } => {
            let unit = leaf_size(granule, level.unwrap_or(3));
            tables == granule
                && level.is_none_or(|level| level == leaf_level)
                && (start.get() & OPERAND).is_multiple_of(unit)
        }
    }
}

/// Whether an operation is for table descriptors too. The level that it may name is that of a leaf, so one that names
/// one need not look at others.
pub(super) fn covers_walks(granule: Granule, operation: Tlbi) -> bool {
    match operation {
        Tlbi::All | Tlbi::Asid(_) => true,
        Tlbi::Page { last_level, level, .. } => !last_level && level.is_none(),
        Tlbi::Range { last_level, level, granule: tables, start, .. } => {
            !last_level && level.is_none() && tables == granule && start.is_aligned(granule.page_size())
        }
    }
}

/// The pages of a group, as a walk of one of its entries fills them: the entry's place in the group, its cached part.
pub(super) fn fills(
    granule: Granule,
    level: u8,
    va: u64,
    value: u64,
) -> impl Iterator<Item = (u64, u64)> + Clone {
    let size = leaf_size(granule, level);
    let group = if value & CONTIGUOUS != 0 { granule.cont_entries(level) } else { 1 };
    let base = va & !(size * group as u64 - 1);
    let at = ((va - base) / size) as usize;
    (0..group).map(move |to| (base + to as u64 * size, bits::of_group(value, at, to, size, group)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::tlbi::RangeSize;

    const PLACE: Place = Place { level: 3, va: 0x5000, tag: Tag::Asid(1) };

    #[test]
    fn leaves_are_counted_and_found() {
        let mut tlb = Tlb::new(Granule::K4);
        for (va, value) in fills(Granule::K4, 3, 0x5000, 0x25_0000 | CONTIGUOUS | 0x5000) {
            tlb.insert(Place { va, ..PLACE }, Leaf { value, fresh: 0 });
        }
        assert_eq!((tlb.len(), tlb.count(3)), (16, 16));
        assert!(tlb.holds(Place { va: 0xf000, ..PLACE }, 0x25_f000 | CONTIGUOUS));
        assert!(tlb.has_other_size(PLACE, 0) && !tlb.has_other_size(PLACE, CONTIGUOUS));
        assert_eq!(tlb.leaves_within(0x3fff, 0x5000, |_| true).len(), 3);
        assert_eq!(tlb.leaves_within(0x3fff, 0x5000, |tag| tag == Tag::Global).len(), 0);
        tlb.remove(PLACE, 0x25_5000 | CONTIGUOUS);
        assert_eq!((tlb.len(), tlb.leaves(PLACE).len()), (15, 0));
    }

    #[test]
    fn operations_cover_what_they_name() {
        let space = Space::Asid(Asid::new(1));
        let va = VirtAddr::new(0xffff_8000_0000_5123);
        let page = |level| Tlbi::Page { va, space, last_level: true, granule: Granule::K4, level };
        assert_eq!(span(Granule::K4, page(None)), Some((0xffff_8000_0000_5000, 0xffff_8000_0000_5fff)));
        assert!(fits_level(Granule::K4, page(Some(3)), 3) && !fits_level(Granule::K4, page(Some(2)), 3));
        assert!(fits_level(Granule::K16, page(None), 3) && !fits_level(Granule::K16, page(Some(3)), 3));
        assert!(covers_tag(page(None), Tag::Global) && !covers_tag(page(None), Tag::Asid(2)));
        assert!(!covers_tag(Tlbi::Asid(Asid::new(1)), Tag::Global));
        assert!(!covers_walks(Granule::K4, page(None)));
        let (start, size) = (VirtAddr::new(0x3000), RangeSize::new(0, 7).unwrap());
        let range = |granule, level| Tlbi::Range { start, size, space, last_level: false, granule, level };
        assert_eq!(span(Granule::K4, range(Granule::K4, None)), Some((0x3000, 0x1_2fff)));
        assert!(covers_walks(Granule::K4, range(Granule::K4, None)));
        assert!(!covers_walks(Granule::K4, range(Granule::K4, Some(3))));
        // 2 MiB blocks need a start that is aligned to them.
        assert!(!fits_level(Granule::K4, range(Granule::K4, Some(2)), 2));
        assert!(!fits_level(Granule::K4, range(Granule::K16, None), 3));
    }
}
