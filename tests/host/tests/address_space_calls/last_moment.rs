//! A thread writes to a page while a call of another one is under way: before each of the call's steps, one after the other.
//! What it has written is there afterwards, unless the call is one that discards it.

use arch::VirtAddr;
use mm::mman::*;
use mm::{Access, Fault};
use model::mmu::{Came, Write};
use model::{GranuleType, K4, K16, K64};
use pleat_host_tests::address_space::{World, with_world};

use super::{Calls, NEOVERSE, PRIVATE, RW, at};

/// What is written at the last moment.
const NEW: u32 = 0xbeef;

/// Two blocks of anonymous memory, with the border of two tables between them, in pages of the arena.
#[derive(Clone, Copy)]
struct Region {
    start: u64,
    block: u64,
    /// Far away, as congruent as what is here.
    far: u64,
}

impl Region {
    fn of<G: GranuleType + Sync>(world: &World<'_, G>) -> Self {
        let (arena, block) = (world.arena(), world.block());
        let far = (1 << 41) / G::GRANULE.page_size() - arena.start;
        Self { start: (arena.end - arena.start) / 2 - block, block, far }
    }

    fn pages(self) -> u64 {
        2 * self.block
    }

    /// The middle: half of each block.
    fn part(self) -> (u64, u64) {
        (self.start + self.block / 2, self.block)
    }

    fn in_part(self, page: u64) -> bool {
        let (start, pages) = self.part();
        (start..start + pages).contains(&page)
    }

    /// The pages that have something in them: so few that a round takes little time.
    fn marked(self) -> Vec<u64> {
        let quarter = self.block / 4;
        let mut marked: Vec<u64> = (0..8).map(|i| self.start + i * quarter).collect();
        marked.extend([self.start + self.block - 1, self.start + self.pages() - 1]);
        marked
    }

    /// What is in a page at first.
    fn old(self, page: u64) -> u32 {
        1 + (page - self.start) as u32
    }

    /// The pages that are written at the last moment: beside the part, and in it on both sides of the border.
    fn written(self) -> [u64; 3] {
        let quarter = self.block / 4;
        [1, 3, 5].map(|i| self.start + i * quarter)
    }
}

/// What the pages are before the call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Written.
    Dirty,
    /// Advised `MADV_FREE`: clean, and old.
    Free,
    /// The same, and read since, so that TLBs may hold what is clean.
    FreeAndRead,
}

/// What becomes of a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It keeps what is in it.
    Kept,
    /// The same, at another place.
    Moved(u64),
    /// It may be given back, unless it is written to later.
    MayGo,
    /// It is zero.
    Zero,
    /// It is not mapped.
    Unmapped,
}

