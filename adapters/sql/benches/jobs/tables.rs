//! Databases of their own.

use std::future::Future;

use polybus_patterns::store::JobStore;
use polybus_sql::{MySql, Postgres, Sqlite};
use sqlx::{
    AssertSqlSafe, ConnectOptions,
    mysql::{MySqlConnectOptions, MySqlPoolOptions},
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// Connections of the pool.
const CONNECTIONS: u32 = 16;

pub(crate) trait Tables: JobStore {
    /// Empties the tables of jobs.
    fn clear_jobs(&self) -> impl Future<Output = ()> + Send;
    /// What a database does by itself after a while: it counts its rows.
    fn analyze(&self) -> impl Future<Output = ()> + Send;
    fn remove(self) -> impl Future<Output = ()> + Send;
}

pub(crate) async fn postgres(url: &str) -> Postgres {
    let schema = format!("bench_jobs_{}", std::process::id());
    let options: PgConnectOptions = url.parse().unwrap();
    let options = options.options([("search_path", schema.as_str())]);
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect_with(options).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE SCHEMA {schema}"))).execute(&pool).await.unwrap();
    let store = polybus_sql::postgres(pool).schema(&schema);
    store.migrate().await.unwrap();
    store
}

pub(crate) async fn mysql(url: &str) -> MySql {
    let name = format!("bench_jobs_{}", std::process::id());
    let options: MySqlConnectOptions = url.parse().unwrap();
    let mut conn = options.connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut conn).await.unwrap();
    let pool = MySqlPoolOptions::new().max_connections(CONNECTIONS);
    let store = polybus_sql::mysql(pool.connect_with(options.database(&name)).await.unwrap());
    store.migrate().await.unwrap();
    store
}

pub(crate) async fn sqlite() -> Sqlite {
    let store = polybus_sql::sqlite_temp().await.unwrap();
    store.migrate().await.unwrap();
    store
}

impl Tables for Postgres {
    async fn clear_jobs(&self) {
        sqlx::raw_sql("TRUNCATE polybus_job; TRUNCATE polybus_job_done").execute(self.pool()).await.unwrap();
    }

    async fn analyze(&self) {
        sqlx::raw_sql("ANALYZE polybus_job").execute(self.pool()).await.unwrap();
        sqlx::raw_sql("CHECKPOINT").execute(self.pool()).await.unwrap();
    }

    async fn remove(self) {
        let schema: String = sqlx::query_scalar("SELECT current_schema()::text").fetch_one(self.pool()).await.unwrap();
        let drop = format!("DROP SCHEMA {schema} CASCADE");
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(self.pool()).await.unwrap();
    }
}

impl Tables for MySql {
    async fn clear_jobs(&self) {
        sqlx::raw_sql("TRUNCATE polybus_job; TRUNCATE polybus_job_done").execute(self.pool()).await.unwrap();
    }

    async fn analyze(&self) {
        sqlx::raw_sql("ANALYZE TABLE polybus_job").execute(self.pool()).await.unwrap();
    }

    async fn remove(self) {
        let name: String = sqlx::query_scalar("SELECT DATABASE()").fetch_one(self.pool()).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(format!("DROP DATABASE {name}"))).execute(self.pool()).await.unwrap();
    }
}

impl Tables for Sqlite {
    async fn clear_jobs(&self) {
        sqlx::raw_sql("DELETE FROM polybus_job; DELETE FROM polybus_job_done").execute(self.pool()).await.unwrap();
    }

    async fn analyze(&self) {}

    async fn remove(self) {}
}
