//! Descriptors of open files, and the calls that work on them. Files are read-only; there is no directory but by name.

use alloc::sync::Arc;
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use kernel::cpio::S_IFDIR;
use mm::{Errno, File};
use spin::Mutex;

use super::initramfs::{self, Node, OpenFile};
use super::{Task, sched, tty, uaccess};
use crate::{console, heap};

/// The most descriptors of a process.
const DESCRIPTORS: usize = 64;
/// The longest path, with its NUL.
const PATH_MAX: usize = 4096;
/// Bytes that are copied at once.
const PIECE: usize = 512;
/// The most bytes that one call reads or writes, as on Linux.
pub(crate) const MAX_COUNT: u64 = 0x7fff_f000;

/// What a descriptor stands for.
enum Open {
    /// Descriptors 0 to 2 at first.
    Console,
    /// A file and the offset at which it is read next.
    File(OpenFile, Mutex<u64>),
    /// A directory, by its path: what `openat` starts from.
    Directory(Vec<u8>),
}

#[derive(Clone)]
struct Descriptor {
    open: Arc<Open>,
    close_on_exec: bool,
}

/// The descriptors of a process. What a child gets shares offsets with its parent.
#[derive(Clone)]
pub(crate) struct Files(ArrayVec<Option<Descriptor>, DESCRIPTORS>);

impl Files {
    /// 0, 1 and 2: the console.
    ///
    /// # Errors
    /// [`Errno::OutOfMemory`]
    pub(crate) fn new() -> Result<Self, Errno> {
        let console = Descriptor { open: shared(Open::Console)?, close_on_exec: false };
        Ok(Self([Some(console.clone()), Some(console.clone()), Some(console)].into_iter().collect()))
    }

    pub(crate) fn close_all(&mut self) {
        self.0.clear();
    }

    pub(crate) fn close_on_exec(&mut self) {
        for slot in &mut self.0 {
            slot.take_if(|descriptor| descriptor.close_on_exec);
        }
    }

    fn get(&self, fd: u64) -> Result<Arc<Open>, Errno> {
        let slot = usize::try_from(fd as u32).ok().and_then(|fd| self.0.get(fd));
        slot.and_then(Option::as_ref).map(|descriptor| descriptor.open.clone()).ok_or(Errno::EBADF)
    }

    /// Gives it the lowest number that is free.
    fn add(&mut self, descriptor: Descriptor) -> Result<u64, Errno> {
        if let Some(free) = self.0.iter().position(Option::is_none) {
            self.0[free] = Some(descriptor);
            return Ok(free as u64);
        }
        self.0.try_push(Some(descriptor)).map_err(|_| Errno::EMFILE)?;
        Ok(self.0.len() as u64 - 1)
    }
}

fn shared(open: Open) -> Result<Arc<Open>, Errno> {
    heap::try_arc(open).ok_or(Errno::OutOfMemory)
}

fn open_file(task: &Task, fd: u64) -> Result<Arc<Open>, Errno> {
    task.files.lock().get(fd)
}

/// Fails where some of a buffer is no user's: what Linux looks at before it reads or writes, with the count that it was given.
///
/// # Errors
/// EFAULT
pub(crate) fn expect_user(buffer: u64, count: u64) -> Result<(), Errno> {
    if uaccess::is_user(buffer, count) { Ok(()) } else { Err(Errno::EFAULT) }
}

/// Flags of `openat` (include/uapi/asm-generic/fcntl.h and arch/arm64's in Linux).
mod flags {
    pub(super) const O_ACCMODE: u64 = 0o3;
    pub(super) const O_CREAT: u64 = 0o100;
    pub(super) const O_EXCL: u64 = 0o200;
    pub(super) const O_TRUNC: u64 = 0o1000;
    pub(super) const O_DIRECTORY: u64 = 0o4_0000;
    pub(super) const O_NOFOLLOW: u64 = 0o10_0000;
    pub(super) const O_CLOEXEC: u64 = 0o200_0000;
    pub(super) const AT_FDCWD: i32 = -100;
}

fn join(start: &[u8], path: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut joined = Vec::new();
    joined.try_reserve_exact(start.len() + 1 + path.len()).map_err(|_| Errno::OutOfMemory)?;
    joined.extend_from_slice(start);
    joined.push(b'/');
    joined.extend_from_slice(path);
    Ok(joined)
}

