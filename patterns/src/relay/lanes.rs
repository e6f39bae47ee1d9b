//! The lanes of a relay: which run, which wait, and which fail again and again.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    future::Future,
    sync::Arc,
    time::Duration,
};

use polybus_core::driver::kit::backoff::Backoff;
use tokio::{
    task::{self, JoinSet},
    time::Instant,
};

use super::{
    address_state::MAX_BACKOFF,
    lane::{LaneEnd, LaneRun},
};
use crate::catch_panic::panic_text;

/// The wait of a lane that has nothing better to say, so that it never spins.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);

/// After so many failures in a row, about half a minute, a person is called.
const MANY_FAILURES: u32 = 10;

/// An address, and a group of slots.
pub(super) type LaneKey = (Arc<str>, i16);

#[derive(Clone, Copy)]
struct Waiting {
    until: Instant,
    /// It may start before that, if there are rows.
    rests: bool,
}

#[derive(Default)]
pub(super) struct Lanes {
    tasks: JoinSet<LaneRun>,
    key_of_task: HashMap<task::Id, LaneKey>,
    /// The lanes that run. True if rows were seen for one meanwhile: it is started again when it ends.
    running: HashMap<LaneKey, bool>,
    waiting: HashMap<LaneKey, Waiting>,
    /// The same in the order of time: with ten thousand addresses, nobody may look through all for each.
    by_time: BTreeSet<(Instant, LaneKey)>,
    /// Lanes whose last call to the database failed, or that panicked: one that fails again and again must not repeat
    /// its publishes.
    failing: HashMap<LaneKey, Backoff>,
}

impl Lanes {
    /// Rows were seen for this lane. Answers whether it is to be started: it neither runs nor waits.
    pub(super) fn saw_rows(&mut self, key: &LaneKey) -> bool {
        if let Some(again) = self.running.get_mut(key) {
            *again = true;
            return false;
        }
        match self.waiting.get(key) {
            None => true,
            Some(Waiting { until, rests: true }) => {
                self.by_time.remove(&(*until, key.clone()));
                self.waiting.remove(key);
                true
            }
            Some(_) => false,
        }
    }

    /// Whether the last run of this lane failed, so that it goes on with few rows.
    pub(super) fn is_failing(&self, key: &LaneKey) -> bool {
        self.failing.contains_key(key)
    }

    pub(super) fn start(&mut self, key: LaneKey, run: impl Future<Output = LaneRun> + Send + 'static) {
        self.running.insert(key.clone(), false);
        let task = self.tasks.spawn(run);
        self.key_of_task.insert(task.id(), key);
    }

    /// The next lane that ended: which, how, and whether rows were seen for it meanwhile. Never, while none runs.
    ///
    /// # Cancel safety
    /// Dropping the future loses no lane.
    pub(super) async fn ended(&mut self) -> (LaneKey, LaneRun, bool) {
        loop {
            let (id, run) = match self.tasks.join_next_with_id().await {
                None => return std::future::pending().await,
                Some(Ok((id, run))) => (id, run),
                Some(Err(e)) => {
                    let id = e.id();
                    let text = e.try_into_panic().map_or_else(|_| "it was cancelled".to_owned(), |p| panic_text(&*p));
                    (id, LaneRun { end: LaneEnd::Panicked(text), went: false })
                }
            };
            if let Some(key) = self.key_of_task.remove(&id) {
                let again = self.running.remove(&key).unwrap_or_default();
                return (key, run, again);
            }
        }
    }

    /// Keeps the lane from being started before this time, and starts it then.
    pub(super) fn wait(&mut self, key: LaneKey, until: Instant) {
        self.put_off(key, until.max(Instant::now() + SHORTEST_WAIT), false);
    }

    /// Starts the lane at this time, or when rows are seen for it.
    pub(super) fn rest(&mut self, key: LaneKey, until: Instant) {
        self.put_off(key, until.max(Instant::now() + SHORTEST_WAIT), true);
    }

    fn put_off(&mut self, key: LaneKey, until: Instant, rests: bool) {
        if let Some(before) = self.waiting.insert(key.clone(), Waiting { until, rests }) {
            self.by_time.remove(&(before.until, key.clone()));
        }
        self.by_time.insert((until, key));
    }

