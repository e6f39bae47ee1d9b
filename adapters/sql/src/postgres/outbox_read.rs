//! Reading the first rows of slots.

use bytes::Bytes;
use polybus_core::Result;
use polybus_patterns::store::{ReadRows, RowId, StoredRow};

use super::Postgres;

statements! {
    ReadSql {
        // One statement, so one snapshot for all slots. Each slot is read from its front by the index, and the bytes
        // are counted over ids. No row's payload is fetched before it is answered.
        // The address is a range of one, and part of the order: only that index has this order. With equality the
        // planner may take the primary key for the order of ids, and read all rows of other addresses on the way.
        slots = "SELECT id, created_at, slot, okey, head, data, attempts FROM (
                SELECT o.*, row_number() OVER (ORDER BY o.id) AS n,
                    sum(octet_length(o.data)::bigint + octet_length(o.head)) OVER (ORDER BY o.id) AS upto
                FROM unnest($1::smallint[]) AS s (slot) CROSS JOIN LATERAL (
                    SELECT o.id, o.created_at, o.slot, o.okey, o.head, o.data, o.attempts FROM {outbox} o
                    WHERE o.slot = s.slot AND o.address >= $2 AND o.address <= $2
                        AND o.id <> ALL ($3::bigint[])
                        AND NOT EXISTS (SELECT 1 FROM {outbox_paused} p WHERE p.address = $2)
                        AND (o.okey IS NULL OR (
                            o.okey <> ALL ($4::bytea[])
                            AND NOT EXISTS (
                                SELECT 1 FROM {outbox_held} h WHERE h.address = o.address AND h.okey = o.okey)
                        ))
                    ORDER BY o.address, o.id LIMIT $5::bigint
                ) o
            ) r
            WHERE r.n = 1 OR r.upto <= $6::bigint
            ORDER BY r.id";
    }
}

type Row = (i64, i64, i16, Option<Vec<u8>>, String, Vec<u8>, i32);

pub(super) async fn read(store: &Postgres, request: &ReadRows<'_>) -> Result<Vec<StoredRow>> {
    const OPERATION: &str = "outbox.read";
    let sql = store.statements().await?;
    let held_keys: Vec<&[u8]> = request.held_keys.iter().map(|key| &key[..]).collect();
    let mut conn = store.control_conn(OPERATION).await?;
    let rows: Vec<Row> = sqlx::query_as(sql.read.slots.clone())
        .bind(request.slots)
        .bind(request.address)
        .bind(request.held_rows)
        .bind(held_keys)
        .bind(i64::from(request.rows_per_slot))
        .bind(i64::try_from(request.max_bytes).unwrap_or(i64::MAX))
        .fetch_all(&mut *conn)
        .await
        .map_err(conn.reading())?;
    Ok(rows
        .into_iter()
        .map(|(id, created_at, slot, key, head, data, attempts)| StoredRow {
            id: RowId { id, created_at },
            slot,
            key: key.map(Bytes::from),
            head,
            data: Bytes::from(data),
            attempts: attempts.unsigned_abs(),
        })
        .collect())
}
