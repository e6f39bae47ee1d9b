//! The table of jobs, as workers and the administration see it.

use std::{sync::Arc, time::Duration};

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{
    ClaimedJob, DueRows, InboxStore, JobClaim, JobCount, JobDue, JobEnd, JobEnding, JobExtended, JobFilter, JobOutcome,
    JobSettled, JobState, JobStore, JobTable, NewJobRow, OutboxStore, RescuedJobs, StoredJob, StoredQueue,
};

use super::{super::LayerState, all_of, in_state, of_ids};
use crate::stores::fault::StoreFault;

pub(super) struct SuiteJobs<S> {
    pub(super) store: S,
    pub(super) table: Arc<dyn JobTable>,
    pub(super) state: Arc<LayerState>,
}

impl<S: OutboxStore + InboxStore + JobStore> SuiteJobs<S> {
    pub(super) fn has(&self, fault: StoreFault) -> bool {
        self.state.has(fault)
    }

    /// Who has claimed a job last.
    pub(super) fn holder(&self, id: i64) -> Option<[u8; 16]> {
        self.state.jobs.holders.lock().get(&id).copied()
    }

    /// Claims all of a queue and gives back all but the last ones.
    async fn claim_last(&self, queue: &str, worker: [u8; 16], lease: Duration, limit: u32) -> Result<Vec<ClaimedJob>> {
        let mut all = self.table.claim(queue, worker, lease, 10_000).await?;
        let last = all.split_off(all.len().saturating_sub(limit as usize));
        let how = JobEnd::Again { delay: Duration::ZERO, counts: false, error: None };
        let back: Vec<JobEnding> =
            all.iter().map(|job| JobEnding { id: job.id, attempt: job.attempt, how: how.clone() }).collect();
        self.table.settle(worker, &back).await?;
        Ok(last)
    }

    /// Takes all running jobs from their workers.
    async fn rescue_all(&self, error: &str) -> Result<RescuedJobs> {
        let mut rescued = RescuedJobs::default();
        for job in all_of(&*self.table, &in_state(JobState::Running)).await? {
            let how = JobEnd::Again { delay: Duration::ZERO, counts: true, error: Some(error.to_owned()) };
            let ending = JobEnding { id: job.id, attempt: job.attempt, how };
            let settled = self.table.settle(self.holder(job.id).unwrap_or_default(), &[ending]).await?;
            rescued.again += u64::from(settled == [JobSettled::Written]);
        }
        Ok(rescued)
    }

    /// Whether a running job has a lease that ends half a day from now.
    async fn has_far_lease(&self) -> Result<bool> {
        let far = self.store.schedules().list().await?.now + 12 * 3_600 * 1_000_000;
        let running = all_of(&*self.table, &in_state(JobState::Running)).await?;
        Ok(running.iter().any(|job| job.locked_until.is_some_and(|until| until > far)))
    }

    /// Writes finished jobs once more, beside what they were.
    async fn copy(&self, jobs: &[StoredJob]) -> Result<u64> {
        let copies: Vec<NewJobRow> = jobs
            .iter()
            .map(|job| NewJobRow {
                queue: job.queue.clone(),
                kind: job.kind.clone(),
                priority: job.priority,
                due: JobDue::After(Duration::ZERO),
                max_attempts: job.max_attempts,
                head: job.head.clone(),
                data: job.data.clone(),
                unique: None,
                schedule: job.schedule.clone(),
            })
            .collect();
        let mut tx = self.store.begin().await?;
        self.store.insert_jobs(&mut tx, &copies).await?;
        S::commit(tx).await?;
        Ok(copies.len() as u64)
    }

    async fn finished(&self, filter: &JobFilter) -> Result<Vec<StoredJob>> {
        let mut jobs = all_of(&*self.table, filter).await?;
        jobs.retain(|job| matches!(job.state, JobState::Finished(outcome) if outcome != JobOutcome::Completed));
        Ok(jobs)
    }
}

