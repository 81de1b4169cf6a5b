//! ESR_EL1 values put together by hand from the field tables, and some that QEMU reports.

use std::collections::BTreeSet;
use std::string::ToString;
use std::{format, vec::Vec};

use super::*;

/// Raw value, the line it reads as.
const LINES: [(u64, &str); 30] = [
    // EC 0x25 << 26 | IL | WnR | DFSC
    (0x9600_004f, "data abort, same EL: permission fault, level 3, write"),
    (0x9600_0007, "data abort, same EL: translation fault, level 3, read"),
    (0x9600_0044, "data abort, same EL: translation fault, level 0, write"),
    (0x9200_000b, "data abort, lower EL: access flag fault, level 3, read"),
    (0x9200_004e, "data abort, lower EL: permission fault, level 2, write"),
    (0x9600_0021, "data abort, same EL: alignment fault, read"),
    (0x9600_0030, "data abort, same EL: TLB conflict abort, read"),
    (0x9600_0071, "data abort, same EL: unsupported atomic hardware update, write"),
    (0x9600_002b, "data abort, same EL: translation fault, level -1, read"),
    (0x9600_0010, "data abort, same EL: external abort, read"),
    (0x9600_1050, "data abort, same EL: external abort, write, uncontainable"),
    (0x9600_1c10, "data abort, same EL: external abort, read, restartable"),
    (0x9600_0015, "data abort, same EL: external abort on a table walk, level 1, read"),
    // CM with WnR: DC IVAC and its like
    (0x9600_0147, "data abort, same EL: translation fault, level 3, cache maintenance"),
    (0x9600_0084, "data abort, same EL: translation fault, level 0, read, stage 2 fault on a stage 1 walk"),
    (0x9600_003f, "data abort, same EL: reserved fault status 0x3f, read"),
    (0x8200_0007, "instruction abort, lower EL: translation fault, level 3, execute"),
    (0x8600_000f, "instruction abort, same EL: permission fault, level 3, execute"),
    (0x5600_0000, "SVC in AArch64 state, immediate 0x0"),
    (0x5600_ffff, "SVC in AArch64 state, immediate 0xffff"),
    (0xf200_03e8, "BRK in AArch64 state, immediate 0x3e8"),
    // MRS X3, S3_0_C0_C7_2 (ID_AA64MMFR2_EL1): Op0 3, Op2 2, Op1 0, CRn 0, Rt 3, CRm 7, read
    (0x6234_006f, "trapped MRS of S3_0_C0_C7_2, X3"),
    // MSR S3_3_C9_C13_0 (PMCCNTR_EL0), XZR: Op0 3, Op2 0, Op1 3, CRn 9, Rt 31, CRm 13, write
    (0x6230_e7fa, "trapped MSR of S3_3_C9_C13_0, XZR"),
    // MRS and MSR of S2_0_C0_C2_2 (MDSCR_EL1), X1: Op0 2, Op2 2, Op1 0, CRn 0, Rt 1, CRm 2
    (0x6224_0025, "trapped MRS of S2_0_C0_C2_2, X1"),
    (0x6224_0024, "trapped MSR of S2_0_C0_C2_2, X1"),
    // DC CVAU, X0 = SYS S1_3_C7_C11_1: Op0 1, Op2 1, Op1 3, CRn 7, Rt 0, CRm 11, write
    (0x6212_dc16, "trapped system instruction S1_3_C7_C11_1, X0"),
    (0x0200_0000, "unknown reason (undefined instruction)"),
    (0xbe00_0011, "SError, ISS 0x11"),
    (0x3a00_0000, "illegal execution state"),
    (0xaa00_0012, "reserved exception class 0x2a, ISS 0x12"),
];

#[test]
fn lines_read_as_written_here() {
    for (raw, line) in LINES {
        assert_eq!(Esr::new(raw).to_string(), line, "{raw:#x}");
    }
}

