// What a TLB may hold of one last-level table, and what is wrong with that.
//
// For every entry, each translation that a walk may have made of it and that no completed invalidation has removed. A walk
// may come at any time (RSQBCS), until the store that removed the entry is certainly visible: after the next `publish`. A
// Contiguous entry may be held as one of its group (RSKQHL): a translation of the whole block, from which an invalidation of
// one page takes that page alone (RLQLSD). An invalidation removes what was there when it was issued, once it is completed.

use arch::granule::LAST_LEVEL;
use arch::mmu::{Features, Hafdbs};
use arch::tlbi::{Space, Tlbi};
use arch::{Granule, PteFlags};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    Store { index: usize, old: u64, new: u64, atomic: bool },
    Publish,
    Invalidate(Tlbi),
    InvalidateLocal(Tlbi),
    Complete,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Walks {
    /// The entry is in memory.
    Possible,
    /// The entry was replaced, and a walker may still see it.
    UntilPublish,
    Over,
}

struct Translation {
    raw: u64,
    /// The pages of the block that it translates, a bit each.
    pages: u128,
    /// Those that an invalidation takes from it when it is completed.
    doomed: u128,
    walks: Walks,
}

pub struct Tlb {
    granule: Granule,
    features: Features,
    space: Space,
    /// The last-level table.
    pub table: Option<u64>,
    /// What is in it.
    memory: Vec<u64>,
    /// Whether it was hardware, of whatever agent, that last wrote an entry.
    dirty_by_hardware: Vec<bool>,
    /// What was made of each entry.
    translations: Vec<Vec<Translation>>,
    /// Whether a permission to write may come late. Where the access flag was cleared without a flush and set again with
    /// that permission, `ptep_set_access_flags` owes nothing: the fault is spurious then, and its handler invalidates.
    pub spurious_faults: bool,
    pub events: Vec<Event>,
    violations: Vec<String>,
}

const PERMISSIONS: PteFlags =
    PteFlags::USER.union(PteFlags::RDONLY).union(PteFlags::DBM).union(PteFlags::PXN).union(PteFlags::UXN);
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

fn has(raw: u64, flags: PteFlags) -> bool {
    raw & flags.bits() == flags.bits()
}

impl Tlb {
    pub fn new(granule: Granule, features: Features, space: Space) -> Self {
        let entries = granule.entries();
        Self {
            granule,
            features,
            space,
            table: None,
            memory: vec![0; entries],
            dirty_by_hardware: vec![false; entries],
            translations: (0..entries).map(|_| Vec::new()).collect(),
            spurious_faults: false,
            events: Vec::new(),
            violations: Vec::new(),
        }
    }

    fn group(&self) -> usize {
        self.granule.cont_entries(LAST_LEVEL)
    }

    /// The pages that an entry translates: their indices.
    fn reach(&self, index: usize, raw: u64) -> std::ops::Range<usize> {
        let start = index - index % self.group();
        if has(raw, PteFlags::CONT) { start..start + self.group() } else { index..index + 1 }
    }

    pub fn observe(&mut self, event: Event) {
        self.events.push(event);
        match event {
            Event::Store { index, new, .. } => self.store(index, new),
            Event::Publish => self.all(|translation| {
                if translation.walks == Walks::UntilPublish {
                    translation.walks = Walks::Over;
                }
            }),
            Event::Invalidate(operation) => self.invalidate(operation),
            // Other CPUs still hold everything.
            Event::InvalidateLocal(_) => {}
            Event::Complete => {
                self.all(|translation| translation.pages &= !std::mem::take(&mut translation.doomed));
                self.translations.iter_mut().for_each(|of_entry| of_entry.retain(|held| held.pages != 0));
            }
        }
    }

    fn all(&mut self, mut change: impl FnMut(&mut Translation)) {
        self.translations.iter_mut().flatten().for_each(&mut change);
    }

    /// Access flag or dirty state.
    pub fn hardware_set(&mut self, index: usize, new: u64) {
        self.replace(index, new);
        self.dirty_by_hardware[index] = true;
        self.fill(index);
    }

