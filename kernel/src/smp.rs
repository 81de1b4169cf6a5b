//! Further CPUs: started one after the other, then waiting for functions to run.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use arch::PhysAddr;
use arch::aarch64::hardware::{LINEAR_BITS, linear};
use arch::aarch64::{barrier, boot, daif, dcache, probe};
use kernel::platform::{Cpu, EnableMethod, MAX_CPUS, Platform};
use mm::MapError;

use crate::lock::IrqMutex;
use crate::process::{life, sched};
use crate::{cpu, features, gic, psci, timer, vm};

/// How long a CPU may take from its start until it is ready, in microseconds: long, since an emulator may be busy.
const START_TIMEOUT: u64 = 10_000_000;

/// The software-generated interrupt that wakes a CPU, so that it looks into its mailbox.
const WAKE: u32 = 0;
const WAKE_PRIORITY: u8 = 0x80;

type Job = Box<dyn FnOnce() + Send>;

/// Whether a CPU was given a function that it has not returned from, and dropped, yet.
static BUSY: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];

/// The function that a CPU was given.
static MAILBOXES: [IrqMutex<Option<Job>>; MAX_CPUS] = [const { IrqMutex::new(None) }; MAX_CPUS];

/// Why a CPU does not run. All of them end the boot: a CPU that comes up late would find the stacks that were
/// meant for another.
#[derive(Debug)]
pub(crate) enum Error {
    /// No memory for its stacks, or the window is full.
    Stacks(MapError),
    /// PSCI refused.
    Psci(psci::Error),
    /// What it waits for is not in RAM that may be mapped.
    ReleaseAddress(PhysAddr),
    /// The device tree does not say how to start it, or in a way that is not supported.
    Method(EnableMethod),
    /// It was started and does not answer.
    Timeout,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stacks(error) => error.fmt(f),
            Self::Psci(error) => error.fmt(f),
            Self::ReleaseAddress(pa) => {
                write!(f, "its `cpu-release-addr` {pa} is not in RAM that may be mapped")
            }
            Self::Method(method) => write!(f, "the enable-method {method:?} is not supported"),
            Self::Timeout => write!(f, "no answer within {START_TIMEOUT} microseconds"),
        }
    }
}

/// Starts every CPU of the platform that does not run yet.
///
/// # Errors
/// The first CPU that can't be started, and why.
pub(crate) fn start(platform: &Platform<'_>) -> Result<(), (Cpu, Error)> {
    gic::register(WAKE, wake).expect("the wake-up interrupt has one handler");
    gic::enable_private(WAKE, WAKE_PRIORITY).expect("every CPU has SGIs");
    let me = cpu::mpidr();
    for &cpu in platform.cpus.iter().filter(|cpu| cpu.mpidr != me).take(MAX_CPUS - 1) {
        start_one(cpu).map_err(|error| (cpu, error))?;
    }
    Ok(())
}

fn start_one(cpu: Cpu) -> Result<(), Error> {
    let index = cpu::count();
    let area = vm::map_stacks(index).map_err(Error::Stacks)?;
    cpu::prepare(index, area);
    // What the CPU will read to find its stack must not wait in this CPU's store buffer.
    barrier::dsb_ish();
    let entry = vm::image().physical(boot::image::secondary_entry());
    match cpu.enable {
        EnableMethod::Psci => {
            // SAFETY: the entry is the boot code for further CPUs, and what it reads was just prepared.
            unsafe { psci::cpu_on(cpu.mpidr, entry, 0) }.map_err(Error::Psci)?;
        }
        EnableMethod::SpinTable(release) => {
            // SAFETY: as above. The address is a spin table's, which the memory map has reserved.
            unsafe { release_cpu(release, entry)? };
        }
        method @ EnableMethod::None => return Err(Error::Method(method)),
    }
    let start = timer::now();
    while cpu::count() == index {
        if timer::duration(timer::now() - start).as_micros() as u64 > START_TIMEOUT {
            return Err(Error::Timeout);
        }
        core::hint::spin_loop();
    }
    Ok(())
}