/// EC values from "ESR_EL1, Exception Syndrome Register (EL1)", written apart from the decoder.
const CLASSES: [(u8, ExceptionClass); 39] = [
    (0x00, ExceptionClass::Unknown),
    (0x01, ExceptionClass::Wfx),
    (0x03, ExceptionClass::Cp15Mcr),
    (0x04, ExceptionClass::Cp15Mcrr),
    (0x05, ExceptionClass::Cp14Mcr),
    (0x06, ExceptionClass::LdcStc),
    (0x07, ExceptionClass::FpSimd),
    (0x0a, ExceptionClass::Other),
    (0x0c, ExceptionClass::Cp14Mrrc),
    (0x0d, ExceptionClass::BranchTarget),
    (0x0e, ExceptionClass::IllegalState),
    (0x11, ExceptionClass::Svc32),
    (0x14, ExceptionClass::System128),
    (0x15, ExceptionClass::Svc64),
    (0x18, ExceptionClass::System),
    (0x19, ExceptionClass::Sve),
    (0x1b, ExceptionClass::Tstart),
    (0x1c, ExceptionClass::PacFail),
    (0x1d, ExceptionClass::Sme),
    (0x20, ExceptionClass::InstructionAbortLower),
    (0x21, ExceptionClass::InstructionAbortSame),
    (0x22, ExceptionClass::PcAlignment),
    (0x24, ExceptionClass::DataAbortLower),
    (0x25, ExceptionClass::DataAbortSame),
    (0x26, ExceptionClass::SpAlignment),
    (0x27, ExceptionClass::MemoryOperation),
    (0x28, ExceptionClass::FpException32),
    (0x2c, ExceptionClass::FpException64),
    (0x2d, ExceptionClass::Gcs),
    (0x2f, ExceptionClass::SError),
    (0x30, ExceptionClass::BreakpointLower),
    (0x31, ExceptionClass::BreakpointSame),
    (0x32, ExceptionClass::StepLower),
    (0x33, ExceptionClass::StepSame),
    (0x34, ExceptionClass::WatchpointLower),
    (0x35, ExceptionClass::WatchpointSame),
    (0x38, ExceptionClass::Bkpt32),
    (0x3c, ExceptionClass::Brk64),
    (0x3d, ExceptionClass::Profiling),
];

#[test]
fn every_class_is_the_one_of_the_manual_and_others_are_kept() {
    let mut lines = BTreeSet::new();
    for ec in 0..64_u8 {
        let expected =
            CLASSES.iter().find(|row| row.0 == ec).map_or(ExceptionClass::Reserved(ec), |row| row.1);
        // The bits around EC must not matter.
        for around in [0, 0xffff_ffff_03ff_ffff] {
            let esr = Esr::new(u64::from(ec) << 26 | around);
            assert_eq!(esr.class(), expected, "{ec:#x}");
            assert_eq!(esr.class().bits(), ec);
        }
        assert!(lines.insert(expected.to_string()), "two classes read {expected}");
    }
}

#[test]
fn fault_status_codes_are_those_of_the_manual() {
    use FaultStatus::*;
    let codes = [
        (0b000000, AddressSize(0)),
        (0b000001, AddressSize(1)),
        (0b000010, AddressSize(2)),
        (0b000011, AddressSize(3)),
        (0b000100, Translation(0)),
        (0b000101, Translation(1)),
        (0b000110, Translation(2)),
        (0b000111, Translation(3)),
        (0b001000, AccessFlag(0)),
        (0b001001, AccessFlag(1)),
        (0b001010, AccessFlag(2)),
        (0b001011, AccessFlag(3)),
        (0b001100, Permission(0)),
        (0b001101, Permission(1)),
        (0b001110, Permission(2)),
        (0b001111, Permission(3)),
        (0b010000, External),
        (0b010001, TagCheck),
        (0b010010, ExternalOnWalk(-2)),
        (0b010011, ExternalOnWalk(-1)),
        (0b010100, ExternalOnWalk(0)),
        (0b010101, ExternalOnWalk(1)),
        (0b010110, ExternalOnWalk(2)),
        (0b010111, ExternalOnWalk(3)),
        (0b011000, Parity),
        (0b011011, ParityOnWalk(-1)),
        (0b011100, ParityOnWalk(0)),
        (0b011101, ParityOnWalk(1)),
        (0b011110, ParityOnWalk(2)),
        (0b011111, ParityOnWalk(3)),
        (0b100001, Alignment),
        (0b100010, GranuleProtectionOnWalk(-2)),
        (0b100011, GranuleProtectionOnWalk(-1)),
        (0b100100, GranuleProtectionOnWalk(0)),
        (0b100101, GranuleProtectionOnWalk(1)),
        (0b100110, GranuleProtectionOnWalk(2)),
        (0b100111, GranuleProtectionOnWalk(3)),
        (0b101000, GranuleProtection),
        (0b101001, AddressSize(-1)),
        (0b101010, Translation(-2)),
        (0b101011, Translation(-1)),
        (0b101100, AddressSize(-2)),
        (0b110000, TlbConflict),
        (0b110001, UnsupportedAtomicUpdate),
        (0b110100, Lockdown),
        (0b110101, UnsupportedExclusive),
    ];
    let mut lines = BTreeSet::new();
    for code in 0..64 {
        let expected = codes.iter().find(|row| row.0 == code).map_or(Reserved(code), |row| row.1);
        assert_eq!(FaultStatus::from_bits(code), expected, "{code:#08b}");
        assert!(lines.insert(expected.to_string()), "two codes read {expected}");
    }
}

