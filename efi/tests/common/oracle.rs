//! What the parsers must say of any bytes: accepted is what these definitions accept, and nothing else.

use pleat_efi::memory_attributes::{self, MemoryAttributes};
use pleat_efi::runtime::RuntimeTable;
use pleat_efi::{MemoryDescriptor, MemoryMap, RuntimeServices};

use super::tables::{self, CODE, DATA, Region};

/// The descriptors in `bytes`, if they are whole ones.
fn regions(bytes: &[u8], size: usize) -> Vec<Region> {
    let number = |d: &[u8], at: usize| u64::from_le_bytes(d[at..at + 8].try_into().unwrap());
    let read = |d: &[u8]| Region {
        memory_type: number(d, 0) as u32,
        pa: number(d, 8),
        va: number(d, 16),
        pages: number(d, 24),
        attribute: number(d, 32),
    };
    bytes.chunks(size).map(read).collect()
}

fn is_size(size: usize) -> bool {
    (40..=4096).contains(&size) && size.is_multiple_of(8)
}

/// First byte and the one after the last.
fn span(start: u64, pages: u64) -> (u128, u128) {
    (start.into(), u128::from(start) + u128::from(pages) * 4096)
}

fn is_span(start: u64, pages: u64) -> bool {
    // Its size is a number of 64 bits, too.
    start.is_multiple_of(4096) && (1..1 << 52).contains(&pages) && span(start, pages).1 <= 1 << 64
}

fn is_region(r: &Region) -> bool {
    is_span(r.pa, r.pages) && (!r.is_runtime() || is_span(r.va, r.pages))
}

fn is_map(bytes: &[u8], size: usize, version: u32) -> bool {
    if version != 1 || !is_size(size) || bytes.is_empty() || !bytes.len().is_multiple_of(size) {
        return false;
    }
    let regions = regions(bytes, size);
    let apart = |a: &Region, b: &Region| {
        let (a, b) = (span(a.pa, a.pages), span(b.pa, b.pages));
        a.1 <= b.0 || b.1 <= a.0
    };
    regions.iter().all(is_region)
        && (0..regions.len()).all(|i| (0..i).all(|j| apart(&regions[i], &regions[j])))
}

fn same(found: &MemoryDescriptor, r: &Region) -> bool {
    (found.memory_type(), found.physical_start(), found.virtual_start(), found.size())
        == (r.memory_type, r.pa, r.va, r.size())
        && (found.is_runtime(), found.is_read_only(), found.is_execute_protected())
            == (r.is_runtime(), r.attribute & tables::RO != 0, r.attribute & tables::XP != 0)
}

/// The entries of a table, each at the virtual address of its region; `None` for what is no table.
fn entries(bytes: &[u8], map: &[Region]) -> Option<Vec<Region>> {
    let field = |i: usize| Some(u32::from_le_bytes(bytes.get(4 * i..4 * i + 4)?.try_into().unwrap()));
    let (version, count, size) = (field(0)?, field(1)?, field(2)? as usize);
    field(3)?;
    if !(version == 1 || version == 2) || count > 4096 || !is_size(size) {
        return None;
    }
    let entries = regions(bytes.get(16..16 + count as usize * size)?, size);
    let place = |e: &Region| {
        if !is_span(e.pa, e.pages) || e.memory_type != CODE && e.memory_type != DATA {
            return None;
        }
        let within = |r: &&Region| {
            let (inner, outer) = (span(e.pa, e.pages), span(r.pa, r.pages));
            r.is_runtime() && r.memory_type == e.memory_type && outer.0 <= inner.0 && inner.1 <= outer.1
        };
        let homes: Vec<_> = map.iter().filter(within).collect();
        let [home] = homes[..] else { return None };
        Some(Region { va: home.va + (e.pa - home.pa), ..*e })
    };
    entries.iter().map(place).collect()
}

fn runtime_services(bytes: &[u8]) -> Option<u32> {
    let &[v0, v1, l0, l1, m0, m1, m2, m3, ..] = bytes else { return None };
    let (version, length) = (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([l0, l1]));
    (version == 1 && length >= 8).then_some(u32::from_le_bytes([m0, m1, m2, m3]) & 0x3fff)
}

