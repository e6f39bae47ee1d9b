//! What becomes of a job, by what its handler does.

use std::time::Duration;

use polybus_core::{HandlerError, telemetry::Current};
use polybus_patterns::{
    jobs::{Jobs, NewJob},
    store::{JobFilter, JobState},
};

use polybus_patterns::store::JobStore;

use crate::support::*;

on_both![
    what_is_committed_runs_and_what_is_rolled_back_does_not,
    a_failing_job_is_tried_again_and_then_discarded,
    panics_and_timeouts_are_failures_with_a_text,
    a_permanent_failure_is_discarded_at_once_and_runs_again_by_hand,
    a_snoozed_job_keeps_its_attempts,
    progress_and_result_are_kept,
    the_lowest_priority_runs_first_then_the_earliest,
    a_delayed_job_waits_for_its_time,
    what_a_job_enqueues_belongs_to_its_conversation,
];

async fn what_is_committed_runs_and_what_is_rolled_back_does_not<S: TestDatabase + JobStore>(store: S) {
    let (jobs, log) = (Jobs::new(&store), Log::new());
    let running = run(worker(&store).on(log.clone(), async |log, _cx, job: Numbered| {
        log.add(job.n);
        Ok(())
    }));
    let mut tx = store.begin().await.unwrap();
    jobs.enqueue(&mut tx, numbered(1)).await.unwrap();
    S::rolled_back(tx).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    let many = jobs.enqueue_many(&mut tx, (2..=4).map(numbered)).await.unwrap();
    S::commit(tx).await.unwrap();
    let alone = jobs.submit(numbered(5)).await.unwrap();
    assert!(many.windows(2).all(|two| two[0].id < two[1].id && two[0].is_new) && alone.id > many[2].id);
    for id in many.iter().map(|job| job.id).chain([alone.id]) {
        until(&store, id, COMPLETED).await;
    }
    let report = running.stop().await;
    let mut ran = log.entries();
    ran.sort_unstable();
    assert_eq!((ran, report.completed), (vec![2, 3, 4, 5], 4));
    let outside = store.begin().await;
    drop(outside);
}

async fn a_failing_job_is_tried_again_and_then_discarded<S: TestDatabase + JobStore>(store: S) {
    let (jobs, log) = (Jobs::new(&store), Log::new());
    let job = jobs.submit(NewJob::of(&numbered(1)).max_attempts(3)).await.unwrap();
    let running = run(worker(&store).on(log.clone(), async |log, cx, _job: Numbered| {
        log.add((cx.attempt(), cx.is_last_attempt()));
        Err("the printer is on fire".into())
    }));
    let discarded = until(&store, job.id, DISCARDED).await;
    let report = running.stop().await;
    assert_eq!(log.entries(), [(1, false), (2, false), (3, true)]);
    assert_eq!((discarded.attempt, report.retried, report.discarded), (3, 2, 1));
    let error = discarded.last_error.unwrap();
    assert!(error.starts_with("max-deliveries-exceeded") && error.contains("the printer is on fire"), "{error}");
}

async fn panics_and_timeouts_are_failures_with_a_text<S: TestDatabase + JobStore>(store: S) {
    let jobs = Jobs::new(&store);
    let panics = jobs.submit(NewJob::of(&numbered(1)).max_attempts(2)).await.unwrap();
    let hangs = jobs.submit(NewJob::of(&numbered(2)).max_attempts(1)).await.unwrap();
    let handler = worker(&store)
        .handler_timeout(Duration::from_millis(300))
        .retry(polybus_core::RetryPolicy::fixed(Duration::from_secs(3600)));
    let running = run(handler.on((), async |(), _cx, job: Numbered| match job.n {
        1 => panic!("number {}", job.n),
        _ => std::future::pending().await,
    }));
    let hung = until(&store, hangs.id, DISCARDED).await.last_error.unwrap();
    assert!(hung.contains("did not end within 300ms"), "{hung}");
    let panicked = until(&store, panics.id, JobState::Scheduled).await;
    assert!(panicked.last_error.as_deref().is_some_and(|text| text.contains("panicked: number 1")), "{panicked:?}");
    let wait = panicked.run_at - panicked.created_at;
    assert!((3_600_000_000..4_200_000_000).contains(&wait), "{wait}");
    running.stop().await;
}

async fn a_permanent_failure_is_discarded_at_once_and_runs_again_by_hand<S: TestDatabase + JobStore>(store: S) {
    let (jobs, log) = (Jobs::new(&store), Log::new());
    let job = jobs.submit(numbered(1)).await.unwrap();
    let running = run(worker(&store).on(log.clone(), async |log, cx, _job: Numbered| {
        log.add(cx.attempt());
        if log.len() > 1 { Ok(()) } else { Err(HandlerError::dead_letter("no-order", "order 7 is gone")) }
    }));
    let discarded = until(&store, job.id, DISCARDED).await;
    assert_eq!(discarded.last_error.as_deref(), Some("no-order: order 7 is gone"));
    let admin = jobs.admin();
    assert_eq!(admin.retry(&JobFilter::discarded().error("another")).await.unwrap(), 0);
    assert_eq!(admin.retry(&JobFilter::discarded().error("no-order")).await.unwrap(), 1);
    until(&store, job.id, COMPLETED).await;
    running.stop().await;
    assert_eq!(log.entries(), [1, 1]);
}

