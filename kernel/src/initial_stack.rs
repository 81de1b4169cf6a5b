//! What a program finds above its stack pointer when it begins, as Linux arm64 lays it out (fs/binfmt_elf.c,
//! `create_elf_tables`; the System V ABI's "process initialization"):
//!
//! ```text
//!   sp ─▶ argc │ argv[0] … argv[argc-1] │ NULL │ envp[0] … │ NULL │ auxv: pairs … AT_NULL
//!         padding │ 16 random bytes │ "aarch64\0" │ padding │ argv strings │ envp strings │ file name │ 8 zero bytes ◀─ top
//! ```

#[cfg(test)]
mod tests;

use core::fmt;

use crate::program::{HEADER_SIZE, PAGE, Program};

/// The most bytes of one string with its NUL, as on Linux (MAX_ARG_STRLEN).
pub const MAX_STRING: usize = 32 * PAGE as usize;
/// The most bytes of all strings and pointers to them, as on Linux with a stack of 8 MiB: a quarter of it.
pub const MAX_ARGUMENTS: usize = 2 << 20;

/// The stack pointer is a multiple of this, and so is the top.
const ALIGN: usize = 16;
const PLATFORM: &[u8] = b"aarch64\0";
const RANDOM: usize = 16;
const WORD: usize = size_of::<u64>();

/// Types of auxiliary values (include/uapi/linux/auxvec.h in Linux).
#[expect(missing_docs, reason = "each is described by Linux's getauxval(3)")]
pub mod auxv {
    pub const AT_NULL: u64 = 0;
    pub const AT_PHDR: u64 = 3;
    pub const AT_PHENT: u64 = 4;
    pub const AT_PHNUM: u64 = 5;
    pub const AT_PAGESZ: u64 = 6;
    pub const AT_BASE: u64 = 7;
    pub const AT_FLAGS: u64 = 8;
    pub const AT_ENTRY: u64 = 9;
    pub const AT_UID: u64 = 11;
    pub const AT_EUID: u64 = 12;
    pub const AT_GID: u64 = 13;
    pub const AT_EGID: u64 = 14;
    pub const AT_PLATFORM: u64 = 15;
    pub const AT_HWCAP: u64 = 16;
    pub const AT_CLKTCK: u64 = 17;
    pub const AT_SECURE: u64 = 23;
    pub const AT_RANDOM: u64 = 25;
    pub const AT_HWCAP2: u64 = 26;
    pub const AT_EXECFN: u64 = 31;
}

/// `times` counts so many ticks a second (USER_HZ).
const CLOCK_TICKS: u64 = 100;

/// Strings or pointers that are too many or too long: E2BIG.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooBig;

impl fmt::Display for TooBig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the argument list is too long")
    }
}

impl core::error::Error for TooBig {}

/// What goes onto a stack.
#[derive(Clone, Copy, Debug)]
pub struct InitialStack<'a> {
    /// The arguments, each with its NUL, one after another.
    pub argv: &'a [u8],
    /// The environment, likewise.
    pub envp: &'a [u8],
    /// The path of the program (AT_EXECFN), without its NUL.
    pub path: &'a [u8],
    /// The program.
    pub program: &'a Program,
    /// What the program may seed its stack protector with (AT_RANDOM).
    pub random: [u8; RANDOM],
    /// Features of the CPU (AT_HWCAP, AT_HWCAP2).
    pub hwcap: [u64; 2],
}

/// Each with its NUL.
fn each(strings: &[u8]) -> impl Iterator<Item = &[u8]> {
    strings.split_inclusive(|&byte| byte == 0)
}

