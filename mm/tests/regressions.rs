//! The fourteen faults of other kernels that this one must not repeat, in every granule: on a CPU that sets neither access
//! flags nor dirty states and invalidates page by page, like the Cortex-A72, and on one that sets both and invalidates
//! ranges.
//!
//! The machine judges every store by what a TLB may hold. Where another agent than the CPU sets a flag, think of an SMMU
//! that shares the tables. Each test says which change of the source makes it fail: tried by hand.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use arch::mmu::Hafdbs;
use arch::tlbi::{Form, Tlbi};
use arch::{Granule, MemoryType, PteFlags, PteValue};
use common::tlb::Event;
use common::{AF, AF_DBM, ASID, CORTEX_A72, GranuleType, K4, K16, K64, RDONLY, World, flush};
use pleat_mm::contpte::{Obstacle, refold, why_not_folded};
use pleat_mm::counters::{COUNTERS, Counter};
use pleat_mm::pte::{Pte, UserProt};
use pleat_mm::ptep::*;
use pleat_mm::{KernelProt, Mapping, create_pgd_mapping};

/// Runs the body with a `World` of each granule on each CPU.
macro_rules! on_every_machine {
    ($make:ident, |$world:ident| $body:block) => {
        for features in [CORTEX_A72, AF_DBM] {
            {
                let $world = &World::<K4>::$make(features);
                $body
            }
            {
                let $world = &World::<K16>::$make(features);
                $body
            }
            {
                let $world = &World::<K64>::$make(features);
                $body
            }
        }
    };
}

/// The gathered flags told that there was nothing to do, and the fault came for ever.
///
/// Fails if `ptep_set_access_flags` returns false where `merged(ptep_get(guard, va)) == ptep_get(guard, va)`.
#[test]
fn regression_01_access_flags_hidden_by_a_dirty_sibling() {
    on_every_machine!(user, |w| {
        let n = w.block();
        w.map(0, n, UserProt::ReadWrite);
        w.plain.hardware_sets(3, |raw| raw & !RDONLY);
        let mut guard = w.lock();
        let request = ptep_get(&guard, w.va(7)).mkyoung().mkdirty();
        assert!(ptep_set_access_flags(&mut guard, w.va(7), request), "a write fault was taken for spurious");
        assert!(!w.raw(7).flags().contains(PteFlags::RDONLY));
        assert!(!ptep_set_access_flags(&mut guard, w.va(7), request), "the same fault again");

        assert!(ptep_test_and_clear_young(&mut guard, w.va(0)));
        w.plain.hardware_sets(3, |raw| raw | AF);
        let request = ptep_get(&guard, w.va(7)).mkyoung();
        assert!(
            ptep_set_access_flags(&mut guard, w.va(7), request),
            "an access fault was taken for spurious"
        );
        assert!(w.raw(7).is_young());
        assert!(!ptep_set_access_flags(&mut guard, w.va(7), request), "the same fault again");
        drop(guard);
        assert!(w.folded(0..n));
        w.check();
    });
}

/// The end of the range was computed of bytes and pages, so that another block's flags were lost, or the own ones not
/// cleared.
///
/// Fails if `expand` takes the block of `end` for that of `end - 1`, or leaves `end` as it is.
#[test]
fn regression_02_the_end_of_clear_young_dirty() {
    on_every_machine!(user, |w| {
        let n = w.block();
        // Folded, unfolded, folded, folded.
        w.map(0, n, UserProt::ReadWrite);
        let folio = w.folio(n);
        for page in (0..n).rev() {
            set_ptes(&mut w.lock(), w.va(n + page), w.pte(&folio, page, UserProt::ReadWrite), 1);
        }
        w.map(2 * n, 2 * n, UserProt::ReadWrite);
        let folded = [true, false, true, true];
        for start in [0, n - 1, n, n + 1, 2 * n] {
            for nr in [1, n - 1, n, n + 1, 2 * n] {
                (0..4 * n).for_each(|page| w.plain.hardware_sets(page, |raw| raw & !RDONLY | AF));
                clear_young_dirty_ptes(&mut w.lock(), w.va(start), nr, YoungDirty::Both);
                let last = start + nr - 1;
                let first = if folded[start / n] { start / n * n } else { start };
                let end = if folded[last / n] { last / n * n + n } else { last + 1 };
                for page in 0..4 * n {
                    let raw = w.raw(page);
                    let kept = !(first..end).contains(&page);
                    assert_eq!((raw.is_young(), raw.is_dirty()), (kept, kept), "page {page} of {start}+{nr}");
                }
                folded.iter().enumerate().for_each(|(i, &folded)| {
                    assert_eq!(w.folded(i * n..i * n + n), folded, "block {i} of {start}+{nr}");
                });
            }
            w.check();
        }
    });
}

