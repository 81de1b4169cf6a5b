//! The initial RAM disk: cpio archives in the format `newc` (`070701`, and `070702` with its checksum unread), as Linux
//! takes them (Documentation/driver-api/early-userspace/buffer-format.rst): several may follow one another, with zeroes
//! between; of entries with one name the last counts. Compressed archives are refused.
//!
//! An [`Archive`] is checked as a whole when it is opened; after that nothing about it fails but what is looked for.

#[cfg(test)]
mod tests;

use core::fmt;

use arrayvec::ArrayVec;

/// Bytes of a header: a magic number and thirteen fields of eight hexadecimal digits.
const HEADER: usize = 110;
/// The longest name, with its NUL: Linux's PATH_MAX.
const NAME_MAX: usize = 4096;
/// The name of the entry that ends an archive.
const TRAILER: &[u8] = b"TRAILER!!!";
/// How many symbolic links a look-up follows, as in Linux.
const LINKS_MAX: usize = 40;
/// The longest name in a path, as on Linux's file systems (NAME_MAX there).
const COMPONENT_MAX: usize = 255;
/// How many directories deep a look-up goes.
const DEPTH_MAX: usize = 64;

/// The file type in [`Entry::mode`], as in Linux's `st_mode`.
pub const S_IFMT: u32 = 0o170_000;
/// A directory.
pub const S_IFDIR: u32 = 0o040_000;
/// A regular file.
pub const S_IFREG: u32 = 0o100_000;
/// A symbolic link.
pub const S_IFLNK: u32 = 0o120_000;

/// Why bytes are no archive, with the offset of the header that is to blame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum CpioError {
    /// Neither a header nor zeroes: another format, or compressed.
    Magic(usize),
    /// A field is not hexadecimal.
    Digit(usize),
    /// The name is empty, longer than 4096 bytes with its NUL, or without one at its end.
    Name(usize),
    /// The header, the name or the data go beyond the end.
    Truncated(usize),
    /// No entry `TRAILER!!!` follows this last header.
    NoTrailer(usize),
}

impl fmt::Display for CpioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(at) => write!(f, "no cpio header of the format newc at offset {at:#x}"),
            Self::Digit(at) => write!(f, "the cpio header at offset {at:#x} has a field that is no number"),
            Self::Name(at) => write!(f, "the cpio header at offset {at:#x} has a name that can't be"),
            Self::Truncated(at) => write!(f, "the cpio entry at offset {at:#x} goes beyond the end"),
            Self::NoTrailer(at) => {
                write!(f, "the cpio archive has no trailer: its last entry is at offset {at:#x}")
            }
        }
    }
}

impl core::error::Error for CpioError {}

/// Why a path leads nowhere; Linux has an errno of each name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LookupError {
    /// ENOENT
    NotFound,
    /// ENOTDIR: something on the way is a file.
    NotADirectory,
    /// ELOOP: more than 40 symbolic links.
    Loop,
    /// ENAMETOOLONG: more than 4095 bytes, or more than 64 directories deep.
    TooLong,
}

/// A file, a directory, a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// The path, without a leading `/` in most archives.
    pub name: &'a [u8],
    /// Type and permissions, as in Linux's `st_mode`.
    pub mode: u32,
    /// The inode number: hard links have the same.
    pub inode: u32,
    /// How many names it has.
    pub links: u32,
    /// Major and minor number of the device that it was on.
    pub device: (u32, u32),
    /// The content of a file; where a symbolic link leads.
    pub data: &'a [u8],
}

impl Entry<'_> {
    /// Whether it is of this type, one of the `S_IF` constants.
    pub fn is(&self, kind: u32) -> bool {
        self.mode & S_IFMT == kind
    }
}

/// What a path leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found<'a> {
    /// An entry that is neither a directory nor a symbolic link. Of hard links, the one with the data.
    File(Entry<'a>),
    /// A directory, with an entry or without.
    Directory,
}

/// Archives one behind the other, checked.
#[derive(Clone, Copy, Debug)]
pub struct Archive<'a>(&'a [u8]);

impl<'a> Archive<'a> {
    /// Checks all of `bytes`.
    ///
    /// # Errors
    /// See [`CpioError`].
    pub fn new(bytes: &'a [u8]) -> Result<Self, CpioError> {
        Reader { bytes, at: 0, open: None }.try_for_each(|entry| entry.map(|_| ()))?;
        Ok(Self(bytes))
    }

