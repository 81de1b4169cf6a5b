//! Kernel mappings: what `create_pgd_mapping` builds, as a walk finds it. Run on the host against the recorder, for
//! each granule, and in the kernel on the real MMU, in address spaces that are never loaded.
//!
//! A failure panics.

use core::ops::ControlFlow;

use arch::{Granule, MemoryType, Mmu, PhysAddr, PteFlags, VirtAddr};
use mm::{KernelProt, Leaf, MapError, Mapping, Mm, TableAlloc, create_pgd_mapping};

/// Where the scenarios get address spaces and tables from.
pub trait Machine {
    /// Its MMU.
    type M: Mmu;
    /// A kernel address space in which nothing is mapped.
    fn new_mm(&self) -> Mm<'static, Self::M>;
    /// Where tables for it come from.
    fn tables(&self) -> &dyn TableAlloc;
    /// An operation has ended: what it owes the MMU must have been done by now. Panics if not, where that can be
    /// known.
    fn operation_ended(&self);
}

/// A scenario.
pub type Scenario<S> = fn(&S);

/// All of them, by name.
pub const fn scenarios<S: Machine>() -> [(&'static str, Scenario<S>); 10] {
    [
        ("blocks_and_groups_where_they_fit", blocks_and_groups_where_they_fit),
        ("edges_are_pages", edges_are_pages),
        ("incongruent_ranges_are_pages", incongruent_ranges_are_pages),
        ("the_same_again_changes_nothing", the_same_again_changes_nothing),
        ("permissions_change_in_place", permissions_change_in_place),
        ("ranges_continue_each_other", ranges_continue_each_other),
        ("the_last_page_of_all", the_last_page_of_all),
        ("the_last_frames_of_all", the_last_frames_of_all),
        ("out_of_tables_changes_nothing", out_of_tables_changes_nothing),
        ("bad_requests_are_refused", bad_requests_are_refused),
    ]
}

/// An address that begins an entry of the root table, so that every smaller size fits.
const BASE: u64 = 0xffff_9000_0000_0000;

fn granule<S: Machine>() -> Granule {
    S::M::GRANULE
}

fn page<S: Machine>() -> u64 {
    granule::<S>().page_size()
}

/// Bytes of a Contiguous group of leaves at `level`.
fn group<S: Machine>(level: u8) -> u64 {
    granule::<S>().level_size(level) * granule::<S>().cont_entries(level) as u64
}

fn mapping(va: u64, pa: u64, size: u64, prot: KernelProt) -> Mapping {
    Mapping { va: VirtAddr::new(va), pa: PhysAddr::new(pa), size, prot, memory: MemoryType::Normal }
}

fn map<S: Machine>(machine: &S, mm: &Mm<'_, S::M>, request: &Mapping) -> Result<(), MapError> {
    let result = create_pgd_mapping(mm, request, machine.tables());
    machine.operation_ended();
    result
}

/// Checks that the walk of `request`'s range finds exactly it, and calls `each` with every leaf.
fn expect_mapped<S: Machine>(mm: &Mm<'_, S::M>, request: &Mapping, mut each: impl FnMut(Leaf)) {
    let mut next = request.va.get();
    let _ = mm.walk(request.va, request.size, |leaf| {
        let size = granule::<S>().level_size(leaf.level);
        let skipped = next.wrapping_sub(leaf.va.get());
        assert!(skipped < size, "a hole at {next:#x}, before {leaf:?}");
        let pa = leaf.pte.pa().get() + skipped;
        assert_eq!(pa, request.pa.get() + (next - request.va.get()), "frame at {next:#x}");
        let flags = leaf.pte.flags();
        let (writable, executable) = (!flags.contains(PteFlags::RDONLY), !flags.contains(PteFlags::PXN));
        let prot = match request.prot {
            KernelProt::ReadExecute => (false, true),
            KernelProt::ReadOnly => (false, false),
            KernelProt::ReadWrite => (true, false),
        };
        assert_eq!((writable, executable), prot, "permissions of {leaf:?}");
        assert_eq!(leaf.pte.memory(), Some(request.memory));
        let never = PteFlags::USER | PteFlags::NG | PteFlags::DBM;
        assert!(!flags.intersects(never) && flags.contains(PteFlags::AF | PteFlags::UXN), "{leaf:?}");
        // The leaf is the same from within as from its start.
        let last = VirtAddr::new(leaf.va.get() + (size - 1));
        assert_eq!(mm.leaf(last), Some(leaf), "from its last byte");
        each(leaf);
        next = leaf.va.get().wrapping_add(size);
        ControlFlow::<()>::Continue(())
    });
    let end = request.va.get().wrapping_add(request.size);
    assert!(next >= end || end == 0 && next == 0, "a hole at {next:#x}");
}

fn is_cont(leaf: Leaf) -> bool {
    leaf.pte.flags().contains(PteFlags::CONT)
}

fn count<S: Machine>(mm: &Mm<'_, S::M>) -> usize {
    let mut leaves = 0;
    let _ = mm.walk(VirtAddr::new(0xffff_0000_0000_0000), 1 << 48, |_| {
        leaves += 1;
        ControlFlow::<()>::Continue(())
    });
    leaves
}

fn blocks_and_groups_where_they_fit<S: Machine>(machine: &S) {
    // One group of pages; one level-2 block; one group of these.
    for (size, level, cont) in [
        (group::<S>(3), 3, true),
        (granule::<S>().level_size(2), 2, false),
        (group::<S>(2), 2, granule::<S>().cont_entries(2) > 1),
    ] {
        let mm = machine.new_mm();
        let request = mapping(BASE, group::<S>(2), size, KernelProt::ReadWrite);
        map(machine, &mm, &request).unwrap();
        expect_mapped::<S>(&mm, &request, |leaf| {
            // A whole table's worth of pages is one block, so a group of pages may be as large as one.
            assert!(leaf.level <= level, "{leaf:?} for {size:#x} bytes");
            assert!(leaf.level != level || is_cont(leaf) == cont, "{leaf:?} for {size:#x} bytes");
        });
    }
    if granule::<S>().has_leaf(1) {
        let mm = machine.new_mm();
        let size = granule::<S>().level_size(1);
        let request = mapping(BASE, 4 * size, size, KernelProt::ReadOnly);
        map(machine, &mm, &request).unwrap();
        expect_mapped::<S>(&mm, &request, |leaf| assert_eq!(leaf.level, 1));
        assert_eq!(count::<S>(&mm), 1);
    }
}

fn edges_are_pages<S: Machine>(machine: &S) {
    let mm = machine.new_mm();
    let (page, group) = (page::<S>(), group::<S>(3));
    // Two pages, a group, three pages.
    let start = group - 2 * page;
    let request =
        mapping(BASE + start, 16 * group + start, 2 * page + group + 3 * page, KernelProt::ReadExecute);
    map(machine, &mm, &request).unwrap();
    expect_mapped::<S>(&mm, &request, |leaf| {
        let offset = leaf.va.get() - BASE;
        assert_eq!(leaf.level, 3);
        assert_eq!(is_cont(leaf), (group..2 * group).contains(&offset), "{leaf:?}");
    });
    for beside in [request.va.get() - 1, request.va.get() + request.size] {
        assert_eq!(mm.leaf(VirtAddr::new(beside)), None);
    }
}

fn incongruent_ranges_are_pages<S: Machine>(machine: &S) {
    let mm = machine.new_mm();
    let request = mapping(BASE, page::<S>(), 2 * group::<S>(3), KernelProt::ReadWrite);
    map(machine, &mm, &request).unwrap();
    expect_mapped::<S>(&mm, &request, |leaf| assert!(leaf.level == 3 && !is_cont(leaf), "{leaf:?}"));
}

fn the_same_again_changes_nothing<S: Machine>(machine: &S) {
    let mm = machine.new_mm();
    let size = granule::<S>().level_size(2) + 3 * group::<S>(3) + page::<S>();
    let request = mapping(BASE, group::<S>(2), size, KernelProt::ReadWrite);
    map(machine, &mm, &request).unwrap();
    let leaves = count::<S>(&mm);
    map(machine, &mm, &request).unwrap();
    // Also a part: of a block, of a group, of both.
    for (offset, size) in
        [(page::<S>(), page::<S>()), (size - 2 * page::<S>(), page::<S>()), (page::<S>(), size / 2)]
    {
        let size = size & !(page::<S>() - 1);
        let part = mapping(BASE + offset, group::<S>(2) + offset, size, KernelProt::ReadWrite);
        map(machine, &mm, &part).unwrap();
    }
    expect_mapped::<S>(&mm, &request, |_| ());
    assert_eq!(count::<S>(&mm), leaves);
}

fn permissions_change_in_place<S: Machine>(machine: &S) {
    let mm = machine.new_mm();
    let size = granule::<S>().level_size(2) + 2 * group::<S>(3) + page::<S>();
    let request = mapping(BASE, group::<S>(2), size, KernelProt::ReadWrite);
    map(machine, &mm, &request).unwrap();
    let leaves = count::<S>(&mm);
    for prot in [KernelProt::ReadOnly, KernelProt::ReadExecute, KernelProt::ReadWrite] {
        let request = Mapping { prot, ..request };
        map(machine, &mm, &request).unwrap();
        expect_mapped::<S>(&mm, &request, |_| ());
        assert_eq!(count::<S>(&mm), leaves, "a leaf changed its size");
    }
}

fn ranges_continue_each_other<S: Machine>(machine: &S) {
    let mm = machine.new_mm();
    let group = group::<S>(3);
    let whole = mapping(BASE, 16 * group, group + 2 * page::<S>(), KernelProt::ReadWrite);
    // A group page by page has no bit: nothing says that it will be whole.
    for offset in (0..group).step_by(page::<S>() as usize) {
        let one = mapping(BASE + offset, whole.pa.get() + offset, page::<S>(), KernelProt::ReadWrite);
        map(machine, &mm, &one).unwrap();
    }
    let rest = mapping(BASE + group, whole.pa.get() + group, 2 * page::<S>(), KernelProt::ReadWrite);
    map(machine, &mm, &rest).unwrap();
    // And live pages without it stay without it.
    map(machine, &mm, &whole).unwrap();
    expect_mapped::<S>(&mm, &whole, |leaf| assert!(!is_cont(leaf), "{leaf:?}"));
}

fn the_last_page_of_all<S: Machine>(machine: &S) {
    let mm = machine.new_mm();
    let last = mapping(0_u64.wrapping_sub(page::<S>()), 0, page::<S>(), KernelProt::ReadOnly);
    map(machine, &mm, &last).unwrap();
    expect_mapped::<S>(&mm, &last, |_| ());
    assert_eq!(count::<S>(&mm), 1);
    let group = group::<S>(3);
    let more = mapping(0_u64.wrapping_sub(2 * group), 8 * group, group, KernelProt::ReadWrite);
    map(machine, &mm, &more).unwrap();
    expect_mapped::<S>(&mm, &more, |leaf| assert!(is_cont(leaf)));
}

fn the_last_frames_of_all<S: Machine>(machine: &S) {
    // A page alone, and a group that ends where physical addresses do.
    for size in [page::<S>(), group::<S>(3)] {
        let mm = machine.new_mm();
        let request = mapping(BASE, (1 << 48) - size, size, KernelProt::ReadOnly);
        map(machine, &mm, &request).unwrap();
        expect_mapped::<S>(&mm, &request, |_| ());
    }
}

/// Gives out a few tables of another allocator.
struct Limited<'a>(&'a dyn TableAlloc, core::cell::Cell<usize>);

