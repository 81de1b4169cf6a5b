//! The scheduler: round robin, by one run queue that all CPUs take from.
//!
//! ```text
//!        run_next                    switch_out
//!  CPU ───────────▶ task at EL0/EL1 ───────────▶ CPU ─┬─ Yield ─▶ run queue
//!   ▲  its address     interrupts of EL0 end           ├─ Park ──▶ parked, until unpark or a deadline
//!   │  space, FP       its time slice                  └─ Exit ──▶ gone
//!   └── wait (WFI) where there is nothing to run
//! ```
//!
//! A CPU runs a task from its own stack, and comes back to it when the task's slice ends: only then, with the task's
//! context saved, is the task put where another CPU may take it. The kernel itself is not preempted: an interrupt that is
//! taken from EL1 returns there; what takes long calls [`cond_resched`].

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{Cell, UnsafeCell};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use arch::aarch64::daif;
use arch::aarch64::task::{self, Context};
use kernel::platform::MAX_CPUS;

use super::space::Space;
use super::stack::MAX_TASKS;
use super::{Task, life};
use crate::lock::IrqMutex;
use crate::user::Loaded;
use crate::{cpu, features, smp, timer, trap};

/// What becomes of a task that leaves its CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// It wants to go on.
    Yield,
    /// It waits for [`unpark`], or until the counter has this value.
    Park(Option<u64>),
    /// It has ended.
    Exit,
}

struct Queues {
    runnable: VecDeque<Arc<Task>>,
    parked: Vec<(Option<u64>, Arc<Task>)>,
}

static QUEUES: IrqMutex<Queues> = IrqMutex::new(Queues { runnable: VecDeque::new(), parked: Vec::new() });

/// CPUs that wait for something to run, a bit each.
static IDLE: AtomicU64 = AtomicU64::new(0);

/// What a CPU runs.
struct PerCpu {
    /// Its own context while it runs a task.
    own: UnsafeCell<Context>,
    /// The task, or null. The CPU holds a reference meanwhile.
    current: AtomicPtr<Task>,
    outcome: Cell<Outcome>,
    /// The counter when the task's slice ends. What the task does in the kernel may go on until it looks.
    slice_end: Cell<u64>,
    loaded: UnsafeCell<Option<Loaded<Space>>>,
}

// SAFETY: each is used by its own CPU only, with interrupts masked, or not by their handlers; `current` is atomic.
unsafe impl Sync for PerCpu {}

static CPUS: [PerCpu; MAX_CPUS] = [const {
    PerCpu {
        own: UnsafeCell::new(Context::new()),
        current: AtomicPtr::new(ptr::null_mut()),
        outcome: Cell::new(Outcome::Yield),
        slice_end: Cell::new(0),
        loaded: UnsafeCell::new(None),
    }
}; MAX_CPUS];

/// Makes room for all tasks that there may be, so that no queue ever allocates.
pub(crate) fn init() {
    let mut queues = QUEUES.lock();
    queues.runnable.reserve_exact(MAX_TASKS);
    queues.parked.reserve_exact(MAX_TASKS);
}

/// The task that this CPU runs; `None` where it is in its own context.
pub(crate) fn current() -> Option<Arc<Task>> {
    // A task that is moved to another CPU in between would read what that one runs, which is itself; but not half way.
    daif::masked(|| {
        let task = CPUS[cpu::index()].current.load(Ordering::Relaxed);
        // SAFETY: while it is the current one, this CPU holds the `Arc` that the pointer is of.
        (!task.is_null()).then(|| unsafe {
            Arc::increment_strong_count(task);
            Arc::from_raw(task)
        })
    })
}

/// Calls `act` with the task that this CPU runs, if it runs one. Interrupts are masked meanwhile.
#[cfg(feature = "selftest")]
pub(crate) fn with_current<R>(act: impl FnOnce(&Task) -> R) -> Option<R> {
    daif::masked(|| {
        // SAFETY: while it is the current one, this CPU holds a reference to it.
        unsafe { CPUS[cpu::index()].current.load(Ordering::Relaxed).as_ref() }.map(act)
    })
}

/// Whether this CPU runs a task. Asked by exception handlers, and where the task can't be moved to another CPU meanwhile.
pub(crate) fn runs_a_task() -> bool {
    !CPUS[cpu::index()].current.load(Ordering::Relaxed).is_null()
}

/// Lets a task run that is in no queue and has not ended.
pub(crate) fn make_runnable(task: Arc<Task>) {
    QUEUES.lock().runnable.push_back(task);
    wake_a_cpu();
}

/// Ends the wait of a parked task. One that is not parked will not wait the next time.
pub(crate) fn unpark(task: &Arc<Task>) {
    {
        let mut queues = QUEUES.lock();
        let Some(index) = queues.parked.iter().position(|(_, parked)| Arc::ptr_eq(parked, task)) else {
            task.unparked.store(true, Ordering::Relaxed);
            return;
        };
        let (_, task) = queues.parked.swap_remove(index);
        queues.runnable.push_back(task);
    }
    wake_a_cpu();
}

/// Wakes a CPU that has nothing to run, if there is one.
fn wake_a_cpu() {
    // Who clears a bit wakes that CPU: the next one that is woken is another. A CPU sets its bit before it waits again.
    let Ok(idle) = IDLE.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |idle| {
        (idle != 0).then_some(idle & idle.wrapping_sub(1))
    }) else {
        return;
    };
    smp::wake_cpu(idle.trailing_zeros() as usize);
}

