//! What people do with jobs: cancel, discard and delete them.

use polybus_patterns::store::{JobFilter, JobOutcome, JobState, JobStore, StoredJob};

use super::{
    JobsUnderTest, again, claim, delayed, end, filter, find, finished, ids, job, stored, write_and_claim, write_new,
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
        store_scenario("jobs/cancel", "Cancelling finishes jobs that wait, and tells those that run.", cancel),
        store_scenario("jobs/discard", "Discarding finishes jobs that wait, with an error; others stay.", discard),
        store_scenario("jobs/delete", "Only finished jobs are deleted.", delete),
        store_scenario("jobs/by-filter", "Administration touches the jobs of its filter and no others.", by_filter),
    ]
}

/// One job in each state: available, scheduled, running, completed, discarded, cancelled.
async fn one_each<T: JobsUnderTest>(store: &StoreOf<T>) -> Outcome<Vec<i64>> {
    let mut all = Vec::new();
    for outcome in [JobOutcome::Completed, JobOutcome::Discarded, JobOutcome::Cancelled] {
        let claimed = write_and_claim::<T>(store, job("done")).await?;
        end::<T>(store, &claimed, finished(outcome)).await?;
        all.push(claimed.id);
    }
    let running = write_and_claim::<T>(store, job("running")).await?.id;
    let waiting = write_new::<T>(store, &[job("available"), delayed("scheduled", 600)]).await?;
    Ok([&waiting[..], &[running], &all].concat())
}

async fn states<T: JobsUnderTest>(store: &StoreOf<T>, all: &[i64]) -> Outcome<Vec<JobState>> {
    let mut states = Vec::new();
    for id in all {
        states.push(find::<T>(store, *id).await?.state);
    }
    Ok(states)
}

const DONE: [JobState; 3] = [
    JobState::Finished(JobOutcome::Completed),
    JobState::Finished(JobOutcome::Discarded),
    JobState::Finished(JobOutcome::Cancelled),
];

async fn cancel<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let all = one_each::<T>(&store).await?;
    ensure_eq!(store.jobs().cancel(&JobFilter::default()).await?, 3, "jobs cancelled");
    let cancelled = JobState::Finished(JobOutcome::Cancelled);
    let wanted = [&[cancelled, cancelled, JobState::Running], &DONE[..]].concat();
    ensure_eq!(states::<T>(&store, &all).await?, wanted, "states");
    ensure!(find::<T>(&store, all[2]).await?.cancelled, "the running one was not told");
    ensure!(find::<T>(&store, all[0]).await?.finished_at.is_some(), "nobody knows when it was finished");
    ensure_eq!(claim::<T>(&store, 10).await?.len(), 0, "jobs to claim");
    Ok(())
}

async fn discard<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let all = one_each::<T>(&store).await?;
    ensure_eq!(store.jobs().discard(&JobFilter::default(), "not wanted").await?, 2, "jobs discarded");
    let discarded = JobState::Finished(JobOutcome::Discarded);
    let wanted = [&[discarded, discarded, JobState::Running], &DONE[..]].concat();
    ensure_eq!(states::<T>(&store, &all).await?, wanted, "states");
    for id in &all[..2] {
        ensure_eq!(find::<T>(&store, *id).await?.last_error.as_deref(), Some("not wanted"), "the error");
    }
    ensure_eq!(find::<T>(&store, all[3]).await?.last_error, None, "the error of one that was completed");
    // Where they are asked for.
    let completed = filter(|filter| filter.state = Some(DONE[0]));
    ensure_eq!(store.jobs().discard(&completed, "it was not done").await?, 1, "completed jobs discarded");
    let undone = find::<T>(&store, all[3]).await?;
    ensure_eq!((undone.state, undone.last_error.as_deref()), (discarded, Some("it was not done")), "it");
    Ok(())
}

async fn delete<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let all = one_each::<T>(&store).await?;
    ensure_eq!(store.jobs().delete(&ids(&all[..3])).await?, 0, "jobs deleted that are not finished");
    ensure_eq!(store.jobs().delete(&ids(&all[3..4])).await?, 1, "jobs deleted by id");
    ensure_eq!(store.jobs().delete(&JobFilter::default()).await?, 2, "jobs deleted");
    let mut left: Vec<i64> = stored::<T>(&store).await?.iter().map(|job| job.id).collect();
    let mut wanted = all[..3].to_vec();
    left.sort_unstable();
    wanted.sort_unstable();
    ensure_eq!(left, wanted, "jobs that are left");
    Ok(())
}

async fn by_filter<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let all = write_new::<T>(&store, &[job("a"), job("b"), job("c"), job("d"), delayed("e", 600)]).await?;
    let table = store.jobs();
    let of_kind = |kind: &str| filter(|filter| filter.kind = Some(kind.to_owned()));
    ensure_eq!(table.cancel(&of_kind("a")).await?, 1, "jobs cancelled");
    ensure_eq!(table.discard(&of_kind("b"), "no").await?, 1, "jobs discarded");
    ensure_eq!(table.cancel(&of_kind("none")).await?, 0, "jobs cancelled of a kind that is not there");
    ensure_eq!(table.cancel(&ids(&[])).await?, 0, "jobs cancelled of no ids");
    let waiting = |job: &&StoredJob| !matches!(job.state, JobState::Finished(_));
    let left = stored::<T>(&store).await?;
    ensure_eq!(
        left.iter().filter(waiting).map(|job| &*job.kind).collect::<Vec<_>>(),
        ["c", "d", "e"],
        "those that wait"
    );
    let of_state = filter(|filter| filter.state = Some(JobState::Scheduled));
    ensure_eq!(table.cancel(&of_state).await?, 1, "scheduled jobs cancelled");
    let claimed = claim::<T>(&store, 10).await?;
    ensure_eq!(super::kinds(&claimed), ["c", "d"], "jobs to claim");
    end::<T>(&store, &claimed[0], again(0, true)).await?;
    ensure_eq!(table.delete(&ids(&all)).await?, 3, "finished jobs deleted");
    Ok(())
}
