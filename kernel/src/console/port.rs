//! The UARTs that the console can be: a PL011 (DDI 0183), and the mini-UART of a Raspberry Pi (BCM2711 ARM Peripherals,
//! chapter 2). Characters with a parity or framing error, and breaks, are dropped.

use core::hint::spin_loop;
use core::ptr::NonNull;

use arch::VirtAddr;
use arch::aarch64::probe;
use arm_pl011_uart::{DataBits, Interrupts, LineConfig, PL011Registers, Parity, StopBits, Uart};
use kernel::platform::{self, PhysRange, UartKind};
use safe_mmio::fields::{ReadPure, ReadPureWrite, ReadWrite, WriteOnly};
use safe_mmio::{UniqueMmioPointer, field, field_shared};

use super::{Error, FULL_SPINS, pins};
use crate::vm;

/// What a UART is set to where firmware has left it alone: bits a second, without parity, one stop bit.
const BAUD: u32 = 115_200;
/// The clock of UART 0 in Hz, as the Raspberry Pi's firmware sets it (`init_uart_clock` in config.txt).
const UART_0_CLOCK: u32 = 48_000_000;
/// The clock of its mini-UART, which is that of the VideoCore: `core_freq` in config.txt, where `core_freq_min` is the same.
const MINI_UART_CLOCK: u32 = 500_000_000;

/// The registers of a PL011 that `arm-pl011-uart` writes only all together, and does not read.
#[repr(C)]
struct LineControl {
    _others: [u32; 9],
    /// 0x024 UARTIBRD
    ibrd: ReadPureWrite<u32>,
    /// 0x028 UARTFBRD
    _fbrd: u32,
    /// 0x02c UARTLCR_H
    lcr_h: ReadPureWrite<u32>,
    /// 0x030 UARTCR
    cr: ReadPureWrite<u32>,
}

/// Offset of UARTFR in a PL011.
const FR: u64 = 0x18;
/// UARTLCR_H: eight bits, FIFOs on; no parity and one stop bit are zeros.
const LCR_H_8N1_FIFO: u32 = 0b11 << 5 | 1 << 4;
/// UARTCR: the receiver is on.
const CR_RXE: u32 = 1 << 9;
/// UARTCR: the UART is on.
const CR_UARTEN: u32 = 1 << 0;
/// UARTCR: the transmitter is on.
const CR_TXE: u32 = 1 << 8;

/// The page of the auxiliary peripherals, of which the mini-UART is one.
#[repr(C)]
pub(super) struct Auxiliaries {
    /// 0x00 AUX_IRQ
    _irq: u32,
    /// 0x04 AUX_ENABLES
    enables: ReadPureWrite<u32>,
    _reserved: [u32; 14],
    /// 0x40 AUX_MU_IO. A read takes a character.
    io: ReadWrite<u32>,
    /// 0x44 AUX_MU_IER
    ier: ReadPureWrite<u32>,
    /// 0x48 AUX_MU_IIR
    iir: WriteOnly<u32>,
    /// 0x4c AUX_MU_LCR
    lcr: ReadPureWrite<u32>,
    /// 0x50 AUX_MU_MCR
    _mcr: u32,
    /// 0x54 AUX_MU_LSR. A read clears that a character was lost on receipt, which is not asked for: who sends reads it too.
    lsr: ReadPure<u32>,
    /// 0x58 AUX_MU_MSR, 0x5c AUX_MU_SCRATCH
    _others: [u32; 2],
    /// 0x60 AUX_MU_CNTL
    cntl: ReadPureWrite<u32>,
    /// 0x64 AUX_MU_STAT
    _stat: u32,
    /// 0x68 AUX_MU_BAUD
    baud: ReadPureWrite<u32>,
}

/// Offset of AUX_ENABLES in [`Auxiliaries`].
const ENABLES: u64 = 0x04;
/// Offset of the mini-UART's registers in [`Auxiliaries`].
const MINI_UART: u64 = 0x40;
const _: () = assert!(core::mem::offset_of!(Auxiliaries, io) == MINI_UART as usize);
const _: () = assert!(core::mem::offset_of!(Auxiliaries, baud) == 0x68);

