//! A small machine that is right, and for each rule that machine with one thing changed.

use super::builder::{Tree, node};
use super::*;

fn machine() -> Tree {
    node("")
        .bus(1, 1)
        .child(
            node("memory@40000000").text("device_type", "memory").cells("reg", &[0x4000_0000, 0x1000_0000]),
        )
        .child(node("chosen"))
        .child(node("cpus").bus(1, 0).child(cpu("cpu@0", 0).text("enable-method", "psci")))
        .child(
            node("gic")
                .text("compatible", "arm,gic-400")
                .cells("#interrupt-cells", &[3])
                .cells("reg", &[0x1000, 0x1000, 0x2000, 0x1000]),
        )
        .child(
            node("timer")
                .text("compatible", "arm,armv8-timer")
                .cells("interrupts", &[1, 13, 8, 1, 14, 8, 1, 11, 8, 1, 10, 8]),
        )
}

fn cpu(name: &str, mpidr: u32) -> Tree {
    node(name).text("device_type", "cpu").cells("reg", &[mpidr])
}

fn uart(name: &str, base: u32) -> Tree {
    node(name).text("compatible", "arm,pl011").cells("reg", &[base, 0x100])
}

/// What `get` takes from the platform.
fn read<T>(tree: Tree, get: impl FnOnce(&Platform<'_>) -> T) -> Result<T, DtError> {
    let blob = tree.blob(&[]);
    let read = parse(&blob).map(|platform| get(&platform));
    if let Err(error) = &read {
        let line = error.to_string();
        assert!(!line.is_empty() && !line.contains('\n'), "{line}");
    }
    read
}

fn refused(tree: Tree) -> DtError {
    read(tree, |_| ()).unwrap_err()
}

fn wrong(node: &'static str, property: &'static str) -> DtError {
    DtError::Property { node, property }
}

#[test]
fn the_small_machine_is_right() {
    let blob = machine().blob(&[]);
    let platform = parse(&blob).unwrap();
    assert_eq!(platform.model, "unknown machine");
    assert_eq!(platform.memory[..], [range(0x4000_0000, 0x1000_0000)]);
    assert_eq!((platform.psci, platform.console, platform.initrd), (None, None, None));
    assert_eq!(platform.timer_intid, 27);
}

#[test]
fn the_machine_is_named_by_model_or_compatible() {
    let model = |tree| read(tree, |platform| platform.model.to_owned()).unwrap();
    let named = machine().text("compatible", "b,c\0d");
    assert_eq!(model(named.clone()), "b,c");
    assert_eq!(model(named.text("model", "A")), "A");
}

#[test]
fn memory_is_found_by_type_or_name_and_in_several_entries() {
    let memory = |tree| read(tree, |platform| platform.memory.to_vec()).unwrap();
    let typed = |name, kind, base| node(name).text("device_type", kind).cells("reg", &[base, 1]);
    let found = memory(
        machine()
            .child(node("memory").cells("reg", &[0x1000, 0x1000, 0x5000, 0, 0x8000, 0x1000]))
            .child(typed("ram@9000", "memory", 0x9000))
            .child(typed("memory@1", "memory", 1).text("status", "disabled"))
            .child(typed("memory@2", "memory", 2).text("status", "ok"))
            .child(typed("memory@3", "other", 3))
            .child(node("memory-controller@4").cells("reg", &[4, 1])),
    );
    let main = range(0x4000_0000, 0x1000_0000);
    let expected = [main, range(0x1000, 0x1000), range(0x8000, 0x1000), range(0x9000, 1), range(2, 1)];
    assert_eq!(found, expected);
    // That there is none is for the memory map to say.
    let none = machine().edit("memory@40000000", |memory| memory.text("status", "disabled"));
    assert!(memory(none).is_empty());
}

#[test]
fn cells_of_addresses_and_sizes_are_honoured() {
    let number = |cells: u32, value| [vec![0; cells as usize - 1], vec![value]].concat();
    for (address_cells, size_cells) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
        let reg = [number(address_cells, 0x4000), number(size_cells, 0x1000)].concat();
        let blob = node("").bus(address_cells, size_cells).child(node("memory").cells("reg", &reg)).blob(&[]);
        let memory = memory::<1>(&format::open(&blob).unwrap().root()).unwrap();
        assert_eq!(memory[..], [range(0x4000, 0x1000)]);
    }
    // Three cells are more than an address has; no cells, or four thousand millions, are no entry.
    for (address_cells, size_cells) in [(3, 1), (1, 3), (0, 0), (u32::MAX, u32::MAX)] {
        let tree = node("").bus(address_cells, size_cells).child(node("memory").cells("reg", &[0, 1, 0, 1]));
        let blob = tree.blob(&[]);
        let memory = memory::<1>(&format::open(&blob).unwrap().root());
        assert_eq!(memory, Err(wrong("/memory", "reg")));
    }
}

