//! What the build made, looked at before it is booted. All of it holds with and without self-tests.

use std::fs;
use std::path::PathBuf;

use object::LittleEndian as LE;
use object::pe;
use pleat_host_tests::boot::{bare_image, gate_assembly, kernel_image};
use pleat_host_tests::early;
use pleat_host_tests::image::{Efi, Header, KernelElf};

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
fn efi_firmware_can_load_the_same_file() {
    for_each_image(|image, elf| {
        let efi = Efi::open(&image).expect("a PE32+ file");
        assert_eq!(efi.headers.file_header.machine.get(LE), pe::IMAGE_FILE_MACHINE_ARM64);
        let flags = efi.headers.file_header.characteristics.get(LE).0;
        assert_eq!(flags & pe::IMAGE_FILE_EXECUTABLE_IMAGE.0, pe::IMAGE_FILE_EXECUTABLE_IMAGE.0);
        // It may be loaded anywhere, and firmware has nothing to relocate: the stub does, by the table of the next test.
        assert_eq!(flags & pe::IMAGE_FILE_RELOCS_STRIPPED.0, 0);
        assert_eq!(efi.directories, [0; 6], "up to and with that of the base relocations, all are empty");

        let header = &efi.headers.optional_header;
        assert_eq!(header.subsystem.get(LE), pe::IMAGE_SUBSYSTEM_EFI_APPLICATION);
        assert_eq!(header.dll_characteristics.get(LE), pe::IMAGE_DLLCHARACTERISTICS_NX_COMPAT);
        assert_eq!(header.image_base.get(LE), 0, "the link address");
        let alignments = [header.section_alignment.get(LE), header.file_alignment.get(LE)];
        assert_eq!(alignments.map(u64::from), [PAGE; 2]);
        assert_eq!(u64::from(header.size_of_image.get(LE)), elf.symbol("_image_end").unwrap());
        let entry = u64::from(header.address_of_entry_point.get(LE));
        assert_eq!(entry, elf.symbol("efi_entry").unwrap());
        assert!(efi.sections[0].memory.contains(&entry), "the entry {entry:#x} is not in the first section");
    });
}

#[test]
fn efi_sections_cover_the_image_and_none_is_writable_and_executable() {
    let permissions = pe::IMAGE_SCN_MEM_READ.0 | pe::IMAGE_SCN_MEM_WRITE.0 | pe::IMAGE_SCN_MEM_EXECUTE.0;
    for_each_image(|image, elf| {
        let efi = Efi::open(&image).expect("a PE32+ file");
        let file_size = fs::metadata(&image).expect("the Image").len();
        let found: Vec<_> = efi
            .sections
            .iter()
            .map(|section| (section.name.as_str(), section.characteristics & permissions))
            .collect();
        let expected = [
            (".text", pe::IMAGE_SCN_MEM_READ.0 | pe::IMAGE_SCN_MEM_EXECUTE.0),
            (".data", pe::IMAGE_SCN_MEM_READ.0 | pe::IMAGE_SCN_MEM_WRITE.0),
        ];
        assert_eq!(found, expected);

        // Headers, then sections, side by side, up to the end; in the file as in memory, since it is flat.
        let mut end = u64::from(efi.headers.optional_header.size_of_headers.get(LE));
        assert_eq!(end, PAGE);
        for section in &efi.sections {
            assert_eq!((section.memory.start, section.file.start), (end, end), "{section:x?}");
            assert_eq!(section.relocations, 0, "{section:x?}");
            let edges = [section.memory.start, section.memory.end, section.file.end];
            assert!(edges.iter().all(|edge| edge % PAGE == 0), "{section:x?}");
            assert!(section.file.end <= section.memory.end, "{section:x?}");
            assert!(section.file.end <= file_size, "{section:x?} in a file of {file_size:#x} bytes");
            end = section.memory.end;
        }
        assert_eq!(end, elf.symbol("_image_end").unwrap());
        assert_eq!(efi.sections[0].memory.end, elf.symbol("_text_end").unwrap());
        assert_eq!(efi.sections[1].file.end, file_size, "the rest of the memory is .bss");
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
        let start = elf.symbol("_idmap_start").unwrap();
        let end = elf.symbol("_idmap_end").unwrap();
        for label in ["enable_mmu", "primary_start", "secondary_start"] {
            let address = elf.symbol(label).unwrap();
            assert!((start..end).contains(&address), "{label} at {address:#x}");
        }
        let code = elf.code(start, end).unwrap();
        let violations = early::violations(code);
        assert!(violations.is_empty(), "{violations:#x?}");
    });
}

/// The Image with default features has `efi_mm` and what calls firmware; the one with none has neither, though it starts as an
/// EFI application as well.
#[test]
fn without_the_feature_there_is_no_efi_mm() {
    let symbols = |image: PathBuf| {
        let elf = KernelElf::open(&image.with_extension("elf")).expect("the kernel's ELF file");
        assert!(elf.symbol("efi_entry").is_ok());
        let of_the_feature = ["efi_mm", "EFI_MM", "EfiMm", "efi_runtime", "efi_call", "warn_efi"];
        let names = elf.names().filter(|name| of_the_feature.iter().any(|part| name.contains(part)));
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(symbols(kernel_image()).len() > 3, "{:?}", symbols(kernel_image()));
    assert_eq!(symbols(bare_image()), [""; 0]);
}

/// The instructions of a function of `pleat-mm` in assembly, without labels and directives.
fn instructions<'a>(assembly: &'a str, name: &str) -> Vec<&'a str> {
    let begins = |line: &str| line.starts_with("_ZN8pleat_mm") && line.contains(name) && line.ends_with(':');
    let body = assembly.lines().skip_while(|line| !begins(line)).skip(1);
    let body = body.take_while(|line| !line.starts_with(".Lfunc_end"));
    let body = body.map(str::trim).filter(|line| !line.starts_with('.') && !line.ends_with(':'));
    let body: Vec<_> = body.collect();
    assert!(!body.is_empty(), "no function {name}");
    body
}

