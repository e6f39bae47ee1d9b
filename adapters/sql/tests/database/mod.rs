//! Fresh databases, each check on all of them.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

mod mysql;

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use bytes::Bytes;
use polybus_core::Result;
use polybus_patterns::store::{InboxStore, NewRow, OutboxStore, ReadRows, SLOTS, StoredRow};
use polybus_sql::{Postgres, Sqlite};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

#[allow(unused_imports, reason = "each test binary uses a part")]
pub use self::mysql::{mysql, mysql_options};

/// A store, and its database by hand.
#[allow(async_fn_in_trait, reason = "tests do not spawn these")]
pub trait TestDatabase: OutboxStore + InboxStore {
    /// Runs statements. `{x}` is the table `x`, qualified.
    async fn run(&self, sql: &str);
    /// A number from the database.
    async fn number(&self, sql: &str) -> i64;
    /// The same in the transaction of a connection.
    fn run_on(
        &self,
        conn: &mut Self::Conn,
        sql: &str,
    ) -> impl Future<Output = std::result::Result<(), sqlx::Error>> + Send;
    async fn migrate(&self) -> Result<()>;
    async fn verify(&self) -> Result<()>;
    async fn migration_sql(&self) -> Result<String>;
    fn move_clock(&self, by: i64);
    /// The same database with another prefix.
    fn with_prefix(&self, prefix: &str) -> Self;
    fn rolled_back(tx: Self::Tx) -> impl Future<Output = Result<()>> + Send;
}

fn filled(sql: &str, schema: &str) -> String {
    let mut text = String::new();
    let mut rest = sql;
    while let Some((before, after)) = rest.split_once('{') {
        let (word, after) = after.split_once('}').unwrap();
        text.push_str(&format!("{before}\"{schema}\".\"polybus_{word}\""));
        rest = after;
    }
    text + rest
}

impl TestDatabase for Sqlite {
    async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(filled(sql, "main"))).execute(self.pool()).await.unwrap();
    }
    async fn number(&self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(filled(sql, "main"))).fetch_one(self.pool()).await.unwrap()
    }
    async fn run_on(&self, conn: &mut Self::Conn, sql: &str) -> std::result::Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(filled(sql, "main"))).execute(conn).await.map(drop)
    }
    async fn migrate(&self) -> Result<()> {
        Self::migrate(self).await
    }
    async fn verify(&self) -> Result<()> {
        Self::verify(self).await
    }
    async fn migration_sql(&self) -> Result<String> {
        Self::migration_sql(self).await
    }
    fn move_clock(&self, by: i64) {
        self.set_clock_offset(self.clock_offset() + by);
    }
    fn with_prefix(&self, prefix: &str) -> Self {
        self.clone().prefix(prefix)
    }
    async fn rolled_back(tx: Self::Tx) -> Result<()> {
        tx.rollback().await
    }
}

impl TestDatabase for Postgres {
    async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(filled(sql, &schema_of(self).await))).execute(self.pool()).await.unwrap();
    }
    async fn number(&self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(filled(sql, &schema_of(self).await))).fetch_one(self.pool()).await.unwrap()
    }
    async fn run_on(&self, conn: &mut Self::Conn, sql: &str) -> std::result::Result<(), sqlx::Error> {
        let sql = filled(sql, &schema_of(self).await);
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.map(drop)
    }
    async fn migrate(&self) -> Result<()> {
        Self::migrate(self).await
    }
    async fn verify(&self) -> Result<()> {
        Self::verify(self).await
    }
    async fn migration_sql(&self) -> Result<String> {
        Self::migration_sql(self).await
    }
    fn move_clock(&self, by: i64) {
        self.set_clock_offset(self.clock_offset() + by);
    }
    fn with_prefix(&self, prefix: &str) -> Self {
        self.clone().prefix(prefix)
    }
    async fn rolled_back(tx: Self::Tx) -> Result<()> {
        tx.rollback().await
    }
}

async fn schema_of(store: &Postgres) -> String {
    sqlx::query_scalar("SELECT current_schema()::text").fetch_one(store.pool()).await.unwrap()
}

/// A store on a new file, without tables.
pub async fn sqlite() -> Sqlite {
    polybus_sql::sqlite_temp().await.unwrap()
}

/// Where PostgreSQL is. Without it the test is skipped, with a visible line, or fails if `POLYBUS_REQUIRE` names it.
pub fn postgres_url() -> Option<String> {
    let url = std::env::var("POLYBUS_POSTGRES_URL").ok().filter(|url| !url.is_empty());
    if url.is_none() {
        let required = std::env::var("POLYBUS_REQUIRE").unwrap_or_default();
        let required = required.split(',').any(|name| name.trim() == "postgres");
        assert!(!required, "POLYBUS_POSTGRES_URL is required, but not set");
        eprintln!("SKIPPED: POLYBUS_POSTGRES_URL is not set");
    }
    url
}

