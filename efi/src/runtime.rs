//! The runtime services (UEFI 2.10, 8), behind functions that take and return Rust's types.
//!
//! ```text
//!  Runtime::get_variable(name, vendor, buffer)
//!      │  not in RT_PROPERTIES, or aborted before: an error, and no call
//!      ▼  one call at a time (UEFI 2.10, 8.1)
//!  Firmware::call(address, arguments)      efi_mm and the stack: the kernel's
//!      │  a status, or Aborted
//!      ▼
//!  Ok, or CallError                        what firmware claims to have written is checked
//! ```
#![allow(unsafe_code)]

mod name;
mod table;

use core::fmt;

use r_efi::efi::{self, Boolean};
/// GUIDs, as the firmware's namespaces of variables have them, and what the services return.
pub use r_efi::efi::{Guid, ResetType, Status, Time, TimeCapabilities};

use spin::{Mutex, MutexGuard};

pub use self::name::VariableName;
pub use self::table::{RuntimeTable, RuntimeTableError, TABLE_SIZE};
use crate::rt_properties::RuntimeServices;

/// How many arguments a call may have.
pub const ARGUMENTS: usize = 6;

/// How this machine calls its firmware.
///
/// # Safety
/// A call that returns must have done what [`call`](Self::call) says, and nothing else.
pub unsafe trait Firmware {
    /// Calls the function at the virtual address `function` by the procedure call standard, with the runtime regions
    /// mapped as SetVirtualAddressMap was told.
    ///
    /// # Errors
    /// [`Aborted`]
    ///
    /// # Safety
    /// `function` must be a runtime service of this firmware, and `arguments` what it takes: its pointers must be valid
    /// for what the service does with them. No other call may be under way, on any CPU.
    unsafe fn call(&self, function: u64, arguments: &[u64; ARGUMENTS]) -> Result<Status, Aborted>;
}

/// The firmware faulted, and the call was given up: what it was about to do is done in part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Aborted;

/// Why a service did not do what it was called for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallError {
    /// RT_PROPERTIES says that it is absent, or firmware says so. In the first case it was not called.
    Unsupported,
    /// The firmware faulted in this call; it will not be called again.
    Aborted,
    /// The firmware faulted in an earlier call. It was not called.
    Unavailable,
    /// Another CPU is in the firmware, which [`Runtime::reset_system`] does not wait for. It was not called.
    Busy,
    /// There is no such variable, or no further one.
    NotFound,
    /// What was asked for has so many bytes, which the buffer has not.
    BufferTooSmall(usize),
    /// Firmware says that it has written what the buffer can't hold, or a name without an end.
    BadAnswer,
    /// Firmware's status, if it is none of the above.
    Status(Status),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported => f.write_str("the firmware does not have this service"),
            Self::Aborted => f.write_str("the firmware faulted, and is not called any more"),
            Self::Unavailable => f.write_str("the firmware faulted earlier, and is not called any more"),
            Self::Busy => f.write_str("another CPU is in the firmware"),
            Self::NotFound => f.write_str("not found"),
            Self::BufferTooSmall(bytes) => write!(f, "the buffer is too small for {bytes} bytes"),
            Self::BadAnswer => f.write_str("the firmware's answer contradicts itself"),
            Self::Status(status) => write!(f, "the firmware returned status {:#x}", status.as_usize()),
        }
    }
}

impl core::error::Error for CallError {}

/// What [`Runtime::query_variable_info`] tells, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct VariableInfo {
    /// All that there is for variables with these attributes.
    pub maximum_storage: u64,
    /// What of it is free.
    pub remaining_storage: u64,
    /// The largest variable, with its name.
    pub maximum_variable: u64,
}

/// The runtime services of a firmware. A call waits until another CPU's has returned; so not for interrupt context, nor with
/// a lock that an interrupt handler takes.
pub struct Runtime<F> {
    firmware: F,
    table: RuntimeTable,
    /// Those that can be called; locked during a call.
    supported: Mutex<Supported>,
}

/// Which services can be called.
#[derive(Clone, Copy)]
enum Supported {
    These(RuntimeServices),
    /// None any more: one has faulted.
    Aborted,
}

/// Where a call finds its argument, or leaves its result.
fn pointer<T>(to: &mut T) -> u64 {
    &raw mut *to as u64
}

