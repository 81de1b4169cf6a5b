//! A program, from an ELF file: what is to be mapped where, and where it begins. Static executables (ET_EXEC) and static
//! position-independent ones (ET_DYN, which relocate themselves); no dynamic linker.
//!
//! As Linux loads them (fs/binfmt_elf.c), and stricter where it would let a process run into a fault that can be told from
//! the file: segments that overlap, that are cut off, that are writable and executable, an entry outside of what may be
//! executed.

#[cfg(test)]
mod sound;
#[cfg(test)]
mod tests;

use core::fmt;
use core::ops::Range;

use arrayvec::ArrayVec;
use elf::abi;
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::segment::{ProgramHeader, SegmentTable};
use mm::Errno;

/// Bytes of a page, by which segments are mapped.
pub const PAGE: u64 = 4096;
/// One past the last address that a program may use.
pub const TASK_SIZE: u64 = mm::TASK_SIZE;
/// The lowest address that a program may map, as Linux's `mmap_min_addr`: an access by a null pointer faults.
pub const LOWEST: u64 = 0x1_0000;
/// Where position-independent programs go, if their alignment is no larger: two thirds up, as on Linux.
pub const PIE_BASE: u64 = (TASK_SIZE / 3 * 2) & !0x1f_ffff;
/// The most segments that are loaded.
pub const MAX_SEGMENTS: usize = 16;
/// Bytes of the program headers that are read, as on Linux.
const MAX_HEADERS: usize = 65536;

/// Why a file is not loaded. Segments are numbered among all program headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ProgramError {
    /// No ELF file, or its header is cut off.
    NoElf,
    /// For another machine: the class, the byte order, the version or the machine.
    OtherMachine,
    /// Neither an executable nor a shared object: `e_type`.
    Type(u16),
    /// The program headers have another size, are none or too many, or lie outside of the file.
    Headers,
    /// It asks for a dynamic linker.
    Interpreter,
    /// It asks for a stack that is executable.
    ExecutableStack,
    /// There is nothing to be loaded.
    Empty,
    /// More than [`MAX_SEGMENTS`] to be loaded.
    TooMany,
    /// The segment has more bytes in the file than in memory, or more than there are addresses.
    Size(usize),
    /// The segment's address and offset differ within a page, so that it can't be mapped.
    Congruence(usize),
    /// The segment goes beyond the end of the file.
    Truncated(usize),
    /// The segment is writable and executable.
    WritableAndExecutable(usize),
    /// The segment has zeroes behind its data, and may not be written to.
    ConstantZeroes(usize),
    /// The segment is not above the one before it, or in its last page.
    Overlap(usize),
    /// The segment is below [`LOWEST`].
    TooLow(usize),
    /// The segment goes beyond [`TASK_SIZE`].
    TooHigh(usize),
    /// There is no place for it: it is too large, or its alignment.
    NoPlace,
    /// The entry is in no executable segment.
    Entry(u64),
}

impl ProgramError {
    /// What Linux returns, or would if it looked.
    pub const fn errno(self) -> Errno {
        match self {
            Self::NoElf
            | Self::OtherMachine
            | Self::Type(_)
            | Self::Headers
            | Self::Interpreter
            | Self::ExecutableStack
            | Self::Truncated(_)
            | Self::WritableAndExecutable(_)
            | Self::TooMany => Errno::ENOEXEC,
            Self::Empty
            | Self::Size(_)
            | Self::Congruence(_)
            | Self::ConstantZeroes(_)
            | Self::Overlap(_)
            | Self::Entry(_) => Errno::EINVAL,
            Self::TooLow(_) => Errno::EPERM,
            Self::TooHigh(_) | Self::NoPlace => Errno::ENOMEM,
        }
    }
}

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoElf => f.write_str("no ELF file"),
            Self::OtherMachine => f.write_str("not for AArch64, 64-bit and little-endian"),
            Self::Type(kind) => write!(f, "no executable: e_type is {kind}"),
            Self::Headers => f.write_str("its program headers can't be read"),
            Self::Interpreter => f.write_str("it needs a dynamic linker"),
            Self::ExecutableStack => f.write_str("it wants an executable stack"),
            Self::Empty => f.write_str("nothing in it is to be loaded"),
            Self::TooMany => write!(f, "more than {MAX_SEGMENTS} segments are to be loaded"),
            Self::Size(i) => write!(f, "the sizes of segment {i} can't be"),
            Self::Congruence(i) => write!(f, "address and offset of segment {i} differ within a page"),
            Self::Truncated(i) => write!(f, "segment {i} goes beyond the end of the file"),
            Self::WritableAndExecutable(i) => write!(f, "segment {i} is writable and executable"),
            Self::ConstantZeroes(i) => write!(f, "segment {i} ends with zeroes and is not writable"),
            Self::Overlap(i) => write!(f, "segment {i} is not above the one before"),
            Self::TooLow(i) => write!(f, "segment {i} is below {LOWEST:#x}"),
            Self::TooHigh(i) => write!(f, "segment {i} is beyond the address space"),
            Self::NoPlace => f.write_str("there is no place for it in the address space"),
            Self::Entry(entry) => write!(f, "its entry {entry:#x} is not in an executable segment"),
        }
    }
}

