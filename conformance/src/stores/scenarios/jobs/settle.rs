//! The ends of runs.

use std::time::Duration;

use polybus_patterns::store::{JobEnd, JobEnding, JobOutcome, JobSettled, JobState, JobStore, NewJobRow};

use super::{
    JobsUnderTest, WORKER, again, claim, end, ending, find, finished, ids, job, kinds, write_and_claim, write_new,
};
use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        cx::StoreCx,
        scenario::{StoreScenario, store_scenario},
    },
};

pub(super) fn all<T: JobsUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario("jobs/ends", "A job that is finished keeps its id, its result and its error.", ends),
        store_scenario(
            "jobs/again",
            "A job runs again under the next attempt, or under the same one if it did not count.",
            runs_again,
        ),
        store_scenario("jobs/again-later", "A job that is to run again later is scheduled until then.", later)
            .needs_clock(),
        store_scenario("jobs/again-at-once", "Without a delay a job keeps its place in the queue.", at_once),
        store_scenario(
            "jobs/again-cancelled",
            "A job that was cancelled while it ran is finished as cancelled in place of running again.",
            cancelled,
        ),
        store_scenario("jobs/settle-many", "The ends of a hundred runs are answered one by one.", many),
    ]
}

async fn ends<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    for outcome in [JobOutcome::Completed, JobOutcome::Discarded, JobOutcome::Cancelled] {
        for (result, error) in [(Some(r#"{"n":1}"#), None), (None, Some("it is broken")), (None, None)] {
            let what = format!("{outcome:?} with {result:?} and {error:?}");
            let claimed = write_and_claim::<T>(&store, job("a")).await?;
            let (result, error) = (result.map(str::to_owned), error.map(str::to_owned));
            let how = JobEnd::Finished { outcome, result: result.clone(), error: error.clone() };
            end::<T>(&store, &claimed, how).await?;
            ensure_eq!(claim::<T>(&store, 1).await?.len(), 0, "jobs to claim after {what}");
            let done = find::<T>(&store, claimed.id).await?;
            ensure_eq!(done.state, JobState::Finished(outcome), "the state of one that is {what}");
            ensure_eq!((&done.result, &done.last_error), (&result, &error), "what is kept of one that is {what}");
            ensure_eq!((done.attempt, done.locked_until), (1, None), "the attempt and lease of one that is {what}");
            ensure!(
                done.finished_at.is_some_and(|at| at >= done.created_at && at >= done.run_at),
                "it was finished at {:?}, and written at {}",
                done.finished_at,
                done.created_at
            );
        }
    }
    Ok(())
}

async fn runs_again<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let id = write_new::<T>(&store, &[job("a")]).await?[0];
    // Whether the attempt counts, its error, and the next attempt with the error that is kept.
    let runs = [
        (true, Some("one"), 2, Some("one")),
        (false, None, 2, Some("one")),
        (false, Some("two"), 2, Some("two")),
        (true, None, 3, Some("two")),
    ];
    for (counts, error, next, kept) in runs {
        let claimed = claim::<T>(&store, 1).await?;
        ensure_eq!(claimed.len(), 1, "jobs claimed");
        let how = JobEnd::Again { delay: Duration::ZERO, counts, error: error.map(str::to_owned) };
        end::<T>(&store, &claimed[0], how).await?;
        let waits = find::<T>(&store, id).await?;
        ensure_eq!((waits.state, waits.locked_until), (JobState::Available, None), "it waits again");
        ensure_eq!(waits.last_error.as_deref(), kept, "its last error");
        ensure_eq!(waits.attempt + 1, next, "its next attempt, where the last one counts: {counts}");
    }
    let claimed = claim::<T>(&store, 1).await?;
    ensure_eq!(claimed.iter().map(|job| (job.id, job.attempt)).collect::<Vec<_>>(), [(id, 3)], "the last claim");
    Ok(())
}

async fn later<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let claimed = write_and_claim::<T>(&store, job("a")).await?;
    let before = find::<T>(&store, claimed.id).await?;
    end::<T>(&store, &claimed, again(600, true)).await?;
    let waits = find::<T>(&store, claimed.id).await?;
    ensure_eq!((waits.state, waits.locked_until), (JobState::Scheduled, None), "it is scheduled");
    let moved = waits.run_at - before.run_at;
    ensure!(moved >= 600_000_000, "its time was moved by {moved} us");
    cx.move_clock(&store, 500);
    ensure_eq!(store.jobs().promote(10).await?.moved, 0, "jobs whose time has come, too early");
    ensure_eq!(claim::<T>(&store, 1).await?.len(), 0, "jobs to claim, too early");
    cx.move_clock(&store, 1_200);
    ensure_eq!(store.jobs().promote(10).await?.moved, 1, "jobs whose time has come");
    ensure_eq!(claim::<T>(&store, 1).await?.first().map(|job| job.attempt), Some(2), "its attempt");
    Ok(())
}

