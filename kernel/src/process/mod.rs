//! Processes: programs at EL0, by a subset of Linux arm64's system calls: docs/syscalls.md.
//!
//! ```text
//!   EL0 ──exception──▶ trap ─┬─ SVC ────▶ syscall ─▶ uaccess, files, exec, life
//!    ▲                       ├─ abort ──▶ mm::AddressSpace::handle_fault, else the process is killed
//!    └── trap_return ◀───────┴─ IRQ ────▶ sched: the slice ends
//! ```
//!
//! Each process has one task; two may share an address space (CLONE_VM). Lock order: the table of processes, then a
//! process's own locks, each of which is held for a few instructions; the address space's come last.

pub(crate) mod exec;
pub(crate) mod files;
pub(crate) mod init;
pub(crate) mod initramfs;
pub(crate) mod injection;
pub(crate) mod life;
pub(crate) mod random;
pub(crate) mod reclaim;
pub(crate) mod sched;
pub(crate) mod space;
pub(crate) mod stack;
pub(crate) mod syscall;
pub(crate) mod trap;
pub(crate) mod tty;
pub(crate) mod uaccess;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};

use arch::aarch64::task::{Context, FpState};
use arch::aarch64::trap::TrapFrame;
use mm::Errno;
use spin::Mutex;

use self::files::Files;
#[cfg(feature = "selftest")]
use self::injection::FailNth;
use self::space::Space;
use self::stack::KernelStack;
use crate::heap;

/// Number of a process. The first is 1.
pub(crate) type Pid = i32;

/// A process, with the one task that it has.
pub(crate) struct Task {
    pub(crate) pid: Pid,
    /// Its parent's number; 0 where that is the kernel.
    parent: AtomicI32,
    stack: KernelStack,
    /// Where its kernel code goes on: used by the CPU that runs it.
    context: UnsafeCell<Context>,
    /// As above.
    registers: UnsafeCell<Registers>,
    /// Somebody ended a wait that has not begun yet. Changed under the scheduler's lock.
    unparked: AtomicBool,
    /// `None` once it has ended.
    space: Mutex<Option<Arc<Space>>>,
    files: Mutex<Files>,
    /// The path of its program, for messages.
    name: Mutex<Vec<u8>>,
    /// The signal that ends it as soon as it would return to EL0, or 0.
    killed: AtomicI32,
    /// The signal that its parent asked for at its end: SIGCHLD, or it is a "clone" child for `wait4`.
    exit_signal: u8,
    /// Where to write 0 at its end, for who shares its memory (CLONE_CHILD_CLEARTID); 0 for nowhere.
    clear_child_tid: AtomicU64,
    /// Who waits until it ends or has another program (CLONE_VFORK).
    vfork_parent: Mutex<Option<Arc<Task>>>,
    /// Its status, once it has ended.
    status: Mutex<Option<Status>>,
    #[cfg(feature = "selftest")]
    fail_nth: FailNth,
}

/// Registers of EL0 that are in no trap frame, while the task does not run.
struct Registers {
    thread_pointer: u64,
    fp: FpState,
}

// SAFETY: the cells are used by the CPU that runs the task; the scheduler gives it to one at a time, under its lock.
unsafe impl Sync for Task {}
// SAFETY: as above.
unsafe impl Send for Task {}

/// Tasks whose memory is not given back yet.
static TASKS: AtomicUsize = AtomicUsize::new(0);

/// What a new task begins with.
pub(crate) struct Begin {
    pub(crate) pid: Pid,
    pub(crate) parent: Pid,
    pub(crate) exit_signal: u8,
    pub(crate) clear_child_tid: u64,
    pub(crate) thread_pointer: u64,
    pub(crate) name: Vec<u8>,
    pub(crate) files: Files,
    pub(crate) vfork_parent: Option<Arc<Task>>,
}

impl Task {
    /// A task that will enter EL0 with the registers in `frame`.
    ///
    /// # Errors
    /// [`Errno::EAGAIN`] where there are as many as there may be, [`Errno::OutOfMemory`].
    pub(crate) fn new(
        begin: Begin,
        space: Arc<Space>,
        frame: &TrapFrame,
        fp: FpState,
    ) -> Result<Arc<Self>, Errno> {
        let stack = KernelStack::new()?;
        let top = (stack.top().get() - size_of::<TrapFrame>() as u64) as *mut TrapFrame;
        // SAFETY: the top of a stack that is mapped, aligned, and nobody's but this task's.
        unsafe { top.write(frame.clone()) };
        TASKS.fetch_add(1, Ordering::Relaxed);
        // Dropped where there is no memory for it.
        heap::try_arc(Self {
            pid: begin.pid,
            parent: AtomicI32::new(begin.parent),
            stack,
            context: UnsafeCell::new(Context::returning(top)),
            registers: UnsafeCell::new(Registers { thread_pointer: begin.thread_pointer, fp }),
            unparked: AtomicBool::new(false),
            space: Mutex::new(Some(space)),
            files: Mutex::new(begin.files),
            name: Mutex::new(begin.name),
            killed: AtomicI32::new(0),
            exit_signal: begin.exit_signal,
            clear_child_tid: AtomicU64::new(begin.clear_child_tid),
            vfork_parent: Mutex::new(begin.vfork_parent),
            status: Mutex::new(None),
            #[cfg(feature = "selftest")]
            fail_nth: FailNth::new(),
        })
        .ok_or(Errno::OutOfMemory)
    }

    /// Its address space, unless it has ended.
    pub(crate) fn space(&self) -> Option<Arc<Space>> {
        self.space.lock().clone()
    }

    /// Its address space, as its own code needs it.
    ///
    /// # Panics
    /// Where it has ended, which it has not while it runs.
    pub(crate) fn own_space(&self) -> Arc<Space> {
        self.space().expect("a process that runs has an address space")
    }

    pub(crate) fn parent(&self) -> Pid {
        self.parent.load(Ordering::Relaxed)
    }

    /// Ends it by a signal, as soon as it would return to EL0. The first signal counts.
    pub(crate) fn kill(self: &Arc<Self>, signal: Signal) {
        let _ = self.killed.compare_exchange(0, signal as i32, Ordering::Relaxed, Ordering::Relaxed);
        sched::unpark(self);
    }

    /// The signal that ends it.
    pub(crate) fn killed(&self) -> Option<Status> {
        match self.killed.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(Status::Killed(signal as u8)),
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        TASKS.fetch_sub(1, Ordering::Release);
    }
}

/// `pid 3 (/bin/hello)`
impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} ({})", self.pid, self.name.lock().escape_ascii())
    }
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Status {
    /// By `exit` or `exit_group`.
    Exited(u8),
    /// By a signal.
    Killed(u8),
}

impl Status {
    /// As `wait4` stores it.
    pub(crate) fn wait_status(self) -> i32 {
        match self {
            Self::Exited(code) => i32::from(code) << 8,
            Self::Killed(signal) => signal.into(),
        }
    }

    /// As a shell would tell it, and QEMU does.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => 128 + signal,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with status {code}"),
            Self::Killed(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// Linux's numbers of the signals that a process is ended by. There are no handlers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
#[expect(clippy::upper_case_acronyms, reason = "Linux's names")]
pub(crate) enum Signal {
    SIGILL = 4,
    SIGTRAP = 5,
    SIGBUS = 7,
    SIGFPE = 8,
    SIGKILL = 9,
    SIGSEGV = 11,
    SIGCHLD = 17,
}
