//! From the kernel to `main`: argc, argv, envp and auxv above the stack pointer, and nothing relocated yet.

use core::arch::global_asm;
use core::ffi::CStr;

global_asm!(
    ".global _start",
    "_start:",
    "mov x29, xzr",
    "mov x30, xzr",
    "mov x0, sp",
    "b {start}",
    start = sym start,
);

/// What the kernel has put onto the stack.
#[derive(Clone, Copy)]
pub struct Environment {
    stack: *const u64,
}

impl Environment {
    fn word(self, index: usize) -> u64 {
        // SAFETY: the kernel has laid out what is read, up to AT_NULL, which no caller goes beyond.
        unsafe { self.stack.add(index).read() }
    }

    fn string(self, index: usize) -> Option<&'static [u8]> {
        let at = self.word(index) as *const core::ffi::c_char;
        // SAFETY: the kernel has put a string there, for as long as the process lives.
        (!at.is_null()).then(|| unsafe { CStr::from_ptr(at) }.to_bytes())
    }

    /// How many arguments there are.
    pub fn argc(self) -> usize {
        self.word(0) as usize
    }

    /// An argument.
    pub fn arg(self, index: usize) -> Option<&'static [u8]> {
        if index < self.argc() { self.string(1 + index) } else { None }
    }

    /// The environment.
    pub fn envp(self) -> impl Iterator<Item = &'static [u8]> {
        (self.argc() + 2..).map_while(move |index| self.string(index))
    }

    /// Where the auxiliary vector begins.
    fn auxv(self) -> usize {
        let mut index = self.argc() + 2;
        while self.word(index) != 0 {
            index += 1;
        }
        index + 1
    }

    /// The value of a type of the auxiliary vector.
    pub fn auxiliary(self, kind: u64) -> Option<u64> {
        let mut index = self.auxv();
        while self.word(index) != 0 {
            if self.word(index) == kind {
                return Some(self.word(index + 1));
            }
            index += 2;
        }
        None
    }

    /// The stack pointer at the entry.
    pub fn stack_pointer(self) -> u64 {
        self.stack as u64
    }
}

unsafe extern "Rust" {
    /// The program's own; its result is the status.
    safe fn main(environment: Environment) -> i32;
}

extern "C" fn start(stack: *const u64) -> ! {
    let environment = Environment { stack };
    // SAFETY: the first thing that happens. What has run so far uses nothing that is relocated.
    unsafe { relocate(environment) };
    crate::sys::exit(main(environment))
}

const AT_PHDR: u64 = 3;
const AT_PHNUM: u64 = 5;
const PT_DYNAMIC: u32 = 2;
const PT_PHDR: u32 = 6;

#[repr(C)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    va: u64,
    pa: u64,
    file_size: u64,
    size: u64,
    align: u64,
}

/// Applies the relocations of a position-independent program, which are all relative.
///
/// # Safety
/// Called once, before anything that is relocated is used.
unsafe fn relocate(environment: Environment) {
    const DT_NULL: u64 = 0;
    const DT_RELA: u64 = 7;
    const DT_RELASZ: u64 = 8;
    let (Some(headers), Some(count)) = (environment.auxiliary(AT_PHDR), environment.auxiliary(AT_PHNUM))
    else {
        return;
    };
    let at = |i: u64| headers as *const ProgramHeader as u64 + i * size_of::<ProgramHeader>() as u64;
    let (mut bias, mut dynamic) = (0, None);
    for i in 0..count {
        // SAFETY: the kernel says that the headers are there.
        let header = unsafe { &*(at(i) as *const ProgramHeader) };
        if header.kind == PT_PHDR {
            bias = headers.wrapping_sub(header.va);
        } else if header.kind == PT_DYNAMIC {
            dynamic = Some(header.va);
        }
    }
    let Some(dynamic) = dynamic else { return };
    let mut entry = bias.wrapping_add(dynamic) as *const [u64; 2];
    let (mut table, mut bytes) = (0, 0);
    // SAFETY: the linker ends the section by DT_NULL, and fills in where relocations are and what they change.
    unsafe {
        while (*entry)[0] != DT_NULL {
            let [tag, value] = *entry;
            if tag == DT_RELA {
                table = bias.wrapping_add(value);
            } else if tag == DT_RELASZ {
                bytes = value;
            }
            entry = entry.add(1);
        }
        for i in 0..bytes / 24 {
            let [offset, _relative, addend] = *((table + i * 24) as *const [u64; 3]);
            (bias.wrapping_add(offset) as *mut u64).write(bias.wrapping_add(addend));
        }
    }
}
