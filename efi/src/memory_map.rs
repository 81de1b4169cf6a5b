//! The memory map (UEFI 2.10, 7.2.3): descriptors of regions, as GetMemoryMap reports them.
#![forbid(unsafe_code)]

use core::fmt;
use core::mem::offset_of;

use r_efi::efi::{
    MEMORY_DESCRIPTOR_VERSION, MEMORY_RO, MEMORY_RUNTIME, MEMORY_XP, MemoryDescriptor as Layout,
};

use crate::bytes::{u32_at, u64_at};

/// Bytes of a page, whatever the granule of the kernel.
pub const EFI_PAGE_SIZE: u64 = 4096;
/// The least size of a descriptor. Firmware reports its own, mostly larger, so that nobody counts on this one.
pub const MIN_DESCRIPTOR_SIZE: usize = size_of::<Layout>();
/// The greatest size of a descriptor that is believed.
pub const MAX_DESCRIPTOR_SIZE: usize = 4096;

/// A region of memory, or of registers, with one type. Whole pages, not none, whose last byte has an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryDescriptor {
    memory_type: u32,
    physical_start: u64,
    virtual_start: u64,
    pages: u64,
    attribute: u64,
}

impl MemoryDescriptor {
    /// The first bytes, unchecked; `None` where they are too few.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            memory_type: u32_at(bytes, offset_of!(Layout, r#type))?,
            physical_start: u64_at(bytes, offset_of!(Layout, physical_start))?,
            virtual_start: u64_at(bytes, offset_of!(Layout, virtual_start))?,
            pages: u64_at(bytes, offset_of!(Layout, number_of_pages))?,
            attribute: u64_at(bytes, offset_of!(Layout, attribute))?,
        })
    }

    pub(crate) fn checked(self) -> Result<Self, DescriptorError> {
        let size = match self.pages.checked_mul(EFI_PAGE_SIZE) {
            Some(0) => return Err(DescriptorError::Empty(self)),
            Some(size) => size,
            None => return Err(DescriptorError::Wraps(self)),
        };
        // Elsewhere firmware says nothing by the virtual address.
        let also_virtual = if self.is_runtime() { self.virtual_start } else { 0 };
        for start in [self.physical_start, also_virtual] {
            if !start.is_multiple_of(EFI_PAGE_SIZE) {
                return Err(DescriptorError::Misaligned(self));
            }
            if start.checked_add(size - 1).is_none() {
                return Err(DescriptorError::Wraps(self));
            }
        }
        Ok(self)
    }

    /// EFI_MEMORY_TYPE, by the names of `r_efi::efi`.
    pub const fn memory_type(&self) -> u32 {
        self.memory_type
    }

    /// The physical address of the first byte: a multiple of [`EFI_PAGE_SIZE`].
    pub const fn physical_start(&self) -> u64 {
        self.physical_start
    }

    /// The virtual address of the first byte, for a runtime region: a multiple of [`EFI_PAGE_SIZE`]. Zero where none was
    /// chosen yet.
    pub const fn virtual_start(&self) -> u64 {
        self.virtual_start
    }

    /// Bytes.
    pub const fn size(&self) -> u64 {
        self.pages * EFI_PAGE_SIZE
    }

    /// The physical address of the last byte.
    pub const fn physical_last(&self) -> u64 {
        self.physical_start + (self.size() - 1)
    }

    /// EFI_MEMORY_RUNTIME: the runtime services need it mapped.
    pub const fn is_runtime(&self) -> bool {
        self.attribute & MEMORY_RUNTIME != 0
    }

    /// EFI_MEMORY_RO: must not be written to.
    pub const fn is_read_only(&self) -> bool {
        self.attribute & MEMORY_RO != 0
    }

    /// EFI_MEMORY_XP: must not be executed.
    pub const fn is_execute_protected(&self) -> bool {
        self.attribute & MEMORY_XP != 0
    }

    /// Whether all of `other` lies in this region.
    pub(crate) const fn contains(&self, other: &Self) -> bool {
        self.physical_start <= other.physical_start && other.physical_last() <= self.physical_last()
    }

    const fn overlaps(&self, other: &Self) -> bool {
        self.physical_start <= other.physical_last() && other.physical_start <= self.physical_last()
    }

    /// The same at this virtual address.
    pub(crate) const fn at(self, virtual_start: u64) -> Self {
        Self { virtual_start, ..self }
    }
}

impl fmt::Display for MemoryDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory_type, physical_start, virtual_start, pages, attribute } = self;
        write!(f, "{pages} pages of type {memory_type} at {physical_start:#x} ")?;
        write!(f, "(virtual {virtual_start:#x}, attribute {attribute:#x})")
    }
}

