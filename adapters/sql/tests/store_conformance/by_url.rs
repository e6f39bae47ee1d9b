//! A store that a URL chooses, on SQLite.

use polybus_conformance::stores::{BoxedError, StoreAbilities, StoreOutage, StoreUnderTest};
use polybus_core::Result;
use polybus_patterns::store::OutboxRow;
use polybus_sql::{Db, DbConn, DbPooled, Sqlite, sqlx::SqliteConnection};

use super::{COUNT, counted, sqlite::SqliteTarget};

/// `Db`, on SQLite: that it hands everything on is the same code on all databases.
pub(super) struct DbTarget;

impl DbTarget {
    fn sqlite(store: &Db) -> &Sqlite {
        store.as_sqlite().expect("a store on SQLite")
    }

    fn conn(conn: &mut DbConn) -> &mut SqliteConnection {
        conn.as_sqlite().expect("a connection of SQLite")
    }
}

impl StoreUnderTest for DbTarget {
    type Store = Db;
    type Plain = DbPooled;

    fn abilities(&self) -> StoreAbilities {
        SqliteTarget.abilities()
    }

    async fn fresh(&self) -> Result<Db> {
        Ok(SqliteTarget.fresh().await?.into())
    }

    async fn second_handle(&self, store: &Db) -> Result<Db> {
        let file = Self::sqlite(store).pool().connect_options().get_filename().to_owned();
        Db::connect(&format!("sqlite:{}", file.display())).await
    }

    async fn plain(&self, store: &Db) -> Result<DbPooled> {
        store.acquire().await
    }

    async fn add_effect(conn: &mut DbConn, name: &str) -> Result<(), BoxedError> {
        conn.execute("INSERT INTO effect (name) VALUES (?)", [name.into()]).await?;
        Ok(())
    }

    async fn effects(&self, store: &Db) -> Result<Vec<(String, u64)>, BoxedError> {
        let rows = store.fetch_all(COUNT, []).await?;
        let rows: Result<Vec<(String, i64)>> = rows.iter().map(|row| Ok((row.get(0)?, row.get(1)?))).collect();
        Ok(counted(rows?))
    }

    async fn lock_entity(_: &mut DbConn, _: &str) -> Result<(), BoxedError> {
        Ok(())
    }

    async fn fail_statement(conn: &mut DbConn) -> BoxedError {
        match conn.execute("INSERT OR ROLLBACK INTO strict_one VALUES (?)", [1.into()]).await {
            Ok(_) => "a constraint was not kept".into(),
            Err(e) => e.into(),
        }
    }

    async fn execute(conn: &mut DbConn, row: OutboxRow) -> Result<(), BoxedError> {
        SqliteTarget::execute(Self::conn(conn), row).await
    }

    fn move_clock(&self, store: &Db, seconds: i64) {
        SqliteTarget.move_clock(Self::sqlite(store), seconds);
    }

    async fn contention(&self, store: &Db) -> Result<BoxedError> {
        SqliteTarget.contention(Self::sqlite(store)).await
    }

    async fn outage(&self, store: &Db) -> Result<StoreOutage> {
        SqliteTarget.outage(Self::sqlite(store)).await
    }
}