/// Connection options with a new schema alone in the search path.
pub async fn postgres_options() -> Option<PgConnectOptions> {
    static SCHEMAS: AtomicU32 = AtomicU32::new(0);
    let options: PgConnectOptions = postgres_url()?.parse().unwrap();
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros();
    let number = SCHEMAS.fetch_add(1, Ordering::Relaxed);
    let schema = format!("test_{}_{time}_{number}", std::process::id());
    let mut conn = options.connect().await.unwrap();
    if number == 0 {
        drop_old_schemas(&mut conn, time).await;
    }
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE SCHEMA {schema}"))).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    Some(options.options([("search_path", schema)]))
}

/// Drops some of what earlier runs left: a test that fails leaves its tables to look at.
async fn drop_old_schemas(conn: &mut PgConnection, now: u128) {
    const HOUR: u128 = 3_600_000_000;
    let names: Vec<String> =
        sqlx::query_scalar("SELECT nspname::text FROM pg_namespace WHERE nspname ~ '^test_[0-9]+_[0-9]{16}_[0-9]+$'")
            .fetch_all(&mut *conn)
            .await
            .unwrap();
    let made = |name: &str| name.split('_').nth(2).and_then(|time| time.parse::<u128>().ok());
    for old in names.iter().filter(|name| made(name).is_some_and(|made| made + HOUR < now)).take(50) {
        // Another process may drop it as well.
        let _ = sqlx::raw_sql(AssertSqlSafe(format!("DROP SCHEMA IF EXISTS {old} CASCADE"))).execute(&mut *conn).await;
    }
}

/// A store in a new schema, without tables.
pub async fn postgres() -> Option<Postgres> {
    Some(polybus_sql::postgres(postgres_pool().await?))
}

pub async fn postgres_pool() -> Option<PgPool> {
    Some(PgPoolOptions::new().max_connections(8).connect_with(postgres_options().await?).await.unwrap())
}

/// Runs each of these functions on a fresh store of every database, with its tables made.
#[macro_export]
macro_rules! on_both {
    ($(#[$with:meta])* $($name:ident),* $(,)?) => {
        $crate::on_both!(@ [$(#[$with])*] $($name),*);
    };
    (@ $with:tt $($name:ident),*) => {
        mod on_sqlite {
            $($crate::on_both!(# $with $name {
                let store = $crate::database::sqlite().await;
                store.migrate().await.unwrap();
                super::$name(store).await;
            });)*
        }
        mod on_postgres {
            $($crate::on_both!(# $with $name {
                let Some(store) = $crate::database::postgres().await else { return };
                store.migrate().await.unwrap();
                super::$name(store).await;
            });)*
        }
        mod on_mariadb {
            $($crate::on_both!(# $with $name {
                let Some(store) = $crate::database::mysql().await else { return };
                store.migrate().await.unwrap();
                super::$name(store).await;
            });)*
        }
    };
    (# [$(#[$with:meta])*] $name:ident $body:block) => {
        $(#[$with])*
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() $body
    };
}

/// One value of a query.
pub async fn scalar<T>(pool: &PgPool, sql: &str) -> T
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(pool).await.unwrap()
}

/// Waits until it is so. The limit is for what never comes.
pub async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), waiting).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

pub fn row(slot: i16, address: &str, data: &str) -> NewRow {
    NewRow {
        slot,
        address: address.to_owned(),
        key: None,
        head: "{}".to_owned(),
        data: Bytes::from(data.to_owned()),
        delay: Duration::ZERO,
    }
}

pub fn keyed(slot: i16, address: &str, key: &[u8], data: &str) -> NewRow {
    NewRow { key: Some(Bytes::copy_from_slice(key)), ..row(slot, address, data) }
}

/// Writes rows in a transaction of their own.
pub async fn insert<S: TestDatabase>(store: &S, rows: &[NewRow]) {
    let mut tx = store.begin().await.unwrap();
    store.insert(&mut tx, rows).await.unwrap();
    S::commit(tx).await.unwrap();
}

pub const ALL: [i16; SLOTS as usize] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

pub fn everything(address: &str) -> ReadRows<'_> {
    ReadRows { slots: &ALL, address, held_keys: &[], held_rows: &[], rows_per_slot: 1000, max_bytes: 1 << 30 }
}

pub async fn read<S: TestDatabase>(store: &S, address: &str) -> Vec<StoredRow> {
    store.outbox().read(&everything(address)).await.unwrap()
}

pub fn data(rows: &[StoredRow]) -> Vec<String> {
    rows.iter().map(|row| String::from_utf8(row.data.to_vec()).unwrap()).collect()
}
