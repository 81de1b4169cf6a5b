//! What the build made: the ELF file with its symbols, and the flat arm64 Image, which is an EFI application too.

use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use elf::ElfBytes;
use elf::abi::{SHF_EXECINSTR, SHT_RELA};
use elf::endian::LittleEndian;
use object::LittleEndian as LE;
use object::pe::ImageNtHeaders64;
use object::read::pe::PeFile64;

/// The kernel's ELF file.
#[derive(Clone, Debug)]
pub struct KernelElf {
    symbols: Vec<Symbol>,
    /// The executable sections: address of the first byte, content.
    text: Vec<(u64, Vec<u8>)>,
    relocations: Vec<Relocation>,
}

#[derive(Clone, Debug)]
struct Symbol {
    name: String,
    address: u64,
}

/// A dynamic relocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Relocation {
    /// The address it changes.
    pub address: u64,
    /// Its type: 1027 is `R_AARCH64_RELATIVE`.
    pub kind: u32,
}

/// Why a file that was built can't be used.
#[derive(Debug)]
pub enum ImageError {
    /// It can't be read.
    Io(PathBuf, io::Error),
    /// It is no ELF file, or a broken one.
    Elf(elf::ParseError),
    /// It does not define this symbol.
    NoSymbol(&'static str),
    /// No executable section holds this address.
    NoText(u64),
    /// It does not begin with an arm64 Image header.
    NoHeader,
    /// It is no PE32+ file, or a broken one.
    Pe(object::read::Error),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Elf(error) => write!(f, "no ELF file that can be read: {error}"),
            Self::NoSymbol(name) => write!(f, "the symbol {name} is not defined"),
            Self::NoText(address) => write!(f, "no executable section holds {address:#x}"),
            Self::NoHeader => f.write_str("no arm64 Image header"),
            Self::Pe(error) => write!(f, "no PE file that can be read: {error}"),
        }
    }
}

impl Error for ImageError {}

impl From<elf::ParseError> for ImageError {
    fn from(error: elf::ParseError) -> Self {
        Self::Elf(error)
    }
}

impl From<object::read::Error> for ImageError {
    fn from(error: object::read::Error) -> Self {
        Self::Pe(error)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    fs::read(path).map_err(|error| ImageError::Io(path.to_owned(), error))
}

impl KernelElf {
    /// Reads the file.
    ///
    /// # Errors
    /// Where it is not there, or is no ELF file.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        Self::parse(&read(path)?)
    }

    /// Reads the file's content.
    ///
    /// # Errors
    /// Where it is no ELF file.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        let file = ElfBytes::<LittleEndian>::minimal_parse(bytes)?;
        let mut symbols = Vec::new();
        if let Some((table, names)) = file.symbol_table()? {
            for symbol in table {
                let name = names.get(symbol.st_name as usize)?.to_owned();
                if !symbol.is_undefined() {
                    symbols.push(Symbol { name, address: symbol.st_value });
                }
            }
        }
        symbols.sort_by_key(|symbol| symbol.address);
        let mut text = Vec::new();
        let mut relocations = Vec::new();
        for section in file.section_headers().into_iter().flatten() {
            if section.sh_flags & u64::from(SHF_EXECINSTR) != 0 {
                text.push((section.sh_addr, file.section_data(&section)?.0.to_vec()));
            } else if section.sh_type == SHT_RELA {
                let entries = file.section_data_as_relas(&section)?;
                relocations
                    .extend(entries.map(|entry| Relocation { address: entry.r_offset, kind: entry.r_type }));
            }
        }
        Ok(Self { symbols, text, relocations })
    }

    /// The address of a symbol.
    ///
    /// # Errors
    /// [`ImageError::NoSymbol`].
    pub fn symbol(&self, name: &'static str) -> Result<u64, ImageError> {
        let found = self.symbols.iter().find(|symbol| symbol.name == name);
        found.map(|symbol| symbol.address).ok_or(ImageError::NoSymbol(name))
    }

    /// The names of the symbols that are defined, as they are mangled.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.symbols.iter().map(|symbol| symbol.name.as_str())
    }

    /// The name, mangled, of the last symbol at or before an address, but for mapping symbols.
    pub fn function(&self, address: u64) -> Option<&str> {
        let before = self.symbols.iter().take_while(|symbol| symbol.address <= address);
        before.filter(|symbol| !symbol.name.starts_with('$')).last().map(|symbol| symbol.name.as_str())
    }

    /// The dynamic relocations.
    pub fn relocations(&self) -> &[Relocation] {
        &self.relocations
    }

    /// The instructions from one address to another, with their addresses, without what the mapping
    /// symbols (`$d`, `$x`) say is data.
    ///
    /// # Errors
    /// [`ImageError::NoText`] where a word lies in no executable section.
    pub fn code(&self, from: u64, to: u64) -> Result<Vec<(u64, u32)>, ImageError> {
        let mut code = Vec::new();
        for address in (from..to).step_by(4) {
            if self.is_data(address) {
                continue;
            }
            let word = self.text.iter().find_map(|(start, bytes)| {
                let offset = usize::try_from(address.checked_sub(*start)?).ok()?;
                Some(u32::from_le_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
            });
            code.push((address, word.ok_or(ImageError::NoText(address))?));
        }
        Ok(code)
    }

    /// All words of the executable sections in order, what is data among them too.
    pub fn words(&self) -> Vec<u32> {
        let words = self.text.iter().flat_map(|(_, bytes)| bytes.chunks_exact(4));
        words.map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect()
    }

    /// The addresses of the instructions that are wanted, in all executable sections.
    pub fn find(&self, wanted: impl Fn(u32) -> bool) -> Vec<u64> {
        let words =
            self.text.iter().flat_map(|(start, bytes)| (*start..).step_by(4).zip(bytes.chunks_exact(4)));
        let found =
            words.filter(|(_, word)| wanted(u32::from_le_bytes((*word).try_into().expect("four bytes"))));
        found.map(|(address, _)| address).filter(|&address| !self.is_data(address)).collect()
    }

    /// Whether the last mapping symbol at or before an address says that data follows.
    fn is_data(&self, address: u64) -> bool {
        let marks = |name: &str, kind: &str| name == kind || name.starts_with(&format!("{kind}."));
        self.symbols
            .iter()
            .take_while(|symbol| symbol.address <= address)
            .filter_map(|symbol| {
                let data = marks(&symbol.name, "$d");
                (data || marks(&symbol.name, "$x")).then_some(data)
            })
            .last()
            .unwrap_or(false)
    }
}

