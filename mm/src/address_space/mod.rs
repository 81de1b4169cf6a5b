//! The address space of a process: what it has mapped, and the faults by which memory comes.
//!
//! ```text
//!  mmap munmap mprotect mremap madvise brk fork        handle_fault
//!     │ mmap_lock for writing                             │ mmap_lock for reading
//!     ▼                                                   ▼
//!   vma    what is mapped, in order                      fault   order of the folio, zeroing, copy on write
//!     │                                                   │
//!     ▼                                                   ▼
//!   zap, protect, remap: batches of one folio           folio   references and mappings, counted by the batch
//!     └───────────────────────┬───────────────────────────┘
//!                             ▼ page-table lock
//!                           ptep ─▶ contpte ─▶ raw
//! ```
//!
//! Lock order: mmap_lock, then that of a last-level table, then the frame allocator's.

use core::ops::ControlFlow;

use arch::{Mmu, PhysAddr, VirtAddr};
use spin::RwLock;

use crate::asid::Context;
use crate::contpte::Obstacle;
use crate::counters::Counters;
use crate::errno::Errno;
use crate::file::File;
use crate::memory::Memory;
use crate::mm_struct::Kind;
use crate::vma::Vmas;
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
    /// There is no memory for it; nothing was changed.
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
        Self { mm, memory, policy, map: RwLock::new(map) }
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

    /// Maps `len` bytes, as `mmap` does, of `file` from an offset on if it is given. Returns where.
    ///
    /// # Errors
    /// As Linux's `mmap`.
    pub fn mmap(
        &self,
        addr: u64,
        len: u64,
        prot: u64,
        flags: u64,
        file: Option<(&'m File<'m>, u64)>,
    ) -> Result<u64, Errno> {
        let _ = (addr, len, prot, flags, file);
        Err(Errno::ENOSYS)
    }

    /// Unmaps, as `munmap` does.
    ///
    /// # Errors
    /// As Linux's `munmap`.
    pub fn munmap(&self, addr: u64, len: u64) -> Result<(), Errno> {
        let _ = (addr, len);
        Err(Errno::ENOSYS)
    }

    /// Changes permissions, as `mprotect` does.
    ///
    /// # Errors
    /// As Linux's `mprotect`.
    pub fn mprotect(&self, addr: u64, len: u64, prot: u64) -> Result<(), Errno> {
        let _ = (addr, len, prot);
        Err(Errno::ENOSYS)
    }

    /// Grows, shrinks or moves a mapping, as `mremap` does. Returns where it is then.
    ///
    /// # Errors
    /// As Linux's `mremap`.
    pub fn mremap(&self, addr: u64, len: u64, new_len: u64, flags: u64, new_addr: u64) -> Result<u64, Errno> {
        let _ = (addr, len, new_len, flags, new_addr);
        Err(Errno::ENOSYS)
    }

    /// Does what `madvise` does, for the advices of [`mman`](crate::mman).
    ///
    /// # Errors
    /// As Linux's `madvise`.
    pub fn madvise(&self, addr: u64, len: u64, advice: i32) -> Result<(), Errno> {
        let _ = (addr, len, advice);
        Err(Errno::ENOSYS)
    }

    /// Tells for each page of a range whether it is in memory, as `mincore` does: 1 or 0 in one element of `vec` each, of which
    /// there must be as many.
    ///
    /// # Errors
    /// As Linux's `mincore`; [`Errno::EFAULT`] where `vec` is too short.
    pub fn mincore(&self, addr: u64, len: u64, vec: &mut [u8]) -> Result<(), Errno> {
        let _ = (addr, len, vec);
        Err(Errno::ENOSYS)
    }

    /// Says where the heap begins, which `brk` moves the end of: behind the program's data.
    pub fn set_brk_start(&self, start: u64) {
        let mut map = self.map.write();
        (map.brk_start, map.brk) = (start, start);
    }

    /// Moves the end of the heap, as `brk` does. Returns where it is then: where it was, if it can't be moved.
    pub fn brk(&self, addr: u64) -> u64 {
        let _ = addr;
        self.map.read().brk
    }

    /// Resolves a fault of the process at `va`.
    ///
    /// # Errors
    /// [`Fault`]
    pub fn handle_fault(&self, va: VirtAddr, access: Access) -> Result<Resolution, Fault> {
        let _ = (va, access);
        Err(Fault::Segv { mapped: false })
    }

    /// A child's address space with the same mappings and contents, in `child`, in which nothing is mapped. Private memory is
    /// shared until one of the two writes to it.
    ///
    /// # Errors
    /// [`Errno::ENOMEM`]; all that the child had is given back, `child`'s root table too.
    pub fn fork(&self, child: Mm<'m, M>) -> Result<Self, Errno> {
        let _ = child;
        Err(Errno::ENOSYS)
    }

    /// Folds every block that qualifies; how many it folded. For an idle CPU.
    pub fn refold_pass(&self) -> usize {
        0
    }

    /// Gives pages back that were advised `MADV_FREE` and not written since; at least `pages` of them, if there are so many.
    /// Returns how many.
    pub fn reclaim(&self, pages: u64) -> u64 {
        let _ = pages;
        0
    }

    /// Makes all pages old; how many were young.
    pub fn age(&self) -> u64 {
        0
    }

    /// Reads memory of the process as it would itself, for the kernel, whether or not the address space is loaded.
    ///
    /// # Errors
    /// [`Errno::EFAULT`], where some of it may not be read; [`Errno::ENOMEM`].
    pub fn read(&self, va: u64, into: &mut [u8]) -> Result<(), Errno> {
        let _ = (va, into);
        Err(Errno::ENOSYS)
    }

    /// Writes memory of the process as it would itself, for the kernel, whether or not the address space is loaded.
    ///
    /// # Errors
    /// [`Errno::EFAULT`], where some of it may not be written; [`Errno::ENOMEM`]. Some of it may have been written.
    pub fn write(&self, va: u64, from: &[u8]) -> Result<(), Errno> {
        let _ = (va, from);
        Err(Errno::ENOSYS)
    }

    /// Why the block at `va` is not folded, or `Ok` where it is.
    ///
    /// # Errors
    /// As [`contpte::why_not_folded`].
    pub fn why_not_folded(&self, va: VirtAddr) -> Result<(), Obstacle> {
        self.with_mm(|mm| contpte::why_not_folded(mm, va))
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

    /// Calls `act` with the tables, none of which is freed meanwhile: for who reads them without their locks.
    fn with_mm<R>(&self, act: impl FnOnce(&Mm<'m, M>) -> R) -> R {
        let _map = self.map.read();
        act(&self.mm)
    }
}
