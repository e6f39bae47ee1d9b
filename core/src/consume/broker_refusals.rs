//! How long a broker has refused a consumer, and when that ends the subscription.
//!
//! `NotFound`, `PermissionDenied` and `Unauthenticated` are refusals. They may pass: a node starts, a right is
//! restored, a credential is renewed. Only refusals that last without a success in between end a subscription.
//! Transient errors in between neither count nor start the time anew.
//!
//! A call that still waits may have been accepted by the broker, or may still be trying to reach it. So the wait is no
//! success by itself. What ends the call decides: see [`ACCEPTED_AFTER`] and [`SURELY_ACCEPTED_AFTER`].

use std::time::Duration;

use tokio::time::Instant;

use crate::{Error, ErrorKind};

/// A call that has waited for this long, and then ends with a refusal, was accepted by the broker before: a refusal
/// comes sooner. While it waits on, the consumer no longer counts as refused in the log and the metric. The time of the
/// earlier refusals is kept, since the call may have waited for a broker that is away.
const ACCEPTED_AFTER: Duration = Duration::from_secs(10);
/// A call that has waited for this long was accepted, whatever ends it. No attempt to reach a broker takes as long,
/// with all its steps.
const SURELY_ACCEPTED_AFTER: Duration = Duration::from_secs(120);
/// How much of the time between two refusals counts at most, since nobody may have asked the broker in between.
const MAX_COUNTED: Duration = Duration::from_secs(10);

/// What a refusal means for the subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefusalStage {
    /// The first refusal since a success. It is logged at once.
    First,
    /// A further refusal.
    Again,
    /// The refusals have lasted for this long, and the subscription ends. `true` if a `First` was reported before.
    Over(Duration, bool),
}

/// The refusals of one consumer since its last success.
#[derive(Debug)]
pub(crate) struct BrokerRefusals {
    give_up_after: Duration,
    /// The time that counts so far.
    lasted: Duration,
    last_refusal: Option<Instant>,
    /// Since when the current call waits, however often its future was dropped and made anew.
    call_since: Option<Instant>,
    /// A refusal was reported, and no success since.
    refused: bool,
}

/// Whether the error says that the source is gone or forbidden.
pub(crate) fn is_refusal(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::Unauthenticated)
}

impl BrokerRefusals {
    pub(crate) fn new(give_up_after: Duration) -> Self {
        Self { give_up_after, lasted: Duration::ZERO, last_refusal: None, call_since: None, refused: false }
    }

    pub(crate) fn limit(&self) -> Duration {
        self.give_up_after
    }

    /// A call begins, or is made again in place of one that was dropped. While the consumer is refused, answers when
    /// [`still_waits`](Self::still_waits) is to be called if the call has not ended by then.
    pub(crate) fn begin_call(&mut self, now: Instant) -> Option<Instant> {
        let since = *self.call_since.get_or_insert(now);
        self.refused.then(|| since + ACCEPTED_AFTER)
    }

    /// The call has waited for so long that the consumer no longer counts as refused. True if it did before. The time
    /// of the refusals is kept until the call has ended.
    pub(crate) fn still_waits(&mut self) -> bool {
        std::mem::take(&mut self.refused)
    }

    /// A success: messages came, or a poll ended empty. True if the consumer was refused before.
    pub(crate) fn success(&mut self) -> bool {
        (self.lasted, self.last_refusal, self.call_since) = (Duration::ZERO, None, None);
        std::mem::take(&mut self.refused)
    }

    /// Ends the call, which counts as a success if it has waited for `accepted_after`.
    fn end_call(&mut self, now: Instant, accepted_after: Duration) {
        if self.call_since.take().is_some_and(|since| now >= since + accepted_after) {
            (self.lasted, self.last_refusal) = (Duration::ZERO, None);
        }
        if let Some(last) = self.last_refusal.take() {
            self.lasted += (now - last).min(MAX_COUNTED);
        }
    }

    /// The call failed with an error that is no refusal. It may never have reached the broker.
    pub(crate) fn record_other_error(&mut self, now: Instant) {
        self.end_call(now, SURELY_ACCEPTED_AFTER);
    }

