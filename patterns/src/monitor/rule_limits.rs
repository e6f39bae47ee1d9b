//! The thresholds and holds of a rule, and what is refused of them.

use std::time::Duration;

use polybus_core::{Error, Result};

use super::{
    alert::AlertKind,
    alert_state::AlertLimits,
    hold::HoldTime,
    rule::{Rule, RuleTarget},
};

/// How far back a rule can look at most.
const LONGEST_WINDOW: Duration = Duration::from_secs(86_400);

impl Rule {
    /// The limits of this rule, which is polled so often, or what is wrong with them.
    pub(super) fn limits(&self, every: Duration, remind_every: Option<Duration>) -> Result<AlertLimits> {
        let wrong = |text: String| {
            Err(Error::config(format!("the rule {:?}: {text}", self.name())).with_context("rule", self.name()))
        };
        let Some(above) = self.above else {
            return wrong("no threshold: set above".into());
        };
        let clear_below = self.clear_below.unwrap_or(if above > 0.0 { above * 0.8 } else { above });
        if !above.is_finite() || !clear_below.is_finite() {
            return wrong("a threshold must be a finite number".into());
        }
        if clear_below > above {
            return wrong(format!("clear_below is {clear_below}, and must not be higher than above, which is {above}"));
        }
        if [self.held_for, self.keep_firing_for].contains(&HoldTime::Polls(0)) {
            return wrong("a hold of 0 polls: 1 is the shortest, which is the poll itself".into());
        }
        let is_measure = self.kind == AlertKind::Measure;
        if above < 0.0 && !is_measure {
            return wrong(format!("above is {above}, and no value of this kind means anything below 0"));
        }
        if clear_below < 0.0 && !is_measure && self.kind != AlertKind::Growth {
            return wrong(format!("clear_below is {clear_below}, which no value of this kind ever comes down to"));
        }
        if self.window.is_zero() || self.window > LONGEST_WINDOW {
            return wrong("over must be longer than nothing, and at most 1 day".into());
        }
        if self.kind == AlertKind::DeadLettersRising && !self.is_hold_within_window(every) {
            let window = self.window;
            return wrong(format!(
                "with a poll each {every:?}, what comes at once has left the window of {window:?} before it was held for \
                 long enough: make held_for shorter, or over longer"
            ));
        }
        let name = self.name();
        if name.is_empty() || name.len() > 200 || name.chars().any(char::is_control) {
            return wrong("its name must have 1 to 200 bytes, and no control characters".into());
        }
        match &self.target {
            RuleTarget::Source(source) if source.is_dead_letters() => {
                let text =
                    format!("{source} is counted by its live source: use the rule dead_letters of {}", source.live());
                return wrong(text);
            }
            _ => {}
        }
        let (held_for, keep_firing_for) = (self.held_for, self.keep_firing_for);
        Ok(AlertLimits { above, clear_below, held_for, keep_firing_for, remind_every })
    }
    /// Whether what rises once is still in the window at the poll that ends the hold.
    fn is_hold_within_window(&self, every: Duration) -> bool {
        let polls = match self.held_for {
            HoldTime::Polls(polls) => u128::from(polls) - 1,
            HoldTime::Time(time) => time.as_nanos().div_ceil(every.as_nanos().max(1)),
        };
        every.as_nanos().saturating_mul(polls) < self.window.as_nanos()
    }
}
