//! ELF files: whatever they are, no panic, and a plan that is accepted is sound, as the property tests have it.
//!
//! The input is the program headers and what follows; random bytes would hardly ever have the magic number of a file.
#![no_main]

#[path = "../../../kernel/src/program/sound.rs"]
mod sound;

use kernel::program::{LOWEST, PAGE, Program, Segment, TASK_SIZE};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&[kind, count, ref entry @ ..], rest)) = bytes.split_first_chunk::<10>() else { return };
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_EXEC or ET_DYN, for EM_AARCH64, version 1; the headers begin at 64 and have 56 bytes.
    file.extend([2 + kind % 2, 0, 183, 0, 1, 0, 0, 0]);
    file.extend(entry);
    file.extend([64_u64.to_le_bytes(), [0; 8]].concat());
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, count % 8, 0, 0, 0, 0, 0, 0, 0]);
    file.extend(rest);
    for file in [&file as &[u8], bytes] {
        if let Ok(program) = Program::plan(file) {
            sound::is_sound(&program, file);
        }
    }
});
