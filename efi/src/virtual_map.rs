//! What SetVirtualAddressMap is told (UEFI 2.10, 8.4).
#![forbid(unsafe_code)]

use core::mem::offset_of;

use r_efi::efi::MemoryDescriptor as Layout;

use crate::memory_map::MemoryMap;

/// What the virtual address of a runtime region exceeds its physical one by. The same for all: what lies side by side in
/// memory, such as the parts of one driver, which find each other by their distance, does so in `efi_mm`; no two regions
/// overlap; and addresses agree modulo every block and granule.
pub const VIRTUAL_OFFSET: u64 = 1 << 46;

/// One past the last address that TTBR0 translates.
const END: u64 = 1 << 48;

impl MemoryMap<'_> {
    /// Writes the runtime regions, each with its virtual address, into `out`, as descriptors of the same size, and returns
    /// how many bytes that takes.
    ///
    /// `None` where `out`, which as many bytes as the map has suffice for, is too small, or a virtual address would be
    /// beyond 48 bits.
    pub fn write_virtual_map(&self, out: &mut [u8]) -> Option<usize> {
        let mut used = 0;
        for (bytes, region) in self.raw().filter(|(_, region)| region.is_runtime()) {
            let va = region.physical_start().checked_add(VIRTUAL_OFFSET)?;
            if va.checked_add(region.size()).is_none_or(|end| end > END) {
                return None;
            }
            let copy = out.get_mut(used..used + bytes.len())?;
            copy.copy_from_slice(bytes);
            let field = copy.get_mut(offset_of!(Layout, virtual_start)..)?.first_chunk_mut()?;
            *field = va.to_le_bytes();
            used += bytes.len();
        }
        Some(used)
    }
}