/// Lets a CPU go that waits in firmware, its MMU off, until its entry point is written to `release` (Linux's
/// Documentation/arch/arm64/booting.rst).
///
/// # Safety
/// `entry` is code made for that state, and everything that it reads before its caches are on has been cleaned to the
/// point of coherency. Nobody refers to the eight bytes at `release`, which are aligned.
unsafe fn release_cpu(release: PhysAddr, entry: PhysAddr) -> Result<(), Error> {
    let unmapped = Error::ReleaseAddress(release);
    if release.get() >> LINEAR_BITS != 0 {
        return Err(unmapped);
    }
    let va = linear(release);
    // SAFETY: reading memory has no effect; where none is mapped, the load faults.
    if unsafe { probe::load(va) }.is_err() {
        return Err(unmapped);
    }
    // SAFETY: it is mapped, and what is in the linear map is writable.
    unsafe { (va.get() as *mut u64).write_volatile(entry.get()) };
    // It reads memory, not this CPU's cache.
    dcache::clean_and_invalidate(va, size_of::<u64>() as u64);
    barrier::sev();
    Ok(())
}

/// Where the boot assembly leads CPUs other than the first.
#[unsafe(no_mangle)]
extern "C" fn pleat_secondary() -> ! {
    gic::init_cpu().expect("the interrupt controller knows every CPU");
    gic::enable_private(WAKE, WAKE_PRIORITY).expect("every CPU has SGIs");
    timer::init_cpu().expect("the timer runs on the boot CPU");
    features::note_this_cpu();
    cpu::set_online();
    loop {
        // Masked from the look into the mailbox until it waits: an interrupt that comes in between stays
        // pending, and WFI returns at once.
        daif::save_and_mask();
        let job = MAILBOXES[cpu::index()].lock().take();
        let idle = job.is_none() && !sched::run_next();
        if idle {
            sched::wait();
        }
        // SAFETY: no lock is held; vectors and interrupt controller are set up.
        unsafe { daif::unmask() };
        if let Some(job) = job {
            // With its return the job is dropped: whoever waits for it may count on its memory being free.
            job();
            BUSY[cpu::index()].store(false, Ordering::Release);
        } else if idle {
            life::idle_pass();
        }
    }
}

/// The handler of [`WAKE`]: that it came is enough.
fn wake(_: u32) {}

/// Has a CPU, which runs, look for something to run.
pub(crate) fn wake_cpu(index: usize) {
    gic::send_sgi(WAKE, index).expect("every CPU that runs can be sent an SGI");
}

/// A CPU that is to be given a function still has one, or does not run, or is the one that asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Busy;

/// The result of a function that another CPU runs.
pub(crate) struct JoinHandle<T> {
    cpu: usize,
    result: Arc<IrqMutex<Option<T>>>,
}

impl<T> JoinHandle<T> {
    /// Waits for the function to return, and for what it held to be given back.
    pub(crate) fn join(self) -> T {
        while BUSY[self.cpu].load(Ordering::Acquire) {
            core::hint::spin_loop();
        }
        self.result.lock().take().expect("a function that has returned left its result")
    }
}

/// Runs `f` on CPU `index`, which must be another one that waits for functions.
///
/// # Errors
/// [`Busy`]
pub(crate) fn spawn_on<T: Send + 'static>(
    index: usize,
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, Busy> {
    if index == 0
        || index == cpu::index()
        || index >= cpu::count()
        || BUSY[index].swap(true, Ordering::Acquire)
    {
        return Err(Busy);
    }
    let result = Arc::new(IrqMutex::new(None));
    let theirs = result.clone();
    *MAILBOXES[index].lock() = Some(Box::new(move || {
        let value = f();
        *theirs.lock() = Some(value);
    }));
    wake_cpu(index);
    Ok(JoinHandle { cpu: index, result })
}
