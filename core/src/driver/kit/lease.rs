//! A lock that a driver renews itself: when to renew it, and how long trying is worth while.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::{Error, Result};

/// Longest wait for the answer to a renewal.
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// The wait for the answer of a short lock, an eighth of which may be less than a round trip.
const SHORT_WAIT: Duration = Duration::from_millis(500);

/// One lock that a driver renews itself. It is due at half its time, and after a failure again every sixteenth of it,
/// until it is over.
///
/// ```
/// use std::time::Duration;
/// use polybus_core::driver::kit::lease::LockLease;
/// use tokio::time::Instant;
///
/// let began = Instant::now();
/// let mut lease = LockLease::new(Duration::from_secs(30), began);
/// assert_eq!(lease.due(), began + Duration::from_secs(15));
/// lease.renewed(began + Duration::from_secs(15));
/// assert_eq!(lease.due(), began + Duration::from_secs(30));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct LockLease {
    lock: Duration,
    /// When the lock began or was renewed last.
    from: Instant,
    due: Instant,
}

impl LockLease {
    /// A lock of this length that began at `from`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polybus_core::driver::kit::lease::LockLease;
    /// let lease = LockLease::new(Duration::from_secs(30), tokio::time::Instant::now());
    /// assert!(!lease.is_over());
    /// ```
    pub fn new(lock: Duration, from: Instant) -> Self {
        Self { lock, from, due: from + lock / 2 }
    }

    /// When the lock began, or was renewed last.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polybus_core::driver::kit::lease::LockLease;
    /// let began = tokio::time::Instant::now();
    /// assert_eq!(LockLease::new(Duration::from_secs(30), began).from(), began);
    /// ```
    pub fn from(&self) -> Instant {
        self.from
    }

    /// When to renew it.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polybus_core::driver::kit::lease::LockLease;
    /// let began = tokio::time::Instant::now();
    /// assert_eq!(LockLease::new(Duration::from_secs(30), began).due(), began + Duration::from_secs(15));
    /// ```
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Whether it has run out, so that it cannot be renewed any more.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polybus_core::driver::kit::lease::LockLease;
    /// let lease = LockLease::new(Duration::ZERO, tokio::time::Instant::now());
    /// assert!(lease.is_over());
    /// ```
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.from + self.lock
    }

    /// Tells that a request which went out at `from` has renewed it. An answer that comes after that of a later request
    /// changes nothing.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polybus_core::driver::kit::lease::LockLease;
    /// let began = tokio::time::Instant::now();
    /// let mut lease = LockLease::new(Duration::from_secs(30), began);
    /// lease.renewed(began + Duration::from_secs(15));
    /// assert_eq!(lease.from(), began + Duration::from_secs(15));
    /// ```
    pub fn renewed(&mut self, from: Instant) {
        if from > self.from {
            *self = Self::new(self.lock, from);
        }
    }

    /// Tells that a renewal failed. It is due again in a sixteenth of the lock.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polybus_core::driver::kit::lease::LockLease;
    /// let began = tokio::time::Instant::now();
    /// let mut lease = LockLease::new(Duration::from_secs(32), began);
    /// lease.failed();
    /// assert!(lease.due() >= began + Duration::from_secs(2));
    /// ```
    pub fn failed(&mut self) {
        self.due = Instant::now() + self.lock / 16;
    }
}

/// Bounds a renewal in time, so that it can be tried again before the lock ends.
///
/// It has an eighth of the lock, at most 15 s. For a short lock it has half a second, at most a quarter of the lock.
///
/// # Errors
/// Those of `renewal`, and `Timeout` once its time is over. `renewal` is dropped then; the broker may have carried it
/// out.
///
/// # Cancel safety
/// That of `renewal`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// use std::time::Duration;
/// use polybus_core::{ErrorKind, Result, driver::kit::lease::within};
///
/// let never_answered = std::future::pending::<Result<()>>();
/// let error = within(Duration::from_secs(30), never_answered).await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Timeout);
/// # }
/// ```
pub async fn within<T>(lock: Duration, renewal: impl Future<Output = Result<T>>) -> Result<T> {
    let limit = answer_limit(lock);
    let late = |_| Err(Error::no_answer(limit).with_operation("extend").safe());
    timeout(limit, renewal).await.unwrap_or_else(late)
}

/// How long the answer to a renewal is waited for: see [`within`].
pub(crate) fn answer_limit(lock: Duration) -> Duration {
    (lock / 8).max(SHORT_WAIT.min(lock / 4)).min(LONGEST_WAIT)
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
