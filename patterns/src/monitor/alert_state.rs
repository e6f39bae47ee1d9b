//! Where the alert of a rule is, and what a poll makes of it. There is no clock in here: the time comes with the poll.
//!
//! ```text
//!            above `above`                 held for `held_for`
//!   Ok ───────────────────────▶ Pending ────────────────────────▶ Firing ──┐ every `remind_every`: told again
//!    ▲  at or below `clear_below`  │                                │  ▲────┘
//!    ├─────────────────────────────┘                                │
//!    └── Resolved (told once) ◀─────────────────────────────────────┘ at or below `clear_below` for `keep_firing_for`
//! ```
//!
//! - Between `clear_below` and `above` nothing changes: what pends goes on pending, what fires goes on firing. So noise
//!   around the threshold makes one alert.
//! - A poll without a value changes nothing. It neither counts for `held_for` nor ends it, and it neither resolves an
//!   alert nor reminds of it.
//! - Of a hold by time, only the time between two polls in a row counts that both have a value beyond the line. What was
//!   in between, while nothing was known or the value was between the lines, nobody can tell.
//! - Resolved lasts for no time: it is what is told on the way from Firing to Ok.
//!
//! That a value is unknown has an alert of its own, which goes through the same states: its value is 1 where a poll
//! brought none.

use std::time::Duration;

use super::hold::{Held, HoldTime};

/// When an alert fires, resolves and is told again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct AlertLimits {
    /// It pends and fires above this.
    pub(super) above: f64,
    /// It resolves at this or below.
    pub(super) clear_below: f64,
    pub(super) held_for: HoldTime,
    pub(super) keep_firing_for: HoldTime,
    pub(super) remind_every: Option<Duration>,
}

/// Where an alert is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum AlertStage {
    /// Nothing is wrong.
    #[default]
    Ok,
    /// The value is above its threshold, and not yet for long enough. Nobody was told.
    Pending(Held),
    /// It was told.
    Firing {
        /// When the value first came above its threshold.
        since: Duration,
        /// When it was told last.
        told: Duration,
        /// The value is low enough to resolve it, and not yet for long enough.
        clearing: Option<Held>,
    },
}

/// What sinks are to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AlertChange {
    Fired { since: Duration },
    Reminded { since: Duration },
    Resolved { since: Duration },
}

impl AlertStage {
    /// The stage after a poll at `at`, and what is to be told of it. `value` is `None` where it is unknown.
    pub(super) fn after_poll(
        self,
        limits: &AlertLimits,
        value: Option<f64>,
        at: Duration,
    ) -> (Self, Option<AlertChange>) {
        let Some(value) = value else { return (self.interrupted(), None) };
        let is_above = value > limits.above;
        let is_clear = value <= limits.clear_below;
        match self {
            Self::Ok | Self::Pending(_) if is_above => {
                let held = Held::and(self.pending(), at);
                if !held.is_enough(limits.held_for) {
                    return (Self::Pending(held), None);
                }
                let since = held.since;
                (Self::Firing { since, told: at, clearing: None }, Some(AlertChange::Fired { since }))
            }
            Self::Ok | Self::Pending(_) if is_clear => (Self::Ok, None),
            Self::Ok | Self::Pending(_) => (self.interrupted(), None),
            Self::Firing { since, told, clearing } => {
                let clearing = is_clear.then(|| Held::and(clearing, at));
                if clearing.is_some_and(|held| held.is_enough(limits.keep_firing_for)) {
                    return (Self::Ok, Some(AlertChange::Resolved { since }));
                }
                let due = limits.remind_every.is_some_and(|every| at.saturating_sub(told) >= every);
                let told = if due { at } else { told };
                (Self::Firing { since, told, clearing }, due.then_some(AlertChange::Reminded { since }))
            }
        }
    }

    /// Forgets what pends, and how far an alert is on its way to resolve: the value has been unknown for so long that
    /// what was before says nothing.
    pub(super) fn without_holds(self) -> Self {
        match self {
            Self::Ok | Self::Pending(_) => Self::Ok,
            Self::Firing { since, told, .. } => Self::Firing { since, told, clearing: None },
        }
    }

    fn interrupted(self) -> Self {
        match self {
            Self::Ok => Self::Ok,
            Self::Pending(held) => Self::Pending(held.interrupted()),
            Self::Firing { since, told, clearing } => {
                Self::Firing { since, told, clearing: clearing.map(Held::interrupted) }
            }
        }
    }

    pub(super) fn is_firing(&self) -> bool {
        matches!(self, Self::Firing { .. })
    }