#[async_trait]
impl<S: OutboxStore + InboxStore + JobStore> JobTable for SuiteJobs<S> {
    async fn claim(&self, queue: &str, worker: [u8; 16], lease: Duration, limit: u32) -> Result<Vec<ClaimedJob>> {
        let mut claimed = match self.state.fault {
            Some(StoreFault::ClaimsFromTheBack) => self.claim_last(queue, worker, lease, limit).await?,
            Some(StoreFault::ClaimsTooMany) => self.table.claim(queue, worker, lease, limit + 1).await?,
            _ => self.table.claim(queue, worker, lease, limit).await?,
        };
        match self.state.fault {
            Some(StoreFault::ClaimsBackwards) => claimed.reverse(),
            Some(StoreFault::ClaimsFromOtherQueues) => {
                for other in self.table.queues().await? {
                    let left = limit.saturating_sub(claimed.len() as u32);
                    claimed.extend(self.table.claim(&other.name, worker, lease, left).await?);
                }
            }
            Some(StoreFault::ClaimsTwice) => {
                let last = std::mem::replace(&mut *self.state.jobs.claimed.lock(), claimed.clone());
                claimed.extend(last);
            }
            Some(StoreFault::CountsNoAttempt) => claimed.iter_mut().for_each(|job| job.attempt = 1),
            _ => {}
        }
        self.state.jobs.holders.lock().extend(claimed.iter().map(|job| (job.id, worker)));
        Ok(claimed)
    }

    async fn settle(&self, worker: [u8; 16], endings: &[JobEnding]) -> Result<Vec<JobSettled>> {
        match self.state.fault {
            None => self.table.settle(worker, endings).await,
            Some(_) => self.settle_changed(worker, endings).await,
        }
    }

    async fn extend(&self, worker: [u8; 16], lease: Duration, runs: &[(i64, u32)]) -> Result<Vec<JobExtended>> {
        match self.state.fault {
            None => self.table.extend(worker, lease, runs).await,
            Some(StoreFault::ExtendsNothing) => Ok(vec![JobExtended::Held { cancelled: false }; runs.len()]),
            Some(_) => self.extend_changed(worker, lease, runs).await,
        }
    }

    async fn progress(&self, claim: &JobClaim, percent: Option<i16>, note: Option<&str>) -> Result<bool> {
        let held = self.table.progress(claim, percent, note).await?;
        Ok(held || self.has(StoreFault::ProgressSaysHeld))
    }

    async fn rescue(&self, error: &str, limit: u32) -> Result<RescuedJobs> {
        match self.state.fault {
            Some(StoreFault::RescuesLive) => return self.rescue_all(error).await,
            Some(StoreFault::RescueBelievesClocks) if self.has_far_lease().await? => {
                return Ok(RescuedJobs::default());
            }
            _ => {}
        }
        let mut rescued = self.table.rescue(error, limit).await?;
        let ended = match self.state.fault {
            Some(StoreFault::RescuesForEver) => JobOutcome::Discarded,
            Some(StoreFault::RescuesCancelled) => JobOutcome::Cancelled,
            _ => return Ok(rescued),
        };
        rescued.again += self.table.retry(&in_state(JobState::Finished(ended))).await?;
        Ok(rescued)
    }

    async fn promote(&self, limit: u32) -> Result<DueRows> {
        if self.has(StoreFault::PromotesNothing) {
            return Ok(DueRows::default());
        }
        let mut due = self.table.promote(limit).await?;
        match self.state.fault {
            Some(StoreFault::PromotesTooEarly) => {
                due.moved += self.table.retry(&in_state(JobState::Scheduled)).await?;
            }
            Some(StoreFault::PromoteTellsNoNext) => due.next = None,
            _ => {}
        }
        Ok(due)
    }

