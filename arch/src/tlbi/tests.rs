//! The checks are functions of what they check, so that each also runs on wrong variants and has to
//! report them.

use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const KERNEL: u64 = 0xffff_8000_4020_3000;
const USER: u64 = 0x0000_7fff_ffff_f000;
const ASID_ABCD: Space = Space::Asid(Asid::new(0xabcd));

type VaEncoder = fn(VirtAddr, Space, Granule, Option<u8>) -> u64;
type RangeEncoder = fn(VirtAddr, RangeSize, Space, Granule, Option<u8>) -> u64;

/// Operands put together by hand: ASID | TTL | VA[55:12].
fn check_va_operands(encode: VaEncoder) -> Result<(), String> {
    use Granule::*;
    let rows = [
        (0, Space::All, K4, None, 0),
        (0x1000, Space::All, K4, None, 0x0000_0000_0000_0001),
        (0x1fff, Space::All, K4, None, 0x0000_0000_0000_0001),
        (USER, Space::Asid(Asid::new(1)), K4, None, 0x0001_0007_ffff_ffff),
        // 4K: TTL = 0b01LL
        (USER, ASID_ABCD, K4, Some(3), 0xabcd_7007_ffff_ffff),
        (USER, ASID_ABCD, K4, Some(2), 0xabcd_6007_ffff_ffff),
        (USER, ASID_ABCD, K4, Some(1), 0xabcd_5007_ffff_ffff),
        // 16K: 0b10LL
        (0x4000, ASID_ABCD, K16, Some(3), 0xabcd_b000_0000_0004),
        (0x4000, ASID_ABCD, K16, Some(2), 0xabcd_a000_0000_0004),
        // 64K: 0b11LL
        (0x1_0000, ASID_ABCD, K64, Some(3), 0xabcd_f000_0000_0010),
        (0x1_0000, ASID_ABCD, K64, Some(2), 0xabcd_e000_0000_0010),
        // VA[55:48] of a kernel address are ones and stay; VA[63:56] go.
        (KERNEL, Space::All, K4, None, 0x0000_0ff8_0004_0203),
        (KERNEL, Space::All, K4, Some(3), 0x0000_7ff8_0004_0203),
        (KERNEL, Space::Asid(Asid::new(0)), K4, Some(2), 0x0000_6ff8_0004_0203),
        (KERNEL, ASID_ABCD, K4, Some(3), 0xabcd_7ff8_0004_0203),
        (u64::MAX, Space::All, K4, None, 0x0000_0fff_ffff_ffff),
        // A tag in the top byte is not address either.
        (0x5a00_0000_0000_1000, ASID_ABCD, K4, Some(3), 0xabcd_7000_0000_0001),
    ];
    for (va, space, granule, level, expected) in rows {
        let found = encode(VirtAddr::new(va), space, granule, level);
        if found != expected {
            return Err(format!(
                "{va:#x} {space:?} {granule:?} {level:?}: {found:#018x}, not {expected:#018x}"
            ));
        }
    }
    Ok(())
}

/// Operands put together by hand: ASID | TG | SCALE | NUM | TTL | BaseADDR.
fn check_range_operands(encode: RangeEncoder) -> Result<(), String> {
    use Granule::*;
    let size = |scale, num| RangeSize::new(scale, num).unwrap();
    let rows = [
        // TG 0b01 << 46
        (0, size(0, 0), Space::All, K4, None, 0x0000_4000_0000_0000),
        (0x1000, size(0, 0), Space::All, K4, None, 0x0000_4000_0000_0001),
        // NUM 7 << 39
        (0x1_0000, size(0, 7), Space::All, K4, None, 0x0000_4380_0000_0010),
        // TTL 3 << 37
        (0x1_0000, size(0, 7), ASID_ABCD, K4, Some(3), 0xabcd_43e0_0000_0010),
        (0x20_0000, size(1, 7), ASID_ABCD, K4, Some(2), 0xabcd_53c0_0000_0200),
        (0x4000_0000, size(3, 3), ASID_ABCD, K4, Some(1), 0xabcd_71a0_0004_0000),
        // every bit of NUM and SCALE
        (0, size(3, 31), Space::All, K4, None, 0x0000_7f80_0000_0000),
        (0x4000, size(0, 0), Space::All, K16, None, 0x0000_8000_0000_0001),
        (0x4000, size(2, 1), ASID_ABCD, K16, Some(3), 0xabcd_a0e0_0000_0001),
        (0x1_0000, size(1, 0), ASID_ABCD, K64, Some(3), 0xabcd_d060_0000_0001),
        // A kernel address: BaseADDR is VA[48:12], VA[50:14], VA[52:16]; its top bits are ones.
        (KERNEL, size(0, 7), Space::All, K4, None, 0x0000_4398_0004_0203),
        (KERNEL, size(0, 7), ASID_ABCD, K4, Some(3), 0xabcd_43f8_0004_0203),
        (0xffff_8000_4020_4000, size(0, 0), Space::All, K16, None, 0x0000_801e_0001_0081),
        (0xffff_8000_4021_0000, size(0, 0), Space::All, K64, None, 0x0000_c01f_8000_4021),
    ];
    for (start, size, space, granule, level, expected) in rows {
        let found = encode(VirtAddr::new(start), size, space, granule, level);
        if found != expected {
            return Err(format!(
                "{start:#x} {size:?} {granule:?} {level:?}: {found:#018x}, not {expected:#018x}"
            ));
        }
    }
    Ok(())
}

