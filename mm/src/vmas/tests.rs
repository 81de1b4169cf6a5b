use core::sync::atomic::Ordering;

use super::*;
use crate::vma::Backing;

const SHIFT: u32 = 12;
const PAGES: usize = 900;

/// The permission of each page, `None` where nothing is mapped.
type Model = Vec<Option<Prot>>;

/// The runs of pages that are alike.
fn runs(model: &Model) -> Vec<(u64, u64, Prot)> {
    let mut runs: Vec<(u64, u64, Prot)> = Vec::new();
    for (page, prot) in model.iter().enumerate() {
        let (start, Some(prot)) = ((page as u64) << SHIFT, *prot) else { continue };
        match runs.last_mut() {
            Some(last) if last.1 == start && last.2 == prot => last.1 = start + (1 << SHIFT),
            _ => runs.push((start, start + (1 << SHIFT), prot)),
        }
    }
    runs
}

fn check(vmas: &Vmas<'_>, model: &Model) {
    let all: Vec<_> = vmas.iter().map(|vma| (vma.start, vma.end, vma.prot)).collect();
    assert_eq!(all, runs(model));
    assert_eq!(vmas.count, all.len());
    assert!(vmas.chunks.iter().all(|chunk| (1..=CHUNK).contains(&chunk.len())));
    let few = |pair: &[Chunk<'_>]| pair[0].len() + pair[1].len() <= CHUNK / 4;
    assert!(!vmas.chunks.windows(2).any(few), "two chunks of few");
    let mut before = 0;
    for (index, chunk) in vmas.chunks.iter().enumerate() {
        let gaps = chunk.iter().map(|vma| vma.start - core::mem::replace(&mut before, vma.end));
        assert_eq!(Some(vmas.widest(vmas.leaf(index))), gaps.max());
    }
    for (page, prot) in model.iter().enumerate() {
        let at = (page as u64) << SHIFT;
        assert_eq!(vmas.find(at + 5).map(|vma| vma.prot), *prot);
    }
}

/// The gaps that are asked for, by a look at each page.
fn check_gaps(vmas: &Vmas<'_>, model: &Model, random: &mut impl FnMut(usize) -> usize) {
    let (bottom, top) = (random(PAGES), 1 + random(PAGES));
    let most = [2, 8, 40][random(3)];
    let (pages, align) = (1 + random(most), 1 << random(6));
    let phase = random(align);
    let is_free = |first: &usize| model.iter().skip(*first).take(pages).all(Option::is_none);
    let va = |pages: usize| (pages as u64) << SHIFT;
    let last = top.saturating_sub(pages);
    let highest = (bottom..last + 1).rev().find(|first| first % align == phase && is_free(first));
    let highest = highest.filter(|_| pages <= top);
    let found = vmas.gap_below(va(bottom), va(top), va(pages), va(align), va(phase));
    assert_eq!(found, highest.map(va), "{pages} pages from {bottom} to {top}, {phase} modulo {align}");
    let lowest = (bottom..).find(is_free).filter(|first| first + pages <= top);
    assert_eq!(vmas.gap_above(va(bottom), va(top), va(pages)), lowest.map(va));
}

fn add(vmas: &mut Vmas<'_>, Range { start, end }: Range<u64>, prot: Prot) {
    vmas.reserve(&(start..end), 1).unwrap();
    vmas.insert(Vma { start, end, prot, backing: Backing::Anonymous });
}

fn replace(vmas: &mut Vmas<'_>, range: Range<u64>, by: Option<Prot>) {
    vmas.reserve(&range, 1).unwrap();
    vmas.remove(&range);
    if let Some(prot) = by {
        add(vmas, range, prot);
    }
}

/// Numbers below what each call says.
fn xorshift(mut seed: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    }
}

/// Upwards as a program is loaded, downwards as `mmap` places them.
#[test]
fn what_is_added_in_order_fills_its_chunks() {
    let upwards: Vec<u64> = (0..10 * CHUNK as u64).collect();
    let downwards: Vec<u64> = upwards.iter().rev().copied().collect();
    for pages in [upwards, downwards] {
        let mut vmas = Vmas::new(SHIFT);
        for page in pages {
            let (start, end) = (page << SHIFT, (page + 1) << SHIFT);
            let prot = [Prot::READ, Prot::WRITE][page as usize % 2];
            add(&mut vmas, start..end, prot);
        }
        assert_eq!((vmas.count, vmas.chunks.len()), (10 * CHUNK, 10));
        assert!(vmas.iter().is_sorted_by_key(|vma| vma.start));
    }
}

