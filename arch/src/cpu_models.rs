//! CPU models that do better, or worse, than their identification registers say.
//!
//! A model is on a list only if who makes it has said so in public. Where no such statement was found, the
//! safe side is taken: no shortcut, no update by hardware.
#![forbid(unsafe_code)]

use core::ops::RangeInclusive;

use crate::features::{BbmLevel, CpuFeatures, Hafdbs, Midr};

#[cfg(test)]
mod tests;

const ARM: u8 = 0x41;
const QUALCOMM: u8 = 0x51;
const AMPERE: u8 = 0xc0;

/// Some revisions of a model.
struct Model {
    implementer: u8,
    part: u16,
    /// Variant and revision: r*N*p*N*.
    revisions: RangeInclusive<(u8, u8)>,
}

impl Model {
    /// From r0p`first` to the last of r0. A new variant is another design, of which nothing is known.
    const fn from_r0(implementer: u8, part: u16, first: u8) -> Self {
        Self { implementer, part, revisions: (0, first)..=(0, 0xf) }
    }

    /// Whatever its revision.
    const fn all(implementer: u8, part: u16) -> Self {
        Self { implementer, part, revisions: (0, 0)..=(0xf, 0xf) }
    }

    fn includes(&self, midr: Midr) -> bool {
        midr.implementer() == self.implementer
            && midr.part() == self.part
            && self.revisions.contains(&(midr.variant(), midr.revision()))
    }
}

/// FEAT_BBML2 that never raises a TLB conflict abort.
///
/// Arm states it for the Cortex-X4 and the Neoverse V3 in its patch for Linux, "arm64: Add BBM Level 2 cpu
/// feature" (v7, June 2025). Cortex-X925, Neoverse N2 and V2 are on no list. Not here, though Linux lists them
/// by now, since no statement of their makers was found: NVIDIA Olympus, Cortex-A520AE, A715, A720AE and A725,
/// Neoverse N3, the C1 family (of which C1-Ultra and C1-Premium need r1p1, by erratum 3683289). Nor AmpereOne,
/// of which Ampere does state it: it reports no level 2, and a level that is not reported, perhaps since a
/// hypervisor hides it, is not assumed.
const NO_CONFLICT_ABORT: [Model; 3] = [
    // Cortex-X4, r0p3. Arm's list leaves out what came before.
    Model::from_r0(ARM, 0xd82, 3),
    // Neoverse V3AE, r0p2: SDEN-2615521 v9.0, erratum 3053180, has earlier ones always break before make.
    Model::from_r0(ARM, 0xd83, 2),
    // Neoverse V3, r0p2: the same erratum (SDEN-2891958).
    Model::from_r0(ARM, 0xd84, 2),
];

/// Updates of descriptors by hardware that go wrong, with what may be used all the same.
const UPDATES_BY_HARDWARE: [(Model, Hafdbs); 6] = [
    // Cortex-A55, erratum 1024718: if software changes DBM or AP of a live entry, hardware may set the dirty
    // state of the new entry by the permissions of the old one. r0p0 to r2p0, and not to be fixed (Linux commit
    // c0b15c25d251, of Arm); the wording is in Intel's document 825514, section 3.1.1. The flag alone is right.
    (Model::all(ARM, 0xd05), Hafdbs::Af),
    // Kryo 4xx Silver is a Cortex-A55. Qualcomm names r13p14 (Linux commit 9b23d95c539e). Other revisions, and
    // Kryo 3xx Silver, which is one too, are not mentioned: they are taken for affected.
    (Model::all(QUALCOMM, 0x803), Hafdbs::Af),
    (Model::all(QUALCOMM, 0x805), Hafdbs::Af),
    // Cortex-A510 before r0p3, erratum 2051678: the update of the dirty state is not ordered as it must be
    // (Linux commit 297ae1eb23b0, of Arm).
    (Model { implementer: ARM, part: 0xd46, revisions: (0, 0)..=(0, 2) }, Hafdbs::Af),
    // AmpereOne, errata AC03_CPU_38 and AC04_CPU_10: both updates may come after the entry became invalid. It
    // reports none; this is for a register that says otherwise.
    (Model::all(AMPERE, 0xac3), Hafdbs::None),
    (Model::all(AMPERE, 0xac4), Hafdbs::None),
];

impl CpuFeatures {
    /// What a CPU with these features may be used for if it is `midr`: [`CpuFeatures::decode`] knows only what
    /// the registers say. The model must be that of the CPU whose registers were read, so this comes before
    /// [`CpuFeatures::common`].
    #[must_use]
    pub fn on_model(self, midr: Midr) -> Self {
        let is_no_abort = NO_CONFLICT_ABORT.iter().any(|model| model.includes(midr));
        let trusted = UPDATES_BY_HARDWARE
            .iter()
            .filter(|(model, _)| model.includes(midr))
            .fold(self.hafdbs, |usable, &(_, limit)| usable.min(limit));
        Self {
            hafdbs: trusted,
            bbm_no_abort: self.bbm_no_abort || (is_no_abort && self.bbm >= BbmLevel::Level2),
            ..self
        }
    }
}
