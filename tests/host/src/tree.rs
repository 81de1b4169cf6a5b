//! Device trees for boots: QEMU's own, edited or broken.
//!
//! QEMU hands out a sane tree only. What a boot loader may get wrong is made from it here and put into
//! RAM as it is (`--image-at`, `--dtb`).

use std::fs;
use std::path::Path;

use dtoolkit::Node;
use dtoolkit::fdt::Fdt;
use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

use crate::boot::{Boot, Scratch};

/// Where RAM begins on QEMU's machine virt.
pub const RAM_BASE: u64 = 0x4000_0000;

/// A device tree that can be edited.
#[derive(Clone, Debug)]
pub struct Tree(DeviceTree);

impl Tree {
    /// The tree that QEMU makes for these options.
    ///
    /// # Panics
    /// Where QEMU can't make one.
    pub fn of(boot: &Boot) -> Self {
        let scratch = Scratch::new();
        let path = scratch.path("qemu.dtb");
        let outcome = boot.clone().option("--dump-dtb", &path).run();
        assert_eq!(outcome.status, Some(0), "{outcome}");
        Self::load(&path)
    }

    /// The tree in a file.
    ///
    /// # Panics
    /// Where there is none.
    pub fn load(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let fdt = Fdt::new(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(DeviceTree::from_fdt(&fdt))
    }

    /// The flattened tree.
    pub fn to_dtb(&self) -> Vec<u8> {
        self.0.to_dtb()
    }

    /// Removes a child of the root, such as `memory@40000000`.
    ///
    /// # Panics
    /// Where there is no such node: the test would not test what it says.
    #[must_use]
    pub fn without_node(mut self, name: &str) -> Self {
        self.0.root.remove_child(name).unwrap_or_else(|| panic!("no node /{name}"));
        self
    }

    /// Adds a child of the root.
    #[must_use]
    pub fn with_node(mut self, name: &str, properties: &[(&str, Vec<u8>)]) -> Self {
        self.0.root.add_child(node(name, properties.iter().cloned()));
        self
    }

    /// Removes a property of the node at a path.
    ///
    /// # Panics
    /// Where there is no such node or property: the test would not test what it says.
    #[must_use]
    pub fn without_property(mut self, path: &str, property: &str) -> Self {
        let removed = self.node(path).remove_property(property);
        assert!(removed.is_some(), "no property {property} in {path}");
        self
    }

    /// Sets a property of the node at a path.
    ///
    /// # Panics
    /// Where there is no such node.
    #[must_use]
    pub fn property(mut self, path: &str, name: &str, value: Vec<u8>) -> Self {
        self.node(path).add_property(DeviceTreeProperty::new(name, value).expect("a valid name"));
        self
    }

    /// Sets the kernel's command line.
    #[must_use]
    pub fn bootargs(self, line: &str) -> Self {
        self.property("/chosen", "bootargs", string(line))
    }

    /// Replaces all nodes of memory by one with these ranges (address, bytes).
    ///
    /// # Panics
    /// Where there is no node of memory.
    #[must_use]
    pub fn memory(mut self, ranges: &[(u64, u64)]) -> Self {
        let root = &self.0.root;
        let names = root.children().map(|node| node.name().to_owned());
        let memory: Vec<String> = names.filter(|name| name.starts_with("memory@")).collect();
        assert!(!memory.is_empty(), "no node of memory");
        for name in memory {
            self = self.without_node(&name);
        }
        let properties = [("device_type", string("memory")), ("reg", reg(ranges))];
        self.0.root.add_child(node("memory@40000000", properties));
        self
    }

    /// Adds a child of `/reserved-memory` with one range.
    #[must_use]
    pub fn reserved(mut self, start: u64, bytes: u64, no_map: bool) -> Self {
        if self.0.root.child_mut("reserved-memory").is_none() {
            let two = || 2_u32.to_be_bytes().to_vec();
            let properties = [("#address-cells", two()), ("#size-cells", two()), ("ranges", Vec::new())];
            self.0.root.add_child(node("reserved-memory", properties));
        }
        let no_map = no_map.then(|| ("no-map", Vec::new()));
        let properties = [("reg", reg(&[(start, bytes)]))].into_iter().chain(no_map);
        self.node("/reserved-memory").add_child(node(&format!("firmware@{start:x}"), properties));
        self
    }

    /// Adds an entry to the memory reservation block (`/memreserve/`).
    #[must_use]
    pub fn memreserve(mut self, start: u64, bytes: u64) -> Self {
        self.0.memory_reservations.push(MemoryReservation::new(start, bytes));
        self
    }

    /// Says in `/chosen` that an initial RAM disk lies from `start` to before `end`.
    #[must_use]
    pub fn initrd(self, start: u64, end: u64) -> Self {
        self.property("/chosen", "linux,initrd-start", start.to_be_bytes().to_vec()).property(
            "/chosen",
            "linux,initrd-end",
            end.to_be_bytes().to_vec(),
        )
    }

    fn node(&mut self, path: &str) -> &mut DeviceTreeNode {
        self.0.find_node_mut(path).unwrap_or_else(|| panic!("no node {path}"))
    }
}

fn node<'a>(name: &str, properties: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new(name).expect("a valid name");
    for (name, value) in properties {
        node.add_property(DeviceTreeProperty::new(name, value).expect("a valid name"));
    }
    node
}

/// A string as a property's value.
pub fn string(text: &str) -> Vec<u8> {
    let mut value = text.as_bytes().to_vec();
    value.push(0);
    value
}

/// Ranges as a `reg` of two address cells and two size cells.
pub fn reg(ranges: &[(u64, u64)]) -> Vec<u8> {
    ranges.iter().flat_map(|&(start, bytes)| [start.to_be_bytes(), bytes.to_be_bytes()]).flatten().collect()
}

/// The fields of a flattened tree's header, by their offset (Devicetree Specification v0.4, 5.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderField {
    /// `magic`
    Magic = 0,
    /// `totalsize`
    TotalSize = 4,
    /// `off_dt_struct`
    StructOffset = 8,
    /// `off_dt_strings`
    StringsOffset = 12,
    /// `off_mem_rsvmap`
    ReservationsOffset = 16,
    /// `version`
    Version = 20,
    /// `last_comp_version`
    LastCompatibleVersion = 24,
    /// `size_dt_strings`
    StringsSize = 32,
    /// `size_dt_struct`
    StructSize = 36,
}

/// Reads a header field of a flattened tree.
///
/// # Panics
/// Where the bytes are shorter than a header.
pub fn header_field(dtb: &[u8], field: HeaderField) -> u32 {
    let at = field as usize;
    u32::from_be_bytes(dtb[at..at + 4].try_into().expect("four bytes"))
}

/// A flattened tree with one header field changed.
///
/// # Panics
/// Where the bytes are shorter than a header.
#[must_use]
pub fn with_header_field(mut dtb: Vec<u8>, field: HeaderField, value: u32) -> Vec<u8> {
    let at = field as usize;
    dtb[at..at + 4].copy_from_slice(&value.to_be_bytes());
    dtb
}
