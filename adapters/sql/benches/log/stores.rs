//! Databases of their own.

use polybus_sql::{MySql, Postgres};
use sqlx::{
    AssertSqlSafe, ConnectOptions, MySqlPool, PgPool,
    mysql::{MySqlConnectOptions, MySqlPoolOptions},
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// Connections of the pool.
const CONNECTIONS: u32 = 40;

pub(crate) async fn postgres(url: &str) -> (Postgres, String) {
    let schema = format!("bench_log_{}", std::process::id());
    let options: PgConnectOptions = url.parse().unwrap();
    let options = options.options([("search_path", schema.as_str())]);
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect_with(options).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE SCHEMA {schema}"))).execute(&pool).await.unwrap();
    let store = polybus_sql::postgres(pool).schema(&schema);
    store.migrate().await.unwrap();
    (store, schema)
}

pub(crate) async fn drop_schema(pool: &PgPool, schema: &str) {
    sqlx::raw_sql(AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE"))).execute(pool).await.unwrap();
}

pub(crate) async fn mysql(url: &str) -> (MySql, String) {
    let name = format!("bench_log_{}", std::process::id());
    let options: MySqlConnectOptions = url.parse().unwrap();
    let mut conn = options.connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut conn).await.unwrap();
    let pool = MySqlPoolOptions::new().max_connections(CONNECTIONS);
    let store = polybus_sql::mysql(pool.connect_with(options.database(&name)).await.unwrap());
    store.migrate().await.unwrap();
    (store, name)
}

pub(crate) async fn drop_database(pool: &MySqlPool, name: &str) {
    sqlx::raw_sql(AssertSqlSafe(format!("DROP DATABASE {name}"))).execute(pool).await.unwrap();
}
