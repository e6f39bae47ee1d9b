//! Claims jobs.

use std::time::Duration;

use bytes::Bytes;
use polybus_core::Result;
use polybus_patterns::store::{ClaimedJob, micros};

use super::super::{Sqlite, reading, write_queue::Turn};

statements! {
    ClaimSql {
        // Most looks find nothing, and need no turn to write.
        is_there = "SELECT EXISTS (SELECT 1 FROM {job} WHERE queue = ?1 AND state = 0)
            AND NOT EXISTS (SELECT 1 FROM {job_queue} WHERE queue = ?1 AND paused <> 0)";
        claim = "UPDATE {job}
            SET state = 2, attempt = attempt + 1, locked_by = ?2, locked_until = {now} + ?3, term = ?3,
                unique_key = iif(unique_until = 0, NULL, unique_key)
            WHERE id IN (
                    SELECT id FROM {job} WHERE queue = ?1 AND state = 0 ORDER BY priority, run_at, id LIMIT ?4)
                AND NOT EXISTS (SELECT 1 FROM {job_queue} WHERE queue = ?1 AND paused <> 0)
            RETURNING id, kind, attempt, max_attempts, head, data, schedule, priority, run_at, {now}";
    }
}

const OPERATION: &str = "job.claim";

type Row = (i64, String, i64, i64, String, Vec<u8>, Option<String>, i64, i64, i64);

pub(super) async fn claim(
    store: &Sqlite,
    queue: &str,
    worker: [u8; 16],
    lease: Duration,
    limit: u32,
) -> Result<Vec<ClaimedJob>> {
    let sql = store.statements()?;
    {
        let mut conn = store.reader(OPERATION).await?;
        let is_there = sqlx::query_scalar(sql.job.claim.is_there.clone()).bind(queue);
        if !is_there.fetch_one(&mut *conn).await.map_err(reading(OPERATION))? {
            return Ok(Vec::new());
        }
    }
    let mut tx = store.begin_in_turn(Turn::Normal, OPERATION).await?;
    let claim =
        sqlx::query_as(sql.job.claim.claim.clone()).bind(queue).bind(&worker[..]).bind(micros(lease)).bind(limit);
    let mut rows: Vec<Row> = claim.fetch_all(&mut *tx).await.map_err(reading(OPERATION))?;
    tx.commit().await?;
    rows.sort_unstable_by_key(|row| (row.7, row.8, row.0));
    Ok(rows
        .into_iter()
        .map(|(id, kind, attempt, max_attempts, head, data, schedule, _, run_at, now)| ClaimedJob {
            id,
            kind,
            attempt: u32::try_from(attempt).unwrap_or(u32::MAX),
            max_attempts: u32::try_from(max_attempts).unwrap_or(u32::MAX),
            head,
            data: Bytes::from(data),
            schedule,
            waited: Duration::from_micros(u64::try_from(now - run_at).unwrap_or_default()),
        })
        .collect())
}
