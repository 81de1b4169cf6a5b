//! What EFI firmware has left of its tables for the kernel, from the stub to the kernel: properties of `/chosen`.
//!
//! The bytes themselves, and not where they are, as Linux's `linux,uefi-…` say it: some of the tables lie in memory
//! that is the kernel's after ExitBootServices, and all of them can be read only by who maps them. So the kernel
//! needs no access to physical memory that somebody else describes. Nothing here believes the bytes: the crate
//! `efi` checks them.

use dtoolkit::error::FdtMutError;
use dtoolkit::fdt::FdtNode;
use dtoolkit::fdt_mut::{FdtBuffer, FdtNodeMut};
use dtoolkit::{Node, Property};

use crate::dt::{DtError, malformed, property_u64};
use crate::efi_boot::set;

const VIRTUAL_ADDRESS_MAP: &str = "pleat,uefi-virtmap-status";
const MEMORY_MAP: &str = "pleat,uefi-mmap";
const DESCRIPTOR_SIZE: &str = "pleat,uefi-mmap-desc-size";
const DESCRIPTOR_VERSION: &str = "pleat,uefi-mmap-desc-ver";
const MEMORY_ATTRIBUTES: &str = "pleat,uefi-memattr";
const RT_PROPERTIES: &str = "pleat,uefi-rt-properties";
const RUNTIME_SERVICES: &str = "pleat,uefi-runtime-services";

/// The tables, as the firmware made them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EfiTables<'a> {
    /// What SetVirtualAddressMap returned: an EFI_STATUS. `None` where it was not called, since the memory map makes no
    /// sense, or firmware says that it has no such service.
    pub set_virtual_address_map: Option<u64>,
    /// Memory descriptors: those that SetVirtualAddressMap was told, else all.
    pub memory_map: &'a [u8],
    /// Bytes of each.
    pub descriptor_size: u32,
    /// Their version.
    pub descriptor_version: u32,
    /// The Memory Attributes Table.
    pub memory_attributes: Option<&'a [u8]>,
    /// The RT_PROPERTIES table.
    pub rt_properties: Option<&'a [u8]>,
    /// EFI_RUNTIME_SERVICES, as it is since SetVirtualAddressMap.
    pub runtime_services: &'a [u8],
}

impl<'a> EfiTables<'a> {
    /// Writes them into `/chosen`. What is `None` is left as it is.
    ///
    /// # Errors
    /// Where the tree's buffer has no room.
    pub(crate) fn write<B: FdtBuffer>(&self, chosen: &mut FdtNodeMut<'_, B>) -> Result<(), FdtMutError> {
        if let Some(status) = self.set_virtual_address_map {
            set(chosen, VIRTUAL_ADDRESS_MAP, status)?;
        }
        set(chosen, MEMORY_MAP, self.memory_map)?;
        set(chosen, DESCRIPTOR_SIZE, self.descriptor_size)?;
        set(chosen, DESCRIPTOR_VERSION, self.descriptor_version)?;
        if let Some(table) = self.memory_attributes {
            set(chosen, MEMORY_ATTRIBUTES, table)?;
        }
        if let Some(table) = self.rt_properties {
            set(chosen, RT_PROPERTIES, table)?;
        }
        set(chosen, RUNTIME_SERVICES, self.runtime_services)
    }

    /// Reads them from `/chosen`; `None` where there is no memory map.
    ///
    /// # Errors
    /// Where a property is missing, or a number is none.
    pub(crate) fn read(chosen: &FdtNode<'a>) -> Result<Option<Self>, DtError> {
        let bytes = |name| chosen.property(name)?.value_as::<&'a [u8]>().ok();
        let number = |name| match bytes(name) {
            Some(value) => property_u64(value).map(Some).ok_or(malformed("/chosen", name)),
            None => Ok(None),
        };
        let word = |name| {
            let word = number(name)?.and_then(|number| u32::try_from(number).ok());
            word.ok_or(malformed("/chosen", name))
        };
        let Some(memory_map) = bytes(MEMORY_MAP) else { return Ok(None) };
        Ok(Some(Self {
            set_virtual_address_map: number(VIRTUAL_ADDRESS_MAP)?,
            memory_map,
            descriptor_size: word(DESCRIPTOR_SIZE)?,
            descriptor_version: word(DESCRIPTOR_VERSION)?,
            memory_attributes: bytes(MEMORY_ATTRIBUTES),
            rt_properties: bytes(RT_PROPERTIES),
            runtime_services: bytes(RUNTIME_SERVICES).ok_or(malformed("/chosen", RUNTIME_SERVICES))?,
        }))
    }
}
