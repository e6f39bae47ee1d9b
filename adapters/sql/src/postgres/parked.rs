//! Rows that can never be sent as they are, and the keys that they hold up.

use bytes::Bytes;
use polybus_core::Result;
use polybus_patterns::store::{ParkedFilter, ParkedRow, RowId};

use super::{Postgres, reading};
use crate::filter::FilterValues;

statements! {
    ParkedSql {
        // A key is lifted by whoever takes out its last parked row. Two at a time would each see the other's row, and
        // none would lift it; or one would lift it while another one parks.
        lock = "LOCK TABLE {outbox_held} IN SHARE ROW EXCLUSIVE MODE";
        park = "WITH gone AS (DELETE FROM {outbox} WHERE id = $1 AND created_at = $2 RETURNING *),
            parked AS (
                INSERT INTO {outbox_parked} (id, slot, address, okey, head, data, due_at, attempts, last_error,
                    created_at, reason, holds_key, parked_at)
                SELECT id, slot, address, okey, head, data, due_at, attempts, last_error,
                    created_at, $3, $4 AND okey IS NOT NULL, {now}
                FROM gone)
            INSERT INTO {outbox_held} (address, okey)
            SELECT address, okey FROM gone WHERE $4 AND okey IS NOT NULL ON CONFLICT DO NOTHING";
        list = "SELECT id, address, okey, head, data, reason, holds_key, parked_at FROM {outbox_parked}
            WHERE ($1::bigint[] IS NULL OR id = ANY ($1))
                AND ($2::text IS NULL OR address = $2)
                AND ($3::text IS NULL OR starts_with(reason, $3))
                AND id > $4
            ORDER BY id LIMIT $5::bigint";
        retry = "WITH gone AS (
                DELETE FROM {outbox_parked}
                WHERE ($1::bigint[] IS NULL OR id = ANY ($1))
                    AND ($2::text IS NULL OR address = $2)
                    AND ($3::text IS NULL OR starts_with(reason, $3))
                RETURNING *),
            back AS (
                INSERT INTO {outbox} (id, slot, address, okey, head, data, due_at, attempts, last_error, created_at)
                OVERRIDING SYSTEM VALUE
                SELECT id, CASE WHEN slot < 0 THEN (id % 16)::smallint ELSE slot END, address, okey, head, data, due_at,
                    0, last_error, created_at
                FROM gone)
            SELECT count(*) FROM gone";
        discard = "WITH gone AS (
                DELETE FROM {outbox_parked}
                WHERE ($1::bigint[] IS NULL OR id = ANY ($1))
                    AND ($2::text IS NULL OR address = $2)
                    AND ($3::text IS NULL OR starts_with(reason, $3))
                RETURNING 1)
            SELECT count(*) FROM gone";
        lift = "DELETE FROM {outbox_held} h WHERE NOT EXISTS (
            SELECT 1 FROM {outbox_parked} p WHERE p.address = h.address AND p.okey = h.okey AND p.holds_key)";
    }
}

pub(super) async fn park(store: &Postgres, row: RowId, reason: &str, hold_key: bool) -> Result<()> {
    const OPERATION: &str = "outbox.park";
    let sql = store.statements().await?;
    let (mut tx, _place) = store.control_begin(OPERATION).await?;
    if hold_key {
        sqlx::query(sql.parked.lock.clone()).execute(&mut *tx).await.map_err(reading(OPERATION))?;
    }
    let park = sqlx::query(sql.parked.park.clone()).bind(row.id).bind(row.created_at).bind(reason).bind(hold_key);
    park.execute(&mut *tx).await.map_err(reading(OPERATION))?;
    tx.commit().await
}

type Row = (i64, String, Option<Vec<u8>>, String, Vec<u8>, String, bool, i64);

pub(super) async fn list(store: &Postgres, filter: &ParkedFilter, after: i64, limit: u32) -> Result<Vec<ParkedRow>> {
    const OPERATION: &str = "outbox.parked";
    let (sql, filter) = (store.statements().await?, FilterValues::of(filter)?);
    let mut conn = store.control_conn(OPERATION).await?;
    let rows: Vec<Row> = sqlx::query_as(sql.parked.list.clone())
        .bind(filter.ids)
        .bind(filter.address)
        .bind(filter.reason)
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&mut *conn)
        .await
        .map_err(conn.reading())?;
    Ok(rows
        .into_iter()
        .map(|(id, address, key, head, data, reason, holds_key, parked_at)| {
            ParkedRow::new(id, address, key.map(Bytes::from), head, Bytes::from(data), reason, holds_key, parked_at)
        })
        .collect())
}

/// Deletes parked rows, putting them back if they are to be tried again. Answers how many.
pub(super) async fn take_out(store: &Postgres, filter: &ParkedFilter, put_back: bool) -> Result<u64> {
    let operation = if put_back { "outbox.retry_parked" } else { "outbox.discard_parked" };
    let (sql, filter) = (store.statements().await?, FilterValues::of(filter)?);
    let statement = if put_back { sql.parked.retry.clone() } else { sql.parked.discard.clone() };
    let (mut tx, _place) = store.control_begin(operation).await?;
    sqlx::query(sql.parked.lock.clone()).execute(&mut *tx).await.map_err(reading(operation))?;
    let taken: i64 = sqlx::query_scalar(statement)
        .bind(filter.ids)
        .bind(filter.address)
        .bind(filter.reason)
        .fetch_one(&mut *tx)
        .await
        .map_err(reading(operation))?;
    sqlx::query(sql.parked.lift.clone()).execute(&mut *tx).await.map_err(reading(operation))?;
    tx.commit().await?;
    if put_back && taken > 0 {
        store.0.changes.committed();
    }
    Ok(taken.unsigned_abs())
}
