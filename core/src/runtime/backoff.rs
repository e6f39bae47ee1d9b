//! The waits between attempts: they grow exponentially, with a jitter so that many clients do not come back at once.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

/// Waits that double from 50 ms up to 2 s. Each is a random part of that, from 50 to 100 %.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    pub(crate) fn next(&mut self) -> Duration {
        let full = Duration::from_millis(50 << self.attempts.min(6)).min(Duration::from_secs(2));
        self.attempts += 1;
        full.mul_f64(0.5 + random_fraction() / 2.0)
    }

    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// A random number, uniform in 0..1. Each `RandomState` has random keys of its own, which is randomness enough for a
/// jitter.
pub(crate) fn random_fraction() -> f64 {
    let bits = RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_limit() {
        let mut b = Backoff::default();
        let waits: Vec<Duration> = (0..20).map(|_| b.next()).collect();
        assert!(waits[0] <= Duration::from_millis(50) && waits[0] >= Duration::from_millis(25));
        assert!(waits[19] <= Duration::from_secs(2) && waits[19] >= Duration::from_secs(1));
        assert!((0..1000).map(|_| random_fraction()).all(|f| (0.0..1.0).contains(&f)));
    }
}
