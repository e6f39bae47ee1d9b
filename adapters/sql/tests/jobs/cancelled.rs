//! Cancelling, pausing, draining, and leases.

use std::{sync::Arc, time::Duration};

use polybus_core::ErrorKind;
use polybus_patterns::{
    jobs::{JobWorker, Jobs, NewJob},
    store::{JobFilter, JobState},
};
use tokio::sync::Semaphore;

use polybus_patterns::store::JobStore;

use crate::support::*;

on_both![
    waiting_jobs_are_cancelled_at_once_and_running_ones_are_told,
    a_paused_queue_rests_and_goes_on,
    a_shutdown_waits_for_handlers_and_gives_the_rest_back,
    a_handler_that_outlives_the_drain_runs_again_elsewhere,
    a_job_that_outlives_five_leases_runs_once,
    a_lost_lease_settles_nothing_and_the_handler_is_told,
    a_job_that_kills_its_process_ends_discarded,
];

async fn waiting_jobs_are_cancelled_at_once_and_running_ones_are_told<S: TestDatabase + JobStore>(store: S) {
    let (jobs, log) = (Jobs::new(&store), Log::new());
    let (admin, running) = (jobs.admin(), jobs.submit(NewJob::of(&numbered(1)).queue("long")).await.unwrap());
    let available = jobs.submit(numbered(2)).await.unwrap();
    let scheduled = jobs.submit(NewJob::of(&numbered(3)).delay(PATIENCE)).await.unwrap();
    let long = JobWorker::new(&store).queue("long", 1).lease(Duration::from_secs(2));
    let worker = run(long.on(log.clone(), async |log, cx, _job: Numbered| {
        log.add("begun");
        cx.cancelled().await;
        assert!(cx.is_job_cancelled() && cx.is_cancelled());
        Err("cancelled in the middle".into())
    }));
    eventually("it runs", async || log.len() == 1).await;
    let ids = [running.id, available.id, scheduled.id];
    assert_eq!(admin.cancel(&JobFilter::ids(ids)).await.unwrap(), 3);
    for id in [available.id, scheduled.id] {
        assert_eq!(show(&store, id).await.state, CANCELLED);
    }
    let ended = until(&store, running.id, CANCELLED).await;
    assert_eq!(ended.last_error.as_deref(), Some("cancelled in the middle"));
    assert_eq!((worker.stop().await.cancelled, log.len()), (1, 1));
    assert_eq!(admin.retry(&JobFilter::ids([available.id])).await.unwrap(), 1);
    assert_eq!(show(&store, available.id).await.state, JobState::Available);
}

async fn a_paused_queue_rests_and_goes_on<S: TestDatabase + JobStore>(store: S) {
    let (jobs, log) = (Jobs::new(&store), Log::new());
    let admin = jobs.admin();
    admin.pause("default").await.unwrap();
    let rests = jobs.submit(numbered(1)).await.unwrap();
    let goes = jobs.submit(NewJob::of(&numbered(2)).queue("other")).await.unwrap();
    let running = run(worker(&store).queue("other", 1).on(log.clone(), async |log, _cx, job: Numbered| {
        log.add(job.n);
        Ok(())
    }));
    until(&store, goes.id, COMPLETED).await;
    let queues = admin.queues().await.unwrap();
    assert!(queues.iter().any(|queue| queue.name == "default" && queue.paused), "{queues:?}");
    assert_eq!(show(&store, rests.id).await.state, JobState::Available);
    admin.resume("default").await.unwrap();
    until(&store, rests.id, COMPLETED).await;
    running.stop().await;
    assert_eq!(log.entries(), [2, 1]);
}

async fn a_shutdown_waits_for_handlers_and_gives_the_rest_back<S: TestDatabase + JobStore>(store: S) {
    let (jobs, log, gate) = (Jobs::new(&store), Log::new(), Arc::new(Semaphore::new(0)));
    let mut ids: Vec<i64> = Vec::new();
    for n in 0..20 {
        ids.push(jobs.submit(numbered(n)).await.unwrap().id);
    }
    let state = (log.clone(), gate.clone());
    let running = run(worker(&store).on(state, async |(log, gate), _cx, job: Numbered| {
        log.add(job.n);
        gate.acquire().await?.forget();
        Ok(())
    }));
    eventually("all places are taken", async || log.len() == 8).await;
    let stopping = tokio::spawn(running.stop());
    gate.add_permits(100);
    let report = stopping.await.unwrap();
    assert_eq!(count(&store, COMPLETED).await, usize::try_from(report.completed).unwrap());
    assert_eq!(count(&store, JobState::Running).await, 0, "nothing is left claimed");
    let left = store.jobs().list(&JobFilter::default().state(JobState::Available), 0, 100).await.unwrap();
    assert_eq!(left.len() + report.completed as usize, 20);
    assert!(left.iter().all(|job| job.attempt == 0), "what was not begun was not tried: {left:?}");
}

