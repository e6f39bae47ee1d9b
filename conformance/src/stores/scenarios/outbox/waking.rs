//! How a relay hears of rows.

use std::time::Duration;

use polybus_core::Address;
use polybus_patterns::store::Store;
use tokio::time::Instant;

use crate::{
    Need, Outcome, ensure,
    stores::{
        cx::{StoreCx, StoreOf, of_key},
        relays::{RunningRelay, relay},
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario("outbox/notify", "notify wakes the relay of another process that listens.", notify)
            .needs(|can| Need::when(can.notify, "no way to tell other processes")),
        store_scenario(
            "outbox/found-without-a-word",
            "A commit that nobody tells of is found by a relay of the process at once, and by another one's polling.",
            found_without_a_word,
        ),
    ]
}

/// A relay that would find nothing by polling before this is over.
const POLL: Duration = Duration::from_secs(600);

async fn notify<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let other = cx.second(&store).await?;
    cx.enqueue(&store, &to, of_key("k", [0])).await?;
    let relay = RunningRelay::start(relay(&broker.bus, &other).poll(POLL).listen(true));
    // What was there when it took its slots is found anyhow.
    cx.published(&broker, &to, 1).await?;
    // It may still have looked once more on its own, and found the next row so. One that waits for a second shows that
    // it does not look any more.
    let mut rows = 1;
    loop {
        cx.enqueue(&store, &to, of_key("k", [rows])).await?;
        rows += 1;
        tokio::time::sleep(cx.lateness(Duration::from_secs(1))).await;
        if broker.published(&to).len() < rows {
            break;
        }
        ensure!(rows < 20, "the relay finds rows though nobody tells it, so this proves nothing");
    }
    // Again and again: it may not listen yet.
    cx.eventually("the relay is woken", async || {
        cx.outbox(&store).notify().await?;
        Ok((broker.published(&to).len() == rows).then_some(()))
    })
    .await?;
    relay.stop().await?;
    Ok(())
}

async fn found_without_a_word<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let commit = async |n: usize| -> Outcome {
        let mut tx = store.begin().await?;
        cx.outbox(&store).enqueue_all(&mut tx, to.clone(), of_key("k", [n])).await?;
        StoreOf::<T>::commit(tx).await?;
        Ok(())
    };
    commit(0).await?;
    let near = RunningRelay::start(relay(&broker.bus, &store).poll(POLL));
    cx.published(&broker, &to, 1).await?;
    let began = Instant::now();
    commit(1).await?;
    cx.published(&broker, &to, 2).await?;
    ensure!(began.elapsed() < POLL, "found by polling");
    near.stop().await?;
    let far = RunningRelay::start(relay(&broker.bus, &cx.second(&store).await?));
    commit(2).await?;
    cx.published(&broker, &to, 3).await?;
    far.stop().await?;
    Ok(())
}
