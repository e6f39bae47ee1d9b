//! Unique jobs, whatever transactions write them at the same time.

use std::time::Duration;

use polybus_patterns::{
    jobs::{Jobs, NewJob, Unique},
    store::{JobFilter, JobState, StoreTrouble},
};
use tokio::task::JoinSet;

use polybus_patterns::store::JobStore;

use crate::support::*;

on_both![
    a_unique_job_is_there_once_until_it_is_done,
    until_started_there_is_one_waiting,
    for_a_time_whatever_becomes_of_it,
    of_concurrent_transactions_half_rolled_back_one_job_is_left,
];

async fn a_unique_job_is_there_once_until_it_is_done<S: TestDatabase + JobStore>(store: S) {
    let jobs = Jobs::new(&store);
    let unique = |n| NewJob::of(&numbered(n)).unique(Unique::UntilDone);
    let first = jobs.submit(unique(1)).await.unwrap();
    let again = jobs.submit(unique(1).queue("other").priority(3)).await.unwrap();
    assert_eq!((again.id, again.is_new), (first.id, false));
    assert!(jobs.submit(unique(2)).await.unwrap().is_new, "other arguments");
    assert!(jobs.submit(numbered(1)).await.unwrap().is_new, "one that is not unique");
    let by_key = |key: &str| NewJob::of(&numbered(3)).unique_by(Unique::UntilDone, key.to_owned());
    let many = jobs.submit_many([by_key("a"), by_key("b"), by_key("a")]).await.unwrap();
    assert_eq!(many.iter().map(|job| job.is_new).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(many[2].id, many[0].id);
    let running = run(worker(&store).on((), async |(), _cx, _job: Numbered| Ok(())));
    until(&store, first.id, COMPLETED).await;
    running.stop().await;
    let later = jobs.submit(unique(1)).await.unwrap();
    assert!(later.is_new && later.id > first.id);
    // Now the first cannot come back.
    assert_eq!(jobs.admin().retry(&JobFilter::ids([first.id])).await.unwrap(), 0);
    assert_eq!(show(&store, first.id).await.state, COMPLETED);
}

async fn until_started_there_is_one_waiting<S: TestDatabase + JobStore>(store: S) {
    let (jobs, log) = (Jobs::new(&store), Log::new());
    let unique = || NewJob::of(&numbered(1)).unique(Unique::UntilStarted);
    let first = jobs.submit(unique()).await.unwrap();
    assert!(!jobs.submit(unique()).await.unwrap().is_new);
    let running = run(worker(&store).on(log.clone(), async |log, cx, _job: Numbered| {
        log.add(cx.id());
        cx.cancelled().await;
        Ok(())
    }));
    eventually("the first runs", async || log.len() == 1).await;
    let second = jobs.submit(unique().queue("later")).await.unwrap();
    assert!(second.is_new && second.id != first.id);
    assert!(!jobs.submit(unique()).await.unwrap().is_new);
    running.stop().await;
}

async fn for_a_time_whatever_becomes_of_it<S: TestDatabase + JobStore>(store: S) {
    let jobs = Jobs::new(&store);
    let unique = || NewJob::of(&numbered(1)).unique(Unique::For(Duration::from_secs(600)));
    let first = jobs.submit(unique()).await.unwrap();
    let running = run(worker(&store).on((), async |(), _cx, _job: Numbered| Ok(())));
    until(&store, first.id, COMPLETED).await;
    let again = jobs.submit(unique()).await.unwrap();
    assert_eq!((again.id, again.is_new), (first.id, false));
    // One that is rolled back takes no key.
    let mut tx = store.begin().await.unwrap();
    let other = || NewJob::of(&numbered(2)).unique(Unique::For(Duration::from_secs(600)));
    assert!(jobs.enqueue(&mut tx, other()).await.unwrap().is_new);
    S::rolled_back(tx).await.unwrap();
    assert!(jobs.submit(other()).await.unwrap().is_new);
    store.move_clock(601_000_000);
    let later = jobs.submit(unique()).await.unwrap();
    assert!(later.is_new);
    until(&store, later.id, COMPLETED).await;
    running.stop().await;
}

async fn of_concurrent_transactions_half_rolled_back_one_job_is_left<S: TestDatabase + JobStore>(store: S) {
    for (round, until) in
        [Unique::UntilDone, Unique::UntilStarted, Unique::For(PATIENCE)].into_iter().cycle().take(6).enumerate()
    {
        let round = u32::try_from(round).unwrap();
        let mut writers = JoinSet::new();
        for n in 0..32 {
            let (store, jobs) = (store.clone(), Jobs::new(&store));
            writers.spawn(async move {
                // A transaction that loses against another one is done again, as any is.
                loop {
                    let mut tx = match store.begin().await {
                        Ok(tx) => tx,
                        Err(e) if store.judge(&e) != StoreTrouble::None => continue,
                        Err(e) => panic!("{e}"),
                    };
                    let written = jobs.enqueue(&mut tx, NewJob::of(&numbered(round)).unique(until)).await;
                    let ended = match written {
                        Err(e) => Err(e),
                        Ok(_) if n % 2 == 0 => S::rolled_back(tx).await,
                        Ok(_) => S::commit(tx).await,
                    };
                    match ended {
                        Ok(()) => return,
                        Err(e) if store.judge(&e) != StoreTrouble::None => {}
                        Err(e) => panic!("{e}"),
                    }
                }
            });
        }
        while let Some(ended) = writers.join_next().await {
            ended.unwrap();
        }
        let there = store.jobs().list(&JobFilter::default().state(JobState::Available), 0, 100).await.unwrap();
        let of_round = there.iter().filter(|job| job.data == format!(r#"{{"n":{round}}}"#)).count();
        assert_eq!(of_round, 1, "round {round}: {until:?}");
    }
}
