//! The rules: what is measured of what, and where its threshold is.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use polybus_core::{Result, Source};

use super::{alert::AlertKind, hold::HoldTime, measured::MeasureFn, threshold::Threshold};
use crate::{Outbox, store::OutboxStore};

/// How far back growth and rising dead letters look by default.
pub const GROWTH_WINDOW: Duration = Duration::from_secs(300);

/// For how many polls a value must be above its threshold by default.
pub const HELD_POLLS: u32 = 3;

/// What a rule is about.
#[derive(Clone)]
pub(super) enum RuleTarget {
    Source(Source),
    Measure(String, Arc<MeasureFn>),
}

/// One thing that a monitor watches: a value, and the threshold above which an alert fires.
///
/// ```
/// use polybus_core::Source;
/// use polybus_patterns::monitor::Rule;
/// use std::time::Duration;
///
/// let backlog = Rule::depth(Source::queue("payments"))
///     .named("payments-backlog")
///     .above(10_000)
///     .clear_below(5_000)
///     .held_for(Duration::from_secs(60));
/// ```
#[derive(Clone)]
#[must_use = "give it to a Monitor"]
pub struct Rule {
    pub(super) kind: AlertKind,
    pub(super) target: RuleTarget,
    pub(super) name: Option<String>,
    pub(super) above: Option<f64>,
    pub(super) clear_below: Option<f64>,
    pub(super) held_for: HoldTime,
    pub(super) keep_firing_for: HoldTime,
    pub(super) window: Duration,
}

impl Rule {
    fn new(kind: AlertKind, target: RuleTarget, above: Option<f64>) -> Self {
        Self {
            kind,
            target,
            name: None,
            above,
            clear_below: None,
            held_for: HoldTime::Polls(HELD_POLLS),
            keep_firing_for: HoldTime::Polls(1),
            window: GROWTH_WINDOW,
        }
    }

    /// How many messages wait in a source to be handed out: [`SourceStats::ready`]. Those that consumers hold are not
    /// among them, nor those that wait for a retry.
    ///
    /// [`SourceStats::ready`]: polybus_core::topology::SourceStats::ready
    ///
    /// ```
    /// # use polybus_core::Source;
    /// # use polybus_patterns::monitor::Rule;
    /// let rule = Rule::depth(Source::queue("payments")).above(10_000);
    /// ```
    pub fn depth(source: impl Into<Source>) -> Self {
        Self::new(AlertKind::Depth, RuleTarget::Source(source.into()), None)
    }

    /// By how many messages **a minute** the depth of a source grows, on the average of the last five minutes
    /// ([`over`](Self::over)). There is no value before polls are that far apart.
    ///
    /// ```
    /// # use polybus_core::Source;
    /// # use polybus_patterns::monitor::Rule;
    /// let rule = Rule::growth(Source::queue("payments")).above(500); // messages a minute
    /// ```
    pub fn growth(source: impl Into<Source>) -> Self {
        Self::new(AlertKind::Growth, RuleTarget::Source(source.into()), None)
    }

    /// For how long the oldest message of a source that is not done has waited, in seconds: of those that wait, and of
    /// those that handlers of this process have under way, so that handlers that hang show. No broker tells that: the
    /// monitor needs an [`AgeGauge`](super::AgeGauge) of the source, which a worker of this process feeds
    /// ([`Monitor::age_gauge`](super::Monitor::age_gauge)).
    ///
    /// ```
    /// # use polybus_core::Source;
    /// # use polybus_patterns::monitor::Rule;
    /// # use std::time::Duration;
    /// let rule = Rule::age(Source::queue("payments")).above(Duration::from_secs(300));
    /// ```
    pub fn age(source: impl Into<Source>) -> Self {
        Self::new(AlertKind::Age, RuleTarget::Source(source.into()), None)
    }

