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

/// What was prepared while there were boot services.
pub(super) struct Services {
    /// The most bytes of a Memory Attributes Table that there is room for.
    attributes_limit: usize,
    /// For the memory descriptors with their virtual addresses.
    virtual_map: &'static mut [u8],
    /// For the device tree with the tables.
    copy: &'static mut [u8],
}

/// The first bytes of what firmware says is a table.
///
/// # Safety
/// The firmware must not run as long as they are used.
unsafe fn bytes<'a>(table: *const u8, size: usize) -> &'a [u8] {
    // SAFETY: firmware vouches for so many bytes, every address is mapped to itself until the kernel runs, and the caller
    // vouches for nothing changing them.
    unsafe { slice::from_raw_parts(table, size) }
}

/// As many bytes of the table as it says that it has, but for more than `limit`; its header where that makes no sense, which
/// the kernel is told then.
///
/// # Safety
/// As for [`bytes`].
unsafe fn attributes<'a>(table: *const u8, limit: usize) -> &'a [u8] {
    // SAFETY: the caller's contract.
    unsafe {
        let header = bytes(table, memory_attributes::HEADER_SIZE);
        match memory_attributes::table_size(header) {
            Ok(size) => bytes(table, size.min(limit)),
            Err(_) => header,
        }
    }
}

/// Whether firmware has SetVirtualAddressMap, as its RT_PROPERTIES table says if there is one. A table that is refused
/// counts as one that says no.
fn has_set_virtual_address_map(rt_properties: Option<*const u8>) -> bool {
    let supported = rt_properties.map_or(Ok(RuntimeServices::all()), |table| {
        // SAFETY: they are not used any more when firmware is called.
        RuntimeServices::parse(unsafe { bytes(table, rt_properties::TABLE_SIZE) })
    });
    supported.is_ok_and(|supported| supported.contains(RuntimeServices::SET_VIRTUAL_ADDRESS_MAP))
}

impl Services {
    /// Makes room for the tables that there are, with a memory map of up to `map` bytes.
    pub(super) fn prepare(
        firmware: &Firmware,
        tree: &[u8],
        bootargs: &str,
        map: usize,
    ) -> Result<Self, Failure> {
        let attributes_limit = firmware.table(memory_attributes::GUID).map_or(0, |table| {
            // SAFETY: they are not used any more when firmware is called.
            unsafe { attributes(table, usize::MAX) }.len() + NEW_ATTRIBUTES
        });
        let room = map + attributes_limit + rt_properties::TABLE_SIZE + TABLE_SIZE;
        Ok(Self {
            attributes_limit,
            virtual_map: firmware.allocate(map)?,
            copy: firmware.allocate(efi_boot::room_for_copy(tree.len(), bootargs.len(), room))?,
        })
    }

    /// With boot services left: calls SetVirtualAddressMap, and writes the tree with what came of it. `None` where there is
    /// not even room for what the kernel says about tables that there is no room for.
    pub(super) fn hand_over(
        &mut self,
        firmware: &Firmware,
        tree: &[u8],
        handover: Handover<'_>,
    ) -> Option<&[u8]> {
        let (size, version) = (handover.memory.descriptor_size(), handover.memory.descriptor_version());
        // Looked up now, since leaving boot services may have moved them, and before SetVirtualAddressMap converts the
        // addresses of where to look.
        let memory_attributes = firmware.table(memory_attributes::GUID);
        let rt_properties = firmware.table(rt_properties::GUID);
        // SAFETY: firmware gave the system table.
        let services = unsafe { (*firmware.system).runtime_services };

        let mut memory_map = handover.memory.bytes();
        let mut status = None;
        // What is refused here the kernel refuses by its own look, and says why.
        if let Ok(map) = efi::MemoryMap::parse(memory_map, size, version)
            && has_set_virtual_address_map(rt_properties)
            && let Some(used) = map.write_virtual_map(self.virtual_map)
        {
            let virtual_map = self.virtual_map.get_mut(..used)?;
            let returned = set_virtual_address_map(services, virtual_map, size, version);
            status = Some(returned.as_usize() as u64);
            if returned == Status::SUCCESS {
                memory_map = virtual_map;
            }
        }
        // SAFETY: nothing calls the firmware any more before the kernel runs, which has copies.
        let tables = unsafe {
            EfiTables {
                set_virtual_address_map: status,
                memory_map,
                descriptor_size: size.try_into().ok()?,
                descriptor_version: version,
                memory_attributes: memory_attributes.map(|table| attributes(table, self.attributes_limit)),
                rt_properties: rt_properties.map(|table| bytes(table, rt_properties::TABLE_SIZE)),
                runtime_services: bytes(services.cast(), TABLE_SIZE),
            }
        };
        // A tree has its limit. What is cut short the kernel refuses, so that it says what there was too much of.
        let short = tables.memory_attributes.map(|table| &table[..memory_attributes::HEADER_SIZE]);
        let without_attributes = EfiTables { memory_attributes: short, ..tables };
        let without_map = EfiTables { memory_map: &[], ..without_attributes };
        [tables, without_attributes, without_map]
            .into_iter()
            .find_map(|tables| {
                let handover = Handover { tables: Some(tables), ..handover };
                efi_boot::write(tree, &handover, self.copy).ok()
            })
            .and_then(|used| self.copy.get(..used))
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
