//! Where the Image is, and where its parts begin: symbols of `image.ld`.

use arch::{PhysAddr, VirtAddr};
use kernel::platform::PhysRange;

/// Declares symbols of the linker script and functions that return their addresses.
macro_rules! symbols {
    ($($(#[$doc:meta])* $function:ident = $symbol:ident;)*) => {
        unsafe extern "C" { $(static $symbol: u8;)* }
        $(
            $(#[$doc])*
            pub(crate) fn $function() -> VirtAddr {
                VirtAddr::new(&raw const $symbol as u64)
            }
        )*
    };
}

symbols! {
    /// The first byte: the header.
    start = _image_start;
    /// One past the text.
    text_end = _text_end;
    /// One past what is constant after the relocations were applied.
    rodata_end = _rodata_end;
    /// One past `.bss`.
    end = _image_end;
    /// The exception table.
    ex_table_start = _ex_table_start;
    /// One past the exception table.
    ex_table_end = _ex_table_end;
}

/// The Image's place in physical memory.
#[derive(Clone, Copy)]
pub(crate) struct Image {
    /// The first byte.
    pub start: PhysAddr,
}

impl Image {
    /// By what virtual addresses of the Image exceed physical ones.
    pub(crate) fn offset(self) -> u64 {
        start().get() - self.start.get()
    }

    /// The physical address of `va`, which is inside of the Image.
    pub(crate) fn physical(self, va: VirtAddr) -> PhysAddr {
        PhysAddr::new(va.get() - self.offset())
    }

    /// All of it, `.bss` included.
    pub(crate) fn range(self) -> PhysRange {
        PhysRange { start: self.start, end: self.physical(end()) }
    }

    /// What is never written while the kernel runs: text and constants.
    pub(crate) fn constant(self) -> PhysRange {
        PhysRange { start: self.start, end: self.physical(rodata_end()) }
    }
}
