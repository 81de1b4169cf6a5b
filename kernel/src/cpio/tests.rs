use proptest::prelude::*;

use super::*;

/// One entry as an archiver writes it.
fn entry(name: &str, mode: u32, data: &[u8]) -> Vec<u8> {
    linked(name, mode, data, 1, 1)
}

fn linked(name: &str, mode: u32, data: &[u8], inode: u32, links: u32) -> Vec<u8> {
    let fields = [inode, mode, 0, 0, links, 0, data.len() as u32, 8, 1, 0, 0, name.len() as u32 + 1, 0];
    let mut bytes = b"070701".to_vec();
    fields.iter().for_each(|field| bytes.extend(format!("{field:08x}").bytes()));
    bytes.extend(name.bytes());
    bytes.push(0);
    pad(&mut bytes);
    bytes.extend(data);
    pad(&mut bytes);
    bytes
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn trailer() -> Vec<u8> {
    entry("TRAILER!!!", 0, b"")
}

fn file(name: &str, data: &[u8]) -> Vec<u8> {
    entry(name, S_IFREG | 0o755, data)
}

fn link(name: &str, target: &str) -> Vec<u8> {
    entry(name, S_IFLNK | 0o777, target.as_bytes())
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), trailer()].concat()
}

fn data<'a>(archive: &Archive<'a>, path: &str) -> Result<&'a [u8], LookupError> {
    archive.find(path.as_bytes()).map(|found| match found {
        Found::File(entry) => entry.data,
        Found::Directory => b"(directory)",
    })
}

#[test]
fn files_are_found_by_path() {
    let bytes = archive(&[
        entry("bin", S_IFDIR | 0o755, b""),
        file("bin/a", b"one"),
        file("./lib/b", b"two"),
        file("/etc/deep/c", b""),
    ]);
    let archive = Archive::new(&bytes).unwrap();
    for (path, found) in [
        ("/bin/a", b"one" as &[u8]),
        ("bin//./a", b"one"),
        ("/lib/../bin/a", b"one"),
        ("/../../bin/a", b"one"),
        ("/lib/b", b"two"),
        ("/etc/deep/c", b""),
        ("/bin", b"(directory)"),
        ("/etc/deep", b"(directory)"),
        ("/", b"(directory)"),
    ] {
        assert_eq!(data(&archive, path), Ok(found), "{path}");
    }
    for path in ["", "/b", "/bin/aa", "/bin/", "/et", "/nowhere/../bin/a"] {
        let expected = if path == "/bin/" { Ok(b"(directory)" as &[u8]) } else { Err(LookupError::NotFound) };
        assert_eq!(data(&archive, path), expected, "{path}");
    }
    for path in ["/bin/a/", "/bin/a/x", "/bin/a/..", "/bin/a/."] {
        assert_eq!(data(&archive, path), Err(LookupError::NotADirectory), "{path}");
    }
}

#[test]
fn links_are_followed() {
    let bytes = archive(&[
        file("bin/a", b"one"),
        link("sbin", "bin"),
        link("x/y", "../sbin/./a"),
        link("z", "/x/y"),
        link("up", "../../.."),
        link("empty", ""),
        link("gone", "nothing"),
        link("l0", "l0"),
        link("l1", "l2/x"),
        link("l2", "l1/y"),
    ]);
    let archive = Archive::new(&bytes).unwrap();
    for path in ["/sbin/a", "/x/y", "/z", "/up/z", "/up/up/sbin/a"] {
        assert_eq!(data(&archive, path), Ok(b"one" as &[u8]), "{path}");
    }
    for path in ["/empty", "/gone", "/gone/x"] {
        assert_eq!(data(&archive, path), Err(LookupError::NotFound), "{path}");
    }
    for path in ["/l0", "/l1", "/l2/z"] {
        assert_eq!(data(&archive, path), Err(LookupError::Loop), "{path}");
    }
    assert_eq!(data(&archive, "/z/x"), Err(LookupError::NotADirectory));
}

/// Forty links are followed, the forty-first is a loop.
#[test]
fn a_chain_of_links_has_an_end() {
    let mut entries: Vec<_> = (0..41).map(|i| link(&format!("l{i}"), &format!("l{}", i + 1))).collect();
    entries.push(file("l41", b"end"));
    let bytes = archive(&entries);
    let archive = Archive::new(&bytes).unwrap();
    assert_eq!(data(&archive, "/l1"), Ok(b"end" as &[u8]));
    assert_eq!(data(&archive, "/l0"), Err(LookupError::Loop));
}