impl TableAlloc for Limited<'_> {
    fn alloc_table(&self, level: u8) -> Option<arch::TableFrame> {
        self.1.set(self.1.get().checked_sub(1)?);
        self.0.alloc_table(level)
    }
}

fn out_of_tables_changes_nothing<S: Machine>(machine: &S) {
    // Pages on both sides of where an entry of the root table ends, whatever the granule: two tables of each level
    // below it.
    let edge = 0xffff_8000_0000_0000;
    let request = mapping(edge - 2 * page::<S>(), page::<S>() * 7, 4 * page::<S>(), KernelProt::ReadWrite);
    let needed = 2 * (3 - usize::from(granule::<S>().start_level(mm::VA_BITS)));
    let mm = machine.new_mm();
    let mut given = 0;
    while given < needed {
        let tables = Limited(machine.tables(), core::cell::Cell::new(1));
        let result = create_pgd_mapping(&mm, &request, &tables);
        machine.operation_ended();
        given += 1;
        if given < needed {
            assert!(
                matches!(result, Err(MapError::OutOfTables(_))),
                "{given} of {needed} tables: {result:?}"
            );
            assert_eq!(count::<S>(&mm), 0, "a leaf although it failed");
        } else {
            // The tables of the attempts that failed were kept, so the last one needs only one more.
            assert_eq!(result, Ok(()));
        }
    }
    expect_mapped::<S>(&mm, &request, |_| ());
}