async fn a_snoozed_job_keeps_its_attempts<S: TestDatabase + JobStore>(store: S) {
    let (jobs, log) = (Jobs::new(&store), Log::new());
    let job = jobs.submit(NewJob::of(&numbered(1)).max_attempts(1)).await.unwrap();
    let running = run(worker(&store).on(log.clone(), async |log, cx, _job: Numbered| {
        log.add(cx.attempt());
        if log.len() > 3 { Ok(()) } else { Err(cx.snooze(Duration::from_millis(1))) }
    }));
    until(&store, job.id, COMPLETED).await;
    let report = running.stop().await;
    assert_eq!((log.entries(), report.snoozed, report.completed), (vec![1, 1, 1, 1], 3, 1));
}

async fn progress_and_result_are_kept<S: TestDatabase + JobStore>(store: S) {
    let jobs = Jobs::new(&store);
    let job = jobs.submit(numbered(1)).await.unwrap();
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let running = run(worker(&store).on(gate.clone(), async |gate, cx, _job: Numbered| {
        cx.progress(40, "rendered").await?;
        gate.acquire().await?.forget();
        cx.progress(90, None).await?;
        cx.set_result(&["a.pdf", "b.pdf"])?;
        let large = cx.set_result(&"x".repeat(70_000)).unwrap_err();
        assert!(large.to_string().contains("65536"), "{large}");
        Ok(())
    }));
    eventually("its progress is told", async || show(&store, job.id).await.progress == Some(40)).await;
    let halfway = show(&store, job.id).await;
    assert_eq!((halfway.state, halfway.note.as_deref()), (JobState::Running, Some("rendered")));
    gate.add_permits(1);
    let done = until(&store, job.id, COMPLETED).await;
    running.stop().await;
    assert_eq!((done.progress, done.note.as_deref()), (Some(90), Some("rendered")));
    assert_eq!(done.result.as_deref(), Some(r#"["a.pdf","b.pdf"]"#));
    assert!(done.finished_at.is_some_and(|at| at >= done.created_at));
}

async fn the_lowest_priority_runs_first_then_the_earliest<S: TestDatabase + JobStore>(store: S) {
    let (jobs, log) = (Jobs::new(&store), Log::new());
    for (n, priority) in [(1, 5), (2, 0), (3, -7), (4, 0), (5, 5)] {
        jobs.submit(NewJob::of(&numbered(n)).priority(priority).queue("single")).await.unwrap();
    }
    let single = polybus_patterns::jobs::JobWorker::new(&store).queue("single", 1);
    let running = run(single.on(log.clone(), async |log, _cx, job: Numbered| {
        log.add(job.n);
        Ok(())
    }));
    eventually("all have run", async || log.len() == 5).await;
    running.stop().await;
    assert_eq!(log.entries(), [3, 2, 4, 1, 5]);
}

async fn a_delayed_job_waits_for_its_time<S: TestDatabase + JobStore>(store: S) {
    let (jobs, log) = (Jobs::new(&store), Log::new());
    let later = jobs.submit(NewJob::of(&numbered(1)).delay(Duration::from_secs(3600))).await.unwrap();
    let now = jobs.submit(numbered(2)).await.unwrap();
    let running = run(worker(&store).on(log.clone(), async |log, _cx, job: Numbered| {
        log.add(job.n);
        Ok(())
    }));
    until(&store, now.id, COMPLETED).await;
    assert_eq!(show(&store, later.id).await.state, JobState::Scheduled);
    store.move_clock(3_601_000_000);
    until(&store, later.id, COMPLETED).await;
    running.stop().await;
    assert_eq!(log.entries(), [2, 1]);
}

async fn what_a_job_enqueues_belongs_to_its_conversation<S: TestDatabase + JobStore>(store: S) {
    let jobs = Jobs::new(&store).event_source("/shop");
    let first = Current::correlated("request-7").scope(jobs.submit(numbered(1))).await.unwrap();
    let running = run(worker(&store).on(jobs.clone(), async |jobs, cx, job: Numbered| {
        if job.n == 1 {
            let next = jobs.submit(numbered(2)).await?;
            cx.set_result(&next.id)?;
        }
        Ok(())
    }));
    let first = until(&store, first.id, COMPLETED).await;
    let second = until(&store, first.result.as_deref().unwrap().parse().unwrap(), COMPLETED).await;
    running.stop().await;
    let (first, second) = (first.message().unwrap(), second.message().unwrap());
    assert_eq!(first.correlation_id.as_deref(), Some("request-7"));
    assert_eq!(second.correlation_id.as_deref(), Some("request-7"));
    assert_eq!(second.causation_id.as_deref(), Some(&*first.id));
    assert_eq!(&*second.source, "/shop");
}
