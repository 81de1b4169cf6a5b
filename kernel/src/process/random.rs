//! Random numbers, for AT_RANDOM and `getrandom`: good enough to vary addresses and hash seeds, not for secrets. There is no
//! source of entropy but the time at which they are asked for.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::timer;

/// SplitMix64's state.
static STATE: AtomicU64 = AtomicU64::new(0);

fn next() -> u64 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let state = STATE.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
    let mut z = state ^ timer::now().rotate_left(32);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Fills `bytes`.
pub(crate) fn fill(bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&next().to_le_bytes()[..chunk.len()]);
    }
}
