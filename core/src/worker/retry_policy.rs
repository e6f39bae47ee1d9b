//! The delays after which a failed message comes again.

use std::{collections::hash_map::RandomState, hash::BuildHasher, time::Duration};

use crate::{Error, Result};

/// The delays between attempts of a worker's messages. The number of attempts is not part of it: that is the source's
/// [`max_deliveries`](crate::topology::QueueSpec::max_deliveries).
///
/// A worker without a policy uses the delays of its source's topology, with 10 % jitter.
///
/// ```
/// use polybus_core::RetryPolicy;
/// use std::time::Duration;
///
/// let policy = RetryPolicy::exponential(Duration::from_secs(1), 2.0, Duration::from_secs(300)).jitter(0.2);
/// # let _ = policy;
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    delays: Vec<Duration>,
    jitter: f64,
}

impl RetryPolicy {
    /// One delay after each failed attempt; the last one repeats. Without any, messages come again at once. Jitter is
    /// 10 %.
    ///
    /// ```
    /// use polybus_core::RetryPolicy;
    /// use std::time::Duration;
    ///
    /// let policy = RetryPolicy::new([1, 5, 30].map(Duration::from_secs));
    /// assert_eq!(policy, RetryPolicy::new([1, 5, 30].map(Duration::from_secs)).jitter(0.1));
    /// ```
    pub fn new(delays: impl IntoIterator<Item = Duration>) -> Self {
        Self { delays: delays.into_iter().collect(), jitter: 0.1 }
    }

    /// The same delay after each attempt. Jitter is 10 %.
    ///
    /// ```
    /// use polybus_core::RetryPolicy;
    /// use std::time::Duration;
    ///
    /// let minute = Duration::from_secs(60);
    /// assert_eq!(RetryPolicy::fixed(minute), RetryPolicy::new([minute]));
    /// ```
    pub fn fixed(delay: Duration) -> Self {
        Self::new([delay])
    }

    /// Delays that grow: `first`, then `factor` times the one before, up to `longest`. Jitter is 10 %.
    ///
    /// A factor of at most 1 gives `first` alone. There are at most 64 different delays.
    ///
    /// ```
    /// use polybus_core::RetryPolicy;
    /// use std::time::Duration;
    ///
    /// let policy = RetryPolicy::exponential(Duration::from_secs(1), 2.0, Duration::from_secs(10));
    /// assert_eq!(policy, RetryPolicy::new([1, 2, 4, 8, 10].map(Duration::from_secs)));
    /// ```
    pub fn exponential(first: Duration, factor: f64, longest: Duration) -> Self {
        let mut delays = vec![first.min(longest)];
        while let Some(&last) = delays.last()
            && last < longest
            && factor > 1.0
            && delays.len() < 64
        {
            delays.push(Duration::try_from_secs_f64(last.as_secs_f64() * factor).unwrap_or(longest).min(longest));
        }
        Self::new(delays)
    }

    /// Sets the jitter: each delay is lengthened by a random part of up to this fraction, so that messages that failed
    /// together do not come again together. A delay is never shortened. Default 0.1.
    ///
    /// A fraction that is not within 0 to 1 is `InvalidArgument` when the worker runs.
    ///
    /// ```
    /// use polybus_core::RetryPolicy;
    /// use std::time::Duration;
    ///
    /// let exact = RetryPolicy::fixed(Duration::from_secs(60)).jitter(0.0);
    /// # let _ = exact;
    /// ```
    pub fn jitter(mut self, fraction: f64) -> Self {
        self.jitter = fraction;
        self
    }

    pub(crate) fn delays(&self) -> &[Duration] {
        &self.delays
    }

    pub(crate) fn check(&self) -> Result<()> {
        match (0.0..=1.0).contains(&self.jitter) {
            true => Ok(()),
            false => Err(Error::invalid(format!("retry jitter {}: expected a fraction from 0 to 1", self.jitter))),
        }
    }

    /// The delay after the failure of this attempt (1-based), jitter included. Zero without delays.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use polybus_core::RetryPolicy;
    ///
    /// let policy = RetryPolicy::new([1, 5].map(Duration::from_secs)).jitter(0.0);
    /// assert_eq!(policy.delay(2), Duration::from_secs(5));
    /// assert_eq!(policy.delay(9), Duration::from_secs(5)); // the last one repeats
    /// ```
    pub fn delay(&self, attempt: u32) -> Duration {
        let index = (attempt.max(1) - 1) as usize;
        let Some(delay) = self.delays.get(index).or(self.delays.last()) else { return Duration::ZERO };
        if self.jitter == 0.0 {
            return *delay;
        }
        // Each RandomState has random keys of its own, which is randomness enough for a jitter.
        let random = RandomState::new().hash_one(attempt) as f64 / u64::MAX as f64;
        delay
            .saturating_add(Duration::try_from_secs_f64(delay.as_secs_f64() * self.jitter * random).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn the_last_delay_repeats() {
        let policy = RetryPolicy::new([1, 5, 30].map(secs)).jitter(0.0);
        assert_eq!([1, 2, 3, 4, 99].map(|n| policy.delay(n)), [1, 5, 30, 30, 30].map(secs));
        assert_eq!(RetryPolicy::new([]).delay(1), Duration::ZERO);
    }

    #[test]
    fn jitter_only_lengthens_and_spreads() {
        let policy = RetryPolicy::fixed(secs(10));
        let delays: Vec<Duration> = (0..200).map(|_| policy.delay(1)).collect();
        assert!(delays.iter().all(|d| (secs(10)..=secs(11)).contains(d)));
        let (least, most) = (delays.iter().min(), delays.iter().max());
        assert!(most.zip(least).is_some_and(|(most, least)| *most - *least > Duration::from_millis(500)));
    }

    #[test]
    fn exponential_ends_at_the_longest() {
        let policy = RetryPolicy::exponential(secs(1), 2.0, secs(10)).jitter(0.0);
        assert_eq!(policy.delays, [1, 2, 4, 8, 10].map(secs));
        assert_eq!(RetryPolicy::exponential(secs(1), 0.5, secs(9)).delays, [secs(1)]);
        assert_eq!(RetryPolicy::exponential(Duration::MAX, 9.0, Duration::MAX).delays, [Duration::MAX]);
    }

    #[test]
    fn a_jitter_that_is_no_fraction_is_refused() {
        for bad in [-0.1, 1.1, f64::NAN] {
            assert!(RetryPolicy::fixed(secs(1)).jitter(bad).check().is_err(), "{bad}");
        }
    }
}
