//! The run of a monitor from start to end, and what is refused before it.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use polybus_core::{Error, ErrorKind, Result};
use tokio::{task::JoinSet, time::timeout};

use super::{
    alert::AlertKind,
    alert_state::AlertLimits,
    builder::Monitor,
    leader::Leadership,
    poller::{PollCounts, PollPlaces, Poller},
    rule::{Rule, RuleTarget},
    sink::TracingSink,
    sink_queue::{SinkCounts, SinkQueue},
    target_watch::{TargetWatch, unknown_name},
};

/// How long a poll may take at most.
const LONGEST_POLL: Duration = Duration::from_secs(10);

/// How far polls may be apart.
const LONGEST_INTERVAL: Duration = Duration::from_secs(86_400);

/// What a monitor did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MonitorReport {
    /// Polls of single sources and measurements.
    pub polls: u64,
    /// Those of them that brought nothing.
    pub failed: u64,
    /// Alerts that fired. Reminders are not counted.
    pub fired: u64,
    /// Alerts that were resolved.
    pub resolved: u64,
    /// Alerts and reminders that were sent, sink by sink.
    pub sent: u64,
    /// The same that were dropped: a queue was full, all tries failed, or the drain timeout ended.
    pub dropped: u64,
}

impl Monitor {
    /// Polls until `shutdown` is ready, lets the sinks send what waits, and reports.
    ///
    /// # Errors
    /// Before the first poll: `ConfigInvalid` for rules, sinks and settings that cannot work, and for tables of the
    /// leader's database that are missing; `InvalidArgument` for a leader without a name; `Unsupported` for rules about
    /// sources of a broker that tells no counts. Later: `Closed` if the bus was closed. A source that does not exist is
    /// no error but an alert, as it may be made later. Each error is logged too: a monitor that has ended tells nobody
    /// anything, and its future is often spawned and forgotten.
    ///
    /// # Cancel safety
    /// If the future is dropped, polls end, and alerts that wait are lost. Another process polls within 40 s.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use std::time::Duration;
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # use polybus_patterns::monitor::{Monitor, Rule};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// bus.publish(Address::queue("payments"), Envelope::new("payment.made", "{}")).await?;
    /// let monitor = Monitor::new(&bus).rule(Rule::depth(Source::queue("payments")).above(0));
    /// let report = monitor.run(tokio::time::sleep(Duration::from_secs(60))).await?;
    /// assert_eq!((report.fired, report.resolved), (1, 0));
    /// # Ok(()) }
    /// ```
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<MonitorReport> {
        let name = self.name().to_owned();
        let ended = self.run_until(shutdown).await;
        ended.inspect_err(|error| {
            tracing::error!(target: "polybus", monitor = name, %error, "the monitor has ended, and nothing is watched");
        })
    }

    async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<MonitorReport> {
        let rules = self.checked_rules()?;
        let sink_counts = Arc::<SinkCounts>::default();
        let leadership = self.control.clone().map(|control| Leadership::new(control, self.name()));
        let mut sinks = self.sinks;
        if sinks.is_empty() {
            sinks.push(Arc::new(TracingSink));
        }
        sinks.iter().try_for_each(|sink| sink.check())?;
        let sinks: Vec<_> = sinks.into_iter().map(|sink| SinkQueue::new(sink, sink_counts.clone())).collect();
        let mut sink_names = BTreeSet::new();
        if let Some(twice) = sinks.iter().map(|sink| sink.name()).find(|name| !sink_names.insert(name.clone())) {
            let text = format!("two sinks are named {twice:?}, which logs and metrics cannot tell apart: name one");
            return Err(Error::config(text));
        }
        let mut sending = JoinSet::new();
        for sink in &sinks {
            sending.spawn(sink.clone().run());
        }
        let poller = Arc::new(Poller {
            bus: self.bus,
            every: self.every,
            limit: (self.every * 4 / 5).min(LONGEST_POLL),
            gauges: self.gauges,
            sinks: sinks.clone(),
            places: PollPlaces::default(),
            counts: PollCounts::default(),
        });
        let watches = || by_target(&rules, self.unknown_after, self.remind_every);
        let ended = tokio::select! {
            biased;
            () = shutdown => Ok(()),
            error = poll(&poller, leadership.as_ref(), watches) => Err(error),
        };
        if let Some(leadership) = &leadership {
            leadership.leave().await;
        }
        sinks.iter().for_each(|sink| sink.close());
        let drained = async { while sending.join_next().await.is_some() {} };
        if timeout(self.drain_timeout, drained).await.is_err() {
            sending.shutdown().await;
        }
        sinks.iter().for_each(|sink| sink.abandon());
        ended?;
        let (polls, sinks) = (&poller.counts, &sink_counts);
        let [polls, failed, fired, resolved, sent, dropped] =
            [&polls.polls, &polls.failed, &polls.fired, &polls.resolved, &sinks.sent, &sinks.dropped]
                .map(|count| count.load(Ordering::Relaxed));
        Ok(MonitorReport { polls, failed, fired, resolved, sent, dropped })
    }