    /// The entries in their order, without trailers.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'a>> + use<'a> {
        Reader { bytes: self.0, at: 0, open: None }.filter_map(Result::ok)
    }

    /// Follows `path` from the root, symbolic links included. A directory on the way needs no entry of its own.
    ///
    /// # Errors
    /// See [`LookupError`].
    pub fn find(&self, path: &[u8]) -> Result<Found<'a>, LookupError>
    where
        Self: 'a,
    {
        // What is left to be walked: the path, and on top of it the rest of each link.
        let mut todo: ArrayVec<Components<'_>, { LINKS_MAX + 1 }> = ArrayVec::new();
        if path.len() >= NAME_MAX {
            return Err(LookupError::TooLong);
        }
        if path.is_empty() {
            return Err(LookupError::NotFound);
        }
        todo.push(components(path));
        let mut here: ArrayVec<&[u8], DEPTH_MAX> = ArrayVec::new();
        let mut file: Option<Entry<'a>> = None;
        let mut followed = 0;
        while let Some(next) = todo.last_mut() {
            let Some(component) = next.next() else {
                todo.pop();
                continue;
            };
            if file.is_some() {
                return Err(LookupError::NotADirectory);
            }
            match component {
                b"" | b"." => continue,
                b".." => {
                    here.pop();
                    continue;
                }
                name if name.len() > COMPONENT_MAX => return Err(LookupError::TooLong),
                name => here.try_push(name).map_err(|_| LookupError::TooLong)?,
            }
            match self.at(&here) {
                Some(entry) if entry.is(S_IFLNK) => {
                    followed += 1;
                    if followed > LINKS_MAX {
                        return Err(LookupError::Loop);
                    }
                    if entry.data.is_empty() {
                        return Err(LookupError::NotFound);
                    }
                    here.pop();
                    if entry.data[0] == b'/' {
                        here.clear();
                    }
                    // Walked to their ends, they make room; else a link at the end of links would need more than it has.
                    while todo.last().is_some_and(|rest| rest.clone().next().is_none()) {
                        todo.pop();
                    }
                    todo.try_push(components(entry.data)).map_err(|_| LookupError::Loop)?;
                }
                Some(entry) if !entry.is(S_IFDIR) => file = Some(entry),
                Some(_) => {}
                None if self.entries().any(|entry| is_below(entry.name, &here)) => {}
                None => return Err(LookupError::NotFound),
            }
        }
        Ok(file.map_or(Found::Directory, |file| Found::File(self.with_data(file))))
    }

    /// The last entry with exactly this path.
    fn at(&self, path: &[&[u8]]) -> Option<Entry<'a>> {
        self.entries().filter(|entry| names(entry.name).eq(path.iter().copied())).last()
    }

    /// Of hard links, archivers give the data to one only.
    fn with_data(&self, entry: Entry<'a>) -> Entry<'a> {
        let same = |other: &Entry<'a>| {
            other.is(S_IFREG)
                && (other.inode, other.device) == (entry.inode, entry.device)
                && !other.data.is_empty()
        };
        let elsewhere = entry.is(S_IFREG) && entry.links > 1 && entry.data.is_empty();
        match elsewhere.then(|| self.entries().find(same)).flatten() {
            Some(other) => Entry { data: other.data, ..entry },
            None => entry,
        }
    }
}

type Components<'a> = core::slice::Split<'a, u8, fn(&u8) -> bool>;

fn components(path: &[u8]) -> Components<'_> {
    path.split(|&byte| byte == b'/')
}

/// The components of a name that name something.
fn names(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    components(name).filter(|component| !matches!(*component, b"" | b"."))
}

/// Whether `name` is below the directory `path`.
fn is_below(name: &[u8], path: &[&[u8]]) -> bool {
    let mut names = names(name);
    path.iter().all(|&directory| names.next() == Some(directory)) && names.next().is_some()
}

/// Reads entries until the end or the first error.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The header of the last entry of an archive whose trailer was not met yet.
    open: Option<usize>,
}

impl<'a> Reader<'a> {
    /// The entry at `at`, which goes on behind it.
    fn read(&mut self) -> Result<Entry<'a>, CpioError> {
        let start = self.at;
        let rest = &self.bytes[start..];
        if !rest.starts_with(b"070701") && !rest.starts_with(b"070702") {
            return Err(CpioError::Magic(start));
        }
        let header = rest.get(..HEADER).ok_or(CpioError::Truncated(start))?;
        let mut fields = [0; 13];
        for (field, digits) in fields.iter_mut().zip(header[6..].chunks_exact(8)) {
            *field = hexadecimal(digits).ok_or(CpioError::Digit(start))?;
        }
        let [inode, mode, _uid, _gid, links, _mtime, size, major, minor, _, _, name_size, _checksum] = fields;
        let name_size = name_size as usize;
        if !(2..=NAME_MAX).contains(&name_size) {
            return Err(CpioError::Name(start));
        }
        let name = rest.get(HEADER..HEADER + name_size).ok_or(CpioError::Truncated(start))?;
        let Some((0, name)) = name.split_last() else { return Err(CpioError::Name(start)) };
        if name.contains(&0) {
            return Err(CpioError::Name(start));
        }
        // Header with name, and data, are each padded to four bytes.
        let data_start = (HEADER + name_size).next_multiple_of(4);
        let data_end = data_start.checked_add(size as usize).ok_or(CpioError::Truncated(start))?;
        let data = rest.get(data_start..data_end).ok_or(CpioError::Truncated(start))?;
        // The padding of the last one may be missing.
        self.at = (start + data_end).next_multiple_of(4).min(self.bytes.len());
        Ok(Entry { name, mode, inode, links, device: (major, minor), data })
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Entry<'a>, CpioError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.open.is_none() {
                // Between archives.
                let rest = &self.bytes[self.at..];
                self.at += rest.iter().position(|&byte| byte != 0).unwrap_or(rest.len());
            }
            if self.at == self.bytes.len() {
                return self.open.take().map(|at| Err(CpioError::NoTrailer(at)));
            }
            let header = self.at;
            match self.read() {
                Ok(entry) if entry.name == TRAILER => self.open = None,
                Ok(entry) => {
                    self.open = Some(header);
                    return Some(Ok(entry));
                }
                Err(error) => {
                    self.at = self.bytes.len();
                    self.open = None;
                    return Some(Err(error));
                }
            }
        }
    }
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0_u32, |value, &digit| Some(value << 4 | char::from(digit).to_digit(16)?))
}