#[test]
fn operands_of_one_address_are_the_golden_ones() {
    check_va_operands(va_operand).unwrap();
    let wrong: [(&str, VaEncoder); 5] = [
        ("VA not masked", |va, space, granule, level| {
            va_operand(VirtAddr::new(0), space, granule, level) | va.get() >> 12
        }),
        ("VA[47:12] only", |va, space, granule, level| {
            va_operand(VirtAddr::new(va.get() & 0xffff_ffff_ffff), space, granule, level)
        }),
        ("granule forgotten", |va, space, _, level| va_operand(va, space, Granule::K4, level)),
        ("level forgotten", |va, space, granule, _| va_operand(va, space, granule, None)),
        ("8-bit ASID", |va, space, granule, level| {
            va_operand(va, space, granule, level) & 0x00ff_ffff_ffff_ffff
        }),
    ];
    for (fault, encode) in wrong {
        assert!(check_va_operands(encode).is_err(), "not noticed: {fault}");
    }
}

#[test]
fn operands_of_ranges_are_the_golden_ones() {
    check_range_operands(range_operand).unwrap();
    let wrong: [(&str, RangeEncoder); 5] = [
        ("BaseADDR not masked", |start, size, space, granule, level| {
            range_operand(VirtAddr::new(0), size, space, granule, level) | start.get() >> granule.page_shift()
        }),
        ("BaseADDR in 4K units", |start, size, space, granule, level| {
            range_operand(VirtAddr::new(0), size, space, granule, level) | start.get() >> 12 & 0x1f_ffff_ffff
        }),
        ("sign lost", |start, size, space, granule, level| {
            range_operand(VirtAddr::new(start.get() & 0x7fff_ffff_ffff), size, space, granule, level)
        }),
        ("TTL as in the other forms", |start, size, space, granule, level| {
            let ttl = va_operand(VirtAddr::new(0), Space::All, granule, level);
            range_operand(start, size, space, granule, None) | ttl
        }),
        ("SCALE and NUM swapped", |start, size, space, granule, level| {
            let fields = u64::from(size.scale()) << 39 | u64::from(size.num()) << 44;
            range_operand(start, RangeSize::new(0, 0).unwrap(), space, granule, level) | fields
        }),
    ];
    for (fault, encode) in wrong {
        assert!(check_range_operands(encode).is_err(), "not noticed: {fault}");
    }
}

#[test]
fn forms_and_operands_go_together() {
    let (va, granule, level) = (VirtAddr::new(USER), Granule::K4, Some(3));
    let page = |space, last_level| Tlbi::Page { va, space, last_level, granule, level };
    let size = RangeSize::new(0, 7).unwrap();
    let range = |space, last_level| Tlbi::Range { start: va, size, space, last_level, granule, level };
    let rows = [
        (Tlbi::All, "VMALLE1IS", 0),
        (Tlbi::Asid(Asid::new(0xabcd)), "ASIDE1IS ASID 43981", 0xabcd_0000_0000_0000),
        (page(ASID_ABCD, false), "VAE1IS 0x7ffffffff000, ASID 43981, level 3", 0xabcd_7007_ffff_ffff),
        (page(ASID_ABCD, true), "VALE1IS 0x7ffffffff000, ASID 43981, level 3", 0xabcd_7007_ffff_ffff),
        (page(Space::All, false), "VAAE1IS 0x7ffffffff000, level 3", 0x0000_7007_ffff_ffff),
        (page(Space::All, true), "VAALE1IS 0x7ffffffff000, level 3", 0x0000_7007_ffff_ffff),
        (
            range(ASID_ABCD, false),
            "RVAE1IS 0x7ffffffff000, 16 pages, ASID 43981, level 3",
            0xabcd_43e7_ffff_ffff,
        ),
        (
            range(ASID_ABCD, true),
            "RVALE1IS 0x7ffffffff000, 16 pages, ASID 43981, level 3",
            0xabcd_43e7_ffff_ffff,
        ),
        (range(Space::All, false), "RVAAE1IS 0x7ffffffff000, 16 pages, level 3", 0x0000_43e7_ffff_ffff),
        (range(Space::All, true), "RVAALE1IS 0x7ffffffff000, 16 pages, level 3", 0x0000_43e7_ffff_ffff),
    ];
    for (op, line, operand) in rows {
        assert_eq!(op.to_string(), line);
        assert_eq!(op.operand(), operand, "{op}");
    }
}

