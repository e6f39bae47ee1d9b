//! Background jobs and schedules: each job is claimed by one worker at a time, and whoever lost it settles nothing.

mod administration;
mod claims;
mod counted;
mod data;
mod dropped;
mod fences;
mod finish;
mod leases;
mod lists;
mod locked;
mod once;
mod pruned;
mod rescue;
mod retried;
mod scheduled;
mod schedules;
mod settle;
mod unique;
mod writing;

use std::time::Duration;

use polybus_patterns::store::{
    ClaimedJob, JobClaim, JobDue, JobEnd, JobEnding, JobFilter, JobInserted, JobOutcome, JobSettled, JobStore,
    JobTable, NewJobRow, Store, StoredJob, TransactionLimits, UniqueJob, UniqueUntil,
};

use crate::{
    Outcome, ensure_eq, fail,
    stores::{
        cx::{StoreOf, TxOf},
        scenario::StoreScenario,
        target::JobsUnderTest,
    },
};

pub(super) fn all<T: JobsUnderTest>() -> Vec<StoreScenario<T>> {
    let mut all = writing::all();
    all.extend(data::all());
    all.extend(claims::all());
    all.extend(settle::all());
    all.extend(fences::all());
    all.extend(leases::all());
    all.extend(rescue::all());
    all.extend(locked::all());
    all.extend(scheduled::all());
    all.extend(unique::all());
    all.extend(once::all());
    all.extend(finish::all());
    all.extend(dropped::all());
    all.extend(lists::all());
    all.extend(counted::all());
    all.extend(administration::all());
    all.extend(retried::all());
    all.extend(pruned::all());
    all.extend(schedules::all());
    all
}

/// Two workers.
const WORKER: [u8; 16] = [1; 16];
const OTHER: [u8; 16] = [2; 16];
/// The lease of claims. Clocks are moved past it.
const LEASE: Duration = Duration::from_secs(60);

/// A job of the queue `q` that may run at once. Its kind tells it from others.
fn job(kind: impl Into<String>) -> NewJobRow {
    let kind = kind.into();
    NewJobRow {
        queue: "q".to_owned(),
        priority: 0,
        due: JobDue::After(Duration::ZERO),
        max_attempts: 5,
        head: "{}".to_owned(),
        data: kind.clone().into(),
        unique: None,
        schedule: None,
        kind,
    }
}

/// A job with a unique key.
fn unique(kind: &str, key: u8, until: UniqueUntil) -> NewJobRow {
    NewJobRow { unique: Some(UniqueJob { key: [key; 16], until }), ..job(kind) }
}

/// A job that may run after so many seconds.
fn delayed(kind: &str, seconds: u64) -> NewJobRow {
    NewJobRow { due: JobDue::After(Duration::from_secs(seconds)), ..job(kind) }
}

/// Writes jobs in a transaction of their own.
async fn write<T: JobsUnderTest>(store: &StoreOf<T>, jobs: &[NewJobRow]) -> Outcome<Vec<JobInserted>> {
    let mut tx = store.begin().await?;
    let written = store.insert_jobs(&mut tx, jobs).await?;
    StoreOf::<T>::commit(tx).await?;
    ensure_eq!(written.len(), jobs.len(), "answers");
    Ok(written)
}

/// Writes jobs that are all new, and answers their ids.
async fn write_new<T: JobsUnderTest>(store: &StoreOf<T>, jobs: &[NewJobRow]) -> Outcome<Vec<i64>> {
    let written = write::<T>(store, jobs).await?;
    ensure_eq!(written.iter().filter(|job| !job.is_new).count(), 0, "jobs that were not written");
    Ok(written.iter().map(|job| job.id).collect())
}