/// A range from the middle of one chunk to that of another, where few are left of the one behind.
#[test]
fn what_is_left_of_chunks_is_put_together() {
    const NR: u64 = CHUNK as u64;
    let mut vmas = Vmas::new(SHIFT);
    for page in 0..4 * NR {
        let (start, end) = (page << SHIFT, (page + 1) << SHIFT);
        let prot = [Prot::READ, Prot::WRITE][page as usize % 2];
        add(&mut vmas, start..end, prot);
    }
    for pages in [3 * NR + 4..4 * NR, NR + 3..3 * NR - 2] {
        let range = pages.start << SHIFT..pages.end << SHIFT;
        replace(&mut vmas, range, None);
    }
    let lengths: Vec<usize> = vmas.chunks.iter().map(|chunk| chunk.len()).collect();
    assert_eq!((lengths, vmas.count), (vec![CHUNK, 3 + 2 + 4], CHUNK + 9));
}

/// So many mappings of a page, before which are gaps as wide as this says, from the lowest up.
fn with_gaps(count: usize, pages: impl Fn(usize) -> u64) -> Vmas<'static> {
    let mut vmas = Vmas::new(SHIFT);
    let mut start = 0;
    for nr in 0..count {
        start += pages(nr) << SHIFT;
        add(&mut vmas, start..start + (1 << SHIFT), Prot::READ);
        start += 1 << SHIFT;
    }
    vmas
}

/// A range from the middle of one chunk to the first mapping of another, with chunks between them.
#[test]
fn what_was_taken_out_before_a_chunk_is_room() {
    let mut vmas = with_gaps(6 * CHUNK, |_| 1);
    let end = vmas.end_before(6);
    assert_eq!(vmas.gap_below(0, end, 2 << SHIFT, 1 << SHIFT, 0), None);
    let range = vmas.chunks[1][CHUNK / 2].start..vmas.chunks[4][0].start;
    replace(&mut vmas, range.clone(), None);
    assert_eq!(vmas.gap_below(0, end, 2 << SHIFT, 1 << SHIFT, 0), Some(range.end - (2 << SHIFT)));
}

/// The gaps of the lowest chunks, which were found out before.
#[test]
fn what_was_between_mappings_that_are_taken_out_is_not_found() {
    let mut vmas = with_gaps(15 * CHUNK, |nr| if nr < 11 * CHUNK { 3 } else { 1 });
    let (end, wide) = (vmas.end_before(15), vmas.end_before(11));
    assert_eq!(vmas.gap_above(0, end, 3 << SHIFT), Some(0));
    replace(&mut vmas, 0..wide, Some(Prot::WRITE));
    assert_eq!(vmas.gap_below(0, end, 3 << SHIFT, 1 << SHIFT, 0), None);
    assert_eq!(vmas.gap_above(0, end, 3 << SHIFT), None);
}

/// Whatever number of chunks there is, where all is looked at since no gap is aligned, and where the lowest is.
#[test]
fn a_clone_has_the_same_gaps() {
    for chunks in 1..=9 {
        let vmas = with_gaps(chunks * CHUNK, |nr| if nr == 0 { 5 } else { 3 });
        let clone = vmas.try_clone().unwrap();
        let end = vmas.end_before(chunks);
        for vmas in [&clone, &vmas] {
            let below =
                |pages: u64, phase: u64| vmas.gap_below(1, end, pages << SHIFT, 4 << SHIFT, phase << SHIFT);
            assert_eq!((below(3, 3), below(3, 2)), (None, Some(end - (4 << SHIFT))), "{chunks}");
            assert_eq!((below(4, 1), below(5, 0)), (Some(1 << SHIFT), None), "{chunks}");
            assert_eq!(vmas.gap_above(0, end, 4 << SHIFT), Some(0));
        }
    }
}

/// At how many nodes, chunks and gaps is looked until one is found.
fn looks<G: Iterator<Item = Range<u64>>>(
    vmas: &Vmas<'_>,
    gaps: G,
    is_wide: impl Fn(&Range<u64>) -> bool,
) -> usize {
    let before = vmas.maxima.looks.load(Ordering::Relaxed);
    let gaps = { gaps }.position(|gap| is_wide(&gap)).expect("there is room") + 1;
    gaps + vmas.maxima.looks.load(Ordering::Relaxed) - before
}

