//! The relay: publishes what the outbox holds.
//!
//! 1. The 16 slots of the outbox are shared out among the relays of all processes by leases: `slots.rs`.
//! 2. `dispatcher.rs` finds the addresses that have rows in this relay's slots, on a signal or at its polling interval,
//!    and starts a lane for each; `lanes.rs` knows which run, wait or fail.
//! 3. `lane.rs` reads the first rows of one address, publishes them outside any transaction, and deletes what was
//!    published. It reads always from the front: a running position would overtake a transaction that commits late.
//! 4. `verdict.rs` decides what an answer of the broker means for its row, `settle.rs` writes that down, and
//!    `address_state.rs` decides how long an address waits after a failure, and how much of it may be under way.
//! 5. `due_rows.rs` moves rows whose delay has passed into their slots.
//!
//! Leases buy fewer duplicates, and nothing else depends on them: a row is deleted only after the broker took it, and
//! each read begins at the front, so two relays on one slot keep the order of first copies.

mod address_state;
mod budget;
mod call_limits;
mod dispatcher;
mod due_rows;
mod lane;
mod lanes;
mod settle;
mod slots;
mod stopping;
mod verdict;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use polybus_core::{Bus, Error, Result};
use uuid::Uuid;

use crate::store::{OutboxStore, OutboxTable, Store, StoreControl, calls};

/// Publishes what the outbox holds. Run one in any number of processes.
///
/// | what happens | what becomes of the rows |
/// |---|---|
/// | the broker takes a message | its row is deleted |
/// | the broker is away, slow or throttles | all rows of the address wait, 50 ms to 30 s; other addresses go on |
/// | the address is missing, forbidden, or this broker has no topics | the same, and an error in the log; **never parked** |
/// | the message is too large, or breaks a rule of the envelope | parked with the reason; its key goes on, see [`hold_key`](Self::hold_key) |
/// | something unexpected, 10 times, while other rows of the address passed | parked |
/// | the message expired while it waited | deleted and counted, or [parked](Self::park_expired) |
/// | a relay is killed | another one has its slots within one lease; some messages are published twice, with the same id |
/// | the database does not delete what was published | a few rows at a time are published again, 50 ms to 30 s apart |
/// | the database is away | nothing is published; it is asked again after 50 ms to 5 s |
///
/// ```no_run
/// # use polybus_core::{Bus, Result};
/// # use polybus_patterns::{Relay, store::OutboxStore};
/// # async fn example<S: OutboxStore>(bus: Bus, db: S) -> Result<()> {
/// let stop = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
/// let report = Relay::new(&bus, &db).run(stop).await?;
/// println!("{} published", report.published);
/// # Ok(()) }
/// ```
#[must_use = "call run"]
pub struct Relay {
    bus: Bus,
    table: Arc<dyn OutboxTable>,
    control: Arc<dyn StoreControl>,
    options: RelayOptions,
}

#[derive(Clone, Copy, Debug)]
struct RelayOptions {
    lease: Duration,
    poll: Duration,
    listen: bool,
    hold_key: bool,
    park_expired: bool,
}

/// What a relay did, counted in rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayReport {
    /// Published and deleted.
    pub published: u64,
    /// Parked.
    pub parked: u64,
    /// Deleted, or parked, because they had expired.
    pub expired: u64,
    /// Rows that will be published again although the broker may have them: the answer was lost, or the database did
    /// not answer the delete. And rows that were published twice: this relay found them deleted by another one, which
    /// had its slots while it stood still.
    pub may_duplicate: u64,
    /// Leases that ran out while this relay held them.
    pub leases_lost: u64,
}

#[derive(Debug, Default)]
struct RelayCounts {
    published: AtomicU64,
    parked: AtomicU64,
    expired: AtomicU64,
    may_duplicate: AtomicU64,
    leases_lost: AtomicU64,
}

impl RelayCounts {
    fn report(&self) -> RelayReport {
        let n = |count: &AtomicU64| count.load(Ordering::Relaxed);
        RelayReport {
            published: n(&self.published),
            parked: n(&self.parked),
            expired: n(&self.expired),
            may_duplicate: n(&self.may_duplicate),
            leases_lost: n(&self.leases_lost),
        }
    }
}

/// What all parts of a running relay share.
struct RelayShared {
    bus: Bus,
    table: Arc<dyn OutboxTable>,
    control: Arc<dyn StoreControl>,
    options: RelayOptions,
    owner: String,
    slots: slots::SlotTable,
    counts: RelayCounts,
    /// Bounds what lanes ask of the database at once, so that leases find a connection.
    lane_calls: tokio::sync::Semaphore,
    /// The part of them that lanes may have whose last calls failed.
    failing_calls: tokio::sync::Semaphore,
}

/// How many lanes read or write at once. A store has a few connections for all of this.
const LANE_CALLS: usize = 2;

