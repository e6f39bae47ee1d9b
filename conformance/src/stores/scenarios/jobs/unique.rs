//! Unique keys: how long they are taken, and what answers to whom.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use polybus_patterns::store::{JobInserted, JobOutcome, JobStore, NewJobRow, Store, UniqueUntil};

use super::{JobsUnderTest, again, claim, end, finished, ids, job, stored, unique, write, write_and_claim, write_new};
use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        cx::{StoreCx, StoreOf},
        scenario::{StoreScenario, store_scenario},
    },
};

pub(super) fn all<T: JobsUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario("jobs/unique-started", "A key until the start is free once the job is claimed.", until_started),
        store_scenario("jobs/unique-done", "A key until the end is free once the job is finished.", until_done),
        store_scenario(
            "jobs/unique-done-by-others",
            "A key until the end is free once somebody cancels or discards the job, or gives it up for its worker.",
            done_by_others,
        )
        .needs_clock(),
        store_scenario(
            "jobs/unique-for",
            "A key for a time is taken for that time, whatever becomes of the job.",
            fixed,
        )
        .needs_clock(),
        store_scenario(
            "jobs/unique-held",
            "A job that a transaction finds waiting is not claimed before that transaction ends.",
            waits,
        )
        .needs_parallel_writers(),
        store_scenario("jobs/unique-in-one-call", "Of jobs with one key in one call one is written.", in_one_call),
        store_scenario(
            "jobs/unique-retry",
            "A finished job whose key is taken is not retried; one that is retried takes its key.",
            retry,
        ),
    ]
}

/// Writes a job with the key 7, and tells whether it was new.
async fn is_new<T: JobsUnderTest>(store: &StoreOf<T>, until: UniqueUntil) -> Outcome<bool> {
    Ok(write::<T>(store, &[unique("copy", 7, until)]).await?[0].is_new)
}

async fn until_started<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, until) = (cx.store().await?, UniqueUntil::Started);
    let first = write_new::<T>(&store, &[unique("first", 7, until)]).await?[0];
    for _ in 0..2 {
        let copy = write::<T>(&store, &[unique("copy", 7, until)]).await?[0];
        ensure_eq!(copy, JobInserted { id: first, is_new: false }, "a copy while the job waits");
    }
    let claimed = claim::<T>(&store, 10).await?;
    ensure_eq!(claimed.len(), 1, "jobs claimed");
    let second = write_new::<T>(&store, &[unique("second", 7, until)]).await?[0];
    // The first one runs again: the key is the second one's.
    end::<T>(&store, &claimed[0], again(0, true)).await?;
    let copy = write::<T>(&store, &[unique("copy", 7, until)]).await?[0];
    ensure_eq!(copy, JobInserted { id: second, is_new: false }, "a copy while the second one waits");
    ensure_eq!(claim::<T>(&store, 10).await?.len(), 2, "jobs claimed");
    ensure!(is_new::<T>(&store, until).await?, "the key is taken though both have started");
    Ok(())
}

async fn until_done<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, until) = (cx.store().await?, UniqueUntil::Done);
    for outcome in [JobOutcome::Completed, JobOutcome::Discarded, JobOutcome::Cancelled] {
        let first = write_and_claim::<T>(&store, unique("first", 7, until)).await?;
        let copy = write::<T>(&store, &[unique("copy", 7, until)]).await?[0];
        ensure_eq!(copy, JobInserted { id: first.id, is_new: false }, "a copy while the job runs");
        end::<T>(&store, &first, again(0, true)).await?;
        ensure!(!is_new::<T>(&store, until).await?, "a copy was written while the job waits to run again");
        let second_run = claim::<T>(&store, 1).await?;
        ensure_eq!(second_run.len(), 1, "jobs claimed");
        end::<T>(&store, &second_run[0], finished(outcome)).await?;
    }
    let last = write_and_claim::<T>(&store, unique("last", 7, until)).await?;
    // As a handler with a transaction ends.
    let tx = super::finishing::<T>(&store, &last).await?;
    StoreOf::<T>::commit(tx).await?;
    ensure!(is_new::<T>(&store, until).await?, "the key is taken though a transaction has finished the job");
    Ok(())
}

async fn done_by_others<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, until) = (cx.store().await?, UniqueUntil::Done);
    let table = store.jobs();
    let id = write_new::<T>(&store, &[unique("a", 7, until)]).await?[0];
    ensure_eq!(table.cancel(&ids(&[id])).await?, 1, "jobs cancelled");
    let id = write_new::<T>(&store, &[unique("b", 7, until)]).await?[0];
    ensure_eq!(table.discard(&ids(&[id]), "not wanted").await?, 1, "jobs discarded");
    write_and_claim::<T>(&store, NewJobRow { max_attempts: 1, ..unique("c", 7, until) }).await?;
    cx.move_clock(&store, 3_600);
    ensure_eq!(table.rescue("lost", 10).await?.discarded, 1, "jobs given up");
    let running = write_and_claim::<T>(&store, unique("d", 7, until)).await?;
    table.cancel(&ids(&[running.id])).await?;
    ensure!(!is_new::<T>(&store, until).await?, "a copy was written while the cancelled job still runs");
    end::<T>(&store, &running, again(0, true)).await?;
    ensure!(is_new::<T>(&store, until).await?, "the key is taken though the job was cancelled");
    Ok(())
}