    /// The call failed with a refusal.
    pub(crate) fn record_refusal(&mut self, now: Instant) -> RefusalStage {
        self.end_call(now, ACCEPTED_AFTER);
        self.last_refusal = Some(now);
        if self.lasted >= self.give_up_after {
            return RefusalStage::Over(self.lasted, std::mem::take(&mut self.refused));
        }
        match std::mem::replace(&mut self.refused, true) {
            true => RefusalStage::Again,
            false => RefusalStage::First,
        }
    }

    /// The pause before the next call: the backoff, cut so that the last call comes when the time is over.
    pub(crate) fn pause(&self, backoff: Duration) -> Duration {
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
        let mut r = BrokerRefusals::new(secs(30));
        assert_eq!(r.record_refusal(began), RefusalStage::First);
        for n in 1..=5 {
            assert_eq!(r.record_refusal(began + secs(5) * n), RefusalStage::Again);
        }
        assert_eq!(r.pause(secs(9)), secs(5));
        assert!(r.success() && !r.success());
        assert_eq!(r.record_refusal(began + secs(26)), RefusalStage::First);
        assert_eq!(r.record_refusal(began + secs(36)), RefusalStage::Again);
        assert_eq!(r.record_refusal(began + secs(46)), RefusalStage::Again);
        assert_eq!(r.record_refusal(began + secs(56)), RefusalStage::Over(secs(30), true));
    }

    #[test]
    fn an_outage_in_between_does_not_count_and_does_not_reset() {
        let began = Instant::now();
        let mut r = BrokerRefusals::new(secs(10));
        assert_eq!(r.record_refusal(began), RefusalStage::First);
        r.record_other_error(began + secs(6));
        r.record_other_error(began + secs(500));
        assert_eq!(r.record_refusal(began + secs(600)), RefusalStage::Again);
        assert_eq!(r.record_refusal(began + secs(604)), RefusalStage::Over(secs(10), true));
    }

    #[test]
    fn a_call_that_waited_was_let_in_and_time_in_which_nobody_asked_counts_little() {
        let began = Instant::now();
        let mut r = BrokerRefusals::new(secs(30));
        assert_eq!(r.begin_call(began), None);
        assert_eq!(r.record_refusal(began), RefusalStage::First);
        assert_eq!(r.begin_call(began + secs(1)), Some(began + secs(11)));
        assert_eq!(r.begin_call(began + secs(9)), Some(began + secs(11)), "the same call");
        assert_eq!(
            r.record_refusal(began + secs(3600)),
            RefusalStage::Again,
            "told before, and no success was told since"
        );
        assert_eq!(r.lasted, Duration::ZERO);
        r.begin_call(began + secs(7200));
        assert_eq!(r.record_refusal(began + secs(7200)), RefusalStage::Again);
        assert_eq!(r.lasted, MAX_COUNTED);
    }

    /// A call that hangs while the broker is away waits as well.
    #[test]
    fn a_wait_that_ends_with_an_outage_is_no_success_and_a_very_long_one_is() {
        let began = Instant::now();
        let mut r = BrokerRefusals::new(secs(60));
        assert_eq!(r.record_refusal(began), RefusalStage::First);
        assert_eq!(r.record_refusal(began + secs(8)), RefusalStage::Again);
        assert_eq!(r.begin_call(began + secs(9)), Some(began + secs(19)));
        assert!(r.still_waits() && !r.still_waits());
        assert_eq!(r.begin_call(began + secs(19)), None, "it is told once");
        r.record_other_error(began + secs(40));
        assert_eq!(r.lasted, secs(8) + MAX_COUNTED, "the outage started the time anew");
        assert_eq!(r.record_refusal(began + secs(41)), RefusalStage::First, "told again, since the end was told");
        r.begin_call(began + secs(42));
        r.record_other_error(began + secs(42) + SURELY_ACCEPTED_AFTER);
        assert_eq!(r.lasted, Duration::ZERO, "the consumer was let in for minutes");
    }

    #[test]
    fn none_is_at_once_and_the_longest_is_never() {
        let began = Instant::now();
        assert_eq!(
            BrokerRefusals::new(Duration::ZERO).record_refusal(began),
            RefusalStage::Over(Duration::ZERO, false)
        );
        let mut r = BrokerRefusals::new(Duration::MAX);
        assert_eq!(r.record_refusal(began), RefusalStage::First);
        assert!((1..100_000).all(|n| r.record_refusal(began + secs(n)) == RefusalStage::Again));
    }
}
