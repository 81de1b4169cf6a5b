//! Maps, protects and unmaps 1 GiB as 4 KiB pages, by pleat-mm and by the crate aarch64-paging, in turns in one process.
//!
//! ```text
//! main ──▶ Subject ──┬── pleat       Mm and ptep, on tables in host memory
//!                    └── reference   aarch64_paging::Mapping, likewise
//! ```
//!
//! All map page i of the range to frame i, by the same descriptor bits, which are read back after each operation, outside
//! of the timed part. `docs/performance.md` says what is compared, and why that is fair.

mod pleat;
mod reference;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use arch::{PhysAddr, PteFlags, PteValue};
use mm::pte::{Pte, UserProt};
use rustix::time::{ClockId, clock_gettime};

use self::pleat::{Frames, Pleat};
use self::reference::{Reference, Way};

/// 1 GiB.
const PAGES: usize = 1 << 18;
const PAGE: u64 = 4096;
/// Aligned to 1 GiB, so that whole tables are used.
const FIRST_VA: u64 = 0x40_0000_0000;
const FIRST_PA: u64 = 0x4000_0000;
/// How many times its speed is asked for.
const TARGET: f64 = 2.0;
/// Behind a ratio that is below.
const MARK: char = '<';

/// What is timed of each subject, in this order.
const OPERATIONS: [&str; 6] = ["map", "protect", "unmap", "map again", "wrprotect", "unmap, free"];
type Times = [Duration; OPERATIONS.len()];

/// One that maps 1 GiB.
trait Subject {
    /// Maps all pages, readable and writable: into no tables at first, then into those that `unmap` left.
    fn map(&mut self);
    /// Gives all pages another permission: only to be read.
    fn protect(&mut self);
    /// The same, by what can only take the permission to write, if there is such.
    fn write_protect(&mut self) {
        self.protect();
    }
    /// Unmaps all pages.
    fn unmap(&mut self);
    /// Gives back the tables, of which none maps anything.
    fn free_tables(self: Box<Self>);
    /// Calls `visit` with each page that is mapped, in ascending order: its number and descriptor.
    fn pages(&self, visit: &mut dyn FnMut(usize, PteValue));
    /// Whether each page must have the Contiguous bit, where it is mapped.
    fn folds(&self) -> bool {
        false
    }
}

/// The descriptor of page `page`.
fn descriptor(page: usize, prot: UserProt) -> PteValue {
    PteValue::new_user(PhysAddr::new(FIRST_PA + page as u64 * PAGE), prot)
}

/// Asserts that all pages are mapped as they should be, or that none is.
fn verify(name: &str, subject: &dyn Subject, expected: Option<UserProt>) {
    let mut count = 0;
    subject.pages(&mut |page, pte| {
        let prot = expected.unwrap_or_else(|| panic!("{name}: page {page} is mapped: {pte:?}"));
        let wanted = descriptor(page, prot);
        let wanted = if subject.folds() { wanted.with(PteFlags::CONT) } else { wanted };
        assert_eq!((page, pte), (count, wanted), "{name}: page and descriptor");
        count += 1;
    });
    assert_eq!(count, if expected.is_some() { PAGES } else { 0 }, "{name}: mapped pages");
}

/// What this thread has run for so far, whatever else the machine does.
fn clock() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("not before the thread began")
}

fn timed(operation: impl FnOnce()) -> Duration {
    let start = clock();
    operation();
    clock() - start
}

/// Every operation once, on tables of its own.
fn run(name: &str, mut subject: Box<dyn Subject + '_>) -> Times {
    let map = timed(|| subject.map());
    verify(name, &*subject, Some(UserProt::ReadWrite));
    let protect = timed(|| subject.protect());
    verify(name, &*subject, Some(UserProt::Read));
    let unmap = timed(|| subject.unmap());
    verify(name, &*subject, None);
    let map_again = timed(|| subject.map());
    verify(name, &*subject, Some(UserProt::ReadWrite));
    let write_protect = timed(|| subject.write_protect());
    verify(name, &*subject, Some(UserProt::Read));
    let mut unmap_free = timed(|| subject.unmap());
    verify(name, &*subject, None);
    unmap_free += timed(|| subject.free_tables());
    [map, protect, unmap, map_again, write_protect, unmap_free]
}

const HELP: &str = "\
usage: cargo bench -p pleat-host-tests --bench paging -- [OPTION]...

