//! The root file system: the initial RAM disk, or else the archive in the Image. Read-only.

use alloc::boxed::Box;
use alloc::vec::Vec;

use arch::aarch64::hardware::linear;
use kernel::cpio::{Archive, CpioError, Entry, Found, LookupError, S_IFREG};
use kernel::platform::PhysRange;
use mm::{Errno, File};
use spin::Once;

use super::space;

/// What the Image has, without an initial RAM disk: the programs of the self-tests, or nothing.
static EMBEDDED: &[u8] = include_bytes!(env!("PLEAT_INITRAMFS"));

static ROOT: Once<Root> = Once::new();

struct Root {
    archive: Archive<'static>,
    /// The files, in the order of where their data are.
    files: Vec<(usize, &'static File<'static>)>,
    empty: &'static File<'static>,
}

/// Why there is no root file system.
#[derive(Debug)]
pub(crate) enum Error {
    /// The archive can't be read.
    Archive(CpioError),
    /// No memory for a page cache.
    NoMemory,
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Archive(error) => error.fmt(f),
            Self::NoMemory => f.write_str("no memory for what is in it"),
        }
    }
}

/// Reads the initial RAM disk where there is one, else the archive in the Image, and fills the page cache.
///
/// # Errors
/// [`Error`]; there is no root file system then.
pub(crate) fn init(initrd: Option<PhysRange>) -> Result<(), Error> {
    let bytes = match initrd {
        // SAFETY: it is reserved for good and in the linear map, and nobody writes to it.
        Some(range) => unsafe {
            core::slice::from_raw_parts(linear(range.start).get() as *const u8, range.size() as usize)
        },
        None => EMBEDDED,
    };
    let archive = Archive::new(bytes).map_err(Error::Archive)?;
    ROOT.try_call_once(|| {
        let mut files = Vec::new();
        for entry in archive.entries().filter(|entry| entry.is(S_IFREG) && !entry.data.is_empty()) {
            files.try_reserve(1).map_err(|_| Error::NoMemory)?;
            files.push((entry.data.as_ptr() as usize, cache(entry.data)?));
        }
        files.sort_unstable_by_key(|(place, _)| *place);
        Ok(Root { archive, files, empty: cache(&[])? })
    })
    .map(|_| ())
}

/// A file with a page cache, for good.
fn cache(data: &[u8]) -> Result<&'static File<'static>, Error> {
    let file = File::new(space::memory(), data).map_err(|_| Error::NoMemory)?;
    Ok(Box::leak(Box::new(file.read_only())))
}

/// What a path leads to.
pub(crate) enum Node {
    /// A regular file.
    File(OpenFile),
    /// A directory.
    Directory,
    /// Something that can't be opened: a device, a pipe, a socket.
    Other,
}

/// A regular file: its entry and its page cache.
#[derive(Clone, Copy)]
pub(crate) struct OpenFile {
    pub(crate) entry: Entry<'static>,
    pub(crate) file: &'static File<'static>,
}

/// Follows a path from the root.
///
/// # Errors
/// ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG.
pub(crate) fn find(path: &[u8]) -> Result<Node, Errno> {
    let root = ROOT.get().ok_or(Errno::ENOENT)?;
    let found = root.archive.find(path).map_err(|error| match error {
        LookupError::NotFound => Errno::ENOENT,
        LookupError::NotADirectory => Errno::ENOTDIR,
        LookupError::Loop => Errno::ELOOP,
        LookupError::TooLong => Errno::ENAMETOOLONG,
    })?;
    Ok(match found {
        Found::Directory => Node::Directory,
        Found::File(entry) if entry.is(S_IFREG) => Node::File(OpenFile { entry, file: root.file(&entry) }),
        Found::File(_) => Node::Other,
    })
}

impl Root {
    fn file(&self, entry: &Entry<'static>) -> &'static File<'static> {
        if entry.data.is_empty() {
            return self.empty;
        }
        let place = entry.data.as_ptr() as usize;
        let index = self.files.binary_search_by_key(&place, |(place, _)| *place);
        self.files[index.expect("every file with data has a page cache")].1
    }
}
