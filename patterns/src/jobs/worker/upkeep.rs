//! What every worker does for all: jobs whose time has come, jobs whose worker was lost, old rows, and counts.

use std::{sync::Arc, time::Duration};

use polybus_core::{
    Result,
    driver::{
        async_trait,
        kit::backoff::{Backoff, random_fraction},
    },
};

use super::driver::JobsShared;
use crate::{
    store::{
        DueRows, JobState, JobTable,
        calls::{MAX_DATABASE_BACKOFF, in_time, rows_limit},
    },
    sweeper::SweptRows,
    telemetry,
};

/// How often scheduled jobs are looked at when none is due soon.
const PROMOTE_INTERVAL: Duration = Duration::from_secs(1);

/// How soon it looks again at the earliest where a due job could not be moved.
const SHORTEST: Duration = Duration::from_millis(20);

/// How many jobs are moved or freed in one transaction.
const BATCH: u32 = 1000;

/// How often jobs are counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(10);

/// Counting ends here.
pub(in crate::jobs) const COUNT_CAP: u32 = 100_000;

/// From this age on a snapshot that keeps deleted rows is told in the log.
const OLD_SNAPSHOT: Duration = Duration::from_secs(60);

/// How often the log tells of it.
const SAY_AGAIN: Duration = Duration::from_secs(300);

const LOST_WORKER: &str = "worker-lost: the worker that ran it was lost, and did not renew its lease";

/// Makes scheduled jobs available when their time has come, until it is dropped.
pub(super) async fn promote(shared: &Arc<JobsShared>) {
    let mut backoff = Backoff::up_to(MAX_DATABASE_BACKOFF);
    let mut changes = shared.control.changes().listen();
    loop {
        let wait = match in_time(rows_limit(&*shared.control), shared.table.promote(BATCH)).await {
            Ok(due) => {
                backoff.reset();
                if due.moved > 0 {
                    shared.control.changes().committed();
                }
                until_next(&due)
            }
            Err(e) => {
                tracing::debug!(target: "polybus", error = %e, "scheduled jobs cannot be looked at; trying again");
                backoff.next_wait()
            }
        };
        if wait < PROMOTE_INTERVAL {
            tokio::time::sleep(wait).await;
            continue;
        }
        // A job that was written now may be due before the next look.
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = changes.changed() => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn until_next(due: &DueRows) -> Duration {
    match due.moved {
        n if n >= u64::from(BATCH) => Duration::ZERO,
        // A due job that somebody else's transaction holds is not moved, and stays due.
        0 => due.next.unwrap_or(PROMOTE_INTERVAL).clamp(SHORTEST, PROMOTE_INTERVAL),
        _ => due.next.unwrap_or(PROMOTE_INTERVAL).clamp(Duration::from_millis(1), PROMOTE_INTERVAL),
    }
}

/// Frees jobs whose lease has run out, until it is dropped.
pub(super) async fn rescue(shared: &Arc<JobsShared>) {
    let interval = (shared.lease / 4).clamp(Duration::from_millis(250), Duration::from_secs(15));
    loop {
        // Processes that started together do not look together.
        tokio::time::sleep(interval.mul_f64(0.75 + 0.5 * random_fraction())).await;
        loop {
            let rescued = in_time(rows_limit(&*shared.control), shared.table.rescue(LOST_WORKER, BATCH)).await;
            let rescued = match rescued {
                Ok(rescued) => rescued,
                Err(e) => {
                    tracing::debug!(target: "polybus", error = %e, "lost jobs cannot be looked for; trying again");
                    break;
                }
            };
            let all = rescued.again + rescued.discarded + rescued.cancelled;
            if all == 0 {
                break;
            }
            shared.control.changes().committed();
            telemetry::jobs_rescued(shared.control.system(), all);
            tracing::warn!(
                target: "polybus", again = rescued.again, discarded = rescued.discarded, cancelled = rescued.cancelled,
                "jobs were freed whose worker was lost: their lease had run out"
            );
            if all < u64::from(BATCH) {
                break;
            }
        }
    }
}

/// Counts jobs, and looks for what keeps the database from removing old rows, until it is dropped.
pub(super) async fn count(shared: &Arc<JobsShared>) {
    let system = shared.control.system();
    let mut told: Option<tokio::time::Instant> = None;
    let mut queues: std::collections::BTreeSet<String> = Default::default();
    loop {
        tokio::time::sleep(COUNT_INTERVAL.mul_f64(0.9 + 0.2 * random_fraction())).await;
        let limit = rows_limit(&*shared.control);
        if let Ok(counts) = in_time(limit, shared.table.counts_unfinished(COUNT_CAP)).await {
            queues.extend(counts.iter().map(|count| count.queue.clone()));
            for queue in &queues {
                let of = |state| counts.iter().find(|count| count.queue == *queue && count.state == state);
                for (name, state) in [
                    ("available", JobState::Available),
                    ("scheduled", JobState::Scheduled),
                    ("running", JobState::Running),
                ] {
                    telemetry::jobs_waiting(queue, name, of(state).map_or(0, |count| count.jobs));
                }
                let oldest = of(JobState::Available).and_then(|count| count.oldest).unwrap_or_default();
                telemetry::jobs_oldest_age(queue, oldest);
            }
        }
        if let Ok(snapshot) = in_time(limit, shared.table.oldest_snapshot()).await {
            let (age, who) = snapshot.unwrap_or_default();
            telemetry::jobs_oldest_snapshot(system, age);
            if age >= OLD_SNAPSHOT && told.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
                told = Some(tokio::time::Instant::now());
                tracing::warn!(
                    target: "polybus", system, ?age, who,
                    "an old transaction keeps the database from removing rows of finished jobs: claims become slower \
                     until it ends"
                );
            }
        }
    }
}

/// Finished jobs that are too old.
pub(super) struct OldJobs {
    pub(super) table: Arc<dyn JobTable>,
    pub(super) completed: Duration,
    pub(super) others: Duration,
}

#[async_trait]
impl SweptRows for OldJobs {
    async fn sweep(&self, limit: u32) -> Result<u64> {
        self.table.prune(self.completed, self.others, limit).await
    }
}
