//! What the bits of a user PTE mean to software: young, dirty, writable.
//!
//! DBM is the permission to write, AP\[2\] (`RDONLY`) says that the page is clean, or not writable. Hardware with
//! dirty state management clears `RDONLY` of an entry that has DBM when it is written to; on other hardware the
//! write faults, and software does it. A page is dirty if hardware or the software bit says so.

use arch::{MemoryType, PhysAddr, PteFlags, PteValue};

/// What EL0 may do with a page. The Contiguous bit can't be said, nor a frame.
///
/// ```
/// use arch::{PhysAddr, PteFlags, PteValue};
/// use pleat_mm::pte::{Pte, UserProt};
///
/// let pte = PteValue::new_user(PhysAddr::new(0x1000), UserProt::ReadWrite);
/// assert!(pte.is_writable() && !pte.flags().contains(PteFlags::CONT));
/// ```
/// Neither by flags, nor beside them:
/// ```compile_fail,E0308
/// use arch::{PhysAddr, PteFlags, PteValue};
/// use pleat_mm::pte::{Pte, UserProt};
///
/// let pte = PteValue::new_user(PhysAddr::new(0x1000), PteFlags::CONT);
/// ```
/// ```compile_fail,E0369
/// use arch::{PhysAddr, PteFlags, PteValue};
/// use pleat_mm::pte::{Pte, UserProt};
///
/// let pte = PteValue::new_user(PhysAddr::new(0x1000), UserProt::ReadWrite | PteFlags::CONT);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum UserProt {
    /// Read.
    Read,
    /// Read and execute.
    ReadExecute,
    /// Read and write.
    ReadWrite,
    /// Read, write and execute.
    ReadWriteExecute,
}

impl UserProt {
    fn writable(self) -> bool {
        matches!(self, Self::ReadWrite | Self::ReadWriteExecute)
    }

    fn executable(self) -> bool {
        matches!(self, Self::ReadExecute | Self::ReadWriteExecute)
    }

    /// The flags of a clean page with this permission: DBM if it may be written to, and `RDONLY` until it is.
    fn flags(self) -> PteFlags {
        let mut flags = PteFlags::USER | PteFlags::PXN | PteFlags::RDONLY;
        if self.writable() {
            flags |= PteFlags::DBM;
        }
        if !self.executable() {
            flags |= PteFlags::UXN;
        }
        flags
    }
}

/// The bits of [`UserProt`].
const PROT: PteFlags =
    PteFlags::USER.union(PteFlags::PXN).union(PteFlags::UXN).union(PteFlags::DBM).union(PteFlags::RDONLY);

/// What may change in a live entry without break-before-make: permissions, young, dirty, and what only software reads.
const CHANGEABLE: PteFlags = PROT.union(PteFlags::AF).union(PteFlags::DIRTY).union(PteFlags::SPECIAL);

/// Whether the live entry `old` must be invalid and flushed before it becomes the valid entry `new` (RWHZWS): its frame
/// changes, its memory type or shareability, whether it is global, or the Contiguous bit.
pub(crate) fn needs_break(old: PteValue, new: PteValue) -> bool {
    old.without(CHANGEABLE) != new.without(CHANGEABLE)
}

/// Reads and changes entries by what they mean. Each method returns the changed value; nothing is stored.
pub trait Pte: Sized + Copy {
    /// The entry for a page of user memory: young and clean.
    fn new_user(pa: PhysAddr, prot: UserProt) -> Self;
    /// Accessed since it was last made old.
    fn is_young(self) -> bool;
    /// May be written to.
    fn is_writable(self) -> bool;
    /// Written to since it was last made clean.
    fn is_dirty(self) -> bool;
    /// Valid and Contiguous: part of a folded block. The bit means nothing in an invalid entry.
    fn is_folded(self) -> bool;
    /// Its frame has no folio.
    fn is_special(self) -> bool;
    /// Young.
    fn mkyoung(self) -> Self;
    /// Not young: the next access sets the access flag, or faults so that software does.
    fn mkold(self) -> Self;
    /// Dirty; the hardware state too where it may be written to.
    fn mkdirty(self) -> Self;
    /// Clean: the next write makes it dirty, or faults so that software does.
    fn mkclean(self) -> Self;
    /// Without the permission to write; dirty if it was.
    fn wrprotect(self) -> Self;
    /// With the permission to write.
    fn mkwrite(self) -> Self;
    /// With the other permission, else the same: young and dirty if it was.
    fn with_prot(self, prot: UserProt) -> Self;
    /// Without the Contiguous bit.
    fn mknoncont(self) -> Self;
    /// With the Contiguous bit, if it is valid.
    fn mkcont(self) -> Self;
    /// For a frame without a folio.
    fn mkspecial(self) -> Self;
    /// The entry of the page `bytes` further on.
    fn advance(self, bytes: u64) -> Self;
    /// What must agree in all entries of a block beside the frames: all but young, dirty, Contiguous.
    fn attributes(self) -> Self;
}