/// AUX_ENABLES: the mini-UART is on.
const ENABLES_MINI_UART: u32 = 1 << 0;
/// AUX_MU_IIR: both FIFOs are emptied.
const IIR_CLEAR: u32 = 0b11 << 1;
/// AUX_MU_LCR: eight bits.
const LCR_8_BITS: u32 = 0b11;
/// AUX_MU_IER: an interrupt while there is something to read. Without bits 2 and 3, which the manual says don't matter, none
/// comes.
const IER_RECEIVE: u32 = 0b1101;
/// AUX_MU_LSR: there is a character to read.
const LSR_RECEIVED: u32 = 1 << 0;
/// AUX_MU_LSR: the FIFO takes a character.
const LSR_ROOM: u32 = 1 << 5;
/// AUX_MU_LSR: everything was sent.
const LSR_IDLE: u32 = 1 << 6;
/// AUX_MU_CNTL: receiver and transmitter are on.
const CNTL_BOTH: u32 = 0b11;

/// A UART whose registers are mapped, for good. [`Driver`]s are made of it.
#[derive(Clone, Copy)]
pub(super) struct Port {
    kind: UartKind,
    base: NonNull<u8>,
}

// SAFETY: the registers are mapped for ever, on all CPUs; who makes a driver of it vouches for more.
unsafe impl Send for Port {}
// SAFETY: as above.
unsafe impl Sync for Port {}

impl Port {
    /// Maps the registers of `uart`, switches it on, and leads its pins to it. What firmware set is kept, baud rate
    /// included; else it is 115200 baud, eight bits, without parity. Nothing else may drive the UART.
    pub(super) fn open(uart: &platform::Uart) -> Result<Self, Error> {
        let port = Self { kind: uart.kind, base: map(uart)? };
        let pins = uart.pins.map(|registers| pins::Pins::map(registers, uart.kind)).transpose()?;
        // Where pins led elsewhere, so did the UART: a Raspberry Pi's firmware leaves UART 0 to Bluetooth.
        let led = pins.as_ref().map(pins::Pins::are_led);
        // SAFETY: the caller, who opens it once, is the only one.
        match unsafe { port.driver() } {
            Driver::Pl011(driver) => port.set_up_pl011(driver, led, uart.identified)?,
            Driver::MiniUart(registers) => set_up_mini_uart(registers, led),
        }
        // Last, so that the line is idle from the beginning.
        if let Some(mut pins) = pins {
            pins.lead()?;
        }
        Ok(port)
    }

    /// The driver.
    ///
    /// # Safety
    /// No other may be used at the same time, except that the flags, which have no side effect, may always be read, and that
    /// one may send while another one receives: they have no register in common but the flags, and the one for data, of which
    /// one writes and the other reads.
    pub(super) unsafe fn driver(self) -> Driver {
        match self.kind {
            // SAFETY: mapped as device memory for ever, and aligned; the caller vouches for the rest.
            UartKind::Pl011 => Driver::Pl011(Uart::new(unsafe { UniqueMmioPointer::new(self.base.cast()) })),
            // SAFETY: as above.
            UartKind::MiniUart => Driver::MiniUart(unsafe { UniqueMmioPointer::new(self.base.cast()) }),
        }
    }

    /// `led`: whether the pins lead here, on a Raspberry Pi, whose clock is known.
    fn set_up_pl011(self, mut driver: Uart<'_>, led: Option<bool>, identified: bool) -> Result<(), Error> {
        let id = driver.read_identification();
        if !identified && !id.is_valid() {
            return Err(Error::NotPl011 { part: id.part_number, designer: id.designer });
        }
        driver.set_interrupt_masks(Interrupts::empty());
        // SAFETY: the first registers of the block, under other names; where the driver is used again, these are not.
        let mut line = unsafe { UniqueMmioPointer::new(self.base.cast::<LineControl>()) };
        let cr = field!(line, cr).read();
        let on = cr & CR_UARTEN != 0;
        // Firmware may lead the pins and leave the UART as it was: off, or without a baud rate.
        let set_up = on && field!(line, ibrd).read() != 0;
        if led.is_some_and(|led| !led || !set_up) {
            if on {
                // What firmware has said is sent before the UART is off.
                wait_while(|| driver.is_busy());
            }
            let line =
                LineConfig { data_bits: DataBits::Bits8, parity: Parity::None, stop_bits: StopBits::One };
            return driver.enable(line, BAUD, UART_0_CLOCK).map_err(|_| Error::Baud);
        }
        if !on {
            // The line control must not change while the UART is on.
            field!(line, lcr_h).write(LCR_H_8N1_FIFO);
        }
        field!(line, cr).write(cr | CR_UARTEN | CR_TXE | CR_RXE);
        Ok(())
    }
}