async fn fixed<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, until) = (cx.store().await?, UniqueUntil::For(Duration::from_secs(600)));
    let first = write_and_claim::<T>(&store, unique("first", 7, until)).await?;
    let taken = JobInserted { id: first.id, is_new: false };
    ensure_eq!(write::<T>(&store, &[unique("copy", 7, until)]).await?[0], taken, "a copy while the job runs");
    end::<T>(&store, &first, finished(JobOutcome::Completed)).await?;
    ensure_eq!(write::<T>(&store, &[unique("copy", 7, until)]).await?[0], taken, "a copy once it is completed");
    ensure_eq!(store.jobs().delete(&ids(&[first.id])).await?, 1, "jobs deleted");
    cx.move_clock(&store, 500);
    ensure_eq!(write::<T>(&store, &[unique("copy", 7, until)]).await?[0], taken, "a copy once it is gone");
    // With a time of its own, from when it was written.
    cx.move_clock(&store, 1_000);
    let second = write_new::<T>(&store, &[unique("second", 7, until)]).await?[0];
    cx.move_clock(&store, 1_400);
    let copy = write::<T>(&store, &[unique("copy", 7, until)]).await?[0];
    ensure_eq!(copy, JobInserted { id: second, is_new: false }, "a copy of the second one");
    ensure_eq!(stored::<T>(&store).await?.len(), 1, "jobs that are there");
    Ok(())
}

async fn waits<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, until) = (cx.store().await?, UniqueUntil::Started);
    for (n, commits) in [true, false].into_iter().enumerate() {
        let [one, other] = [10 + n as u8, 20 + n as u8];
        let first = write_new::<T>(&store, &[unique("first", one, until), unique("second", other, until)]).await?;
        let mut tx = store.begin().await?;
        // What this transaction writes beside it, the job must see.
        let copy = store.insert_jobs(&mut tx, &[unique("copy", one, until)]).await?;
        ensure_eq!(copy, [JobInserted { id: first[0], is_new: false }], "a copy while the job waits");
        let copies = [unique("copy", one, until), unique("copy", other, until)];
        let copies = store.insert_jobs(&mut tx, &copies).await?;
        let found = first.iter().map(|id| JobInserted { id: *id, is_new: false });
        ensure_eq!(copies, found.collect::<Vec<_>>(), "copies while the jobs wait");
        let claimed = cx.within("a claim is answered", claim::<T>(&store, 10)).await??;
        ensure_eq!(super::kinds(&claimed), [""; 0], "jobs claimed before the transaction that has found them ends");
        match commits {
            true => StoreOf::<T>::commit(tx).await?,
            false => drop(tx),
        }
        let claimed = AtomicUsize::new(0);
        cx.eventually("both are claimed once it has ended", async || {
            let more = claim::<T>(&store, 10).await?.len();
            Ok((claimed.fetch_add(more, Ordering::Relaxed) + more == 2).then_some(()))
        })
        .await?;
    }
    Ok(())
}

async fn in_one_call<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    for (n, until) in
        [UniqueUntil::Started, UniqueUntil::Done, UniqueUntil::For(Duration::from_secs(600))].into_iter().enumerate()
    {
        let before = stored::<T>(&store).await?.len();
        let (key, other) = (10 + n as u8, 200 - n as u8);
        let elsewhere = NewJobRow { queue: "other".to_owned(), ..unique("of another queue", key, until) };
        let jobs = [
            unique("a", other, until),
            unique("b", key, until),
            unique("c", key, until),
            job("d"),
            elsewhere,
            job("e"),
        ];
        let mut tx = store.begin().await?;
        let written = store.insert_jobs(&mut tx, &jobs).await?;
        let new: Vec<bool> = written.iter().map(|job| job.is_new).collect();
        ensure_eq!(new, [true, true, false, true, false, true], "what is new, with {until:?}");
        ensure_eq!((written[2].id, written[4].id), (written[1].id, written[1].id), "the id that copies get");
        ensure!(written[3].id < written[5].id, "the ids of jobs without a key do not rise in their order");
        let copy = store.insert_jobs(&mut tx, &jobs[1..2]).await?;
        let wanted = JobInserted { id: written[1].id, is_new: false };
        ensure_eq!(copy, [wanted], "a copy in another call of the same transaction");
        StoreOf::<T>::commit(tx).await?;
        ensure_eq!(stored::<T>(&store).await?.len() - before, 4, "jobs written, with {until:?}");
    }
    Ok(())
}

async fn retry<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, until) = (cx.store().await?, UniqueUntil::Done);
    let table = store.jobs();
    let first = write_and_claim::<T>(&store, unique("first", 7, until)).await?;
    end::<T>(&store, &first, finished(JobOutcome::Discarded)).await?;
    let second = write_and_claim::<T>(&store, unique("second", 7, until)).await?;
    let before = super::find::<T>(&store, first.id).await?;
    ensure_eq!(table.retry(&ids(&[first.id])).await?, 0, "jobs retried whose key is taken");
    ensure_eq!(super::find::<T>(&store, first.id).await?, before, "the job that was left alone");
    ensure_eq!(stored::<T>(&store).await?.len(), 2, "jobs that are there");
    end::<T>(&store, &second, finished(JobOutcome::Discarded)).await?;
    // Both were discarded: one of them can have the key.
    ensure_eq!(table.retry(&ids(&[first.id, second.id])).await?, 1, "jobs retried of two with one key");
    let copy = write::<T>(&store, &[unique("copy", 7, until)]).await?[0];
    let claimed = claim::<T>(&store, 10).await?;
    ensure_eq!(claimed.len(), 1, "jobs claimed");
    ensure_eq!(copy, JobInserted { id: claimed[0].id, is_new: false }, "a copy of the one that was retried");
    Ok(())
}
