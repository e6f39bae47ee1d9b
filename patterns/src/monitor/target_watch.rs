//! All rules about one source: what each poll of it makes of their alerts.

use std::time::Duration;

use polybus_core::topology::SourceStats;

use super::{
    age_estimate::{AgeEstimate, Seen},
    alert::AlertKind,
    alert_state::{AlertChange, AlertLimits, AlertStage},
    hold::HoldTime,
    measured::{NOT_TOLD, Polled},
    rule::{Rule, RuleTarget},
    windows::{GrowthWindow, RiseWindow},
};
use crate::telemetry;

/// After how many polls in a row with a value the alert that nothing is known resolves. A broker that comes and goes
/// makes one alert.
pub const KNOWN_POLLS: u32 = 3;

/// What sinks are to be told, without the wall time.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct AlertTold {
    pub(super) name: String,
    pub(super) kind: AlertKind,
    pub(super) change: AlertChange,
    pub(super) value: Option<f64>,
    pub(super) threshold: Option<f64>,
    pub(super) cause: Option<&'static str>,
}

/// The name of the alert that nothing is known of this rule or source.
pub(super) fn unknown_name(of: &str) -> String {
    format!("unknown {of}")
}

/// One alert and where it is. Its gauge is 0 when this goes: whoever polls next has a state of its own.
struct AlertWatch {
    name: String,
    kind: AlertKind,
    limits: AlertLimits,
    stage: AlertStage,
}

impl AlertWatch {
    fn new(name: String, kind: AlertKind, limits: AlertLimits) -> Self {
        telemetry::alert_firing(&name, false);
        Self { name, kind, limits, stage: AlertStage::Ok }
    }

    /// The alert that nothing is known: its value is 1 where a poll brought none.
    fn unknown(of: &str, polls: u32, remind_every: Option<Duration>) -> Self {
        let (held_for, keep_firing_for) = (HoldTime::Polls(polls), HoldTime::Polls(KNOWN_POLLS));
        let limits = AlertLimits { above: 0.5, clear_below: 0.5, held_for, keep_firing_for, remind_every };
        Self::new(unknown_name(of), AlertKind::Unknown, limits)
    }

    fn after_poll(&mut self, value: Option<f64>, at: Duration) -> Option<AlertTold> {
        let (stage, change) = self.stage.after_poll(&self.limits, value, at);
        self.stage = stage;
        let change = change?;
        telemetry::alert_firing(&self.name, stage.is_firing());
        let threshold = Some(self.limits.above);
        Some(AlertTold { name: self.name.clone(), kind: self.kind, change, value, threshold, cause: None })
    }

    fn after_known(&mut self, cause: Option<&'static str>, at: Duration) -> Option<AlertTold> {
        let is_unknown = if cause.is_some() { 1.0 } else { 0.0 };
        Some(AlertTold { value: None, threshold: None, cause, ..self.after_poll(Some(is_unknown), at)? })
    }
}

impl Drop for AlertWatch {
    fn drop(&mut self) {
        telemetry::alert_firing(&self.name, false);
    }
}

/// A rule, and what earlier polls told of its value.
struct RuleWatch {
    rule: Rule,
    alert: AlertWatch,
    /// That the source's poll succeeds, and does not tell this value.
    unknown: AlertWatch,
    growth: GrowthWindow,
    rise: RiseWindow,
    age: AgeEstimate,
}

/// The value of a rule at a poll.
enum RuleValue {
    Known(f64),
    /// It takes more polls to tell.
    NotYet,
    Unknown,
}

impl RuleWatch {
    fn value(&mut self, stats: &SourceStats, seen: Seen, at: Duration) -> RuleValue {
        let window = self.rule.window;
        let known = |value: Option<f64>| value.map_or(RuleValue::Unknown, RuleValue::Known);
        let over_time = |value: Option<f64>| value.map_or(RuleValue::NotYet, RuleValue::Known);
        let count = |count: Option<u64>| count.map(|count| count as f64);
        match self.rule.kind {
            AlertKind::Growth => match count(stats.ready) {
                Some(depth) => over_time(self.growth.per_minute(window, at, depth)),
                None => RuleValue::Unknown,
            },
            AlertKind::DeadLettersRising => match count(stats.dead_lettered) {
                Some(letters) => over_time(self.rise.rise(window, at, letters)),
                None => RuleValue::Unknown,
            },
            AlertKind::Age => known(self.age.after_poll(stats.ready, stats.in_flight, seen, at)),
            AlertKind::DeadLetters => known(count(stats.dead_lettered)),
            _ => known(count(stats.ready)),
        }
    }

