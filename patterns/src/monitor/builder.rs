//! The settings of a monitor.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use polybus_core::Bus;

use super::{
    age_gauge::AgeGauge,
    alert::Alert,
    rule::Rule,
    sink::{AlertSink, ClosureSink, SinkError},
};
use crate::store::{Store, StoreControl};

/// Watches sources, and tells its sinks what goes wrong. See the [module](super).
#[must_use = "call run"]
pub struct Monitor {
    pub(super) bus: Bus,
    pub(super) name: Option<String>,
    pub(super) every: Duration,
    pub(super) rules: Vec<Rule>,
    pub(super) remind_every: Option<Duration>,
    pub(super) unknown_after: u32,
    pub(super) drain_timeout: Duration,
    pub(super) gauges: Vec<AgeGauge>,
    pub(super) sinks: Vec<Arc<dyn AlertSink>>,
    pub(super) control: Option<Arc<dyn StoreControl>>,
}

impl Monitor {
    /// A monitor of this bus: a poll each 15 s, a reminder each hour, no rule, no sink. Without a sink it tells the
    /// log. No I/O before [`run`](Self::run).
    ///
    /// ```
    /// # use polybus_core::{Bus, Source};
    /// # use polybus_patterns::monitor::{Monitor, Rule};
    /// # fn example(bus: Bus) {
    /// let monitor = Monitor::new(&bus).rule(Rule::dead_letters(Source::queue("payments")));
    /// # }
    /// ```
    pub fn new(bus: &Bus) -> Self {
        Self {
            bus: bus.clone(),
            name: None,
            every: Duration::from_secs(15),
            rules: Vec::new(),
            remind_every: Some(Duration::from_secs(3600)),
            unknown_after: 5,
            drain_timeout: Duration::from_secs(10),
            gauges: Vec::new(),
            sinks: Vec::new(),
            control: None,
        }
    }

    /// The monitor's name, 1 to 63 of a-z, 0-9 and '-'. Monitors with one name and one database take turns
    /// ([`leader`](Self::leader)): those with other rules need another name, and a leader is refused without one.
    /// Default `default`.
    ///
    /// ```
    /// # use polybus_core::Bus;
    /// # fn example(bus: Bus) {
    /// let monitor = polybus_patterns::monitor::Monitor::new(&bus).named("shop");
    /// # }
    /// ```
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    pub(super) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or("default")
    }

    /// How often each source is polled, from 1 s to 1 day. Default 15 s. A poll may take four fifths of it, and at most
    /// 10 s. Where polls take long, the next one waits: no two of one source run beside each other.
    ///
    /// ```
    /// # use polybus_core::Bus;
    /// # use std::time::Duration;
    /// # fn example(bus: Bus) {
    /// let monitor = polybus_patterns::monitor::Monitor::new(&bus).every(Duration::from_secs(60));
    /// # }
    /// ```
    pub fn every(mut self, interval: Duration) -> Self {
        self.every = interval;
        self
    }

    /// Adds a rule.
    ///
    /// ```
    /// # use polybus_core::{Bus, Source};
    /// # use polybus_patterns::monitor::{Monitor, Rule};
    /// # fn example(bus: Bus) {
    /// let monitor = Monitor::new(&bus).rule(Rule::depth(Source::queue("payments")).above(10_000));
    /// # }
    /// ```
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// How often sinks are told that an alert still fires; `None` never. Default 1 h. Nobody is reminded of an alert
    /// whose value is unknown: the alert about that is.
    ///
    /// ```
    /// # use polybus_core::Bus;
    /// # use std::time::Duration;
    /// # fn example(bus: Bus) {
    /// let monitor = polybus_patterns::monitor::Monitor::new(&bus).remind_every(Duration::from_secs(4 * 3600));
    /// # }
    /// ```
    pub fn remind_every(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.remind_every = interval.into();
        self
    }

    /// After how many polls in a row without a value it is an alert that nothing is known, at least 2. Default 5.
    ///
    /// ```
    /// # use polybus_core::Bus;
    /// # fn example(bus: Bus) {
    /// let monitor = polybus_patterns::monitor::Monitor::new(&bus).unknown_after(10);
    /// # }
    /// ```
    pub fn unknown_after(mut self, polls: u32) -> Self {
        self.unknown_after = polls;
        self
    }

    /// Adds the gauge that the rules about the age of its source need.
    ///
    /// ```
    /// # use polybus_core::{Bus, Source};
    /// # use polybus_patterns::monitor::{AgeGauge, Monitor, Rule};
    /// # fn example(bus: Bus) {
    /// let gauge = AgeGauge::new(&bus, Source::queue("payments"));
    /// let monitor = Monitor::new(&bus).rule(Rule::age(Source::queue("payments")).above(300)).age_gauge(&gauge);
    /// # }
    /// ```
    pub fn age_gauge(mut self, gauge: &AgeGauge) -> Self {
        self.gauges.push(gauge.clone());
        self
    }

    /// Adds a sink. All sinks are told everything. No two may have one name.
    ///
    /// ```
    /// # use polybus_core::Bus;
    /// # use polybus_patterns::monitor::{Monitor, TracingSink};
    /// # fn example(bus: Bus) {
    /// let monitor = Monitor::new(&bus).sink(TracingSink::default());
    /// # }
    /// ```
    pub fn sink(mut self, sink: impl AlertSink) -> Self {
        self.sinks.push(Arc::new(sink));
        self
    }

    /// Adds a closure as a sink. `name` is for logs and metrics. The closure must not block the thread; what becomes of
    /// its errors and panics, and of one that does not end, is that of any [`AlertSink`]. It answers `Ok(())` when the
    /// alert has arrived, [`SinkError::again`] if it may later, and [`SinkError::refused`] if it never will.
    ///
    /// ```
    /// # use polybus_core::Bus;
    /// # use polybus_patterns::monitor::Monitor;
    /// # fn example(bus: Bus) {
    /// let monitor = Monitor::new(&bus).sink_fn("pager", async |alert| {
    ///     println!("{} is {}", alert.name, alert.state.as_str());
    ///     Ok(())
    /// });
    /// # }
    /// ```
    pub fn sink_fn<F, Fut>(self, name: impl Into<String>, send: F) -> Self
    where
        F: Fn(Alert) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), SinkError>> + Send + 'static,
    {
        self.sink(ClosureSink::new(name.into(), send))
    }

    /// Lets one process at a time poll, of all that have a monitor of this name and this database. Its lease is
    /// `monitor/` and the name. Another one takes over within 40 s of its death, and within 10 s of a shutdown.
    ///
    /// The one that takes over begins at Ok: what still is above its threshold fires once more, and what was resolved
    /// meanwhile is not told. While the database cannot be asked, every process polls, after 30 s.
    ///
    /// ```no_run
    /// # use polybus_core::Bus;
    /// # use polybus_patterns::{monitor::Monitor, store::Store};
    /// # fn example<S: Store>(bus: Bus, db: S) {
    /// let monitor = Monitor::new(&bus).named("shop").leader(&db);
    /// # }
    /// ```
    pub fn leader<S: Store>(mut self, store: &S) -> Self {
        self.control = Some(store.control());
        self
    }

    /// How long sinks may send what waits when the monitor ends. Default 10 s.
    ///
    /// ```
    /// # use polybus_core::Bus;
    /// # use std::time::Duration;
    /// # fn example(bus: Bus) {
    /// let monitor = polybus_patterns::monitor::Monitor::new(&bus).drain_timeout(Duration::from_secs(2));
    /// # }
    /// ```
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.drain_timeout = limit;
        self
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor")
            .field("name", &self.name())
            .field("every", &self.every)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}