impl<F: Firmware> Runtime<F> {
    /// The services of `table`, of which RT_PROPERTIES (or its absence: all) says that `supported` are there.
    ///
    /// # Safety
    /// The addresses in `table` must be those of this firmware's services, as they are since SetVirtualAddressMap.
    pub const unsafe fn new(firmware: F, table: RuntimeTable, supported: RuntimeServices) -> Self {
        Self { firmware, table, supported: Mutex::new(Supported::These(supported)) }
    }

    /// How the firmware is called.
    pub const fn firmware(&self) -> &F {
        &self.firmware
    }

    /// The services that can be called: none after one faulted. Waits for a call that is under way.
    pub fn supported(&self) -> RuntimeServices {
        match *self.supported.lock() {
            Supported::These(services) => services,
            Supported::Aborted => RuntimeServices::empty(),
        }
    }

    /// Time of day.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn get_time(&self) -> Result<(Time, TimeCapabilities), CallError> {
        let mut time = Time::default();
        let mut capabilities = TimeCapabilities { resolution: 0, accuracy: 0, sets_to_zero: Boolean::FALSE };
        let arguments = [pointer(&mut time), pointer(&mut capabilities)];
        // SAFETY: both are written to by the service, which are their types.
        unsafe { self.call(RuntimeServices::GET_TIME, &arguments) }?;
        Ok((time, capabilities))
    }

    /// Sets the time of day.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn set_time(&self, time: &Time) -> Result<(), CallError> {
        let mut time = *time;
        // SAFETY: the service reads it.
        unsafe { self.call(RuntimeServices::SET_TIME, &[pointer(&mut time)]) }
    }

    /// Reads a variable into the first bytes of `buffer`; returns how many, and its attributes (EFI_VARIABLE_…).
    ///
    /// # Errors
    /// See [`CallError`]; what is in `buffer` means nothing then.
    pub fn get_variable(
        &self,
        name: &VariableName,
        vendor: &Guid,
        buffer: &mut [u8],
    ) -> Result<(usize, u32), CallError> {
        let (mut name, mut vendor, mut attributes, mut size) = (*name, *vendor, 0_u32, buffer.len());
        let arguments = [
            name.units_mut().as_mut_ptr() as u64,
            pointer(&mut vendor),
            pointer(&mut attributes),
            pointer(&mut size),
            buffer.as_mut_ptr() as u64,
        ];
        // SAFETY: the name has an end, and the service writes no more than `size` bytes, of any value, to the buffer.
        let result = unsafe { self.call(RuntimeServices::GET_VARIABLE, &arguments) };
        match result {
            Err(CallError::Status(Status::BUFFER_TOO_SMALL)) => Err(CallError::BufferTooSmall(size)),
            Ok(()) if size > buffer.len() => Err(CallError::BadAnswer),
            result => result.map(|()| (size, attributes)),
        }
    }

    /// The variable after the one of this name and vendor, in firmware's order, which both become.
    /// [`VariableName::FIRST`] comes before all.
    ///
    /// # Errors
    /// [`CallError::NotFound`] after the last; see there. The two are unchanged then.
    pub fn get_next_variable_name(
        &self,
        name: &mut VariableName,
        vendor: &mut Guid,
    ) -> Result<(), CallError> {
        let (mut next, mut next_vendor) = (*name, *vendor);
        let mut size = size_of_val(next.units_mut());
        let arguments = [pointer(&mut size), next.units_mut().as_mut_ptr() as u64, pointer(&mut next_vendor)];
        // SAFETY: the name has an end, and the service writes no more than `size` bytes there.
        match unsafe { self.call(RuntimeServices::GET_NEXT_VARIABLE_NAME, &arguments) } {
            Err(CallError::Status(Status::BUFFER_TOO_SMALL)) => Err(CallError::BufferTooSmall(size)),
            Err(error) => Err(error),
            Ok(()) if !next.has_end() => Err(CallError::BadAnswer),
            Ok(()) => {
                (*name, *vendor) = (next, next_vendor);
                Ok(())
            }
        }
    }

    /// Creates or replaces a variable, with these attributes (EFI_VARIABLE_…). Without data it is deleted.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn set_variable(
        &self,
        name: &VariableName,
        vendor: &Guid,
        attributes: u32,
        data: &[u8],
    ) -> Result<(), CallError> {
        let (mut name, mut vendor) = (*name, *vendor);
        let arguments = [
            name.units_mut().as_mut_ptr() as u64,
            pointer(&mut vendor),
            attributes.into(),
            data.len() as u64,
            data.as_ptr() as u64,
        ];
        // SAFETY: the name has an end, and the service reads so many bytes of data.
        unsafe { self.call(RuntimeServices::SET_VARIABLE, &arguments) }
    }

    /// What room there is for variables with these attributes (EFI_VARIABLE_…).
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn query_variable_info(&self, attributes: u32) -> Result<VariableInfo, CallError> {
        let mut info = VariableInfo::default();
        let arguments = [
            attributes.into(),
            pointer(&mut info.maximum_storage),
            pointer(&mut info.remaining_storage),
            pointer(&mut info.maximum_variable),
        ];
        // SAFETY: the service writes the three numbers.
        unsafe { self.call(RuntimeServices::QUERY_VARIABLE_INFO, &arguments) }?;
        Ok(info)
    }

    /// Resets or ends the machine, and tells it why. Returns only where that fails. It does not wait for another CPU's
    /// call: that may be what hangs.
    pub fn reset_system(&self, reset: ResetType, status: Status) -> CallError {
        let arguments = [reset.into(), status.as_usize() as u64];
        let Some(supported) = self.supported.try_lock() else { return CallError::Busy };
        // SAFETY: there are no data, so no pointer.
        match unsafe { self.call_locked(supported, RuntimeServices::RESET_SYSTEM, &arguments) } {
            Err(error) => error,
            // It does not return with success.
            Ok(()) => CallError::BadAnswer,
        }
    }

    /// # Safety
    /// `arguments` must be what the service takes, whose pointers are valid for what it does. Those that it has more than
    /// are given are 0.
    unsafe fn call(&self, service: RuntimeServices, arguments: &[u64]) -> Result<(), CallError> {
        // SAFETY: the caller's contract.
        unsafe { self.call_locked(self.supported.lock(), service, arguments) }
    }

    /// # Safety
    /// As for [`call`](Self::call).
    unsafe fn call_locked(
        &self,
        mut supported: MutexGuard<'_, Supported>,
        service: RuntimeServices,
        arguments: &[u64],
    ) -> Result<(), CallError> {
        match *supported {
            Supported::Aborted => return Err(CallError::Unavailable),
            Supported::These(services) if !services.contains(service) => return Err(CallError::Unsupported),
            Supported::These(_) => {}
        }
        let mut all = [0; ARGUMENTS];
        for (argument, &given) in all.iter_mut().zip(arguments) {
            *argument = given;
        }
        // SAFETY: whoever made `self` vouches for the table; the caller for the arguments; the lock for there being no other call.
        match unsafe { self.firmware.call(self.table.address(service), &all) } {
            Ok(Status::SUCCESS) => Ok(()),
            Ok(Status::UNSUPPORTED) => Err(CallError::Unsupported),
            Ok(Status::NOT_FOUND) => Err(CallError::NotFound),
            Ok(status) => Err(CallError::Status(status)),
            Err(Aborted) => {
                *supported = Supported::Aborted;
                Err(CallError::Aborted)
            }
        }
    }

    /// Makes the firmware fault: GetVariable is called with addresses at which nothing is mapped. For tests of what
    /// comes of it.
    ///
    /// # Errors
    /// [`CallError::Aborted`], or what firmware says that looked before it read.
    ///
    /// # Safety
    /// Nothing may be mapped at `nowhere`, nor in the 4 KiB from there on.
    pub unsafe fn fault_at(&self, nowhere: u64) -> Result<(), CallError> {
        // SAFETY: what it reads or writes there faults, which the caller vouches for.
        unsafe { self.call(RuntimeServices::GET_VARIABLE, &[nowhere; 5]) }
    }
}

/// Attributes of variables (UEFI 2.10, 8.2).
pub mod attributes {
    use super::efi;

    /// It outlives the machine's being switched off.
    pub const NON_VOLATILE: u32 = efi::VARIABLE_NON_VOLATILE;
    /// It can be used before ExitBootServices.
    pub const BOOTSERVICE_ACCESS: u32 = efi::VARIABLE_BOOTSERVICE_ACCESS;
    /// It can be used after that too.
    pub const RUNTIME_ACCESS: u32 = efi::VARIABLE_RUNTIME_ACCESS;
}
