//! Rows that can never be sent as they are, and the keys that they hold up.

use bytes::Bytes;
use polybus_core::Result;
use polybus_patterns::store::{ParkedFilter, ParkedRow, RowId};

use super::{
    MySql,
    control_conn::{Again, WRITE, decoded, text},
    literals::{Value, byte_strings, fill, numbers},
    outbox_table::AT_ONCE,
};
use crate::{error::Effect, filter::FilterValues};

statements! {
    ParkedSql {
        // A key is lifted by whoever takes out its last parked row. Two at a time would each see the other's row, and
        // none would lift it; or one would lift it while another one parks.
        // It locks the row, and makes it where somebody emptied all tables.
        turn = "INSERT INTO {outbox_turn} (id) VALUES (1) ON DUPLICATE KEY UPDATE id = 1";
        // The first one locks the row: of two that park it, the other one then finds none.
        park = "SELECT id FROM {outbox} WHERE id = ?1 AND created_at = ?2 FOR UPDATE;
            INSERT INTO {outbox_parked} (id, slot, address, okey, due_at, attempts, last_error, created_at, head, data,
                reason, holds_key, parked_at)
            SELECT id, slot, address, okey, due_at, attempts, last_error, created_at, head, data,
                ?3, ?4 AND okey IS NOT NULL, {now}
            FROM {outbox} WHERE id = ?1 AND created_at = ?2;
            INSERT INTO {outbox_held} (address, okey)
            SELECT p.address, p.okey FROM {outbox_parked} AS p WHERE p.id = ?1 AND p.created_at = ?2 AND p.holds_key = 1
            ON DUPLICATE KEY UPDATE {outbox_held}.okey = {outbox_held}.okey;
            DELETE FROM {outbox} WHERE id = ?1 AND created_at = ?2";
        list = "SELECT id, address, okey, head, data, reason, holds_key, parked_at FROM {outbox_parked}
            WHERE ?1 AND id > ?2 ORDER BY id LIMIT ?3";
        chosen = "SELECT id FROM {outbox_parked} WHERE ?1 ORDER BY id FOR UPDATE";
        put_back = "INSERT INTO {outbox} (id, slot, address, okey, due_at, attempts, last_error, created_at, head, data)
            SELECT id, CASE WHEN slot < 0 THEN id % 16 ELSE slot END, address, okey, due_at, 0, last_error, created_at,
                head, data
            FROM {outbox_parked} WHERE id IN (?1) ORDER BY id";
        take_out = "DELETE FROM {outbox_parked} WHERE id IN (?1) ORDER BY id";
        lift = "DELETE h FROM {outbox_held} AS h WHERE NOT EXISTS (
            SELECT 1 FROM {outbox_parked} AS p WHERE p.address = h.address AND p.okey = h.okey AND p.holds_key = 1)";
    }
}

pub(super) async fn park(store: &MySql, row: RowId, reason: &str, hold_key: bool) -> Result<()> {
    let sql = store.statements().await?;
    let values = [row.id.into(), row.created_at.into(), reason.into(), i64::from(hold_key).into()];
    let park = fill(sql.parked.park.as_str(), &values);
    let turn = if hold_key { format!("{}; ", sql.parked.turn.as_str()) } else { String::new() };
    store.run("outbox.park", &format!("{turn}{park}")).await.map(drop)
}

/// The filter as a condition.
fn condition(filter: &ParkedFilter) -> Result<String> {
    let filter = FilterValues::of(filter)?;
    Ok(match filter {
        FilterValues { ids: Some([]), .. } => "FALSE".to_owned(),
        FilterValues { ids: Some(ids), .. } => format!("id IN ({})", numbers(ids.iter().copied())),
        FilterValues { address: Some(address), .. } => format!("address = {}", byte_strings([address.as_bytes()])),
        FilterValues { reason: Some(reason), .. } => {
            format!("SUBSTRING(reason, 1, {}) = {}", reason.len(), byte_strings([reason.as_bytes()]))
        }
        _ => "TRUE".to_owned(),
    })
}

type Row = (i64, Vec<u8>, Option<Vec<u8>>, Vec<u8>, Vec<u8>, Vec<u8>, i8, i64);

pub(super) async fn list(store: &MySql, filter: &ParkedFilter, after: i64, limit: u32) -> Result<Vec<ParkedRow>> {
    const OPERATION: &str = "outbox.parked";
    let sql = store.statements().await?;
    let condition = condition(filter)?;
    let list = fill(sql.parked.list.as_str(), &[Value::Sql(&condition), after.into(), i64::from(limit).into()]);
    let rows: Vec<Row> = decoded(&store.look(OPERATION, &list).await?.rows, OPERATION)?;
    Ok(rows
        .into_iter()
        .map(|(id, address, key, head, data, reason, holds_key, parked_at)| {
            let (address, head, reason) = (text(address), text(head), text(reason));
            ParkedRow::new(id, address, key.map(Bytes::from), head, data.into(), reason, holds_key != 0, parked_at)
        })
        .collect())
}

/// Deletes parked rows, putting them back if they are to be tried again. Answers how many.
pub(super) async fn take_out(store: &MySql, filter: &ParkedFilter, put_back: bool) -> Result<u64> {
    let mut again = Again::default();
    let taken = loop {
        match take_out_once(store, filter, put_back).await {
            Err(e) if again.after(&e).await => {}
            taken => break taken?,
        }
    };
    if put_back && taken > 0 {
        store.0.changes.committed();
    }
    Ok(taken)
}

/// Which rows they are is read first, and locked: between two statements another one may be parked.
async fn take_out_once(store: &MySql, filter: &ParkedFilter, put_back: bool) -> Result<u64> {
    let operation = if put_back { "outbox.retry_parked" } else { "outbox.discard_parked" };
    let sql = store.statements().await?;
    let chosen = fill(sql.parked.chosen.as_str(), &[Value::Sql(&condition(filter)?)]);
    let mut conn = store.control_conn(operation).await?;
    let chosen = conn.run_part(&format!("{WRITE}{}; {chosen}", sql.parked.turn.as_str())).await?;
    let chosen: Vec<i64> = decoded::<(i64,)>(&chosen.rows, operation)?.into_iter().map(|(id,)| id).collect();
    for ids in chosen.chunks(AT_ONCE) {
        let ids = numbers(ids.iter().copied());
        if put_back {
            conn.run_part(&fill(sql.parked.put_back.as_str(), &[Value::Sql(&ids)])).await?;
        }
        conn.run_part(&fill(sql.parked.take_out.as_str(), &[Value::Sql(&ids)])).await?;
    }
    conn.run(&format!("{}; COMMIT", sql.parked.lift.as_str()), Effect::Committed).await?;
    Ok(chosen.len() as u64)
}
