//! SQLite: one file, one writer at a time.

mod control;
mod inbox;
mod inbox_table;
mod job;
mod lease;
mod log;
mod outbox;
mod outbox_read;
mod outbox_stats;
mod outbox_table;
mod parked;
mod ready;
mod schema;
mod sequence;
mod sequence_table;
mod statements;
mod temp;
mod tx;
mod write_queue;

use std::{
    error::Error as StdError,
    sync::{Arc, atomic::AtomicUsize},
};

use polybus_core::{Error, Result};
use polybus_patterns::store::{ChangeSignal, Outage, Store, StoreControl, StoreTrouble, current_run};
use sqlx::{
    Connection, SqlStr, Sqlite as Client, SqliteConnection, SqlitePool, Transaction, pool::PoolConnection,
    sqlite::SqliteConnectOptions,
};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use self::{
    statements::Statements,
    write_queue::{Turn, WriteQueue},
};
pub use self::{temp::sqlite_temp, tx::SqliteTx};
use crate::{
    clock::{Built, ClockOffset},
    error::{self, Effect},
    names::PREFIX,
    probe::Probe,
    swept::Swept,
};

/// The backend in errors, logs and metrics.
const SYSTEM: &str = "sqlite";

/// After how long a wait for the turn to write is mentioned in the log.
const LONG_TURN: std::time::Duration = std::time::Duration::from_secs(10);

/// The database's clock in microseconds since 1970.
const CLOCK: &str = "CAST(unixepoch('subsec') * 1000000 AS INTEGER)";

/// A store on the application's pool of connections to one SQLite file.
///
/// It does no I/O. The file should be in WAL mode (`SqliteConnectOptions::journal_mode`), or readers and the writer
/// stand in each other's way. For tests there is [`sqlite_temp`].
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool};
///
/// let options = SqliteConnectOptions::new()
///     .filename("shop.db")
///     .create_if_missing(true)
///     .journal_mode(SqliteJournalMode::Wal);
/// let store = polybus_sql::sqlite(SqlitePool::connect_with(options).await?);
/// store.migrate().await?;
/// # Ok(())
/// # }
/// ```
pub fn sqlite(pool: SqlitePool) -> Sqlite {
    Sqlite::build(pool, PREFIX.to_owned(), ClockOffset::default(), None)
}

/// The tables on SQLite 3.42 or newer: see [`sqlite`]. It is cheap to clone.
///
/// One transaction writes at a time. Within a process they wait in a fair queue, without a limit, leases first; so
/// handlers with a transaction run one after the other, and slow work belongs in front of the transaction. Another
/// process that writes makes [`begin`](Self::begin) wait for SQLite's own busy timeout.
///
/// ```no_run
/// # async fn example() -> polybus_core::Result<()> {
/// let store = polybus_sql::sqlite_temp().await?;
/// store.migrate().await?;
/// let mut tx = store.begin().await?;
/// sqlx::query("CREATE TABLE orders (id INTEGER PRIMARY KEY)").execute(&mut *tx).await.expect("it is new");
/// tx.commit().await
/// # }
/// ```
#[derive(Clone)]
pub struct Sqlite(Arc<Shared>);

struct Shared {
    pool: SqlitePool,
    prefix: String,
    offset: ClockOffset,
    ready: OnceCell<Arc<WriteQueue>>,
    statements: Built<Statements>,
    changes: ChangeSignal,
    outage: Outage,
    probe: Arc<Probe>,
    swept: Swept,
    /// The slot that the next read of the outbox begins with.
    first_slot: AtomicUsize,
    /// Tells databases in memory apart: as long as this is here, its address is its own.
    connect_options: Arc<SqliteConnectOptions>,
    /// A folder that is removed with the last clone.
    temp: Option<Arc<TempDir>>,
}

impl Sqlite {
    fn build(pool: SqlitePool, prefix: String, offset: ClockOffset, temp: Option<Arc<TempDir>>) -> Self {
        Self(Arc::new(Shared {
            connect_options: pool.connect_options(),
            pool,
            prefix,
            offset,
            ready: OnceCell::new(),
            statements: Built::default(),
            changes: ChangeSignal::default(),
            outage: Outage::default(),
            probe: Arc::default(),
            swept: Swept::default(),
            first_slot: AtomicUsize::new(0),
            temp,
        }))
    }