#[test]
fn ranges_end_below_2_to_48() {
    let memory = |reg: &[u32]| {
        let blob = node("").bus(2, 2).child(node("memory").cells("reg", reg)).blob(&[]);
        memory::<1>(&format::open(&blob).unwrap().root()).map(|memory| memory[0])
    };
    assert_eq!(memory(&[0xffff, 0xffff_0000, 0, 0xffff]), Ok(range(0xffff_ffff_0000, 0xffff)));
    for (reg, base, size) in [
        ([0xffff, 0xffff_0000, 0, 0x1_0000], 0xffff_ffff_0000, 0x1_0000),
        ([0x1_0000, 0, 0, 1], 1 << 48, 1),
        ([0, 1, !0, !0], 1, u64::MAX),
    ] {
        assert_eq!(memory(&reg), Err(DtError::Range { what: "/memory", base, size }));
    }
}

#[test]
fn malformed_memory_is_refused() {
    let memory = |node| refused(machine().child(node));
    assert_eq!(memory(node("memory")), wrong("/memory", "reg"));
    assert_eq!(memory(node("memory").cells("reg", &[1, 2, 3])), wrong("/memory", "reg"));
    assert_eq!(memory(node("memory").bytes("reg", &[0; 7])), wrong("/memory", "reg"));
    let many = node("memory").cells("reg", &[[0x1000, 0x1000]; 64].concat());
    assert_eq!(memory(many), DtError::TooMany { what: "/memory", limit: 64 });
}

#[test]
fn reservations_come_from_two_places() {
    let tree = machine().child(
        // Its own cells, not the root's.
        node("reserved-memory")
            .bus(2, 1)
            .bytes("ranges", &[])
            .child(node("a").cells("reg", &[1, 0x1000, 0x1000]).bytes("no-map", &[]))
            .child(node("b").cells("size", &[0x1000]))
            .child(node("c").cells("reg", &[0, 0, 0, 0, 0x7000, 1]))
            .child(node("d").cells("reg", &[0, 1, 1]).text("status", "disabled")),
    );
    let expected = [
        Reservation { range: range(0x10, 0x20), no_map: false },
        Reservation { range: range(0x1_0000_1000, 0x1000), no_map: true },
        Reservation { range: range(0x7000, 1), no_map: false },
    ];
    let reserved = |tree: &Tree, entries: &[(u64, u64)]| {
        let blob = tree.blob(entries);
        parse(&blob).map(|platform| platform.reserved.to_vec())
    };
    assert_eq!(reserved(&tree, &[(5, 0), (0x10, 0x20)]), Ok(expected.to_vec()));

    let beyond = DtError::Range { what: "/memreserve/", base: u64::MAX, size: 2 };
    assert_eq!(reserved(&machine(), &[(u64::MAX, 2)]), Err(beyond));
    let many = DtError::TooMany { what: "/memreserve/", limit: 64 };
    assert_eq!(reserved(&machine(), &[(1, 1); 65]), Err(many));
    let odd = machine().child(node("reserved-memory").child(node("a").cells("reg", &[1, 2])));
    assert_eq!(refused(odd), wrong("/reserved-memory", "reg"));
}

