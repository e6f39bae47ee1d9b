//! A connection of any of the databases.

use polybus_core::{Error, Result};
#[cfg(feature = "mysql")]
use sqlx::MySqlConnection;
#[cfg(feature = "postgres")]
use sqlx::PgConnection;
use sqlx::SqlSafeStr;
#[cfg(feature = "sqlite")]
use sqlx::SqliteConnection;

use super::{client::Client, row::DbRow, statement::Statement, value::DbValue};
use crate::error::{self, Effect};

/// The connection of a [`Db`](crate::Db): what [`DbTx`](crate::DbTx) and [`DbPooled`](crate::DbPooled) deref to.
///
/// # Statements
/// A `?` stands for a value, on every database; PostgreSQL gets `$1` and so on. It is none in quotes and in comments.
/// `??` is a `?` of PostgreSQL's own, which has operators of that name (`tags ?? ?`). Placeholders with numbers are
/// refused, and so is a statement that has not as many placeholders as values.
///
/// All else is as the database has it: types, functions and the words for a serial number differ, `RETURNING` is not in
/// MySQL. A statement that is made at run time is given as `AssertSqlSafe(text)` of `polybus_sql::sqlx`.
///
/// On PostgreSQL a value has a type of its own: a number is a BIGINT, or a DOUBLE PRECISION with a fraction, a text is
/// a TEXT. It is compared with SMALLINT, INTEGER, BIGINT, VARCHAR and TEXT by their indexes. Elsewhere the statement
/// says what it needs: `CAST(? AS UUID)`, `CAST(? AS NUMERIC(20, 2))` of a text for an exact number, `CAST(? AS
/// CITEXT)`, `left(name, CAST(? AS INT))`.
///
/// ```no_run
/// # async fn example(db: polybus_sql::Db) -> polybus_core::Result<()> {
/// let mut tx = db.begin().await?;
/// let moved = tx.execute("UPDATE accounts SET cents = cents - ? WHERE id = ?", [250.into(), 7.into()]).await?;
/// assert_eq!(moved, 1);
/// tx.commit().await
/// # }
/// ```
pub struct DbConn(pub(super) Conns, pub(super) HasFailed);

/// Whether a statement has failed on it. PostgreSQL does nothing more in such a transaction, and answers its COMMIT
/// with Ok.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HasFailed(pub(super) bool);

/// Not connections: those cannot be owned by what a transaction derefs to, and a transaction can.
pub(super) enum Conns {
    #[cfg(feature = "postgres")]
    Postgres(Either<crate::PostgresTx, sqlx::pool::PoolConnection<sqlx::Postgres>>),
    #[cfg(feature = "mysql")]
    MySql(Either<crate::MySqlTx, sqlx::pool::PoolConnection<sqlx::MySql>>),
    #[cfg(feature = "sqlite")]
    Sqlite(Either<crate::SqliteTx, sqlx::pool::PoolConnection<sqlx::Sqlite>>),
}

/// A transaction, or a connection without one.
pub(super) enum Either<T, P> {
    Tx(T),
    Pooled(P),
}

impl<C, T, P> Either<T, P>
where
    T: std::ops::DerefMut<Target = C>,
    P: std::ops::DerefMut<Target = C>,
{
    pub(super) fn conn(&mut self) -> &mut C {
        match self {
            Self::Tx(tx) => tx,
            Self::Pooled(conn) => conn,
        }
    }
}

impl HasFailed {
    pub(super) fn note<T>(&mut self, result: Result<T>) -> Result<T> {
        self.0 |= result.is_err();
        result
    }
}