/// What is wrong with a descriptor by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DescriptorError {
    /// No pages.
    Empty(MemoryDescriptor),
    /// The physical address, or a runtime region's virtual one, is no multiple of [`EFI_PAGE_SIZE`].
    Misaligned(MemoryDescriptor),
    /// The region ends beyond the last address there is, or has 2^64 bytes.
    Wraps(MemoryDescriptor),
}

impl fmt::Display for DescriptorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty(d) => write!(f, "a region is empty: {d}"),
            Self::Misaligned(d) => write!(f, "a region is not aligned to 4 KiB: {d}"),
            Self::Wraps(d) => write!(f, "a region ends beyond the last address: {d}"),
        }
    }
}

impl core::error::Error for DescriptorError {}

/// Why a memory map was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryMapError {
    /// Descriptors of this version are not known.
    Version(u32),
    /// No multiple of 8 from [`MIN_DESCRIPTOR_SIZE`] to [`MAX_DESCRIPTOR_SIZE`].
    DescriptorSize(usize),
    /// So many bytes are not one or more whole descriptors of such a size.
    Truncated(usize, usize),
    /// A descriptor makes no sense.
    Descriptor(DescriptorError),
    /// Two regions have bytes in common.
    Overlap(MemoryDescriptor, MemoryDescriptor),
}

impl fmt::Display for MemoryMapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EFI memory map: ")?;
        match self {
            Self::Version(version) => write!(f, "descriptors of version {version} are not known"),
            Self::DescriptorSize(size) => write!(f, "a descriptor can't have {size} bytes"),
            Self::Truncated(bytes, size) => write!(f, "{bytes} bytes are no whole descriptors of {size}"),
            Self::Descriptor(error) => error.fmt(f),
            Self::Overlap(one, other) => write!(f, "regions overlap: {one} and {other}"),
        }
    }
}

impl core::error::Error for MemoryMapError {}

impl From<DescriptorError> for MemoryMapError {
    fn from(error: DescriptorError) -> Self {
        Self::Descriptor(error)
    }
}

/// A memory map that was checked: every descriptor makes sense, and no two regions overlap.
#[derive(Clone, Copy, Debug)]
pub struct MemoryMap<'a> {
    bytes: &'a [u8],
    descriptor_size: usize,
}

impl<'a> MemoryMap<'a> {
    /// The map in `bytes`, with size and version of a descriptor as GetMemoryMap reported them. The order of descriptors
    /// doesn't matter; where it is ascending, this takes time by their number, else by its square.
    ///
    /// # Errors
    /// See [`MemoryMapError`].
    pub fn parse(
        bytes: &'a [u8],
        descriptor_size: usize,
        descriptor_version: u32,
    ) -> Result<Self, MemoryMapError> {
        if descriptor_version != MEMORY_DESCRIPTOR_VERSION {
            return Err(MemoryMapError::Version(descriptor_version));
        }
        if !is_descriptor_size(descriptor_size) {
            return Err(MemoryMapError::DescriptorSize(descriptor_size));
        }
        let truncated = MemoryMapError::Truncated(bytes.len(), descriptor_size);
        if bytes.is_empty() || !bytes.len().is_multiple_of(descriptor_size) {
            return Err(truncated);
        }
        let map = Self { bytes, descriptor_size };
        // The last byte of what came before.
        let mut highest = None;
        for (i, chunk) in bytes.chunks_exact(descriptor_size).enumerate() {
            let descriptor = MemoryDescriptor::read(chunk).ok_or(truncated)?.checked()?;
            if highest.is_none_or(|last| last < descriptor.physical_start) {
                highest = Some(descriptor.physical_last());
            } else if let Some(other) = map.descriptors().take(i).find(|other| other.overlaps(&descriptor)) {
                return Err(MemoryMapError::Overlap(other, descriptor));
            }
        }
        Ok(map)
    }

    /// Every descriptor, in the firmware's order, beside its bytes.
    pub(crate) fn raw(&self) -> impl Iterator<Item = (&'a [u8], MemoryDescriptor)> + use<'a> {
        // `parse` has read each of them.
        self.bytes
            .chunks_exact(self.descriptor_size)
            .filter_map(|bytes| Some((bytes, MemoryDescriptor::read(bytes)?)))
    }

    /// Every descriptor, in the firmware's order.
    pub fn descriptors(&self) -> impl Iterator<Item = MemoryDescriptor> + use<'a> {
        self.raw().map(|(_, descriptor)| descriptor)
    }

    /// Those of the regions that the runtime services need mapped.
    pub fn runtime(&self) -> impl Iterator<Item = MemoryDescriptor> + use<'a> {
        self.descriptors().filter(MemoryDescriptor::is_runtime)
    }
}

pub(crate) fn is_descriptor_size(size: usize) -> bool {
    (MIN_DESCRIPTOR_SIZE..=MAX_DESCRIPTOR_SIZE).contains(&size) && size.is_multiple_of(8)
}
