//! The queue of one sink, and the task that empties it.
//!
//! An alert that failed all its tries is put aside: the newest of each name. While nothing else is to be sent, those
//! are tried again, one at a time with growing waits; the first that is sent lets the others follow at once. So a sink
//! that is away for an hour costs no page, and no more memory than there are alerts.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use polybus_core::driver::kit::backoff::random_fraction;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::{
    alert::Alert,
    measured::caught,
    sink::{AlertSink, SinkError},
};
use crate::telemetry;

/// How many alerts wait for one sink.
pub const SINK_QUEUE: usize = 256;

/// How often an alert is tried before it is put aside.
pub const SINK_TRIES: usize = 3;

/// How long a try may take.
const TRY_TIMEOUT: Duration = Duration::from_secs(15);

/// The waits between tries, of which 50 to 100 % are waited.
const WAITS: [Duration; SINK_TRIES - 1] = [Duration::from_secs(1), Duration::from_secs(5)];

/// The first wait for what was put aside, which doubles up to the second.
const ASIDE_WAITS: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(300)];

/// The longest wait that a sink may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What became of alerts, all sinks together.
#[derive(Debug, Default)]
pub(super) struct SinkCounts {
    pub(super) sent: AtomicU64,
    pub(super) dropped: AtomicU64,
}

/// The alerts that wait for a sink.
pub(super) struct SinkQueue {
    sink: Arc<dyn AlertSink>,
    waiting: Mutex<WaitingAlerts>,
    changed: Notify,
    counts: Arc<SinkCounts>,
}

#[derive(Default)]
struct WaitingAlerts {
    alerts: VecDeque<Alert>,
    /// Those that failed all their tries, the newest of each name.
    aside: VecDeque<Alert>,
    /// When one of them is tried again, and how long the wait was.
    next_aside: Option<(Instant, Duration)>,
    /// One more is being sent.
    is_sending: bool,
    /// No more will come.
    is_closed: bool,
    /// That it is full was told, and it was not empty since.
    is_full_told: bool,
}

/// What the task does next.
enum Next {
    Send(Alert),
    /// One that was put aside.
    Again(Alert),
    /// Nothing, before something comes or this time has come.
    WaitUntil(Option<Instant>),
    End,
}

impl SinkQueue {
    pub(super) fn new(sink: Arc<dyn AlertSink>, counts: Arc<SinkCounts>) -> Arc<Self> {
        Arc::new(Self { sink, waiting: Mutex::default(), changed: Notify::new(), counts })
    }

    /// Adds an alert. It never waits: of a full queue the oldest reminder goes, or else the oldest alert.
    pub(super) fn push(&self, alert: Alert) {
        let mut waiting = self.waiting.lock();
        if waiting.alerts.len() >= SINK_QUEUE {
            // The newest reminder says no more than those before it.
            let reminder = waiting.alerts.iter().position(|waiting| waiting.reminder);
            match reminder {
                None if alert.reminder => {}
                place => drop(waiting.alerts.remove(place.unwrap_or(0))),
            }
            self.dropped(1);
            if !std::mem::replace(&mut waiting.is_full_told, true) {
                tracing::warn!(
                    target: "polybus", sink = self.name(), limit = SINK_QUEUE,
                    "the sink is too slow for its alerts, and the oldest are dropped, reminders first"
                );
            }
        }
        if waiting.alerts.len() < SINK_QUEUE {
            if let Some(older) = waiting.aside.iter().position(|older| older.name == alert.name) {
                waiting.aside.remove(older);
                self.dropped(1);
            }
            waiting.alerts.push_back(alert);
        }
        drop(waiting);
        self.changed.notify_one();
    }

    /// Lets the task end when it has sent what waits.
    pub(super) fn close(&self) {
        self.waiting.lock().is_closed = true;
        self.changed.notify_one();
    }

    /// Drops what is left, after the task has ended.
    pub(super) fn abandon(&self) {
        let mut waiting = self.waiting.lock();
        let left = waiting.alerts.len() + waiting.aside.len() + usize::from(std::mem::take(&mut waiting.is_sending));
        let left = left as u64;
        waiting.alerts.clear();
        waiting.aside.clear();
        drop(waiting);
        if left > 0 {
            self.dropped(left);
            tracing::warn!(target: "polybus", sink = self.name(), left, "the monitor ended before these alerts were sent");
        }
    }

