//! Several workers on one table, and layers around handlers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use polybus_patterns::jobs::{JobService, JobWorker, Jobs};
use tokio::sync::Semaphore;

use polybus_patterns::store::JobStore;

use crate::support::*;

on_both![each_job_runs_once_among_many_workers, slow_jobs_are_not_hoarded, layers_of_tower_see_every_job];

async fn each_job_runs_once_among_many_workers<S: TestDatabase + JobStore>(store: S) {
    let (jobs, log) = (Jobs::new(&store), Log::new());
    let enqueued = jobs.submit_many((0..500).map(numbered)).await.unwrap();
    assert!(enqueued.windows(2).all(|two| two[0].id < two[1].id));
    let handler = |log: Log<u32>| {
        worker(&store).on(log, async |log, _cx, job: Numbered| {
            log.add(job.n);
            Ok(())
        })
    };
    let workers: Vec<Running> = (0..4).map(|_| run(handler(log.clone()))).collect();
    eventually("all have run", async || log.len() >= 500).await;
    let mut completed = 0;
    for worker in workers {
        completed += worker.stop().await.completed;
    }
    let mut ran = log.entries();
    ran.sort_unstable();
    assert_eq!((ran, completed), ((0..500).collect(), 500));
}

async fn slow_jobs_are_not_hoarded<S: TestDatabase + JobStore>(store: S) {
    let (jobs, gate) = (Jobs::new(&store), Arc::new(Semaphore::new(0)));
    jobs.submit_many((0..10).map(numbered)).await.unwrap();
    let started = [Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0))];
    let slow = |n: usize| {
        let state = (started[n].clone(), gate.clone());
        let worker = JobWorker::new(&store).queue("default", 5).poll(Duration::from_millis(20));
        run(worker.on(state, async |(started, gate), _cx, _job: Numbered| {
            started.fetch_add(1, Ordering::SeqCst);
            gate.acquire().await?.forget();
            Ok(())
        }))
    };
    let workers = [slow(0), slow(1)];
    let begun = || started.each_ref().map(|started| started.load(Ordering::SeqCst));
    eventually("ten run at once, five in each", async || begun() == [5, 5]).await;
    gate.add_permits(10);
    for worker in workers {
        worker.stop().await;
    }
}

async fn layers_of_tower_see_every_job<S: TestDatabase + JobStore>(store: S) {
    let (jobs, seen) = (Jobs::new(&store), Log::new());
    let job = jobs.submit(numbered(7)).await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn({
        let (store, seen) = (store.clone(), seen.clone());
        async move {
            let worker = worker(&store).on((), async |(), _cx, _job: Numbered| Ok(()));
            let wrap = |jobs: JobService| {
                let seen = seen.clone();
                tower::ServiceBuilder::new()
                    .map_request(move |request: polybus_core::worker::HandlerRequest| {
                        seen.add((request.message.event_type.to_string(), request.context.attempt()));
                        request
                    })
                    .service(jobs)
            };
            worker.run_with(async { drop(stopped.await) }, wrap).await
        }
    });
    until(&store, job.id, COMPLETED).await;
    drop(stop);
    assert_eq!(running.await.unwrap().unwrap().completed, 1);
    assert_eq!(seen.entries(), [("test.numbered".to_owned(), 1)]);
}
