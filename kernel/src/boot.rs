//! From the first line of Rust to the self-tests: an ordered list.

use core::fmt::Display;

use aarch64_cpu::registers::{CurrentEL, MIDR_EL1, Readable};
use arch::aarch64::probe;
use arch::{PhysAddr, VirtAddr};
use kernel::bootargs::{self, BootArgs};
use kernel::dt;
use kernel::memblock::{self, MemBlock};
use kernel::platform::{Gic, PhysRange, Platform};
use log::{info, warn};

use crate::console::println;
#[cfg(feature = "efi")]
use crate::efi_runtime;
use crate::image::Image;
use crate::panic::fatal;
use crate::process::init;
use crate::vm::{GRANULE, PAGE};
use crate::{console, cpu, features, gic, memory, psci, ptdump, smp, timer, vm};

/// Ends the boot with the error's own sentence.
trait OrFatal<T> {
    fn or_fatal(self, context: &str) -> T;
}

impl<T, E: Display> OrFatal<T> for Result<T, E> {
    fn or_fatal(self, context: &str) -> T {
        self.unwrap_or_else(|error| fatal(format_args!("{context}: {error}")))
    }
}

/// Where the boot assembly leads: the MMU is on, the Image runs at its high address, interrupts are masked.
///
/// `device_tree` is what the boot loader left in x0, `image` where it put the Image (physical), `entered_at` the
/// exception level that it entered, `start` the virtual counter soon after that.
#[unsafe(no_mangle)]
extern "C" fn pleat_primary(device_tree: u64, image: u64, entered_at: u64, start: u64) -> ! {
    vm::enter_init_mm(Image { start: PhysAddr::new(image) }).or_fatal("the kernel's own mapping");

    let (tree, dtb) = find_device_tree(device_tree);
    let mut platform = dt::parse(tree).or_fatal("device tree");
    if let Some(conduit) = platform.psci {
        psci::init(conduit);
    }
    let missing_console = bootargs::console(platform.bootargs)
        .filter(|&wanted| platform.console.is_some_and(|uart| uart.kind != wanted));
    open_console(&mut platform);
    let arguments = BootArgs::parse(platform.bootargs).or_fatal("bootargs");
    console::set_level(arguments.log_level);
    greet(&platform, entered_at);
    if arguments.init_path.is_none() {
        arguments.unknown().for_each(|word| warn!("unknown boot argument `{word}`"));
    }
    if let Some(wanted) = missing_console {
        warn!("console=: there is no {wanted:?}");
    }

    let mut memblock = MemBlock::new(&platform, vm::image().range(), dtb, GRANULE).or_fatal("memory");
    expect_apart(&platform, &memblock);
    let found = memblock::total(memblock.free());
    vm::map_memory(&mut memblock).or_fatal("memory");
    memory::init(&mut memblock).or_fatal("memory");
    features::note_this_cpu();

    gic::init(&platform.gic, &platform.cpus).or_fatal("interrupt controller");
    gic::init_cpu().or_fatal("interrupt controller");
    timer::init(platform.timer_intid).or_fatal("timer");
    timer::init_cpu().or_fatal("timer");
    if let Some(uart) = &platform.console {
        console::input::init(uart);
    }
    // SAFETY: vectors, interrupt controller and handlers are set up, and no lock is held.
    unsafe { arch::aarch64::daif::unmask() };
    start_cpus(&platform);
    #[cfg(feature = "efi")]
    if let Some(tables) = &platform.efi {
        efi_runtime::init(tables, &memblock);
    }

    let root = init::prepare(&platform, &arguments);
    report_cost(&memblock, found, start);
    if let Some(tables) = arguments.ptdump {
        ptdump::run(tables);
    }
    match (arguments.init_path, &root) {
        (Some(path), _) => init::main(path, &arguments, root),
        (None, Err(error)) => warn!("there is no root file system: initrd: {error}"),
        (None, Ok(())) => {}
    }
    run(&platform, &memblock, &arguments)
}

#[cfg(feature = "selftest")]
fn run(platform: &Platform<'_>, memblock: &MemBlock, arguments: &BootArgs<'_>) -> ! {
    match arguments.bench {
        Some(bench) => crate::bench::main(platform, memblock, arguments, bench),
        None => crate::selftest::main(platform, memblock, arguments),
    }
}

/// Without self-tests there is nothing to run yet.
#[cfg(not(feature = "selftest"))]
fn run(_: &Platform<'_>, _: &MemBlock, _: &BootArgs<'_>) -> ! {
    info!("nothing to run: no init=, and this kernel was built without its self-tests");
    crate::exit::exit(0)
}