#[test]
fn each_bit_of_an_abort_is_its_own() {
    let base = Esr::new(0x9600_0010).abort().unwrap();
    assert_eq!(
        base,
        Abort {
            access: Access::Read,
            lower_el: false,
            status: FaultStatus::External,
            stage1_walk: false,
            external_type: false,
            far_valid: true,
            error_type: Some(ErrorType::Recoverable),
        }
    );
    let with = |bit: u32| Esr::new(0x9600_0010 | 1 << bit).abort().unwrap();
    assert_eq!(with(6), Abort { access: Access::Write, ..base });
    assert_eq!(with(7), Abort { stage1_walk: true, ..base });
    assert_eq!(with(8), Abort { access: Access::Maintenance, ..base });
    assert_eq!(with(9), Abort { external_type: true, ..base });
    assert_eq!(with(10), Abort { far_valid: false, ..base });
    assert_eq!(with(11), Abort { error_type: Some(ErrorType::Reserved), ..base });
    assert_eq!(with(12), Abort { error_type: Some(ErrorType::Uncontainable), ..base });
    // EC tells where it came from.
    let from = |ec: u64| Esr::new(ec << 26).abort().map(|abort| (abort.access, abort.lower_el));
    assert_eq!(from(0x20), Some((Access::Execute, true)));
    assert_eq!(from(0x21), Some((Access::Execute, false)));
    assert_eq!(from(0x24), Some((Access::Read, true)));
    assert_eq!(from(0x25), Some((Access::Read, false)));
    // An instruction fetch has no WnR or CM: the bits are RES0 there.
    assert_eq!(Esr::new(0x8600_0150).abort().unwrap().access, Access::Execute);
    // FnV and SET belong to one status only.
    let walk = Esr::new(0x9600_1c15).abort().unwrap();
    assert!(walk.far_valid && walk.error_type.is_none());
}

#[test]
fn the_predicates_tell_faults_apart() {
    let of = |fsc: u64| Esr::new(0x9600_0000 | fsc).abort().unwrap();
    let rows: Vec<(bool, bool, bool, bool)> = [0x07, 0x06, 0x0f, 0x0b, 0x21, 0x2b]
        .into_iter()
        .map(of)
        .map(|abort| {
            (
                abort.is_translation_fault(),
                abort.is_translation_fault_at(3),
                abort.is_permission_fault(),
                abort.is_access_flag_fault(),
            )
        })
        .collect();
    let (f, t) = (false, true);
    assert_eq!(rows, [(t, t, f, f), (t, f, f, f), (f, f, t, f), (f, f, f, t), (f, f, f, f), (t, f, f, f)]);
    assert!(of(0x2b).is_translation_fault_at(-1));
}

#[test]
fn parts_are_absent_from_other_classes() {
    for ec in 0..64_u64 {
        let esr = Esr::new(ec << 26);
        assert_eq!(esr.abort().is_some(), matches!(ec, 0x20 | 0x21 | 0x24 | 0x25), "{ec:#x}");
        assert_eq!(esr.immediate().is_some(), matches!(ec, 0x11 | 0x15 | 0x38 | 0x3c), "{ec:#x}");
        assert_eq!(esr.system_access().is_some(), ec == 0x18, "{ec:#x}");
        let far = matches!(ec, 0x20 | 0x21 | 0x22 | 0x24 | 0x25 | 0x34 | 0x35);
        assert_eq!(esr.far_valid(), far, "{ec:#x}");
    }
}

#[test]
fn fields_outside_the_class_have_their_places() {
    let esr = Esr::new(0x00ab_cdef_5600_1234);
    assert_eq!((esr.iss2(), esr.iss(), esr.instruction_length()), (0xab_cdef, 0x1234, 4));
    // A 16-bit BKPT in T32.
    let bkpt = Esr::new(0xe000_00ab);
    assert_eq!((bkpt.instruction_length(), bkpt.immediate()), (2, Some(0xab)));
    assert_eq!(Esr::new(0x57ff_ffff).iss(), 0x1ff_ffff);
    assert_eq!(format!("{:?}", Esr::new(0x9600_004f)), "Esr(0x9600004f)");
}

#[test]
fn the_address_is_shown_only_where_it_is_known() {
    let far = VirtAddr::new(0xffff_8000_0000_1000);
    let line = |raw| Esr::new(raw).with_far(far).to_string();
    assert_eq!(
        line(0x9600_004f),
        "data abort, same EL: permission fault, level 3, write, address 0xffff800000001000"
    );
    assert_eq!(line(0x9600_0410), "data abort, same EL: external abort, read, address unknown");
    assert_eq!(line(0x8a00_0000), "PC alignment fault, address 0xffff800000001000");
    assert_eq!(line(0x5600_0001), "SVC in AArch64 state, immediate 0x1");
    assert_eq!(Esr::new(0x5600_0001).with_far(far).far(), None);
}