/// Without an invalidation, the TLB goes on to say that the page is read-only.
///
/// Fails if `stale` is false always; if only the page of a folded block is flushed; or if young alone is flushed.
#[test]
fn regression_03_access_flags_leave_a_stale_read_only_entry() {
    on_every_machine!(user, |w| {
        let (n, features) = (w.block(), w.plain.features);
        w.map(0, n, UserProt::ReadWrite);
        w.map(n, 1, UserProt::ReadWrite);
        let set = |page: usize, change: fn(PteValue) -> PteValue| {
            let mut guard = w.lock();
            let request = change(ptep_get(&guard, w.va(page)));
            assert!(ptep_set_access_flags(&mut guard, w.va(page), request));
            w.maintenance()
        };
        assert_eq!(set(3, PteValue::mkdirty), flush(features, 0..n) + " complete");
        w.check();
        assert_eq!(set(n, PteValue::mkdirty), flush(features, n..n + 1) + " complete");
        w.check();
        // Young alone: what is not young is in no TLB.
        for page in [3, n] {
            ptep_test_and_clear_young(&mut w.lock(), w.va(page));
            assert_eq!(set(page, PteValue::mkyoung), "");
        }
        // After a fork: read-only, dirty, and its own again.
        wrprotect_ptes(&mut w.lock(), w.va(0), n + 1);
        w.maintenance();
        w.check();
        assert_eq!(set(n, PteValue::mkwrite), flush(features, n..n + 1) + " complete");
        w.check();
        // Its own flush is that of the unfold.
        assert_eq!(set(3, PteValue::mkwrite), flush(features, 0..n) + " complete");
        assert!(!w.folded(0..n));
        w.check();
    });
}

/// A batch that ends inside of blocks lost what was known of them by their other entries.
///
/// Fails if `clear_several` does not gather the first or the last part; if `convert` gathers no young, or no dirty.
#[test]
fn regression_04_teardown_loses_flags_of_partial_ends() {
    on_every_machine!(user, |w| {
        let n = w.block();
        w.map(0, 2 * n, UserProt::ReadWrite);
        for page in [0, n] {
            ptep_test_and_clear_young(&mut w.lock(), w.va(page));
        }
        // Neither of them is in the range.
        w.plain.hardware_sets(1, |raw| raw | AF);
        w.plain.hardware_sets(2 * n - 1, |raw| raw & !RDONLY | AF);
        let mut guard = w.lock();
        let cleared = get_and_clear_ptes(&mut guard, w.va(n / 2), n);
        assert_eq!((cleared.is_young(), cleared.is_dirty()), (true, true));
        let (before, after) = (ptep_get(&guard, w.va(0)), ptep_get(&guard, w.va(2 * n - n / 2)));
        assert_eq!((before.is_young(), before.is_dirty()), (true, false));
        assert_eq!((after.is_young(), after.is_dirty()), (true, true));
        drop(guard);
        w.check();

        // A whole block, whose last entry alone is dirty.
        w.map(2 * n, n, UserProt::ReadWrite);
        ptep_test_and_clear_young(&mut w.lock(), w.va(2 * n));
        w.plain.hardware_sets(3 * n - 1, |raw| raw & !RDONLY | AF);
        let cleared = get_and_clear_ptes(&mut w.lock(), w.va(2 * n), n);
        assert_eq!((cleared.is_young(), cleared.is_dirty()), (true, true));
        w.check();
    });
}

