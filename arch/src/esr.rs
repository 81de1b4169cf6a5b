//! Decodes ESR_EL1, what FAR_EL1 means beside it, and says it in one line (DDI 0487, D24.2,
//! "ESR_EL1, Exception Syndrome Register (EL1)").
//!
//! Nothing is rejected: values that the manual reserves are kept and shown as numbers, since a crash
//! report must never hide what the hardware said.
#![forbid(unsafe_code)]

use core::fmt;

use crate::addr::VirtAddr;

#[cfg(test)]
mod tests;

/// A raw value of ESR_EL1. Decoding is lazy: each method looks at its own bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Esr(u64);

macro_rules! exception_classes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// The exception class, ESR_EL1.EC: every value that the manual defines for an exception taken
        /// to EL1.
        ///
        /// `HLT` has no class: with halting debug disabled it is undefined, so [`Self::Unknown`].
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum ExceptionClass {
            $($(#[$doc])* $name,)*
            /// A value that is reserved for exceptions taken to EL1.
            Reserved(u8),
        }

        impl ExceptionClass {
            /// The class with the 6-bit number `ec`.
            pub const fn from_bits(ec: u8) -> Self {
                match ec {
                    $($value => Self::$name,)*
                    _ => Self::Reserved(ec),
                }
            }

            /// The class as its 6-bit number.
            pub const fn bits(self) -> u8 {
                match self {
                    $(Self::$name => $value,)*
                    Self::Reserved(ec) => ec,
                }
            }
        }

        impl fmt::Display for ExceptionClass {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name => f.write_str($text),)*
                    Self::Reserved(ec) => write!(f, "reserved exception class {ec:#04x}"),
                }
            }
        }
    };
}

exception_classes! {
    /// Unknown reason, undefined instructions among them.
    Unknown = 0b000000, "unknown reason (undefined instruction)";
    /// Trapped WFI, WFE, WFIT or WFET.
    Wfx = 0b000001, "trapped WFI or WFE";
    /// Trapped MCR or MRC, coprocessor 15, AArch32.
    Cp15Mcr = 0b000011, "trapped MCR or MRC of coprocessor 15";
    /// Trapped MCRR or MRRC, coprocessor 15, AArch32.
    Cp15Mcrr = 0b000100, "trapped MCRR or MRRC of coprocessor 15";
    /// Trapped MCR or MRC, coprocessor 14, AArch32.
    Cp14Mcr = 0b000101, "trapped MCR or MRC of coprocessor 14";
    /// Trapped LDC or STC, AArch32.
    LdcStc = 0b000110, "trapped LDC or STC";
    /// SME, SVE, Advanced SIMD or floating point trapped by CPACR_EL1.FPEN.
    FpSimd = 0b000111, "trapped floating point or SIMD";
    /// Trapped instruction that no other class covers, LD64B and ST64B* (FEAT_LS64).
    Other = 0b001010, "trapped LD64B or ST64B";
    /// Trapped MRRC, coprocessor 14, AArch32.
    Cp14Mrrc = 0b001100, "trapped MRRC of coprocessor 14";
    /// Branch Target exception (FEAT_BTI).
    BranchTarget = 0b001101, "branch target exception";
    /// Illegal Execution state.
    IllegalState = 0b001110, "illegal execution state";
    /// SVC in AArch32 state.
    Svc32 = 0b010001, "SVC in AArch32 state";
    /// Trapped MSRR, MRRS or 128-bit system instruction (FEAT_SYSREG128, FEAT_SYSINSTR128).
    System128 = 0b010100, "trapped MSRR, MRRS or 128-bit system instruction";
    /// SVC in AArch64 state.
    Svc64 = 0b010101, "SVC in AArch64 state";
    /// Trapped MSR, MRS or system instruction in AArch64 state.
    System = 0b011000, "trapped MSR, MRS or system instruction";
    /// SVE trapped by CPACR_EL1.ZEN.
    Sve = 0b011001, "trapped SVE";
    /// Trapped TSTART (FEAT_TME).
    Tstart = 0b011011, "trapped TSTART";
    /// Pointer authentication failure (FEAT_FPAC).
    PacFail = 0b011100, "pointer authentication failure";
    /// SME trapped by CPACR_EL1.SMEN, or not legal in the current PSTATE.SM and ZA.
    Sme = 0b011101, "trapped SME";
    /// Instruction Abort from EL0.
    InstructionAbortLower = 0b100000, "instruction abort, lower EL";
    /// Instruction Abort from EL1.
    InstructionAbortSame = 0b100001, "instruction abort, same EL";
    /// PC alignment fault.
    PcAlignment = 0b100010, "PC alignment fault";
    /// Data Abort from EL0.
    DataAbortLower = 0b100100, "data abort, lower EL";
    /// Data Abort from EL1.
    DataAbortSame = 0b100101, "data abort, same EL";
    /// SP alignment fault.
    SpAlignment = 0b100110, "SP alignment fault";
    /// Memory Operation exception: a CPY* or SET* that was resumed in the wrong form (FEAT_MOPS).
    MemoryOperation = 0b100111, "memory operation exception";
    /// Trapped floating-point exception, AArch32.
    FpException32 = 0b101000, "floating-point exception in AArch32 state";
    /// Trapped floating-point exception, AArch64.
    FpException64 = 0b101100, "floating-point exception in AArch64 state";
    /// Guarded Control Stack exception (FEAT_GCS).
    Gcs = 0b101101, "guarded control stack exception";
    /// SError exception.
    SError = 0b101111, "SError";
    /// Breakpoint exception from EL0.
    BreakpointLower = 0b110000, "breakpoint, lower EL";
    /// Breakpoint exception from EL1.
    BreakpointSame = 0b110001, "breakpoint, same EL";
    /// Software Step exception from EL0.
    StepLower = 0b110010, "software step, lower EL";
    /// Software Step exception from EL1.
    StepSame = 0b110011, "software step, same EL";
    /// Watchpoint exception from EL0.
    WatchpointLower = 0b110100, "watchpoint, lower EL";
    /// Watchpoint exception from EL1.
    WatchpointSame = 0b110101, "watchpoint, same EL";
    /// BKPT in AArch32 state.
    Bkpt32 = 0b111000, "BKPT in AArch32 state";
    /// BRK in AArch64 state.
    Brk64 = 0b111100, "BRK in AArch64 state";
    /// Profiling exception (FEAT_EBEP, FEAT_SPE_EXC, FEAT_TRBE_EXC).
    Profiling = 0b111101, "profiling exception";
}

