//! What is refused, and by which errno: those of Linux.

use super::on_all;

on_all!(mmap_refuses);
on_all!(munmap_refuses);
on_all!(mprotect_refuses);
on_all!(mremap_refuses);
on_all!(madvise_and_mincore_refuse);
on_all!(nothing_is_too_large_or_too_crooked);

#[test]
fn there_is_an_end_to_mappings() {
    pleat_host_tests::address_space::with_world::<model::K4>(
        super::NEOVERSE,
        inner::there_is_an_end_to_mappings,
    );
}

/// Numbers as Linux's `asm-generic/errno-base.h` and `errno.h` have them.
#[test]
fn errnos_have_linux_numbers() {
    use mm::Errno::*;
    let numbers = [
        (EPERM, 1),
        (ENOENT, 2),
        (ESRCH, 3),
        (EINTR, 4),
        (EIO, 5),
        (E2BIG, 7),
        (ENOEXEC, 8),
        (EBADF, 9),
        (ECHILD, 10),
        (EAGAIN, 11),
        (ENOMEM, 12),
        (EACCES, 13),
        (EFAULT, 14),
        (EBUSY, 16),
        (EEXIST, 17),
        (ENODEV, 19),
        (ENOTDIR, 20),
        (EISDIR, 21),
        (EINVAL, 22),
        (EMFILE, 24),
        (ENOTTY, 25),
        (ETXTBSY, 26),
        (ESPIPE, 29),
        (EROFS, 30),
        (EPIPE, 32),
        (ERANGE, 34),
        (ENAMETOOLONG, 36),
        (ENOSYS, 38),
        (ELOOP, 40),
        (EOVERFLOW, 75),
        (EOPNOTSUPP, 95),
    ];
    assert_eq!(numbers.map(|(errno, _)| errno).as_slice(), mm::ERRNOS);
    assert!(numbers.iter().all(|&(errno, number)| errno.number() == number));
    assert_eq!(ENOMEM.to_string(), "ENOMEM (12)");
    assert_eq!(OutOfMemory.number(), 12);
}

mod inner {
    use mm::mman::*;
    use mm::{Access, Errno, Fault, TASK_SIZE};
    use model::GranuleType;
    use pleat_host_tests::address_space::World;

    use crate::{Calls, PRIVATE, RW, SHARED, at};

    const MAX: u64 = u64::MAX;

