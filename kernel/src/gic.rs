//! The interrupt controller: GICv2 or GICv3 behind one set of functions.
//!
//! - The boot CPU calls [`init`], then every CPU [`init_cpu`] for itself.
//! - The paths that run on every CPU (acknowledge, end, SGIs, this CPU's own interrupts) take no
//!   lock: their registers are banked by CPU, belong to one CPU, or are written with a single store.
//! - Interrupts are in Group 1 where the GIC has two Security states, as the kernel runs in the
//!   Non-secure one, and on GICv3; all are taken as IRQ.
//! - Handlers run with interrupts masked and are not nested.

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::VirtAddr;
use arch::aarch64::{barrier, probe};
use arm_gic::IntId;
use arm_gic::gicv3::GicError;
use kernel::platform::{self, Cpu, MAX_CPUS, PhysRange};
use mm::MapError;
use spin::Once;

use crate::{cpu, vm};

mod v2;
mod v3;

/// SGIs and PPIs: the interrupts that each CPU has for itself.
const PRIVATE: usize = 32;
/// Those and SPIs, which all CPUs share.
const INTERRUPTS: usize = 1020;

/// The lowest priority value that every GIC signals: four bits are always there, and 0xf0 is masked
/// where no more are.
const LEAST_URGENT: u8 = 0xe0;

static GIC: Once<Driver> = Once::new();

/// How each CPU is addressed by an SGI, and an SPI is led to it: its affinity fields (v3) or the bit of its CPU interface
/// (v2), once it has called [`init_cpu`].
static TARGETS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(NO_TARGET) }; _];
const NO_TARGET: u64 = u64::MAX;

static HANDLERS: [Once<Handler>; INTERRUPTS] = [const { Once::new() }; _];

/// Called with the INTID in interrupt context. It makes its device withdraw the interrupt.
pub(crate) type Handler = fn(u32);

enum Driver {
    V2(v2::GicV2),
    V3(v3::GicV3),
}

/// Why something about interrupts failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Error {
    /// A register frame is smaller than its kind, or not aligned.
    Misplaced(PhysRange),
    /// A register frame could not be mapped.
    Map(MapError),
    /// Nothing answers there.
    NotThere(PhysRange),
    /// The identification registers name another architecture version (ArchRev as read).
    NotThisVersion {
        /// The version that the device tree describes.
        expected: u8,
        /// The version that the registers tell.
        found: u8,
    },
    /// The redistributor regions hold no frame for the CPU with these affinity fields.
    NoRedistributor(u64),
    /// The CPU has no GIC system registers, or firmware keeps them from EL1.
    NoSystemRegisters,
    /// The CPU's Aff0 is above 15, so that SGIs would need the range selector.
    Affinity(u64),
    /// [`init`] has not been called.
    NotInitialised,
    /// [`init`] has been called before.
    AlreadyInitialised,
    /// Not an interrupt that this call can be about.
    InvalidIntid(u32),
    /// The interrupt has a handler.
    HandlerSet(u32),
    /// A priority that some GICs never signal.
    Priority(u8),
    /// The interrupt is not implemented: its enable bit does not stick.
    CannotEnable(u32),
    /// The CPU of this index has not called [`init_cpu`], or does not exist.
    CpuNotReady(usize),
    /// What the driver crate answered.
    Driver(GicError),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misplaced(range) => write!(f, "no GIC register frame: {} to {}", range.start, range.end),
            Self::Map(error) => write!(f, "GIC registers can't be mapped: {error}"),
            Self::NotThere(range) => {
                write!(f, "the device tree promises registers at {range}, and there are none")
            }
            Self::NotThisVersion { expected, found } => {
                write!(f, "the device tree describes a GICv{expected}, the registers tell version {found}")
            }
            Self::NoRedistributor(mpidr) => write!(f, "no GIC redistributor for CPU {mpidr:#x}"),
            Self::NoSystemRegisters => {
                f.write_str("a GICv3 is described, but EL1 has no system registers for it")
            }
            Self::Affinity(mpidr) => write!(f, "the GIC can't send SGIs to CPU {mpidr:#x}: Aff0 above 15"),
            Self::NotInitialised => f.write_str("the GIC is not initialised"),
            Self::AlreadyInitialised => f.write_str("the GIC is initialised already"),
            Self::InvalidIntid(intid) => write!(f, "interrupt {intid} is of the wrong kind"),
            Self::HandlerSet(intid) => write!(f, "interrupt {intid} has a handler already"),
            Self::Priority(priority) => write!(f, "no GIC need signal priority {priority:#x}"),
            Self::CannotEnable(intid) => write!(f, "interrupt {intid} is not implemented"),
            Self::CpuNotReady(cpu) => write!(f, "CPU {cpu} takes no interrupts"),
            Self::Driver(error) => write!(f, "GIC: {error}"),
        }
    }
}

