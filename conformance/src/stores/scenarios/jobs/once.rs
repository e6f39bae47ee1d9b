//! Unique keys between transactions that write at the same time.

use std::time::Duration;

use polybus_patterns::store::{JobInserted, JobStore, Store, UniqueUntil};

use super::{JobsUnderTest, claim, kinds, stored, unique, write, write_new};
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
            "jobs/unique-writers",
            "Of eight processes that write one key at once one has its job.",
            writers,
        ),
        store_scenario(
            "jobs/unique-waits",
            "A key that an open transaction holds is waited for: its commit answers, and its rollback frees the key.",
            waits,
        )
        .needs_parallel_writers(),
        store_scenario(
            "jobs/unique-any-order",
            "Transactions that write the same keys in other orders do not lock each other out.",
            any_order,
        ),
        store_scenario("jobs/unique-rolled-back", "A key of a transaction that was rolled back is free.", rolled_back),
    ]
}

/// Runs writers at the same time, and sums up how many jobs they found to be new.
async fn all_of(writers: impl Iterator<Item = impl Future<Output = Outcome<usize>> + 'static>) -> Outcome<usize> {
    let mut tasks = tokio::task::JoinSet::new();
    writers.for_each(|writer| drop(tasks.spawn_local(writer)));
    let mut new = 0;
    while let Some(written) = tasks.join_next().await {
        new += written??;
    }
    Ok(new)
}

async fn writers<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    const KEYS: u8 = 20;
    let store = cx.store().await?;
    let second = cx.second(&store).await?;
    let writer = |n: usize| {
        let store = if n.is_multiple_of(2) { store.clone() } else { second.clone() };
        async move {
            let mut new = 0;
            for key in 0..KEYS {
                let written = write::<T>(&store, &[unique(&format!("{key}"), key, UniqueUntil::Done)]).await?;
                new += usize::from(written[0].is_new);
            }
            Outcome::Ok(new)
        }
    };
    let new = cx.within("all writers end", all_of((0..8).map(writer))).await??;
    ensure_eq!(new, usize::from(KEYS), "jobs that eight writers found to be new");
    let claimed = claim::<T>(&store, 1_000).await?;
    let mut kinds = kinds(&claimed);
    kinds.sort_unstable();
    kinds.dedup();
    ensure_eq!((claimed.len(), kinds.len()), (KEYS.into(), KEYS.into()), "jobs, and different ones");
    Ok(())
}

async fn waits<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    for (key, until) in
        [UniqueUntil::Started, UniqueUntil::Done, UniqueUntil::For(Duration::from_secs(600))].into_iter().enumerate()
    {
        for commits in [true, false] {
            let key = 2 * key as u8 + u8::from(commits);
            let mut first = store.begin().await?;
            let written = store.insert_jobs(&mut first, &[unique("first", key, until)]).await?[0];
            ensure!(written.is_new, "the first one is not new");
            let copies = [unique("second", key, until)];
            let mut second = Box::pin(write::<T>(&store, &copies));
            // A moment in which a writer that does not wait has answered.
            let early = tokio::time::timeout(Duration::from_millis(200), &mut second).await;
            ensure!(early.is_err(), "a copy was answered while the first one may be rolled back: {early:?}");
            if commits {
                StoreOf::<T>::commit(first).await?;
            } else {
                drop(first);
            }
            let answer = cx.within("the copy is answered", second).await??[0];
            let wanted = JobInserted { id: written.id, is_new: false };
            ensure_eq!(answer == wanted, commits, "{until:?}: the copy has the answer {answer:?} after {written:?}");
            ensure_eq!(answer.is_new, !commits, "{until:?}: the copy is new");
        }
    }
    ensure_eq!(stored::<T>(&store).await?.len(), 6, "jobs that are there");
    Ok(())
}

async fn any_order<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let second = cx.second(&store).await?;
    let writer = |n: usize| {
        let store = if n.is_multiple_of(2) { store.clone() } else { second.clone() };
        async move {
            let mut new = 0;
            for round in 0..20_u8 {
                let mut keys: Vec<u8> = (0..6).map(|key| round * 6 + key).collect();
                keys.rotate_left(n % 6);
                if n % 2 == 1 {
                    keys.reverse();
                }
                let jobs: Vec<_> = keys.iter().map(|key| unique(&key.to_string(), *key, UniqueUntil::Done)).collect();
                new += write::<T>(&store, &jobs).await?.iter().filter(|job| job.is_new).count();
            }
            Outcome::Ok(new)
        }
    };
    let new = cx.within("all writers end", all_of((0..4).map(writer))).await??;
    ensure_eq!(new, 120, "jobs that four writers found to be new");
    ensure_eq!(stored::<T>(&store).await?.len(), 120, "jobs that are there");
    Ok(())
}

async fn rolled_back<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    for (key, until) in
        [UniqueUntil::Started, UniqueUntil::Done, UniqueUntil::For(Duration::from_secs(600))].into_iter().enumerate()
    {
        let mut tx = store.begin().await?;
        store.insert_jobs(&mut tx, &[unique("rolled back", key as u8, until)]).await?;
        drop(tx);
        write_new::<T>(&store, &[unique("written", key as u8, until)]).await?;
    }
    let claimed = claim::<T>(&store, 10).await?;
    ensure_eq!(kinds(&claimed), ["written"; 3], "jobs to claim");
    Ok(())
}
