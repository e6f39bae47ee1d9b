//! A look at the database at the first use.

use std::sync::Arc;

use polybus_core::{Error, Result};
use sqlx::SqliteConnection;

use super::{SYSTEM, Sqlite, reading, write_queue::WriteQueue};

impl Sqlite {
    /// The queue of this database, once its version was looked at.
    pub(super) async fn ready(&self) -> Result<&Arc<WriteQueue>> {
        self.0
            .ready
            .get_or_try_init(async || {
                let mut conn = self.0.pool.acquire().await.map_err(reading("connect"))?;
                self.look_at(&mut conn).await
            })
            .await
    }

    /// The same on a connection that is there already: a second one may not be to be had while it is in use.
    pub(super) async fn ready_on(&self, conn: &mut SqliteConnection) -> Result<()> {
        self.0.ready.get_or_try_init(async || self.look_at(conn).await).await.map(drop)
    }

    async fn look_at(&self, conn: &mut SqliteConnection) -> Result<Arc<WriteQueue>> {
        let version: String =
            sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&mut *conn).await.map_err(reading("connect"))?;
        check_version(&version)?;
        let mode: String =
            sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *conn).await.map_err(reading("connect"))?;
        if !mode.eq_ignore_ascii_case("wal") {
            tracing::warn!(
                journal_mode = mode,
                "the SQLite database is not in WAL mode: readers and the writer wait for each other"
            );
        }
        let identity = Arc::as_ptr(&self.0.connect_options) as usize;
        Ok(WriteQueue::of(self.0.connect_options.get_filename(), identity))
    }
}

/// # Errors
/// `ConfigInvalid` for a SQLite older than 3.42, where `unixepoch('subsec')` is NULL without an error.
fn check_version(version: &str) -> Result<()> {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let (major, minor) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if (major, minor) >= (3, 42) {
        return Ok(());
    }
    Err(Error::config(format!("SQLite {version} is too old: polybus needs 3.42 or newer")).with_backend(SYSTEM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for good in ["3.42.0", "3.51", "4.0.0"] {
            check_version(good).unwrap();
        }
        for bad in ["3.41.9", "3.40.1", "2.99", ""] {
            let error = check_version(bad).unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("3.42"), "{error}");
        }
    }
}
