//! Runtime services by a firmware that the test plays: what is called with which arguments, and what is made of the answers.

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::tables::*;
use pleat_efi::runtime::{
    ARGUMENTS, Aborted, CallError, Firmware, Guid, Runtime, RuntimeTable, RuntimeTableError, Status,
    TABLE_SIZE, Time, VariableInfo, VariableName,
};
use pleat_efi::virtual_map::VIRTUAL_OFFSET;
use pleat_efi::{MemoryMap, RuntimeServices};

const VENDOR: Guid = Guid::from_fields(1, 2, 3, 4, 5, &[6; 6]);
const CODE_PA: u64 = 0x4000_0000;
const CODE_VA: u64 = CODE_PA + VIRTUAL_OFFSET;

/// Where the services are in the table: the number of their field after the header (UEFI 2.10, 4.5).
const GET_TIME: u64 = 0;
const SET_TIME: u64 = 1;
const GET_VARIABLE: u64 = 6;
const GET_NEXT_VARIABLE_NAME: u64 = 7;
const SET_VARIABLE: u64 = 8;
const RESET_SYSTEM: u64 = 10;
const QUERY_VARIABLE_INFO: u64 = 13;

/// The address that the table has for a service.
const fn address(service: u64) -> u64 {
    CODE_VA + 0x100 * service
}

/// A table as firmware makes it.
fn table() -> Vec<u8> {
    let mut bytes = b"RUNTSERV".to_vec();
    for field in [2 << 16 | 100_u32, 136, 0xc0ff_ee00, 0] {
        bytes.extend(field.to_le_bytes());
    }
    (0..14).for_each(|service| bytes.extend(address(service).to_le_bytes()));
    bytes
}

/// The one runtime region, of code, that the services are in; and data.
fn map() -> Vec<u8> {
    let mut code = region(CODE, CODE_PA, 16, RUNTIME);
    code.va = CODE_VA;
    let mut data = region(DATA, CODE_PA + 0x10000, 16, RUNTIME);
    data.va = CODE_VA + 0x10000;
    descriptors(&[code, data, region(CONVENTIONAL, 0x8000_0000, 16, 0)], 48)
}

fn parse(bytes: &[u8], supported: RuntimeServices) -> Result<RuntimeTable, RuntimeTableError> {
    RuntimeTable::parse(bytes, &MemoryMap::parse(&map(), 48, 1).unwrap(), supported)
}

/// Attributes and data by name.
type Variables = BTreeMap<Vec<u16>, (u32, Vec<u8>)>;

/// A firmware that keeps variables, and does as it is told.
#[derive(Default)]
struct Played {
    calls: RefCell<Vec<(u64, [u64; ARGUMENTS])>>,
    variables: RefCell<Variables>,
    /// What it answers instead of doing something.
    answer: RefCell<Option<Result<Status, Aborted>>>,
    /// Claims that it has written so many bytes more than it has.
    claims: usize,
}

/// The units of a name before its NUL.
///
/// # Safety
/// There must be a NUL.
unsafe fn units(name: *const u16) -> Vec<u16> {
    // SAFETY: the caller's contract.
    (0..).map(|i| unsafe { name.add(i).read() }).take_while(|&unit| unit != 0).collect()
}

