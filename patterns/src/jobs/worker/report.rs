//! What a worker did.

use std::sync::atomic::{AtomicU64, Ordering};

use super::run::RunEnding;
use crate::store::{JobEnd, JobOutcome};

/// What a [`JobWorker`](super::JobWorker) did, counted in runs of jobs, by what the database has answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobReport {
    /// Completed.
    pub completed: u64,
    /// Failed, and run again later.
    pub retried: u64,
    /// Given up: at the last attempt, or because the handler said so.
    pub discarded: u64,
    /// Cancelled while they ran.
    pub cancelled: u64,
    /// Put off without counting the attempt: by their handler, or because their kind is not known here.
    pub snoozed: u64,
    /// Runs whose lease was lost before they were settled. Another worker has the job, or had it.
    pub lost: u64,
}

#[derive(Debug, Default)]
pub(super) struct JobCounts {
    pub(super) completed: AtomicU64,
    retried: AtomicU64,
    discarded: AtomicU64,
    cancelled: AtomicU64,
    snoozed: AtomicU64,
}

impl JobCounts {
    pub(super) fn add(count: &AtomicU64) {
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an end that was written, of a run that has ended in this way of its own.
    pub(super) fn count(&self, how: &JobEnd, ending: Option<&RunEnding>) {
        Self::add(match how {
            JobEnd::Finished { outcome: JobOutcome::Completed, .. } => &self.completed,
            JobEnd::Finished { outcome: JobOutcome::Discarded, .. } => &self.discarded,
            JobEnd::Finished { outcome: JobOutcome::Cancelled, .. } => &self.cancelled,
            JobEnd::Again { counts: true, .. } => &self.retried,
            JobEnd::Again { .. } if matches!(ending, Some(RunEnding::Snoozed { .. })) => &self.snoozed,
            // It was given back unhandled.
            JobEnd::Again { .. } => return,
        });
    }

    /// Counts a job that was discarded beside the end of its run.
    pub(super) fn discarded(&self) {
        Self::add(&self.discarded);
    }

    pub(super) fn report(&self) -> JobReport {
        let n = |count: &AtomicU64| count.load(Ordering::Relaxed);
        JobReport {
            completed: n(&self.completed),
            retried: n(&self.retried),
            discarded: n(&self.discarded),
            cancelled: n(&self.cancelled),
            snoozed: n(&self.snoozed),
            // Core has counted those that it did not bring to be settled, too.
            lost: 0,
        }
    }
}
