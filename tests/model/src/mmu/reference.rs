//! What the software that is judged means: for each page the translations that an access may see.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use arch::VirtAddr;
use arch::tlbi::Asid;

use super::bits::{self, ADDRESS, CONTIGUOUS, DBM, PXN, RDONLY, USER, UXN};

/// An address space of the specification: which half, and for the lower one which ASID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum AddressSpace {
    /// The lower half, for this ASID. Accesses may fault at any time: the fault handler tries again.
    User(Asid),
    /// The upper half. What is mapped must not fault.
    Kernel,
}

/// What a page may be translated to: a frame, its memory type, and at most these permissions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page(u64);

/// What is still to be asked of a translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Permitted,
    /// Permitted where the page is known to be dirty: a write by it is not noticed.
    IfDirty,
    /// Permitted where hardware finds no entry in memory by which it would make the page writable.
    IfNoDbm,
    Not(&'static str),
}

impl Page {
    /// What a leaf descriptor gives. Access flag, dirty state and Contiguous bit don't matter: a page that may be
    /// written to may be translated as clean or, if it is known to be dirty by now, as dirty.
    pub fn from_descriptor(raw: u64) -> Self {
        Self(bits::cached_part(raw) & !CONTIGUOUS)
    }

    /// The physical address of the frame.
    pub fn pa(self) -> u64 {
        self.0 & ADDRESS
    }

    pub(super) fn permits(self, value: u64) -> Verdict {
        let gained = |bit: u64| value & bit == 0 && self.0 & bit != 0;
        if (self.0 ^ value) & ADDRESS != 0 {
            return Verdict::Not("another frame");
        }
        if bits::memory_differs(self.0, value) {
            return Verdict::Not("another memory type");
        }
        if value & USER != 0 && self.0 & USER == 0 {
            return Verdict::Not("access by EL0");
        }
        if gained(UXN) || gained(PXN) {
            return Verdict::Not("permission to execute");
        }
        // A clean writable entry gives nothing by itself: hardware looks at the descriptor in memory.
        match (bits::writable(value), bits::writable(self.0), self.0 & DBM != 0) {
            (false, false, false) if value & DBM != 0 => Verdict::IfNoDbm,
            (false, ..) => Verdict::Permitted,
            (true, false, false) => Verdict::Not("permission to write"),
            (true, _, true) if value & DBM != 0 => Verdict::IfDirty,
            (true, true, false) => Verdict::Permitted,
            (true, _, true) => Verdict::Not("a write that is not noticed"),
        }
    }
}

impl core::fmt::Display for Page {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        describe(f, self.0)
    }
}

/// Writes frame and permissions of a cached value.
pub(super) fn describe(f: &mut core::fmt::Formatter<'_>, value: u64) -> core::fmt::Result {
    let write = match value & (RDONLY | DBM) {
        RDONLY => "-",
        0 | DBM => "w",
        _ => "c",
    };
    let user = if value & USER != 0 { "u" } else { "-" };
    let exec = if value & (UXN | PXN) != UXN | PXN { "x" } else { "-" };
    let cont = if value & CONTIGUOUS != 0 { " C" } else { "" };
    write!(f, "{:#x} {user}r{write}{exec}{cont} ({value:#x})", value & ADDRESS)
}

/// An operation of the specification, from its linearisation point to its completing DSB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Operation(pub(super) u64);

#[derive(Default)]
struct Cell {
    now: Option<Page>,
    /// What was before operations that have not ended.
    before: Vec<(Operation, Option<Page>)>,
}

#[derive(Default)]
pub(super) struct Reference {
    watched: BTreeSet<AddressSpace>,
    cells: BTreeMap<(AddressSpace, u64), Cell>,
    open: BTreeMap<Operation, Vec<(AddressSpace, u64)>>,
    next: u64,
}

impl Reference {
    /// From now on all pages of the space are judged; none is mapped.
    pub(super) fn watch(&mut self, space: AddressSpace) {
        self.watched.insert(space);
        self.cells.retain(|&(other, _), _| other != space);
    }

    pub(super) fn unwatch(&mut self, space: AddressSpace) {
        self.watched.remove(&space);
    }

