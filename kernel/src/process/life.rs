//! How processes begin and end: the table of all, fork, exit, wait.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::aarch64::task::FpState;
use arch::aarch64::trap::TrapFrame;
use log::debug;
use mm::Errno;
use spin::{Mutex, MutexGuard};

use super::space::{self, Space};
use super::stack::MAX_TASKS;
use super::{Begin, Pid, Signal, Status, TASKS, Task, reclaim, sched, uaccess};
use crate::{features, heap, timer};

/// All processes, those too that have ended and nobody has waited for.
static TABLE: Mutex<Table> = Mutex::new(Table { processes: Vec::new(), last: 0 });

struct Table {
    /// In the order of their numbers. There is room for all that there may be.
    processes: Vec<Arc<Task>>,
    last: Pid,
}

/// The process that the kernel starts, and that gets those whose parent has ended.
pub(crate) const INIT: Pid = 1;
/// The largest number of a process, as on Linux by default.
const LAST_PID: Pid = 32767;

impl Table {
    /// The next number that no process has.
    fn next_pid(&mut self) -> Pid {
        loop {
            self.last = if self.last >= LAST_PID { INIT + 1 } else { self.last + 1 };
            if self.get(self.last).is_none() {
                return self.last;
            }
        }
    }

    /// Where process `pid` is, or would be.
    fn place(&self, pid: Pid) -> Result<usize, usize> {
        self.processes.binary_search_by_key(&pid, |task| task.pid)
    }

    fn get(&self, pid: Pid) -> Option<&Arc<Task>> {
        self.place(pid).ok().map(|index| &self.processes[index])
    }

    /// Adds a process, whose number nobody has.
    fn insert(&mut self, task: Arc<Task>) {
        let index = self.place(task.pid).expect_err("its number is nobody's");
        assert!(self.processes.len() < self.processes.capacity(), "each has a kernel stack");
        self.processes.insert(index, task);
    }

    /// Adds the process that `make` makes with the next number. It may be killed before it runs.
    ///
    /// # Errors
    /// Those of `make`.
    fn add(&mut self, make: impl FnOnce(Pid) -> Result<Arc<Task>, Errno>) -> Result<Arc<Task>, Errno> {
        let task = make(self.next_pid())?;
        self.insert(task.clone());
        if self.get(INIT).is_none_or(|init| init.status.lock().is_some()) {
            // Init has ended meanwhile, and who makes it is about to.
            task.kill(Signal::SIGKILL);
        }
        Ok(task)
    }

    /// Takes a process out, for the caller to drop when the table is not locked any more.
    fn remove(&mut self, pid: Pid) -> Option<Arc<Task>> {
        self.place(pid).ok().map(|index| self.processes.remove(index))
    }

    fn children(&self, parent: Pid) -> impl Iterator<Item = &Arc<Task>> {
        self.processes.iter().filter(move |task| task.parent() == parent)
    }
}

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock()
}

/// Starts the first process.
///
/// # Errors
/// As [`Task::new`].
pub(crate) fn start_init(begin: Begin, space: Arc<Space>, frame: &TrapFrame) -> Result<(), Errno> {
    let task = Task::new(begin, space.clone(), frame, FpState::new())?;
    space.list();
    {
        let mut table = table();
        assert!(table.processes.is_empty(), "a second init");
        table.processes.try_reserve_exact(MAX_TASKS).map_err(|_| Errno::OutOfMemory)?;
        table.last = INIT;
        table.insert(task.clone());
    }
    sched::make_runnable(task);
    Ok(())
}

/// Whether every process has ended.
pub(crate) fn all_ended() -> bool {
    table().processes.iter().all(|task| task.status.lock().is_some())
}

/// Takes all processes, which have ended, and returns the status of init.
pub(crate) fn take_all() -> Option<Status> {
    let processes = core::mem::take(&mut table().processes);
    processes.iter().find(|task| task.pid == INIT).and_then(|init| *init.status.lock())
}

/// Whether a task or an address space is left whose memory was not given back.
pub(crate) fn any_left() -> bool {
    TASKS.load(Ordering::Acquire) != 0 || space::count() != 0
}

/// Time between two idle passes, in milliseconds: what has nothing to do must not keep what has from its address space.
const IDLE_PAUSE: u64 = 20;