/// The header of an arm64 Image (Linux, Documentation/arch/arm64/booting.rst).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Bytes from a 2 MiB boundary to where the Image wants to be.
    pub text_offset: u64,
    /// Bytes of memory that it takes, with `.bss`.
    pub image_size: u64,
    /// Bit 0 big-endian, bits 2:1 page size (1 is 4K), bit 3 anywhere in memory.
    pub flags: u64,
}

impl Header {
    /// Reads the header of an Image.
    ///
    /// # Errors
    /// Where the file can't be read or does not begin with one.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        Self::parse(&read(path)?)
    }

    /// Reads the first 64 bytes of an Image.
    ///
    /// # Errors
    /// [`ImageError::NoHeader`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        let header = bytes.first_chunk::<64>().ok_or(ImageError::NoHeader)?;
        if &header[56..60] != b"ARM\x64" {
            return Err(ImageError::NoHeader);
        }
        let field = |at: usize| {
            u64::from_le_bytes(std::array::from_fn(|i| header[at + i])) // at + 7 < 64 for all fields
        };
        Ok(Self { text_offset: field(8), image_size: field(16), flags: field(24) })
    }
}

/// The headers by which EFI firmware loads an Image (Microsoft, PE Format).
#[derive(Clone, Debug)]
pub struct Efi {
    /// All but the sections.
    pub headers: ImageNtHeaders64,
    /// The size in bytes of each data directory.
    pub directories: Vec<u32>,
    /// The sections in the order of their headers.
    pub sections: Vec<EfiSection>,
}

/// A section of an EFI application.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EfiSection {
    /// Its name without the zeroes behind it.
    pub name: String,
    /// Where it is in memory, from the Image's first byte on.
    pub memory: Range<u64>,
    /// Where its first bytes are in the file; the others are zero.
    pub file: Range<u64>,
    /// What may be done with it, and what it holds.
    pub characteristics: u32,
    /// How many relocations of its own it has.
    pub relocations: u16,
}

impl Efi {
    /// Reads the headers of an Image.
    ///
    /// # Errors
    /// Where the file can't be read or is no PE32+ file.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        Self::parse(&read(path)?)
    }

    /// Reads the headers from the content of an Image.
    ///
    /// # Errors
    /// [`ImageError::Pe`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        let file = PeFile64::parse(bytes)?;
        let range = |start: u32, size: u32| u64::from(start)..u64::from(start) + u64::from(size);
        let sections = file.section_table();
        let sections = sections.iter().map(|section| EfiSection {
            name: String::from_utf8_lossy(section.raw_name()).into_owned(),
            memory: range(section.virtual_address.get(LE), section.virtual_size.get(LE)),
            file: range(section.pointer_to_raw_data.get(LE), section.size_of_raw_data.get(LE)),
            characteristics: section.characteristics.get(LE).0,
            relocations: section.number_of_relocations.get(LE),
        });
        Ok(Self {
            headers: *file.nt_headers(),
            directories: file.data_directories().iter().map(|directory| directory.size.get(LE)).collect(),
            sections: sections.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_image_is_refused() {
        assert!(matches!(Header::parse(&[0; 63]), Err(ImageError::NoHeader)));
        assert!(matches!(Header::parse(&[0; 64]), Err(ImageError::NoHeader)));
        assert!(matches!(KernelElf::parse(b"\x7fELF"), Err(ImageError::Elf(_))));
        assert!(matches!(Efi::parse(&[0; 4096]), Err(ImageError::Pe(_))));
    }

    #[test]
    fn reads_the_fields_of_a_header() {
        let mut bytes = [0; 64];
        bytes[8] = 8;
        bytes[17] = 0x10;
        bytes[24] = 0b1010;
        bytes[56..60].copy_from_slice(b"ARM\x64");
        let header = Header { text_offset: 8, image_size: 0x1000, flags: 0b1010 };
        assert_eq!(Header::parse(&bytes).unwrap(), header);
    }

    #[test]
    fn words_that_are_data_are_left_out() {
        let symbol = |name: &str, address| Symbol { name: name.to_owned(), address };
        let file = KernelElf {
            symbols: vec![
                symbol("$x", 0),
                symbol("_start", 0),
                symbol("$d.1", 4),
                symbol("message", 4),
                symbol("$x.2", 12),
            ],
            text: vec![(0, (0..20).collect())],
            relocations: Vec::new(),
        };
        let addresses: Vec<_> = file.code(0, 20).unwrap().iter().map(|&(address, _)| address).collect();
        assert_eq!(addresses, [0, 12, 16]);
        assert_eq!(file.code(12, 16).unwrap(), [(12, 0x0f0e_0d0c)]);
        assert!(matches!(file.code(16, 24), Err(ImageError::NoText(20))));
        assert_eq!(file.symbol("message").unwrap(), 4);
        assert!(matches!(file.symbol("other"), Err(ImageError::NoSymbol("other"))));
    }
}