impl core::error::Error for Error {}

/// On the boot CPU: maps the GIC's registers, checks that they are those of such a GIC, disables all
/// shared interrupts and switches the distributor on. `cpus` are those that will take interrupts.
///
/// # Errors
/// See [`Error`]; no interrupt is enabled then.
pub(crate) fn init(gic: &platform::Gic, cpus: &[Cpu]) -> Result<(), Error> {
    if GIC.is_completed() {
        return Err(Error::AlreadyInitialised);
    }
    GIC.try_call_once(|| match gic {
        platform::Gic::V2 { distributor, cpu_interface } => {
            v2::GicV2::new(*distributor, *cpu_interface).map(Driver::V2)
        }
        platform::Gic::V3 { distributor, redistributors } => {
            v3::GicV3::new(*distributor, redistributors, cpus).map(Driver::V3)
        }
    })
    .map(|_| ())
}

/// On each CPU, after [`init`] and before its interrupts are unmasked: disables the CPU's own
/// interrupts and switches its interface on. From then on it takes SGIs that it enables.
///
/// # Errors
/// See [`Error`]; the CPU takes no interrupt then.
pub(crate) fn init_cpu() -> Result<(), Error> {
    let target = match GIC.get().ok_or(Error::NotInitialised)? {
        Driver::V2(gic) => gic.init_cpu(),
        Driver::V3(gic) => gic.init_cpu()?,
    };
    TARGETS[cpu::index()].store(target, Ordering::Release);
    Ok(())
}

/// Makes `handler` the handler of the interrupt `intid`, on all CPUs and for good.
///
/// # Errors
/// [`Error::InvalidIntid`], [`Error::HandlerSet`].
pub(crate) fn register(intid: u32, handler: Handler) -> Result<(), Error> {
    let slot = HANDLERS.get(intid as usize).ok_or(Error::InvalidIntid(intid))?;
    let mut ours = false;
    slot.call_once(|| {
        ours = true;
        handler
    });
    if ours { Ok(()) } else { Err(Error::HandlerSet(intid)) }
}

/// Enables the SGI or PPI `intid` on this CPU with `priority`, of which lower values are more urgent.
///
/// # Errors
/// [`Error::NotInitialised`], [`Error::InvalidIntid`], [`Error::Priority`], [`Error::CannotEnable`].
pub(crate) fn enable_private(intid: u32, priority: u8) -> Result<(), Error> {
    let gic = GIC.get().ok_or(Error::NotInitialised)?;
    let id = private(intid)?;
    if priority > LEAST_URGENT {
        return Err(Error::Priority(priority));
    }
    let enabled = match gic {
        Driver::V2(gic) => gic.enable_private(id, priority),
        Driver::V3(gic) => gic.enable_private(id, priority)?,
    };
    if enabled { Ok(()) } else { Err(Error::CannotEnable(intid)) }
}

/// Enables the SPI `intid`, active while its level is high, with `priority`: it is taken by this CPU.
///
/// # Errors
/// [`Error::NotInitialised`], [`Error::InvalidIntid`], [`Error::Priority`], [`Error::CannotEnable`]; [`Error::CpuNotReady`]
/// where this CPU has not called [`init_cpu`].
pub(crate) fn enable_shared(intid: u32, priority: u8) -> Result<(), Error> {
    let gic = GIC.get().ok_or(Error::NotInitialised)?;
    let id = IntId::try_from(intid).ok().filter(|id| id.is_spi()).ok_or(Error::InvalidIntid(intid))?;
    if priority > LEAST_URGENT {
        return Err(Error::Priority(priority));
    }
    let me = cpu::index();
    let target = TARGETS[me].load(Ordering::Acquire);
    if target == NO_TARGET {
        return Err(Error::CpuNotReady(me));
    }
    let enabled = match gic {
        Driver::V2(gic) => gic.enable_shared(id, priority, target),
        Driver::V3(gic) => gic.enable_shared(id, priority, target)?,
    };
    if enabled { Ok(()) } else { Err(Error::CannotEnable(intid)) }
}

