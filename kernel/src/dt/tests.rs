//! Trees that machines really have, small ones for each rule, and damaged ones.

mod builder;
mod damage;
mod rules;

use super::*;
use crate::platform::MAX_CPUS;

const VIRT_GIC2: &[u8] = include_bytes!("../../tests/data/virt-gic2.dtb");
const VIRT_GIC3_EL2: &[u8] = include_bytes!("../../tests/data/virt-gic3-el2.dtb");
const VIRT_NUMA: &[u8] = include_bytes!("../../tests/data/virt-numa.dtb");
const VIRT_12_CPUS: &[u8] = include_bytes!("../../tests/data/virt-12cpus.dtb");
const RPI4: &[u8] = include_bytes!("../../tests/data/rpi4-model.dtb");
const ALL: [&[u8]; 5] = [VIRT_GIC2, VIRT_GIC3_EL2, VIRT_NUMA, VIRT_12_CPUS, RPI4];

fn range(base: u64, size: u64) -> PhysRange {
    PhysRange::from_size(base, size).unwrap()
}

fn pl011(base: u64, size: u64) -> Option<Uart> {
    let registers = range(base, size);
    Some(Uart { kind: UartKind::Pl011, registers, identified: false, pins: None, intid: None })
}

/// CPUs 0 to `count`, all started by PSCI.
fn psci_cpus(count: u64) -> Vec<Cpu> {
    (0..count).map(|mpidr| Cpu { mpidr, enable: EnableMethod::Psci }).collect()
}

fn gic3(redistributors: u64) -> Gic {
    Gic::V3 {
        distributor: range(0x800_0000, 0x1_0000),
        redistributors: [range(0x80a_0000, redistributors)].into_iter().collect(),
    }
}

#[test]
fn qemu_virt_with_gicv2() {
    let platform = parse(VIRT_GIC2).unwrap();
    assert_eq!(platform.model, "linux,dummy-virt");
    assert_eq!(platform.memory[..], [range(0x4000_0000, 1 << 30)]);
    assert!(platform.reserved.is_empty());
    assert_eq!((platform.bootargs, platform.initrd), ("", None));
    assert_eq!((platform.cpus.to_vec(), platform.cpus_described), (psci_cpus(4), 4));
    assert_eq!(platform.psci, Some(Conduit::Hvc));
    let gic =
        Gic::V2 { distributor: range(0x800_0000, 0x1_0000), cpu_interface: range(0x801_0000, 0x1_0000) };
    assert_eq!(platform.gic, gic);
    assert_eq!(platform.console, pl011(0x900_0000, 0x1000).map(|uart| Uart { intid: Some(33), ..uart }));
    assert_eq!(platform.timer_intid, 27);
}

#[test]
fn qemu_virt_with_gicv3_at_el2() {
    let platform = parse(VIRT_GIC3_EL2).unwrap();
    assert_eq!(platform.memory[..], [range(0x4000_0000, 6 << 30)]);
    assert_eq!((platform.cpus.to_vec(), platform.cpus_described), (psci_cpus(8), 8));
    assert_eq!(platform.psci, Some(Conduit::Smc));
    assert_eq!(platform.gic, gic3(0xf6_0000));
    assert_eq!(platform.console, pl011(0x900_0000, 0x1000).map(|uart| Uart { intid: Some(33), ..uart }));
    assert_eq!(platform.timer_intid, 27);
}

#[test]
fn qemu_virt_with_two_numa_nodes() {
    let platform = parse(VIRT_NUMA).unwrap();
    let mut memory = platform.memory.to_vec();
    memory.sort_by_key(|range| range.start);
    assert_eq!(memory, [range(0x4000_0000, 1 << 30), range(0x8000_0000, 1 << 30)]);
    assert_eq!((platform.cpus.to_vec(), platform.cpus_described), (psci_cpus(4), 4));
}

