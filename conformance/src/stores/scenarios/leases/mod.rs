//! Leases: one owner at a time, and the next one's token is higher.

use std::time::Duration;

use polybus_patterns::store::{Lease, Store};

use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        cx::StoreCx,
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "leases/one-owner",
            "A lease that is held is not given out; one that was released is, at once and under a higher token.",
            one_owner,
        ),
        store_scenario(
            "leases/run-out",
            "A lease that ran out is taken by another owner, and not renewed under its old token any more.",
            run_out,
        ),
        store_scenario(
            "leases/contended",
            "Of two who ask for the same leases at once, each lease has one owner.",
            contended,
        ),
        store_scenario(
            "leases/members",
            "Members are counted until they leave, or are silent for their term.",
            members,
        ),
        store_scenario(
            "leases/clock-set-back",
            "A lease and a member from before the clock was set back hold nothing up.",
            clock_set_back,
        )
        .needs_clock(),
    ]
}

const TERM: Duration = Duration::from_secs(60);

fn names(n: usize) -> Vec<String> {
    (0..n).map(|n| format!("suite/{n}")).collect()
}

async fn one_owner<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let (leases, others) = (store.control().leases(), cx.second(&store).await?.control().leases());
    let mine = leases.acquire(&names(3), "a", TERM).await?;
    ensure_eq!(mine.iter().map(|lease| lease.name.clone()).collect::<Vec<_>>(), names(3), "leases taken");
    ensure_eq!(others.acquire(&names(4), "b", TERM).await?.len(), 1, "leases that were free");
    ensure_eq!(leases.renew(&mine, "a", TERM).await?, mine, "leases renewed");
    ensure_eq!(others.renew(&mine, "b", TERM).await?, [], "leases renewed by another owner");
    let stale: Vec<Lease> = mine.iter().map(|lease| Lease { token: lease.token - 1, ..lease.clone() }).collect();
    ensure_eq!(leases.renew(&stale, "a", TERM).await?, [], "leases renewed under another token");
    // Not the owner's, so they stay.
    others.release(&mine[..1], "b").await?;
    leases.release(&stale[..1], "a").await?;
    ensure_eq!(others.acquire(&names(1), "b", TERM).await?, [], "leases that another one released");
    leases.release(&mine[..1], "a").await?;
    let taken = others.acquire(&names(1), "b", TERM).await?;
    ensure_eq!(taken.len(), 1, "leases that were released");
    ensure!(taken[0].token > mine[0].token, "the token went from {} to {}", mine[0].token, taken[0].token);
    ensure_eq!(leases.renew(&mine, "a", TERM).await?, mine[1..], "leases renewed after one was given away");
    Ok(())
}

async fn run_out<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let leases = store.control().leases();
    let mine = leases.acquire(&names(1), "a", Duration::from_millis(300)).await?;
    let taken = cx
        .eventually("the lease runs out", async || {
            let taken = leases.acquire(&names(1), "b", TERM).await?;
            Ok((!taken.is_empty()).then_some(taken))
        })
        .await?;
    ensure_eq!(taken[0].token, mine[0].token + 1, "the token of the next owner");
    ensure_eq!(leases.renew(&mine, "a", TERM).await?, [], "leases renewed by the last owner");
    ensure_eq!(leases.renew(&taken, "b", TERM).await?, taken, "leases renewed by the next owner");
    leases.release(&mine, "a").await?;
    ensure_eq!(leases.acquire(&names(1), "c", TERM).await?, [], "leases that the last owner released");
    Ok(())
}

async fn contended<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let mut tasks = tokio::task::JoinSet::new();
    for owner in 0..6 {
        let leases = cx.second(&store).await?.control().leases();
        tasks.spawn(async move { leases.acquire(&names(16), &owner.to_string(), TERM).await });
    }
    let mut taken = Vec::new();
    while let Some(acquired) = tasks.join_next().await {
        taken.extend(acquired??.into_iter().map(|lease| lease.name));
    }
    taken.sort_unstable();
    let mut wanted = names(16);
    wanted.sort_unstable();
    ensure_eq!(taken, wanted, "leases taken by all");
    Ok(())
}

async fn members<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let leases = store.control().leases();
    ensure_eq!(leases.join("suite", "a", TERM).await?, 1, "members");
    ensure_eq!(leases.join("suite", "b", TERM).await?, 2, "members");
    ensure_eq!(leases.join("suite", "b", TERM).await?, 2, "members after one has joined again");
    ensure_eq!(leases.join("another", "c", TERM).await?, 1, "members of another group");
    leases.leave("suite", "a").await?;
    ensure_eq!(leases.join("suite", "c", TERM).await?, 2, "members after one left");
    // All members of a group have one term.
    let brief = Duration::from_secs(1);
    leases.join("brief", "silent", brief).await?;
    cx.eventually("the silent member is removed", async || {
        Ok((leases.join("brief", "a", brief).await? == 1).then_some(()))
    })
    .await
}

async fn clock_set_back<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let leases = store.control().leases();
    cx.move_clock(&store, 24 * 3_600);
    let far = leases.acquire(&names(1), "a", TERM).await?;
    leases.join("suite", "a", TERM).await?;
    cx.move_clock(&store, 0);
    let taken = leases.acquire(&names(1), "b", TERM).await?;
    ensure_eq!(taken.len(), 1, "leases with an end far ahead");
    ensure!(taken[0].token > far[0].token, "the token went from {} to {}", far[0].token, taken[0].token);
    ensure_eq!(leases.join("suite", "b", TERM).await?, 1, "members without the one from before");
    cx.move_clock(&store, 30);
    ensure_eq!(leases.acquire(&names(1), "c", TERM).await?, [], "leases that are held");
    cx.move_clock(&store, 61);
    ensure_eq!(leases.acquire(&names(1), "c", TERM).await?.len(), 1, "leases that ran out");
    Ok(())
}
