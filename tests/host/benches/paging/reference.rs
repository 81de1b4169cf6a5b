//! The crate aarch64-paging, with neither block mappings nor the contiguous hint.

use aarch64_paging::Mapping;
use aarch64_paging::descriptor::{El1Attributes, PhysicalAddress, UpdatableDescriptor};
use aarch64_paging::linearmap::LinearTranslation;
use aarch64_paging::paging::{Constraints, El1And0, MemoryRegion, VaRange};
use arch::{Granule, MemoryType, PhysAddr, PteFlags, PteValue};
use mm::VA_BITS;
use mm::pte::UserProt;

use crate::{FIRST_PA, FIRST_VA, PAGE, PAGES, Subject, descriptor};

const PAGES_ONLY: Constraints = Constraints::NO_BLOCK_MAPPINGS.union(Constraints::NO_CONTIGUOUS_HINT);

/// By which of its functions entries that are there are changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// `map_range` with other flags. What it unmaps it frees the tables of, where they are wholly covered.
    MapRange,
    /// `modify_range`, with a function that is called for every entry. The tables stay.
    ModifyRange,
}

/// A mapping, on tables in host memory whose addresses are those that descriptors tell.
pub(crate) struct Reference {
    mapping: Mapping<LinearTranslation<El1Attributes>, El1And0>,
    way: Way,
    /// Pages of each call.
    nr: usize,
    live: bool,
}

impl Reference {
    /// Calls its functions for `nr` pages at a time. If `live`, it is marked active, so that it checks for
    /// break-before-make, and invalidates what a TLB may hold.
    pub(crate) fn new(way: Way, nr: usize, live: bool) -> Self {
        let root_level = Granule::K4.start_level(VA_BITS).into();
        let translation = LinearTranslation::new(0);
        let mapping = Mapping::with_asid_and_va_range(translation, 1, root_level, El1And0, VaRange::Lower);
        if live {
            mapping.mark_active();
        }
        Self { mapping, way, nr, live }
    }

    #[inline(always)]
    fn each(
        &mut self,
        mut call: impl FnMut(
            &mut Mapping<LinearTranslation<El1Attributes>, El1And0>,
            &MemoryRegion,
            PhysicalAddress,
        ),
    ) {
        let size = self.nr * PAGE as usize;
        for offset in (0..PAGES * PAGE as usize).step_by(size) {
            let va = FIRST_VA as usize + offset;
            call(
                &mut self.mapping,
                &MemoryRegion::new(va, va + size),
                PhysicalAddress(FIRST_PA as usize + offset),
            );
        }
    }

    fn map_range(&mut self, flags: El1Attributes) {
        self.each(|mapping, region, pa| mapping.map_range(region, pa, flags, PAGES_ONLY).expect("mapped"));
    }
}

/// Those of a page with this permission, as pleat-mm sets them.
fn attributes(prot: UserProt) -> El1Attributes {
    let pte = descriptor(0, prot).without(PteFlags::PAGE);
    El1Attributes::from_bits_retain((pte.raw() - pte.pa().get()) as usize)
}

type Change<'a> = UpdatableDescriptor<'a, El1Attributes>;

impl Subject for Reference {
    fn map(&mut self) {
        self.map_range(attributes(UserProt::ReadWrite));
    }

    fn protect(&mut self) {
        let (old, new) = (attributes(UserProt::ReadWrite), attributes(UserProt::Read));
        if self.way == Way::MapRange {
            return self.map_range(new);
        }
        let change = |_: &MemoryRegion, entry: &mut Change<'_>| entry.modify_flags(new - old, old - new);
        self.each(|mapping, region, _| mapping.modify_range(region, &change).expect("modified"));
    }

    fn unmap(&mut self) {
        if self.way == Way::MapRange {
            return self.map_range(El1Attributes::empty());
        }
        let clear =
            |_: &MemoryRegion, entry: &mut Change<'_>| entry.set(PhysicalAddress(0), El1Attributes::empty());
        self.each(|mapping, region, _| mapping.modify_range(region, &clear).expect("modified"));
    }

    fn free_tables(mut self: Box<Self>) {
        self.mapping.compact_subtables();
        if self.live {
            self.mapping.mark_inactive();
        }
    }

    fn pages(&self, visit: &mut dyn FnMut(usize, PteValue)) {
        let va = FIRST_VA as usize;
        let region = MemoryRegion::new(va, va + PAGES * PAGE as usize);
        let visited = self.mapping.walk_range(&region, &mut |region, entry, level| {
            if entry.is_valid() {
                assert_eq!(level, 3, "a block at {region}");
                let flags = PteFlags::from_bits_retain(entry.flags().bits() as u64);
                let pte =
                    PteValue::leaf(PhysAddr::new(entry.output_address().0 as u64), MemoryType::Normal, flags);
                visit((region.start().0 - va) / PAGE as usize, pte);
            }
            Ok(())
        });
        visited.expect("walked");
    }
}