#[test]
fn qemu_virt_with_more_cpus_than_are_started() {
    let platform = parse(VIRT_12_CPUS).unwrap();
    assert_eq!(platform.cpus.to_vec(), psci_cpus(MAX_CPUS as u64));
    assert_eq!(platform.cpus_described, 12);
    assert_eq!(platform.bootargs, r#"loglevel=debug selftest="mm.*""#);
    assert_eq!(platform.initrd, Some(range(0x4800_0000, 1 << 20)));
}

#[test]
fn raspberry_pi_4() {
    let platform = parse(RPI4).unwrap();
    assert_eq!(platform.model, "Raspberry Pi 4 Model B (model for tests)");
    assert_eq!(
        platform.memory[..],
        [
            range(0, 0x3b40_0000),
            range(0x4000_0000, 0xbc00_0000),
            range(0x1_0000_0000, 0x8000_0000),
            range(0x1_8000_0000, 0x8000_0000),
        ]
    );
    // The dynamic reservation and the disabled one are left out.
    assert_eq!(
        platform.reserved[..],
        [
            Reservation { range: range(0, 0x1000), no_map: false },
            Reservation { range: range(0x3b00_0000, 0x10_0000), no_map: true },
            Reservation { range: range(0x3af0_0000, 0x4_0000), no_map: false },
            Reservation { range: range(0x3af8_0000, 0x1000), no_map: false },
        ]
    );
    assert!(
        platform.bootargs.starts_with("coherent_pool=1M") && platform.bootargs.ends_with("selftest=list")
    );
    assert_eq!(platform.initrd, Some(range(0x2e00_0000, 0x12_3456)));
    let cpus: Vec<_> = [0xd8, 0xe0, 0xe8, 0xf0]
        .into_iter()
        .zip(0..)
        .map(|(at, mpidr)| Cpu { mpidr, enable: EnableMethod::SpinTable(PhysAddr::new(at)) })
        .collect();
    assert_eq!((platform.cpus.to_vec(), platform.cpus_described), (cpus, 4));
    assert_eq!(platform.psci, None);
    let gic = Gic::V2 { distributor: range(0xff84_1000, 0x1000), cpu_interface: range(0xff84_2000, 0x2000) };
    assert_eq!(platform.gic, gic);
    // console=ttyS0, and stdout-path too.
    let mini_uart = Uart {
        kind: UartKind::MiniUart,
        registers: range(0xfe21_5040, 0x40),
        identified: false,
        pins: Some(range(0xfe20_0000, 0xb4)),
        intid: Some(32 + 93),
    };
    assert_eq!(platform.console, Some(mini_uart));
    assert_eq!(platform.timer_intid, 27);
}

#[test]
fn the_header_says_how_much_there_is() {
    for blob in ALL {
        assert_eq!(total_size(&blob[..HEADER_SIZE]), Ok(blob.len()));
        // What follows the blob is not looked at.
        let mut longer = blob.to_vec();
        longer.extend([0xff; 100]);
        assert_eq!(total_size(&longer), Ok(blob.len()));
        assert!(parse(&longer).is_ok());
    }
}

#[test]
fn bad_headers_are_refused() {
    let with = |word: usize, value: u32| {
        let mut header = VIRT_GIC2[..HEADER_SIZE].to_vec();
        header[4 * word..][..4].copy_from_slice(&value.to_be_bytes());
        total_size(&header)
    };
    assert_eq!(total_size(&[]), Err(DtError::Truncated { have: 0, need: 40 }));
    assert_eq!(total_size(&[0; 3]), Err(DtError::Truncated { have: 3, need: 40 }));
    assert_eq!(total_size(&[0; 4]), Err(DtError::Magic(0)));
    assert_eq!(total_size(&VIRT_GIC2[..39]), Err(DtError::Truncated { have: 39, need: 40 }));
    assert_eq!(with(0, 0xedfe_0dd0), Err(DtError::Magic(0xedfe_0dd0)));
    assert_eq!(with(1, 39), Err(DtError::Size(39)));
    assert_eq!(with(1, 40), Ok(40));
    assert_eq!(with(1, 2 << 20), Ok(2 << 20));
    assert_eq!(with(1, (2 << 20) + 1), Err(DtError::Size((2 << 20) + 1)));
    assert_eq!(with(1, u32::MAX), Err(DtError::Size(u32::MAX as usize)));
    assert_eq!(with(5, 16), Err(DtError::Version(16)));
    // A later version that says it can be read as 17, and one that says it can't.
    assert_eq!(with(5, 18), Ok(VIRT_GIC2.len()));
    assert_eq!(with(6, 18), Err(DtError::Version(17)));
}

#[test]
fn a_blob_shorter_than_its_header_says_is_refused() {
    let have = VIRT_GIC2.len() - 1;
    let error = parse(&VIRT_GIC2[..have]).unwrap_err();
    assert_eq!(error, DtError::Truncated { have, need: have + 1 });
    assert_eq!(error.to_string(), "truncated: 7947 of at least 7948 bytes");
}