/// Maps the device tree and returns it, with the pages that it lies in. Every way in which x0 can be wrong
/// ends here with its own sentence.
fn find_device_tree(x0: u64) -> (&'static [u8], PhysRange) {
    let no_tree = |why: &str| fatal(format_args!("no device tree: x0 is {x0:#x}, {why}"));
    if x0 == 0 {
        no_tree("so the boot loader gave none");
    }
    if !x0.is_multiple_of(8) {
        no_tree("which is not aligned to 8 bytes");
    }
    let Some(start) = PhysAddr::try_new(x0) else { no_tree("which is beyond 48 bits") };
    if vm::image().range().holds(start) {
        no_tree("which is inside of the kernel");
    }
    let map = |size: u64| {
        if start.checked_add(size).is_none() {
            no_tree("so it would end beyond 48 bits");
        }
        vm::map_device_tree(start, size).or_fatal("device tree")
    };
    // SAFETY: the pages are mapped read-only, and nobody writes to them; each byte was loaded once below.
    let bytes = |va: VirtAddr, size| unsafe { core::slice::from_raw_parts(va.get() as *const u8, size) };

    let va = map(dt::HEADER_SIZE as u64);
    expect_memory(va, dt::HEADER_SIZE as u64, "device tree");
    let size = dt::total_size(bytes(va, dt::HEADER_SIZE)).or_fatal("device tree");
    map(size as u64);
    expect_memory(va, size as u64, "device tree");
    (bytes(va, size), PhysRange { start, end: PhysAddr::new(start.get() + size as u64) })
}

/// Ends the boot where an address that is mapped does not answer: loads a byte of each page.
fn expect_memory(va: VirtAddr, size: u64, what: &str) {
    let first = va.get() & !(PAGE - 1);
    for page in (first..va.get() + size).step_by(PAGE as usize) {
        // SAFETY: what is said to be memory does not change when it is read; elsewhere the load faults.
        if let Err(fault) = unsafe { probe::load(VirtAddr::new(page.max(va.get()))) } {
            fatal(format_args!(
                "{what}: there is no memory at offset {:#x}: {}",
                page.max(va.get()) - va.get(),
                fault.esr
            ));
        }
    }
}

/// Opens the console, or a UART of the other kind in its place: on a board without a semihosting host nobody would hear why
/// there is none.
fn open_console(platform: &mut Platform<'_>) {
    let Some(uart) = &platform.console else {
        console::emergency(format_args!(
            "pleat: warning: the device tree describes no UART that there is a driver for; this is all you see\n"
        ));
        return;
    };
    let Err(error) = console::init(uart) else { return };
    match platform.spare_console.as_ref().map(console::init) {
        Some(Ok(())) => {
            warn!("console: {:?}: {error}", uart.kind);
            platform.console = platform.spare_console;
        }
        _ => fatal(format_args!("console: {error}")),
    }
}

fn greet(platform: &Platform<'_>, entered_at: u64) {
    let image = vm::image().range();
    info!("Pleat {} on {}", env!("CARGO_PKG_VERSION"), platform.model);
    info!(
        "CPU {:#x} entered at EL{entered_at}, runs at EL{}; Image at {} to {}",
        MIDR_EL1.get(),
        CurrentEL.read(CurrentEL::EL),
        image.start,
        image.end
    );
}

/// Ends the boot where what is described as RAM is described as a device too.
fn expect_apart(platform: &Platform<'_>, memblock: &MemBlock) {
    let (distributor, others) = match &platform.gic {
        Gic::V2 { distributor, cpu_interface } => (distributor, core::slice::from_ref(cpu_interface)),
        Gic::V3 { distributor, redistributors } => (distributor, redistributors.as_slice()),
    };
    let uart = platform.console.map(|uart| uart.registers);
    let pins = platform.console.and_then(|uart| uart.pins);
    for device in others.iter().copied().chain([*distributor]).chain(uart).chain(pins) {
        if let Some(ram) = memblock.ram().find(|ram| ram.overlaps(&device)) {
            fatal(format_args!("memory: RAM {ram} overlaps the registers of a device, {device}"));
        }
    }
}

fn start_cpus(platform: &Platform<'_>) {
    if !platform.cpus.iter().any(|cpu| cpu.mpidr == cpu::mpidr()) {
        fatal(format_args!(
            "device tree: the CPU that boots, {:#x}, is not among those described",
            cpu::mpidr()
        ));
    }
    if platform.cpus_described > platform.cpus.len() {
        warn!("{} CPUs described, {} are used", platform.cpus_described, platform.cpus.len());
    }
    if let Ok(version) = psci::version() {
        info!("PSCI {}.{}", version.major, version.minor);
    }
    if let Err((cpu, error)) = smp::start(platform) {
        fatal(format_args!("CPU {:#x} can't be started: {error}", cpu.mpidr));
    }
    info!("{} CPUs run", cpu::count());
    features::use_common();
}

/// What the boot cost: memory, of `found` bytes that were free when the memory map was made, and time since `start`.
fn report_cost(memblock: &MemBlock, found: u64, start: u64) {
    let ram = memblock::total(memblock.ram()) / 1024;
    let mapped = memblock::total(memblock.mapped()) / 1024;
    let free = memory::frames().free_frames() * PAGE;
    let ranges = memblock.ram().count();
    info!("memory: {ram} KiB in {ranges} ranges, {mapped} KiB mapped, {} KiB free", free / 1024);
    let used = vm::image().range().size() + found - free;
    println!("memory: {} KiB used before the first test", used / 1024);
    // Under `-icount shift=0` an instruction takes 1 ns, so this counts them; else it is time.
    println!("boot: {} ns to the first test", timer::duration(timer::now() - start).as_nanos());
}
