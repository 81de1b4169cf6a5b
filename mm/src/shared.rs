//! Shared anonymous memory: pages that belong to no address space and to no file, for as long as a mapping of them is left.
//!
//! An [`Object`] is found by its place in the list of the [`Memory`], since a count of its own with the allocation that goes
//! with it (`Arc`) can't fail but by ending the kernel.

use alloc::vec::Vec;

use arch::Granule;

use crate::errno::Errno;
use crate::frame::{Folio, RawFolio};
use crate::memory::{Memory, block_order};

/// What was mapped at once as shared anonymous memory.
#[derive(Default)]
struct Object {
    /// Mappings of it; 0 where the place is free.
    users: usize,
    /// How many pages it has.
    pages: u64,
    /// The first page of each folio and a reference to the folio, in order.
    folios: Vec<(u64, u64, RawFolio)>,
}

impl Object {
    /// The place in `folios` of the folio that holds a page, or where it would be.
    fn find(&self, page: u64) -> Result<usize, usize> {
        let next = self.folios.partition_point(|(first, ..)| *first <= page);
        match next.checked_sub(1).map(|index| &self.folios[index]) {
            Some((first, pages, _)) if page - first < *pages => Ok(next - 1),
            _ => Err(next),
        }
    }

    /// Where a folio of `pages` pages from `first` on would be in `folios`, if none has any of them and all are in the object.
    fn room(&self, first: u64, pages: u64) -> Option<usize> {
        let (start, last) = (self.find(first), self.find(first + pages - 1));
        start.err().filter(|_| start == last && first + pages <= self.pages)
    }
}

/// All objects, each at a place of its own. A list of which nothing is used takes no memory.
#[derive(Default)]
pub(crate) struct Objects {
    places: Vec<Object>,
    /// Places that are free. There is room for all, so that to free one takes no memory.
    free: Vec<usize>,
}

impl Objects {
    fn add(&mut self, object: Object) -> Result<usize, Errno> {
        if let Some(place) = self.free.pop() {
            self.places[place] = object;
            return Ok(place);
        }
        self.places.try_reserve(1).map_err(|_| Errno::OutOfMemory)?;
        self.free.try_reserve(self.places.len() + 1).map_err(|_| Errno::OutOfMemory)?;
        self.places.push(object);
        Ok(self.places.len() - 1)
    }

    /// Ends one mapping's use of an object; its folios, where that was the last one.
    fn put(&mut self, place: usize) -> Vec<(u64, u64, RawFolio)> {
        let object = &mut self.places[place];
        object.users -= 1;
        if object.users > 0 {
            return Vec::new();
        }
        let folios = core::mem::take(&mut object.folios);
        self.free.push(place);
        if self.free.len() == self.places.len() {
            *self = Self::default();
        }
        folios
    }
}

/// A mapping's use of an [`Object`].
pub(crate) struct Shared<'m> {
    memory: &'m Memory<'m>,
    place: usize,
}

impl<'m> Shared<'m> {
    /// A new object of so many pages.
    pub(crate) fn new(memory: &'m Memory<'m>, pages: u64) -> Result<Self, Errno> {
        let place = memory.objects.lock().add(Object { users: 1, pages, folios: Vec::new() })?;
        Ok(Self { memory, place })
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.place == other.place
    }

    /// The folio that holds a page and its first page, if there is one yet. `Err` behind the end.
    pub(crate) fn folio(&self, page: u64) -> Result<Option<(u64, Folio<'m>)>, ()> {
        let objects = self.memory.objects.lock();
        let object = &objects.places[self.place];
        if page >= object.pages {
            return Err(());
        }
        Ok(object.find(page).ok().map(|index| {
            let (first, _, raw) = &object.folios[index];
            (*first, self.memory.frames().get(raw.pfn()).expect("the object has a reference"))
        }))
    }

    /// As [`Self::folio`]; where there is none, one is made, of at most this order.
    pub(crate) fn make_folio(&self, page: u64, largest: u8) -> Result<(u64, Folio<'m>), NoFolio> {
        loop {
            if let Some(found) = self.folio(page).map_err(|()| NoFolio::Beyond)? {
                return Ok(found);
            }
            let Some((first, folio)) = self.new_folio(page, largest)? else { continue };
            let mut objects = self.memory.objects.lock();
            let object = &mut objects.places[self.place];
            // Another CPU may have filled some of it meanwhile.
            let Some(index) = object.room(first, folio.frames()) else { continue };
            object.folios.try_reserve(1).map_err(|_| NoFolio::OutOfMemory)?;
            object.folios.insert(index, (first, folio.frames(), folio.clone().into_raw()));
            return Ok((first, folio));
        }
    }

