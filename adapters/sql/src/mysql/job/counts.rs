//! Queues, and how many jobs are in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use polybus_core::Result;
use polybus_patterns::store::{JobCount, JobOutcome, StoredQueue};

use super::super::{
    MySql,
    control_conn::{decoded, text},
    literals::{Value, fill},
};
use crate::job_filter::state_of;

statements! {
    CountsSql {
        // One look into the index for each queue, however many jobs there are.
        next_queue = "SELECT MIN(queue) FROM {job} WHERE queue > ?1";
        of_queue = "SELECT ?2, COUNT(*), {now} - MIN(run_at) FROM (
            SELECT run_at FROM {job} FORCE INDEX (by_fetch) WHERE queue = ?1 AND state = ?2
            ORDER BY priority, run_at, id LIMIT ?3) AS r";
        done = "SELECT queue, ?1, COUNT(*) FROM (
            SELECT queue FROM {job_done} FORCE INDEX (by_finished) WHERE outcome = ?1 LIMIT ?2) AS r GROUP BY queue";
        paused = "SELECT queue FROM {job_queue} WHERE paused <> 0";
        pause = "INSERT INTO {job_queue} (queue, paused) VALUES (?1, ?2) ON DUPLICATE KEY UPDATE paused = VALUES(paused)";
    }
}

async fn names(store: &MySql, operation: &'static str) -> Result<BTreeSet<Vec<u8>>> {
    let sql = store.statements().await?;
    let (mut names, mut last) = (BTreeSet::new(), Vec::new());
    loop {
        let next = store.look(operation, &fill(sql.job.counts.next_queue.as_str(), &[Value::Bytes(&last)])).await?;
        let next: Vec<(Option<Vec<u8>>,)> = decoded(&next.rows, operation)?;
        let Some(name) = next.into_iter().find_map(|(name,)| name) else { return Ok(names) };
        last.clone_from(&name);
        names.insert(name);
    }
}

/// Finished ones too, if they are asked for.
pub(super) async fn counts(store: &MySql, cap: u32, with_finished: bool) -> Result<Vec<JobCount>> {
    const OPERATION: &str = "job.counts";
    let sql = store.statements().await?;
    let mut counts = Vec::new();
    for name in names(store, OPERATION).await? {
        let look = |state: i64| {
            fill(sql.job.counts.of_queue.as_str(), &[Value::Bytes(&name), state.into(), i64::from(cap).into()])
        };
        let looked = store.look(OPERATION, &[look(0), look(1), look(2)].join("; ")).await?;
        let queue = text(name.clone());
        for (state, jobs, age) in decoded::<(i64, i64, Option<i64>)>(&looked.rows, OPERATION)? {
            if jobs > 0 {
                let age = age.filter(|_| state == 0).map(|age| u64::try_from(age).unwrap_or_default());
                counts.push(JobCount {
                    queue: queue.clone(),
                    state: state_of(i16::try_from(state).unwrap_or_default()),
                    jobs: jobs.unsigned_abs(),
                    oldest: age.map(Duration::from_micros),
                });
            }
        }
    }
    if !with_finished {
        return Ok(counts);
    }
    let done = |outcome: i64| fill(sql.job.counts.done.as_str(), &[outcome.into(), i64::from(cap).into()]);
    let looked = store.look(OPERATION, &[done(0), done(1), done(2)].join("; ")).await?;
    for (queue, outcome, jobs) in decoded::<(Vec<u8>, i64, i64)>(&looked.rows, OPERATION)? {
        let outcome = JobOutcome::of_number(i16::try_from(outcome).unwrap_or(1));
        let state = polybus_patterns::store::JobState::Finished(outcome);
        counts.push(JobCount { queue: text(queue), state, jobs: jobs.unsigned_abs(), oldest: None });
    }
    Ok(counts)
}

pub(super) async fn queues(store: &MySql) -> Result<Vec<StoredQueue>> {
    const OPERATION: &str = "job.queues";
    let sql = store.statements().await?;
    let mut queues: BTreeMap<Vec<u8>, bool> =
        names(store, OPERATION).await?.into_iter().map(|name| (name, false)).collect();
    let paused = store.look(OPERATION, sql.job.counts.paused.as_str()).await?;
    let paused: Vec<(Vec<u8>,)> = decoded(&paused.rows, OPERATION)?;
    queues.extend(paused.into_iter().map(|(name,)| (name, true)));
    Ok(queues.into_iter().map(|(name, paused)| StoredQueue { name: text(name), paused }).collect())
}

pub(super) async fn set_paused(store: &MySql, queue: &str, paused: bool) -> Result<()> {
    let sql = store.statements().await?;
    let pause = fill(sql.job.counts.pause.as_str(), &[queue.into(), i64::from(paused).into()]);
    store.run("job.set_paused", &pause).await.map(drop)
}
