//! Kernel mappings: `create_pgd_mapping`, down to `init_pte`.
//!
//! ```text
//!  create_pgd_mapping      checks the request, takes the lock
//!        │  Check (changes nothing), Allocate (tables), Write (leaves; cannot fail), Invalidate
//!        ▼
//!  init_range              one table: descends, or takes a whole entry
//!        ▼
//!  init_cont               a whole Contiguous group where it fits, else a single entry
//!        ▼
//!  init_pte                raw: __ptep_get, __set_pte
//! ```
//!
//! A kernel mapping must not fault, not even for a moment, so it is never broken before it is made
//! anew. Only two changes need no break (DDI 0487, D8.16.1, RWHZWS): an invalid entry becomes valid,
//! and a valid one changes its permissions at equal output address, size and Contiguous bit.
//! Anything else on a live entry is a bug of the caller and panics.

use core::fmt;

use arch::granule::LAST_LEVEL;
use arch::mmu::Entry;
use arch::tlbi::{Space, Tlbi};
use arch::{MemoryType, Mmu, PhysAddr, PteFlags, PteValue, Table, TableFrame, VirtAddr};

use crate::Mm;
use crate::raw::{__ptep_get, __set_pte, Ptep};

/// What the kernel may do with a mapping. Writable and executable at once can't be said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KernelProt {
    /// Text.
    ReadExecute,
    /// Constants.
    ReadOnly,
    /// Data.
    ReadWrite,
}

/// A request to map a physically contiguous range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The first virtual address: a multiple of the page size.
    pub va: VirtAddr,
    /// The first physical address: a multiple of the page size.
    pub pa: PhysAddr,
    /// Bytes: a multiple of the page size, not zero.
    pub size: u64,
    /// Permissions.
    pub prot: KernelProt,
    /// Memory type; other than [`MemoryType::Normal`] it can't be executed.
    pub memory: MemoryType,
}

/// Why a mapping was not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// An address or the size is not a multiple of the page size, or the size is zero.
    Misaligned(Mapping),
    /// The range is not wholly inside the half of the address space that the mm translates, or its
    /// physical end is beyond 2^48.
    OutOfRange(Mapping),
    /// Executable memory that is not Normal: speculative fetches could read registers.
    ExecutableDevice(Mapping),
    /// No frame for a table of the translation of this address.
    OutOfTables(VirtAddr),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned(m) => {
                write!(f, "mapping of {:#x} bytes at {} to {} is not page-aligned", m.size, m.va, m.pa)
            }
            Self::OutOfRange(m) => {
                write!(f, "mapping of {:#x} bytes at {} to {} leaves its address space", m.size, m.va, m.pa)
            }
            Self::ExecutableDevice(m) => write!(f, "executable mapping of device memory at {}", m.va),
            Self::OutOfTables(va) => write!(f, "no memory for a translation table for {va}"),
        }
    }
}

impl core::error::Error for MapError {}

/// No frame for a table of the translation of this address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfTables(pub VirtAddr);

impl fmt::Display for OutOfTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no memory for a translation table for {}", self.0)
    }
}

impl core::error::Error for OutOfTables {}

/// Where new translation tables come from.
pub trait TableAlloc {
    /// A zeroed frame for a table of `level`, or `None`. Called with the mm's lock held; it must not
    /// map anything itself.
    fn alloc_table(&self, level: u8) -> Option<TableFrame>;
}

impl Mapping {
    /// The request, as the walk makes it.
    fn request(&self) -> Request {
        let prot = match self.prot {
            KernelProt::ReadExecute => PteFlags::RDONLY,
            KernelProt::ReadOnly => PteFlags::RDONLY | PteFlags::PXN,
            KernelProt::ReadWrite => PteFlags::PXN,
        };
        // Kernel mappings are global, never accessible to EL0, and never raise an access flag fault.
        let flags = prot | PteFlags::AF | PteFlags::UXN | PteFlags::INNER_SHAREABLE;
        let pte = PteValue::leaf(self.pa, self.memory, flags);
        Request { va: self.va, size: self.size, pte, page_mappings_only: false }
    }
}

/// What the walk maps, and how: all that a kernel's mapping and the firmware's have in common.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    /// The first virtual address.
    pub(crate) va: VirtAddr,
    /// Bytes.
    pub(crate) size: u64,
    /// The leaf that maps the first byte, without CONT.
    pub(crate) pte: PteValue,
    /// Neither blocks nor Contiguous groups.
    pub(crate) page_mappings_only: bool,
}

impl Request {
    fn pa(&self) -> PhysAddr {
        self.pte.pa()
    }

