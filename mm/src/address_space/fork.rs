//! `fork`: a child that shares what is private until one of the two writes to it.

use arch::{Mmu, VirtAddr};

use super::ranges::Batch;
use super::{AddressSpace, Map};
use crate::Mm;
use crate::errno::Errno;
use crate::guard::PteGuard;
use crate::pte::Pte;
use crate::ptep::{set_ptes, wrprotect_ptes};

impl<'m, M: Mmu> AddressSpace<'m, M> {
    /// A child's address space with the same mappings and contents, in `child`, in which nothing is mapped. Private memory is
    /// shared, by batches of one folio, until one of the two writes to it; blocks stay folded in both. What is shared anyway
    /// the child faults in.
    ///
    /// *Maintenance:* one flush for each last-level table of the parent that has private memory that it could write to.
    ///
    /// # Errors
    /// [`Errno::OutOfMemory`]; [`Errno::ENOMEM`] where a folio has more mappings than can be counted. All that the child had is
    /// given back, `child`'s root table too.
    pub fn fork(&self, child: Mm<'m, M>) -> Result<Self, Errno> {
        let child = Self::new(child, self.memory, self.policy);
        let map = self.write_map();
        let vmas = map.vmas.try_clone()?;
        // First, so that all that is mapped is given back where memory runs out.
        *child.write_map() = Map { vmas, brk_start: map.brk_start, brk: map.brk };
        for vma in map.vmas.iter().filter(|vma| vma.is_private()) {
            self.for_each_table(&(vma.start..vma.end), |guard, range| {
                let mut all = Self::indices(guard, &range);
                let Some(_) = self.next_batch(guard, &mut all) else { return Ok(()) };
                let start = VirtAddr::new(range.start);
                // Nobody else knows the child: its lock comes after any of the parent's.
                let mut of_child =
                    child.mm.lock_table(start, self.memory.tables()).map_err(|_| Errno::OutOfMemory)?;
                self.for_each_batch(guard, range, |guard, batch| self.share(guard, &mut of_child, batch))
            })?;
        }
        Ok(child)
    }

    /// Maps a batch in the child too.
    fn share(
        &self,
        parent: &mut PteGuard<'_, 'm, M>,
        child: &mut PteGuard<'_, 'm, M>,
        batch: Batch<'m>,
    ) -> Result<(), Errno> {
        let Batch { va, pte, nr, folio } = batch;
        if let Some(folio) = folio {
            folio.add_mappings(nr as u32).map_err(|_| Errno::ENOMEM)?;
        }
        if !pte.is_valid() {
            Self::set_held(child, batch);
            return Ok(());
        }
        if pte.is_writable() {
            wrprotect_ptes(parent, va, nr);
        }
        let first = parent.index(va);
        let dirty = pte.is_dirty() || parent.table().leaves(first..first + nr).any(Pte::is_dirty);
        let pte = pte.wrprotect();
        set_ptes(child, va, if dirty { pte.mkdirty() } else { pte }, nr);
        Ok(())
    }
}