#[test]
fn hard_links_share_their_data() {
    let mode = S_IFREG | 0o644;
    let bytes = archive(&[linked("a", mode, b"", 7, 2), linked("b", mode, b"shared", 7, 2)]);
    let archive = Archive::new(&bytes).unwrap();
    assert_eq!((data(&archive, "a"), data(&archive, "b")), (Ok(b"shared" as &[u8]), Ok(b"shared" as &[u8])));
}

#[test]
fn long_paths_are_refused() {
    let bytes = archive(&[file("a", b"")]);
    let archive = Archive::new(&bytes).unwrap();
    assert_eq!(data(&archive, &"/".repeat(4095)), Ok(b"(directory)" as &[u8]));
    assert_eq!(data(&archive, &"/".repeat(4096)), Err(LookupError::TooLong));
    let deep = format!("{}f", "d/".repeat(DEPTH_MAX));
    let bytes = self::archive(&[file(&deep, b"")]);
    assert_eq!(data(&Archive::new(&bytes).unwrap(), &deep), Err(LookupError::TooLong));
}

#[test]
fn archives_may_follow_one_another() {
    let first = archive(&[file("a", b"old"), file("b", b"")]);
    let bytes = [first, vec![0; 512], archive(&[file("a", b"new")]), vec![0; 3]].concat();
    let archive = Archive::new(&bytes).unwrap();
    assert_eq!((archive.entries().count(), data(&archive, "a")), (3, Ok(b"new" as &[u8])));
    assert_eq!(Archive::new(b"").unwrap().entries().count(), 0);
    assert_eq!(Archive::new(&[0; 7]).unwrap().entries().count(), 0);
}

#[test]
fn what_is_no_archive_is_refused() {
    let error = |bytes: &[u8]| Archive::new(bytes).unwrap_err();
    let good = archive(&[file("a", b"12345")]);
    assert_eq!(error(b"\x1f\x8b\x08 gzip"), CpioError::Magic(0));
    assert_eq!(error(&file("a", b"12345")), CpioError::NoTrailer(0));
    assert_eq!(error(&good[..good.len() - 124]), CpioError::NoTrailer(0));
    let patched = |at: usize, with: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        error(&bytes)
    };
    assert_eq!(patched(0, b"070707"), CpioError::Magic(0));
    assert_eq!(patched(54, b"0000000g"), CpioError::Digit(0));
    assert_eq!(patched(54, b"+0000005"), CpioError::Digit(0));
    assert_eq!(patched(54, b"ffffffff"), CpioError::Truncated(0));
    for size in [b"00000000", b"00000001", b"00001001", b"ffffffff", b"00000003"] {
        assert_eq!(patched(94, size), CpioError::Name(0));
    }
    assert_eq!(patched(110, b"\0"), CpioError::Name(0));
    // What follows a trailer must be zeroes or another archive.
    assert_eq!(error(&[good.clone(), b"x".to_vec()].concat()), CpioError::Magic(good.len()));
}

proptest! {
    /// However it is cut or changed: no panic, and all that is found lies inside.
    #[test]
    fn damage_is_noticed_or_harmless(
        names in proptest::collection::vec("[a-c/.]{1,6}", 0..6),
        cut in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        path in "[a-c/.]{0,8}",
    ) {
        let entries: Vec<_> = names.iter().enumerate().map(|(i, name)| match i % 3 {
            0 => file(name, &vec![i as u8; i * 3]),
            1 => link(name, &names[(i + 1) % names.len()]),
            _ => entry(name, S_IFDIR, b""),
        }).collect();
        let mut bytes = archive(&entries);
        let length = bytes.len();
        prop_assert_eq!(Archive::new(&bytes).map(|archive| archive.entries().count()), Ok(names.len()));
        for (at, value) in changes {
            bytes[at.index(length)] = value;
        }
        bytes.truncate(cut.index(length + 1));
        if let Ok(archive) = Archive::new(&bytes) {
            let _ = archive.find(path.as_bytes());
            prop_assert!(archive.entries().map(|entry| entry.name.len() + entry.data.len()).sum::<usize>() <= bytes.len());
        }
    }
}
