//! What a database must do for the patterns: transactions, leases, and one trait for each pattern's tables.
//!
//! Users name one store type, such as `polybus_sql::Postgres`, and pass their own transaction. The calls that join it
//! are generic over [`Store`], whose [`Conn`](Store::Conn) is the database client's connection. The loops and the
//! administration hold object-safe tables instead: [`OutboxTable`], [`InboxTable`], [`SequenceTable`], [`JobTable`],
//! [`ScheduleTable`], [`LogTable`], [`LeaseTable`].
//!
//! Whoever writes a store of their own proves it with the store suite of `polybus-conformance`.
//!
//! # What every store keeps
//! - All times are the database's own, in microseconds since 1970. The clock of a process is never compared with that
//!   of another.
//! - Names of tables are qualified, so that the caller's search path does not matter.
//! - An answer that was lost is `Unavailable` with [`MayDuplicate`](polybus_core::RetrySafety::MayDuplicate); what was
//!   surely not done is [`Safe`](polybus_core::RetrySafety::Safe).
//! - A call that is dropped leaves no transaction open and no connection in use.

pub(crate) mod calls;
mod change_signal;
mod inbox_store;
mod job_store;
mod lease;
mod log_store;
mod look_times;
mod outage;
mod outbox_store;
mod run;
mod schedule_store;
mod sequence_store;

use std::{error::Error as StdError, future::Future, ops::DerefMut, sync::Arc, time::Duration};

use polybus_core::{Result, driver::async_trait};

pub use self::{
    change_signal::{ChangeListener, ChangeSignal},
    inbox_store::{InboxStore, InboxTable, Mark, MarkKey, TransactionLimits},
    job_store::{
        ClaimedJob, JobClaim, JobCount, JobDue, JobEnd, JobEnding, JobExtended, JobFilter, JobInserted, JobOutcome,
        JobSettled, JobState, JobStore, JobTable, NewJobRow, RescuedJobs, StoredJob, StoredQueue, UniqueJob,
        UniqueUntil,
    },
    lease::{Lease, LeaseTable},
    log_store::{
        AppendOutcome, Checkpoint, LogFloor, LogPage, LogStore, LogTable, NewLogEvent, StoppedSubscription,
        StoredEvent, StoredSnapshot, StoredStream, StoredSubscription, StreamAppend, StreamExpectation, StreamRead,
        StreamState,
    },
    outage::Outage,
    outbox_store::{
        DueRows, NewRow, OutboxRow, OutboxStats, OutboxStore, OutboxTable, ParkedFilter, ParkedRow, ReadRows, RowId,
        SLOTS, SqlValue, StoredRow,
    },
    run::current_run,
    schedule_store::{ScheduleTable, Schedules, StoredSchedule},
    sequence_store::{GuardKey, GuardedKey, SequenceStore, SequenceTable, StoredGap, StoredProgress},
};
pub(crate) use self::{look_times::LookTimes, run::in_run, sequence_store::AnySequences};

/// A database with the tables of polybus.
///
/// It is cheap to clone: a handle on a pool. Making one does no I/O.
pub trait Store: Clone + Send + Sync + 'static {
    /// The database client's connection: what a transaction derefs to.
    type Conn: Send;
    /// A transaction that rolls back when it is dropped.
    type Tx: DerefMut<Target = Self::Conn> + Send + 'static;

    /// Begins a transaction that can write, at the isolation level read committed where there are levels.
    ///
    /// On a database with one writer at a time it waits in a fair queue for its turn.
    fn begin(&self) -> impl Future<Output = Result<Self::Tx>> + Send;

    /// Commits. An error with [`MayDuplicate`](polybus_core::RetrySafety::MayDuplicate) says that it may have
    /// happened.
    ///
    /// `Ok` does not prove that the transaction's writes are there: PostgreSQL answers the COMMIT of an aborted
    /// transaction with Ok. The inbox reads its mark back first.
    fn commit(tx: Self::Tx) -> impl Future<Output = Result<()>> + Send;

    /// Whether this connection is inside a transaction, as far as its client knows.
    fn in_transaction(conn: &mut Self::Conn) -> bool;

    /// What an error of a handler, or a cause of it, says about the database.
    fn judge(&self, error: &(dyn StdError + 'static)) -> StoreTrouble;

    /// The database as loops see it: whether it is there, its leases, its signal of changes.
    fn control(&self) -> Arc<dyn StoreControl>;
}

/// What an error says about the database: see [`Store::judge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreTrouble {
    /// Nothing: a fault of the data or of the program, or no error of the database at all.
    None,
    /// The transaction lost against another one (deadlock, serialization, lock timeout, busy), and nothing was done.
    /// Run it again at once.
    Contention,
    /// The database may be away. [`StoreControl::is_away`] tells.
    MaybeAway,
    /// The database has no room to write: its disk is full, or a limit of its size is reached. Somebody must make room;
    /// until then everything waits.
    NoRoom,
}

/// The database as loops see it, without its types.
#[async_trait]
pub trait StoreControl: Send + Sync {
    /// Whether the database does not answer now. It asks on a connection of its own, and takes at most about a second.
    async fn is_away(&self) -> bool;

    /// Compares the tables of these components (`lease`, `outbox`, `inbox`, `sequence`, `job`, `log`) with what this code needs.
    ///
    /// # Errors
    /// `ConfigInvalid` for tables that are missing, older or newer, naming both versions, and for a sequence that went
    /// back, with the statement that mends it.
    async fn verify(&self, components: &[&str]) -> Result<()>;

    /// The leases.
    fn leases(&self) -> Arc<dyn LeaseTable>;

    /// The signal that rows were written, shared by all clones of the store in this process.
    fn changes(&self) -> &ChangeSignal;

    /// What is known of the database being away, shared by all clones of the store in this process.
    fn outage(&self) -> &Outage;

    /// Tells other processes that rows were written, if the database can. Default: nothing.
    async fn notify(&self) -> Result<()> {
        Ok(())
    }

    /// Listens for [`notify`](Self::notify) of other processes, and raises [`changes`](Self::changes) for each. It
    /// returns only with an error. Default: the database cannot, and it never returns.
    ///
    /// It tests itself by a round trip at the start, and fails if that does not come back.
    async fn listen(&self) -> Result<()> {
        std::future::pending().await
    }

    /// How many connections the application's pool has; `None` without a limit.
    fn max_connections(&self) -> Option<u32>;

    /// Whether one transaction writes at a time, so that handlers with a transaction run one after the other.
    fn single_writer(&self) -> bool;

    /// The database's name for logs and metrics: `postgres`, `sqlite`.
    fn system(&self) -> &'static str;
}

/// A time span in whole microseconds, as the tables hold it.
pub fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX / 4)
}
