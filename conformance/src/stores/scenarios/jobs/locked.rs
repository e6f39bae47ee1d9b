//! Rows that an open transaction holds: nobody waits for them, and nobody takes them.

use std::time::Duration;

use polybus_patterns::store::{
    ClaimedJob, JobExtended, JobOutcome, JobSettled, JobState, JobStore, RescuedJobs, Store,
};

use super::{JobsUnderTest, LEASE, WORKER, claim, ending, find, finished, finishing, job, write_new};
use crate::{
    Outcome, ensure_eq,
    stores::{
        cx::{StoreCx, StoreOf},
        scenario::{StoreScenario, store_scenario},
    },
};

pub(super) fn all<T: JobsUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "jobs/settle-busy",
            "The end of a run whose row somebody holds is Busy at once, and its neighbours are written.",
            settle_busy,
        )
        .needs_parallel_writers(),
        store_scenario(
            "jobs/extend-locked",
            "A sign of life whose row somebody holds is Locked at once, and its neighbours are renewed.",
            extend_locked,
        )
        .needs_parallel_writers(),
        store_scenario(
            "jobs/rescue-locked",
            "A job whose handler's transaction is open is not rescued, however old its lease is.",
            rescue_locked,
        )
        .needs(|can| {
            crate::Need::when(can.parallel_writers, "one transaction writes at a time")
                .and(crate::Need::when(can.clock, "no clock to move"))
        }),
        store_scenario(
            "jobs/claim-passes-locked",
            "Claims go on while an open transaction holds other jobs of the queue.",
            claim_passes,
        )
        .needs_parallel_writers(),
    ]
}

/// Three jobs that were claimed.
async fn three<T: JobsUnderTest>(store: &StoreOf<T>) -> Outcome<Vec<ClaimedJob>> {
    write_new::<T>(store, &[job("a"), job("b"), job("c")]).await?;
    let claimed = claim::<T>(store, 3).await?;
    ensure_eq!(claimed.len(), 3, "jobs claimed");
    Ok(claimed)
}

async fn settle_busy<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let claimed = three::<T>(&store).await?;
    let tx = finishing::<T>(&store, &claimed[1]).await?;
    let how = finished(JobOutcome::Discarded);
    let endings: Vec<_> = claimed.iter().map(|job| ending(job, how.clone())).collect();
    let table = store.jobs();
    let settled = cx.within("the ends are answered", table.settle(WORKER, &endings)).await??;
    ensure_eq!(settled, [JobSettled::Written, JobSettled::Busy, JobSettled::Written], "the answers");
    for (n, state) in [(0, JobState::Finished(JobOutcome::Discarded)), (1, JobState::Running)] {
        ensure_eq!(find::<T>(&store, claimed[n].id).await?.state, state, "the state of {}", claimed[n].kind);
    }
    drop(tx);
    cx.eventually("the row is free once its transaction was rolled back", async || {
        let settled = table.settle(WORKER, &endings[1..2]).await?;
        Ok((settled == [JobSettled::Written]).then_some(()))
    })
    .await
}

async fn extend_locked<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let claimed = three::<T>(&store).await?;
    let runs: Vec<(i64, u32)> = claimed.iter().map(|job| (job.id, job.attempt)).collect();
    let tx = finishing::<T>(&store, &claimed[1]).await?;
    let table = store.jobs();
    let held = JobExtended::Held { cancelled: false };
    for _ in 0..2 {
        let extended = cx.within("the signs of life are answered", table.extend(WORKER, LEASE, &runs)).await??;
        ensure_eq!(extended, [held, JobExtended::Locked, held], "the answers while the row is held");
    }
    StoreOf::<T>::commit(tx).await?;
    let extended = table.extend(WORKER, LEASE, &runs).await?;
    ensure_eq!(extended, [held, JobExtended::Lost, held], "the answers once the job is finished");
    let tx = finishing::<T>(&store, &claimed[2]).await?;
    drop(tx);
    cx.eventually("the row is free once its transaction was rolled back", async || {
        let extended = table.extend(WORKER, LEASE, &runs[2..]).await?;
        Ok((extended == [held]).then_some(()))
    })
    .await
}

async fn rescue_locked<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let claimed = three::<T>(&store).await?;
    let tx = finishing::<T>(&store, &claimed[1]).await?;
    cx.move_clock(&store, 3_600);
    let table = store.jobs();
    let rescued = cx.within("the rescue is answered", table.rescue("lost", 10)).await??;
    ensure_eq!(rescued, RescuedJobs { again: 2, ..RescuedJobs::default() }, "jobs rescued while one is held");
    let rescued = cx.within("the rescue is answered", table.rescue("lost", 10)).await??;
    ensure_eq!(rescued, RescuedJobs::default(), "jobs rescued once more");
    StoreOf::<T>::commit(tx).await?;
    let state = find::<T>(&store, claimed[1].id).await?.state;
    ensure_eq!(state, JobState::Finished(JobOutcome::Completed), "the one whose transaction was committed");
    // One whose transaction is rolled back is rescued then.
    let again = claim::<T>(&store, 1).await?;
    ensure_eq!(again.len(), 1, "jobs claimed");
    let tx = finishing::<T>(&store, &again[0]).await?;
    cx.move_clock(&store, 7_200);
    ensure_eq!(table.rescue("lost", 10).await?, RescuedJobs::default(), "jobs rescued while it is held");
    drop(tx);
    cx.eventually("it is rescued", async || Ok((table.rescue("lost", 10).await?.again == 1).then_some(()))).await
}

async fn claim_passes<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let claimed = three::<T>(&store).await?;
    let held = finishing::<T>(&store, &claimed[0]).await?;
    // One that writes a job, and has not committed.
    let mut writes = store.begin().await?;
    store.insert_jobs(&mut writes, &[job("uncommitted")]).await?;
    write_new::<T>(&store, &[job("d")]).await?;
    let table = store.jobs();
    let taken = cx.within("a claim is answered", table.claim("q", WORKER, Duration::from_secs(60), 10)).await??;
    ensure_eq!(super::kinds(&taken), ["d"], "jobs claimed");
    StoreOf::<T>::commit(writes).await?;
    StoreOf::<T>::commit(held).await?;
    ensure_eq!(super::kinds(&claim::<T>(&store, 10).await?), ["uncommitted"], "jobs claimed once it was committed");
    Ok(())
}