async fn a_handler_that_outlives_the_drain_runs_again_elsewhere<S: TestDatabase + JobStore>(store: S) {
    let (jobs, log) = (Jobs::new(&store), Log::new());
    let job = jobs.submit(numbered(1)).await.unwrap();
    let hanging = worker(&store).drain_timeout(Duration::from_millis(100));
    let running = run(hanging.on(log.clone(), async |log, _cx, _job: Numbered| {
        log.add("hangs");
        std::future::pending().await
    }));
    eventually("it runs", async || log.len() == 1).await;
    running.stop().await;
    let given_back = until(&store, job.id, JobState::Available).await;
    assert_eq!(given_back.attempt, 1, "the attempt has counted");
    let running = run(worker(&store).on((), async |(), cx, _job: Numbered| {
        assert_eq!(cx.attempt(), 2);
        Ok(())
    }));
    until(&store, job.id, COMPLETED).await;
    running.stop().await;
}

async fn a_job_that_outlives_five_leases_runs_once<S: TestDatabase + JobStore>(store: S) {
    let (jobs, log) = (Jobs::new(&store), Log::new());
    let lease = Duration::from_secs(2);
    let job = jobs.submit(numbered(1)).await.unwrap();
    let handler = |log: Log<u32>| {
        worker(&store).lease(lease).on(log, async |log, cx, _job: Numbered| {
            log.add(cx.attempt());
            tokio::time::sleep(Duration::from_secs(10)).await;
            Ok(())
        })
    };
    let workers = [run(handler(log.clone())), run(handler(log.clone()))];
    let done = until(&store, job.id, COMPLETED).await;
    for worker in workers {
        worker.stop().await;
    }
    assert_eq!((log.entries(), done.attempt), (vec![1], 1));
}

async fn a_lost_lease_settles_nothing_and_the_handler_is_told<S: TestDatabase + JobStore>(store: S) {
    let (jobs, log) = (Jobs::new(&store), Log::new());
    let job = jobs.submit(numbered(1)).await.unwrap();
    let running = run(worker(&store).lease(Duration::from_secs(4)).on(log.clone(), async |log, cx, _job: Numbered| {
        log.add(format!("begun {}", cx.attempt()));
        if cx.attempt() > 1 {
            return Ok(());
        }
        cx.lock_lost().await;
        log.add("told".to_owned());
        let told = cx.progress(50, None).await.unwrap_err();
        log.add(format!("{}", told.kind() == ErrorKind::LockLost));
        Ok(())
    }));
    eventually("it runs", async || log.len() == 1).await;
    // Its lease runs out, as it does while a process stands still, and it is freed.
    store.move_clock(60_000_000);
    let done = until(&store, job.id, COMPLETED).await;
    eventually("the first is told", async || log.entries().contains(&"true".to_owned())).await;
    let report = running.stop().await;
    assert_eq!((done.attempt, report.completed, report.lost), (2, 1, 1), "{:?}", log.entries());
}

async fn a_job_that_kills_its_process_ends_discarded<S: TestDatabase + JobStore>(store: S) {
    let jobs = Jobs::new(&store);
    let job = jobs.submit(NewJob::of(&numbered(1)).max_attempts(3)).await.unwrap();
    let table = store.jobs();
    // Three processes claim it, and are gone.
    for attempt in 1..=3 {
        let claimed = table.claim("default", [attempt; 16], Duration::from_secs(60), 10).await.unwrap();
        assert_eq!((claimed[0].id, claimed[0].attempt), (job.id, u32::from(attempt)));
        store.move_clock(61_000_000);
        let rescued = table.rescue("worker-lost", 100).await.unwrap();
        assert_eq!((rescued.again, rescued.discarded), if attempt < 3 { (1, 0) } else { (0, 1) });
    }
    assert_eq!(show(&store, job.id).await.last_error.as_deref(), Some("worker-lost"));
    assert_eq!(show(&store, job.id).await.state, DISCARDED);
}