impl Relay {
    /// A relay from this store to this bus. No I/O.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # async fn example<S: OutboxStore>(bus: polybus_core::Bus, db: S) -> polybus_core::Result<()> {
    /// let relay = Relay::new(&bus, &db);
    /// # Ok(()) }
    /// ```
    pub fn new<S: OutboxStore>(bus: &Bus, store: &S) -> Self {
        let options = RelayOptions {
            lease: Duration::from_secs(10),
            poll: Duration::from_millis(200),
            listen: false,
            hold_key: false,
            park_expired: false,
        };
        Self { bus: bus.clone(), table: store.outbox(), control: Store::control(store), options }
    }

    /// Sets the term of the leases: how long the slots of a relay that was killed stand still at most. Default 10 s,
    /// at least 1 s.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # use std::time::Duration;
    /// # async fn example<S: OutboxStore>(bus: polybus_core::Bus, db: S) -> polybus_core::Result<()> {
    /// let relay = Relay::new(&bus, &db).lease(Duration::from_secs(5));
    /// # Ok(()) }
    /// ```
    pub fn lease(mut self, term: Duration) -> Self {
        self.options.lease = term;
        self
    }

    /// Sets how often it looks for rows without having been told. Default 200 ms.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # use std::time::Duration;
    /// # async fn example<S: OutboxStore>(bus: polybus_core::Bus, db: S) -> polybus_core::Result<()> {
    /// let relay = Relay::new(&bus, &db).poll(Duration::from_secs(1));
    /// # Ok(()) }
    /// ```
    pub fn poll(mut self, interval: Duration) -> Self {
        self.options.poll = interval;
        self
    }

    /// Listens for [`Outbox::notify`](crate::Outbox::notify) of other processes, where the database can. Default: no.
    ///
    /// It takes one connection, which must not go through a pooler in transaction mode; the relay tests that at the
    /// start, and says in the log when it does not work. Rows are found by polling then.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # async fn example<S: OutboxStore>(bus: polybus_core::Bus, db: S) -> polybus_core::Result<()> {
    /// let relay = Relay::new(&bus, &db).listen(true);
    /// # Ok(()) }
    /// ```
    pub fn listen(mut self, on: bool) -> Self {
        self.options.listen = on;
        self
    }

    /// Holds a key up when one of its rows is parked, until that row is retried or discarded. Default: the key goes on,
    /// without that message.
    ///
    /// On an unordered address, rows of the key that were read together with that one may go before it is parked.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # async fn example<S: OutboxStore>(bus: polybus_core::Bus, db: S) -> polybus_core::Result<()> {
    /// let relay = Relay::new(&bus, &db).hold_key(true);
    /// # Ok(()) }
    /// ```
    pub fn hold_key(mut self, on: bool) -> Self {
        self.options.hold_key = on;
        self
    }

    /// Parks rows whose message expired before it could be published, with the reason `expired`. Default: they are
    /// deleted and counted.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # async fn example<S: OutboxStore>(bus: polybus_core::Bus, db: S) -> polybus_core::Result<()> {
    /// let relay = Relay::new(&bus, &db).park_expired(true);
    /// # Ok(()) }
    /// ```
    pub fn park_expired(mut self, on: bool) -> Self {
        self.options.park_expired = on;
        self
    }

    /// Publishes until `shutdown` has ended. Then it starts nothing more, waits for what is under way, and gives its
    /// slots back. A broker that does not answer is waited for up to the bus' publish timeout, and after it a database
    /// that does not answer up to 10 s and one lease.
    ///
    /// Before that, a database or a broker that is away is waited for.
    ///
    /// # Errors
    /// - `ConfigInvalid`: the tables are missing, or of a version this code does not know.
    /// - `InvalidArgument`: a lease below 1 s, or a polling interval of 0.
    /// - `Closed`: the bus or the store's pool was closed.
    ///
    /// # Cancel safety
    /// Dropping the future stops it at once. Messages that were under way may be published again, and its slots are
    /// free after one lease.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # async fn example<S: OutboxStore>(bus: polybus_core::Bus, db: S) -> polybus_core::Result<()> {
    /// let stop = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
    /// println!("{:?}", Relay::new(&bus, &db).run(stop).await?);
    /// # Ok(()) }
    /// ```
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<RelayReport> {
        let Self { bus, table, control, options } = self;
        if options.lease < Duration::from_secs(1) || options.poll.is_zero() {
            return Err(Error::invalid("relay: use a lease of at least 1 s, and a polling interval above 0"));
        }
        let mut shutdown = std::pin::pin!(shutdown);
        let verified = tokio::select! {
            verified = calls::verify(&*control, &["lease", "outbox"]) => Some(verified),
            () = &mut shutdown => None,
        };
        match verified {
            None => return Ok(RelayReport::default()),
            Some(verified) => verified?,
        }
        let slots = slots::SlotTable::default();
        let owner = Uuid::now_v7().to_string();
        let shared = Arc::new(RelayShared {
            bus,
            table,
            control,
            options,
            owner,
            slots,
            counts: RelayCounts::default(),
            lane_calls: tokio::sync::Semaphore::new(LANE_CALLS),
            failing_calls: tokio::sync::Semaphore::new(LANE_CALLS / 2),
        });
        let result = dispatcher::run(&shared, shutdown).await;
        result.map(|()| shared.counts.report())
    }
}
