//! The outbox as the relay sees it.

use std::time::Duration;

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{DueRows, OutboxStats, OutboxTable, ParkedFilter, ParkedRow, ReadRows, RowId, StoredRow};

use super::{Postgres, outbox_read, outbox_stats, parked};
use crate::text::stored_text;

statements! {
    TableSql {
        // One look into the index for each slot and address, however many rows there are.
        addresses = "WITH RECURSIVE found (slot, address) AS (
                SELECT s.slot, (
                    SELECT o.address FROM {outbox} o WHERE o.slot = s.slot ORDER BY o.address LIMIT 1)
                FROM unnest($1::smallint[]) AS s (slot)
                UNION ALL
                SELECT f.slot, (
                    SELECT o.address FROM {outbox} o WHERE o.slot = f.slot AND o.address > f.address
                    ORDER BY o.address LIMIT 1)
                FROM found f WHERE f.address IS NOT NULL
            )
            SELECT f.slot, f.address FROM found f
            WHERE f.address IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {outbox_paused} p WHERE p.address = f.address)";
        delete = "DELETE FROM {outbox} o USING unnest($1::bigint[], $2::bigint[]) AS d (id, created_at)
            WHERE o.id = d.id AND o.created_at = d.created_at";
        fail = "UPDATE {outbox} SET attempts = attempts + 1, last_error = $3 WHERE id = $1 AND created_at = $2";
        promote = "WITH due AS MATERIALIZED (
                SELECT id FROM {outbox} WHERE slot = -1 AND due_at <= {now} ORDER BY due_at LIMIT $1::bigint
                FOR UPDATE SKIP LOCKED),
            moved AS (UPDATE {outbox} o SET slot = (o.id % 16)::smallint FROM due WHERE o.id = due.id RETURNING 1)
            SELECT (SELECT count(*) FROM moved), (
                SELECT o.due_at - {now} FROM {outbox} o WHERE o.slot = -1 AND o.id NOT IN (SELECT id FROM due)
                ORDER BY o.due_at LIMIT 1)";
        pause = "INSERT INTO {outbox_paused} (address) VALUES ($1) ON CONFLICT DO NOTHING";
        resume = "DELETE FROM {outbox_paused} WHERE address = $1";
        paused = "SELECT address FROM {outbox_paused} ORDER BY address";
    }
}

pub(super) struct Outbox(pub(super) Postgres);

#[async_trait]
impl OutboxTable for Outbox {
    async fn addresses(&self, slots: &[i16]) -> Result<Vec<(i16, String)>> {
        const OPERATION: &str = "outbox.addresses";
        let sql = self.0.statements().await?;
        let mut conn = self.0.control_conn(OPERATION).await?;
        let select = sqlx::query_as(sql.table.addresses.clone()).bind(slots);
        select.fetch_all(&mut *conn).await.map_err(conn.reading())
    }

    async fn read(&self, request: &ReadRows<'_>) -> Result<Vec<StoredRow>> {
        outbox_read::read(&self.0, request).await
    }

    async fn delete(&self, rows: &[RowId]) -> Result<u64> {
        const OPERATION: &str = "outbox.delete";
        if rows.is_empty() {
            return Ok(0);
        }
        let (ids, times): (Vec<i64>, Vec<i64>) = rows.iter().map(|row| (row.id, row.created_at)).unzip();
        let sql = self.0.statements().await?;
        let mut conn = self.0.control_conn(OPERATION).await?;
        let delete = sqlx::query(sql.table.delete.clone()).bind(ids).bind(times);
        delete.execute(&mut *conn).await.map(|done| done.rows_affected()).map_err(conn.committing())
    }

    async fn park(&self, row: RowId, reason: &str, hold_key: bool) -> Result<()> {
        parked::park(&self.0, row, &stored_text(reason), hold_key).await
    }

    async fn record_failure(&self, row: RowId, error: &str) -> Result<()> {
        const OPERATION: &str = "outbox.record_failure";
        let sql = self.0.statements().await?;
        let mut conn = self.0.control_conn(OPERATION).await?;
        let update = sqlx::query(sql.table.fail.clone()).bind(row.id).bind(row.created_at).bind(stored_text(error));
        update.execute(&mut *conn).await.map(drop).map_err(conn.committing())
    }

    async fn promote_due(&self, limit: u32) -> Result<DueRows> {
        const OPERATION: &str = "outbox.promote_due";
        let sql = self.0.statements().await?;
        let mut conn = self.0.control_conn(OPERATION).await?;
        let promote = sqlx::query_as(sql.table.promote.clone()).bind(i64::from(limit));
        let (moved, waits): (i64, Option<i64>) = promote.fetch_one(&mut *conn).await.map_err(conn.committing())?;
        Ok(DueRows {
            moved: moved.unsigned_abs(),
            next: waits.map(|waits| Duration::from_micros(u64::try_from(waits).unwrap_or(0))),
        })
    }

    async fn stats(&self, cap: u32) -> Result<OutboxStats> {
        outbox_stats::stats(&self.0, cap).await
    }

    async fn parked(&self, filter: &ParkedFilter, after: i64, limit: u32) -> Result<Vec<ParkedRow>> {
        parked::list(&self.0, filter, after, limit).await
    }

    async fn retry_parked(&self, filter: &ParkedFilter) -> Result<u64> {
        parked::take_out(&self.0, filter, true).await
    }

    async fn discard_parked(&self, filter: &ParkedFilter) -> Result<u64> {
        parked::take_out(&self.0, filter, false).await
    }

    async fn set_paused(&self, address: &str, paused: bool) -> Result<()> {
        const OPERATION: &str = "outbox.set_paused";
        let sql = self.0.statements().await?;
        let statement = if paused { sql.table.pause.clone() } else { sql.table.resume.clone() };
        let mut conn = self.0.control_conn(OPERATION).await?;
        sqlx::query(statement).bind(address).execute(&mut *conn).await.map(drop).map_err(conn.committing())
    }

    async fn paused(&self) -> Result<Vec<String>> {
        const OPERATION: &str = "outbox.paused";
        let sql = self.0.statements().await?;
        let mut conn = self.0.control_conn(OPERATION).await?;
        sqlx::query_scalar(sql.table.paused.clone()).fetch_all(&mut *conn).await.map_err(conn.reading())
    }
}
