//! From the entry of EFI firmware to the ordinary one, with what firmware knows in a device tree.
//!
//! Everything here runs as an application of the firmware's: its mappings, its stack, at most its console. It returns to it
//! with a status where the kernel can't be started, until boot services are left; nothing can fail after that. The
//! Image has been relocated to where it runs (efi.S), and is relocated once more to its high address.

#[cfg(feature = "efi")]
mod runtime;

use core::cell::Cell;
use core::ffi::c_void;
use core::fmt::{self, Write};
use core::mem::size_of;
use core::{ptr, slice};

use arch::PhysAddr;
use arch::aarch64::boot;
use kernel::efi_boot::{self, EFI_PAGE, Handover, HandoverError, MemoryMap};
use kernel::platform::PhysRange;
use kernel::{bootargs, dt};
use r_efi::efi::{
    ALLOCATE_ANY_PAGES, Boolean, BootServices, DTB_TABLE_GUID, Guid, Handle, LOADER_DATA, MemoryDescriptor,
    Status, SystemTable,
};
use r_efi::protocols::{device_path, load_file2, loaded_image, shell_parameters, simple_text_output};

/// How often ExitBootServices is tried: each attempt may make firmware change its memory map, but not for ever.
const ATTEMPTS: usize = 8;
/// For how many descriptors more than it has a memory map gets room.
const NEW_DESCRIPTORS: usize = 16;

/// Where efi.S leads. Returns why the kernel can't be started.
#[unsafe(no_mangle)]
extern "C" fn pleat_efi(image: Handle, system: *mut SystemTable) -> Status {
    let firmware = Firmware { image, system, leaving: Cell::new(false) };
    let failure = match firmware.start() {
        Err(failure) => failure,
        Ok(never) => match never {},
    };
    // Once it was asked to leave, firmware must not be called for its console.
    if !firmware.leaving.get() {
        let _ = writeln!(firmware.console(), "pleat: fatal: EFI: {failure}");
    }
    match failure {
        Failure::Call(_, status) => status,
        Failure::NoDeviceTree | Failure::Tree(_) => Status::UNSUPPORTED,
        Failure::LoadOptions => Status::INVALID_PARAMETER,
    }
}

/// Why the kernel can't be started.
enum Failure {
    /// Firmware's answer to this call.
    Call(&'static str, Status),
    /// There is no device tree among its tables.
    NoDeviceTree,
    /// The device tree can't be completed.
    Tree(HandoverError),
    /// The load options are no text.
    LoadOptions,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(call, status) => write!(f, "{call} failed: status {:#x}", status.as_usize()),
            Self::NoDeviceTree => {
                f.write_str("the firmware describes its machine by ACPI only; a device tree is needed (in QEMU, acpi=off)")
            }
            Self::Tree(error) => write!(f, "device tree: {error}"),
            Self::LoadOptions => f.write_str("the load options are no text"),
        }
    }
}

impl From<HandoverError> for Failure {
    fn from(error: HandoverError) -> Self {
        Self::Tree(error)
    }
}

/// Turns the status of a call into a result.
fn check(call: &'static str, status: Status) -> Result<(), Failure> {
    if status == Status::SUCCESS { Ok(()) } else { Err(Failure::Call(call, status)) }
}

/// What does not exist.
enum Never {}

/// The firmware, whose boot services have not been left.
struct Firmware {
    image: Handle,
    system: *mut SystemTable,
    /// It was asked to leave boot services.
    leaving: Cell<bool>,
}

impl Firmware {
    fn start(&self) -> Result<Never, Failure> {
        let tree = self.device_tree()?;
        let bootargs = self.load_options()?;
        let initrd = self.initrd()?;

        let (size, descriptor_size) = self.size_of_memory_map()?;
        let map = self.allocate(size + NEW_DESCRIPTORS * descriptor_size)?;
        let copy = self.allocate(efi_boot::room_for_copy(tree.len(), bootargs.len(), 0))?;
        #[cfg(feature = "efi")]
        let mut runtime = runtime::Services::prepare(self, tree, bootargs, map.len())?;
        let _ = writeln!(self.console(), "EFI stub: leaving boot services");
        for _ in 0..ATTEMPTS {
            // From here on, firmware may answer these two calls only.
            let (memory, key) = self.memory_map(map)?;
            let handover = Handover { bootargs, initrd, memory, tables: None };
            let size = efi_boot::write(tree, &handover, copy)?;
            self.leaving.set(true);
            // SAFETY: this is what it is for. With success no more than the runtime services is left of the firmware.
            match unsafe { ((*self.boot()).exit_boot_services)(self.image, key) } {
                Status::SUCCESS => {
                    let copy = &copy[..size];
                    // There is nobody left to hear of an error.
                    #[cfg(feature = "efi")]
                    let copy = runtime.hand_over(self, tree, handover).unwrap_or(copy);
                    let start = PhysAddr::new(copy.as_ptr() as u64);
                    // SAFETY: UEFI has all memory mapped to itself, and runs applications on the one CPU that runs. The
                    // tree says what memory is the kernel's.
                    unsafe { boot::enter_from_firmware(start, copy.len() as u64) }
                }
                // The map has changed since.
                Status::INVALID_PARAMETER => {}
                status => return Err(Failure::Call("ExitBootServices", status)),
            }
        }
        Err(Failure::Call("ExitBootServices", Status::INVALID_PARAMETER))
    }

