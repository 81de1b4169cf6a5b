//! The address space of a process, with the memory of this machine.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::ops::Deref;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::aarch64::copy::copy;
use arch::aarch64::hardware::{Hardware, LinearMap, linear};
use arch::{PhysAddr, TableFrame};
use kernel::platform::{MAX_CPUS, PhysRange};
use mm::frame::Folio;
use mm::{AddressSpace, Errno, Memory, Mm, PhysMem, TableAlloc, ThpPolicy, UserTables, VA_BITS};
use spin::{Mutex, Once};

use super::sched;
use super::stack::MAX_TASKS;
use crate::user::{self, UserMm, UserRoot};
use crate::vm::{GRANULE, PAGE};
use crate::{heap, memory};

static MEMORY: Once<Memory<'static>> = Once::new();
static POLICY: Once<ThpPolicy> = Once::new();
static TABLES: Tables = Tables;

/// Prepares the memory of processes.
///
/// # Errors
/// [`Errno::OutOfMemory`]
pub(crate) fn init(policy: ThpPolicy) -> Result<(), Errno> {
    POLICY.call_once(|| policy);
    // Each task has one, and gives another one back at times: its own that was, or one that it has lent.
    SPACES.lock().try_reserve_exact(2 * MAX_TASKS + MAX_CPUS).map_err(|_| Errno::OutOfMemory)?;
    MEMORY.try_call_once(|| Memory::new(memory::frames(), &Contents, &TABLES, GRANULE)).map(|_| ())
}

/// Where the memory of processes comes from.
///
/// # Panics
/// Before [`init`].
pub(crate) fn memory() -> &'static Memory<'static> {
    MEMORY.get().expect("processes begin after their memory is prepared")
}

