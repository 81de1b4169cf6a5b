//! What a CPU can do, decoded from its identification registers (DDI 0487, D24.2, "ID_AA64MMFR0_EL1"
//! and those that follow; D24.1.3, "Principles of the ID scheme for fields in ID registers").
//!
//! Only what this kernel decides by is decoded. By the ID scheme a larger value of an unsigned field
//! means all that smaller ones mean, so values that are newer than this code count as the largest it
//! knows. Which models do better or worse than their registers say is in [`crate::cpu_models`].
#![forbid(unsafe_code)]

use core::fmt;

use crate::descriptor::{PteFlags, PteValue};
use crate::granule::Granule;

#[cfg(test)]
mod tests;

/// Raw values of the registers that are decoded, as one CPU reads them at EL1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IdRegisters {
    /// ID_AA64MMFR0_EL1
    pub mmfr0: u64,
    /// ID_AA64MMFR1_EL1
    pub mmfr1: u64,
    /// ID_AA64MMFR2_EL1
    pub mmfr2: u64,
    /// ID_AA64PFR0_EL1
    pub pfr0: u64,
    /// ID_AA64ISAR0_EL1
    pub isar0: u64,
    /// ID_AA64ISAR2_EL1
    pub isar2: u64,
    /// CTR_EL0
    pub ctr: u64,
}

/// MIDR_EL1: which CPU this is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Midr(u64);

/// Break-before-make support for a change of block size (ID_AA64MMFR2_EL1.BBM).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum BbmLevel {
    /// The sequence must be used.
    Level0,
    /// FEAT_BBML1: the Contiguous bit may change in place; a TLB conflict abort is possible.
    Level1,
    /// FEAT_BBML2: the size may change in place; a TLB conflict abort is still possible.
    Level2,
    /// FEAT_BBML3: as level 2, without TLB conflict aborts. Value 0b0011, which the 2025 extensions
    /// add; issue M of the manual reserves it.
    Level3,
}

/// Hardware updates of Access flag and dirty state (ID_AA64MMFR1_EL1.HAFDBS).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Hafdbs {
    /// None: an access with AF = 0 faults.
    None,
    /// The Access flag of block and page descriptors.
    Af,
    /// The Access flag, and dirty state by DBM.
    AfDbm,
}

impl Hafdbs {
    /// Whether hardware may update this entry: set its access flag, or clear `RDONLY` where DBM is set. While it may not,
    /// software that holds the lock may replace the entry by a plain store, and no flag is lost.
    #[inline]
    pub const fn may_update(self, pte: PteValue) -> bool {
        let flags = pte.flags();
        let old = !flags.contains(PteFlags::AF);
        let clean = flags.contains(PteFlags::DBM.union(PteFlags::RDONLY));
        pte.is_valid()
            && match self {
                Self::None => false,
                Self::Af => old,
                Self::AfDbm => old || clean,
            }
    }
}

/// Which translation granules stage 1 supports (ID_AA64MMFR0_EL1.TGran4, TGran16, TGran64).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Granules {
    /// 4 KiB.
    pub k4: bool,
    /// 16 KiB.
    pub k16: bool,
    /// 64 KiB.
    pub k64: bool,
}

/// How instructions that were just written become visible to instruction fetch (CTR_EL0).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CacheType {
    /// The smallest data or unified cache line in bytes (DminLine): the step of `dc cvau`.
    pub dcache_line: u32,
    /// The smallest instruction cache line in bytes (IminLine): the step of `ic ivau`.
    pub icache_line: u32,
    /// IDC: no `dc cvau` is needed. (Nor is it where CLIDR_EL1 says so, which is not looked at.)
    pub idc: bool,
    /// DIC: no `ic` is needed.
    pub dic: bool,
    /// L1Ip is PIPT: `ic ivau` by one address of a frame reaches the lines of its other addresses.
    /// Else (VIPT) it may leave stale ones, unless DIC.
    pub icache_pipt: bool,
}

