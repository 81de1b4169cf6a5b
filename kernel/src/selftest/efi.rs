//! EFI runtime services: what `efi_mm` maps and how, what firmware does when it is called, and what comes of a call that
//! faults.

use alloc::vec::Vec;
use core::arch::naked_asm;
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::registers::{CPACR_EL1, Readable};
use arch::aarch64::probe;
use arch::esr::ExceptionClass;
use arch::{MemoryType, PteFlags, VirtAddr};
use efi::memory_map::EFI_PAGE_SIZE;
use efi::runtime::{Aborted, CallError, Firmware, Guid, Status, VariableName, attributes};
use efi::virtual_map::VIRTUAL_OFFSET;
use efi::{MemoryAttributes, MemoryDescriptor, MemoryMap, Runtime, RuntimeServices};
#[cfg(feature = "fault-injection")]
use mm::counters::Counter;
use mm::pte::Pte;
use mm::{Leaf, VA_BITS};
use r_efi::efi as uefi;

use super::harness::{Context, TestResult, Unmet, check};
use super::protection::{expect_forbidden, expect_unmapped};
use crate::console::println;
use crate::efi_runtime::{self, Calls, KernelEfiMm};
use crate::vm::{self, PAGE};
use crate::{cpu, smp};

/// Pages of a block that contpte would fold.
const BLOCK: u64 = 16;

/// What was made of the firmware's tables, beside what they say.
struct Booted<'a> {
    efi_mm: &'static KernelEfiMm,
    services: &'static Runtime<Calls>,
    map: MemoryMap<'a>,
    attributes: Vec<MemoryDescriptor>,
}

/// # Errors
/// Skips the test where no firmware has started the kernel, and fails it where its tables were refused.
fn booted<'a>(context: &Context<'a>) -> Result<Booted<'a>, Unmet> {
    let tables = context.platform.efi.ok_or(Unmet::Skipped("no EFI firmware has started the kernel"))?;
    let refused = || Unmet::Failed("the firmware's tables were refused".into());
    let efi_mm = efi_runtime::efi_mm().ok_or_else(refused)?;
    let services = efi_runtime::services().ok_or_else(refused)?;
    let map = MemoryMap::parse(tables.memory_map, tables.descriptor_size as usize, tables.descriptor_version)
        .map_err(|_| refused())?;
    let attributes = match tables.memory_attributes {
        Some(table) => MemoryAttributes::parse(table, map).map_err(|_| refused())?.entries().collect(),
        None => Vec::new(),
    };
    Ok(Booted { efi_mm, services, map, attributes })
}

/// What firmware demands of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Demand {
    memory: MemoryType,
    writable: bool,
    executable: bool,
}

impl Booted<'_> {
    /// What the page of `region` at `pa` must be, by the rules of UEFI 2.10, 4.6.4 and 7.2.3.
    fn demand(&self, region: &MemoryDescriptor, pa: u64) -> Demand {
        let device =
            [uefi::MEMORY_MAPPED_IO, uefi::MEMORY_MAPPED_IO_PORT_SPACE].contains(&region.memory_type());
        let entry = self
            .attributes
            .iter()
            .find(|entry| (entry.physical_start()..=entry.physical_last()).contains(&pa));
        let says = |rule: fn(&MemoryDescriptor) -> bool| rule(region) || entry.is_some_and(rule);
        Demand {
            memory: if device { MemoryType::Device } else { MemoryType::Normal },
            writable: device || !says(MemoryDescriptor::is_read_only),
            executable: !device
                && !says(MemoryDescriptor::is_execute_protected)
                && (region.memory_type() == uefi::RUNTIME_SERVICES_CODE || region.is_read_only()),
        }
    }

    /// Every page of the runtime regions: its virtual address, its physical one, what is demanded.
    fn pages(&self) -> impl Iterator<Item = (VirtAddr, u64, Demand)> {
        self.map.runtime().flat_map(move |region| {
            (0..region.size() / EFI_PAGE_SIZE).map(move |page| {
                let pa = region.physical_start() + page * EFI_PAGE_SIZE;
                let va = VirtAddr::new(region.virtual_start() + page * EFI_PAGE_SIZE);
                (va, pa, self.demand(&region, pa))
            })
        })
    }

    /// The first page of each kind there is.
    fn kinds(&self) -> Vec<(VirtAddr, u64, Demand)> {
        let mut kinds = Vec::<(VirtAddr, u64, Demand)>::new();
        for page in self.pages() {
            if kinds.iter().all(|kind| kind.2 != page.2) {
                kinds.push(page);
            }
        }
        kinds
    }

    /// Every leaf of `efi_mm`, in order.
    fn leaves(&self) -> Vec<Leaf> {
        let mut leaves = Vec::new();
        let all = self.efi_mm.walk(VirtAddr::new(0), 1 << VA_BITS, |leaf| {
            leaves.push(leaf);
            ControlFlow::<()>::Continue(())
        });
        assert!(all.is_continue());
        leaves
    }
}