/// What the feature costs is one comparison in each public function, for the warning; without it neither that nor anything
/// else of `efi_mm` is in the machine code of the calls and of the gate.
#[test]
fn without_the_feature_the_gate_does_not_check() {
    let assembly = |efi| fs::read_to_string(gate_assembly(efi)).expect("the assembly");
    let (with, without) = (assembly(true), assembly(false));
    let efi = |assembly: &str| {
        assembly.lines().filter(|line| line.contains("efi")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(efi(&without), [""; 0]);
    assert!(!efi(&with).is_empty());
    for function in ["4ptep7set_pte17h", "7contpte6refold17h"] {
        let (with, without) = (instructions(&with, function), instructions(&without, function));
        let warns = |body: &[&str]| {
            body.iter().filter(|line| line.starts_with("b") && line.contains("warn_efi")).count()
        };
        assert_eq!((warns(&with), warns(&without)), (1, 0), "{function}: {with:#?}");
        assert!(
            without.len() + 3 <= with.len(),
            "{function}: {} and {} instructions",
            without.len(),
            with.len()
        );
    }
    // The gate itself: one pointer that is null or not, in place of a kind that is read and compared.
    let (with, without) =
        (instructions(&with, "7contpte4fold17h"), instructions(&without, "7contpte4fold17h"));
    assert!(without.len() < with.len(), "fold: {} and {} instructions", without.len(), with.len());
}

/// A Raspberry Pi 4 has no firmware that would answer: the instruction is undefined there.
#[test]
fn firmware_is_called_for_psci_only() {
    for_each_image(|_, elf| {
        let smc = elf.find(|word| word & 0xffe0_001f == 0xd400_0003);
        let callers: Vec<_> = smc.iter().map(|&address| elf.function(address).unwrap_or_default()).collect();
        assert!(!callers.is_empty(), "CPUs are started by PSCI");
        assert!(callers.iter().all(|name| name.contains("4psci")), "{callers:?}");
    });
}

/// QEMU needs none of it: docs/caches.md says what it is for.
#[test]
fn cache_maintenance_is_where_hardware_needs_it() {
    const IC_IALLU: u32 = 0xd508_751f;
    const MSR_SCTLR_EL1: u32 = 0xd518_1000;
    const SEV: u32 = 0xd503_209f;
    const DSB_SY: u32 = 0xd503_3f9f;
    const DC_CIVAC: u32 = 0xd50b_7e20;
    // Without the register that an instruction names.
    let operation = |word: u32| word & !0x1f;
    for_each_image(|_, elf| {
        let symbol = |name| elf.symbol(name).unwrap();
        let boot = elf.code(symbol("_idmap_start"), symbol("_idmap_end")).unwrap();
        // Where `primary_start` calls a function.
        let calls = |name| {
            let (start, end) = (symbol("primary_start"), symbol("secondary_start"));
            let target = symbol(name);
            let code = boot.iter().filter(move |(address, _)| (start..end).contains(address));
            code.filter(move |&&(address, word)| {
                let offset = i64::from((word << 6) as i32 >> 4);
                word >> 26 == 0b10_0101 && address.wrapping_add_signed(offset) == target
            })
            .map(|&(address, _)| address)
            .collect::<Vec<_>>()
        };
        let (invalidations, tables) = (calls("invalidate_dcache"), calls("build_early_tables"));
        assert!(
            matches!((&*invalidations, &*tables), ([before, after], [tables]) if before < tables && tables < after),
            "{invalidations:x?} around {tables:x?}"
        );

        let enable: Vec<_> = boot.iter().filter(|(address, _)| *address >= symbol("enable_mmu")).collect();
        let on = enable.iter().position(|(_, word)| operation(*word) == MSR_SCTLR_EL1).unwrap();
        assert!(enable[..on].iter().any(|&&(_, word)| word == IC_IALLU), "old instructions are executed");

        // The one event is that for a CPU at a spin table.
        let text = elf.words();
        let events: Vec<_> = (0..text.len()).filter(|&at| text[at] == SEV).collect();
        let [event] = events[..] else { panic!("events at {events:x?}") };
        let before = &text[event - 32..event];
        let barrier = before.iter().rposition(|&word| word == DSB_SY).expect("a dsb sy before the sev");
        let clean = before[..barrier].iter().rposition(|&word| operation(word) == DC_CIVAC);
        let clean = clean.expect("a dc civac before the dsb sy");
        // STR (immediate, 64 bits), unsigned offset.
        let store = before[..clean].iter().any(|word| word & 0xffc0_0000 == 0xf900_0000);
        assert!(store, "a store before the dc civac: {before:x?}");
    });
}
