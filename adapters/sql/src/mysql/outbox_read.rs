//! Reading the first rows of slots.

use bytes::Bytes;
use polybus_core::Result;
use polybus_patterns::store::{ReadRows, RowId, StoredRow};

use super::{
    MySql,
    control_conn::{decoded, text},
    literals::{Value, byte_strings, fill, numbers},
};

statements! {
    ReadSql {
        // The index has the order of ids within a slot and address; without its name the planner may take the primary
        // key for it, and read all rows of others on the way.
        slot = "(SELECT o.id, o.bytes FROM {outbox} AS o FORCE INDEX (by_slot)
            WHERE o.slot = ?1 AND o.address = ?2 ?3
                AND NOT EXISTS (SELECT 1 FROM {outbox_paused} AS p WHERE p.address = ?2)
                AND (o.okey IS NULL
                    OR NOT EXISTS (SELECT 1 FROM {outbox_held} AS h WHERE h.address = ?2 AND h.okey = o.okey))
            ORDER BY o.id LIMIT ?4)";
        // One statement, so one snapshot for all slots. The bytes are counted over ids, by a column that stands in
        // front of the payloads; these are read only for the rows that are answered.
        slots = "SELECT o.id, o.created_at, o.slot, o.okey, o.head, o.data, o.attempts FROM (
                SELECT s.id, ROW_NUMBER() OVER (ORDER BY s.id) AS n,
                    SUM(s.bytes) OVER (ORDER BY s.id ROWS UNBOUNDED PRECEDING) AS upto
                FROM (?1) AS s
            ) AS r STRAIGHT_JOIN {outbox} AS o ON o.id = r.id
            WHERE r.n = 1 OR r.upto <= ?2
            ORDER BY o.id";
    }
}

type Row = (i64, i64, i16, Option<Vec<u8>>, Vec<u8>, Vec<u8>, i32);

pub(super) async fn read(store: &MySql, request: &ReadRows<'_>) -> Result<Vec<StoredRow>> {
    const OPERATION: &str = "outbox.read";
    if request.slots.is_empty() {
        return Ok(Vec::new());
    }
    let sql = store.statements().await?;
    // Conditions of their own, which the index alone can answer.
    let mut held = String::new();
    if !request.held_rows.is_empty() {
        held += &format!("AND o.id NOT IN ({})", numbers(request.held_rows.iter().copied()));
    }
    if !request.held_keys.is_empty() {
        let keys = byte_strings(request.held_keys.iter().map(|key| &key[..]));
        held += &format!(" AND (o.okey IS NULL OR o.okey NOT IN ({keys}))");
    }
    let slots: Vec<String> = request
        .slots
        .iter()
        .map(|slot| {
            let values = [
                i64::from(*slot).into(),
                request.address.into(),
                Value::Sql(&held),
                i64::from(request.rows_per_slot).into(),
            ];
            fill(sql.read.slot.as_str(), &values)
        })
        .collect();
    let max_bytes = i64::try_from(request.max_bytes).unwrap_or(i64::MAX);
    let read = fill(sql.read.slots.as_str(), &[Value::Sql(&slots.join(" UNION ALL ")), max_bytes.into()]);
    let rows: Vec<Row> = decoded(&store.look(OPERATION, &read).await?.rows, OPERATION)?;
    Ok(rows
        .into_iter()
        .map(|(id, created_at, slot, key, head, data, attempts)| StoredRow {
            id: RowId { id, created_at },
            slot,
            key: key.map(Bytes::from),
            head: text(head),
            data: Bytes::from(data),
            attempts: attempts.unsigned_abs(),
        })
        .collect())
}
