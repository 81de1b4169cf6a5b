//! Whether a file has all that its own headers say is in it, so that a download that was cut short is not found out by a
//! board that stays dark.

use object::Endianness;
use object::pe::ImageDosHeader;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::read::pe::ImageNtHeaders;

/// Whether this is a 32-bit ELF file, as the VideoCore's are, with all of its segments and sections.
pub(crate) fn elf(bytes: &[u8]) -> bool {
    let has_all = || {
        let header = object::elf::FileHeader32::<Endianness>::parse(bytes)?;
        let endian = header.endian()?;
        for segment in header.program_headers(endian, bytes)? {
            if segment.data(endian, bytes).is_err() {
                return Ok(false);
            }
        }
        for section in header.section_headers(endian, bytes)? {
            section.data(endian, bytes)?;
        }
        Ok::<_, object::read::Error>(!header.program_headers(endian, bytes)?.is_empty())
    };
    has_all().unwrap_or(false)
}

/// Whether an arm64 Image that is an EFI application too, as this kernel's and Linux's are, has all sections of that. One
/// that is none says only how much memory it needs, which is more than the file.
pub(crate) fn image(bytes: &[u8]) -> bool {
    let has_all = || {
        let dos = ImageDosHeader::parse(bytes)?;
        let mut offset = dos.nt_headers_offset().into();
        let (headers, _) = object::pe::ImageNtHeaders64::parse(bytes, &mut offset)?;
        for section in headers.sections(bytes, offset)?.iter() {
            section.pe_data(bytes)?;
        }
        Ok::<_, object::read::Error>(())
    };
    !bytes.starts_with(b"MZ") || has_all().is_ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
        bytes[offset..offset + value.len()].copy_from_slice(value);
    }

    /// An ELF file with one segment, of all of it.
    pub(crate) fn an_elf(size: u32) -> Vec<u8> {
        let mut bytes = vec![0x3c; size as usize];
        bytes[..84].fill(0);
        put(&mut bytes, 0, b"\x7fELF\x01\x01\x01");
        // e_version, e_phoff; e_ehsize, e_phentsize, e_phnum; and p_type, p_filesz.
        for (offset, value) in [(20, 1), (28, 52), (52, 1), (52 + 16, size)] {
            put(&mut bytes, offset, &value.to_le_bytes());
        }
        for (offset, value) in [(40, 52_u16), (42, 32), (44, 1)] {
            put(&mut bytes, offset, &value.to_le_bytes());
        }
        bytes
    }

    /// An Image with one section, of all that is not headers.
    pub(crate) fn an_image(size: u32) -> Vec<u8> {
        let mut bytes = vec![0xa5; size as usize];
        bytes[..512].fill(0);
        put(&mut bytes, 0, b"MZ");
        put(&mut bytes, 56, b"ARM\x64");
        put(&mut bytes, 60, &64_u32.to_le_bytes());
        put(&mut bytes, 64, b"PE\0\0");
        // Machine, NumberOfSections, SizeOfOptionalHeader; Magic.
        for (offset, value) in [(68, 0xaa64_u16), (70, 1), (84, 112), (88, 0x20b)] {
            put(&mut bytes, offset, &value.to_le_bytes());
        }
        // Of the section: VirtualSize, SizeOfRawData, PointerToRawData.
        let section = 88 + 112;
        for (offset, value) in [(8, size - 512), (16, size - 512), (20, 512)] {
            put(&mut bytes, section + offset, &value.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn what_is_whole_is_taken() {
        assert!(elf(&an_elf(84)) && elf(&an_elf(5000)));
        assert!(image(&an_image(512)) && image(&an_image(4096)));
        assert!(!image(b"MZ"));
        assert!(!elf(b"") && !elf(b"\x7fELF"));
    }
}
