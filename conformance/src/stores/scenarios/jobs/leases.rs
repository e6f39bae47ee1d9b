//! Signs of life, and what a worker says of its job.

use polybus_patterns::store::{JobClaim, JobExtended, JobOutcome, JobStore, NewJobRow};

use super::{
    JobsUnderTest, LEASE, WORKER, again, claim, end, find, finished, ids, job, run_of, write_and_claim, write_new,
};
use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        cx::StoreCx,
        scenario::{StoreScenario, store_scenario},
    },
};

pub(super) fn all<T: JobsUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario("jobs/extend", "Signs of life are answered one by one, and move the lease.", extend)
            .needs_clock(),
        store_scenario("jobs/extend-cancelled", "A sign of life tells that the job was cancelled.", extend_cancelled),
        store_scenario(
            "jobs/outlives-leases",
            "A job whose worker gives signs of life runs for five leases and is not rescued.",
            outlives,
        )
        .needs_clock(),
        store_scenario("jobs/progress", "A running job says how far it has come, in both or in one word.", progress),
    ]
}

const HELD: JobExtended = JobExtended::Held { cancelled: false };

async fn extend<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let jobs: Vec<NewJobRow> = (0..40).map(|n| job(n.to_string())).collect();
    write_new::<T>(&store, &jobs).await?;
    let claimed = claim::<T>(&store, 40).await?;
    ensure_eq!(claimed.len(), 40, "jobs claimed");
    // Every fourth one has ended, and its neighbour waits again.
    for (n, job) in claimed.iter().enumerate() {
        match n % 4 {
            0 => end::<T>(&store, job, finished(JobOutcome::Completed)).await?,
            1 => end::<T>(&store, job, again(0, true)).await?,
            _ => {}
        }
    }
    let before = find::<T>(&store, claimed[2].id).await?.locked_until;
    cx.move_clock(&store, 30);
    let runs: Vec<(i64, u32)> = claimed.iter().rev().map(|job| (job.id, job.attempt)).collect();
    let extended = store.jobs().extend(WORKER, LEASE, &runs).await?;
    let wanted: Vec<JobExtended> = (0..40).rev().map(|n| if n % 4 < 2 { JobExtended::Lost } else { HELD }).collect();
    ensure_eq!(extended, wanted, "signs of life");
    let after = find::<T>(&store, claimed[2].id).await?.locked_until;
    let moved = after.zip(before).map(|(after, before)| after - before);
    ensure!(moved.is_some_and(|moved| moved >= 29_000_000), "the lease went from {before:?} to {after:?}");
    ensure_eq!(find::<T>(&store, claimed[0].id).await?.locked_until, None, "the lease of one that is finished");
    ensure_eq!(find::<T>(&store, claimed[1].id).await?.locked_until, None, "the lease of one that waits");
    Ok(())
}

async fn extend_cancelled<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    write_new::<T>(&store, &[job("a"), job("b")]).await?;
    let claimed = claim::<T>(&store, 2).await?;
    ensure_eq!(claimed.len(), 2, "jobs claimed");
    let runs = [(claimed[0].id, 1), (claimed[1].id, 1)];
    ensure_eq!(store.jobs().extend(WORKER, LEASE, &runs).await?, [HELD, HELD], "signs of life");
    ensure_eq!(store.jobs().cancel(&ids(&[claimed[1].id])).await?, 1, "jobs cancelled");
    for _ in 0..2 {
        let extended = store.jobs().extend(WORKER, LEASE, &runs).await?;
        ensure_eq!(extended, [HELD, JobExtended::Held { cancelled: true }], "once one was cancelled");
    }
    Ok(())
}

async fn outlives<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let claimed = write_and_claim::<T>(&store, job("a")).await?;
    for n in 1..=8 {
        cx.move_clock(&store, n * 40);
        let extended = store.jobs().extend(WORKER, LEASE, &[(claimed.id, 1)]).await?;
        ensure_eq!(extended, [HELD], "the sign of life after {} s", n * 40);
        let rescued = store.jobs().rescue("its worker was lost", 10).await?;
        ensure_eq!(rescued, Default::default(), "jobs rescued after {} s", n * 40);
    }
    ensure_eq!(claim::<T>(&store, 1).await?.len(), 0, "jobs to claim");
    end::<T>(&store, &claimed, finished(JobOutcome::Completed)).await
}

async fn progress<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let claimed = write_and_claim::<T>(&store, job("a")).await?;
    let (run, table) = (run_of(&claimed), store.jobs());
    let said = [
        (Some(0), None, Some(0), None),
        (None, Some("begun"), Some(0), Some("begun")),
        (Some(40), Some("ä 'rendered' \\ %"), Some(40), Some("ä 'rendered' \\ %")),
        (Some(100), None, Some(100), Some("ä 'rendered' \\ %")),
        (None, None, Some(100), Some("ä 'rendered' \\ %")),
    ];
    for (percent, note, wanted, wanted_note) in said {
        ensure!(table.progress(&run, percent, note).await?, "the claim was lost");
        let stored = find::<T>(&store, claimed.id).await?;
        ensure_eq!((stored.progress, stored.note.as_deref()), (wanted, wanted_note), "after {percent:?} {note:?}");
    }
    // The same text once more changes no row, and the claim is held nevertheless.
    for _ in 0..2 {
        ensure!(table.progress(&run, Some(7), Some("same")).await?, "the claim was lost where nothing changes");
    }
    ensure!(!table.progress(&JobClaim { attempt: 2, ..run }, Some(8), None).await?, "of another attempt");
    end::<T>(&store, &claimed, finished(JobOutcome::Completed)).await?;
    let done = find::<T>(&store, claimed.id).await?;
    ensure_eq!((done.progress, done.note.as_deref()), (Some(7), Some("same")), "what is kept once it is finished");
    Ok(())
}