/// Each page of the runtime regions is mapped as the firmware's own tables demand, and nothing else is mapped.
pub(super) fn regions_are_mapped_as_demanded(context: &Context<'_>) -> TestResult {
    let booted = booted(context)?;
    let leaves = booted.leaves();
    let mut count = 0;
    for (va, pa, demand) in booted.pages() {
        count += 1;
        check!(va.get() == pa + VIRTUAL_OFFSET, "{pa:#x} has the virtual address {va}");
        let Ok(found) = leaves.binary_search_by_key(&va, |leaf| leaf.va) else {
            check!(false, "{va} is not mapped");
            return Ok(());
        };
        let Leaf { level, pte, .. } = leaves[found];
        check!(level == 3, "{va} is mapped by a block");
        check!(pte.pa().get() == pa, "{va} is mapped to {} instead of {pa:#x}", pte.pa());
        let flags = pte.flags();
        let is = Demand {
            memory: pte.memory().unwrap_or(MemoryType::NonCacheable),
            writable: !flags.contains(PteFlags::RDONLY),
            executable: !flags.contains(PteFlags::PXN),
        };
        check!(is == demand, "{va} is {is:?}, the firmware demands {demand:?}");
        check!(flags.contains(PteFlags::NG | PteFlags::UXN | PteFlags::AF), "{va} has only {flags:?}");
        let never = flags & (PteFlags::USER | PteFlags::CONT | PteFlags::DBM);
        check!(never.is_empty(), "{va} has {never:?}");
    }
    check!(leaves.len() == count, "{} pages are mapped, the runtime regions have {count}", leaves.len());
    println!("# {count} pages in {} regions", booted.map.runtime().count());
    for (va, _, demand) in booted.kinds() {
        let pages = booted.pages().filter(|page| page.2 == demand).count();
        println!("# {pages} pages from {va} on are {demand:?}");
    }
    Ok(())
}

/// Whatever invites it: blocks of pages that are alike, contiguous and aligned.
pub(super) fn no_block_is_folded(context: &Context<'_>) -> TestResult {
    let booted = booted(context)?;
    let blocks = could_fold(&booted);
    println!("# {} blocks of {BLOCK} pages are such that a user's would be folded", blocks.len());
    for leaf in booted.leaves() {
        check!(!leaf.pte.is_folded(), "{} is folded", leaf.va);
    }
    let counters = booted.efi_mm.counters();
    check!(counters.blocks_folded() == 0, "{} blocks count as folded", counters.blocks_folded());
    Ok(())
}

/// The blocks whose pages differ in nothing.
fn could_fold(booted: &Booted<'_>) -> Vec<VirtAddr> {
    let leaves = booted.leaves();
    let blocks = leaves.chunk_by(|a, b| b.va.get() == a.va.get() + PAGE && a.pte.flags() == b.pte.flags());
    let starts = blocks.flat_map(|run| {
        run.iter().enumerate().filter(|&(i, leaf)| {
            let aligned = (leaf.va.get() | leaf.pte.pa().get()).is_multiple_of(BLOCK * PAGE);
            aligned && run.len() - i >= BLOCK as usize
        })
    });
    starts.map(|(_, leaf)| leaf.va).collect()
}

