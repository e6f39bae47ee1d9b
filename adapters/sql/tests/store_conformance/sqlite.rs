//! SQLite, in a file of its own.

use std::time::Duration;

use polybus_conformance::stores::{BoxedError, StoreAbilities, StoreOutage, StoreUnderTest};
use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::store::{OutboxRow, SqlValue};
use polybus_sql::{
    Sqlite, sqlite_temp,
    sqlx::{
        self, AssertSqlSafe, ConnectOptions, Connection, SqliteConnection, SqlitePool, pool::PoolConnection, query,
        query_as, raw_sql,
    },
};

use super::{COUNT, TABLES, counted, failed};

pub(super) struct SqliteTarget;

impl StoreUnderTest for SqliteTarget {
    type Store = Sqlite;
    type Plain = PoolConnection<sqlx::Sqlite>;

    fn abilities(&self) -> StoreAbilities {
        StoreAbilities::default().with(|can| (can.clock, can.contention, can.outage) = (true, true, true))
    }

    async fn fresh(&self) -> Result<Sqlite> {
        let store = sqlite_temp().await?;
        store.migrate().await?;
        raw_sql(TABLES).execute(store.pool()).await.map_err(failed)?;
        Ok(store)
    }

    async fn second_handle(&self, store: &Sqlite) -> Result<Sqlite> {
        let options = (*store.pool().connect_options()).clone();
        Ok(polybus_sql::sqlite(SqlitePool::connect_with(options).await.map_err(failed)?))
    }

    async fn plain(&self, store: &Sqlite) -> Result<Self::Plain> {
        store.pool().acquire().await.map_err(failed)
    }

    async fn add_effect(conn: &mut SqliteConnection, name: &str) -> Result<(), BoxedError> {
        query("INSERT INTO effect (name) VALUES (?1)").bind(name).execute(conn).await?;
        Ok(())
    }

    async fn effects(&self, store: &Sqlite) -> Result<Vec<(String, u64)>, BoxedError> {
        Ok(counted(query_as(COUNT).fetch_all(store.pool()).await?))
    }

    async fn lock_entity(_: &mut SqliteConnection, _: &str) -> Result<(), BoxedError> {
        Ok(())
    }

    async fn fail_statement(conn: &mut SqliteConnection) -> BoxedError {
        // OR ROLLBACK: the transaction is lost, as on a full disk. An ordinary constraint undoes the statement alone.
        match query("INSERT OR ROLLBACK INTO strict_one VALUES (1)").execute(conn).await {
            Ok(_) => "a constraint was not kept".into(),
            Err(e) => e.into(),
        }
    }

    async fn execute(conn: &mut SqliteConnection, row: OutboxRow) -> Result<(), BoxedError> {
        let mut statement = query(AssertSqlSafe(row.sql));
        for value in row.values {
            statement = match value {
                SqlValue::Integer(n) => statement.bind(n),
                SqlValue::Text(text) => statement.bind(text),
                SqlValue::Bytes(bytes) => statement.bind(bytes.to_vec()),
                _ => statement.bind(None::<Vec<u8>>),
            };
        }
        statement.execute(conn).await?;
        Ok(())
    }

    fn move_clock(&self, store: &Sqlite, seconds: i64) {
        store.set_clock_offset(seconds * 1_000_000);
    }

    async fn contention(&self, store: &Sqlite) -> Result<BoxedError> {
        let options = (*store.pool().connect_options()).clone().busy_timeout(Duration::ZERO);
        let mut one = options.connect().await.map_err(failed)?;
        let mut other = options.connect().await.map_err(failed)?;
        let _held = one.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        match other.begin_with("BEGIN IMMEDIATE").await.map(drop) {
            Ok(()) => Err(Error::new(ErrorKind::Unexpected, "two transactions write at once")),
            Err(e) => Ok(e.into()),
        }
    }

    /// As another process does that begins to write and hangs.
    async fn outage(&self, store: &Sqlite) -> Result<StoreOutage> {
        let mut other = store.pool().connect_options().connect().await.map_err(failed)?;
        raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.map_err(failed)?;
        Ok(StoreOutage::new(other))
    }
}