    /// When the first wait is over.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.by_time.first().map(|(until, _)| *until)
    }

    /// The lanes whose waits are over.
    pub(super) fn take_due(&mut self) -> Vec<LaneKey> {
        let now = Instant::now();
        let mut due = Vec::new();
        while self.next_due().is_some_and(|until| until <= now)
            && let Some((_, key)) = self.by_time.pop_first()
        {
            self.waiting.remove(&key);
            due.push(key);
        }
        due
    }

    /// Ends all waits, for a relay that has no slot any more.
    pub(super) fn forget_waits(&mut self) {
        self.waiting.clear();
        self.by_time.clear();
    }

    /// The lane's work went wrong: it waits, longer each time.
    pub(super) fn failed(&mut self, key: LaneKey, error: &dyn std::fmt::Display) {
        let backoff = self.failing.entry(key.clone()).or_insert_with(|| Backoff::up_to(MAX_BACKOFF));
        let wait = backoff.next_wait();
        match backoff.attempts() {
            1 => tracing::warn!(
                target: "polybus", address = %key.0, %error,
                "rows of the outbox cannot be read or written; trying again, and some may be published twice"
            ),
            MANY_FAILURES => tracing::error!(
                target: "polybus", address = %key.0, %error, attempts = MANY_FAILURES,
                "rows of the outbox still cannot be read or written; each attempt may publish some of them once more"
            ),
            _ => {}
        }
        self.wait(key, Instant::now() + wait);
    }

    /// The lane's work went well.
    pub(super) fn went_well(&mut self, key: &LaneKey) {
        if self.failing.remove(key).is_some() {
            tracing::info!(target: "polybus", address = %key.0, "rows of the outbox can be read and written again");
        }
    }

    /// The addresses of the lanes that run or wait.
    pub(super) fn addresses(&self) -> HashSet<Arc<str>> {
        self.running.keys().chain(self.waiting.keys()).map(|(address, _)| address.clone()).collect()
    }

    /// Forgets the failures of addresses that have no rows here any more.
    pub(super) fn retain_failing(&mut self, with_rows: &HashSet<Arc<str>>) {
        self.failing.retain(|(address, _), _| with_rows.contains(address));
    }

    /// Waits until all have ended.
    pub(super) async fn all_ended(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(address: &str) -> LaneKey {
        (address.into(), 0)
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_that_waits_is_due_once_and_in_time() {
        let mut lanes = Lanes::default();
        let now = Instant::now();
        lanes.wait(key("queue:a"), now + Duration::from_secs(2));
        lanes.wait(key("queue:b"), now + Duration::from_secs(1));
        lanes.wait(key("queue:a"), now + Duration::from_secs(3));
        assert!(!lanes.saw_rows(&key("queue:a")) && lanes.saw_rows(&key("queue:c")));
        assert_eq!(lanes.next_due(), Some(now + Duration::from_secs(1)));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(lanes.take_due(), [key("queue:b")], "the later wait of a counts");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(lanes.take_due(), [key("queue:a")]);
        assert!(lanes.take_due().is_empty() && lanes.next_due().is_none() && lanes.saw_rows(&key("queue:a")));
        lanes.rest(key("queue:a"), now + Duration::from_secs(9));
        assert!(lanes.saw_rows(&key("queue:a")), "one that rests is started by rows");
        assert!(lanes.next_due().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_that_panics_ends_with_the_text_of_its_panic() {
        let mut lanes = Lanes::default();
        lanes.start(key("queue:a"), async { panic!("a fault of {}", "the driver") });
        assert!(!lanes.saw_rows(&key("queue:a")), "it runs");
        let (ended, run, again) = lanes.ended().await;
        assert!(ended == key("queue:a") && again, "rows were seen while it ran");
        assert!(matches!(run.end, LaneEnd::Panicked(text) if text == "a fault of the driver"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_waits_of_a_lane_that_fails_grow_until_it_went_well() {
        let mut lanes = Lanes::default();
        let mut longest = Duration::ZERO;
        for _ in 0..12 {
            lanes.failed(key("queue:a"), &"no");
            assert!(lanes.is_failing(&key("queue:a")));
            let wait = lanes.next_due().map_or(Duration::ZERO, |until| until - Instant::now());
            longest = longest.max(wait);
            tokio::time::advance(wait).await;
            assert_eq!(lanes.take_due(), [key("queue:a")]);
        }
        assert!(longest >= MAX_BACKOFF / 2 && longest <= MAX_BACKOFF, "{longest:?}");
        lanes.went_well(&key("queue:a"));
        lanes.failed(key("queue:a"), &"no");
        assert!(lanes.next_due().is_some_and(|until| until <= Instant::now() + Duration::from_millis(50)));
    }
}
