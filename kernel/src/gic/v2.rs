//! GICv2 (IHI 0048B).
//!
//! The registers are described here and not taken from `arm_gic::gicv2`: its driver is one value for
//! the whole GIC, and requires that no other exists over the same registers, while each CPU needs its
//! own CPU interface at the same address at any time; and its register types do not cover the target
//! and identification registers.
//!
//! One driver value serves all CPUs. The CPU interface and the first word of each set of distributor
//! registers are banked: at one address every CPU finds its own.

use core::ptr::NonNull;

use arch::aarch64::daif;
use arm_gic::IntId;
use arm_gic::gicv2::Typer;
use kernel::platform::PhysRange;
use safe_mmio::fields::{ReadOnly, ReadPure, ReadPureWrite, WriteOnly};
use safe_mmio::{UniqueMmioPointer, field, field_shared, split_fields};

use super::{Acknowledged, Error, map};
use crate::lock::IrqMutex;

/// GICD_CTLR and GICC_CTLR bit 0. With two Security states it is EnableGrp1 for Non-secure accesses,
/// else EnableGrp0.
const ENABLE: u32 = 1 << 0;

/// GICC_CTLR: bypass disable bits for both groups, which are firmware's to choose.
const BYPASS: u32 = 0xf << 5;

/// INTID field of GICC_IAR; above it is the CPU interface that sent the SGI.
const IAR_INTID: u32 = 0x3ff;

/// GICD, 4.1.2: the part for which the accesses of several CPUs must be kept apart.
#[repr(C)]
struct Gicd {
    ctlr: ReadPureWrite<u32>,
    typer: ReadPure<Typer>,
    _reserved: [u32; 0x1e],
    igroupr: [ReadPureWrite<u32>; 32],
    isenabler: [ReadPureWrite<u32>; 32],
    icenabler: [ReadPureWrite<u32>; 32],
    ispendr: [ReadPureWrite<u32>; 32],
    icpendr: [ReadPureWrite<u32>; 32],
    isactiver: [ReadPureWrite<u32>; 32],
    icactiver: [ReadPureWrite<u32>; 32],
    // These two sets are accessible by bytes.
    ipriorityr: [ReadPureWrite<u8>; 1024],
    itargetsr: [ReadPureWrite<u8>; 1024],
    icfgr: [ReadPureWrite<u32>; 64],
    _implementation_defined: [u32; 0x80],
}

/// All of GICD.
#[repr(C)]
struct GicdFrame {
    shared: Gicd,
    /// 0xf00
    sgir: WriteOnly<u32>,
    _reserved: [u32; 0x39],
    /// 0xfe8 ICPIDR2
    pidr2: ReadPure<u32>,
    _reserved_end: [u32; 5],
}
const _: () = assert!(size_of::<GicdFrame>() == 0x1000);
const _: () = assert!(core::mem::offset_of!(GicdFrame, sgir) == 0xf00);
const _: () = assert!(core::mem::offset_of!(GicdFrame, pidr2) == 0xfe8);

/// GICC, 4.1.3.
#[repr(C)]
struct Gicc {
    ctlr: ReadPureWrite<u32>,
    pmr: ReadPureWrite<u32>,
    bpr: ReadPureWrite<u32>,
    iar: ReadOnly<u32>,
    eoir: WriteOnly<u32>,
    _others: [u32; 0x2f],
    /// 0x0d0
    apr: [ReadPureWrite<u32>; 4],
    _reserved: [u32; 7],
    /// 0x0fc
    iidr: ReadPure<u32>,
}
const _: () = assert!(core::mem::offset_of!(Gicc, apr) == 0xd0);
const _: () = assert!(core::mem::offset_of!(Gicc, iidr) == 0xfc);

/// A GICv2.
pub(super) struct GicV2 {
    gicd: IrqMutex<UniqueMmioPointer<'static, Gicd>>,
    sgir: NonNull<WriteOnly<u32>>,
    gicc: NonNull<Gicc>,
}

// SAFETY: `gicd` is locked. `sgir` and `gicc` point to registers that are mapped for ever on all
// CPUs; `sgir` is only stored to, and `gicc` is another device on each CPU, used with interrupts
// masked.
unsafe impl Send for GicV2 {}
// SAFETY: as above.
unsafe impl Sync for GicV2 {}

impl GicV2 {
    /// Maps and checks the registers, disables all shared interrupts and enables the distributor.
    pub(super) fn new(distributor: PhysRange, cpu_interface: PhysRange) -> Result<Self, Error> {
        let gicd = map::<GicdFrame>(distributor)?;
        let gicc = map::<Gicc>(cpu_interface)?;
        // SAFETY: mapped as device memory for ever. The driver is made once, so that these are the
        // only pointers to the registers; each field is split off once.
        let (mut gicd, mut sgir, pidr2) =
            unsafe { split_fields!(UniqueMmioPointer::new(gicd), shared, sgir, pidr2) };

        // ArchRev; CPU interfaces tell theirs in bits 19:16.
        let found = (pidr2.read() >> 4 & 0xf) as u8;
        if found != 2 {
            return Err(Error::NotThisVersion { expected: 2, found });
        }
        // SAFETY: as above; this pointer is gone with this statement.
        let interface = unsafe { UniqueMmioPointer::new(gicc) };
        let found = (field_shared!(interface, iidr).read() >> 16 & 0xf) as u8;
        if found != 2 {
            return Err(Error::NotThisVersion { expected: 2, found });
        }

        field!(gicd, ctlr).write(0);
        let words = field_shared!(gicd, typer).read().num_irqs() as usize / 32;
        for mut register in field!(gicd, icenabler).iter().take(words).skip(1) {
            register.write(u32::MAX);
        }
        // With two Security states these are read as zero and ignore writes, firmware having put
        // what it leaves to the kernel into Group 1. With one, Group 0 it is.
        for mut register in field!(gicd, igroupr).iter().take(words).skip(1) {
            register.write(0);
        }
        field!(gicd, ctlr).write(ENABLE);

        Ok(Self { gicd: IrqMutex::new(gicd), sgir: sgir.ptr_nonnull(), gicc })
    }

