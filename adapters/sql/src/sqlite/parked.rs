//! Rows that can never be sent as they are, and the keys that they hold up.

use bytes::Bytes;
use polybus_core::Result;
use polybus_patterns::store::{ParkedFilter, ParkedRow, RowId};

use super::{Sqlite, outbox_read::json_numbers, reading, write_queue::Turn};
use crate::filter::FilterValues;

statements! {
    ParkedSql {
        park = "INSERT INTO {outbox_parked}
                (id, slot, address, okey, due_at, attempts, last_error, created_at, head, data,
                reason, holds_key, parked_at)
            SELECT id, slot, address, okey, due_at, attempts, last_error, created_at, head, data,
                ?3, ?4 AND okey IS NOT NULL, {now}
            FROM {outbox} WHERE id = ?1 AND created_at = ?2";
        hold = "INSERT INTO {outbox_held} (address, okey)
            SELECT address, okey FROM {outbox_parked} WHERE id = ?1 AND created_at = ?2 AND holds_key
            ON CONFLICT DO NOTHING";
        remove = "DELETE FROM {outbox} WHERE id = ?1 AND created_at = ?2";
        list = "SELECT id, address, okey, head, data, reason, holds_key, parked_at FROM {outbox_parked}
            WHERE (?1 IS NULL OR id IN (SELECT value FROM json_each(?1)))
                AND (?2 IS NULL OR address = ?2)
                AND (?3 IS NULL OR substr(reason, 1, length(?3)) = ?3)
                AND id > ?4
            ORDER BY id LIMIT ?5";
        put_back = "INSERT INTO {outbox} (id, slot, address, okey, due_at, attempts, last_error, created_at, head, data)
            SELECT id, iif(slot < 0, id % 16, slot), address, okey, due_at, 0, last_error, created_at, head, data
            FROM {outbox_parked}
            WHERE (?1 IS NULL OR id IN (SELECT value FROM json_each(?1)))
                AND (?2 IS NULL OR address = ?2)
                AND (?3 IS NULL OR substr(reason, 1, length(?3)) = ?3)";
        take_out = "DELETE FROM {outbox_parked}
            WHERE (?1 IS NULL OR id IN (SELECT value FROM json_each(?1)))
                AND (?2 IS NULL OR address = ?2)
                AND (?3 IS NULL OR substr(reason, 1, length(?3)) = ?3)";
        // The last parked row of a key that held it has left.
        lift = "DELETE FROM {outbox_held} AS h WHERE NOT EXISTS (
            SELECT 1 FROM {outbox_parked} p WHERE p.address = h.address AND p.okey = h.okey AND p.holds_key = 1)";
    }
}

pub(super) async fn park(store: &Sqlite, row: RowId, reason: &str, hold_key: bool) -> Result<()> {
    const OPERATION: &str = "outbox.park";
    let sql = store.statements()?;
    let mut tx = store.begin_in_turn(Turn::Normal, OPERATION).await?;
    let park = sqlx::query(sql.parked.park.clone()).bind(row.id).bind(row.created_at).bind(reason).bind(hold_key);
    if park.execute(&mut *tx).await.map_err(reading(OPERATION))?.rows_affected() == 0 {
        return tx.rollback().await;
    }
    for statement in [&sql.parked.hold, &sql.parked.remove] {
        let statement = sqlx::query(statement.clone()).bind(row.id).bind(row.created_at);
        statement.execute(&mut *tx).await.map_err(reading(OPERATION))?;
    }
    tx.commit().await
}

type Row = (i64, String, Option<Vec<u8>>, String, Vec<u8>, String, bool, i64);

pub(super) async fn list(store: &Sqlite, filter: &ParkedFilter, after: i64, limit: u32) -> Result<Vec<ParkedRow>> {
    const OPERATION: &str = "outbox.parked";
    let (sql, filter) = (store.statements()?, FilterValues::of(filter)?);
    let mut conn = store.reader(OPERATION).await?;
    let rows: Vec<Row> = sqlx::query_as(sql.parked.list.clone())
        .bind(filter.ids.map(json_numbers))
        .bind(filter.address)
        .bind(filter.reason)
        .bind(after)
        .bind(limit)
        .fetch_all(&mut *conn)
        .await
        .map_err(reading(OPERATION))?;
    Ok(rows
        .into_iter()
        .map(|(id, address, key, head, data, reason, holds_key, parked_at)| {
            ParkedRow::new(id, address, key.map(Bytes::from), head, Bytes::from(data), reason, holds_key, parked_at)
        })
        .collect())
}

/// Deletes parked rows, putting them back first if they are to be tried again. Answers how many.
pub(super) async fn take_out(store: &Sqlite, filter: &ParkedFilter, put_back: bool) -> Result<u64> {
    let operation = if put_back { "outbox.retry_parked" } else { "outbox.discard_parked" };
    let (sql, filter) = (store.statements()?, FilterValues::of(filter)?);
    let mut tx = store.begin_in_turn(Turn::Normal, operation).await?;
    let mut taken = 0;
    for (statement, wanted) in [(&sql.parked.put_back, put_back), (&sql.parked.take_out, true)] {
        if wanted {
            let statement = sqlx::query(statement.clone())
                .bind(filter.ids.map(json_numbers))
                .bind(filter.address)
                .bind(filter.reason);
            taken = statement.execute(&mut *tx).await.map_err(reading(operation))?.rows_affected();
        }
    }
    sqlx::query(sql.parked.lift.clone()).execute(&mut *tx).await.map_err(reading(operation))?;
    tx.commit().await?;
    if put_back && taken > 0 {
        store.0.changes.committed();
    }
    Ok(taken)
}