#[test]
fn impossible_hints_and_ranges_panic() {
    use std::panic::catch_unwind;
    let page = |granule, level| {
        catch_unwind(move || va_operand(VirtAddr::new(0), Space::All, granule, Some(level))).is_ok()
    };
    for granule in Granule::ALL {
        let possible = [0, 1, 2, 3, 4, 255].map(|level| page(granule, level));
        assert_eq!(possible, [false, granule == Granule::K4, true, true, false, false], "{granule:?}");
    }
    let range = |start, level| {
        let size = RangeSize::new(0, 0).unwrap();
        catch_unwind(move || range_operand(VirtAddr::new(start), size, Space::All, Granule::K4, level))
            .is_ok()
    };
    assert!(range(0x1000, Some(3)) && range(0x20_0000, Some(2)) && range(0x4000_0000, Some(1)));
    assert!(!range(0x1800, None));
    assert!(!range(0x1000, Some(2)));
    assert!(!range(0x20_0000, Some(1)));
    assert!(!range(0x0001_0000_0000_0000, None));
}

#[test]
fn sizes_are_those_of_the_formula() {
    let pages = |scale, num| RangeSize::new(scale, num).map(RangeSize::pages);
    assert_eq!(pages(0, 0), Some(2));
    assert_eq!(pages(0, 7), Some(16));
    assert_eq!(pages(0, 31), Some(64));
    assert_eq!(pages(1, 0), Some(64));
    assert_eq!(pages(2, 0), Some(2048));
    assert_eq!(pages(3, 31), Some(MAX_RANGE_PAGES));
    assert_eq!(MAX_RANGE_PAGES, 1 << 21);
    assert_eq!((pages(4, 0), pages(0, 32)), (None, None));
}

/// What an operation covers as `first page..end page`, read from its bits by the manual's formula and
/// not by the encoder's own fields. Page numbers are signed, so that kernel addresses are negative.
fn covered(op: Tlbi) -> (i64, i64) {
    let (xt, signed) = (op.operand(), |value: u64, bits: u32| (value << (64 - bits)) as i64 >> (64 - bits));
    match op.form() {
        Form::Vae1is | Form::Vale1is | Form::Vaae1is | Form::Vaale1is => {
            let Tlbi::Page { granule, .. } = op else { panic!("{op} is not a page") };
            let page = signed(xt, 44) >> (granule.page_shift() - 12);
            (page, page + 1)
        }
        Form::Rvae1is | Form::Rvale1is | Form::Rvaae1is | Form::Rvaale1is => {
            let (scale, num) = (xt >> 44 & 0b11, xt >> 39 & 0b1_1111);
            let base = signed(xt, 37);
            (base, base + (((num + 1) << (5 * scale + 1)) as i64))
        }
        Form::Vmalle1is | Form::Aside1is => panic!("{op} has no address"),
    }
}

/// Whether the operations cover the range, every page once, and nothing else.
fn check_cover(
    start: VirtAddr,
    pages: u64,
    granule: Granule,
    ops: impl Iterator<Item = Tlbi>,
) -> Result<(), String> {
    let mut spans: Vec<_> = ops.map(covered).collect();
    spans.sort_unstable();
    let first = start.get() as i64 >> granule.page_shift();
    let mut next = first;
    for (from, to) in spans {
        if from != next {
            return Err(format!("page {next:#x} is followed by {from:#x}"));
        }
        next = to;
    }
    let end = first + pages as i64;
    if next == end { Ok(()) } else { Err(format!("ends at page {next:#x}, not {end:#x}")) }
}