    /// How many dead letters a source has. Fires above 0 unless told otherwise.
    ///
    /// ```
    /// # use polybus_core::Source;
    /// # use polybus_patterns::monitor::Rule;
    /// let rule = Rule::dead_letters(Source::queue("payments"));
    /// ```
    pub fn dead_letters(source: impl Into<Source>) -> Self {
        Self::new(AlertKind::DeadLetters, RuleTarget::Source(source.into()), Some(0.0))
    }

    /// How many dead letters came to a source in the last five minutes ([`over`](Self::over)), for sources that always
    /// have some. Fires above 0 unless told otherwise, at the first poll that sees it: a hold that is as long as the
    /// window is refused, as a burst would have left it by then. Letters that leave in between are not set off against those that
    /// come, except within one poll.
    ///
    /// ```
    /// # use polybus_core::Source;
    /// # use polybus_patterns::monitor::Rule;
    /// let rule = Rule::dead_letters_rising(Source::queue("payments")).above(10);
    /// ```
    pub fn dead_letters_rising(source: impl Into<Source>) -> Self {
        let rule = Self::new(AlertKind::DeadLettersRising, RuleTarget::Source(source.into()), Some(0.0));
        // A burst leaves the window again, maybe before three polls have seen it.
        rule.held_for(1)
    }

    /// For how long the oldest row of an outbox could have been published, in seconds: relays that do not run or do not
    /// come through. Rows that were scheduled for later do not count before a relay has made them ready. `name` tells outboxes apart, such as `shop`.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Outbox, monitor::Rule, store::OutboxStore};
    /// # use std::time::Duration;
    /// # fn example<S: OutboxStore>(outbox: &Outbox<S>) {
    /// let rule = Rule::outbox_age("shop", outbox).above(Duration::from_secs(60));
    /// # }
    /// ```
    pub fn outbox_age<S: OutboxStore>(name: &str, outbox: &Outbox<S>) -> Self {
        let outbox = outbox.clone();
        let age = move || {
            let outbox = outbox.clone();
            // An outbox without a row that could be published has no oldest one: nothing waits.
            async move { Ok(Some(outbox.stats().await?.oldest_age.unwrap_or_default().as_secs_f64())) }
        };
        let target = RuleTarget::Measure(format!("outbox:{name}"), measure_fn(age));
        Self::new(AlertKind::OutboxAge, target, None)
    }

    /// How many rows of an outbox are parked, since they can never be sent as they are. Fires above 0 unless told
    /// otherwise. `name` tells outboxes apart.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Outbox, monitor::Rule, store::OutboxStore};
    /// # fn example<S: OutboxStore>(outbox: &Outbox<S>) {
    /// let rule = Rule::outbox_parked("shop", outbox);
    /// # }
    /// ```
    pub fn outbox_parked<S: OutboxStore>(name: &str, outbox: &Outbox<S>) -> Self {
        let outbox = outbox.clone();
        let parked = move || {
            let outbox = outbox.clone();
            async move { Ok(Some(outbox.stats().await?.parked as f64)) }
        };
        let target = RuleTarget::Measure(format!("outbox:{name}"), measure_fn(parked));
        Self::new(AlertKind::OutboxParked, target, Some(0.0))
    }

