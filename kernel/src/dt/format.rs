//! Checks the layout of a blob, so that dtoolkit can walk it without a surprise.
//!
//! dtoolkit has such a check, `Fdt::new`, but it refuses names of more than the specification's 31
//! characters, and more than half of the trees that come with Linux have one: a board must not fail
//! to boot over the name of a property that nobody reads. Without that check dtoolkit's accessors
//! panic on a broken blob; what they rely on is established here.

use core::ffi::CStr;
use core::mem::size_of;

use dtoolkit::fdt::Fdt;

use super::DtError;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// The longest name of a property, in bytes. Names are compared again and again, so a tree of
/// properties that share one huge name would take minutes.
pub(super) const MAX_PROPERTY_NAME: usize = 255;

/// The tree in `blob`, which is as long as its header says.
///
/// On success, every offset is inside the blob; the reservation block ends with its empty entry; the
/// structure block is one node, nested correctly, with properties before children; and all names are
/// UTF-8 with a NUL at the end.
pub(crate) fn open(blob: &[u8]) -> Result<Fdt<'_>, DtError> {
    let mut header = Cursor { bytes: blob, at: 0 };
    let [
        _magic,
        _size,
        structure,
        strings,
        reservations,
        _version,
        _oldest,
        _cpu,
        strings_size,
        structure_size,
    ] = header.words()?.map(|word| word as usize);

    let mut entries = Cursor { bytes: blob, at: reservations };
    while entries.words()? != [0; 4] {}

    let strings = strings
        .checked_add(strings_size)
        .and_then(|end| blob.get(strings..end))
        .ok_or(malformed(strings, "the strings block is not inside the blob"))?;
    let bytes = structure
        .checked_add(structure_size)
        .and_then(|end| blob.get(..end))
        .filter(|_| structure.is_multiple_of(size_of::<u32>()))
        .ok_or(malformed(structure, "the structure block is not inside the blob or not aligned"))?;
    check_structure(Cursor { bytes, at: structure }, strings)?;
    Ok(Fdt::new_unchecked(blob))
}

fn check_structure(mut cursor: Cursor<'_>, strings: &[u8]) -> Result<(), DtError> {
    let bad_token = |offset| Err(malformed(offset, "unexpected token"));
    if cursor.words()? != [BEGIN_NODE] {
        return bad_token(cursor.at - size_of::<u32>());
    }
    cursor.node_name()?;
    let (mut depth, mut properties_may_follow) = (1_usize, true);
    loop {
        let offset = cursor.at;
        match cursor.words()? {
            [BEGIN_NODE] if depth > 0 => {
                cursor.node_name()?;
                (depth, properties_may_follow) = (depth + 1, true);
            }
            [END_NODE] if depth > 0 => (depth, properties_may_follow) = (depth - 1, false),
            [PROPERTY] if properties_may_follow => {
                let [len, name] = cursor.words()?;
                check_property_name(strings, name).ok_or(malformed(offset, "bad name of a property"))?;
                cursor.skip(len as usize)?;
            }
            [NOP] => {}
            [END] if depth == 0 => return Ok(()),
            _ => return bad_token(offset),
        }
    }
}

fn check_property_name(strings: &[u8], offset: u32) -> Option<()> {
    let name = CStr::from_bytes_until_nul(strings.get(offset as usize..)?).ok()?;
    (name.count_bytes() <= MAX_PROPERTY_NAME && name.to_str().is_ok()).then_some(())
}

/// A place in the blob.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn words<const N: usize>(&mut self) -> Result<[u32; N], DtError> {
        let bytes = self.rest()?;
        let mut words = bytes.as_chunks().0.iter().map(|&word| u32::from_be_bytes(word));
        let mut read = [0; N];
        for word in &mut read {
            *word = words.next().ok_or(malformed(self.at, "the blob or block ends too early"))?;
        }
        self.at += size_of::<[u32; N]>();
        Ok(read)
    }

    fn node_name(&mut self) -> Result<(), DtError> {
        let name = CStr::from_bytes_until_nul(self.rest()?).ok().filter(|name| name.to_str().is_ok());
        let name = name.ok_or(malformed(self.at, "bad name of a node"))?;
        self.skip(name.to_bytes_with_nul().len())
    }

    /// Goes on by `len` bytes and then to the next word.
    fn skip(&mut self, len: usize) -> Result<(), DtError> {
        if len > self.rest()?.len() {
            return Err(malformed(self.at, "a property ends outside its block"));
        }
        self.at = (self.at + len).next_multiple_of(size_of::<u32>());
        Ok(())
    }

    fn rest(&self) -> Result<&'a [u8], DtError> {
        self.bytes.get(self.at..).ok_or(malformed(self.at, "an offset leads outside the blob"))
    }
}

fn malformed(offset: usize, what: &'static str) -> DtError {
    DtError::Malformed { offset, what }
}
