//! For adapters: a lock that the driver itself keeps alive: when to renew it, and for how long it is worth trying.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::error::{Error, Result};

/// Longest wait for the answer to a renewal.
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// An eighth of a short lock is less than a round trip may take.
const SHORT_WAIT: Duration = Duration::from_millis(500);

/// One lock of a driver's: renewed at half its time, tried again every sixteenth of it until it is over.
#[derive(Clone, Copy, Debug)]
pub struct LockLease {
    lock: Duration,
    /// From then on it counts.
    from: Instant,
    due: Instant,
}

impl LockLease {
    /// A lock of this length that counts from then.
    pub fn new(lock: Duration, from: Instant) -> Self {
        Self { lock, from, due: from + lock / 2 }
    }

    /// From when it counts, as far as it was renewed.
    pub fn from(&self) -> Instant {
        self.from
    }

    /// When to renew it.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Whether nothing can be done for it any more.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.from + self.lock
    }

    /// A request that went out then has renewed it.
    pub fn renewed(&mut self, from: Instant) {
        // Another one may have been quicker.
        if from > self.from {
            *self = Self::new(self.lock, from);
        }
    }

    /// It was not renewed, and there is time to try again.
    pub fn failed(&mut self) {
        self.due = Instant::now() + self.lock / 16;
    }
}

/// Bounds a renewal in time, so that others can be tried before the lock ends: an eighth of it, 15 s at most; of a short lock half a second,
/// or a quarter of it. Then it is dropped and answers `Timeout`; the broker may have carried it out.
pub async fn within<T>(lock: Duration, renewal: impl Future<Output = Result<T>>) -> Result<T> {
    let limit = (lock / 8).max(SHORT_WAIT.min(lock / 4)).min(LONGEST_WAIT);
    let late = |_| Err(Error::no_answer(limit).with_operation("extend").safe());
    timeout(limit, renewal).await.unwrap_or_else(late)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: Duration = Duration::from_secs(16);

    #[tokio::test(start_paused = true)]
    async fn it_is_renewed_at_half_its_time_and_tried_again_until_it_is_over() {
        let began = Instant::now();
        let mut lease = LockLease::new(LOCK, began);
        assert_eq!(lease.due(), began + LOCK / 2);
        tokio::time::advance(LOCK / 2).await;
        lease.failed();
        assert_eq!((lease.due(), lease.is_over()), (began + LOCK / 2 + LOCK / 16, false));
        tokio::time::advance(LOCK / 2).await;
        assert!(lease.is_over());
    }

    #[tokio::test(start_paused = true)]
    async fn the_latest_renewal_counts_whichever_is_told_last() {
        let began = Instant::now();
        let mut lease = LockLease::new(LOCK, began);
        lease.renewed(began + LOCK / 2);
        lease.renewed(began + LOCK / 4);
        assert_eq!((lease.from(), lease.due()), (began + LOCK / 2, began + LOCK));
    }
}