Maps, protects and unmaps 1 GiB as 4 KiB pages, by pleat-mm and by aarch64-paging. Prints the median times and how many
times the speed of aarch64-paging each way of pleat-mm has. Returns 0 if all that was mapped was found so.

Options:
  --rounds N    run each of them N times (default 15)
  --only TEXT   only those whose names begin with TEXT, as in `live: pleat-mm on a72`
  --help        this text
";

struct Options {
    rounds: usize,
    only: Option<String>,
}

/// The options, or what to print instead of running.
fn options(arguments: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let mut options = Options { rounds: 15, only: None };
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--help" => return Ok(None),
            "--only" => options.only = Some(value()?),
            "--rounds" => {
                let text = value()?;
                let rounds = text.parse().ok().filter(|&rounds| rounds > 0);
                options.rounds =
                    rounds.ok_or_else(|| format!("--rounds is '{text}': it must be 1 or more"))?;
            }
            // What cargo adds.
            "--bench" => {}
            _ => return Err(format!("unknown option '{argument}'")),
        }
    }
    Ok(Some(options))
}

/// One of those that are compared.
struct Contender<'a> {
    name: String,
    ours: bool,
    /// Whether it is called for more than a page at a time.
    batches: bool,
    make: Box<dyn Fn() -> Box<dyn Subject> + 'a>,
}

/// All of them; if `live`, a TLB may hold what they map.
fn contenders(folios: &Folios, live: bool) -> Vec<Contender<'_>> {
    let references = [
        ("map_range", Way::MapRange, PAGES),
        ("modify_range", Way::ModifyRange, PAGES),
        ("page by page", Way::MapRange, 1),
    ];
    let references = references.map(|(name, way, nr)| Contender {
        name: format!("aarch64-paging, {name}"),
        ours: false,
        batches: nr > 1,
        make: Box::new(move || Box::new(Reference::new(way, nr, live))),
    });
    let mut contenders = Vec::from(references);
    for (cpu, features) in [("a72", pleat::CORTEX_A72), ("max", pleat::MAX)] {
        for (name, frames, offset) in [
            ("2 MiB, folded", &folios.large, 0),
            ("64 KiB, folded", &folios.blocks, 0),
            ("64 KiB, not foldable", &folios.blocks, 1),
            ("page by page", &folios.pages, 0),
        ] {
            contenders.push(Contender {
                name: format!("pleat-mm on {cpu}, {name}"),
                ours: true,
                batches: name != "page by page",
                make: Box::new(move || Box::new(Pleat::new(features, frames, offset, live))),
            });
        }
    }
    contenders
}

/// The same memory in folios of several sizes.
struct Folios {
    large: Frames,
    blocks: Frames,
    pages: Frames,
}

/// Runs all in turns, and prints what it took.
fn compare(title: &str, contenders: &[Contender<'_>], rounds: usize) {
    let mut times = vec![Vec::new(); contenders.len()];
    // The first round warms up.
    for round in 0..=rounds {
        for (one, times) in contenders.iter().zip(&mut times) {
            let time = run(&one.name, (one.make)());
            if round > 0 {
                times.push(time);
            }
        }
    }
    let all = || contenders.iter().zip(&times);
    table::header(&format!("{title}: microseconds"));
    for (one, times) in all() {
        table::times(&one.name, times);
    }
    for (reference, reference_times) in all().filter(|(one, _)| !one.ours) {
        table::header(&format!("{title}: times the speed of {}", reference.name));
        for (one, times) in all().filter(|(one, _)| one.ours && one.batches == reference.batches) {
            table::ratios(&one.name, times, reference_times);
        }
    }
}

fn main() -> ExitCode {
    let options = match options(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("paging: {message}");
            return ExitCode::from(2);
        }
    };
    println!("1 GiB as 4 KiB pages on {}, medians of {} rounds", std::env::consts::ARCH, options.rounds);
    println!("{MARK} marks what is below the target of {TARGET} times");
    let folios = Folios { large: Frames::new(9), blocks: Frames::new(4), pages: Frames::new(0) };
    let mut ran = false;
    for (title, live) in [("not live", false), ("live", true)] {
        let mut contenders = contenders(&folios, live);
        if let Some(only) = &options.only {
            contenders.retain(|one| format!("{title}: {}", one.name).starts_with(only));
        }
        if !contenders.is_empty() {
            compare(title, &contenders, options.rounds);
            ran = true;
        }
    }
    if !ran {
        eprintln!("paging: no name begins so");
        return ExitCode::from(2);
    }
    ExitCode::SUCCESS
}
