//! What address spaces take memory from: frames, their contents, and tables.

use core::fmt;

use arch::{Granule, TableFrame};
use spin::Mutex;

use crate::TableAlloc;
use crate::errno::Errno;
use crate::frame::{Folio, FrameMap};
use crate::shared::Objects;

/// The contents of frames. A kernel reaches them by its linear map, a test by a model.
///
/// A [`Folio`] is what entitles to them: whoever has one keeps the frames from being given to others. It does not keep
/// others from writing to them, a user among them; so none of these makes a reference to what is there.
///
/// Every method panics where a range is not inside its folio.
pub trait PhysMem: Sync {
    /// Zeroes all of a folio.
    fn clear(&self, folio: &Folio<'_>);
    /// Copies `bytes` from an offset in one folio to an offset in another. All three are multiples of the page size.
    fn copy(&self, from: (&Folio<'_>, u64), to: (&Folio<'_>, u64), bytes: u64);
    /// Reads from an offset in a folio on.
    fn read(&self, folio: &Folio<'_>, offset: u64, into: &mut [u8]);
    /// Writes from an offset in a folio on.
    fn write(&self, folio: &Folio<'_>, offset: u64, from: &[u8]);

    /// Lets others run on this CPU, if it is time: called again and again by what takes long, with mmap_locks held, and no other
    /// lock. A kernel that preempts itself, and a test, need nothing.
    fn cond_resched(&self) {}
    /// Lets others run on this CPU: called again and again by who waits for an mmap_lock. It may be held by a task that this CPU
    /// has to run before it is released, where [`Self::cond_resched`] lets others run.
    fn relax(&self) {
        core::hint::spin_loop();
    }
}

/// Tables that are given back: those of user address spaces.
pub trait UserTables: TableAlloc + Sync {
    /// Takes back a table that [`TableAlloc::alloc_table`] gave. No entry leads to it and no TTBR holds it, and that is
    /// known to every CPU: the flush of what they kept of it is complete. May be called with the locks of an mm held.
    fn free_table(&self, table: TableFrame);
}

/// Where the memory of user address spaces comes from. One for the kernel, that lives longer than all of them.
pub struct Memory<'m> {
    frames: &'m FrameMap<'m>,
    contents: &'m dyn PhysMem,
    tables: &'m dyn UserTables,
    granule: Granule,
    /// What untouched anonymous memory reads as: a block of zeroes, mapped read-only wherever it is read. Its mappings
    /// are not counted.
    zero: Folio<'m>,
    /// Shared anonymous memory: see [`crate::shared`].
    pub(crate) objects: Mutex<Objects>,
}

impl<'m> Memory<'m> {
    /// Memory with frames of `frames`, whose numbers count pages of `granule`. Allocates one block of zeroes.
    ///
    /// # Errors
    /// [`Errno::OutOfMemory`]
    pub fn new(
        frames: &'m FrameMap<'m>,
        contents: &'m dyn PhysMem,
        tables: &'m dyn UserTables,
        granule: Granule,
    ) -> Result<Self, Errno> {
        let order = block_order(granule);
        let zero = frames.alloc(order).map_err(|_| Errno::OutOfMemory)?;
        contents.clear(&zero);
        Ok(Self { frames, contents, tables, granule, zero, objects: Mutex::default() })
    }

    /// The frames.
    pub fn frames(&self) -> &'m FrameMap<'m> {
        self.frames
    }

    /// What is in them.
    pub fn contents(&self) -> &'m dyn PhysMem {
        self.contents
    }

    /// The tables.
    pub fn tables(&self) -> &'m dyn UserTables {
        self.tables
    }

    /// The granule of pages and tables.
    pub fn granule(&self) -> Granule {
        self.granule
    }

    /// The block of zeroes.
    pub(crate) fn zero(&self) -> &Folio<'m> {
        &self.zero
    }

    /// A zeroed folio of this order.
    pub(crate) fn alloc_zeroed(&self, order: u8) -> Result<Folio<'m>, Errno> {
        let folio = self.frames.alloc(order).map_err(|_| Errno::OutOfMemory)?;
        self.contents.clear(&folio);
        Ok(folio)
    }
}

impl fmt::Debug for Memory<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("frames", &self.frames)
            .field("zero", &self.zero)
            .finish_non_exhaustive()
    }
}

/// The order of a folio that is one block of PTEs.
pub(crate) const fn block_order(granule: Granule) -> u8 {
    granule.cont_entries(arch::granule::LAST_LEVEL).ilog2() as u8
}
