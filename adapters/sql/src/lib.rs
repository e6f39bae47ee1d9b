//! The tables of polybus' outbox, inbox, sequence numbers, background jobs and schedules on PostgreSQL, on MySQL and
//! MariaDB, and on SQLite, by sqlx.
//!
//! A store is made of a pool that the application has already. Making one does no I/O. [`migrate`](Sqlite::migrate)
//! makes the tables, or [`migration_sql`](Sqlite::migration_sql) prints what would, for those who run it themselves.
//!
//! ```no_run
//! # #[cfg(feature = "sqlite")]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = sqlx::SqlitePool::connect("sqlite:shop.db?mode=rwc").await?;
//! let store = polybus_sql::sqlite(pool).prefix("shop_");
//! store.migrate().await?;
//!
//! let mut tx = store.begin().await?;
//! sqlx::query("INSERT INTO orders (id, cents) VALUES (?1, ?2)").bind(7).bind(1999).execute(&mut *tx).await?;
//! // The outbox, the inbox and the jobs of polybus-patterns take `&mut tx` here.
//! tx.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! | | [`Postgres`] ≥ 13 | [`MySql`] ≥ 8.0, MariaDB ≥ 10.6 | [`Sqlite`] ≥ 3.42, bundled |
//! |---|---|---|---|
//! | names of tables | `.schema(…)`, else the schema where they are found; prefix `polybus_` | `.database(…)`, else the pool's; prefix `polybus_` | prefix `polybus_` |
//! | transactions | as many as the pool has connections | as many as the pool has connections | one at a time, in a fair queue for each file and process |
//! | loops and administration | on four connections of their own | on four connections of their own | on the application's pool |
//! | other processes hear of rows | by `Outbox::notify` and `Relay::listen` | by looking | by looking |
//!
//! A program that learns its database only when it runs has [`Db`], which is any of them, chosen by URL:
//! `Db::connect("postgres://…")`. Its statements have a `?` for each value, on every database.
//!
//! A table of a newer polybus is fine as long as it says so: see [`migrate`](Postgres::migrate). The table
//! `_sqlx_migrations` is the application's and is not touched.
#![cfg_attr(docsrs, feature(doc_cfg))]
// Without a database nothing of what they share is used.
#![cfg_attr(
    not(all(feature = "mysql", feature = "postgres", feature = "sqlite")),
    allow(dead_code, unused_imports, unused_macros, rustdoc::broken_intra_doc_links)
)]

mod clock;
mod consumer;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
mod db;
mod error;
mod filter;
#[cfg(feature = "postgres")]
mod finish_on_drop;
mod job_filter;
mod log;
mod migrate;
mod mysql_codes;
#[macro_use]
mod names;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
mod probe;
mod row;
mod sequence;
#[cfg(feature = "sqlite")]
mod sqlite;
mod swept;
mod text;

#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub use db::{Db, DbColumn, DbConn, DbOptions, DbPooled, DbRow, DbTx, DbType, DbValue};
#[cfg(feature = "mysql")]
pub use mysql::{MySql, MySqlTx, mysql};
#[cfg(feature = "postgres")]
pub use postgres::{Postgres, PostgresTx, postgres};
#[cfg(feature = "sqlite")]
pub use sqlite::{Sqlite, SqliteTx, sqlite, sqlite_temp};
/// The client, in the version whose pools and connections this crate takes.
pub use sqlx;