/// Code can't be written to, data not be executed, nothing be reached from EL0, and nothing is mapped elsewhere: by
/// faulting on purpose.
pub(super) fn permissions_hold(context: &Context<'_>) -> TestResult {
    let booted = booted(context)?;
    let (mut read_only, mut not_executable, kinds) = (0, 0, booted.kinds());
    let mut result = Ok(());
    // Nothing may be printed in there: what is wrong is told afterwards.
    booted.services.firmware().in_efi_mm(|| {
        result = (|| {
            for &(va, _, demand) in &kinds {
                if demand.memory == MemoryType::Device {
                    // Reading registers, or writing to them, may do anything.
                    // SAFETY: the call must fault; if it doesn't, the test has failed.
                    expect_forbidden(unsafe { probe::call(va) }, va, "call of registers")?;
                    continue;
                }
                // SAFETY: reading memory has no effect.
                let loaded = unsafe { probe::load(va) };
                check!(loaded.is_ok(), "{va} can't be read");
                let value = loaded.unwrap_or(0);
                // SAFETY: what is written is what was there, and the firmware does not run.
                let stored = unsafe { probe::store(va, value) };
                if demand.writable {
                    check!(stored.is_ok(), "{va} can't be written to");
                } else {
                    read_only += 1;
                    expect_forbidden(stored, va, "store to what the firmware wants read-only")?;
                }
                if !demand.executable {
                    not_executable += 1;
                    // SAFETY: the call must fault; if it doesn't, the test has failed.
                    expect_forbidden(unsafe { probe::call(va) }, va, "call of the firmware's data")?;
                }
                // SAFETY: they must fault; if not, the first two do what was done above, and the test has failed.
                unsafe {
                    expect_forbidden(probe::load_user(va), va, "load as EL0")?;
                    expect_forbidden(probe::store_user(va, value), va, "store as EL0")?;
                    expect_forbidden(probe::execute_user(va), va, "execution at EL0")?;
                }
            }
            let image = vm::image().start.get();
            let region = booted.map.runtime().next().map_or(0, |region| region.physical_start());
            for nowhere in [0, PAGE, image, image + VIRTUAL_OFFSET, region, (1 << VA_BITS) - 1] {
                let nowhere = VirtAddr::new(nowhere);
                // SAFETY: it must fault; if not, it is memory.
                expect_unmapped(unsafe { probe::load(nowhere) }, nowhere, "load from elsewhere")?;
            }
            Ok(())
        })()
    });
    result?;
    println!("# faulted on purpose: {read_only} kinds of read-only pages, {not_executable} not executable");
    let demanded = booted.pages().any(|page| !page.2.writable);
    check!(!demanded || read_only > 0, "no read-only page was tried");
    check!(not_executable > 0, "no page of data was tried");

    let va = kinds[0].0;
    // SAFETY: it must fault.
    expect_unmapped(unsafe { probe::load(va) }, va, "load outside of a call")
}

/// The GUID of the variables that are set here.
const VENDOR: Guid =
    Guid::from_fields(0x9d1c_6a6e, 0x51f3, 0x4a5b, 0x8e, 0x0f, &[0x7b, 0x3c, 0x55, 0x12, 0xe0, 0x91]);

/// Each variable that firmware enumerates can be read. Returns their names.
fn enumerate(services: &Runtime<Calls>) -> Result<Vec<(VariableName, Guid)>, Unmet> {
    /// More than a firmware has.
    const LIMIT: usize = 10_000;
    let (mut name, mut vendor) = (VariableName::FIRST, VENDOR);
    let mut found = Vec::new();
    loop {
        match services.get_next_variable_name(&mut name, &mut vendor) {
            Ok(()) => {}
            Err(CallError::NotFound) => return Ok(found),
            Err(error) => check!(false, "GetNextVariableName after {name}: {error}"),
        }
        check!(found.len() < LIMIT, "the variables have no end");
        // Without room, so that only its size is told.
        let size = match services.get_variable(&name, &vendor, &mut []) {
            Err(CallError::BufferTooSmall(size)) => size,
            other => {
                check!(false, "GetVariable({name}) without room: {other:?}");
                0
            }
        };
        let mut data = alloc::vec![0; size];
        let read = services.get_variable(&name, &vendor, &mut data);
        check!(
            matches!(read, Ok((read, _)) if read == size),
            "GetVariable({name}) of {size} bytes: {read:?}"
        );
        found.push((name, vendor));
    }
}

