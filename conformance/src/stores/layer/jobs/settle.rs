//! The ends of runs, and signs of life.

use std::time::Duration;

use polybus_core::Result;
use polybus_patterns::store::{
    InboxStore, JobEnd, JobEnding, JobExtended, JobOutcome, JobSettled, JobState, JobStore, OutboxStore, StoredJob,
};

use super::{all_of, of_ids, table::SuiteJobs};
use crate::stores::fault::StoreFault;

/// Between two looks of a fault that waits.
const LOOK: Duration = Duration::from_millis(10);

impl<S: OutboxStore + InboxStore + JobStore> SuiteJobs<S> {
    async fn job(&self, id: i64) -> Result<Option<StoredJob>> {
        Ok(all_of(&*self.table, &of_ids([id])).await?.pop())
    }

    /// The end of a run as a fault changes it.
    async fn changed(&self, ending: &JobEnding) -> Result<JobEnding> {
        let mut ending = ending.clone();
        if self.has(StoreFault::NoFenceByAttempt) {
            ending.attempt = self.job(ending.id).await?.map_or(ending.attempt, |job| job.attempt);
        }
        let completed = matches!(ending.how, JobEnd::Finished { outcome: JobOutcome::Completed, .. });
        match (self.state.fault, &mut ending.how) {
            (Some(StoreFault::DropsResults), JobEnd::Finished { result, .. }) => *result = None,
            (Some(StoreFault::DropsErrors), JobEnd::Finished { error, .. } | JobEnd::Again { error, .. }) => {
                *error = None;
            }
            (Some(StoreFault::CompletedStays), how) if completed => {
                *how = JobEnd::Again { delay: Duration::ZERO, counts: true, error: None };
            }
            (Some(StoreFault::RunsAgainAtOnce), JobEnd::Again { delay, .. }) => *delay = Duration::ZERO,
            (Some(StoreFault::LosesItsPlace), JobEnd::Again { delay, .. }) => {
                *delay = (*delay).max(Duration::from_micros(1));
            }
            (Some(StoreFault::CountsWhatWasGivenBack), JobEnd::Again { counts, .. }) => *counts = true,
            (Some(StoreFault::CountsNoFailedRun), JobEnd::Again { counts, .. }) => *counts = false,
            _ => {}
        }
        Ok(ending)
    }

    /// What else a fault does with an end that was answered so.
    async fn changed_answer(&self, worker: [u8; 16], ending: &JobEnding, answer: JobSettled) -> Result<JobSettled> {
        match (self.state.fault, answer) {
            (Some(StoreFault::SettleSaysLost), JobSettled::Busy) => Ok(JobSettled::Lost),
            (Some(StoreFault::SettleWaits), JobSettled::Busy) => loop {
                tokio::time::sleep(LOOK).await;
                let again = self.table.settle(worker, std::slice::from_ref(ending)).await?[0];
                if again != JobSettled::Busy {
                    return Ok(again);
                }
            },
            (Some(StoreFault::NoFenceAfterRescue), JobSettled::Lost) => {
                let job = self.job(ending.id).await?;
                let waits = job.is_some_and(|job| job.state == JobState::Available && job.attempt == ending.attempt);
                if waits {
                    self.table.cancel(&of_ids([ending.id])).await?;
                }
                Ok(if waits { JobSettled::Written } else { answer })
            }
            (Some(StoreFault::RunsAgainThoughCancelled), JobSettled::Written) => {
                if matches!(ending.how, JobEnd::Again { .. }) {
                    self.table.retry(&of_ids([ending.id])).await?;
                }
                Ok(answer)
            }
            _ => Ok(answer),
        }
    }

    pub(super) async fn settle_changed(&self, worker: [u8; 16], endings: &[JobEnding]) -> Result<Vec<JobSettled>> {
        let mut changed = Vec::with_capacity(endings.len());
        for ending in endings {
            changed.push(self.changed(ending).await?);
        }
        let mut answers = Vec::with_capacity(endings.len());
        if self.has(StoreFault::NoFenceByWorker) {
            for ending in &changed {
                let holder = self.holder(ending.id).unwrap_or(worker);
                answers.extend(self.table.settle(holder, std::slice::from_ref(ending)).await?);
            }
            return Ok(answers);
        }
        for (ending, answer) in changed.iter().zip(self.table.settle(worker, &changed).await?) {
            answers.push(self.changed_answer(worker, ending, answer).await?);
        }
        Ok(answers)
    }

    pub(super) async fn extend_changed(
        &self,
        worker: [u8; 16],
        lease: Duration,
        runs: &[(i64, u32)],
    ) -> Result<Vec<JobExtended>> {
        let mut answers = Vec::with_capacity(runs.len());
        for &(id, attempt) in runs {
            let mut run = (id, attempt);
            let mut by = worker;
            match self.state.fault {
                Some(StoreFault::NoFenceByAttempt) => run.1 = self.job(id).await?.map_or(attempt, |job| job.attempt),
                Some(StoreFault::NoFenceByWorker) => by = self.holder(id).unwrap_or(worker),
                _ => {}
            }
            let mut answer = self.table.extend(by, lease, &[run]).await?[0];
            while answer == JobExtended::Locked && self.has(StoreFault::ExtendWaits) {
                tokio::time::sleep(LOOK).await;
                answer = self.table.extend(by, lease, &[run]).await?[0];
            }
            answers.push(match (self.state.fault, answer) {
                (Some(StoreFault::ExtendSaysHeld), JobExtended::Lost) => JobExtended::Held { cancelled: false },
                (Some(StoreFault::ExtendTellsNoCancel), JobExtended::Held { .. }) => {
                    JobExtended::Held { cancelled: false }
                }
                _ => answer,
            });
        }
        Ok(answers)
    }
}
