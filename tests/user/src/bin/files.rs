//! The calls on files, by the program's own file: open, read, seek, stat, map.
#![no_std]
#![no_main]

use user::println;
use user::start::Environment;
use user::sys::{READ, READ_WRITE, errno, in_child, munmap, nr, open, peek, poke, raw, read, write};

const PAGE: usize = 4096;
const MAP_SHARED: usize = 1;
const MAP_PRIVATE: usize = 2;
const SIGBUS: i32 = 7;
const AT_FDCWD: usize = -100_isize as usize;

fn map(fd: usize, bytes: usize, prot: usize, flags: usize, offset: usize) -> Result<usize, user::sys::Errno> {
    raw(nr::MMAP, &[0, bytes, prot, flags, fd, offset])
}

#[unsafe(no_mangle)]
fn main(environment: Environment) -> i32 {
    let own = environment.arg(0).expect("a program has a name");
    let mut path = [0; 4096];
    path[..own.len()].copy_from_slice(own);
    let path = &path[..own.len() + 1];

    let fd = open(path).expect("the program's own file");
    let mut magic = [0; 4];
    assert_eq!((read(fd, &mut magic), magic), (Ok(4), *b"\x7fELF"));
    assert_eq!(raw(nr::LSEEK, &[fd, 0, 1]), Ok(4));
    let size = raw(nr::LSEEK, &[fd, 0, 2]).expect("lseek");
    assert_eq!(read(fd, &mut magic), Ok(0));
    assert_eq!(raw(nr::LSEEK, &[fd, 1, 0]), Ok(1));
    assert_eq!((read(fd, &mut magic), &magic[..3]), (Ok(4), b"ELF" as &[u8]));
    assert_eq!(raw(nr::LSEEK, &[fd, -6_isize as usize, 1]), Err(errno::EINVAL));
    assert_eq!(raw(nr::PREAD64, &[fd, magic.as_mut_ptr() as usize, 4, 0]), Ok(4));
    println!("read, pread64 and lseek: the file begins as a program does");

    let mut stat = [0_u64; 16];
    assert_eq!(raw(nr::FSTAT, &[fd, stat.as_mut_ptr() as usize]), Ok(0));
    // SAFETY: the kernel has written it.
    let stat = unsafe { stat.as_ptr().cast::<[u64; 16]>().read_volatile() };
    assert_eq!((stat[2] as u32 & 0o170_000, stat[6] as usize), (0o100_000, size));
    println!("fstat: a regular file");

    let start = map(fd, size, READ, MAP_PRIVATE, 0).expect("mmap");
    let pages = size.next_multiple_of(PAGE);
    let mut buffer = [0; 256];
    raw(nr::LSEEK, &[fd, 0, 0]).expect("lseek");
    let mut at = 0;
    loop {
        let nr = read(fd, &mut buffer).expect("read");
        if nr == 0 {
            break;
        }
        assert!((0..nr).all(|i| peek(start + at + i) == buffer[i]), "at {at}");
        at += nr;
    }
    assert_eq!(at, size);
    assert!((size..pages).all(|at| peek(start + at) == 0), "beyond the end");
    println!("mmap: what is mapped is what is read, and zeroes to the end of the page");

    let writable = map(fd, PAGE, READ_WRITE, MAP_PRIVATE, 0).expect("mmap");
    poke(writable, b'X');
    assert_eq!((peek(writable), peek(writable + 1), peek(start)), (b'X', b'E', 0x7f));
    let second = map(fd, PAGE, READ, MAP_PRIVATE, PAGE).expect("mmap");
    assert_eq!(peek(second), peek(start + PAGE));
    let shared = map(fd, PAGE, READ, MAP_SHARED, 0).expect("mmap");
    assert_eq!(peek(shared), 0x7f);
    assert_eq!(map(fd, PAGE, READ_WRITE, MAP_SHARED, 0), Err(errno::EACCES));
    let behind = map(fd, pages + PAGE, READ, MAP_PRIVATE, 0).expect("mmap");
    assert_eq!(in_child(|| i32::from(peek(behind + pages))), SIGBUS);
    for (at, bytes) in
        [(start, size), (writable, PAGE), (second, PAGE), (shared, PAGE), (behind, pages + PAGE)]
    {
        munmap(at, bytes).expect("munmap");
    }
    println!("private mappings copy on write; behind the end is a bus error");

    // The child's read moves the offset of both.
    raw(nr::LSEEK, &[fd, 0, 0]).expect("lseek");
    assert_eq!(in_child(|| read(fd, &mut [0; 3]).map_or(-1, |nr| nr as i32)), user::sys::exited(3));
    assert_eq!(raw(nr::LSEEK, &[fd, 0, 1]), Ok(3));
    assert_eq!(raw(nr::CLOSE, &[fd]), Ok(0));
    assert_eq!(raw(nr::CLOSE, &[fd]), Err(errno::EBADF));
    assert_eq!(read(fd, &mut magic), Err(errno::EBADF));
    assert_eq!(map(fd, PAGE, READ, MAP_PRIVATE, 0), Err(errno::EBADF));
    println!("descriptors are shared with a child, and gone when closed");

    assert_eq!(open(b"/no/such/file\0"), Err(errno::ENOENT));
    assert_eq!(open(b"\0"), Err(errno::ENOENT));
    assert_eq!(raw(nr::OPENAT, &[AT_FDCWD, 1, 0]), Err(errno::EFAULT));
    assert_eq!(raw(nr::OPENAT, &[77, c"x".as_ptr() as usize, 0]), Err(errno::EBADF));
    let root = open(b"/\0").expect("the root directory");
    assert_eq!(read(root, &mut magic), Err(errno::EISDIR));
    assert_eq!(map(root, PAGE, READ, MAP_PRIVATE, 0), Err(errno::ENODEV));
    assert_eq!(raw(nr::CLOSE, &[root]), Ok(0));
    println!("what can't be opened is not");

    // Two pieces and an empty one.
    let pieces = [b"writev: ".as_ptr() as usize, 8, 0, 0, b"two pieces\n".as_ptr() as usize, 11];
    assert_eq!(raw(nr::WRITEV, &[1, pieces.as_ptr() as usize, 3]), Ok(19));
    assert_eq!(write(1, b""), Ok(0));
    0
}