    /// The rest of the request that begins `offset` bytes on.
    fn after(&self, offset: u64) -> Self {
        Self {
            va: VirtAddr::new(self.va.get().wrapping_add(offset)),
            size: self.size - offset,
            pte: self.pte.advanced(offset),
            ..*self
        }
    }

    fn is_aligned(&self, bytes: u64) -> bool {
        self.va.is_aligned(bytes) && self.pa().is_aligned(bytes)
    }
}

/// What is wrong with the range of a request.
pub(crate) enum BadRange {
    Misaligned,
    OutOfRange,
}

/// Whether the `size` bytes at `va` and `pa` are whole pages that `mm` can map.
pub(crate) fn check_range<M: Mmu>(
    mm: &Mm<'_, M>,
    va: VirtAddr,
    pa: PhysAddr,
    size: u64,
) -> Result<(), BadRange> {
    let page = M::GRANULE.page_size();
    if !va.is_aligned(page) || !pa.is_aligned(page) || size == 0 || !size.is_multiple_of(page) {
        return Err(BadRange::Misaligned);
    }
    // The last byte must have an address of 48 bits; one past it need not.
    if !mm.covers(va, size) || pa.checked_add(size - 1).is_none() {
        return Err(BadRange::OutOfRange);
    }
    Ok(())
}

/// Maps `mapping` in the kernel address space `mm`.
///
/// Blocks and Contiguous groups are used wherever address, size and what is already there allow
/// them. Entries that are live are left as they are, or change their permissions to
/// `mapping.prot`. On return the mapping is visible to every CPU's walker (`dsb ishst; isb`), and
/// where permissions changed, the invalidation of the old ones has completed.
///
/// Takes the mm's lock. Not for interrupt context.
///
/// # Errors
/// See [`MapError`]. No leaf was changed then; tables that were added on the way stay, empty, and
/// belong to the mm.
///
/// # Panics
/// Where a live entry would change in anything but its permissions, or only a part of a live block
/// or Contiguous group would change: the message names the address. Nothing was changed then.
pub fn create_pgd_mapping<M: Mmu>(
    mm: &Mm<'_, M>,
    mapping: &Mapping,
    tables: &dyn TableAlloc,
) -> Result<(), MapError> {
    check_range(mm, mapping.va, mapping.pa, mapping.size).map_err(|bad| match bad {
        BadRange::Misaligned => MapError::Misaligned(*mapping),
        BadRange::OutOfRange => MapError::OutOfRange(*mapping),
    })?;
    if mapping.prot == KernelProt::ReadExecute && mapping.memory != MemoryType::Normal {
        return Err(MapError::ExecutableDevice(*mapping));
    }

    let _guard = mm.lock.lock();
    create_pgd_mapping_locked(mm, &mapping.request(), tables)
        .map_err(|OutOfTables(va)| MapError::OutOfTables(va))
}

/// Maps `request`, whose range was [checked](check_range), with the mm's lock held. Errors, panics and maintenance are
/// those of [`create_pgd_mapping`].
pub(crate) fn create_pgd_mapping_locked<M: Mmu>(
    mm: &Mm<'_, M>,
    request: &Request,
    tables: &dyn TableAlloc,
) -> Result<(), OutOfTables> {
    let root = mm.root_table();
    init_range(root, request, &mut Pass::Check)?;
    if let Err(error) = init_range(root, request, &mut Pass::Allocate(tables)) {
        // The tables that were added stay, so their entries must not stay half visible.
        mm.mmu().publish();
        return Err(error);
    }
    let mut permissions_changed = false;
    init_range(root, request, &mut Pass::Write { permissions_changed: &mut permissions_changed })?;
    mm.mmu().publish();
    if permissions_changed {
        init_range(root, request, &mut Pass::Invalidate)?;
        mm.mmu().complete();
    }
    Ok(())
}