/// The next task, after those whose deadline has passed became runnable.
fn next() -> Option<Arc<Task>> {
    let mut queues = QUEUES.lock();
    let now = timer::now();
    while let Some(due) =
        queues.parked.iter().position(|(deadline, _)| deadline.is_some_and(|deadline| deadline <= now))
    {
        let (_, task) = queues.parked.swap_remove(due);
        queues.runnable.push_back(task);
    }
    queues.runnable.pop_front()
}

/// Runs one slice of the next task, if there is one; returns whether there was. Called from a CPU's own context with
/// interrupts masked, and returns so.
pub(crate) fn run_next() -> bool {
    let Some(task) = next() else { return false };
    let me = &CPUS[cpu::index()];
    let fp = features::common().fp_simd;
    if let Some(space) = task.space() {
        // SAFETY: what processes map is memory of the allocator, or of files, that no reference refers to. This CPU has
        // nothing loaded. The cell is this CPU's.
        unsafe { *me.loaded.get() = Some(Loaded::new(&space)) };
    }
    // SAFETY: nobody else runs the task; it was taken from the queue. FP is allowed where it is there.
    let registers = unsafe { &mut *task.registers.get() };
    task::set_thread_pointer(registers.thread_pointer);
    if fp {
        // SAFETY: as above.
        unsafe { registers.fp.load() };
    }
    me.slice_end.set(timer::now() + timer::frequency() / timer::TICK_HZ);
    let own_stack = cpu::set_stack_base(task.stack.base());
    me.current.store(Arc::as_ptr(&task).cast_mut(), Ordering::Relaxed);
    // SAFETY: interrupts are masked. The task's context was saved when it left a CPU, or it is new; its stack is its own.
    unsafe { task::switch(me.own.get(), task.context.get()) };
    me.current.store(ptr::null_mut(), Ordering::Relaxed);
    cpu::set_stack_base(own_stack);
    // SAFETY: as above.
    let registers = unsafe { &mut *task.registers.get() };
    registers.thread_pointer = task::thread_pointer();
    if fp {
        // SAFETY: as above.
        unsafe { registers.fp.save() };
    }
    unload();
    match me.outcome.get() {
        Outcome::Yield => QUEUES.lock().runnable.push_back(task),
        Outcome::Park(deadline) => {
            let mut queues = QUEUES.lock();
            if task.unparked.swap(false, Ordering::Relaxed) {
                queues.runnable.push_back(task);
            } else {
                queues.parked.push((deadline, task));
            }
        }
        Outcome::Exit => drop(task),
    }
    true
}

/// Leaves the CPU, as the task that it runs. Returns when the task goes on, perhaps on another CPU. No lock may be
/// held but mmap_locks.
///
/// # Panics
/// Where this CPU runs no task.
pub(crate) fn switch_out(outcome: Outcome) {
    daif::masked_across_cpus(|| {
        let me = &CPUS[cpu::index()];
        let task = me.current.load(Ordering::Relaxed);
        assert!(!task.is_null(), "a CPU leaves itself");
        me.outcome.set(outcome);
        // SAFETY: the task is this one, which its CPU holds a reference to. The CPU's context was saved by `run_next`,
        // which has also kept the bounds of its stack; they are not looked at before it has set them.
        unsafe { task::switch((*task).context.get(), me.own.get()) };
    });
}

/// Whether this is a task that may leave its CPU here.
fn may_switch() -> bool {
    // The kernel is not preempted, so that a task is not moved to another CPU between the two.
    !daif::is_masked() && !trap::in_interrupt() && runs_a_task()
}

/// Lets others run, if this is a task whose slice has ended. Called with no lock held but those that are waited for by
/// [`relax`]: who spins for another would do so for ever, on the CPU that has to run who has it.
pub(crate) fn cond_resched() {
    if may_switch() && timer::now() >= CPUS[cpu::index()].slice_end.get() {
        switch_out(Outcome::Yield);
    }
}

/// Lets others run, if this is a task: called again and again by who waits for a lock that may be held across
/// [`cond_resched`].
pub(crate) fn relax() {
    if may_switch() {
        switch_out(Outcome::Yield);
    } else {
        core::hint::spin_loop();
    }
}

/// Waits for [`unpark`], or until the counter has the value `deadline`.
pub(crate) fn park(deadline: Option<u64>) {
    switch_out(Outcome::Park(deadline));
}

/// Takes the current task's address space off this CPU.
pub(crate) fn unload() {
    daif::masked(|| {
        // SAFETY: the cell is this CPU's, and interrupts are masked.
        drop(unsafe { (*CPUS[cpu::index()].loaded.get()).take() });
    });
}

/// Loads the address space of the current task, where none is loaded.
pub(crate) fn load(space: &Arc<Space>) {
    daif::masked(|| {
        let loaded = CPUS[cpu::index()].loaded.get();
        // SAFETY: the cell is this CPU's, and interrupts are masked; for what is mapped, see `run_next`.
        unsafe {
            assert!((*loaded).is_none(), "an address space is loaded already");
            *loaded = Some(Loaded::new(space));
        }
    });
}

/// Waits for an interrupt, unless something can run. Called with interrupts masked; whoever made something runnable
/// meanwhile sends one.
pub(crate) fn wait() {
    let bit = 1 << cpu::index();
    IDLE.fetch_or(bit, Ordering::SeqCst);
    if QUEUES.lock().runnable.is_empty() {
        daif::wfi();
    }
    IDLE.fetch_and(!bit, Ordering::SeqCst);
}

/// Runs tasks on this CPU, from its own context, until `done`. That is looked at after each slice and each interrupt.
pub(crate) fn run_until(done: impl Fn() -> bool) {
    while !done() {
        let ran = daif::masked(|| {
            let ran = run_next();
            if !ran {
                wait();
            }
            ran
        });
        if !ran {
            life::idle_pass();
        }
    }
}
