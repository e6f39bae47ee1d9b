//! Calls whose caller goes away in the middle.

use std::time::Duration;

use polybus_patterns::store::{JobOutcome, JobState, JobStore, NewJobRow, Store};

use super::{
    JobsUnderTest, LEASE, OTHER, WORKER, claim, ending, find, finished, finishing, job, stored, write_and_claim,
    write_new,
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
            "jobs/dropped-claims",
            "Jobs of claims that were dropped are rescued, and none is lost.",
            claims,
        )
        .needs_clock(),
        store_scenario("jobs/dropped-writes", "A call that was dropped writes all of its jobs, or none.", writes),
        store_scenario("jobs/dropped-finish", "A transaction that was dropped leaves the job to its worker.", finish),
    ]
}

/// Runs a future for a random part of a few milliseconds, and drops it. Whether it came to its end.
async fn cut<T: JobsUnderTest, V>(cx: &StoreCx<T>, future: impl Future<Output = V>) -> bool {
    let after = Duration::from_micros(cx.random(4_000));
    tokio::time::timeout(after, future).await.is_ok()
}

async fn claims<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    const JOBS: usize = 60;
    let store = cx.store().await?;
    let jobs: Vec<NewJobRow> = (0..JOBS).map(|n| job(n.to_string())).collect();
    write_new::<T>(&store, &jobs).await?;
    let table = store.jobs();
    for _ in 0..20 {
        cut(&cx, table.claim("q", WORKER, LEASE, 5)).await;
    }
    cx.move_clock(&store, 3_600);
    // What a dropped call had begun may still be on its way at the database.
    let mut claimed = Vec::new();
    cx.eventually("all jobs are claimed by another worker", async || {
        table.rescue("its worker was lost", 1_000).await?;
        claimed.extend(table.claim("q", OTHER, LEASE, 1_000).await?.into_iter().map(|job| job.id));
        Ok((claimed.len() >= JOBS).then_some(()))
    })
    .await?;
    claimed.sort_unstable();
    claimed.dedup();
    ensure_eq!(claimed.len(), JOBS, "different jobs that were claimed");
    Ok(())
}

async fn writes<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    const ROUNDS: usize = 20;
    let store = cx.store().await?;
    let mut sure = 0;
    for n in 0..ROUNDS {
        let jobs = [job(format!("{n}")), job(format!("{n}")), job(format!("{n}"))];
        let write = super::write::<T>(&store, &jobs);
        sure += usize::from(cut(&cx, write).await);
    }
    // A pool hands out the connections of dropped calls once they have ended.
    write_new::<T>(&store, &[job("last")]).await?;
    let mut at = std::collections::BTreeMap::<String, usize>::new();
    for stored in stored::<T>(&store).await? {
        *at.entry(stored.kind).or_default() += 1;
    }
    ensure_eq!(at.remove("last"), Some(1), "the last job");
    ensure!(at.values().all(|jobs| *jobs == 3), "a call that was dropped has written a part of its jobs: {at:?}");
    ensure!(at.len() >= sure, "{sure} calls came to their end, and the jobs of {} are there", at.len());
    Ok(())
}

async fn finish<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let claimed = write_and_claim::<T>(&store, job("a")).await?;
    for _ in 0..10 {
        let run = async {
            let mut tx = finishing::<T>(&store, &claimed).await?;
            T::add_effect(&mut tx, "dropped").await?;
            std::future::pending::<()>().await;
            Outcome::Ok(())
        };
        cut(&cx, run).await;
    }
    // The end of a rolled-back transaction may be on its way.
    cx.eventually("its end is written", async || {
        let settled = store.jobs().settle(WORKER, &[ending(&claimed, finished(JobOutcome::Completed))]).await?;
        ensure!(settled != [polybus_patterns::store::JobSettled::Lost], "the job was lost");
        Ok((settled == [polybus_patterns::store::JobSettled::Written]).then_some(()))
    })
    .await?;
    let done = find::<T>(&store, claimed.id).await?;
    ensure_eq!((done.state, done.attempt), (JobState::Finished(JobOutcome::Completed), 1), "the job");
    ensure_eq!(cx.effects(&store).await?.len(), 0, "effects of transactions that were dropped");
    ensure_eq!(claim::<T>(&store, 1).await?.len(), 0, "jobs to claim");
    StoreOf::<T>::commit(store.begin().await?).await?;
    Ok(())
}