// SAFETY: it writes what a service does.
unsafe impl Firmware for Played {
    unsafe fn call(&self, function: u64, arguments: &[u64; ARGUMENTS]) -> Result<Status, Aborted> {
        let service = (function - CODE_VA) / 0x100;
        self.calls.borrow_mut().push((service, *arguments));
        if let Some(answer) = *self.answer.borrow() {
            return answer;
        }
        let [a, b, c, d, e, _] = *arguments;
        // SAFETY: the arguments are what each service takes, which is what the test is about: Miri looks at it too.
        unsafe {
            match service {
                GET_TIME => (*(a as *mut Time)).year = 2026,
                SET_TIME => assert_eq!((*(a as *const Time)).month, 11),
                GET_VARIABLE => {
                    assert_eq!(*(b as *const Guid), VENDOR);
                    let variables = self.variables.borrow();
                    let Some((attributes, data)) = variables.get(&units(a as *const u16)) else {
                        return Ok(Status::NOT_FOUND);
                    };
                    let (size, room) = (d as *mut usize, *(d as *const usize));
                    *size = data.len() + self.claims;
                    if data.len() > room {
                        return Ok(Status::BUFFER_TOO_SMALL);
                    }
                    *(c as *mut u32) = *attributes;
                    (e as *mut u8).copy_from(data.as_ptr(), data.len());
                }
                GET_NEXT_VARIABLE_NAME => {
                    let (size, name) = (a as *mut usize, b as *mut u16);
                    let last = units(name);
                    let variables = self.variables.borrow();
                    let Some(next) = variables.keys().find(|key| last.is_empty() || **key > last) else {
                        return Ok(Status::NOT_FOUND);
                    };
                    if self.claims > 0 {
                        (0..*size / 2).for_each(|i| name.add(i).write(7));
                        return Ok(Status::SUCCESS);
                    }
                    let needed = (next.len() + 1) * 2;
                    if needed > std::mem::replace(&mut *size, needed) {
                        return Ok(Status::BUFFER_TOO_SMALL);
                    }
                    name.copy_from(next.as_ptr(), next.len());
                    name.add(next.len()).write(0);
                    *(c as *mut Guid) = VENDOR;
                }
                SET_VARIABLE => {
                    assert_eq!(*(b as *const Guid), VENDOR);
                    let data = std::slice::from_raw_parts(e as *const u8, d as usize).to_vec();
                    let name = units(a as *const u16);
                    let mut variables = self.variables.borrow_mut();
                    match data.is_empty() {
                        true => _ = variables.remove(&name),
                        false => _ = variables.insert(name, (c as u32, data)),
                    }
                }
                QUERY_VARIABLE_INFO => {
                    assert_eq!(a, 7);
                    [(b, 100), (c, 90), (d, 80)].iter().for_each(|&(to, value)| *(to as *mut u64) = value);
                }
                _ => panic!("service {service}"),
            }
        }
        Ok(Status::SUCCESS)
    }
}

fn runtime(firmware: Played, supported: RuntimeServices) -> Runtime<Played> {
    // SAFETY: the played firmware has its services at these addresses.
    unsafe { Runtime::new(firmware, parse(&table(), supported).unwrap(), supported) }
}

/// How often firmware was called.
fn calls(runtime: &Runtime<Played>) -> usize {
    runtime.firmware().calls.borrow().len()
}

fn name(name: &str) -> VariableName {
    VariableName::new(name).unwrap()
}

/// Every service, in the order of [`RuntimeServices`]' flags that have a function.
fn call_all(runtime: &Runtime<Played>) -> [Result<(), CallError>; 7] {
    [
        runtime.get_time().map(|_| ()),
        runtime.set_time(&Time { month: 11, ..Time::default() }),
        runtime.get_variable(&name("a"), &VENDOR, &mut [0; 4]).map(|_| ()),
        runtime.get_next_variable_name(&mut VariableName::FIRST.clone(), &mut VENDOR.clone()),
        runtime.set_variable(&name("a"), &VENDOR, 7, b"data"),
        runtime.query_variable_info(7).map(|_| ()),
        Err(runtime.reset_system(2, Status::SUCCESS)),
    ]
}

#[test]
fn variables_go_there_and_back() {
    let runtime = runtime(Played::default(), RuntimeServices::all());
    let mut buffer = [0xee; 8];
    assert_eq!(runtime.get_variable(&name("b"), &VENDOR, &mut buffer), Err(CallError::NotFound));
    assert_eq!(runtime.set_variable(&name("b"), &VENDOR, 7, b"bee"), Ok(()));
    assert_eq!(runtime.set_variable(&name("abc"), &VENDOR, 3, b"other"), Ok(()));
    assert_eq!(runtime.get_variable(&name("b"), &VENDOR, &mut buffer), Ok((3, 7)));
    assert_eq!(buffer, *b"bee\xee\xee\xee\xee\xee");
    let short = runtime.get_variable(&name("abc"), &VENDOR, &mut buffer[..4]);
    assert_eq!(short, Err(CallError::BufferTooSmall(5)));

    let (mut found, mut next, mut vendor) = (Vec::new(), VariableName::FIRST, Guid::from_bytes(&[0; 16]));
    while runtime.get_next_variable_name(&mut next, &mut vendor).is_ok() {
        assert_eq!(vendor, VENDOR);
        found.push(next.to_string());
    }
    assert_eq!((found, next), (vec!["abc".into(), "b".into()], name("b")), "after the last nothing changes");

    assert_eq!(runtime.set_variable(&name("b"), &VENDOR, 7, &[]), Ok(()));
    assert_eq!(runtime.get_variable(&name("b"), &VENDOR, &mut buffer), Err(CallError::NotFound));
}