pub(super) fn variables(context: &Context<'_>) -> TestResult {
    const ATTRIBUTES: u32 =
        attributes::NON_VOLATILE | attributes::BOOTSERVICE_ACCESS | attributes::RUNTIME_ACCESS;
    let Booted { services, .. } = booted(context)?;
    let supported = services.supported();
    let before = if supported.contains(RuntimeServices::GET_NEXT_VARIABLE_NAME) {
        enumerate(services)?
    } else {
        Vec::new()
    };
    println!("# {} variables of the firmware's were read", before.len());
    if cpu::count() > 1 && !before.is_empty() {
        two_cpus(services, before.len())?;
    }
    if supported.contains(RuntimeServices::QUERY_VARIABLE_INFO) {
        match services.query_variable_info(ATTRIBUTES) {
            Ok(info) => {
                println!("# {info:?}");
                check!(
                    info.remaining_storage <= info.maximum_storage,
                    "more is free than there is: {info:?}"
                );
                check!(info.maximum_variable > 0, "no variable has room: {info:?}");
            }
            // It may say so of these attributes.
            Err(error) => check!(error == CallError::Unsupported, "QueryVariableInfo: {error}"),
        }
    }

    let name = VariableName::new("PleatSelfTest").expect("a name");
    let get = |room: usize| {
        let mut data = alloc::vec![0; room];
        services.get_variable(&name, &VENDOR, &mut data).map(|(size, attributes)| {
            data.truncate(size);
            (data, attributes)
        })
    };
    let set = |data: &[u8]| services.set_variable(&name, &VENDOR, ATTRIBUTES, data);
    if supported.contains(RuntimeServices::GET_VARIABLE) {
        check!(get(8) == Err(CallError::NotFound), "the variable is there already: {:?}", get(8));
    }
    if !supported.contains(RuntimeServices::SET_VARIABLE) {
        check!(
            set(b"pleat") == Err(CallError::Unsupported),
            "SetVariable, which is absent: {:?}",
            set(b"pleat")
        );
        println!("# the firmware has no SetVariable");
        return Ok(());
    }
    for value in [&b"pleat"[..], b"a longer value", b"x"] {
        check!(set(value) == Ok(()), "SetVariable: {:?}", set(value));
        check!(get(64) == Ok((value.to_vec(), ATTRIBUTES)), "GetVariable: {:?}", get(64));
        check!(get(value.len()) == get(64), "GetVariable with just enough room: {:?}", get(value.len()));
        let short = get(value.len() - 1);
        check!(short == Err(CallError::BufferTooSmall(value.len())), "GetVariable without room: {short:?}");
    }
    let with = enumerate(services)?;
    check!(with.contains(&(name, VENDOR)), "GetNextVariableName does not find the new variable");
    check!(with.len() == before.len() + 1, "{} variables, {} before", with.len(), before.len());

    check!(set(&[]) == Ok(()), "deleting the variable failed");
    check!(get(64) == Err(CallError::NotFound), "a deleted variable is read: {:?}", get(64));
    check!(enumerate(services)?.len() == before.len(), "it is enumerated after its deletion");
    Ok(())
}