/// Sends the SGI `intid` (0 to 15) to the CPU of index `cpu`, which may be this one. What this CPU
/// wrote before, the handler there sees.
///
/// # Errors
/// [`Error::NotInitialised`], [`Error::InvalidIntid`], [`Error::CpuNotReady`].
pub(crate) fn send_sgi(intid: u32, cpu: usize) -> Result<(), Error> {
    let gic = GIC.get().ok_or(Error::NotInitialised)?;
    let id = private(intid)?;
    if !id.is_sgi() {
        return Err(Error::InvalidIntid(intid));
    }
    let target = TARGETS.get(cpu).map_or(NO_TARGET, |target| target.load(Ordering::Acquire));
    if target == NO_TARGET {
        return Err(Error::CpuNotReady(cpu));
    }
    // The interrupt must not overtake the memory accesses that it is to announce.
    barrier::dsb_ishst();
    match gic {
        Driver::V2(gic) => gic.send_sgi(id, target),
        Driver::V3(gic) => gic.send_sgi(id, target).map_err(Error::Driver)?,
    }
    Ok(())
}

/// From the IRQ vector, interrupts masked: takes the most urgent interrupt, runs its handler and
/// ends it. Returns at once where there is none (it was withdrawn, or another CPU took it).
pub(crate) fn handle_irq() {
    let Some(gic) = GIC.get() else { return };
    let acknowledged = match gic {
        Driver::V2(gic) => gic.acknowledge(),
        Driver::V3(gic) => gic.acknowledge(),
    };
    // 1020 to 1023 are not interrupts, and are not ended.
    if acknowledged.intid >= IntId::SPECIAL_SECURE.raw_value()
        && acknowledged.intid <= IntId::SPECIAL_NONE.raw_value()
    {
        return;
    }
    // Accesses of the handler come after the acknowledge.
    barrier::dsb_sy();

    match HANDLERS.get(acknowledged.intid as usize).and_then(Once::get) {
        Some(handler) => handler(acknowledged.intid),
        None => {
            let disabled = match gic {
                Driver::V2(gic) => gic.disable(acknowledged.intid),
                Driver::V3(gic) => gic.disable(acknowledged.intid),
            };
            if first_unhandled(acknowledged.intid) {
                match disabled {
                    Ok(()) => log::warn!("interrupt {} has no handler: disabled", acknowledged.intid),
                    Err(error) => log::warn!("interrupt {} has no handler: {error}", acknowledged.intid),
                }
            }
        }
    }

    // What the handler wrote has reached its device before the interrupt can come again.
    barrier::dsb_sy();
    match gic {
        Driver::V2(gic) => gic.end(acknowledged),
        Driver::V3(gic) => gic.end(acknowledged),
    }
}

/// Whether `intid` is without handler for the first time. A disabled interrupt can still come from
/// each CPU once, and SGIs of a GICv2 as often as they are sent: disabling those may have no effect.
fn first_unhandled(intid: u32) -> bool {
    static SEEN: [AtomicU32; 32] = [const { AtomicU32::new(0) }; _];
    let bit = 1 << (intid % 32);
    SEEN.get(intid as usize / 32).is_none_or(|word| word.fetch_or(bit, Ordering::Relaxed) & bit == 0)
}

/// An interrupt that this CPU is handling.
#[derive(Clone, Copy)]
struct Acknowledged {
    /// Which one.
    intid: u32,
    /// The register as read, which is what ends it: GICv2 adds the sender of an SGI to the INTID.
    iar: u32,
}

/// `intid` as an SGI or PPI.
fn private(intid: u32) -> Result<IntId, Error> {
    match IntId::try_from(intid) {
        Ok(id) if id.is_sgi() || id.is_ppi() => Ok(id),
        _ => Err(Error::InvalidIntid(intid)),
    }
}

/// Maps a register frame of type `T`.
fn map<T>(range: PhysRange) -> Result<core::ptr::NonNull<T>, Error> {
    let bytes = range.end.get() - range.start.get();
    // Register frames are pages at least; `T`'s alignment is less.
    if bytes < size_of::<T>() as u64 || !range.start.is_aligned(0x1000) {
        return Err(Error::Misplaced(range));
    }
    let registers = vm::map_device(range).map_err(Error::Map)?;
    // SAFETY: the first register of every frame is a control register, which may be read.
    match unsafe { probe::load_word(VirtAddr::new(registers.as_ptr() as u64)) } {
        Ok(_) => Ok(registers.cast()),
        Err(_) => Err(Error::NotThere(range)),
    }
}
