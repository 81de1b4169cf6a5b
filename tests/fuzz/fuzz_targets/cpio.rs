//! cpio archives: whatever they are, no panic; and what is looked for in those that are accepted is found, or an error says why
//! not.
#![no_main]

use kernel::cpio::{Archive, Found};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(archive) = Archive::new(bytes) else { return };
    let total: usize = archive.entries().map(|entry| entry.name.len() + entry.data.len()).sum();
    assert!(total <= bytes.len());
    for entry in archive.entries() {
        if let Ok(Found::File(found)) = archive.find(entry.name) {
            let inside = bytes.as_ptr_range();
            assert!(found.data.is_empty() || inside.contains(&found.data.as_ptr()));
        }
        let _ = archive.find(&[entry.name, b"/../", entry.data].concat());
    }
});
