//! From a file to a process image: an address space with the program's segments and its stack, and the registers with which
//! it begins.

use alloc::sync::Arc;
use alloc::vec::Vec;

use arch::aarch64::task::{self, FpState};
use arch::aarch64::trap::TrapFrame;
use kernel::initial_stack::{InitialStack, MAX_ARGUMENTS, MAX_STRING};
use kernel::program::{Permissions, Program, ProgramError, Segment};
use log::info;
use mm::mman::{
    MAP_ANONYMOUS, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_PRIVATE, PROT_EXEC, PROT_READ, PROT_WRITE,
};
use mm::{Errno, TASK_SIZE};

use super::initramfs::{self, Node, OpenFile};
use super::space::Space;
use super::{Task, life, random, sched, uaccess};
use crate::features;

/// Bytes of a program's stack, as Linux's by default.
const STACK: u64 = 8 << 20;
/// One past its end. What is above stays free.
const STACK_TOP: u64 = TASK_SIZE - 0x1_0000;
/// The longest path, with its NUL.
const PATH_MAX: usize = 4096;

/// A program that can begin.
pub(crate) struct Image {
    pub(crate) space: Arc<Space>,
    pub(crate) frame: TrapFrame,
}

/// The file of a program.
///
/// # Errors
/// As Linux's `execve`.
pub(crate) fn open(path: &[u8]) -> Result<OpenFile, Errno> {
    match initramfs::find(path)? {
        Node::File(found) if found.entry.mode & 0o111 != 0 => Ok(found),
        // A directory too, as on Linux.
        Node::File(_) | Node::Directory | Node::Other => Err(Errno::EACCES),
    }
}

/// Makes an image of the program of a file, with its path, and with arguments and an environment of strings each with its NUL.
///
/// # Errors
/// As Linux's `execve`.
pub(crate) fn image(
    OpenFile { entry, file }: OpenFile,
    path: &[u8],
    argv: &[u8],
    envp: &[u8],
) -> Result<Image, Errno> {
    let program = Program::plan(entry.data).map_err(|error: ProgramError| {
        info!("{} can't be run: {error}", path.escape_ascii());
        error.errno()
    })?;
    let space = Space::new()?;
    for segment in &program.segments {
        map(&space, segment, file)?;
    }
    space.set_brk_start(program.end);
    let sp = stack(&space, path, argv, envp, &program)?;
    let frame = TrapFrame { x: [0; 31], sp, elr: program.entry, spsr: 0, esr: 0, far: 0 };
    Ok(Image { space, frame })
}

fn prot(permissions: Permissions) -> u64 {
    let flag = |condition, flag| if condition { flag } else { 0 };
    flag(permissions.read, PROT_READ)
        | flag(permissions.write, PROT_WRITE)
        | flag(permissions.execute, PROT_EXEC)
}

fn map(space: &Space, segment: &Segment, file: &'static mm::File<'static>) -> Result<(), Errno> {
    let prot = prot(segment.permissions);
    let flags = MAP_PRIVATE | MAP_FIXED;
    let Segment { file: pages, offset, zero, anonymous, .. } = segment;
    if !pages.is_empty() {
        let file = Some((file, *offset));
        space.mmap(pages.start, pages.end - pages.start, prot, flags, file)?;
    }
    if !zero.is_empty() {
        let zeroes = [0; 256];
        let mut at = zero.start;
        while at < zero.end {
            let bytes = (zero.end - at).min(zeroes.len() as u64);
            space.write(at, &zeroes[..bytes as usize])?;
            at += bytes;
        }
    }
    if !anonymous.is_empty() {
        let bytes = anonymous.end - anonymous.start;
        space.mmap(anonymous.start, bytes, prot, flags | MAP_ANONYMOUS, None)?;
    }
    Ok(())
}