fn ops(start: VirtAddr, pages: u64, granule: Granule, level: Option<u8>) -> RangeOps {
    Tlbi::range(start, pages, ASID_ABCD, true, granule, level).unwrap()
}

#[test]
fn a_block_is_one_operation_and_no_pages_are_none() {
    assert_eq!(ops(VirtAddr::new(0), 0, Granule::K4, None).count(), 0);
    for (granule, pages) in [(Granule::K4, 16), (Granule::K64, 32)] {
        assert_eq!(ops(VirtAddr::new(1 << 30), pages, granule, Some(3)).count(), 1);
    }
    // 128 pages of 16K: SCALE 1, NUM 1.
    let mut block = ops(VirtAddr::new(1 << 30), 128, Granule::K16, Some(3));
    assert!(matches!(block.next(), Some(Tlbi::Range { size: RangeSize { scale: 1, num: 1 }, .. })));
    assert_eq!(block.next(), None);
    // The largest is still one operation, and its SCALE fits its field.
    let mut largest = ops(VirtAddr::new(0), MAX_RANGE_PAGES, Granule::K4, None);
    assert!(matches!(largest.next(), Some(Tlbi::Range { size: RangeSize { scale: 3, num: 31 }, .. })));
    assert_eq!(largest.next(), None);
    assert_eq!(ops(VirtAddr::new(0), MAX_RANGE_PAGES - 1, Granule::K4, None).count(), 5);
}

#[test]
fn every_small_range_is_covered_exactly() {
    for granule in Granule::ALL {
        for pages in 0..5000 {
            let start = VirtAddr::new(3 << granule.page_shift());
            check_cover(start, pages, granule, ops(start, pages, granule, Some(3))).unwrap();
        }
    }
}

#[test]
fn ranges_may_touch_the_ends_of_their_half() {
    let page = 1_u64 << 12;
    let last_user = VirtAddr::new((1 << 48) - 3 * page);
    check_cover(last_user, 3, Granule::K4, ops(last_user, 3, Granule::K4, None)).unwrap();
    let last_kernel = VirtAddr::new(0_u64.wrapping_sub(3 * page));
    check_cover(last_kernel, 3, Granule::K4, ops(last_kernel, 3, Granule::K4, None)).unwrap();
}

#[test]
fn ranges_that_no_operation_covers_are_refused() {
    let refuse = |start, pages, level| {
        Tlbi::range(VirtAddr::new(start), pages, Space::All, true, Granule::K4, level).unwrap_err()
    };
    let va = VirtAddr::new;
    assert_eq!(refuse(0, MAX_RANGE_PAGES + 1, None), RangeError::TooLong(MAX_RANGE_PAGES + 1));
    assert_eq!(refuse(0, u64::MAX, None), RangeError::TooLong(u64::MAX));
    assert_eq!(refuse(0x800, 1, None), RangeError::Misaligned(va(0x800)));
    assert_eq!(refuse(0x1000, 512, Some(2)), RangeError::Misaligned(va(0x1000)));
    assert_eq!(refuse(0x20_0000, 511, Some(2)), RangeError::Misaligned(va(0x20_0000)));
    let edge = (1 << 48) - 0x1000;
    assert_eq!(refuse(edge, 2, None), RangeError::NotCanonical(va(edge)));
    assert_eq!(refuse(1 << 48, 1, None), RangeError::NotCanonical(va(1 << 48)));
    assert_eq!(refuse(0xfffe_ffff_ffff_f000, 2, None), RangeError::NotCanonical(va(0xfffe_ffff_ffff_f000)));
    assert_eq!(refuse(0xffff_ffff_ffff_f000, 2, None), RangeError::NotCanonical(va(0xffff_ffff_ffff_f000)));
}

