//! Handlers with a transaction: effect and completion commit together.

use std::time::Duration;

use polybus_patterns::{
    jobs::{Jobs, NewJob},
    store::JobState,
};

use polybus_patterns::store::JobStore;

use crate::support::*;

on_both![
    effect_and_completion_commit_together,
    a_failure_rolls_the_effect_back,
    a_swallowed_error_is_found_before_the_commit,
    a_claim_that_was_lost_begins_nothing,
    a_worker_that_is_dropped_in_the_middle_of_commits_discards_nothing,
    a_handler_that_commits_early_and_fails_is_discarded,
    a_handler_that_commits_early_and_ends_well_is_not_half_done,
];

async fn effects<S: TestDatabase + JobStore>(store: &S) -> i64 {
    store.number("SELECT count(*) FROM {effects}").await
}

async fn with_table<S: TestDatabase + JobStore>(store: &S) {
    store.run("CREATE TABLE {effects} (n INT PRIMARY KEY)").await;
}

async fn effect_and_completion_commit_together<S: TestDatabase + JobStore>(store: S) {
    with_table(&store).await;
    let jobs = Jobs::new(&store);
    let job = jobs.submit(numbered(1)).await.unwrap();
    let state = (store.clone(), jobs.clone());
    let running = run(worker(&store).on_tx(state, async |(store, jobs), mut tx, cx, job: Numbered| {
        store.run_on(&mut tx, "INSERT INTO {effects} VALUES (1)").await?;
        if job.n == 1 {
            let next = jobs.enqueue(&mut tx, numbered(2)).await?;
            cx.set_result(&next.id)?;
            store.run_on(&mut tx, "UPDATE {effects} SET n = 0").await?;
        }
        Ok(tx)
    }));
    let done = until(&store, job.id, COMPLETED).await;
    let next: i64 = done.result.as_deref().unwrap().parse().unwrap();
    until(&store, next, COMPLETED).await;
    assert_eq!(running.stop().await.completed, 2);
    assert_eq!(effects(&store).await, 2);
}

async fn a_failure_rolls_the_effect_back<S: TestDatabase + JobStore>(store: S) {
    with_table(&store).await;
    let (jobs, log) = (Jobs::new(&store), Log::new());
    let job = jobs.submit(NewJob::of(&numbered(1)).max_attempts(3)).await.unwrap();
    let state = (store.clone(), log.clone());
    let running = run(worker(&store).on_tx(state, async |(store, log), mut tx, cx, _job: Numbered| {
        store.run_on(&mut tx, "INSERT INTO {effects} VALUES (1)").await?;
        log.add(cx.attempt());
        if cx.attempt() < 3 { Err("not yet".into()) } else { Ok(tx) }
    }));
    let done = until(&store, job.id, COMPLETED).await;
    let report = running.stop().await;
    assert_eq!((log.entries(), report.retried, report.completed), (vec![1, 2, 3], 2, 1));
    assert_eq!((effects(&store).await, done.attempt), (1, 3));
}

async fn a_swallowed_error_is_found_before_the_commit<S: TestDatabase + JobStore>(store: S) {
    with_table(&store).await;
    let (jobs, log) = (Jobs::new(&store), Log::new());
    let job = jobs.submit(NewJob::of(&numbered(1)).max_attempts(2)).await.unwrap();
    let state = (store.clone(), log.clone());
    let running = run(worker(&store).on_tx(state, async |(store, log), mut tx, cx, _job: Numbered| {
        log.add(cx.attempt());
        store.run_on(&mut tx, "INSERT INTO {effects} VALUES (1)").await?;
        if cx.attempt() == 1 {
            // What many write: the error is logged, and the handler goes on.
            let twice = store.run_on(&mut tx, "INSERT INTO {effects} VALUES (1)").await;
            assert!(twice.is_err());
        }
        Ok(tx)
    }));
    let done = until(&store, job.id, COMPLETED).await;
    running.stop().await;
    // Only PostgreSQL ends the transaction at such an error.
    let attempts = if store.control().system() == "postgres" { 2 } else { 1 };
    assert_eq!((done.attempt, log.len(), effects(&store).await), (attempts, attempts as usize, 1));
}

async fn a_claim_that_was_lost_begins_nothing<S: TestDatabase + JobStore>(store: S) {
    with_table(&store).await;
    let job = Jobs::new(&store).submit(numbered(1)).await.unwrap();
    let claimed = store.jobs().claim("default", [1; 16], PATIENCE, 1).await.unwrap();
    assert_eq!(claimed.len(), 1);
    let limits = polybus_patterns::store::TransactionLimits::new(PATIENCE, None);
    let claim = polybus_patterns::store::JobClaim { id: job.id, attempt: 1, worker: [1; 16] };
    for other in [
        polybus_patterns::store::JobClaim { attempt: 2, ..claim },
        polybus_patterns::store::JobClaim { worker: [2; 16], ..claim },
    ] {
        assert!(store.begin_finished(&other, &limits).await.unwrap().is_none());
    }
    let tx = store.begin_finished(&claim, &limits).await.unwrap().unwrap();
    S::rolled_back(tx).await.unwrap();
    assert_eq!(show(&store, job.id).await.state, JobState::Running);
}

