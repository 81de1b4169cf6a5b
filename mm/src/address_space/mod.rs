//! The address space of a process: what it has mapped, and the faults by which memory comes.
//!
//! ```text
//!  mmap munmap mprotect mremap madvise brk fork        handle_fault
//!     │ mmap_lock for writing                             │ mmap_lock for reading
//!     ▼                                                   ▼
//!   vma    what is mapped, in order                      fault   order of the folio, zeroing, copy on write
//!     │                                                   │
//!     ▼                                                   ▼
//!   zap, protect, fork, remap: runs of entries          folio   references and mappings, counted by the folio
//!     └───────────────────────┬───────────────────────────┘
//!                             ▼ page-table lock
//!                           ptep ─▶ contpte ─▶ raw
//! ```
//!
//! Lock order: mmap_lock, then that of a last-level table, then the frame allocator's. Who has the mmap_lock may leave its CPU
//! to others between two tables; who waits for it lets others run.

mod advise;
mod fault;
mod fork;
mod map;
mod protect;
mod ranges;
mod remap;
mod remote;

use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::{Mmu, PhysAddr, VirtAddr};
use spin::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::asid::Context;
use crate::contpte::Obstacle;
use crate::counters::Counters;
use crate::memory::Memory;
use crate::mm_struct::Kind;
use crate::vmas::Vmas;
use crate::{Leaf, Mm, VA_BITS, contpte};

/// The end of what a process may map.
pub const TASK_SIZE: u64 = 1 << VA_BITS;

/// Whether memory comes in blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ThpPolicy {
    /// A folio that fills a block wherever mapping, alignment and free memory allow; smaller ones else.
    #[default]
    Always,
    /// Page by page.
    Never,
}

/// What faulted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Load.
    Read,
    /// Store.
    Write,
    /// Instruction fetch.
    Execute,
}

/// How a fault was resolved; the access is to be made again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// Something was mapped, or an entry changed.
    Changed,
    /// The entry was right by the time its lock was had: the fault had raced a conversion or another CPU's fault, or came of
    /// an old TLB entry, which is invalidated on this CPU now.
    Spurious,
}

/// Why a fault can't be resolved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// SIGSEGV.
    Segv {
        /// Something is mapped there, with another permission: SEGV_ACCERR. Else SEGV_MAPERR.
        mapped: bool,
    },
    /// SIGBUS: behind the end of a file.
    Bus,
    /// There is no memory for it. The fault may be handled again after some was given back: [`AddressSpace::reclaim`].
    OutOfMemory,
}

/// What mmap_lock protects.
struct Map<'m> {
    vmas: Vmas<'m>,
    brk_start: u64,
    brk: u64,
}

/// The address space of a process: Linux's `mm_struct` with its VMAs. Shared by its threads; it locks inside.
///
/// Numbers are as system calls get them: any `u64` may come, and gets the errno that Linux gives. Address tags are not
/// ignored.
pub struct AddressSpace<'m, M: Mmu> {
    mm: Mm<'m, M>,
    memory: &'m Memory<'m>,
    policy: ThpPolicy,
    map: RwLock<Map<'m>>,
    /// How many wait for it, to write.
    writers: AtomicU32,
    /// Where reclaim goes on.
    reclaim_from: AtomicU64,
}

impl<'m, M: Mmu> AddressSpace<'m, M> {
    /// An address space in which nothing is mapped, of an `Mm` whose root table came from `memory`'s tables, to which it is
    /// given back when this is dropped.
    ///
    /// # Panics
    /// Where `mm` is not a user's of the same frames and granule.
    pub fn new(mm: Mm<'m, M>, memory: &'m Memory<'m>, policy: ThpPolicy) -> Self {
        let Kind::User { frames, .. } = *mm.kind() else { panic!("not a user's address space") };
        assert!(core::ptr::eq(frames, memory.frames()), "frames of another memory");
        assert!(M::GRANULE == memory.granule(), "memory of another granule");
        let map = Map { vmas: Vmas::new(M::GRANULE.page_shift()), brk_start: 0, brk: 0 };
        Self {
            mm,
            memory,
            policy,
            map: RwLock::new(map),
            writers: AtomicU32::new(0),
            reclaim_from: AtomicU64::new(0),
        }
    }

