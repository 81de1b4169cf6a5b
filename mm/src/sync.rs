//! The lock of what a model checker explores: spin's, or loom's under `--cfg loom`.

#[cfg(not(loom))]
pub(crate) use spin::Mutex;

/// loom's lock with the interface of spin's.
#[cfg(loom)]
#[derive(Debug)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(loom)]
impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().expect("loom ends an execution at its first panic")
    }
}