/// Maps the stack and fills its top. Returns the stack pointer.
fn stack(space: &Space, path: &[u8], argv: &[u8], envp: &[u8], program: &Program) -> Result<u64, Errno> {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    space.mmap(STACK_TOP - STACK, STACK, PROT_READ | PROT_WRITE, flags, None).inspect_err(|error| {
        if *error == Errno::EEXIST {
            info!("{} can't be run: a segment is where the stack goes", path.escape_ascii());
        }
    })?;
    let mut seed = [0; 16];
    random::fill(&mut seed);
    let initial = InitialStack { argv, envp, path, program, random: seed, hwcap: hwcap() };
    let size = initial.size().map_err(|_| Errno::E2BIG)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(size).map_err(|_| Errno::OutOfMemory)?;
    bytes.resize(size, 0);
    initial.write(STACK_TOP, &mut bytes);
    let sp = STACK_TOP - size as u64;
    space.write(sp, &bytes)?;
    Ok(sp)
}

/// What every CPU has of what Linux tells in AT_HWCAP (Documentation/arch/arm64/elf_hwcaps.rst). Nothing of AT_HWCAP2.
fn hwcap() -> [u64; 2] {
    const FP: u64 = 1 << 0;
    const ASIMD: u64 = 1 << 1;
    const ATOMICS: u64 = 1 << 8;
    let common = features::common();
    let flag = |condition, flag| if condition { flag } else { 0 };
    [flag(common.fp_simd, FP | ASIMD) | flag(common.lse, ATOMICS), 0]
}

/// `execve(path, argv, envp)`: on success `frame` is the new program's.
///
/// # Errors
/// As Linux's; the process goes on with what it had.
pub(crate) fn execve(task: &Arc<Task>, frame: &mut TrapFrame, args: [u64; 6]) -> Result<u64, Errno> {
    let [path, argv, envp, ..] = args;
    let path = uaccess::read_string(task, path, PATH_MAX)?;
    // Before the arguments are looked at, as on Linux.
    let file = open(&path)?;
    let mut budget = MAX_ARGUMENTS;
    let mut argv = strings(task, argv, &mut budget)?;
    let envp = strings(task, envp, &mut budget)?;
    // Without arguments there is one, that is empty, as on Linux.
    if argv.is_empty() {
        argv.try_reserve(1).map_err(|_| Errno::OutOfMemory)?;
        argv.push(0);
    }
    let image = image(file, &path, &argv, &envp)?;

    image.space.list();
    sched::unload();
    let old = task.space.lock().replace(image.space.clone());
    sched::load(&image.space);
    if let Some(old) = old {
        life::clear_child_tid(task, &old);
    }
    task::set_thread_pointer(0);
    if features::common().fp_simd {
        // SAFETY: EL0 may use FP.
        unsafe { FpState::new().load() };
    }
    *task.name.lock() = path;
    task.files.lock().close_on_exec();
    life::end_vfork(task);
    *frame = image.frame;
    // x0 is zero as all registers are.
    Ok(0)
}

/// The strings that pointers lead to, up to NULL, each with its NUL; no pointers are none, as on Linux.
fn strings(task: &Arc<Task>, pointers: u64, budget: &mut usize) -> Result<Vec<u8>, Errno> {
    let mut strings = Vec::new();
    if pointers == 0 {
        return Ok(strings);
    }
    let mut at = pointers;
    loop {
        let pointer = uaccess::read_word(task, at)?;
        if pointer == 0 {
            return Ok(strings);
        }
        let string = uaccess::read_string(task, pointer, MAX_STRING).map_err(|error| match error {
            Errno::ENAMETOOLONG => Errno::E2BIG,
            other => other,
        })?;
        *budget = budget.checked_sub(string.len() + 1 + 8).ok_or(Errno::E2BIG)?;
        strings.try_reserve(string.len() + 1).map_err(|_| Errno::OutOfMemory)?;
        strings.extend_from_slice(&string);
        strings.push(0);
        at = at.checked_add(8).ok_or(Errno::EFAULT)?;
    }
}