/// Wrong decompositions: the check has to notice each, on these few ranges.
#[test]
fn the_cover_check_notices_wrong_decompositions() {
    type Fault = (&'static str, fn(VirtAddr, u64) -> Vec<Tlbi>);
    let right = |start, pages| ops(start, pages, Granule::K4, None).collect::<Vec<_>>();
    let faults: [Fault; 6] = [
        ("odd page dropped", |start, pages| ops(start, pages & !1, Granule::K4, None).collect()),
        ("rounded up to pairs", |start, pages| ops(start, pages + pages % 2, Granule::K4, None).collect()),
        ("NUM one too small", |start, pages| {
            ops(start, pages, Granule::K4, None)
                .map(|op| match op {
                    Tlbi::Range { start, size, space, last_level, granule, level } => {
                        let size = RangeSize { num: size.num.saturating_sub(1), ..size };
                        Tlbi::Range { start, size, space, last_level, granule, level }
                    }
                    other => other,
                })
                .collect()
        }),
        ("SCALE one too large", |start, pages| {
            ops(start, pages, Granule::K4, None)
                .map(|op| match op {
                    Tlbi::Range { start, size, space, last_level, granule, level } => {
                        let size = RangeSize { scale: (size.scale + 1) & 0b11, ..size };
                        Tlbi::Range { start, size, space, last_level, granule, level }
                    }
                    other => other,
                })
                .collect()
        }),
        ("last operation dropped", |start, pages| {
            let mut all: Vec<_> = ops(start, pages, Granule::K4, None).collect();
            all.pop();
            all
        }),
        ("start not advanced", |start, pages| {
            let mut all: Vec<_> = ops(start, pages, Granule::K4, None).collect();
            if let Some(Tlbi::Page { va, .. }) = all.last_mut() {
                *va = start;
            }
            all
        }),
    ];
    let ranges = [(0x1000, 131), (KERNEL, 4163), (KERNEL, 33)];
    let judge = |make: &dyn Fn(VirtAddr, u64) -> Vec<Tlbi>| {
        ranges.map(|(start, pages)| {
            let start = VirtAddr::new(start);
            check_cover(start, pages, Granule::K4, make(start, pages).into_iter()).is_ok()
        })
    };
    assert_eq!(judge(&right), [true; 3]);
    for (fault, make) in faults {
        assert_eq!(judge(&make), [false; 3], "not noticed: {fault}");
    }
}

fn any_range() -> impl Strategy<Value = (VirtAddr, u64, Granule, Option<u8>)> {
    let granule = prop_oneof![Just(Granule::K4), Just(Granule::K16), Just(Granule::K64)];
    let level = prop_oneof![Just(None), Just(Some(3)), Just(Some(2))];
    (granule, level, any::<u64>(), any::<u64>(), 0_u32..=21, any::<bool>()).prop_map(
        |(granule, level, place, length, magnitude, kernel)| {
            let unit = granule.level_size(level.unwrap_or(LAST_LEVEL));
            let unit_pages = unit >> granule.page_shift();
            // Small and large lengths alike, of whole leaves.
            let most = (1 << magnitude).max(8 * unit_pages);
            let pages = length % (most + 1) / unit_pages * unit_pages;
            let room = (1 << VA_BITS) - (pages << granule.page_shift());
            let low = place % (room + 1) / unit * unit;
            let start = if kernel { low | 0xffff << VA_BITS } else { low };
            (VirtAddr::new(start), pages, granule, level)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_ranges_are_covered_exactly((start, pages, granule, level) in any_range()) {
        let all: Vec<_> = ops(start, pages, granule, level).collect();
        prop_assert!(all.len() <= 5);
        prop_assert_eq!(check_cover(start, pages, granule, all.iter().copied()), Ok(()));
        for op in &all {
            // ASID, and the level wherever the form keeps it; the granule in both.
            let xt = op.operand();
            prop_assert_eq!(xt >> 48, 0xabcd);
            let ttl = u64::from(level.unwrap_or(0));
            let tg = match granule { Granule::K4 => 0b01, Granule::K16 => 0b10, Granule::K64 => 0b11 };
            match op {
                Tlbi::Range { .. } => {
                    prop_assert_eq!(xt >> 37 & 0b11, ttl);
                    prop_assert_eq!(xt >> 46 & 0b11, tg);
                }
                _ => prop_assert_eq!(xt >> 44 & 0b1111, if level.is_some() { tg << 2 | ttl } else { 0 }),
            }
        }
    }

    #[test]
    fn no_address_bit_reaches_ttl_or_asid(va: u64, asid: u16) {
        let space = Space::Asid(Asid::new(asid));
        for (level, ttl) in [(None, 0), (Some(1), 0b0101), (Some(2), 0b0110), (Some(3), 0b0111)] {
            let xt = va_operand(VirtAddr::new(va), space, Granule::K4, level);
            prop_assert_eq!(xt >> 44, u64::from(asid) << 4 | ttl);
            prop_assert_eq!(xt << 20 >> 20 << 12, va << 8 >> 20 << 12);
        }
    }
}