impl core::error::Error for ProgramError {}

/// What may be done with a segment. Never both of the last two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Permissions {
    /// PF_R. A segment that may be written or executed may be read too, whatever the file says.
    pub read: bool,
    /// PF_W
    pub write: bool,
    /// PF_X
    pub execute: bool,
}

/// A segment, at the address where it is to be: a private mapping of the file, zeroes to the end of its last page, and
/// anonymous memory.
///
/// ```text
///  file.start          zero.start  file.end = anonymous.start        anonymous.end
///      │  of the file      │  zeroes  │            zeroes                 │
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Whole pages of the file; empty where nothing is.
    pub file: Range<u64>,
    /// The offset of the first, a multiple of a page.
    pub offset: u64,
    /// What of the last of them is to be zeroed. Empty where the segment ends there: then the file goes on.
    pub zero: Range<u64>,
    /// Whole pages of anonymous memory; empty where there is none.
    pub anonymous: Range<u64>,
    /// What may be done with all of it.
    pub permissions: Permissions,
}

impl Segment {
    /// All of its pages.
    pub fn pages(&self) -> Range<u64> {
        if self.file.is_empty() { self.anonymous.clone() } else { self.file.start..self.anonymous.end }
    }
}

/// How a program is loaded. All addresses are those where it runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// In ascending order, apart from each other.
    pub segments: ArrayVec<Segment, MAX_SEGMENTS>,
    /// Where it begins (AT_ENTRY).
    pub entry: u64,
    /// The program headers in memory, 0 where no segment holds them (AT_PHDR).
    pub headers: u64,
    /// How many there are (AT_PHNUM).
    pub header_count: u16,
    /// By what its addresses exceed those in the file.
    pub bias: u64,
    /// The end of the highest segment, where `brk` begins.
    pub end: u64,
}

/// Bytes of a program header (AT_PHENT).
pub const HEADER_SIZE: u64 = 56;

impl Program {
    /// Decides how to load the program in `file`.
    ///
    /// # Errors
    /// See [`ProgramError`].
    pub fn plan(file: &[u8]) -> Result<Self, ProgramError> {
        let (header, table) = read_headers(file)?;
        let mut alignment = PAGE;
        let (mut low, mut high) = (u64::MAX, 0);
        let mut segments: ArrayVec<Segment, MAX_SEGMENTS> = ArrayVec::new();
        for (i, segment) in table.iter().enumerate() {
            match segment.p_type {
                abi::PT_INTERP => return Err(ProgramError::Interpreter),
                abi::PT_GNU_STACK if segment.p_flags & abi::PF_X != 0 => {
                    return Err(ProgramError::ExecutableStack);
                }
                abi::PT_LOAD if segment.p_memsz != 0 => {}
                _ => continue,
            }
            let planned = plan_segment(i, &segment, file)?;
            let pages = planned.pages();
            if high > pages.start {
                return Err(ProgramError::Overlap(i));
            }
            (low, high) = (low.min(pages.start), pages.end);
            // Linux ignores what is no power of two.
            if segment.p_align.is_power_of_two() {
                alignment = alignment.max(segment.p_align);
            }
            segments.try_push(planned).map_err(|_| ProgramError::TooMany)?;
        }
        if segments.is_empty() {
            return Err(ProgramError::Empty);
        }
        let bias = if header.e_type == abi::ET_DYN {
            place(low, high, alignment).ok_or(ProgramError::NoPlace)?
        } else if low < LOWEST {
            return Err(ProgramError::TooLow(0));
        } else {
            0
        };
        let moved = |range: &Range<u64>| range.start.wrapping_add(bias)..range.end.wrapping_add(bias);
        for segment in &mut segments {
            segment.file = moved(&segment.file);
            segment.zero = moved(&segment.zero);
            segment.anonymous = moved(&segment.anonymous);
        }
        let entry = header.e_entry.wrapping_add(bias);
        let enterable = |segment: &Segment| segment.permissions.execute && segment.pages().contains(&entry);
        if !segments.iter().any(enterable) {
            return Err(ProgramError::Entry(header.e_entry));
        }
        let headers = headers_in_memory(&header, &table).map_or(0, |at| at.wrapping_add(bias));
        let end = segments.last().map_or(0, |segment| segment.pages().end);
        Ok(Self { segments, entry, headers, header_count: header.e_phnum, bias, end })
    }
}