/// `openat(dirfd, path, flags, mode)`
///
/// # Errors
/// As Linux's on a read-only file system; EINVAL for O_NOFOLLOW, and for O_CREAT with O_DIRECTORY.
pub(crate) fn openat(task: &Arc<Task>, args: [u64; 6]) -> Result<u64, Errno> {
    use flags::*;
    let [directory, path, flags, ..] = args;
    // A directory is not created so, and Linux has refused both together since 6.4.
    if flags & (O_CREAT | O_DIRECTORY) == O_CREAT | O_DIRECTORY {
        return Err(Errno::EINVAL);
    }
    let path = uaccess::read_string(task, path, PATH_MAX)?;
    let has = |flag| flags & flag != 0;
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    if has(O_NOFOLLOW) {
        return Err(Errno::EINVAL);
    }
    let path = if path[0] == b'/' || directory as i32 == AT_FDCWD {
        path
    } else {
        match &*open_file(task, directory)? {
            Open::Directory(start) => join(start, &path)?,
            Open::Console | Open::File(..) => return Err(Errno::ENOTDIR),
        }
    };
    let writes = flags & O_ACCMODE != 0 || has(O_TRUNC);
    let found = match initramfs::find(&path) {
        Err(Errno::ENOENT) if has(O_CREAT) => return Err(Errno::EROFS),
        found => found?,
    };
    if has(O_CREAT) && has(O_EXCL) {
        return Err(Errno::EEXIST);
    }
    let open = match found {
        Node::Directory if writes || has(O_CREAT) => return Err(Errno::EISDIR),
        Node::Directory => Open::Directory(path),
        Node::File(_) | Node::Other if has(O_DIRECTORY) => return Err(Errno::ENOTDIR),
        Node::File(_) | Node::Other if writes => return Err(Errno::EROFS),
        Node::File(file) => Open::File(file, Mutex::new(0)),
        Node::Other => return Err(Errno::ENODEV),
    };
    let descriptor = Descriptor { open: shared(open)?, close_on_exec: has(O_CLOEXEC) };
    task.files.lock().add(descriptor)
}

/// `close(fd)`
///
/// # Errors
/// EBADF
pub(crate) fn close(task: &Task, fd: u64) -> Result<u64, Errno> {
    let mut files = task.files.lock();
    let slot = files.0.get_mut(fd as u32 as usize).ok_or(Errno::EBADF)?;
    slot.take().map(|_| 0).ok_or(Errno::EBADF)
}

/// `read(fd, buffer, count)`
///
/// # Errors
/// EBADF, EISDIR, EFAULT.
pub(crate) fn read(task: &Arc<Task>, fd: u64, buffer: u64, count: u64) -> Result<u64, Errno> {
    let open = open_file(task, fd)?;
    expect_user(buffer, count)?;
    match &*open {
        Open::Console => tty::read(task, buffer, count),
        Open::Directory(_) => Err(Errno::EISDIR),
        Open::File(file, offset) => {
            // Who shares the offset reads what follows; a fault in between is no reason to wait, so it is not locked.
            let start = *offset.lock();
            let done = read_at(task, file, start, buffer, count)?;
            *offset.lock() = start + done;
            Ok(done)
        }
    }
}

/// `pread64(fd, buffer, count, offset)`
///
/// # Errors
/// EBADF, EISDIR, EFAULT; EINVAL for a negative offset; ESPIPE for the console.
pub(crate) fn pread(task: &Arc<Task>, args: [u64; 6]) -> Result<u64, Errno> {
    let [fd, buffer, count, offset, ..] = args;
    if (offset as i64) < 0 {
        return Err(Errno::EINVAL);
    }
    match &*open_file(task, fd)? {
        Open::Console => Err(Errno::ESPIPE),
        _ if !uaccess::is_user(buffer, count) => Err(Errno::EFAULT),
        Open::Directory(_) => Err(Errno::EISDIR),
        Open::File(file, _) => read_at(task, file, offset, buffer, count),
    }
}

