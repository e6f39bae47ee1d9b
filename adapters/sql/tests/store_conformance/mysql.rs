//! MariaDB or MySQL, in a database of its own.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use polybus_conformance::{
    Proxy,
    stores::{BoxedError, StoreAbilities, StoreOutage, StoreUnderTest},
};
use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::store::{OutboxRow, SqlValue};
use polybus_sql::{
    MySql,
    sqlx::{
        self, AssertSqlSafe, ConnectOptions, MySqlConnection, MySqlPool,
        mysql::MySqlConnectOptions,
        pool::{PoolConnection, PoolOptions},
        query, query_as, query_scalar, raw_sql,
    },
};

use super::{COUNT, Refusing, counted, failed, next_place};

pub(super) struct MySqlTarget {
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
    pub(super) fn from_env() -> Result<Self, String> {
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
        let database = next_place();
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