type Headers<'a> = SegmentTable<'a, LittleEndian>;

fn read_headers(file: &[u8]) -> Result<(FileHeader<LittleEndian>, Headers<'_>), ProgramError> {
    const IDENT: usize = abi::EI_NIDENT;
    const HEADER: usize = 64;
    let (Some(ident), Some(tail)) = (file.get(..IDENT), file.get(IDENT..HEADER)) else {
        return Err(ProgramError::NoElf);
    };
    if !ident.starts_with(&abi::ELFMAGIC) {
        return Err(ProgramError::NoElf);
    }
    let ident = parse_ident::<LittleEndian>(ident).map_err(|_| ProgramError::OtherMachine)?;
    let header = FileHeader::parse_tail(ident, tail).map_err(|_| ProgramError::OtherMachine)?;
    if header.class != Class::ELF64 || header.e_machine != abi::EM_AARCH64 {
        return Err(ProgramError::OtherMachine);
    }
    if !matches!(header.e_type, abi::ET_EXEC | abi::ET_DYN) {
        return Err(ProgramError::Type(header.e_type));
    }
    let bytes = usize::from(header.e_phnum) * HEADER_SIZE as usize;
    if u64::from(header.e_phentsize) != HEADER_SIZE || bytes == 0 || bytes > MAX_HEADERS {
        return Err(ProgramError::Headers);
    }
    let start = usize::try_from(header.e_phoff).map_err(|_| ProgramError::Headers)?;
    let end = start.checked_add(bytes).ok_or(ProgramError::Headers)?;
    let table = file.get(start..end).ok_or(ProgramError::Headers)?;
    Ok((header, Headers::new(LittleEndian, Class::ELF64, table)))
}

/// The segment at its address in the file.
fn plan_segment(i: usize, segment: &ProgramHeader, file: &[u8]) -> Result<Segment, ProgramError> {
    let &ProgramHeader { p_vaddr: start, p_offset: offset, p_filesz, p_memsz, p_flags, .. } = segment;
    if p_filesz > p_memsz || p_memsz > TASK_SIZE {
        return Err(ProgramError::Size(i));
    }
    let end = start.checked_add(p_memsz).filter(|&end| end <= TASK_SIZE).ok_or(ProgramError::TooHigh(i))?;
    if start % PAGE != offset % PAGE {
        return Err(ProgramError::Congruence(i));
    }
    if offset.checked_add(p_filesz).is_none_or(|end| end > file.len() as u64) {
        return Err(ProgramError::Truncated(i));
    }
    let has = |flag| p_flags & flag != 0;
    let permissions = Permissions {
        read: has(abi::PF_R) || has(abi::PF_W) || has(abi::PF_X),
        write: has(abi::PF_W),
        execute: has(abi::PF_X),
    };
    if permissions.write && permissions.execute {
        return Err(ProgramError::WritableAndExecutable(i));
    }
    let first = start & !(PAGE - 1);
    let last = end.next_multiple_of(PAGE);
    let data_end = start + p_filesz;
    let file_end = if p_filesz == 0 { first } else { data_end.next_multiple_of(PAGE) };
    let zero = if p_filesz == 0 || p_memsz == p_filesz { file_end..file_end } else { data_end..file_end };
    if !zero.is_empty() && !permissions.write {
        return Err(ProgramError::ConstantZeroes(i));
    }
    Ok(Segment {
        file: first..file_end,
        offset: offset & !(PAGE - 1),
        zero,
        anonymous: file_end..last,
        permissions,
    })
}

/// The bias that puts the pages from `low` to `high` at [`PIE_BASE`], or below it where the alignment is larger; what is
/// congruent in the file stays so.
fn place(low: u64, high: u64, alignment: u64) -> Option<u64> {
    let base = PIE_BASE & !(alignment - 1);
    let start = low & !(alignment - 1);
    let bias = base.checked_sub(start)?;
    let fits = base >= LOWEST && high.checked_add(bias).is_some_and(|end| end <= TASK_SIZE);
    fits.then_some(bias)
}

/// Where the program headers are, by the segment that holds them.
fn headers_in_memory(header: &FileHeader<LittleEndian>, table: &Headers<'_>) -> Option<u64> {
    let size = u64::from(header.e_phnum) * HEADER_SIZE;
    let end = header.e_phoff.checked_add(size)?;
    let holding = table.iter().find(|segment| {
        segment.p_type == abi::PT_LOAD
            && segment.p_memsz != 0
            && segment.p_offset <= header.e_phoff
            && segment.p_offset.checked_add(segment.p_filesz).is_some_and(|last| end <= last)
    })?;
    Some(holding.p_vaddr + (header.e_phoff - holding.p_offset))
}
