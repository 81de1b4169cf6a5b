//! Every public call, on a page of an unfolded and of a folded block: what is folded afterwards, what the TLB is told, in
//! which order, what is owed when the call returns, and what is counted. On every kind of CPU.

mod common;

use std::ops::Range;

use arch::mmu::{Features, Hafdbs};
use arch::{PteFlags, PteValue};
use common::tlb::Event;
use common::{AF_DBM, CORTEX_A72, K4, Plain, World, flush};
use pleat_mm::PteGuard;
use pleat_mm::contpte::{Obstacle, refold, why_not_folded};
use pleat_mm::counters::{COUNTERS, Counter};
use pleat_mm::pte::{Pte, UserProt};
use pleat_mm::ptep::*;

type Guard = PteGuard<'static, 'static, &'static Plain<K4>>;

/// What is in two blocks, pages 0 to 31, before the call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Before {
    Empty,
    /// Young, clean, writable.
    Unfolded,
    /// Young, clean, writable.
    Folded,
    /// Old, clean, writable.
    OldUnfolded,
    OldFolded,
    /// Young, dirty, writable.
    DirtyUnfolded,
    DirtyFolded,
    /// Young, clean, only to be read.
    ReadUnfolded,
    ReadFolded,
}

/// Maintenance that is issued before the call returns.
#[derive(Clone, Debug)]
enum Step {
    /// Invalidated and completed.
    Flush(Range<usize>),
    /// Invalidated, not waited for.
    NoWait(Range<usize>),
    /// That of a fold or unfold: a flush, or nothing where the size may change in place.
    Convert(Range<usize>),
    /// The same, of a block of which a part is owed a flush already: at least that.
    ConvertOwing(Range<usize>, Range<usize>),
    /// The same, of a block of which a part changes with it: that is owed a flush where the size may change in place.
    ConvertPart(Range<usize>, Range<usize>),
    /// A flush of the first, or where the size may change in place, of the second; of nothing, none.
    FlushOr(Range<usize>, Range<usize>),
}
use Step::*;

struct Row {
    name: &'static str,
    before: Before,
    call: fn(&World<K4>, &mut Guard),
    /// Whether each of the two blocks is folded then.
    folded: [bool; 2],
    steps: Vec<Step>,
    owed: Range<usize>,
    counters: Vec<(Counter, u64)>,
}

macro_rules! rows {
    ($($name:literal: $before:ident, |$w:pat_param, $guard:pat_param| $call:expr =>
        [$first:literal, $second:literal], [$($step:expr),*], $owed:expr, [$($counter:ident $count:literal),*];)*) => {
        vec![$(Row {
            name: $name,
            before: Before::$before,
            call: |$w, $guard| { $call; },
            folded: [$first != 0, $second != 0],
            steps: vec![$($step),*],
            owed: $owed,
            counters: vec![$((Counter::$counter, $count)),*],
        }),*]
    };
}

const NOTHING: Range<usize> = 0..0;

/// Sets the entry of a page to what it is, by a getter and a setter, as a caller that knows nothing of blocks.
fn set_again(w: &World<K4>, guard: &mut Guard, page: usize) {
    let pte = ptep_get(guard, w.va(page));
    set_ptes(guard, w.va(page), pte, 1);
}

fn access(w: &World<K4>, guard: &mut Guard, page: usize, change: fn(PteValue) -> PteValue, changes: bool) {
    let request = change(ptep_get(guard, w.va(page)));
    assert_eq!(ptep_set_access_flags(guard, w.va(page), request), changes);
}

fn protect(w: &World<K4>, guard: &mut Guard, page: usize, nr: usize) {
    let pte = modify_prot_start(guard, w.va(page), nr);
    modify_prot_commit(guard, w.va(page), pte.with_prot(UserProt::Read), nr);
}

fn map(w: &World<K4>, guard: &mut Guard, page: usize, nr: usize) {
    let folio = w.folio(32);
    set_ptes(guard, w.va(page), w.pte(&folio, page, UserProt::ReadWrite), nr);
}

