use std::collections::BTreeMap;

use arrayvec::ArrayVec;
use proptest::prelude::*;

use super::*;

const TOP: u64 = 0xffff_ffff_f000;

fn program() -> Program {
    Program {
        segments: ArrayVec::new(),
        entry: 0x40_0000,
        headers: 0x40_0040,
        header_count: 7,
        bias: 0,
        end: 0x41_0000,
    }
}

/// The stack as a program reads it: by address.
struct Memory {
    sp: u64,
    bytes: Vec<u8>,
}

impl Memory {
    fn word(&self, at: u64) -> u64 {
        let start = usize::try_from(at - self.sp).unwrap();
        u64::from_le_bytes(self.bytes[start..start + 8].try_into().unwrap())
    }

    fn string(&self, at: u64) -> &[u8] {
        let rest = &self.bytes[usize::try_from(at - self.sp).unwrap()..];
        rest.split(|&byte| byte == 0).next().unwrap()
    }

    /// Pointers up to NULL, and what follows it.
    fn strings(&self, mut at: u64) -> (Vec<Vec<u8>>, u64) {
        let mut strings = Vec::new();
        while self.word(at) != 0 {
            strings.push(self.string(self.word(at)).to_vec());
            at += 8;
        }
        (strings, at + 8)
    }
}

/// Each with its NUL.
fn joined(strings: &[Vec<u8>]) -> Vec<u8> {
    strings.iter().flat_map(|string| string.iter().chain(&[0])).copied().collect()
}

fn check(argv: &[Vec<u8>], envp: &[Vec<u8>], path: &[u8]) {
    let (all_argv, all_envp, program) = (joined(argv), joined(envp), program());
    let (random, hwcap) = ([0xa5; 16], [3, 4]);
    let stack = InitialStack { argv: &all_argv, envp: &all_envp, path, program: &program, random, hwcap };
    let mut bytes = vec![0xff; stack.size().unwrap()];
    stack.write(TOP, &mut bytes);
    let memory = Memory { sp: TOP - bytes.len() as u64, bytes };
    assert!(memory.sp.is_multiple_of(16));
    assert_eq!(memory.word(TOP - 8), 0);
    assert_eq!(memory.word(memory.sp), argv.len() as u64);
    let (found, environment) = memory.strings(memory.sp + 8);
    assert_eq!(found, argv);
    let (found, mut auxiliary) = memory.strings(environment);
    assert_eq!(found, envp);
    let mut values = BTreeMap::new();
    while memory.word(auxiliary) != auxv::AT_NULL {
        assert_eq!(values.insert(memory.word(auxiliary), memory.word(auxiliary + 8)), None);
        auxiliary += 16;
    }
    for (kind, value) in [
        (auxv::AT_PHDR, 0x40_0040),
        (auxv::AT_PHENT, 56),
        (auxv::AT_PHNUM, 7),
        (auxv::AT_PAGESZ, 4096),
        (auxv::AT_ENTRY, 0x40_0000),
        (auxv::AT_BASE, 0),
        (auxv::AT_UID, 0),
        (auxv::AT_SECURE, 0),
        (auxv::AT_CLKTCK, 100),
        (auxv::AT_HWCAP, 3),
        (auxv::AT_HWCAP2, 4),
    ] {
        assert_eq!(values[&kind], value, "type {kind}");
    }
    assert_eq!(memory.string(values[&auxv::AT_EXECFN]), path);
    assert_eq!(memory.string(values[&auxv::AT_PLATFORM]), b"aarch64");
    let random = values[&auxv::AT_RANDOM];
    assert_eq!(
        (memory.word(random), memory.word(random + 8)),
        (0xa5a5_a5a5_a5a5_a5a5, 0xa5a5_a5a5_a5a5_a5a5)
    );
    // Strings lie one behind the other, as process titles count on.
    let text: usize = argv.iter().chain(envp).map(|string| string.len() + 1).sum();
    if let Some(first) = argv.first().or(envp.first()) {
        let at = memory.word(memory.sp + if argv.is_empty() { 16 } else { 8 });
        assert_eq!(memory.string(at), first);
        assert_eq!(at + text as u64, values[&auxv::AT_EXECFN]);
    }
}

#[test]
fn a_program_finds_its_arguments() {
    let strings = |list: &[&str]| list.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
    check(&strings(&["hello", "", "two words"]), &strings(&["HOME=/", "X="]), b"/bin/hello");
    check(&[], &[], b"/init");
    check(&[], &strings(&["A=B"]), b"");
}

#[test]
fn too_much_is_refused() {
    let size = |argv: &[Vec<u8>]| {
        let (argv, program) = (joined(argv), program());
        InitialStack { argv: &argv, envp: &[], path: b"", program: &program, random: [0; 16], hwcap: [0; 2] }
            .size()
    };
    assert!(size(&[vec![b'a'; MAX_STRING - 1]]).is_ok());
    assert_eq!(size(&[vec![b'a'; MAX_STRING]]), Err(TooBig));
    assert_eq!(size(&vec![vec![b'a'; MAX_STRING - 1]; 17]), Err(TooBig));
    // Many short ones: their pointers count.
    assert!(size(&vec![Vec::new(); MAX_ARGUMENTS / 9 - 1]).is_ok());
    assert_eq!(size(&vec![Vec::new(); MAX_ARGUMENTS / 9 + 1]), Err(TooBig));
}

proptest! {
    #[test]
    fn whatever_the_strings_are(
        argv in proptest::collection::vec(proptest::collection::vec(1_u8.., 0..40), 0..20),
        envp in proptest::collection::vec(proptest::collection::vec(1_u8.., 0..40), 0..20),
        path in proptest::collection::vec(1_u8.., 0..60),
    ) {
        check(&argv, &envp, &path);
    }
}
