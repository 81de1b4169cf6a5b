use proptest::prelude::*;

use super::sound::is_sound;
use super::*;

const R: u32 = abi::PF_R;
const RX: u32 = abi::PF_R | abi::PF_X;
const RW: u32 = abi::PF_R | abi::PF_W;

/// A file with these program headers behind its own header, so many bytes long, whose entry is the first address.
struct File {
    kind: u16,
    entry: u64,
    headers: Vec<ProgramHeader>,
    length: usize,
}

fn load(p_flags: u32, p_vaddr: u64, p_offset: u64, p_filesz: u64, p_memsz: u64) -> ProgramHeader {
    ProgramHeader {
        p_type: abi::PT_LOAD,
        p_offset,
        p_vaddr,
        p_paddr: 0,
        p_filesz,
        p_memsz,
        p_flags,
        p_align: 0x1_0000,
    }
}

impl File {
    fn new(kind: u16, headers: &[ProgramHeader]) -> Self {
        let entry = headers.first().map_or(0, |first| first.p_vaddr);
        Self { kind, entry, headers: headers.to_vec(), length: 0x4000 }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(abi::EM_AARCH64.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        [self.entry, 64, 0].iter().for_each(|field| bytes.extend(field.to_le_bytes()));
        bytes.extend(0_u32.to_le_bytes());
        let count = self.headers.len() as u16;
        [64, 56, count, 0, 0, 0].iter().for_each(|field: &u16| bytes.extend(field.to_le_bytes()));
        for header in &self.headers {
            [header.p_type, header.p_flags].iter().for_each(|field| bytes.extend(field.to_le_bytes()));
            let fields = [
                header.p_offset,
                header.p_vaddr,
                header.p_paddr,
                header.p_filesz,
                header.p_memsz,
                header.p_align,
            ];
            fields.iter().for_each(|field| bytes.extend(field.to_le_bytes()));
        }
        bytes.resize(self.length.max(bytes.len()), 0x5a);
        bytes
    }

    fn plan(&self) -> Result<Program, ProgramError> {
        Program::plan(&self.bytes())
    }
}

fn executable(headers: &[ProgramHeader]) -> Result<Program, ProgramError> {
    File::new(abi::ET_EXEC, headers).plan()
}

#[test]
fn an_executable_keeps_its_addresses() {
    let program = executable(&[
        load(RX, 0x40_0000, 0, 0x1234, 0x1234),
        load(RW, 0x41_2238, 0x2238, 0x100, 0x5000),
        load(RW, 0x42_0000, 0, 0, 0x10),
    ])
    .unwrap();
    let [text, data, bss] = program.segments.as_slice() else { panic!("{program:?}") };
    assert_eq!((text.file.clone(), text.offset), (0x40_0000..0x40_2000, 0));
    assert!(text.zero.is_empty() && text.anonymous.is_empty());
    assert_eq!((data.file.clone(), data.offset), (0x41_2000..0x41_3000, 0x2000));
    assert_eq!((data.zero.clone(), data.anonymous.clone()), (0x41_2338..0x41_3000, 0x41_3000..0x41_8000));
    assert!(bss.file.is_empty() && bss.zero.is_empty());
    assert_eq!(bss.anonymous, 0x42_0000..0x42_1000);
    assert_eq!((program.entry, program.headers, program.header_count), (0x40_0000, 0x40_0040, 3));
    assert_eq!((program.bias, program.end), (0, 0x42_1000));
}

#[test]
fn a_position_independent_one_is_moved_as_a_whole() {
    let headers = [load(RX, 0, 0, 0x800, 0x800), load(RW, 0x1_1000, 0x1000, 8, 0x2000)];
    let program = File::new(abi::ET_DYN, &headers).plan().unwrap();
    assert_eq!((program.bias, program.entry, program.headers), (PIE_BASE, PIE_BASE, PIE_BASE + 64));
    assert_eq!(program.segments[1].pages(), PIE_BASE + 0x1_1000..PIE_BASE + 0x1_3000);
    assert!(PIE_BASE.is_multiple_of(0x20_0000));

    let aligned = |p_align| ProgramHeader { p_align, ..headers[0] };
    let bias = |p_align| File::new(abi::ET_DYN, &[aligned(p_align)]).plan().map(|program| program.bias);
    // What is no power of two is ignored; the largest possible alignments leave no place.
    assert_eq!((bias(0), bias(3 << 40), bias(1 << 30)), (Ok(PIE_BASE), Ok(PIE_BASE), Ok(0xaaaa_8000_0000)));
    assert_eq!((bias(1 << 47), bias(1 << 48)), (Ok(1 << 47), Err(ProgramError::NoPlace)));
    let huge = load(R, 0x1_0000, 0, 0, TASK_SIZE / 2);
    assert_eq!(File::new(abi::ET_DYN, &[headers[0], huge]).plan(), Err(ProgramError::NoPlace));
}

#[test]
fn what_is_no_program_is_refused() {
    let good = File::new(abi::ET_EXEC, &[load(RX, 0x40_0000, 0, 0x100, 0x100)]);
    assert!(good.plan().is_ok());
    let bytes = good.bytes();
    for length in 0..64 {
        assert_eq!(Program::plan(&bytes[..length]), Err(ProgramError::NoElf), "{length} bytes");
    }
    for length in 64..120 {
        assert_eq!(Program::plan(&bytes[..length]), Err(ProgramError::Headers), "{length} bytes");
    }
    let patched = |at: usize, with: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        Program::plan(&bytes).unwrap_err()
    };
    assert_eq!(patched(0, b"#!/b"), ProgramError::NoElf);
    assert_eq!(patched(4, &[1]), ProgramError::OtherMachine); // 32 bits
    assert_eq!(patched(5, &[2]), ProgramError::OtherMachine); // big-endian
    assert_eq!(patched(18, &62_u16.to_le_bytes()), ProgramError::OtherMachine); // x86-64
    assert_eq!(patched(16, &abi::ET_REL.to_le_bytes()), ProgramError::Type(abi::ET_REL));
    assert_eq!(patched(32, &u64::MAX.to_le_bytes()), ProgramError::Headers);
    assert_eq!(patched(54, &55_u16.to_le_bytes()), ProgramError::Headers);
    assert_eq!(patched(56, &0_u16.to_le_bytes()), ProgramError::Headers);
    assert_eq!(patched(56, &u16::MAX.to_le_bytes()), ProgramError::Headers);
    assert_eq!(patched(64, &abi::PT_NOTE.to_le_bytes()), ProgramError::Empty);
    assert_eq!(patched(64, &abi::PT_INTERP.to_le_bytes()), ProgramError::Interpreter);
    assert_eq!(patched(64, &abi::PT_GNU_STACK.to_le_bytes()), ProgramError::ExecutableStack);
}