    fn replace(&mut self, index: usize, new: u64) {
        self.memory[index] = new;
        for held in &mut self.translations[index] {
            if held.walks == Walks::Possible && held.raw != new {
                held.walks = Walks::UntilPublish;
            }
        }
    }

    fn store(&mut self, index: usize, new: u64) {
        self.replace(index, new);
        self.dirty_by_hardware[index] = false;
        if has(new, PteFlags::VALID) {
            self.check_group(index);
            self.check_conflicts(index, new);
        }
        self.fill(index);
    }

    /// A walk reads an entry.
    fn fill(&mut self, index: usize) {
        let raw = self.memory[index];
        // An entry without the access flag faults, and is not held (RXCLRD).
        if !has(raw, PteFlags::VALID | PteFlags::AF) {
            return;
        }
        let start = index - index % self.group();
        let pages = self.reach(index, raw).fold(0, |pages, page| pages | 1 << (page - start));
        self.translations[index].retain(|held| held.raw != raw);
        self.translations[index].push(Translation { raw, pages, doomed: 0, walks: Walks::Possible });
    }

    /// Valid entries of a group must agree in the Contiguous bit, and with it in all but access flag and permissions, which
    /// change one after the other (RQTRPM, IPGVGZ, RJQQTC).
    fn check_group(&mut self, index: usize) {
        let start = index - index % self.group();
        let raw = self.memory[index];
        for other_index in start..start + self.group() {
            let other = self.memory[other_index];
            if !has(other, PteFlags::VALID) {
                continue;
            }
            let cont = has(raw, PteFlags::CONT);
            if has(other, PteFlags::CONT) != cont {
                self.violation(format!("entries {index} and {other_index} differ in the Contiguous bit"));
            } else if cont && self.address_at(index, raw, other_index) != other & ADDRESS {
                self.violation(format!("Contiguous entries {index} and {other_index} are not in sequence"));
            }
        }
    }

    /// Between an entry and another frame or size for the same page there is a completed flush (RWHZWS).
    fn check_conflicts(&mut self, index: usize, new: u64) {
        let start = index - index % self.group();
        let mut found = Vec::new();
        for source in start..start + self.group() {
            for held in self.translations[source].iter().filter(|held| held.walks != Walks::Possible) {
                for page in self.reach(index, new).filter(|page| held.pages >> (page - start) & 1 != 0) {
                    let size_differs = has(held.raw, PteFlags::CONT) != has(new, PteFlags::CONT);
                    if self.address_at(source, held.raw, page) != self.address_at(index, new, page) {
                        found.push(format!("entry {index}: page {page} is still held with another frame"));
                    } else if size_differs && !self.features.bbm_no_abort {
                        found.push(format!("entry {index}: page {page} is still held in another size"));
                    }
                }
            }
        }
        found.into_iter().for_each(|what| self.violation(what));
    }

    /// The frame of a page by what was made of the entry of another of its group.
    fn address_at(&self, index: usize, raw: u64, page: usize) -> u64 {
        let offset = (page as i64 - index as i64) * self.granule.page_size() as i64;
        (raw & ADDRESS).wrapping_add_signed(offset)
    }

    /// The indices of the pages that an operation names, if it can be meant for this table.
    fn named(&mut self, operation: Tlbi) -> std::ops::Range<usize> {
        let (va, pages, space, granule, level) = match operation {
            Tlbi::All => return 0..self.memory.len(),
            Tlbi::Asid(asid) => {
                let mine = self.space == Space::Asid(asid);
                return if mine { 0..self.memory.len() } else { 0..0 };
            }
            Tlbi::Page { va, space, granule, level, .. } => (va, 1, space, granule, level),
            Tlbi::Range { start, size, space, granule, level, .. } => {
                if !self.features.tlb_range {
                    self.violation(format!("{operation} on a CPU without range operations"));
                }
                (start, size.pages(), space, granule, level)
            }
        };
        // A wrong hint may invalidate nothing (RSQXYZ, RXKMMX).
        if !matches!(level, None | Some(LAST_LEVEL)) || granule != self.granule || space != self.space {
            self.violation(format!("{operation} need not invalidate a page"));
            return 0..0;
        }
        let first = self.granule.index(va.get(), LAST_LEVEL);
        first..first + pages as usize
    }