/// How far the tables were accepted: 0 not the map, 1 the map, 2 the attributes too.
///
/// # Panics
/// Where a parser says something else than it must.
pub fn check(map_bytes: &[u8], size: usize, version: u32, table: &[u8]) -> u8 {
    let services = RuntimeServices::parse(table).ok().map(|services| services.bits());
    assert_eq!(services, runtime_services(table));

    let map = MemoryMap::parse(map_bytes, size, version);
    assert_eq!(map.is_ok(), is_map(map_bytes, size, version), "{map:?}");
    let map = match map {
        Ok(map) => map,
        Err(error) => return says_one_line(&error, 0),
    };
    let expected = regions(map_bytes, size);
    assert_eq!(map.descriptors().count(), expected.len());
    assert!(map.descriptors().zip(&expected).all(|(found, r)| same(&found, r)));
    assert!(map.runtime().eq(map.descriptors().filter(MemoryDescriptor::is_runtime)));

    let services = RuntimeTable::parse(table, &map, RuntimeServices::all());
    assert_eq!(services.is_ok(), is_service_table(table, &expected), "{services:?}");
    let _ = services.is_err_and(|error| says_one_line(&error, 0) == 0);

    let attributes = MemoryAttributes::parse(table, map);
    let expected = entries(table, &expected);
    assert_eq!(attributes.is_ok(), expected.is_some(), "{attributes:?}");
    let (attributes, expected) = match (attributes, expected) {
        (Ok(attributes), Some(expected)) => (attributes, expected),
        (Err(error), _) => return says_one_line(&error, 1),
        (Ok(_), None) => unreachable!(),
    };
    assert_eq!(attributes.entries().count(), expected.len());
    assert!(attributes.entries().zip(&expected).all(|(found, r)| same(&found, r)));
    assert!(memory_attributes::table_size(table).unwrap() <= table.len());
    2
}

/// Whether a table of runtime services is accepted where all of them are supported, for the regions of a map.
fn is_service_table(bytes: &[u8], map: &[Region]) -> bool {
    let Some(table) = bytes.get(..136) else { return false };
    let pointers = table[24..].chunks_exact(8).map(|field| u64::from_le_bytes(field.try_into().unwrap()));
    // Those that there is a function for (UEFI 2.10, 4.5): time, variables, reset, and what room there is.
    let called = pointers.enumerate().filter(|(i, _)| [0, 1, 6, 7, 8, 10, 13].contains(i));
    let in_code = |va: u64| {
        let code = |r: &&Region| r.is_runtime() && r.memory_type == CODE;
        map.iter().filter(code).any(|r| r.va <= va && va - r.va < r.size())
    };
    table.starts_with(b"RUNTSERV")
        && u32::from_le_bytes(table[12..16].try_into().unwrap()) >= 136
        && called.into_iter().all(|(_, va)| in_code(va))
}

fn says_one_line(error: &dyn std::error::Error, accepted: u8) -> u8 {
    let line = error.to_string();
    assert!(line.starts_with("EFI ") && !line.contains('\n') && line.len() < 300, "{line}");
    accepted
}

/// Bytes as tables: half of them by themselves, half as changes of what firmware makes. How far they were accepted.
pub fn check_bytes(bytes: &[u8]) -> u8 {
    let Some((&[how, size, count, more], rest)) = bytes.split_first_chunk() else { return 0 };
    if how % 2 == 0 {
        // Of any length, also none of whole descriptors.
        let size = if size == u8::MAX { usize::from(more) << 8 } else { size.into() };
        let length = size * usize::from(count) + if how % 4 == 0 { 0 } else { more.into() };
        let (map, table) = rest.split_at(length.min(rest.len()));
        return check(map, size, u32::from(how >> 2) % 4, table);
    }
    let firmware = &tables::all()[usize::from(how / 2) % 3];
    let mut map = firmware.map_bytes();
    let mut table = match firmware.attributes_bytes() {
        Some(table) if how % 8 != 7 => table,
        _ => tables::services(firmware),
    };
    for change in rest.as_chunks::<4>().0 {
        let &[at, at_high, value, kind] = change;
        let at = usize::from(u16::from_le_bytes([at, at_high]));
        let target = if kind % 2 == 0 { &mut map } else { &mut table };
        match kind / 2 % 8 {
            0 => target.truncate(at),
            // The same bit as elsewhere, or one of another place.
            1 => target.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (value % 8)),
            _ => target.iter_mut().skip(at).take(1).for_each(|byte| *byte = value),
        }
    }
    let size = if size == 0 { count.into() } else { firmware.descriptor_size };
    check(&map, size, 1, &table)
}
