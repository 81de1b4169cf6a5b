//! EFI_RT_PROPERTIES_TABLE (UEFI 2.10, 4.6.2): which runtime services there are after ExitBootServices.
#![forbid(unsafe_code)]

use core::fmt;
use core::mem::offset_of;

use bitflags::bitflags;
use r_efi::efi;
use r_efi::efi::RtPropertiesTable;

use crate::bytes::{u16_at, u32_at};

/// The GUID of the table in the system's configuration table.
pub use r_efi::efi::RT_PROPERTIES_TABLE_GUID as GUID;

/// Bytes of the table, as far as it is known.
pub const TABLE_SIZE: usize = size_of::<RtPropertiesTable>();

bitflags! {
    /// Runtime services that are supported. Without the table, [`all`](Self::all) of them.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct RuntimeServices: u32 {
        /// GetTime
        const GET_TIME = efi::RT_SUPPORTED_GET_TIME;
        /// SetTime
        const SET_TIME = efi::RT_SUPPORTED_SET_TIME;
        /// GetWakeupTime
        const GET_WAKEUP_TIME = efi::RT_SUPPORTED_GET_WAKEUP_TIME;
        /// SetWakeupTime
        const SET_WAKEUP_TIME = efi::RT_SUPPORTED_SET_WAKEUP_TIME;
        /// GetVariable
        const GET_VARIABLE = efi::RT_SUPPORTED_GET_VARIABLE;
        /// GetNextVariableName
        const GET_NEXT_VARIABLE_NAME = efi::RT_SUPPORTED_GET_NEXT_VARIABLE_NAME;
        /// SetVariable
        const SET_VARIABLE = efi::RT_SUPPORTED_SET_VARIABLE;
        /// SetVirtualAddressMap
        const SET_VIRTUAL_ADDRESS_MAP = efi::RT_SUPPORTED_SET_VIRTUAL_ADDRESS_MAP;
        /// ConvertPointer
        const CONVERT_POINTER = efi::RT_SUPPORTED_CONVERT_POINTER;
        /// GetNextHighMonotonicCount
        const GET_NEXT_HIGH_MONOTONIC_COUNT = efi::RT_SUPPORTED_GET_NEXT_HIGH_MONOTONIC_COUNT;
        /// ResetSystem
        const RESET_SYSTEM = efi::RT_SUPPORTED_RESET_SYSTEM;
        /// UpdateCapsule
        const UPDATE_CAPSULE = efi::RT_SUPPORTED_UPDATE_CAPSULE;
        /// QueryCapsuleCapabilities
        const QUERY_CAPSULE_CAPABILITIES = efi::RT_SUPPORTED_QUERY_CAPSULE_CAPABILITIES;
        /// QueryVariableInfo
        const QUERY_VARIABLE_INFO = efi::RT_SUPPORTED_QUERY_VARIABLE_INFO;
    }
}

/// Why an RT_PROPERTIES table was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RtPropertiesError {
    /// So many bytes are less than a table.
    Truncated(usize),
    /// A table of this version is not known.
    Version(u16),
    /// The table says that it has so many bytes, less than its fields need.
    Length(u16),
}

impl fmt::Display for RtPropertiesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EFI RT_PROPERTIES table: ")?;
        match self {
            Self::Truncated(bytes) => write!(f, "it ends after {bytes} bytes"),
            Self::Version(version) => write!(f, "version {version} is not known"),
            Self::Length(length) => write!(f, "its length of {length} bytes is too short"),
        }
    }
}

impl core::error::Error for RtPropertiesError {}

impl RuntimeServices {
    /// What the table in `bytes` says, of which there may be more than [`TABLE_SIZE`]. Services that are not known are
    /// left out.
    ///
    /// # Errors
    /// See [`RtPropertiesError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, RtPropertiesError> {
        let truncated = RtPropertiesError::Truncated(bytes.len());
        let version = u16_at(bytes, offset_of!(RtPropertiesTable, version)).ok_or(truncated)?;
        let length = u16_at(bytes, offset_of!(RtPropertiesTable, length)).ok_or(truncated)?;
        let supported =
            u32_at(bytes, offset_of!(RtPropertiesTable, runtime_services_supported)).ok_or(truncated)?;
        if version != efi::RT_PROPERTIES_TABLE_VERSION {
            return Err(RtPropertiesError::Version(version));
        }
        if usize::from(length) < TABLE_SIZE {
            return Err(RtPropertiesError::Length(length));
        }
        Ok(Self::from_bits_truncate(supported))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(version: u16, length: u16, supported: u32) -> Vec<u8> {
        [&version.to_le_bytes()[..], &length.to_le_bytes(), &supported.to_le_bytes()].concat()
    }

    /// What U-Boot 2025.01 says.
    #[test]
    fn the_mask_of_u_boot() {
        let services = RuntimeServices::parse(&table(1, 8, 0x25b0)).unwrap();
        let expected = RuntimeServices::GET_VARIABLE
            | RuntimeServices::GET_NEXT_VARIABLE_NAME
            | RuntimeServices::SET_VIRTUAL_ADDRESS_MAP
            | RuntimeServices::CONVERT_POINTER
            | RuntimeServices::RESET_SYSTEM
            | RuntimeServices::QUERY_VARIABLE_INFO;
        assert_eq!(services, expected);
        assert!(!services.contains(RuntimeServices::GET_TIME));
    }

    #[test]
    fn services_that_are_not_known_are_left_out() {
        assert_eq!(RuntimeServices::parse(&table(1, 12, !0)), Ok(RuntimeServices::all()));
        assert_eq!(RuntimeServices::all().bits(), 0x3fff);
    }

    #[test]
    fn bad_tables_are_refused() {
        for (bytes, error, line) in [
            (table(1, 8, 0)[..7].to_vec(), RtPropertiesError::Truncated(7), "it ends after 7 bytes"),
            (Vec::new(), RtPropertiesError::Truncated(0), "it ends after 0 bytes"),
            (table(2, 8, 0), RtPropertiesError::Version(2), "version 2 is not known"),
            (table(0, 8, 0), RtPropertiesError::Version(0), "version 0 is not known"),
            (table(1, 7, 0), RtPropertiesError::Length(7), "its length of 7 bytes is too short"),
        ] {
            assert_eq!(RuntimeServices::parse(&bytes), Err(error));
            assert_eq!(error.to_string(), format!("EFI RT_PROPERTIES table: {line}"));
        }
    }
}