    fn boot(&self) -> *mut BootServices {
        // SAFETY: firmware gave the table, and boot services are there.
        unsafe { (*self.system).boot_services }
    }

    fn console(&self) -> Console {
        // SAFETY: firmware gave the table.
        Console(unsafe { (*self.system).con_out })
    }

    /// The interface of a protocol that the image's handle has.
    fn protocol<T>(&self, mut guid: Guid) -> Result<*mut T, Status> {
        let mut interface = ptr::null_mut();
        // SAFETY: all pointers are to locals.
        let status = unsafe { ((*self.boot()).handle_protocol)(self.image, &mut guid, &mut interface) };
        if status == Status::SUCCESS { Ok(interface.cast()) } else { Err(status) }
    }

    /// Whole pages of at least `bytes` bytes that the kernel may overwrite once it runs. They hold what they hold.
    fn allocate(&self, bytes: usize) -> Result<&'static mut [u8], Failure> {
        let pages = bytes.max(1).div_ceil(EFI_PAGE as usize);
        let mut address = 0;
        // SAFETY: the pointer is to a local.
        let status =
            unsafe { ((*self.boot()).allocate_pages)(ALLOCATE_ANY_PAGES, LOADER_DATA, pages, &mut address) };
        check("AllocatePages", status)?;
        let start = ptr::NonNull::new(address as *mut u8);
        let start = start.ok_or(Failure::Call("AllocatePages", Status::OUT_OF_RESOURCES))?;
        // SAFETY: it was just allocated, is never freed, and bytes may have any value.
        Ok(unsafe { slice::from_raw_parts_mut(start.as_ptr(), pages * EFI_PAGE as usize) })
    }

    /// The table with this GUID in the configuration table.
    fn table(&self, guid: Guid) -> Option<*const u8> {
        // SAFETY: firmware gave the system table.
        let (tables, count) =
            unsafe { ((*self.system).configuration_table, (*self.system).number_of_table_entries) };
        // SAFETY: so many are there.
        let mut tables = (0..count).map(|index| unsafe { &*tables.add(index) });
        let table = tables.find(|table| table.vendor_guid == guid)?;
        Some(table.vendor_table.cast::<u8>().cast_const()).filter(|table| !table.is_null())
    }

    fn device_tree(&self) -> Result<&'static [u8], Failure> {
        let start = self.table(DTB_TABLE_GUID).ok_or(Failure::NoDeviceTree)?;
        // SAFETY: firmware says that a device tree is there, which is not shorter than its header, nor than that says; and
        // nothing changes it.
        unsafe {
            let header = slice::from_raw_parts(start, dt::HEADER_SIZE);
            let size = dt::total_size(header).map_err(HandoverError::Tree)?;
            Ok(slice::from_raw_parts(start, size))
        }
    }

    /// The load options as boot arguments. A shell puts the name of the image first, which is none.
    fn load_options(&self) -> Result<&'static str, Failure> {
        let image = self.protocol::<loaded_image::Protocol>(loaded_image::PROTOCOL_GUID);
        let image = image.map_err(|status| Failure::Call("HandleProtocol(LoadedImage)", status))?;
        // SAFETY: the interface is of this protocol.
        let (options, bytes) =
            unsafe { ((*image).load_options.cast::<u16>(), (*image).load_options_size as usize) };
        let length = if options.is_null() { 0 } else { bytes / size_of::<u16>() };
        // SAFETY: so many are there, perhaps not aligned.
        let units = (0..length).map(|index| unsafe { options.add(index).read_unaligned() });

        // At most three bytes for each.
        let buffer = self.allocate(length * 3)?;
        let mut used = 0;
        for character in char::decode_utf16(units.take_while(|&unit| unit != 0)) {
            let character = character.map_err(|_| Failure::LoadOptions)?;
            let room = buffer.get_mut(used..).ok_or(Failure::LoadOptions)?;
            used += character.encode_utf8(room).len();
        }
        let line =
            buffer.get(..used).and_then(|line| str::from_utf8(line).ok()).ok_or(Failure::LoadOptions)?;
        let from_shell = self.protocol::<shell_parameters::Protocol>(shell_parameters::PROTOCOL_GUID).is_ok();
        Ok(if from_shell { bootargs::after_first_word(line) } else { line.trim_ascii() })
    }

    /// The initial RAM disk, where firmware or a boot loader offers one as Linux takes it: by LoadFile2 at a device path
    /// of its own.
    fn initrd(&self) -> Result<Option<PhysRange>, Failure> {
        let mut path: *mut device_path::Protocol = (&raw const INITRD_PATH).cast_mut().cast();
        let (mut guid, mut device) = (load_file2::PROTOCOL_GUID, ptr::null_mut());
        // SAFETY: the path is one that ends with its end node, and is not written to; the other pointers are to locals.
        let status = unsafe { ((*self.boot()).locate_device_path)(&mut guid, &mut path, &mut device) };
        if status == Status::NOT_FOUND {
            return Ok(None);
        }
        check("LocateDevicePath(initrd)", status)?;
        let mut interface: *mut c_void = ptr::null_mut();
        // SAFETY: the handle was just found to have this protocol.
        let status = unsafe { ((*self.boot()).handle_protocol)(device, &mut guid, &mut interface) };
        check("HandleProtocol(LoadFile2)", status)?;
        let file = interface.cast::<load_file2::Protocol>();
        let load = |size: &mut usize, buffer: *mut u8| {
            // SAFETY: the interface is of this protocol, and the buffer has as many bytes as `size` says.
            unsafe { ((*file).load_file)(file, path, Boolean::FALSE, size, buffer.cast()) }
        };

        let mut size = 0;
        match load(&mut size, ptr::null_mut()) {
            Status::BUFFER_TOO_SMALL => {}
            // An empty one.
            Status::SUCCESS => return Ok(None),
            status => return Err(Failure::Call("LoadFile2(initrd)", status)),
        }
        let buffer = self.allocate(size)?;
        check("LoadFile2(initrd)", load(&mut size, buffer.as_mut_ptr()))?;
        Ok(PhysRange::from_size(buffer.as_ptr() as u64, size as u64))
    }

    /// How many bytes the memory map has, and each of its descriptors.
    fn size_of_memory_map(&self) -> Result<(usize, usize), Failure> {
        let (mut size, mut key, mut descriptor_size, mut version) = (0, 0, 0, 0);
        // SAFETY: the buffer has no bytes, and the other pointers are to locals.
        let status = unsafe {
            ((*self.boot()).get_memory_map)(
                &mut size,
                ptr::null_mut(),
                &mut key,
                &mut descriptor_size,
                &mut version,
            )
        };
        if status == Status::BUFFER_TOO_SMALL {
            Ok((size, descriptor_size))
        } else {
            Err(Failure::Call("GetMemoryMap", status))
        }
    }

    /// The memory map, and its key for ExitBootServices.
    fn memory_map<'a>(&self, buffer: &'a mut [u8]) -> Result<(MemoryMap<'a>, usize), Failure> {
        let (mut size, mut key, mut descriptor_size, mut version) = (buffer.len(), 0, 0, 0);
        // SAFETY: the buffer has so many bytes and is a page's, so aligned; the other pointers are to locals.
        let status = unsafe {
            ((*self.boot()).get_memory_map)(
                &mut size,
                buffer.as_mut_ptr().cast::<MemoryDescriptor>(),
                &mut key,
                &mut descriptor_size,
                &mut version,
            )
        };
        check("GetMemoryMap", status)?;
        let bytes = buffer.get(..size).ok_or(Failure::Call("GetMemoryMap", Status::BAD_BUFFER_SIZE))?;
        Ok((MemoryMap::new(bytes, descriptor_size, version)?, key))
    }
}