#[test]
fn the_initrd_has_a_start_before_its_end() {
    let initrd = |start: &[u32], end: &[u32]| {
        let chosen = node("chosen").cells("linux,initrd-start", start).cells("linux,initrd-end", end);
        read(machine().child(chosen), |platform| platform.initrd)
    };
    assert_eq!(initrd(&[0x10], &[0, 0x30]), Ok(Some(range(0x10, 0x20))));
    assert_eq!(initrd(&[1, 0], &[1, 1]), Ok(Some(range(1 << 32, 1))));
    assert_eq!(initrd(&[2], &[2]), Err(DtError::Initrd { start: 2, end: 2 }));
    assert_eq!(initrd(&[2], &[1]), Err(DtError::Initrd { start: 2, end: 1 }));
    assert_eq!(initrd(&[2], &[!0, !0]), Err(DtError::Initrd { start: 2, end: u64::MAX }));
    assert_eq!(initrd(&[1, 2, 3], &[9]), Err(wrong("/chosen", "linux,initrd-start")));
    for (given, missing) in
        [("linux,initrd-start", "linux,initrd-end"), ("linux,initrd-end", "linux,initrd-start")]
    {
        assert_eq!(refused(machine().child(node("chosen").cells(given, &[2]))), wrong("/chosen", missing));
    }
}

#[test]
fn entropy_is_as_many_bytes_as_there_are() {
    for seed in [&b""[..], b"x", &[0xa5; 32], &[1; 64]] {
        let found = read(machine().child(node("chosen").bytes("rng-seed", seed)), |platform| {
            platform.rng_seed == seed
        });
        assert_eq!(found, Ok(true));
    }
    assert_eq!(read(machine(), |platform| platform.rng_seed.is_empty()), Ok(true));
}

#[test]
fn the_command_line_is_text() {
    let bootargs = |value: &[u8]| {
        read(machine().child(node("chosen").bytes("bootargs", value)), |platform| {
            platform.bootargs.to_owned()
        })
    };
    assert_eq!(bootargs(b"a b\0"), Ok("a b".into()));
    assert_eq!(bootargs(b"a b\0c\0"), Ok("a b".into()));
    assert_eq!(bootargs(b"\0"), Ok("".into()));
    for value in [&b"no end"[..], b"\xff\0", b""] {
        assert_eq!(bootargs(value), Err(wrong("/chosen", "bootargs")));
    }
}

#[test]
fn cpus_that_may_be_used_are_counted() {
    let cpus = node("cpus")
        .bus(1, 0)
        .child(node("cpu-map"))
        .child(node("cpu@100").cells("reg", &[0x100]))
        .child(cpu("cpu@1", 1).text("status", "fail"))
        .child(cpu("cpu@2", 2).text("status", "disabled"))
        .child(cpu("core@3", 3).text("enable-method", "vendor,x\0psci"))
        .child(cpu("cpu@4", 4).text("enable-method", "spin-table").cells("cpu-release-addr", &[0x8000]))
        .child(node("cache").text("device_type", "cache"));
    let cpus = read(machine().child(cpus), |platform| (platform.cpus.to_vec(), platform.cpus_described));
    let spin_table = EnableMethod::SpinTable(PhysAddr::new(0x8000));
    let expected = [(0x100, EnableMethod::None), (3, EnableMethod::Psci), (4, spin_table)];
    assert_eq!(cpus, Ok((expected.map(|(mpidr, enable)| Cpu { mpidr, enable }).to_vec(), 3)));
}

#[test]
fn affinities_may_have_two_cells() {
    let cpus = node("cpus").bus(2, 0).child(node("cpu").cells("reg", &[0xff, 0x00ff_ffff]));
    let mpidr = read(machine().child(cpus), |platform| platform.cpus[0].mpidr);
    assert_eq!(mpidr, Ok(0xff_00ff_ffff));
}

