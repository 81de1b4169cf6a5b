//! What a system call of Linux's ABI returns where it fails.

use core::fmt;

macro_rules! errnos {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal)*) => {
        /// Why a call failed, with Linux's numbers.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Errno {
            $($(#[doc = $doc])* $name,)*
            /// For a process the same as [`Self::ENOMEM`]: there is no memory for what the call needs, frames or the kernel's own.
            /// The call may be made again after some was given back ([`AddressSpace::reclaim`](crate::AddressSpace::reclaim));
            /// what it did before it failed it would only do again.
            OutOfMemory,
        }

        impl Errno {
            /// The number, above zero. A system call returns its negative.
            pub const fn number(self) -> i32 {
                match self {
                    $(Self::$name => $number,)*
                    Self::OutOfMemory => Self::ENOMEM.number(),
                }
            }
        }

        /// All that have a number of their own, for tests.
        pub const ERRNOS: &[Errno] = &[$(Errno::$name),*];
    };
}

errnos! {
    /// Operation not permitted.
    EPERM = 1
    /// No such file or directory.
    ENOENT = 2
    /// No such process.
    ESRCH = 3
    /// Interrupted system call.
    EINTR = 4
    /// Input/output error.
    EIO = 5
    /// Argument list too long.
    E2BIG = 7
    /// Exec format error.
    ENOEXEC = 8
    /// Bad file descriptor.
    EBADF = 9
    /// No child processes.
    ECHILD = 10
    /// Try again.
    EAGAIN = 11
    /// No room in the address space, or too many mappings; or nothing is mapped there. Memory would not help: for want of it
    /// calls fail with `OutOfMemory`.
    ENOMEM = 12
    /// Permission denied.
    EACCES = 13
    /// Bad address.
    EFAULT = 14
    /// Device or resource busy.
    EBUSY = 16
    /// It exists already.
    EEXIST = 17
    /// No such device.
    ENODEV = 19
    /// Not a directory.
    ENOTDIR = 20
    /// Is a directory.
    EISDIR = 21
    /// Invalid argument.
    EINVAL = 22
    /// Too many open files.
    EMFILE = 24
    /// Not a terminal.
    ENOTTY = 25
    /// Text file busy.
    ETXTBSY = 26
    /// Illegal seek.
    ESPIPE = 29
    /// Read-only file system.
    EROFS = 30
    /// Broken pipe.
    EPIPE = 32
    /// Result too large.
    ERANGE = 34
    /// Name too long.
    ENAMETOOLONG = 36
    /// No such system call.
    ENOSYS = 38
    /// Too many symbolic links.
    ELOOP = 40
    /// Value too large.
    EOVERFLOW = 75
    /// Not supported.
    EOPNOTSUPP = 95
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?} ({})", self.number())
    }
}

impl core::error::Error for Errno {}