pub(super) fn time(context: &Context<'_>) -> TestResult {
    let Booted { services, .. } = booted(context)?;
    if !services.supported().contains(RuntimeServices::GET_TIME) {
        let time = services.get_time();
        check!(
            time.is_err_and(|error| error == CallError::Unsupported),
            "GetTime, which is absent, was called"
        );
        println!("# the firmware has no GetTime");
        return Ok(());
    }
    let time = || services.get_time().map_err(|error| Unmet::Failed(alloc::format!("GetTime: {error}")));
    let (now, capabilities) = time()?;
    println!(
        "# {:04}-{:02}-{:02} {:02}:{:02}:{:02}, resolution {} Hz",
        now.year, now.month, now.day, now.hour, now.minute, now.second, capabilities.resolution
    );
    check!((2024..2100).contains(&now.year), "it is the year {}", now.year);
    check!((1..=12).contains(&now.month) && (1..=31).contains(&now.day), "a date that is none");
    check!(now.hour < 24 && now.minute < 60 && now.second < 60, "a time that is none");
    if !services.supported().contains(RuntimeServices::SET_TIME) {
        return Ok(());
    }
    let other = uefi::Time { year: 2031, month: 2, day: 3, hour: 4, minute: 5, second: 6, ..now };
    check!(services.set_time(&other).is_ok(), "SetTime: {:?}", services.set_time(&other));
    let (set, _) = time()?;
    check!(services.set_time(&now).is_ok(), "the time can't be set back");
    // A minute may pass on a machine that has other things to do.
    check!(
        (set.year, set.month, set.day, set.hour) == (2031, 2, 3, 4) && (5..10).contains(&set.minute),
        "after SetTime it is {}-{}-{} {}:{}:{}",
        set.year,
        set.month,
        set.day,
        set.hour,
        set.minute,
        set.second
    );
    let bad = uefi::Time { month: 13, ..now };
    let refused = services.set_time(&bad);
    check!(refused == Err(CallError::Status(Status::INVALID_PARAMETER)), "SetTime to month 13: {refused:?}");
    Ok(())
}

/// A function that is called as the firmware's are.
type Function = unsafe extern "C" fn();

/// Its first argument and twice the next, and so on.
#[unsafe(naked)]
unsafe extern "C" fn weighs_arguments() {
    naked_asm!(
        "add x0, x0, x1, lsl #1",
        "add x0, x0, x2, lsl #2",
        "add x0, x0, x3, lsl #3",
        "add x0, x0, x4, lsl #4",
        "add x0, x0, x5, lsl #5",
        "ret"
    )
}

/// The stack pointer.
#[unsafe(naked)]
unsafe extern "C" fn returns_sp() {
    naked_asm!("mov x0, sp", "ret")
}

/// TTBR0_EL1.
#[unsafe(naked)]
unsafe extern "C" fn returns_ttbr0() {
    naked_asm!("mrs x0, ttbr0_el1", "ret")
}

/// DAIF.
#[unsafe(naked)]
unsafe extern "C" fn returns_daif() {
    naked_asm!("mrs x0, daif", "ret")
}

/// The sum of all SIMD registers, FPCR and FPSR.
#[unsafe(naked)]
unsafe extern "C" fn adds_simd_registers() {
    naked_asm!(
        ".arch_extension fp",
        ".arch_extension simd",
        "mrs x0, fpcr",
        "mrs x1, fpsr",
        "add x0, x0, x1, lsl #32",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "fmov x1, d\\n",
        "add x0, x0, x1",
        "fmov x1, v\\n\\().d[1]",
        "add x0, x0, x1",
        ".endr",
        "ret",
        ".arch_extension nosimd",
        ".arch_extension nofp",
    )
}

/// Spoils every register that a function may use, and those that it may not, and then loads from address `x0`.
#[unsafe(naked)]
unsafe extern "C" fn spoils_and_loads() {
    naked_asm!(
        ".arch_extension fp",
        ".arch_extension simd",
        "mov x1, #0x0400000",
        "msr fpcr, x1",
        "mov x1, #0x1f",
        "msr fpsr, x1",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "movi v\\n\\().16b, #0x5a",
        ".endr",
        ".irp n, 18,19,20,21,22,23,24,25,26,27,28,29,30",
        "mov x\\n, #\\n",
        ".endr",
        "ldr x0, [x0]",
        "udf #0",
        ".arch_extension nosimd",
        ".arch_extension nofp",
    )
}

/// Spoils the SIMD registers and returns.
#[unsafe(naked)]
unsafe extern "C" fn spoils_simd_registers() {
    naked_asm!(
        ".arch_extension fp",
        ".arch_extension simd",
        "mov x1, #0x9f",
        "msr fpsr, x1",
        ".irp n, 0,1,2,3,4,5,6,7,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "movi v\\n\\().16b, #0xa5",
        ".endr",
        "ret",
        ".arch_extension nosimd",
        ".arch_extension nofp",
    )
}

