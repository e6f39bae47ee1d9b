//! The store suite on SQLite, on PostgreSQL and on MariaDB or MySQL.
//!
//! `POLYBUS_POSTGRES_POOLER_URL` runs it on PostgreSQL behind a pooler as well.

mod by_url;
mod mysql;
mod postgres;
mod sqlite;

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU32, Ordering},
};

use by_url::DbTarget;
use mysql::MySqlTarget;
use polybus_conformance::{Proxy, stores::StoreSuite};
use polybus_core::{Error, ErrorKind};
use polybus_sql::sqlx;
use postgres::PostgresTarget;
use sqlite::SqliteTarget;

fn failed(error: sqlx::Error) -> Error {
    Error::new(ErrorKind::Unexpected, format!("the suite's own statement: {error}"))
}

/// The application's tables.
const TABLES: &str = "CREATE TABLE effect (name TEXT NOT NULL);
    CREATE TABLE entity (name TEXT NOT NULL PRIMARY KEY, locked BIGINT NOT NULL);
    CREATE TABLE strict_one (id BIGINT NOT NULL PRIMARY KEY);
    INSERT INTO strict_one VALUES (1);";

const COUNT: &str = "SELECT name, count(*) FROM effect GROUP BY name";

fn counted(rows: Vec<(String, i64)>) -> Vec<(String, u64)> {
    rows.into_iter().map(|(name, count)| (name, count.unsigned_abs())).collect()
}

/// The name of the next schema or database.
fn next_place() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("suite_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
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
    let suite = match PostgresTarget::through_a_pooler() {
        Ok(pooler) => StoreSuite::new().on("pooler", "postgres-pooler", Ok(pooler)),
        // No pooler is a part of the stack: see docs/patterns.
        Err(_) => StoreSuite::new(),
    };
    suite
        .on("sqlite", "sqlite", Ok(SqliteTarget))
        .jobs_on("sqlite", "sqlite", Ok(SqliteTarget))
        .on("by-url", "sqlite", Ok(DbTarget))
        .jobs_on("by-url", "sqlite", Ok(DbTarget))
        .on("postgres", "postgres", PostgresTarget::from_env())
        .jobs_on("postgres", "postgres", PostgresTarget::from_env())
        .on("mariadb", "mariadb", MySqlTarget::from_env())
        .jobs_on("mariadb", "mariadb", MySqlTarget::from_env())
        .faults_on("sqlite-faults", Ok(SqliteTarget))
        .job_faults_on("sqlite-faults", Ok(SqliteTarget))
        .faults_on("postgres-faults", PostgresTarget::from_env())
        .job_faults_on("postgres-faults", PostgresTarget::from_env())
        .faults_on("mariadb-faults", MySqlTarget::from_env())
        .job_faults_on("mariadb-faults", MySqlTarget::from_env())
        .main()
}
