//! What of the calls on memory is not the address space's own business: descriptors and results in user memory.

use alloc::sync::Arc;

use mm::mman::MAP_ANONYMOUS;
use mm::{Errno, TASK_SIZE};

use crate::process::{Task, files, uaccess};
use crate::vm::PAGE;

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
    task.own_space().mmap(addr, length, prot, flags, file)
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

/// `fold_state(addr)`: 0 where the block is folded, else the obstacle's number, which `tests/user/src/sys.rs` names.
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
