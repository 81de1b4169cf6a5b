//! `mremap`: mappings that grow, shrink and move.

use core::ops::Range;

use arch::granule::LAST_LEVEL;
use arch::{Mmu, VirtAddr};

use super::{AddressSpace, Map, TASK_SIZE};
use crate::errno::Errno;
use crate::mman::*;
use crate::runs;
use crate::vma::{Backing, Vma};

/// A move: of `len` bytes, to where there is room for `new_len`.
struct Move {
    from: u64,
    to: u64,
    len: u64,
    new_len: u64,
    /// What is unmapped after it: what it left behind, and what it did not take along. Empty where that stays mapped, and empty.
    unmapped: Range<u64>,
}

impl Move {
    /// The part of what moves that last-level tables translate which translate nothing else, neither there: tables of `size`
    /// bytes. Empty, at the end, where there are none.
    fn whole_tables(&self, size: u64) -> Range<u64> {
        let end = self.from + self.len;
        let (first, last) = (self.from.next_multiple_of(size), end & !(size - 1));
        if self.from % size == self.to % size && first < last { first..last } else { end..end }
    }

    /// Where it moves to.
    fn target(&self) -> Range<u64> {
        self.to..self.to + self.new_len
    }
}

impl<'m, M: Mmu> AddressSpace<'m, M> {
    /// Grows, shrinks or moves a mapping, as `mremap` does. Returns where it is then. Where it has to move and may, it goes to
    /// where its blocks can fold. What was mapped at a fixed new address is unmapped. Where it fails nothing has changed.
    ///
    /// Last-level tables that translate nothing else move as they are, where the addresses are congruent.
    ///
    /// *Maintenance:* one flush for each 32 tables that move, before they translate anything else; one for each pair of tables
    /// between which entries do, before either is released; and that of what is unmapped: see [`Self::munmap`].
    ///
    /// # Errors
    /// As Linux's `mremap`:
    /// - `EINVAL`: unknown flags or those that don't go together; an address that is not a multiple of the page size; a new
    ///   length of 0; new and old range overlap; a new range that is beyond the end; a copy (old length 0) of private memory.
    /// - `EFAULT`: not mapped, or not as one mapping.
    /// - `ENOMEM`: it can't grow where it is, and may not move; no room, too many mappings.
    /// - [`OutOfMemory`](Errno::OutOfMemory), for tables or mappings.
    pub fn mremap(&self, addr: u64, len: u64, new_len: u64, flags: u64, new_addr: u64) -> Result<u64, Errno> {
        let has = |flag| flags & flag != 0;
        let unknown = flags & !(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP) != 0;
        let bad_fixed = has(MREMAP_FIXED) && !has(MREMAP_MAYMOVE);
        let bad_keep = has(MREMAP_DONTUNMAP) && (!has(MREMAP_MAYMOVE) || len != new_len);
        if unknown || bad_fixed || bad_keep || !addr.is_multiple_of(Self::PAGE) {
            return Err(Errno::EINVAL);
        }
        // Linux's PAGE_ALIGN wraps to 0.
        let align = |len: u64| len.checked_next_multiple_of(Self::PAGE).unwrap_or(0);
        let (len, new_len) = (align(len), align(new_len));
        if new_len == 0 {
            return Err(Errno::EINVAL);
        }
        let mut map = self.write_map();
        map.vmas.find(addr).ok_or(Errno::EFAULT)?;
        if has(MREMAP_FIXED) || has(MREMAP_DONTUNMAP) {
            return self.remap_to(&mut map, addr, len, new_len, flags, new_addr);
        }
        if len > new_len {
            self.shrink(&mut map, addr, len, new_len)?;
            return Ok(addr);
        }
        let vma = Self::resizable(&map, addr, len)?;
        if len == new_len {
            return Ok(addr);
        }
        let (end, new_end) = (addr + len, addr.checked_add(new_len));
        let grown = new_end.filter(|&new_end| {
            len != 0 && end == vma.end && new_end <= TASK_SIZE && map.vmas.is_free(&(end..new_end))
        });
        if let Some(new_end) = grown {
            let rest = Self::grown(vma, end, new_end);
            map.vmas.reserve(&(end..new_end), 1)?;
            map.vmas.insert(rest);
            return Ok(addr);
        }
        if !has(MREMAP_MAYMOVE) {
            return Err(Errno::ENOMEM);
        }
        let to = self.place(&map, 0, new_len, 0, Some(addr))?;
        self.move_mapping(&mut map, &Move { from: addr, to, len, new_len, unmapped: addr..end })?;
        Ok(to)
    }

