//! Reads the flattened device tree into a [`Platform`].
//!
//! The blob comes from firmware and is believed in nothing: every number is checked where it is
//! read, and no input makes this module panic. What is missing but not needed is left out; what is
//! wrong is a [`DtError`]. Whether ranges overlap each other is not asked here but in
//! [`crate::memblock`].
//!
//! Follows the Devicetree Specification v0.4 and the kernel's bindings for Arm.

mod error;
pub(crate) mod format;
mod interrupts;
#[cfg(test)]
mod tests;

use core::ffi::CStr;
use core::mem::size_of;

use arch::PhysAddr;
use arrayvec::ArrayVec;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::Reg;
use dtoolkit::{FdtStringListIterator, Node, Property};

pub use self::error::DtError;
use self::interrupts::Controller;
use crate::bootargs;
use crate::efi_tables::EfiTables;
use crate::platform::{Conduit, Cpu, EnableMethod, Gic, PhysRange, Platform, Reservation, Uart, UartKind};

/// The first word of a device tree blob.
const MAGIC: u32 = 0xd00d_feed;
/// The version of the format that is read: the only one in use since 2007.
const VERSION: u32 = 17;
/// Bytes in the header of version 17.
pub const HEADER_SIZE: usize = 40;
/// The largest blob that is accepted, in bytes: the arm64 boot protocol's own limit.
pub const MAX_SIZE: usize = 2 << 20;
/// Nodes nested deeper than this are not looked at.
const MAX_DEPTH: usize = 16;
/// The affinity fields of MPIDR_EL1: Aff3 and Aff2 to Aff0.
const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

/// `compatible` strings of interrupt controllers with GICv2's register frames.
const GIC_V2: [&str; 5] =
    ["arm,gic-400", "arm,cortex-a15-gic", "arm,cortex-a9-gic", "arm,cortex-a7-gic", "qcom,msm-qgic2"];
/// Where a BCM2711 has UART 0 and its mini-UART, from its pin controller: those that it can lead to GPIO 14 and 15.
const UART_0: u64 = 0x1000;
const MINI_UART: u64 = 0x1_5040;
/// `compatible` strings of PSCI 0.2 and later, whose function numbers are fixed.
const PSCI: [&str; 2] = ["arm,psci-1.0", "arm,psci-0.2"];

/// A node, from the root (first) down to itself (last).
type Path<'a> = ArrayVec<FdtNode<'a>, MAX_DEPTH>;

/// The size in bytes of the whole blob, from its first [`HEADER_SIZE`] bytes (or more).
///
/// # Errors
/// Where the bytes are not the header of a device tree that this kernel can read.
pub fn total_size(header: &[u8]) -> Result<usize, DtError> {
    let word = |index: usize| {
        let (words, _) = header.as_chunks::<{ size_of::<u32>() }>();
        words.get(index).map(|&word| u32::from_be_bytes(word))
    };
    let truncated = DtError::Truncated { have: header.len(), need: HEADER_SIZE };
    match word(0) {
        Some(MAGIC) => {}
        Some(magic) => return Err(DtError::Magic(magic)),
        None => return Err(truncated),
    }
    if header.len() < HEADER_SIZE {
        return Err(truncated);
    }
    let (size, version, oldest) = match (word(1), word(5), word(6)) {
        (Some(size), Some(version), Some(oldest)) => (size as usize, version, oldest),
        _ => return Err(truncated),
    };
    if !(oldest..=version).contains(&VERSION) {
        return Err(DtError::Version(version));
    }
    if !(HEADER_SIZE..=MAX_SIZE).contains(&size) {
        return Err(DtError::Size(size));
    }
    Ok(size)
}

