//! The outbox as the relay sees it.

use std::time::Duration;

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{DueRows, OutboxStats, OutboxTable, ParkedFilter, ParkedRow, ReadRows, RowId, StoredRow};

use super::{Sqlite, outbox_read, outbox_stats, parked, reading, write_queue::Turn};
use crate::text::stored_text;

statements! {
    TableSql {
        // One look into the index for each slot and address, however many rows there are.
        addresses = "WITH RECURSIVE found (slot, address) AS (
                SELECT s.value, (SELECT min(o.address) FROM {outbox} o WHERE o.slot = s.value) FROM json_each(?1) s
                UNION ALL
                SELECT f.slot, (SELECT min(o.address) FROM {outbox} o WHERE o.slot = f.slot AND o.address > f.address)
                FROM found f WHERE f.address IS NOT NULL
            )
            SELECT slot, address FROM found
            WHERE address IS NOT NULL AND address NOT IN (SELECT address FROM {outbox_paused})";
        delete = "DELETE FROM {outbox}
            WHERE (id, created_at) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?1))";
        fail = "UPDATE {outbox} SET attempts = attempts + 1, last_error = ?3 WHERE id = ?1 AND created_at = ?2";
        due = "SELECT min(due_at) - {now} FROM {outbox} WHERE slot = -1";
        promote = "UPDATE {outbox} SET slot = id % 16 WHERE id IN (
            SELECT id FROM {outbox} WHERE slot = -1 AND due_at <= {now} ORDER BY due_at LIMIT ?1)";
        pause = "INSERT INTO {outbox_paused} (address) VALUES (?1) ON CONFLICT DO NOTHING";
        resume = "DELETE FROM {outbox_paused} WHERE address = ?1";
        paused = "SELECT address FROM {outbox_paused} ORDER BY address";
    }
}

pub(super) struct Outbox(pub(super) Sqlite);

#[async_trait]
impl OutboxTable for Outbox {
    async fn addresses(&self, slots: &[i16]) -> Result<Vec<(i16, String)>> {
        const OPERATION: &str = "outbox.addresses";
        let sql = self.0.statements()?;
        let slots: Vec<i64> = slots.iter().map(|slot| i64::from(*slot)).collect();
        let mut conn = self.0.reader(OPERATION).await?;
        sqlx::query_as(sql.table.addresses.clone())
            .bind(outbox_read::json_numbers(&slots))
            .fetch_all(&mut *conn)
            .await
            .map_err(reading(OPERATION))
    }

    async fn read(&self, request: &ReadRows<'_>) -> Result<Vec<StoredRow>> {
        let sql = self.0.statements()?;
        let mut conn = self.0.reader("outbox.read").await?;
        outbox_read::read(&self.0, &sql, &mut conn, request).await
    }

    async fn delete(&self, rows: &[RowId]) -> Result<u64> {
        const OPERATION: &str = "outbox.delete";
        if rows.is_empty() {
            return Ok(0);
        }
        let sql = self.0.statements()?;
        let mut tx = self.0.begin_in_turn(Turn::Normal, OPERATION).await?;
        let delete = sqlx::query(sql.table.delete.clone()).bind(outbox_read::json_ids(rows));
        let done = delete.execute(&mut *tx).await.map_err(reading(OPERATION))?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }

    async fn park(&self, row: RowId, reason: &str, hold_key: bool) -> Result<()> {
        parked::park(&self.0, row, &stored_text(reason), hold_key).await
    }

    async fn record_failure(&self, row: RowId, error: &str) -> Result<()> {
        const OPERATION: &str = "outbox.record_failure";
        let sql = self.0.statements()?;
        let mut tx = self.0.begin_in_turn(Turn::Normal, OPERATION).await?;
        let update = sqlx::query(sql.table.fail.clone()).bind(row.id).bind(row.created_at).bind(stored_text(error));
        update.execute(&mut *tx).await.map_err(reading(OPERATION))?;
        tx.commit().await
    }

    async fn promote_due(&self, limit: u32) -> Result<DueRows> {
        const OPERATION: &str = "outbox.promote_due";
        let sql = self.0.statements()?;
        let next = async || -> Result<Option<i64>> {
            let mut conn = self.0.reader(OPERATION).await?;
            sqlx::query_scalar(sql.table.due.clone()).fetch_one(&mut *conn).await.map_err(reading(OPERATION))
        };
        let mut due = DueRows::default();
        let mut waits = next().await?;
        // Only where a row is due is a turn to write needed.
        if waits.is_some_and(|waits| waits <= 0) {
            let mut tx = self.0.begin_in_turn(Turn::Normal, OPERATION).await?;
            let promote = sqlx::query(sql.table.promote.clone()).bind(limit);
            due.moved = promote.execute(&mut *tx).await.map_err(reading(OPERATION))?.rows_affected();
            tx.commit().await?;
            waits = next().await?;
        }
        due.next = waits.map(|waits| Duration::from_micros(u64::try_from(waits).unwrap_or(0)));
        Ok(due)
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
        let sql = self.0.statements()?;
        let statement = if paused { sql.table.pause.clone() } else { sql.table.resume.clone() };
        let mut tx = self.0.begin_in_turn(Turn::Normal, OPERATION).await?;
        sqlx::query(statement).bind(address).execute(&mut *tx).await.map_err(reading(OPERATION))?;
        tx.commit().await
    }

    async fn paused(&self) -> Result<Vec<String>> {
        const OPERATION: &str = "outbox.paused";
        let sql = self.0.statements()?;
        let mut conn = self.0.reader(OPERATION).await?;
        sqlx::query_scalar(sql.table.paused.clone()).fetch_all(&mut *conn).await.map_err(reading(OPERATION))
    }
}