#[test]
fn the_other_services_have_their_arguments() {
    let runtime = runtime(Played::default(), RuntimeServices::all());
    assert_eq!(runtime.get_time().unwrap().0.year, 2026);
    assert_eq!(runtime.set_time(&Time { month: 11, ..Time::default() }), Ok(()));
    let info = VariableInfo { maximum_storage: 100, remaining_storage: 90, maximum_variable: 80 };
    assert_eq!(runtime.query_variable_info(7), Ok(info));
    *runtime.firmware().answer.borrow_mut() = Some(Ok(Status::INVALID_PARAMETER));
    let error = runtime.reset_system(2, Status::ABORTED);
    assert_eq!(error, CallError::Status(Status::INVALID_PARAMETER));
    let last = *runtime.firmware().calls.borrow().last().unwrap();
    assert_eq!(last, (RESET_SYSTEM, [2, Status::ABORTED.as_usize() as u64, 0, 0, 0, 0]));
}

#[test]
fn what_is_absent_is_not_called() {
    let runtime = runtime(Played::default(), RuntimeServices::empty());
    assert_eq!(call_all(&runtime), [Err(CallError::Unsupported); 7]);
    assert_eq!(calls(&runtime), 0);
}

/// Each service is found by its own flag.
#[test]
fn each_flag_allows_its_service_alone() {
    use RuntimeServices as S;
    let flags = [
        S::GET_TIME,
        S::SET_TIME,
        S::GET_VARIABLE,
        S::GET_NEXT_VARIABLE_NAME,
        S::SET_VARIABLE,
        S::QUERY_VARIABLE_INFO,
        S::RESET_SYSTEM,
    ];
    let fields = [
        GET_TIME,
        SET_TIME,
        GET_VARIABLE,
        GET_NEXT_VARIABLE_NAME,
        SET_VARIABLE,
        QUERY_VARIABLE_INFO,
        RESET_SYSTEM,
    ];
    for (flag, field) in flags.into_iter().zip(fields) {
        let played = Played { answer: Some(Ok(Status::DEVICE_ERROR)).into(), ..Played::default() };
        let runtime = runtime(played, flag);
        let results = call_all(&runtime);
        let called = results.iter().filter(|result| **result == Err(CallError::Status(Status::DEVICE_ERROR)));
        assert_eq!(called.count(), 1, "{flag:?}: {results:?}");
        assert_eq!(runtime.firmware().calls.borrow()[0].0, field, "{flag:?}");
        assert_eq!(calls(&runtime), 1);
    }
}

#[test]
fn after_a_fault_nothing_is_called() {
    let runtime = runtime(Played::default(), RuntimeServices::all());
    *runtime.firmware().answer.borrow_mut() = Some(Err(Aborted));
    assert_eq!(runtime.get_time().unwrap_err(), CallError::Aborted);
    *runtime.firmware().answer.borrow_mut() = None;
    assert_eq!(call_all(&runtime), [Err(CallError::Unavailable); 7]);
    assert_eq!(calls(&runtime), 1);
    assert_eq!(runtime.supported(), RuntimeServices::empty());
}

/// A firmware that faults in its first call, but not before another thread waits for it.
struct Slow {
    calls: AtomicUsize,
    /// Both threads have begun.
    begun: Barrier,
}

// SAFETY: it does nothing.
unsafe impl Firmware for Slow {
    unsafe fn call(&self, _: u64, _: &[u64; ARGUMENTS]) -> Result<Status, Aborted> {
        if self.calls.fetch_add(1, Ordering::SeqCst) == 0 {
            self.begun.wait();
            // The other one comes to the lock within that time, or after it: in neither case may it get here.
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Err(Aborted)
    }
}

#[test]
fn who_waits_for_a_call_that_faults_does_not_call() {
    let firmware = Slow { calls: AtomicUsize::new(0), begun: Barrier::new(2) };
    let table = parse(&table(), RuntimeServices::all()).unwrap();
    // SAFETY: the played firmware does nothing at any address.
    let runtime = unsafe { Runtime::new(firmware, table, RuntimeServices::all()) };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| runtime.get_time().unwrap_err());
        runtime.firmware().begun.wait();
        // While the first is in the firmware.
        assert_eq!(runtime.reset_system(2, Status::SUCCESS), CallError::Busy);
        assert_eq!(runtime.get_time().unwrap_err(), CallError::Unavailable);
        assert_eq!(first.join().unwrap(), CallError::Aborted);
    });
    assert_eq!(runtime.firmware().calls.load(Ordering::SeqCst), 1);
}