/// The fault status code of an abort: DFSC or IFSC, ISS bits \[5:0\].
///
/// The number is the level of the walk: 0 to 3, -1 with FEAT_LPA2, -2 with FEAT_D128.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FaultStatus {
    /// Address size fault; at level 0 also one of the translation table base register.
    AddressSize(i8),
    /// Translation fault: an invalid descriptor at this level.
    Translation(i8),
    /// Access flag fault: the leaf at this level has AF = 0 and hardware doesn't set it.
    AccessFlag(i8),
    /// Permission fault by the leaf at this level (or by a table descriptor above it).
    Permission(i8),
    /// Synchronous External abort, not on a walk.
    External,
    /// Synchronous External abort on a walk or hardware update of a table.
    ExternalOnWalk(i8),
    /// Synchronous parity or ECC error, not on a walk; without FEAT_RAS.
    Parity,
    /// Synchronous parity or ECC error on a walk or hardware update of a table; without FEAT_RAS.
    ParityOnWalk(i8),
    /// Synchronous Tag Check Fault (FEAT_MTE2).
    TagCheck,
    /// Alignment fault.
    Alignment,
    /// Granule Protection Fault, not on a walk (FEAT_RME).
    GranuleProtection,
    /// Granule Protection Fault on a walk or hardware update of a table (FEAT_RME).
    GranuleProtectionOnWalk(i8),
    /// TLB conflict abort: the TLB held more than one translation.
    TlbConflict,
    /// Unsupported atomic hardware update fault: tables in memory that can't do atomics (FEAT_HAFDBS).
    UnsupportedAtomicUpdate,
    /// IMPLEMENTATION DEFINED: Lockdown.
    Lockdown,
    /// IMPLEMENTATION DEFINED: unsupported Exclusive or Atomic access.
    UnsupportedExclusive,
    /// A reserved value.
    Reserved(u8),
}

