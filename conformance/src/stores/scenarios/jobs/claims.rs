//! What a claim takes, and in which order.

use std::{collections::BTreeMap, time::Duration};

use polybus_patterns::store::{JobState, JobStore, NewJobRow};

use super::{JobsUnderTest, LEASE, OTHER, WORKER, claim, delayed, find, job, kinds, write_new};
use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        cx::StoreCx,
        scenario::{StoreScenario, store_scenario},
    },
};

pub(super) fn all<T: JobsUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario("jobs/claim-order", "Claims go by priority, then by run_at, then by id.", claim_order)
            .needs_clock(),
        store_scenario("jobs/claim-limit", "A claim takes no more jobs than it was asked for.", claim_limit),
        store_scenario("jobs/claim-shared", "Of eight claimers each has its own jobs, and all are claimed.", shared),
        store_scenario("jobs/claimed", "A claimed job is running, leased and as it was written.", claimed)
            .needs_clock(),
        store_scenario("jobs/paused", "A paused queue has no claims, on all handles, until it is resumed.", paused),
        store_scenario(
            "jobs/other-queues",
            "A claim leaves the jobs of other queues alone, however alike their names are.",
            other_queues,
        ),
    ]
}

async fn claim_order<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let of = |kind: &str, seconds: u64, priority: i16| NewJobRow { priority, ..delayed(kind, seconds) };
    let jobs = [
        of("last", 0, i16::MAX),
        of("late", 60, 0),
        of("soon", 30, 0),
        of("now", 0, 0),
        of("now too", 0, 0),
        of("first", 60, i16::MIN),
        of("urgent", 90, -1),
    ];
    write_new::<T>(&store, &jobs).await?;
    cx.move_clock(&store, 100);
    ensure_eq!(store.jobs().promote(100).await?.moved, 4, "jobs whose time has come");
    let mut order = Vec::new();
    for limit in [1, 2, 1, 2, 3] {
        order.extend(claim::<T>(&store, limit).await?);
    }
    let wanted = ["first", "urgent", "now", "now too", "soon", "late", "last"];
    ensure_eq!(kinds(&order), wanted, "the order of claims");
    Ok(())
}

async fn claim_limit<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let jobs: Vec<NewJobRow> = (0..10).map(|n| job(n.to_string())).collect();
    write_new::<T>(&store, &jobs).await?;
    for (limit, wanted) in [(0, 0), (1, 1), (4, 4), (5, 5), (5, 0)] {
        ensure_eq!(claim::<T>(&store, limit).await?.len(), wanted, "jobs of a claim of {limit}");
    }
    Ok(())
}

async fn shared<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    const JOBS: usize = 300;
    let store = cx.store().await?;
    let jobs: Vec<NewJobRow> = (0..JOBS).map(|n| job(n.to_string())).collect();
    write_new::<T>(&store, &jobs).await?;
    let (mut claimers, second) =
        (tokio::task::JoinSet::<polybus_core::Result<Vec<String>>>::new(), cx.second(&store).await?);
    for n in 0..8_u8 {
        let table = if n % 2 == 0 { store.jobs() } else { second.jobs() };
        claimers.spawn(async move {
            let mut mine = Vec::new();
            loop {
                let claimed = table.claim("q", [n; 16], LEASE, 7).await?;
                if claimed.is_empty() {
                    return Ok(mine);
                }
                mine.extend(claimed.into_iter().map(|job| job.kind));
            }
        });
    }
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    while let Some(mine) = claimers.join_next().await {
        for kind in mine?? {
            *times.entry(kind).or_default() += 1;
        }
    }
    // Whoever found all rows that are left held by others has stopped early.
    for rest in claim::<T>(&store, 1_000).await? {
        *times.entry(rest.kind).or_default() += 1;
    }
    ensure_eq!(times.values().filter(|times| **times > 1).count(), 0, "jobs that were claimed more than once");
    ensure_eq!(times.len(), JOBS, "jobs that were claimed");
    Ok(())
}

async fn claimed<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let row = NewJobRow {
        head: r#"{"a":"ä"}"#.to_owned(),
        schedule: Some("nightly".to_owned()),
        max_attempts: 7,
        priority: -3,
        ..job("invoice.send")
    };
    let id = write_new::<T>(&store, std::slice::from_ref(&row)).await?[0];
    let waiting = find::<T>(&store, id).await?;
    ensure_eq!((waiting.state, waiting.attempt, waiting.locked_until), (JobState::Available, 0, None), "before");
    cx.move_clock(&store, 100);
    let mut claimed = claim::<T>(&store, 1).await?;
    ensure_eq!(claimed.len(), 1, "jobs claimed");
    let claimed = claimed.remove(0);
    ensure_eq!((claimed.id, claimed.attempt, claimed.max_attempts), (id, 1, 7), "the job, and its attempts");
    ensure_eq!((&claimed.kind, &claimed.head, &claimed.data), (&row.kind, &row.head, &row.data), "its texts");
    ensure_eq!(claimed.schedule, row.schedule, "its schedule");
    let waited = claimed.waited.as_secs();
    ensure!((99..3_600).contains(&waited), "it has waited for {waited} s, and the clock was moved by 100 s");
    let running = find::<T>(&store, id).await?;
    ensure_eq!((running.state, running.attempt), (JobState::Running, 1), "once it was claimed");
    let now = store.schedules().list().await?.now;
    let left = running.locked_until.map(|until| until - now);
    let (lease, late) = (LEASE.as_micros() as i64, cx.lateness(Duration::from_secs(10)).as_micros() as i64);
    ensure!(left.is_some_and(|left| left <= lease && left > lease - late), "its lease ends in {left:?} us");
    Ok(())
}

async fn paused<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let second = cx.second(&store).await?;
    write_new::<T>(&store, &[job("a"), job("b"), NewJobRow { queue: "other".to_owned(), ..job("c") }]).await?;
    for _ in 0..2 {
        second.jobs().set_paused("q", true).await?;
    }
    ensure_eq!(claim::<T>(&store, 10).await?.len(), 0, "jobs of a paused queue");
    let other = store.jobs().claim("other", OTHER, LEASE, 10).await?;
    ensure_eq!(kinds(&other), ["c"], "jobs of another queue");
    for _ in 0..2 {
        second.jobs().set_paused("q", false).await?;
    }
    ensure_eq!(kinds(&claim::<T>(&store, 10).await?), ["a", "b"], "jobs of the queue once it was resumed");
    Ok(())
}

async fn other_queues<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let names = ["q", "Q", "q ", "ä", "a\u{308}", "%", "q'"];
    let jobs = names.map(|name| NewJobRow { queue: name.to_owned(), ..job(name) });
    write_new::<T>(&store, &jobs).await?;
    ensure_eq!(store.jobs().claim("none", WORKER, LEASE, 10).await?.len(), 0, "jobs of a queue without any");
    for name in names {
        let claimed = store.jobs().claim(name, WORKER, LEASE, 10).await?;
        ensure_eq!(kinds(&claimed), [name], "jobs of the queue {name:?}");
    }
    Ok(())
}