/// In columns: what is folded, the maintenance of the call, what it owes, what it counts.
#[rustfmt::skip]
fn rows() -> Vec<Row> {
    rows! {
        "ptep_get": Unfolded, |w, g| ptep_get(g, w.va(3)) => [0, 0], [], NOTHING, [];
        "ptep_get": Folded, |w, g| ptep_get(g, w.va(3)) => [1, 1], [], NOTHING, [];
        "ptep_get_lockless": Folded, |w, _| ptep_get_lockless(w.mm, w.va(3), &LocklessGuard::interrupts_masked()).unwrap() => [1, 1], [], NOTHING, [];
        "pte_batch_hint": Unfolded, |w, g| assert_eq!(pte_batch_hint(g, w.va(3)), 1) => [0, 0], [], NOTHING, [];
        "pte_batch_hint": Folded, |w, g| assert_eq!(pte_batch_hint(g, w.va(3)), 13) => [1, 1], [], NOTHING, [];
        "why_not_folded": Unfolded, |w, _| why_not_folded(w.mm, w.va(3)).unwrap_err() => [0, 0], [], NOTHING, [];

        "set_pte": Empty, |w, g| set_pte(g, 3, w.pte(&w.folio(1), 0, UserProt::Read)).unwrap() => [0, 0], [], NOTHING, [];
        "set_pte": Unfolded, |w, g| set_pte(g, 3, w.raw(3).mkold()).unwrap() => [0, 0], [], 3..4, [];
        "set_pte, the last of a block": Unfolded, |w, g| set_pte(g, 15, w.raw(15)).unwrap() => [0, 0], [], 15..16, [];
        "set_pte": Folded, |w, g| assert_eq!(set_pte(g, 3, w.raw(3)), Err(Folded { index: 3 })) => [1, 1], [], NOTHING, [SetPteOnFolded 1];

        "set_ptes": Empty, |w, g| map(w, g, 3, 1) => [0, 0], [], NOTHING, [];
        "set_ptes": Unfolded, |w, g| set_again(w, g, 3) => [0, 0], [], 3..4, [];
        "set_ptes": Folded, |w, g| set_again(w, g, 3) => [0, 1], [Convert(0..16)], 3..4, [UnfoldsBySet 1];
        "set_ptes, the last of a block": Unfolded, |w, g| set_again(w, g, 15) => [1, 0], [ConvertOwing(0..16, 15..16)], NOTHING, [Folds 1];
        "set_ptes, the last of a block": Folded, |w, g| set_again(w, g, 15) => [1, 1], [Convert(0..16), ConvertOwing(0..16, 15..16)], NOTHING, [UnfoldsBySet 1, Folds 1];
        "set_ptes to an entry that is not valid": Folded, |w, g| set_ptes(g, w.va(3), PteValue::NONE, 1) => [0, 1], [Convert(0..16)], 3..4, [UnfoldsBySet 1];
        "set_ptes of a block": Empty, |w, g| map(w, g, 0, 16) => [1, 0], [], NOTHING, [FoldedAtOnce 1];
        "set_ptes of two blocks": Empty, |w, g| map(w, g, 0, 32) => [1, 1], [], NOTHING, [FoldedAtOnce 2];
        "set_ptes of a part and a block": Empty, |w, g| map(w, g, 1, 31) => [0, 1], [], NOTHING, [FoldedAtOnce 1];
        "set_ptes of two parts": Empty, |w, g| map(w, g, 8, 16) => [0, 0], [], NOTHING, [];

        "ptep_clear": Unfolded, |w, g| ptep_clear(g, w.va(3)) => [0, 0], [], 3..4, [];
        "ptep_clear": Folded, |w, g| ptep_clear(g, w.va(3)) => [0, 1], [ConvertPart(0..16, 3..4)], NOTHING, [UnfoldsByClear 1];
        "ptep_clear": Empty, |w, g| ptep_clear(g, w.va(3)) => [0, 0], [], NOTHING, [];
        "ptep_get_and_clear": Unfolded, |w, g| ptep_get_and_clear(g, w.va(3)) => [0, 0], [], 3..4, [];
        "ptep_get_and_clear": Folded, |w, g| ptep_get_and_clear(g, w.va(3)) => [0, 1], [ConvertPart(0..16, 3..4)], NOTHING, [UnfoldsByClear 1];
        "clear_ptes": Unfolded, |w, g| clear_ptes(g, w.va(3), 20) => [0, 0], [], 3..23, [];
        "clear_ptes of a block": Folded, |w, g| clear_ptes(g, w.va(0), 16) => [0, 1], [], 0..16, [ClearedFolded 1];
        "clear_ptes, the end in a block": Folded, |w, g| clear_ptes(g, w.va(0), 17) => [0, 0], [ConvertPart(16..32, 16..17)], 0..16, [UnfoldsByClear 1, ClearedFolded 1];
        "get_and_clear_ptes of a block": Folded, |w, g| get_and_clear_ptes(g, w.va(16), 16) => [1, 0], [], 16..32, [ClearedFolded 1];
        "get_and_clear_ptes inside of a block": Folded, |w, g| get_and_clear_ptes(g, w.va(3), 5) => [0, 1], [ConvertPart(0..16, 3..8)], NOTHING, [UnfoldsByClear 1];
        "get_and_clear_ptes, both ends in blocks": Folded, |w, g| get_and_clear_ptes(g, w.va(8), 16) => [0, 0], [ConvertPart(0..16, 8..16), ConvertPart(16..32, 16..24)], NOTHING, [UnfoldsByClear 2];

        "wrprotect_ptes": Unfolded, |w, g| wrprotect_ptes(g, w.va(3), 1) => [0, 0], [], 3..4, [];
        "wrprotect_ptes": Folded, |w, g| wrprotect_ptes(g, w.va(3), 1) => [0, 1], [ConvertPart(0..16, 3..4)], NOTHING, [UnfoldsByWriteProtect 1];
        "wrprotect_ptes of a block": Folded, |w, g| wrprotect_ptes(g, w.va(0), 16) => [1, 1], [], 0..16, [];
        "wrprotect_ptes, both ends in blocks": Folded, |w, g| wrprotect_ptes(g, w.va(8), 16) => [0, 0], [ConvertPart(0..16, 8..16), ConvertPart(16..32, 16..24)], NOTHING, [UnfoldsByWriteProtect 2];
        "wrprotect_ptes of what is only read": ReadFolded, |w, g| wrprotect_ptes(g, w.va(0), 16) => [1, 1], [], NOTHING, [];
        "wrprotect_ptes of a part that is only read": ReadFolded, |w, g| wrprotect_ptes(g, w.va(3), 20) => [1, 1], [], NOTHING, [];

        "ptep_test_and_clear_young": Unfolded, |w, g| assert!(ptep_test_and_clear_young(g, w.va(3))) => [0, 0], [], NOTHING, [];
        "ptep_test_and_clear_young": Folded, |w, g| assert!(ptep_test_and_clear_young(g, w.va(3))) => [1, 1], [], NOTHING, [];
        "ptep_clear_flush_young": Unfolded, |w, g| assert!(ptep_clear_flush_young(g, w.va(3))) => [0, 0], [NoWait(3..4)], NOTHING, [];
        "ptep_clear_flush_young": Folded, |w, g| assert!(ptep_clear_flush_young(g, w.va(3))) => [1, 1], [NoWait(0..16)], NOTHING, [];
        "ptep_clear_flush_young of an old one": OldFolded, |w, g| assert!(!ptep_clear_flush_young(g, w.va(3))) => [1, 1], [], NOTHING, [];

        "clear_young_dirty_ptes, young": DirtyFolded, |w, g| clear_young_dirty_ptes(g, w.va(3), 1, YoungDirty::Young) => [1, 1], [], NOTHING, [];
        "clear_young_dirty_ptes, dirty": DirtyUnfolded, |w, g| clear_young_dirty_ptes(g, w.va(3), 20, YoungDirty::Dirty) => [0, 0], [], 3..23, [];
        "clear_young_dirty_ptes, dirty": DirtyFolded, |w, g| clear_young_dirty_ptes(g, w.va(3), 1, YoungDirty::Dirty) => [1, 1], [], 0..16, [];
        "clear_young_dirty_ptes, both": DirtyFolded, |w, g| clear_young_dirty_ptes(g, w.va(15), 2, YoungDirty::Both) => [1, 1], [], 0..32, [];
        "clear_young_dirty_ptes of clean ones": Folded, |w, g| clear_young_dirty_ptes(g, w.va(3), 1, YoungDirty::Both) => [1, 1], [], NOTHING, [];

        "ptep_set_access_flags, satisfied": Folded, |w, g| access(w, g, 3, |pte| pte, false) => [1, 1], [], NOTHING, [];
        "ptep_set_access_flags, satisfied": DirtyUnfolded, |w, g| access(w, g, 3, PteValue::mkdirty, false) => [0, 0], [], NOTHING, [];
        "ptep_set_access_flags, young": OldUnfolded, |w, g| access(w, g, 3, PteValue::mkyoung, true) => [0, 0], [], NOTHING, [];
        "ptep_set_access_flags, young": OldFolded, |w, g| access(w, g, 3, PteValue::mkyoung, true) => [1, 1], [], NOTHING, [];
        "ptep_set_access_flags, old and dirty": OldFolded, |w, g| access(w, g, 3, |pte| pte.mkyoung().mkdirty(), true) => [1, 1], [], NOTHING, [];
        "ptep_set_access_flags, dirty": Unfolded, |w, g| access(w, g, 3, PteValue::mkdirty, true) => [0, 0], [Flush(3..4)], NOTHING, [];
        "ptep_set_access_flags, dirty": Folded, |w, g| access(w, g, 3, PteValue::mkdirty, true) => [1, 1], [Flush(0..16)], NOTHING, [];
        "ptep_set_access_flags, writable": ReadUnfolded, |w, g| access(w, g, 3, |pte| pte.mkwrite().mkdirty(), true) => [0, 0], [Flush(3..4)], NOTHING, [];
        "ptep_set_access_flags, writable": ReadFolded, |w, g| access(w, g, 3, |pte| pte.mkwrite().mkdirty(), true) => [0, 1], [Convert(0..16), FlushOr(NOTHING, 3..4)], NOTHING, [UnfoldsByAccessFlags 1];

        "modify_prot_start": Folded, |w, g| { let _ = modify_prot_start(g, w.va(0), 16); } => [0, 1], [], 0..16, [ClearedFolded 1];
        "modify_prot": Unfolded, |w, g| protect(w, g, 3, 1) => [0, 0], [Flush(3..4)], NOTHING, [];
        "modify_prot": Folded, |w, g| protect(w, g, 3, 1) => [0, 1], [Convert(0..16), FlushOr(NOTHING, 3..4)], NOTHING, [UnfoldsByClear 1];
        "modify_prot of a block": Unfolded, |w, g| protect(w, g, 0, 16) => [1, 0], [Flush(0..16)], NOTHING, [FoldedAtOnce 1];
        "modify_prot of a block": Folded, |w, g| protect(w, g, 0, 16) => [1, 1], [Flush(0..16)], NOTHING, [ClearedFolded 1, FoldedAtOnce 1];
        "modify_prot of a block and a part": Folded, |w, g| protect(w, g, 0, 18) => [1, 0], [Convert(16..32), FlushOr(0..16, 0..18)], NOTHING, [UnfoldsByClear 1, ClearedFolded 1, FoldedAtOnce 1];

        "refold": Unfolded, |w, g| assert_eq!(refold(g, w.va(3), 20), 2) => [1, 1], [Convert(0..16), Convert(16..32)], NOTHING, [Refolds 2];
        "refold": Folded, |w, g| assert_eq!(refold(g, w.va(0), 32), 0) => [1, 1], [], NOTHING, [];
        "refold": Empty, |w, g| assert_eq!(refold(g, w.va(0), 32), 0) => [0, 0], [], NOTHING, [];
    }
}

