//! Programs at EL0, each as the first process, with all that it starts: `tests/user`.

use alloc::vec::Vec;

use core::sync::atomic::AtomicU32;

use arch::VirtAddr;
use arch::aarch64::hardware::linear;
use arch::aarch64::probe;
use mm::Errno;
use mm::frame::{Folio, MAX_ORDER};
use mm::mman::{MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE};

use super::harness::{Context, TestResult, Unmet, check};
use super::mapping;
use crate::console::println;
use crate::process::space::{self, Space};
use crate::process::{Status, init, reclaim, stack};
use crate::user::Loaded;
use crate::vm::{self, PAGE};
use crate::{cpu, features, heap, memory};

const NO_PROGRAMS: &str = "the initial RAM disk has no test programs";

/// Runs a program, which must exit with 0.
fn runs(name: &str, arguments: &[&str]) -> TestResult {
    let path = alloc::format!("/bin/{name}");
    let argv = [[path.as_str()].as_slice(), arguments, &[""]].concat().join("\0");
    let status = match init::run(path.as_bytes(), argv.as_bytes(), b"PLEAT_TEST=1\0") {
        Err(Errno::ENOENT) if init::has_initrd() => {
            return Err(Unmet::Skipped(NO_PROGRAMS));
        }
        result => result,
    };
    check!(status == Ok(Status::Exited(0)), "{path}: {status:?}");
    Ok(())
}

