//! `mmap`, `munmap`, `brk`: what is mapped, and where there is room.

use core::ops::Range;

use arch::Mmu;

use super::{AddressSpace, Map, TASK_SIZE, ThpPolicy};
use crate::errno::Errno;
use crate::file::File;
use crate::mman::*;
use crate::shared::Shared;
use crate::vma::{Backing, Prot, Vma};

/// The lowest address that a process may map, as Linux's `mmap_min_addr`: a null pointer with an offset faults.
const MIN_ADDR: u64 = 0x1_0000;
/// Below it, mappings are placed: the stack is above, as much as it may grow, with the gap before it.
const MMAP_BASE: u64 = TASK_SIZE - 0x800_0000;
/// From here on they are placed where there is no room below that.
const MMAP_BOTTOM: u64 = TASK_SIZE / 4;

/// The flags that `MAP_SHARED_VALIDATE` knows.
const KNOWN: u64 = MAP_TYPE
    | MAP_FIXED
    | MAP_ANONYMOUS
    | MAP_GROWSDOWN
    | MAP_DENYWRITE
    | MAP_EXECUTABLE
    | MAP_LOCKED
    | MAP_NORESERVE
    | MAP_POPULATE
    | MAP_UNINITIALIZED
    | MAP_NONBLOCK
    | MAP_STACK
    | MAP_HUGETLB;

impl<'m, M: Mmu> AddressSpace<'m, M> {
    /// Maps `len` bytes, as `mmap` does, of `file` from an offset in bytes on if it is given. Returns where.
    ///
    /// Without an address, memory is placed so that its blocks can fold. What is mapped at a fixed address before is unmapped.
    /// Bits of `prot` and `flags` that mean nothing here are ignored where Linux ignores them. The offset of an anonymous mapping
    /// is not given; that it is a multiple of the page size too is the caller's to check.
    ///
    /// *Maintenance:* of what is unmapped: see [`Self::munmap`].
    ///
    /// # Errors
    /// As Linux's `mmap`:
    /// - `EINVAL`: `len` is 0; the offset or a fixed address is not a multiple of the page size; neither shared nor private;
    ///   memory in huge pages, or shared memory that grows.
    /// - `ENOMEM`: no room, too many mappings; a range that wraps or is beyond the end.
    /// - [`OutOfMemory`](Errno::OutOfMemory).
    /// - `EOVERFLOW`: beyond the largest offset that a file may have, 2^63 - 1.
    /// - `EEXIST`: something is mapped at an address that is not to be replaced.
    /// - `EPERM`: a fixed address below 64 KiB.
    /// - `EACCES`: shared and writable, of a file that is not.
    /// - `EBADF`: neither anonymous nor a file.
    /// - `EOPNOTSUPP`: an unknown flag, with `MAP_SHARED_VALIDATE`.
    pub fn mmap(
        &self,
        addr: u64,
        len: u64,
        prot: u64,
        flags: u64,
        file: Option<(&'m File<'m>, u64)>,
    ) -> Result<u64, Errno> {
        let file = if flags & MAP_ANONYMOUS != 0 { None } else { Some(file.ok_or(Errno::EBADF)?) };
        let offset = file.map_or(0, |(_, offset)| offset);
        if !offset.is_multiple_of(Self::PAGE) || len == 0 || flags & MAP_HUGETLB != 0 {
            return Err(Errno::EINVAL);
        }
        let size = len.checked_next_multiple_of(Self::PAGE).ok_or(Errno::ENOMEM)?;
        let mut map = self.write_map();
        let start = self.place(&map, addr, size, flags, file.map(|(_, offset)| offset))?;
        let range = start..start + size;
        let fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0;
        if flags & MAP_FIXED_NOREPLACE != 0 && !map.vmas.is_free(&range) {
            return Err(Errno::EEXIST);
        }
        if file.is_some() && offset.checked_add(size).is_none_or(|end| end > i64::MAX as u64) {
            return Err(Errno::EOVERFLOW);
        }
        let prot = Prot::from_bits_truncate(prot);
        let shared = match flags & MAP_TYPE {
            MAP_PRIVATE => false,
            MAP_SHARED => true,
            MAP_SHARED_VALIDATE if file.is_some() && flags & !KNOWN != 0 => return Err(Errno::EOPNOTSUPP),
            MAP_SHARED_VALIDATE if file.is_some() => true,
            _ => return Err(Errno::EINVAL),
        };
        let backing = match file {
            Some((file, _)) if shared && prot.contains(Prot::WRITE) && file.is_read_only() => {
                return Err(Errno::EACCES);
            }
            Some(_) if flags & MAP_GROWSDOWN != 0 => return Err(Errno::EINVAL),
            Some((file, offset)) => Backing::File { file, page: offset / Self::PAGE, shared },
            None if shared && flags & MAP_GROWSDOWN != 0 => return Err(Errno::EINVAL),
            None if shared => {
                Backing::Shared { object: Shared::new(self.memory, size / Self::PAGE)?, page: 0 }
            }
            None => Backing::Anonymous,
        };
        map.vmas.reserve(&range, 1)?;
        if fixed {
            self.unmap_range(&mut map, &range);
        }
        map.vmas.insert(Vma { start, end: range.end, prot, backing });
        drop(map);
        if flags & (MAP_POPULATE | MAP_LOCKED) != 0 && flags & MAP_NONBLOCK == 0 {
            // As far as it goes; what does not will fault. Who has memory given back populates by `madvise`.
            let _ = self.populate(&range, None);
        }
        Ok(start)
    }

