//! The database that a URL names, chosen when the program runs.
//!
//! `connect` finds the store of a URL, `conn` runs statements on whichever it is, `placeholders` and `statement` make
//! one text fit all, `row` and `cell` read what comes back, and `store` is what the outbox and the inbox see.

/// The same with the variant of each database that is built in.
macro_rules! on_each {
    ($value:expr, $variants:ident, $inner:ident => $done:expr) => {
        match $value {
            #[cfg(feature = "postgres")]
            $variants::Postgres($inner) => $done,
            #[cfg(feature = "mysql")]
            $variants::MySql($inner) => $done,
            #[cfg(feature = "sqlite")]
            $variants::Sqlite($inner) => $done,
        }
    };
}

mod cell;
mod client;
mod conn;
mod connect;
#[cfg(feature = "postgres")]
mod numeric;
mod placeholders;
mod pooled;
mod row;
mod statement;
mod store;
mod tx;
mod value;

use polybus_core::Result;
use sqlx::SqlSafeStr;

pub use self::{
    conn::DbConn,
    connect::DbOptions,
    pooled::DbPooled,
    row::{DbColumn, DbRow},
    tx::DbTx,
    value::{DbType, DbValue},
};
#[cfg(feature = "mysql")]
use crate::MySql;
#[cfg(feature = "postgres")]
use crate::Postgres;
#[cfg(feature = "sqlite")]
use crate::Sqlite;

/// A store on the database that a URL names, for programs that learn it when they run. It is cheap to clone.
///
/// It does what the store of that database does, [`Postgres`], [`MySql`] or [`Sqlite`], of which at least one feature
/// must be on. A program that knows its database is better off with that one, whose connection takes all of sqlx.
///
/// Statements are written once for all of them, with a `?` for each value: see [`DbConn`].
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> polybus_core::Result<()> {
/// # let folder = tempfile::tempdir().expect("a folder");
/// # let url = format!("sqlite:{}?mode=rwc", folder.path().join("shop.db").display());
/// let db = polybus_sql::Db::connect(&url).await?;
/// db.migrate().await?;
/// db.execute("CREATE TABLE orders (id BIGINT PRIMARY KEY, customer VARCHAR(80) NOT NULL)", []).await?;
///
/// let mut tx = db.begin().await?;
/// tx.execute("INSERT INTO orders (id, customer) VALUES (?, ?)", [7.into(), "Ann".into()]).await?;
/// // The outbox and the inbox of polybus-patterns take `&mut tx` here.
/// tx.commit().await?;
///
/// let rows = db.fetch_all("SELECT id, customer FROM orders", []).await?;
/// assert_eq!((rows[0].get::<i64>(0)?, rows[0].get::<String>(1)?), (7, "Ann".to_owned()));
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "sqlite"))] fn main() {}
/// ```
#[derive(Clone)]
pub struct Db(Stores);

#[derive(Clone)]
enum Stores {
    #[cfg(feature = "postgres")]
    Postgres(Postgres),
    #[cfg(feature = "mysql")]
    MySql(MySql),
    #[cfg(feature = "sqlite")]
    Sqlite(Sqlite),
}