/// Wherever the only one is that is wide enough, and where many are, of widths that are all wanted.
#[test]
fn a_gap_is_found_in_logarithmic_time() {
    const MOST: usize = 110;
    let last = MAX_MAP_COUNT - 1;
    let only = [0, 1, CHUNK - 1, CHUNK, last / 3, last / 2, last - CHUNK, last - 1, last].map(|at| {
        let vmas = with_gaps(MAX_MAP_COUNT, |nr| if nr == at { 3 } else { 1 });
        (vmas, vec![3])
    });
    let many = with_gaps(MAX_MAP_COUNT, |nr| 1 + (nr as u64 * 0x9e37_79b9) % 1009);
    let mut most = 0;
    for (vmas, sizes) in only.into_iter().chain([(many, (1..=1009).collect())]) {
        let end = vmas.iter().next_back().unwrap().end;
        assert_eq!(vmas.count, MAX_MAP_COUNT);
        // What is not known yet is found out, and not counted.
        vmas.gap_below(0, end, 1 << SHIFT, 1 << SHIFT, 0).unwrap();
        for size in sizes.into_iter().map(|pages: u64| pages << SHIFT) {
            let is_wide = |gap: &Range<u64>| gap.end.min(end).saturating_sub(gap.start) >= size;
            most = most.max(looks(&vmas, vmas.gaps_below(end, size), is_wide));
            most = most.max(looks(&vmas, vmas.gaps_above(0, size), is_wide));
        }
        assert_eq!(vmas.gap_below(0, end, 2000 << SHIFT, 1 << SHIFT, 0), None);
    }
    assert!(most < MOST, "{most} looks at most");
}

/// The last mapping of a chunk, with which no chunk goes: what is known of those below stays known.
#[test]
fn where_no_chunk_goes_no_width_is_found_out_anew() {
    let mut vmas = with_gaps(MAX_MAP_COUNT - 2, |_| 1);
    let end = vmas.iter().next_back().unwrap().end;
    let looks = |vmas: &Vmas<'_>| {
        let before = vmas.maxima.looks.load(Ordering::Relaxed);
        assert_eq!(vmas.gap_below(0, end, 10 << SHIFT, 1 << SHIFT, 0), None);
        vmas.maxima.looks.load(Ordering::Relaxed) - before
    };
    assert!(looks(&vmas) > 1000, "all of them are found out");
    let last = vmas.chunks[vmas.chunks.len() - 2].last().map(|vma| vma.start..vma.end).unwrap();
    replace(&mut vmas, last, None);
    let looks = looks(&vmas);
    assert!(looks < 60, "{looks} looks");
}

/// As `mmap` places them; every third is unmapped again, and some long after.
#[test]
fn where_many_are_added_few_widths_are_found_out_anew() {
    const MOST: usize = 60;
    let (bottom, top) = (1 << 20, 1 << 46);
    let (mut vmas, mut places) = (Vmas::new(SHIFT), Vec::new());
    let before = vmas.maxima.looks.load(Ordering::Relaxed);
    let calls = MAX_MAP_COUNT;
    for nr in 0..calls {
        let start = vmas.gap_below(bottom, top, 1 << SHIFT, 1 << SHIFT, 0).unwrap();
        add(&mut vmas, start..start + (1 << SHIFT), [Prot::READ, Prot::WRITE][nr % 2]);
        places.push(start);
        if nr % 3 == 2 {
            let start = places.swap_remove(if nr % 96 == 2 { nr / 3 } else { places.len() - 1 });
            replace(&mut vmas, start..start + (1 << SHIFT), None);
        }
    }
    let each = (vmas.maxima.looks.load(Ordering::Relaxed) - before) / calls;
    assert!(each < MOST, "{each} looks each");
}

