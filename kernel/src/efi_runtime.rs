//! EFI runtime services on this machine: `efi_mm`, and how a call gets to the firmware and back.
//!
//! ```text
//!  /chosen pleat,uefi-…  ──▶  init: checked by the crate `efi`, mapped in efi_mm     what is bad: one line, no services
//!
//!  services() ──▶ efi::Runtime ──▶ Calls::call                       one at a time, interrupts masked
//!                                      │  stack of its own, TTBR0 ◀── efi_mm
//!                                      ▼
//!                                  arch efi_call ──▶ firmware
//!                                      ▲                 │ faults
//!                                      └── give_up ◀── trap
//! ```

use core::cell::Cell;
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};

use arch::aarch64::hardware::{Hardware, LinearMap};
use arch::aarch64::trap::{STACK_SIZE, TrapFrame};
use arch::aarch64::{boot, daif, efi_call};
use arch::granule::LAST_LEVEL;
use arch::{TableFrame, VirtAddr};
use efi::mapping::{CreateMappingError, MemattrError};
use efi::memory_attributes::MemoryAttributesError;
use efi::memory_map::MemoryMapError;
use efi::rt_properties::RtPropertiesError;
use efi::runtime::{ARGUMENTS, Aborted, Firmware, RuntimeTable, RuntimeTableError, Status};
use efi::{
    MemoryAttributes, MemoryDescriptor, MemoryMap, Runtime, RuntimeServices, efi_memattr_apply_permissions,
    efi_virtmap_init,
};
use kernel::efi_tables::EfiTables;
use kernel::memblock::MemBlock;
use kernel::platform::PhysRange;
use log::{error, info, warn};
use mm::asid::EFI_ASID;
use mm::{EfiMm, MapError, TableAlloc, VA_BITS};
use spin::Once;

use crate::vm::GRANULE;
use crate::{cpu, memory, trap, vm};

/// No CPU is in a call.
const NOBODY: usize = usize::MAX;

/// The firmware's address space on this machine.
pub(crate) type KernelEfiMm = EfiMm<'static, Hardware<LinearMap>>;

static EFI_MM: Once<KernelEfiMm> = Once::new();
static SERVICES: Once<Runtime<Calls>> = Once::new();

/// The firmware's address space, where the kernel was started by EFI firmware whose memory map makes sense.
pub(crate) fn efi_mm() -> Option<&'static KernelEfiMm> {
    EFI_MM.get()
}

/// The runtime services, where there are any.
pub(crate) fn services() -> Option<&'static Runtime<Calls>> {
    SERVICES.get()
}

/// Why there are no runtime services.
enum Error {
    NoSetVirtualAddressMap,
    NoVirtualAddresses,
    SetVirtualAddressMap(u64),
    TooLarge(u64),
    MemoryMap(MemoryMapError),
    InRam(MemoryDescriptor),
    RtProperties(RtPropertiesError),
    Table(RuntimeTableError),
    OutOfMemory,
    Stack(MapError),
    CreateMapping(CreateMappingError),
    MemoryAttributes(MemoryAttributesError),
    Memattr(MemattrError),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSetVirtualAddressMap => f.write_str("the firmware has no SetVirtualAddressMap"),
            Self::NoVirtualAddresses => {
                f.write_str("EFI memory map: a runtime region has no virtual address below 2^48")
            }
            Self::TooLarge(bytes) => {
                write!(f, "EFI memory map: {bytes:#x} bytes of runtime regions are too many")
            }
            Self::SetVirtualAddressMap(status) => {
                write!(f, "SetVirtualAddressMap failed: status {status:#x}")
            }
            Self::MemoryMap(error) => error.fmt(f),
            Self::InRam(region) => {
                write!(f, "EFI memory map: a runtime region is in the kernel's RAM: {region}")
            }
            Self::RtProperties(error) => error.fmt(f),
            Self::Table(error) => error.fmt(f),
            Self::OutOfMemory => f.write_str("no memory for the root table of efi_mm"),
            Self::Stack(error) => error.fmt(f),
            Self::CreateMapping(error) => error.fmt(f),
            Self::MemoryAttributes(error) => error.fmt(f),
            Self::Memattr(error) => error.fmt(f),
        }
    }
}

