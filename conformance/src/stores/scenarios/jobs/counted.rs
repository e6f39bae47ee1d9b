//! Counts, and the queues.

use polybus_patterns::store::{JobOutcome, JobState, JobStore, NewJobRow, StoredQueue};

use super::{JobsUnderTest, LEASE, WORKER, claim, delayed, end, finished, job, write_new};
use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        cx::{StoreCx, StoreOf},
        scenario::{StoreScenario, store_scenario},
    },
};

pub(super) fn all<T: JobsUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario("jobs/counts", "Jobs are counted by queue and state, and the oldest one tells its age.", counts)
            .needs_clock(),
        store_scenario("jobs/counts-cap", "No count goes beyond its cap.", cap),
        store_scenario("jobs/queues", "Queues with jobs and paused ones are told.", queues),
    ]
}

async fn count<T: JobsUnderTest>(store: &StoreOf<T>, queue: &str, state: JobState) -> Outcome<u64> {
    let counts = store.jobs().counts(1_000).await?;
    Ok(counts.iter().filter(|count| count.queue == queue && count.state == state).map(|count| count.jobs).sum())
}

async fn counts<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let of = |queue: &str, n: usize| vec![NewJobRow { queue: queue.to_owned(), ..job("a") }; n];
    ensure_eq!(store.jobs().counts(10).await?.iter().map(|count| count.jobs).sum::<u64>(), 0, "jobs of no queue");
    write_new::<T>(&store, &of("q", 7)).await?;
    write_new::<T>(&store, &of("other", 3)).await?;
    write_new::<T>(&store, &[delayed("d", 6_000), delayed("d", 6_000)]).await?;
    let claimed = claim::<T>(&store, 4).await?;
    ensure_eq!(claimed.len(), 4, "jobs claimed");
    for (n, outcome) in [JobOutcome::Completed, JobOutcome::Discarded, JobOutcome::Cancelled].into_iter().enumerate() {
        end::<T>(&store, &claimed[n], finished(outcome)).await?;
    }
    cx.move_clock(&store, 100);
    let wanted = [
        ("q", JobState::Available, 3),
        ("q", JobState::Scheduled, 2),
        ("q", JobState::Running, 1),
        ("q", JobState::Finished(JobOutcome::Completed), 1),
        ("q", JobState::Finished(JobOutcome::Discarded), 1),
        ("q", JobState::Finished(JobOutcome::Cancelled), 1),
        ("other", JobState::Available, 3),
        ("other", JobState::Scheduled, 0),
    ];
    for (queue, state, jobs) in wanted {
        ensure_eq!(count::<T>(&store, queue, state).await?, jobs, "jobs of {queue} that are {state:?}");
    }
    for count in store.jobs().counts(1_000).await? {
        let oldest = count.oldest.map(|oldest| oldest.as_secs());
        match count.state {
            JobState::Available => {
                ensure!(oldest.is_some_and(|s| (99..3_600).contains(&s)), "the oldest of {count:?}, after 100 s");
            }
            _ => ensure_eq!(oldest, None, "an age of those that are {:?}", count.state),
        }
    }
    Ok(())
}

async fn cap<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    write_new::<T>(&store, &vec![job("a"); 30]).await?;
    write_new::<T>(&store, &vec![delayed("d", 600); 30]).await?;
    for cap in [1, 10, 29] {
        for count in store.jobs().counts(cap).await? {
            ensure_eq!(count.jobs, u64::from(cap), "jobs that are {:?} with a cap of {cap}", count.state);
        }
    }
    Ok(())
}

async fn queues<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let table = store.jobs();
    let is = |name: &str, paused: bool| StoredQueue { name: name.to_owned(), paused };
    ensure_eq!(table.queues().await?, [], "the queues of an empty table");
    let of = |queue: &str| NewJobRow { queue: queue.to_owned(), ..job("a") };
    write_new::<T>(
        &store,
        &[of("b"), of("a"), of("b"), of("done"), NewJobRow { queue: "later".into(), ..delayed("d", 60) }],
    )
    .await?;
    let claimed = table.claim("done", WORKER, LEASE, 1).await?;
    ensure_eq!(claimed.len(), 1, "jobs claimed");
    end::<T>(&store, &claimed[0], finished(JobOutcome::Completed)).await?;
    table.claim("a", WORKER, LEASE, 1).await?;
    table.set_paused("b", true).await?;
    table.set_paused("empty", true).await?;
    let wanted = [is("a", false), is("b", true), is("empty", true), is("later", false)];
    ensure_eq!(table.queues().await?, wanted, "the queues");
    table.set_paused("b", false).await?;
    table.set_paused("empty", false).await?;
    let wanted = [is("a", false), is("b", false), is("later", false)];
    ensure_eq!(table.queues().await?, wanted, "the queues, once they were resumed");
    Ok(())
}
