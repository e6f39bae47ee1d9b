//! How long the locks of an entity are, which the broker tells only those who may manage the entity.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use time::OffsetDateTime;

use crate::{capabilities::LOCK_RANGE, message::annotations::BrokerAnnotations};

/// By how much the broker's clock, as read over HTTP, may be wrong.
const CLOCK_RESOLUTION: time::Duration = time::Duration::SECOND;

/// The length of an entity's locks: as the broker says, or as the topology says until a message proves it too long.
#[derive(Debug)]
pub(crate) struct LockLength {
    millis: AtomicU64,
    /// Whether the broker itself has told it.
    from_broker: bool,
    /// How far the broker's clock is ahead of this machine's.
    ahead: Option<time::Duration>,
}

impl LockLength {
    pub(crate) fn new(lock: Duration, from_broker: bool, ahead: Option<time::Duration>) -> Self {
        Self { millis: AtomicU64::new(millis(lock)), from_broker, ahead }
    }

    pub(crate) fn get(&self) -> Duration {
        Duration::from_millis(self.millis.load(Ordering::Relaxed))
    }

    /// Learns from a message whose lock began at most a moment ago. Returns the length that was known before, if it was
    /// too long.
    ///
    /// There are two upper bounds. No lock begins before its message was enqueued, both by the broker's clock. Where
    /// the broker did not tell the length, the end of the lock less the broker's time is a bound as well; that time is
    /// read from its answers over HTTP, or else is this machine's. The shortest lock that the broker has is the lower
    /// bound. A length that is too short only costs renewals.
    pub(crate) fn learn(&self, message: &BrokerAnnotations) -> Option<Duration> {
        let until = message.locked_until?;
        let mut most = message.enqueued.map_or(time::Duration::MAX, |at| until - at);
        if !self.from_broker {
            let now =
                OffsetDateTime::now_utc() + self.ahead.map_or(time::Duration::ZERO, |ahead| ahead + CLOCK_RESOLUTION);
            most = most.min(until - now + CLOCK_RESOLUTION);
        }
        let most = Duration::try_from(most).unwrap_or_default().max(LOCK_RANGE.0);
        let known = self.get();
        // A difference that the way of the message explains is not worth a change.
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

    fn given(ago: i64, lock: i64, ahead: i64) -> BrokerAnnotations {
        let broker = OffsetDateTime::now_utc() + time::Duration::seconds(ahead);
        let second = time::Duration::seconds;
        BrokerAnnotations {
            sequence: None,
            enqueued: Some(broker - second(ago)),
            locked_until: Some(broker + second(lock)),
        }
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
        assert_eq!(length.get(), LOCK_RANGE.0);
    }
}
