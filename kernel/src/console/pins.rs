//! GPIO 14 and 15 of a BCM2711, which are pins 8 and 10 of a Raspberry Pi's header: which UART they lead to (BCM2711 ARM
//! Peripherals, chapter 5).

use arch::VirtAddr;
use arch::aarch64::probe;
use kernel::platform::{PhysRange, UartKind};
use safe_mmio::fields::ReadPureWrite;
use safe_mmio::{UniqueMmioPointer, field, field_shared};

use super::Error;
use crate::vm;

/// The registers, of which trees for older Linux leave out those of the pulls.
#[repr(C)]
struct Registers {
    /// 0x04 is GPFSEL1: three bits for each of GPIO 10 to 19.
    function_select: [ReadPureWrite<u32>; 6],
    _others: [u32; 51],
    /// 0xe4 GPIO_PUP_PDN_CNTRL_REG0: two bits for each of GPIO 0 to 15.
    pulls: [ReadPureWrite<u32>; 4],
}
const _: () = assert!(core::mem::offset_of!(Registers, pulls) == 0xe4);

/// In GPFSEL1, GPIO 14 (transmit) and 15 (receive).
const FUNCTIONS: u32 = 0b111_111 << 12;
/// Both at ALT0: UART 0.
const ALT0: u32 = 0b100_100 << 12;
/// Both at ALT5: the mini-UART.
const ALT5: u32 = 0b010_010 << 12;
/// In GPIO_PUP_PDN_CNTRL_REG0, the same two.
const PULLS: u32 = 0b11_11 << 28;
/// Transmit without a pull, receive pulled up: with no cable there, the line is idle.
const RECEIVE_UP: u32 = 0b01_00 << 28;

/// The pins, and the function that they get.
pub(super) struct Pins {
    registers: UniqueMmioPointer<'static, Registers>,
    function: u32,
}

impl Pins {
    /// Maps the pin controller at `range`, to lead the pins to the UART of this kind. Nothing else may drive these pins.
    pub(super) fn map(range: PhysRange, kind: UartKind) -> Result<Self, Error> {
        let block = PhysRange::from_size(range.start.get(), size_of::<Registers>() as u64);
        let block = block.filter(|block| block.start.is_aligned(align_of::<Registers>() as u64));
        let base = vm::map_device(block.ok_or(Error::Misplaced(range))?).map_err(Error::Map)?;
        // SAFETY: reading a function select register has no effect.
        if unsafe { probe::load_word(VirtAddr::new(base.as_ptr() as u64)) }.is_err() {
            return Err(Error::NotThere(range));
        }
        let function = match kind {
            UartKind::Pl011 => ALT0,
            UartKind::MiniUart => ALT5,
        };
        // SAFETY: the registers are mapped as device memory, for ever, and aligned; the console is the one that has them.
        Ok(Self { registers: unsafe { UniqueMmioPointer::new(base.cast()) }, function })
    }

    /// Whether they lead there already.
    pub(super) fn are_led(&self) -> bool {
        let selects = field_shared!(self.registers, function_select);
        selects.get(1).is_some_and(|select| select.read() & FUNCTIONS == self.function)
    }

    /// Leads them there.
    ///
    /// # Errors
    /// [`Error::Pins`], where they don't go.
    pub(super) fn lead(&mut self) -> Result<(), Error> {
        let mut pulls = field!(self.registers, pulls);
        let mut pull = pulls.get(0).expect("there are four");
        let others = pull.read() & !PULLS;
        pull.write(others | RECEIVE_UP);
        let mut selects = field!(self.registers, function_select);
        let mut select = selects.get(1).expect("there are six");
        let others = select.read() & !FUNCTIONS;
        select.write(others | self.function);
        if self.are_led() { Ok(()) } else { Err(Error::Pins) }
    }
}
