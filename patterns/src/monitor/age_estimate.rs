//! For how long the oldest message of a source has waited, by what is known.
//!
//! No broker tells. Two things say something: a message that was handed over at `t` with age `a` was published at
//! `t − a`, and those behind it were not published much before that; and a source that was empty at `e` holds nothing
//! that was published before `e`. The later of the two is the earliest that what waits now can have been published.
//! While nothing is handed over, the age grows with the clock from there. That is what shows that consumers have
//! stopped, whatever the reason.

use std::time::Duration;

/// A message that was handed over. Times are seconds since the monitor's start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct HandedOver {
    pub(super) at: f64,
    /// Its age then, in seconds.
    pub(super) age: f64,
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
    /// The age in seconds after a poll that found so many messages waiting (`None`: the broker does not tell), with the
    /// last message that was handed over. `None` is unknown.
    pub(super) fn after_poll(&mut self, depth: Option<u64>, last: Option<HandedOver>, at: Duration) -> Option<f64> {
        let now = at.as_secs_f64();
        let before = self.polled_at.replace(now);
        let lately = last.filter(|last| before.is_some_and(|before| last.at >= before)).map(|last| last.age);
        match depth {
            // Consumers may have taken all of it, and be late with what they took.
            Some(0) => {
                (self.empty_at, self.waiting_since) = (Some(now), None);
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
        estimate.after_poll(depth, last, Duration::from_secs(now))
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