/// Pushes for ever.
#[unsafe(naked)]
unsafe extern "C" fn overflows() {
    naked_asm!("1:", "str xzr, [sp, #-16]!", "b 1b")
}

#[unsafe(naked)]
unsafe extern "C" fn is_undefined() {
    naked_asm!("udf #0")
}

/// By functions of the test's own in place of the firmware's: a call passes its arguments, has its own stack and tables, and
/// leaves FP and SIMD registers as they were; and one that faults in any way comes back.
pub(super) fn calls_come_back(context: &Context<'_>) -> TestResult {
    let booted = booted(context)?;
    let firmware = booted.services.firmware();
    let call = |function: Function, arguments: [u64; 6]| {
        // SAFETY: the function does what its comment says.
        unsafe { firmware.call(function as *const () as u64, &arguments) }.map(|status| status.as_usize())
    };
    let plain = |function| call(function, [0; 6]).map_err(|Aborted| Unmet::Failed("a call faulted".into()));

    let weight = call(weighs_arguments, [1; 6]);
    check!(weight == Ok(63), "six arguments of 1 weigh {weight:?}");
    let weight = call(weighs_arguments, [1, 2, 3, 4, 5, 6]);
    check!(weight == Ok(321), "six arguments weigh {weight:?}");

    let local = 0_u8;
    let (mine, theirs) = (&raw const local as u64, plain(returns_sp)? as u64);
    check!(
        theirs.is_multiple_of(16) && theirs.abs_diff(mine) > vm::PAGE * 8,
        "the stack is this one: {theirs:#x}"
    );
    let ttbr0 = plain(returns_ttbr0)? as u64;
    let efi_mm = booted.efi_mm.root().get() | u64::from(mm::asid::EFI_ASID.get()) << 48;
    check!(ttbr0 == efi_mm, "TTBR0 is {ttbr0:#x} instead of {efi_mm:#x}");

    let daif = plain(returns_daif)?;
    check!(daif & 0xc0 == 0xc0, "interrupts are not masked: DAIF is {daif:#x}");

    let cpacr = CPACR_EL1.get();
    let simd = plain(adds_simd_registers)?;
    plain(spoils_simd_registers)?;
    check!(plain(adds_simd_registers)? == simd, "SIMD registers are not what they were before a call");

    for (function, nowhere, what) in [
        (spoils_and_loads as Function, 0x1000, "a load"),
        (spoils_and_loads, 0xffff_9000_0000_0000, "a load from the kernel's half"),
        (overflows, 0, "a stack overflow"),
        (is_undefined, 0, "an undefined instruction"),
    ] {
        let result = call(function, [nowhere; 6]);
        check!(result == Err(Aborted), "{what} returned {result:?}");
        check!(plain(adds_simd_registers)? == simd, "{what}: SIMD registers are not what they were before");
    }
    check!(CPACR_EL1.get() == cpacr, "CPACR_EL1 was {cpacr:#x} and is {:#x}", CPACR_EL1.get());
    // A function that is nowhere.
    // SAFETY: nothing is mapped there.
    let result = unsafe { firmware.call(0x1000, &[0; 6]) };
    check!(result == Err(Aborted), "a call of nothing returned {result:?}");
    if cpu::count() > 1 {
        a_fault_of_another_cpu(booted.services)?;
    }
    // The kernel's own faults are still its own.
    // SAFETY: nothing is mapped there.
    let fault = unsafe { probe::load(VirtAddr::new(0x1000)) };
    let class = fault.err().map(|fault| fault.esr.class());
    check!(class == Some(ExceptionClass::DataAbortSame), "a fault outside of a call: {class:?}");
    Ok(())
}

/// Says that it runs in the first word at `x0`, and returns 1 when the second is not zero any more, or 0 if that takes too long.
#[unsafe(naked)]
unsafe extern "C" fn waits() {
    naked_asm!(
        "mov x1, #1",
        "str x1, [x0]",
        "mov x2, #0x40000000",
        "1: ldar x1, [x3]",
        "cbnz x1, 2f",
        "subs x2, x2, #1",
        "b.ne 1b",
        "mov x0, #0",
        "ret",
        "2: mov x0, #1",
        "ret",
    )
}