/// From bit to bit.
const RDONLY_TO_DBM: u32 = PteFlags::DBM.bits().ilog2() - PteFlags::RDONLY.bits().ilog2();

/// What is known of several entries: whether any is valid, young, dirty. By all bits at once: it is done for every page.
#[derive(Clone, Copy, Default)]
pub(crate) struct Gathered {
    /// The bits that any valid one has.
    any: u64,
    /// DBM, where any has it without `RDONLY`.
    written: u64,
}

impl Gathered {
    /// One entry more, which counts if it is valid.
    #[inline(always)]
    pub(crate) fn add(&mut self, pte: PteValue) {
        let raw = if pte.is_valid() { pte.raw() } else { 0 };
        self.any |= raw;
        self.written |= raw & !(raw << RDONLY_TO_DBM);
    }

    fn has(self, flag: PteFlags) -> bool {
        self.any & flag.bits() != 0
    }

    pub(crate) fn is_valid(self) -> bool {
        self.has(PteFlags::VALID)
    }

    pub(crate) fn is_young(self) -> bool {
        self.has(PteFlags::AF)
    }

    pub(crate) fn is_dirty(self) -> bool {
        self.has(PteFlags::DIRTY) || self.written & PteFlags::DBM.bits() != 0
    }

    /// The entry, also young and dirty where one of these is.
    #[inline]
    pub(crate) fn merged_into(self, pte: PteValue) -> PteValue {
        let pte = if self.is_young() { pte.mkyoung() } else { pte };
        if self.is_dirty() && !pte.is_dirty() { pte.mkdirty() } else { pte }
    }
}

/// The entry, dirty by the software bit too: the hardware state, DBM without `RDONLY`, goes with the permission. Without a branch,
/// since it is done for every page.
#[inline(always)]
fn keeping_dirty(pte: PteValue) -> PteValue {
    const TO_DIRTY: u32 = PteFlags::DIRTY.bits().ilog2() - PteFlags::DBM.bits().ilog2();
    let written = pte.raw() & !(pte.raw() << RDONLY_TO_DBM) & PteFlags::DBM.bits();
    pte.with(PteFlags::from_bits_retain(written << TO_DIRTY))
}

impl Pte for PteValue {
    fn new_user(pa: PhysAddr, prot: UserProt) -> Self {
        let flags = prot.flags() | PteFlags::AF | PteFlags::NG | PteFlags::INNER_SHAREABLE;
        Self::leaf(pa, MemoryType::Normal, flags)
    }

    fn is_young(self) -> bool {
        self.flags().contains(PteFlags::AF)
    }

    fn is_writable(self) -> bool {
        self.flags().contains(PteFlags::DBM)
    }

    fn is_dirty(self) -> bool {
        let flags = self.flags();
        flags.contains(PteFlags::DIRTY) || flags.contains(PteFlags::DBM) && !flags.contains(PteFlags::RDONLY)
    }

    fn is_folded(self) -> bool {
        self.flags().contains(PteFlags::VALID | PteFlags::CONT)
    }

    fn is_special(self) -> bool {
        self.flags().contains(PteFlags::SPECIAL)
    }

    fn mkyoung(self) -> Self {
        self.with(PteFlags::AF)
    }

    fn mkold(self) -> Self {
        self.without(PteFlags::AF)
    }

    fn mkdirty(self) -> Self {
        let dirty = self.with(PteFlags::DIRTY);
        if self.is_writable() { dirty.without(PteFlags::RDONLY) } else { dirty }
    }

    fn mkclean(self) -> Self {
        self.without(PteFlags::DIRTY).with(PteFlags::RDONLY)
    }

    #[inline(always)]
    fn wrprotect(self) -> Self {
        keeping_dirty(self).without(PteFlags::DBM).with(PteFlags::RDONLY)
    }

    fn mkwrite(self) -> Self {
        let writable = self.with(PteFlags::DBM);
        // A dirty page need not be noticed again.
        if self.is_dirty() { writable.without(PteFlags::RDONLY) } else { writable }
    }

    #[inline(always)]
    fn with_prot(self, prot: UserProt) -> Self {
        let changed = keeping_dirty(self).without(PROT).with(prot.flags());
        // Hardware state says so too.
        if prot.writable() && changed.flags().contains(PteFlags::DIRTY) {
            changed.without(PteFlags::RDONLY)
        } else {
            changed
        }
    }

    fn mknoncont(self) -> Self {
        self.without(PteFlags::CONT)
    }

    fn mkcont(self) -> Self {
        if self.is_valid() { self.with(PteFlags::CONT) } else { self }
    }

    fn mkspecial(self) -> Self {
        self.with(PteFlags::SPECIAL)
    }

    fn advance(self, bytes: u64) -> Self {
        self.advanced(bytes)
    }

    fn attributes(self) -> Self {
        self.mkold().mkclean().mknoncont()
    }
}