/// Against a plain list of what is mapped, with many chunks: the look-ups of gaps after each change.
#[test]
fn gaps_of_many_mappings_are_those_of_a_plain_list() {
    const PAGES: u64 = 30_000;
    const CALLS: usize = 10_000;
    let mut random = xorshift(0x9e6c_63d0_876a_68ee);
    let mut random = move |below: u64| random(below as usize) as u64;
    let (mut vmas, mut list) = (Vmas::new(SHIFT), Vec::<Range<u64>>::new());
    let (mut most, mut found) = (0, [0; 2]);
    for call in 0..CALLS {
        let start = random(PAGES);
        let pages = match (call < CALLS / 2, random(400)) {
            (false, 0) => 1 + random(PAGES / 8),
            _ => 1 + random(4),
        };
        let range = start << SHIFT..(start + pages) << SHIFT;
        let (from, to) = (
            list.partition_point(|mapped| mapped.end <= range.start),
            list.partition_point(|mapped| mapped.start < range.end),
        );
        if call < CALLS / 2 || random(2) == 0 {
            if from < to {
                continue;
            }
            add(&mut vmas, range.clone(), [Prot::READ, Prot::WRITE][random(2) as usize]);
            list.insert(from, range);
        } else {
            replace(&mut vmas, range.clone(), None);
            let cut: Vec<_> = list.drain(from..to).collect();
            let left = cut.first().map(|first| first.start..range.start);
            let right = cut.last().map(|last| range.end..last.end);
            let rest = left.into_iter().chain(right).filter(|rest| rest.start < rest.end);
            list.splice(from..from, rest);
        }
        most = most.max(vmas.chunks.len());
        let (bottom, top) = match random(4) {
            0 => (random(PAGES) << SHIFT, random(PAGES) << SHIFT),
            _ => (0, (PAGES + 4) << SHIFT),
        };
        let most_pages = 1 << random(8);
        let size = (1 + random(most_pages)) << SHIFT;
        let align = [0, 0, 2, 4][random(4) as usize];
        let align = 1 << (SHIFT + align);
        let phase = random(align >> SHIFT) << SHIFT;
        let starts = core::iter::once(0).chain(list.iter().map(|mapped| mapped.end));
        let ends = list.iter().map(|mapped| mapped.start).chain([u64::MAX]);
        let gaps: Vec<_> = starts.zip(ends).map(|(start, end)| start..end).collect();
        let highest = gaps.iter().rev().find_map(|gap| {
            let (lowest, end) = (gap.start.max(bottom), gap.end.min(top));
            let last = end.checked_sub(size)?;
            let start = last - last % align + phase;
            let start = if start > last { start.checked_sub(align)? } else { start };
            (start >= lowest).then_some(start)
        });
        assert_eq!(vmas.gap_below(bottom, top, size, align, phase), highest, "call {call}");
        let lowest =
            gaps.iter().map(|gap| gap.start.max(bottom)..gap.end).find(|gap| gap.end >= gap.start + size);
        let lowest = lowest.map(|gap| gap.start).filter(|start| start + size <= top);
        assert_eq!(vmas.gap_above(bottom, top, size), lowest, "call {call}");
        found = [found[0] + highest.iter().count(), found[1] + lowest.iter().count()];
    }
    assert!(
        most > 60 && found.iter().all(|found| (CALLS / 4..CALLS * 9 / 10).contains(found)),
        "{most}, {found:?}"
    );
}

/// Against a plain map of pages, with so many mappings that chunks are split, merged and given back.
#[test]
fn random_changes_are_those_of_a_plain_map() {
    let mut random = xorshift(0x2545_f491_4f6c_dd1d);
    let (mut vmas, mut model) = (Vmas::new(SHIFT), vec![None; PAGES]);
    let (mut most, mut fewest_after) = (0, usize::MAX);
    for step in 0..6000 {
        // Now many small ones, now few large ones.
        let longest = if step % 2000 < 1700 { 3 } else { 200 };
        let first = random(PAGES);
        let pages = first..(first + 1 + random(longest)).min(PAGES);
        let range = (pages.start as u64) << SHIFT..(pages.end as u64) << SHIFT;
        let prot = [Prot::READ, Prot::WRITE, Prot::EXEC][random(3)];
        let clone = vmas.try_clone().unwrap();
        if random(8) == 0 {
            vmas = clone;
        }
        match random(4) {
            0 => {
                replace(&mut vmas, range, None);
                model[pages].fill(None);
            }
            1 => {
                vmas.reserve(&range, 0).unwrap();
                vmas.protect(&range, prot);
                model[pages].iter_mut().flatten().for_each(|page| *page = prot);
            }
            _ => {
                replace(&mut vmas, range, Some(prot));
                model[pages].fill(Some(prot));
            }
        }
        check(&vmas, &model);
        (0..3).for_each(|_| check_gaps(&vmas, &model, &mut random));
        most = most.max(vmas.chunks.len());
        if most > 4 {
            fewest_after = fewest_after.min(vmas.chunks.len());
        }
        let first = random(PAGES);
        let end = (first + 1 + random(20)).min(PAGES);
        let range = (first as u64) << SHIFT..(end as u64) << SHIFT;
        assert_eq!(vmas.is_free(&range), model[first..end].iter().all(Option::is_none));
    }
    assert!(most > 4 && fewest_after <= most / 2, "{most} chunks at most, {fewest_after} after that");
}