    /// Runs `f` on the CPU interface of this CPU.
    fn with_gicc<R>(&self, f: impl FnOnce(UniqueMmioPointer<'_, Gicc>) -> R) -> R {
        // SAFETY: the registers behind the address are this CPU's own, and with interrupts masked
        // nothing else runs on it; `f` comes from this module and does not come back here.
        daif::masked(|| f(unsafe { UniqueMmioPointer::new(self.gicc) }))
    }

    /// Disables this CPU's own interrupts, enables its interface, and returns the latter's bit.
    pub(super) fn init_cpu(&self) -> u64 {
        let mut guard = self.gicd.lock();
        let gicd = &mut *guard;
        // Word 0 is this CPU's own.
        write(field!(*gicd, icenabler), 0, u32::MAX);
        write(field!(*gicd, icactiver), 0, u32::MAX);
        write(field!(*gicd, icpendr), 0, u32::MAX);
        write(field!(*gicd, igroupr), 0, 0);
        // The targets of a CPU's own interrupts are itself: the byte that every one of them reads.
        let mut own = field!(*gicd, itargetsr);
        let bit = own.iter().take(super::PRIVATE).map(|byte| byte.read()).find(|&byte| byte != 0);
        drop(guard);

        self.with_gicc(|mut gicc| {
            let bypass = field!(gicc, ctlr).read() & BYPASS;
            field!(gicc, ctlr).write(0);
            // All priorities are let through; none is still active from the boot loader's time.
            field!(gicc, pmr).write(0xff);
            for mut register in field!(gicc, apr).iter() {
                register.write(0);
            }
            field!(gicc, ctlr).write(bypass | ENABLE);
        });
        // Read as zero where there is but one CPU interface.
        u64::from(bit.unwrap_or(1))
    }

    /// Enables a private interrupt on this CPU; `false` where it is not implemented.
    pub(super) fn enable_private(&self, id: IntId, priority: u8) -> bool {
        let intid = id.raw_value();
        let mut guard = self.gicd.lock();
        let gicd = &mut *guard;
        let mut priorities = field!(*gicd, ipriorityr);
        priorities.get(intid as usize).expect("an INTID is below 1024").write(priority);
        write(field!(*gicd, isenabler), 0, 1 << intid);
        field_shared!(*gicd, isenabler).get(0).is_some_and(|word| word.read() & 1 << intid != 0)
    }

    /// Enables a shared interrupt for the CPU interfaces with bits in `target`; `false` where it is not implemented.
    pub(super) fn enable_shared(&self, id: IntId, priority: u8, target: u64) -> bool {
        let intid = id.raw_value() as usize;
        let mut guard = self.gicd.lock();
        let gicd = &mut *guard;
        field!(*gicd, ipriorityr).get(intid).expect("an INTID is below 1024").write(priority);
        // Read as zero and ignored where there is but one CPU interface.
        field!(*gicd, itargetsr).get(intid).expect("an INTID is below 1024").write(target as u8);
        // Two bits for each interrupt, of which the upper one is set for edges.
        let level = field_shared!(*gicd, icfgr).get(intid / 16).map_or(0, |word| word.read());
        write(field!(*gicd, icfgr), intid / 16, level & !(0b10 << (2 * (intid % 16))));
        write(field!(*gicd, isenabler), intid / 32, 1 << (intid % 32));
        field_shared!(*gicd, isenabler)
            .get(intid / 32)
            .is_some_and(|word| word.read() & 1 << (intid % 32) != 0)
    }

    /// Disables an interrupt: on this CPU if it is private.
    pub(super) fn disable(&self, intid: u32) -> Result<(), Error> {
        let mut guard = self.gicd.lock();
        write(field!(*guard, icenabler), intid as usize / 32, 1 << (intid % 32));
        Ok(())
    }

    /// Sends an SGI to the CPU interface whose bit is `target`.
    pub(super) fn send_sgi(&self, id: IntId, target: u64) {
        // SAFETY: mapped for ever. Several CPUs may write at once: each is one store, and the
        // register keeps no state.
        let mut sgir = unsafe { UniqueMmioPointer::new(self.sgir) };
        sgir.write((target as u32) << 16 | id.raw_value());
    }

    /// Takes this CPU's most urgent interrupt.
    pub(super) fn acknowledge(&self) -> Acknowledged {
        let iar = self.with_gicc(|mut gicc| field!(gicc, iar).read());
        Acknowledged { intid: iar & IAR_INTID, iar }
    }

    /// Ends an interrupt that [`GicV2::acknowledge`] took.
    pub(super) fn end(&self, acknowledged: Acknowledged) {
        self.with_gicc(|mut gicc| field!(gicc, eoir).write(acknowledged.iar));
    }
}

/// Writes register `index` of a set.
///
/// # Panics
/// Where the set has no such register. The callers' indices come from 10-bit INTIDs.
fn write<const N: usize>(mut set: UniqueMmioPointer<'_, [ReadPureWrite<u32>; N]>, index: usize, value: u32) {
    set.get(index).expect("an INTID is below 1024").write(value);
}
