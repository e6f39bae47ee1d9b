//! Queues, and how many jobs are in them.

use std::time::Duration;

use polybus_core::Result;
use polybus_patterns::store::{JobCount, JobOutcome, JobState, StoredQueue};

use super::super::{Sqlite, reading, write_queue::Turn};

statements! {
    CountsSql {
        // One look into the index for each queue, however many jobs there are.
        available = "WITH RECURSIVE found (queue) AS (
                SELECT min(queue) FROM {job} WHERE state = 0
                UNION ALL
                SELECT (SELECT min(j.queue) FROM {job} j WHERE j.state = 0 AND j.queue > f.queue) FROM found f
                WHERE f.queue IS NOT NULL
            )
            SELECT f.queue,
                (SELECT count(*) FROM (SELECT 1 FROM {job} WHERE queue = f.queue AND state = 0 LIMIT ?1)),
                {now} - (SELECT min(run_at) FROM (
                    SELECT run_at FROM {job} WHERE queue = f.queue AND state = 0 ORDER BY priority, run_at LIMIT ?1))
            FROM found f WHERE f.queue IS NOT NULL";
        others = "SELECT queue, state, count(*) FROM (SELECT queue, 1 AS state FROM {job} WHERE state = 1 LIMIT ?1)
            GROUP BY queue
            UNION ALL
            SELECT queue, state, count(*) FROM (SELECT queue, 2 AS state FROM {job} WHERE state = 2 LIMIT ?1)
            GROUP BY queue";
        done = "SELECT queue, outcome, count(*) FROM (SELECT queue, 0 AS outcome FROM {job_done} WHERE outcome = 0 LIMIT ?1)
            GROUP BY queue
            UNION ALL
            SELECT queue, outcome, count(*) FROM (SELECT queue, 1 AS outcome FROM {job_done} WHERE outcome = 1 LIMIT ?1)
            GROUP BY queue
            UNION ALL
            SELECT queue, outcome, count(*) FROM (SELECT queue, 2 AS outcome FROM {job_done} WHERE outcome = 2 LIMIT ?1)
            GROUP BY queue";
        queues = "WITH RECURSIVE found (queue) AS (
                SELECT min(queue) FROM {job} WHERE state = 0
                UNION ALL
                SELECT (SELECT min(j.queue) FROM {job} j WHERE j.state = 0 AND j.queue > f.queue) FROM found f
                WHERE f.queue IS NOT NULL
            ),
            named (queue) AS (
                SELECT queue FROM found WHERE queue IS NOT NULL
                UNION SELECT queue FROM {job} WHERE state = 1
                UNION SELECT queue FROM {job} WHERE state = 2
                UNION SELECT queue FROM {job_queue} WHERE paused <> 0
            )
            SELECT n.queue, COALESCE((SELECT paused <> 0 FROM {job_queue} q WHERE q.queue = n.queue), 0)
            FROM named n ORDER BY n.queue";
        pause = "INSERT INTO {job_queue} (queue, paused) VALUES (?1, ?2) ON CONFLICT (queue) DO UPDATE
            SET paused = excluded.paused";
    }
}

/// Finished ones too, if they are asked for.
pub(super) async fn counts(store: &Sqlite, cap: u32, with_finished: bool) -> Result<Vec<JobCount>> {
    const OPERATION: &str = "job.counts";
    let sql = store.statements()?;
    let mut conn = store.reader(OPERATION).await?;
    let available = sqlx::query_as(sql.job.counts.available.clone()).bind(cap);
    let available: Vec<(String, i64, Option<i64>)> =
        available.fetch_all(&mut *conn).await.map_err(reading(OPERATION))?;
    let others = sqlx::query_as(sql.job.counts.others.clone()).bind(cap);
    let others: Vec<(String, i64, i64)> = others.fetch_all(&mut *conn).await.map_err(reading(OPERATION))?;
    let mut done: Vec<(String, i16, i64)> = Vec::new();
    if with_finished {
        let finished = sqlx::query_as(sql.job.counts.done.clone()).bind(cap);
        done = finished.fetch_all(&mut *conn).await.map_err(reading(OPERATION))?;
    }
    let count = |queue, state, jobs: i64, oldest: Option<i64>| JobCount {
        queue,
        state,
        jobs: jobs.unsigned_abs(),
        oldest: oldest.map(|age| Duration::from_micros(u64::try_from(age).unwrap_or_default())),
    };
    let available = available.into_iter().map(|(queue, jobs, age)| count(queue, JobState::Available, jobs, age));
    let others = others.into_iter().map(|(queue, state, jobs)| match state {
        1 => count(queue, JobState::Scheduled, jobs, None),
        _ => count(queue, JobState::Running, jobs, None),
    });
    let done = done
        .into_iter()
        .map(|(queue, outcome, jobs)| count(queue, JobState::Finished(JobOutcome::of_number(outcome)), jobs, None));
    Ok(available.chain(others).chain(done).collect())
}

pub(super) async fn queues(store: &Sqlite) -> Result<Vec<StoredQueue>> {
    const OPERATION: &str = "job.queues";
    let sql = store.statements()?;
    let mut conn = store.reader(OPERATION).await?;
    let queues = sqlx::query_as(sql.job.counts.queues.clone());
    let queues: Vec<(String, bool)> = queues.fetch_all(&mut *conn).await.map_err(reading(OPERATION))?;
    Ok(queues.into_iter().map(|(name, paused)| StoredQueue { name, paused }).collect())
}

pub(super) async fn set_paused(store: &Sqlite, queue: &str, paused: bool) -> Result<()> {
    const OPERATION: &str = "job.set_paused";
    let sql = store.statements()?;
    let mut tx = store.begin_in_turn(Turn::Normal, OPERATION).await?;
    let pause = sqlx::query(sql.job.counts.pause.clone()).bind(queue).bind(i64::from(paused));
    pause.execute(&mut *tx).await.map_err(reading(OPERATION))?;
    tx.commit().await
}