    pub(super) fn is_watched(&self, space: AddressSpace) -> bool {
        self.watched.contains(&space)
    }

    pub(super) fn watched(&self) -> impl Iterator<Item = AddressSpace> + '_ {
        self.watched.iter().copied()
    }

    pub(super) fn begin(&mut self, space: AddressSpace, pages: &[(VirtAddr, Option<Page>)]) -> Operation {
        let operation = Operation(self.next);
        self.next += 1;
        for &(va, new) in pages {
            let cell = self.cells.entry((space, va.get())).or_default();
            cell.before.push((operation, cell.now));
            cell.now = new;
        }
        self.open.insert(operation, pages.iter().map(|(va, _)| (space, va.get())).collect());
        operation
    }

    /// Returns the pages of the operation.
    pub(super) fn end(&mut self, operation: Operation) -> Vec<(AddressSpace, u64)> {
        let pages = self.open.remove(&operation).expect("an operation that began, once");
        for key in &pages {
            // A space may have been watched anew meanwhile.
            let Some(cell) = self.cells.get_mut(key) else { continue };
            cell.before.retain(|(other, _)| *other != operation);
            if cell.now.is_none() && cell.before.is_empty() {
                self.cells.remove(key);
            }
        }
        pages
    }

    /// What a page may be.
    pub(super) fn allowed(&self, space: AddressSpace, va: u64) -> impl Iterator<Item = Option<Page>> + '_ {
        let cell = self.cells.get(&(space, va));
        let before = cell.into_iter().flat_map(|cell| cell.before.iter().map(|(_, page)| *page));
        before.chain([cell.and_then(|cell| cell.now)])
    }

    /// Pages in `first..=last` that may be mapped.
    pub(super) fn pages_within(&self, space: AddressSpace, first: u64, last: u64) -> Vec<u64> {
        self.cells.range((space, first)..=(space, last)).map(|(&(_, va), _)| va).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: AddressSpace = AddressSpace::User(Asid::new(3));
    const CLEAN: u64 = 0x1_0000 | USER | DBM | RDONLY | PXN | UXN;

    #[test]
    fn permissions_may_be_less_but_not_more() {
        let page = Page::from_descriptor(CLEAN);
        assert_eq!(page.permits(CLEAN | CONTIGUOUS), Verdict::Permitted);
        assert_eq!(page.permits(CLEAN & !DBM), Verdict::Permitted);
        assert_eq!(page.permits(CLEAN & !USER), Verdict::Permitted);
        assert_eq!(page.permits(CLEAN & !RDONLY), Verdict::IfDirty);
        for more in [CLEAN ^ 0x1000, CLEAN & !UXN, CLEAN & !PXN, CLEAN | 1 << 2, CLEAN & !RDONLY & !DBM] {
            assert!(matches!(page.permits(more), Verdict::Not(_)), "{more:#x}");
        }
        let read_only = Page::from_descriptor(CLEAN & !DBM);
        assert_eq!(read_only.permits(CLEAN), Verdict::IfNoDbm);
        assert!(matches!(read_only.permits(CLEAN & !RDONLY), Verdict::Not(_)));
        let writable = Page::from_descriptor(CLEAN & !DBM & !RDONLY);
        assert_eq!(writable.permits(CLEAN & !DBM & !RDONLY), Verdict::Permitted);
    }

    #[test]
    fn what_was_before_is_allowed_until_the_operation_ends() {
        let mut reference = Reference::default();
        reference.watch(SPACE);
        let page = Some(Page::from_descriptor(CLEAN));
        let at = VirtAddr::new(0x5000);
        let allowed = |r: &Reference| r.allowed(SPACE, 0x5000).collect::<Vec<_>>();
        let map = reference.begin(SPACE, &[(at, page)]);
        assert_eq!(allowed(&reference), [None, page]);
        let unmap = reference.begin(SPACE, &[(at, None)]);
        assert_eq!(allowed(&reference), [None, page, None]);
        reference.end(map);
        assert_eq!(allowed(&reference), [page, None]);
        reference.end(unmap);
        assert_eq!(allowed(&reference), [None]);
        assert!(reference.pages_within(SPACE, 0, !0).is_empty());
    }
}