/// What a CPU can do, or what all CPUs have in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CpuFeatures {
    /// Bits of a physical address (MMFR0.PARange): 32, 36, 40, 42, 44, 48, 52 or 56. Without FEAT_LPA2
    /// in use, [`crate::addr::PA_BITS`] is the limit all the same.
    pub pa_bits: u8,
    /// Bits of an ASID (MMFR0.ASIDBits): 8 or 16.
    pub asid_bits: u8,
    /// Granules (MMFR0.TGran*).
    pub granules: Granules,
    /// Hardware Access flag and dirty state (MMFR1.HAFDBS).
    pub hafdbs: Hafdbs,
    /// FEAT_PAN (MMFR1.PAN): kernel accesses to user memory can be made to fault.
    pub pan: bool,
    /// FEAT_ETS2 (MMFR1.ETS): after a DSB a new descriptor is seen without an ISB.
    pub ets2: bool,
    /// Break-before-make level (MMFR2.BBM).
    pub bbm: BbmLevel,
    /// No TLB conflict abort follows if the Contiguous bit changes in place: level 3, or a model that is known
    /// for it ([`CpuFeatures::on_model`]). What all CPUs have in common can't be told by their common level.
    pub bbm_no_abort: bool,
    /// FEAT_TTL (MMFR2.TTL): TLBI by address takes a level hint.
    pub ttl: bool,
    /// FEAT_E0PD (MMFR2.E0PD): EL0 accesses to one half fault without a walk.
    pub e0pd: bool,
    /// Floating point and Advanced SIMD (PFR0.FP, PFR0.AdvSIMD): there is state to be saved.
    pub fp_simd: bool,
    /// GICv3 or later by system registers (PFR0.GIC).
    pub gic_system_registers: bool,
    /// FEAT_LSE (ISAR0.Atomic): atomic instructions.
    pub lse: bool,
    /// FEAT_TLBIOS (ISAR0.TLB): Outer Shareable TLBI.
    pub tlbi_os: bool,
    /// FEAT_TLBIRANGE (ISAR0.TLB): TLBI by range.
    pub tlbi_range: bool,
    /// FEAT_RNG (ISAR0.RNDR): random numbers by a register.
    pub rng: bool,
    /// FEAT_MOPS (ISAR2.MOPS): memory copy and set instructions.
    pub mops: bool,
    /// Caches (CTR_EL0).
    pub caches: CacheType,
}

impl Granules {
    /// Whether `granule` is among them.
    pub const fn supports(self, granule: Granule) -> bool {
        match granule {
            Granule::K4 => self.k4,
            Granule::K16 => self.k16,
            Granule::K64 => self.k64,
        }
    }
}

/// The unsigned 4-bit field at `shift`.
const fn field(register: u64, shift: u32) -> u8 {
    (register >> shift) as u8 & 0xf
}

/// The signed 4-bit field at `shift`: 0b1111 means absent, below zero.
const fn present(register: u64, shift: u32) -> bool {
    field(register, shift) < 0b1000
}