impl FaultStatus {
    /// The status with the 6-bit code `fsc`.
    pub const fn from_bits(fsc: u8) -> Self {
        let level = (fsc & 0b11) as i8;
        match fsc {
            0b000000..=0b000011 => Self::AddressSize(level),
            0b000100..=0b000111 => Self::Translation(level),
            0b001000..=0b001011 => Self::AccessFlag(level),
            0b001100..=0b001111 => Self::Permission(level),
            0b010000 => Self::External,
            0b010001 => Self::TagCheck,
            0b010010 => Self::ExternalOnWalk(-2),
            0b010011 => Self::ExternalOnWalk(-1),
            0b010100..=0b010111 => Self::ExternalOnWalk(level),
            0b011000 => Self::Parity,
            0b011011 => Self::ParityOnWalk(-1),
            0b011100..=0b011111 => Self::ParityOnWalk(level),
            0b100001 => Self::Alignment,
            0b100010 => Self::GranuleProtectionOnWalk(-2),
            0b100011 => Self::GranuleProtectionOnWalk(-1),
            0b100100..=0b100111 => Self::GranuleProtectionOnWalk(level),
            0b101000 => Self::GranuleProtection,
            0b101001 => Self::AddressSize(-1),
            0b101010 => Self::Translation(-2),
            0b101011 => Self::Translation(-1),
            0b101100 => Self::AddressSize(-2),
            0b110000 => Self::TlbConflict,
            0b110001 => Self::UnsupportedAtomicUpdate,
            0b110100 => Self::Lockdown,
            0b110101 => Self::UnsupportedExclusive,
            _ => Self::Reserved(fsc),
        }
    }

    /// The level of the walk, where the fault has one.
    pub const fn level(self) -> Option<i8> {
        match self {
            Self::AddressSize(level)
            | Self::Translation(level)
            | Self::AccessFlag(level)
            | Self::Permission(level)
            | Self::ExternalOnWalk(level)
            | Self::ParityOnWalk(level)
            | Self::GranuleProtectionOnWalk(level) => Some(level),
            _ => None,
        }
    }
}

impl fmt::Display for FaultStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AddressSize(_) => "address size fault",
            Self::Translation(_) => "translation fault",
            Self::AccessFlag(_) => "access flag fault",
            Self::Permission(_) => "permission fault",
            Self::External => "external abort",
            Self::ExternalOnWalk(_) => "external abort on a table walk",
            Self::Parity => "parity or ECC error",
            Self::ParityOnWalk(_) => "parity or ECC error on a table walk",
            Self::TagCheck => "tag check fault",
            Self::Alignment => "alignment fault",
            Self::GranuleProtection => "granule protection fault",
            Self::GranuleProtectionOnWalk(_) => "granule protection fault on a table walk",
            Self::TlbConflict => "TLB conflict abort",
            Self::UnsupportedAtomicUpdate => "unsupported atomic hardware update",
            Self::Lockdown => "lockdown fault",
            Self::UnsupportedExclusive => "unsupported exclusive or atomic access",
            Self::Reserved(fsc) => return write!(f, "reserved fault status {fsc:#04x}"),
        })?;
        self.level().map_or(Ok(()), |level| write!(f, ", level {level}"))
    }
}

/// What the aborted access wanted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// To fetch an instruction.
    Execute,
    /// To read (WnR = 0). An atomic that both reads and writes is a read if a read would fault too.
    Read,
    /// To write (WnR = 1).
    Write,
    /// Cache maintenance or address translation by an instruction (CM = 1; WnR is then 1 whatever the
    /// instruction needs).
    Maintenance,
}

/// The state of the PE after a synchronous External abort (SET, ISS bits \[12:11\], FEAT_RAS).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ErrorType {
    /// Recoverable state (UER).
    Recoverable,
    /// Uncontainable (UC).
    Uncontainable,
    /// Restartable state (UEO).
    Restartable,
    /// The reserved value 0b01.
    Reserved,
}