/// A call, and what is known of it.
struct Call<G: GranuleType + Sync + 'static> {
    /// Blocks are taken apart first.
    unfolded: bool,
    before: fn(&mut World<'_, G>, Region),
    act: fn(&mut World<'_, G>, Region),
    /// Makes memory readable again.
    after: fn(&mut World<'_, G>, Region),
    /// Who calls, and who writes.
    caller: usize,
    writer: usize,
    /// Where the thread writes that is to write to a page.
    at: fn(Region, u64) -> u64,
    fate: fn(Region, u64) -> Fate,
    /// The call gives back what is clean.
    reclaims: bool,
    /// The other process has the pages too, and may see what is written.
    shares: bool,
    other_may_see: bool,
    /// A write may succeed.
    permits: bool,
}

impl<G: GranuleType + Sync + 'static> Call<G> {
    /// A call of process 0, of which no page loses anything.
    fn new(act: fn(&mut World<'_, G>, Region)) -> Self {
        Self {
            unfolded: false,
            before: |_, _| {},
            act,
            after: |_, _| {},
            caller: 0,
            writer: 0,
            at: |_, page| page,
            fate: |_, _| Fate::Kept,
            reclaims: false,
            shares: false,
            other_may_see: false,
            permits: true,
        }
    }
}

/// Takes the blocks apart, so that they could be folded.
fn unfold<G: GranuleType + Sync>(world: &World<'_, G>, region: Region) {
    let (start, pages) = region.part();
    world.advise(0, start, pages, MADV_FREE);
    // Written, each page is dirty again, and nothing folds them.
    (start..start + pages).for_each(|page| world.set_word(0, page, region.old(page)));
    for block in [region.start, region.start + region.block] {
        assert_ne!(world.why(0, block), Ok(()));
    }
}

/// One round.
struct Round {
    state: State,
    /// The page that is written.
    page: u64,
    write: Write,
    near: Vec<VirtAddr>,
    moment: u64,
    /// Of the two processes that share the pages, the one that writes ends first.
    writer_ends: bool,
}

impl Round {
    fn run<G: GranuleType + Sync + 'static>(&self, world: &mut World<'_, G>, call: &Call<G>) -> Came {
        let region = Region::of(world);
        let before = (world.used(), world.board.live_tables());
        world.switch(1, Some(0));
        world.switch(0, Some(0));
        world.map(0, region.start, region.pages(), RW, PRIVATE);
        region.marked().into_iter().for_each(|page| world.set_word(0, page, region.old(page)));
        if call.unfolded {
            unfold(world, region);
        }
        if self.state != State::Dirty {
            world.advise(0, region.start, region.pages(), MADV_FREE);
        }
        if self.state == State::FreeAndRead {
            for page in region.marked() {
                world.fault(0, page, Access::Read).expect("it may be read");
            }
        }
        (call.before)(world, region);
        world.switch(1, Some(call.writer));
        world.switch(0, Some(call.caller));

        world.machine.write_before(self.moment, self.write, &self.near);
        (call.act)(world, region);
        let came = world.machine.moment_is_over();

        world.expect_sound();
        (call.after)(world, region);
        self.judge(world, call, came);
        for process in [0, 1] {
            world.exit(0, process);
        }
        world.expect_sound();
        assert_eq!((world.used(), world.board.live_tables()), before, "memory is lost");
        came
    }

    /// What must be in the pages.
    fn judge<G: GranuleType + Sync + 'static>(&self, world: &mut World<'_, G>, call: &Call<G>, came: Came) {
        let (writer, other) = (call.writer, 1 - call.writer);
        let marked = if call.shares { Region::of(world).marked() } else { Vec::new() };
        let others: Vec<(u64, u32)> =
            marked.into_iter().map(|page| (page, world.word(other, page))).collect();
        self.expect(world, call, came, call.reclaims);
        self.expect_of_other(world, call, came, &others);
        let reclaim = |world: &World<'_, G>| {
            // Twice, since what is young stays the first time.
            for process in [0, 1, 0, 1] {
                world.processes[process].space.reclaim(u64::MAX);
            }
        };
        reclaim(world);
        self.expect(world, call, came, true);
        self.expect_same(world, other, &others);
        // What was shared is one's own when the other is gone.
        world.exit(0, if self.writer_ends { writer } else { other });
        reclaim(world);
        if self.writer_ends {
            self.expect_same(world, other, &others);
        } else {
            self.expect(world, call, came, true);
        }
    }

    /// What the other process has: what was there, or what was written if that is shared.
    fn expect_of_other<G: GranuleType + Sync + 'static>(
        &self,
        world: &World<'_, G>,
        call: &Call<G>,
        came: Came,
        others: &[(u64, u32)],
    ) {
        let region = Region::of(world);
        for &(page, holds) in others {
            let may_be_new = call.other_may_see && page == self.page && matches!(came, Came::Done { .. });
            assert!(
                holds == region.old(page) || may_be_new && holds == NEW,
                "page {} of the other holds {holds:#x}; {came:?}",
                page - region.start,
            );
        }
    }

    /// The other process still has what it had, but for what is clean.
    fn expect_same<G: GranuleType + Sync>(&self, world: &World<'_, G>, other: usize, others: &[(u64, u32)]) {
        for &(page, held) in others {
            let holds = world.word(other, page);
            let may_be_zero = self.state != State::Dirty && held != NEW;
            assert!(
                holds == held || may_be_zero && holds == 0,
                "the other's page {page} holds {holds:#x}, not {held:#x}"
            );
        }
    }

    /// What the process that writes finds. Something may have been `reclaimed`.
    fn expect<G: GranuleType + Sync + 'static>(
        &self,
        world: &World<'_, G>,
        call: &Call<G>,
        came: Came,
        reclaimed: bool,
    ) {
        let region = Region::of(world);
        let done = matches!(came, Came::Done { .. });
        for page in region.marked() {
            let fate = (call.fate)(region, page);
            let place = match fate {
                Fate::Kept | Fate::MayGo | Fate::Zero => page,
                Fate::Moved(to) => to,
                Fate::Unmapped => {
                    let fault = world.fault(call.writer, page, Access::Read);
                    assert_eq!(fault, Err(Fault::Segv { mapped: false }));
                    continue;
                }
            };
            let written = done && page == self.page;
            let holds = world.word(call.writer, place);
            let meant = if written { NEW } else { region.old(page) };
            let clean = self.state != State::Dirty && !written;
            let may_be_zero = reclaimed && (clean || fate == Fate::MayGo);
            assert!(
                if fate == Fate::Zero { holds == 0 } else { holds == meant || may_be_zero && holds == 0 },
                "page {} of the region holds {holds:#x}, not {meant:#x}; {came:?}",
                page - region.start,
            );
        }
    }
}

