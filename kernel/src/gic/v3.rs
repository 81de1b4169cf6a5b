//! GICv3 and GICv4 (IHI 0069) by the `arm-gic` crate.
//!
//! Its `GicV3` is one value for the whole GIC, driven by one CPU at a time; used here are the parts
//! it is made of: the distributor under a lock, one redistributor for each CPU, and the CPU
//! interface, which is system registers.

use core::ptr::NonNull;

use arch::PhysAddr;
use arch::aarch64::{barrier, daif, icc};
use arm_gic::gicv3::registers::{Gicd, GicdCtlr, Gicr, GicrSgi};
use arm_gic::gicv3::{
    GicCpuInterface, GicDistributor, GicError, GicRedistributor, SgiTarget, SgiTargetGroup,
};
use arm_gic::{IntId, InterruptGroup, Trigger};
use arrayvec::ArrayVec;
use kernel::platform::{Cpu, MAX_CPUS, PhysRange};
use safe_mmio::{SharedMmioPointer, UniqueMmioPointer, field, field_shared};

use super::{Acknowledged, Error, map};
use crate::cpu;
use crate::lock::IrqMutex;

/// A GICv3.
pub(super) struct GicV3 {
    distributor: IrqMutex<GicDistributor<'static>>,
    redistributors: ArrayVec<Redistributor, MAX_CPUS>,
}

/// The register frames of one CPU's redistributor.
struct Redistributor {
    affinity: u64,
    frames: NonNull<GicrSgi>,
}

// SAFETY: the registers are mapped for ever on all CPUs, and only the CPU with this affinity uses
// them, with interrupts masked.
unsafe impl Send for Redistributor {}
// SAFETY: as above.
unsafe impl Sync for Redistributor {}

impl GicV3 {
    /// Maps and checks the registers, finds the redistributors of `cpus`, disables all shared
    /// interrupts and enables the distributor.
    pub(super) fn new(distributor: PhysRange, regions: &[PhysRange], cpus: &[Cpu]) -> Result<Self, Error> {
        // First of all: on a machine with a GICv2 there is nothing where a GICv3 has its identification.
        if !icc::is_present() {
            return Err(Error::NoSystemRegisters);
        }
        let gicd = map::<Gicd>(distributor)?;
        // SAFETY: mapped as device memory for ever. The driver is made once, so that this is the
        // only pointer to the registers.
        let mut distributor = GicDistributor::new(unsafe { UniqueMmioPointer::new(gicd) });
        check_version(distributor.pidr2().arch_rev())?;

        let mut redistributors = ArrayVec::new();
        for region in regions {
            find_redistributors(*region, cpus, &mut redistributors)?;
        }
        for cpu in cpus {
            if !redistributors.iter().any(|redistributor: &Redistributor| redistributor.affinity == cpu.mpidr)
            {
                return Err(Error::NoRedistributor(cpu.mpidr));
            }
        }

        // Affinity routing may be switched on only while all groups are off. In the Non-secure view
        // of two Security states bits 0 and 1 both are Group 1's and bit 4 is its routing, as in the
        // view of a single state; so the names for the latter do for both.
        distributor
            .modify_control(GicdCtlr::EnableGrp0 | GicdCtlr::EnableGrp1NS | GicdCtlr::EnableGrp1S, false);
        distributor.enable_all_interrupts(false);
        distributor.configure_default_settings();
        Ok(Self { distributor: IrqMutex::new(distributor), redistributors })
    }