#[test]
fn an_answer_is_not_believed() {
    let played = Played { claims: 100, ..Played::default() };
    let runtime = runtime(played, RuntimeServices::all());
    runtime.set_variable(&name("a"), &VENDOR, 7, b"data").unwrap();
    assert_eq!(runtime.get_variable(&name("a"), &VENDOR, &mut [0; 8]), Err(CallError::BadAnswer));
    let (mut next, mut vendor) = (VariableName::FIRST, VENDOR);
    let endless = runtime.get_next_variable_name(&mut next, &mut vendor);
    assert_eq!((endless, next), (Err(CallError::BadAnswer), VariableName::FIRST));
    *runtime.firmware().answer.borrow_mut() = Some(Ok(Status::SUCCESS));
    assert_eq!(
        runtime.reset_system(2, Status::SUCCESS),
        CallError::BadAnswer,
        "it does not return with success"
    );
    *runtime.firmware().answer.borrow_mut() = Some(Ok(Status::UNSUPPORTED));
    assert_eq!(runtime.query_variable_info(7), Err(CallError::Unsupported));
}

#[test]
fn bad_tables_are_refused() {
    #[track_caller]
    fn refused(bytes: &[u8], line: &str) {
        let error = parse(bytes, RuntimeServices::all()).unwrap_err();
        assert_eq!(error.to_string(), format!("EFI runtime services table: {line}"));
    }
    assert_eq!(TABLE_SIZE, 136);
    assert_eq!(table().len(), TABLE_SIZE);
    let with = |at: usize, bytes: &[u8]| {
        let mut table = table();
        table[at..at + bytes.len()].copy_from_slice(bytes);
        table
    };
    refused(&table()[..135], "it ends after 135 bytes");
    refused(&[], "it ends after 0 bytes");
    refused(&with(0, b"BOOTSERV"), "its signature is 0x56524553544f4f42");
    refused(&with(12, &[135, 0, 0, 0]), "its size of 135 bytes is too small");
    for (va, what) in [
        (0, "null"),
        (CODE_PA, "physical"),
        (CODE_VA - 1, "before"),
        (CODE_VA + 0x10000, "data"),
        (u64::MAX, "the last"),
    ] {
        let bytes = with(24 + 8 * GET_VARIABLE as usize, &va.to_le_bytes());
        refused(&bytes, &format!("GetVariable at {va:#x} is in no region of runtime code"));
        let without = RuntimeServices::all() - RuntimeServices::GET_VARIABLE;
        assert!(parse(&bytes, without).is_ok(), "{what}: what is absent may be anywhere");
    }
    // There is no function for it.
    assert!(parse(&with(24 + 8 * 11, &[0; 8]), RuntimeServices::all()).is_ok());
    assert!(
        parse(&with(24, &(CODE_VA + 0xffff).to_le_bytes()), RuntimeServices::all()).is_ok(),
        "the last byte"
    );
}

/// What SetVirtualAddressMap is told.
#[test]
fn runtime_regions_get_virtual_addresses() {
    for (size, firmware) in [(48, edk2_2022()), (48, edk2_2025()), (40, u_boot())] {
        let bytes = descriptors(&firmware.map, size);
        let map = MemoryMap::parse(&bytes, size, 1).unwrap();
        let mut out = vec![0; bytes.len()];
        let used = map.write_virtual_map(&mut out).unwrap();
        let told = MemoryMap::parse(&out[..used], size, 1).unwrap();
        assert_eq!(told.descriptors().count(), map.runtime().count());
        for (region, told) in map.runtime().zip(told.descriptors()) {
            assert_eq!(told.virtual_start(), region.physical_start() + VIRTUAL_OFFSET);
            assert_eq!((told.physical_start(), told.size()), (region.physical_start(), region.size()));
            assert_eq!(told.memory_type(), region.memory_type());
        }
        assert!(out[40..size].iter().all(|&byte| byte == 0xa5), "what is not known is copied");
        assert_eq!(map.write_virtual_map(&mut out[..used - 1]), None);
        assert_eq!(map.write_virtual_map(&mut out[..used]), Some(used));
    }
    let last = (1 << 48) - VIRTUAL_OFFSET - 0x1000;
    for (pages, fits) in [(1, true), (2, false)] {
        let bytes = descriptors(&[region(DATA, last, pages, RUNTIME)], 40);
        let written = MemoryMap::parse(&bytes, 40, 1).unwrap().write_virtual_map(&mut [0; 40]);
        assert_eq!(written.is_some(), fits);
    }
    let beyond = descriptors(&[region(DATA, !0xfff, 1, RUNTIME)], 40);
    assert_eq!(MemoryMap::parse(&beyond, 40, 1).unwrap().write_virtual_map(&mut [0; 40]), None);
}