    fn after_poll(&mut self, polled: &Polled, seen: Seen, at: Duration, told: &mut Vec<AlertTold>) {
        let value = match polled {
            Polled::Stats(stats) => self.value(stats, seen, at),
            Polled::Value(value) => RuleValue::Known(*value),
            Polled::Unknown(_) | Polled::Closed => {
                telemetry::monitor_value(&self.alert.name, None);
                told.extend(self.alert.after_poll(None, at));
                return;
            }
        };
        let (value, cause) = match value {
            RuleValue::Known(value) => (Some(value), None),
            RuleValue::NotYet => (None, None),
            RuleValue::Unknown => (None, Some(NOT_TOLD)),
        };
        telemetry::monitor_value(&self.alert.name, value);
        told.extend(self.unknown.after_known(cause, at));
        if cause.is_some() && self.unknown.stage.is_firing() {
            self.alert.stage = self.alert.stage.without_holds();
        }
        told.extend(self.alert.after_poll(value, at));
    }
}

impl Drop for RuleWatch {
    fn drop(&mut self) {
        telemetry::monitor_value(&self.alert.name, None);
    }
}

/// The rules about one target.
pub(super) struct TargetWatch {
    pub(super) target: RuleTarget,
    /// That polls of it fail.
    unknown: AlertWatch,
    rules: Vec<RuleWatch>,
}

impl TargetWatch {
    /// The rules with their limits, which are about the same target. There is at least one.
    pub(super) fn new(
        target: RuleTarget,
        rules: Vec<(Rule, AlertLimits)>,
        unknown_after: u32,
        remind_every: Option<Duration>,
    ) -> Self {
        let unknown = |of: &str| AlertWatch::unknown(of, unknown_after, remind_every);
        let rule_watch = |(rule, limits): (Rule, AlertLimits)| RuleWatch {
            alert: AlertWatch::new(rule.name(), rule.kind, limits),
            unknown: unknown(&rule.name()),
            rule,
            growth: GrowthWindow::default(),
            rise: RiseWindow::default(),
            age: AgeEstimate::default(),
        };
        let rules: Vec<RuleWatch> = rules.into_iter().map(rule_watch).collect();
        let of = match (&target, rules.first()) {
            // Several measurements may be of one thing, such as an outbox.
            (RuleTarget::Measure(..), Some(rule)) => rule.alert.name.clone(),
            _ => target.to_string(),
        };
        Self { unknown: unknown(&of), target, rules }
    }

    /// What sinks are to be told after a poll.
    pub(super) fn after_poll(&mut self, polled: &Polled, seen: Seen, at: Duration) -> Vec<AlertTold> {
        let cause = if let Polled::Unknown(cause) = polled { Some(*cause) } else { None };
        if let RuleTarget::Source(source) = &self.target {
            let depth = if let Polled::Stats(stats) = polled { stats.ready } else { None };
            telemetry::monitor_depth(source, depth);
        }
        if cause.is_some() {
            telemetry::monitor_poll_failed(&self.target);
        }
        let mut told: Vec<AlertTold> = self.unknown.after_known(cause, at).into_iter().collect();
        for rule in &mut self.rules {
            rule.after_poll(polled, seen, at, &mut told);
            if cause.is_some() && self.unknown.stage.is_firing() {
                rule.alert.stage = rule.alert.stage.without_holds();
            }
        }
        told
    }
}

impl Drop for TargetWatch {
    fn drop(&mut self) {
        if let RuleTarget::Source(source) = &self.target {
            telemetry::monitor_depth(source, None);
        }
    }
}
