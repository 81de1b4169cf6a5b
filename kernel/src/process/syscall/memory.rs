//! What of the calls on memory is not the address space's own business: descriptors and results in user memory.

use alloc::sync::Arc;
use core::ops::Range;

use mm::mman::{
    MADV_POPULATE_READ, MADV_POPULATE_WRITE, MAP_ANONYMOUS, MAP_LOCKED, MAP_NONBLOCK, MAP_POPULATE,
    MAP_PRIVATE, MAP_TYPE, PROT_WRITE,
};
use mm::{Errno, TASK_SIZE};

use crate::process::sched::Outcome;
use crate::process::{Task, files, reclaim, sched, uaccess};
use crate::vm::PAGE;

/// `brk(addr)`: where the end of the heap is then.
///
/// # Errors
/// None, as on Linux: without memory it is where it was.
pub(super) fn brk(task: &Arc<Task>, addr: u64) -> Result<u64, Errno> {
    let space = task.own_space();
    // Below the heap's beginning nothing is moved, and so no memory wanted.
    reclaim::retrying(|| space.brk(addr)).or_else(|_| space.brk(0))
}

/// `mmap(addr, length, prot, flags, fd, offset)`
///
/// # Errors
/// As Linux's.
pub(super) fn mmap(task: &Arc<Task>, args: [u64; 6]) -> Result<u64, Errno> {
    let [addr, length, prot, flags, fd, offset] = args;
    if !offset.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    let file = if flags & MAP_ANONYMOUS == 0 { Some((files::to_map(task, fd)?, offset)) } else { None };
    const POPULATES: u64 = MAP_POPULATE | MAP_LOCKED;
    let start = task.own_space().mmap(addr, length, prot, flags & !POPULATES, file)?;
    if flags & POPULATES != 0 && flags & MAP_NONBLOCK == 0 {
        let writes = flags & MAP_TYPE == MAP_PRIVATE && prot & PROT_WRITE != 0;
        let advice = if writes { MADV_POPULATE_WRITE } else { MADV_POPULATE_READ };
        // As far as it goes; what does not will fault.
        let _ = populate(task, start..start + length.next_multiple_of(PAGE), advice);
    }
    Ok(start)
}

/// `madvise(addr, length, advice)`
///
/// # Errors
/// As Linux's; EINTR where the process is killed while it populates.
pub(super) fn madvise(task: &Arc<Task>, addr: u64, length: u64, advice: i32) -> Result<u64, Errno> {
    let end = length.checked_next_multiple_of(PAGE).and_then(|size| addr.checked_add(size));
    match (advice, end) {
        (MADV_POPULATE_READ | MADV_POPULATE_WRITE, Some(end)) if addr < end => {
            populate(task, addr..end, advice)?;
        }
        _ => task.own_space().madvise(addr, length, advice)?,
    }
    Ok(0)
}

/// Populates a range piece by piece: in between others may run, and a process that was killed ends.
fn populate(task: &Arc<Task>, range: Range<u64>, advice: i32) -> Result<(), Errno> {
    const PIECE: u64 = 2 << 20;
    let space = task.own_space();
    let mut at = range.start;
    loop {
        let bytes = (range.end - at).min(PIECE);
        reclaim::retrying(|| space.madvise(at, bytes, advice))?;
        at += bytes;
        if at == range.end {
            return Ok(());
        }
        sched::switch_out(Outcome::Yield);
        if task.killed().is_some() {
            return Err(Errno::EINTR);
        }
    }
}

/// `mincore(addr, length, vec)`
///
/// # Errors
/// As Linux's.
pub(super) fn mincore(task: &Arc<Task>, addr: u64, length: u64, vec: u64) -> Result<u64, Errno> {
    const PAGES: u64 = 512;
    if !addr.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    let pages = length.div_ceil(PAGE);
    if addr.checked_add(length).is_none_or(|end| end > TASK_SIZE) {
        return Err(Errno::ENOMEM);
    }
    if vec.checked_add(pages).is_none_or(|end| end > TASK_SIZE) {
        return Err(Errno::EFAULT);
    }
    let space = task.own_space();
    let mut done = 0;
    while done < pages && task.killed().is_none() {
        sched::cond_resched();
        let mut residency = [0; PAGES as usize];
        let residency = &mut residency[..(pages - done).min(PAGES) as usize];
        space.mincore(addr + done * PAGE, residency.len() as u64 * PAGE, residency)?;
        uaccess::write(task, vec + done, residency)?;
        done += residency.len() as u64;
    }
    Ok(0)
}

/// A call that Linux has not, for the self-tests: whether the block that holds an address is folded, or what is in the way.
#[cfg(feature = "selftest")]
pub(super) const FOLD_STATE: u64 = 0xf01d;

/// Another: takes pages as if memory were short.
#[cfg(feature = "selftest")]
pub(super) const RECLAIM: u64 = 0x4ec1;

/// `reclaim(pages)`: of the process's own address space; how many.
///
/// # Errors
/// EAGAIN where another process changes its mappings.
#[cfg(feature = "selftest")]
pub(super) fn reclaim(task: &Arc<Task>, pages: u64) -> Result<u64, Errno> {
    task.own_space().reclaim(pages).ok_or(Errno::EAGAIN)
}

/// Another: how many faults of the process's address space have waited.
#[cfg(feature = "selftest")]
pub(super) const FAULTS_WAITED: u64 = 0xf017;

/// `faults_waited()`: for who changed mappings in the lower half, for the lock of a table in the upper.
#[cfg(feature = "selftest")]
pub(super) fn faults_waited(task: &Arc<Task>) -> u64 {
    use mm::counters::Counter::{FaultsWaitedForMappings, FaultsWaitedForTable};
    let space = task.own_space();
    let count = |counter| space.counters().get(counter).min(u32::MAX.into());
    count(FaultsWaitedForTable) << 32 | count(FaultsWaitedForMappings)
}

/// Another: how much memory is in use.
#[cfg(feature = "selftest")]
pub(super) const MEMORY_USED: u64 = 0x05ed;

/// `memory_used()`: bytes of the heap in the lower half, frames that are neither its nor the kernel's for good in the upper.
#[cfg(feature = "selftest")]
pub(super) fn memory_used() -> u64 {
    let used = crate::selftest::harness::Use::now();
    used.frames << 32 | used.heap_bytes as u64
}

/// `fold_state(addr)`: 0 where the block is folded, else the obstacle's number, which `tests/user/src/fold.rs` names.
///
/// # Errors
/// EFAULT where the address is no user's.
#[cfg(feature = "selftest")]
pub(super) fn fold_state(task: &Arc<Task>, addr: u64) -> Result<u64, Errno> {
    use mm::contpte::Obstacle;
    if addr >= TASK_SIZE {
        return Err(Errno::EFAULT);
    }
    let va = arch::VirtAddr::new(addr);
    Ok(match task.own_space().why_not_folded(va) {
        Ok(()) => 0,
        Err(Obstacle::NotUser) => 1,
        Err(Obstacle::NoTable) => 2,
        Err(Obstacle::Hole(_)) => 3,
        Err(Obstacle::Misaligned(_)) => 4,
        Err(Obstacle::Special(_)) => 5,
        Err(Obstacle::SmallFolio(_)) => 6,
        Err(Obstacle::Discontiguous(_)) => 7,
        Err(Obstacle::MixedAttributes(_)) => 8,
        Err(Obstacle::None) => 9,
    })
}