/// The first page of the folio was taken for the first page of the batch, so that its frame, and who shares it, decided
/// for others.
///
/// Fails if `set_many` counts the frames from `block_of(indices.start).start`.
#[test]
fn regression_05_a_batch_begins_in_the_middle_of_a_folio() {
    on_every_machine!(user, |w| {
        let n = w.block();
        let folio = w.map(0, 2 * n, UserProt::ReadWrite);
        let old = w.protect(5, n, UserProt::Read);
        assert_eq!(old.pa(), w.pte(&folio, 5, UserProt::Read).pa(), "the first page of the batch");
        for page in 0..2 * n {
            let raw = w.raw(page);
            assert_eq!(raw.pa(), w.pte(&folio, page, UserProt::Read).pa(), "page {page}");
            assert_eq!(raw.is_writable(), !(5..5 + n).contains(&page), "page {page}");
        }
        w.check();
    });
}

/// Half of a folio was to be copied on write, and a batch gave it the permission of the other half (CVE-2026-31398).
///
/// Fails if `attributes` masks the permission too (`.without(PteFlags::DBM)`).
#[test]
fn regression_06_a_batch_ignores_the_write_bit() {
    on_every_machine!(user, |w| {
        let n = w.block();
        let prot = |page| if page % n < n / 2 { UserProt::ReadWrite } else { UserProt::Read };
        // One that was never alike, and one that was folded before.
        let folio = w.folio(n);
        for page in 0..n {
            set_ptes(&mut w.lock(), w.va(page), w.pte(&folio, page, prot(page)), 1);
        }
        w.map(n, n, UserProt::ReadWrite);
        wrprotect_ptes(&mut w.lock(), w.va(n + n / 2), n / 2);
        for start in [0, n] {
            let mut guard = w.lock();
            assert_eq!(refold(&mut guard, w.va(start), n), 0);
            assert_eq!(
                why_not_folded(w.mm, w.va(start)),
                Err(Obstacle::MixedAttributes(w.va(start + n / 2)))
            );
            for page in start..start + n {
                assert_eq!(pte_batch_hint(&guard, w.va(page)), 1, "page {page}");
                let writable = prot(page) == UserProt::ReadWrite;
                assert_eq!(ptep_get(&guard, w.va(page)).is_writable(), writable, "page {page}");
            }
        }
        w.check();
    });
}

/// Software knew the page to be dirty and hardware did not, and nobody set what the walker waited for.
///
/// Fails if `with_prot` returns `changed`; or if in `ptep_set_access_flags`, `merged` leaves `RDONLY` where the entry is dirty,
/// twice: by `mkwrite` and by `mkdirty`.
#[test]
fn regression_07_dirty_in_software_but_not_in_hardware() {
    on_every_machine!(user, |w| {
        let (n, by_software) = (w.block(), (w.plain.features.hafdbs == Hafdbs::None) as usize);
        w.map(0, n, UserProt::ReadWrite);
        assert_eq!(w.write(3), by_software);
        w.protect(0, n, UserProt::Read);
        assert!(w.raw(3).flags().contains(PteFlags::DIRTY | PteFlags::RDONLY) && w.folded(0..n));
        w.protect(0, n, UserProt::ReadWrite);
        assert!(!w.raw(3).flags().contains(PteFlags::RDONLY), "it is dirty still");
        assert_eq!(w.write(3), 0);
        w.check();

        // As after a fork, when the page is its own again.
        wrprotect_ptes(&mut w.lock(), w.va(0), n);
        let mut guard = w.lock();
        let request = ptep_get(&guard, w.va(3)).mkwrite();
        assert!(ptep_set_access_flags(&mut guard, w.va(3), request));
        drop(guard);
        assert_eq!(w.write(3), 0);
        w.check();

        // As restored from elsewhere, with the one bit and not the other.
        let folio = w.folio(1);
        let pte = w.pte(&folio, 0, UserProt::ReadWrite).with(PteFlags::DIRTY);
        set_ptes(&mut w.lock(), w.va(n), pte, 1);
        assert_eq!(w.write(n), by_software);
        w.check();
    });
}

