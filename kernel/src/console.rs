//! The serial console: a UART, [`println!`] for what programs read, and the `log` facade for what people read.
//!
//! - One lock: what one call prints is not mixed with another CPU's. Interrupts are masked while it
//!   is held, which at 115200 baud is 87 µs a character, so lines are short.
//! - Lines end in CR LF, since a terminal on a serial cable does not return the carriage by itself.
//! - A UART that takes no more characters costs a bounded time once, and then nothing.
//! - Before [`init`] there is nowhere to print to: `println!` and `log` are lost, [`emergency`] tries
//!   the semihosting host.

use core::ffi::CStr;
use core::fmt::{self, Write};
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, Ordering};

use arch::aarch64::{daif, semihosting};
use kernel::platform::{self, PhysRange};
use log::{Level, LevelFilter, Log, Metadata, Record};
use mm::MapError;
use spin::Once;

use self::port::{Driver, Port};
use crate::lock::IrqMutex;
use crate::{cpu, timer};

pub(crate) mod input;
mod pins;
mod port;

/// How often the flag register of a full FIFO is read before the UART counts as stuck. A read takes
/// some 100 ns or more, a character 1 ms at 9600 baud. Not a time: this must end without a counter.
const FULL_SPINS: u32 = 1_000_000;

/// How often [`emergency`] tries the lock, some 50 ns each: longer than a line takes on another CPU.
const LOCK_SPINS: u32 = 4_000_000;

/// The console, once [`init`] has found it.
static CONSOLE: IrqMutex<Option<Console>> = IrqMutex::new(None);

/// The same UART, for [`emergency`] and [`flush`].
static PORT: Once<Port> = Once::new();

/// [`emergency`] once had to do without the lock: it does not wait for it again.
static LOCK_LOST: AtomicBool = AtomicBool::new(false);

/// The last wait for room in the FIFO was in vain: nothing waits until there is room again.
static STUCK: AtomicBool = AtomicBool::new(false);

/// Why there is no console.
#[derive(Debug)]
pub(crate) enum Error {
    /// Its registers are not where registers of its kind can be.
    Misplaced(PhysRange),
    /// They could not be mapped.
    Map(MapError),
    /// What is there does not identify itself as a PL011: part number and designer as read.
    NotPl011 {
        /// The part number, 0x11 for a PL011.
        part: u16,
        /// The designer, 0x41 for Arm.
        designer: u8,
    },
    /// Nothing answers there.
    NotThere(PhysRange),
    /// The pin controller does not lead its pins to it.
    Pins,
    /// Its clock is too slow for the baud rate.
    Baud,
    /// There is a console already.
    AlreadyInitialised,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misplaced(range) => write!(f, "no place for a UART or its pins: {}", range.start),
            Self::Map(error) => write!(f, "its registers can't be mapped: {error}"),
            Self::NotPl011 { part, designer } => {
                write!(f, "not a PL011: part {part:#x}, designer {designer:#x}")
            }
            Self::NotThere(range) => {
                write!(f, "the device tree promises registers at {range}, and there are none")
            }
            Self::Pins => f.write_str("its pins don't go to where they are led"),
            Self::Baud => f.write_str("its clock is too slow"),
            Self::AlreadyInitialised => f.write_str("there is a console already"),
        }
    }
}

impl core::error::Error for Error {}

/// A UART that is written to.
struct Console(Driver);

impl Console {
    /// Sends one byte, or drops it where the UART takes none.
    fn put(&mut self, byte: u8) {
        let mut spins = if STUCK.load(Ordering::Relaxed) { 0 } else { FULL_SPINS };
        while self.0.is_full() {
            if spins == 0 {
                STUCK.store(true, Ordering::Relaxed);
                return;
            }
            spins -= 1;
            spin_loop();
        }
        STUCK.store(false, Ordering::Relaxed);
        self.0.write(byte);
    }

    fn put_all(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                self.put(b'\r');
            }
            self.put(byte);
        }
    }
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put_all(text.as_bytes());
        Ok(())
    }
}