/// Writes a job and claims it for [`WORKER`]. The queue must be empty.
async fn write_and_claim<T: JobsUnderTest>(store: &StoreOf<T>, job: NewJobRow) -> Outcome<ClaimedJob> {
    let id = write_new::<T>(store, &[job]).await?[0];
    let claimed = claim::<T>(store, 1).await?;
    match claimed.into_iter().next() {
        Some(claimed) if claimed.id == id => Ok(claimed),
        other => fail!("the job {id} was to be claimed, and {:?} was", other.map(|job| job.id)),
    }
}

/// Claims jobs of the queue `q` for [`WORKER`].
async fn claim<T: JobsUnderTest>(store: &StoreOf<T>, limit: u32) -> Outcome<Vec<ClaimedJob>> {
    Ok(store.jobs().claim("q", WORKER, LEASE, limit).await?)
}

fn kinds(claimed: &[ClaimedJob]) -> Vec<&str> {
    claimed.iter().map(|job| &*job.kind).collect()
}

/// The run of a job that [`WORKER`] has claimed.
fn run_of(job: &ClaimedJob) -> JobClaim {
    JobClaim { id: job.id, attempt: job.attempt, worker: WORKER }
}

fn ending(job: &ClaimedJob, how: JobEnd) -> JobEnding {
    JobEnding { id: job.id, attempt: job.attempt, how }
}

fn finished(outcome: JobOutcome) -> JobEnd {
    JobEnd::Finished { outcome, result: None, error: None }
}

fn again(seconds: u64, counts: bool) -> JobEnd {
    JobEnd::Again { delay: Duration::from_secs(seconds), counts, error: None }
}

/// Writes the end of a run of [`WORKER`].
async fn settle<T: JobsUnderTest>(store: &StoreOf<T>, job: &ClaimedJob, how: JobEnd) -> Outcome<JobSettled> {
    let settled = store.jobs().settle(WORKER, &[ending(job, how)]).await?;
    ensure_eq!(settled.len(), 1, "answers");
    Ok(settled[0])
}

/// The same, and it must be written.
async fn end<T: JobsUnderTest>(store: &StoreOf<T>, job: &ClaimedJob, how: JobEnd) -> Outcome {
    ensure_eq!(settle::<T>(store, job, how).await?, JobSettled::Written, "the answer to the end of {}", job.kind);
    Ok(())
}

fn ids(ids: &[i64]) -> JobFilter {
    filter(|filter| filter.ids = Some(ids.to_vec()))
}

fn filter(change: impl FnOnce(&mut JobFilter)) -> JobFilter {
    let mut filter = JobFilter::default();
    change(&mut filter);
    filter
}

/// All jobs, by id.
async fn stored<T: JobsUnderTest>(store: &StoreOf<T>) -> Outcome<Vec<StoredJob>> {
    listed(&*store.jobs(), &JobFilter::default()).await
}

async fn listed(table: &dyn JobTable, filter: &JobFilter) -> Outcome<Vec<StoredJob>> {
    Ok(table.list(filter, i64::MIN, 10_000).await?)
}

/// A job as it is stored.
async fn find<T: JobsUnderTest>(store: &StoreOf<T>, id: i64) -> Outcome<StoredJob> {
    match listed(&*store.jobs(), &ids(&[id])).await?.pop() {
        Some(job) => Ok(job),
        None => fail!("there is no job {id}"),
    }
}

/// Begins the transaction in which a job is finished, which holds its row.
async fn begin_finished<T: JobsUnderTest>(store: &StoreOf<T>, claim: &JobClaim) -> Outcome<Option<TxOf<T>>> {
    let limits = TransactionLimits::new(Duration::from_secs(5), None);
    Ok(store.begin_finished(claim, &limits).await?)
}

/// The same of a claim that is held.
async fn finishing<T: JobsUnderTest>(store: &StoreOf<T>, job: &ClaimedJob) -> Outcome<TxOf<T>> {
    match begin_finished::<T>(store, &run_of(job)).await? {
        Some(tx) => Ok(tx),
        None => fail!("the claim of {} was lost", job.kind),
    }
}