/// The address space as it is before the call, and its lock, with nothing recorded.
fn world(features: Features, before: Before) -> (World<K4>, Guard) {
    let w = World::<K4>::user(features);
    let folio = w.folio(32);
    let prot = if matches!(before, Before::ReadUnfolded | Before::ReadFolded) {
        UserProt::Read
    } else {
        UserProt::ReadWrite
    };
    let pte = |page| {
        let pte = w.pte(&folio, page, prot);
        match before {
            Before::OldUnfolded | Before::OldFolded => pte.mkold(),
            Before::DirtyUnfolded | Before::DirtyFolded => pte.mkdirty(),
            _ => pte,
        }
    };
    let mut guard = w.lock();
    match before {
        Before::Empty => {}
        Before::Folded | Before::OldFolded | Before::DirtyFolded | Before::ReadFolded => {
            set_ptes(&mut guard, w.va(0), pte(0), 32);
        }
        // From above, so that the last of a block comes first.
        Before::Unfolded | Before::OldUnfolded | Before::DirtyUnfolded | Before::ReadUnfolded => {
            (0..32).rev().for_each(|page| set_ptes(&mut guard, w.va(page), pte(page), 1));
        }
    }
    w.plain.tlb().events.clear();
    (w, guard)
}

fn expected(features: Features, steps: &[Step]) -> String {
    let words = steps.iter().map(|step| match step.clone() {
        Flush(pages) => flush(features, pages) + " complete",
        NoWait(pages) => flush(features, pages),
        Convert(_) | ConvertPart(..) if features.bbm_no_abort => "publish".to_owned(),
        Convert(pages) | ConvertPart(pages, _) => flush(features, pages) + " complete",
        FlushOr(pages, in_place) => {
            let pages = if features.bbm_no_abort { in_place } else { pages };
            if pages.is_empty() { String::new() } else { flush(features, pages) + " complete" }
        }
        ConvertOwing(_, owed) if features.bbm_no_abort => flush(features, owed) + " complete publish",
        ConvertOwing(pages, _) => flush(features, pages) + " complete",
    });
    words.filter(|words| !words.is_empty()).collect::<Vec<_>>().join(" ")
}