/// The device path of LINUX_EFI_INITRD_MEDIA_GUID: a vendor's media node, and the end.
#[repr(C)]
struct InitrdPath {
    node: device_path::Protocol,
    guid: Guid,
    end: device_path::Protocol,
}

// Without padding, since nodes follow each other by their lengths.
const _: () = assert!(size_of::<InitrdPath>() == 24);

static INITRD_PATH: InitrdPath = InitrdPath {
    node: device_path::Protocol {
        r#type: device_path::TYPE_MEDIA,
        sub_type: device_path::Media::SUBTYPE_VENDOR,
        length: 20_u16.to_le_bytes(),
    },
    guid: Guid::from_fields(0x5568_e427, 0x68fc, 0x4f3d, 0xac, 0x74, &[0xca, 0x55, 0x52, 0x31, 0xcc, 0x68]),
    end: device_path::Protocol {
        r#type: device_path::TYPE_END,
        sub_type: device_path::End::SUBTYPE_ENTIRE,
        length: 4_u16.to_le_bytes(),
    },
};

/// The firmware's console. What it does not take is lost.
struct Console(*mut simple_text_output::Protocol);

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.is_null() {
            return Ok(());
        }
        for character in text.chars() {
            // A line ends with CR LF. The text is ASCII, so each is one unit.
            let unit = |unit: u16| {
                // SAFETY: firmware gave the interface; the string ends with 0.
                unsafe { ((*self.0).output_string)(self.0, [unit, 0].as_mut_ptr()) };
            };
            if character == '\n' {
                unit('\r' as u16);
            }
            unit(character as u16);
        }
        Ok(())
    }
}
