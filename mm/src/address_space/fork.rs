//! `fork`: a child that shares what is private until one of the two writes to it.

use core::ops::Range;

use arch::Mmu;

use super::{AddressSpace, Map};
use crate::errno::Errno;
use crate::guard::PteGuard;
use crate::{Mm, runs};

impl<'m, M: Mmu> AddressSpace<'m, M> {
    /// A child's address space with the same mappings and contents, in `child`, in which nothing is mapped. Private memory is
    /// shared until one of the two writes to it; blocks stay folded in both. What is shared anyway the child faults in.
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
                let Some(indices) = Self::present(guard, &range) else { return Ok(()) };
                let start = guard.va(indices.start);
                // Nobody else knows the child: its lock comes after any of the parent's.
                let mut of_child =
                    child.mm.lock_table(start, self.memory.tables()).map_err(|_| Errno::OutOfMemory)?;
                self.share(guard, &mut of_child, indices)
            })?;
        }
        Ok(child)
    }

    /// Maps what is there in the child too.
    fn share(
        &self,
        parent: &mut PteGuard<'_, 'm, M>,
        child: &mut PteGuard<'_, 'm, M>,
        indices: Range<usize>,
    ) -> Result<(), Errno> {
        let mut counted = indices.clone();
        let result = self.for_each_folio(parent, indices, |_, folio, pages| {
            let Some(folio) = folio else { return Ok(()) };
            folio.add_mappings(pages.len() as u32).map_err(|_| {
                counted.end = pages.start;
                Errno::ENOMEM
            })
        });
        // What is counted is mapped, so that it is given back with the child.
        if !counted.is_empty() {
            runs::share(parent, child, counted);
        }
        result
    }
}
