//! The widest of many gaps, by halves: a tree of maxima, in which a gap wide enough is found in logarithmic time.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::errno::Errno;

/// Of a width that is to be found out. No gap is so wide.
pub(super) const UNKNOWN: u64 = u64::MAX;

/// A binary tree over the widths that a caller has, its leaves: at each node the widest below it, or [`UNKNOWN`] since a change,
/// and then above it too. Who looks for a gap finds it out, under the lock of who only reads: all find the same.
pub(super) struct Maxima {
    /// The root is the second; below a node are those of twice its index and one more. Leaves, which are as many, would follow.
    nodes: Vec<AtomicU64>,
    /// At how many nodes and leaves was looked.
    #[cfg(test)]
    pub(super) looks: core::sync::atomic::AtomicUsize,
}

impl Maxima {
    /// Over one leaf.
    pub(super) const fn new() -> Self {
        Self {
            nodes: Vec::new(),
            #[cfg(test)]
            looks: core::sync::atomic::AtomicUsize::new(0),
        }
    }

    fn leaves(&self) -> usize {
        self.nodes.len().max(1)
    }

    /// Makes room for so many leaves. All is to be found out again when there was none.
    ///
    /// # Errors
    /// [`Errno::OutOfMemory`]: nothing is changed.
    pub(super) fn reserve(&mut self, leaves: usize) -> Result<(), Errno> {
        if leaves > self.leaves() {
            let leaves = leaves.next_power_of_two();
            let mut nodes = Vec::new();
            nodes.try_reserve_exact(leaves).map_err(|_| Errno::OutOfMemory)?;
            nodes.resize_with(leaves, || AtomicU64::new(UNKNOWN));
            self.nodes = nodes;
        }
        Ok(())
    }

    /// After leaves from the first to the last changed: what is above them is to be found out again.
    pub(super) fn forget(&mut self, first: usize, last: usize) {
        let (mut first, mut last) = (self.leaves() + first, self.leaves() + last);
        while last > 1 {
            (first, last) = (first / 2, last / 2);
            if first == last && *self.nodes[first].get_mut() == UNKNOWN {
                return;
            }
            self.nodes[first..=last].iter_mut().for_each(|node| *node.get_mut() = UNKNOWN);
        }
    }

    fn widest(&self, node: usize, leaf: &impl Fn(usize) -> u64) -> u64 {
        #[cfg(test)]
        self.looks.fetch_add(1, Ordering::Relaxed);
        let Some(known) = self.nodes.get(node) else { return leaf(node - self.leaves()) };
        match known.load(Ordering::Relaxed) {
            UNKNOWN => {
                let widest = self.widest(2 * node, leaf).max(self.widest(2 * node + 1, leaf));
                known.store(widest, Ordering::Relaxed);
                widest
            }
            widest => widest,
        }
    }

    /// The first leaf of at least `size` from one on.
    pub(super) fn next(&self, from: usize, size: u64, leaf: impl Fn(usize) -> u64) -> Option<usize> {
        self.find(from, size, leaf, |node| node)
    }

    /// The last leaf of at least `size` up to one.
    pub(super) fn previous(&self, from: usize, size: u64, leaf: impl Fn(usize) -> u64) -> Option<usize> {
        // It is the first in the mirror image of the tree.
        self.find(from, size, leaf, |node| node ^ ((1 << node.ilog2()) - 1))
    }

    /// In a tree whose nodes are `at` these of ours.
    fn find(
        &self,
        from: usize,
        size: u64,
        leaf: impl Fn(usize) -> u64,
        at: impl Fn(usize) -> usize,
    ) -> Option<usize> {
        let leaves = self.leaves();
        let is_wide = |node| self.widest(at(node), &leaf) >= size;
        if from >= leaves {
            return None;
        }
        let mut node = at(leaves + from);
        loop {
            // The highest whose first leaf it is.
            node >>= node.trailing_zeros();
            if is_wide(node) {
                break;
            }
            node += 1;
            if node.is_power_of_two() {
                return None;
            }
        }
        while node < leaves {
            node *= 2;
            if !is_wide(node) {
                node += 1;
            }
        }
        Some(at(node) - leaves)
    }
}
