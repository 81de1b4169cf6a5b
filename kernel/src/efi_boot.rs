//! What EFI firmware says, written into a copy of its device tree: the kernel then finds all that it needs where every other
//! boot loader puts it.
//!
//! RAM is what the memory map says may be used once boot services are left; `/memory` is not believed. So nothing of what
//! firmware keeps, such as its runtime services, is memory to the kernel: neither allocated nor in the linear map.

#[cfg(test)]
mod tests;

use core::fmt;
use core::mem::size_of;

use arrayvec::ArrayVec;
use dtoolkit::error::FdtMutError;
use dtoolkit::fdt::FdtNode;
use dtoolkit::fdt_mut::{FdtBuffer, FdtMut, FdtNodeMut};
use dtoolkit::{Node, Property, ToPropertyValue};
use r_efi::system::{
    BOOT_SERVICES_CODE, BOOT_SERVICES_DATA, CONVENTIONAL_MEMORY, LOADER_CODE, LOADER_DATA, MEMORY_SP,
    MEMORY_WB, MemoryDescriptor,
};

use crate::dt::{self, DtError};
use crate::efi_tables::EfiTables;
use crate::platform::{MAX_RANGES, PhysRange};

/// The size of what a memory map counts in, whatever the CPU's granule.
pub const EFI_PAGE: u64 = 4096;

/// A memory map as GetMemoryMap returns it.
#[derive(Clone, Copy, Debug)]
pub struct MemoryMap<'a> {
    bytes: &'a [u8],
    descriptor_size: usize,
    descriptor_version: u32,
}

/// What is written into the copy.
#[derive(Clone, Copy, Debug)]
pub struct Handover<'a> {
    /// Replaces `/chosen` `bootargs`, unless it is empty.
    pub bootargs: &'a str,
    /// The initial RAM disk that firmware has loaded.
    pub initrd: Option<PhysRange>,
    /// Which memory is RAM.
    pub memory: MemoryMap<'a>,
    /// What the runtime services need.
    pub tables: Option<EfiTables<'a>>,
}

/// Why there can be no copy.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum HandoverError {
    /// Firmware's tree can't be read.
    Tree(DtError),
    /// Its blocks are not in the order reservations, structure, strings, as every tool writes them.
    Layout,
    /// It has no such node.
    NoNode(&'static str),
    /// Addresses or sizes of memory have neither one cell nor two, or too few for what there is.
    Cells,
    /// The size of a memory descriptor is less than that of its fields: in bytes.
    DescriptorSize(usize),
    /// There are more than [`MAX_RANGES`] separate ranges of RAM.
    TooManyRanges,
    /// The buffer is too small.
    NoRoom,
}

impl fmt::Display for HandoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tree(error) => error.fmt(f),
            Self::Layout => f.write_str("the blocks of the tree are in an order that can't be edited"),
            Self::NoNode(path) => write!(f, "there is no node {path}"),
            Self::Cells => f.write_str("the cells of the root don't fit the addresses of RAM"),
            Self::DescriptorSize(size) => write!(f, "memory descriptors of {size} bytes"),
            Self::TooManyRanges => write!(f, "RAM is in more than {MAX_RANGES} pieces"),
            Self::NoRoom => f.write_str("the buffer for the copy is too small"),
        }
    }
}

impl core::error::Error for HandoverError {}

/// With memory that was sized for it, the only error of editing.
impl From<FdtMutError> for HandoverError {
    fn from(_: FdtMutError) -> Self {
        Self::NoRoom
    }
}

impl<'a> MemoryMap<'a> {
    /// The descriptors in `bytes`, with size and version as GetMemoryMap has said.
    ///
    /// # Errors
    /// [`HandoverError::DescriptorSize`]
    pub fn new(
        bytes: &'a [u8],
        descriptor_size: usize,
        descriptor_version: u32,
    ) -> Result<Self, HandoverError> {
        if descriptor_size < size_of::<MemoryDescriptor>() {
            return Err(HandoverError::DescriptorSize(descriptor_size));
        }
        Ok(Self { bytes, descriptor_size, descriptor_version })
    }

    /// The descriptors as they are.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes of each.
    pub const fn descriptor_size(&self) -> usize {
        self.descriptor_size
    }

    /// The version of each.
    pub const fn descriptor_version(&self) -> u32 {
        self.descriptor_version
    }

    /// What may be used once boot services are left, in any order and in any number of pieces. What is not below 2^48 is left
    /// out.
    fn pieces(&self) -> impl Iterator<Item = PhysRange> {
        self.bytes.chunks_exact(self.descriptor_size).filter_map(|descriptor| {
            let u64_at = |at: usize| {
                let bytes = descriptor.get(at..)?.first_chunk()?;
                Some(u64::from_le_bytes(*bytes))
            };
            // The type is a u32, followed by four bytes that mean nothing.
            let kind = u64_at(0)? as u32;
            let start = u64_at(core::mem::offset_of!(MemoryDescriptor, physical_start))?;
            let pages = u64_at(core::mem::offset_of!(MemoryDescriptor, number_of_pages))?;
            let usable = matches!(
                kind,
                LOADER_CODE | LOADER_DATA | BOOT_SERVICES_CODE | BOOT_SERVICES_DATA | CONVENTIONAL_MEMORY
            );
            // Write-back cacheable, and for nobody in particular, as Linux asks too.
            let attribute = u64_at(core::mem::offset_of!(MemoryDescriptor, attribute))?;
            (usable && attribute & MEMORY_WB != 0 && attribute & MEMORY_SP == 0).then_some(())?;
            PhysRange::from_size(start, pages.checked_mul(EFI_PAGE)?)
        })
    }

