//! Reading the console: lines, as [`kernel::line`] makes them of what is typed. It is shown while somebody reads.

use alloc::sync::Arc;

use kernel::line::Line;
use mm::Errno;
use spin::Mutex;

use super::{Task, sched, uaccess};
use crate::{console, timer};

/// The line that is edited, or read. Held for as long as it takes to show what was typed.
static LINE: Mutex<Line> = Mutex::new(Line::new());

/// Bytes that are copied at once.
const PIECE: usize = 512;
/// Between two looks at what was typed while nothing is there, in milliseconds.
const PAUSE: u64 = 10;

/// Reads up to `count` bytes of one line, the rest of which is for the next call; waits for its end. 0 at the end of the
/// input, which `^D` on an empty line is, and where the console can't be read.
///
/// What can't be stored at `buffer` stays to be read. Of two that read at once each byte goes to one, and so does an end.
///
/// # Errors
/// EFAULT; EINTR where the process is to end, which no program sees.
pub(crate) fn read(task: &Arc<Task>, buffer: u64, count: u64) -> Result<u64, Errno> {
    if count == 0 || !console::input::is_there() {
        return Ok(0);
    }
    let mut next = wait_for_line(task)?;
    let mut done = 0;
    let mut piece = [0; PIECE];
    loop {
        let nr = {
            let line = LINE.lock();
            let Some(text) = line.complete().filter(|_| line.position() == next) else {
                // Another has read the rest of it.
                drop(line);
                if done > 0 {
                    return Ok(done);
                }
                next = wait_for_line(task)?;
                continue;
            };
            let room = (count - done).min(uaccess::to_page_end(buffer + done));
            let nr = text.len().min(PIECE).min(usize::try_from(room).unwrap_or(PIECE));
            piece[..nr].copy_from_slice(&text[..nr]);
            nr
        };
        // A fault may wait, so it is stored first, and then taken, if nobody else has.
        match uaccess::write(task, buffer + done, &piece[..nr]) {
            Ok(()) => {}
            Err(error) if done == 0 => return Err(error),
            Err(_) => return Ok(done),
        }
        let mut line = LINE.lock();
        if line.position() != next {
            continue;
        }
        line.consume(nr);
        next = line.position();
        done += nr as u64;
        if done == count || line.complete().is_none() {
            return Ok(done);
        }
    }
}

/// Waits for a line, and returns its position.
fn wait_for_line(task: &Task) -> Result<u64, Errno> {
    loop {
        {
            let mut line = LINE.lock();
            while line.complete().is_none() && task.killed().is_none() {
                let Some(byte) = console::input::take() else { break };
                line.input(byte, console::write_bytes);
            }
            if line.complete().is_some() {
                return Ok(line.position());
            }
        }
        if task.killed().is_some() {
            return Err(Errno::EINTR);
        }
        sched::park(Some(timer::now() + timer::frequency() * PAUSE / 1000));
    }
}
