//! Random numbers, for AT_RANDOM and `getrandom`: ChaCha20, with a key from what the boot loader gives in the device tree
//! (`/chosen` `rng-seed`) and from FEAT_RNG. Where there is neither, they can be guessed, and who asks is told.

use core::sync::atomic::{AtomicBool, Ordering};

use arch::aarch64::rng;
use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};

use crate::lock::IrqMutex;
use crate::{features, timer};

/// `None` before [`init`].
static RNG: IrqMutex<Option<ChaCha20Rng>> = IrqMutex::new(None);

static IS_SEEDED: AtomicBool = AtomicBool::new(false);

type Key = [u8; 32];

/// Makes the first key, of all that can be had: each source is enough by itself.
pub(crate) fn init(seed: &[u8]) {
    let mut key = Key::default();
    let mut mix = |at: usize, bytes: &[u8]| {
        bytes.iter().enumerate().for_each(|(i, byte)| key[(at + i) % size_of::<Key>()] ^= byte);
    };
    mix(0, seed);
    let mut is_seeded = seed.len() >= size_of::<Key>();
    if features::common().rng {
        // SAFETY: every CPU has it.
        let words = [(); 4].map(|()| unsafe { rng::reseeded() });
        is_seeded |= words.iter().all(Option::is_some);
        words.iter().flatten().enumerate().for_each(|(i, word)| mix(8 * i, &word.to_le_bytes()));
    }
    // Better than nothing.
    mix(0, &timer::now().to_le_bytes());
    *RNG.lock() = Some(ChaCha20Rng::from_seed(key));
    IS_SEEDED.store(is_seeded, Ordering::Relaxed);
}

/// Whether nobody can guess the numbers.
pub(crate) fn is_seeded() -> bool {
    IS_SEEDED.load(Ordering::Relaxed)
}

/// Fills `bytes`.
///
/// # Panics
/// Before [`init`].
pub(crate) fn fill(bytes: &mut [u8]) {
    let mut rng = RNG.lock();
    let rng = rng.as_mut().expect("processes begin after it is seeded");
    rng.fill_bytes(bytes);
    // Another key each time: what was given out does not follow from what is in memory later.
    let mut key = Key::default();
    rng.fill_bytes(&mut key);
    *rng = ChaCha20Rng::from_seed(key);
}