/// What is owed when the call returns.
fn owed(features: Features, row: &Row) -> Range<usize> {
    let parts = row.steps.iter().filter_map(|step| match step {
        ConvertPart(_, part) if features.bbm_no_abort => Some(part.clone()),
        _ => None,
    });
    let all = parts.chain([row.owed.clone()]).filter(|range| !range.is_empty());
    all.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(NOTHING)
}

/// What makes an entry invalid or other must be one step where hardware may set a flag in it; else it need not be.
fn check_stores(w: &World<K4>, features: Features) {
    for event in &w.plain.tlb().events {
        let Event::Store { index, old, atomic, .. } = *event else { continue };
        let has = |flags: PteFlags| old & flags.bits() == flags.bits();
        let may_be_set = has(PteFlags::VALID)
            && match features.hafdbs {
                Hafdbs::None => false,
                Hafdbs::Af => !has(PteFlags::AF),
                Hafdbs::AfDbm => !has(PteFlags::AF) || has(PteFlags::DBM | PteFlags::RDONLY),
            };
        assert_eq!(atomic, may_be_set, "the store to entry {index}, which was {old:#x}");
    }
}

#[test]
fn every_call_folds_and_maintains_as_the_table_says() {
    for hafdbs in [Hafdbs::None, Hafdbs::Af, Hafdbs::AfDbm] {
        for (tlb_range, bbm_no_abort) in [(false, false), (true, false), (false, true), (true, true)] {
            let features = Features { tlb_range, hafdbs, bbm_no_abort };
            for row in rows() {
                check_row(features, &row);
            }
        }
    }
}