/// Reads the tree in `blob`; bytes beyond the size in its header are ignored.
///
/// What it takes from where:
/// - RAM: `reg` of the root's children that are memory by `device_type` or by name.
/// - Reservations: the reservation block, and `reg` of the children of `/reserved-memory`. Children
///   without `reg` ask the kernel to choose a place; nothing here uses such, they are ignored.
/// - Devices: the first enabled node of the whole tree with a known `compatible`, where its parents
///   are enabled too. Its addresses are translated by every parent's `ranges`.
/// - The console: what `console=` asks for in the boot arguments, then `stdout-path`, then the first UART.
/// - The timer's interrupt: by name, else the third, which is the virtual timer's.
///
/// # Errors
/// Where the blob is not a device tree, a property that is needed is malformed or missing, an
/// address is not below 2^48, or there is more of something than a [`Platform`] holds.
// Apart from the caller, which would keep the room for the work on its stack.
#[inline(never)]
pub fn parse(blob: &[u8]) -> Result<Platform<'_>, DtError> {
    let size = total_size(blob)?;
    let blob = blob.get(..size).ok_or(DtError::Truncated { have: blob.len(), need: size })?;
    let fdt = format::open(blob)?;
    let root = fdt.root();
    let chosen = root.child("chosen");

    let mut devices = Devices::default();
    devices.visit(&mut Path::new(), root)?;
    let bootargs = match chosen {
        Some(chosen) if chosen.property("bootargs").is_some() => {
            text(&chosen, "bootargs").ok_or(malformed("/chosen", "bootargs"))?
        }
        _ => "",
    };
    let stdout = stdout(root, chosen).and_then(|path| found_uart(&path));
    let console = devices.console(bootargs::console(bootargs), stdout);
    let spare_console = console.and_then(|first| devices.spare_console(first.kind));
    let (gic, controller) = devices.gic.ok_or(DtError::NoGic)?;
    let timer_intid = controller.timer_intid(&devices.timer.ok_or(DtError::NoTimer)?)?;

    let (cpus, cpus_described) = cpus(&root)?;
    Ok(Platform {
        model: text(&root, "model").or_else(|| text(&root, "compatible")).unwrap_or("unknown machine"),
        memory: memory(&root)?,
        reserved: reserved(fdt)?,
        bootargs,
        initrd: match chosen {
            Some(chosen) => initrd(&chosen)?,
            None => None,
        },
        rng_seed: match chosen.and_then(|chosen| chosen.property("rng-seed")) {
            Some(seed) => seed.value_as::<&[u8]>().map_err(|_| malformed("/chosen", "rng-seed"))?,
            None => &[],
        },
        efi: match chosen {
            Some(chosen) => EfiTables::read(&chosen)?,
            None => None,
        },
        cpus,
        cpus_described,
        psci: devices.psci,
        gic,
        console,
        spare_console,
        timer_intid,
    })
}

/// What a walk over all enabled nodes finds: the first of each kind.
#[derive(Default)]
struct Devices<'a> {
    gic: Option<(Gic, Controller)>,
    timer: Option<FdtNode<'a>>,
    uarts: ArrayVec<FoundUart<'a>, { UartKind::COUNT }>,
    /// A BCM2711's pin controller.
    pins: Option<PhysRange>,
    psci: Option<Conduit>,
}

impl<'a> Devices<'a> {
    /// Looks at `node`, whose parents are `path`, and at everything below. The recursion ends at
    /// [`MAX_DEPTH`].
    fn visit(&mut self, path: &mut Path<'a>, node: FdtNode<'a>) -> Result<(), DtError> {
        if !enabled(&node) || path.try_push(node).is_err() {
            return Ok(());
        }
        self.look_at(path, node)?;
        for child in node.children() {
            self.visit(path, child)?;
        }
        path.pop();
        Ok(())
    }