/// The syndrome of an Instruction Abort or a Data Abort ("ISS encoding for an exception from a Data
/// Abort", "… from an Instruction Abort").
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Abort {
    /// What was tried.
    pub access: Access,
    /// From EL0 rather than from EL1.
    pub lower_el: bool,
    /// Why it failed.
    pub status: FaultStatus,
    /// S1PTW: a stage 2 fault on a stage 1 walk. Zero at EL1 unless a hypervisor puts it there.
    pub stage1_walk: bool,
    /// EA: IMPLEMENTATION DEFINED classification of an External abort.
    pub external_type: bool,
    /// FAR_EL1 holds the address: FnV is 0, or is not defined for this status.
    pub far_valid: bool,
    /// SET, for a synchronous External abort that is not on a walk; zero, that is
    /// [`ErrorType::Recoverable`], also where FEAT_RAS is absent.
    pub error_type: Option<ErrorType>,
}

impl Abort {
    /// A translation fault at any level.
    pub const fn is_translation_fault(self) -> bool {
        matches!(self.status, FaultStatus::Translation(_))
    }

    /// A translation fault at `level`.
    pub const fn is_translation_fault_at(self, level: i8) -> bool {
        matches!(self.status, FaultStatus::Translation(at) if at == level)
    }

    /// A permission fault at any level.
    pub const fn is_permission_fault(self) -> bool {
        matches!(self.status, FaultStatus::Permission(_))
    }

    /// An access flag fault at any level.
    pub const fn is_access_flag_fault(self) -> bool {
        matches!(self.status, FaultStatus::AccessFlag(_))
    }
}

/// A trapped MSR, MRS or system instruction ("ISS encoding for an exception from MSR, MRS, or System
/// instruction execution in AArch64 state").
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SystemAccess {
    /// Op0: 2 and 3 are registers, 1 is a SYS or SYSL instruction, 0 changes PSTATE.
    pub op0: u8,
    /// Op1.
    pub op1: u8,
    /// CRn.
    pub crn: u8,
    /// CRm.
    pub crm: u8,
    /// Op2.
    pub op2: u8,
    /// The general-purpose register, 31 for XZR.
    pub rt: u8,
    /// A read (MRS, SYSL) rather than a write (MSR, SYS).
    pub read: bool,
}

impl fmt::Display for SystemAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op0, op1, crn, crm, op2, rt, read } = *self;
        f.write_str(match (op0, read) {
            (2 | 3, true) => "MRS of ",
            (2 | 3, false) => "MSR of ",
            _ => "system instruction ",
        })?;
        write!(f, "S{op0}_{op1}_C{crn}_C{crm}_{op2}, ")?;
        if rt == 31 { f.write_str("XZR") } else { write!(f, "X{rt}") }
    }
}

impl Esr {
    /// The register value `bits`.
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// The register value.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// EC, bits \[31:26\].
    pub const fn class(self) -> ExceptionClass {
        ExceptionClass::from_bits((self.0 >> 26) as u8 & 0x3f)
    }

    /// The length of the trapped instruction in bytes, 2 or 4 (IL, bit 25). Also 4 where no one
    /// instruction is to blame (SError, instruction aborts, alignment faults of PC and SP, …).
    pub const fn instruction_length(self) -> u8 {
        if self.bit(25) { 4 } else { 2 }
    }

    /// ISS, bits \[24:0\].
    pub const fn iss(self) -> u32 {
        self.0 as u32 & 0x1ff_ffff
    }

    /// ISS2, bits \[55:32\].
    pub const fn iss2(self) -> u32 {
        (self.0 >> 32) as u32 & 0xff_ffff
    }

    /// The syndrome of an abort, or `None` for another class.
    pub const fn abort(self) -> Option<Abort> {
        let (data, lower_el) = match self.class() {
            ExceptionClass::InstructionAbortLower => (false, true),
            ExceptionClass::InstructionAbortSame => (false, false),
            ExceptionClass::DataAbortLower => (true, true),
            ExceptionClass::DataAbortSame => (true, false),
            _ => return None,
        };
        let access = match (data, self.bit(8), self.bit(6)) {
            (false, ..) => Access::Execute,
            (true, true, _) => Access::Maintenance,
            (true, false, true) => Access::Write,
            (true, false, false) => Access::Read,
        };
        let status = FaultStatus::from_bits(self.0 as u8 & 0x3f);
        // FnV and SET are defined for this status only; bits 12:11 mean something else for others.
        let external = matches!(status, FaultStatus::External);
        let error_type = if external {
            Some(match (self.0 >> 11) & 0b11 {
                0b00 => ErrorType::Recoverable,
                0b10 => ErrorType::Uncontainable,
                0b11 => ErrorType::Restartable,
                _ => ErrorType::Reserved,
            })
        } else {
            None
        };
        Some(Abort {
            access,
            lower_el,
            status,
            stage1_walk: self.bit(7),
            external_type: self.bit(9),
            far_valid: !(external && self.bit(10)),
            error_type,
        })
    }

