//! A job is finished in its handler's transaction.

use polybus_patterns::store::{JobOutcome, JobState, JobStore, Store};

use super::{
    JobsUnderTest, OTHER, begin_finished, claim, end, find, finished, finishing, job, run_of, write_and_claim,
};
use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        cx::{StoreCx, StoreOf},
        scenario::{StoreScenario, store_scenario},
    },
};

pub(super) fn all<T: JobsUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "jobs/finish-committed",
            "A transaction that is committed has the job's effects and its end.",
            committed,
        ),
        store_scenario("jobs/finish-rolled-back", "One that is rolled back has neither.", rolled_back),
        store_scenario("jobs/finish-lost", "No transaction begins for a claim that was lost.", lost),
        store_scenario("jobs/finish-writes-jobs", "Jobs that a job writes are there with its end.", writes_jobs),
        store_scenario("jobs/finish-read-back", "The read-back tells a transaction that was lost.", read_back),
    ]
}

async fn committed<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    for result in [None, Some(r#"{"rows":7}"#)] {
        let claimed = write_and_claim::<T>(&store, job("a")).await?;
        let mut tx = finishing::<T>(&store, &claimed).await?;
        T::add_effect(&mut tx, &claimed.id.to_string()).await?;
        if let Some(result) = result {
            store.keep_result(&mut tx, &run_of(&claimed), result).await?;
        }
        ensure!(store.is_finished(&mut tx, &run_of(&claimed)).await?, "it is not among the finished ones");
        StoreOf::<T>::commit(tx).await?;
        let done = find::<T>(&store, claimed.id).await?;
        ensure_eq!(done.state, JobState::Finished(JobOutcome::Completed), "its state");
        ensure_eq!((done.result.as_deref(), done.attempt), (result, 1), "its result and attempt");
        ensure!(done.finished_at.is_some(), "nobody knows when it was finished");
        ensure!(begin_finished::<T>(&store, &run_of(&claimed)).await?.is_none(), "it could be finished again");
    }
    ensure_eq!(cx.effects(&store).await?.len(), 2, "effects");
    Ok(())
}

async fn rolled_back<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let claimed = write_and_claim::<T>(&store, job("a")).await?;
    for _ in 0..2 {
        let mut tx = finishing::<T>(&store, &claimed).await?;
        T::add_effect(&mut tx, "rolled back").await?;
        store.keep_result(&mut tx, &run_of(&claimed), "1").await?;
        drop(tx);
        let running = find::<T>(&store, claimed.id).await?;
        ensure_eq!((running.state, running.attempt), (JobState::Running, 1), "the job after the rollback");
        ensure_eq!((running.result, running.finished_at), (None, None), "its result and end after the rollback");
    }
    ensure_eq!(cx.effects(&store).await?.len(), 0, "effects");
    // It is still this worker's, in a transaction and without one.
    drop(finishing::<T>(&store, &claimed).await?);
    cx.eventually("its end is written", async || {
        let settled = super::settle::<T>(&store, &claimed, finished(JobOutcome::Completed)).await?;
        Ok((settled == polybus_patterns::store::JobSettled::Written).then_some(()))
    })
    .await
}

async fn lost<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let claimed = write_and_claim::<T>(&store, job("a")).await?;
    let run = run_of(&claimed);
    for (what, lost) in [
        ("another worker's", polybus_patterns::store::JobClaim { worker: OTHER, ..run }),
        ("another attempt's", polybus_patterns::store::JobClaim { attempt: 2, ..run }),
    ] {
        ensure!(begin_finished::<T>(&store, &lost).await?.is_none(), "{what} transaction was begun");
    }
    end::<T>(&store, &claimed, super::again(0, true)).await?;
    ensure!(begin_finished::<T>(&store, &run).await?.is_none(), "one was begun for a job that waits");
    // Nothing is open: the job can be claimed and finished.
    let again = claim::<T>(&store, 1).await?;
    ensure_eq!(again.len(), 1, "jobs claimed");
    StoreOf::<T>::commit(finishing::<T>(&store, &again[0]).await?).await?;
    Ok(())
}

async fn writes_jobs<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let claimed = write_and_claim::<T>(&store, job("parent")).await?;
    let mut tx = finishing::<T>(&store, &claimed).await?;
    store.insert_jobs(&mut tx, &[job("rolled back")]).await?;
    drop(tx);
    let mut tx = finishing::<T>(&store, &claimed).await?;
    store.insert_jobs(&mut tx, &[job("child"), job("child too")]).await?;
    StoreOf::<T>::commit(tx).await?;
    ensure_eq!(super::kinds(&claim::<T>(&store, 10).await?), ["child", "child too"], "jobs to claim");
    Ok(())
}

async fn read_back<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let claimed = write_and_claim::<T>(&store, job("a")).await?;
    let run = run_of(&claimed);
    // Read in a transaction that did not finish it: what is left of one that was lost.
    let mut another = store.begin().await?;
    let found = store.is_finished(&mut another, &run).await;
    ensure!(!matches!(found, Ok(true)), "another transaction has it among the finished ones");
    drop(another);
    let mut tx = finishing::<T>(&store, &claimed).await?;
    T::fail_statement(&mut tx).await;
    let proves = StoreOf::<T>::commit_proves_finish(&tx);
    let found = store.is_finished(&mut tx, &run).await;
    let committed = if proves || matches!(found, Ok(true)) { StoreOf::<T>::commit(tx).await.is_ok() } else { false };
    let is_finished = matches!(find::<T>(&store, claimed.id).await?.state, JobState::Finished(_));
    ensure_eq!(committed, is_finished, "whether a transaction with a failed statement was committed, and the job");
    Ok(())
}