#[test]
fn wrong_cpus_are_refused() {
    let spin_table = || cpu("cpu", 7).text("enable-method", "spin-table");
    let cpus = || node("cpus").bus(1, 0);
    for (cpus, error) in [
        (cpus(), DtError::NoCpu),
        (cpus().child(cpu("cpu", 7).without("reg")), wrong("/cpus/cpu", "reg")),
        (cpus().child(cpu("cpu", 1 << 31)), DtError::CpuAffinity(1 << 31)),
        (cpus().child(cpu("cpu@0", 7)).child(cpu("cpu@1", 7)), DtError::DuplicateCpu(7)),
        (cpus().child(spin_table()), DtError::CpuReleaseAddress(7)),
        (cpus().child(spin_table().cells("cpu-release-addr", &[1 << 16, 0])), DtError::CpuReleaseAddress(7)),
        (cpus().child(spin_table().cells("cpu-release-addr", &[0xdc])), DtError::CpuReleaseAddress(7)),
    ] {
        assert_eq!(refused(machine().child(cpus)), error);
    }
}

#[test]
fn psci_0_1_is_not_used() {
    let psci = |node| read(machine().child(node), |platform| platform.psci);
    let node = |compatible| node("psci").text("compatible", compatible).text("method", "smc");
    assert_eq!(psci(node("arm,psci")), Ok(None));
    assert_eq!(psci(node("arm,psci-0.2\0arm,psci")), Ok(Some(Conduit::Smc)));
    assert_eq!(psci(node("arm,psci-1.0").text("method", "hvc")), Ok(Some(Conduit::Hvc)));
    assert_eq!(psci(node("arm,psci-1.0").text("status", "disabled")), Ok(None));
    assert_eq!(psci(node("arm,psci-1.0").text("method", "svc")), Err(wrong("PSCI", "method")));
    assert_eq!(psci(node("arm,psci-1.0").without("method")), Err(wrong("PSCI", "method")));
}

#[test]
fn gicv3_has_redistributor_regions() {
    let gic = node("gic")
        .text("compatible", "arm,gic-v3")
        .cells("#interrupt-cells", &[4])
        .cells("#redistributor-regions", &[2])
        .cells("reg", &[0x1000, 0x1000, 0x2_0000, 0x2_0000, 0x8_0000, 0x4_0000, 0x9_0000, 0x1000]);
    // With four cells, an interrupt has an affinity too.
    let interrupts = [1, 13, 8, 0, 1, 14, 8, 0, 1, 11, 8, 0];
    let tree = machine().child(gic).edit("timer", |timer| timer.cells("interrupts", &interrupts));
    let expected = Gic::V3 {
        distributor: range(0x1000, 0x1000),
        redistributors: [range(0x2_0000, 0x2_0000), range(0x8_0000, 0x4_0000)].into_iter().collect(),
    };
    assert_eq!(read(tree, |platform| (platform.gic.clone(), platform.timer_intid)), Ok((expected, 27)));
}

#[test]
fn wrong_interrupt_controllers_are_refused() {
    let gic = |change: fn(Tree) -> Tree| refused(machine().edit("gic", change));
    let cells = wrong("the interrupt controller", "#interrupt-cells");
    assert_eq!(gic(|gic| gic.without("compatible")), DtError::NoGic);
    assert_eq!(gic(|gic| gic.text("status", "disabled")), DtError::NoGic);
    assert_eq!(gic(|gic| gic.without("reg")), DtError::GicRegisters(0));
    assert_eq!(gic(|gic| gic.cells("reg", &[0x1000, 0x1000])), DtError::GicRegisters(1));
    assert_eq!(gic(|gic| gic.cells("reg", &[0x1000, 0, 0x2000, 0])), DtError::GicRegisters(0));
    assert_eq!(gic(|gic| gic.without("#interrupt-cells")), cells);
    assert_eq!(gic(|gic| gic.cells("#interrupt-cells", &[2])), cells);

    let regions =
        |count: &[u8]| {
            refused(machine().edit("gic", |gic| {
                gic.text("compatible", "arm,gic-v3").bytes("#redistributor-regions", count)
            }))
        };
    assert_eq!(regions(&[0, 0, 0, 0]), DtError::RedistributorRegions(0));
    assert_eq!(regions(&[0, 0, 0, 2]), DtError::GicRegisters(2));
    assert_eq!(regions(&[0, 0, 0, 5]), DtError::RedistributorRegions(5));
    assert_eq!(regions(&[1]), wrong("the interrupt controller", "#redistributor-regions"));
}