    /// Takes `node`, the last of `path`, if it is something that is wanted. Apart from the recursion,
    /// whose frames stay small so.
    #[inline(never)]
    fn look_at(&mut self, path: &[FdtNode<'a>], node: FdtNode<'a>) -> Result<(), DtError> {
        for compatible in strings(&node, "compatible") {
            if GIC_V2.contains(&compatible) && self.gic.is_none() {
                self.gic = Some((gic_v2(path)?, Controller::read(&node)?));
            } else if compatible == "arm,gic-v3" && self.gic.is_none() {
                self.gic = Some((gic_v3(path)?, Controller::read(&node)?));
            } else if compatible == "arm,armv8-timer" && self.timer.is_none() {
                self.timer = Some(node);
            } else if PSCI.contains(&compatible) && self.psci.is_none() {
                self.psci = Some(conduit(&node)?);
            } else if compatible == "brcm,bcm2711-gpio" && self.pins.is_none() {
                self.pins = registers(path, 0);
            }
        }
        if let Some(found) = found_uart(path)
            && self.uarts.iter().all(|other| other.uart.kind != found.uart.kind)
        {
            self.uarts.push(found);
        }
        Ok(())
    }

    /// The UART of the wanted kind, of which `stdout` is preferred to the first; else `stdout`; else the first of all.
    fn console(&self, wanted: Option<UartKind>, stdout: Option<FoundUart<'a>>) -> Option<Uart> {
        let candidates = || stdout.into_iter().chain(self.uarts.iter().copied());
        let FoundUart { uart, node, interrupt_parent } =
            candidates().find(|found| Some(found.uart.kind) == wanted).or_else(|| candidates().next())?;
        let offset = match uart.kind {
            UartKind::Pl011 => UART_0,
            UartKind::MiniUart => MINI_UART,
        };
        let reaches = |pins: &PhysRange| pins.start.checked_add(offset) == Some(uart.registers.start);
        let intid = self.gic.as_ref().and_then(|(_, gic)| gic.shared_intid(&node, interrupt_parent));
        Some(Uart { pins: self.pins.filter(reaches), intid, ..uart })
    }

    /// The first UART that is of another kind than the console.
    fn spare_console(&self, console: UartKind) -> Option<Uart> {
        let other = match console {
            UartKind::Pl011 => UartKind::MiniUart,
            UartKind::MiniUart => UartKind::Pl011,
        };
        self.console(Some(other), None).filter(|uart| uart.kind == other)
    }
}

fn gic_v2(path: &[FdtNode<'_>]) -> Result<Gic, DtError> {
    let frame = |index| registers(path, index).ok_or(DtError::GicRegisters(index));
    Ok(Gic::V2 { distributor: frame(0)?, cpu_interface: frame(1)? })
}

fn gic_v3(path: &[FdtNode<'_>]) -> Result<Gic, DtError> {
    let frame = |index| registers(path, index).ok_or(DtError::GicRegisters(index));
    let regions = match path.last().and_then(|node| node.property("#redistributor-regions")) {
        Some(regions) => regions
            .value_as::<u32>()
            .map_err(|_| malformed("the interrupt controller", "#redistributor-regions"))?,
        None => 1,
    };
    let mut redistributors = ArrayVec::new();
    if regions == 0 || regions as usize > redistributors.capacity() {
        return Err(DtError::RedistributorRegions(regions));
    }
    for region in 1..=regions as usize {
        redistributors.push(frame(region)?);
    }
    Ok(Gic::V3 { distributor: frame(0)?, redistributors })
}

fn conduit(psci: &FdtNode<'_>) -> Result<Conduit, DtError> {
    match text(psci, "method") {
        Some("hvc") => Ok(Conduit::Hvc),
        Some("smc") => Ok(Conduit::Smc),
        _ => Err(malformed("PSCI", "method")),
    }
}

/// A UART as it is found, before its pins and its interrupt's controller are.
#[derive(Clone, Copy)]
struct FoundUart<'a> {
    uart: Uart,
    node: FdtNode<'a>,
    interrupt_parent: Option<u32>,
}

/// The UART at `path`, where there is a driver for it and its registers can be reached.
fn found_uart<'a>(path: &[FdtNode<'a>]) -> Option<FoundUart<'a>> {
    let node = *path.last()?;
    let kind = strings(&node, "compatible").find_map(|compatible| match compatible {
        "arm,pl011" => Some(UartKind::Pl011),
        "brcm,bcm2835-aux-uart" => Some(UartKind::MiniUart),
        _ => None,
    })?;
    let identified = node.property("arm,primecell-periphid").is_some();
    let uart = Uart { kind, registers: registers(path, 0)?, identified, pins: None, intid: None };
    Some(FoundUart { uart, node, interrupt_parent: interrupts::parent(path) })
}

/// The node that `stdout-path` names: a path, or an alias and perhaps a path below it, and after a
/// colon options that are not used. `None` where there is no such node, or it is disabled.
fn stdout<'a>(root: FdtNode<'a>, chosen: Option<FdtNode<'a>>) -> Option<Path<'a>> {
    let named = text(&chosen?, "stdout-path")?;
    let named = named.split_once(':').map_or(named, |(path, _options)| path);
    let (alias, below) = named.split_once('/').unwrap_or((named, ""));
    let aliased = if alias.is_empty() { "" } else { text(&root.child("aliases")?, alias)? };

    let mut node = root;
    let mut path = Path::new();
    path.push(root);
    for name in aliased.split('/').chain(below.split('/')).filter(|name| !name.is_empty()) {
        node = node.child(name)?;
        path.try_push(node).ok()?;
    }
    path.iter().all(enabled).then_some(path)
}

