//! The operations, each done and said.

use std::ops::Range;

use mm::mman::*;
use mm::{Errno, Fault};
use model::GranuleType;

use super::op::{Op, Pages, Step, What};
use super::reference::{Kind, Page};
use super::world::{Object, World};

impl<'m, G: GranuleType + Sync> World<'m, G> {
    pub(super) fn step(&mut self, op: &Op) {
        let Op { cpu, process, step, .. } = *op;
        match step {
            Step::Access { at, access, by } => {
                // Of the process that the CPU has loaded.
                let page = self.mapped_range(self.loaded[cpu].unwrap_or(process), at).start;
                self.touch(cpu, process, page, access, by);
            }
            Step::Map { at, what, prot, populate } => self.map(process, self.range(at), what, prot, populate),
            Step::Unmap { at } => self.unmap(process, &self.mapped_range(process, at)),
            Step::Protect { at, prot } => self.protect(process, &self.mapped_range(process, at), prot),
            Step::Remap { at, to, flags } => self.remap(process, self.mapped_range(process, at), to, flags),
            Step::Advise { at, advice } => self.advise(process, &self.mapped_range(process, at), advice),
            Step::Fork { child } if child != process => {
                let result = self.fork(cpu, process, child);
                assert!(result.is_ok() || result == Err(Errno::OutOfMemory) && self.is_short(), "{result:?}");
            }
            Step::Fork { .. } => {}
            Step::Exit => self.exit(cpu, process),
            Step::Refold => {
                self.processes[process].space.refold_pass();
                for start in self.arena().step_by(self.block() as usize) {
                    let block = start..start + self.block();
                    // What was advised to be free would be kept if it were folded with what was not.
                    let free = |page| self.processes[process].reference.is_free(page);
                    if !block.clone().any(free) {
                        self.expect_refolded(process, &block);
                    }
                }
            }
            Step::Reclaim { pages } => _ = self.processes[process].space.reclaim(u64::from(pages)),
            Step::Kernel { at, write } => {
                for page in self.mapped_range(process, at) {
                    if write { self.kernel_writes(process, page) } else { self.kernel_reads(process, page) }
                }
            }
            Step::InCore { at } => self.in_core(process, &self.mapped_range(process, at)),
            Step::OfTable { slot, what } => self.of_table(cpu, process, slot, what),
            Step::Switch { none } => self.switch(cpu, (!none).then_some(process)),
        }
    }

