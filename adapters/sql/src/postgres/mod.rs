//! PostgreSQL.

mod control;
mod control_conn;
mod give_back;
mod hand_over;
mod inbox;
mod inbox_table;
mod job;
mod lease;
mod log;
mod notify;
mod outbox;
mod outbox_read;
mod outbox_stats;
mod outbox_table;
mod parked;
mod pools;
mod schema;
mod sequence;
mod sequence_table;
mod statements;
mod tx;
mod version;

use std::{
    error::Error as StdError,
    sync::{Arc, OnceLock},
};

use polybus_core::{Error, Result};
use polybus_patterns::store::{ChangeSignal, Outage, Store, StoreControl, StoreTrouble, TransactionLimits};
use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::OnceCell;

use self::statements::Statements;
pub use self::tx::PostgresTx;
use crate::{
    clock::{Built, ClockOffset},
    error::{self, Effect},
    names::PREFIX,
    probe::Probe,
    swept::Swept,
};

/// The backend in errors, logs and metrics.
const SYSTEM: &str = "postgres";

/// The database's clock in microseconds since 1970.
const CLOCK: &str = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

/// A store on the application's pool of connections to a PostgreSQL database.
///
/// It does no I/O. Beside the application's pool it opens up to four connections of its own at the first use, with the
/// same options, for what its loops do: a lease must be renewed also while handlers have all connections of the pool.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = sqlx::PgPool::connect("postgres://shop@localhost/shop").await?;
/// let store = polybus_sql::postgres(pool);
/// store.migrate().await?;
/// # Ok(())
/// # }
/// ```
pub fn postgres(pool: PgPool) -> Postgres {
    Postgres::build(pool, Options::default())
}

/// The tables on PostgreSQL 13 or newer: see [`postgres`]. It is cheap to clone.
///
/// Names of tables are always qualified, so that a caller's `search_path` does not matter. Nothing needs a session, so
/// a pooler in transaction mode will do, except for NOTIFY, if it keeps prepared statements apart: PgBouncer 1.21 or
/// newer with `max_prepared_statements`.
///
/// ```no_run
/// # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let store = polybus_sql::postgres(pool).schema("messaging").prefix("shop_");
/// store.verify().await?;
/// let mut tx = store.begin().await?;
/// sqlx::query("UPDATE orders SET paid = true WHERE id = $1").bind(7_i64).execute(&mut *tx).await?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Postgres(Arc<Shared>);

struct Shared {
    pool: PgPool,
    control: OnceLock<pools::ControlPool>,
    options: Options,
    /// The schema where the tables were found, if none was given.
    found_schema: OnceCell<String>,
    /// The limit for locks that the sessions of the pool begin with.
    lock_timeout: OnceCell<String>,
    statements: Built<Statements>,
    changes: ChangeSignal,
    outage: Outage,
    probe: Arc<Probe>,
    swept: Swept,
    looking: give_back::Looking,
    hand_over: hand_over::HandOver,
}

/// What a store is told.
#[derive(Clone)]
struct Options {
    prefix: String,
    schema: Option<String>,
    offset: ClockOffset,
    hands_over: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { prefix: PREFIX.to_owned(), schema: None, offset: ClockOffset::default(), hands_over: false }
    }
}

impl Postgres {
    fn build(pool: PgPool, options: Options) -> Self {
        Self(Arc::new(Shared {
            pool,
            control: OnceLock::new(),
            options,
            found_schema: OnceCell::new(),
            lock_timeout: OnceCell::new(),
            statements: Built::default(),
            changes: ChangeSignal::default(),
            outage: Outage::default(),
            probe: Arc::default(),
            swept: Swept::default(),
            looking: give_back::Looking::default(),
            hand_over: hand_over::HandOver::default(),
        }))
    }

    /// The same with other options. No clone shares anything with it but the pool and the clock.
    fn with(&self, change: impl FnOnce(&mut Options)) -> Self {
        let mut options = self.0.options.clone();
        change(&mut options);
        Self::build(self.0.pool.clone(), options)
    }

