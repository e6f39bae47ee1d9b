//! Marks of messages in the handler's transaction.

use std::sync::Arc;

use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::store::{InboxStore, InboxTable, Mark, MarkKey, TransactionLimits};
use sqlx::PgConnection;

use super::{Postgres, PostgresTx, SYSTEM, inbox_table::Inbox, reading, reading_or_committing};

statements! {
    MarkSql {
        // BEGIN limits the wait for locks, and what the mark returns puts the session's own limit back. A duplicate
        // returns nothing.
        begin_marked = "INSERT INTO {inbox} (consumer, hour, key, at) VALUES ($1, $2, $3, {now}) ON CONFLICT DO NOTHING
            RETURNING pg_backend_pid(), (extract(epoch FROM now()) * 1000000)::bigint,
                set_config('lock_timeout', $4, true)";
        restore = "SELECT set_config('lock_timeout', $1, true)";
        mark = "INSERT INTO {inbox} (consumer, hour, key, at) VALUES ($1, $2, $3, {now}) ON CONFLICT DO NOTHING";
        is_marked = "SELECT EXISTS (SELECT 1 FROM {inbox} WHERE consumer = $1 AND hour = $2 AND key = $3)";
    }
}

impl InboxStore for Postgres {
    /// Two round trips: BEGIN with the limits, and the mark.
    async fn begin_marked(&self, key: &MarkKey, limits: &TransactionLimits) -> Result<(PostgresTx, Mark)> {
        let (sql, lock_timeout) = (self.statements().await?, self.lock_timeout().await?);
        let mut tx = self.begin_for_message(limits).await?;
        let mark = sqlx::query_as(sql.mark.begin_marked.clone())
            .bind(key.consumer)
            .bind(key.hour)
            .bind(&key.key[..])
            .bind(lock_timeout);
        let marked: Option<(i32, i64, String)> =
            mark.fetch_optional(&mut *tx).await.map_err(|error| of_mark(error, reading("inbox.mark")))?;
        tx.has_written();
        let Some((pid, started_at, _)) = marked else {
            let restore = sqlx::query(sql.mark.restore.clone()).bind(lock_timeout);
            restore.execute(&mut *tx).await.map_err(reading("inbox.mark"))?;
            return Ok((tx, Mark::Duplicate));
        };
        tx.cancel_on_drop(pid, started_at);
        Ok((tx, Mark::First))
    }

    async fn mark(&self, conn: &mut PgConnection, key: &MarkKey) -> Result<Mark> {
        let sql = self.statements().await?;
        let failed = reading_or_committing(conn, "inbox.mark");
        let insert = sqlx::query(sql.mark.mark.clone()).bind(key.consumer).bind(key.hour).bind(&key.key[..]);
        let done = insert.execute(conn).await.map_err(|error| of_mark(error, failed))?;
        Ok(if done.rows_affected() == 0 { Mark::Duplicate } else { Mark::First })
    }

    async fn is_marked(&self, conn: &mut PgConnection, key: &MarkKey) -> Result<bool> {
        let sql = self.statements().await?;
        let select =
            sqlx::query_scalar(sql.mark.is_marked.clone()).bind(key.consumer).bind(key.hour).bind(&key.key[..]);
        select.fetch_one(conn).await.map_err(reading("inbox.is_marked"))
    }

    fn inbox(&self) -> Arc<dyn InboxTable> {
        Arc::new(Inbox(self.clone()))
    }
}

impl Postgres {
    /// The limit for locks that the sessions of the application's pool have, which are all set up alike. A statement
    /// that found out in each transaction would cost as much as the mark.
    pub(super) async fn lock_timeout(&self) -> Result<&str> {
        let ask = async {
            let mut conn = self.0.pool.acquire().await?;
            sqlx::query_scalar("SELECT current_setting('lock_timeout')").fetch_one(&mut *conn).await
        };
        Ok(self.0.lock_timeout.get_or_try_init(|| ask).await.map_err(reading("inbox.mark"))?)
    }
}

/// An error of the mark: what ended the wait for another transaction says so.
fn of_mark(error: sqlx::Error, failed: impl Fn(sqlx::Error) -> Error) -> Error {
    match ended_by_a_limit(&error) {
        true => Error::new(ErrorKind::Unavailable, "another transaction that handles this message takes longer")
            .of_driver(SYSTEM, "inbox.mark")
            .with_context("mark", "busy")
            .with_source(error),
        false => failed(error),
    }
}

/// Whether a limit ended a wait for a lock. 57014 is one for the whole statement, such as one of the caller's own role
/// or database that is shorter.
pub(super) fn ended_by_a_limit(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("55P03" | "57014"))
}