/// All rounds of a call on a machine with hardware that makes entries dirty.
fn sweep<G: GranuleType + Sync + 'static>(name: &str, call: &Call<G>) {
    let (mut rounds, mut done) = (0, 0);
    for state in [State::Dirty, State::Free, State::FreeAndRead] {
        let mut all = Vec::new();
        with_world::<G>(NEOVERSE, |world| all = variants(Region::of(world), state, call.shares));
        for (page, by, writer_ends) in all {
            // Tables are never used again: a world for each has enough.
            with_world::<G>(NEOVERSE, |world| {
                let region = Region::of(world);
                // Only if there was a choice for the first is there a second.
                let mut both = false;
                for stale in [false, true] {
                    if stale && !both {
                        break;
                    }
                    for moment in 0.. {
                        let (place, pages) = ((call.at)(region, page), region.block);
                        let of_block = |page: u64| page - page % pages + by;
                        let va = |page| VirtAddr::new(at(world, page));
                        let write = Write {
                            cpu: 1,
                            va: VirtAddr::new(at(world, place) + 8),
                            value: NEW,
                            by: by as usize,
                            stale,
                        };
                        let near = [place, of_block(place), page, of_block(page)].map(va).to_vec();
                        let round = Round { state, page, write, near, moment, writer_ends };
                        let came = round.run(world, call);
                        rounds += 1;
                        match came {
                            Came::NotReached => break,
                            Came::Faulted => {}
                            Came::Done { both: choice, .. } => {
                                done += 1;
                                both |= choice;
                            }
                        }
                    }
                }
            });
        }
    }
    println!("{name}: {rounds} rounds, {done} writes");
    assert!(rounds > 30, "{name}: {rounds} rounds");
    assert_eq!(done > 0, call.permits, "{name}: {done} writes succeeded");
}

/// Which page is written, by the entry of which in its block hardware tells so, and whether the process that writes ends first.
fn variants(region: Region, state: State, shares: bool) -> Vec<(u64, u64, bool)> {
    let (written, last) = (region.written(), region.block - 1);
    let own = |page: u64| (page, (page - region.start) % region.block);
    let mut pages: Vec<_> = written.into_iter().map(own).collect();
    match state {
        // What is dirty does not become so.
        State::Dirty => {}
        State::Free => pages.push((written[1], last)),
        State::FreeAndRead => pages = vec![own(written[1]), (written[0], last)],
    }
    let ends: &[bool] = if shares { &[false, true] } else { &[false] };
    pages.into_iter().flat_map(|(page, by)| ends.iter().map(move |&ends| (page, by, ends))).collect()
}

/// A test for each call and granule.
macro_rules! calls {
    ($($name:ident: $call:expr;)*) => {
        $(mod $name {
            use super::*;

            fn sweep_it<G: GranuleType + Sync + 'static>() {
                sweep::<G>(stringify!($name), &$call);
            }

            #[test]
            fn k4() {
                sweep_it::<K4>();
            }

            #[test]
            fn k16() {
                sweep_it::<K16>();
            }

            #[test]
            fn k64() {
                sweep_it::<K64>();
            }
        })*
    };
}

fn protect_part<G: GranuleType + Sync>(world: &mut World<'_, G>, region: Region, prot: u64) {
    let (start, pages) = region.part();
    world.protect(0, start, pages, prot);
}

fn protect_all<G: GranuleType + Sync>(world: &mut World<'_, G>, region: Region, prot: u64) {
    world.protect(0, region.start, region.pages(), prot);
}

fn advise_part<G: GranuleType + Sync>(world: &mut World<'_, G>, region: Region, advice: i32) {
    let (start, pages) = region.part();
    world.advise(0, start, pages, advice);
}

fn fork<G: GranuleType + Sync>(world: &mut World<'_, G>) {
    assert_eq!(world.fork(0, 0, 1), Ok(()));
}

fn write_fault<G: GranuleType + Sync>(world: &World<'_, G>, process: usize, region: Region) {
    assert!(world.fault(process, region.written()[0], Access::Write).is_ok());
}

fn move_pages<G: GranuleType + Sync>(world: &World<'_, G>, from: u64, pages: u64, to: u64) {
    let len = World::<G>::va(pages);
    let moved = world.processes[0].space.mremap(
        at(world, from),
        len,
        len,
        MREMAP_MAYMOVE | MREMAP_FIXED,
        at(world, to),
    );
    assert_eq!(moved, Ok(at(world, to)));
}

/// Where the middle moves to, so that its blocks can't be folded.
fn aside(region: Region) -> u64 {
    region.start + region.pages()
}

