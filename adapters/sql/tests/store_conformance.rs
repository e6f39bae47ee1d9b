//! The store suite on SQLite, on PostgreSQL and on MariaDB or MySQL.

use std::{
    collections::HashMap,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use polybus_conformance::{
    Proxy,
    stores::{BoxedError, StoreAbilities, StoreOutage, StoreSuite, StoreUnderTest},
};
use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::store::{OutboxRow, SqlValue};
use polybus_sql::{
    Db, DbConn, DbPooled, MySql, Postgres, Sqlite, sqlite_temp,
    sqlx::{
        AssertSqlSafe, ConnectOptions, Connection, MySqlConnection, MySqlPool, PgConnection, PgPool, SqliteConnection,
        SqlitePool,
        mysql::MySqlConnectOptions,
        pool::{PoolConnection, PoolOptions},
        postgres::PgConnectOptions,
        query, query_as, query_scalar, raw_sql,
    },
};

fn failed(error: sqlx::Error) -> Error {
    Error::new(ErrorKind::Unexpected, format!("the suite's own statement: {error}"))
}

use polybus_sql::sqlx;

/// The application's tables.
const TABLES: &str = "CREATE TABLE effect (name TEXT NOT NULL);
    CREATE TABLE entity (name TEXT NOT NULL PRIMARY KEY, locked BIGINT NOT NULL);
    CREATE TABLE strict_one (id BIGINT NOT NULL PRIMARY KEY);
    INSERT INTO strict_one VALUES (1);";

const COUNT: &str = "SELECT name, count(*) FROM effect GROUP BY name";

fn counted(rows: Vec<(String, i64)>) -> Vec<(String, u64)> {
    rows.into_iter().map(|(name, count)| (name, count.unsigned_abs())).collect()
}

struct SqliteTarget;

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

/// `Db`, on SQLite: that it hands everything on is the same code on all databases.
struct DbTarget;

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

struct PostgresTarget {
    options: PgConnectOptions,
    /// What stands before the database, for each schema.
    proxies: Mutex<HashMap<String, Proxy>>,
}

/// The next schema.
static NEXT: AtomicU32 = AtomicU32::new(0);

impl PostgresTarget {
    fn from_env() -> Result<Self, String> {
        let url = std::env::var("POLYBUS_POSTGRES_URL").ok().filter(|url| !url.is_empty());
        let url = url.ok_or("POLYBUS_POSTGRES_URL is not set")?;
        let options = url.parse().map_err(|_| "POLYBUS_POSTGRES_URL is no URL of PostgreSQL".to_owned())?;
        Ok(Self { options, proxies: Mutex::default() })
    }

    /// A connection that no proxy breaks.
    async fn direct(&self) -> Result<PgConnection> {
        self.options.connect().await.map_err(failed)
    }

    async fn on(&self, schema: &str, options: PgConnectOptions) -> Result<Postgres> {
        let options = options.options([("search_path", schema)]);
        let pool = PoolOptions::new().max_connections(12).acquire_timeout(Duration::from_secs(30));
        let pool: PgPool = pool.connect_with(options).await.map_err(failed)?;
        Ok(polybus_sql::postgres(pool).schema(schema))
    }

    async fn schema_of(store: &Postgres) -> Result<String> {
        let schema = query_as("SELECT current_schema()::text").fetch_one(store.pool()).await;
        schema.map(|(schema,): (String,)| schema).map_err(failed)
    }
}

impl StoreUnderTest for PostgresTarget {
    type Store = Postgres;
    type Plain = PoolConnection<sqlx::Postgres>;

    fn abilities(&self) -> StoreAbilities {
        StoreAbilities::default().with(|can| {
            (can.parallel_writers, can.clock, can.notify, can.contention, can.outage) = (true, true, true, true, true);
        })
    }

    async fn fresh(&self) -> Result<Postgres> {
        let schema = format!("suite_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let made = format!("DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}");
        let mut direct = self.direct().await?;
        raw_sql(AssertSqlSafe(made)).execute(&mut direct).await.map_err(failed)?;
        let upstream = format!("{}:{}", self.options.get_host(), self.options.get_port());
        let proxy = Proxy::start(upstream).await.map_err(|e| failed(e.into()))?;
        let options = self.options.clone().host(&proxy.addr().ip().to_string()).port(proxy.addr().port());
        let store = self.on(&schema, options).await?;
        self.proxies.lock().unwrap_or_else(|e| e.into_inner()).insert(schema, proxy);
        store.migrate().await?;
        raw_sql(TABLES).execute(store.pool()).await.map_err(failed)?;
        Ok(store)
    }

    async fn second_handle(&self, store: &Postgres) -> Result<Postgres> {
        let schema = Self::schema_of(store).await?;
        self.on(&schema, (*store.pool().connect_options()).clone()).await
    }

    async fn remove(&self, store: Postgres) {
        let Ok(schema) = Self::schema_of(&store).await else { return };
        store.pool().close().await;
        self.proxies.lock().unwrap_or_else(|e| e.into_inner()).remove(&schema);
        // Other handles may still have a transaction on it.
        let gone = format!("SET lock_timeout = '5s'; DROP SCHEMA IF EXISTS {schema} CASCADE");
        if let Ok(mut direct) = self.direct().await {
            let _ = raw_sql(AssertSqlSafe(gone)).execute(&mut direct).await;
        }
    }

    async fn plain(&self, store: &Postgres) -> Result<Self::Plain> {
        store.pool().acquire().await.map_err(failed)
    }

    async fn add_effect(conn: &mut PgConnection, name: &str) -> Result<(), BoxedError> {
        query("INSERT INTO effect (name) VALUES ($1)").bind(name).execute(conn).await?;
        Ok(())
    }

    async fn effects(&self, store: &Postgres) -> Result<Vec<(String, u64)>, BoxedError> {
        Ok(counted(query_as(COUNT).fetch_all(store.pool()).await?))
    }

    async fn lock_entity(conn: &mut PgConnection, name: &str) -> Result<(), BoxedError> {
        let locked = "INSERT INTO entity (name, locked) VALUES ($1, 1)
            ON CONFLICT (name) DO UPDATE SET locked = entity.locked + 1";
        query(locked).bind(name).execute(conn).await?;
        Ok(())
    }

    async fn fail_statement(conn: &mut PgConnection) -> BoxedError {
        match query("INSERT INTO strict_one VALUES (1)").execute(conn).await {
            Ok(_) => "a constraint was not kept".into(),
            Err(e) => e.into(),
        }
    }

    async fn execute(conn: &mut PgConnection, row: OutboxRow) -> Result<(), BoxedError> {
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

    fn move_clock(&self, store: &Postgres, seconds: i64) {
        store.set_clock_offset(seconds * 1_000_000);
    }

    async fn contention(&self, store: &Postgres) -> Result<BoxedError> {
        let mut one = store.pool().begin().await.map_err(failed)?;
        let mut other = store.pool().begin().await.map_err(failed)?;
        query("INSERT INTO entity (name, locked) VALUES ('x', 1)").execute(&mut *one).await.map_err(failed)?;
        query("SET LOCAL lock_timeout = '100ms'").execute(&mut *other).await.map_err(failed)?;
        match query("INSERT INTO entity (name, locked) VALUES ('x', 1)").execute(&mut *other).await {
            Ok(_) => Err(Error::new(ErrorKind::Unexpected, "no lock was waited for")),
            Err(e) => Ok(e.into()),
        }
    }

    async fn outage(&self, store: &Postgres) -> Result<StoreOutage> {
        let schema = Self::schema_of(store).await?;
        let proxy = self.proxies.lock().unwrap_or_else(|e| e.into_inner()).remove(&schema);
        let proxy = proxy.ok_or_else(|| Error::invalid("no proxy stands before this schema"))?;
        proxy.refuse(true).await;
        proxy.cut();
        Ok(StoreOutage::new(Refusing(Some(proxy))))
    }
}

struct MySqlTarget {
    options: MySqlConnectOptions,
    /// Where the server is.
    upstream: String,
    /// What stands before the server, for each database.
    proxies: Mutex<HashMap<String, Proxy>>,
}

/// The application's tables. Two rows for those who lock each other out, and some for the weight of the winner.
const MYSQL_TABLES: &str = "CREATE TABLE effect (name VARCHAR(190) COLLATE utf8mb4_bin NOT NULL) ENGINE = InnoDB;
    CREATE TABLE entity (name VARCHAR(190) COLLATE utf8mb4_bin NOT NULL PRIMARY KEY, locked BIGINT NOT NULL)
        ENGINE = InnoDB;
    CREATE TABLE strict_one (id BIGINT NOT NULL PRIMARY KEY, n BIGINT NOT NULL DEFAULT 0) ENGINE = InnoDB;
    INSERT INTO strict_one (id) VALUES (1), (2), (11), (12), (13), (14), (15), (16), (17), (18), (19), (20);";

fn mysql_url() -> Result<String, String> {
    let url = std::env::var("POLYBUS_MARIADB_URL").ok().filter(|url| !url.is_empty());
    url.ok_or_else(|| "POLYBUS_MARIADB_URL is not set".to_owned())
}

impl MySqlTarget {
    fn from_env() -> Result<Self, String> {
        let options: MySqlConnectOptions =
            mysql_url()?.parse().map_err(|_| "POLYBUS_MARIADB_URL is no URL of MySQL".to_owned())?;
        let upstream = format!("{}:{}", options.get_host(), options.get_port());
        Ok(Self { options, upstream, proxies: Mutex::default() })
    }

    /// A connection that no proxy breaks.
    async fn direct(&self) -> Result<MySqlConnection> {
        self.options.connect().await.map_err(failed)
    }

    async fn on(&self, options: MySqlConnectOptions) -> Result<MySql> {
        let pool = PoolOptions::new().max_connections(12).acquire_timeout(Duration::from_secs(30));
        let pool: MySqlPool = pool.connect_with(options).await.map_err(failed)?;
        Ok(polybus_sql::mysql(pool))
    }

    async fn database_of(store: &MySql) -> Result<String> {
        query_scalar("SELECT DATABASE()").fetch_one(store.pool()).await.map_err(failed)
    }

    /// Has the transaction lose a deadlock: MySQL rolls all of it back, as at no other error.
    async fn lose(conn: &mut MySqlConnection) -> Result<(), BoxedError> {
        let database: String = query_scalar("SELECT DATABASE()").fetch_one(&mut *conn).await?;
        let options: MySqlConnectOptions = mysql_url()?.parse()?;
        let mut other = options.database(&database).connect().await?;
        query("UPDATE strict_one SET n = n + 1 WHERE id = 1").execute(&mut *conn).await?;
        // The one that has written less is the one that loses.
        let heavy = "START TRANSACTION; UPDATE strict_one SET n = n + 1 WHERE id >= 11;
            INSERT INTO entity (name, locked) SELECT CONCAT('heavy', a.id, '.', b.id), 1
            FROM strict_one a, strict_one b WHERE a.id >= 11 AND b.id >= 11;
            UPDATE strict_one SET n = n + 1 WHERE id = 2";
        raw_sql(heavy).execute(&mut other).await?;
        let waits = tokio::spawn(async move {
            let waited = query("UPDATE strict_one SET n = n + 1 WHERE id = 1").execute(&mut other).await.map(drop);
            let _ = raw_sql("ROLLBACK").execute(&mut other).await;
            waited
        });
        let lost = query("UPDATE strict_one SET n = n + 1 WHERE id = 2").execute(conn).await;
        waits.await??;
        match lost {
            Ok(_) => Err("there was no deadlock, or the other one lost it".into()),
            Err(error) if error.to_string().contains("1213") => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl StoreUnderTest for MySqlTarget {
    type Store = MySql;
    type Plain = PoolConnection<sqlx::MySql>;

    fn abilities(&self) -> StoreAbilities {
        StoreAbilities::default().with(|can| {
            (can.parallel_writers, can.clock, can.contention, can.outage) = (true, true, true, true);
        })
    }

    async fn fresh(&self) -> Result<MySql> {
        let database = format!("suite_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let made = format!("DROP DATABASE IF EXISTS {database}; CREATE DATABASE {database}");
        let mut direct = self.direct().await?;
        raw_sql(AssertSqlSafe(made)).execute(&mut direct).await.map_err(failed)?;
        let proxy = Proxy::start(self.upstream.clone()).await.map_err(|e| failed(e.into()))?;
        let options = self.options.clone().host(&proxy.addr().ip().to_string()).port(proxy.addr().port());
        let store = self.on(options.database(&database)).await?;
        self.proxies.lock().unwrap_or_else(|e| e.into_inner()).insert(database, proxy);
        store.migrate().await?;
        raw_sql(MYSQL_TABLES).execute(store.pool()).await.map_err(failed)?;
        Ok(store)
    }

    async fn second_handle(&self, store: &MySql) -> Result<MySql> {
        self.on((*store.pool().connect_options()).clone()).await
    }

    async fn remove(&self, store: MySql) {
        let Ok(database) = Self::database_of(&store).await else { return };
        store.pool().close().await;
        self.proxies.lock().unwrap_or_else(|e| e.into_inner()).remove(&database);
        // Other handles may still have a transaction on it.
        let gone = format!("SET SESSION lock_wait_timeout = 5; DROP DATABASE IF EXISTS {database}");
        if let Ok(mut direct) = self.direct().await {
            let _ = raw_sql(AssertSqlSafe(gone)).execute(&mut direct).await;
        }
    }

    async fn plain(&self, store: &MySql) -> Result<Self::Plain> {
        store.pool().acquire().await.map_err(failed)
    }

    async fn add_effect(conn: &mut MySqlConnection, name: &str) -> Result<(), BoxedError> {
        query("INSERT INTO effect (name) VALUES (?)").bind(name).execute(conn).await?;
        Ok(())
    }

    async fn effects(&self, store: &MySql) -> Result<Vec<(String, u64)>, BoxedError> {
        Ok(counted(query_as(COUNT).fetch_all(store.pool()).await?))
    }

    async fn lock_entity(conn: &mut MySqlConnection, name: &str) -> Result<(), BoxedError> {
        let locked = "INSERT INTO entity (name, locked) VALUES (?, 1) ON DUPLICATE KEY UPDATE locked = locked + 1";
        query(locked).bind(name).execute(conn).await?;
        Ok(())
    }

    async fn fail_statement(conn: &mut MySqlConnection) -> BoxedError {
        let broken = match query("INSERT INTO strict_one (id) VALUES (1)").execute(&mut *conn).await {
            Ok(_) => "a constraint was not kept".into(),
            Err(e) => e.into(),
        };
        // That alone undoes the statement and nothing else.
        match Self::lose(conn).await {
            Ok(()) => broken,
            Err(e) => e,
        }
    }

    async fn execute(conn: &mut MySqlConnection, row: OutboxRow) -> Result<(), BoxedError> {
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

    fn move_clock(&self, store: &MySql, seconds: i64) {
        store.set_clock_offset(seconds * 1_000_000);
    }

    async fn contention(&self, store: &MySql) -> Result<BoxedError> {
        let mut one = store.pool().begin().await.map_err(failed)?;
        let mut other = store.pool().begin().await.map_err(failed)?;
        query("INSERT INTO entity (name, locked) VALUES ('x', 1)").execute(&mut *one).await.map_err(failed)?;
        query("SET SESSION innodb_lock_wait_timeout = 1").execute(&mut *other).await.map_err(failed)?;
        match query("INSERT INTO entity (name, locked) VALUES ('x', 1)").execute(&mut *other).await {
            Ok(_) => Err(Error::new(ErrorKind::Unexpected, "no lock was waited for")),
            Err(e) => Ok(e.into()),
        }
    }

    async fn outage(&self, store: &MySql) -> Result<StoreOutage> {
        let database = Self::database_of(store).await?;
        let proxy = self.proxies.lock().unwrap_or_else(|e| e.into_inner()).remove(&database);
        let proxy = proxy.ok_or_else(|| Error::invalid("no proxy stands before this database"))?;
        proxy.refuse(true).await;
        proxy.cut();
        Ok(StoreOutage::new(Refusing(Some(proxy))))
    }
}

/// A proxy that refuses all, until this is dropped.
struct Refusing(Option<Proxy>);

impl Drop for Refusing {
    fn drop(&mut self) {
        if let Some(proxy) = self.0.take() {
            tokio::spawn(async move {
                proxy.refuse(false).await;
                // It must stand there for as long as the store lives; nobody tells when that ends.
                std::future::pending::<()>().await;
            });
        }
    }
}

fn main() -> ExitCode {
    StoreSuite::new()
        .on("sqlite", "sqlite", Ok(SqliteTarget))
        .on("by-url", "sqlite", Ok(DbTarget))
        .on("postgres", "postgres", PostgresTarget::from_env())
        .on("mariadb", "mariadb", MySqlTarget::from_env())
        .faults_on("sqlite-faults", Ok(SqliteTarget))
        .faults_on("postgres-faults", PostgresTarget::from_env())
        .faults_on("mariadb-faults", MySqlTarget::from_env())
        .main()
}