    /// What the names of all tables begin with; `polybus_` if not given. Two services that share a schema must not
    /// share their outbox: give each its own.
    ///
    /// It must be 1 to 21 of `a-z`, `0-9` and `_`, beginning with a letter; else the first use fails with
    /// `ConfigInvalid`.
    ///
    /// ```no_run
    /// # fn example(pool: sqlx::PgPool) {
    /// let store = polybus_sql::postgres(pool).prefix("shop_");
    /// # }
    /// ```
    #[must_use]
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        self.with(|options| options.prefix = prefix.into())
    }

    /// The schema of the tables.
    ///
    /// Without it they are where the `search_path` of a new connection finds them, once and for all, and made in its
    /// first schema.
    ///
    /// ```no_run
    /// # fn example(pool: sqlx::PgPool) {
    /// let store = polybus_sql::postgres(pool).schema("messaging");
    /// # }
    /// ```
    #[must_use]
    pub fn schema(self, schema: impl Into<String>) -> Self {
        self.with(|options| options.schema = Some(schema.into()))
    }

    /// Lets a connection of the inbox go straight from one message to the next, where one comes within 5 ms, in place
    /// of by way of the pool. That spares two of seven round trips a message.
    ///
    /// What the pool does for each use is then done once for up to 100 messages: its tests whether the connection is
    /// alive, and the hooks `before_acquire` and `after_release`. Leave it where a hook sets what a handler relies on,
    /// such as a tenant or a role. If all connections of the pool are in use, it gets them back after each message, so
    /// that nobody waits longer.
    ///
    /// ```no_run
    /// # fn example(pool: sqlx::PgPool) {
    /// let store = polybus_sql::postgres(pool).hand_over_connections();
    /// # }
    /// ```
    #[must_use]
    pub fn hand_over_connections(self) -> Self {
        self.with(|options| options.hands_over = true)
    }

    /// The application's pool.
    ///
    /// ```no_run
    /// # fn example(pool: sqlx::PgPool) {
    /// assert!(!polybus_sql::postgres(pool).pool().is_closed());
    /// # }
    /// ```
    pub fn pool(&self) -> &PgPool {
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
    /// # async fn example(store: polybus_sql::Postgres) -> polybus_core::Result<()> {
    /// let mut tx = store.begin().await?;
    /// sqlx::query("DELETE FROM carts").execute(&mut *tx).await.expect("the table is there");
    /// tx.commit().await
    /// # }
    /// ```
    pub async fn begin(&self) -> Result<PostgresTx> {
        self.begin_with(None).await
    }

    /// [`begin`](Self::begin), with these limits.
    async fn begin_with(&self, limits: Option<&TransactionLimits>) -> Result<PostgresTx> {
        let begin = async {
            let conn = self.0.pool.acquire().await?;
            PostgresTx::begin(self, conn, limits).await
        };
        begin.await.map_err(|error| {
            // Another connection of the pool may lead nowhere as well, and would cost somebody the same time.
            if give_back::concerns_others(&error) {
                self.close_misled_soon();
            }
            reading("begin")(error)
        })
    }

    /// [`begin_with`](Self::begin_with) for a message: on a connection that the last one left, if there is any.
    async fn begin_for_message(&self, limits: &TransactionLimits) -> Result<PostgresTx> {
        if !self.0.options.hands_over {
            return self.begin_with(Some(limits)).await;
        }
        if let Some((conn, messages)) = self.0.hand_over.take() {
            // It may have died while it waited, which the pool would have noticed.
            if let Ok(mut tx) = PostgresTx::begin(self, conn, Some(limits)).await {
                tx.hand_over_after(messages);
                return Ok(tx);
            }
        }
        let mut tx = self.begin_with(Some(limits)).await?;
        tx.hand_over_after(0);
        Ok(tx)
    }

    /// Commits: the same as [`PostgresTx::commit`].
    ///
    /// # Errors
    /// See there.
    ///
    /// ```no_run
    /// # async fn example(store: polybus_sql::Postgres) -> polybus_core::Result<()> {
    /// polybus_sql::Postgres::commit(store.begin().await?).await
    /// # }
    /// ```
    pub async fn commit(tx: PostgresTx) -> Result<()> {
        tx.commit().await
    }

    /// Moves the database's clock by so many microseconds, forwards or backwards, in all statements of all clones.
    ///
    /// ```no_run
    /// # fn example(store: polybus_sql::Postgres) {
    /// store.set_clock_offset(3_600_000_000);
    /// assert_eq!(store.clone().clock_offset(), 3_600_000_000);
    /// # }
    /// ```
    #[cfg(feature = "testing")]
    #[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
    pub fn set_clock_offset(&self, micros: i64) {
        self.0.options.offset.set(micros);
    }

    /// By how many microseconds the clock was moved.
    ///
    /// ```no_run
    /// # fn example(store: polybus_sql::Postgres) {
    /// assert_eq!(store.clock_offset(), 0);
    /// # }
    /// ```
    #[cfg(feature = "testing")]
    #[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
    pub fn clock_offset(&self) -> i64 {
        self.0.options.offset.get()
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
fn reading_or_committing(conn: &PgConnection, operation: &'static str) -> impl Fn(sqlx::Error) -> Error + use<> {
    let effect = if conn.is_in_transaction() { Effect::None } else { Effect::Committed };
    move |error| error::of(error, SYSTEM, operation, effect)
}

impl Store for Postgres {
    type Conn = PgConnection;
    type Tx = PostgresTx;

    async fn begin(&self) -> Result<PostgresTx> {
        Self::begin(self).await
    }

    async fn commit(tx: PostgresTx) -> Result<()> {
        tx.commit().await
    }

    fn in_transaction(conn: &mut PgConnection) -> bool {
        conn.is_in_transaction()
    }

    fn judge(&self, error: &(dyn StdError + 'static)) -> StoreTrouble {
        error::judge(error)
    }

    fn control(&self) -> Arc<dyn StoreControl> {
        Arc::new(control::Control(self.clone()))
    }
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres")
            .field("prefix", &self.0.options.prefix)
            .field("schema", &self.0.options.schema)
            .finish_non_exhaustive()
    }
}