    /// The 16-bit immediate of an SVC, BRK or BKPT instruction, or `None` for another class.
    pub const fn immediate(self) -> Option<u16> {
        match self.class() {
            ExceptionClass::Svc32
            | ExceptionClass::Svc64
            | ExceptionClass::Bkpt32
            | ExceptionClass::Brk64 => Some(self.0 as u16),
            _ => None,
        }
    }

    /// The trapped MSR, MRS or system instruction, or `None` for another class.
    pub const fn system_access(self) -> Option<SystemAccess> {
        if !matches!(self.class(), ExceptionClass::System) {
            return None;
        }
        let iss = self.iss();
        Some(SystemAccess {
            op0: (iss >> 20) as u8 & 0b11,
            op2: (iss >> 17) as u8 & 0b111,
            op1: (iss >> 14) as u8 & 0b111,
            crn: (iss >> 10) as u8 & 0b1111,
            rt: (iss >> 5) as u8 & 0b1_1111,
            crm: (iss >> 1) as u8 & 0b1111,
            read: iss & 1 != 0,
        })
    }

    /// Whether FAR_EL1 holds the faulting address: aborts whose FnV is 0, PC alignment faults and
    /// watchpoints ("FAR_EL1, Fault Address Register (EL1)"). Else FAR_EL1 is UNKNOWN.
    pub const fn far_valid(self) -> bool {
        match self.class() {
            ExceptionClass::PcAlignment
            | ExceptionClass::WatchpointLower
            | ExceptionClass::WatchpointSame => true,
            _ => match self.abort() {
                Some(abort) => abort.far_valid,
                None => false,
            },
        }
    }

    /// Both registers for a report: the address is shown only where the exception sets it.
    pub const fn with_far(self, far: VirtAddr) -> EsrFar {
        EsrFar { esr: self, far }
    }

    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }
}

/// ESR_EL1 with FAR_EL1, to be shown in a crash report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EsrFar {
    esr: Esr,
    far: VirtAddr,
}

impl EsrFar {
    /// The faulting address, or `None` where the exception does not set FAR_EL1.
    pub const fn far(self) -> Option<VirtAddr> {
        if self.esr.far_valid() { Some(self.far) } else { None }
    }
}

impl fmt::Display for EsrFar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.esr.fmt(f)?;
        match (self.far(), self.esr.abort()) {
            (Some(far), _) => write!(f, ", address {:#018x}", far.get()),
            (None, Some(_)) => f.write_str(", address unknown"),
            (None, None) => Ok(()),
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Execute => "execute",
            Self::Read => "read",
            Self::Write => "write",
            Self::Maintenance => "cache maintenance",
        })
    }
}

impl fmt::Display for Esr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = self.class();
        if let Some(Abort { access, status, stage1_walk, error_type, .. }) = self.abort() {
            write!(f, "{class}: {status}, {access}")?;
            if stage1_walk {
                f.write_str(", stage 2 fault on a stage 1 walk")?;
            }
            return match error_type {
                None | Some(ErrorType::Recoverable) => Ok(()),
                Some(ErrorType::Uncontainable) => f.write_str(", uncontainable"),
                Some(ErrorType::Restartable) => f.write_str(", restartable"),
                Some(ErrorType::Reserved) => f.write_str(", reserved error type"),
            };
        }
        if let Some(immediate) = self.immediate() {
            return write!(f, "{class}, immediate {immediate:#x}");
        }
        if let Some(access) = self.system_access() {
            return write!(f, "trapped {access}");
        }
        write!(f, "{class}")?;
        match self.iss() {
            0 => Ok(()),
            iss => write!(f, ", ISS {iss:#x}"),
        }
    }
}

impl fmt::Debug for Esr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Esr({:#x})", self.0)
    }
}