fn bad_requests_are_refused<S: Machine>(machine: &S) {
    let mm = machine.new_mm();
    let page = page::<S>();
    let good = mapping(BASE, page, page, KernelProt::ReadWrite);
    let misaligned = [
        Mapping { va: VirtAddr::new(BASE + 8), ..good },
        Mapping { pa: PhysAddr::new(8), ..good },
        Mapping { size: page + 8, ..good },
        Mapping { size: 0, ..good },
    ];
    for request in misaligned {
        assert_eq!(map(machine, &mm, &request), Err(MapError::Misaligned(request)));
    }
    let out_of_range = [
        Mapping { va: VirtAddr::new(0), ..good },
        Mapping { va: VirtAddr::new(0xfffe_0000_0000_0000), ..good },
        Mapping { va: VirtAddr::new(0_u64.wrapping_sub(page)), size: 2 * page, ..good },
        Mapping { pa: PhysAddr::new((1 << 48) - page), size: 2 * page, ..good },
    ];
    for request in out_of_range {
        assert_eq!(map(machine, &mm, &request), Err(MapError::OutOfRange(request)));
    }
    for memory in [MemoryType::Device, MemoryType::NonCacheable] {
        let request = Mapping { prot: KernelProt::ReadExecute, memory, ..good };
        assert_eq!(map(machine, &mm, &request), Err(MapError::ExecutableDevice(request)));
    }
    assert_eq!(count::<S>(&mm), 0);
}