/// With another level or granule than the entry's as a hint, or parts of the address in its place, an invalidation need
/// do nothing.
///
/// Fails if `tlb` says `Some(LAST_LEVEL - 1)`.
#[test]
fn regression_08_the_level_hint_is_wrong() {
    fn check_operands<G: GranuleType>(w: &World<G>, asid: u64) {
        let granule = match G::GRANULE {
            Granule::K4 => 0b01,
            Granule::K16 => 0b10,
            Granule::K64 => 0b11,
        };
        let mut invalidations = 0;
        for event in std::mem::take(&mut w.plain.tlb().events) {
            let Event::Invalidate(operation) = event else { continue };
            invalidations += 1;
            let operand = operation.operand();
            assert_eq!(operand >> 48, asid, "{operation}");
            match operation {
                Tlbi::Page { va, .. } => {
                    assert_eq!(operand >> 44 & 0xf, granule << 2 | 3, "TTL of {operation}");
                    assert_eq!(operand << 20, va.get() >> 12 << 20, "VA of {operation}");
                }
                Tlbi::Range { .. } => {
                    assert_eq!(operand >> 46 & 3, granule, "TG of {operation}");
                    assert_eq!(operand >> 37 & 3, 3, "TTL of {operation}");
                }
                _ => panic!("{operation}"),
            }
            let last_level = [Form::Vale1is, Form::Vaale1is, Form::Rvale1is, Form::Rvaale1is];
            assert!(last_level.contains(&operation.form()), "{operation}");
        }
        assert_ne!(invalidations, 0);
    }
    on_every_machine!(user, |w| {
        let n = w.block();
        w.map(0, 2 * n, UserProt::ReadWrite);
        w.write(3);
        w.protect(3, n, UserProt::Read);
        refold(&mut w.lock(), w.va(0), 2 * n);
        ptep_clear_flush_young(&mut w.lock(), w.va(0));
        wrprotect_ptes(&mut w.lock(), w.va(0), 1);
        clear_ptes(&mut w.lock(), w.va(0), 2 * n);
        check_operands(w, ASID.get().into());
        w.check();
    });
    on_every_machine!(kernel, |w| {
        let pte = PteValue::leaf(w.folio(1).head().addr(w.mm.granule()), MemoryType::Normal, PteFlags::AF);
        set_ptes(&mut w.lock(), w.va(1), pte, 1);
        ptep_clear(&mut w.lock(), w.va(1));
        check_operands(w, 0);
        w.check();
    });
}

/// Mapping the kernel's memory again, with other permissions, took the Contiguous bit from single live entries.
///
/// Fails if `init_cont` forgets `live_cont ||`; or if `unfold` does not assert.
#[test]
fn regression_09_the_kernel_mapper_overwrites_contiguous() {
    on_every_machine!(kernel, |w| {
        let (n, page) = (w.block(), w.mm.granule().page_size());
        let folio = w.folio(n);
        let map = |first: usize, nr: usize, prot| {
            let pa = folio.head().add(first as u64).addr(w.mm.granule());
            let size = nr as u64 * page;
            let mapping = Mapping { va: w.va(first), pa, size, prot, memory: MemoryType::Normal };
            create_pgd_mapping(w.mm, &mapping, w.plain).unwrap();
        };
        let all = || (0..n).map(|index| w.raw(index)).collect::<Vec<_>>();
        map(0, n, KernelProt::ReadWrite);
        assert!(w.folded(0..n));
        map(0, n, KernelProt::ReadOnly);
        assert!(w.folded(0..n));
        w.check();

        // A part of it: neither by the mapper nor by the public API.
        let before = all();
        map(3, 1, KernelProt::ReadOnly);
        wrprotect_ptes(&mut w.lock(), w.va(3), 1);
        assert_eq!(all(), before, "nothing to change");
        map(0, n, KernelProt::ReadWrite);
        let before = all();
        let refused = |what: &str, change: &dyn Fn()| {
            let panic = catch_unwind(AssertUnwindSafe(change)).expect_err(what);
            let message = panic.downcast_ref::<String>().unwrap();
            assert!(message.contains("live Contiguous group would change"), "{what}: {message}");
            assert_eq!(all(), before, "{what}");
        };
        refused("create_pgd_mapping", &|| map(3, 1, KernelProt::ReadOnly));
        refused("set_ptes", &|| set_ptes(&mut w.lock(), w.va(3), before[3], 1));
        refused("get_and_clear_ptes", &|| clear_ptes(&mut w.lock(), w.va(1), n - 1));
        refused("wrprotect_ptes", &|| wrprotect_ptes(&mut w.lock(), w.va(0), 1));
        w.check();
    });
}

