//! Claiming jobs.

use std::time::Duration;

use bytes::Bytes;
use polybus_core::Result;
use polybus_patterns::store::{ClaimedJob, micros};

use super::super::Postgres;

statements! {
    ClaimSql {
        // The rows are found once, in the order of the index, and updated by their ids.
        claim = "UPDATE {job} j
            SET state = 2, attempt = j.attempt + 1, locked_by = $2, locked_until = c.now + $3::bigint, term = $3,
                unique_key = CASE WHEN j.unique_until = 0 THEN NULL ELSE j.unique_key END
            FROM (SELECT {now} AS now) c
            WHERE j.id = ANY (ARRAY(
                SELECT a.id FROM {job} a
                WHERE a.queue = $1 AND a.state = 0
                    AND NOT EXISTS (SELECT 1 FROM {job_queue} q WHERE q.queue = $1 AND q.paused <> 0)
                ORDER BY a.priority, a.run_at, a.id LIMIT $4::bigint
                FOR UPDATE OF a SKIP LOCKED))
            RETURNING j.priority, j.run_at, j.id, j.kind, j.attempt, j.max_attempts, j.head, j.data, j.schedule,
                greatest(c.now - j.run_at, 0)";
    }
}

type Row = (i16, i64, i64, String, i32, i32, String, Vec<u8>, Option<String>, i64);

pub(super) async fn claim(
    store: &Postgres,
    queue: &str,
    worker: [u8; 16],
    lease: Duration,
    limit: u32,
) -> Result<Vec<ClaimedJob>> {
    const OPERATION: &str = "job.claim";
    let sql = store.statements().await?;
    let mut conn = store.control_conn(OPERATION).await?;
    let claim = sqlx::query_as(sql.job.claim.claim.clone())
        .bind(queue)
        .bind(&worker[..])
        .bind(micros(lease))
        .bind(i64::from(limit));
    let mut rows: Vec<Row> = claim.fetch_all(&mut *conn).await.map_err(conn.committing())?;
    drop(conn);
    // The update answers in an order of its own.
    rows.sort_unstable_by_key(|(priority, run_at, id, ..)| (*priority, *run_at, *id));
    Ok(rows
        .into_iter()
        .map(|(_, _, id, kind, attempt, max_attempts, head, data, schedule, waited)| ClaimedJob {
            id,
            kind,
            attempt: attempt.unsigned_abs(),
            max_attempts: max_attempts.unsigned_abs(),
            head,
            data: Bytes::from(data),
            schedule,
            waited: Duration::from_micros(waited.unsigned_abs()),
        })
        .collect())
}
