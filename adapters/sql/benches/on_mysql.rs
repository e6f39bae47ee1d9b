//! A database of MySQL or MariaDB.

use polybus_sql::MySql;
use sqlx::{
    AssertSqlSafe, ConnectOptions, MySqlConnection, Transaction,
    mysql::{MySqlConnectOptions, MySqlPoolOptions},
};

use crate::{
    CLIENTS,
    database::{Database, Tables},
};

/// A database of its own.
pub(crate) async fn open(url: &str) -> Database<MySql> {
    let name = format!("bench_{}", std::process::id());
    let options: MySqlConnectOptions = url.parse().unwrap();
    let mut conn = options.connect().await.unwrap();
    let make =
        format!("CREATE DATABASE {name}; CREATE TABLE {name}.business (id VARCHAR(64), note TEXT) ENGINE = InnoDB");
    sqlx::raw_sql(AssertSqlSafe(make)).execute(&mut conn).await.unwrap();
    let pool = MySqlPoolOptions::new().max_connections(CLIENTS as u32 + 2);
    let store = polybus_sql::mysql(pool.connect_with(options.database(&name)).await.unwrap());
    store.migrate().await.unwrap();
    Database { store }
}

impl Tables for MySql {
    type PlainTx = Transaction<'static, sqlx::MySql>;

    async fn plain(&self) -> Self::PlainTx {
        self.pool().begin().await.unwrap()
    }

    async fn commit_plain(tx: Self::PlainTx) {
        tx.commit().await.unwrap();
    }

    async fn effect(conn: &mut MySqlConnection, id: &str) {
        let insert = sqlx::query("INSERT INTO business (id, note) VALUES (?, 'an order')").bind(id);
        insert.execute(conn).await.unwrap();
    }

    async fn clear(&self) {
        let statement =
            "TRUNCATE business; DELETE FROM polybus_outbox; TRUNCATE polybus_inbox; TRUNCATE polybus_sequence;
            TRUNCATE polybus_sequence_progress";
        sqlx::raw_sql(statement).execute(self.pool()).await.unwrap();
    }

    async fn is_published(&self, queue: &str) -> bool {
        let sql =
            "SELECT COUNT(*) FROM (SELECT 1 FROM polybus_outbox WHERE slot BETWEEN 0 AND 15 AND address = ? LIMIT 1) o";
        let query = sqlx::query_scalar(sql).bind(format!("queue:{queue}").into_bytes());
        let left: i64 = query.fetch_one(self.pool()).await.unwrap();
        left == 0
    }

    async fn log_bytes(&self) -> Option<f64> {
        let sql = "SELECT CAST(VARIABLE_VALUE AS DOUBLE) FROM information_schema.GLOBAL_STATUS
            WHERE VARIABLE_NAME = 'INNODB_OS_LOG_WRITTEN'";
        sqlx::query_scalar(sql).fetch_optional(self.pool()).await.ok().flatten()
    }

    fn handing_over(&self) -> Option<Self> {
        None
    }

    async fn remove(self) {
        let name: String = sqlx::query_scalar("SELECT DATABASE()").fetch_one(self.pool()).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(format!("DROP DATABASE {name}"))).execute(self.pool()).await.unwrap();
    }
}
