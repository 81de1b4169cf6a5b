//! Memory of a process as the kernel reads and writes it, whether or not the address space is loaded.

use arch::{Mmu, PteFlags, PteValue, VirtAddr};

use super::fault::permits;
use super::{Access, AddressSpace, Fault};
use crate::errno::Errno;
use crate::frame::Folio;
use crate::icache;
use crate::pte::Pte;
use crate::ptep::ptep_get;

impl<'m, M: Mmu> AddressSpace<'m, M> {
    /// Reads memory of the process as it would itself.
    ///
    /// # Errors
    /// [`Errno::EFAULT`], where some of it may not be read; [`Errno::OutOfMemory`].
    pub fn read(&self, va: u64, into: &mut [u8]) -> Result<(), Errno> {
        let mut done = 0;
        while done < into.len() {
            let (at, nr) = Self::in_page(va, done, into.len())?;
            self.with_page(at, Access::Read, |folio, offset| {
                self.memory.contents().read(folio, offset, &mut into[done..done + nr]);
            })?;
            done += nr;
        }
        Ok(())
    }

    /// Writes memory of the process as it would itself. What may be executed too is made visible to instruction fetches.
    ///
    /// # Errors
    /// [`Errno::EFAULT`], where some of it may not be written; [`Errno::OutOfMemory`]. What comes before it was written.
    pub fn write(&self, va: u64, from: &[u8]) -> Result<(), Errno> {
        let mut done = 0;
        while done < from.len() {
            let (at, nr) = Self::in_page(va, done, from.len())?;
            self.with_page(at, Access::Write, |folio, offset| {
                self.memory.contents().write(folio, offset, &from[done..done + nr]);
            })?;
            done += nr;
        }
        Ok(())
    }

    /// The address of byte `done`, and how many bytes up to `len` are in the same page.
    fn in_page(va: u64, done: usize, len: usize) -> Result<(u64, usize), Errno> {
        let at = va.checked_add(done as u64).ok_or(Errno::EFAULT)?;
        Ok((at, (Self::PAGE - at % Self::PAGE).min((len - done) as u64) as usize))
    }

    /// Calls `act` with the folio of an address, and the offset in it, with the entry's lock held.
    fn with_page(&self, at: u64, access: Access, mut act: impl FnMut(&Folio<'m>, u64)) -> Result<(), Errno> {
        let va = VirtAddr::new(at);
        let map = self.read_map();
        let vma = map.vmas.find(at).filter(|vma| permits(vma, access)).ok_or(Errno::EFAULT)?;
        let usable = |pte: PteValue| {
            pte.is_valid() && (access != Access::Write || pte.is_writable() && pte.is_dirty())
        };
        loop {
            if let Some(guard) = self.mm.lock_present_table(va)
                && let pte = ptep_get(&guard, va)
                && usable(pte)
            {
                let pfn = pte.pa().pfn(M::GRANULE);
                let folio = self.memory.frames().get(pfn).expect("what is mapped has a folio");
                let offset = (pfn.get() - folio.head().get()) * Self::PAGE + at % Self::PAGE;
                act(&folio, offset);
                if access == Access::Write && !pte.flags().contains(PteFlags::UXN) {
                    folio.mark_written();
                    icache::before_executable(&self.mm, pte);
                }
                return Ok(());
            }
            self.fault_in(vma, at, access).map_err(|fault| match fault {
                Fault::OutOfMemory => Errno::OutOfMemory,
                Fault::Bus | Fault::Segv { .. } => Errno::EFAULT,
            })?;
        }
    }
}