/// Entry `index` of `reg` of the last node of `path`, as the CPU addresses it.
fn registers(path: &[FdtNode<'_>], index: usize) -> Option<PhysRange> {
    let (device, parents) = path.split_last()?;
    let reg = device.reg().ok()??.nth(index)?;
    let (mut base, size) = (reg.address::<u64>().ok()?, reg.size::<u64>().ok()?);
    // The root is no bus: what its children have are the CPU's addresses.
    for bus in parents.iter().skip(1).rev() {
        base = translate(bus, base, size)?;
    }
    PhysRange::from_size(base, size)
}

/// Where the parent of `bus` sees the `size` bytes that are at `base` on the bus. They must be in
/// one window. No `ranges` means that the parent can't reach them, an empty one that nothing changes.
fn translate(bus: &FdtNode<'_>, base: u64, size: u64) -> Option<u64> {
    if bus.property("ranges")?.value().is_empty() {
        return Some(base);
    }
    bus.ranges().ok()??.find_map(|window| {
        let offset = base.checked_sub(window.child_bus_address().ok()?)?;
        if offset.checked_add(size)? > window.length().ok()? {
            return None;
        }
        window.parent_bus_address::<u64>().ok()?.checked_add(offset)
    })
}

/// RAM: no order, and no promise about overlaps.
fn memory<const N: usize>(root: &FdtNode<'_>) -> Result<ArrayVec<PhysRange, N>, DtError> {
    let mut memory = ArrayVec::new();
    for node in root.children().filter(describes_memory) {
        let reg = node.reg().ok().flatten().ok_or(malformed("/memory", "reg"))?;
        for entry in reg {
            if let Some(range) = reg_range("/memory", entry)? {
                memory.try_push(range).map_err(|_| DtError::TooMany { what: "/memory", limit: N })?;
            }
        }
    }
    Ok(memory)
}

/// Whether a child of the root describes RAM.
pub(crate) fn describes_memory(node: &FdtNode<'_>) -> bool {
    let is_memory = match node.property("device_type") {
        Some(_) => text(node, "device_type") == Some("memory"),
        None => node.name_without_address() == "memory",
    };
    is_memory && enabled(node)
}

/// What the reservation block and `/reserved-memory` reserve.
fn reserved<const N: usize>(fdt: Fdt<'_>) -> Result<ArrayVec<Reservation, N>, DtError> {
    let mut reserved = ArrayVec::new();
    let mut push = |what, range: Option<PhysRange>, no_map| match range {
        Some(range) => {
            reserved.try_push(Reservation { range, no_map }).map_err(|_| DtError::TooMany { what, limit: N })
        }
        None => Ok(()),
    };
    for entry in fdt.memory_reservations() {
        let what = "/memreserve/";
        push(what, checked_range(what, entry.address(), entry.size())?, false)?;
    }
    let Some(parent) = fdt.root().child("reserved-memory").filter(enabled) else {
        return Ok(reserved);
    };
    for node in parent.children() {
        if !enabled(&node) || node.property("reg").is_none() {
            continue;
        }
        let what = "/reserved-memory";
        let no_map = node.property("no-map").is_some();
        let reg = node.reg().ok().flatten().ok_or(malformed(what, "reg"))?;
        for entry in reg {
            push(what, reg_range(what, entry)?, no_map)?;
        }
    }
    Ok(reserved)
}

/// The initial RAM disk, from two properties of one or two cells.
fn initrd(chosen: &FdtNode<'_>) -> Result<Option<PhysRange>, DtError> {
    let number = |name: &'static str| {
        let number = chosen.property(name).map(|property| property_u64(property.value()));
        number.map(|number| number.ok_or(malformed("/chosen", name))).transpose()
    };
    let (start, end) = match (number("linux,initrd-start")?, number("linux,initrd-end")?) {
        (None, None) => return Ok(None),
        (Some(start), Some(end)) => (start, end),
        (None, Some(_)) => return Err(malformed("/chosen", "linux,initrd-start")),
        (Some(_), None) => return Err(malformed("/chosen", "linux,initrd-end")),
    };
    let range = end.checked_sub(start).and_then(|size| PhysRange::from_size(start, size));
    range.map(Some).ok_or(DtError::Initrd { start, end })
}

