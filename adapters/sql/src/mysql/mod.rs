//! MySQL and MariaDB.

mod control;
mod control_conn;
mod give_back;
mod inbox;
mod inbox_table;
mod job;
mod lease;
mod literals;
mod log;
mod outbox;
mod outbox_read;
mod outbox_stats;
mod outbox_table;
mod own_mark;
mod parked;
mod pools;
mod schema;
mod sequence;
mod sequence_table;
mod server;
mod statements;
mod tx;

use std::{
    error::Error as StdError,
    sync::{Arc, OnceLock},
};

use polybus_core::{Error, Result};
use polybus_patterns::store::{ChangeSignal, Outage, Store, StoreControl, StoreTrouble};
use sqlx::{Connection, MySqlConnection, MySqlPool};
use tokio::sync::OnceCell;

pub use self::tx::MySqlTx;
use self::{server::Server, statements::Statements};
use crate::{
    clock::{Built, ClockOffset},
    error::{self, Effect},
    names::PREFIX,
    probe::Probe,
};

/// The backend in errors, logs and metrics.
const SYSTEM: &str = "mysql";

/// The database's clock in microseconds since 1970, whatever the session's time zone is: that of NOW() repeats an hour
/// each autumn. It is the time at which the statement began.
const CLOCK: &str = "TIMESTAMPDIFF(MICROSECOND, TIMESTAMP('1970-01-01'), UTC_TIMESTAMP(6))";

/// A store on the application's pool of connections to a MySQL or MariaDB database.
///
/// It does no I/O. Beside the application's pool it opens up to four connections of its own at the first use, with the
/// same options, for what its loops do: a lease must be renewed also while handlers have all connections of the pool.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = sqlx::MySqlPool::connect("mysql://shop@localhost/shop").await?;
/// let store = polybus_sql::mysql(pool);
/// store.migrate().await?;
/// # Ok(())
/// # }
/// ```
pub fn mysql(pool: MySqlPool) -> MySql {
    MySql::build(pool, PREFIX.to_owned(), None, ClockOffset::default())
}

/// The tables on MySQL 8.0 or newer, or MariaDB 10.6 or newer: see [`mysql`]. It is cheap to clone.
///
/// Names of tables are always qualified, so that a caller's `USE` does not matter. The first use looks at the server: a
/// `sql_mode` that is not strict is refused, since it cuts what does not fit.
///
/// All rows are written through one server: where several take writes (Galera, group replication), ids do not rise in
/// the order of commits.
///
/// ```no_run
/// # async fn example(pool: sqlx::MySqlPool) -> Result<(), Box<dyn std::error::Error>> {
/// let store = polybus_sql::mysql(pool).prefix("shop_");
/// store.verify().await?;
/// let mut tx = store.begin().await?;
/// sqlx::query("UPDATE orders SET paid = 1 WHERE id = ?").bind(7_i64).execute(&mut *tx).await?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MySql(Arc<Shared>);

struct Shared {
    pool: MySqlPool,
    control: OnceLock<pools::ControlPool>,
    prefix: String,
    database: Option<String>,
    server: OnceCell<Server>,
    offset: ClockOffset,
    statements: Built<Statements>,
    changes: ChangeSignal,
    outage: Outage,
    probe: Arc<Probe>,
    turns: job::KnownTurns,
}

impl MySql {
    fn build(pool: MySqlPool, prefix: String, database: Option<String>, offset: ClockOffset) -> Self {
        Self(Arc::new(Shared {
            pool,
            control: OnceLock::new(),
            prefix,
            database,
            server: OnceCell::new(),
            offset,
            statements: Built::default(),
            changes: ChangeSignal::default(),
            outage: Outage::default(),
            probe: Arc::default(),
            turns: job::KnownTurns::default(),
        }))
    }