fn check_row(features: Features, row: &Row) {
    let name = format!("{} of {:?} on {features:?}", row.name, row.before);
    let (w, mut guard) = world(features, row.before);
    let counts =
        || COUNTERS.iter().map(|&counter| (counter, w.mm.counters().get(counter))).collect::<Vec<_>>();
    let before = counts();
    (row.call)(&w, &mut guard);

    assert_eq!([w.folded(0..16), w.folded(16..32)], row.folded, "{name}: what is folded");
    // Who sets a live entry says what its flags are to be.
    if !row.name.starts_with("set_pte") {
        check_stores(&w, features);
    }
    assert_eq!(w.maintenance(), expected(features, &row.steps), "{name}: during the call");
    drop(guard);
    let owed = owed(features, row);
    assert_eq!(w.maintenance(), expected(features, &[FlushOr(owed.clone(), owed)]), "{name}: owed");
    let violations = w.plain.tlb().violations();
    assert!(violations.is_empty(), "{name}: {violations:#?}");

    for ((counter, before), (_, after)) in before.into_iter().zip(counts()) {
        let of_row = row.counters.iter().find(|(other, _)| *other == counter).map_or(0, |&(_, count)| count);
        let count = if counter == Counter::TlbInvalidations {
            w.plain.invalidations.load(std::sync::atomic::Ordering::Relaxed)
        } else {
            of_row
        };
        assert_eq!(after - before, count, "{name}: {counter:?}");
    }
    assert_eq!(
        w.mm.counters().blocks_folded(),
        row.folded.iter().filter(|&&folded| folded).count() as u64,
        "{name}"
    );
}

