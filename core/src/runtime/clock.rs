//! The wall clock of a bus. It can be replaced, so that expiry can be tested under tokio's paused time.

use std::{sync::OnceLock, time::Duration};

use time::OffsetDateTime;
use tokio::time::Instant;

/// The wall clock by which `expires_at` and the times of dead letters are measured. Set it with
/// [`BusOptions::clock`](crate::BusOptions::clock).
///
/// Locks, delays and timeouts do not use it: they run by tokio's monotonic clock.
///
/// ```
/// use polybus_core::{clock::Clock, time::OffsetDateTime};
///
/// /// The machine's clock is an hour late, and cannot be corrected.
/// struct HourAhead;
///
/// impl Clock for HourAhead {
///     fn now(&self) -> OffsetDateTime {
///         OffsetDateTime::now_utc() + std::time::Duration::from_secs(3600)
///     }
/// }
/// ```
pub trait Clock: Send + Sync + 'static {
    /// The current time. It is called for each message that has an expiry, so it must not block.
    fn now(&self) -> OffsetDateTime;
}

/// The machine's clock.
///
/// ```
/// use polybus_core::{clock::{Clock, SystemClock}, time::OffsetDateTime};
///
/// assert!(SystemClock.now() <= OffsetDateTime::now_utc());
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }
}

/// A wall clock that moves with tokio's time: it stands still under `tokio::time::pause` and moves with `advance`. All
/// instances in one runtime tell the same time, whenever they were made.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// use polybus_core::clock::{Clock, TokioClock};
/// use std::time::Duration;
///
/// let clock = TokioClock::new();
/// let before = clock.now();
/// tokio::time::advance(Duration::from_secs(3600)).await;
/// assert!(clock.now() > before + Duration::from_secs(3599));
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    wall: OffsetDateTime,
    since: Instant,
}

impl TokioClock {
    /// A clock that tells the machine's time, as long as tokio's time was neither paused nor moved.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use polybus_core::{BusOptions, clock::TokioClock};
    ///
    /// let options = BusOptions::new().clock(std::sync::Arc::new(TokioClock::new()));
    /// # let _ = options;
    /// # }
    /// ```
    pub fn new() -> Self {
        static START: OnceLock<(OffsetDateTime, std::time::Instant)> = OnceLock::new();
        let (wall, since) = *START.get_or_init(|| (OffsetDateTime::now_utc(), std::time::Instant::now()));
        Self { wall, since: Instant::from_std(since) }
    }

    fn passed(&self) -> Duration {
        self.since.elapsed()
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TokioClock {
    fn now(&self) -> OffsetDateTime {
        self.wall + self.passed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn clocks_made_at_different_times_agree() {
        let early = TokioClock::new();
        tokio::time::advance(Duration::from_secs(3600)).await;
        let late = TokioClock::new();
        assert_eq!(early.now(), late.now());
        assert!(late.now() > OffsetDateTime::now_utc() + Duration::from_secs(3000));
    }
}