/// What a CPU does that has nothing else to do, one of them after each pause: folds what blocks of one address space qualify,
/// of another one each time.
pub(crate) fn idle_pass() {
    static LAST: AtomicU64 = AtomicU64::new(0);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (now, due) = (timer::now(), NEXT.load(Ordering::Relaxed));
    let next = now + timer::frequency() * IDLE_PAUSE / 1000;
    if now < due || NEXT.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return;
    }
    let Some(space) = space::after(LAST.load(Ordering::Relaxed)) else { return };
    LAST.store(space.id, Ordering::Relaxed);
    let folded = space.refold_pass();
    if folded > 0 {
        debug!("address space {}: {folded} blocks were folded while the CPU had nothing to do", space.id);
    }
}

/// Flags of `clone` (include/uapi/linux/sched.h in Linux).
mod flags {
    pub(super) const CSIGNAL: u64 = 0xff;
    pub(super) const CLONE_VM: u64 = 0x100;
    pub(super) const CLONE_VFORK: u64 = 0x4000;
    pub(super) const CLONE_SETTLS: u64 = 0x8_0000;
    pub(super) const CLONE_PARENT_SETTID: u64 = 0x10_0000;
    pub(super) const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
    pub(super) const CLONE_CHILD_SETTID: u64 = 0x100_0000;
    pub(super) const SUPPORTED: u64 = CSIGNAL
        | CLONE_VM
        | CLONE_VFORK
        | CLONE_SETTLS
        | CLONE_PARENT_SETTID
        | CLONE_CHILD_CLEARTID
        | CLONE_CHILD_SETTID;
}

/// `clone(flags, stack, parent_tid, tls, child_tid)`
///
/// # Errors
/// EINVAL for flags that are not supported, EAGAIN, OutOfMemory, EFAULT.
pub(crate) fn clone(task: &Arc<Task>, frame: &TrapFrame, args: [u64; 6]) -> Result<u64, Errno> {
    use flags::*;
    let [flags, stack, parent_tid, tls, child_tid, _] = args;
    if flags & !SUPPORTED != 0 {
        return Err(Errno::EINVAL);
    }
    let has = |flag| flags & flag != 0;
    let space = task.own_space();
    let childs = if has(CLONE_VM) { space.clone() } else { space.fork()? };
    let mut frame = frame.clone();
    frame.x[0] = 0;
    if stack != 0 {
        frame.sp = stack;
    }
    let mut fp = FpState::new();
    if features::common().fp_simd {
        // SAFETY: EL0 may use FP. This CPU has the parent's registers: the kernel does not change them, and a task that
        // moves to another CPU takes them along.
        unsafe { fp.save() };
    }
    let name = heap::try_copy(&task.name.lock()).ok_or(Errno::OutOfMemory)?;
    let files = task.files.lock().clone();
    let begin = |pid| Begin {
        pid,
        parent: task.pid,
        // Any number, as on Linux: what is no signal is not sent.
        exit_signal: (flags & CSIGNAL) as u8,
        clear_child_tid: if has(CLONE_CHILD_CLEARTID) { child_tid } else { 0 },
        thread_pointer: if has(CLONE_SETTLS) { tls } else { arch::aarch64::task::thread_pointer() },
        name,
        files,
        vfork_parent: has(CLONE_VFORK).then(|| task.clone()),
    };
    let child = table().add(|pid| Task::new(begin(pid), childs.clone(), &frame, fp))?;
    let pid = child.pid;
    // Neither can be undone for the child, so before it runs. As on Linux a fault here changes nothing; but there is no child
    // that does not know its number for want of memory.
    if has(CLONE_CHILD_SETTID)
        && let Err(Errno::OutOfMemory) = childs.write(child_tid, &pid.to_le_bytes())
    {
        let never_ran = table().remove(pid);
        drop(never_ran);
        return Err(Errno::OutOfMemory);
    }
    if !has(CLONE_VM) {
        childs.list();
    }
    if has(CLONE_PARENT_SETTID) {
        let _ = uaccess::write(task, parent_tid, &pid.to_le_bytes());
    }
    sched::make_runnable(child.clone());
    if has(CLONE_VFORK) {
        while child.vfork_parent.lock().is_some() && task.killed().is_none() {
            sched::park(None);
        }
    }
    Ok(pid as u64)
}

/// Lets the parent go on that waits because of CLONE_VFORK.
pub(crate) fn end_vfork(task: &Task) {
    let parent = task.vfork_parent.lock().take();
    if let Some(parent) = parent {
        sched::unpark(&parent);
    }
}