/// Makes `uart` the console, at [`LevelFilter::Info`], as [`Port::open`] says.
///
/// # Errors
/// See [`Error`]. There is no console then, unless there was one before.
pub(crate) fn init(uart: &platform::Uart) -> Result<(), Error> {
    let mut console = CONSOLE.lock();
    if console.is_some() {
        return Err(Error::AlreadyInitialised);
    }
    let port = Port::open(uart)?;
    // SAFETY: `console` is locked and was empty, so nothing else drives it.
    *console = Some(Console(unsafe { port.driver() }));
    PORT.call_once(|| port);
    drop(console);

    // Fails only where there is a logger already, and there is no other than this one.
    if log::set_logger(&Logger).is_ok() {
        set_level(LevelFilter::Info);
    }
    Ok(())
}

/// Sets which log records are printed.
pub(crate) fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// Prints `text` as it is: what [`println!`] expands to.
///
/// What `text` formats must neither print nor log, since the lock is held.
pub(crate) fn write(text: fmt::Arguments<'_>) {
    if let Some(console) = &mut *CONSOLE.lock() {
        // Errors could come from the formatted values only, and then their text is cut short.
        let _ = console.write_fmt(text);
    }
}

/// Prints what a program writes: bytes that need be no text.
pub(crate) fn write_bytes(bytes: &[u8]) {
    if let Some(console) = &mut *CONSOLE.lock() {
        console.put_all(bytes);
    }
}

/// Prints a line.
macro_rules! println {
    () => { $crate::console::write(format_args!("\n")) };
    ($($arg:tt)*) => { $crate::console::write(format_args!("{}\n", format_args!($($arg)*))) };
}

pub(crate) use println;

/// Prints log records as `[    0.001234] cpu0 info: message`, with the time since the counter's
/// start.
struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let time = timer::duration(timer::now());
        let level = match record.level() {
            Level::Error => "error",
            Level::Warn => "warning",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        };
        println!(
            "[{:5}.{:06}] cpu{} {level}: {}",
            time.as_secs(),
            time.subsec_micros(),
            cpu::index(),
            record.args()
        );
    }

    fn flush(&self) {
        flush();
    }
}

/// Waits until all that was printed has left the UART, or for a bounded time. Takes no lock.
pub(crate) fn flush() {
    let Some(port) = PORT.get() else { return };
    // SAFETY: beside the console's, used to read the flags only.
    let uart = unsafe { port.driver() };
    if !STUCK.load(Ordering::Relaxed) {
        port::wait_while(|| uart.is_busy());
    }
}

/// Prints `text` as it is, whatever the state of this CPU: for panics and unexpected exceptions, which may come
/// while this CPU or one that hangs holds the lock. Without a console it goes to the semihosting
/// host, where there is one.
pub(crate) fn emergency(text: fmt::Arguments<'_>) {
    let Some(port) = PORT.get() else {
        let mut host = SemihostingWriter::new();
        let _ = host.write_fmt(text);
        host.flush();
        return;
    };
    daif::masked(|| {
        let spins = if LOCK_LOST.load(Ordering::Relaxed) { 1 } else { LOCK_SPINS };
        for _ in 0..spins {
            if let Some(mut console) = CONSOLE.try_lock() {
                if let Some(console) = &mut *console {
                    let _ = console.write_fmt(text);
                }
                return;
            }
            spin_loop();
        }
        // SAFETY: beside the console's, against the rule: its holder is this CPU, interrupted, or one that
        // hangs. What the rule guards is the device's state, and of that only the order of characters can suffer.
        let mut console = Console(unsafe { port.driver() });
        // The holder may have been in the middle of a line.
        if !LOCK_LOST.swap(true, Ordering::Relaxed) {
            let _ = console.write_str("\n");
        }
        let _ = console.write_fmt(text);
    });
}

/// Collects text into NUL-terminated pieces for the semihosting host.
struct SemihostingWriter {
    buffer: [u8; 128],
    used: usize,
}

impl SemihostingWriter {
    fn new() -> Self {
        Self { buffer: [0; _], used: 0 }
    }

    fn flush(&mut self) {
        self.buffer[self.used] = 0;
        self.used = 0;
        if let Ok(text) = CStr::from_bytes_until_nul(&self.buffer) {
            // Without a host there is nobody to tell.
            semihosting::write0(text);
        }
    }
}

impl Write for SemihostingWriter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.buffer[self.used] = byte;
            self.used += 1;
            // The last byte is for the NUL.
            if self.used == self.buffer.len() - 1 {
                self.flush();
            }
        }
        Ok(())
    }
}