    /// What the application measures. `Ok(None)`, an error, a panic and a call that takes too long are all unknown; so
    /// is a number that is not finite. The name is that of the alert too, unless it is [`named`](Self::named).
    ///
    /// ```
    /// # use polybus_patterns::monitor::Rule;
    /// let rule = Rule::measure("free-disk-used", async || Ok(Some(0.93))).above(0.9).clear_below(0.8);
    /// ```
    pub fn measure<F, Fut>(name: impl Into<String>, measure: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<f64>>> + Send + 'static,
    {
        Self::new(AlertKind::Measure, RuleTarget::Measure(name.into(), measure_fn(measure)), None)
    }

    /// The alert's name. Default: kind and source, such as `depth queue:payments`. It goes to all sinks and into labels
    /// of metrics, and two rules of a monitor cannot share one.
    ///
    /// ```
    /// # use polybus_core::Source;
    /// # use polybus_patterns::monitor::Rule;
    /// let rule = Rule::depth(Source::queue("payments")).named("payments-backlog").above(10_000);
    /// ```
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Above this the alert pends, and then fires. A duration counts in seconds. Less than 0 is for measurements.
    ///
    /// ```
    /// # use polybus_core::Source;
    /// # use polybus_patterns::monitor::Rule;
    /// let rule = Rule::depth(Source::queue("payments")).above(10_000);
    /// ```
    pub fn above(mut self, threshold: impl Into<Threshold>) -> Self {
        self.above = Some(threshold.into().0);
        self
    }

    /// At this or below the alert resolves. Default: four fifths of [`above`](Self::above). Between the two an alert
    /// stays what it is, so that noise around a threshold makes one.
    ///
    /// ```
    /// # use polybus_core::Source;
    /// # use polybus_patterns::monitor::Rule;
    /// let rule = Rule::depth(Source::queue("payments")).above(10_000).clear_below(5_000);
    /// ```
    pub fn clear_below(mut self, threshold: impl Into<Threshold>) -> Self {
        self.clear_below = Some(threshold.into().0);
        self
    }

    /// How long the value must stay above before the alert fires: a number of polls, or a duration. Default 3 polls; of
    /// rising dead letters, 1. Polls at which it was unknown, or between [`clear_below`](Self::clear_below) and
    /// [`above`](Self::above), do not count, nor does the time before and after them; and they do not begin the hold
    /// anew.
    ///
    /// ```
    /// # use polybus_core::Source;
    /// # use polybus_patterns::monitor::Rule;
    /// # use std::time::Duration;
    /// let soon = Rule::depth(Source::queue("payments")).above(10_000).held_for(1); // the first poll fires it
    /// let later = Rule::depth(Source::queue("orders")).above(10_000).held_for(Duration::from_secs(300));
    /// ```
    pub fn held_for(mut self, hold: impl Into<HoldTime>) -> Self {
        self.held_for = hold.into();
        self
    }

    /// How long the value must stay at [`clear_below`](Self::clear_below) or lower before the alert resolves: a number
    /// of polls, or a duration. Default 1 poll.
    ///
    /// ```
    /// # use polybus_core::Source;
    /// # use polybus_patterns::monitor::Rule;
    /// let rule = Rule::depth(Source::queue("payments")).above(10_000).keep_firing_for(4);
    /// ```
    pub fn keep_firing_for(mut self, hold: impl Into<HoldTime>) -> Self {
        self.keep_firing_for = hold.into();
        self
    }

    /// How far back growth and rising dead letters look, at most a day. Default [`GROWTH_WINDOW`]. Other rules do not use
    /// it.
    ///
    /// ```
    /// # use polybus_core::Source;
    /// # use polybus_patterns::monitor::Rule;
    /// # use std::time::Duration;
    /// let rule = Rule::growth(Source::queue("payments")).over(Duration::from_secs(900)).above(100);
    /// ```
    pub fn over(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// The alert's name.
    pub(super) fn name(&self) -> String {
        let default = || match &self.target {
            RuleTarget::Measure(name, _) if self.kind == AlertKind::Measure => name.clone(),
            target => format!("{} {target}", self.kind.as_str()),
        };
        self.name.clone().unwrap_or_else(default)
    }
}

fn measure_fn<F, Fut>(measure: F) -> Arc<MeasureFn>
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Option<f64>>> + Send + 'static,
{
    Arc::new(move || Box::pin(measure()))
}

impl fmt::Display for RuleTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(source) => write!(f, "{source}"),
            Self::Measure(name, _) => f.write_str(name),
        }
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule")
            .field("name", &self.name())
            .field("kind", &self.kind)
            .field("above", &self.above)
            .field("clear_below", &self.clear_below)
            .field("held_for", &self.held_for)
            .finish_non_exhaustive()
    }
}
