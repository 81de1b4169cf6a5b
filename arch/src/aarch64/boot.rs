//! What the boot assembly shares with the kernel.

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use super::barrier;
use super::trap::CpuLocal;
use crate::descriptor::MAIR;
use crate::mmu::Hafdbs;
use crate::tlbi::Asid;
use crate::{Granule, PhysAddr, VirtAddr};

/// Where the Image lives: at the address in this 1 GiB slot that agrees with its physical address
/// modulo 2 MiB, so that blocks and Contiguous groups fit wherever it was loaded.
pub const IMAGE_BASE: u64 = 0xffff_8000_0000_0000;

/// The largest Image, from its first byte to the end of `.bss`.
pub const IMAGE_MAX: u64 = 16 << 20;

/// Last-level tables that map an Image of [`IMAGE_MAX`] bytes, wherever it begins in its first 2 MiB.
const EARLY_L3_TABLES: u64 = IMAGE_MAX / (2 << 20) + 1;

/// `TCR_EL1` without the fields that depend on the CPU (IPS, AS): 48-bit addresses and 4 KiB granule in
/// both halves, walks Inner Shareable and Write-Back, no tags in the upper half (DDI 0487, D24.2, TCR_EL1).
const TCR: u64 = {
    const T0SZ: u64 = 16;
    const IRGN0_WBWA: u64 = 1 << 8;
    const ORGN0_WBWA: u64 = 1 << 10;
    const SH0_INNER: u64 = 3 << 12;
    const T1SZ: u64 = 16 << 16;
    const IRGN1_WBWA: u64 = 1 << 24;
    const ORGN1_WBWA: u64 = 1 << 26;
    const SH1_INNER: u64 = 3 << 28;
    const TG1_4K: u64 = 2 << 30;
    // Programs may use the top byte of an address, as on Linux.
    const TBI0: u64 = 1 << 37;
    TBI0 | T0SZ | IRGN0_WBWA | ORGN0_WBWA | SH0_INNER | T1SZ | IRGN1_WBWA | ORGN1_WBWA | SH1_INNER | TG1_4K
};

/// `SCTLR_EL1`: MMU, data and instruction caches, SP alignment checks; the rest as RES1.
const SCTLR: u64 = {
    const RES1: u64 = 0x30d0_0800;
    const M: u64 = 1 << 0;
    const C: u64 = 1 << 2;
    const SA: u64 = 1 << 3;
    const I: u64 = 1 << 12;
    RES1 | M | C | SA | I
};

global_asm!(
    include_str!("boot.S"),
    include_str!("efi.S"),
    image_base = const IMAGE_BASE,
    early_l3_tables = const EARLY_L3_TABLES,
    mair = const MAIR,
    tcr = const TCR,
    sctlr = const SCTLR,
    stack_top = const offset_of!(CpuLocal, stack_top),
);

unsafe extern "C" {
    fn secondary_start();
    fn leave_firmware(device_tree: u64, bytes: u64) -> !;
    fn replace_ttbr1(root: u64, idmap_root: u64, empty_table: u64, low: u64);
    fn replace_ttbr1_low();
    static idmap_root: u8;
    static empty_table: u8;
    static init_root: u8;
}

/// Addresses inside the Image that the kernel needs, as virtual addresses where the kernel runs.
pub mod image {
    use super::*;

    /// The root table of `init_mm`: one zeroed page.
    pub fn init_root_table() -> VirtAddr {
        VirtAddr::new(&raw const init_root as u64)
    }

    /// Where CPUs other than the first start, with the MMU off.
    pub fn secondary_entry() -> VirtAddr {
        VirtAddr::new(secondary_start as *const () as u64)
    }
}

/// From EFI firmware, whose boot services were left, to the entry of the Image with the device tree of so many bytes at
/// `device_tree`: cleans both to the point of coherency, with interrupts masked, and switches MMU and caches off.
///
/// # Safety
/// It must run at EL1 or EL2 with every address mapped to itself, the Image relocated to where it is, and nothing
/// else of this machine running: what memory holds beside the Image and the device tree is the kernel's from here on,
/// but for what the tree says is not.
pub unsafe fn enter_from_firmware(device_tree: PhysAddr, bytes: u64) -> ! {
    // SAFETY: the caller's contract.
    unsafe { leave_firmware(device_tree.get(), bytes) }
}

/// Loads `root` into TTBR1, through a moment at which TTBR1 translates nothing.
///
/// Interrupts must be masked. The instructions in between run from the identity map of the boot code's
/// page; afterwards TTBR0 translates nothing.
///
/// # Safety
/// `root` must be the physical address of a level 0 table that maps the Image where it is mapped now,
/// with text executable, data and this CPU's stack writable, and that keeps to Rust's aliasing rules: what
/// it maps writable belongs to the kernel. `image_offset` must be what virtual addresses of the Image exceed
/// their physical ones by.
pub unsafe fn load_kernel_root(root: PhysAddr, image_offset: u64) {
    let physical = |va: u64| va - image_offset;
    // SAFETY: the four addresses are what the assembly asks for; the caller vouches for `root`.
    unsafe {
        replace_ttbr1(
            root.get(),
            physical(&raw const idmap_root as u64),
            physical(&raw const empty_table as u64),
            physical(replace_ttbr1_low as *const () as u64),
        );
    }
}