#[cfg(test)]
mod tests {
    use arch::TableFrame;
    use model::{GranuleType, K4, K16, K64, Recorder};

    use super::*;

    struct Host<G: GranuleType + 'static> {
        recorder: &'static Recorder<G>,
    }

    impl<G: GranuleType> TableAlloc for Host<G> {
        fn alloc_table(&self, level: u8) -> Option<TableFrame> {
            self.recorder.alloc_table(level)
        }
    }

    impl<G: GranuleType> Machine for Host<G> {
        type M = &'static Recorder<G>;

        fn new_mm(&self) -> Mm<'static, Self::M> {
            Mm::new_kernel(self.recorder, self.recorder.new_root())
        }

        fn tables(&self) -> &dyn TableAlloc {
            self
        }

        fn operation_ended(&self) {
            if let Err(violations) = self.recorder.end_operation() {
                panic!("{violations:#?}");
            }
        }
    }

    fn run_all<G: GranuleType + 'static>() {
        for (name, scenario) in scenarios() {
            println!("{name}");
            scenario(&Host::<G> { recorder: Box::leak(Box::new(Recorder::new(64))) });
        }
    }

    #[test]
    fn with_pages_of_4k() {
        run_all::<K4>();
    }

    #[test]
    fn with_pages_of_16k() {
        run_all::<K16>();
    }

    #[test]
    fn with_pages_of_64k() {
        run_all::<K64>();
    }
}