async fn at_once<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    write_new::<T>(&store, &[job("a"), job("b"), job("c")]).await?;
    for counts in [true, false, true] {
        let claimed = claim::<T>(&store, 1).await?;
        ensure_eq!(kinds(&claimed), ["a"], "the first of the queue");
        let before = find::<T>(&store, claimed[0].id).await?.run_at;
        end::<T>(&store, &claimed[0], again(0, counts)).await?;
        ensure_eq!(find::<T>(&store, claimed[0].id).await?.run_at, before, "its time");
    }
    ensure_eq!(kinds(&claim::<T>(&store, 3).await?), ["a", "b", "c"], "the queue");
    Ok(())
}

async fn cancelled<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    for how in [again(0, true), again(0, false), again(600, true)] {
        let claimed = write_and_claim::<T>(&store, job("a")).await?;
        ensure_eq!(store.jobs().cancel(&ids(&[claimed.id])).await?, 1, "jobs cancelled");
        ensure!(find::<T>(&store, claimed.id).await?.cancelled, "nobody sees that it was cancelled");
        end::<T>(&store, &claimed, how.clone()).await?;
        let state = find::<T>(&store, claimed.id).await?.state;
        ensure_eq!(state, JobState::Finished(JobOutcome::Cancelled), "the state after {how:?}");
        ensure_eq!(claim::<T>(&store, 1).await?.len(), 0, "jobs to claim");
    }
    // What it has done is done.
    let claimed = write_and_claim::<T>(&store, job("a")).await?;
    store.jobs().cancel(&ids(&[claimed.id])).await?;
    end::<T>(&store, &claimed, finished(JobOutcome::Completed)).await?;
    let state = find::<T>(&store, claimed.id).await?.state;
    ensure_eq!(state, JobState::Finished(JobOutcome::Completed), "the state of one that was completed nevertheless");
    Ok(())
}

async fn many<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let jobs: Vec<NewJobRow> = (0..100).map(|n| job(n.to_string())).collect();
    write_new::<T>(&store, &jobs).await?;
    let claimed = claim::<T>(&store, 100).await?;
    ensure_eq!(claimed.len(), 100, "jobs claimed");
    let mut endings: Vec<JobEnding> = Vec::new();
    for (n, job) in claimed.iter().enumerate() {
        let how = match n % 5 {
            0 => JobEnd::Finished { outcome: JobOutcome::Completed, result: Some(n.to_string()), error: None },
            1 => JobEnd::Finished { outcome: JobOutcome::Discarded, result: None, error: Some(n.to_string()) },
            2 => JobEnd::Again { delay: Duration::ZERO, counts: true, error: Some(n.to_string()) },
            3 => JobEnd::Again { delay: Duration::from_secs(600), counts: false, error: None },
            // Of another attempt.
            _ => {
                endings.push(JobEnding { attempt: 2, ..ending(job, finished(JobOutcome::Completed)) });
                continue;
            }
        };
        endings.push(ending(job, how));
    }
    // Not in the order of their ids.
    endings.reverse();
    let settled = store.jobs().settle(WORKER, &endings).await?;
    let wanted: Vec<JobSettled> =
        (0..100).rev().map(|n| if n % 5 == 4 { JobSettled::Lost } else { JobSettled::Written }).collect();
    ensure_eq!(settled, wanted, "the answers");
    for (n, claimed) in claimed.iter().enumerate() {
        let stored = find::<T>(&store, claimed.id).await?;
        let text = Some(n.to_string());
        let (state, attempt, result, error) = match n % 5 {
            0 => (JobState::Finished(JobOutcome::Completed), 1, text, None),
            1 => (JobState::Finished(JobOutcome::Discarded), 1, None, text),
            2 => (JobState::Available, 1, None, text),
            3 => (JobState::Scheduled, 0, None, None),
            _ => (JobState::Running, 1, None, None),
        };
        let found = (stored.state, stored.attempt, stored.result, stored.last_error);
        ensure_eq!(found, (state, attempt, result, error), "job {n}");
    }
    ensure_eq!(store.jobs().settle(WORKER, &[]).await?.len(), 0, "answers to no ends");
    Ok(())
}