    /// Where a mapping goes: at `addr` if that is fixed, or free; else where there is room.
    pub(super) fn place(
        &self,
        map: &Map<'m>,
        addr: u64,
        size: u64,
        flags: u64,
        offset: Option<u64>,
    ) -> Result<u64, Errno> {
        if size > TASK_SIZE - MIN_ADDR {
            return Err(Errno::ENOMEM);
        }
        if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0 {
            if addr > TASK_SIZE - size {
                return Err(Errno::ENOMEM);
            }
            if !addr.is_multiple_of(Self::PAGE) {
                return Err(Errno::EINVAL);
            }
            return if addr < MIN_ADDR { Err(Errno::EPERM) } else { Ok(addr) };
        }
        // In the first page there is no hint.
        if addr >= Self::PAGE {
            let hint = (addr & !(Self::PAGE - 1)).max(MIN_ADDR);
            if hint <= TASK_SIZE - size && map.vmas.is_free(&(hint..hint + size)) {
                return Ok(hint);
            }
        }
        self.find_room(map, size, offset).ok_or(Errno::ENOMEM)
    }

    /// The highest room below the stack; what can fold is placed so that it does.
    fn find_room(&self, map: &Map<'m>, size: u64, offset: Option<u64>) -> Option<u64> {
        let below = |align, phase| map.vmas.gap_below(MIN_ADDR, MMAP_BASE, size, align, phase);
        let folding = match self.policy {
            ThpPolicy::Always if size >= Self::BLOCK => below(Self::BLOCK, offset.unwrap_or(0) % Self::BLOCK),
            _ => None,
        };
        folding.or_else(|| below(Self::PAGE, 0)).or_else(|| map.vmas.gap_above(MMAP_BOTTOM, TASK_SIZE, size))
    }

    /// A range of pages that a process names: of addresses below [`TASK_SIZE`].
    pub(super) fn user_range(addr: u64, len: u64) -> Option<Range<u64>> {
        let size = len.checked_next_multiple_of(Self::PAGE)?;
        let end = addr.checked_add(size)?;
        (addr.is_multiple_of(Self::PAGE) && end <= TASK_SIZE).then_some(addr..end)
    }

    /// Unmaps `len` bytes, as `munmap` does. What was not mapped is left so.
    ///
    /// *Maintenance:* one flush for each last-level table that had some of it, before frames are free; another before tables
    /// are, that translate nothing else.
    ///
    /// # Errors
    /// - `EINVAL`: `addr` is not a multiple of the page size, `len` is 0, or the range wraps or is beyond the end.
    /// - `ENOMEM`: too many mappings.
    /// - [`OutOfMemory`](Errno::OutOfMemory), for one more.
    pub fn munmap(&self, addr: u64, len: u64) -> Result<(), Errno> {
        let range = Self::user_range(addr, len).filter(|range| !range.is_empty()).ok_or(Errno::EINVAL)?;
        let mut map = self.write_map();
        if map.vmas.is_free(&range) {
            return Ok(());
        }
        map.vmas.reserve(&range, 0)?;
        self.unmap_range(&mut map, &range);
        Ok(())
    }

    /// Unmaps a range, after a reservation of it.
    pub(super) fn unmap_range(&self, map: &mut Map<'m>, range: &Range<u64>) {
        if map.vmas.is_free(range) {
            return;
        }
        map.vmas.remove(range);
        self.zap(range);
        // Blocks at either end may have been taken apart; what is left of them does not fill one.
        let gap = map.vmas.gap_around(range, TASK_SIZE);
        self.mm.free_tables(&gap, self.memory.tables());
    }

    /// Says where the heap begins, which `brk` moves the end of: behind the program's data. Nothing is mapped by it.
    pub fn set_brk_start(&self, start: u64) {
        let mut map = self.write_map();
        (map.brk_start, map.brk) = (start, start);
    }

    /// Moves the end of the heap, as `brk` does. Returns where it is then: where it was, if it can't be moved, as Linux's
    /// system call does.
    ///
    /// # Errors
    /// [`Errno::OutOfMemory`]: it is where it was.
    pub fn brk(&self, addr: u64) -> Result<u64, Errno> {
        let mut map = self.write_map();
        match self.move_brk(&mut map, addr) {
            Ok(()) => map.brk = addr,
            Err(Errno::OutOfMemory) => return Err(Errno::OutOfMemory),
            Err(_) => {}
        }
        Ok(map.brk)
    }

    fn move_brk(&self, map: &mut Map<'m>, addr: u64) -> Result<(), Errno> {
        if addr < map.brk_start || addr > TASK_SIZE {
            return Err(Errno::ENOMEM);
        }
        let page = |addr: u64| addr.checked_next_multiple_of(Self::PAGE).ok_or(Errno::ENOMEM);
        let (old, new) = (page(map.brk)?, page(addr)?);
        if new < old {
            let range = new..old;
            map.vmas.reserve(&range, 0)?;
            self.unmap_range(map, &range);
        } else if new > old {
            let range = old..new;
            // A page is left before what comes next.
            let guarded = old..(new + Self::PAGE);
            if new > TASK_SIZE - Self::PAGE || !map.vmas.is_free(&guarded) {
                return Err(Errno::ENOMEM);
            }
            map.vmas.reserve(&range, 1)?;
            let prot = Prot::READ | Prot::WRITE;
            map.vmas.insert(Vma { start: old, end: new, prot, backing: Backing::Anonymous });
        }
        Ok(())
    }
}
