//! The relay's main loop: finds addresses with rows, and has a lane for each.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use polybus_core::{Error, ErrorKind, Result, driver::kit::backoff::Backoff};
use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};

use super::{
    RelayShared,
    address_state::AddressState,
    budget::Budget,
    due_rows,
    lane::{self, LaneEnd, LaneRun},
    lanes::{LaneKey, Lanes},
    slots,
    stopping::Stopping,
};
use crate::{
    catch_panic::panic_text,
    outbox::admin::STATS_CAP,
    store::{
        LookTimes,
        calls::{MAX_DATABASE_BACKOFF, ROWS, in_time, is_final, listen},
    },
    telemetry,
};

/// How often what waits is counted.
const STATS_INTERVAL: Duration = Duration::from_secs(10);

struct Dispatcher {
    shared: Arc<RelayShared>,
    budget: Arc<Budget>,
    stopping: Stopping,
    lanes: Lanes,
    states: HashMap<Arc<str>, Arc<AddressState>>,
    database: Backoff,
    database_until: Option<Instant>,
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
            listen(&d.control).await;
            unreachable_error()
        });
    }
    let mut dispatcher = Dispatcher {
        shared: shared.clone(),
        budget: Arc::default(),
        stopping: Stopping::default(),
        lanes: Lanes::default(),
        states: HashMap::new(),
        database: Backoff::up_to(MAX_DATABASE_BACKOFF),
        database_until: None,
    };
    let result = dispatcher.dispatch(&mut helpers, shutdown).await;
    // The leases are renewed until the last lane has ended.
    dispatcher.stopping.begin();
    dispatcher.lanes.all_ended().await;
    helpers.shutdown().await;
    if let Err(e) = slots::leave(shared).await {
        tracing::debug!(target: "polybus", error = %e, "the outbox' slots could not be given back; their leases run out");
    }
    result
}

fn unreachable_error() -> Error {
    Error::new(ErrorKind::Unexpected, "a part of the relay ended early")
}

/// Why a helper ended that runs for as long as the relay. After a panic the relay ends, since it cannot work without.
fn helper_ended(ended: std::result::Result<Error, JoinError>) -> Error {
    match ended.map_err(JoinError::try_into_panic) {
        Ok(error) => error,
        Err(Ok(panic)) => {
            let text = format!("a part of the relay panicked, start the relay again: {}", panic_text(&*panic));
            Error::new(ErrorKind::Unexpected, text)
        }
        Err(Err(_)) => unreachable_error(),
    }
}

impl Dispatcher {
    async fn dispatch(
        &mut self,
        helpers: &mut JoinSet<Error>,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<()> {
        let shared = self.shared.clone();
        let mut changes = shared.control.changes().listen();
        let mut looks = LookTimes::new(shared.options.poll);
        loop {
            let now = Instant::now();
            let next = self.lanes.next_due().map_or(looks.next(), |due| due.min(looks.next()));
            let next = next.max(self.database_until.unwrap_or(now));
            let mut told = true;
            tokio::select! {
                biased;
                () = &mut shutdown => return Ok(()),
                Some(ended) = helpers.join_next() => return Err(helper_ended(ended)),
                (key, run, again) = self.lanes.ended() => {
                    self.lane_ended(key, run, again)?;
                    continue;
                }
                committed = changes.changed() => {
                    if !committed {
                        looks.written();
                        continue;
                    }
                    if self.database_until.is_some_and(|until| until > Instant::now()) {
                        continue;
                    }
                }
                () = shared.slots.taken.notified() => {}
                () = tokio::time::sleep_until(next) => told = false,
            }
            let now = Instant::now();
            if self.database_until.is_some_and(|until| until > now) {
                continue;
            }
            // A lane whose wait is over needs no look: with ten thousand of them that would be one look for each.
            if told || looks.is_due() || self.database_until.is_some() {
                looks.looking();
                tokio::select! {
                    biased;
                    () = &mut shutdown => return Ok(()),
                    looked = self.look() => looked?,
                }
            }
            if self.database_until.is_none() {
                self.lanes.take_due().into_iter().for_each(|key| self.start(key));
            }
        }
    }

    /// Starts a lane for each address that has rows.
    async fn look(&mut self) -> Result<()> {
        let slots = self.shared.slots.usable();
        if slots.is_empty() {
            self.lanes.forget_waits();
            return Ok(());
        }
        let found = match in_time(ROWS, self.shared.table.addresses(&slots)).await {
            Ok(found) => found,
            Err(e) => return self.database_failed(e),
        };
        self.database_answers();
        let mut with_rows = self.lanes.addresses();
        for (slot, address) in found {
            let key: LaneKey = (Arc::from(address), lane::group_of(slot));
            with_rows.insert(key.0.clone());
            if self.lanes.saw_rows(&key) {
                self.start(key);
            }
        }
        self.forget_states(&with_rows);
        Ok(())
    }

    /// Forgets what is known of addresses that have no rows here any more.
    fn forget_states(&mut self, with_rows: &HashSet<Arc<str>>) {
        self.states.retain(|address, state| {
            let has_rows = with_rows.contains(address);
            if !has_rows {
                state.expire();
            }
            has_rows || !state.is_idle()
        });
        self.lanes.retain_failing(with_rows);
    }

    fn start(&mut self, key: LaneKey) {
        let state = self.states.entry(key.0.clone()).or_insert_with(|| Arc::new(AddressState::new(&key.0))).clone();
        let (shared, budget, stopping) = (self.shared.clone(), self.budget.clone(), self.stopping.clone());
        let (group, careful) = (key.1, self.lanes.is_failing(&key));
        self.lanes.start(key, async move { lane::drain(&shared, &state, group, careful, &stopping, &budget).await });
    }

    fn lane_ended(&mut self, key: LaneKey, run: LaneRun, again: bool) -> Result<()> {
        // One that only finds its rows held, its address away, or no slot, has not shown that they can be written.
        if matches!(run.end, LaneEnd::Drained) || run.went {
            self.lanes.went_well(&key);
        }
        match run.end {
            LaneEnd::Drained | LaneEnd::NotTried if again => self.start(key),
            LaneEnd::Drained | LaneEnd::NotTried => {}
            LaneEnd::Waits(until) => self.lanes.wait(key, until),
            LaneEnd::Rests(until) => {
                if again {
                    self.start(key)
                } else {
                    self.lanes.rest(key, until)
                }
            }
            LaneEnd::Database(e) if is_final(&e) => return Err(e),
            // It may be this lane's trouble alone, such as a row that cannot be deleted: the others go on. Where the
            // database is away, the next look finds out.
            LaneEnd::Database(e) => self.lanes.failed(key, &e),
            // A fault of a driver, of the store or of polybus. The rows stay, and are tried again.
            LaneEnd::Panicked(text) => self.lanes.failed(key, &format_args!("a lane of the relay panicked: {text}")),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_helper_that_panics_ends_the_relay_with_its_text() {
        let mut helpers: JoinSet<Error> = JoinSet::new();
        helpers.spawn(async { panic!("no leases") });
        let Some(ended) = helpers.join_next().await else { panic!("one was started") };
        let error = helper_ended(ended).to_string();
        assert!(error.contains("a part of the relay panicked") && error.contains("no leases"), "{error}");
        helpers.spawn(async { Error::invalid("its own error") });
        let Some(ended) = helpers.join_next().await else { panic!("one was started") };
        assert!(helper_ended(ended).to_string().contains("its own error"));
    }
}
