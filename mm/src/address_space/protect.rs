//! `mprotect`: other permissions for what is mapped.

use core::convert::Infallible;
use core::ops::Range;

use arch::Mmu;

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
    /// *Maintenance:* one flush for each last-level table, or a few; where execution becomes permitted, or any access after none
    /// was, one for each batch of one folio, before its pages are valid again.
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
        let Ok(()) =
            self.for_each_table(range, |guard, range| match (new.of_entry(true), new.of_entry(false)) {
                (Some(writable), Some(other)) if in_place && private && writable != other => {
                    self.permit_writing(guard, &range, writable, other)
                }
                (Some(prot), _) if in_place => {
                    let all = Self::indices(guard, &range);
                    runs::protect(guard, all, move |_| prot);
                    Ok(())
                }
                _ => self.for_each_batch(guard, range, |guard, batch| {
                    Self::protect_batch(guard, batch, private, new);
                    Ok::<(), Infallible>(())
                }),
            });
    }

    /// Gives what may be accessed in a range of private memory a permission that includes writing, where it is nobody else's;
    /// else the other one, but for what may be written to already.
    fn permit_writing(
        &self,
        guard: &mut PteGuard<'_, 'm, M>,
        range: &Range<u64>,
        writable: UserProt,
        other: UserProt,
    ) -> Result<(), Infallible> {
        let change = |guard: &mut PteGuard<'_, 'm, M>, run: Range<usize>, own: bool| {
            if run.is_empty() {
            } else if own {
                runs::protect(guard, run, move |_| writable);
            } else {
                runs::protect(guard, run, move |pte| if pte.is_writable() { writable } else { other });
            }
        };
        // Neighbours that are alike in that change together, whatever lies between them.
        let all = Self::indices(guard, range);
        let (mut start, mut own) = (all.start, false);
        self.for_each_folio(guard, all.clone(), |guard, folio, pages| {
            let (va, pte) = (guard.va(pages.start), guard.get(pages.start));
            let is_own = folio.is_some_and(|folio| Self::is_exclusive(guard, va, pte, &folio));
            if is_own != own {
                change(guard, start..pages.start, own);
                (start, own) = (pages.start, is_own);
            }
            Ok::<(), Infallible>(())
        })?;
        change(guard, start..all.end, own);
        Ok(())
    }

    fn protect_batch(guard: &mut PteGuard<'_, 'm, M>, batch: Batch<'m>, private: bool, prot: Prot) {
        let Batch { va, pte, nr, .. } = batch;
        // All pages of the batch are alike in that: what is writable is nobody else's.
        let writable = prot.contains(Prot::WRITE)
            && (!private || pte.is_valid() && pte.is_writable() || Self::is_own(guard, &batch));
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

    /// Whether the folio of a batch is this address space's alone, and mapped here alone.
    fn is_own(guard: &PteGuard<'_, 'm, M>, batch: &Batch<'m>) -> bool {
        batch.folio.is_some_and(|folio| Self::is_exclusive(guard, batch.va, batch.pte, &folio))
    }
}