    pub(super) fn mmap_refuses<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        let page = World::<G>::va(1);
        let space = &world.processes[0].space;
        let here = at(world, 0);
        let fixed = PRIVATE | MAP_FIXED;
        let anonymous = [
            (0, 0, RW, PRIVATE, Errno::EINVAL),
            (0, page, RW, PRIVATE | MAP_HUGETLB, Errno::EINVAL),
            (0, page, RW, MAP_ANONYMOUS, Errno::EINVAL),
            (0, page, RW, MAP_ANONYMOUS | MAP_SHARED_VALIDATE, Errno::EINVAL),
            (0, page, RW, MAP_ANONYMOUS | 7, Errno::EINVAL),
            (0, page, RW, SHARED | MAP_GROWSDOWN, Errno::EINVAL),
            // Rounding up wraps, or it is larger than all there is.
            (0, MAX, RW, PRIVATE, Errno::ENOMEM),
            (0, MAX - page, RW, PRIVATE, Errno::ENOMEM),
            (0, TASK_SIZE, RW, PRIVATE, Errno::ENOMEM),
            (0, TASK_SIZE - page, RW, PRIVATE, Errno::ENOMEM),
            (here + 1, page, RW, fixed, Errno::EINVAL),
            (0, page, RW, fixed, Errno::EPERM),
            (0x1_0000 - page.min(0x1_0000), page, RW, fixed, Errno::EPERM),
            (TASK_SIZE, page, RW, fixed, Errno::ENOMEM),
            (TASK_SIZE - page, 2 * page, RW, fixed, Errno::ENOMEM),
            (MAX & !(page - 1), page, RW, fixed, Errno::ENOMEM),
            (here, page, RW, MAP_PRIVATE, Errno::EBADF),
        ];
        for (addr, len, prot, flags, errno) in anonymous {
            let result = space.mmap(addr, len, prot, flags, None);
            assert_eq!(result, Err(errno), "mmap({addr:#x}, {len:#x}, {prot}, {flags:#x})");
        }
        let file = &world.files[0];
        for (offset, len, prot, flags, errno) in [
            (1, page, RW, MAP_PRIVATE, Errno::EINVAL),
            (0, page, RW, 0, Errno::EINVAL),
            (0, page, RW, MAP_PRIVATE | MAP_GROWSDOWN, Errno::EINVAL),
            (0, page, RW, MAP_SHARED_VALIDATE | MAP_FIXED_NOREPLACE, Errno::EOPNOTSUPP),
            (0, page, RW, MAP_SHARED_VALIDATE | 1 << 40, Errno::EOPNOTSUPP),
            (MAX & !(page - 1), page, RW, MAP_PRIVATE, Errno::EOVERFLOW),
            ((1 << 63) - page, page, RW, MAP_PRIVATE, Errno::EOVERFLOW),
        ] {
            let result = space.mmap(here, len, prot, flags, Some((file, offset)));
            assert_eq!(result, Err(errno), "mmap of a file from {offset:#x}, {prot}, {flags:#x}");
        }
        // An offset may be behind the end, and what is mapped there faults.
        let far = (1 << 63) - 2 * page;
        assert_eq!(space.mmap(here, page, RW, MAP_PRIVATE | MAP_FIXED, Some((file, far))), Ok(here));
        assert_eq!(world.fault(0, 0, Access::Read), Err(Fault::Bus));
        // Replaced only where that is allowed; a hint gives way.
        assert_eq!(space.mmap(here, page, RW, PRIVATE | MAP_FIXED_NOREPLACE, None), Err(Errno::EEXIST));
        assert_eq!(space.mmap(here + page, page, RW, PRIVATE | MAP_FIXED_NOREPLACE, None), Ok(here + page));
        assert_eq!(space.mmap(here + 3 * page - 1, page, RW, PRIVATE, None), Ok(here + 2 * page));
        let elsewhere = space.mmap(here, page, RW, PRIVATE, None).unwrap();
        assert!(!(here..here + 3 * page).contains(&elsewhere));
        assert_eq!(space.mmap(TASK_SIZE - page, page, RW, fixed, None), Ok(TASK_SIZE - page));
        for hint in [1, MAX, TASK_SIZE, TASK_SIZE - 1] {
            let va = space.mmap(hint, page, RW, PRIVATE, None).unwrap();
            assert!((0x1_0000..TASK_SIZE - page).contains(&va), "{va:#x} for {hint:#x}");
        }
        // The rest of a page is not lost.
        let va = space.mmap(0, page + 1, RW, PRIVATE, None).unwrap();
        assert!(space.handle_fault(arch::VirtAddr::new(va + 2 * page - 1), Access::Write).is_ok());
    }

    pub(super) fn munmap_refuses<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        let page = World::<G>::va(1);
        let space = &world.processes[0].space;
        let here = at(world, 0);
        for (addr, len) in [
            (here + 1, page),
            (here, 0),
            (here, MAX),
            (MAX & !(page - 1), page),
            (TASK_SIZE, page),
            (TASK_SIZE - page, page + 1),
            (0, TASK_SIZE + 1),
        ] {
            assert_eq!(space.munmap(addr, len), Err(Errno::EINVAL), "munmap({addr:#x}, {len:#x})");
        }
        // What is not mapped may be unmapped.
        assert_eq!(space.munmap(here, page), Ok(()));
        world.map(0, 1, 1, RW, PRIVATE);
        assert_eq!(space.munmap(0, TASK_SIZE), Ok(()));
        assert_eq!(world.fault(0, 1, Access::Read), Err(Fault::Segv { mapped: false }));
    }

    pub(super) fn mprotect_refuses<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        let page = World::<G>::va(1);
        let space = &world.processes[0].space;
        let here = at(world, 0);
        world.map(0, 0, 2, RW, PRIVATE);
        for (addr, len, prot, errno) in [
            (here + 1, page, RW, Errno::EINVAL),
            (here, page, 1 << 20, Errno::EINVAL),
            (here, page, RW | 0x10, Errno::EINVAL),
            (here, page, PROT_GROWSDOWN | PROT_GROWSUP, Errno::EINVAL),
            (here, page, RW | PROT_GROWSDOWN, Errno::EINVAL),
            (here, MAX, RW, Errno::ENOMEM),
            (MAX & !(page - 1), page, RW, Errno::ENOMEM),
            (TASK_SIZE, page, RW, Errno::ENOMEM),
            (here - page, page, RW, Errno::ENOMEM),
            (here + 2 * page, page, RW, Errno::ENOMEM),
        ] {
            assert_eq!(
                space.mprotect(addr, len, prot),
                Err(errno),
                "mprotect({addr:#x}, {len:#x}, {prot:#x})"
            );
        }
        assert_eq!(space.mprotect(here, 0, 1 << 20), Ok(()));
        assert_eq!(space.mprotect(here, 1, RW | PROT_SEM), Ok(()));
        // What comes before a hole is changed.
        assert_eq!(space.mprotect(here, 3 * page, PROT_READ), Err(Errno::ENOMEM));
        assert_eq!(world.fault(0, 1, Access::Write), Err(Fault::Segv { mapped: true }));
        // A file that is not for writing may be written to in private only.
        let file = Some((&world.files[2], 0));
        assert!(world.files[2].is_read_only());
        assert_eq!(space.mmap(here, page, RW, MAP_SHARED | MAP_FIXED, file), Err(Errno::EACCES));
        assert_eq!(space.mmap(here, page, PROT_READ, MAP_SHARED | MAP_FIXED, file), Ok(here));
        assert_eq!(space.mprotect(here, page, RW), Err(Errno::EACCES));
        assert_eq!(space.mmap(here, page, RW, MAP_PRIVATE | MAP_FIXED, file), Ok(here));
    }

    pub(super) fn mremap_refuses<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        let page = World::<G>::va(1);
        let space = &world.processes[0].space;
        let here = at(world, 0);
        world.map(0, 0, 2, RW, PRIVATE);
        world.map(0, 2, 1, PROT_READ, PRIVATE);
        let (may, fixed) = (MREMAP_MAYMOVE, MREMAP_MAYMOVE | MREMAP_FIXED);
        let there = here + 8 * page;
        for (addr, len, new_len, flags, new, errno) in [
            (here, page, page, 8, 0, Errno::EINVAL),
            (here, page, page, MREMAP_FIXED, there, Errno::EINVAL),
            (here, page, page, MREMAP_DONTUNMAP, there, Errno::EINVAL),
            (here, page, 2 * page, may | MREMAP_DONTUNMAP, there, Errno::EINVAL),
            (here + 1, page, page, 0, 0, Errno::EINVAL),
            (here, page, 0, 0, 0, Errno::EINVAL),
            (here, page, MAX, may, 0, Errno::EINVAL),
            (here, 0, page, may, 0, Errno::EINVAL),
            (here, page, page, fixed, there + 1, Errno::EINVAL),
            (here, page, page, fixed, TASK_SIZE, Errno::EINVAL),
            (here, page, 2 * page, fixed, TASK_SIZE - page, Errno::EINVAL),
            (here, page, TASK_SIZE + page, fixed, there, Errno::EINVAL),
            (here, 2 * page, 2 * page, fixed, here + page, Errno::EINVAL),
            (here + page, page, page, fixed, here + page, Errno::EINVAL),
            (here, MAX & !(page - 1), page, fixed, there, Errno::EINVAL),
            (here, page, page, fixed, 0, Errno::EPERM),
            (there, page, page, 0, 0, Errno::EFAULT),
            (MAX & !(page - 1), page, page, 0, 0, Errno::EFAULT),
            (here, 3 * page, 4 * page, may, 0, Errno::EFAULT),
            (here + 2 * page, 2 * page, 2 * page, 0, 0, Errno::EFAULT),
            (here, page, 2 * page, 0, 0, Errno::ENOMEM),
            (here, 2 * page, TASK_SIZE, may, 0, Errno::ENOMEM),
            (here, 2 * page, MAX - 2 * page, may, 0, Errno::ENOMEM),
        ] {
            let result = space.mremap(addr, len, new_len, flags, new);
            assert_eq!(result, Err(errno), "mremap({addr:#x}, {len:#x}, {new_len:#x}, {flags}, {new:#x})");
        }
        assert_eq!(space.mremap(here, 2 * page, 2 * page, 0, 0), Ok(here));
        // It shrinks across mappings.
        assert_eq!(space.mremap(here, 3 * page, page, 0, 0), Ok(here));
        assert!(world.fault(0, 0, Access::Read).is_ok());
        assert_eq!(world.fault(0, 1, Access::Read), Err(Fault::Segv { mapped: false }));
        assert_eq!(world.fault(0, 2, Access::Read), Err(Fault::Segv { mapped: false }));
    }

    pub(super) fn madvise_and_mincore_refuse<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        let page = World::<G>::va(1);
        let space = &world.processes[0].space;
        let here = at(world, 0);
        world.map(0, 0, 2, RW, PRIVATE);
        world.map(0, 3, 1, PROT_READ, PRIVATE);
        world.map(0, 4, 1, RW, SHARED);
        let file = Some((&world.files[2], 0));
        assert_eq!(
            space.mmap(here + 5 * page, 2 * page, RW, MAP_PRIVATE | MAP_FIXED, file),
            Ok(here + 5 * page)
        );
        for (first, len, advice, expected) in [
            (0, page, -1, Err(Errno::EINVAL)),
            (0, page, 5, Err(Errno::EINVAL)),
            (0, page, 1000, Err(Errno::EINVAL)),
            (0, MAX, MADV_DONTNEED, Err(Errno::EINVAL)),
            (0, MAX & !(page - 1), MADV_DONTNEED, Err(Errno::EINVAL)),
            (2, 0, MADV_DONTNEED, Ok(())),
            (2, page, MADV_DONTNEED, Err(Errno::ENOMEM)),
            (0, 4 * page, MADV_NORMAL, Err(Errno::ENOMEM)),
            (0, 2 * page, MADV_WILLNEED, Ok(())),
            (4, page, MADV_FREE, Err(Errno::EINVAL)),
            (5, page, MADV_FREE, Err(Errno::EINVAL)),
            (3, page, MADV_FREE, Ok(())),
            (3, page, MADV_POPULATE_READ, Ok(())),
            (3, page, MADV_POPULATE_WRITE, Err(Errno::EINVAL)),
            (0, 3 * page, MADV_POPULATE_WRITE, Err(Errno::ENOMEM)),
            (5, 2 * page, MADV_POPULATE_READ, Err(Errno::EFAULT)),
        ] {
            let result = space.madvise(here + first * page, len, advice);
            assert_eq!(result, expected, "advice {advice} for {len:#x} from page {first}");
        }
        assert_eq!(space.madvise(here + 1, page, MADV_NORMAL), Err(Errno::EINVAL));
        // The second page is there, populated before the hole was met.
        assert_eq!(world.fault(0, 1, Access::Write), Ok(mm::Resolution::Spurious));

        let mut vec = [9; 8];
        for (addr, len, errno) in [
            (here + 1, page, Errno::EINVAL),
            (here, 3 * page, Errno::ENOMEM),
            (TASK_SIZE, page, Errno::ENOMEM),
            (MAX & !(page - 1), page, Errno::ENOMEM),
            (here, MAX, Errno::ENOMEM),
            (here, 9 * page, Errno::EFAULT),
        ] {
            assert_eq!(space.mincore(addr, len, &mut vec), Err(errno), "mincore({addr:#x}, {len:#x})");
        }
        assert_eq!(space.mincore(here, 0, &mut []), Ok(()));
        assert_eq!(space.mincore(here, page + 1, &mut vec), Ok(()));
        assert_eq!(vec[..3], [1, 1, 9]);

        for (va, errno) in
            [(MAX - 1, Errno::EFAULT), (0, Errno::EFAULT), (here + 2 * page - 1, Errno::EFAULT)]
        {
            assert_eq!(space.read(va, &mut [0; 4]), Err(errno), "{va:#x}");
            assert_eq!(space.write(va, &[0; 4]), Err(errno), "{va:#x}");
        }
        assert_eq!(space.write(here + 3 * page, &[0]), Err(Errno::EFAULT));
    }

    /// Every call with every number that is at some edge, in all places: none may panic, or go on for ever.
    pub(super) fn nothing_is_too_large_or_too_crooked<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        let page = World::<G>::va(1);
        let here = at(world, 0);
        let edges = [
            0,
            1,
            page - 1,
            page,
            here,
            here + 1,
            1 << 47,
            TASK_SIZE - page,
            TASK_SIZE - 1,
            TASK_SIZE,
            TASK_SIZE + 1,
            1 << 63,
            MAX - 2 * page,
            MAX - page,
            MAX & !(page - 1),
            MAX,
        ];
        let mut vec = [0; 4];
        let file = &world.files[0];
        for addr in edges {
            for len in edges {
                let space = &world.processes[0].space;
                for third in edges {
                    let _ = space.mmap(addr, len, RW, third & 0xff | MAP_ANONYMOUS, None);
                    let _ = space.mmap(addr, len, RW, MAP_PRIVATE | third & MAP_FIXED, Some((file, third)));
                    let _ = space.mprotect(addr, len, third & 7);
                    for flags in 0..8 {
                        let _ = space.mremap(addr, len, third, flags, here + page);
                        let _ = space.mremap(here, page, len, flags, addr);
                    }
                }
                for advice in [MADV_NORMAL, MADV_DONTNEED, MADV_FREE, MADV_COLD] {
                    let _ = space.madvise(addr, len, advice);
                }
                let _ = space.mincore(addr, len.min(4 * page), &mut vec);
                let _ = space.mincore(addr, len, &mut vec);
                let _ = space.munmap(addr, len);
            }
            let space = &world.processes[0].space;
            let _ = space.brk(addr);
            let _ = space.read(addr, &mut vec);
            let _ = space.write(addr, &vec);
            for access in [Access::Read, Access::Write, Access::Execute] {
                let _ = space.handle_fault(arch::VirtAddr::new(addr), access);
            }
        }
        let space = &world.processes[0].space;
        assert_eq!(space.munmap(0, TASK_SIZE), Ok(()));
        assert_eq!(
            space.walk(arch::VirtAddr::new(0), TASK_SIZE, std::ops::ControlFlow::Break),
            std::ops::ControlFlow::Continue(())
        );
    }

    pub(super) fn there_is_an_end_to_mappings<G: GranuleType + Sync>(world: &mut World<'_, G>) {
        let page = World::<G>::va(1);
        let space = &world.processes[0].space;
        let first = 1 << 36;
        // Every other page, so that nothing merges; the last has three.
        let count = mm::MAX_MAP_COUNT as u64;
        for i in 0..count {
            let va = first + 2 * i * page;
            let len = if i == count - 1 { 3 * page } else { page };
            assert_eq!(space.mmap(va, len, RW, PRIVATE | MAP_FIXED, None), Ok(va));
        }
        let last = first + 2 * (count - 1) * page;
        assert_eq!(space.mmap(0, page, PROT_READ, PRIVATE, None), Err(Errno::ENOMEM));
        assert_eq!(space.munmap(last + page, page), Err(Errno::ENOMEM));
        assert_eq!(space.mprotect(last + page, page, PROT_READ), Err(Errno::ENOMEM));
        let moved = space.mremap(last + page, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, 1 << 35);
        assert_eq!(moved, Err(Errno::ENOMEM));
        // Nothing has changed, and what makes it fewer may be done.
        assert!(space.handle_fault(arch::VirtAddr::new(last + page), Access::Write).is_ok());
        assert_eq!(space.mprotect(last, 3 * page, PROT_READ), Ok(()));
        assert_eq!(space.munmap(first, page), Ok(()));
        assert_eq!(space.mmap(first, page, RW, PRIVATE | MAP_FIXED, None), Ok(first));
    }
}
