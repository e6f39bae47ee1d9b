//! Counting what waits, at a cost that does not grow with it.

use std::time::Duration;

use polybus_core::Result;
use polybus_patterns::store::OutboxStats;

use super::Postgres;

statements! {
    StatsSql {
        // The oldest row is looked for among the first ones of each slot and address. Rows that were due later than
        // they were written stand in front of others, so it is not always the very first. About the range see
        // `outbox_read`.
        stats = "WITH RECURSIVE found (slot, address) AS (
                SELECT s.slot::smallint, (
                    SELECT o.address FROM {outbox} o WHERE o.slot = s.slot ORDER BY o.address LIMIT 1)
                FROM (SELECT n::smallint AS slot FROM generate_series(0, 15) AS g (n)) AS s
                UNION ALL
                SELECT f.slot, (
                    SELECT o.address FROM {outbox} o WHERE o.slot = f.slot AND o.address > f.address
                    ORDER BY o.address LIMIT 1)
                FROM found f WHERE f.address IS NOT NULL
            )
            SELECT
                (SELECT count(*) FROM (SELECT 1 FROM {outbox} WHERE slot >= 0 LIMIT $1::bigint) r),
                (SELECT count(*) FROM (SELECT 1 FROM {outbox} WHERE slot = -1 LIMIT $1::bigint) r),
                (SELECT count(*) FROM (SELECT 1 FROM {outbox_parked} LIMIT $1::bigint) r),
                {now} - (
                    SELECT min(greatest(r.due_at, r.created_at))
                    FROM (SELECT * FROM found LIMIT 1000) f CROSS JOIN LATERAL (
                        SELECT o.due_at, o.created_at FROM {outbox} o
                        WHERE o.slot = f.slot AND o.address >= f.address AND o.address <= f.address
                        ORDER BY o.address, o.id LIMIT 20
                    ) r
                    WHERE NOT EXISTS (SELECT 1 FROM {outbox_paused} p WHERE p.address = f.address))";
    }
}

pub(super) async fn stats(store: &Postgres, cap: u32) -> Result<OutboxStats> {
    const OPERATION: &str = "outbox.stats";
    let sql = store.statements().await?;
    let mut conn = store.control_conn(OPERATION).await?;
    let (ready, scheduled, parked, age): (i64, i64, i64, Option<i64>) = sqlx::query_as(sql.stats.stats.clone())
        .bind(i64::from(cap))
        .fetch_one(&mut *conn)
        .await
        .map_err(conn.reading())?;
    let mut stats = OutboxStats::default();
    stats.ready = ready.unsigned_abs();
    stats.scheduled = scheduled.unsigned_abs();
    stats.parked = parked.unsigned_abs();
    stats.oldest_age = age.map(|age| Duration::from_micros(u64::try_from(age).unwrap_or(0)));
    Ok(stats)
}