    /// What the names of all tables begin with; `polybus_` if not given. Two services that share a database must not
    /// share their outbox: give each its own.
    ///
    /// It must be 1 to 21 of `a-z`, `0-9` and `_`, beginning with a letter; else the first use fails with
    /// `ConfigInvalid`.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = sqlx::SqlitePool::connect("sqlite:shop.db").await?;
    /// let store = polybus_sql::sqlite(pool).prefix("shop_");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        Self::build(self.0.pool.clone(), prefix.into(), self.0.offset.clone(), self.0.temp.clone())
    }

    /// The application's pool.
    ///
    /// ```no_run
    /// # async fn example() -> polybus_core::Result<()> {
    /// let store = polybus_sql::sqlite_temp().await?;
    /// assert!(!store.pool().is_closed());
    /// # Ok(())
    /// # }
    /// ```
    pub fn pool(&self) -> &SqlitePool {
        &self.0.pool
    }

    /// Begins a transaction that can write (`BEGIN IMMEDIATE`), when it is its turn in the process' queue.
    ///
    /// Use it for all transactions that write, also those that write no row of polybus: one that begins by reading
    /// (`pool.begin()`) fails as soon as another one wrote meanwhile.
    ///
    /// Dropping the future leaves the queue. Dropping the transaction rolls it back.
    ///
    /// # Errors
    /// `Unavailable` and Safe if another process writes for longer than the busy timeout, or if the pool has no
    /// connection in time. `ConfigInvalid` for a SQLite that is too old. `InvalidArgument` in a handler of the inbox
    /// that has a transaction already: it would wait for itself for ever.
    ///
    /// ```no_run
    /// # async fn example(store: polybus_sql::Sqlite) -> polybus_core::Result<()> {
    /// let mut tx = store.begin().await?;
    /// sqlx::query("DELETE FROM carts").execute(&mut *tx).await.expect("the table is there");
    /// tx.commit().await
    /// # }
    /// ```
    pub async fn begin(&self) -> Result<SqliteTx> {
        self.begin_in_turn(Turn::Normal, "begin").await
    }

    /// Commits: the same as [`SqliteTx::commit`].
    ///
    /// # Errors
    /// See there.
    ///
    /// ```no_run
    /// # async fn example(store: polybus_sql::Sqlite) -> polybus_core::Result<()> {
    /// polybus_sql::Sqlite::commit(store.begin().await?).await
    /// # }
    /// ```
    pub async fn commit(tx: SqliteTx) -> Result<()> {
        tx.commit().await
    }

    /// Moves the database's clock by so many microseconds, forwards or backwards, in all statements of all clones.
    ///
    /// ```no_run
    /// # async fn example() -> polybus_core::Result<()> {
    /// let store = polybus_sql::sqlite_temp().await?;
    /// store.set_clock_offset(3_600_000_000);
    /// assert_eq!(store.clone().clock_offset(), 3_600_000_000);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "testing")]
    #[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
    pub fn set_clock_offset(&self, micros: i64) {
        self.0.offset.set(micros);
    }

    /// By how many microseconds the clock was moved.
    ///
    /// ```no_run
    /// # async fn example() -> polybus_core::Result<()> {
    /// assert_eq!(polybus_sql::sqlite_temp().await?.clock_offset(), 0);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "testing")]
    #[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
    pub fn clock_offset(&self) -> i64 {
        self.0.offset.get()
    }

    async fn begin_in_turn(&self, turn: Turn, operation: &'static str) -> Result<SqliteTx> {
        // The turn first: those who wait for it hold no connection.
        let (queue, run) = (self.ready().await?, current_run());
        if queue.is_held_by(run) {
            let text = "a handler of the inbox began another transaction while it has its own, and would wait for itself for \
                        ever: use the transaction that came with the message, or do this before or after the handler";
            return Err(Error::invalid(text).of_driver(SYSTEM, operation));
        }
        let permit = {
            let mut turn = std::pin::pin!(queue.turn(turn));
            match tokio::time::timeout(LONG_TURN, &mut turn).await {
                Ok(permit) => permit,
                Err(_) => {
                    tracing::warn!(
                        target: "polybus", operation,
                        "a transaction has waited for its turn to write for {LONG_TURN:?}. A handler that begins another one \
                         while it has its own would wait for ever"
                    );
                    turn.await
                }
            }
        };
        permit.of_run(run);
        let tx = self.begin_immediate().await.map_err(reading(operation))?;
        permit.writing();
        SqliteTx::new(tx, permit).await.map_err(reading(operation))
    }

    /// SQLite ends a transaction by itself at some errors (FULL, IOERR, NOMEM, and whatever `OR ROLLBACK` stands at).
    /// sqlx goes on counting it, and on that connection no BEGIN succeeds ever after. [`SqliteTx`] mends its own; one
    /// that comes from a transaction of the application's is closed.
    async fn begin_immediate(&self) -> sqlx::Result<Transaction<'static, Client>> {
        loop {
            let conn = self.0.pool.acquire().await?;
            if !conn.is_in_transaction() {
                return Transaction::begin(conn, Some(SqlStr::from_static("BEGIN IMMEDIATE"))).await;
            }
            // The connection is of no use, and neither is what it says to that.
            let _ = conn.close().await;
        }
    }

    /// A connection for reading, which needs no turn.
    async fn reader(&self, operation: &'static str) -> Result<PoolConnection<Client>> {
        self.ready().await?;
        self.0.pool.acquire().await.map_err(reading(operation))
    }
}

/// The error of an operation that cannot have had an effect where it failed.
fn reading(operation: &'static str) -> impl Fn(sqlx::Error) -> Error + use<> {
    move |error| error::of(error, SYSTEM, operation, Effect::None)
}

/// The error of a commit.
fn committing(operation: &'static str) -> impl Fn(sqlx::Error) -> Error + use<> {
    move |error| error::of(error, SYSTEM, operation, Effect::Committed)
}

/// The error of a write on the caller's connection: outside a transaction the statement commits by itself.
fn reading_or_committing(conn: &SqliteConnection, operation: &'static str) -> impl Fn(sqlx::Error) -> Error + use<> {
    let effect = if conn.is_in_transaction() { Effect::None } else { Effect::Committed };
    move |error| error::of(error, SYSTEM, operation, effect)
}

impl Store for Sqlite {
    type Conn = SqliteConnection;
    type Tx = SqliteTx;

    async fn begin(&self) -> Result<SqliteTx> {
        Self::begin(self).await
    }

    async fn commit(tx: SqliteTx) -> Result<()> {
        tx.commit().await
    }

    fn in_transaction(conn: &mut SqliteConnection) -> bool {
        conn.is_in_transaction()
    }

    fn judge(&self, error: &(dyn StdError + 'static)) -> StoreTrouble {
        error::judge(error)
    }

    fn control(&self) -> Arc<dyn StoreControl> {
        Arc::new(control::Control(self.clone()))
    }
}

impl std::fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sqlite")
            .field("file", &self.0.connect_options.get_filename())
            .field("prefix", &self.0.prefix)
            .finish_non_exhaustive()
    }
}