#[test]
fn segments_that_cannot_be_are_refused() {
    let text = load(RX, 0x40_0000, 0, 0x100, 0x100);
    let second = |segment| executable(&[text, segment]).unwrap_err();
    assert_eq!(second(load(RW, 0x41_0000, 0, 0x11, 0x10)), ProgramError::Size(1));
    assert_eq!(second(load(RW, 0x41_0000, 0, 0, TASK_SIZE + 1)), ProgramError::Size(1));
    assert_eq!(second(load(RW, 0x41_0000, 0, 0, TASK_SIZE)), ProgramError::TooHigh(1));
    assert_eq!(second(load(RW, u64::MAX - 0xfff, 0, 0, 0x2000)), ProgramError::TooHigh(1));
    assert_eq!(second(load(RW, 0x41_0008, 0, 8, 8)), ProgramError::Congruence(1));
    assert_eq!(second(load(RW, 0x41_0000, 0x3000, 0x1001, 0x1001)), ProgramError::Truncated(1));
    assert_eq!(second(load(RW, 0x41_0000, u64::MAX - 0xfff, 0x1000, 0x1000)), ProgramError::Truncated(1));
    assert_eq!(second(load(RW | RX, 0x41_0000, 0, 8, 8)), ProgramError::WritableAndExecutable(1));
    assert_eq!(second(load(R, 0x41_0000, 0, 8, 16)), ProgramError::ConstantZeroes(1));
    assert_eq!(second(load(RW, 0x40_0800, 0x800, 8, 8)), ProgramError::Overlap(1));
    assert_eq!(second(load(RW, 0x3f_f000, 0, 8, 8)), ProgramError::Overlap(1));
    let third = load(RW, 0x40_1000, 0, 8, 8);
    assert_eq!(executable(&[text, load(RW, 0x40_1000, 0, 8, 0x1001), third]), Err(ProgramError::Overlap(2)));
    assert_eq!(executable(&[load(RX, 0xf000, 0, 8, 8)]), Err(ProgramError::TooLow(0)));
    assert_eq!(executable(&[load(R, 0x40_0000, 0, 8, 8)]), Err(ProgramError::Entry(0x40_0000)));
    let many: Vec<_> = (0..=MAX_SEGMENTS as u64).map(|i| load(RX, 0x40_0000 + i * PAGE, 0, 8, 8)).collect();
    assert_eq!(executable(&many), Err(ProgramError::TooMany));
    for (entry, good) in [(0x40_0fff, true), (0x40_1000, false), (0, false), (u64::MAX, false)] {
        let file = File { entry, ..File::new(abi::ET_EXEC, &[text]) };
        assert_eq!(file.plan().is_ok(), good, "{entry:#x}");
    }
}