#[test]
fn the_virtual_timer_is_found_by_name_or_place() {
    let timer = |interrupts: &[u32], names: &str| {
        let named = |timer: Tree| if names.is_empty() { timer } else { timer.text("interrupt-names", names) };
        let tree = machine().edit("timer", |timer| named(timer.cells("interrupts", interrupts)));
        read(tree, |platform| platform.timer_intid)
    };
    assert_eq!(timer(&[1, 0, 4, 1, 1, 4, 1, 15, 4], ""), Ok(31));
    assert_eq!(timer(&[1, 7, 4, 1, 8, 4], "phys\0virt"), Ok(24));
    assert_eq!(timer(&[1, 7, 4, 1, 8, 4], ""), Err(wrong("the timer", "interrupts")));
    assert_eq!(timer(&[1, 7, 4, 1, 8, 4, 1, 9, 4], "phys"), Err(wrong("the timer", "interrupts")));
    assert_eq!(timer(&[1, 7, 4, 1], "virt"), Err(wrong("the timer", "interrupts")));
    let spi = DtError::TimerInterrupt { kind: 0, number: 11 };
    assert_eq!(timer(&[1, 0, 4, 1, 1, 4, 0, 11, 4], ""), Err(spi));
    let beyond = DtError::TimerInterrupt { kind: 1, number: 16 };
    assert_eq!(timer(&[1, 0, 4, 1, 1, 4, 1, 16, 4], ""), Err(beyond));

    let extended = [9, 1, 13, 8, 9, 1, 14, 8, 9, 1, 12, 8, 9, 1, 10, 8];
    let tree = machine().edit("timer", |timer| timer.cells("interrupts-extended", &extended));
    assert_eq!(read(tree, |platform| platform.timer_intid), Ok(28));

    let without = |property| refused(machine().edit("timer", |timer| timer.without(property)));
    assert_eq!(without("interrupts"), wrong("the timer", "interrupts"));
    assert_eq!(without("compatible"), DtError::NoTimer);
}

#[test]
fn the_console_is_where_stdout_path_says() {
    let aliases = node("aliases")
        .text("a", "/bus/uart@100")
        .text("b", "/uart")
        .text("bus", "/bus")
        .text("lost", "nowhere");
    let bus = node("bus")
        .bus(1, 1)
        .cells("ranges", &[0, 0x9000, 0x1000])
        .child(uart("uart@100", 0x100))
        .child(uart("uart@200", 0x200).text("status", "disabled"));
    let other = uart("other", 0x6000).text("compatible", "ns16550a");
    let tree = machine().child(aliases).child(bus).child(uart("uart", 0x5000)).child(other);
    let console = |chosen| read(tree.clone().child(chosen), |platform| platform.console).unwrap();

    let (on_bus, alone) = (pl011(0x9100, 0x100), pl011(0x5000, 0x100));
    for (path, expected) in [
        ("/uart", alone),
        ("/uart:115200n8", alone),
        ("b", alone),
        ("b:115200n8", alone),
        ("/bus/uart", on_bus),
        ("/bus/uart@100", on_bus),
        ("a", on_bus),
        ("bus/uart@100", on_bus),
        // Disabled, not supported, not there: the first PL011 that there is.
        ("/bus/uart@200", on_bus),
        ("/other", on_bus),
        ("/nowhere", on_bus),
        ("nobody", on_bus),
        ("lost", on_bus),
        ("", on_bus),
        (":", on_bus),
    ] {
        assert_eq!(console(node("chosen").text("stdout-path", path)), expected, "{path}");
    }
    assert_eq!(console(node("chosen").bytes("stdout-path", b"/uart")), on_bus);
    assert_eq!(console(node("chosen")), on_bus);
}

