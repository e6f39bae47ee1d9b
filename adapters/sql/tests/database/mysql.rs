//! Fresh databases of MariaDB or MySQL.

use std::sync::atomic::{AtomicU32, Ordering};

use polybus_core::Result;
use polybus_sql::MySql;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection,
    mysql::{MySqlConnectOptions, MySqlPoolOptions},
};

use super::TestDatabase;

/// Tables' names, and the types by their names there.
fn filled(sql: &str) -> String {
    let mut text = String::new();
    let mut rest = sql;
    while let Some((before, after)) = rest.split_once('{') {
        let (word, after) = after.split_once('}').unwrap();
        text.push_str(&format!("{before}`polybus_{word}`"));
        rest = after;
    }
    (text + rest).replace("AS BIGINT)", "AS SIGNED)").replace("AS TEXT)", "AS CHAR)")
}

impl TestDatabase for MySql {
    async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(filled(sql))).execute(self.pool()).await.unwrap();
    }
    async fn number(&self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(filled(sql))).fetch_one(self.pool()).await.unwrap()
    }
    async fn run_on(&self, conn: &mut Self::Conn, sql: &str) -> std::result::Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(filled(sql))).execute(conn).await.map(drop)
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

/// Where it is. Without it the test is skipped, with a visible line, or fails if `POLYBUS_REQUIRE` names it.
fn mysql_url() -> Option<String> {
    let url = std::env::var("POLYBUS_MARIADB_URL").ok().filter(|url| !url.is_empty());
    if url.is_none() {
        let required = std::env::var("POLYBUS_REQUIRE").unwrap_or_default();
        let required = required.split(',').any(|name| name.trim() == "mariadb");
        assert!(!required, "POLYBUS_MARIADB_URL is required, but not set");
        eprintln!("SKIPPED: POLYBUS_MARIADB_URL is not set");
    }
    url
}

/// Connection options with a new database.
pub async fn mysql_options() -> Option<MySqlConnectOptions> {
    static DATABASES: AtomicU32 = AtomicU32::new(0);
    let options: MySqlConnectOptions = mysql_url()?.parse().unwrap();
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros();
    let name = format!("test_{}_{time}_{}", std::process::id(), DATABASES.fetch_add(1, Ordering::Relaxed));
    let mut conn = options.connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    Some(options.database(&name))
}

/// A store in a new database, without tables.
pub async fn mysql() -> Option<MySql> {
    let pool = MySqlPoolOptions::new().max_connections(8).connect_with(mysql_options().await?).await.unwrap();
    Some(polybus_sql::mysql(pool))
}
