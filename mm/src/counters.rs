//! What folding did so far, for one address space.

use core::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $(#[cfg($cfg:meta)])? $name:ident)*) => {
        /// What is counted.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Counter {
            $($(#[doc = $doc])* $(#[cfg($cfg)])? $name),*
        }

        /// All of them.
        pub const COUNTERS: &[Counter] = &[$($(#[cfg($cfg)])? Counter::$name),*];
    };
}

counters! {
    /// Blocks folded by setting their last PTE.
    Folds
    /// Blocks set as folded at once, by a call that set all of their PTEs.
    FoldedAtOnce
    /// Blocks folded again by a refold.
    Refolds
    /// Blocks unfolded because one of their PTEs was set.
    UnfoldsBySet
    /// Blocks unfolded because a part was cleared, or made old and clean.
    UnfoldsByClear
    /// Blocks unfolded because a part was write-protected, or its permission changed in place.
    UnfoldsByWriteProtect
    /// Blocks unfolded because the permission of a PTE changed.
    UnfoldsByAccessFlags
    /// Folded blocks that were cleared whole, and so never unfolded.
    ClearedFolded
    /// Faults that found the mmap_lock held by who changes mappings, and waited for it.
    FaultsWaitedForMappings
    /// Faults that found the lock of their table held, and waited for it.
    FaultsWaitedForTable
    /// TLB invalidations issued.
    TlbInvalidations
    /// Conversions refused because the mm is not a user's.
    RefusedByGate
    /// Warnings: [`set_pte`](crate::ptep::set_pte) would have overwritten an entry of a folded block.
    SetPteOnFolded
    /// Warnings: a public function that changes entries was called on `efi_mm`.
    #[cfg(feature = "efi")]
    MutatorOnEfi
}

/// The counts of one address space. Each is exact; several read together are not of one moment.
#[derive(Debug)]
pub struct Counters([AtomicU64; COUNTERS.len()]);

impl Counters {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; COUNTERS.len()])
    }

    pub(crate) fn add(&self, counter: Counter, n: u64) {
        self.0[counter as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// Blocks that are folded now: what was folded, without what was unfolded or cleared since. Exact while nobody
    /// folds or unfolds.
    pub fn blocks_folded(&self) -> u64 {
        use Counter::*;
        let sum = |counters: &[Counter]| counters.iter().map(|&counter| self.get(counter)).sum::<u64>();
        let folded = sum(&[Folds, FoldedAtOnce, Refolds]);
        let gone = [UnfoldsBySet, UnfoldsByClear, UnfoldsByWriteProtect, UnfoldsByAccessFlags, ClearedFolded];
        // Read one after the other, the counts may be of different moments.
        folded.saturating_sub(sum(&gone))
    }

    /// How often it happened.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Ordering::Relaxed)
    }
}
