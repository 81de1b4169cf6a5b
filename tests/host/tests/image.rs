//! What the build made, looked at before it is booted. All of it holds with and without self-tests.

use std::fs;
use std::path::PathBuf;

use pleat_host_tests::boot::{bare_image, kernel_image};
use pleat_host_tests::early;
use pleat_host_tests::image::{Header, KernelElf};

const PAGE: u64 = 4096;
/// The one relocation that early boot applies.
const R_AARCH64_RELATIVE: u32 = 1027;

fn for_each_image(look: impl Fn(PathBuf, KernelElf)) {
    for image in [kernel_image(), bare_image()] {
        let elf = KernelElf::open(&image.with_extension("elf")).expect("the kernel's ELF file");
        look(image, elf);
    }
}

#[test]
fn the_header_lets_a_boot_loader_put_it_anywhere() {
    for_each_image(|image, elf| {
        let header = Header::open(&image).expect("an Image");
        assert_eq!(header.text_offset, 0);
        assert_eq!(header.flags, 0b1010, "little-endian, 4K pages, anywhere in memory");
        assert_eq!(header.image_size, elf.symbol("_image_end").unwrap());
        let bytes = fs::metadata(&image).expect("the Image").len();
        assert!(
            bytes <= header.image_size,
            "a file of {bytes} bytes in {} bytes of memory",
            header.image_size
        );
    });
}

#[test]
fn permissions_change_at_page_boundaries() {
    for_each_image(|_, elf| {
        let names = ["_image_start", "_text_end", "_rodata_end", "_bss_start", "_image_end"];
        let edges = names.map(|name| elf.symbol(name).unwrap());
        assert_eq!(edges[0], 0, "the link address");
        assert!(edges.is_sorted(), "{names:?} are {edges:x?}");
        assert!(edges.iter().all(|edge| edge % PAGE == 0), "{names:?} are {edges:x?}");
    });
}

#[test]
fn early_boot_can_apply_every_relocation() {
    for_each_image(|_, elf| {
        let text_end = elf.symbol("_text_end").unwrap();
        let file_end = elf.symbol("_bss_start").unwrap();
        let relocations = elf.relocations();
        assert!(!relocations.is_empty(), "Rust's tables hold pointers: there must be relocations");
        for relocation in relocations {
            let address = relocation.address;
            assert_eq!(relocation.kind, R_AARCH64_RELATIVE, "the relocation at {address:#x}");
            assert!(text_end <= address && address + 8 <= file_end, "a relocation at {address:#x}");
            assert_eq!(address % 8, 0, "a relocation at {address:#x}");
        }
        let table = elf.symbol("_rela_end").unwrap() - elf.symbol("_rela_start").unwrap();
        assert_eq!(table, 24 * relocations.len() as u64, "the table that early boot walks");
    });
}

#[test]
fn early_boot_has_no_instruction_that_needs_normal_memory() {
    for_each_image(|_, elf| {
        let start = elf.symbol("_start").unwrap();
        let end = elf.symbol("_head_end").unwrap();
        for label in ["enable_mmu", "primary_start", "secondary_start"] {
            let address = elf.symbol(label).unwrap();
            assert!((start..end).contains(&address), "{label} at {address:#x}");
        }
        let code = elf.code(start, end).unwrap();
        let violations = early::violations(code);
        assert!(violations.is_empty(), "{violations:#x?}");
    });
}
