//! `mprotect`: other permissions for what is mapped.

use core::convert::Infallible;
use core::ops::Range;

use arch::{Mmu, VirtAddr};

use super::AddressSpace;
use super::ranges::{Batch, released};
use crate::errno::Errno;
use crate::guard::PteGuard;
use crate::mman::*;
use crate::pte::{Pte, UserProt};
use crate::ptep::{get_and_clear_ptes, modify_prot_commit, modify_prot_start, set_ptes};
use crate::runs;
use crate::vma::Prot;

/// What `mprotect` knows.
const KNOWN: u64 = PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM;

impl<'m, M: Mmu> AddressSpace<'m, M> {
    /// Changes the permission of `len` bytes, as `mprotect` does: of all mappings there are before the first hole. Blocks that
    /// are wholly inside stay folded; those that are alike again are folded again.
    ///
    /// A page that is shared by copy on write becomes writable only when it is written to.
    ///
    /// *Maintenance:* one flush for each last-level table; where execution becomes permitted, or any access after none was, one
    /// for each batch of one folio, before its pages are valid again.
    ///
    /// # Errors
    /// - `EINVAL`: `addr` is not a multiple of the page size, or `prot` has unknown bits.
    /// - `ENOMEM`: the range wraps; something in it is not mapped; too many mappings.
    /// - [`OutOfMemory`](Errno::OutOfMemory), for the mappings.
    /// - `EACCES`: writable, of a shared mapping of a file that is not.
    pub fn mprotect(&self, addr: u64, len: u64, prot: u64) -> Result<(), Errno> {
        if !addr.is_multiple_of(Self::PAGE)
            || prot & (PROT_GROWSDOWN | PROT_GROWSUP) == PROT_GROWSDOWN | PROT_GROWSUP
        {
            return Err(Errno::EINVAL);
        }
        if len == 0 {
            return Ok(());
        }
        let size = len.checked_next_multiple_of(Self::PAGE).ok_or(Errno::ENOMEM)?;
        let end = addr.checked_add(size).ok_or(Errno::ENOMEM)?;
        if prot & !(KNOWN | PROT_GROWSDOWN | PROT_GROWSUP) != 0 {
            return Err(Errno::EINVAL);
        }
        let mut map = self.write_map();
        map.vmas.find(addr).ok_or(Errno::ENOMEM)?;
        if prot & (PROT_GROWSDOWN | PROT_GROWSUP) != 0 {
            // No mapping grows.
            return Err(Errno::EINVAL);
        }
        let prot = Prot::from_bits_truncate(prot);
        let mut at = addr;
        let result = loop {
            if at >= end {
                break Ok(());
            }
            let Some(vma) = map.vmas.find(at) else { break Err(Errno::ENOMEM) };
            let (part, old, private) = (at..vma.end.min(end), vma.prot, vma.is_private());
            if prot.contains(Prot::WRITE) && !vma.may_write() {
                break Err(Errno::EACCES);
            }
            if old != prot {
                if let Err(errno) = map.vmas.reserve(&part, 0) {
                    break Err(errno);
                }
                map.vmas.protect(&part, prot);
                self.change_protection(&part, private, old, prot);
            }
            at = part.end;
        };
        if at > addr {
            self.refold(&(addr..at));
        }
        result
    }

    /// Gives what is mapped in a range of one mapping another permission.
    fn change_protection(&self, range: &Range<u64>, private: bool, old: Prot, new: Prot) {
        let in_place =
            !old.is_empty() && !new.is_empty() && (old.contains(Prot::EXEC) || !new.contains(Prot::EXEC));
        let Ok(()) = self.for_each_table(range, |guard, range| match new.of_entry(true) {
            Some(prot) if in_place && !(private && new.contains(Prot::WRITE)) => {
                protect_all(guard, range, prot);
                Ok::<(), Infallible>(())
            }
            _ if in_place => self.permit_writing(guard, range, new),
            _ => self.for_each_batch(guard, range, |guard, batch| {
                Self::protect_batch(guard, batch, private, new);
                Ok(())
            }),
        });
    }

    /// Permits to write to what may be accessed in a range of private memory, where it is nobody else's.
    fn permit_writing(
        &self,
        guard: &mut PteGuard<'_, 'm, M>,
        range: Range<u64>,
        prot: Prot,
    ) -> Result<(), Infallible> {
        // Neighbours that are alike in that change together, whatever lies between them.
        let change = |guard: &mut PteGuard<'_, 'm, M>, run: Range<u64>, writable| {
            if let Some(prot) = prot.of_entry(writable)
                && !run.is_empty()
            {
                protect_all(guard, run, prot);
            }
        };
        let (mut start, mut writable) = (range.start, false);
        self.for_each_batch(guard, range.clone(), |guard, batch| {
            let may_be = Self::may_be_writable(guard, &batch);
            if may_be != writable {
                change(guard, start..batch.va.get(), writable);
                (start, writable) = (batch.va.get(), may_be);
            }
            Ok::<(), Infallible>(())
        })?;
        change(guard, start..range.end, writable);
        Ok(())
    }

    fn protect_batch(guard: &mut PteGuard<'_, 'm, M>, batch: Batch<'m>, private: bool, prot: Prot) {
        let Batch { va, pte, nr, .. } = batch;
        let writable = prot.contains(Prot::WRITE) && (!private || Self::may_be_writable(guard, &batch));
        let Some(new) = prot.of_entry(writable) else {
            if pte.is_valid() {
                let pte = get_and_clear_ptes(guard, va, nr);
                Self::set_held(guard, Batch { pte, ..batch });
            }
            return;
        };
        if !pte.is_valid() {
            get_and_clear_ptes(guard, va, nr);
            set_ptes(guard, va, released(pte).with_prot(new), nr);
        } else {
            let old = modify_prot_start(guard, va, nr);
            modify_prot_commit(guard, va, old.with_prot(new), nr);
        }
    }

    /// Whether a batch of private memory that may be written to may be so by its entries. All its pages are alike in that: what is
    /// writable is nobody else's, and so is a folio that is this address space's alone, and mapped here alone.
    fn may_be_writable(guard: &PteGuard<'_, 'm, M>, batch: &Batch<'m>) -> bool {
        let own = |folio| Self::is_exclusive(guard, batch.va, batch.pte, &folio);
        batch.pte.is_valid() && batch.pte.is_writable() || batch.folio.is_some_and(own)
    }
}

/// Gives all that may be accessed in a range, which the guard's table translates, this permission.
fn protect_all<M: Mmu>(guard: &mut PteGuard<'_, '_, M>, range: Range<u64>, prot: UserProt) {
    let nr = (range.end - range.start) / M::GRANULE.page_size();
    runs::protect(guard, VirtAddr::new(range.start), nr as usize, prot);
}
