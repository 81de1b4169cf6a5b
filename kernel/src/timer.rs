//! Time: the virtual counter, and a tick on each CPU from its EL1 virtual timer (DDI 0487, D12).
//!
//! The timer fires when the counter reaches CNTV_CVAL_EL0. The handler adds one period to it rather
//! than to the present, so that ticks do not drift, however late each is handled.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use aarch64_cpu::registers::{CNTFRQ_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0, CNTVCT_EL0};
use arch::aarch64::barrier;
use kernel::platform::MAX_CPUS;
use spin::Once;
use tock_registers::interfaces::{Readable, Writeable};

use crate::{cpu, gic};

/// Ticks a second, on each CPU.
pub(crate) const TICK_HZ: u64 = 100;

/// What a counter's frequency may be, in Hz: from what is slow but seen on FPGAs to all that the
/// 32-bit field of CNTFRQ_EL0 can say. The lower bound leaves a tick thousands of counts.
const FREQUENCIES: core::ops::RangeInclusive<u64> = 1_000_000..=u32::MAX as u64;

/// The priority of the timer's interrupt.
const PRIORITY: u8 = 0x80;

/// The counter's frequency in Hz and the timer's interrupt, since [`init`].
static TIMER: Once<Timer> = Once::new();

/// What is called at each tick.
static ON_TICK: Once<fn()> = Once::new();

static CPUS: [PerCpu; MAX_CPUS] =
    [const { PerCpu { ticks: AtomicU64::new(0), missed: AtomicU64::new(0) } }; _];

struct Timer {
    frequency: u64,
    intid: u32,
}

/// Written by its CPU alone, each on its own cache line.
#[repr(align(64))]
struct PerCpu {
    ticks: AtomicU64,
    missed: AtomicU64,
}

/// Why there is no tick.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Error {
    /// CNTFRQ_EL0 says that the counter has this frequency in Hz: firmware has not set it.
    Frequency(u64),
    /// [`init`] has not been called.
    NotInitialised,
    /// The callback is already set.
    CallbackSet,
    /// The interrupt controller's answer.
    Gic(gic::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frequency(hz) => write!(f, "CNTFRQ_EL0 is {hz} Hz, which no counter has"),
            Self::NotInitialised => f.write_str("the timer is not initialised"),
            Self::CallbackSet => f.write_str("the tick callback is already set"),
            Self::Gic(error) => write!(f, "timer interrupt: {error}"),
        }
    }
}

impl core::error::Error for Error {}

/// On the boot CPU, after [`gic::init`]: checks the counter's frequency and registers the handler
/// of `intid`, the interrupt of the EL1 virtual timer.
///
/// # Errors
/// [`Error::Frequency`], or [`Error::Gic`] where `intid` is not a free private interrupt.
pub(crate) fn init(intid: u32) -> Result<(), Error> {
    let frequency = CNTFRQ_EL0.get();
    if !FREQUENCIES.contains(&frequency) {
        return Err(Error::Frequency(frequency));
    }
    gic::register(intid, tick).map_err(Error::Gic)?;
    TIMER.call_once(|| Timer { frequency, intid });
    Ok(())
}

/// On each CPU, after [`gic::init_cpu`]: starts its tick.
///
/// # Errors
/// [`Error::NotInitialised`], or [`Error::Gic`] where the interrupt can't be enabled here.
pub(crate) fn init_cpu() -> Result<(), Error> {
    let timer = TIMER.get().ok_or(Error::NotInitialised)?;
    // Off while the interrupt is enabled: the boot loader may have left it running.
    CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::CLEAR);
    barrier::isb();
    gic::enable_private(timer.intid, PRIORITY).map_err(Error::Gic)?;
    CNTV_CVAL_EL0.set(now() + timer.frequency / TICK_HZ);
    CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::SET + CNTV_CTL_EL0::IMASK::CLEAR);
    barrier::isb();
    Ok(())
}

/// Calls `callback` at every tick on every CPU, in interrupt context: it must not sleep, take a lock
/// other than an [`IrqMutex`](crate::lock::IrqMutex), or take long.
///
/// # Errors
/// [`Error::CallbackSet`]: there is one callback.
pub(crate) fn on_tick(callback: fn()) -> Result<(), Error> {
    let mut ours = false;
    ON_TICK.call_once(|| {
        ours = true;
        callback
    });
    if ours { Ok(()) } else { Err(Error::CallbackSet) }
}

/// The handler of the timer's interrupt.
fn tick(_intid: u32) {
    let Some(timer) = TIMER.get() else { return };
    let period = timer.frequency / TICK_HZ;
    let due = CNTV_CVAL_EL0.get();
    let now = now();
    // The line may still be up from before the comparator was moved.
    if now < due {
        return;
    }
    let late = now - due;
    // A division only where interrupts were masked for more than a period.
    let missed = if late < period { 0 } else { late / period };
    CNTV_CVAL_EL0.set(due + (missed + 1) * period);
    // The line goes down before the interrupt is ended.
    barrier::isb();

    let counters = &CPUS[cpu::index()];
    counters.missed.fetch_add(missed, Ordering::Relaxed);
    counters.ticks.fetch_add(1, Ordering::Relaxed);
    if let Some(callback) = ON_TICK.get() {
        callback();
    }
}

/// How many ticks `cpu` has handled since its [`init_cpu`]. Together with those that it [`missed`]
/// they are the periods of 1/[`TICK_HZ`] second that passed, as of the last tick.
///
/// # Panics
/// Where `cpu` is not below [`MAX_CPUS`].
pub(crate) fn ticks(cpu: usize) -> u64 {
    CPUS[cpu].ticks.load(Ordering::Relaxed)
}

/// How many periods passed on `cpu` without a tick of their own, since interrupts were masked, or a
/// virtual CPU did not run, for longer than a period.
///
/// # Panics
/// Where `cpu` is not below [`MAX_CPUS`].
pub(crate) fn missed(cpu: usize) -> u64 {
    CPUS[cpu].missed.load(Ordering::Relaxed)
}

/// The virtual counter, not read ahead of what comes before in program order. All CPUs see the same.
#[inline]
pub(crate) fn now() -> u64 {
    barrier::isb();
    CNTVCT_EL0.get()
}

/// The counter's frequency in Hz. Before [`init`], and where that failed, what the register says but
/// never 0.
pub(crate) fn frequency() -> u64 {
    match TIMER.get() {
        Some(timer) => timer.frequency,
        None => CNTFRQ_EL0.get().max(1),
    }
}

/// How long `counts` of the counter last, rounded down to a nanosecond.
pub(crate) fn duration(counts: u64) -> Duration {
    let frequency = frequency();
    // The frequency is below 2^32, so that the remainder times 10^9 is below 2^62.
    let nanos = counts % frequency * 1_000_000_000 / frequency;
    Duration::new(counts / frequency, nanos as u32)
}
