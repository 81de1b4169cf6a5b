//! The line discipline of the console: what a terminal sends becomes lines, as Linux's canonical mode makes them (termios(3):
//! ICANON, ICRNL, ECHO, ECHOE, ECHOKE, ECHOCTL). There are no signals, so that `^C` is a character like others; a tab is shown
//! as `^I`, since what it takes on the screen depends on what stands before the line.
//!
//! ```text
//!  bytes ──Line::input──▶ a line that is edited ──its end──▶ Line::complete ──Line::consume──▶ the next one
//!              └── echo ──▶ terminal
//! ```

use arrayvec::ArrayVec;

/// Bytes of the longest line, its newline included: what is typed beyond is refused with a bell, as on Linux.
pub const MAX_LINE: usize = 4096;

/// `^D`: the line ends here, without a newline. Nothing before it: the end of the input.
pub const END_OF_FILE: u8 = 4;
const BACKSPACE: u8 = 8;
const DELETE: u8 = 0x7f;
/// `^U`: all of the line is taken back.
const KILL: u8 = 0x15;
const BELL: u8 = 7;

/// The line that is edited, or read.
pub struct Line {
    text: ArrayVec<u8, MAX_LINE>,
    /// Nothing is added to it: it is read.
    complete: bool,
    /// Bytes of it that were read.
    read: usize,
    /// Counts what was ever read, an end of the input as one byte.
    position: u64,
}

impl Line {
    /// An empty line.
    pub const fn new() -> Self {
        Self { text: ArrayVec::new_const(), complete: false, read: 0, position: 0 }
    }

    /// Takes a byte that a terminal has sent, and tells what it is to show.
    ///
    /// # Panics
    /// Where the line is [complete](Self::complete).
    pub fn input(&mut self, byte: u8, mut echo: impl FnMut(&[u8])) {
        assert!(!self.complete, "a line that has ended grows");
        match byte {
            b'\n' | b'\r' => {
                self.text.push(b'\n');
                self.complete = true;
                echo(b"\n");
            }
            END_OF_FILE => self.complete = true,
            BACKSPACE | DELETE => self.erase(&mut echo),
            KILL => {
                while !self.text.is_empty() {
                    self.erase(&mut echo);
                }
            }
            // The last place is the newline's.
            _ if self.text.len() == MAX_LINE - 1 => echo(&[BELL]),
            _ => {
                self.text.push(byte);
                if byte.is_ascii_control() { echo(&[b'^', byte ^ 0x40]) } else { echo(&[byte]) }
            }
        }
    }

    /// Takes the last character back: all bytes of it, in UTF-8.
    fn erase(&mut self, echo: &mut impl FnMut(&[u8])) {
        while let Some(byte) = self.text.pop() {
            if byte & 0xc0 != 0x80 || self.text.is_empty() {
                echo(if byte.is_ascii_control() { b"\x08 \x08\x08 \x08" } else { b"\x08 \x08" });
                return;
            }
        }
    }

    /// What is left to read of the line, once it has ended; nothing at the end of the input.
    pub fn complete(&self) -> Option<&[u8]> {
        self.complete.then(|| &self.text[self.read..])
    }

    /// Changes with each [`Self::consume`].
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The first `nr` bytes that were left to read were read. After the last ones the next line begins.
    ///
    /// # Panics
    /// Where there are less.
    pub fn consume(&mut self, nr: usize) {
        assert!(self.complete().is_some_and(|left| nr <= left.len()), "more is read than there is");
        self.read += nr;
        self.position += nr.max(1) as u64;
        if self.read == self.text.len() {
            self.text.clear();
            self.read = 0;
            self.complete = false;
        }
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
