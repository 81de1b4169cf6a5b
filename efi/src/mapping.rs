//! `efi_mm` from the firmware's tables, by Linux's flow.
//!
//! Whatever fails here leaves a part mapped: `efi_mm` is of no use then, and there are no runtime services.
#![forbid(unsafe_code)]

use core::fmt;

use arch::{Granule, Mmu, PhysAddr, VirtAddr};
use mm::{EfiMapError, EfiMapping, EfiMemory, EfiMm, EfiProt, EfiProtError, TableAlloc};
use r_efi::efi::{MEMORY_MAPPED_IO, MEMORY_MAPPED_IO_PORT_SPACE, RUNTIME_SERVICES_CODE};

use crate::memory_attributes::MemoryAttributes;
use crate::memory_map::{MemoryDescriptor, MemoryMap};

/// A runtime region, or an entry of the Memory Attributes Table, begins or ends within a page of this granule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Misaligned(pub MemoryDescriptor, pub Granule);

impl Misaligned {
    fn check(region: &MemoryDescriptor, granule: Granule) -> Result<(), Self> {
        let bounds = region.physical_start() | region.virtual_start() | region.size();
        if bounds.is_multiple_of(granule.page_size()) { Ok(()) } else { Err(Self(*region, granule)) }
    }
}

impl fmt::Display for Misaligned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "misaligned for {}K granules: {}", self.1.page_size() >> 10, self.0)
    }
}

impl core::error::Error for Misaligned {}

/// Why a runtime region was not mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CreateMappingError {
    /// It has no virtual address: SetVirtualAddressMap was not called with one.
    NoVirtualAddress(MemoryDescriptor),
    /// It begins at a physical address of more than 48 bits.
    OutOfRange(MemoryDescriptor),
    /// It shares a page of the granule with something else.
    Misaligned(Misaligned),
    /// `efi_mm` refuses it.
    Refused(EfiMapError),
}

impl fmt::Display for CreateMappingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVirtualAddress(region) => {
                write!(f, "EFI runtime region without a virtual address: {region}")
            }
            Self::OutOfRange(region) => write!(f, "EFI runtime region beyond 2^48: {region}"),
            Self::Misaligned(error) => write!(f, "EFI runtime region {error}"),
            Self::Refused(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for CreateMappingError {}

/// Why an entry of the Memory Attributes Table was not applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemattrError {
    /// It shares a page of the granule with something else.
    Misaligned(Misaligned),
    /// `efi_mm` refuses it.
    Refused(EfiProtError),
}

impl fmt::Display for MemattrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned(error) => write!(f, "EFI memory attributes {error}"),
            Self::Refused(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for MemattrError {}

/// Maps every runtime region of `map`: see [`efi_create_mapping`].
///
/// # Errors
/// As [`efi_create_mapping`], for the first region that is not mapped. Those before it are.
pub fn efi_virtmap_init<M: Mmu>(
    efi_mm: &EfiMm<'_, M>,
    map: &MemoryMap<'_>,
    tables: &dyn TableAlloc,
) -> Result<(), CreateMappingError> {
    map.runtime().try_for_each(|region| efi_create_mapping(efi_mm, &region, tables))
}

/// Maps one runtime region at its virtual address, with the permissions that its descriptor asks for. Registers are
/// device memory, read and written, never executed. Locks and maintenance are those of [`EfiMm::create_mapping`].
///
/// # Errors
/// See [`CreateMappingError`]. No leaf was written then.
pub fn efi_create_mapping<M: Mmu>(
    efi_mm: &EfiMm<'_, M>,
    region: &MemoryDescriptor,
    tables: &dyn TableAlloc,
) -> Result<(), CreateMappingError> {
    if region.virtual_start() == 0 {
        return Err(CreateMappingError::NoVirtualAddress(*region));
    }
    Misaligned::check(region, M::GRANULE).map_err(CreateMappingError::Misaligned)?;
    let pa = PhysAddr::try_new(region.physical_start()).ok_or(CreateMappingError::OutOfRange(*region))?;
    let (va, size) = (VirtAddr::new(region.virtual_start()), region.size());
    let mapping = EfiMapping { va, pa, size, memory: create_mapping_protection(region) };
    efi_mm.create_mapping(&mapping, tables).map_err(CreateMappingError::Refused)
}

/// What a region is mapped as.
fn create_mapping_protection(region: &MemoryDescriptor) -> EfiMemory {
    match region.memory_type() {
        MEMORY_MAPPED_IO | MEMORY_MAPPED_IO_PORT_SPACE => EfiMemory::Device,
        // What says nothing of its parts is code and data at once.
        RUNTIME_SERVICES_CODE => EfiMemory::Normal(demanded(region)),
        _ if region.is_read_only() => EfiMemory::Normal(demanded(region)),
        _ => EfiMemory::Normal(EfiProt::ReadWrite),
    }
}

/// What the attributes leave of all permissions.
fn demanded(region: &MemoryDescriptor) -> EfiProt {
    match (region.is_read_only(), region.is_execute_protected()) {
        (true, true) => EfiProt::ReadOnly,
        (true, false) => EfiProt::ReadExecute,
        (false, true) => EfiProt::ReadWrite,
        (false, false) => EfiProt::ReadWriteExecute,
    }
}

/// Takes from the mapped regions what the Memory Attributes Table demands. Nothing is given back. Locks and maintenance
/// are those of [`EfiMm::set_mapping_permissions`], for each entry.
///
/// # Errors
/// See [`MemattrError`], for the first entry that is not applied. Those before it are.
pub fn efi_memattr_apply_permissions<M: Mmu>(
    efi_mm: &EfiMm<'_, M>,
    attributes: &MemoryAttributes<'_>,
) -> Result<(), MemattrError> {
    attributes.entries().try_for_each(|entry| efi_set_mapping_permissions(efi_mm, &entry))
}

fn efi_set_mapping_permissions<M: Mmu>(
    efi_mm: &EfiMm<'_, M>,
    entry: &MemoryDescriptor,
) -> Result<(), MemattrError> {
    Misaligned::check(entry, M::GRANULE).map_err(MemattrError::Misaligned)?;
    let va = VirtAddr::new(entry.virtual_start());
    efi_mm.set_mapping_permissions(va, entry.size(), demanded(entry)).map_err(MemattrError::Refused)
}