/// Entries with and without the bit lived side by side, while one was converted, or because another was invalid.
///
/// Fails (by the machine, at that very store) if `convert` reads where it should clear, or flushes before it has cleared
/// all; if `get_and_clear_ptes`, `wrprotect_ptes` or `set_ptes` do not unfold.
#[test]
fn regression_10_a_group_that_differs_in_contiguous() {
    on_every_machine!(user, |w| {
        let n = w.block();
        let folio = w.map(0, 2 * n, UserProt::ReadWrite);
        let set = |page: usize| {
            set_ptes(&mut w.lock(), w.va(page), w.pte(&folio, page, UserProt::ReadWrite), 1);
            w.check();
        };
        let folded = |expected: [bool; 2]| {
            w.check();
            assert_eq!([w.folded(0..n), w.folded(n..2 * n)], expected);
        };
        folded([true, true]);
        set(n - 1); // unfolds and folds again
        folded([true, true]);
        set(n - 2); // the last is set already, so nothing folds
        folded([false, true]);
        // Holes on both sides of the border, beside a folded block.
        clear_ptes(&mut w.lock(), w.va(n - 2), 4);
        w.check();
        assert!(
            (0..n - 2).chain(n + 2..2 * n).all(|page| w.raw(page).is_valid() && !w.raw(page).is_folded())
        );
        assert_eq!(refold(&mut w.lock(), w.va(0), 2 * n), 0);
        (n - 2..n + 2).rev().for_each(set);
        folded([false, false]);
        assert_eq!(refold(&mut w.lock(), w.va(1), 2 * n - 1), 2);
        folded([true, true]);
        wrprotect_ptes(&mut w.lock(), w.va(1), 2 * n - 1);
        folded([false, true]);
        // Blocks go whole, and single pages come in their place.
        clear_ptes(&mut w.lock(), w.va(0), 2 * n);
        w.check();
        set(n + 3);
        set(n - 1);
        assert!(!w.raw(n + 3).is_folded() && !w.raw(n - 1).is_folded());
    });
}

/// The bit means nothing in an entry that is not valid, where it may be anything: a part of a swap entry, or of a page
/// that nobody may access.
///
/// Fails if `is_folded` does not ask for `VALID`.
#[test]
fn regression_11_contiguous_in_an_invalid_entry() {
    on_every_machine!(user, |w| {
        let n = w.block();
        let folio = w.map(0, n - 1, UserProt::ReadWrite);
        let swap = PteFlags::CONT.bits() | 0xdead_b000;
        let not_valid = 5;
        w.plain.hardware_sets(not_valid, |_| swap);
        let va = w.va(not_valid);
        let mut guard = w.lock();
        assert_eq!(ptep_get(&guard, va).raw(), swap);
        let lockless = LocklessGuard::interrupts_masked();
        assert_eq!(ptep_get_lockless(w.mm, va, &lockless).map(PteValue::raw), Ok(swap));
        assert_eq!(pte_batch_hint(&guard, va), 1);
        assert!(!ptep_test_and_clear_young(&mut guard, va));
        assert!(!ptep_clear_flush_young(&mut guard, va));
        clear_young_dirty_ptes(&mut guard, va, 1, YoungDirty::Both);
        wrprotect_ptes(&mut guard, va, 1);
        assert_eq!(w.raw(not_valid).raw(), swap);
        assert!(w.raw(4).is_young() && w.raw(4).is_writable(), "not a block that is changed together");
        assert_eq!(refold(&mut guard, va, 1), 0);
        assert_eq!(why_not_folded(w.mm, va), Err(Obstacle::Hole(va)));
        // Out and in again, without a conversion.
        assert_eq!(get_and_clear_ptes(&mut guard, va, 1).raw(), swap);
        w.plain.hardware_sets(not_valid, |_| swap);
        assert_eq!(set_pte(&mut guard, not_valid, w.pte(&folio, not_valid, UserProt::ReadWrite)), Ok(()));
        w.plain.hardware_sets(not_valid, |_| swap);
        set_ptes(&mut guard, va, w.pte(&folio, not_valid, UserProt::ReadWrite), 1);
        drop(guard);
        assert_eq!(w.maintenance(), "");
        let converted = COUNTERS.iter().filter(|&&counter| w.mm.counters().get(counter) != 0);
        assert_eq!(converted.count(), 0, "{:?}", w.mm.counters());
    });
}

