//! Wall time, so that expiry can be tested under a paused clock.

use std::{sync::OnceLock, time::Duration};

use time::OffsetDateTime;
use tokio::time::Instant;

/// Tells the wall time that `expires_at` and dead-letter times are measured by.
pub trait Clock: Send + Sync + 'static {
    /// The time of now.
    fn now(&self) -> OffsetDateTime;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }
}

/// A wall clock that moves with tokio's: it stands still under `tokio::time::pause` and moves with `advance`. All of them in
/// one runtime tell the same time, whenever they were made.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    wall: OffsetDateTime,
    since: Instant,
}

impl TokioClock {
    /// A clock that tells the machine's time, as far as tokio's has not been moved.
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