/// The kernel's entries are published once a batch, and its blocks neither made nor taken apart. Only where there might
/// be one to make is the gate asked.
#[test]
fn the_kernels_entries_are_published_and_never_folded() {
    for features in [CORTEX_A72, AF_DBM] {
        let w = World::<K4>::kernel(features);
        let folio = w.folio(32);
        let pte = PteValue::leaf(
            folio.head().addr(w.mm.granule()),
            arch::MemoryType::Normal,
            PteFlags::AF | PteFlags::PXN | PteFlags::UXN | PteFlags::INNER_SHAREABLE,
        );
        let refused = || w.mm.counters().get(Counter::RefusedByGate);
        let mut guard = w.lock();
        w.maintenance();
        set_ptes(&mut guard, w.va(0), pte, 15);
        assert_eq!((w.maintenance().as_str(), refused()), ("publish", 0));
        set_ptes(&mut guard, w.va(15), pte.advance(15 * 0x1000), 1);
        assert_eq!((w.maintenance().as_str(), refused()), ("publish", 1), "the last of a block");
        set_ptes(&mut guard, w.va(16), pte.advance(16 * 0x1000), 16);
        assert_eq!((w.maintenance().as_str(), refused()), ("publish", 2));
        assert!(!w.folded(0..32));
        assert_eq!(refold(&mut guard, w.va(0), 32), 0);
        // Neither where the place is the last of a block and the frame is not, nor where the frame is and the place not.
        set_ptes(&mut guard, w.va(47), pte, 1);
        set_ptes(&mut guard, w.va(40), pte.advance(15 * 0x1000), 1);
        assert_eq!(w.maintenance(), "publish publish");
        assert_eq!(refused(), 4);
        clear_ptes(&mut guard, w.va(3), 1);
        assert_eq!((w.maintenance().as_str(), refused()), ("", 4));
        drop(guard);
        assert_eq!(w.maintenance(), flush(features, 3..4) + " complete");
        let violations = w.plain.tlb().violations();
        assert!(violations.is_empty(), "{violations:#?}");
    }
}

/// What a live entry can't become without break-before-make is refused, and nothing is stored.
#[test]
fn a_live_entry_keeps_its_frame_and_type() {
    type Change = fn(PteValue) -> PteValue;
    let changes: [(&str, Change); 4] = [
        ("another frame", |pte| pte.advance(0x1000)),
        ("global", |pte| pte.without(PteFlags::NG)),
        ("another shareability", |pte| pte.without(PteFlags::INNER_SHAREABLE)),
        ("another memory type", |pte| {
            PteValue::leaf(pte.pa(), arch::MemoryType::NonCacheable, pte.flags() - PteFlags::CONT)
        }),
    ];
    for (name, change) in changes {
        let w = World::<K4>::default();
        w.map(0, 4, UserProt::ReadWrite);
        let before = w.raw(2);
        let set = || set_ptes(&mut w.lock(), w.va(2), change(before), 1);
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(set)).expect_err(name);
        let message = panic.downcast_ref::<String>().unwrap();
        assert!(message.contains("the live entry") && message.contains("0x4000002000"), "{name}: {message}");
        assert_eq!(w.raw(2), before, "{name}");
    }
}

/// Asking for the folio of a free frame panics; so nobody asks but where the last page of a block is set.
#[test]
fn one_page_costs_no_look_up_of_its_folio() {
    let w = World::<K4>::default();
    let folio = w.frames.alloc(4).unwrap();
    let pte = |page| w.pte(&folio, page, UserProt::ReadWrite);
    let ptes: Vec<_> = (0..16).map(pte).collect();
    drop(folio);
    let mut guard = w.lock();
    for (page, &pte) in ptes[..15].iter().enumerate() {
        set_ptes(&mut guard, w.va(page), pte, 1);
        ptep_clear(&mut guard, w.va(page));
        set_ptes(&mut guard, w.va(page), pte, 1);
        // Its place is the last, its frame is not.
        set_ptes(&mut guard, w.va(31), pte, 1);
        ptep_clear(&mut guard, w.va(31));
    }
    drop(guard);
    let last = || set_ptes(&mut w.lock(), w.va(15), ptes[15], 1);
    let panic =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(last)).expect_err("the last page of a block");
    assert!(panic.downcast_ref::<String>().unwrap().contains("used while"));
}

