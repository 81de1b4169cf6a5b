//! The Memory Attributes Table (UEFI 2.10, 4.6.4), versions 1 and 2: which parts of the runtime regions must not be
//! written to, or not be executed.
#![forbid(unsafe_code)]

use core::fmt;
use core::mem::offset_of;

use r_efi::efi::{MemoryAttributesTable, RUNTIME_SERVICES_CODE, RUNTIME_SERVICES_DATA};

use crate::bytes::u32_at;
use crate::memory_map::{DescriptorError, MemoryDescriptor, MemoryMap, is_descriptor_size};

/// The GUID of the table in the system's configuration table.
pub use r_efi::efi::MEMORY_ATTRIBUTES_TABLE_GUID as GUID;

/// Bytes of the header; the entries follow.
pub const HEADER_SIZE: usize = size_of::<MemoryAttributesTable>();
/// The greatest number of entries that is believed.
pub const MAX_ENTRIES: u32 = 4096;

/// Why a Memory Attributes Table was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryAttributesError {
    /// So many bytes are less than the header, or less than it speaks of.
    Truncated(usize),
    /// A table of this version is not known.
    Version(u32),
    /// Not the size of a descriptor; see [`MemoryMapError::DescriptorSize`](crate::memory_map::MemoryMapError).
    DescriptorSize(u32),
    /// More than [`MAX_ENTRIES`].
    TooManyEntries(u32),
    /// An entry makes no sense by itself.
    Entry(DescriptorError),
    /// An entry is neither of runtime services code nor of data.
    Type(MemoryDescriptor),
    /// An entry lies in no single runtime region of the same type.
    Outside(MemoryDescriptor),
}

impl fmt::Display for MemoryAttributesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EFI Memory Attributes Table: ")?;
        match self {
            Self::Truncated(bytes) => write!(f, "it ends after {bytes} bytes"),
            Self::Version(version) => write!(f, "version {version} is not known"),
            Self::DescriptorSize(size) => write!(f, "an entry can't have {size} bytes"),
            Self::TooManyEntries(entries) => write!(f, "{entries} entries are too many"),
            Self::Entry(error) => error.fmt(f),
            Self::Type(entry) => write!(f, "an entry is of neither runtime code nor data: {entry}"),
            Self::Outside(entry) => write!(f, "an entry is in no runtime region of its type: {entry}"),
        }
    }
}

impl core::error::Error for MemoryAttributesError {}

impl From<DescriptorError> for MemoryAttributesError {
    fn from(error: DescriptorError) -> Self {
        Self::Entry(error)
    }
}

/// The size of one entry and of the whole table in bytes, as the header says.
fn sizes(header: &[u8]) -> Result<(usize, usize), MemoryAttributesError> {
    let field = |offset| u32_at(header, offset).ok_or(MemoryAttributesError::Truncated(header.len()));
    let version = field(offset_of!(MemoryAttributesTable, version))?;
    let entries = field(offset_of!(MemoryAttributesTable, number_of_entries))?;
    let entry_size = field(offset_of!(MemoryAttributesTable, descriptor_size))?;
    field(offset_of!(MemoryAttributesTable, flags))?;
    if !(1..=2).contains(&version) {
        return Err(MemoryAttributesError::Version(version));
    }
    if !is_descriptor_size(entry_size as usize) {
        return Err(MemoryAttributesError::DescriptorSize(entry_size));
    }
    if entries > MAX_ENTRIES {
        return Err(MemoryAttributesError::TooManyEntries(entries));
    }
    Ok((entry_size as usize, HEADER_SIZE + entries as usize * entry_size as usize))
}

/// The size of the whole table in bytes, which nothing but its first [`HEADER_SIZE`] bytes tells.
///
/// # Errors
/// See [`MemoryAttributesError`].
pub fn table_size(header: &[u8]) -> Result<usize, MemoryAttributesError> {
    sizes(header).map(|(_, size)| size)
}

/// A Memory Attributes Table that was checked: every entry lies in one runtime region of the same type.
#[derive(Clone, Copy, Debug)]
pub struct MemoryAttributes<'a> {
    entries: &'a [u8],
    entry_size: usize,
    map: MemoryMap<'a>,
}

impl<'a> MemoryAttributes<'a> {
    /// The table in `bytes`, of which there may be more than it has, for the regions of `map`.
    ///
    /// # Errors
    /// See [`MemoryAttributesError`].
    pub fn parse(bytes: &'a [u8], map: MemoryMap<'a>) -> Result<Self, MemoryAttributesError> {
        let (entry_size, size) = sizes(bytes)?;
        let entries = bytes.get(HEADER_SIZE..size).ok_or(MemoryAttributesError::Truncated(bytes.len()))?;
        let table = Self { entries, entry_size, map };
        for entry in table.raw_entries() {
            let entry = entry.checked()?;
            if ![RUNTIME_SERVICES_CODE, RUNTIME_SERVICES_DATA].contains(&entry.memory_type()) {
                return Err(MemoryAttributesError::Type(entry));
            }
            table.locate(entry).ok_or(MemoryAttributesError::Outside(entry))?;
        }
        Ok(table)
    }

    /// The entries, each with the virtual address that its region has in the map.
    pub fn entries(&self) -> impl Iterator<Item = MemoryDescriptor> + use<'a> {
        let table = *self;
        // `parse` has found a region for each of them.
        table.raw_entries().filter_map(move |entry| table.locate(entry))
    }

    fn raw_entries(&self) -> impl Iterator<Item = MemoryDescriptor> + use<'a> {
        // Their virtual addresses mean nothing.
        let read = |chunk| Some(MemoryDescriptor::read(chunk)?.at(0));
        self.entries.chunks_exact(self.entry_size).filter_map(read)
    }

    /// The entry where its region is mapped. Regions don't overlap, so there is at most one.
    fn locate(&self, entry: MemoryDescriptor) -> Option<MemoryDescriptor> {
        let is_its = |r: &MemoryDescriptor| r.memory_type() == entry.memory_type() && r.contains(&entry);
        let region = self.map.runtime().find(is_its)?;
        Some(entry.at(region.virtual_start() + (entry.physical_start() - region.physical_start())))
    }
}