    /// The same in ascending order, with a gap between any two.
    pub fn usable(&self) -> impl Iterator<Item = PhysRange> {
        let mut done = 0;
        core::iter::from_fn(move || {
            let first = self.pieces().filter(|piece| piece.start.get() >= done);
            let mut range = first.min_by_key(|piece| piece.start)?;
            let follows =
                |range: PhysRange| self.pieces().find(|next| next.start <= range.end && range.end < next.end);
            while let Some(next) = follows(range) {
                range.end = next.end;
            }
            done = range.end.get();
            Some(range)
        })
    }
}

/// How many bytes a copy of `tree` takes at most, with boot arguments and [`EfiTables`] of so many bytes.
pub fn room_for_copy(tree: usize, bootargs: usize, tables: usize) -> usize {
    // Names and headers of a few properties beside the values.
    tree + bootargs + tables + MAX_RANGES * 2 * size_of::<u64>() + 1024
}

/// Writes a copy of `tree` with what firmware says into `copy`, and returns the copy's size in bytes.
///
/// # Errors
/// See [`HandoverError`].
pub fn write(tree: &[u8], handover: &Handover<'_>, copy: &mut [u8]) -> Result<usize, HandoverError> {
    let size = dt::total_size(tree).map_err(HandoverError::Tree)?;
    let tree = tree.get(..size).ok_or(HandoverError::NoRoom)?;
    let blob = dt::format::open(tree).map_err(HandoverError::Tree)?;
    if !is_editable(tree) {
        return Err(HandoverError::Layout);
    }
    let memory = encode_memory(
        handover.memory,
        cells(&blob.root(), "#address-cells", 2)?,
        cells(&blob.root(), "#size-cells", 1)?,
    )?;

    copy.get_mut(..size).ok_or(HandoverError::NoRoom)?.copy_from_slice(tree);
    let mut copy = FdtMut::from_slice_unchecked(copy);
    let mut root = copy.root_mut();
    let mut nodes = root.children_mut();
    let mut nodes_of_memory = 0;
    while let Some(mut node) = nodes.next() {
        if !dt::describes_memory(&node.as_read_only()) {
            continue;
        }
        // All in the first one, nothing in the others.
        set(&mut node, "reg", if nodes_of_memory == 0 { &memory } else { &[][..] })?;
        nodes_of_memory += 1;
    }
    if nodes_of_memory == 0 {
        return Err(HandoverError::NoNode("/memory"));
    }

    let mut chosen = copy.find_node_mut("/chosen").ok_or(HandoverError::NoNode("/chosen"))?;
    if !handover.bootargs.is_empty() {
        set(&mut chosen, "bootargs", handover.bootargs)?;
    }
    if let Some(initrd) = handover.initrd {
        set(&mut chosen, "linux,initrd-start", initrd.start.get())?;
        set(&mut chosen, "linux,initrd-end", initrd.end.get())?;
    }
    if let Some(tables) = handover.tables {
        tables.write(&mut chosen)?;
    }
    dt::total_size(copy.data_mut()).map_err(HandoverError::Tree)
}

/// Whether what comes behind the structure block is the strings block, whose strings are whole: what dtoolkit's editing
/// relies on and [`dt::format::open`] does not ask for.
fn is_editable(tree: &[u8]) -> bool {
    let word = |index: usize| {
        let (words, _) = tree.as_chunks::<4>();
        words.get(index).map_or(0, |&word| u32::from_be_bytes(word) as usize)
    };
    let (structure, strings, reservations) = (word(2), word(3), word(4));
    let strings_block = tree.get(strings..).and_then(|rest| rest.get(..word(8)));
    reservations < structure
        && structure.checked_add(word(9)).is_some_and(|end| end <= strings)
        && strings_block.is_some_and(|block| matches!(block.last(), Some(0)) && str::from_utf8(block).is_ok())
}

fn cells(root: &FdtNode<'_>, name: &str, default: u32) -> Result<usize, HandoverError> {
    let cells = root.property(name).map_or(Ok(default), |cells| cells.value_as::<u32>());
    match cells {
        Ok(cells @ 1..=2) => Ok(cells as usize),
        _ => Err(HandoverError::Cells),
    }
}

/// `reg` of a memory node.
fn encode_memory(
    map: MemoryMap<'_>,
    address_cells: usize,
    size_cells: usize,
) -> Result<ArrayVec<u8, { MAX_RANGES * 2 * size_of::<u64>() }>, HandoverError> {
    let mut reg = ArrayVec::new();
    for range in map.usable() {
        for (value, cells) in [(range.start.get(), address_cells), (range.size(), size_cells)] {
            let bytes = value.to_be_bytes();
            let (high, low) = bytes.split_at(bytes.len() - cells * size_of::<u32>());
            if high.iter().any(|&byte| byte != 0) {
                return Err(HandoverError::Cells);
            }
            reg.try_extend_from_slice(low).map_err(|_| HandoverError::TooManyRanges)?;
        }
    }
    Ok(reg)
}

/// Gives a node a property, or its property another value.
pub(crate) fn set<B: FdtBuffer>(
    node: &mut FdtNodeMut<'_, B>,
    name: &str,
    value: impl ToPropertyValue,
) -> Result<(), FdtMutError> {
    match node.property_mut(name) {
        Some(mut property) => property.set_value(value),
        None => node.add_property(name, value).map(|_| ()),
    }
}
