//! The numbers of Linux's `<sys/mman.h>`, as arm64 has them.

/// May be read. For `mmap` and `mprotect`.
pub const PROT_READ: u64 = 1;
/// May be written.
pub const PROT_WRITE: u64 = 2;
/// May be executed.
pub const PROT_EXEC: u64 = 4;
/// Atomic operations work on it: nothing to be done.
pub const PROT_SEM: u64 = 8;
/// The change reaches to the start of a stack that grows: there is none.
pub const PROT_GROWSDOWN: u64 = 0x100_0000;
/// The other way round.
pub const PROT_GROWSUP: u64 = 0x200_0000;

/// All see what is written. For `mmap`.
pub const MAP_SHARED: u64 = 1;
/// What is written is the process's own.
pub const MAP_PRIVATE: u64 = 2;
/// As [`MAP_SHARED`], and unknown flags are refused.
pub const MAP_SHARED_VALIDATE: u64 = 3;
/// The bits of the three.
pub const MAP_TYPE: u64 = 0xf;
/// At exactly this address, whatever is there.
pub const MAP_FIXED: u64 = 0x10;
/// Without a file.
pub const MAP_ANONYMOUS: u64 = 0x20;
/// A stack.
pub const MAP_GROWSDOWN: u64 = 0x100;
/// Ignored.
pub const MAP_DENYWRITE: u64 = 0x800;
/// Ignored.
pub const MAP_EXECUTABLE: u64 = 0x1000;
/// Populated at once; nothing is ever swapped.
pub const MAP_LOCKED: u64 = 0x2000;
/// Ignored: nothing is reserved.
pub const MAP_NORESERVE: u64 = 0x4000;
/// Populated at once.
pub const MAP_POPULATE: u64 = 0x8000;
/// Not populated all the same.
pub const MAP_NONBLOCK: u64 = 0x1_0000;
/// Ignored.
pub const MAP_STACK: u64 = 0x2_0000;
/// There are none.
pub const MAP_HUGETLB: u64 = 0x4_0000;
/// Memory need not be zeroed; it is.
pub const MAP_UNINITIALIZED: u64 = 0x400_0000;
/// At exactly this address, if nothing is there.
pub const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;

/// May be moved. For `mremap`.
pub const MREMAP_MAYMOVE: u64 = 1;
/// To exactly this address.
pub const MREMAP_FIXED: u64 = 2;
/// The old mapping stays, empty.
pub const MREMAP_DONTUNMAP: u64 = 4;

/// Nothing special. For `madvise`; so the next three.
pub const MADV_NORMAL: i32 = 0;
/// Accesses come in no order.
pub const MADV_RANDOM: i32 = 1;
/// Accesses come in order.
pub const MADV_SEQUENTIAL: i32 = 2;
/// Accesses are near.
pub const MADV_WILLNEED: i32 = 3;
/// The pages are given back, with what is in them.
pub const MADV_DONTNEED: i32 = 4;
/// The pages may be given back when memory is short, until they are written again.
pub const MADV_FREE: i32 = 8;
/// The pages are old.
pub const MADV_COLD: i32 = 20;
/// Populates, for reading.
pub const MADV_POPULATE_READ: i32 = 22;
/// Populates, for writing.
pub const MADV_POPULATE_WRITE: i32 = 23;