impl DbConn {
    /// Runs one INSERT, UPDATE, DELETE or other statement with these values, and answers how many rows the first three
    /// inserted or matched.
    ///
    /// # Errors
    /// Those of the statement: `Conflict` for a key that is there already, `InvalidArgument` for what a column cannot
    /// hold, and also where values and placeholders are not as many. On PostgreSQL an error ends the transaction.
    ///
    /// ```no_run
    /// # async fn example(tx: &mut polybus_sql::DbTx) -> polybus_core::Result<()> {
    /// let (id, name) = (7_i64, "Ann".to_owned());
    /// tx.execute("INSERT INTO customers (id, name, city) VALUES (?, ?, NULL)", [id.into(), name.into()]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn execute(
        &mut self,
        sql: impl SqlSafeStr + Send,
        values: impl IntoIterator<Item = DbValue> + Send,
    ) -> Result<u64> {
        let (sql, values) = (sql.into_sql_str(), values.into_iter().collect());
        on_each!(&mut self.0, Conns, conn => {
            let conn = conn.conn();
            let (statement, failed) = prepared(conn, "execute", sql, values)?;
            self.1.note(Client::execute(conn, statement).await.map_err(failed))
        })
    }

    /// Runs several statements, separated by `;`, that take no values.
    ///
    /// MySQL commits after each statement that makes or changes a table, and so ends the transaction: use
    /// [`Db::execute_script`](crate::Db::execute_script) for those.
    ///
    /// # Errors
    /// Those of the first statement that fails, which is the last one that runs.
    ///
    /// ```no_run
    /// # async fn example(tx: &mut polybus_sql::DbTx) -> polybus_core::Result<()> {
    /// tx.execute_script("DELETE FROM carts; DELETE FROM visits;").await
    /// # }
    /// ```
    pub async fn execute_script(&mut self, sql: impl SqlSafeStr + Send) -> Result<()> {
        let sql = sql.into_sql_str();
        on_each!(&mut self.0, Conns, conn => {
            let conn = conn.conn();
            let failed = failing(conn, "execute_script");
            self.1.note(Client::execute_script(conn, sql).await.map_err(failed))
        })
    }

    /// All rows of one query.
    ///
    /// # Errors
    /// Those of [`execute`](Self::execute).
    ///
    /// ```no_run
    /// # async fn example(tx: &mut polybus_sql::DbTx) -> polybus_core::Result<()> {
    /// for row in tx.fetch_all("SELECT id FROM orders WHERE customer = ?", [7.into()]).await? {
    ///     println!("{}", row.get::<i64>(0)?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn fetch_all(
        &mut self,
        sql: impl SqlSafeStr + Send,
        values: impl IntoIterator<Item = DbValue> + Send,
    ) -> Result<Vec<DbRow>> {
        let (sql, values) = (sql.into_sql_str(), values.into_iter().collect());
        on_each!(&mut self.0, Conns, conn => {
            let conn = conn.conn();
            let (statement, failed) = prepared(conn, "fetch_all", sql, values)?;
            self.1.note(Client::fetch_all(conn, statement).await.map_err(failed))
        })
    }

    /// The first row of one query, or `None` if it has none.
    ///
    /// # Errors
    /// Those of [`execute`](Self::execute).
    ///
    /// ```no_run
    /// # async fn example(tx: &mut polybus_sql::DbTx) -> polybus_core::Result<()> {
    /// let known = tx.fetch_optional("SELECT 1 FROM customers WHERE id = ?", [7.into()]).await?.is_some();
    /// # Ok(())
    /// # }
    /// ```
    pub async fn fetch_optional(
        &mut self,
        sql: impl SqlSafeStr + Send,
        values: impl IntoIterator<Item = DbValue> + Send,
    ) -> Result<Option<DbRow>> {
        let (sql, values) = (sql.into_sql_str(), values.into_iter().collect());
        on_each!(&mut self.0, Conns, conn => {
            let conn = conn.conn();
            let (statement, failed) = prepared(conn, "fetch_optional", sql, values)?;
            self.1.note(Client::fetch_optional(conn, statement).await.map_err(failed))
        })
    }

    /// The first row of a query that has one.
    ///
    /// # Errors
    /// Those of [`execute`](Self::execute), and `Unexpected` if there is no row.
    ///
    /// ```no_run
    /// # async fn example(tx: &mut polybus_sql::DbTx) -> polybus_core::Result<()> {
    /// let orders: i64 = tx.fetch_one("SELECT COUNT(*) FROM orders", []).await?.get(0)?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn fetch_one(
        &mut self,
        sql: impl SqlSafeStr + Send,
        values: impl IntoIterator<Item = DbValue> + Send,
    ) -> Result<DbRow> {
        let row = self.fetch_optional(sql, values).await?;
        row.ok_or_else(|| error::of(sqlx::Error::RowNotFound, self.system(), "fetch_one", Effect::None))
    }

    /// The database's name: see [`Db::system`](crate::Db::system).
    ///
    /// ```no_run
    /// # async fn example(tx: &mut polybus_sql::DbTx) -> polybus_core::Result<()> {
    /// if tx.system() == "postgres" {
    ///     tx.execute("SET LOCAL statement_timeout = '5s'", []).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn system(&self) -> &'static str {
        match &self.0 {
            #[cfg(feature = "postgres")]
            Conns::Postgres(_) => "postgres",
            #[cfg(feature = "mysql")]
            Conns::MySql(_) => "mysql",
            #[cfg(feature = "sqlite")]
            Conns::Sqlite(_) => "sqlite",
        }
    }

    /// Whether it is in a transaction, as far as its client knows.
    ///
    /// ```no_run
    /// # async fn example(db: polybus_sql::Db) -> polybus_core::Result<()> {
    /// assert!(db.begin().await?.in_transaction());
    /// assert!(!db.acquire().await?.in_transaction());
    /// # Ok(())
    /// # }
    /// ```
    pub fn in_transaction(&mut self) -> bool {
        on_each!(&mut self.0, Conns, conn => sqlx::Connection::is_in_transaction(conn.conn()))
    }

    /// The connection of sqlx, if it is of PostgreSQL.
    ///
    /// ```no_run
    /// # async fn example(tx: &mut polybus_sql::DbTx) -> Result<(), Box<dyn std::error::Error>> {
    /// if let Some(conn) = tx.as_postgres() {
    ///     sqlx::query("LISTEN orders").execute(conn).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "postgres")]
    #[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
    #[allow(unreachable_patterns, reason = "where it is the only one")]
    pub fn as_postgres(&mut self) -> Option<&mut PgConnection> {
        match &mut self.0 {
            Conns::Postgres(conn) => Some(conn.conn()),
            _ => None,
        }
    }

    /// The connection of sqlx, if it is of MySQL or MariaDB.
    ///
    /// ```no_run
    /// # async fn example(tx: &mut polybus_sql::DbTx) -> Result<(), Box<dyn std::error::Error>> {
    /// if let Some(conn) = tx.as_mysql() {
    ///     sqlx::query("INSERT IGNORE INTO seen (id) VALUES (?)").bind(7).execute(conn).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "mysql")]
    #[cfg_attr(docsrs, doc(cfg(feature = "mysql")))]
    #[allow(unreachable_patterns, reason = "where it is the only one")]
    pub fn as_mysql(&mut self) -> Option<&mut MySqlConnection> {
        match &mut self.0 {
            Conns::MySql(conn) => Some(conn.conn()),
            _ => None,
        }
    }

    /// The connection of sqlx, if it is of SQLite.
    ///
    /// ```no_run
    /// # async fn example(tx: &mut polybus_sql::DbTx) -> Result<(), Box<dyn std::error::Error>> {
    /// if let Some(conn) = tx.as_sqlite() {
    ///     sqlx::query("INSERT OR IGNORE INTO seen (id) VALUES (?1)").bind(7).execute(conn).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "sqlite")]
    #[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
    #[allow(unreachable_patterns, reason = "where it is the only one")]
    pub fn as_sqlite(&mut self) -> Option<&mut SqliteConnection> {
        match &mut self.0 {
            Conns::Sqlite(conn) => Some(conn.conn()),
            _ => None,
        }
    }
}

/// A statement as this client takes it, and what its error becomes.
fn prepared<C: Client>(
    conn: &C,
    operation: &'static str,
    sql: sqlx::SqlStr,
    values: Vec<DbValue>,
) -> Result<(Statement, impl Fn(sqlx::Error) -> Error + Send + use<C>)> {
    let statement = Statement::new(C::DIALECT, sql, values).map_err(|error| error.of_driver(C::SYSTEM, operation))?;
    Ok((statement, failing(conn, operation)))
}

/// Outside a transaction a statement commits by itself, also one that returns rows.
fn failing<C: Client>(conn: &C, operation: &'static str) -> impl Fn(sqlx::Error) -> Error + Send + use<C> {
    let effect = if conn.is_in_transaction() { Effect::None } else { Effect::Committed };
    move |error| error::of_application(error, C::SYSTEM, operation, effect)
}

impl std::fmt::Debug for DbConn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DbConn").field("system", &self.system()).finish_non_exhaustive()
    }
}
