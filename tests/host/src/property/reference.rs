//! What is meant: for each page its frame and permission, and what is known of its use.

use std::collections::BTreeMap;

use arch::features::Hafdbs;
use arch::{Granule, Pfn, PteValue};
use mm::pte::{Pte, UserProt};
use model::mmu;

/// What a page is meant to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Page {
    pub(super) pfn: Pfn,
    pub(super) prot: UserProt,
    pub(super) young: bool,
    pub(super) dirty: bool,
}

impl Page {
    /// What the model is told: translations that it may give. With `noticed`, writes to a clean page must be noticed.
    pub(super) fn spec(self, granule: Granule, noticed: bool) -> mmu::Page {
        const DBM: u64 = 1 << 51;
        let raw = PteValue::new_user(self.pfn.addr(granule), self.prot).raw();
        let writable = raw & DBM != 0;
        // A page without DBM and without AP[2] may be written to whatever is known.
        mmu::Page::from_descriptor(if writable && !noticed { raw & !DBM & !(1 << 7) } else { raw })
    }
}

/// Without the permission to write.
pub(super) fn read_only(prot: UserProt) -> UserProt {
    match prot {
        UserProt::Read | UserProt::ReadWrite => UserProt::Read,
        UserProt::ReadExecute | UserProt::ReadWriteExecute => UserProt::ReadExecute,
    }
}

pub(super) fn is_writable(prot: UserProt) -> bool {
    prot != read_only(prot)
}

/// The permission in an entry.
pub(super) fn prot_of(pte: PteValue) -> UserProt {
    let executable = !pte.flags().contains(arch::PteFlags::UXN);
    match (pte.is_writable(), executable) {
        (false, false) => UserProt::Read,
        (false, true) => UserProt::ReadExecute,
        (true, false) => UserProt::ReadWrite,
        (true, true) => UserProt::ReadWriteExecute,
    }
}

/// Young and dirty, that may be set beyond what is known: hardware was at work in the middle of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Slack {
    pub(super) young: bool,
    pub(super) dirty: bool,
}

/// The pages of an address space, by their number.
#[derive(Default)]
pub(super) struct Reference {
    pub(super) pages: BTreeMap<usize, Page>,
    /// Of the operation that is being judged.
    pub(super) slack: BTreeMap<usize, Slack>,
    /// Pages of which it may have lost young: software replaced the entry, by one that says what is to be.
    pub(super) may_lose_young: Vec<usize>,
}

impl Reference {
    pub(super) fn get(&self, page: usize) -> Option<Page> {
        self.pages.get(&page).copied()
    }

    pub(super) fn change(&mut self, range: std::ops::Range<usize>, change: impl Fn(&mut Page)) {
        self.pages.range_mut(range).for_each(|(_, page)| change(page));
    }

    /// Whether what is in the table is what is meant. Young and dirty that may be so or so are then known.
    pub(super) fn agree(&mut self, at: usize, found: Option<Page>, hafdbs: Hafdbs) -> Result<(), String> {
        let meant = self.get(at);
        let (Some(page), Some(there)) = (meant, found) else {
            return if meant == found { Ok(()) } else { Err(format!("is {found:?}, and not {meant:?}")) };
        };
        let slack = self.slack.get(&at).copied().unwrap_or_default();
        let lost = self.may_lose_young.contains(&at) && hafdbs != Hafdbs::None;
        let within = |must: bool, may: bool, is: bool| is == must || is && may;
        let young = within(page.young, slack.young, there.young) || lost;
        let dirty = within(page.dirty, slack.dirty, there.dirty);
        let same = (page.pfn, page.prot) == (there.pfn, there.prot);
        if !(young && dirty && same) {
            return Err(format!("is {there:?}, and not {page:?} with {slack:?}"));
        }
        self.pages.insert(at, there);
        Ok(())
    }
}
