//! What is around the MMU: frames with contents, tables that come and go, and allocations that fail when they are told to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use arch::{Mmu, Pfn, TableFrame};
use mm::frame::{Folio, FrameHooks};
use mm::{PhysMem, TableAlloc, UserTables};
use model::GranuleType;
use model::mmu::Machine;

/// What a frame holds that was just freed, or never written.
const POISON: u8 = 0x6b;

/// A page of memory: a byte everywhere, and others here and there.
struct Bytes {
    base: u8,
    others: BTreeMap<u64, u8>,
}

impl Bytes {
    fn of(base: u8) -> Self {
        Self { base, others: BTreeMap::new() }
    }

    fn write(&mut self, offset: u64, from: &[u8]) {
        for (at, &byte) in (offset..).zip(from) {
            if byte == self.base {
                self.others.remove(&at);
            } else {
                self.others.insert(at, byte);
            }
        }
    }
}

/// The memory of a machine.
pub struct Board<'m, G> {
    machine: &'m Machine<G>,
    pages: Mutex<BTreeMap<u64, Bytes>>,
    tables: Mutex<BTreeSet<u64>>,
    /// Allocations of folios and tables that were asked for.
    asked: AtomicU64,
    /// The one that fails.
    fails_at: AtomicU64,
    /// All after it fail too.
    for_good: AtomicBool,
    failed: AtomicU64,
}

impl<'m, G: GranuleType + Sync> Board<'m, G> {
    /// The memory of `machine`.
    pub fn new(machine: &'m Machine<G>) -> Self {
        Self {
            machine,
            pages: Mutex::default(),
            tables: Mutex::default(),
            asked: AtomicU64::new(0),
            fails_at: AtomicU64::new(u64::MAX),
            for_good: AtomicBool::new(false),
            failed: AtomicU64::new(0),
        }
    }

    /// Lets the allocation fail before which there are `after` more, and maybe all that follow.
    pub fn fail(&self, after: u64, for_good: bool) {
        self.fails_at.store(self.asked.load(Ordering::Relaxed) + after, Ordering::Relaxed);
        self.for_good.store(for_good, Ordering::Relaxed);
    }

    /// Lets none fail. Returns how many did since this was last called.
    pub fn fail_no_more(&self) -> u64 {
        self.fails_at.store(u64::MAX, Ordering::Relaxed);
        self.failed.swap(0, Ordering::Relaxed)
    }

    /// Whether an allocation has failed since [`Self::fail`].
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed) != 0
    }

    fn admits(&self) -> bool {
        let this = self.asked.fetch_add(1, Ordering::Relaxed);
        let at = self.fails_at.load(Ordering::Relaxed);
        let fails = this == at || this > at && self.for_good.load(Ordering::Relaxed);
        if fails {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        !fails
    }

    /// Tables that were not given back.
    pub fn live_tables(&self) -> usize {
        self.tables.lock().unwrap().len()
    }

    /// The contents of memory, with what a CPU has stored since they were last looked at.
    fn pages(&self) -> MutexGuard<'_, BTreeMap<u64, Bytes>> {
        let mut pages = self.pages.lock().unwrap();
        if let Some((pa, value)) = self.machine.take_written() {
            let frame = pages.entry(pa.pfn(G::GRANULE).get()).or_insert_with(|| Bytes::of(POISON));
            frame.write(pa.get() % G::GRANULE.page_size(), &value.to_le_bytes());
        }
        pages
    }

    /// Reads bytes of a frame.
    pub fn read_frame(&self, pfn: Pfn, offset: u64, into: &mut [u8]) {
        let pages = self.pages();
        let Some(bytes) = pages.get(&pfn.get()) else { return into.fill(POISON) };
        into.fill(bytes.base);
        for (&at, &byte) in bytes.others.range(offset..offset + into.len() as u64) {
            into[(at - offset) as usize] = byte;
        }
    }

    /// Writes bytes of a frame.
    pub fn write_frame(&self, pfn: Pfn, offset: u64, from: &[u8]) {
        let mut pages = self.pages();
        if from.len() as u64 == G::GRANULE.page_size() {
            let others =
                (0..).zip(from).filter(|(_, byte)| **byte != 0).map(|(at, &byte)| (at, byte)).collect();
            pages.insert(pfn.get(), Bytes { base: 0, others });
            return;
        }
        pages.entry(pfn.get()).or_insert_with(|| Bytes::of(POISON)).write(offset, from);
    }

    /// The parts of a range of a folio that are in one frame each: frame, offset in it, and where in the range.
    fn parts(folio: &Folio<'_>, offset: u64, len: usize) -> Vec<(Pfn, u64, std::ops::Range<usize>)> {
        let page = G::GRANULE.page_size();
        assert!(offset + len as u64 <= folio.frames() * page, "a range outside of {folio:?}");
        let mut parts = Vec::new();
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let nr = ((page - at % page) as usize).min(len - done);
            parts.push((folio.head().add(at / page), at % page, done..done + nr));
            done += nr;
        }
        parts
    }
}

