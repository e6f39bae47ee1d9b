//! How long the broker holds a delivery, which only who may manage the entity is told.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use time::OffsetDateTime;

use crate::{contract::LOCKS, message::annotations::Told};

/// What reading the broker's clock over HTTP, to a second, may be wrong by.
const COARSE: time::Duration = time::Duration::SECOND;

/// The length of an entity's locks: as the broker told, or as the topology says until messages prove it too long.
#[derive(Debug)]
pub(crate) struct LockLength {
    millis: AtomicU64,
    /// The broker itself told it.
    told: bool,
    /// What is to be added to this machine's clock for the broker's.
    ahead: Option<time::Duration>,
}

impl LockLength {
    pub(crate) fn new(lock: Duration, told: bool, ahead: Option<time::Duration>) -> Self {
        Self { millis: AtomicU64::new(millis(lock)), told, ahead }
    }

    pub(crate) fn get(&self) -> Duration {
        Duration::from_millis(self.millis.load(Ordering::Relaxed))
    }

    /// Learns from a message whose lock began at most a moment ago. What it was thought to be, if it is shorter.
    ///
    /// Two bounds, both from above, and the shortest lock that the broker has is the least: a lock that is thought too short only costs renewals.
    /// No lock begins before its message was enqueued, both by the broker's clock. Where nobody told the length, the end of the lock
    /// less the broker's time is a bound as well; that time is read from its answers over HTTP, else it is this machine's.
    pub(crate) fn learn(&self, told: &Told) -> Option<Duration> {
        let until = told.locked_until?;
        let mut most = told.enqueued.map_or(time::Duration::MAX, |at| until - at);
        if !self.told {
            let now = OffsetDateTime::now_utc() + self.ahead.map_or(time::Duration::ZERO, |ahead| ahead + COARSE);
            most = most.min(until - now + COARSE);
        }
        let most = Duration::try_from(most).unwrap_or_default().max(LOCKS.0);
        let known = self.get();
        // What is on its way for a moment makes no difference worth the trouble.
        if most >= known || known - most < known / 16 {
            return None;
        }
        self.millis.fetch_min(millis(most), Ordering::Relaxed);
        Some(known)
    }
}

fn millis(lock: Duration) -> u64 {
    u64::try_from(lock.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: Duration = Duration::from_secs(30);

    fn given(ago: i64, lock: i64, ahead: i64) -> Told {
        let broker = OffsetDateTime::now_utc() + time::Duration::seconds(ahead);
        let second = time::Duration::seconds;
        Told { sequence: None, enqueued: Some(broker - second(ago)), locked_until: Some(broker + second(lock)) }
    }

    #[test]
    fn a_fresh_message_tells_it_whatever_the_clocks_say() {
        for ahead in [-300, 0, 300] {
            let length = LockLength::new(HALF, true, None);
            assert_eq!(length.learn(&given(0, 5, ahead)), Some(HALF), "{ahead}");
            assert_eq!(length.get(), Duration::from_secs(5), "{ahead}");
        }
    }

    #[test]
    fn what_the_broker_told_is_believed_of_old_messages() {
        for ahead in [-300, 0, 300] {
            let length = LockLength::new(HALF, true, None);
            assert_eq!((length.learn(&given(500, 28, ahead)), length.get()), (None, HALF), "{ahead}");
        }
    }

    #[test]
    fn where_nobody_told_it_old_messages_tell_it_by_the_brokers_clock() {
        for ahead in [-300, 0, 300] {
            let length = LockLength::new(HALF, false, Some(time::Duration::seconds(ahead)));
            assert_eq!(length.learn(&given(500, 5, ahead)), Some(HALF), "{ahead}");
            assert_eq!(length.get(), Duration::from_secs(5), "{ahead}");
            let length = LockLength::new(HALF, false, Some(time::Duration::seconds(ahead)));
            assert_eq!(length.learn(&given(500, 30, ahead)), None, "{ahead}");
        }
    }

    #[test]
    fn a_clock_that_is_ahead_only_shortens_it() {
        let length = LockLength::new(HALF, false, None);
        length.learn(&given(500, 30, -300));
        assert_eq!(length.get(), LOCKS.0);
    }
}
