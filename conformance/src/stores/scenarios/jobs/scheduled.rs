//! Jobs whose time has not come.

use std::time::Duration;

use polybus_patterns::store::{DueRows, JobDue, JobState, JobStore, NewJobRow};

use super::{JobsUnderTest, claim, delayed, find, job, kinds, stored, write_new};
use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        cx::StoreCx,
        scenario::{StoreScenario, store_scenario},
    },
};

pub(super) fn all<T: JobsUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario("jobs/delayed", "A job with a delay is scheduled until then, and not claimed.", with_delay)
            .needs_clock(),
        store_scenario("jobs/at", "A job runs at its time, and at once if that is in the past.", at).needs_clock(),
        store_scenario(
            "jobs/promote-order",
            "Of the jobs whose time has come the earliest are promoted first, and the next one is told.",
            promote_order,
        )
        .needs_clock(),
        store_scenario("jobs/due-soon", "A delay passes by the database's clock, which nobody moves.", due_soon),
    ]
}

async fn with_delay<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let id = write_new::<T>(&store, &[delayed("a", 600)]).await?[0];
    let waits = find::<T>(&store, id).await?;
    ensure_eq!(waits.state, JobState::Scheduled, "its state");
    let delay = waits.run_at - waits.created_at;
    ensure!((599_000_000..=601_000_000).contains(&delay), "it may run {delay} us after it was written");
    for seconds in [0, 500] {
        cx.move_clock(&store, seconds);
        ensure_eq!(store.jobs().promote(10).await?.moved, 0, "jobs whose time has come after {seconds} s");
        ensure_eq!(claim::<T>(&store, 10).await?.len(), 0, "jobs to claim after {seconds} s");
    }
    cx.move_clock(&store, 1_200);
    ensure_eq!(store.jobs().promote(10).await?, DueRows { moved: 1, next: None }, "jobs whose time has come");
    let promoted = find::<T>(&store, id).await?;
    ensure_eq!((promoted.state, promoted.run_at), (JobState::Available, waits.run_at), "once it was promoted");
    ensure_eq!(kinds(&claim::<T>(&store, 10).await?), ["a"], "jobs to claim");
    Ok(())
}

async fn at<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let now = store.schedules().list().await?.now;
    let of = |kind: &str, at: i64| NewJobRow { due: JobDue::At(at), ..job(kind) };
    let day = 24 * 3_600 * 1_000_000;
    let jobs = [of("tomorrow", now + day), of("yesterday", now - day), of("long ago", 0), of("before", i64::MIN)];
    let all = write_new::<T>(&store, &jobs).await?;
    let first = find::<T>(&store, all[0]).await?;
    ensure_eq!((first.state, first.run_at), (JobState::Scheduled, now + day), "tomorrow's job");
    for id in &all[1..] {
        let due = find::<T>(&store, *id).await?;
        ensure_eq!(due.state, JobState::Available, "the state of the job {}", due.kind);
        ensure!(due.run_at >= now, "the job {} may run {} us before now", due.kind, now - due.run_at);
    }
    ensure_eq!(kinds(&claim::<T>(&store, 10).await?), ["yesterday", "long ago", "before"], "jobs to claim");
    cx.move_clock(&store, 24 * 3_600 + 600);
    ensure_eq!(store.jobs().promote(10).await?.moved, 1, "jobs whose time has come");
    ensure_eq!(kinds(&claim::<T>(&store, 10).await?), ["tomorrow"], "jobs to claim tomorrow");
    Ok(())
}

async fn promote_order<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let of = |kind: &str, seconds: u64, queue: &str, priority: i16| NewJobRow {
        queue: queue.to_owned(),
        priority,
        ..delayed(kind, seconds)
    };
    let jobs = [
        of("5", 500, "q", -1),
        of("2", 200, "other", 3),
        of("4", 400, "q", 0),
        of("1", 100, "q", 9),
        of("3", 300, "other", -9),
        of("9", 9_000, "q", 0),
    ];
    write_new::<T>(&store, &jobs).await?;
    let next = store.jobs().promote(10).await?;
    ensure_eq!(next.moved, 0, "jobs whose time has come");
    let near = |next: Option<Duration>, seconds: i64| {
        next.is_some_and(|next| (seconds - 60..=seconds + 1).contains(&(next.as_secs() as i64)))
    };
    ensure!(near(next.next, 100), "the next job is due in {:?}, in place of 100 s", next.next);
    cx.move_clock(&store, 1_000);
    for (n, wanted) in [(2, ["1", "2"].as_slice()), (2, &["1", "2", "3", "4"]), (10, &["1", "2", "3", "4", "5"])] {
        store.jobs().promote(n).await?;
        let mut available = stored::<T>(&store).await?;
        available.retain(|job| job.state == JobState::Available);
        let mut available: Vec<String> = available.into_iter().map(|job| job.kind).collect();
        available.sort_unstable();
        ensure_eq!(available, wanted, "jobs that were promoted");
    }
    let last = store.jobs().promote(10).await?;
    ensure_eq!(last.moved, 0, "jobs promoted once more");
    ensure!(near(last.next, 8_000), "the next job is due in {:?}, in place of 8000 s", last.next);
    Ok(())
}

async fn due_soon<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let soon = NewJobRow { due: JobDue::After(Duration::from_millis(300)), ..job("soon") };
    let id = write_new::<T>(&store, &[soon]).await?[0];
    let waits = find::<T>(&store, id).await?;
    ensure_eq!(waits.run_at - waits.created_at, 300_000, "its delay, in us");
    cx.eventually("it is claimed", async || {
        store.jobs().promote(10).await?;
        Ok((!claim::<T>(&store, 1).await?.is_empty()).then_some(()))
    })
    .await?;
    let now = store.schedules().list().await?.now;
    ensure!(now >= waits.run_at, "it was claimed {} us too early", waits.run_at - now);
    Ok(())
}
