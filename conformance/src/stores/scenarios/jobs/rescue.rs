//! Jobs whose worker was lost.

use polybus_patterns::store::{JobOutcome, JobState, JobStore, NewJobRow, RescuedJobs};

use super::{JobsUnderTest, WORKER, again, claim, end, find, ids, job, write_and_claim, write_new};
use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        cx::StoreCx,
        scenario::{StoreScenario, store_scenario},
    },
};

pub(super) fn all<T: JobsUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario("jobs/rescue", "Jobs run again once their lease has run out, and not before.", rescue)
            .needs_clock(),
        store_scenario("jobs/rescue-last-attempt", "At its last attempt a job is discarded.", last_attempt)
            .needs_clock(),
        store_scenario("jobs/rescue-cancelled", "A job that was cancelled is finished as cancelled.", cancelled)
            .needs_clock(),
        store_scenario("jobs/rescue-mixed", "One rescue tells apart what becomes of its jobs.", mixed).needs_clock(),
        store_scenario(
            "jobs/rescue-clock-set-back",
            "A lease from before the clock was set back is over; one of now is not.",
            clock_set_back,
        )
        .needs_clock(),
        store_scenario("jobs/rescue-limit", "A rescue takes no more jobs than it was asked for.", limit).needs_clock(),
    ]
}

const ERROR: &str = "its worker was lost";

fn so_many_again(again: u64) -> RescuedJobs {
    RescuedJobs { again, ..RescuedJobs::default() }
}

async fn rescue<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let claimed = write_and_claim::<T>(&store, job("a")).await?;
    write_new::<T>(&store, &[job("waits")]).await?;
    ensure_eq!(store.jobs().rescue(ERROR, 10).await?, so_many_again(0), "jobs rescued at once");
    cx.move_clock(&store, 30);
    ensure_eq!(store.jobs().rescue(ERROR, 10).await?, so_many_again(0), "jobs rescued within the lease");
    cx.move_clock(&store, 3_600);
    ensure_eq!(store.jobs().rescue(ERROR, 10).await?, so_many_again(1), "jobs rescued after the lease");
    ensure_eq!(store.jobs().rescue(ERROR, 10).await?, so_many_again(0), "jobs rescued once more");
    let stored = find::<T>(&store, claimed.id).await?;
    ensure_eq!((stored.state, stored.locked_until), (JobState::Available, None), "it waits");
    ensure_eq!((stored.attempt, stored.last_error.as_deref()), (1, Some(ERROR)), "its attempt and error");
    let again = claim::<T>(&store, 1).await?;
    let again: Vec<_> = again.iter().map(|job| (job.id, job.attempt)).collect();
    ensure_eq!(again, [(claimed.id, 2)], "the next claim, at its old place");
    Ok(())
}

async fn last_attempt<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let id = write_new::<T>(&store, &[NewJobRow { max_attempts: 3, ..job("a") }]).await?[0];
    for attempt in 1..=3 {
        let claimed = claim::<T>(&store, 1).await?;
        ensure_eq!(claimed.first().map(|job| job.attempt), Some(attempt), "the attempt");
        cx.move_clock(&store, i64::from(attempt) * 3_600);
        let wanted = match attempt {
            3 => RescuedJobs { discarded: 1, ..RescuedJobs::default() },
            _ => so_many_again(1),
        };
        ensure_eq!(store.jobs().rescue(ERROR, 10).await?, wanted, "jobs rescued at attempt {attempt}");
    }
    ensure_eq!(claim::<T>(&store, 1).await?.len(), 0, "jobs to claim");
    let done = find::<T>(&store, id).await?;
    ensure_eq!(done.state, JobState::Finished(JobOutcome::Discarded), "its state");
    ensure_eq!((done.attempt, done.last_error.as_deref()), (3, Some(ERROR)), "its attempt and error");
    ensure!(done.finished_at.is_some(), "nobody knows when it was finished");
    Ok(())
}

async fn cancelled<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let claimed = write_and_claim::<T>(&store, job("a")).await?;
    store.jobs().cancel(&ids(&[claimed.id])).await?;
    ensure_eq!(store.jobs().rescue(ERROR, 10).await?, so_many_again(0), "jobs rescued within the lease");
    cx.move_clock(&store, 3_600);
    let wanted = RescuedJobs { cancelled: 1, ..RescuedJobs::default() };
    ensure_eq!(store.jobs().rescue(ERROR, 10).await?, wanted, "jobs rescued");
    let state = find::<T>(&store, claimed.id).await?.state;
    ensure_eq!(state, JobState::Finished(JobOutcome::Cancelled), "its state");
    Ok(())
}

async fn mixed<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let jobs: Vec<NewJobRow> =
        (0..30).map(|n| NewJobRow { max_attempts: if n % 3 == 1 { 1 } else { 2 }, ..job(n.to_string()) }).collect();
    let all = write_new::<T>(&store, &jobs).await?;
    ensure_eq!(claim::<T>(&store, 30).await?.len(), 30, "jobs claimed");
    let cancelled: Vec<i64> = all.iter().skip(2).step_by(3).copied().collect();
    ensure_eq!(store.jobs().cancel(&ids(&cancelled)).await?, 10, "jobs cancelled");
    cx.move_clock(&store, 3_600);
    let rescued = store.jobs().rescue(ERROR, 100).await?;
    ensure_eq!(rescued, RescuedJobs { again: 10, discarded: 10, cancelled: 10 }, "jobs rescued");
    for (n, id) in all.iter().enumerate() {
        let wanted = match n % 3 {
            0 => JobState::Available,
            1 => JobState::Finished(JobOutcome::Discarded),
            _ => JobState::Finished(JobOutcome::Cancelled),
        };
        ensure_eq!(find::<T>(&store, *id).await?.state, wanted, "the state of job {n}");
    }
    Ok(())
}

async fn clock_set_back<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    cx.move_clock(&store, 24 * 3_600);
    let far = write_and_claim::<T>(&store, job("far")).await?;
    cx.move_clock(&store, 0);
    let near = write_and_claim::<T>(&store, job("near")).await?;
    ensure_eq!(store.jobs().rescue(ERROR, 10).await?, so_many_again(1), "jobs rescued");
    ensure_eq!(find::<T>(&store, far.id).await?.state, JobState::Available, "the one from before");
    ensure_eq!(find::<T>(&store, near.id).await?.state, JobState::Running, "the one of now");
    // Its own term, and not that of another claim, says how far ahead an end may be.
    let runs = [(near.id, near.attempt)];
    store.jobs().extend(WORKER, std::time::Duration::from_secs(7_200), &runs).await?;
    ensure_eq!(store.jobs().rescue(ERROR, 10).await?, so_many_again(0), "jobs rescued after a long lease was taken");
    end::<T>(&store, &near, again(0, true)).await
}

async fn limit<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let jobs: Vec<NewJobRow> = (0..25).map(|n| job(n.to_string())).collect();
    write_new::<T>(&store, &jobs).await?;
    claim::<T>(&store, 25).await?;
    cx.move_clock(&store, 3_600);
    for wanted in [10, 10, 5, 0] {
        ensure_eq!(store.jobs().rescue(ERROR, 10).await?, so_many_again(wanted), "jobs rescued, 10 at a time");
    }
    Ok(())
}
