//! PostgreSQL.

mod control;
mod inbox;
mod inbox_table;
mod lease;
mod notify;
mod outbox;
mod outbox_read;
mod outbox_stats;
mod outbox_table;
mod parked;
mod pools;
mod schema;
mod statements;
mod tx;

use std::{
    error::Error as StdError,
    sync::{Arc, OnceLock},
};

use polybus_core::{Error, Result};
use polybus_patterns::store::{ChangeSignal, Outage, Store, StoreControl, StoreTrouble};
use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::OnceCell;

use self::statements::Statements;
pub use self::tx::PostgresTx;
use crate::{
    clock::{Built, ClockOffset},
    error::{self, Effect},
    names::PREFIX,
};

/// The backend in errors, logs and metrics.
const SYSTEM: &str = "postgres";

/// The database's clock in microseconds since 1970.
const CLOCK: &str = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

/// A store on the application's pool of connections to a PostgreSQL database.
///
/// It does no I/O. Beside the application's pool it opens up to three connections of its own at the first use, with the
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
    Postgres::build(pool, PREFIX.to_owned(), None, ClockOffset::default())
}

/// The tables on PostgreSQL 13 or newer: see [`postgres`]. It is cheap to clone.
///
/// Names of tables are always qualified, so that a caller's `search_path` does not matter. Nothing needs a session, so
/// a pooler in transaction mode will do (with `statement_cache_capacity(0)`), except for NOTIFY.
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
    prefix: String,
    schema: Option<String>,
    /// The schema where the tables were found, if none was given.
    found_schema: OnceCell<String>,
    offset: ClockOffset,
    statements: Built<Statements>,
    changes: ChangeSignal,
    outage: Outage,
}

impl Postgres {
    fn build(pool: PgPool, prefix: String, schema: Option<String>, offset: ClockOffset) -> Self {
        Self(Arc::new(Shared {
            pool,
            control: OnceLock::new(),
            prefix,
            schema,
            found_schema: OnceCell::new(),
            offset,
            statements: Built::default(),
            changes: ChangeSignal::default(),
            outage: Outage::default(),
        }))
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
        Self::build(self.0.pool.clone(), prefix.into(), self.0.schema.clone(), self.0.offset.clone())
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
        Self::build(self.0.pool.clone(), self.0.prefix.clone(), Some(schema.into()), self.0.offset.clone())
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
        let conn = self.0.pool.acquire().await.map_err(reading("begin"))?;
        PostgresTx::begin(conn).await.map_err(reading("begin"))
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
        self.0.offset.set(micros);
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
            .field("prefix", &self.0.prefix)
            .field("schema", &self.0.schema)
            .finish_non_exhaustive()
    }
}
