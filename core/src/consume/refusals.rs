//! How long a broker has refused a consumer: what ends a subscription, and what it lives through.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, ErrorKind};

/// A call that waits for messages for so long was let in, even if it ends with a refusal.
const LET_IN: Duration = Duration::from_secs(10);
/// So much of the time between two refusals counts at most: nobody may have asked in between.
const MOST_COUNTED: Duration = Duration::from_secs(10);

/// What an error of `receive` means for the subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefusalStage {
    /// The first one: to be told at once.
    First,
    /// It goes on.
    Again,
    /// It has lasted for so long: the subscription ends. Whether there was a first one.
    Over(Duration, bool),
}

/// `NotFound`, `PermissionDenied` and `Unauthenticated` may pass: a node starts, a right is restored, a credential is renewed. Only what lasts
/// without a success in between ends a subscription. Passing errors in between neither count nor make it start anew.
#[derive(Debug)]
pub(crate) struct RefusalStreak {
    give_up_after: Duration,
    /// What counts so far.
    lasted: Duration,
    last: Option<Instant>,
    /// Since when the current call waits, however often its future was dropped and made anew.
    asking: Option<Instant>,
    refused: bool,
}

/// What says that the source is gone or forbidden.
pub(crate) fn is_refusal(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::Unauthenticated)
}

impl RefusalStreak {
    pub(crate) fn new(give_up_after: Duration) -> Self {
        Self { give_up_after, lasted: Duration::ZERO, last: None, asking: None, refused: false }
    }

    pub(crate) fn limit(&self) -> Duration {
        self.give_up_after
    }

    /// A call begins, or is made again in place of one that was dropped. While the consumer is refused: when the call, if it still waits
    /// then, counts as a success.
    pub(crate) fn asks(&mut self, now: Instant) -> Option<Instant> {
        let since = *self.asking.get_or_insert(now);
        self.refused.then(|| since + LET_IN)
    }

    /// Messages came, or a poll ended empty, or the call has waited for long enough. True if the consumer was refused before.
    pub(crate) fn success(&mut self) -> bool {
        (self.lasted, self.last, self.asking) = (Duration::ZERO, None, None);
        std::mem::take(&mut self.refused)
    }

    /// A call that waited for long and then fails with a passing error may never have reached the broker: that is no success.
    fn ends_call(&mut self, now: Instant, may_reset: bool) {
        if self.asking.take().is_some_and(|since| now >= since + LET_IN) && may_reset {
            (self.lasted, self.last) = (Duration::ZERO, None);
        }
        if let Some(last) = self.last.take() {
            self.lasted += (now - last).min(MOST_COUNTED);
        }
    }

    /// A passing error came.
    pub(crate) fn passing(&mut self, now: Instant) {
        self.ends_call(now, false);
    }

    /// A refusal came.
    pub(crate) fn refusal(&mut self, now: Instant) -> RefusalStage {
        self.ends_call(now, true);
        self.last = Some(now);
        if self.lasted >= self.give_up_after {
            return RefusalStage::Over(self.lasted, std::mem::take(&mut self.refused));
        }
        match std::mem::replace(&mut self.refused, true) {
            true => RefusalStage::Again,
            false => RefusalStage::First,
        }
    }

    /// How long to wait before the next call, so that the last one comes when the time is over.
    pub(crate) fn wait(&self, backoff: Duration) -> Duration {
        backoff.min(self.give_up_after.saturating_sub(self.lasted)).max(Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn what_lasts_ends_it_and_a_success_starts_it_anew() {
        let began = Instant::now();
        let mut r = RefusalStreak::new(secs(30));
        assert_eq!(r.refusal(began), RefusalStage::First);
        for n in 1..=5 {
            assert_eq!(r.refusal(began + secs(5) * n), RefusalStage::Again);
        }
        assert_eq!(r.wait(secs(9)), secs(5));
        assert!(r.success() && !r.success());
        assert_eq!(r.refusal(began + secs(26)), RefusalStage::First);
        assert_eq!(r.refusal(began + secs(36)), RefusalStage::Again);
        assert_eq!(r.refusal(began + secs(46)), RefusalStage::Again);
        assert_eq!(r.refusal(began + secs(56)), RefusalStage::Over(secs(30), true));
    }

    #[test]
    fn an_outage_in_between_does_not_count_and_does_not_reset() {
        let began = Instant::now();
        let mut r = RefusalStreak::new(secs(10));
        assert_eq!(r.refusal(began), RefusalStage::First);
        r.passing(began + secs(6));
        r.passing(began + secs(500));
        assert_eq!(r.refusal(began + secs(600)), RefusalStage::Again);
        assert_eq!(r.refusal(began + secs(604)), RefusalStage::Over(secs(10), true));
    }

    #[test]
    fn a_call_that_waited_was_let_in_and_time_in_which_nobody_asked_counts_little() {
        let began = Instant::now();
        let mut r = RefusalStreak::new(secs(30));
        assert_eq!(r.asks(began), None);
        assert_eq!(r.refusal(began), RefusalStage::First);
        assert_eq!(r.asks(began + secs(1)), Some(began + secs(11)));
        assert_eq!(r.asks(began + secs(9)), Some(began + secs(11)), "the same call");
        assert_eq!(r.refusal(began + secs(3600)), RefusalStage::Again, "told before, and no success was told since");
        assert_eq!(r.lasted, Duration::ZERO);
        r.asks(began + secs(7200));
        assert_eq!(r.refusal(began + secs(7200)), RefusalStage::Again);
        assert_eq!(r.lasted, MOST_COUNTED);
    }

    #[test]
    fn none_is_at_once_and_the_longest_is_never() {
        let began = Instant::now();
        assert_eq!(RefusalStreak::new(Duration::ZERO).refusal(began), RefusalStage::Over(Duration::ZERO, false));
        let mut r = RefusalStreak::new(Duration::MAX);
        assert_eq!(r.refusal(began), RefusalStage::First);
        assert!((1..100_000).all(|n| r.refusal(began + secs(n)) == RefusalStage::Again));
    }
}