/// While one CPU is in a call, a fault of another is its own, and gives up nothing.
fn a_fault_of_another_cpu(services: &'static Runtime<Calls>) -> TestResult {
    static WORDS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    WORDS.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    let other = smp::spawn_on(1, || {
        while WORDS[0].load(Ordering::Acquire) == 0 {
            core::hint::spin_loop();
        }
        // SAFETY: nothing is mapped there.
        let faulted = unsafe { probe::load(VirtAddr::new(PAGE)) }.is_err();
        WORDS[1].store(1, Ordering::Release);
        faulted
    })
    .expect("the CPU waits");
    let [first, second] = &WORDS;
    let arguments = [first.as_ptr() as u64, 0, 0, second.as_ptr() as u64, 0, 0];
    // SAFETY: the function does what its comment says, with two words that live for ever.
    let waited = unsafe { services.firmware().call(waits as *const () as u64, &arguments) };
    check!(waited.is_ok_and(|waited| waited.as_usize() == 1), "the call came back early: {waited:?}");
    check!(other.join(), "a load from nowhere did not fault");
    Ok(())
}

/// Both CPUs enumerate the variables at once: their calls wait for each other.
fn two_cpus(services: &'static Runtime<Calls>, variables: usize) -> TestResult {
    static READY: AtomicU64 = AtomicU64::new(0);
    READY.store(0, Ordering::Relaxed);
    let work = move || {
        READY.fetch_add(1, Ordering::AcqRel);
        while READY.load(Ordering::Acquire) < 2 {
            core::hint::spin_loop();
        }
        (0..20).all(|_| enumerate(services).is_ok_and(|found| found.len() == variables))
    };
    let other = smp::spawn_on(1, work).expect("the CPU waits");
    check!(work(), "the variables are others while another CPU looks at them");
    check!(other.join(), "the variables are others on another CPU");
    Ok(())
}

/// A service that crashes returns an error, and is not called again. After it there are no services.
pub(super) fn a_crashing_call_comes_back(context: &Context<'_>) -> TestResult {
    let Booted { services, .. } = booted(context)?;
    // SAFETY: `permissions_hold` shows that nothing is mapped there.
    let result = unsafe { services.fault_at(PAGE) };
    check!(result == Err(CallError::Aborted), "GetVariable with a bad address: {result:?}");
    check!(services.supported().is_empty(), "{:?} are there after a crash", services.supported());
    let name = VariableName::new("PleatSelfTest").expect("a name");
    let result = services.get_variable(&name, &VENDOR, &mut [0; 8]);
    check!(result == Err(CallError::Unavailable), "after a crash GetVariable returns {result:?}");
    Ok(())
}

/// A public function of entries that is called on `efi_mm` all the same: it warns, and nothing folds.
#[cfg(feature = "fault-injection")]
pub(super) fn a_public_call_warns(context: &Context<'_>) -> TestResult {
    let booted = booted(context)?;
    let mut blocks = could_fold(&booted);
    check!(!blocks.is_empty(), "no block could fold");
    // Each prints a line.
    blocks.truncate(4);
    let counters = booted.efi_mm.counters();
    let before = counters.get(Counter::MutatorOnEfi);
    for &va in &blocks {
        let guard = booted.efi_mm.unprotected().lock_present_table(va);
        let folded = guard.map(|mut guard| mm::contpte::refold(&mut guard, va, BLOCK as usize));
        check!(folded == Some(0), "{va}: {folded:?} blocks were folded");
    }
    let warned = counters.get(Counter::MutatorOnEfi) - before;
    check!(warned == blocks.len() as u64, "{warned} warnings for {} calls", blocks.len());
    no_block_is_folded(context)
}

/// Ends the machine by the firmware.
pub(super) fn reset_system(context: &Context<'_>) -> TestResult {
    let Booted { services, .. } = booted(context)?;
    println!("# ResetSystem(shutdown)");
    crate::console::flush();
    let error = services.reset_system(uefi::RESET_SHUTDOWN, Status::SUCCESS);
    check!(false, "ResetSystem returned: {error}");
    Ok(())
}
