//! How far keys have come, for those who wait and those who look, and the rows that are too old.

use std::time::Duration;

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{GuardKey, GuardedKey, SequenceTable, StoredGap, micros};

use super::{Postgres, reading};
use crate::sequence::{GapRow, gap};

statements! {
    SequencesSql {
        next = "SELECT next_n FROM {sequence_progress} WHERE consumer = $1 AND key = $2 AND missing IS NOT NULL";
        // A handler that has the row is about to move the key. This must not wait for it.
        note = "WITH free AS (SELECT told_at FROM {sequence_progress} WHERE consumer = $1 AND key = $2 FOR UPDATE SKIP LOCKED),
                made AS (INSERT INTO {sequence_progress} (consumer, key, source, okey, first_n, next_n, told_at, seen_at)
                    SELECT $1::int, $2::bytea, $3::text, $4::bytea, 0, 0, $5::bigint, {now}
                    WHERE NOT EXISTS (SELECT 1 FROM {sequence_progress} WHERE consumer = $1 AND key = $2)
                    ON CONFLICT DO NOTHING RETURNING 1),
                noted AS (UPDATE {sequence_progress} SET told_at = $5, seen_at = {now}
                    WHERE consumer = $1 AND key = $2 AND EXISTS (SELECT 1 FROM free) RETURNING 1)
            SELECT EXISTS (SELECT 1 FROM made) OR EXISTS (SELECT 1 FROM free WHERE told_at <> $5)";
        gaps = "SELECT key, source, okey, first_n, next_n, missing, aside, told_at FROM {sequence_progress}
            WHERE consumer = $1 AND missing <> '' AND ($2::bytea IS NULL OR key > $2) ORDER BY key LIMIT $3::bigint";
        sweep_progress = "DELETE FROM {sequence_progress} WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM {sequence_progress} WHERE consumer = $1 AND seen_at < {now} - $2::bigint LIMIT $3::bigint
                FOR UPDATE SKIP LOCKED))
            AND consumer = $1 AND seen_at < {now} - $2::bigint";
        sweep_numbers = "DELETE FROM {sequence} WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM {sequence} WHERE used_at < {now} - $1::bigint LIMIT $2::bigint
                FOR UPDATE SKIP LOCKED))
            AND used_at < {now} - $1::bigint";
    }
}

pub(super) struct Sequences(pub(super) Postgres);

#[async_trait]
impl SequenceTable for Sequences {
    /// On the application's pool: those who wait look often, and a lease must not wait for them.
    async fn next(&self, key: &GuardKey) -> Result<Option<i64>> {
        const OPERATION: &str = "sequence.next";
        let sql = self.0.statements().await?;
        let mut conn = self.0.0.pool.acquire().await.map_err(reading(OPERATION))?;
        let select = sqlx::query_scalar(sql.sequences.next.clone()).bind(key.consumer).bind(&key.key[..]);
        select.fetch_optional(&mut *conn).await.map_err(reading(OPERATION))
    }

    async fn note_stopped(&self, key: &GuardKey, of: &GuardedKey<'_>, next: i64) -> Result<bool> {
        const OPERATION: &str = "sequence.note";
        let sql = self.0.statements().await?;
        let mut conn = self.0.control_conn(OPERATION).await?;
        let note = sqlx::query_scalar(sql.sequences.note.clone())
            .bind(key.consumer)
            .bind(&key.key[..])
            .bind(of.source)
            .bind(of.key.as_bytes())
            .bind(next);
        note.fetch_one(&mut *conn).await.map_err(conn.committing())
    }

    async fn gaps(&self, consumer: i32, after: Option<[u8; 16]>, limit: u32) -> Result<Vec<StoredGap>> {
        const OPERATION: &str = "sequence.gaps";
        let sql = self.0.statements().await?;
        let mut conn = self.0.control_conn(OPERATION).await?;
        let select = sqlx::query_as(sql.sequences.gaps.clone())
            .bind(consumer)
            .bind(after.as_ref().map(|after| &after[..]))
            .bind(i64::from(limit));
        let rows: Vec<GapRow> = select.fetch_all(&mut *conn).await.map_err(conn.reading())?;
        Ok(rows.into_iter().filter_map(gap).collect())
    }

    async fn sweep_progress(&self, consumer: i32, older_than: Duration, limit: u32) -> Result<u64> {
        const OPERATION: &str = "sequence.sweep";
        let sql = self.0.statements().await?;
        let mut conn = self.0.control_conn(OPERATION).await?;
        let delete = sqlx::query(sql.sequences.sweep_progress.clone())
            .bind(consumer)
            .bind(micros(older_than))
            .bind(i64::from(limit));
        Ok(delete.execute(&mut *conn).await.map_err(conn.committing())?.rows_affected())
    }

    async fn sweep_numbers(&self, older_than: Duration, limit: u32) -> Result<u64> {
        const OPERATION: &str = "sequence.sweep";
        let sql = self.0.statements().await?;
        let mut conn = self.0.control_conn(OPERATION).await?;
        let delete = sqlx::query(sql.sequences.sweep_numbers.clone()).bind(micros(older_than)).bind(i64::from(limit));
        Ok(delete.execute(&mut *conn).await.map_err(conn.committing())?.rows_affected())
    }
}