/// Makes an error of this module of one of another's.
macro_rules! from {
    ($($error:ident => $variant:ident,)*) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        })*
    };
}
from! {
    MemoryMapError => MemoryMap,
    RtPropertiesError => RtProperties,
    RuntimeTableError => Table,
    MapError => Stack,
    CreateMappingError => CreateMapping,
    MemoryAttributesError => MemoryAttributes,
    MemattrError => Memattr,
}

/// Makes `efi_mm` of what firmware has left, and takes its runtime services into use. Where that fails there are none, and a
/// line says why.
pub(crate) fn init(tables: &EfiTables<'_>, memblock: &MemBlock) {
    match try_init(tables, memblock) {
        Ok((regions, bytes)) => {
            info!("EFI runtime services: {regions} regions of {} KiB in efi_mm", bytes / 1024);
        }
        Err(error) => warn!("no EFI runtime services: {error}"),
    }
}

/// How many regions of how many bytes were mapped.
fn try_init(tables: &EfiTables<'_>, memblock: &MemBlock) -> Result<(usize, u64), Error> {
    let map =
        MemoryMap::parse(tables.memory_map, tables.descriptor_size as usize, tables.descriptor_version)?;
    let supported = tables.rt_properties.map_or(Ok(RuntimeServices::all()), RuntimeServices::parse)?;
    match tables.set_virtual_address_map {
        Some(0) => {}
        Some(status) => return Err(Error::SetVirtualAddressMap(status)),
        None if !supported.contains(RuntimeServices::SET_VIRTUAL_ADDRESS_MAP) => {
            return Err(Error::NoSetVirtualAddressMap);
        }
        None => return Err(Error::NoVirtualAddresses),
    }
    let bytes = map.runtime().fold(0, |sum: u64, region| sum.saturating_add(region.size()));
    if bytes > MAX_TABLES as u64 * GRANULE.level_size(LAST_LEVEL - 1) {
        return Err(Error::TooLarge(bytes));
    }
    let in_ram = |region: &MemoryDescriptor| {
        let range = PhysRange::from_size(region.physical_start(), region.size());
        range.is_some_and(|range| memblock.ram().any(|ram| ram.overlaps(&range)))
    };
    if let Some(region) = map.runtime().find(in_ram) {
        return Err(Error::InRam(region));
    }
    let attributes = tables.memory_attributes.map(|table| MemoryAttributes::parse(table, map)).transpose()?;
    let table = RuntimeTable::parse(tables.runtime_services, &map, supported)?;

    let tables = EfiTableAlloc { left: Cell::new(MAX_TABLES) };
    let root = tables.alloc_table(GRANULE.start_level(VA_BITS)).ok_or(Error::OutOfMemory)?;
    // SAFETY: its tables are pages of the allocator, which are in the linear map.
    let efi_mm = EFI_MM.call_once(|| EfiMm::new(Hardware(unsafe { LinearMap::new() }), root, EFI_ASID));
    efi_virtmap_init(efi_mm, &map, &tables)?;
    if let Some(attributes) = attributes {
        efi_memattr_apply_permissions(efi_mm, &attributes)?;
    }
    let calls = Calls::new(vm::map_efi_stack()?);
    // SAFETY: the table is the firmware's, read after SetVirtualAddressMap; that its addresses are code of the runtime regions
    // was checked.
    SERVICES.call_once(|| unsafe { Runtime::new(calls, table, supported) });
    Ok((map.runtime().count(), bytes))
}

/// The most tables of `efi_mm`, 4 MiB of them: a map of the firmware's that needs more is refused, and must not take all
/// memory before it is. What was mapped until then stays, to be looked at.
const MAX_TABLES: usize = 1024;

