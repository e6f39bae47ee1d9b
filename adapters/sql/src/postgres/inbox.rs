//! Marks of messages in the handler's transaction.

use std::{sync::Arc, time::Duration};

use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::store::{InboxStore, InboxTable, Mark, MarkKey, TransactionLimits};
use sqlx::PgConnection;

use super::{Postgres, PostgresTx, SYSTEM, inbox_table::Inbox, reading, reading_or_committing};

/// How much longer than one statement a handler's transaction may be idle.
const IDLE_SLACK: Duration = Duration::from_secs(60);

statements! {
    MarkSql {
        // The wait of the mark alone is limited: the INSERT reads from what sets the limit, and the outer SELECT, which
        // counts what it inserted, puts the caller's limit back.
        begin_marked = "WITH
            own AS MATERIALIZED (SELECT current_setting('lock_timeout') AS lock_timeout),
            limited AS MATERIALIZED (
                SELECT own.lock_timeout, set_config('lock_timeout', $4, true) AS of_mark FROM own),
            marked AS (
                INSERT INTO {inbox} (consumer, hour, key, at)
                SELECT $1, $2, $3, {now} FROM limited WHERE limited.of_mark IS NOT NULL
                ON CONFLICT DO NOTHING RETURNING 1),
            counted AS MATERIALIZED (SELECT count(*) AS marks FROM marked)
            SELECT counted.marks, pg_backend_pid(), (extract(epoch FROM now()) * 1000000)::bigint,
                CASE WHEN counted.marks >= 0 THEN set_config('lock_timeout', limited.lock_timeout, true) END,
                CASE WHEN $5::text IS NOT NULL THEN set_config('statement_timeout', $5, true) END,
                CASE WHEN $6::text IS NOT NULL THEN set_config('idle_in_transaction_session_timeout', $6, true) END
            FROM counted CROSS JOIN limited";
        mark = "INSERT INTO {inbox} (consumer, hour, key, at) VALUES ($1, $2, $3, {now}) ON CONFLICT DO NOTHING";
        is_marked = "SELECT EXISTS (SELECT 1 FROM {inbox} WHERE consumer = $1 AND hour = $2 AND key = $3)";
    }
}

impl InboxStore for Postgres {
    /// Two round trips: BEGIN, and the mark with the limits.
    async fn begin_marked(&self, key: &MarkKey, limits: &TransactionLimits) -> Result<(PostgresTx, Mark)> {
        let sql = self.statements().await?;
        let mut tx = self.begin().await?;
        let mark = sqlx::query_as(sql.mark.begin_marked.clone())
            .bind(key.consumer)
            .bind(key.hour)
            .bind(&key.key[..])
            .bind(setting(limits.mark_wait))
            .bind(limits.statement_timeout.map(setting))
            // The handler of a host that is gone would keep its mark for hours.
            .bind(limits.statement_timeout.map(|limit| setting(limit.saturating_add(IDLE_SLACK))));
        let (marks, pid, started_at, _, _, _): (i64, i32, i64, Option<String>, Option<String>, Option<String>) =
            mark.fetch_one(&mut *tx).await.map_err(|error| of_mark(error, reading("inbox.mark")))?;
        tx.cancel_on_drop(self, pid, started_at);
        Ok((tx, if marks == 0 { Mark::Duplicate } else { Mark::First }))
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

/// A time limit as a setting of PostgreSQL, where 0 would be none.
fn setting(limit: Duration) -> String {
    format!("{}ms", limit.as_millis().clamp(1, 2_147_483_647))
}

/// An error of the mark: what ended the wait for another transaction says so.
fn of_mark(error: sqlx::Error, failed: impl Fn(sqlx::Error) -> Error) -> Error {
    let code = error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned());
    match code.as_deref() {
        // 57014 is a limit of the caller's own role or database that is shorter.
        Some("55P03" | "57014") => {
            Error::new(ErrorKind::Unavailable, "another transaction that handles this message takes longer")
                .of_driver(SYSTEM, "inbox.mark")
                .with_context("mark", "busy")
                .with_source(error)
        }
        _ => failed(error),
    }
}
