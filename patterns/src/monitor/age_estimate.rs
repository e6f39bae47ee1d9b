//! For how long the oldest message of a source has waited, by what is known.
//!
//! No broker tells. Two things say something: a message that was handed over at `t` with age `a` was published at
//! `t − a`, and those behind it were not published much before that; and a source that was empty at `e` holds nothing
//! that was published before `e`. The later of the two is the earliest that what waits now can have been published.
//! While nothing is handed over, the age grows with the clock from there. That is what shows that consumers have
//! stopped, whatever the reason.
//!
//! What handlers have under way counts too: where all of them hang and everything is fetched, nothing waits, and yet
//! nothing is done. A source whose consumers hold something is not empty, since what they hold may come back.

use std::time::Duration;

/// A message that was handed over. Times are seconds since the monitor's start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct HandedOver {
    pub(super) at: f64,
    /// Its age then, in seconds.
    pub(super) age: f64,
}

/// What the gauge of a source was told until a poll.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) last: Option<HandedOver>,
    /// The age of the oldest message that a handler has, in seconds.
    pub(super) under_way: Option<f64>,
}

/// What polls told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AgeEstimate {
    /// When a poll last found nothing waiting.
    empty_at: Option<f64>,
    /// Since when each poll has found something waiting.
    waiting_since: Option<f64>,
    polled_at: Option<f64>,
}

impl AgeEstimate {
    /// The age in seconds after a poll that found so many messages waiting and so many held by consumers (`None`: the
    /// broker does not tell), with what the gauge was told. `None` is unknown.
    pub(super) fn after_poll(
        &mut self,
        depth: Option<u64>,
        in_flight: Option<u64>,
        seen: Seen,
        at: Duration,
    ) -> Option<f64> {
        let waits = self.waits(depth, in_flight, seen.last, at);
        waits.into_iter().chain(seen.under_way).reduce(f64::max)
    }

    /// The same without what handlers have under way.
    fn waits(
        &mut self,
        depth: Option<u64>,
        in_flight: Option<u64>,
        last: Option<HandedOver>,
        at: Duration,
    ) -> Option<f64> {
        let now = at.as_secs_f64();
        let before = self.polled_at.replace(now);
        let lately = last.filter(|last| before.is_some_and(|before| last.at >= before)).map(|last| last.age);
        match depth {
            // Consumers may have taken all of it, and be late with what they took.
            Some(0) => {
                self.waiting_since = None;
                if in_flight.unwrap_or(0) == 0 {
                    self.empty_at = Some(now);
                }
                Some(lately.unwrap_or(0.0))
            }
            Some(_) => {
                let waiting_since = *self.waiting_since.get_or_insert(now);
                let published = last.map(|last| last.at - last.age);
                let earliest = published.into_iter().chain(self.empty_at).reduce(f64::max);
                // Where nothing else is known, what waits has waited since it was first seen, at least.
                Some((now - earliest.unwrap_or(waiting_since)).max(0.0))
            }
            // Only what was handed over lately says anything: the source may be empty since.
            None => lately,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(estimate: &mut AgeEstimate, now: u64, depth: Option<u64>, last: Option<(f64, f64)>) -> Option<f64> {
        let last = last.map(|(at, age)| HandedOver { at, age });
        estimate.after_poll(depth, Some(0), Seen { last, under_way: None }, Duration::from_secs(now))
    }

    #[test]
    fn what_handlers_have_under_way_counts_though_nothing_waits() {
        let mut estimate = AgeEstimate::default();
        let mut poll = |now, depth, in_flight, under_way| {
            estimate.after_poll(depth, in_flight, Seen { last: None, under_way }, Duration::from_secs(now))
        };
        assert_eq!(poll(0, Some(0), Some(3), Some(40.0)), Some(40.0));
        assert_eq!(poll(600, Some(0), Some(3), Some(640.0)), Some(640.0), "they hang");
        assert_eq!(poll(615, None, None, Some(655.0)), Some(655.0), "and no count is needed to see it");
        assert_eq!(poll(630, Some(0), Some(0), None), Some(0.0));
    }

    #[test]
    fn a_source_of_which_consumers_hold_something_is_not_empty() {
        for (in_flight, age) in [(Some(1), 60.0), (Some(0), 15.0), (None, 15.0)] {
            let mut estimate = AgeEstimate::default();
            let seen = Seen { last: Some(HandedOver { at: 15.0, age: 0.0 }), under_way: None };
            estimate.after_poll(Some(0), in_flight, seen, Duration::from_secs(60));
            // What was held came back, and waits.
            let now = estimate.after_poll(Some(1), Some(0), seen, Duration::from_secs(75));
            assert_eq!(now, Some(age), "{in_flight:?}");
        }
    }

    #[test]
    fn an_empty_source_is_as_old_as_what_was_handed_over_lately() {
        let mut estimate = AgeEstimate::default();
        assert_eq!(at(&mut estimate, 0, Some(0), None), Some(0.0));
        assert_eq!(at(&mut estimate, 15, Some(0), Some((14.0, 500.0))), Some(500.0), "from what consumers had taken");
        assert_eq!(at(&mut estimate, 30, Some(0), Some((14.0, 500.0))), Some(0.0), "nothing was handed over since");
        assert_eq!(at(&mut estimate, 45, Some(0), None), Some(0.0));
    }

    #[test]
    fn grows_with_the_clock_while_nothing_is_handed_over() {
        let mut estimate = AgeEstimate::default();
        let last = Some((10.0, 4.0)); // published at 6
        assert_eq!(at(&mut estimate, 15, Some(3), last), Some(9.0));
        assert_eq!(at(&mut estimate, 315, Some(3), last), Some(309.0));
    }

    #[test]
    fn a_message_that_comes_to_an_empty_source_is_not_as_old_as_the_last_one() {
        let mut estimate = AgeEstimate::default();
        let last = Some((10.0, 4.0));
        assert_eq!(at(&mut estimate, 3600, Some(0), last), Some(0.0));
        assert_eq!(at(&mut estimate, 3615, Some(1), last), Some(15.0));
    }

    #[test]
    fn without_any_hand_over_it_has_waited_since_it_was_seen() {
        let mut estimate = AgeEstimate::default();
        assert_eq!(at(&mut estimate, 100, Some(1), None), Some(0.0));
        assert_eq!(at(&mut estimate, 160, Some(1), None), Some(60.0));
    }

    #[test]
    fn without_a_depth_only_a_recent_hand_over_tells() {
        let mut estimate = AgeEstimate::default();
        assert_eq!(at(&mut estimate, 15, None, None), None);
        assert_eq!(at(&mut estimate, 30, None, Some((20.0, 7.0))), Some(7.0));
        assert_eq!(at(&mut estimate, 45, None, Some((20.0, 7.0))), None, "that was before the last poll");
    }
}