macro_rules! programs {
    ($($(#[$doc:meta])* $name:ident: $program:literal $(, $argument:literal)*;)*) => {
        $($(#[$doc])* pub(crate) fn $name(_: &Context<'_>) -> TestResult {
            runs($program, &[$($argument),*])
        })*
    };
}

programs! {
    hello: "hello";
    hello_static: "hello-static";
    arguments: "arguments", "one", "two words", "";
    memory: "memory";
    processes: "processes";
    exec: "exec";
    files: "files";
    errors: "errors", "here";
    time: "time";
    random: "random";
    float: "float";
    crowd: "crowd";
    missing: "missing";
    folds: "folds", "here";
    contpte: "contpte", "here";
    populate: "populate";
    /// It is not waited for: what it populates would take minutes.
    is_killed_while_it_populates: "populate", "killed";
    /// On one slow CPU: all is given back, as the harness looks.
    long_calls_let_others_run: "long";
    /// Each allocation of a process fails, one after another: all is given back, as the harness looks.
    each_allocation_fails: "denied";
}

/// What the kernel has mapped can't be read, written or called from EL0, nor its tables.
pub(crate) fn kernel_memory_is_out_of_reach(_: &Context<'_>) -> TestResult {
    let mut places = mapping::parts();
    let image = |part: *const ()| VirtAddr::new(part as u64);
    let text = image(runs as *const ());
    let constant = image(NO_PROGRAMS.as_ptr().cast());
    static VARIABLE: AtomicU32 = AtomicU32::new(1);
    let variable = image((&raw const VARIABLE).cast());
    let table = linear(vm::init_mm().root());
    places.extend([text, constant, variable, table]);
    for at in &places {
        check!(vm::init_mm().leaf(*at).is_some(), "{at} is not mapped");
    }
    let words: Vec<_> = places.iter().map(|at| alloc::format!("{:x}", at.get())).collect();
    let arguments: Vec<_> = ["here"].into_iter().chain(words.iter().map(|word| word.as_str())).collect();
    places.iter().for_each(|at| println!("# out of reach: {at}"));
    runs("faults", &arguments)
}

/// Two CPUs at EL0 in one address space: one uses two blocks, the other unfolds, folds and protects them.
pub(crate) fn a_block_is_used_while_another_cpu_changes_it(_: &Context<'_>) -> TestResult {
    if cpu::count() < 2 {
        return Err(Unmet::Skipped("there is one CPU"));
    }
    runs("blocks", &[])
}

/// The kernel's own loads and stores don't reach what EL0 may access, where the CPU has PAN; unprivileged ones do.
pub(crate) fn user_memory_is_not_the_kernels(_: &Context<'_>) -> TestResult {
    let space = Space::new().expect("memory for tables");
    let prot = PROT_READ | PROT_WRITE;
    let at = space.mmap(0, PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, None).expect("memory");
    space.write(at, &[42]).expect("it was just mapped");
    let va = VirtAddr::new(at);
    // SAFETY: what it maps is one page of its own, which nobody refers to.
    let loaded = unsafe { Loaded::new(&space) };
    // SAFETY: loads of memory have no effect, and nobody relies on what is stored there.
    let (load, store, user) = unsafe { (probe::load(va), probe::store(va, 7), probe::load_user(va)) };
    drop(loaded);
    if !features::uses_pan() {
        check!(load == Ok(42) && store == Ok(()) && user == Ok(7), "{load:?}, {store:?}, {user:?}");
        return Err(Unmet::Skipped("there is no PAN"));
    }
    check!(user == Ok(42), "as EL0: {user:?}");
    for fault in [load.err(), store.err()] {
        let forbidden =
            fault.and_then(|fault| fault.esr.abort()).is_some_and(|abort| abort.is_permission_fault());
        check!(forbidden, "the kernel's own access: {fault:?}");
    }
    Ok(())
}

/// What fails for want of memory is done again as long as an address space that has ended is not given back, by whoever has it
/// last; where one was given back meanwhile; and else once more. What fails for something else is not.
pub(crate) fn memory_of_who_ends_is_waited_for(_: &Context<'_>) -> TestResult {
    const TRIES: u32 = 1000;
    /// Calls `before` with the number of each try, which then fails. How many there were.
    fn tries(error: Errno, mut before: impl FnMut(u32)) -> u32 {
        let mut tries = 0;
        let _ = reclaim::retrying(|| {
            tries += 1;
            before(tries);
            if tries < TRIES { Err(error) } else { Ok(()) }
        });
        tries
    }
    check!(space::count() == 0, "a process is left");
    let found = tries(Errno::ENOMEM, |_| {});
    check!(found == 1, "of something else: {found} tries");
    let found = tries(Errno::OutOfMemory, |_| {});
    check!(found == 2, "nobody ends: {found} tries");

    let mut process = Some(Space::new().expect("memory for tables"));
    check!(space::count() == 0, "it is its maker's");
    process.iter().for_each(Space::list);
    let mut lent = space::after(0);
    check!(lent.is_some(), "a process has it");
    let found = tries(Errno::OutOfMemory, |nr| match nr {
        1 => process = None,
        // Else there would always be somebody who has it.
        2 => assert!(space::after(0).is_none(), "what ends is lent again"),
        4 => lent = None,
        _ => {}
    });
    // Until it is given back, once because it was meanwhile, and once more; or later, if another CPU's idle pass has it last.
    check!((6..=TRIES).contains(&found), "one ends: {found} tries");
    Ok(())
}

/// After all that has run: the kernel stacks of tasks have guards, and nothing is mapped beside what is needed.
pub(crate) fn kernel_stacks_have_guards(context: &Context<'_>) -> TestResult {
    if stack::made() == 0 && init::has_initrd() {
        return Err(Unmet::Skipped(NO_PROGRAMS));
    }
    check!(stack::made() > 0, "no task has run");
    for index in 0..stack::made() {
        let base = vm::task_stack(index);
        // SAFETY: loads of memory have no effect.
        let (inside, below) = unsafe { (probe::load(base), probe::load(VirtAddr::new(base.get() - 1))) };
        check!(inside.is_ok(), "stack {index} at {base}: {inside:?}");
        let unmapped =
            below.err().and_then(|fault| fault.esr.abort()).is_some_and(|abort| abort.is_translation_fault());
        check!(unmapped, "stack {index} at {base} has no guard: {below:?}");
    }
    mapping::no_leaf_is_writable_and_executable(context)?;
    mapping::nothing_but_what_is_needed(context)
}

/// A program that forks and runs another one, with so little memory that it runs out at one step after another: it succeeds,
/// or gets an error, or is killed; and whatever it had is given back. By a machine with little memory, since all of it is taken.
pub(crate) fn memory_is_short(_: &Context<'_>) -> TestResult {
    const FRAMES: usize = 160;
    let frames = memory::frames();
    // The heap keeps what it has.
    let available = || frames.free_frames() + heap::frames() + memory::allocated_for_good();
    // One run with all the memory that it wants, so that what the kernel keeps is there.
    runs("short", &[])?;
    let mut hog: Vec<Folio<'static>> = Vec::with_capacity(4096);
    let mut single: Vec<Folio<'static>> = Vec::with_capacity(FRAMES);
    single.extend((0..FRAMES).map(|_| frames.alloc(0).expect("memory")));
    for order in (0..=MAX_ORDER).rev() {
        while let Ok(folio) = frames.alloc(order) {
            check!(hog.len() < hog.capacity(), "memory is in too many pieces");
            hog.push(folio);
        }
    }
    let (mut succeeded, mut refused, mut killed) = (0, 0, 0);
    while let Some(frame) = single.pop() {
        drop(frame);
        let before = available();
        let result = init::run(b"/bin/short", b"short\0", &[]);
        match result {
            Ok(Status::Exited(0)) => succeeded += 1,
            Ok(Status::Killed(9)) => killed += 1,
            Ok(Status::Exited(12)) | Err(Errno::OutOfMemory | Errno::EAGAIN) => refused += 1,
            other => check!(false, "with {before} frames: {other:?}"),
        }
        let after = available();
        check!(after == before, "{before} frames, {after} after {result:?}");
    }
    println!("# {refused} times refused, {killed} times killed, {succeeded} times run to its end");
    check!(refused > 0 && killed > 0 && succeeded > 0, "not every end was met");
    Ok(())
}