    async fn prune(&self, completed: Duration, others: Duration, limit: u32) -> Result<u64> {
        match self.state.fault {
            Some(StoreFault::PrunesYoung) => self.table.prune(Duration::ZERO, Duration::ZERO, limit).await,
            Some(StoreFault::PrunesByOneSpan) => self.table.prune(completed, completed, limit).await,
            _ => self.table.prune(completed, others, limit).await,
        }
    }

    async fn list(&self, filter: &JobFilter, after: i64, limit: u32) -> Result<Vec<StoredJob>> {
        self.state.inserted().await;
        let (mut filter, mut after) = (filter.clone(), after);
        match self.state.fault {
            Some(StoreFault::JobsFromTheFront) => after = i64::MIN,
            Some(StoreFault::ListsAllJobs) => (filter.queue, filter.kind, filter.error) = (None, None, None),
            _ => {}
        }
        self.table.list(&filter, after, limit).await
    }

    async fn retry(&self, filter: &JobFilter) -> Result<u64> {
        match self.state.fault {
            Some(StoreFault::RetriesJobsAsNew) => {
                let finished = self.finished(filter).await?;
                let copied = self.copy(&finished).await?;
                self.table.delete(&of_ids(finished.iter().map(|job| job.id))).await?;
                Ok(copied + self.table.retry(filter).await?)
            }
            Some(StoreFault::RetriesDespiteKeys) => {
                let retried = self.table.retry(filter).await?;
                Ok(retried + self.copy(&self.finished(filter).await?).await?)
            }
            Some(StoreFault::RetriesCompleted) => {
                let mut completed = filter.clone();
                completed.state = completed.state.or(Some(JobState::Finished(JobOutcome::Completed)));
                Ok(self.table.retry(filter).await? + self.table.retry(&completed).await?)
            }
            _ => self.table.retry(filter).await,
        }
    }

    async fn cancel(&self, filter: &JobFilter) -> Result<u64> {
        if !self.has(StoreFault::CancelSparesRunning) {
            return self.table.cancel(filter).await;
        }
        let mut cancelled = 0;
        for state in [JobState::Available, JobState::Scheduled] {
            if filter.state.is_none_or(|wanted| wanted == state) {
                let mut waiting = filter.clone();
                waiting.state = Some(state);
                cancelled += self.table.cancel(&waiting).await?;
            }
        }
        Ok(cancelled)
    }

    async fn discard(&self, filter: &JobFilter, error: &str) -> Result<u64> {
        let error = if self.has(StoreFault::DiscardTellsNothing) { "" } else { error };
        self.table.discard(filter, error).await
    }

    async fn delete(&self, filter: &JobFilter) -> Result<u64> {
        if self.has(StoreFault::DeletesWaiting) {
            self.table.cancel(filter).await?;
        }
        self.table.delete(filter).await
    }

    async fn counts(&self, cap: u32) -> Result<Vec<JobCount>> {
        self.table.counts(if self.has(StoreFault::CountsAllJobs) { 1_000_000 } else { cap }).await
    }

    async fn queues(&self) -> Result<Vec<StoredQueue>> {
        let mut queues = self.table.queues().await?;
        if self.has(StoreFault::ClaimsPausedQueues) {
            let paused = self.state.jobs.paused.lock();
            queues.iter_mut().for_each(|queue| queue.paused = paused.contains(&queue.name));
        }
        Ok(queues)
    }

    async fn set_paused(&self, queue: &str, paused: bool) -> Result<()> {
        if !self.has(StoreFault::ClaimsPausedQueues) {
            return self.table.set_paused(queue, paused).await;
        }
        let mut all = self.state.jobs.paused.lock();
        if paused {
            all.insert(queue.to_owned())
        } else {
            all.remove(queue)
        };
        Ok(())
    }

    async fn oldest_snapshot(&self) -> Result<Option<(Duration, String)>> {
        self.table.oldest_snapshot().await
    }
}