/// Frames without a folio, by the entry's own word or the frame map's: never folded.
#[test]
fn what_has_no_folio_is_not_folded() {
    let w = World::<K4>::default();
    let folio = w.folio(32);
    let special = w.pte(&folio, 0, UserProt::ReadWrite).mkspecial();
    // A device, at an address of no RAM.
    let device = PteValue::new_user(arch::PhysAddr::new(0x10_0000), UserProt::ReadWrite);
    for (start, pte) in [(0, special), (64, device)] {
        let mut guard = w.lock();
        set_ptes(&mut guard, w.va(start), pte, 16);
        for page in 0..16 {
            let pte = pte.advance((16 + page as u64) * 0x1000);
            set_ptes(&mut guard, w.va(start + 16 + page), pte, 1);
        }
        assert_eq!(refold(&mut guard, w.va(start), 32), 0);
        assert!(!w.folded(start..start + 32));
        for first in [start, start + 16] {
            assert_eq!(why_not_folded(w.mm, w.va(first)), Err(Obstacle::Special(w.va(first))));
        }
    }
    assert_eq!(w.maintenance(), "publish publish publish publish publish publish publish", "of new tables");
}

/// Without the lock, the frame of an entry may have been freed since the entry was read.
#[test]
fn why_not_folded_survives_a_race_with_a_free() {
    let w = World::<K4>::default();
    let folio = w.frames.alloc(4).unwrap();
    let pte = w.pte(&folio, 0, UserProt::ReadWrite);
    for page in (0..16).rev() {
        set_ptes(&mut w.lock(), w.va(page), pte.advance(page as u64 * 0x1000), 1);
    }
    assert_eq!(why_not_folded(w.mm, w.va(3)), Err(Obstacle::None));
    drop(folio);
    assert_eq!(why_not_folded(w.mm, w.va(3)), Err(Obstacle::Special(w.va(0))));
}

/// Of several entries the first is returned as it was, if it is not valid: what a swap entry says is its owner's.
#[test]
fn flags_are_not_gathered_into_an_invalid_entry() {
    let w = World::<K4>::user(AF_DBM);
    w.map(0, 4, UserProt::ReadWrite);
    let swap = 0xdead_b000;
    w.plain.hardware_sets(0, |_| swap);
    let mut guard = w.lock();
    assert_eq!(get_and_clear_ptes(&mut guard, w.va(0), 4).raw(), swap);
    drop(guard);
    assert_eq!(w.maintenance(), flush(AF_DBM, 0..4) + " complete", "owed for those after it");
    assert_eq!(get_and_clear_ptes(&mut w.lock(), w.va(0), 4), PteValue::NONE);
}

#[test]
#[should_panic(expected = "0x4000000000: 2 entries set to PteValue(0x0), which is not valid")]
fn several_entries_are_set_to_valid_ones() {
    let w = World::<K4>::default();
    set_ptes(&mut w.lock(), w.va(0), PteValue::NONE, 2);
}

#[test]
#[should_panic(expected = "0x4000003000: access flags of an invalid entry")]
fn access_flags_are_of_a_valid_entry() {
    let w = World::<K4>::default();
    let request = w.pte(&w.folio(1), 0, UserProt::ReadWrite);
    ptep_set_access_flags(&mut w.lock(), w.va(3), request);
}

/// Pages apart from each other are flushed apart where each takes an operation, and as one range where that takes one; of
/// more than a few ranges some are flushed early, and nothing twice.
#[test]
fn what_lies_between_is_not_flushed_page_by_page() {
    for features in [CORTEX_A72, AF_DBM] {
        let w = World::<K4>::user(features);
        let folio = w.folio(512);
        let mut guard = w.lock();
        (0..200)
            .rev()
            .for_each(|page| set_ptes(&mut guard, w.va(page), w.pte(&folio, page, UserProt::Read), 1));
        w.maintenance();
        let pages = |pages: &[Range<usize>]| {
            let words: Vec<_> =
                pages.iter().map(|pages| format!("pages({}..{})", pages.start, pages.end)).collect();
            format!("publish {} complete", words.join(" "))
        };
        for start in [0, 20, 21, 60] {
            ptep_clear(&mut guard, w.va(start));
        }
        clear_ptes(&mut guard, w.va(61), 3);
        assert_eq!(w.maintenance(), "");
        // Another page than these becomes valid: where each range is known, none need be flushed.
        set_ptes(&mut guard, w.va(30), w.pte(&folio, 30, UserProt::Read), 1);
        if features.tlb_range {
            assert_eq!(w.maintenance(), flush(features, 0..64) + " complete");
            continue;
        }
        guard.flush();
        assert_eq!(w.maintenance(), pages(&[0..1, 20..22, 60..64, 30..31]));
        for page in (100..110).step_by(2) {
            ptep_clear(&mut guard, w.va(page));
        }
        let first: Vec<_> = (100..108).step_by(2).map(|page| page..page + 1).collect();
        assert_eq!(w.maintenance(), pages(&first), "when it was full");
        drop(guard);
        assert_eq!(w.maintenance(), flush(features, 108..109) + " complete");
    }
}

