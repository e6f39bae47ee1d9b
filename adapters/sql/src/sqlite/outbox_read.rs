//! Reading the first rows of slots.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use polybus_core::Result;
use polybus_patterns::store::{ReadRows, RowId, StoredRow};
use sqlx::SqliteConnection;

use super::{Sqlite, Statements, reading};

statements! {
    ReadSql {
        // The sizes are looked at first, since they stand in front of the payloads, which are read only for the rows
        // that are answered.
        slot = "WITH
            first AS MATERIALIZED (
                SELECT o.id, length(o.data) + length(CAST(o.head AS BLOB)) AS size
                FROM {outbox} o INDEXED BY \"{prefix}outbox_slot\"
                WHERE o.slot = ?1 AND o.address = ?2
                    AND o.id NOT IN (SELECT value FROM json_each(?3))
                    AND NOT EXISTS (SELECT 1 FROM {outbox_paused} p WHERE p.address = ?2)
                    AND (o.okey IS NULL OR (
                        o.okey NOT IN (SELECT unhex(value) FROM json_each(?4))
                        AND NOT EXISTS (SELECT 1 FROM {outbox_held} h WHERE h.address = o.address AND h.okey = o.okey)
                    ))
                ORDER BY o.id LIMIT ?5
            ),
            fitting AS MATERIALIZED (
                SELECT id FROM (
                    SELECT id, sum(size) OVER (ORDER BY id) AS upto, row_number() OVER (ORDER BY id) AS n FROM first
                ) WHERE upto <= ?6 OR (n = 1 AND ?7)
            )
            SELECT o.id, o.created_at, o.okey, o.head, o.data, o.attempts
            FROM fitting CROSS JOIN {outbox} o ON o.id = fitting.id ORDER BY o.id";
    }
}

type Row = (i64, i64, Option<Vec<u8>>, String, Vec<u8>, u32);

/// Reads one slot after the other, each in one statement, until `max_bytes` are used up.
///
/// Each call begins with another slot, so that none is starved by those in front of it.
pub(super) async fn read(
    store: &Sqlite,
    sql: &Statements,
    conn: &mut SqliteConnection,
    request: &ReadRows<'_>,
) -> Result<Vec<StoredRow>> {
    if request.slots.is_empty() {
        return Ok(Vec::new());
    }
    let first = store.0.first_slot.fetch_add(1, Ordering::Relaxed) % request.slots.len();
    let (held_rows, held_keys) = (json_numbers(request.held_rows), json_hex(request.held_keys));
    let mut left = request.max_bytes;
    let mut rows = Vec::new();
    for slot in request.slots[first..].iter().chain(&request.slots[..first]) {
        let found: Vec<Row> = sqlx::query_as(sql.read.slot.clone())
            .bind(slot)
            .bind(request.address)
            .bind(&held_rows)
            .bind(&held_keys)
            .bind(request.rows_per_slot)
            .bind(i64::try_from(left).unwrap_or(i64::MAX))
            .bind(rows.is_empty())
            .fetch_all(&mut *conn)
            .await
            .map_err(reading("outbox.read"))?;
        for (id, created_at, key, head, data, attempts) in found {
            left = left.saturating_sub(head.len() + data.len());
            rows.push(StoredRow {
                id: RowId { id, created_at },
                slot: *slot,
                key: key.map(Bytes::from),
                head,
                data: Bytes::from(data),
                attempts,
            });
        }
        if left == 0 {
            break;
        }
    }
    rows.sort_unstable_by_key(|row| row.id);
    Ok(rows)
}

/// SQLite has no arrays: lists are passed as JSON.
pub(super) fn json_numbers(numbers: &[i64]) -> String {
    let numbers: Vec<String> = numbers.iter().map(i64::to_string).collect();
    format!("[{}]", numbers.join(","))
}

fn json_hex(keys: &[Bytes]) -> String {
    let mut json = String::from("[");
    for (n, key) in keys.iter().enumerate() {
        json.push_str(if n == 0 { "\"" } else { ",\"" });
        for byte in key {
            json.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
            json.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        }
        json.push('"');
    }
    json.push(']');
    json
}

/// Pairs of id and time.
pub(super) fn json_ids(rows: &[RowId]) -> String {
    let rows: Vec<String> = rows.iter().map(|row| format!("[{},{}]", row.id, row.created_at)).collect();
    format!("[{}]", rows.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_json() {
        assert_eq!(json_numbers(&[]), "[]");
        assert_eq!(json_numbers(&[1, -2]), "[1,-2]");
        assert_eq!(json_hex(&[Bytes::from_static(b"\0a\xff"), Bytes::new()]), "[\"0061ff\",\"\"]");
        assert_eq!(json_ids(&[RowId { id: 1, created_at: 2 }]), "[[1,2]]");
    }
}