/// As in a Raspberry Pi's tree, at other addresses.
#[test]
fn the_console_is_what_the_boot_arguments_ask_for() {
    let mini =
        node("mini").text("compatible", "brcm,bcm2835-aux-uart").cells("reg", &[0x1_5040 + 0x4000, 0x40]);
    let pins = node("pins").text("compatible", "brcm,bcm2711-gpio").cells("reg", &[0x4000, 0xb4]);
    let second = uart("second", 0x6000).cells("arm,primecell-periphid", &[0x34_1011]);
    let tree = machine().child(pins).child(mini).child(uart("first", 0x5000)).child(second);
    let console = |tree: &Tree, bootargs, stdout| {
        let chosen = node("chosen").text("bootargs", bootargs).text("stdout-path", stdout);
        read(tree.clone().child(chosen), |platform| platform.console).unwrap()
    };
    let mini = Uart {
        kind: UartKind::MiniUart,
        registers: range(0x1_9040, 0x40),
        identified: false,
        pins: Some(range(0x4000, 0xb4)),
        intid: None,
    };
    let first = pl011(0x5000, 0x100).map(|uart| Uart { pins: mini.pins, ..uart });
    // Another than the one that the pins lead to.
    let second = pl011(0x6000, 0x100).map(|uart| Uart { identified: true, ..uart });
    for (bootargs, stdout, expected) in [
        ("", "/mini", Some(mini)),
        ("", "", Some(mini)),
        ("", "/second", second),
        ("console=ttyAMA0", "/mini", first),
        ("console=ttyAMA0", "/second", second),
        ("console=ttyS0,115200n8", "/second", Some(mini)),
        ("console=ttyS1 console=tty1", "/first", Some(mini)),
        ("console=hvc0", "/first", first),
    ] {
        assert_eq!(console(&tree, bootargs, stdout), expected, "{bootargs} {stdout}");
    }
    // What is not there is not taken.
    let alone = machine().child(uart("first", 0x5000));
    assert_eq!(console(&alone, "console=ttyS0", ""), pl011(0x5000, 0x100));
    // Nor pins of another kind.
    let older =
        tree.child(node("pins").text("compatible", "brcm,bcm2835-gpio").cells("reg", &[0x4000, 0xb4]));
    assert_eq!(console(&older, "console=ttyS0", ""), Some(Uart { pins: None, ..mini }));
}