    fn call<R>(
        &self,
        process: usize,
        range: &Range<u64>,
        call: impl FnOnce(&super::world::Space<'m, G>, u64, u64) -> R,
    ) -> R {
        call(&self.processes[process].space, Self::va(range.start), Self::va(range.end - range.start))
    }

    pub(super) fn map(&mut self, process: usize, range: Range<u64>, what: What, prot: u64, populate: bool) {
        let pages = range.end - range.start;
        let populate = if populate { MAP_POPULATE } else { 0 };
        let (flags, file, first) = match what {
            What::Anonymous => (MAP_PRIVATE | MAP_ANONYMOUS, None, Kind::Anonymous { token: 0, free: false }),
            What::Shared => {
                let object = self.objects.len() as u64;
                (MAP_SHARED | MAP_ANONYMOUS, None, Kind::Shared { object, page: 0 })
            }
            What::File { file, block, page, shared } => {
                let file = usize::from(file);
                let page = (self.place(block, page) - self.arena().start) % (3 * self.block());
                let map = Some((&self.files[file], Self::va(page)));
                if shared {
                    (MAP_SHARED, map, Kind::File { file, page })
                } else {
                    (MAP_PRIVATE, map, Kind::Private { file, page, copy: None })
                }
            }
        };
        let flags = flags | MAP_FIXED | populate;
        let result = self.call(process, &range, |space, va, len| space.mmap(va, len, prot, flags, file));
        assert_eq!(result, Ok(Self::va(range.start)));
        if let What::Shared = what {
            self.objects.push(Object { pages, tokens: Default::default() });
        }
        for i in 0..pages {
            let kind = match first {
                Kind::Anonymous { .. } => first,
                Kind::Private { file, page, .. } => Kind::Private { file, page: page + i, copy: None },
                Kind::File { file, page } => Kind::File { file, page: page + i },
                Kind::Shared { object, page } => Kind::Shared { object, page: page + i },
            };
            self.processes[process].reference.pages.insert(range.start + i, Page { prot, kind });
        }
        if populate != 0 {
            range.for_each(|page| self.kernel_writes(process, page));
        }
    }

    fn unmap(&mut self, process: usize, range: &Range<u64>) {
        let result = self.call(process, range, |space, va, len| space.munmap(va, len));
        assert_eq!(result, Ok(()));
        self.processes[process].reference.unmap(range);
    }

    pub(super) fn protect(&mut self, process: usize, range: &Range<u64>, prot: u64) {
        let result = self.call(process, range, |space, va, len| space.mprotect(va, len, prot));
        let all = self.processes[process].reference.change(range, |page| {
            page.prot = prot;
            true
        });
        assert_eq!(result, if all { Ok(()) } else { Err(Errno::ENOMEM) });
        if all {
            self.expect_refolded(process, range);
        }
    }

    fn remap(&mut self, process: usize, range: Range<u64>, to: Pages, flags: u64) {
        let len = range.end - range.start;
        let new_len = if flags & MREMAP_DONTUNMAP != 0 { len } else { self.length(to.length) };
        self.remap_to(process, range, self.place(to.block, to.page), new_len, flags);
    }

    /// The same, with the first page where it may go, and how many.
    pub(super) fn remap_to(
        &mut self,
        process: usize,
        range: Range<u64>,
        target: u64,
        new_len: u64,
        flags: u64,
    ) {
        let keep = flags & MREMAP_DONTUNMAP != 0;
        let fixed = flags & MREMAP_FIXED != 0;
        let (start, len) = (range.start, range.end - range.start);
        let new = if fixed || keep { Self::va(target) } else { 0 };
        let result = self
            .call(process, &range, |space, va, size| space.mremap(va, size, Self::va(new_len), flags, new));
        let target = target..target + new_len;
        let reference = &mut self.processes[process].reference;
        if reference.get(start).is_none() {
            return assert_eq!(result, Err(Errno::EFAULT));
        }
        let overlap = range.end > target.start && target.end > range.start;
        if (fixed || keep) && overlap {
            return assert_eq!(result, Err(Errno::EINVAL));
        }
        let kept = start..start + len.min(new_len);
        if len > new_len && !fixed {
            reference.unmap(&(kept.end..range.end));
            return assert_eq!(result, Ok(Self::va(start)));
        }
        // What fails has changed nothing.
        if !reference.is_one(&kept) {
            return assert_eq!(result, Err(Errno::EFAULT));
        }
        let moved = match result {
            Err(Errno::ENOMEM) => {
                // It may not move, and can't grow.
                let at_end = !reference.is_joined(kept.end)
                    && (kept.end..start + new_len).all(|page| reference.get(page).is_none());
                let grows = flags & MREMAP_MAYMOVE == 0 && !at_end;
                return assert!(grows, "mremap of {range:x?} to {new_len} with {flags}");
            }
            // For tables.
            Err(Errno::OutOfMemory) => return assert!(self.is_short(), "no memory for a mremap"),
            Err(errno) => panic!("mremap of {range:x?} to {target:x?} with {flags}: {errno}"),
            Ok(va) => va / G::GRANULE.page_size(),
        };
        if fixed {
            assert_eq!(moved, target.start);
            reference.unmap(&target);
            reference.unmap(&(kept.end..range.end));
        }
        if moved != start {
            let free = (moved..moved + new_len).all(|page| reference.get(page).is_none());
            assert!(free, "moved to {moved:#x}, which is in use");
            reference.move_pages(&kept, moved, new_len, keep);
            self.expect_refolded(process, &(moved..moved + new_len));
        } else {
            let more = new_len - len;
            let last = reference.pages[&(kept.end - 1)];
            for i in 0..more {
                assert!(reference.get(kept.end + i).is_none(), "grown into what is in use");
                let kind = last.kind.after_in_mapping(1 + i);
                reference.pages.insert(kept.end + i, Page { kind, ..last });
            }
        }
    }

    pub(super) fn advise(&mut self, process: usize, range: &Range<u64>, advice: i32) {
        let result = self.call(process, range, |space, va, len| space.madvise(va, len, advice));
        let access = match advice {
            MADV_POPULATE_READ => Some(mm::Access::Read),
            MADV_POPULATE_WRITE => Some(mm::Access::Write),
            _ => None,
        };
        if let Some(access) = access {
            let first = range.clone().find_map(|page| self.expected(process, page, access).err());
            let expected = match first {
                None => Ok(()),
                Some(Fault::Segv { mapped: false }) => Err(Errno::ENOMEM),
                Some(Fault::OutOfMemory) => unreachable!("nothing is expected to be for want of memory"),
                Some(Fault::Segv { mapped: true }) => Err(Errno::EINVAL),
                Some(Fault::Bus) => Err(Errno::EFAULT),
            };
            let short = result == Err(Errno::OutOfMemory) && self.is_short();
            assert!(result == expected || short, "populating {range:x?} is {result:?}, not {expected:?}");
            return;
        }
        let reference = &mut self.processes[process].reference;
        let mut expected = Ok(());
        for page in range.clone() {
            let Some(meant) = reference.pages.get_mut(&page) else {
                expected = Err(Errno::ENOMEM);
                continue;
            };
            match (advice, &mut meant.kind) {
                (MADV_FREE, Kind::Anonymous { free, .. }) => *free = true,
                (MADV_FREE, _) => {
                    expected = Err(Errno::EINVAL);
                    break;
                }
                (MADV_DONTNEED, _) => reference.forget(&(page..page + 1)),
                _ => {}
            }
        }
        assert_eq!(result, expected, "advice {advice} for {range:x?}");
        if advice == MADV_FREE && !self.next_token.is_multiple_of(4) {
            // At once, so that nothing else changes it: what is near must not go with it.
            self.processes[process].space.reclaim(u64::MAX);
            let near = range.start - range.start % self.block()..range.end.next_multiple_of(self.block());
            let mapped = |page: &u64| self.processes[process].reference.get(*page).is_some();
            let pages: Vec<u64> = near.filter(mapped).collect();
            pages.into_iter().for_each(|page| self.kernel_reads(process, page));
        }
    }

    /// Begins a process as a copy of another.
    ///
    /// # Errors
    /// What fork says.
    pub fn fork(&mut self, cpu: usize, parent: usize, child: usize) -> Result<(), Errno> {
        let mm = self.new_mm().ok_or(Errno::OutOfMemory)?;
        let parent = &self.processes[parent];
        let mut new = self.new_process(mm, |mm| parent.space.fork(mm))?;
        new.reference = parent.reference.clone();
        self.replace(cpu, child, new);
        Ok(())
    }

    pub(super) fn kernel_writes(&mut self, process: usize, page: u64) {
        let token = self.new_token();
        let result = self.processes[process].space.write(Self::token_va(page), &token.to_le_bytes());
        match (result, self.expected(process, page, mm::Access::Write)) {
            (Ok(()), Ok(())) => self.wrote(process, page, token),
            (Err(Errno::EFAULT), Err(_)) => {}
            (Err(Errno::OutOfMemory), _) if self.is_short() => {}
            (result, expected) => panic!("write to {page:#x} is {result:?}, not {expected:?}"),
        }
    }

    pub(super) fn kernel_reads(&mut self, process: usize, page: u64) {
        let mut bytes = [0; 4];
        let result = self.processes[process].space.read(Self::token_va(page), &mut bytes);
        match (result, self.expected(process, page, mm::Access::Read)) {
            (Ok(()), Ok(())) => self.saw(process, page, u32::from_le_bytes(bytes)),
            (Err(Errno::EFAULT), Err(_)) => {}
            (Err(Errno::OutOfMemory), _) if self.is_short() => {}
            (result, expected) => panic!("read of {page:#x} is {result:?}, not {expected:?}"),
        }
    }

    fn in_core(&mut self, process: usize, range: &Range<u64>) {
        let mut vec = vec![0xff; (range.end - range.start) as usize];
        let result = self.call(process, range, |space, va, len| space.mincore(va, len, &mut vec));
        let mut expected = Ok(());
        for (page, told) in range.clone().zip(vec) {
            let Some(meant) = self.processes[process].reference.get(page) else {
                expected = Err(Errno::ENOMEM);
                break;
            };
            // Whether untouched memory was read before is not known here.
            let must = self.meant_or_beyond(meant).is_some_and(|token| token != 0)
                && !matches!(meant.kind, Kind::Anonymous { free: true, .. });
            assert!(
                told == 1 || told == 0 && !must,
                "page {page:#x} of {process}, {meant:?}, is told as {told}"
            );
        }
        assert_eq!(result, expected);
    }

    fn meant_or_beyond(&self, page: Page) -> Option<u32> {
        (!self.is_beyond(page)).then(|| self.meant(page))
    }
}