    /// A zeroed folio for the largest aligned run of pages around `page` that has none, as memory allows; `None` where the page
    /// has one by now.
    fn new_folio(&self, page: u64, largest: u8) -> Result<Option<(u64, Folio<'m>)>, NoFolio> {
        let largest = largest.min(block_order(self.granule()));
        for order in (0..=largest).rev() {
            let first = page & !((1 << order) - 1);
            let has_room = self.memory.objects.lock().places[self.place].room(first, 1 << order).is_some();
            if !has_room && order == 0 {
                return Ok(None);
            }
            if has_room && let Ok(folio) = self.memory.alloc_zeroed(order) {
                return Ok(Some((first, folio)));
            }
        }
        Err(NoFolio::OutOfMemory)
    }

    fn granule(&self) -> Granule {
        self.memory.granule()
    }
}

/// Why a page has no folio.
pub(crate) enum NoFolio {
    /// It is behind the end.
    Beyond,
    OutOfMemory,
}

impl Clone for Shared<'_> {
    fn clone(&self) -> Self {
        self.memory.objects.lock().places[self.place].users += 1;
        Self { memory: self.memory, place: self.place }
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        // Freed when the list is not locked any more.
        let folios = self.memory.objects.lock().put(self.place);
        for (_, _, raw) in folios {
            drop(self.memory.frames().from_raw(raw));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    use arch::{Pfn, TableFrame};

    use super::*;
    use crate::frame::{Frame, FrameHooks, FrameMap, Zone};
    use crate::{PhysMem, TableAlloc, UserTables};

    struct NoContents;

    impl PhysMem for NoContents {
        fn clear(&self, _: &Folio<'_>) {}
        fn copy(&self, _: (&Folio<'_>, u64), _: (&Folio<'_>, u64), _: u64) {}
        fn read(&self, _: &Folio<'_>, _: u64, _: &mut [u8]) {}
        fn write(&self, _: &Folio<'_>, _: u64, _: &[u8]) {}
    }

    impl TableAlloc for NoContents {
        fn alloc_table(&self, _: u8) -> Option<TableFrame> {
            None
        }
    }

    impl UserTables for NoContents {
        fn free_table(&self, _: TableFrame) {}
    }

    /// Who touches page 3 at the moment at which somebody else's allocation is refused.
    #[derive(Default)]
    struct OtherIsFirst {
        other: OnceLock<Shared<'static>>,
        came: AtomicBool,
    }

    impl FrameHooks for OtherIsFirst {
        fn admit(&self, _order: u8) -> bool {
            let Some(other) = self.other.get() else { return true };
            if self.came.swap(true, Ordering::Relaxed) {
                return true;
            }
            assert!(matches!(other.make_folio(3, 0), Ok((3, _))));
            false
        }
    }

    #[test]
    fn places_are_used_again() {
        let mut objects = Objects::default();
        let object = || Object { users: 1, ..Object::default() };
        assert_eq!([(); 3].map(|()| objects.add(object())), [Ok(0), Ok(1), Ok(2)]);
        objects.places[1].users += 1;
        objects.put(1);
        assert_eq!(objects.add(object()), Ok(3), "it is used still");
        objects.put(1);
        objects.put(0);
        assert_eq!([(); 3].map(|()| objects.add(object())), [Ok(0), Ok(1), Ok(4)]);
        (0..5).for_each(|place| drop(objects.put(place)));
        assert_eq!((objects.places.capacity(), objects.free.capacity()), (0, 0));
    }

    #[test]
    fn a_page_that_another_cpu_fills_first_is_no_want_of_memory() {
        let records: &'static [Frame] = Box::leak(Box::new([const { Frame::new() }; 64]));
        let zones: &'static [Zone<'static>] = Box::leak(Box::new([Zone::new(Pfn::new(0), records)]));
        let hooks: &'static OtherIsFirst = Box::leak(Box::default());
        let frames: &'static FrameMap<'static> = Box::leak(Box::new(FrameMap::new(zones, Some(hooks))));
        frames.release(Pfn::new(0)..Pfn::new(64));
        let memory = Memory::new(frames, &NoContents, &NoContents, Granule::K4).expect("a block of zeroes");
        let memory: &'static Memory<'static> = Box::leak(Box::new(memory));

        let shared = Shared::new(memory, 16).expect("kernel memory");
        assert!(hooks.other.set(shared.clone()).is_ok());
        let (first, folio) = shared.make_folio(3, 4).ok().expect("there is memory");
        assert!(hooks.came.load(Ordering::Relaxed));
        assert_eq!((first, folio.order()), (3, 0), "it is the other's");
    }
}