impl InitialStack<'_> {
    /// Bytes of all strings.
    fn strings(&self) -> usize {
        self.argv.len() + self.envp.len() + self.path.len() + 1
    }

    /// How many pointers there are to arguments and environment, without the NULLs.
    fn pointers(&self) -> usize {
        each(self.argv).chain(each(self.envp)).count()
    }

    /// Bytes below the top that are used, a multiple of 16.
    ///
    /// # Errors
    /// [`TooBig`] where a string has more than [`MAX_STRING`] bytes, or all together more than [`MAX_ARGUMENTS`].
    pub fn size(&self) -> Result<usize, TooBig> {
        let mut strings = each(self.argv).chain(each(self.envp));
        if strings.any(|string| string.len() > MAX_STRING) || self.path.len() >= MAX_STRING {
            return Err(TooBig);
        }
        if self.strings() + self.pointers() * WORD > MAX_ARGUMENTS {
            return Err(TooBig);
        }
        Ok(self.tables() + self.above_tables())
    }

    /// Bytes from the end of the tables to the top.
    fn above_tables(&self) -> usize {
        (WORD + self.strings()).next_multiple_of(ALIGN) + (PLATFORM.len() + RANDOM).next_multiple_of(ALIGN)
    }

    /// Bytes of argc, the pointers and the auxiliary vector, padded at their end.
    fn tables(&self) -> usize {
        let words = 1 + self.pointers() + 2 + 2 * AUXILIARY;
        (words * WORD).next_multiple_of(ALIGN)
    }

    /// Writes it all to `out`, which has [`Self::size`] bytes and will end at the address `top`. The stack pointer will be
    /// where it begins.
    ///
    /// # Panics
    /// Where `out` has another size, or `top` is no multiple of 16, or the last string is without its NUL.
    pub fn write(&self, top: u64, out: &mut [u8]) {
        assert!(top.is_multiple_of(ALIGN as u64) && Ok(out.len()) == self.size(), "no place for the stack");
        let ends = |list: &[u8]| list.last().is_none_or(|&last| last == 0);
        assert!(ends(self.argv) && ends(self.envp), "a string without its end");
        out.fill(0);
        let base = top - out.len() as u64;
        // From here on upwards: argv, envp, path.
        let mut at = out.len() - WORD - self.strings();
        let mut words = Words { next: 0 };
        words.push(out, each(self.argv).count() as u64);
        for list in [self.argv, self.envp] {
            out[at..at + list.len()].copy_from_slice(list);
            for string in each(list) {
                words.push(out, base + at as u64);
                at += string.len();
            }
            words.push(out, 0);
        }
        out[at..at + self.path.len()].copy_from_slice(self.path);
        let platform = out.len() - self.above_tables() + RANDOM;
        let random = platform - RANDOM;
        out[platform..platform + PLATFORM.len()].copy_from_slice(PLATFORM);
        out[random..platform].copy_from_slice(&self.random);
        for (kind, value) in self.auxiliary(base, at, platform, random) {
            words.push(out, kind);
            words.push(out, value);
        }
    }

    fn auxiliary(&self, base: u64, path: usize, platform: usize, random: usize) -> [(u64, u64); AUXILIARY] {
        use auxv::*;
        let Program { headers, header_count, entry, .. } = *self.program;
        [
            (AT_HWCAP, self.hwcap[0]),
            (AT_PAGESZ, PAGE),
            (AT_CLKTCK, CLOCK_TICKS),
            (AT_PHDR, headers),
            (AT_PHENT, HEADER_SIZE),
            (AT_PHNUM, header_count.into()),
            // There is no dynamic linker.
            (AT_BASE, 0),
            (AT_FLAGS, 0),
            (AT_ENTRY, entry),
            (AT_UID, 0),
            (AT_EUID, 0),
            (AT_GID, 0),
            (AT_EGID, 0),
            (AT_SECURE, 0),
            (AT_RANDOM, base + random as u64),
            (AT_HWCAP2, self.hwcap[1]),
            (AT_EXECFN, base + path as u64),
            (AT_PLATFORM, base + platform as u64),
            (AT_NULL, 0),
        ]
    }
}

/// Pairs in the auxiliary vector, AT_NULL included.
const AUXILIARY: usize = 19;

/// The next word to be written.
struct Words {
    next: usize,
}

impl Words {
    fn push(&mut self, out: &mut [u8], word: u64) {
        out[self.next..self.next + WORD].copy_from_slice(&word.to_le_bytes());
        self.next += WORD;
    }
}