impl CpuFeatures {
    /// What these registers say.
    pub const fn decode(id: &IdRegisters) -> Self {
        let bbm = match field(id.mmfr2, 52) {
            0b0000 => BbmLevel::Level0,
            0b0001 => BbmLevel::Level1,
            0b0010 => BbmLevel::Level2,
            _ => BbmLevel::Level3,
        };
        Self {
            pa_bits: match field(id.mmfr0, 0) {
                0b0000 => 32,
                0b0001 => 36,
                0b0010 => 40,
                0b0011 => 42,
                0b0100 => 44,
                0b0101 => 48,
                0b0110 => 52,
                _ => 56,
            },
            // 0b0001 is reserved: not 16 yet.
            asid_bits: if field(id.mmfr0, 4) >= 0b0010 { 16 } else { 8 },
            granules: Granules {
                k4: present(id.mmfr0, 28),
                // Unlike the others, this field is unsigned, and zero means absent.
                k16: field(id.mmfr0, 20) != 0,
                k64: present(id.mmfr0, 24),
            },
            hafdbs: match field(id.mmfr1, 0) {
                0b0000 => Hafdbs::None,
                0b0001 => Hafdbs::Af,
                _ => Hafdbs::AfDbm,
            },
            pan: field(id.mmfr1, 20) != 0,
            // 0b0001, the withdrawn FEAT_ETS, promises nothing.
            ets2: field(id.mmfr1, 36) >= 0b0010,
            bbm,
            bbm_no_abort: matches!(bbm, BbmLevel::Level3),
            ttl: field(id.mmfr2, 48) != 0,
            e0pd: field(id.mmfr2, 60) != 0,
            // The manual requires both fields to be equal.
            fp_simd: present(id.pfr0, 16) && present(id.pfr0, 20),
            gic_system_registers: field(id.pfr0, 24) != 0,
            // 0b0001 is reserved.
            lse: field(id.isar0, 20) >= 0b0010,
            tlbi_os: field(id.isar0, 56) != 0,
            tlbi_range: field(id.isar0, 56) >= 0b0010,
            rng: field(id.isar0, 60) != 0,
            mops: field(id.isar2, 16) != 0,
            caches: CacheType {
                // Both are log2 of a number of 4-byte words.
                dcache_line: 4 << field(id.ctr, 16),
                icache_line: 4 << field(id.ctr, 0),
                idc: id.ctr >> 28 & 1 != 0,
                dic: id.ctr >> 29 & 1 != 0,
                icache_pipt: id.ctr >> 14 & 0b11 == 0b11,
            },
        }
    }

    /// What both CPUs can do: the smaller of each, the smaller cache line included, since maintenance
    /// by it reaches every line of either.
    #[must_use]
    pub fn common(self, other: Self) -> Self {
        let (a, b) = (self, other);
        Self {
            pa_bits: a.pa_bits.min(b.pa_bits),
            asid_bits: a.asid_bits.min(b.asid_bits),
            granules: Granules {
                k4: a.granules.k4 && b.granules.k4,
                k16: a.granules.k16 && b.granules.k16,
                k64: a.granules.k64 && b.granules.k64,
            },
            hafdbs: a.hafdbs.min(b.hafdbs),
            pan: a.pan && b.pan,
            ets2: a.ets2 && b.ets2,
            bbm: a.bbm.min(b.bbm),
            bbm_no_abort: a.bbm_no_abort && b.bbm_no_abort,
            ttl: a.ttl && b.ttl,
            e0pd: a.e0pd && b.e0pd,
            fp_simd: a.fp_simd && b.fp_simd,
            gic_system_registers: a.gic_system_registers && b.gic_system_registers,
            lse: a.lse && b.lse,
            tlbi_os: a.tlbi_os && b.tlbi_os,
            tlbi_range: a.tlbi_range && b.tlbi_range,
            rng: a.rng && b.rng,
            mops: a.mops && b.mops,
            caches: CacheType {
                dcache_line: a.caches.dcache_line.min(b.caches.dcache_line),
                icache_line: a.caches.icache_line.min(b.caches.icache_line),
                idc: a.caches.idc && b.caches.idc,
                dic: a.caches.dic && b.caches.dic,
                icache_pipt: a.caches.icache_pipt && b.caches.icache_pipt,
            },
        }
    }
}

impl Midr {
    /// The register value `bits`.
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// The register value.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Implementer, bits \[31:24\]: 0x41 is Arm.
    pub const fn implementer(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// Variant, bits \[23:20\]: the major revision, r*N*.
    pub const fn variant(self) -> u8 {
        (self.0 >> 20) as u8 & 0xf
    }

    /// PartNum, bits \[15:4\].
    pub const fn part(self) -> u16 {
        (self.0 >> 4) as u16 & 0xfff
    }

    /// Revision, bits \[3:0\]: the minor revision, p*N*.
    pub const fn revision(self) -> u8 {
        self.0 as u8 & 0xf
    }
}

impl fmt::Display for Midr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (implementer, part) = (self.implementer(), self.part());
        write!(f, "implementer {implementer:#04x} part {part:#05x} r{}p{}", self.variant(), self.revision())
    }
}

impl fmt::Debug for Midr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Midr({:#x})", self.0)
    }
}