#[test]
fn errors_have_linux_numbers() {
    for (error, number) in [
        (ProgramError::NoElf, 8),
        (ProgramError::Truncated(0), 8),
        (ProgramError::WritableAndExecutable(0), 8),
        (ProgramError::Size(0), 22),
        (ProgramError::Overlap(0), 22),
        (ProgramError::TooLow(0), 1),
        (ProgramError::NoPlace, 12),
    ] {
        assert_eq!(error.errno().number(), number, "{error}");
    }
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        5 => (0_u64..0x40).prop_map(|page| 0x1_0000 + page * 0x400),
        1 => 0_u64..0x4000,
        1 => (0_u64..0x2000).prop_map(|back| TASK_SIZE - back),
        1 => (0_u64..0x2000).prop_map(|back| u64::MAX - back),
        1 => any::<u64>(),
    ]
}

proptest! {
    /// Whatever the fields are: no panic, and what is accepted is sound.
    #[test]
    fn plans_are_sound(
        kind in prop_oneof![Just(abi::ET_EXEC), Just(abi::ET_DYN), any::<u16>()],
        entry in address(),
        segments in proptest::collection::vec((0_u32..8, address(), address(), address(), address(), any::<bool>(), any::<u64>()), 0..6),
        length in 0_usize..0x4000,
        cut in any::<prop::sample::Index>(),
    ) {
        let headers: Vec<_> = segments.into_iter().map(|(flags, vaddr, offset, filesz, memsz, fit, align)| {
            // Most that are random are refused for one reason: some are made to fit.
            let (offset, filesz) = if fit { (vaddr % PAGE, filesz % 0x1000) } else { (offset, filesz) };
            let memsz = if fit { filesz + memsz % 0x3000 } else { memsz };
            ProgramHeader { p_align: align, ..load(flags, vaddr, offset, filesz, memsz) }
        }).collect();
        let mut bytes = File { kind, entry, headers, length }.bytes();
        if let Ok(program) = Program::plan(&bytes) {
            is_sound(&program, &bytes);
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        if let Ok(program) = Program::plan(&bytes) {
            is_sound(&program, &bytes);
        }
    }

    /// Sound files are accepted.
    #[test]
    fn sound_files_are_planned(
        pie in any::<bool>(),
        sizes in proptest::collection::vec((0_u64..0x1800, 0_u64..0x3000, any::<bool>()), 1..MAX_SEGMENTS),
    ) {
        let mut at = 0x40_0000;
        let mut headers = vec![load(RX, at, 0, 0x200, 0x200)];
        for (filesz, more, writable) in sizes {
            at = (at + headers.last().unwrap().p_memsz).next_multiple_of(PAGE) + 0x123;
            let (flags, memsz) = if writable { (RW, filesz + more + 1) } else { (R, filesz.max(1)) };
            headers.push(load(flags, at, 0x123, filesz.min(memsz), memsz.max(1)));
            if !writable { headers.last_mut().unwrap().p_filesz = memsz; }
            at = at.next_multiple_of(PAGE);
        }
        let count = headers.len();
        let file = File::new(if pie { abi::ET_DYN } else { abi::ET_EXEC }, &headers);
        let program = file.plan();
        prop_assert!(program.is_ok(), "{program:?}");
        let program = program.unwrap();
        prop_assert_eq!(program.segments.len(), count);
        is_sound(&program, &file.bytes());
    }
}
