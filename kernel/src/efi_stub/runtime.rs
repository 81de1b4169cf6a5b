//! The runtime services: told of their virtual addresses, and handed over with what the kernel needs to map and call them.

use core::slice;

use efi::memory_attributes;
use efi::rt_properties::{self, RuntimeServices};
use efi::runtime::TABLE_SIZE;
use kernel::efi_boot::{self, Handover};
use kernel::efi_tables::EfiTables;
use r_efi::efi::{self as uefi, MemoryDescriptor, Status};

use super::{Failure, Firmware};

/// For how many bytes more than it has a Memory Attributes Table gets room: leaving boot services may make it grow.
const NEW_ATTRIBUTES: usize = 4096;

/// What was found while there were boot services.
pub(super) struct Services {
    table: *const uefi::RuntimeServices,
    rt_properties: Option<&'static [u8]>,
    memory_attributes: Option<*const u8>,
    /// The most bytes of the Memory Attributes Table that there is room for.
    attributes_limit: usize,
    /// For the memory descriptors with their virtual addresses.
    virtual_map: &'static mut [u8],
    /// For the device tree with the tables.
    copy: &'static mut [u8],
}

/// The first bytes of what firmware says is a table.
fn bytes(table: *const u8, size: usize) -> &'static [u8] {
    // SAFETY: firmware vouches for so many bytes, and every address is mapped to itself until the kernel runs. Nothing
    // changes them while they are read, since the firmware does not run.
    unsafe { slice::from_raw_parts(table, size) }
}

/// As many bytes of the table as it says that it has, but for more than `limit`; its header where that makes no sense, which
/// the kernel is told then.
fn attributes(table: *const u8, limit: usize) -> &'static [u8] {
    let header = bytes(table, memory_attributes::HEADER_SIZE);
    match memory_attributes::table_size(header) {
        Ok(size) => bytes(table, size.min(limit)),
        Err(_) => header,
    }
}

impl Services {
    /// Finds the tables, and makes room for a memory map of up to `map` bytes.
    pub(super) fn find(
        firmware: &Firmware,
        tree: &[u8],
        bootargs: &str,
        map: usize,
    ) -> Result<Self, Failure> {
        let memory_attributes = firmware.table(memory_attributes::GUID);
        let attributes_limit =
            memory_attributes.map_or(0, |table| attributes(table, usize::MAX).len() + NEW_ATTRIBUTES);
        let room = map + attributes_limit + rt_properties::TABLE_SIZE + TABLE_SIZE;
        Ok(Self {
            // SAFETY: firmware gave the system table.
            table: unsafe { (*firmware.system).runtime_services },
            rt_properties: firmware
                .table(rt_properties::GUID)
                .map(|table| bytes(table, rt_properties::TABLE_SIZE)),
            memory_attributes,
            attributes_limit,
            virtual_map: firmware.allocate(map)?,
            copy: firmware.allocate(efi_boot::room_for_copy(tree.len(), bootargs.len(), room))?,
        })
    }

    /// With boot services left: calls SetVirtualAddressMap, and writes the tree with what came of it. `None` where there is
    /// not enough room.
    pub(super) fn hand_over(&mut self, tree: &[u8], handover: Handover<'_>) -> Option<&[u8]> {
        let (size, version) = (handover.memory.descriptor_size(), handover.memory.descriptor_version());
        let mut memory_map = handover.memory.bytes();
        let mut status = None;
        // What is refused here the kernel refuses by its own look, and says why.
        if let Ok(map) = efi::MemoryMap::parse(memory_map, size, version)
            && self.has_set_virtual_address_map()
            && let Some(used) = map.write_virtual_map(self.virtual_map)
        {
            let virtual_map = self.virtual_map.get_mut(..used)?;
            let returned = set_virtual_address_map(self.table, virtual_map, size, version);
            status = Some(returned.as_usize() as u64);
            if returned == Status::SUCCESS {
                memory_map = virtual_map;
            }
        }
        let tables = EfiTables {
            set_virtual_address_map: status,
            memory_map,
            descriptor_size: size.try_into().ok()?,
            descriptor_version: version,
            memory_attributes: self.memory_attributes.map(|table| attributes(table, self.attributes_limit)),
            rt_properties: self.rt_properties,
            runtime_services: bytes(self.table.cast(), TABLE_SIZE),
        };
        let used = efi_boot::write(tree, &Handover { tables: Some(tables), ..handover }, self.copy).ok()?;
        self.copy.get(..used)
    }

    /// Whether firmware has the service. A table that is refused counts as one that says no.
    fn has_set_virtual_address_map(&self) -> bool {
        let supported = self.rt_properties.map_or(Ok(RuntimeServices::all()), RuntimeServices::parse);
        supported.is_ok_and(|supported| supported.contains(RuntimeServices::SET_VIRTUAL_ADDRESS_MAP))
    }
}

fn set_virtual_address_map(
    table: *const uefi::RuntimeServices,
    map: &mut [u8],
    descriptor_size: usize,
    version: u32,
) -> Status {
    // SAFETY: firmware gave the table. This is the one call, after ExitBootServices and with every address mapped to itself, as
    // it demands. Until the kernel has mapped the virtual addresses nothing calls a service.
    unsafe {
        ((*table).set_virtual_address_map)(
            map.len(),
            descriptor_size,
            version,
            map.as_mut_ptr().cast::<MemoryDescriptor>(),
        )
    }
}