impl<G: GranuleType + Sync> FrameHooks for Board<'_, G> {
    fn admit(&self, _: u8) -> bool {
        self.admits()
    }

    fn on_free(&self, frame: Pfn) {
        self.pages().remove(&frame.get());
        self.machine.free_frame(frame.addr(G::GRANULE));
    }

    fn on_reuse(&self, frame: Pfn) {
        self.machine.alloc_frame(frame.addr(G::GRANULE));
    }
}

impl<G: GranuleType + Sync> PhysMem for Board<'_, G> {
    fn clear(&self, folio: &Folio<'_>) {
        let mut pages = self.pages();
        for frame in 0..folio.frames() {
            pages.insert(folio.head().get() + frame, Bytes::of(0));
        }
    }

    fn copy(&self, from: (&Folio<'_>, u64), to: (&Folio<'_>, u64), bytes: u64) {
        let page = G::GRANULE.page_size();
        assert!([from.1, to.1, bytes].iter().all(|n| n.is_multiple_of(page)), "not whole pages");
        for (folio, offset) in [from, to] {
            assert!(offset + bytes <= folio.frames() * page, "a range outside of {folio:?}");
        }
        let mut pages = self.pages();
        for at in 0..bytes / page {
            let frame = |(folio, offset): (&Folio<'_>, u64)| folio.head().get() + offset / page + at;
            let source = pages.get(&frame(from)).expect("nobody copies what was never written");
            let copy = Bytes { base: source.base, others: source.others.clone() };
            pages.insert(frame(to), copy);
        }
    }

    fn read(&self, folio: &Folio<'_>, offset: u64, into: &mut [u8]) {
        for (pfn, at, range) in Self::parts(folio, offset, into.len()) {
            self.read_frame(pfn, at, &mut into[range]);
        }
    }

    fn write(&self, folio: &Folio<'_>, offset: u64, from: &[u8]) {
        for (pfn, at, range) in Self::parts(folio, offset, from.len()) {
            self.write_frame(pfn, at, &from[range]);
        }
    }
}

impl<G: GranuleType + Sync> TableAlloc for Board<'_, G> {
    fn alloc_table(&self, level: u8) -> Option<TableFrame> {
        if !self.admits() {
            return None;
        }
        let table = self.machine.running().alloc_table(level).expect("the model has tables enough");
        self.tables.lock().unwrap().insert(table.pa().get());
        Some(table)
    }
}

impl<G: GranuleType + Sync> UserTables for Board<'_, G> {
    fn free_table(&self, table: TableFrame) {
        assert!(self.tables.lock().unwrap().remove(&table.pa().get()), "{table:?} is freed twice");
        self.machine.free_table(table);
    }
}

impl<G: GranuleType + Sync> Board<'_, G> {
    /// A root table, which every walker sees empty.
    pub fn new_root(&self) -> Option<TableFrame> {
        let root = self.alloc_table(G::GRANULE.start_level(mm::VA_BITS))?;
        self.machine.publish();
        Some(root)
    }
}