/// Reads from `offset` on. What was read before a fault counts, as on Linux: all up to the page that has it.
fn read_at(task: &Arc<Task>, file: &OpenFile, offset: u64, buffer: u64, count: u64) -> Result<u64, Errno> {
    let count = count.min(MAX_COUNT);
    let mut done = 0;
    let mut piece = [0; PIECE];
    while done < count && task.killed().is_none() {
        sched::cond_resched();
        let to = buffer + done;
        let wanted = (count - done).min(PIECE as u64).min(uaccess::to_page_end(to)) as usize;
        let nr = file.file.read(offset + done, &mut piece[..wanted]);
        if nr == 0 {
            break;
        }
        match uaccess::write(task, to, &piece[..nr]) {
            Ok(()) => done += nr as u64,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// `lseek(fd, offset, whence)`
///
/// # Errors
/// EBADF, ESPIPE, EINVAL.
pub(crate) fn lseek(task: &Task, fd: u64, offset: u64, whence: u64) -> Result<u64, Errno> {
    match &*open_file(task, fd)? {
        Open::Console | Open::Directory(_) => Err(Errno::ESPIPE),
        Open::File(file, position) => {
            let mut position = position.lock();
            let base = match whence as u32 {
                0 => 0,
                1 => *position,
                2 => file.file.size(),
                _ => return Err(Errno::EINVAL),
            };
            let to = base.checked_add_signed(offset as i64).filter(|&to| to <= i64::MAX as u64);
            *position = to.ok_or(Errno::EINVAL)?;
            Ok(*position)
        }
    }
}

/// `write(fd, buffer, count)`
///
/// # Errors
/// EBADF, EFAULT.
pub(crate) fn write(task: &Arc<Task>, fd: u64, buffer: u64, count: u64) -> Result<u64, Errno> {
    let Open::Console = &*open_file(task, fd)? else { return Err(Errno::EBADF) };
    expect_user(buffer, count)?;
    let count = count.min(MAX_COUNT);
    let mut done = 0;
    let mut piece = [0; PIECE];
    while done < count && task.killed().is_none() {
        sched::cond_resched();
        let piece = &mut piece[..(count - done).min(PIECE as u64) as usize];
        match uaccess::read(task, buffer.wrapping_add(done), piece) {
            Ok(()) => console::write_bytes(piece),
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
        done += piece.len() as u64;
    }
    Ok(done)
}

/// `writev(fd, iov, count)`
///
/// # Errors
/// EBADF, EFAULT; EINVAL for more than 1024 pieces, or one that is too long.
pub(crate) fn writev(task: &Arc<Task>, fd: u64, iov: u64, count: u64) -> Result<u64, Errno> {
    const UIO_MAXIOV: u64 = 1024;
    let Open::Console = &*open_file(task, fd)? else { return Err(Errno::EBADF) };
    if count > UIO_MAXIOV {
        return Err(Errno::EINVAL);
    }
    let piece = |index: u64| -> Result<(u64, u64), Errno> {
        let at = iov.checked_add(index * 16).ok_or(Errno::EFAULT)?;
        Ok((uaccess::read_word(task, at)?, uaccess::read_word(task, at + 8)?))
    };
    // All lengths are looked at before anything is written, then all places.
    for index in 0..count {
        if (piece(index)?.1 as i64) < 0 {
            return Err(Errno::EINVAL);
        }
    }
    for index in 0..count {
        let (base, length) = piece(index)?;
        expect_user(base, length)?;
    }
    let mut done = 0;
    for index in 0..count {
        let (base, length) = piece(index)?;
        if length == 0 {
            continue;
        }
        match write(task, fd, base, length) {
            Ok(nr) => done += nr,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// `fstat(fd, stat)`: times are 0.
///
/// # Errors
/// EBADF, EFAULT.
pub(crate) fn fstat(task: &Arc<Task>, fd: u64, stat: u64) -> Result<u64, Errno> {
    const S_IFCHR: u32 = 0o2_0000;
    /// /dev/console: major 5, minor 1.
    const CONSOLE_DEVICE: u64 = 5 << 8 | 1;
    const BLOCK: u64 = 4096;
    let (mode, inode, links, device, size) = match &*open_file(task, fd)? {
        Open::Console => (S_IFCHR | 0o600, 0, 1, CONSOLE_DEVICE, 0),
        Open::Directory(_) => (S_IFDIR | 0o555, 0, 2, 0, 0),
        Open::File(file, _) => (file.entry.mode, file.entry.inode, file.entry.links, 0, file.file.size()),
    };
    // struct stat of include/uapi/asm-generic/stat.h, in words of eight bytes.
    let mut words = [0_u64; 16];
    words[1] = inode.into();
    words[2] = u64::from(mode) | u64::from(links) << 32;
    words[4] = device;
    words[6] = size;
    words[7] = BLOCK;
    words[8] = size.div_ceil(512);
    let mut bytes = [0; 128];
    for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    uaccess::write(task, stat, &bytes)?;
    Ok(0)
}

/// The file that a descriptor maps.
///
/// # Errors
/// EBADF, ENODEV.
pub(crate) fn to_map(task: &Task, fd: u64) -> Result<&'static File<'static>, Errno> {
    match &*open_file(task, fd)? {
        Open::File(file, _) => Ok(file.file),
        Open::Console | Open::Directory(_) => Err(Errno::ENODEV),
    }
}
