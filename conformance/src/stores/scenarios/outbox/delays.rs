//! Rows that wait for their time, and rows whose time is over.

use std::time::Duration;

use polybus_core::{Address, Envelope, Outgoing, QueueSpec, Topology};
use polybus_patterns::store::{OutboxStore, ParkedFilter};
use tokio::time::Instant;

use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        broker::StoreBroker,
        cx::StoreCx,
        relays::{RunningRelay, relay},
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "outbox/due",
            "A message with a delay is published after it and not before, by the database's clock.",
            due,
        )
        .needs_clock(),
        store_scenario("outbox/due-soon", "A message with a delay of a second comes after that second.", due_soon),
        store_scenario(
            "outbox/due-in-order",
            "Rows that became due while no relay ran are all moved, in batches as large as asked for.",
            due_in_batches,
        )
        .needs_clock(),
        store_scenario(
            "outbox/expired",
            "A message that expired while it waited is deleted and counted.",
            async |cx| expired(cx, false).await,
        ),
        store_scenario(
            "outbox/expired-parked",
            "With park_expired, a message that expired is parked and holds nothing up.",
            async |cx| expired(cx, true).await,
        ),
    ]
}

fn late(text: &str, seconds: u64) -> Outgoing {
    Outgoing::from(Envelope::new("t", text.to_owned())).delay(Duration::from_secs(seconds))
}

async fn plain_broker() -> Outcome<StoreBroker> {
    Ok(StoreBroker::new(Topology::new().queue("q", QueueSpec::new())).await?)
}

async fn due<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = plain_broker().await?;
    cx.enqueue(&store, &to, [late("second", 7_200), late("first", 3_600)]).await?;
    let relay = cx.relay(&broker, &store);
    let now = store.outbox().promote_due(100).await?;
    ensure_eq!(now.moved, 0, "rows that are due");
    let hour = Duration::from_secs(3_600);
    ensure!(now.next.is_some_and(|next| next <= hour && next > hour / 2), "the next one is due in {:?}", now.next);
    cx.move_clock(&store, 3_500);
    cx.enqueue(&store, &to, [Envelope::new("t", "sentinel")]).await?;
    cx.published(&broker, &to, 1).await?;
    ensure_eq!(broker.texts(&to), ["sentinel"], "before the hour");
    cx.move_clock(&store, 3_700);
    cx.published(&broker, &to, 2).await?;
    ensure_eq!(broker.texts(&to)[1], "first", "after the hour");
    cx.move_clock(&store, 7_300);
    cx.published(&broker, &to, 3).await?;
    relay.stop().await?;
    ensure_eq!(broker.texts(&to), ["sentinel", "first", "second"], "after two hours");
    Ok(())
}

async fn due_soon<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = plain_broker().await?;
    let begun = Instant::now();
    cx.enqueue(&store, &to, [late("late", 1)]).await?;
    // Nobody moves it before a relay runs, however long the enqueue took.
    let stats = store.outbox().stats(100).await?;
    ensure_eq!((stats.ready, stats.scheduled), (0, 1), "ready and scheduled");
    let relay = cx.relay(&broker, &store);
    cx.published(&broker, &to, 1).await?;
    let took = begun.elapsed();
    ensure!(took >= Duration::from_millis(990), "published {took:?} after an enqueue with a delay of 1 s");
    relay.stop().await?;
    Ok(())
}

async fn due_in_batches<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let table = store.outbox();
    cx.enqueue(&store, &Address::queue("q"), (0..25).map(|n| late(&n.to_string(), 3_600))).await?;
    let stats = table.stats(100).await?;
    ensure_eq!((stats.ready, stats.scheduled), (0, 25), "ready and scheduled");
    cx.move_clock(&store, 3_601);
    let mut moved = Vec::new();
    for _ in 0..4 {
        moved.push(table.promote_due(10).await?.moved);
    }
    ensure_eq!(moved, [10, 10, 5, 0], "rows moved by each call");
    let stats = table.stats(100).await?;
    ensure_eq!((stats.ready, stats.scheduled), (25, 0), "ready and scheduled");
    Ok(())
}

async fn expired<T: StoreUnderTest>(cx: StoreCx<T>, park: bool) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let brief = Outgoing::from(Envelope::new("t", "expired").key("k")).expires_in(Duration::from_millis(1));
    cx.enqueue(&store, &to, [brief]).await?;
    // Time has to pass, by the clock that the bus compares with.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let relay = RunningRelay::start(relay(&broker.bus, &store).park_expired(park).hold_key(true));
    cx.sentinel(&broker, &store, &to, "k").await?;
    let report = relay.stop().await?;
    ensure_eq!(broker.texts(&to), ["sentinel"], "what was published");
    ensure_eq!((report.expired, report.parked), (1, u64::from(park)), "expired and parked");
    let parked = store.outbox().parked(&ParkedFilter::All, 0, 10).await?;
    let reasons: Vec<(&str, bool)> = parked.iter().map(|row| (&*row.reason, row.holds_key)).collect();
    ensure_eq!(reasons, if park { vec![("expired", false)] } else { vec![] }, "reasons of parked rows");
    ensure_eq!(store.outbox().stats(10).await?.ready, 0, "rows that are left");
    Ok(())
}
