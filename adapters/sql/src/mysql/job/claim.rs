//! Claiming.

use std::time::Duration;

use polybus_core::Result;
use polybus_patterns::store::{ClaimedJob, micros};

use super::{
    super::{
        MySql,
        control_conn::{Again, decoded, text},
        literals::{Value, fill, numbers},
    },
    AT_ONCE, keys, moved,
};

statements! {
    ClaimSql {
        // In the order of the index, and no further than the limit: without its name the planner may take another one,
        // and lock what it reads on the way.
        find = "SELECT id, kind, attempt + 1, max_attempts, head, data, schedule, GREATEST({now} - run_at, 0),
                IF(unique_until = 0, unique_key, NULL)
            FROM {job} FORCE INDEX (by_fetch)
            WHERE queue = ?1 AND state = 0
                AND NOT EXISTS (SELECT 1 FROM {job_queue} AS q WHERE q.queue = ?1 AND q.paused <> 0)
            ORDER BY priority, run_at, id LIMIT ?2 FOR UPDATE SKIP LOCKED";
        take = "UPDATE {job} FORCE INDEX (PRIMARY) SET state = 2, attempt = attempt + 1, locked_by = ?2,
                locked_until = {now} + ?3, term = ?3, unique_key = IF(unique_until = 0, NULL, unique_key)
            WHERE id IN (?1) ORDER BY id";
    }
}

type Row = (i64, Vec<u8>, i64, i64, Vec<u8>, Vec<u8>, Option<Vec<u8>>, i64, Option<Vec<u8>>);

pub(super) async fn claim(
    store: &MySql,
    queue: &str,
    worker: [u8; 16],
    lease: Duration,
    limit: u32,
) -> Result<Vec<ClaimedJob>> {
    if limit == 0 {
        return Ok(Vec::new());
    }
    let mut again = Again::default();
    loop {
        match claim_once(store, queue, worker, lease, limit).await {
            Err(e) if again.after(&e).await => {}
            claimed => return claimed,
        }
    }
}

async fn claim_once(
    store: &MySql,
    queue: &str,
    worker: [u8; 16],
    lease: Duration,
    limit: u32,
) -> Result<Vec<ClaimedJob>> {
    const OPERATION: &str = "job.claim";
    let sql = store.statements().await?;
    let mut conn = store.control_conn(OPERATION).await?;
    let find = fill(sql.job.claim.find.as_str(), &[queue.into(), i64::from(limit).into()]);
    let mut rows: Vec<Row> = decoded(&conn.begin_parts(&find).await?.rows, OPERATION)?;
    let freed: Vec<Vec<u8>> = rows.iter().filter_map(|row| row.8.clone()).collect();
    if !freed.is_empty() {
        let lockable = keys::lock_index(store, &mut conn, &freed).await?;
        rows.retain(|row| row.8.is_none() || lockable.contains(&row.0));
    }
    let mut ids: Vec<i64> = rows.iter().map(|row| row.0).collect();
    ids.sort_unstable();
    let takes: Vec<String> = ids
        .chunks(AT_ONCE)
        .map(|ids| {
            let ids = numbers(ids.iter().copied());
            fill(sql.job.claim.take.as_str(), &[Value::Sql(&ids), Value::Bytes(&worker), micros(lease).into()])
        })
        .collect();
    moved::commit(store, conn, &takes).await?;
    let claimed =
        rows.into_iter().map(|(id, kind, attempt, max_attempts, head, data, schedule, waited, _)| ClaimedJob {
            id,
            kind: text(kind),
            attempt: u32::try_from(attempt).unwrap_or(0),
            max_attempts: u32::try_from(max_attempts).unwrap_or(0),
            head: text(head),
            data: data.into(),
            schedule: schedule.map(text),
            waited: Duration::from_micros(u64::try_from(waited).unwrap_or(0)),
        });
    Ok(claimed.collect())
}
