//! Jobs are written in the caller's transaction.

use polybus_patterns::store::{JobState, JobStore, NewJobRow, Store};

use super::{JobsUnderTest, claim, job, kinds, stored, write_new};
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
            "jobs/written-with-effects",
            "Jobs and effects are committed together, or neither.",
            with_effects,
        ),
        store_scenario("jobs/written-alone", "Outside a transaction jobs are written at once.", alone),
        store_scenario("jobs/written-in-order", "Ids rise in the order of the jobs, of a thousand in one call.", order),
    ]
}

async fn with_effects<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let mut tx = store.begin().await?;
    T::add_effect(&mut tx, "rolled back").await?;
    let written = store.insert_jobs(&mut tx, &[job("rolled back"), job("rolled back too")]).await?;
    ensure_eq!(written.iter().filter(|job| job.is_new).count(), 2, "jobs written");
    drop(tx);
    let mut tx = store.begin().await?;
    T::add_effect(&mut tx, "committed").await?;
    store.insert_jobs(&mut tx, &[job("a"), job("b")]).await?;
    store.insert_jobs(&mut tx, &[job("c")]).await?;
    ensure_eq!(store.insert_jobs(&mut tx, &[]).await?, [], "answers to no jobs");
    // Nobody sees them before the commit. On a database with one writer a claim would wait for this transaction.
    ensure_eq!(stored::<T>(&store).await?.len(), 0, "jobs before the commit");
    StoreOf::<T>::commit(tx).await?;
    let effects: Vec<String> = cx.effects(&store).await?.into_keys().collect();
    ensure_eq!(effects, ["committed"], "effects");
    ensure_eq!(kinds(&claim::<T>(&store, 10).await?), ["a", "b", "c"], "jobs to claim");
    Ok(())
}

async fn alone<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let mut plain = cx.target().plain(&store.inner).await?;
    let written = store.insert_jobs(&mut plain, &[job("a"), job("b")]).await?;
    ensure_eq!(written.iter().map(|job| job.is_new).collect::<Vec<_>>(), [true, true], "answers");
    let second = cx.second(&store).await?;
    ensure_eq!(kinds(&claim::<T>(&second, 10).await?), ["a", "b"], "jobs that another process claims");
    Ok(())
}

async fn order<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let jobs: Vec<NewJobRow> = (0..1_000).map(|n| job(n.to_string())).collect();
    let ids = write_new::<T>(&store, &jobs).await?;
    ensure!(ids.windows(2).all(|pair| pair[0] < pair[1]), "the ids do not rise in the order of the jobs");
    let all = stored::<T>(&store).await?;
    ensure_eq!(all.iter().map(|job| job.id).collect::<Vec<_>>(), ids, "the ids that are stored");
    for (n, job) in all.iter().enumerate() {
        ensure_eq!((&job.kind, job.state), (&n.to_string(), JobState::Available), "job {n}");
    }
    let claimed = claim::<T>(&store, 1_000).await?;
    let wanted: Vec<String> = (0..1_000).map(|n| n.to_string()).collect();
    ensure_eq!(kinds(&claimed), wanted, "the order of claims");
    Ok(())
}
