//! The first process: run to its end, with all that it started.

use core::sync::atomic::{AtomicBool, Ordering};

use kernel::bootargs::BootArgs;
use log::{debug, info};
use mm::Errno;

use super::files::Files;
use super::trap::Faults;
use super::{Begin, Signal, Status, exec, initramfs, life, random, sched, space, syscall};
use crate::panic::fatal;
use crate::{exit, heap};
use kernel::platform::Platform;

/// Whether the boot loader gave an initial RAM disk.
static HAS_INITRD: AtomicBool = AtomicBool::new(false);

/// Whether the boot loader gave an initial RAM disk, which is then in place of the programs in the Image.
#[cfg(feature = "selftest")]
pub(crate) fn has_initrd() -> bool {
    HAS_INITRD.load(Ordering::Relaxed)
}

/// Prepares what processes need: their memory, the scheduler and the root file system.
///
/// # Errors
/// [`initramfs::Error`]: there is no root file system. Or there is no memory.
pub(crate) fn prepare(platform: &Platform<'_>, arguments: &BootArgs<'_>) -> Result<(), initramfs::Error> {
    sched::init();
    random::init(platform.rng_seed);
    space::init(arguments.thp).map_err(|_| initramfs::Error::NoMemory)?;
    initramfs::init(platform.initrd)?;
    HAS_INITRD.store(platform.initrd.is_some(), Ordering::Relaxed);
    Ok(())
}

/// Runs the program at `path` as process 1 until it and all others have ended, on this CPU and all that wait for something
/// to do. `argv` and `envp` are strings each with its NUL. Called from a CPU's own context, with nothing that runs already.
///
/// # Errors
/// As [`exec::image`].
pub(crate) fn run(path: &[u8], argv: &[u8], envp: &[u8]) -> Result<Status, Errno> {
    let image = exec::image(exec::open(path)?, path, argv, envp)?;
    let begin = Begin {
        pid: life::INIT,
        parent: 0,
        exit_signal: Signal::SIGCHLD as u8,
        clear_child_tid: 0,
        thread_pointer: 0,
        name: heap::try_copy(path).ok_or(Errno::OutOfMemory)?,
        files: Files::new()?,
        vfork_parent: None,
    };
    life::start_init(begin, image.space, &image.frame)?;
    sched::run_until(life::all_ended);
    let status = life::take_all().expect("init has ended");
    // Another CPU may still be about to leave the last one.
    sched::run_until(|| !life::any_left());
    syscall::report_missing();
    let Faults { changed, spurious } = Faults::now();
    debug!(
        "faults of processes so far: {changed} changed an entry, {spurious} waited for a lock or for nothing"
    );
    Ok(status)
}

/// Runs the program that `init=` names, and ends the machine with its status.
pub(crate) fn main(path: &str, arguments: &BootArgs<'_>, root: Result<(), initramfs::Error>) -> ! {
    if let Err(error) = root {
        fatal(format_args!("initrd: {error}"));
    }
    let mut argv = [path.as_bytes(), b"\0"].concat();
    let mut envp = b"HOME=/\0TERM=linux\0".to_vec();
    arguments.init_words(|word, is_setting| {
        let strings = if is_setting { &mut envp } else { &mut argv };
        strings.extend_from_slice(word.as_bytes());
        strings.push(0);
    });
    match run(path.as_bytes(), &argv, &envp) {
        Ok(status) => {
            info!("init {status}");
            exit::exit(status.exit_code())
        }
        Err(error) => fatal(format_args!("init={path}: {error}")),
    }
}
