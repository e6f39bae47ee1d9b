//! Wall time, so that expiry can be tested under a paused clock.

use std::time::Duration;

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

/// A wall clock that moves with tokio's: it stands still under `tokio::time::pause` and moves with `advance`.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    wall: OffsetDateTime,
    since: Instant,
}

impl TokioClock {
    /// A clock that starts at the machine's time of now.
    pub fn new() -> Self {
        Self { wall: OffsetDateTime::now_utc(), since: Instant::now() }
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