/// What ends a transaction on this database without being asked to.
fn commits_by_itself<S: TestDatabase>(store: &S) -> &'static str {
    match store.control().system() {
        "mysql" | "mariadb" => "CREATE TABLE {made_by_handler} (n INT PRIMARY KEY)",
        _ => "COMMIT",
    }
}

async fn a_worker_that_is_dropped_in_the_middle_of_commits_discards_nothing<S: TestDatabase + JobStore>(store: S) {
    const JOBS: usize = 300;
    with_table(&store).await;
    let jobs = Jobs::new(&store);
    jobs.submit_many((0..JOBS).map(|n| NewJob::of(&numbered(n as u32)).max_attempts(1_000))).await.unwrap();
    let left = async || JOBS - count(&store, COMPLETED).await;
    while left().await > 0 {
        let running = worker(&store).lease(Duration::from_secs(1)).on_tx(
            store.clone(),
            async |store, mut tx, _cx, job: Numbered| {
                store.run_on(&mut tx, &format!("INSERT INTO {{effects}} VALUES ({})", job.n)).await?;
                Ok(tx)
            },
        );
        // Some are completed, and others are anywhere on their way.
        let before = left().await;
        let some_are_done = async { while before > 0 && left().await + 10 > before.max(11) {} };
        tokio::select! {
            ended = running.run(std::future::pending()) => panic!("the worker has ended: {ended:?}"),
            () = some_are_done => {}
        }
        assert_eq!(count(&store, DISCARDED).await, 0, "jobs discarded");
    }
    eventually("what was dropped is settled", async || count(&store, JobState::Running).await == 0).await;
    assert_eq!((effects(&store).await, count(&store, DISCARDED).await), (JOBS as i64, 0), "effects, jobs discarded");
}

async fn a_handler_that_commits_early_and_fails_is_discarded<S: TestDatabase + JobStore>(store: S) {
    with_table(&store).await;
    let (jobs, log) = (Jobs::new(&store), Log::new());
    let job = jobs.submit(NewJob::of(&numbered(1)).max_attempts(3)).await.unwrap();
    let state = (store.clone(), log.clone());
    let running = run(worker(&store).on_tx(state, async |(store, log), mut tx, cx, _job: Numbered| {
        log.add(cx.attempt());
        store.run_on(&mut tx, "INSERT INTO {effects} VALUES (1)").await?;
        store.run_on(&mut tx, commits_by_itself(&store)).await?;
        Err("it failed after that".into())
    }));
    let discarded = until(&store, job.id, DISCARDED).await;
    let report = running.stop().await;
    let error = discarded.last_error.unwrap();
    if store.control().system() == "sqlite" {
        // The COMMIT is refused, each time.
        assert_eq!((log.entries(), effects(&store).await, report.discarded), (vec![1, 2, 3], 0, 1));
        return;
    }
    assert!(error.starts_with("committed-early: ") && error.contains("it failed after that"), "{error}");
    assert_eq!((log.entries(), effects(&store).await, report.completed, report.discarded), (vec![1], 1, 0, 1));
}

async fn a_handler_that_commits_early_and_ends_well_is_not_half_done<S: TestDatabase + JobStore>(store: S) {
    with_table(&store).await;
    let (jobs, log) = (Jobs::new(&store), Log::new());
    let job = jobs.submit(NewJob::of(&numbered(1)).max_attempts(3)).await.unwrap();
    let state = (store.clone(), log.clone());
    let running = run(worker(&store).on_tx(state, async |(store, log), mut tx, cx, _job: Numbered| {
        log.add(cx.attempt());
        store.run_on(&mut tx, commits_by_itself(&store)).await?;
        store.run_on(&mut tx, "INSERT INTO {effects} VALUES (1)").await?;
        Ok(tx)
    }));
    let ended = async || !matches!(show(&store, job.id).await.state, JobState::Available | JobState::Running);
    eventually("the job is finished", ended).await;
    let (job, report) = (show(&store, job.id).await, running.stop().await);
    let error = job.last_error.as_deref().unwrap_or_default();
    match store.control().system() {
        // What comes after a COMMIT is written as well.
        "postgres" => assert_eq!((job.state, log.entries(), effects(&store).await), (COMPLETED, vec![1], 1)),
        // The COMMIT is refused, each time.
        "sqlite" => assert_eq!((job.state, log.entries(), effects(&store).await), (DISCARDED, vec![1, 2, 3], 0)),
        // What comes after it is in another transaction, which nobody commits.
        _ => {
            assert!(error.starts_with("committed-early: "), "{error}");
            assert_eq!((job.state, log.entries(), effects(&store).await), (DISCARDED, vec![1], 0));
        }
    }
    assert_eq!(report.completed + report.discarded, 1);
}