/// Waits for a UART, or for a bounded time.
pub(super) fn wait_while(condition: impl Fn() -> bool) {
    let mut spins = FULL_SPINS;
    while condition() && spins > 0 {
        spins -= 1;
        spin_loop();
    }
}

fn set_up_mini_uart(mut registers: UniqueMmioPointer<'_, Auxiliaries>, led: Option<bool>) {
    // The other registers read as zero, and are not written, until it is on.
    let enables = field!(registers, enables).read();
    field!(registers, enables).write(enables | ENABLES_MINI_UART);
    field!(registers, ier).write(0);
    let baud = field!(registers, baud).read();
    if baud == 0 || led == Some(false) {
        field!(registers, cntl).write(0);
        field!(registers, iir).write(IIR_CLEAR);
        field!(registers, baud).write(MINI_UART_CLOCK / (8 * BAUD) - 1);
    }
    field!(registers, lcr).write(LCR_8_BITS);
    let cntl = field!(registers, cntl).read();
    field!(registers, cntl).write(cntl | CNTL_BOTH);
}

/// Maps the registers and makes sure that they answer. The tree may give less than a whole block (the Pi's does), but none
/// shares a page with anything else than its like.
fn map(uart: &platform::Uart) -> Result<NonNull<u8>, Error> {
    let misplaced = Error::Misplaced(uart.registers);
    let (before, size, align, answering) = match uart.kind {
        UartKind::Pl011 => (0, size_of::<PL011Registers>(), align_of::<PL011Registers>(), FR),
        UartKind::MiniUart => (MINI_UART, size_of::<Auxiliaries>(), 0x1000, ENABLES),
    };
    let block = uart.registers.start.get().checked_sub(before);
    let Some(block) = block.and_then(|base| PhysRange::from_size(base, size as u64)) else {
        return Err(misplaced);
    };
    if !block.start.is_aligned(align as u64) {
        return Err(misplaced);
    }
    let base = vm::map_device(block).map_err(Error::Map)?;
    // SAFETY: reading the flags, or the enables, has no effect.
    match unsafe { probe::load_word(VirtAddr::new(base.as_ptr() as u64 + answering)) } {
        Ok(_) => Ok(base),
        Err(_) => Err(Error::NotThere(uart.registers)),
    }
}

/// A UART that is written to, or read from.
pub(super) enum Driver {
    Pl011(Uart<'static>),
    MiniUart(UniqueMmioPointer<'static, Auxiliaries>),
}

impl Driver {
    /// Whether it takes no character now.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Pl011(uart) => uart.is_tx_fifo_full(),
            Self::MiniUart(registers) => field_shared!(registers, lsr).read() & LSR_ROOM == 0,
        }
    }

    /// Whether something is still to be sent.
    pub(super) fn is_busy(&self) -> bool {
        match self {
            Self::Pl011(uart) => uart.is_busy(),
            Self::MiniUart(registers) => field_shared!(registers, lsr).read() & LSR_IDLE == 0,
        }
    }

    /// Sends a character, which is lost where it [`is_full`](Self::is_full).
    pub(super) fn write(&mut self, byte: u8) {
        match self {
            Self::Pl011(uart) => uart.write_word(byte),
            Self::MiniUart(registers) => {
                let mut registers = registers.reborrow();
                field!(registers, io).write(byte.into());
            }
        }
    }

    /// Receives a character, if there is one.
    pub(super) fn read(&mut self) -> Option<u8> {
        match self {
            Self::Pl011(uart) => loop {
                // An error takes it out of the FIFO too, as it does the first one after some that found that full.
                if let Ok(byte) = uart.read_word() {
                    return byte;
                }
            },
            Self::MiniUart(registers) => {
                let mut registers = registers.reborrow();
                let received = field_shared!(registers, lsr).read() & LSR_RECEIVED != 0;
                received.then(|| field!(registers, io).read() as u8)
            }
        }
    }

    /// Whether there is an interrupt while something can be received.
    pub(super) fn listen(&mut self, listen: bool) {
        match self {
            Self::Pl011(uart) => {
                // When a part of the FIFO is full, and when the line is quiet while it is not empty.
                let received = Interrupts::RXI | Interrupts::RTI;
                uart.set_interrupt_masks(if listen { received } else { Interrupts::empty() });
            }
            Self::MiniUart(registers) => {
                let mut registers = registers.reborrow();
                field!(registers, ier).write(if listen { IER_RECEIVE } else { 0 });
            }
        }
    }
}