    /// The mapping that may be resized at `addr`: one that has all of `len` bytes.
    fn resizable<'a>(map: &'a Map<'m>, addr: u64, len: u64) -> Result<&'a Vma<'m>, Errno> {
        let vma = map.vmas.find(addr).ok_or(Errno::EFAULT)?;
        if len == 0 && vma.is_private() {
            return Err(Errno::EINVAL);
        }
        if len > vma.end - addr {
            return Err(Errno::EFAULT);
        }
        Ok(vma)
    }

    /// What follows a mapping that grows.
    fn grown(vma: &Vma<'m>, end: u64, new_end: u64) -> Vma<'m> {
        let page = vma.page_at(end, M::GRANULE.page_shift());
        let backing = match &vma.backing {
            Backing::Anonymous => Backing::Anonymous,
            Backing::File { file, shared, .. } => Backing::File { file, page, shared: *shared },
            Backing::Shared { object, .. } => Backing::Shared { object: object.clone(), page },
        };
        Vma { start: end, end: new_end, prot: vma.prot, backing }
    }

    fn shrink(&self, map: &mut Map<'m>, addr: u64, len: u64, new_len: u64) -> Result<(), Errno> {
        let start = addr.checked_add(new_len).ok_or(Errno::EINVAL)?;
        let rest = Self::user_range(start, len - new_len).ok_or(Errno::EINVAL)?;
        map.vmas.reserve(&rest, 0)?;
        self.unmap_range(map, &rest);
        Ok(())
    }

    /// To a place that is given, or away from one that is kept.
    fn remap_to(
        &self,
        map: &mut Map<'m>,
        addr: u64,
        len: u64,
        new_len: u64,
        flags: u64,
        new_addr: u64,
    ) -> Result<u64, Errno> {
        let to = new_addr;
        if !to.is_multiple_of(Self::PAGE) || new_len > TASK_SIZE || to > TASK_SIZE - new_len {
            return Err(Errno::EINVAL);
        }
        let old_end = addr.checked_add(len).ok_or(Errno::EINVAL)?;
        if old_end > to && to + new_len > addr {
            return Err(Errno::EINVAL);
        }
        if len > new_len && old_end > TASK_SIZE {
            return Err(Errno::EINVAL);
        }
        let fixed = flags & MREMAP_FIXED != 0;
        if fixed {
            self.place(map, to, new_len, MAP_FIXED, None)?;
        }
        let moved = len.min(new_len);
        Self::resizable(map, addr, moved)?;
        let to = if fixed { to } else { self.place(map, to, new_len, 0, Some(addr))? };
        let unmapped = if flags & MREMAP_DONTUNMAP != 0 { addr..addr } else { addr..old_end };
        self.move_mapping(map, &Move { from: addr, to, len: moved, new_len, unmapped })?;
        Ok(to)
    }

    /// Moves what is mapped, in one mapping, to where what is mapped is unmapped. All that may fail comes before that.
    fn move_mapping(&self, map: &mut Map<'m>, what: &Move) -> Result<(), Errno> {
        let Move { from, to, len, .. } = *what;
        let new = what.target();
        // The new one, and one each where something is unmapped from the middle of a mapping.
        map.vmas.reserve(&(from..from + len), 3)?;
        let vma = map.vmas.find(from).expect("what is moved is mapped");
        let moved = Vma { start: new.start, end: new.end, ..Self::grown(vma, from, vma.end) };
        if let Err(errno) = self.make_tables(what) {
            self.free_tables_of_holes(map, &new);
            return Err(errno);
        }
        self.unmap_target(map, what);
        self.move_entries(what);
        map.vmas.insert(moved);
        if !what.unmapped.is_empty() {
            self.unmap_range(map, &what.unmapped);
        }
        // What moved as whole tables is folded as it was.
        let whole = what.whole_tables(Self::TABLE);
        let whole = whole.start - from + to..whole.end - from + to;
        self.refold(&(new.start..whole.start));
        self.refold(&(whole.end..new.end));
        Ok(())
    }

    /// Makes the tables for what is to be moved, above those that themselves move.
    fn make_tables(&self, what: &Move) -> Result<(), Errno> {
        let tables = self.memory.tables();
        let whole = what.whole_tables(Self::TABLE);
        let end = what.from + what.len;
        let mut at = what.from;
        while let Some(start) = self.mm.next_table(at, end) {
            at = ((start | (Self::TABLE - 1)) + 1).min(end);
            if whole.contains(&start) {
                let target = start - what.from + what.to;
                self.mm.make_tables_above(VirtAddr::new(target), tables).map_err(|_| Errno::OutOfMemory)?;
                // The same ones lead to all that follows, up to here.
                let span = M::GRANULE.level_size(LAST_LEVEL - 2);
                at = (start + (span - target % span)).min(whole.end);
                continue;
            }
            for va in [start, at - 1] {
                let va = VirtAddr::new(va - what.from + what.to);
                drop(self.mm.lock_table(va, tables).map_err(|_| Errno::OutOfMemory)?);
            }
        }
        Ok(())
    }

    /// Frees the tables that were made where nothing is mapped.
    fn free_tables_of_holes(&self, map: &Map<'m>, range: &Range<u64>) {
        let free = |hole: Range<u64>| {
            if !hole.is_empty() {
                self.mm.free_tables(&map.vmas.gap_around(&hole, TASK_SIZE), self.memory.tables());
            }
        };
        let mut at = range.start;
        for vma in map.vmas.overlapping(range) {
            free(at..vma.start.max(at));
            at = vma.end;
        }
        free(at..range.end.max(at));
    }

    /// Unmaps what is mapped where something moves to, with the tables but for those that were made for it.
    fn unmap_target(&self, map: &mut Map<'m>, what: &Move) {
        let target = what.target();
        if map.vmas.is_free(&target) {
            return;
        }
        map.vmas.remove(&target);
        self.zap(&target);
        let whole = what.whole_tables(Self::TABLE);
        let source = |va: u64| va.clamp(what.to, what.to + what.len) - what.to + what.from;
        let needed = |span: &Range<u64>, level: u8| {
            let part = source(span.start)..source(span.end);
            let moves = level == LAST_LEVEL && whole.contains(&part.start);
            !moves && self.mm.next_table(part.start, part.end).is_some()
        };
        let gap = map.vmas.gap_around(&target, TASK_SIZE);
        self.mm.free_tables_but(&gap, self.memory.tables(), &needed);
    }

    /// Moves entries to tables that are there, and tables.
    fn move_entries(&self, what: &Move) {
        let whole = what.whole_tables(Self::TABLE);
        self.move_between_tables(what, what.from..whole.start);
        self.mm.move_tables(&whole, whole.start - what.from + what.to);
        self.move_between_tables(what, whole.end..what.from + what.len);
    }

    /// Moves the entries of a part to tables that are there. Others may run on this CPU before each.
    fn move_between_tables(&self, what: &Move, part: Range<u64>) {
        let mut at = part.start;
        while let Some(start) = self.mm.next_table(at, part.end) {
            self.memory.contents().cond_resched();
            let target = start - what.from + what.to;
            let left = |va: u64| (va | (Self::TABLE - 1)) + 1 - va;
            let range = start..part.end.min(start + left(start).min(left(target)));
            let (from, to) = (VirtAddr::new(start), VirtAddr::new(target));
            let mut pair =
                self.mm.lock_two_tables(from, to, self.memory.tables()).expect("tables that were made");
            let (source, destination) = pair.both();
            let indices = Self::indices(source, &range);
            let to = destination.as_deref().unwrap_or(source).index(to);
            runs::relocate(source, destination, indices, to);
            at = range.end;
        }
    }
}