/// Where the tables of `efi_mm` come from. For good.
struct EfiTableAlloc {
    left: Cell<usize>,
}

impl TableAlloc for EfiTableAlloc {
    fn alloc_table(&self, level: u8) -> Option<TableFrame> {
        self.left.set(self.left.get().checked_sub(1)?);
        // SAFETY: a zeroed page of its own, in the linear map.
        memory::alloc_zeroed_page().map(|pa| unsafe { TableFrame::new(pa, level) })
    }
}

/// The CPU that is in the firmware.
static CALLER: AtomicUsize = AtomicUsize::new(NOBODY);

/// How the firmware is called: on one stack, so one call at a time.
pub(crate) struct Calls {
    /// The lowest address of the stack.
    stack: VirtAddr,
}

impl Calls {
    /// With the stack at its lowest address, which was just mapped.
    fn new(stack: VirtAddr) -> Self {
        let calls = Self { stack };
        // SAFETY: the stack is mapped, and nobody uses it. There is no call under way.
        unsafe { efi_call::prepare(calls.stack_top()) };
        calls
    }

    fn stack_top(&self) -> VirtAddr {
        VirtAddr::new(self.stack.get() + STACK_SIZE)
    }

    /// Calls `f` with `efi_mm` in TTBR0, so that no memory of a user can be accessed, and interrupts masked, however long it
    /// takes, so that nothing else runs on this CPU.
    ///
    /// # Panics
    /// Where this CPU has tables of another granule in TTBR0.
    pub(crate) fn in_efi_mm<R>(&self, f: impl FnOnce() -> R) -> R {
        let efi_mm = efi_mm().expect("there are no calls without it");
        daif::masked(|| {
            assert!(
                boot::user_granule() == GRANULE,
                "a call of EFI firmware with tables of another granule loaded"
            );
            // SAFETY: the tables are of TTBR0's granule, never freed, and the ASID is reserved for them. They map what is the
            // firmware's, to which no Rust reference refers. Interrupts stay masked until the root is put back.
            let user = unsafe { boot::replace_user_root(efi_mm.root(), EFI_ASID) };
            let result = f();
            // SAFETY: as above.
            unsafe { boot::restore_user_root(user) };
            result
        })
    }
}

// SAFETY: the function is called as it is to be, or given up.
unsafe impl Firmware for Calls {
    unsafe fn call(&self, function: u64, arguments: &[u64; ARGUMENTS]) -> Result<Status, Aborted> {
        let result = self.in_efi_mm(|| {
            let stack = cpu::set_stack_base(self.stack);
            CALLER.store(cpu::index(), Ordering::Relaxed);
            // SAFETY: the caller vouches for function and arguments, and that the stack is this call's alone; what the firmware
            // needs is mapped, and the stack known to the vectors.
            let result = unsafe { efi_call::call(function, arguments, self.stack_top()) };
            CALLER.store(NOBODY, Ordering::Relaxed);
            cpu::set_stack_base(stack);
            result
        });
        result.map(Status::from_usize).map_err(|fault| {
            error!(
                "EFI: the firmware's function at {function:#x} faulted and was given up: {}, FAR {:#x}, ELR {:#x}",
                fault.esr,
                fault.far.get(),
                fault.elr.get()
            );
            Aborted
        })
    }
}

/// Called with a fault at EL1: whether it is the firmware's, whose call was given up; what is in `frame` goes on with that.
pub(crate) fn give_up(frame: &mut TrapFrame) -> bool {
    // What an interrupt handler does is not the firmware's, even if that had unmasked interrupts.
    let calls = CALLER.load(Ordering::Relaxed) == cpu::index() && !trap::in_interrupt();
    // SAFETY: the stack is mapped for good and used by calls only, of which this CPU makes one.
    calls
        && services()
            .is_some_and(|services| unsafe { efi_call::give_up(frame, services.firmware().stack_top()) })
}
