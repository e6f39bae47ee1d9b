//! Counting what waits, at a cost that does not grow with it.

use std::time::Duration;

use polybus_core::Result;
use polybus_patterns::store::{OutboxStats, SLOTS};

use super::{MySql, control_conn::decoded, literals::fill, outbox_table::addresses};

statements! {
    StatsSql {
        counts = "SELECT
            (SELECT COUNT(*) FROM (SELECT 1 FROM {outbox} WHERE slot >= 0 LIMIT ?1) AS r),
            (SELECT COUNT(*) FROM (SELECT 1 FROM {outbox} WHERE slot = -1 LIMIT ?1) AS r),
            (SELECT COUNT(*) FROM (SELECT 1 FROM {outbox_parked} LIMIT ?1) AS r)";
        // The oldest row is looked for among the first ones of each slot and address. Rows that were due later than
        // they were written stand in front of others, so it is not always the very first.
        oldest = "SELECT {now} - MIN(GREATEST(due_at, created_at)) FROM (
            SELECT due_at, created_at FROM {outbox} FORCE INDEX (by_slot)
            WHERE slot = ?1 AND address = ?2 ORDER BY id LIMIT 20) AS r";
    }
}

/// How many slots and addresses are looked into, and how many in one round trip.
const MOST: usize = 1000;
const AT_ONCE: usize = 100;

pub(super) async fn stats(store: &MySql, cap: u32) -> Result<OutboxStats> {
    const OPERATION: &str = "outbox.stats";
    let sql = store.statements().await?;
    let counts = store.look(OPERATION, &fill(sql.stats.counts.as_str(), &[i64::from(cap).into()])).await?;
    let counts: Vec<(i64, i64, i64)> = decoded(&counts.rows, OPERATION)?;
    let (ready, scheduled, parked) = counts.first().copied().unwrap_or_default();
    let slots: Vec<i16> = (0..SLOTS).collect();
    let mut found = addresses(store, OPERATION, &slots).await?;
    found.truncate(MOST);
    let mut oldest: Option<i64> = None;
    for found in found.chunks(AT_ONCE) {
        let looks: Vec<String> = found
            .iter()
            .map(|(slot, address)| fill(sql.stats.oldest.as_str(), &[i64::from(*slot).into(), address.as_str().into()]))
            .collect();
        let ages = store.look(OPERATION, &looks.join("; ")).await?;
        let ages: Vec<(Option<i64>,)> = decoded(&ages.rows, OPERATION)?;
        oldest = oldest.max(ages.into_iter().filter_map(|(age,)| age).max());
    }
    let mut stats = OutboxStats::default();
    stats.ready = ready.unsigned_abs();
    stats.scheduled = scheduled.unsigned_abs();
    stats.parked = parked.unsigned_abs();
    stats.oldest_age = oldest.map(|age| Duration::from_micros(u64::try_from(age).unwrap_or(0)));
    Ok(stats)
}
