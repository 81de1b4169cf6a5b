//! Tables as firmware makes them.

// By the numbers of the specification, not by those that the crate under test uses.
pub const BOOT_CODE: u32 = 3;
pub const CODE: u32 = 5;
pub const DATA: u32 = 6;
pub const CONVENTIONAL: u32 = 7;
pub const MMIO: u32 = 11;
pub const XP: u64 = 1 << 14;
pub const RO: u64 = 1 << 17;
pub const RUNTIME: u64 = 1 << 63;
/// Cacheable in every way, as both firmwares say of memory.
const CACHEABLE: u64 = 0xf;

/// What a descriptor or an entry says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    pub memory_type: u32,
    pub pa: u64,
    pub va: u64,
    pub pages: u64,
    pub attribute: u64,
}

impl Region {
    pub fn size(&self) -> u64 {
        self.pages * 4096
    }

    pub fn is_runtime(&self) -> bool {
        self.attribute & RUNTIME != 0
    }
}

pub const fn region(memory_type: u32, pa: u64, pages: u64, attribute: u64) -> Region {
    Region { memory_type, pa, va: 0, pages, attribute }
}

/// Descriptors of `size` bytes; what lies beyond the 40 that are known is not zero.
pub fn descriptors(regions: &[Region], size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for r in regions {
        let start = bytes.len();
        bytes.extend(r.memory_type.to_le_bytes());
        bytes.extend([0xa5; 4]);
        for field in [r.pa, r.va, r.pages, r.attribute] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.resize(start + size.max(40), 0xa5);
    }
    bytes
}

/// A Memory Attributes Table.
pub fn attributes(version: u32, entries: &[Region], size: usize) -> Vec<u8> {
    let header = [version, entries.len() as u32, size as u32, 0];
    let mut bytes: Vec<u8> = header.iter().flat_map(|field| field.to_le_bytes()).collect();
    bytes.extend(descriptors(entries, size));
    bytes
}

/// What a firmware hands over.
#[derive(Clone, Debug)]
pub struct Firmware {
    pub descriptor_size: usize,
    pub map: Vec<Region>,
    /// Version and entries.
    pub attributes: Option<(u32, Vec<Region>)>,
}

impl Firmware {
    pub fn map_bytes(&self) -> Vec<u8> {
        descriptors(&self.map, self.descriptor_size)
    }

    pub fn attributes_bytes(&self) -> Option<Vec<u8>> {
        let (version, entries) = self.attributes.as_ref()?;
        Some(attributes(*version, entries, self.descriptor_size))
    }

    /// Runtime regions get virtual addresses, as by SetVirtualAddressMap: one after the other, in pages of 64 KiB.
    fn with_virtual_addresses(mut self) -> Self {
        let mut next = 0x2000_0000;
        for r in self.map.iter_mut().filter(|r| r.is_runtime()) {
            // The same place in 64 KiB, and in a block where that is easy: it invites one.
            r.va = next | r.pa & 0xffff;
            next = (r.va + r.size()).next_multiple_of(1 << 21);
        }
        self
    }
}

/// As edk2: descriptors of 0x30 bytes, runtime regions in multiples of 64 KiB, neither RO nor XP in the map; each image
/// is a header and data that must not be executed, and code between them that must not be written to.
fn edk2(version: u32, images: u64, data: u64) -> Firmware {
    let memory = CACHEABLE | RUNTIME;
    let mut map = vec![
        region(MMIO, 0x0400_0000, 0x40, 1 | RUNTIME),
        region(MMIO, 0x0901_0000, 0x10, 1 | RUNTIME),
        region(CONVENTIONAL, 0x4000_0000, 0x1c000, CACHEABLE),
        region(BOOT_CODE, 0x5c00_0000, 0x100, CACHEABLE),
    ];
    let mut entries = Vec::new();
    let mut pa = 0x5c20_0000;
    for image in 0..images {
        map.push(region(CODE, pa, 0x40, memory));
        entries.push(region(CODE, pa, 0x10, XP | RUNTIME));
        entries.push(region(CODE, pa + 0x1_0000, 0x10, RO | RUNTIME));
        entries.push(region(CODE, pa + 0x2_0000, 0x20, XP | RUNTIME));
        pa += 0x4_0000 + (image % 2) * 0x20_0000;
    }
    for _ in 0..data {
        map.push(region(DATA, pa, 0x30, memory));
        entries.push(region(DATA, pa, 0x30, XP | RUNTIME));
        pa += 0x10_0000;
    }
    // Not sorted, as the specification allows.
    map.swap(0, 5);
    Firmware { descriptor_size: 0x30, map, attributes: Some((version, entries)) }.with_virtual_addresses()
}

/// Version 1, 21 entries.
pub fn edk2_2022() -> Firmware {
    edk2(1, 6, 3)
}

/// Version 2, 36 entries.
pub fn edk2_2025() -> Firmware {
    edk2(2, 10, 6)
}

/// As U-Boot: descriptors of 0x28 bytes, single pages, no Memory Attributes Table.
pub fn u_boot() -> Firmware {
    let memory = 8 | RUNTIME;
    let map = vec![
        region(CONVENTIONAL, 0x4000_0000, 0x3_e000, 8),
        region(DATA, 0x7e6d_9000, 1, memory),
        region(BOOT_CODE, 0x7e6d_a000, 2, 8),
        region(DATA, 0x7e6d_c000, 3, memory),
        region(CODE, 0x7ff3_0000, 0x10, memory),
    ];
    Firmware { descriptor_size: 0x28, map, attributes: None }.with_virtual_addresses()
}

pub fn all() -> [Firmware; 3] {
    [edk2_2022(), edk2_2025(), u_boot()]
}

/// A table of runtime services as this firmware has it after SetVirtualAddressMap.
pub fn services(firmware: &Firmware) -> Vec<u8> {
    let code = firmware.map.iter().find(|r| r.is_runtime() && r.memory_type == CODE).expect("code");
    let mut bytes = b"RUNTSERV".to_vec();
    for field in [2 << 16 | 100_u32, 136, 0xc0ff_ee00, 0] {
        bytes.extend(field.to_le_bytes());
    }
    (0..14).for_each(|service| bytes.extend((code.va + 0x100 * service).to_le_bytes()));
    bytes
}
