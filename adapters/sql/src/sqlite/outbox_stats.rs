//! Counting what waits, at a cost that does not grow with it.

use std::time::Duration;

use polybus_core::Result;
use polybus_patterns::store::OutboxStats;

use super::{Sqlite, reading};

statements! {
    StatsSql {
        counts = "SELECT
            (SELECT count(*) FROM (SELECT 1 FROM {outbox} WHERE slot >= 0 LIMIT ?1)),
            (SELECT count(*) FROM (SELECT 1 FROM {outbox} WHERE slot = -1 LIMIT ?1)),
            (SELECT count(*) FROM (SELECT 1 FROM {outbox_parked} LIMIT ?1))";
        // The oldest row is looked for among the first ones of each slot and address. Rows that were due later than
        // they were written stand in front of others, so it is not always the very first.
        oldest = "WITH RECURSIVE
            slots (slot) AS (VALUES (0) UNION ALL SELECT slot + 1 FROM slots WHERE slot < 15),
            found (slot, address) AS (
                SELECT s.slot, (SELECT min(o.address) FROM {outbox} o WHERE o.slot = s.slot) FROM slots s
                UNION ALL
                SELECT f.slot, (SELECT min(o.address) FROM {outbox} o WHERE o.slot = f.slot AND o.address > f.address)
                FROM found f WHERE f.address IS NOT NULL LIMIT 1000
            )
            SELECT {now} - min(since) FROM (
                SELECT (SELECT min(max(r.due_at, r.created_at)) FROM (
                    SELECT o.due_at, o.created_at FROM {outbox} o INDEXED BY \"{prefix}outbox_slot\"
                    WHERE o.slot = f.slot AND o.address = f.address ORDER BY o.id LIMIT 20
                ) r) AS since
                FROM found f
                WHERE f.address IS NOT NULL AND f.address NOT IN (SELECT address FROM {outbox_paused})
            )";
    }
}

pub(super) async fn stats(store: &Sqlite, cap: u32) -> Result<OutboxStats> {
    const OPERATION: &str = "outbox.stats";
    let sql = store.statements()?;
    let mut conn = store.reader(OPERATION).await?;
    let (ready, scheduled, parked): (i64, i64, i64) =
        sqlx::query_as(sql.stats.counts.clone()).bind(cap).fetch_one(&mut *conn).await.map_err(reading(OPERATION))?;
    let age: Option<i64> =
        sqlx::query_scalar(sql.stats.oldest.clone()).fetch_one(&mut *conn).await.map_err(reading(OPERATION))?;
    let mut stats = OutboxStats::default();
    stats.ready = ready.unsigned_abs();
    stats.scheduled = scheduled.unsigned_abs();
    stats.parked = parked.unsigned_abs();
    stats.oldest_age = age.map(|age| Duration::from_micros(u64::try_from(age).unwrap_or(0)));
    Ok(stats)
}
