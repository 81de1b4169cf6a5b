//! What each call of an address space does and refuses, one after the other, on the model MMU.

mod errnos;
mod faults;
mod injection;
mod last_moment;
mod maintenance;
mod sharing;
mod threads;

use arch::VirtAddr;
use arch::features::{BbmLevel, Hafdbs};
use mm::contpte::Obstacle;
use mm::mman::*;
use mm::{Access, Fault, Resolution};
use model::GranuleType;
use pleat_host_tests::address_space::World;
use pleat_host_tests::property::Setup;

const RW: u64 = PROT_READ | PROT_WRITE;
const RX: u64 = PROT_READ | PROT_EXEC;
const PRIVATE: u64 = MAP_PRIVATE | MAP_ANONYMOUS;
const SHARED: u64 = MAP_SHARED | MAP_ANONYMOUS;

/// Can nothing that it need not.
const CORTEX_A72: Setup = Setup {
    hafdbs: Hafdbs::None,
    bbm: BbmLevel::Level0,
    listed: false,
    tlb_range: false,
    ets2: false,
    asids: 16,
};

/// Sets access flag and dirty state, and invalidates ranges.
const NEOVERSE: Setup = Setup {
    hafdbs: Hafdbs::AfDbm,
    bbm: BbmLevel::Level0,
    listed: false,
    tlb_range: true,
    ets2: true,
    asids: 16,
};

/// What tests do with a process: by pages of its arena.
trait Calls {
    /// Maps pages, at this place.
    fn map(&self, process: usize, page: u64, pages: u64, prot: u64, flags: u64);
    /// Faults a page.
    fn fault(&self, process: usize, page: u64, access: Access) -> Result<Resolution, Fault>;
    /// A word of a page, as the process reads it.
    fn word(&self, process: usize, page: u64) -> u32;
    /// Writes it.
    fn set_word(&self, process: usize, page: u64, word: u32);
    fn why(&self, process: usize, page: u64) -> Result<(), Obstacle>;
    fn protect(&self, process: usize, page: u64, pages: u64, prot: u64);
    fn advise(&self, process: usize, page: u64, pages: u64, advice: i32);
    fn unmap(&self, process: usize, page: u64, pages: u64);
    /// The frame of a page.
    fn frame(&self, process: usize, page: u64) -> u64;
    /// Frames in use by processes.
    fn used(&self) -> u64;
    /// The model has found nothing.
    fn expect_sound(&self);
}

/// The address of a page of the arena.
fn at<G: GranuleType + Sync>(world: &World<'_, G>, page: u64) -> u64 {
    World::<G>::va(world.arena().start + page)
}

impl<G: GranuleType + Sync> Calls for World<'_, G> {
    #[track_caller]
    fn map(&self, process: usize, page: u64, pages: u64, prot: u64, flags: u64) {
        let va = at(self, page);
        let result =
            self.processes[process].space.mmap(va, World::<G>::va(pages), prot, flags | MAP_FIXED, None);
        assert_eq!(result, Ok(va));
    }

    fn fault(&self, process: usize, page: u64, access: Access) -> Result<Resolution, Fault> {
        self.processes[process].space.handle_fault(VirtAddr::new(at(self, page)), access)
    }

    #[track_caller]
    fn word(&self, process: usize, page: u64) -> u32 {
        let mut bytes = [0; 4];
        self.processes[process].space.read(at(self, page) + 8, &mut bytes).expect("it may be read");
        u32::from_le_bytes(bytes)
    }

    #[track_caller]
    fn set_word(&self, process: usize, page: u64, word: u32) {
        let space = &self.processes[process].space;
        space.write(at(self, page) + 8, &word.to_le_bytes()).expect("it may be written");
    }

    fn why(&self, process: usize, page: u64) -> Result<(), Obstacle> {
        self.processes[process].space.why_not_folded(VirtAddr::new(at(self, page)))
    }

    #[track_caller]
    fn protect(&self, process: usize, page: u64, pages: u64, prot: u64) {
        let result = self.processes[process].space.mprotect(at(self, page), World::<G>::va(pages), prot);
        assert_eq!(result, Ok(()));
    }

    #[track_caller]
    fn advise(&self, process: usize, page: u64, pages: u64, advice: i32) {
        let result = self.processes[process].space.madvise(at(self, page), World::<G>::va(pages), advice);
        assert_eq!(result, Ok(()));
    }

    #[track_caller]
    fn unmap(&self, process: usize, page: u64, pages: u64) {
        let result = self.processes[process].space.munmap(at(self, page), World::<G>::va(pages));
        assert_eq!(result, Ok(()));
    }

    fn frame(&self, process: usize, page: u64) -> u64 {
        let mut frame = None;
        let _ = self.processes[process].space.walk(VirtAddr::new(at(self, page)), 1, |leaf| {
            frame = Some(leaf.pte.pa().pfn(G::GRANULE).get());
            std::ops::ControlFlow::<()>::Continue(())
        });
        frame.expect("a page that is mapped")
    }

    fn used(&self) -> u64 {
        let counts = self.frames.counts();
        counts.total - counts.free
    }

    #[track_caller]
    fn expect_sound(&self) {
        if let Err(violations) = self.machine.check() {
            panic!("{}", violations[0]);
        }
    }
}

/// Runs a test on machines of all kinds.
macro_rules! on_all {
    ($name:ident) => {
        #[test]
        fn $name() {
            for setup in [$crate::CORTEX_A72, $crate::NEOVERSE] {
                pleat_host_tests::address_space::with_world::<model::K4>(setup, inner::$name);
                pleat_host_tests::address_space::with_world::<model::K16>(setup, inner::$name);
                pleat_host_tests::address_space::with_world::<model::K64>(setup, inner::$name);
            }
        }
    };
}
use on_all;