    /// Where the root table is, for TTBR0.
    pub fn root(&self) -> PhysAddr {
        self.mm.root()
    }

    /// Its ASID, for the allocator to assign. It is released before the address space is dropped, when no CPU has it loaded.
    pub fn context(&self) -> &Context {
        self.mm.context().expect("a user's address space")
    }

    /// The machine that it is translated by.
    pub fn mmu(&self) -> &M {
        self.mm.mmu()
    }

    /// What folding did.
    pub fn counters(&self) -> &Counters {
        self.mm.counters()
    }

    /// Where its memory comes from.
    pub fn memory(&self) -> &'m Memory<'m> {
        self.memory
    }

    /// Why the block at `va` is not folded, or `Ok` where it is.
    ///
    /// *Locks:* takes that of the table, if there is one.
    ///
    /// # Errors
    /// As [`contpte::why_not_folded`].
    pub fn why_not_folded(&self, va: VirtAddr) -> Result<(), Obstacle> {
        self.with_mm(|mm| {
            // Entries of a block that is being converted are not valid.
            let _guard = mm.lock_present_table(va);
            contpte::why_not_folded(mm, va)
        })
    }

    /// Calls `visit` with each entry of a range: [`Mm::walk`].
    pub fn walk<B>(
        &self,
        va: VirtAddr,
        size: u64,
        visit: impl FnMut(Leaf) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        self.with_mm(|mm| mm.walk(va, size, visit))
    }

    /// The mmap_lock for writing.
    fn write_map(&self) -> RwLockWriteGuard<'_, Map<'m>> {
        self.writers.fetch_add(1, Ordering::Relaxed);
        let map = self.wait_for(|| self.map.try_write());
        self.writers.fetch_sub(1, Ordering::Relaxed);
        map
    }

    /// The mmap_lock for reading, after those who wait to write: readers could take turns for ever.
    fn read_map(&self) -> RwLockReadGuard<'_, Map<'m>> {
        self.wait_for(|| self.try_read_map())
    }

    /// Waits until `try_lock` has the mmap_lock. Who has it may have left its CPU, perhaps this one, to others.
    fn wait_for<T>(&self, try_lock: impl Fn() -> Option<T>) -> T {
        loop {
            if let Some(map) = try_lock() {
                return map;
            }
            self.memory.contents().relax();
        }
    }

    /// The mmap_lock for reading, unless somebody writes or wants to.
    fn try_read_map(&self) -> Option<RwLockReadGuard<'_, Map<'m>>> {
        if self.writers.load(Ordering::Relaxed) != 0 { None } else { self.map.try_read() }
    }

    /// Calls `act` with the tables, none of which is freed meanwhile: for who reads them without their locks.
    fn with_mm<R>(&self, act: impl FnOnce(&Mm<'m, M>) -> R) -> R {
        let _map = self.read_map();
        act(&self.mm)
    }
}

impl<M: Mmu> Drop for AddressSpace<'_, M> {
    /// Unmaps everything and gives all tables back, the root too. No CPU has it loaded. With its ASID released before, nothing
    /// is flushed.
    fn drop(&mut self) {
        let map = self.map.get_mut();
        let vmas = core::mem::replace(&mut map.vmas, Vmas::new(M::GRANULE.page_shift()));
        vmas.iter().for_each(|vma| self.zap(&(vma.start..vma.end)));
        self.mm.free_tables(&(0..TASK_SIZE), self.memory.tables());
        self.memory.tables().free_table(self.mm.root_frame());
    }
}
