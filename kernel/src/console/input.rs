//! What is typed: bytes that the console has received, until somebody [takes](take) them.
//!
//! ```text
//!  UART ──interrupt──▶ receive ──▶ RECEIVED ──take──▶ process::tty
//! ```
//!
//! Where nobody takes them and there is no more room, the UART keeps what comes: a sender that waits for it, as a virtual
//! machine's does, loses nothing; a terminal does, which is not told.

use alloc::collections::VecDeque;

use kernel::platform::Uart;
use log::warn;

use super::PORT;
use super::port::Driver;
use crate::gic;
use crate::lock::IrqMutex;

/// Bytes that wait to be taken: a line of the longest kind.
const ROOM: usize = kernel::line::MAX_LINE;
/// The priority of the UART's interrupt: the tick is more urgent.
const PRIORITY: u8 = 0xa0;

static INPUT: IrqMutex<Option<Input>> = IrqMutex::new(None);

struct Input {
    uart: Driver,
    /// Has [`ROOM`].
    received: VecDeque<u8>,
    /// Whether the UART is to interrupt.
    listens: bool,
}

impl Input {
    /// Takes what the UART has, as far as there is room, and has it interrupt for more where there still is some.
    fn receive(&mut self) {
        while self.received.len() < ROOM {
            match self.uart.read() {
                Some(byte) => self.received.push_back(byte),
                None => return self.listen(true),
            }
        }
        self.listen(false);
    }

    fn listen(&mut self, listens: bool) {
        if self.listens != listens {
            self.listens = listens;
            self.uart.listen(listens);
        }
    }
}

/// Begins to receive what `uart`, the console, is sent, on this CPU. Called once, after [`gic::init_cpu`]. Where that is not
/// possible there is a warning.
pub(crate) fn init(uart: &Uart) {
    let Some(intid) = uart.intid else {
        warn!("console: its interrupt is not known, so that nothing can be read");
        return;
    };
    let Some(port) = PORT.get() else { return };
    let mut received = VecDeque::new();
    if received.try_reserve_exact(ROOM).is_err() {
        warn!("console: nothing can be read: there is no memory");
        return;
    }
    if let Err(error) = gic::register(intid, interrupt).and_then(|()| gic::enable_shared(intid, PRIORITY)) {
        warn!("console: nothing can be read: {error}");
        return;
    }
    // SAFETY: it only receives, and is the only one that does.
    let mut input = Input { uart: unsafe { port.driver() }, received, listens: false };
    // From here on there are interrupts.
    input.receive();
    *INPUT.lock() = Some(input);
}

/// The handler of the UART's interrupt.
fn interrupt(_intid: u32) {
    if let Some(input) = &mut *INPUT.lock() {
        input.receive();
    }
}

/// Whether anything can ever be [taken](take).
pub(crate) fn is_there() -> bool {
    INPUT.lock().is_some()
}

/// Takes a byte that was received.
pub(crate) fn take() -> Option<u8> {
    let mut input = INPUT.lock();
    let input = input.as_mut()?;
    let byte = input.received.pop_front();
    if !input.listens {
        input.receive();
    }
    byte
}