    /// Sends what comes, until the queue is closed and empty.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            match self.next() {
                Next::Send(alert) => self.send(alert, &WAITS).await,
                Next::Again(alert) => self.send(alert, &[]).await,
                Next::WaitUntil(Some(until)) => drop(tokio::time::timeout_at(until, self.changed.notified()).await),
                Next::WaitUntil(None) => self.changed.notified().await,
                Next::End => return,
            }
        }
    }

    fn next(&self) -> Next {
        let mut waiting = self.waiting.lock();
        waiting.is_sending = true;
        if let Some(alert) = waiting.alerts.pop_front() {
            return Next::Send(alert);
        }
        waiting.is_full_told = false;
        let due = waiting.next_aside.is_none_or(|(at, _)| at <= Instant::now());
        // At the end each has one more try.
        if (due || waiting.is_closed)
            && let Some(alert) = waiting.aside.pop_front()
        {
            return Next::Again(alert);
        }
        waiting.is_sending = false;
        match waiting.is_closed {
            true => Next::End,
            false => Next::WaitUntil(waiting.next_aside.filter(|_| !waiting.aside.is_empty()).map(|(at, _)| at)),
        }
    }

    /// Keeps an alert that failed all its tries. Answers whether it did: a newer one of its name says more.
    fn put_aside(&self, alert: Alert, not_before: Duration) -> bool {
        let mut waiting = self.waiting.lock();
        let is_newest = waiting.alerts.iter().all(|waiting| waiting.name != alert.name);
        if waiting.is_closed || !is_newest || waiting.aside.len() >= SINK_QUEUE {
            return false;
        }
        waiting.aside.push_back(alert);
        let [first, longest] = ASIDE_WAITS;
        let wait = waiting.next_aside.map_or(first, |(_, before)| (before * 2).min(longest));
        let jittered = wait.mul_f64(0.5 + random_fraction() / 2.0);
        waiting.next_aside = Some((Instant::now() + jittered.max(not_before), wait));
        true
    }

    async fn send(&self, alert: Alert, waits: &[Duration]) {
        let mut waits = waits.iter().copied();
        loop {
            let error = match self.try_once(&alert).await {
                Ok(()) => {
                    self.waiting.lock().next_aside = None;
                    self.counts.sent.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Err(error) => error,
            };
            let wait = waits.next().filter(|_| error.again);
            let not_before = error.not_before.unwrap_or_default().min(LONGEST_WAIT);
            let Some(wait) = wait else {
                if error.again && self.put_aside(alert.clone(), not_before) {
                    tracing::warn!(
                        target: "polybus", sink = self.name(), alert = alert.name, state = alert.state.as_str(), %error,
                        "an alert could not be sent, and is tried again later"
                    );
                    return;
                }
                self.dropped(1);
                tracing::warn!(
                    target: "polybus", sink = self.name(), alert = alert.name, state = alert.state.as_str(), %error,
                    "an alert could not be sent, and is dropped"
                );
                return;
            };
            tracing::debug!(target: "polybus", sink = self.name(), %error, "an alert could not be sent; trying again");
            let wait = wait.mul_f64(0.5 + random_fraction() / 2.0);
            tokio::time::sleep(wait.max(not_before)).await;
        }
    }

    async fn try_once(&self, alert: &Alert) -> Result<(), SinkError> {
        // A sink may panic before there is a future.
        let sending = caught(async { self.sink.send(alert).await });
        match timeout(TRY_TIMEOUT, sending).await {
            Ok(Ok(sent)) => sent,
            Ok(Err(panic)) => Err(SinkError::again(format!("the sink panicked: {panic}"))),
            Err(_) => Err(SinkError::again(format!("the sink did not end within {TRY_TIMEOUT:?}"))),
        }
    }

    /// The sink's name. One that panics over it has none.
    pub(super) fn name(&self) -> String {
        let name = std::panic::AssertUnwindSafe(|| self.sink.name().to_owned());
        std::panic::catch_unwind(name).unwrap_or_default()
    }

    fn dropped(&self, alerts: u64) {
        self.counts.dropped.fetch_add(alerts, Ordering::Relaxed);
        telemetry::alerts_dropped(&self.name(), alerts);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;
    use crate::monitor::sink::ClosureSink;

    fn alert(name: String, reminder: bool) -> Alert {
        Alert { name, reminder, ..Alert::sample() }
    }

    fn queue() -> Arc<SinkQueue> {
        SinkQueue::new(Arc::new(ClosureSink::new("hung".into(), |_| pending())), Arc::default())
    }

    fn names(queue: &SinkQueue) -> Vec<String> {
        queue.waiting.lock().alerts.iter().map(|alert| alert.name.clone()).collect()
    }

    #[test]
    fn of_a_full_queue_the_oldest_reminder_goes_first_and_then_the_oldest() {
        let queue = queue();
        for i in 0..SINK_QUEUE {
            queue.push(alert(i.to_string(), i == 7 || i == 9));
        }
        assert_eq!(queue.counts.dropped.load(Ordering::Relaxed), 0, "at the limit");
        queue.push(alert("a".into(), false));
        queue.push(alert("b".into(), true));
        let left = names(&queue);
        assert_eq!(left.len(), SINK_QUEUE);
        assert!(!left.contains(&"7".into()) && !left.contains(&"9".into()) && left.contains(&"b".into()));
        queue.push(alert("c".into(), false));
        assert!(!names(&queue).contains(&"b".into()), "b was the only reminder");
        queue.push(alert("d".into(), true));
        assert!(!names(&queue).contains(&"d".into()), "no reminder displaces an alert");
        queue.push(alert("e".into(), false));
        assert_eq!(names(&queue).first().map(String::as_str), Some("1"));
        assert_eq!(queue.counts.dropped.load(Ordering::Relaxed), 5);
        queue.abandon();
        assert_eq!(queue.counts.dropped.load(Ordering::Relaxed), 5 + SINK_QUEUE as u64);
    }
}
