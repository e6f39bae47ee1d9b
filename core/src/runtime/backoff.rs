//! The waits between attempts: they grow exponentially, with a jitter so that many clients do not come back at once.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

/// Waits that double from 50 ms up to a limit. Each is a random part of that, from 50 to 100 %.
///
/// ```
/// use polybus_core::driver::kit::backoff::Backoff;
/// use std::time::Duration;
///
/// let mut backoff = Backoff::up_to(Duration::from_secs(30));
/// assert!(backoff.next_wait() <= Duration::from_millis(50));
/// assert!(backoff.next_wait() <= Duration::from_millis(100));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    attempts: u32,
    longest: Duration,
}

/// Up to 2 s.
impl Default for Backoff {
    fn default() -> Self {
        Self::up_to(Duration::from_secs(2))
    }
}

impl Backoff {
    /// Waits of at most `longest`.
    pub const fn up_to(longest: Duration) -> Self {
        Self { attempts: 0, longest }
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        let full = Duration::from_millis(50 << self.attempts.min(20)).min(self.longest);
        self.attempts = self.attempts.saturating_add(1);
        full.mul_f64(0.5 + random_fraction() / 2.0)
    }

    /// Begins again with the shortest wait.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// How many waits there were since the last reset.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }
}

/// A random number, uniform in 0..1. Each `RandomState` has random keys of its own, which is randomness enough for a
/// jitter.
pub fn random_fraction() -> f64 {
    let bits = RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_limit() {
        let mut b = Backoff::default();
        let waits: Vec<Duration> = (0..20).map(|_| b.next_wait()).collect();
        assert!(waits[0] <= Duration::from_millis(50) && waits[0] >= Duration::from_millis(25));
        assert!(waits[19] <= Duration::from_secs(2) && waits[19] >= Duration::from_secs(1));
        assert!((0..1000).map(|_| random_fraction()).all(|f| (0.0..1.0).contains(&f)));
    }
}