#[test]
fn the_interrupt_of_the_console_is_shared_and_the_gics() {
    const GIC: u32 = 7;
    let gic = |cells| move |gic: Tree| gic.cells("phandle", &[GIC]).cells("#interrupt-cells", &[cells]);
    let intid = |tree: Tree| read(tree, |platform| platform.console.and_then(|uart| uart.intid));
    let named = |parent: u32, interrupts: &[u32]| {
        let uart = uart("uart", 0x5000).cells("interrupt-parent", &[parent]).cells("interrupts", interrupts);
        intid(machine().edit("gic", gic(3)).child(uart))
    };
    assert_eq!(named(GIC, &[0, 121, 4]), Ok(Some(153)));
    // Of several the first; the mask of CPUs in a GICv2's flags does not matter.
    assert_eq!(named(GIC, &[0, 0, 0xf04, 0, 5, 4]), Ok(Some(32)));
    assert_eq!(named(GIC, &[0, 987, 4]), Ok(Some(1019)));
    for not_taken in [&[0, 988, 4], &[1, 10, 4], &[2, 1, 4], &[0, 1, 1], &[0, 1, 8]] {
        assert_eq!(named(GIC, not_taken), Ok(None), "{not_taken:?}");
    }
    assert_eq!(named(GIC, &[0, 1]), Ok(None));
    assert_eq!(named(GIC + 1, &[0, 121, 4]), Ok(None), "of another controller");

    // The nearest parent that is named counts, and a controller in the interrupt itself before all.
    let bus = |parent: u32, uart: Tree| {
        node("bus").bus(1, 1).bytes("ranges", &[]).cells("interrupt-parent", &[parent]).child(uart)
    };
    let plain = uart("uart", 0x5000).cells("interrupts", &[0, 121, 4]);
    let extended = |controller| uart("uart", 0x5000).cells("interrupts-extended", &[controller, 0, 121, 4]);
    let with = |bus: Tree| intid(machine().edit("gic", gic(3)).cells("interrupt-parent", &[GIC]).child(bus));
    assert_eq!(with(bus(GIC, plain.clone())), Ok(Some(153)));
    assert_eq!(with(bus(1, plain.clone())), Ok(None));
    assert_eq!(with(bus(1, plain.clone().cells("interrupt-parent", &[GIC]))), Ok(Some(153)));
    assert_eq!(with(bus(1, extended(GIC))), Ok(Some(153)));
    assert_eq!(with(bus(GIC, extended(1))), Ok(None));
    assert_eq!(with(node("bus").bus(1, 1).bytes("ranges", &[]).child(plain.clone())), Ok(Some(153)));
    // Nobody says whose it is.
    assert_eq!(intid(machine().child(plain)), Ok(None));
    // A specifier of four cells.
    let four = uart("uart", 0x5000).cells("interrupt-parent", &[GIC]).cells("interrupts", &[0, 121, 4, 9]);
    let tree = machine().edit("gic", gic(4)).child(four);
    let timer = [1, 13, 8, 0, 1, 14, 8, 0, 1, 11, 8, 0];
    assert_eq!(intid(tree.edit("timer", |node| node.cells("interrupts", &timer))), Ok(Some(153)));
}

#[test]
fn addresses_are_translated_by_every_parent() {
    // Each window is (on the bus, on its parent, size); the UART has 0x100 bytes at 0x2000.
    const SAME: Option<&[u32]> = Some(&[]);
    let cases: [(_, Option<&[u32]>, _); 10] = [
        (SAME, SAME, pl011(0x2000, 0x100)),
        (Some(&[0x1000, 0x8_0000, 0x2000]), SAME, pl011(0x8_1000, 0x100)),
        (Some(&[0x70, 0x9000, 0x1000]), Some(&[0x2000, 0x80, 0x100]), pl011(0x9010, 0x100)),
        // The second of two windows.
        (SAME, Some(&[0, 0x9000, 0x1000, 0x2000, 0xa000, 0x100]), pl011(0xa000, 0x100)),
        // A window that is one byte too short, or begins too late, or no window, or part of one.
        (SAME, Some(&[0x2000, 0xa000, 0xff]), None),
        (SAME, Some(&[0x2001, 0xa000, 0x1000]), None),
        (SAME, None, None),
        (None, SAME, None),
        (Some(&[1]), SAME, None),
        (SAME, Some(&[0x2000, 0xa000]), None),
    ];
    let with = |bus: Tree, ranges: Option<&[u32]>| match ranges {
        Some(ranges) => bus.bus(1, 1).cells("ranges", ranges),
        None => bus.bus(1, 1),
    };
    for (outer, inner, expected) in cases {
        let inner_bus = with(node("inner"), inner).child(uart("uart", 0x2000));
        let tree = machine().child(with(node("outer"), outer).child(inner_bus));
        assert_eq!(read(tree, |platform| platform.console), Ok(expected), "{outer:x?} {inner:x?}");
    }
}

#[test]
fn what_is_below_a_disabled_bus_is_not_found() {
    let bus = node("bus").bus(1, 1).bytes("ranges", &[]).child(uart("uart", 0x1000));
    let tree = machine().child(node("chosen").text("stdout-path", "/bus/uart"));
    let console = |bus| read(tree.clone().child(bus), |platform| platform.console).unwrap();
    assert_eq!(console(bus.clone()), pl011(0x1000, 0x100));
    assert_eq!(console(bus.text("status", "disabled")), None);
}
