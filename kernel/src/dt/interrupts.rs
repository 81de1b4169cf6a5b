//! Interrupts by their specifiers: a GIC's is three cells (kind, number, flags) or more.

use dtoolkit::fdt::FdtNode;
use dtoolkit::{Cells, Node, Property, ToCellInt};

use super::{DtError, malformed, strings};

/// An interrupt specifier's kind: one that is every CPU's (SPI), or each one's own (PPI).
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
/// Flags of a specifier, of which these are the trigger.
const TRIGGER: u32 = 0xf;
const LEVEL_HIGH: u32 = 4;

/// A GIC, as interrupts name it.
#[derive(Clone, Copy)]
pub(super) struct Controller {
    phandle: Option<u32>,
    /// The cells of a specifier.
    cells: usize,
}

/// What a specifier says.
struct Specifier {
    kind: u32,
    number: u32,
    flags: u32,
    /// The controller, where it is named with each interrupt.
    controller: Option<u32>,
}

impl Controller {
    /// The controller that `node` describes.
    ///
    /// # Errors
    /// [`DtError::Property`]
    pub(super) fn read(node: &FdtNode<'_>) -> Result<Self, DtError> {
        match cell(node, "#interrupt-cells") {
            Some(cells @ 3..) => Ok(Self { phandle: cell(node, "phandle"), cells: cells as usize }),
            _ => Err(malformed("the interrupt controller", "#interrupt-cells")),
        }
    }

    /// The virtual timer's INTID. Its interrupt is a PPI: number 0 to 15 for INTID 16 to 31. Where the controller is named
    /// with every interrupt, it is taken for the GIC: no other has these timers.
    ///
    /// # Errors
    /// [`DtError::Property`], [`DtError::TimerInterrupt`].
    pub(super) fn timer_intid(&self, timer: &FdtNode<'_>) -> Result<u32, DtError> {
        const SECURE_NONSECURE_VIRTUAL: usize = 2;
        let index = match timer.property("interrupt-names") {
            Some(_) => strings(timer, "interrupt-names").position(|name| name == "virt"),
            None => Some(SECURE_NONSECURE_VIRTUAL),
        };
        match index.and_then(|index| self.specifier(timer, index)) {
            Some(Specifier { kind: PRIVATE, number: ppi @ 0..=15, .. }) => Ok(16 + ppi),
            Some(Specifier { kind, number, .. }) => Err(DtError::TimerInterrupt { kind, number }),
            None => Err(malformed("the timer", "interrupts")),
        }
    }

    /// The INTID of the first interrupt of `device`, whose interrupt parent is `parent`, if it is an SPI of this controller,
    /// active while a level is high: number 0 to 987 for INTID 32 to 1019.
    pub(super) fn shared_intid(&self, device: &FdtNode<'_>, parent: Option<u32>) -> Option<u32> {
        let Specifier { kind, number, flags, controller } = self.specifier(device, 0)?;
        let mine = self.phandle.is_some() && controller.or(parent) == self.phandle;
        let fits = kind == SHARED && number <= 987 && flags & TRIGGER == LEVEL_HIGH;
        (mine && fits).then(|| 32 + number)
    }

    fn specifier(&self, device: &FdtNode<'_>, index: usize) -> Option<Specifier> {
        let (interrupts, phandle_cells) = match device.property("interrupts-extended") {
            Some(interrupts) => (interrupts, 1),
            None => (device.property("interrupts")?, 0),
        };
        let fields = [phandle_cells, 1, 1, 1, self.cells - 3];
        let [phandle, kind, number, flags, _] = interrupts.as_prop_encoded_array(fields).ok()?.nth(index)?;
        let int = |cells: Cells<'_>| cells.to_int::<u32>().ok();
        let controller = if phandle_cells == 0 { None } else { Some(int(phandle)?) };
        Some(Specifier { kind: int(kind)?, number: int(number)?, flags: int(flags)?, controller })
    }
}

/// The interrupt parent of the last node of `path`: what the nearest of them names.
pub(super) fn parent(path: &[FdtNode<'_>]) -> Option<u32> {
    path.iter().rev().find_map(|node| cell(node, "interrupt-parent"))
}

fn cell(node: &FdtNode<'_>, property: &str) -> Option<u32> {
    node.property(property)?.value_as::<u32>().ok()
}
