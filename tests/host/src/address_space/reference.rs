//! What is meant: for each page of each process what may be done with it, and what is in it.

use std::collections::BTreeMap;
use std::ops::Range;

use mm::Access;
use mm::mman::*;

/// What stands for the contents of a page: a number that is written in it. A page of zeroes has 0.
pub(super) type Token = u32;

/// What is behind a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The process's own; `free` where it may be zero again at any time.
    Anonymous { token: Token, free: bool },
    /// A page of a file, or its own copy.
    Private { file: usize, page: u64, copy: Option<Token> },
    /// A page of a file.
    File { file: usize, page: u64 },
    /// A page of shared anonymous memory.
    Shared { object: u64, page: u64 },
}

impl Kind {
    /// What is behind it at first, without what was written since.
    fn untouched(self) -> Self {
        match self {
            Self::Anonymous { .. } => Self::Anonymous { token: 0, free: false },
            Self::Private { file, page, .. } => Self::Private { file, page, copy: None },
            other => other,
        }
    }

    /// The same, `pages` further on.
    pub fn after_in_mapping(self, pages: u64) -> Self {
        match self.untouched() {
            Self::Private { file, page, copy } => Self::Private { file, page: page + pages, copy },
            Self::File { file, page } => Self::File { file, page: page + pages },
            Self::Shared { object, page } => Self::Shared { object, page: page + pages },
            anonymous => anonymous,
        }
    }

    pub fn is_private(self) -> bool {
        matches!(self, Self::Anonymous { .. } | Self::Private { .. })
    }
}

/// A page that is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page {
    pub prot: u64,
    pub kind: Kind,
}

impl Page {
    pub fn permits(self, access: Access) -> bool {
        match access {
            Access::Read => self.prot != 0,
            Access::Write => self.prot & PROT_WRITE != 0,
            Access::Execute => self.prot & PROT_EXEC != 0,
        }
    }

    /// Whether the page that follows is of the same mapping.
    fn continues(self, next: Self) -> bool {
        self.prot == next.prot && self.kind.after_in_mapping(1) == next.kind.untouched()
    }
}

/// The pages of a process, by the number of their address.
#[derive(Clone, Default)]
pub struct Reference {
    pub pages: BTreeMap<u64, Page>,
}

impl Reference {
    pub fn get(&self, page: u64) -> Option<Page> {
        self.pages.get(&page).copied()
    }

    /// Whether a page was advised to be free, and not written to since.
    pub fn is_free(&self, page: u64) -> bool {
        self.get(page).is_some_and(|page| matches!(page.kind, Kind::Anonymous { free: true, .. }))
    }

    pub fn unmap(&mut self, range: &Range<u64>) {
        range.clone().for_each(|page| _ = self.pages.remove(&page));
    }

    /// Whether a range is wholly in one mapping.
    pub fn is_one(&self, range: &Range<u64>) -> bool {
        let pages: Option<Vec<Page>> = range.clone().map(|page| self.get(page)).collect();
        pages.is_some_and(|pages| !pages.is_empty() && pages.windows(2).all(|two| two[0].continues(two[1])))
    }

    /// Whether the page before `at` and that at it are of one mapping.
    pub fn is_joined(&self, at: u64) -> bool {
        at.checked_sub(1)
            .and_then(|before| self.get(before))
            .zip(self.get(at))
            .is_some_and(|(before, page)| before.continues(page))
    }

    /// Changes pages until one is missing, or `change` refuses. Whether all were changed.
    pub fn change(&mut self, range: &Range<u64>, mut change: impl FnMut(&mut Page) -> bool) -> bool {
        range.clone().all(|page| self.pages.get_mut(&page).is_some_and(&mut change))
    }

    /// Moves pages that are one mapping to where nothing is, with more of the same behind them.
    pub fn move_pages(&mut self, from: &Range<u64>, to: u64, new_len: u64, keep: bool) {
        let first = self.pages[&from.start];
        for i in 0..new_len {
            let at = from.start + i;
            let old = if i < from.end - from.start { self.get(at) } else { None };
            let moved = old.unwrap_or(Page { kind: first.kind.after_in_mapping(i), ..first });
            self.pages.insert(to + i, moved);
            if old.is_some() {
                if keep {
                    self.pages.insert(at, Page { kind: moved.kind.untouched(), ..moved });
                } else {
                    self.pages.remove(&at);
                }
            }
        }
    }

    /// What private pages held is gone.
    pub fn forget(&mut self, range: &Range<u64>) {
        self.pages.range_mut(range.clone()).for_each(|(_, page)| page.kind = page.kind.untouched());
    }
}