    /// The rules with their limits, or why this monitor cannot run.
    fn checked_rules(&self) -> Result<Vec<(Rule, AlertLimits)>> {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !(1..=63).contains(&self.name().len()) || !self.name().chars().all(legal) {
            return Err(Error::config("the monitor's name must have 1 to 63 of a-z, 0-9 and '-'"));
        }
        if self.control.is_some() && self.name.is_none() {
            return Err(Error::invalid(
                "a monitor with a leader needs a name: give it one by named, which no other service of this database \
                 has, or one of the two would never poll",
            ));
        }
        if !(Duration::from_secs(1)..=LONGEST_INTERVAL).contains(&self.every) {
            return Err(Error::config("every must be from 1 s to 1 day"));
        }
        if self.remind_every == Some(Duration::ZERO) {
            return Err(Error::config("remind_every must be longer than nothing"));
        }
        if self.unknown_after < 2 {
            return Err(Error::config("unknown_after must be at least 2: one failed poll is no alert"));
        }
        let mut names = BTreeSet::new();
        let mut rules = Vec::new();
        for rule in &self.rules {
            let limits = rule.limits(self.every, self.remind_every)?;
            let name = rule.name();
            let wrong = |e: Error| e.with_context("rule", &name);
            if !names.insert(name.clone()) {
                return Err(wrong(Error::config(format!(
                    "two rules are named {name:?}: give one another name, by named"
                ))));
            }
            if let RuleTarget::Source(source) = &rule.target {
                if !self.bus.capabilities().stats {
                    let text = format!("this broker tells no counts, which the rule {name:?} needs");
                    return Err(wrong(Error::unsupported(text).with_backend(self.bus.backend())));
                }
                if rule.kind == AlertKind::Age && !self.gauges.iter().any(|gauge| gauge.source() == source) {
                    let text = format!("the rule {name:?} needs an AgeGauge of {source}: see Monitor::age_gauge");
                    return Err(wrong(Error::config(text)));
                }
            }
            rules.push((rule.clone(), limits));
        }
        if rules.is_empty() {
            return Err(Error::config("the monitor has no rule: add one, such as Rule::dead_letters"));
        }
        self.check_unknown_names(names)?;
        Ok(rules)
    }

    /// Refuses a rule whose name, or whose alert that it is unknown, is named like another alert.
    fn check_unknown_names(&self, mut names: BTreeSet<String>) -> Result<()> {
        let mut sources = BTreeSet::new();
        for rule in &self.rules {
            let mut derived = vec![unknown_name(&rule.name())];
            if let RuleTarget::Source(source) = &rule.target {
                derived.extend(sources.insert(source.to_string()).then(|| unknown_name(&source.to_string())));
            }
            for name in derived {
                if !names.insert(name.clone()) {
                    let text = format!("two alerts are named {name:?}: give the rule another name, by named");
                    return Err(Error::config(text).with_context("rule", rule.name()));
                }
            }
        }
        Ok(())
    }
}

/// Polls while this process leads, or always without a leader. It returns only with an error.
async fn poll(poller: &Arc<Poller>, leadership: Option<&Leadership>, watches: impl Fn() -> Vec<TargetWatch>) -> Error {
    let Some(leadership) = leadership else { return poller.run(watches()).await };
    let mut leads = leadership.leads();
    let closed = || Error::new(ErrorKind::Closed, "the monitor has ended");
    let polling = async {
        loop {
            if leads.wait_for(|leads| *leads).await.is_err() {
                return closed();
            }
            tokio::select! {
                error = poller.run(watches()) => return error,
                _ = leads.wait_for(|leads| !leads) => {}
            }
        }
    };
    tokio::select! {
        error = polling => error,
        error = leadership.keep() => error,
    }
}

/// One watch for each source, with all rules about it. Each measurement has one of its own.
fn by_target(rules: &[(Rule, AlertLimits)], unknown_after: u32, remind_every: Option<Duration>) -> Vec<TargetWatch> {
    let mut targets: Vec<(RuleTarget, Vec<(Rule, AlertLimits)>)> = Vec::new();
    for (rule, limits) in rules {
        let same = targets.iter_mut().find(|(target, _)| match (target, &rule.target) {
            (RuleTarget::Source(one), RuleTarget::Source(other)) => one == other,
            _ => false,
        });
        match same {
            Some((_, rules)) => rules.push((rule.clone(), *limits)),
            None => targets.push((rule.target.clone(), vec![(rule.clone(), *limits)])),
        }
    }
    let watch = |(target, rules)| TargetWatch::new(target, rules, unknown_after, remind_every);
    targets.into_iter().map(watch).collect()
}