/// Tells who shares the memory that a process leaves, at its end or for another program, by the word that it was started with
/// (CLONE_CHILD_CLEARTID). It may be killed already, so this is not done as if it wrote itself.
pub(crate) fn clear_child_tid(task: &Task, left: &Arc<Space>) {
    let clear = task.clear_child_tid.swap(0, Ordering::Relaxed);
    // Nobody else has it: as on Linux nothing is written. Who has it for a moment only is taken for one that shares it.
    if clear != 0 && Arc::strong_count(left) > 1 {
        // Nobody can be told that it is not writable.
        let _ = reclaim::retrying(|| left.write(clear, &0_u32.to_le_bytes()));
    }
}

/// Ends the current process, but for its last step: [`sched::switch_out`].
pub(crate) fn exit(task: &Arc<Task>, status: Status) {
    sched::unload();
    if let Some(space) = { task.space.lock().take() } {
        clear_child_tid(task, &space);
    }
    task.files.lock().close_all();
    end_vfork(task);

    let table = table();
    for child in table.children(task.pid) {
        child.parent.store(INIT, Ordering::Relaxed);
    }
    *task.status.lock() = Some(status);
    if task.pid == INIT {
        // Nothing is left without init.
        table
            .processes
            .iter()
            .filter(|other| other.pid != INIT)
            .for_each(|other| other.kill(Signal::SIGKILL));
    } else {
        // The children that it leaves may have ended already.
        for waiting in [task.parent(), INIT] {
            if let Some(waiting) = table.get(waiting) {
                sched::unpark(waiting);
            }
        }
    }
}

/// Options of `wait4` (include/uapi/linux/wait.h in Linux).
mod options {
    pub(super) const WNOHANG: u64 = 1;
    pub(super) const WUNTRACED: u64 = 2;
    pub(super) const WCONTINUED: u64 = 8;
    pub(super) const WNOTHREAD: u64 = 0x2000_0000;
    pub(super) const WALL: u64 = 0x4000_0000;
    pub(super) const WCLONE: u64 = 0x8000_0000;
    pub(super) const ALL: u64 = WNOHANG | WUNTRACED | WCONTINUED | WNOTHREAD | WALL | WCLONE;
}

/// `wait4(pid, status, options, rusage)`. There is one process group, and none stops or continues.
///
/// # Errors
/// EINVAL, ECHILD, ESRCH, EFAULT.
pub(crate) fn wait4(task: &Arc<Task>, args: [u64; 6]) -> Result<u64, Errno> {
    use options::*;
    let [pid, status, options, rusage, ..] = args;
    let (pid, options) = (pid as Pid, u64::from(options as u32));
    if options & !ALL != 0 {
        return Err(Errno::EINVAL);
    }
    if pid == Pid::MIN {
        return Err(Errno::ESRCH);
    }
    let found = loop {
        match take_ended(task, pid, options)? {
            ControlFlow::Break(found) => break found,
            ControlFlow::Continue(()) if options & WNOHANG != 0 => return Ok(0),
            ControlFlow::Continue(()) => sched::park(None),
        }
        if task.killed().is_some() {
            return Err(Errno::EINTR);
        }
    };
    let (child, ended) = found;
    if status != 0 {
        uaccess::write(task, status, &ended.wait_status().to_le_bytes())?;
    }
    if rusage != 0 {
        // Nothing is counted.
        uaccess::write(task, rusage, &[0; 144])?;
    }
    Ok(child as u64)
}

/// A child that has ended, taken out of the table; `Continue` where there are children, and none has.
fn take_ended(task: &Task, pid: Pid, options: u64) -> Result<ControlFlow<(Pid, Status)>, Errno> {
    use options::{WALL, WCLONE};
    let is_clone = |child: &Task| i32::from(child.exit_signal) != Signal::SIGCHLD as i32;
    // 0 and -1 are all of the one process group, which has number 1.
    let matches = |child: &Task| {
        (pid == child.pid || pid == 0 || pid == -1 || pid == -INIT)
            && (options & WALL != 0 || is_clone(child) == (options & WCLONE != 0))
    };
    let mut table = table();
    let mut any = false;
    let mut found = None;
    for child in table.children(task.pid).filter(|child| matches(child)) {
        any = true;
        if let Some(status) = *child.status.lock() {
            found = Some((child.pid, status));
            break;
        }
    }
    match found {
        Some((pid, status)) => {
            let ended = table.remove(pid);
            drop(table);
            drop(ended);
            Ok(ControlFlow::Break((pid, status)))
        }
        None if any => Ok(ControlFlow::Continue(())),
        None => Err(Errno::ECHILD),
    }
}
