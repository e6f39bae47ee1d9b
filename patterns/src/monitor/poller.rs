//! The loop of polls: one task for each source, so that one that hangs delays no other.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use polybus_core::{Bus, Error, ErrorKind};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};
use uuid::Uuid;

use super::{
    age_gauge::AgeGauge,
    alert::{Alert, AlertState},
    alert_state::AlertChange,
    measured::{Polled, ask},
    rule::RuleTarget,
    sink_queue::SinkQueue,
    target_watch::{AlertTold, TargetWatch},
};

/// How many polls run beside each other.
const POLLS_AT_ONCE: usize = 16;

/// The same of sources whose last poll took too long. They have places of their own, and cannot take those of others.
const LATE_POLLS_AT_ONCE: usize = 4;

/// The cause of an unknown value where the answer took too long.
const TIMEOUT: &str = "Timeout";

/// What the tasks share.
pub(super) struct Poller {
    pub(super) bus: Bus,
    pub(super) every: Duration,
    /// How long a poll may take.
    pub(super) limit: Duration,
    pub(super) gauges: Vec<AgeGauge>,
    pub(super) sinks: Vec<Arc<SinkQueue>>,
    pub(super) places: PollPlaces,
    pub(super) counts: PollCounts,
}

/// The places of polls that run.
pub(super) struct PollPlaces {
    prompt: Semaphore,
    late: Semaphore,
}

impl Default for PollPlaces {
    fn default() -> Self {
        Self { prompt: Semaphore::new(POLLS_AT_ONCE), late: Semaphore::new(LATE_POLLS_AT_ONCE) }
    }
}

#[derive(Debug, Default)]
pub(super) struct PollCounts {
    pub(super) polls: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) fired: AtomicU64,
    pub(super) resolved: AtomicU64,
}

impl Poller {
    /// Polls until it is dropped. It returns only when the bus is closed.
    pub(super) async fn run(self: &Arc<Self>, watches: Vec<TargetWatch>) -> Error {
        let started = Instant::now();
        let mut tasks: JoinSet<Result<Infallible, Error>> = JoinSet::new();
        for watch in watches {
            tasks.spawn(self.clone().poll(watch, started));
        }
        match tasks.join_next().await {
            Some(Ok(Err(error))) => error,
            Some(Err(panic)) => Error::new(ErrorKind::Unexpected, format!("the monitor's task panicked: {panic}")),
            None => std::future::pending().await,
            Some(Ok(Ok(never))) => match never {},
        }
    }

    async fn poll(self: Arc<Self>, mut watch: TargetWatch, started: Instant) -> Result<Infallible, Error> {
        let mut ticks = interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_late = false;
        loop {
            ticks.tick().await;
            let polled = self.poll_once(&watch.target, &mut is_late).await;
            if polled == Polled::Closed {
                return Err(Error::new(ErrorKind::Closed, "the bus was closed, and the monitor has ended"));
            }
            self.counts.polls.fetch_add(1, Ordering::Relaxed);
            if matches!(polled, Polled::Unknown(_)) {
                self.counts.failed.fetch_add(1, Ordering::Relaxed);
            }
            let gauge = match &watch.target {
                RuleTarget::Source(source) => self.gauges.iter().find(|gauge| gauge.source() == source),
                RuleTarget::Measure(..) => None,
            };
            let seen = gauge.map(|gauge| gauge.seen(started)).unwrap_or_default();
            let at = started.elapsed();
            for told in watch.after_poll(&polled, seen, at) {
                self.tell(&watch.target, told, at);
            }
        }
    }

    /// One poll. To wait for a place is a part of its time: one that gets none is a poll that brought nothing.
    async fn poll_once(&self, target: &RuleTarget, is_late: &mut bool) -> Polled {
        let places = if *is_late { &self.places.late } else { &self.places.prompt };
        let until = Instant::now() + self.limit;
        let Ok(Ok(_place)) = timeout_at(until, places.acquire()).await else { return Polled::Unknown(TIMEOUT) };
        let polled = timeout_at(until, ask(&self.bus, target)).await;
        *is_late = polled.is_err();
        polled.unwrap_or(Polled::Unknown(TIMEOUT))
    }

    fn tell(&self, target: &RuleTarget, told: AlertTold, at: Duration) {
        let (since, state, reminder) = match told.change {
            AlertChange::Fired { since } => (since, AlertState::Firing, false),
            AlertChange::Reminded { since } => (since, AlertState::Firing, true),
            AlertChange::Resolved { since } => (since, AlertState::Resolved, false),
        };
        match told.change {
            AlertChange::Fired { .. } => self.counts.fired.fetch_add(1, Ordering::Relaxed),
            AlertChange::Resolved { .. } => self.counts.resolved.fetch_add(1, Ordering::Relaxed),
            AlertChange::Reminded { .. } => 0,
        };
        let now = self.bus.now();
        let alert = Alert {
            id: Uuid::now_v7().to_string(),
            name: told.name,
            kind: told.kind,
            state,
            reminder,
            source: target.to_string(),
            value: told.value,
            threshold: told.threshold,
            cause: told.cause,
            since: now - at.saturating_sub(since),
            at: now,
            backend: self.bus.backend(),
        };
        for sink in &self.sinks {
            sink.push(alert.clone());
        }
    }
}