/// Pages that were folded at their source came to where they can't be; and a batch went on where a folio or a table ended.
///
/// Fails if `set_ptes` does not strip the bit, or `set_many` does not ask for congruence, or for the folio.
#[test]
fn regression_12_mremap_to_another_alignment() {
    on_every_machine!(user, |w| {
        let n = w.block();
        let folio = w.map(0, 2 * n, UserProt::ReadWrite);
        // As one batch, and page by page.
        for batch in [2 * n, 1] {
            let mut guard = w.lock();
            for page in (0..2 * n).step_by(batch) {
                // What a getter returns has the bit.
                let pte = ptep_get(&guard, w.va(page));
                assert!(pte.is_folded() || page % n != 0);
                clear_ptes(&mut guard, w.va(page), batch);
                set_ptes(&mut guard, w.va(2 * n + 1 + page), pte, batch);
            }
            for page in 0..2 * n {
                let raw = w.raw(2 * n + 1 + page);
                assert_eq!(raw.pa(), w.pte(&folio, page, UserProt::Read).pa());
                assert!(!raw.is_folded());
            }
            assert_eq!(why_not_folded(w.mm, w.va(3 * n)), Err(Obstacle::Misaligned(w.va(3 * n))));
            assert_eq!(refold(&mut guard, w.va(2 * n), 2 * n), 0);
            // To a congruent one it comes back folded.
            let pte = get_and_clear_ptes(&mut guard, w.va(2 * n + 1), 2 * n);
            set_ptes(&mut guard, w.va(0), pte, 2 * n);
            drop(guard);
            assert!(w.folded(0..2 * n));
            w.check();
        }

        // Two folios, one after the other in memory, and a batch over both.
        let (mut first, mut second) = (w.folio(n / 2), w.folio(n / 2));
        if first.head() > second.head() {
            std::mem::swap(&mut first, &mut second);
        }
        assert_eq!(first.head().add(first.frames()), second.head(), "halves of one block");
        let pte = w.pte(&first, 0, UserProt::ReadWrite);
        set_ptes(&mut w.lock(), w.va(2 * n), pte, n);
        assert!(!w.folded(2 * n..3 * n));
        assert_eq!(why_not_folded(w.mm, w.va(2 * n)), Err(Obstacle::SmallFolio(w.va(2 * n))));
        assert_eq!(refold(&mut w.lock(), w.va(2 * n), n), 0);
        w.check();

        // A batch ends with its table.
        let last = w.mm.granule().entries() - 1;
        let over = catch_unwind(AssertUnwindSafe(|| set_ptes(&mut w.lock(), w.va(last), pte, 2)));
        let message = *over.expect_err("a batch over two tables").downcast::<String>().unwrap();
        assert!(message.contains("not in one table"), "{message}");
        let outside = catch_unwind(AssertUnwindSafe(|| set_ptes(&mut w.lock(), w.va(last + 1), pte, 1)));
        let message = *outside.expect_err("a page of another table").downcast::<String>().unwrap();
        assert!(message.contains("is in another table"), "{message}");
        w.check();
    });
}