/// Sets the granule by which this CPU walks the tables of TTBR0 (TCR_EL1.TG0). The kernel's own, in TTBR1, stays 4 KiB.
///
/// TTBR0 must translate nothing, with ASID 0: its empty table is one with every granule, being a page of zeroes, of which
/// 16 KiB looks at two entries and 64 KiB at 64. The field may be cached in a TLB (DDI 0487, D24.2, TCR_EL1), so this
/// CPU's is invalidated.
///
/// # Safety
/// The CPU must have the granule, and TTBR0 translate nothing.
pub unsafe fn set_user_granule(granule: Granule) {
    const TG0: u64 = 0b11 << 14;
    let tg0: u64 = match granule {
        Granule::K4 => 0b00 << 14,
        Granule::K64 => 0b01 << 14,
        Granule::K16 => 0b10 << 14,
    };
    // SAFETY: the caller vouches for CPU and TTBR0; the other fields stay as they are.
    unsafe {
        asm!(
            "mrs {tcr}, tcr_el1",
            "bic {tcr}, {tcr}, {mask}",
            "orr {tcr}, {tcr}, {tg0}",
            "msr tcr_el1, {tcr}",
            "isb",
            "tlbi vmalle1",
            "dsb nsh",
            "isb",
            tcr = out(reg) _,
            mask = in(reg) TG0,
            tg0 = in(reg) tg0,
            options(nostack, preserves_flags)
        );
    }
}

/// Loads a user address space into TTBR0, whose entries are tagged with `asid`.
///
/// # Safety
/// `root` must be the physical address of a root table of the granule of TTBR0 ([`set_user_granule`]; 4 KiB if it was never
/// called) that stays one until [`unload_user_root`] was called on this CPU, `asid` be its own, and what it maps keep to
/// Rust's aliasing rules.
pub unsafe fn load_user_root(root: PhysAddr, asid: Asid) {
    // SAFETY: the caller's contract. Not `nomem`: the tables were written before.
    unsafe {
        asm!("msr ttbr0_el1, {}", in(reg) root.get() | u64::from(asid.get()) << 48, options(nostack, preserves_flags));
    }
    barrier::isb();
}

/// What TTBR0 held, table and ASID, to be put back.
#[must_use]
#[derive(Debug)]
pub struct UserRoot(u64);

/// The granule by which this CPU walks the tables of TTBR0: see [`set_user_granule`].
pub fn user_granule() -> Granule {
    let tcr: u64;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mrs {}, tcr_el1", out(reg) tcr, options(nomem, nostack, preserves_flags)) };
    match tcr >> 14 & 0b11 {
        0b01 => Granule::K64,
        0b10 => Granule::K16,
        _ => Granule::K4,
    }
}

/// As [`load_user_root`], whatever TTBR0 holds, which is returned.
///
/// # Safety
/// As for [`load_user_root`], until [`restore_user_root`] was called on this CPU, which must be before anything else loads
/// or unloads a root.
pub unsafe fn replace_user_root(root: PhysAddr, asid: Asid) -> UserRoot {
    let old;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mrs {}, ttbr0_el1", out(reg) old, options(nomem, nostack, preserves_flags)) };
    // SAFETY: the caller's contract.
    unsafe { load_user_root(root, asid) };
    UserRoot(old)
}

/// Puts back what [`replace_user_root`] took away.
///
/// # Safety
/// It must be of this CPU, on which no context switch came in between.
pub unsafe fn restore_user_root(UserRoot(root): UserRoot) {
    // SAFETY: what it translates by was there before. The ASID is still this CPU's: a rollover keeps those that CPUs use.
    unsafe { asm!("msr ttbr0_el1, {}", in(reg) root, options(nostack, preserves_flags)) };
    barrier::isb();
}

/// Makes TTBR0 translate nothing, with ASID 0. `image_offset` is as for [`load_kernel_root`].
pub fn unload_user_root(image_offset: u64) {
    let table = &raw const empty_table as u64 - image_offset;
    // SAFETY: the table translates nothing.
    unsafe { asm!("msr ttbr0_el1, {}", in(reg) table, options(nostack, preserves_flags)) };
    barrier::isb();
}

/// Lets hardware set the access flag, or that and dirty state, of the tables that this CPU walks (TCR_EL1.HA, HD).
///
/// # Safety
/// The CPU must have it (FEAT_HAFDBS), without an erratum.
pub unsafe fn enable_hafdbs(hafdbs: Hafdbs) {
    const HA: u64 = 1 << 39;
    const HD: u64 = 1 << 40;
    let bits = match hafdbs {
        Hafdbs::None => return,
        Hafdbs::Af => HA,
        Hafdbs::AfDbm => HA | HD,
    };
    // SAFETY: the caller vouches for the CPU. The fields may be cached in a TLB, so what is there goes.
    unsafe {
        asm!(
            "mrs {tcr}, tcr_el1",
            "orr {tcr}, {tcr}, {bits}",
            "msr tcr_el1, {tcr}",
            "isb",
            "tlbi vmalle1",
            "dsb nsh",
            "isb",
            tcr = out(reg) _,
            bits = in(reg) bits,
            options(nostack, preserves_flags)
        );
    }
}
