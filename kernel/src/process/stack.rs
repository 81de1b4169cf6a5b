//! The kernel stacks of tasks. They are mapped for good, with a guard below each, and used again and again.

use core::sync::atomic::{AtomicUsize, Ordering};

use arch::VirtAddr;
use arch::aarch64::trap::STACK_SIZE;
use arrayvec::ArrayVec;
use mm::Errno;

use crate::lock::IrqMutex;
use crate::vm;

/// The most tasks at a time.
pub(crate) const MAX_TASKS: usize = 64;

/// Those that were mapped so far.
static MADE: AtomicUsize = AtomicUsize::new(0);
/// Those of them that no task has. Locked also while one is mapped.
static FREE: IrqMutex<ArrayVec<usize, MAX_TASKS>> = IrqMutex::new(ArrayVec::new_const());

/// A kernel stack that is one task's.
pub(crate) struct KernelStack {
    index: usize,
}

impl KernelStack {
    /// A stack.
    ///
    /// # Errors
    /// [`Errno::EAGAIN`] where there are [`MAX_TASKS`] already, [`Errno::OutOfMemory`].
    pub(crate) fn new() -> Result<Self, Errno> {
        let mut free = FREE.lock();
        if let Some(index) = free.pop() {
            return Ok(Self { index });
        }
        let index = MADE.load(Ordering::Relaxed);
        if index == MAX_TASKS {
            return Err(Errno::EAGAIN);
        }
        vm::map_task_stack(index).map_err(|_| Errno::OutOfMemory)?;
        MADE.store(index + 1, Ordering::Relaxed);
        Ok(Self { index })
    }

    /// Its lowest address.
    pub(crate) fn base(&self) -> VirtAddr {
        vm::task_stack(self.index)
    }

    /// One past its highest address.
    pub(crate) fn top(&self) -> VirtAddr {
        VirtAddr::new(self.base().get() + STACK_SIZE)
    }
}

impl Drop for KernelStack {
    fn drop(&mut self) {
        FREE.lock().push(self.index);
    }
}

/// How many are mapped.
#[cfg(feature = "selftest")]
pub(crate) fn made() -> usize {
    MADE.load(Ordering::Relaxed)
}
