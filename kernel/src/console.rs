//! The serial console: a PL011 (DDI 0183), [`println!`] for what programs read, and the
//! `log` facade for what people read.
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
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use arch::VirtAddr;
use arch::aarch64::{daif, probe, semihosting};
use arm_pl011_uart::{Interrupts, PL011Registers, Uart, UniqueMmioPointer};
use kernel::platform::{self, PhysRange, UartKind};
use log::{Level, LevelFilter, Log, Metadata, Record};
use mm::MapError;
use safe_mmio::field;
use safe_mmio::fields::ReadPureWrite;

use crate::lock::IrqMutex;
use crate::{cpu, timer, vm};

/// How often the flag register of a full FIFO is read before the UART counts as stuck. A read takes
/// some 100 ns or more, a character 1 ms at 9600 baud. Not a time: this must end without a counter.
const FULL_SPINS: u32 = 1_000_000;

/// How often [`emergency`] tries the lock, some 50 ns each: longer than a line takes on another CPU.
const LOCK_SPINS: u32 = 4_000_000;

/// The console, once [`init`] has found it.
static CONSOLE: IrqMutex<Option<Pl011>> = IrqMutex::new(None);

/// The same registers, for [`emergency`] and [`flush`]. Null before [`init`].
static REGISTERS: AtomicPtr<PL011Registers> = AtomicPtr::new(core::ptr::null_mut());

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
    /// There is a console already.
    AlreadyInitialised,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misplaced(range) => write!(f, "no place for a PL011: {}", range.start),
            Self::Map(error) => write!(f, "its registers can't be mapped: {error}"),
            Self::NotPl011 { part, designer } => {
                write!(f, "not a PL011: part {part:#x}, designer {designer:#x}")
            }
            Self::NotThere(range) => {
                write!(f, "the device tree promises registers at {range}, and there are none")
            }
            Self::AlreadyInitialised => f.write_str("there is a console already"),
        }
    }
}

impl core::error::Error for Error {}

/// The registers of a PL011 that `arm-pl011-uart` writes only together with the baud rate.
#[repr(C)]
struct LineControl {
    _reserved: [u32; 11],
    /// 0x02c UARTLCR_H
    lcr_h: ReadPureWrite<u32>,
    /// 0x030 UARTCR
    cr: ReadPureWrite<u32>,
}

/// Offset of UARTPeriphID0.
const PERIPHID0: u64 = 0xfe0;
/// UARTLCR_H: eight bits, FIFOs on; no parity and one stop bit are zeros.
const LCR_H_8N1_FIFO: u32 = 0b11 << 5 | 1 << 4;
/// UARTCR: the UART is on.
const CR_UARTEN: u32 = 1 << 0;
/// UARTCR: the transmitter is on.
const CR_TXE: u32 = 1 << 8;

/// A PL011 that is written to.
struct Pl011(Uart<'static>);

impl Pl011 {
    /// Sends one byte, or drops it where the UART takes none.
    fn put(&mut self, byte: u8) {
        let mut spins = if STUCK.load(Ordering::Relaxed) { 0 } else { FULL_SPINS };
        while self.0.is_tx_fifo_full() {
            if spins == 0 {
                STUCK.store(true, Ordering::Relaxed);
                return;
            }
            spins -= 1;
            spin_loop();
        }
        STUCK.store(false, Ordering::Relaxed);
        self.0.write_word(byte);
    }
}

impl Write for Pl011 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.put(b'\r');
            }
            self.put(byte);
        }
        Ok(())
    }
}

/// Makes `uart` the console, at [`LevelFilter::Info`]. The baud rate stays as firmware set it; a UART
/// that firmware left off is switched on, at eight bits without parity.
///
/// # Errors
/// See [`Error`]. There is no console then, unless there was one before.
pub(crate) fn init(uart: &platform::Uart) -> Result<(), Error> {
    let UartKind::Pl011 = uart.kind;
    let misplaced = Error::Misplaced(uart.registers);
    // The tree may give less than the whole register block (the Pi's does), but never shares a page.
    let start = uart.registers.start;
    let Some(end) = start.checked_add(size_of::<PL011Registers>() as u64) else { return Err(misplaced) };
    if !start.is_aligned(align_of::<PL011Registers>() as u64) {
        return Err(misplaced);
    }

    let mut console = CONSOLE.lock();
    if console.is_some() {
        return Err(Error::AlreadyInitialised);
    }
    let base: NonNull<PL011Registers> = vm::map_device(PhysRange { start, end }).map_err(Error::Map)?.cast();
    // SAFETY: reading an identification register has no effect.
    if unsafe { probe::load_word(VirtAddr::new(base.as_ptr() as u64 + PERIPHID0)) }.is_err() {
        return Err(Error::NotThere(uart.registers));
    }
    // SAFETY: the registers are mapped as device memory, for ever, and aligned. `console` is locked
    // and empty, so that nothing else drives them.
    let mut registers = unsafe { UniqueMmioPointer::new(base) };

    let mut driver = Uart::new(registers.reborrow());
    let id = driver.read_identification();
    if !id.is_valid() {
        return Err(Error::NotPl011 { part: id.part_number, designer: id.designer });
    }
    driver.set_interrupt_masks(Interrupts::empty());

    // SAFETY: the first registers of the block, under other names.
    let mut line = unsafe { registers.child(base.cast::<LineControl>()) };
    let cr = field!(line, cr).read();
    if cr & CR_UARTEN == 0 {
        // The line control must not change while the UART is on.
        field!(line, lcr_h).write(LCR_H_8N1_FIFO);
    }
    field!(line, cr).write(cr | CR_UARTEN | CR_TXE);

    *console = Some(Pl011(Uart::new(registers)));
    REGISTERS.store(base.as_ptr(), Ordering::Release);
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
    let Some(registers) = NonNull::new(REGISTERS.load(Ordering::Acquire)) else { return };
    // SAFETY: mapped by `init`, for ever. An alias of the console's pointer, used to read the flag
    // register only, which has no side effect.
    let uart = Uart::new(unsafe { UniqueMmioPointer::new(registers) });
    let mut spins = if STUCK.load(Ordering::Relaxed) { 0 } else { FULL_SPINS };
    while uart.is_busy() && spins > 0 {
        spins -= 1;
        spin_loop();
    }
}

/// Prints `text` as it is, whatever the state of this CPU: for panics and unexpected exceptions, which may come
/// while this CPU or one that hangs holds the lock. Without a console it goes to the semihosting
/// host, where there is one.
pub(crate) fn emergency(text: fmt::Arguments<'_>) {
    let Some(registers) = NonNull::new(REGISTERS.load(Ordering::Acquire)) else {
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
        // SAFETY: mapped by `init`, for ever. The console's pointer is aliased, against the rule of
        // `UniqueMmioPointer`: its holder is this CPU, interrupted, or one that hangs. What the rule
        // guards is the device's state, and of that only the order of characters can suffer.
        let mut console = Pl011(Uart::new(unsafe { UniqueMmioPointer::new(registers) }));
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
