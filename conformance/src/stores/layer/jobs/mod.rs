//! Jobs: what is written and finished in a transaction. `table.rs` has the table as workers see it, `settle.rs` the ends
//! of runs and signs of life, and `schedules.rs` the schedules.

mod schedules;
mod settle;
mod table;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use polybus_core::Result;
use polybus_patterns::store::{
    ClaimedJob, InboxStore, JobClaim, JobDue, JobEnd, JobEnding, JobFilter, JobInserted, JobOutcome, JobState,
    JobStore, JobTable, NewJobRow, OutboxStore, ScheduleTable, StoredJob, TransactionLimits, UniqueUntil,
};

use self::{schedules::SuiteSchedules, table::SuiteJobs};
use super::{SuiteStore, SuiteTx};
use crate::stores::fault::StoreFault;

/// What the faults of jobs remember.
#[derive(Default)]
pub(crate) struct JobFaults {
    /// Who has claimed a job last.
    holders: Mutex<HashMap<i64, [u8; 16]>>,
    /// What was claimed last.
    claimed: Mutex<Vec<ClaimedJob>>,
    /// The unique keys, each with the jobs that were written for it.
    keys: Mutex<HashMap<[u8; 16], Vec<i64>>>,
    /// The unique keys that are taken outside.
    taken: Mutex<HashSet<[u8; 16]>>,
    /// The queues that were paused.
    paused: Mutex<HashSet<String>>,
}

/// The jobs with these ids.
fn of_ids(ids: impl IntoIterator<Item = i64>) -> JobFilter {
    let mut filter = JobFilter::default();
    filter.ids = Some(ids.into_iter().collect());
    filter
}

/// The jobs in this state.
fn in_state(state: JobState) -> JobFilter {
    let mut filter = JobFilter::default();
    filter.state = Some(state);
    filter
}

/// All jobs of a filter.
async fn all_of(table: &dyn JobTable, filter: &JobFilter) -> Result<Vec<StoredJob>> {
    table.list(filter, i64::MIN, 100_000).await
}

impl<S: OutboxStore + InboxStore + JobStore> SuiteStore<S> {
    /// A job of the caller's, as a fault changes it.
    fn changed(&self, job: &NewJobRow) -> NewJobRow {
        let mut job = job.clone();
        if self.has(StoreFault::JobsDueAtOnce) {
            job.due = JobDue::After(Duration::ZERO);
        }
        if let Some(unique) = &mut job.unique {
            unique.until = match (self.state.fault, unique.until) {
                (Some(StoreFault::KeyStaysAtStart), UniqueUntil::Started) => UniqueUntil::Done,
                (Some(StoreFault::KeyGoesAtStart), UniqueUntil::Done) => UniqueUntil::Started,
                (Some(StoreFault::KeyStaysAtEnd), UniqueUntil::Done) => UniqueUntil::For(Duration::from_secs(3_600)),
                (Some(StoreFault::KeyGoesAtEnd), UniqueUntil::For(_)) => UniqueUntil::Done,
                (_, until) => until,
            };
        }
        job
    }

    /// Writes jobs with unique keys as the fault has it.
    async fn insert_unique(&self, conn: &mut S::Conn, jobs: &[NewJobRow]) -> Result<Vec<JobInserted>> {
        let memory = &self.state.jobs;
        let mut answers = Vec::new();
        for job in jobs {
            let key = job.unique.map(|unique| unique.key);
            let holder = match key {
                Some(key) if self.has(StoreFault::UniqueOutside) => (!memory.taken.lock().insert(key)).then_some(0),
                Some(key) => {
                    let ids = memory.keys.lock().get(&key).cloned().unwrap_or_default();
                    let jobs = all_of(&*self.inner.jobs(), &of_ids(ids)).await?;
                    jobs.iter().find(|job| !matches!(job.state, JobState::Finished(_))).map(|job| job.id)
                }
                None => None,
            };
            if let Some(id) = holder {
                answers.push(JobInserted { id, is_new: false });
                continue;
            }
            let inserted = self.inner.insert_jobs(conn, &[NewJobRow { unique: None, ..job.clone() }]).await?;
            if let Some(key) = key {
                memory.keys.lock().entry(key).or_default().extend(inserted.iter().map(|inserted| inserted.id));
            }
            answers.extend(inserted);
        }
        Ok(answers)
    }
}