/// The CPUs that can be kept, and how many there are.
fn cpus<const N: usize>(root: &FdtNode<'_>) -> Result<(ArrayVec<Cpu, N>, usize), DtError> {
    let mut kept = ArrayVec::<Cpu, N>::new();
    let mut described = 0;
    for node in root.child("cpus").iter().flat_map(|cpus| cpus.children()) {
        let is_cpu = match node.property("device_type") {
            Some(_) => text(&node, "device_type") == Some("cpu"),
            None => node.name_without_address() == "cpu",
        };
        if !is_cpu || !enabled(&node) {
            continue;
        }
        let cpu = cpu(&node)?;
        if kept.iter().any(|other| other.mpidr == cpu.mpidr) {
            return Err(DtError::DuplicateCpu(cpu.mpidr));
        }
        described += 1;
        // Further ones are only counted.
        let _ = kept.try_push(cpu);
    }
    if kept.is_empty() { Err(DtError::NoCpu) } else { Ok((kept, described)) }
}

fn cpu(node: &FdtNode<'_>) -> Result<Cpu, DtError> {
    let mpidr = node.reg().ok().flatten().and_then(|mut reg| reg.next()?.address::<u64>().ok());
    let mpidr = mpidr.ok_or(malformed("/cpus/cpu", "reg"))?;
    if mpidr & !MPIDR_AFFINITY != 0 {
        return Err(DtError::CpuAffinity(mpidr));
    }
    let release_address = || {
        let address = node.property("cpu-release-addr").and_then(|property| property_u64(property.value()));
        let address = address.and_then(PhysAddr::try_new).filter(|address| address.is_aligned(8));
        address.ok_or(DtError::CpuReleaseAddress(mpidr))
    };
    let mut enable = EnableMethod::None;
    for method in strings(node, "enable-method") {
        enable = match method {
            "psci" => EnableMethod::Psci,
            "spin-table" => EnableMethod::SpinTable(release_address()?),
            _ => continue,
        };
        break;
    }
    Ok(Cpu { mpidr, enable })
}

/// Whether the node may be used. Linux writes "okay" but takes "ok" too.
fn enabled(node: &FdtNode<'_>) -> bool {
    node.property("status").is_none() || matches!(text(node, "status"), Some("okay" | "ok"))
}

/// The property as a string: up to its first NUL, which must be there.
fn text<'a>(node: &FdtNode<'a>, property: &str) -> Option<&'a str> {
    let value = node.property(property)?.value_as::<&'a [u8]>().ok()?;
    CStr::from_bytes_until_nul(value).ok()?.to_str().ok()
}

/// The property as a list of strings, which ends before the first that is none.
fn strings<'a>(node: &FdtNode<'a>, property: &str) -> impl Iterator<Item = &'a str> {
    let list = node.property(property).and_then(|list| list.value_as::<FdtStringListIterator<'a>>().ok());
    list.into_iter().flatten()
}

/// A number of one or two cells.
pub(crate) fn property_u64(value: &[u8]) -> Option<u64> {
    if let Ok(value) = value.try_into() {
        Some(u32::from_be_bytes(value).into())
    } else {
        value.try_into().ok().map(u64::from_be_bytes)
    }
}

/// An entry of `reg` whose parent is the root or shares its addresses; `None` where it is empty.
fn reg_range(what: &'static str, entry: Reg<'_>) -> Result<Option<PhysRange>, DtError> {
    match (entry.address::<u64>(), entry.size::<u64>()) {
        (Ok(base), Ok(size)) => checked_range(what, base, size),
        _ => Err(malformed(what, "reg")),
    }
}

fn checked_range(what: &'static str, base: u64, size: u64) -> Result<Option<PhysRange>, DtError> {
    if size == 0 {
        return Ok(None);
    }
    PhysRange::from_size(base, size).map(Some).ok_or(DtError::Range { what, base, size })
}

pub(crate) fn malformed(node: &'static str, property: &'static str) -> DtError {
    DtError::Property { node, property }
}