    /// What the names of all tables begin with; `polybus_` if not given. Two services that share a schema must not
    /// share their outbox: give each its own.
    ///
    /// It must be 1 to 21 of `a-z`, `0-9` and `_`, beginning with a letter; else the first use fails with
    /// `ConfigInvalid`.
    ///
    /// ```no_run
    /// # fn example(pool: sqlx::MySqlPool) {
    /// let store = polybus_sql::mysql(pool).prefix("shop_");
    /// # }
    /// ```
    #[must_use]
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        Self::build(self.0.pool.clone(), prefix.into(), self.0.database.clone(), self.0.offset.clone())
    }

    /// The database of the tables.
    ///
    /// Without it they are in the one that a new connection of the pool has chosen.
    ///
    /// ```no_run
    /// # fn example(pool: sqlx::MySqlPool) {
    /// let store = polybus_sql::mysql(pool).database("messaging");
    /// # }
    /// ```
    #[must_use]
    pub fn database(self, database: impl Into<String>) -> Self {
        Self::build(self.0.pool.clone(), self.0.prefix.clone(), Some(database.into()), self.0.offset.clone())
    }

    /// The application's pool.
    ///
    /// ```no_run
    /// # fn example(pool: sqlx::MySqlPool) {
    /// assert!(!polybus_sql::mysql(pool).pool().is_closed());
    /// # }
    /// ```
    pub fn pool(&self) -> &MySqlPool {
        &self.0.pool
    }

    /// Begins a transaction at the isolation level read committed, whatever the database's default is, on a connection
    /// of the application's pool.
    ///
    /// Dropping the future leaves no transaction open. Dropping the transaction rolls it back.
    ///
    /// # Errors
    /// `Unavailable` and Safe if the database is away or the pool has no connection in time.
    ///
    /// ```no_run
    /// # async fn example(store: polybus_sql::MySql) -> polybus_core::Result<()> {
    /// let mut tx = store.begin().await?;
    /// sqlx::query("DELETE FROM carts").execute(&mut *tx).await.expect("the table is there");
    /// tx.commit().await
    /// # }
    /// ```
    pub async fn begin(&self) -> Result<MySqlTx> {
        let conn = self.0.pool.acquire().await.map_err(reading("begin"))?;
        MySqlTx::begin(self, conn).await.map_err(reading("begin"))
    }

    /// Commits: the same as [`MySqlTx::commit`].
    ///
    /// # Errors
    /// See there.
    ///
    /// ```no_run
    /// # async fn example(store: polybus_sql::MySql) -> polybus_core::Result<()> {
    /// polybus_sql::MySql::commit(store.begin().await?).await
    /// # }
    /// ```
    pub async fn commit(tx: MySqlTx) -> Result<()> {
        tx.commit().await
    }

    /// Moves the database's clock by so many microseconds, forwards or backwards, in all statements of all clones.
    ///
    /// ```no_run
    /// # fn example(store: polybus_sql::MySql) {
    /// store.set_clock_offset(3_600_000_000);
    /// assert_eq!(store.clone().clock_offset(), 3_600_000_000);
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
    /// # fn example(store: polybus_sql::MySql) {
    /// assert_eq!(store.clock_offset(), 0);
    /// # }
    /// ```
    #[cfg(feature = "testing")]
    #[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
    pub fn clock_offset(&self) -> i64 {
        self.0.offset.get()
    }
}

/// The error of an operation that cannot have had an effect where it failed.
fn reading(operation: &'static str) -> impl Fn(sqlx::Error) -> Error + use<> {
    move |error| error::of(error, SYSTEM, operation, Effect::None)
}

/// The error of a commit, or of a statement that commits by itself.
fn committing(operation: &'static str) -> impl Fn(sqlx::Error) -> Error + use<> {
    move |error| error::of(error, SYSTEM, operation, Effect::Committed)
}

/// The error of a write on the caller's connection: outside a transaction the statement commits by itself.
fn reading_or_committing(conn: &MySqlConnection, operation: &'static str) -> impl Fn(sqlx::Error) -> Error + use<> {
    let effect = if conn.is_in_transaction() { Effect::None } else { Effect::Committed };
    move |error| error::of(error, SYSTEM, operation, effect)
}

impl Store for MySql {
    type Conn = MySqlConnection;
    type Tx = MySqlTx;

    async fn begin(&self) -> Result<MySqlTx> {
        Self::begin(self).await
    }

    async fn commit(tx: MySqlTx) -> Result<()> {
        tx.commit().await
    }

    fn in_transaction(conn: &mut MySqlConnection) -> bool {
        conn.is_in_transaction()
    }

    fn judge(&self, error: &(dyn StdError + 'static)) -> StoreTrouble {
        error::judge(error)
    }

    fn control(&self) -> Arc<dyn StoreControl> {
        Arc::new(control::Control(self.clone()))
    }
}

impl std::fmt::Debug for MySql {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MySql")
            .field("prefix", &self.0.prefix)
            .field("database", &self.0.database)
            .finish_non_exhaustive()
    }
}
