//! Queues, and how many jobs are in them.

use std::time::Duration;

use polybus_core::Result;
use polybus_patterns::store::{JobCount, JobOutcome, JobState, StoredQueue};

use super::super::Postgres;
use crate::job_filter::state_of;

/// The queues with available jobs: one look into the index for each, however many jobs there are.
macro_rules! available_queues {
    () => {
        "found (queue) AS (
                (SELECT queue FROM {job} WHERE state = 0 ORDER BY queue LIMIT 1)
                UNION ALL
                SELECT n.queue FROM found f CROSS JOIN LATERAL (
                    SELECT j.queue FROM {job} j WHERE j.state = 0 AND j.queue > f.queue ORDER BY j.queue LIMIT 1) n)"
    };
}

statements! {
    CountsSql {
        available = concat!("WITH RECURSIVE ", available_queues!(), "
            SELECT f.queue, c.jobs, {now} - c.oldest FROM found f CROSS JOIN LATERAL (
                SELECT count(*) AS jobs, min(r.run_at) AS oldest FROM (
                    SELECT run_at FROM {job} j WHERE j.queue = f.queue AND j.state = 0
                    ORDER BY j.priority, j.run_at, j.id LIMIT $1::bigint) r) c");
        others = "SELECT queue, state, count(*) FROM (
                (SELECT queue, state FROM {job} WHERE state = 1 LIMIT $1::bigint)
                UNION ALL
                (SELECT queue, state FROM {job} WHERE state = 2 LIMIT $1::bigint)) r
            GROUP BY queue, state";
        done = "WITH RECURSIVE found (queue, outcome) AS (
                (SELECT queue, outcome FROM {job_done} ORDER BY queue, outcome LIMIT 1)
                UNION ALL
                SELECT n.queue, n.outcome FROM found f CROSS JOIN LATERAL (
                    SELECT d.queue, d.outcome FROM {job_done} d
                    WHERE (d.queue, d.outcome) > (f.queue, f.outcome) ORDER BY d.queue, d.outcome LIMIT 1) n)
            SELECT f.queue, f.outcome, c.jobs FROM found f CROSS JOIN LATERAL (
                SELECT count(*) AS jobs FROM (
                    SELECT 1 FROM {job_done} d WHERE d.queue = f.queue AND d.outcome = f.outcome LIMIT $1::bigint) r) c";
        queues = concat!("WITH RECURSIVE ", available_queues!(), ",
            named (queue) AS (
                SELECT queue FROM found
                UNION SELECT queue FROM {job} WHERE state = 1
                UNION SELECT queue FROM {job} WHERE state = 2
                UNION SELECT queue FROM {job_queue} WHERE paused <> 0)
            SELECT n.queue, coalesce(q.paused <> 0, false) FROM named n LEFT JOIN {job_queue} q ON q.queue = n.queue
            ORDER BY n.queue");
        pause = "INSERT INTO {job_queue} (queue, paused) VALUES ($1, $2) ON CONFLICT (queue) DO UPDATE
            SET paused = excluded.paused";
    }
}

/// Finished ones too, if they are asked for.
pub(super) async fn counts(store: &Postgres, cap: u32, with_finished: bool) -> Result<Vec<JobCount>> {
    const OPERATION: &str = "job.counts";
    let (sql, cap) = (store.statements().await?, i64::from(cap));
    let mut conn = store.control_conn(OPERATION).await?;
    let available = sqlx::query_as(sql.job.counts.available.clone()).bind(cap);
    let available: Vec<(String, i64, Option<i64>)> = available.fetch_all(&mut *conn).await.map_err(conn.reading())?;
    let others = sqlx::query_as(sql.job.counts.others.clone()).bind(cap);
    let others: Vec<(String, i16, i64)> = others.fetch_all(&mut *conn).await.map_err(conn.reading())?;
    let mut done: Vec<(String, i16, i64)> = Vec::new();
    if with_finished {
        let finished = sqlx::query_as(sql.job.counts.done.clone()).bind(cap);
        done = finished.fetch_all(&mut *conn).await.map_err(conn.reading())?;
    }
    let count = |queue, state, jobs: i64, oldest: Option<i64>| JobCount {
        queue,
        state,
        jobs: jobs.unsigned_abs(),
        oldest: oldest.map(|age| Duration::from_micros(u64::try_from(age).unwrap_or_default())),
    };
    let available = available.into_iter().map(|(queue, jobs, age)| count(queue, JobState::Available, jobs, age));
    let others = others.into_iter().map(|(queue, state, jobs)| count(queue, state_of(state), jobs, None));
    let done = done
        .into_iter()
        .map(|(queue, outcome, jobs)| count(queue, JobState::Finished(JobOutcome::of_number(outcome)), jobs, None));
    Ok(available.chain(others).chain(done).collect())
}

pub(super) async fn queues(store: &Postgres) -> Result<Vec<StoredQueue>> {
    const OPERATION: &str = "job.queues";
    let sql = store.statements().await?;
    let mut conn = store.control_conn(OPERATION).await?;
    let queues = sqlx::query_as(sql.job.counts.queues.clone());
    let queues: Vec<(String, bool)> = queues.fetch_all(&mut *conn).await.map_err(conn.reading())?;
    Ok(queues.into_iter().map(|(name, paused)| StoredQueue { name, paused }).collect())
}

pub(super) async fn set_paused(store: &Postgres, queue: &str, paused: bool) -> Result<()> {
    const OPERATION: &str = "job.set_paused";
    let sql = store.statements().await?;
    let mut conn = store.control_conn(OPERATION).await?;
    let pause = sqlx::query(sql.job.counts.pause.clone()).bind(queue).bind(i16::from(paused));
    pause.execute(&mut *conn).await.map(drop).map_err(conn.committing())
}
