//! EFI_RUNTIME_SERVICES (UEFI 2.10, 4.5), as it is after SetVirtualAddressMap.
#![forbid(unsafe_code)]

use core::fmt;
use core::mem::offset_of;

use r_efi::efi::{RUNTIME_SERVICES_CODE, RUNTIME_SERVICES_SIGNATURE, RuntimeServices as Layout, TableHeader};

use crate::bytes::{u32_at, u64_at};
use crate::memory_map::MemoryMap;
use crate::rt_properties::RuntimeServices;

/// Bytes of the table, as far as it is known.
pub const TABLE_SIZE: usize = size_of::<Layout>();

/// A service that there is a function for, where the table has its address, and its name.
type Service = (RuntimeServices, usize, &'static str);

const SERVICES: [Service; 7] = [
    (RuntimeServices::GET_TIME, offset_of!(Layout, get_time), "GetTime"),
    (RuntimeServices::SET_TIME, offset_of!(Layout, set_time), "SetTime"),
    (RuntimeServices::GET_VARIABLE, offset_of!(Layout, get_variable), "GetVariable"),
    (
        RuntimeServices::GET_NEXT_VARIABLE_NAME,
        offset_of!(Layout, get_next_variable_name),
        "GetNextVariableName",
    ),
    (RuntimeServices::SET_VARIABLE, offset_of!(Layout, set_variable), "SetVariable"),
    (RuntimeServices::RESET_SYSTEM, offset_of!(Layout, reset_system), "ResetSystem"),
    (RuntimeServices::QUERY_VARIABLE_INFO, offset_of!(Layout, query_variable_info), "QueryVariableInfo"),
];

/// Where the services are, as virtual addresses of `efi_mm`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RuntimeTable([u64; SERVICES.len()]);

/// Why a table of runtime services was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RuntimeTableError {
    /// So many bytes are less than a table.
    Truncated(usize),
    /// It does not begin with this signature.
    Signature(u64),
    /// The table says that it has so many bytes, less than its fields need.
    HeaderSize(u32),
    /// This service is not where there is code of the runtime services: its virtual address.
    NotInCode(&'static str, u64),
}

impl fmt::Display for RuntimeTableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EFI runtime services table: ")?;
        match self {
            Self::Truncated(bytes) => write!(f, "it ends after {bytes} bytes"),
            Self::Signature(signature) => write!(f, "its signature is {signature:#x}"),
            Self::HeaderSize(size) => write!(f, "its size of {size} bytes is too small"),
            Self::NotInCode(name, va) => write!(f, "{name} at {va:#x} is in no region of runtime code"),
        }
    }
}

impl core::error::Error for RuntimeTableError {}

impl RuntimeTable {
    /// The table in `bytes`, of which there may be more than [`TABLE_SIZE`], for the regions of `map`. Of the services
    /// only those in `supported` need to be there.
    ///
    /// # Errors
    /// See [`RuntimeTableError`].
    pub fn parse(
        bytes: &[u8],
        map: &MemoryMap<'_>,
        supported: RuntimeServices,
    ) -> Result<Self, RuntimeTableError> {
        let truncated = RuntimeTableError::Truncated(bytes.len());
        let bytes = bytes.get(..TABLE_SIZE).ok_or(truncated)?;
        let signature = u64_at(bytes, offset_of!(TableHeader, signature)).ok_or(truncated)?;
        if signature != RUNTIME_SERVICES_SIGNATURE {
            return Err(RuntimeTableError::Signature(signature));
        }
        let size = u32_at(bytes, offset_of!(TableHeader, header_size)).ok_or(truncated)?;
        if (size as usize) < TABLE_SIZE {
            return Err(RuntimeTableError::HeaderSize(size));
        }
        let mut addresses = [0; SERVICES.len()];
        for (address, (service, offset, name)) in addresses.iter_mut().zip(SERVICES) {
            *address = u64_at(bytes, offset).ok_or(truncated)?;
            let in_code = map.runtime().any(|region| {
                region.memory_type() == RUNTIME_SERVICES_CODE
                    && address
                        .checked_sub(region.virtual_start())
                        .is_some_and(|offset| offset < region.size())
            });
            if supported.contains(service) && !in_code {
                return Err(RuntimeTableError::NotInCode(name, *address));
            }
        }
        Ok(Self(addresses))
    }

    /// Where a service is.
    ///
    /// # Panics
    /// Where `service` is not one of those that there is a function for.
    pub(crate) fn address(&self, service: RuntimeServices) -> u64 {
        let found = SERVICES.iter().zip(self.0).find(|((known, ..), _)| *known == service);
        found.expect("each function has its service in the list").1
    }
}