impl Db {
    /// Connects to the database of a URL: `postgres://` or `postgresql://`, `mysql://` or `mariadb://`, `sqlite:`.
    ///
    /// The parameters of URLs are those of sqlx. A file of SQLite must be there, unless the URL ends with `?mode=rwc`.
    /// It is switched to WAL mode, and a commit waits for the disk (`synchronous = FULL`). The pool has at most 18
    /// connections, which is enough for one worker with the default of 16 handlers: see [`DbOptions`] for another
    /// number.
    ///
    /// A store that was made with options of its own (pool, schema, hooks) becomes a `Db` by `Db::from`.
    ///
    /// # Errors
    /// `ConfigInvalid` for a URL that is malformed, of a database that is unknown, or of one whose feature is off, and
    /// for a file that cannot be opened. `Unavailable` if the database does not answer within 30 s, `Unauthenticated`
    /// if it refuses the login. None shows a password.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let url = std::env::var("DATABASE_URL")?; // such as postgres://shop:secret@localhost/shop
    /// let db = polybus_sql::Db::connect(&url).await?;
    /// db.migrate().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect(url: &str) -> Result<Self> {
        DbOptions::new().connect(url).await
    }

    /// What the names of all tables begin with; `polybus_` if not given. Two services that share a database must not
    /// share their outbox: give each its own.
    ///
    /// It must be 1 to 21 of `a-z`, `0-9` and `_`, beginning with a letter; else the first use fails with
    /// `ConfigInvalid`.
    ///
    /// ```no_run
    /// # async fn example() -> polybus_core::Result<()> {
    /// let db = polybus_sql::Db::connect("sqlite:shop.db").await?.prefix("shop_");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        on_each!(self.0, Stores, store => store.prefix(prefix).into())
    }

    /// The database's name, as in errors, logs and metrics: `postgres`, `mysql` (also for MariaDB), `sqlite`.
    ///
    /// ```no_run
    /// # fn example(db: polybus_sql::Db) {
    /// let serial = match db.system() {
    ///     "postgres" => "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    ///     "mysql" => "BIGINT AUTO_INCREMENT PRIMARY KEY",
    ///     _ => "INTEGER PRIMARY KEY AUTOINCREMENT",
    /// };
    /// # }
    /// ```
    pub fn system(&self) -> &'static str {
        match &self.0 {
            #[cfg(feature = "postgres")]
            Stores::Postgres(_) => "postgres",
            #[cfg(feature = "mysql")]
            Stores::MySql(_) => "mysql",
            #[cfg(feature = "sqlite")]
            Stores::Sqlite(_) => "sqlite",
        }
    }

    /// Makes the tables that are missing, and brings older ones up to date, as the store of this database does. It can
    /// be called at every start, by many processes at once.
    ///
    /// # Errors
    /// `ConfigInvalid` for tables that are too new, or a prefix that cannot be one.
    ///
    /// ```no_run
    /// # async fn example(db: polybus_sql::Db) -> polybus_core::Result<()> {
    /// db.migrate().await
    /// # }
    /// ```
    pub async fn migrate(&self) -> Result<()> {
        on_each!(&self.0, Stores, store => store.migrate().await)
    }

    /// Compares the tables with what this code needs, for those who run the statements of
    /// [`migration_sql`](Self::migration_sql) themselves.
    ///
    /// # Errors
    /// `ConfigInvalid` for tables that are missing, older or newer, naming both versions.
    ///
    /// ```no_run
    /// # async fn example(db: polybus_sql::Db) -> polybus_core::Result<()> {
    /// db.verify().await
    /// # }
    /// ```
    pub async fn verify(&self) -> Result<()> {
        on_each!(&self.0, Stores, store => store.verify().await)
    }

    /// All statements that [`migrate`](Self::migrate) would run on an empty database, in the words of this one.
    ///
    /// # Errors
    /// `ConfigInvalid` for a prefix that cannot be one. On servers also those of a connection, which is asked where the
    /// tables are.
    ///
    /// ```no_run
    /// # async fn example(db: polybus_sql::Db) -> polybus_core::Result<()> {
    /// println!("{}", db.migration_sql().await?);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn migration_sql(&self) -> Result<String> {
        on_each!(&self.0, Stores, store => store.migration_sql().await)
    }

    /// Begins a transaction, as the store of this database does: at the isolation level read committed on servers, and
    /// on SQLite in the fair queue of those who write.
    ///
    /// Dropping the future leaves no transaction open. Dropping the transaction rolls it back.
    ///
    /// # Errors
    /// `Unavailable` and Safe if the database is away or the pool has no connection in time. On SQLite
    /// `InvalidArgument` in a handler of the inbox that has a transaction already.
    ///
    /// ```no_run
    /// # async fn example(db: polybus_sql::Db) -> polybus_core::Result<()> {
    /// let mut tx = db.begin().await?;
    /// tx.execute("DELETE FROM carts WHERE id = ?", [7.into()]).await?;
    /// tx.commit().await
    /// # }
    /// ```
    pub async fn begin(&self) -> Result<DbTx> {
        on_each!(&self.0, Stores, store => Ok(store.begin().await?.into()))
    }

    /// Commits: the same as [`DbTx::commit`].
    ///
    /// # Errors
    /// See there.
    ///
    /// ```no_run
    /// # async fn example(db: polybus_sql::Db) -> polybus_core::Result<()> {
    /// polybus_sql::Db::commit(db.begin().await?).await
    /// # }
    /// ```
    pub async fn commit(tx: DbTx) -> Result<()> {
        tx.commit().await
    }

    /// A connection of the pool, in no transaction: each statement commits by itself.
    ///
    /// On SQLite it reads beside the one that writes. Whoever writes on it does not wait in the queue, and fails where
    /// another one writes for longer than the busy timeout: [`begin`](Self::begin) and [`execute`](Self::execute) do
    /// wait.
    ///
    /// # Errors
    /// `Unavailable` and Safe if the database is away or the pool has no connection in time.
    ///
    /// ```no_run
    /// # async fn example(db: polybus_sql::Db) -> polybus_core::Result<()> {
    /// let mut conn = db.acquire().await?;
    /// let orders: i64 = conn.fetch_one("SELECT COUNT(*) FROM orders", []).await?.get(0)?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn acquire(&self) -> Result<DbPooled> {
        DbPooled::of(self).await
    }

    /// Runs one statement by itself, and answers how many rows it inserted or matched. See [`DbConn::execute`] for its
    /// placeholders.
    ///
    /// On SQLite it waits for its turn to write and runs in a transaction, so a `PRAGMA` or `VACUUM` that forbids one
    /// needs [`acquire`](Self::acquire). **While you have a transaction, run it there**: here it would wait for that
    /// one to end, for ever, and only the log says so.
    ///
    /// # Errors
    /// Those of the statement. `Unavailable` with MayDuplicate if its answer was lost. On SQLite `InvalidArgument` in a
    /// handler of the inbox that has a transaction already.
    ///
    /// ```no_run
    /// # async fn example(db: polybus_sql::Db) -> polybus_core::Result<()> {
    /// let gone = db.execute("DELETE FROM carts WHERE touched_at < ?", [1_700_000_000_i64.into()]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn execute(
        &self,
        sql: impl SqlSafeStr + Send,
        values: impl IntoIterator<Item = DbValue> + Send,
    ) -> Result<u64> {
        if !self.writes_in_turn() {
            return self.acquire().await?.execute(sql, values).await;
        }
        let mut tx = self.begin().await?;
        let changed = tx.execute(sql, values).await?;
        tx.commit().await?;
        Ok(changed)
    }

    /// Runs several statements, separated by `;`, that take no values: those that make the application's tables.
    ///
    /// PostgreSQL and SQLite run them in one transaction; none of them may be a BEGIN or COMMIT. MySQL commits after
    /// each statement that makes a table.
    ///
    /// # Errors
    /// Those of the first statement that fails, which is the last one that runs.
    ///
    /// ```no_run
    /// # async fn example(db: polybus_sql::Db) -> polybus_core::Result<()> {
    /// db.execute_script("CREATE TABLE carts (id BIGINT PRIMARY KEY); INSERT INTO carts VALUES (1);").await
    /// # }
    /// ```
    pub async fn execute_script(&self, sql: impl SqlSafeStr + Send) -> Result<()> {
        if !self.writes_in_turn() {
            return self.acquire().await?.execute_script(sql).await;
        }
        let mut tx = self.begin().await?;
        tx.execute_script(sql).await?;
        tx.commit().await
    }

    /// All rows of one query, read by itself. See [`DbConn::execute`] for its placeholders. On SQLite it waits for no
    /// turn, so what writes rows and returns them belongs in a transaction.
    ///
    /// # Errors
    /// Those of the query.
    ///
    /// ```no_run
    /// # async fn example(db: polybus_sql::Db) -> polybus_core::Result<()> {
    /// for row in db.fetch_all("SELECT id, name FROM customers WHERE city = ?", ["Rome".into()]).await? {
    ///     println!("{}: {}", row.get::<i64>(0)?, row.get::<String>(1)?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn fetch_all(
        &self,
        sql: impl SqlSafeStr + Send,
        values: impl IntoIterator<Item = DbValue> + Send,
    ) -> Result<Vec<DbRow>> {
        self.acquire().await?.fetch_all(sql, values).await
    }

    /// The store, if it is on PostgreSQL: with its pool, and what only it can do.
    ///
    /// ```no_run
    /// # fn example(db: polybus_sql::Db) {
    /// if let Some(store) = db.as_postgres() {
    ///     println!("{} connections", store.pool().size());
    /// }
    /// # }
    /// ```
    #[cfg(feature = "postgres")]
    #[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
    #[allow(unreachable_patterns, reason = "where it is the only one")]
    pub fn as_postgres(&self) -> Option<&Postgres> {
        match &self.0 {
            Stores::Postgres(store) => Some(store),
            _ => None,
        }
    }

    /// The store, if it is on MySQL or MariaDB: with its pool, and what only it can do.
    ///
    /// ```no_run
    /// # fn example(db: polybus_sql::Db) {
    /// if let Some(store) = db.as_mysql() {
    ///     println!("{} connections", store.pool().size());
    /// }
    /// # }
    /// ```
    #[cfg(feature = "mysql")]
    #[cfg_attr(docsrs, doc(cfg(feature = "mysql")))]
    #[allow(unreachable_patterns, reason = "where it is the only one")]
    pub fn as_mysql(&self) -> Option<&MySql> {
        match &self.0 {
            Stores::MySql(store) => Some(store),
            _ => None,
        }
    }

    /// The store, if it is on SQLite: with its pool, and what only it can do.
    ///
    /// ```no_run
    /// # fn example(db: polybus_sql::Db) {
    /// if let Some(store) = db.as_sqlite() {
    ///     println!("{} connections", store.pool().size());
    /// }
    /// # }
    /// ```
    #[cfg(feature = "sqlite")]
    #[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
    #[allow(unreachable_patterns, reason = "where it is the only one")]
    pub fn as_sqlite(&self) -> Option<&Sqlite> {
        match &self.0 {
            Stores::Sqlite(store) => Some(store),
            _ => None,
        }
    }

    /// Closes the pool, when those who have a connection have given it back. All clones fail with `Closed` afterwards.
    ///
    /// ```no_run
    /// # async fn example(db: polybus_sql::Db) {
    /// db.close().await;
    /// # }
    /// ```
    pub async fn close(&self) {
        on_each!(&self.0, Stores, store => store.pool().close().await);
    }

    /// Whether one transaction writes at a time, and the store has a queue for that.
    fn writes_in_turn(&self) -> bool {
        self.system() == "sqlite"
    }
}

#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
impl From<Postgres> for Db {
    fn from(store: Postgres) -> Self {
        Self(Stores::Postgres(store))
    }
}

#[cfg(feature = "mysql")]
#[cfg_attr(docsrs, doc(cfg(feature = "mysql")))]
impl From<MySql> for Db {
    fn from(store: MySql) -> Self {
        Self(Stores::MySql(store))
    }
}

#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
impl From<Sqlite> for Db {
    fn from(store: Sqlite) -> Self {
        Self(Stores::Sqlite(store))
    }
}

/// Shows that of the store, which has no user and no password in it.
impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        on_each!(&self.0, Stores, store => f.debug_tuple("Db").field(store).finish())
    }
}
