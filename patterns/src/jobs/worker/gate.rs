//! How many jobs of a queue a worker claims: as many as its handlers begin soon, so that none waits here while another
//! process is idle.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

/// Jobs are fetched ahead that handlers begin within this time, at the rate of the last second.
const AHEAD: f64 = 0.1;

/// How long a rate is measured.
const WINDOW: Duration = Duration::from_secs(1);

/// The first rate is measured sooner.
const FIRST_WINDOW: Duration = Duration::from_millis(50);

/// Counts the jobs of one queue that are claimed and whose handler has not ended.
pub(super) struct QueueGate {
    concurrency: usize,
    unfinished: AtomicUsize,
    finished: AtomicU64,
    rate: Mutex<Rate>,
    freed: Notify,
}

struct Rate {
    since: Instant,
    finished: u64,
    per_second: Option<f64>,
}

impl QueueGate {
    pub(super) fn new(concurrency: usize) -> Self {
        Self {
            concurrency,
            unfinished: AtomicUsize::new(0),
            finished: AtomicU64::new(0),
            rate: Mutex::new(Rate { since: Instant::now(), finished: 0, per_second: None }),
            freed: Notify::new(),
        }
    }

    pub(super) fn entered(&self) {
        self.unfinished.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn left(&self) {
        self.unfinished.fetch_sub(1, Ordering::AcqRel);
        self.finished.fetch_add(1, Ordering::AcqRel);
        self.freed.notify_one();
    }

    /// How many jobs may be claimed now.
    pub(super) fn room(&self) -> usize {
        let ahead = (self.rate() * AHEAD) as usize;
        (self.concurrency + ahead).saturating_sub(self.unfinished.load(Ordering::Acquire))
    }

    /// Waits until there may be room.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// How many handlers have ended in each of the last seconds.
    fn rate(&self) -> f64 {
        let (now, finished) = (Instant::now(), self.finished.load(Ordering::Acquire));
        let mut rate = self.rate.lock();
        let elapsed = now - rate.since;
        let window = if rate.per_second.is_none() { FIRST_WINDOW } else { WINDOW };
        if elapsed >= window {
            // After a rest the time since then says nothing of how quick handlers are.
            let per_second = (finished - rate.finished) as f64 / elapsed.as_secs_f64();
            *rate = Rate { since: now, finished, per_second: Some(per_second) };
        }
        rate.per_second.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn slow_jobs_are_not_fetched_ahead_and_quick_ones_are() {
        let gate = QueueGate::new(10);
        assert_eq!(gate.room(), 10);
        (0..10).for_each(|_| gate.entered());
        assert_eq!(gate.room(), 0);
        // Ten jobs of five seconds each.
        tokio::time::sleep(Duration::from_secs(5)).await;
        (0..10).for_each(|_| gate.left());
        assert_eq!(gate.room(), 10, "two a second begin none within a tenth of a second");
        // A thousand in a second.
        for _ in 0..1000 {
            gate.entered();
            gate.left();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!((100..=120).contains(&gate.room()), "{}", gate.room());
    }
}
