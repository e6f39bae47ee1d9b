//! A database for tests and examples.

use std::sync::Arc;

use polybus_core::{Error, ErrorKind, Result};
use sqlx::{
    SqlitePool,
    pool::PoolOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::{SYSTEM, Sqlite, reading};
use crate::{clock::ClockOffset, names::PREFIX};

/// A store on a new file in a temporary folder, without tables yet. The folder is removed when the last clone is
/// dropped.
///
/// It is for tests and examples. `sqlite::memory:` is no substitute: there a reader waits for the writer, and for ever
/// where both are in one task. The database's clock does not stand still with tokio's.
///
/// # Errors
/// `Unavailable` if the folder or the file cannot be made.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> polybus_core::Result<()> {
/// let store = polybus_sql::sqlite_temp().await?;
/// store.migrate().await?;
/// store.verify().await?;
/// # Ok(())
/// # }
/// ```
pub async fn sqlite_temp() -> Result<Sqlite> {
    let folder = tempfile::Builder::new().prefix("polybus-").tempdir().map_err(|error| {
        Error::new(ErrorKind::Unavailable, "no temporary folder can be made")
            .of_driver(SYSTEM, "sqlite_temp")
            .with_source(error)
    })?;
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("polybus.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal);
    let pool: SqlitePool =
        PoolOptions::new().max_connections(16).connect_with(options).await.map_err(reading("sqlite_temp"))?;
    Ok(Sqlite::build(pool, PREFIX.to_owned(), ClockOffset::default(), Some(Arc::new(folder))))
}