impl<S: OutboxStore + InboxStore + JobStore> JobStore for SuiteStore<S> {
    async fn insert_jobs(&self, conn: &mut S::Conn, jobs: &[NewJobRow]) -> Result<Vec<JobInserted>> {
        let mut jobs: Vec<NewJobRow> = jobs.iter().map(|job| self.changed(job)).collect();
        match self.state.fault {
            Some(StoreFault::WritesJobsOutside) => {
                let answers = jobs.iter().map(|_| JobInserted { id: 0, is_new: true }).collect();
                // In a task: on a database with one writer it has to wait for the caller's transaction.
                let store = self.inner.clone();
                let insert = async move {
                    let mut tx = store.begin().await?;
                    store.insert_jobs(&mut tx, &jobs).await?;
                    S::commit(tx).await
                };
                self.state.inserts.lock().push(tokio::spawn(async move { drop(insert.await) }));
                Ok(answers)
            }
            Some(StoreFault::WritesJobsBackwards) => {
                jobs.reverse();
                let mut answers = self.inner.insert_jobs(conn, &jobs).await?;
                answers.reverse();
                Ok(answers)
            }
            Some(StoreFault::FindsWithoutHolding) => {
                let mut elsewhere = self.inner.begin().await?;
                let answers = self.inner.insert_jobs(&mut elsewhere, &jobs).await?;
                if answers.iter().any(|answer| answer.is_new) {
                    drop(elsewhere);
                    return self.inner.insert_jobs(conn, &jobs).await;
                }
                // Nothing was written. What was locked is free once this has answered.
                S::commit(elsewhere).await?;
                Ok(answers)
            }
            Some(StoreFault::UniqueInTwoSteps | StoreFault::UniqueOutside) => self.insert_unique(conn, &jobs).await,
            _ => self.inner.insert_jobs(conn, &jobs).await,
        }
    }

    async fn begin_finished(&self, claim: &JobClaim, limits: &TransactionLimits) -> Result<Option<SuiteTx<S>>> {
        self.state.troubles.check()?;
        if self.has(StoreFault::FinishesAfterwards) {
            let mut tx = SuiteTx::new(self, self.inner.begin().await?);
            let (table, worker) = (self.inner.jobs(), claim.worker);
            let how = JobEnd::Finished { outcome: JobOutcome::Completed, result: None, error: None };
            let ending = JobEnding { id: claim.id, attempt: claim.attempt, how };
            tx.late_finish = Some(Box::pin(async move { table.settle(worker, &[ending]).await.map(drop) }));
            return Ok(Some(tx));
        }
        let tx = match (self.inner.begin_finished(claim, limits).await?, self.state.fault) {
            (Some(tx), Some(StoreFault::FinishesBefore)) => {
                S::commit(tx).await?;
                self.inner.begin().await?
            }
            (Some(tx), _) => tx,
            (None, Some(StoreFault::FinishesLostClaims)) => self.inner.begin().await?,
            (None, _) => return Ok(None),
        };
        Ok(Some(SuiteTx::new(self, tx)))
    }

    async fn keep_result(&self, conn: &mut S::Conn, claim: &JobClaim, result: &str) -> Result<()> {
        match self.state.fault {
            Some(StoreFault::DropsResults | StoreFault::FinishesAfterwards) => Ok(()),
            _ => self.inner.keep_result(conn, claim, result).await,
        }
    }

    async fn is_finished(&self, conn: &mut S::Conn, claim: &JobClaim) -> Result<bool> {
        match self.state.fault {
            Some(StoreFault::AlwaysFinished | StoreFault::FinishesAfterwards | StoreFault::FinishesLostClaims) => {
                Ok(true)
            }
            _ => self.inner.is_finished(conn, claim).await,
        }
    }

    fn commit_proves_finish(tx: &SuiteTx<S>) -> bool {
        tx.late_finish.is_none() && S::commit_proves_finish(tx.inner())
    }

    fn jobs(&self) -> Arc<dyn JobTable> {
        Arc::new(SuiteJobs { store: self.inner.clone(), table: self.inner.jobs(), state: self.state.clone() })
    }

    fn schedules(&self) -> Arc<dyn ScheduleTable> {
        let (store, table) = (self.inner.clone(), self.inner.schedules());
        Arc::new(SuiteSchedules { store, table, state: self.state.clone() })
    }
}
