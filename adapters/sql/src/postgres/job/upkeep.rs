//! What is done for jobs that nobody has at the moment.

use std::time::Duration;

use polybus_core::Result;
use polybus_patterns::store::{DueRows, RescuedJobs, micros};

use super::{super::Postgres, kept};
use crate::text::stored_text;

statements! {
    UpkeepSql {
        // The clock is read first: an expression that is not the same for all rows is no condition of an index.
        // A lease that ends further ahead than its own term is one from before the clock was set back. The clock was read
        // before a row is waited for, and others may have renewed it since, so a minute is allowed for.
        rescue = concat!("WITH c AS MATERIALIZED (SELECT {now} AS now),
            lost AS MATERIALIZED (
                SELECT j.id, CASE WHEN j.cancelled <> 0 THEN 2 WHEN j.attempt >= j.max_attempts THEN 1 END AS outcome
                FROM {job} j
                WHERE j.state = 2 AND (j.locked_until <= (SELECT now FROM c)
                    OR j.locked_until > (SELECT now FROM c) + j.term + 60000000)
                LIMIT $2::bigint
                FOR UPDATE OF j SKIP LOCKED),
            gone AS (
                DELETE FROM {job} j USING lost l WHERE j.id = l.id AND l.outcome IS NOT NULL
                RETURNING j.*, l.outcome),
            done AS (
                INSERT INTO {job_done} (", kept!(), ", attempt, progress, note, outcome, last_error, finished_at)
                SELECT ", kept!(), ", attempt, progress, note, outcome, $1, c.now FROM gone, c),
            again AS (
                UPDATE {job} j
                SET state = 0, last_error = $1, locked_by = NULL, locked_until = NULL, term = NULL
                FROM lost l WHERE j.id = l.id AND l.outcome IS NULL)
            SELECT count(*) FILTER (WHERE outcome IS NULL), count(*) FILTER (WHERE outcome = 1),
                count(*) FILTER (WHERE outcome = 2)
            FROM lost");
        promote = "WITH c AS MATERIALIZED (SELECT {now} AS now),
            due AS MATERIALIZED (
                SELECT id FROM {job} WHERE state = 1 AND run_at <= (SELECT now FROM c) ORDER BY run_at LIMIT $1::bigint
                FOR UPDATE SKIP LOCKED),
            moved AS (UPDATE {job} j SET state = 0 FROM due WHERE j.id = due.id RETURNING 1)
            SELECT (SELECT count(*) FROM moved), (
                SELECT j.run_at - c.now FROM {job} j, c WHERE j.state = 1 AND j.id NOT IN (SELECT id FROM due)
                ORDER BY j.run_at LIMIT 1)";
        // One look into the index for each queue and outcome, however many rows there are.
        prune = "WITH RECURSIVE c AS MATERIALIZED (SELECT {now} AS now),
            found (queue, outcome) AS (
                (SELECT queue, outcome FROM {job_done} ORDER BY queue, outcome LIMIT 1)
                UNION ALL
                SELECT n.queue, n.outcome FROM found f CROSS JOIN LATERAL (
                    SELECT d.queue, d.outcome FROM {job_done} d
                    WHERE (d.queue, d.outcome) > (f.queue, f.outcome) ORDER BY d.queue, d.outcome LIMIT 1) n),
            old AS MATERIALIZED (
                (SELECT r.id FROM found f CROSS JOIN LATERAL (
                    SELECT d.id FROM {job_done} d
                    WHERE d.queue = f.queue AND d.outcome = 0 AND d.finished_at < (SELECT now - $1::bigint FROM c)
                    ORDER BY d.finished_at LIMIT $3::bigint FOR UPDATE SKIP LOCKED) r
                WHERE f.outcome = 0 LIMIT $3::bigint)
                UNION ALL
                (SELECT r.id FROM found f CROSS JOIN LATERAL (
                    SELECT d.id FROM {job_done} d
                    WHERE d.queue = f.queue AND d.outcome = f.outcome
                        AND d.finished_at < (SELECT now - $2::bigint FROM c)
                    ORDER BY d.finished_at LIMIT $3::bigint FOR UPDATE SKIP LOCKED) r
                WHERE f.outcome <> 0 LIMIT $3::bigint)),
            jobs AS (DELETE FROM {job_done} WHERE id = ANY (ARRAY(SELECT id FROM old)) RETURNING 1),
            keys AS (DELETE FROM {job_unique} WHERE key = ANY (ARRAY(
                SELECT key FROM {job_unique} WHERE until_at <= (SELECT now FROM c)
                ORDER BY until_at LIMIT $3::bigint FOR UPDATE SKIP LOCKED)) RETURNING 1)
            SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM keys)";
    }
}

pub(super) async fn rescue(store: &Postgres, error: &str, limit: u32) -> Result<RescuedJobs> {
    const OPERATION: &str = "job.rescue";
    let sql = store.statements().await?;
    let mut conn = store.control_conn(OPERATION).await?;
    let rescue = sqlx::query_as(sql.job.upkeep.rescue.clone()).bind(stored_text(error)).bind(i64::from(limit));
    let (again, discarded, cancelled): (i64, i64, i64) =
        rescue.fetch_one(&mut *conn).await.map_err(conn.committing())?;
    if again > 0 {
        store.0.changes.committed();
    }
    Ok(RescuedJobs {
        again: again.unsigned_abs(),
        discarded: discarded.unsigned_abs(),
        cancelled: cancelled.unsigned_abs(),
    })
}

pub(super) async fn promote(store: &Postgres, limit: u32) -> Result<DueRows> {
    const OPERATION: &str = "job.promote";
    let sql = store.statements().await?;
    let mut conn = store.control_conn(OPERATION).await?;
    let promote = sqlx::query_as(sql.job.upkeep.promote.clone()).bind(i64::from(limit));
    let (moved, waits): (i64, Option<i64>) = promote.fetch_one(&mut *conn).await.map_err(conn.committing())?;
    Ok(DueRows {
        moved: moved.unsigned_abs(),
        next: waits.map(|waits| Duration::from_micros(u64::try_from(waits).unwrap_or(0))),
    })
}

pub(super) async fn prune(store: &Postgres, completed: Duration, others: Duration, limit: u32) -> Result<u64> {
    const OPERATION: &str = "job.prune";
    let sql = store.statements().await?;
    let mut conn = store.control_conn(OPERATION).await?;
    let prune = sqlx::query_scalar(sql.job.upkeep.prune.clone())
        .bind(micros(completed))
        .bind(micros(others))
        .bind(i64::from(limit));
    let gone: i64 = prune.fetch_one(&mut *conn).await.map_err(conn.committing())?;
    Ok(gone.unsigned_abs())
}
