//! Whoever has lost a job changes nothing about it.

use std::time::Duration;

use polybus_patterns::store::{ClaimedJob, JobClaim, JobEnd, JobEnding, JobExtended, JobOutcome, JobSettled, JobStore};

use super::{
    JobsUnderTest, LEASE, OTHER, WORKER, again, begin_finished, claim, end, find, finished, job, run_of,
    write_and_claim,
};
use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        cx::{StoreCx, StoreOf},
        scenario::{StoreScenario, store_scenario},
    },
};

pub(super) fn all<T: JobsUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario("jobs/fence-worker", "Another worker changes nothing about a running job.", another_worker),
        store_scenario("jobs/fence-attempt", "A run of an attempt before changes nothing about a job.", attempt_before),
        store_scenario(
            "jobs/fence-rescued",
            "A worker whose lease ran out changes nothing about its job once that was rescued.",
            rescued,
        )
        .needs_clock(),
        store_scenario("jobs/fence-finished", "A job that is finished is not finished again.", twice),
        store_scenario("jobs/fence-unknown", "A job that is not there is lost.", unknown),
    ]
}

/// Tries all that a worker can do, which must say that the claim was lost, and change nothing.
async fn is_lost<T: JobsUnderTest>(store: &StoreOf<T>, claim: JobClaim, what: &str) -> Outcome {
    let (table, before) = (store.jobs(), find::<T>(store, claim.id).await?);
    let result = Some("\"of the lost run\"".to_owned());
    let ends = [
        JobEnd::Finished { outcome: JobOutcome::Completed, result, error: None },
        finished(JobOutcome::Discarded),
        again(0, true),
        again(600, false),
    ];
    for how in ends {
        let settled =
            table.settle(claim.worker, &[JobEnding { id: claim.id, attempt: claim.attempt, how: how.clone() }]).await?;
        ensure_eq!(settled, [JobSettled::Lost], "{what}: the answer to {how:?}");
        ensure_eq!(find::<T>(store, claim.id).await?, before, "{what}: the job after {how:?}");
    }
    let extended = table.extend(claim.worker, LEASE * 5, &[(claim.id, claim.attempt)]).await?;
    ensure_eq!(extended, [JobExtended::Lost], "{what}: the answer to a sign of life");
    ensure!(!table.progress(&claim, Some(50), Some("half")).await?, "{what}: progress is said to be written");
    ensure!(begin_finished::<T>(store, &claim).await?.is_none(), "{what}: a transaction was begun");
    ensure_eq!(find::<T>(store, claim.id).await?, before, "{what}: the job after all");
    Ok(())
}

async fn another_worker<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let claimed = write_and_claim::<T>(&store, job("a")).await?;
    is_lost::<T>(&store, JobClaim { worker: OTHER, ..run_of(&claimed) }, "another worker").await?;
    is_lost::<T>(&store, JobClaim { worker: [0; 16], ..run_of(&claimed) }, "a worker of zeros").await?;
    end::<T>(&store, &claimed, finished(JobOutcome::Completed)).await
}

/// Claims the job once more.
async fn claim_again<T: JobsUnderTest>(store: &StoreOf<T>) -> Outcome<ClaimedJob> {
    let mut claimed = claim::<T>(store, 1).await?;
    ensure_eq!(claimed.len(), 1, "jobs claimed");
    Ok(claimed.remove(0))
}

async fn attempt_before<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let first = write_and_claim::<T>(&store, job("a")).await?;
    end::<T>(&store, &first, again(0, true)).await?;
    // The same worker claims it, as it does where it is the only one.
    let second = claim_again::<T>(&store).await?;
    is_lost::<T>(&store, run_of(&first), "the attempt before").await?;
    is_lost::<T>(&store, JobClaim { attempt: 3, ..run_of(&first) }, "an attempt to come").await?;
    end::<T>(&store, &second, finished(JobOutcome::Completed)).await
}

async fn rescued<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let first = write_and_claim::<T>(&store, job("a")).await?;
    cx.move_clock(&store, 3_600);
    ensure_eq!(store.jobs().rescue("its worker was lost", 10).await?.again, 1, "jobs rescued");
    is_lost::<T>(&store, run_of(&first), "while it waits").await?;
    let second = store.jobs().claim("q", OTHER, LEASE, 1).await?;
    ensure_eq!(second.iter().map(|job| (job.id, job.attempt)).collect::<Vec<_>>(), [(first.id, 2)], "the next claim");
    is_lost::<T>(&store, run_of(&first), "while another one runs it").await?;
    let how = JobEnd::Finished { outcome: JobOutcome::Completed, result: Some("2".to_owned()), error: None };
    let settled = store.jobs().settle(OTHER, &[JobEnding { id: first.id, attempt: 2, how }]).await?;
    ensure_eq!(settled, [JobSettled::Written], "the end of the second run");
    is_lost::<T>(&store, run_of(&first), "once another one has completed it").await
}

async fn twice<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    for outcome in [JobOutcome::Completed, JobOutcome::Discarded, JobOutcome::Cancelled] {
        let claimed = write_and_claim::<T>(&store, job("a")).await?;
        let how = JobEnd::Finished { outcome, result: Some("1".to_owned()), error: Some("none".to_owned()) };
        end::<T>(&store, &claimed, how).await?;
        is_lost::<T>(&store, run_of(&claimed), "a job that is finished").await?;
    }
    // Twice in one call.
    let claimed = write_and_claim::<T>(&store, job("b")).await?;
    let both = [JobOutcome::Completed, JobOutcome::Discarded].map(|outcome| super::ending(&claimed, finished(outcome)));
    let mut settled = store.jobs().settle(WORKER, &both).await?;
    settled.sort_by_key(|settled| *settled == JobSettled::Written);
    ensure_eq!(settled, [JobSettled::Lost, JobSettled::Written], "the answers to two ends of one run");
    Ok(())
}

async fn unknown<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let claimed = write_and_claim::<T>(&store, job("a")).await?;
    let (table, none) = (store.jobs(), JobClaim { id: claimed.id + 1_000, ..run_of(&claimed) });
    let how = finished(JobOutcome::Completed);
    let endings = [JobEnding { id: none.id, attempt: 1, how: how.clone() }, super::ending(&claimed, how)];
    let runs = [(none.id, 1), (claimed.id, 1)];
    let held = JobExtended::Held { cancelled: false };
    ensure_eq!(table.extend(WORKER, LEASE, &runs).await?, [JobExtended::Lost, held], "signs of life");
    ensure!(!table.progress(&none, Some(1), None).await?, "the progress of no job is said to be written");
    ensure!(begin_finished::<T>(&store, &none).await?.is_none(), "a transaction was begun for no job");
    let settled = cx.within("the ends are answered", table.settle(WORKER, &endings)).await??;
    ensure_eq!(settled, [JobSettled::Lost, JobSettled::Written], "ends");
    ensure_eq!(table.extend(WORKER, Duration::ZERO, &[]).await?.len(), 0, "answers to no signs of life");
    Ok(())
}
