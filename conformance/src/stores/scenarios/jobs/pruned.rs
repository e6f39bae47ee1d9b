//! Finished jobs go by their age.

use std::time::Duration;

use polybus_patterns::store::{JobOutcome, JobStore, NewJobRow, UniqueUntil};

use super::{JobsUnderTest, claim, delayed, end, finished, job, stored, unique, write, write_and_claim, write_new};
use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        cx::StoreCx,
        scenario::{StoreScenario, store_scenario},
    },
};

pub(super) fn all<T: JobsUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario("jobs/prune", "Completed jobs go by one age, others by another, and the rest stays.", ages)
            .needs_clock(),
        store_scenario("jobs/prune-limit", "One call deletes no more than it was asked for.", limit).needs_clock(),
        store_scenario("jobs/prune-keys", "Unique keys whose time is over go as well, and no others.", keys)
            .needs_clock(),
    ]
}

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

async fn ages<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    for outcome in [JobOutcome::Completed, JobOutcome::Discarded, JobOutcome::Cancelled] {
        let claimed = write_and_claim::<T>(&store, job(format!("{outcome:?}"))).await?;
        end::<T>(&store, &claimed, finished(outcome)).await?;
    }
    write_and_claim::<T>(&store, job("running")).await?;
    write_new::<T>(&store, &[job("available"), delayed("scheduled", 600)]).await?;
    for (seconds, gone, left) in [(0, 0, 6), (1_800, 0, 6), (7_200, 1, 5), (20 * 3_600, 0, 5), (30 * 3_600, 2, 3)] {
        cx.move_clock(&store, seconds);
        ensure_eq!(store.jobs().prune(HOUR, DAY, 100).await?, gone, "rows deleted after {seconds} s");
        let kinds: Vec<String> = stored::<T>(&store).await?.into_iter().map(|job| job.kind).collect();
        ensure_eq!(kinds.len(), left, "jobs left after {seconds} s: {kinds:?}");
        ensure!(left == 6 || !kinds.contains(&"Completed".to_owned()), "the completed one is there after {seconds} s");
    }
    Ok(())
}

async fn limit<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let jobs: Vec<NewJobRow> = (0..25).map(|n| job(n.to_string())).collect();
    write_new::<T>(&store, &jobs).await?;
    for job in claim::<T>(&store, 25).await? {
        end::<T>(&store, &job, finished(JobOutcome::Completed)).await?;
    }
    cx.move_clock(&store, 7_200);
    for wanted in [10, 10, 5, 0] {
        ensure_eq!(store.jobs().prune(HOUR, DAY, 10).await?, wanted, "jobs deleted, 10 at a time");
    }
    Ok(())
}

async fn keys<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let of = |key: u8, seconds: u64| unique("a", key, UniqueUntil::For(Duration::from_secs(seconds)));
    write_new::<T>(&store, &[of(1, 600), of(2, 600), of(3, 90_000), unique("b", 4, UniqueUntil::Done)]).await?;
    ensure_eq!(store.jobs().prune(HOUR, DAY, 100).await?, 0, "rows deleted at once");
    cx.move_clock(&store, 7_200);
    ensure_eq!(store.jobs().prune(HOUR, DAY, 1).await?, 1, "keys deleted, one at a time");
    ensure_eq!(store.jobs().prune(HOUR, DAY, 100).await?, 1, "keys deleted");
    let again = write::<T>(&store, &[of(1, 600), of(3, 600), unique("b", 4, UniqueUntil::Done)]).await?;
    ensure_eq!(again.iter().map(|job| job.is_new).collect::<Vec<_>>(), [true, false, false], "what is new then");
    Ok(())
}
