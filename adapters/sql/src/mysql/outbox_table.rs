//! The outbox as the relay sees it.

use std::{collections::HashSet, time::Duration};

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{DueRows, OutboxStats, OutboxTable, ParkedFilter, ParkedRow, ReadRows, RowId, StoredRow};

use super::{
    MySql,
    control_conn::{decoded, text},
    literals::{Value, fill, numbers},
    outbox_read, outbox_stats, parked,
};
use crate::text::stored_text;

statements! {
    TableSql {
        // With values in the text, each is one look into the index: neither DISTINCT nor a recursive query is.
        next_address = "SELECT ?1, MIN(address) FROM {outbox} WHERE slot = ?1 AND address > ?2";
        // By primary key and in its order, so that two never wait for each other.
        delete = "DELETE FROM {outbox} WHERE id IN (?1) AND (id, created_at) IN (?2) ORDER BY id";
        fail = "UPDATE {outbox} SET attempts = attempts + 1, last_error = ?3 WHERE id = ?1 AND created_at = ?2";
        due = "SELECT id FROM {outbox} FORCE INDEX (by_due)
            WHERE slot = -1 AND due_at <= {now} ORDER BY due_at LIMIT ?1";
        promote = "UPDATE {outbox} SET slot = id % 16 WHERE id IN (?1) AND slot = -1 ORDER BY id";
        next_due = "SELECT MIN(due_at) - {now} FROM {outbox} WHERE slot = -1";
        pause = "INSERT INTO {outbox_paused} (address) VALUES (?1) ON DUPLICATE KEY UPDATE address = address";
        resume = "DELETE FROM {outbox_paused} WHERE address = ?1";
        paused = "SELECT address FROM {outbox_paused} ORDER BY address";
    }
}

/// How many rows one statement names. From 1,000 on, MariaDB would make a table of such a list.
pub(super) const AT_ONCE: usize = 500;

/// The addresses of slots, stepped through from one to the next, in all slots at once.
pub(super) async fn addresses(store: &MySql, operation: &'static str, slots: &[i16]) -> Result<Vec<(i16, String)>> {
    let sql = store.statements().await?;
    let mut steps: Vec<(i64, Vec<u8>)> = slots.iter().map(|slot| (i64::from(*slot), Vec::new())).collect();
    let mut found = Vec::new();
    while !steps.is_empty() {
        let looks: Vec<String> = steps
            .iter()
            .map(|(slot, last)| fill(sql.table.next_address.as_str(), &[(*slot).into(), Value::Bytes(last)]))
            .collect();
        let next = store.look(operation, &looks.join("; ")).await?;
        let next: Vec<(i64, Option<Vec<u8>>)> = decoded(&next.rows, operation)?;
        steps = next.into_iter().filter_map(|(slot, address)| Some((slot, address?))).collect();
        found.extend(steps.iter().cloned());
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let paused: HashSet<String> = paused(store, operation).await?.into_iter().collect();
    Ok(found
        .into_iter()
        .filter_map(|(slot, address)| Some((i16::try_from(slot).ok()?, text(address))))
        .filter(|(_, address)| !paused.contains(address))
        .collect())
}

async fn paused(store: &MySql, operation: &'static str) -> Result<Vec<String>> {
    let sql = store.statements().await?;
    let rows: Vec<(Vec<u8>,)> = decoded(&store.look(operation, sql.table.paused.as_str()).await?.rows, operation)?;
    Ok(rows.into_iter().map(|(address,)| text(address)).collect())
}

pub(super) struct Outbox(pub(super) MySql);

#[async_trait]
impl OutboxTable for Outbox {
    async fn addresses(&self, slots: &[i16]) -> Result<Vec<(i16, String)>> {
        addresses(&self.0, "outbox.addresses", slots).await
    }

    async fn read(&self, request: &ReadRows<'_>) -> Result<Vec<StoredRow>> {
        outbox_read::read(&self.0, request).await
    }

    async fn delete(&self, rows: &[RowId]) -> Result<u64> {
        if rows.is_empty() {
            return Ok(0);
        }
        let sql = self.0.statements().await?;
        let mut rows = rows.to_vec();
        rows.sort_unstable();
        let deletes: Vec<String> = rows
            .chunks(AT_ONCE)
            .map(|rows| {
                let pairs: Vec<String> = rows.iter().map(|row| format!("({},{})", row.id, row.created_at)).collect();
                let ids = numbers(rows.iter().map(|row| row.id));
                fill(sql.table.delete.as_str(), &[Value::Sql(&ids), Value::Sql(&pairs.join(","))])
            })
            .collect();
        Ok(self.0.run("outbox.delete", &deletes.join("; ")).await?.affected)
    }

    async fn park(&self, row: RowId, reason: &str, hold_key: bool) -> Result<()> {
        parked::park(&self.0, row, &stored_text(reason), hold_key).await
    }

    async fn record_failure(&self, row: RowId, error: &str) -> Result<()> {
        let sql = self.0.statements().await?;
        let error = stored_text(error);
        let update = fill(sql.table.fail.as_str(), &[row.id.into(), row.created_at.into(), error.as_str().into()]);
        self.0.run("outbox.record_failure", &update).await.map(drop)
    }

    async fn promote_due(&self, limit: u32) -> Result<DueRows> {
        const OPERATION: &str = "outbox.promote_due";
        let sql = self.0.statements().await?;
        let due = self.0.look(OPERATION, &fill(sql.table.due.as_str(), &[i64::from(limit).into()])).await?;
        let mut due: Vec<i64> = decoded(&due.rows, OPERATION)?.into_iter().map(|(id,)| id).collect();
        due.sort_unstable();
        let mut moved = 0;
        if !due.is_empty() {
            let updates: Vec<String> = due
                .chunks(AT_ONCE)
                .map(|ids| fill(sql.table.promote.as_str(), &[Value::Sql(&numbers(ids.iter().copied()))]))
                .collect();
            moved = self.0.run(OPERATION, &updates.join("; ")).await?.affected;
        }
        let next = self.0.look(OPERATION, sql.table.next_due.as_str()).await?;
        let next: Vec<(Option<i64>,)> = decoded(&next.rows, OPERATION)?;
        let next = next.into_iter().find_map(|(waits,)| waits);
        Ok(DueRows { moved, next: next.map(|waits| Duration::from_micros(u64::try_from(waits).unwrap_or(0))) })
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
        let sql = self.0.statements().await?;
        let statement = if paused { &sql.table.pause } else { &sql.table.resume };
        self.0.run("outbox.set_paused", &fill(statement.as_str(), &[address.into()])).await.map(drop)
    }

    async fn paused(&self) -> Result<Vec<String>> {
        paused(&self.0, "outbox.paused").await
    }
}