/// One traversal does everything, so that all passes meet the same entries and decide alike.
enum Pass<'a> {
    /// Checks live entries. The only one that panics, and it writes nothing.
    Check,
    /// Adds missing tables. The only one that fails.
    Allocate(&'a dyn TableAlloc),
    /// Writes the leaves.
    Write { permissions_changed: &'a mut bool },
    /// Invalidates the TLB entries of every leaf of the range.
    Invalidate,
}

/// Handles the part of a request that one table translates; `request` begins and ends inside of it.
fn init_range<M: Mmu>(
    table: Table<'_, M>,
    request: &Request,
    pass: &mut Pass<'_>,
) -> Result<(), OutOfTables> {
    let level = table.level();
    let size = M::GRANULE.level_size(level);
    let mut offset = 0;
    while offset < request.size {
        let rest = request.after(offset);
        let index = M::GRANULE.index(rest.va.get(), level);
        let in_entry = (size - (rest.va.get() & (size - 1))).min(rest.size);
        let leaf = M::GRANULE.has_leaf(level) && (level == LAST_LEVEL || !rest.page_mappings_only);
        let whole = leaf && in_entry == size && rest.pa().is_aligned(size);
        let entry = table.entry(index);
        offset += match entry {
            Entry::Leaf(old) if whole => init_cont(table, index, &rest, Some(old), pass),
            Entry::Leaf(old) => keep_block(&rest, in_entry, size, old),
            Entry::Invalid if whole => init_cont(table, index, &rest, None, pass),
            Entry::Invalid | Entry::Table(_) => {
                let child = match (entry, &*pass) {
                    (Entry::Table(frame), _) => Some(frame),
                    // Nothing below is live.
                    (_, Pass::Check) => None,
                    (_, Pass::Allocate(tables)) => {
                        let frame = tables.alloc_table(level + 1).ok_or(OutOfTables(rest.va))?;
                        // The zeroes must be visible before the entry that leads to them.
                        table.mmu().publish();
                        table.set_table(index, frame);
                        Some(frame)
                    }
                    _ => unreachable!("every table was added"),
                };
                if let Some(child) = child {
                    init_range(Table::new(table.mmu(), child), &Request { size: in_entry, ..rest }, pass)?;
                }
                in_entry
            }
        };
    }
    Ok(())
}

/// A request that covers only a part of a live block may only repeat what is there: a change would
/// have to split the block. Returns the bytes that were handled.
fn keep_block(rest: &Request, in_entry: u64, size: u64, old: PteValue) -> u64 {
    let begin = rest.va.get() & (size - 1);
    let same_frame = old.pa().get() + begin == rest.pa().get();
    let same_attributes =
        old.without(PteFlags::CONT).flags() == rest.pte.flags() && old.memory() == rest.pte.memory();
    assert!(
        same_frame && same_attributes,
        "mapping {} at {}: a part of a live block of {size:#x} bytes ({old:?}) would change",
        rest.pa(),
        rest.va,
    );
    in_entry
}

/// Handles the entry at `index`, wholly covered, together with its Contiguous group where that is
/// wholly covered too. Returns the bytes that were handled.
fn init_cont<M: Mmu>(
    table: Table<'_, M>,
    index: usize,
    rest: &Request,
    old: Option<PteValue>,
    pass: &mut Pass<'_>,
) -> u64 {
    let level = table.level();
    let size = M::GRANULE.level_size(level);
    let group = M::GRANULE.cont_entries(level);
    let group_size = group as u64 * size;
    let whole_group = rest.is_aligned(group_size) && rest.size >= group_size;
    let live_cont = old.is_some_and(|old| old.flags().contains(PteFlags::CONT));
    // The bit may be set where no entry of the group lives without it (IPGVGZ).
    let cont = live_cont
        || (group > 1
            && whole_group
            && !rest.page_mappings_only
            && (index..index + group).all(|i| table.entry(i) == Entry::Invalid));

    let count = if cont && whole_group { group } else { 1 };
    for i in 0..count {
        let part = rest.after(i as u64 * size);
        let mut new = part.pte;
        if cont {
            new = new.with(PteFlags::CONT);
        }
        assert!(
            !live_cont || whole_group || __ptep_get(Ptep::new(table, index + i)) == new,
            "mapping {} at {}: a part of a live Contiguous group would change",
            part.pa(),
            part.va,
        );
        init_pte(Ptep::new(table, index + i), &part, level, new, pass);
    }
    count as u64 * size
}

/// Handles one leaf entry.
fn init_pte<M: Mmu>(ptep: Ptep<'_, M>, part: &Request, level: u8, new: PteValue, pass: &mut Pass<'_>) {
    let old = __ptep_get(ptep);
    match pass {
        Pass::Check => assert!(
            !old.is_valid() || is_permission_change(old, new),
            "mapping {} at {}: the live entry {old:?} would become {new:?}",
            part.pa(),
            part.va,
        ),
        Pass::Allocate(_) => {}
        Pass::Write { permissions_changed } => {
            if old != new {
                __set_pte(ptep, new);
                **permissions_changed |= old.is_valid();
            }
        }
        Pass::Invalidate => ptep.mmu().invalidate(Tlbi::Page {
            va: part.va,
            // A global entry matches whatever the ASID.
            space: Space::All,
            // The tables above stay.
            last_level: true,
            granule: M::GRANULE,
            level: Some(level),
        }),
    }
}

/// Whether a live entry may become the other without break-before-make: the two differ in
/// permissions alone.
fn is_permission_change(old: PteValue, new: PteValue) -> bool {
    const PERMISSIONS: PteFlags = PteFlags::RDONLY.union(PteFlags::PXN).union(PteFlags::UXN);
    old.without(PERMISSIONS) == new.without(PERMISSIONS)
}
