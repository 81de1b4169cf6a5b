//! What a program needs that has nothing below it but the kernel: an entry that relocates it, system calls by Linux
//! arm64's numbers, and printing. The programs in `src/bin` run on Pleat, and unchanged on Linux.
#![no_std]

pub mod fold;
pub mod start;
pub mod sys;

use core::fmt::{self, Write};

/// The standard output, a line at a time.
pub struct Out {
    buffer: [u8; 256],
    used: usize,
}

impl Out {
    /// Nothing is printed yet.
    #[expect(clippy::new_without_default, reason = "it is made by the macro only")]
    pub const fn new() -> Self {
        Self { buffer: [0; 256], used: 0 }
    }

    /// Writes what was printed. Ends the process where that fails.
    pub fn flush(&mut self) {
        let mut done = 0;
        while done < self.used {
            match sys::write(1, &self.buffer[done..self.used]) {
                Ok(0) | Err(_) => sys::exit(99),
                Ok(nr) => done += nr,
            }
        }
        self.used = 0;
    }
}

impl Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            self.buffer[self.used] = byte;
            self.used += 1;
            if self.used == self.buffer.len() {
                self.flush();
            }
        }
        Ok(())
    }
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => {{
        let mut out = $crate::Out::new();
        let _ = core::fmt::Write::write_fmt(&mut out, format_args!("{}\n", format_args!($($arg)*)));
        out.flush();
    }};
}

/// Whether the program was told that it runs under QEMU's user emulation, which lets some calls through that Linux refuses.
pub fn on_qemu_user(environment: start::Environment) -> bool {
    environment.arg(1) == Some(b"qemu-user")
}

/// Bytes as text, for messages.
pub fn text(bytes: &[u8]) -> &str {
    core::str::from_utf8(bytes).unwrap_or("(no text)")
}

/// The status of a program that panics, as of Rust's own on Linux.
const PANIC_STATUS: i32 = 101;

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => println!("panicked at {}:{}: {}", at.file(), at.line(), info.message()),
        None => println!("panicked: {}", info.message()),
    }
    sys::exit(PANIC_STATUS)
}
