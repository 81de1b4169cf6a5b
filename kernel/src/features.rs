//! What all CPUs have in common, decided at boot: a CPU may come from another cluster than the first.

use core::sync::atomic::{AtomicBool, Ordering};

use arch::aarch64::task::UserFeatures;
use arch::aarch64::{boot, hardware, icache, id, task, zero};
use arch::features::CpuFeatures;
use arch::mmu::Features;
use log::info;
use spin::Mutex;

use crate::{cpu, smp, user};

static COMMON: Mutex<Option<CpuFeatures>> = Mutex::new(None);

static USES_PAN: AtomicBool = AtomicBool::new(false);

/// Called by each CPU when it starts.
pub(crate) fn note_this_cpu() {
    let own = id::features().on_model(id::midr());
    let mut common = COMMON.lock();
    *common = Some(common.map_or(own, |common| common.common(own)));
}

/// What all CPUs have in common.
///
/// # Panics
/// Before the first has called [`note_this_cpu`].
pub(crate) fn common() -> CpuFeatures {
    COMMON.lock().expect("the boot CPU comes first")
}

/// Whether the kernel runs with PSTATE.PAN set.
pub(crate) fn uses_pan() -> bool {
    USES_PAN.load(Ordering::Relaxed)
}

/// Uses it on every CPU. Called once all of them run.
pub(crate) fn use_common() {
    let common = common();
    let hafdbs = common.hafdbs;
    let user = UserFeatures { fp_simd: common.fp_simd, pan: common.pan, e0pd: common.e0pd };
    // SAFETY: every CPU has them, and none with an erratum. Nothing accesses user memory yet.
    let enable = move || unsafe {
        boot::enable_hafdbs(hafdbs);
        task::allow_user(user);
    };
    enable();
    for index in 1..cpu::count() {
        smp::spawn_on(index, enable).expect("the CPU waits").join();
    }
    USES_PAN.store(common.pan, Ordering::Relaxed);
    let features = Features { tlb_range: common.tlbi_range, hafdbs, bbm_no_abort: common.bbm_no_abort };
    // SAFETY: every CPU has it, and has just switched it on.
    unsafe {
        hardware::configure(common.ttl, features);
        icache::configure(common.caches);
        zero::configure(common.mops);
    }
    user::asids();
    info!("MMU: {features:?}, level hints {}", common.ttl);
}
