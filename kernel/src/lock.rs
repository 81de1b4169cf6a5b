//! A spin lock that interrupt handlers may take too.

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use arch::aarch64::daif;
use spin::mutex::{SpinMutex, SpinMutexGuard};

/// A mutex that masks IRQ and FIQ on this CPU while it is held.
///
/// When to use it: for everything that an interrupt handler touches, and for every lock that may be
/// taken while such a lock is held. With a plain [`spin::Mutex`] an interrupt on the CPU that holds
/// the lock, whose handler wants it, would spin for ever. A plain one is right where no handler ever
/// takes it, since it leaves interrupts on. Either way the section is short, and nothing in it waits
/// for another CPU.
///
/// Guards are dropped in the reverse order of their making, as scopes do it; the drop of one that
/// finds interrupts unmasked panics, since an outer guard must have gone before it.
pub(crate) struct IrqMutex<T> {
    inner: SpinMutex<T>,
}

/// Gives access to the data of an [`IrqMutex`]; its drop releases the lock and then restores the
/// interrupt masks, in this order: between the two an interrupt would find the lock taken.
pub(crate) struct IrqGuard<'a, T> {
    // Fields are dropped from the first to the last.
    data: SpinMutexGuard<'a, T>,
    _masks: Masks,
}

/// The masks to be restored at drop. On this CPU, so it can't be sent to another.
struct Masks(daif::Saved, PhantomData<*const ()>);

impl Masks {
    fn save() -> Self {
        Self(daif::save_and_mask(), PhantomData)
    }
}

impl Drop for Masks {
    fn drop(&mut self) {
        assert!(daif::is_masked(), "IrqMutex guards dropped in the wrong order");
        // SAFETY: the guard is not Send, so this is the CPU that saved them; the locks taken after
        // this one were released before it, by the rule of `IrqMutex`.
        unsafe { daif::restore(self.0) };
    }
}

impl<T> IrqMutex<T> {
    /// A mutex that holds `value`.
    pub(crate) const fn new(value: T) -> Self {
        Self { inner: SpinMutex::new(value) }
    }

    /// Masks interrupts and takes the lock, waiting for it if need be.
    pub(crate) fn lock(&self) -> IrqGuard<'_, T> {
        let masks = Masks::save();
        IrqGuard { data: self.inner.lock(), _masks: masks }
    }

    /// Masks interrupts and takes the lock, or changes nothing where it is held.
    pub(crate) fn try_lock(&self) -> Option<IrqGuard<'_, T>> {
        let masks = Masks::save();
        Some(IrqGuard { data: self.inner.try_lock()?, _masks: masks })
    }
}

impl<T> Deref for IrqGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T> DerefMut for IrqGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.data
    }
}
