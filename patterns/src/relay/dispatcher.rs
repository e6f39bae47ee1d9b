//! The relay's main loop: finds addresses with rows, and has a lane for each.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use polybus_core::{Error, Result, driver::kit::backoff::Backoff};
use tokio::{
    task::{self, JoinSet},
    time::Instant,
};

use super::{
    MAX_DATABASE_BACKOFF, RelayShared,
    address_state::AddressState,
    call_limits::{ROWS, in_time},
    due_rows, is_final,
    lane::{self, Budget, LaneEnd},
    slots,
};
use crate::{outbox::admin::STATS_CAP, telemetry};

/// When to look after an enqueue whose commit nobody has told of, in milliseconds after it.
const LOOKS: [u64; 6] = [2, 5, 10, 20, 40, 80];

/// How often what waits is counted.
const STATS_INTERVAL: Duration = Duration::from_secs(10);

/// How long a lane waits after a panic.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// The wait of a lane that has nothing better to say, so that it never spins.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);

type LaneKey = (Arc<str>, i16);

struct Dispatcher {
    shared: Arc<RelayShared>,
    budget: Arc<Budget>,
    stopping: Arc<AtomicBool>,
    lanes: JoinSet<LaneEnd>,
    lane_of_task: HashMap<task::Id, LaneKey>,
    /// The lanes that run. True if rows were seen for one meanwhile: it is started again when it ends.
    running: HashMap<LaneKey, bool>,
    waiting: HashMap<LaneKey, Instant>,
    states: HashMap<Arc<str>, Arc<AddressState>>,
    database: Backoff,
    database_until: Option<Instant>,
    /// Lanes whose last call to the database failed: one that fails again and again must not repeat its publishes.
    failing: HashMap<LaneKey, Backoff>,
}

/// Runs until the shutdown, or an error that ends the relay.
pub(super) async fn run(shared: &Arc<RelayShared>, shutdown: Pin<&mut impl Future<Output = ()>>) -> Result<()> {
    // Dropped with this future, and their tasks with them.
    let mut helpers: JoinSet<Error> = JoinSet::new();
    let (a, b, c, d) = (shared.clone(), shared.clone(), shared.clone(), shared.clone());
    helpers.spawn(async move { slots::keep(&a).await });
    helpers.spawn(async move {
        due_rows::promote(&b).await;
        unreachable_error()
    });
    helpers.spawn(async move {
        count(&c).await;
        unreachable_error()
    });
    if shared.options.listen {
        helpers.spawn(async move {
            listen(&d).await;
            unreachable_error()
        });
    }
    let mut dispatcher = Dispatcher {
        shared: shared.clone(),
        budget: Arc::default(),
        stopping: Arc::default(),
        lanes: JoinSet::new(),
        lane_of_task: HashMap::new(),
        running: HashMap::new(),
        waiting: HashMap::new(),
        states: HashMap::new(),
        database: Backoff::up_to(MAX_DATABASE_BACKOFF),
        database_until: None,
        failing: HashMap::new(),
    };
    let result = dispatcher.dispatch(&mut helpers, shutdown).await;
    // The leases are renewed until the last lane has ended.
    dispatcher.stopping.store(true, Ordering::Relaxed);
    while dispatcher.lanes.join_next().await.is_some() {}
    helpers.shutdown().await;
    if let Err(e) = slots::leave(shared).await {
        tracing::debug!(target: "polybus", error = %e, "the outbox' slots could not be given back; their leases run out");
    }
    result
}

fn unreachable_error() -> Error {
    Error::new(polybus_core::ErrorKind::Unexpected, "a part of the relay ended early")
}