/// An address space. Its ASID is given back when nobody has it any more.
pub(crate) struct Space(AddressSpace<'static, Hardware<LinearMap>>, Listed);

/// An address space that a process has, or whose memory is not given back since the last one has left it.
struct Entry {
    id: u64,
    space: Weak<Space>,
    /// How many of those who have it are no process ([`Lent`]).
    lent: usize,
}

impl Entry {
    /// Whether no process has it any more.
    fn ends(&self) -> bool {
        self.space.strong_count() <= self.lent
    }
}

/// All of them, in the order of their numbers.
static SPACES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// How many of them have given all their memory back.
static ENDED: AtomicU64 = AtomicU64::new(0);

/// The number of an address space, in [`SPACES`] where it is [listed](Space::list), which it leaves when this is dropped: after the address space.
struct Listed(u64);

impl Drop for Listed {
    fn drop(&mut self) {
        let mut spaces = SPACES.lock();
        if let Ok(index) = spaces.binary_search_by_key(&self.0, |entry| entry.id) {
            // Who doesn't find it any more finds it counted.
            ENDED.fetch_add(1, Ordering::Release);
            spaces.remove(index);
        }
    }
}

/// How many address spaces processes have, or had, with memory that is not given back.
pub(crate) fn count() -> usize {
    SPACES.lock().len()
}

/// How many address spaces have ended so far, with all their memory given back.
pub(crate) fn ended() -> u64 {
    ENDED.load(Ordering::Acquire)
}

/// Whether one that no process has any more has not given all its memory back: who does that lets others run meanwhile, and
/// may be who it was only [`Lent`] to.
pub(crate) fn any_ends() -> bool {
    SPACES.lock().iter().any(Entry::ends)
}

/// An address space for a moment, by who is not its process. Its memory is given back by whoever has it last.
pub(crate) struct Lent {
    pub(crate) id: u64,
    space: Option<Arc<Space>>,
}

impl Deref for Lent {
    type Target = Space;

    fn deref(&self) -> &Space {
        self.space.as_ref().expect("it goes with this")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // First, so that it is never taken for a process's.
        drop(self.space.take());
        let mut spaces = SPACES.lock();
        if let Ok(index) = spaces.binary_search_by_key(&self.id, |entry| entry.id) {
            spaces[index].lent -= 1;
        }
    }
}

/// The address space with the next number after `id`, or else with the first, of those that a process has.
pub(crate) fn after(id: u64) -> Option<Lent> {
    let mut spaces = SPACES.lock();
    let next = spaces.partition_point(|entry| entry.id <= id);
    let (before, after) = spaces.split_at_mut(next);
    after.iter_mut().chain(before).find_map(|entry| {
        // One that ends would not be given back as long as there is always somebody who looks at it.
        if entry.ends() {
            return None;
        }
        let space = entry.space.upgrade()?;
        entry.lent += 1;
        Some(Lent { id: entry.id, space: Some(space) })
    })
}

impl Space {
    /// One in which nothing is mapped.
    ///
    /// # Errors
    /// [`Errno::OutOfMemory`]
    pub(crate) fn new() -> Result<Arc<Self>, Errno> {
        let policy = *POLICY.get().expect("processes begin after their memory is prepared");
        Self::shared(AddressSpace::new(empty()?, memory(), policy))
    }

    /// A child's.
    ///
    /// # Errors
    /// [`Errno::OutOfMemory`]
    pub(crate) fn fork(&self) -> Result<Arc<Self>, Errno> {
        Self::shared(self.0.fork(empty()?)?)
    }

    fn shared(space: AddressSpace<'static, Hardware<LinearMap>>) -> Result<Arc<Self>, Errno> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let id = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        heap::try_arc(Self(space, Listed(id))).ok_or(Errno::OutOfMemory)
    }

    /// Called when a process has got it, for good: before, it is its maker's, who may fail for want of memory and must not wait
    /// for itself. From now on pages may be taken from it, the idle pass folds it, and its end is waited for.
    ///
    /// # Panics
    /// Where it was called before.
    pub(crate) fn list(self: &Arc<Self>) {
        let Listed(id) = self.1;
        let mut spaces = SPACES.lock();
        assert!(spaces.len() < spaces.capacity(), "each has a task, or a CPU");
        let index = spaces.binary_search_by_key(&id, |entry| entry.id).expect_err("it is listed once");
        spaces.insert(index, Entry { id, space: Arc::downgrade(self), lent: 0 });
    }
}

fn empty() -> Result<UserMm, Errno> {
    let root = TABLES.alloc_table(GRANULE.start_level(VA_BITS)).ok_or(Errno::OutOfMemory)?;
    // SAFETY: its tables are pages of the allocator, which are in the linear map.
    let hardware = Hardware(unsafe { LinearMap::new() });
    Ok(Mm::new_user(hardware, root, memory::frames()))
}

impl Deref for Space {
    type Target = AddressSpace<'static, Hardware<LinearMap>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl UserRoot for Space {
    type Mmu = Hardware<LinearMap>;

    fn root(&self) -> PhysAddr {
        self.0.root()
    }

    fn context(&self) -> Option<&mm::asid::Context> {
        Some(self.0.context())
    }

    fn mmu(&self) -> &Self::Mmu {
        self.0.mmu()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        user::release(self);
    }
}

/// Frames, through the linear map.
struct Contents;

/// Where `bytes` bytes at an offset in a folio are.
fn place(folio: &Folio<'_>, offset: u64, bytes: u64) -> *mut u8 {
    let size = folio.frames() * PAGE;
    assert!(offset <= size && bytes <= size - offset, "{bytes:#x} bytes at {offset:#x} are not in {folio:?}");
    (linear(folio.head().addr(GRANULE)).get() + offset) as *mut u8
}

impl PhysMem for Contents {
    fn clear(&self, folio: &Folio<'_>) {
        let start = folio.head().addr(GRANULE);
        let end = PhysAddr::new(start.get() + folio.frames() * PAGE);
        // SAFETY: the folio's frames are in the linear map. No reference refers to frames that processes use.
        unsafe { memory::clear(PhysRange { start, end }) };
    }

    fn copy(&self, from: (&Folio<'_>, u64), to: (&Folio<'_>, u64), bytes: u64) {
        let (from, to) = (place(from.0, from.1, bytes), place(to.0, to.1, bytes));
        // SAFETY: both are inside of their folios, which are not the same, and no reference refers to them.
        unsafe { copy(to, from, bytes as usize) };
    }

    fn read(&self, folio: &Folio<'_>, offset: u64, into: &mut [u8]) {
        let from = place(folio, offset, into.len() as u64);
        // SAFETY: it is inside of the folio; `into` is the kernel's, which is no folio of a process.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
    }

    fn write(&self, folio: &Folio<'_>, offset: u64, from: &[u8]) {
        let to = place(folio, offset, from.len() as u64);
        // SAFETY: as above.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
    }

    fn cond_resched(&self) {
        sched::cond_resched();
    }

    fn relax(&self) {
        sched::relax();
    }
}

/// Where tables come from. One that is in use is known by its number alone: the reference to its frame is the one that
/// [`alloc_table`](TableAlloc::alloc_table) has forgotten.
struct Tables;

impl TableAlloc for Tables {
    fn alloc_table(&self, level: u8) -> Option<TableFrame> {
        let folio = memory::frames().alloc(0).ok()?;
        Contents.clear(&folio);
        let pa = memory::forget(folio);
        // SAFETY: a zeroed page of its own, in the linear map, kept until it is given back.
        Some(unsafe { TableFrame::new(pa, level) })
    }
}

impl UserTables for Tables {
    fn free_table(&self, table: TableFrame) {
        // SAFETY: it is what `alloc_table` gave, and the caller's contract says that nothing leads to it.
        unsafe { memory::free_forgotten(table.pa(), 0) }
    }
}