/// With the dirty bit modifier, hardware makes a "read-only" page writable at the first write. Found in the permissions of
/// firmware pages; those come by the same private API.
///
/// Fails if `wrprotect` or `with_prot` leaves `DBM`, or `UserProt::flags` gives it to a page that is only read.
#[test]
fn regression_13_read_only_that_keeps_dbm() {
    let read_only = |raw: PteValue| {
        let flags = raw.flags();
        assert!(flags.contains(PteFlags::RDONLY) && !flags.contains(PteFlags::DBM), "{raw:?}");
    };
    on_every_machine!(user, |w| {
        let n = w.block();
        for (i, prot) in [UserProt::Read, UserProt::ReadExecute].into_iter().enumerate() {
            w.map(i * n, n, prot);
            read_only(w.raw(i * n));
        }
        // Whole, in part, and dirty before.
        w.map(2 * n, 2 * n, UserProt::ReadWrite);
        w.write(2 * n + 1);
        wrprotect_ptes(&mut w.lock(), w.va(2 * n), n + 1);
        (2 * n..3 * n + 1).for_each(|page| read_only(w.raw(page)));
        assert!(w.raw(2 * n + 1).is_dirty());
        w.write(3 * n + 1);
        w.protect(3 * n + 1, n - 1, UserProt::Read);
        (3 * n..4 * n).for_each(|page| read_only(w.raw(page)));
        w.check();
    });
    on_every_machine!(kernel, |w| {
        let pa = w.folio(1).head().addr(w.mm.granule());
        for prot in [KernelProt::ReadWrite, KernelProt::ReadOnly, KernelProt::ReadExecute] {
            let size = w.mm.granule().page_size();
            let mapping = Mapping { va: w.va(0), pa, size, prot, memory: MemoryType::Normal };
            create_pgd_mapping(w.mm, &mapping, w.plain).unwrap();
            if prot == KernelProt::ReadWrite {
                assert!(!w.raw(0).flags().contains(PteFlags::DBM | PteFlags::RDONLY));
            } else {
                read_only(w.raw(0));
            }
        }
        w.check();
    });
}

/// A page got another frame, or a block another size, while a TLB still held what was there.
///
/// Fails if `PteGuard` does not flush when it is dropped; if `set_ptes` or `store` don't call `before_valid`, or
/// `before_valid` looks at the first page only; if `free_after_flush` drops at once.
#[test]
fn regression_14_another_frame_before_the_flush() {
    on_every_machine!(user, |w| {
        let (n, features) = (w.block(), w.plain.features);
        // Given up, and in the hands of a racing fault as soon as the lock is free.
        let folio = w.frames.alloc(n.ilog2() as u8).unwrap();
        let mut guard = w.lock();
        set_ptes(&mut guard, w.va(0), w.pte(&folio, 0, UserProt::ReadWrite), n);
        w.maintenance();
        clear_ptes(&mut guard, w.va(0), n);
        assert_eq!(w.maintenance(), "", "gathered");
        let free = w.frames.free_frames();
        guard.free_after_flush(folio);
        assert_eq!(w.frames.free_frames(), free, "a TLB still holds it");
        drop(guard);
        assert_eq!(w.maintenance(), flush(features, 0..n) + " complete");
        assert_eq!(w.frames.free_frames(), free + n as u64);
        w.check();

        // Another frame under the same lock: one page, and many.
        w.map(0, n, UserProt::ReadWrite);
        for (first, nr) in [(3, 1), (0, n)] {
            let folio = w.folio(n);
            let mut guard = w.lock();
            clear_ptes(&mut guard, w.va(first), nr);
            set_ptes(&mut guard, w.va(first), w.pte(&folio, first, UserProt::ReadWrite), nr);
            drop(guard);
            w.check();
        }

        // A change of permission that is committed in other parts than it was begun.
        assert!(w.folded(0..n));
        let mut guard = w.lock();
        let old = modify_prot_start(&mut guard, w.va(0), n);
        modify_prot_commit(
            &mut guard,
            w.va(n - 1),
            old.advance((n as u64 - 1) * w.mm.granule().page_size()),
            1,
        );
        modify_prot_commit(&mut guard, w.va(0), old.with_prot(UserProt::Read), n - 1);
        drop(guard);
        w.check();
        assert!(!w.folded(0..n));

        // More folios than may wait.
        w.maintenance();
        let free = w.frames.free_frames();
        let mut guard = w.lock();
        for page in n..n + 2 {
            let folio = w.frames.alloc(0).unwrap();
            set_ptes(&mut guard, w.va(page), w.pte(&folio, 0, UserProt::ReadWrite), 1);
            ptep_clear(&mut guard, w.va(page));
            guard.free_after_flush(folio);
        }
        assert_eq!(w.maintenance(), flush(features, n..n + 2) + " complete", "when it was full");
        assert_eq!(w.frames.free_frames(), free - 1);
        drop(guard);
        assert_eq!(w.maintenance(), "", "all was flushed");
        assert_eq!(w.frames.free_frames(), free);
        w.check();
        assert_eq!(w.mm.counters().get(Counter::RefusedByGate), 0);
    });
}