impl Dispatcher {
    async fn dispatch(
        &mut self,
        helpers: &mut JoinSet<Error>,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<()> {
        let shared = self.shared.clone();
        let mut changes = shared.control.changes().listen();
        let mut looks: Vec<Instant> = Vec::new();
        let mut next_poll = Instant::now();
        loop {
            let now = Instant::now();
            let due = looks.last().copied().into_iter().chain(self.waiting.values().copied().min());
            let next = due.chain([next_poll]).min().unwrap_or(next_poll).max(self.database_until.unwrap_or(now));
            tokio::select! {
                biased;
                () = &mut shutdown => return Ok(()),
                Some(ended) = helpers.join_next() => return Err(ended.unwrap_or_else(|_| unreachable_error())),
                Some(ended) = self.lanes.join_next_with_id(), if !self.lanes.is_empty() => {
                    let (id, end) = match ended {
                        Ok((id, end)) => (id, end),
                        // A panic is a fault of the driver or of polybus. Its rows stay, and are tried again.
                        Err(e) => (e.id(), LaneEnd::Waits(Instant::now() + AFTER_PANIC)),
                    };
                    if let Some(key) = self.lane_of_task.remove(&id) {
                        self.lane_ended(key, end)?;
                    }
                    continue;
                }
                committed = changes.changed() => {
                    if !committed {
                        // The last one is looked at first.
                        looks = LOOKS.iter().rev().map(|ms| Instant::now() + Duration::from_millis(*ms)).collect();
                        continue;
                    }
                    if self.database_until.is_some_and(|until| until > Instant::now()) {
                        continue;
                    }
                }
                () = shared.slots.taken.notified() => {}
                () = tokio::time::sleep_until(next) => {}
            }
            let now = Instant::now();
            looks.retain(|at| *at > now);
            if self.database_until.is_some_and(|until| until > now) {
                continue;
            }
            next_poll = now + shared.options.poll;
            tokio::select! {
                biased;
                () = &mut shutdown => return Ok(()),
                looked = self.look() => looked?,
            }
        }
    }

    /// Starts a lane for each address that has rows.
    async fn look(&mut self) -> Result<()> {
        let slots = self.shared.slots.usable();
        if slots.is_empty() {
            self.waiting.clear();
            return Ok(());
        }
        let found = match in_time(ROWS, self.shared.table.addresses(&slots)).await {
            Ok(found) => found,
            Err(e) => return self.database_failed(e),
        };
        self.database_answers();
        let now = Instant::now();
        self.waiting.retain(|_, until| *until > now);
        let mut with_rows: HashSet<Arc<str>> = self.running.keys().map(|(address, _)| address.clone()).collect();
        for (slot, address) in found {
            let key: LaneKey = (Arc::from(address), lane::group_of(slot));
            with_rows.insert(key.0.clone());
            if let Some(again) = self.running.get_mut(&key) {
                *again = true;
            } else if !self.waiting.contains_key(&key) {
                self.start(key);
            }
        }
        self.states.retain(|address, state| {
            let has_rows = with_rows.contains(address);
            if !has_rows {
                state.expire();
            }
            has_rows || !state.is_idle()
        });
        self.failing.retain(|(address, _), _| with_rows.contains(address));
        Ok(())
    }

    fn start(&mut self, key: LaneKey) {
        let state = self.states.entry(key.0.clone()).or_insert_with(|| Arc::new(AddressState::new(&key.0))).clone();
        self.running.insert(key.clone(), false);
        let (shared, budget, stopping) = (self.shared.clone(), self.budget.clone(), self.stopping.clone());
        let group = key.1;
        let lane = self.lanes.spawn(async move { lane::drain(&shared, &state, group, &stopping, &budget).await });
        self.lane_of_task.insert(lane.id(), key);
    }

    fn lane_ended(&mut self, key: LaneKey, end: LaneEnd) -> Result<()> {
        let again = self.running.remove(&key).unwrap_or_default();
        if !matches!(end, LaneEnd::Database(_)) {
            self.failing.remove(&key);
        }
        match end {
            LaneEnd::Drained if again => self.start(key),
            LaneEnd::Drained => {}
            LaneEnd::Waits(until) => {
                self.waiting.insert(key, until.max(Instant::now() + SHORTEST_WAIT));
            }
            LaneEnd::Database(e) if is_final(&e) => return Err(e),
            // It may be this lane's trouble alone, such as a row that cannot be deleted: the others go on. Where the
            // database is away, the next look finds out.
            LaneEnd::Database(e) => {
                let backoff = self.failing.entry(key.clone()).or_insert_with(|| Backoff::up_to(MAX_DATABASE_BACKOFF));
                if backoff.attempts() == 0 {
                    tracing::warn!(
                        target: "polybus", address = %key.0, error = %e,
                        "rows of the outbox cannot be read or written; trying again, and some may be published twice"
                    );
                }
                self.waiting.insert(key, Instant::now() + backoff.next_wait());
            }
            LaneEnd::Closed(e) => return Err(e),
        }
        Ok(())
    }

    fn database_failed(&mut self, error: Error) -> Result<()> {
        if is_final(&error) {
            return Err(error);
        }
        if self.database.attempts() == 0 {
            tracing::warn!(target: "polybus", error = %error, "the outbox' database does not answer; trying again");
        }
        self.database_until = Some(Instant::now() + self.database.next_wait());
        Ok(())
    }

    fn database_answers(&mut self) {
        if self.database_until.take().is_some() {
            tracing::info!(target: "polybus", "the outbox' database answers again");
            self.database.reset();
        }
    }
}

/// Counts what waits, in the relay that has slot 0.
async fn count(shared: &Arc<RelayShared>) {
    loop {
        tokio::time::sleep(STATS_INTERVAL).await;
        if !shared.slots.usable().contains(&0) {
            continue;
        }
        if let Ok(stats) = in_time(ROWS, shared.table.stats(STATS_CAP)).await {
            let system = shared.control.system();
            telemetry::outbox_rows(system, "ready", stats.ready);
            telemetry::outbox_rows(system, "scheduled", stats.scheduled);
            telemetry::outbox_rows(system, "parked", stats.parked);
            telemetry::outbox_oldest_age(system, stats.oldest_age.unwrap_or_default().as_secs_f64());
        }
    }
}

/// Listens for other processes, and begins again after an error: what was missed is found by polling.
async fn listen(shared: &Arc<RelayShared>) {
    let mut backoff = Backoff::up_to(Duration::from_secs(30));
    let mut told = None;
    loop {
        let Err(e) = shared.control.listen().await else { return std::future::pending().await };
        let text = e.to_string();
        if told.as_ref() != Some(&text) {
            tracing::warn!(target: "polybus", error = %e, "the outbox hears no other process; it polls");
            told = Some(text);
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}