    fn pending(self) -> Option<Held> {
        if let Self::Pending(held) = self { Some(held) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVERY: u64 = 15;

    fn limits(polls: u32) -> AlertLimits {
        AlertLimits {
            above: 100.0,
            clear_below: 50.0,
            held_for: HoldTime::Polls(polls),
            keep_firing_for: HoldTime::Polls(1),
            remind_every: None,
        }
    }

    /// What was told of these values, one for each poll.
    fn told(limits: &AlertLimits, values: &[Option<f64>]) -> Vec<(usize, AlertChange)> {
        let mut stage = AlertStage::Ok;
        let mut told = Vec::new();
        for (i, value) in values.iter().enumerate() {
            let (next, change) = stage.after_poll(limits, *value, Duration::from_secs(i as u64 * EVERY));
            stage = next;
            told.extend(change.map(|change| (i, change)));
        }
        told
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn fires_at_the_third_poll_above_and_resolves_at_the_clear_line() {
        let values = [100.0, 101.0, 102.0, 103.0, 60.0, 50.0, 60.0].map(Some);
        let wanted =
            vec![(3, AlertChange::Fired { since: secs(EVERY) }), (5, AlertChange::Resolved { since: secs(EVERY) })];
        assert_eq!(told(&limits(3), &values), wanted);
    }

    #[test]
    fn a_value_that_clears_begins_the_hold_anew() {
        let values = [200.0, 200.0, 50.0, 200.0, 200.0].map(Some);
        assert_eq!(told(&limits(3), &values), vec![]);
    }

    #[test]
    fn a_hold_by_time_ends_with_the_first_poll_at_its_end() {
        let limits = AlertLimits { held_for: HoldTime::Time(secs(40)), ..limits(1) };
        let values = [200.0; 5].map(Some);
        assert_eq!(told(&limits, &values), vec![(3, AlertChange::Fired { since: secs(0) })]);
    }

    #[test]
    fn two_spikes_far_apart_are_no_hold_and_neither_is_time_that_nobody_saw() {
        let limits =
            AlertLimits { held_for: HoldTime::Time(secs(30)), keep_firing_for: HoldTime::Time(secs(30)), ..limits(1) };
        let (high, between, low) = (Some(200.0), Some(60.0), Some(0.0));
        for gap in [between, None] {
            let mut values = vec![high];
            values.extend([gap; 240]);
            values.push(high);
            assert_eq!(told(&limits, &values), vec![], "{gap:?}");
            // Two polls in a row more, and it has been high for 30 s.
            values.extend([high, high]);
            assert_eq!(told(&limits, &values), vec![(243, AlertChange::Fired { since: secs(0) })], "{gap:?}");
        }
        let mut values = vec![high, high, high, low];
        values.extend([None; 240]);
        values.push(low);
        assert_eq!(told(&limits, &values).len(), 1, "an outage does not resolve");
        values.extend([low, low]);
        assert_eq!(told(&limits, &values).len(), 2);
    }

    #[test]
    fn what_is_unknown_for_long_begins_each_hold_anew() {
        let limits = AlertLimits { keep_firing_for: HoldTime::Polls(2), ..limits(1) };
        let stage = AlertStage::Ok.after_poll(&limits, Some(200.0), secs(0)).0;
        let stage = stage.after_poll(&limits, Some(0.0), secs(15)).0.without_holds();
        let (stage, change) = stage.after_poll(&limits, Some(0.0), secs(90));
        assert_eq!(change, None);
        assert!(stage.after_poll(&limits, Some(0.0), secs(105)).1.is_some());
    }

    #[test]
    fn keeps_firing_for_as_long_as_it_is_told_to() {
        let limits = AlertLimits { keep_firing_for: HoldTime::Polls(2), ..limits(1) };
        let values = [200.0, 0.0, 60.0, 0.0, 0.0].map(Some);
        let since = secs(0);
        assert_eq!(
            told(&limits, &values),
            vec![(0, AlertChange::Fired { since }), (4, AlertChange::Resolved { since })]
        );
    }

    #[test]
    fn reminds_after_each_interval_and_not_while_the_value_is_unknown() {
        let limits = AlertLimits { remind_every: Some(secs(2 * EVERY)), ..limits(1) };
        let high = Some(200.0);
        let values = [high, high, high, None, None, None, high, high];
        let since = secs(0);
        let wanted = [0, 2, 6].map(|i| match i {
            0 => (i, AlertChange::Fired { since }),
            _ => (i, AlertChange::Reminded { since }),
        });
        assert_eq!(told(&limits, &values), wanted);
    }

    #[test]
    fn at_zero_the_first_one_fires_and_none_resolves() {
        let limits = AlertLimits { above: 0.0, clear_below: 0.0, ..limits(1) };
        let values = [0.0, 1.0, 0.0].map(Some);
        let since = secs(EVERY);
        assert_eq!(
            told(&limits, &values),
            vec![(1, AlertChange::Fired { since }), (2, AlertChange::Resolved { since })]
        );
    }

    /// Holds of either kind, up to about six polls.
    fn holds() -> impl Strategy<Value = HoldTime> {
        prop_oneof![(1..6u32).prop_map(HoldTime::Polls), (0..6 * EVERY).prop_map(|s| HoldTime::Time(secs(s)))]
    }

    /// Whether these values are above 100 for so long, by the definition.
    fn is_ever_enough(values: &[Option<f64>], hold: HoldTime) -> bool {
        let above: Vec<bool> = values.iter().map(|value| value.is_some_and(|value| value > 100.0)).collect();
        match hold {
            HoldTime::Polls(polls) => above.iter().filter(|above| **above).count() >= polls as usize,
            HoldTime::Time(time) => {
                let pairs = above.windows(2).filter(|pair| pair[0] && pair[1]).count();
                above.contains(&true) && secs(pairs as u64 * EVERY) >= time
            }
        }
    }

    proptest! {
        /// Noise that never comes down to the clear line fires once, if it is ever above often enough, and never again.
        #[test]
        fn noise_around_the_threshold_fires_one_alert(
            values in prop::collection::vec(prop_oneof![9 => (51.0..200.0f64).prop_map(Some), 1 => Just(None)], 0..300),
            hold in holds(),
        ) {
            let limits = AlertLimits { held_for: hold, ..limits(1) };
            let wanted = usize::from(is_ever_enough(&values, hold));
            prop_assert_eq!(told(&limits, &values).len(), wanted);
        }

        /// Fired and Resolved take turns; a reminder comes only between them.
        #[test]
        fn nothing_resolves_that_did_not_fire(
            values in prop::collection::vec(prop_oneof![4 => (0.0..200.0f64).prop_map(Some), 1 => Just(None)], 0..300),
            held_for in holds(),
            keep_firing_for in holds(),
            remind in prop::option::of(1..10u64),
        ) {
            let remind_every = remind.map(|n| secs(n * EVERY));
            let limits = AlertLimits { remind_every, held_for, keep_firing_for, ..limits(1) };
            let mut firing = None;
            for (i, change) in told(&limits, &values) {
                prop_assert!(values[i].is_some(), "an unknown value tells nothing");
                match change {
                    AlertChange::Fired { since } => {
                        prop_assert!(firing.is_none());
                        prop_assert!(values[i] > Some(100.0));
                        firing = Some(since);
                    }
                    AlertChange::Reminded { since } => prop_assert_eq!(firing, Some(since)),
                    AlertChange::Resolved { since } => {
                        prop_assert_eq!(firing.take(), Some(since));
                        prop_assert!(values[i] <= Some(50.0));
                    }
                }
            }
        }

        /// Unknown values, wherever they come, change nothing of what the others do.
        #[test]
        fn unknown_values_neither_fire_nor_resolve(
            values in prop::collection::vec(prop_oneof![(0.0..200.0f64).prop_map(Some), Just(None)], 0..200),
        ) {
            let known: Vec<_> = values.iter().copied().filter(Option::is_some).collect();
            let kinds = |told: Vec<(usize, AlertChange)>| -> Vec<bool> {
                told.into_iter().map(|(_, change)| matches!(change, AlertChange::Fired { .. })).collect()
            };
            prop_assert_eq!(kinds(told(&limits(3), &values)), kinds(told(&limits(3), &known)));
        }

        /// The alert about unknown values: five failed polls in a row, and not one fewer.
        #[test]
        fn unknown_needs_five_polls_in_a_row(failed in prop::collection::vec(any::<bool>(), 0..100)) {
            let unknown = AlertLimits { above: 0.0, clear_below: 0.0, ..limits(5) };
            let values: Vec<_> = failed.iter().map(|failed| Some(f64::from(u8::from(*failed)))).collect();
            let fired = told(&unknown, &values).into_iter().filter(|(_, c)| matches!(c, AlertChange::Fired { .. }));
            let runs = failed.split(|failed| !failed).filter(|run| run.len() >= 5);
            prop_assert_eq!(fired.count(), runs.count());
        }
    }
}
