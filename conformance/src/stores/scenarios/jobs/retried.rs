//! Jobs that people make run again.

use polybus_patterns::store::{JobFilter, JobOutcome, JobState, JobStore};

use super::{JobsUnderTest, claim, delayed, end, filter, find, finished, ids, job, write_and_claim, write_new};
use crate::{
    Outcome, ensure_eq,
    stores::{
        cx::StoreCx,
        scenario::{StoreScenario, store_scenario},
    },
};

pub(super) fn all<T: JobsUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario("jobs/retry", "A finished job that is retried keeps its id and begins again.", retry),
        store_scenario(
            "jobs/retry-completed",
            "Completed jobs are retried where their id or their state is named, and not otherwise.",
            completed,
        ),
        store_scenario("jobs/retry-scheduled", "A scheduled job that is retried runs at once.", scheduled),
    ]
}

async fn retry<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let table = store.jobs();
    for outcome in [JobOutcome::Discarded, JobOutcome::Cancelled] {
        let first = write_and_claim::<T>(&store, job("a")).await?;
        table.progress(&super::run_of(&first), Some(40), Some("half")).await?;
        end::<T>(&store, &first, super::again(0, true)).await?;
        let second = claim::<T>(&store, 1).await?;
        ensure_eq!(second.len(), 1, "jobs claimed once more");
        end::<T>(&store, &second[0], finished(outcome)).await?;
        let before = find::<T>(&store, first.id).await?;
        ensure_eq!(table.retry(&JobFilter::default()).await?, 1, "jobs retried");
        ensure_eq!(table.retry(&JobFilter::default()).await?, 0, "jobs retried once more");
        let waits = find::<T>(&store, first.id).await?;
        ensure_eq!((waits.state, waits.attempt, waits.cancelled), (JobState::Available, 0, false), "it waits");
        ensure_eq!((waits.finished_at, waits.locked_until), (None, None), "its end and lease");
        ensure_eq!((&waits.kind, &waits.data, &waits.head), (&before.kind, &before.data, &before.head), "its words");
        ensure_eq!(waits.max_attempts, before.max_attempts, "its attempts");
        let third = claim::<T>(&store, 1).await?;
        ensure_eq!(
            third.iter().map(|job| (job.id, job.attempt)).collect::<Vec<_>>(),
            [(first.id, 1)],
            "the next claim"
        );
        end::<T>(&store, &third[0], finished(JobOutcome::Completed)).await?;
    }
    Ok(())
}

async fn completed<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let table = store.jobs();
    let claimed = write_and_claim::<T>(&store, job("a")).await?;
    end::<T>(&store, &claimed, finished(JobOutcome::Completed)).await?;
    let of_kind = filter(|filter| filter.kind = Some("a".to_owned()));
    ensure_eq!(table.retry(&JobFilter::default()).await?, 0, "jobs retried by no condition");
    ensure_eq!(table.retry(&of_kind).await?, 0, "jobs retried by kind");
    ensure_eq!(table.retry(&ids(&[claimed.id])).await?, 1, "jobs retried by id");
    let again = claim::<T>(&store, 1).await?;
    ensure_eq!(again.len(), 1, "jobs claimed");
    end::<T>(&store, &again[0], finished(JobOutcome::Completed)).await?;
    let of_state = filter(|filter| filter.state = Some(JobState::Finished(JobOutcome::Completed)));
    ensure_eq!(table.retry(&of_state).await?, 1, "jobs retried by state");
    Ok(())
}

async fn scheduled<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let all = write_new::<T>(&store, &[delayed("a", 600), delayed("b", 600)]).await?;
    ensure_eq!(store.jobs().retry(&ids(&all[..1])).await?, 1, "jobs retried");
    ensure_eq!(super::kinds(&claim::<T>(&store, 10).await?), ["a"], "jobs to claim");
    // A running one is left to its worker.
    ensure_eq!(store.jobs().retry(&ids(&all[..1])).await?, 0, "running jobs retried");
    ensure_eq!(find::<T>(&store, all[0]).await?.state, JobState::Running, "its state");
    Ok(())
}