    /// Runs `f` on the redistributor of this CPU.
    fn with_redistributor<R>(
        &self,
        f: impl FnOnce(UniqueMmioPointer<'_, GicrSgi>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let me = cpu::mpidr();
        let own = self.redistributors.iter().find(|redistributor| redistributor.affinity == me);
        let own = own.ok_or(Error::NoRedistributor(me))?;
        // SAFETY: mapped for ever, and this CPU's own; with interrupts masked nothing else runs on
        // it, and `f` comes from this module and does not come back here.
        daif::masked(|| f(unsafe { UniqueMmioPointer::new(own.frames) }))
    }

    /// Wakes this CPU's redistributor, disables its interrupts, enables the CPU interface, and
    /// returns the affinity by which SGIs reach it.
    pub(super) fn init_cpu(&self) -> Result<u64, Error> {
        let me = cpu::mpidr();
        // An SGI's target list is a bit for each Aff0 from 0 to 15.
        if me & 0xff > 15 {
            return Err(Error::Affinity(me));
        }
        self.with_redistributor(|mut frames| {
            let mut redistributor = GicRedistributor::new(frames.reborrow());
            match redistributor.mark_core_awake() {
                // Awake it is where firmware has woken it, and always for Non-secure accesses.
                Ok(()) | Err(GicError::AlreadyAwake) => {}
                Err(error) => return Err(Error::Driver(error)),
            }
            redistributor.configure_default_settings();
            let mut sgi = field!(frames, sgi);
            // Nothing is left from the boot loader's time.
            if let Some(mut active) = field!(sgi, icactiver).get(0) {
                active.write(u32::MAX);
            }
            if let Some(mut pending) = field!(sgi, icpendr).get(0) {
                pending.write(u32::MAX);
            }
            Ok(())
        })?;

        if !icc::reset() {
            return Err(Error::NoSystemRegisters);
        }
        // All priorities are let through.
        GicCpuInterface::set_priority_mask(0xff);
        GicCpuInterface::enable_group1(true);
        barrier::isb();
        Ok(me)
    }

    /// Enables a private interrupt on this CPU; `false` where it is not implemented.
    pub(super) fn enable_private(&self, id: IntId, priority: u8) -> Result<bool, Error> {
        self.with_redistributor(|mut frames| {
            let mut redistributor = GicRedistributor::new(frames.reborrow());
            redistributor.set_interrupt_priority(id, priority).map_err(Error::Driver)?;
            redistributor.enable_interrupt(id, true).map_err(Error::Driver)?;
            let sgi = field_shared!(frames, sgi);
            let enabled = field_shared!(sgi, isenabler).get(0).map_or(0, |word| word.read());
            Ok(enabled & 1 << id.raw_value() != 0)
        })
    }

    /// Enables a shared interrupt for the CPU whose affinity is `target`; `false` where it is not implemented.
    pub(super) fn enable_shared(&self, id: IntId, priority: u8, target: u64) -> Result<bool, Error> {
        let mut distributor = self.distributor.lock();
        distributor.set_interrupt_priority(id, priority).map_err(Error::Driver)?;
        distributor.set_trigger(id, Trigger::Level).map_err(Error::Driver)?;
        distributor.set_routing(id, Some(target)).map_err(Error::Driver)?;
        distributor.enable_interrupt(id, true).map_err(Error::Driver)?;
        Ok(id.spi_index().is_some_and(|index| index < distributor.typer().num_spis() as usize))
    }

    /// Disables an interrupt: on this CPU if it is private.
    pub(super) fn disable(&self, intid: u32) -> Result<(), Error> {
        let id = IntId::try_from(intid).map_err(|_| Error::InvalidIntid(intid))?;
        if id.is_private() {
            self.with_redistributor(|frames| {
                GicRedistributor::new(frames).enable_interrupt(id, false).map_err(Error::Driver)
            })
        } else {
            self.distributor.lock().enable_interrupt(id, false).map_err(Error::Driver)
        }
    }

    /// Sends an SGI to the CPU whose affinity is `target`.
    pub(super) fn send_sgi(&self, id: IntId, target: u64) -> Result<(), GicError> {
        let [aff0, aff1, aff2, _, aff3, ..] = target.to_le_bytes();
        let target =
            SgiTarget::List { affinity3: aff3, affinity2: aff2, affinity1: aff1, target_list: 1 << aff0 };
        GicCpuInterface::send_sgi(id, target, SgiTargetGroup::CurrentGroup1)?;
        barrier::isb();
        Ok(())
    }

    /// Takes this CPU's most urgent interrupt.
    pub(super) fn acknowledge(&self) -> Acknowledged {
        let id = GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1);
        let intid = id.unwrap_or(IntId::SPECIAL_NONE).raw_value();
        Acknowledged { intid, iar: intid }
    }

    /// Ends an interrupt that [`GicV3::acknowledge`] took.
    pub(super) fn end(&self, acknowledged: Acknowledged) {
        if let Ok(id) = IntId::try_from(acknowledged.iar) {
            GicCpuInterface::end_interrupt(id, InterruptGroup::Group1);
            barrier::isb();
        }
    }
}

/// Checks ArchRev of a PIDR2.
fn check_version(found: u8) -> Result<(), Error> {
    if found == 3 || found == 4 { Ok(()) } else { Err(Error::NotThisVersion { expected: 3, found }) }
}

/// Adds the redistributors of `cpus` that `region` holds to `found`. The crate's iterator is not
/// used: it does not know where the region ends.
fn find_redistributors(
    region: PhysRange,
    cpus: &[Cpu],
    found: &mut ArrayVec<Redistributor, MAX_CPUS>,
) -> Result<(), Error> {
    const SIZE: u64 = size_of::<GicrSgi>() as u64;
    let mut left = region.size() / SIZE;
    let mut at = region.start;
    while left > 0 {
        // The region may have room for more CPUs than there are, so it is mapped as far as it is used.
        let frames = map::<GicrSgi>(PhysRange { start: at, end: PhysAddr::new(at.get() + SIZE) })?;
        // SAFETY: within the mapped region. No other pointer is in use yet: only the one CPU that
        // makes the driver runs this, and this one is gone when it is stepped on.
        let shared = SharedMmioPointer::from(unsafe { UniqueMmioPointer::new(frames) });
        let gicr: SharedMmioPointer<'_, Gicr> = field_shared!(shared, gicr);
        check_version(field_shared!(gicr, pidr2).read().arch_rev())?;
        let typer = field_shared!(gicr, typer).read();

        let affinity = typer.core_mpidr();
        if cpus.iter().any(|cpu| cpu.mpidr == affinity) {
            // More than `MAX_CPUS` there are only if the same affinity comes twice.
            let _ = found.try_push(Redistributor { affinity, frames });
        }

        // VLPI_base and a reserved frame follow where there are virtual LPIs.
        let step = if typer.virtual_lpis_supported() { 2 } else { 1 };
        if typer.last_redistributor() || left <= step {
            break;
        }
        left -= step;
        at = PhysAddr::new(at.get() + step * SIZE);
    }
    Ok(())
}