    fn invalidate(&mut self, operation: Tlbi) {
        let (named, group) = (self.named(operation), self.group());
        for page in named {
            let start = page - page % group;
            for held in self.translations[start..start + group].iter_mut().flatten() {
                // What a walk may still find comes back after the invalidation.
                if held.walks == Walks::Over {
                    held.doomed |= 1 << (page - start);
                }
            }
        }
    }

    fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    /// The violations so far, and what is held now and differs from memory: no more than an access flag, or a dirty state
    /// that hardware sets by itself. To be asked when nothing is owed.
    pub fn violations(&mut self) -> Vec<String> {
        for source in 0..self.memory.len() {
            let start = source - source % self.group();
            for i in 0..self.translations[source].len() {
                let Translation { raw, pages, .. } = self.translations[source][i];
                for page in (start..start + self.group()).filter(|page| pages >> (page - start) & 1 != 0) {
                    if let Some(why) = self.stale(source, raw, page) {
                        self.violations.push(format!("page {page} is still held {why}"));
                    }
                }
            }
        }
        std::mem::take(&mut self.violations)
    }

    fn stale(&self, source: usize, held: u64, page: usize) -> Option<&'static str> {
        let mut now = self.memory[page];
        if !has(now, PteFlags::VALID) {
            return Some("though it is not mapped");
        }
        if self.address_at(source, held, page) != now & ADDRESS {
            return Some("with another frame");
        }
        if has(held, PteFlags::CONT) != has(now, PteFlags::CONT) && !self.features.bbm_no_abort {
            return Some("in another size");
        }
        // Dirty is of the block where it is folded, whichever entry says so (RLCGVS).
        let group = self.reach(page, now);
        if has(now, PteFlags::DBM) && self.memory[group].iter().any(|&raw| !has(raw, PteFlags::RDONLY)) {
            now &= !PteFlags::RDONLY.bits();
        }
        let mut held = held;
        let by_hardware =
            self.features.hafdbs == Hafdbs::AfDbm || self.dirty_by_hardware[page] || self.spurious_faults;
        if by_hardware && has(held, PteFlags::DBM) && !has(now, PteFlags::RDONLY) {
            // A write through it sets the dirty state, or faults in vain: nobody could have flushed it.
            held &= !PteFlags::RDONLY.bits();
        }
        ((held ^ now) & PERMISSIONS.bits() != 0).then_some("with other permissions")
    }

    /// Takes what was issued since it was last asked, without stores: pages and ranges by their indices, those that follow
    /// one another as one.
    pub fn take_maintenance(&mut self) -> String {
        let mut words: Vec<String> = Vec::new();
        let mut pages = 0..0;
        let events = std::mem::take(&mut self.events);
        for event in events.into_iter().filter(|event| !matches!(event, Event::Store { .. })) {
            let name = match event {
                Event::Invalidate(operation @ Tlbi::Page { .. }) => {
                    let page = self.named(operation);
                    pages = if page.start == pages.end && !pages.is_empty() {
                        words.pop();
                        pages.start..page.end
                    } else {
                        page
                    };
                    words.push(format!("pages({}..{})", pages.start, pages.end));
                    continue;
                }
                Event::Invalidate(operation @ Tlbi::Range { .. }) => {
                    let range = self.named(operation);
                    format!("range({}..{})", range.start, range.end)
                }
                Event::Invalidate(operation) => format!("{operation}"),
                Event::InvalidateLocal(operation) => format!("local {operation}"),
                Event::Publish => "publish".into(),
                Event::Complete => "complete".into(),
                Event::Store { .. } => unreachable!("filtered"),
            };
            pages = 0..0;
            words.push(name);
        }
        words.join(" ")
    }
}