/// Pages 0, 20 and 40 are owed a flush, each apart from the others.
fn three_are_owed(w: &World<K4>) -> Guard {
    let folio = w.folio(64);
    let mut guard = w.lock();
    for page in (0..64).rev() {
        set_ptes(&mut guard, w.va(page), w.pte(&folio, page, UserProt::ReadWrite), 1);
    }
    w.maintenance();
    for page in [0, 20, 40] {
        ptep_clear(&mut guard, w.va(page));
    }
    assert_eq!(w.maintenance(), "");
    guard
}

/// Whichever of them it is that becomes valid again.
#[test]
fn every_range_that_is_owed_is_remembered() {
    for page in [0, 20, 40] {
        let w = World::<K4>::user(CORTEX_A72);
        let mut guard = three_are_owed(&w);
        set_ptes(&mut guard, w.va(page), w.pte(&w.folio(1), 0, UserProt::ReadWrite), 1);
        assert_eq!(
            w.maintenance(),
            "publish pages(0..1) pages(20..21) pages(40..41) complete",
            "page {page}"
        );
        drop(guard);
        assert_eq!(w.maintenance(), "");
        w.check();
    }
}

/// The pages beside those that are owed are not waited for.
#[test]
fn what_is_beside_becomes_valid_without_a_flush() {
    let w = World::<K4>::user(CORTEX_A72);
    let folio = w.folio(64);
    let mut guard = w.lock();
    set_ptes(&mut guard, w.va(20), w.pte(&folio, 20, UserProt::Read), 3);
    clear_ptes(&mut guard, w.va(20), 3);
    w.maintenance();
    for page in [19, 23] {
        set_ptes(&mut guard, w.va(page), w.pte(&folio, page, UserProt::Read), 1);
        assert_eq!(w.maintenance(), "", "page {page}");
    }
    for page in [20, 22] {
        set_ptes(&mut guard, w.va(page), w.pte(&folio, page, UserProt::Read), 1);
        let expected = if page == 20 { "publish pages(20..23) complete" } else { "" };
        assert_eq!(w.maintenance(), expected, "page {page}");
    }
}

/// A conversion flushes its block with what is owed of it; what is owed elsewhere is not forgotten.
#[test]
fn a_conversion_forgets_nothing_that_is_owed_elsewhere() {
    let w = World::<K4>::user(CORTEX_A72);
    let mut guard = three_are_owed(&w);
    set_again(&w, &mut guard, 50);
    assert_eq!(w.maintenance(), "");
    assert_eq!(refold(&mut guard, w.va(48), 16), 1);
    let all = "publish pages(0..1) pages(20..21) pages(40..41) pages(48..64) complete";
    assert_eq!(w.maintenance(), all);
    drop(guard);
    assert_eq!(w.maintenance(), "");
    w.check();
}

/// From 512 pages on, in however many ranges, one operation for the address space, if each page takes one.
#[test]
fn many_pages_are_invalidated_by_asid() {
    for features in [CORTEX_A72, AF_DBM] {
        let w = World::<common::K64>::user(features);
        let special = w.pte(&w.folio(1), 0, UserProt::Read).mkspecial();
        let mut guard = w.lock();
        w.maintenance();
        set_ptes(&mut guard, w.va(0), special, 1024);
        clear_ptes(&mut guard, w.va(0), 511);
        guard.flush();
        let by_asid = || "publish ASIDE1IS ASID 2 complete";
        assert!(w.maintenance() != by_asid(), "511 pages");
        clear_ptes(&mut guard, w.va(512), 300);
        clear_ptes(&mut guard, w.va(900), 124);
        set_ptes(&mut guard, w.va(0), special, 511);
        clear_ptes(&mut guard, w.va(0), 88);
        guard.flush();
        let expected =
            if features.tlb_range { flush(features, 0..1024) + " complete" } else { by_asid().to_owned() };
        assert_eq!(w.maintenance(), expected, "512 pages in three ranges");
    }
}