fn moved_aside(region: Region, page: u64) -> u64 {
    if region.in_part(page) { page - region.part().0 + aside(region) } else { page }
}

fn part_is(region: Region, page: u64, fate: Fate) -> Fate {
    if region.in_part(page) { fate } else { Fate::Kept }
}

calls! {
    reclaim: Call { reclaims: true, ..Call::new(|world, _| {
        for _ in 0..2 {
            assert!(world.processes[0].space.reclaim(u64::MAX).is_some());
        }
    }) };
    protect_a_part: Call::new(|world, region| protect_part(world, region, PROT_READ));
    protect_all_of_it: Call::new(|world, region| protect_all(world, region, PROT_READ));
    permit_writing_to_a_part: Call {
        before: |world, region| protect_all(world, region, PROT_READ),
        after: |world, region| protect_all(world, region, RW),
        ..Call::new(|world, region| protect_part(world, region, RW))
    };
    permit_writing_to_all_of_it: Call {
        before: |world, region| protect_all(world, region, PROT_READ),
        ..Call::new(|world, region| protect_all(world, region, RW))
    };
    protect_a_part_from_all: Call {
        after: |world, region| protect_part(world, region, RW),
        ..Call::new(|world, region| protect_part(world, region, 0))
    };
    protect_all_from_all: Call {
        after: |world, region| protect_all(world, region, RW),
        ..Call::new(|world, region| protect_all(world, region, 0))
    };
    permit_execution: Call::new(|world, region| protect_part(world, region, RW | PROT_EXEC));
    free_all_of_it: Call {
        fate: |_, _| Fate::MayGo,
        ..Call::new(|world, region| world.advise(0, region.start, region.pages(), MADV_FREE))
    };
    free_a_part: Call {
        fate: |region, page| part_is(region, page, Fate::MayGo),
        ..Call::new(|world, region| advise_part(world, region, MADV_FREE))
    };
    not_need_a_part: Call {
        fate: |region, page| part_is(region, page, Fate::Zero),
        ..Call::new(|world, region| advise_part(world, region, MADV_DONTNEED))
    };
    make_a_part_old: Call::new(|world, region| advise_part(world, region, MADV_COLD));
    unmap_a_part: Call {
        fate: |region, page| part_is(region, page, Fate::Unmapped),
        ..Call::new(|world, region| world.unmap(0, region.part().0, region.part().1))
    };
    move_all_of_it: Call {
        fate: |region, page| Fate::Moved(page - region.start + region.far),
        ..Call::new(|world, region| move_pages(world, region.start, region.pages(), region.far))
    };
    move_all_to_where_it_is_written: Call {
        at: |region, page| page - region.start + region.far,
        fate: |region, page| Fate::Moved(page - region.start + region.far),
        ..Call::new(|world, region| move_pages(world, region.start, region.pages(), region.far))
    };
    move_a_part: Call {
        fate: |region, page| Fate::Moved(moved_aside(region, page)),
        ..Call::new(|world, region| move_pages(world, region.part().0, region.part().1, aside(region)))
    };
    move_a_part_to_where_it_is_written: Call {
        at: moved_aside,
        fate: |region, page| Fate::Moved(moved_aside(region, page)),
        ..Call::new(|world, region| move_pages(world, region.part().0, region.part().1, aside(region)))
    };
    fold_again: Call {
        unfolded: true,
        ..Call::new(|world, _| _ = world.processes[0].space.refold_pass())
    };
    fork_a_child: Call { shares: true, other_may_see: true, ..Call::new(|world, _| fork(world)) };
    // What is write-protected already stays folded where a part of it becomes another mapping.
    fork_a_child_where_a_mapping_ends_within_a_block: Call {
        shares: true,
        other_may_see: true,
        after: |world, region| protect_all(world, region, RW),
        ..Call::new(|world, region| {
            fork(world);
            world.exit(0, 1);
            protect_part(world, region, PROT_READ);
            for block in [region.start, region.start + region.block] {
                assert_eq!(world.why(0, block), Ok(()));
            }
            fork(world);
        })
    };
    copy_for_a_child_that_writes: Call {
        before: |world, _| fork(world),
        caller: 1,
        writer: 1,
        shares: true,
        ..Call::new(|world, region| write_fault(world, 1, region))
    };
    copy_for_a_child_of_who_writes: Call {
        before: |world, _| fork(world),
        caller: 1,
        shares: true,
        permits: false,
        ..Call::new(|world, region| write_fault(world, 1, region))
    };
    take_back_what_was_shared: Call {
        before: |world, _| {
            fork(world);
            world.exit(1, 1);
        },
        ..Call::new(|world, region| write_fault(world, 0, region))
    };
}
