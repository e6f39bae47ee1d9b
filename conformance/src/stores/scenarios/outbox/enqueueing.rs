//! What is refused at the enqueue, what a message gets there, and in which order a batch is written.

use std::time::Duration;

use polybus_core::{
    Address, Envelope, ErrorKind, Outgoing,
    telemetry::{Current, TraceContext},
};
use polybus_patterns::{
    Outbox,
    store::{OutboxStore, Store},
};

use crate::{
    Outcome, ensure, ensure_eq, expect_kind,
    stores::{
        cx::{SOURCE, StoreCx, StoreOf, ordered},
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "outbox/largest-row",
            "A row of exactly the limit is written, and one byte more is refused.",
            largest_row,
        ),
        store_scenario(
            "outbox/order-of-a-batch",
            "The messages of enqueue_all are published in their order per key.",
            order_of_a_batch,
        ),
        store_scenario(
            "outbox/no-key",
            "A message without a key for an ordered address is refused where the topology is known.",
            no_key,
        ),
        store_scenario(
            "outbox/no-key-found-late",
            "Without the topology, the relay parks a message without a key for an ordered address, and others go on.",
            no_key_found_late,
        ),
        store_scenario("outbox/delay-with-a-key", "A delay together with a key is refused.", delay_with_a_key),
        store_scenario(
            "outbox/source",
            "A message gets the outbox' source as it is enqueued, not the relay's.",
            source,
        ),
        store_scenario("outbox/trace", "A message carries on the trace and the conversation of its enqueue.", trace),
    ]
}

async fn largest_row<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let message = Envelope::new("t", "x".repeat(300)).key("k");
    // The size is not told, so it is looked for.
    let (mut refused, mut taken) = (0, 10_000);
    while taken - refused > 1 {
        let middle = (taken + refused) / 2;
        let fits = cx.outbox(&store).max_row(middle).row(to.clone(), message.clone()).await.is_ok();
        if fits { taken = middle } else { refused = middle }
    }
    ensure!(taken > 300, "a row of more than 300 bytes fits into {taken}");
    let mut tx = store.begin().await?;
    cx.outbox(&store).max_row(taken).enqueue(&mut tx, to.clone(), message.clone()).await?;
    let above = cx.outbox(&store).max_row(refused).enqueue(&mut tx, to.clone(), message.clone()).await;
    let e = expect_kind!(above, ErrorKind::PayloadTooLarge);
    ensure_eq!(e.context("id"), Some(&*message.id), "the id in the error");
    // By default, a payload that makes the row larger than 1 MiB.
    let huge = Envelope::new("t", vec![0; (1 << 20) - 100]).key("k");
    expect_kind!(cx.outbox(&store).enqueue(&mut tx, to.clone(), huge).await, ErrorKind::PayloadTooLarge);
    StoreOf::<T>::commit(tx).await?;
    let large = Envelope::new("t", vec![7; (1 << 20) - 2_000]).key("k");
    cx.enqueue(&store, &to, [large.clone()]).await?;
    let broker = cx.ordered_broker(&["q"]).await?;
    cx.relay_until(&broker, &store, &to, 2).await?;
    ensure!(broker.published(&to)[1].data == large.data, "the large payload is another one");
    Ok(())
}

async fn order_of_a_batch<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let message = |n: usize| Envelope::new("t", (n / 5).to_string()).key(format!("k{}", n % 5));
    cx.enqueue(&store, &to, (0..1_000).map(message)).await?;
    cx.relay_until(&broker, &store, &to, 1_000).await?;
    ensure_eq!(broker.published(&to).len(), 1_000, "messages");
    for key in 0..5 {
        let key = format!("k{key}");
        let of_key = broker.published(&to).into_iter().filter(|m| m.key.as_deref() == Some(&*key));
        let got: Vec<String> = of_key.map(|m| String::from_utf8_lossy(&m.data).into_owned()).collect();
        ensure_eq!(got, (0..200).map(|n| n.to_string()).collect::<Vec<_>>(), "the messages of {key}");
    }
    Ok(())
}

async fn no_key<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let outbox = cx.outbox(&store).topology(&ordered(&["q"]));
    let mut tx = store.begin().await?;
    let refused = outbox.enqueue(&mut tx, Address::queue("q"), Envelope::new("t", "0")).await;
    expect_kind!(refused, ErrorKind::InvalidArgument);
    outbox.enqueue(&mut tx, Address::queue("q"), Envelope::new("t", "0").key("k")).await?;
    outbox.enqueue(&mut tx, Address::queue("another"), Envelope::new("t", "0")).await?;
    StoreOf::<T>::commit(tx).await?;
    ensure_eq!(store.outbox().stats(10).await?.ready, 2, "rows");
    Ok(())
}

async fn no_key_found_late<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let bad = Envelope::new("t", "bad");
    cx.enqueue(&store, &to, [bad.clone(), Envelope::new("t", "good").key("k")]).await?;
    let relay = cx.relay(&broker, &store);
    cx.published(&broker, &to, 1).await?;
    let parked = cx
        .eventually("the message without a key is parked", async || {
            let parked = cx.outbox(&store).parked(&polybus_patterns::store::ParkedFilter::All, 0, 10).await?;
            Ok((!parked.is_empty()).then_some(parked))
        })
        .await?;
    let report = relay.stop().await?;
    ensure_eq!((report.parked, parked.len()), (1, 1), "parked");
    ensure_eq!(parked[0].message()?, bad.source(SOURCE), "the parked message");
    ensure_eq!(broker.texts(&to), ["good"], "what was published");
    Ok(())
}

async fn delay_with_a_key<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let mut tx = store.begin().await?;
    let late = |message: Envelope| Outgoing::from(message).delay(Duration::from_secs(60));
    let refused = cx.outbox(&store).enqueue(&mut tx, to.clone(), late(Envelope::new("t", "0").key("k"))).await;
    expect_kind!(refused, ErrorKind::InvalidArgument);
    cx.outbox(&store).enqueue(&mut tx, to, late(Envelope::new("t", "0"))).await?;
    StoreOf::<T>::commit(tx).await?;
    ensure_eq!(store.outbox().stats(10).await?.scheduled, 1, "rows with a delay");
    Ok(())
}

async fn source<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let own = Envelope::new("t", "own").source("/another").key("k");
    cx.enqueue(&store, &to, [Envelope::new("t", "none").key("k"), own]).await?;
    cx.relay_until(&broker, &store, &to, 2).await?;
    let sources: Vec<String> = broker.published(&to).iter().map(|m| m.source.to_string()).collect();
    ensure_eq!(sources, [SOURCE, "/another"], "sources");
    Ok(())
}

async fn trace<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let parent = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None)?;
    let mut tx = store.begin().await?;
    let outbox: Outbox<StoreOf<T>> = cx.outbox(&store);
    let current = Current::of(&Envelope::new("order.placed", "").id("42").correlation_id("basket-3"));
    let enqueue = outbox.enqueue(&mut tx, to.clone(), Envelope::new("t", "0").key("k"));
    current.trace(parent.clone()).scope(enqueue).await?;
    StoreOf::<T>::commit(tx).await?;
    cx.relay_until(&broker, &store, &to, 1).await?;
    let message = broker.published(&to).remove(0);
    let carried = TraceContext::of(&message);
    ensure_eq!(carried.as_ref().map(TraceContext::trace_id), Some(parent.trace_id()), "the trace of the message");
    ensure_eq!(message.correlation_id.as_deref(), Some("basket-3"), "the conversation of the message");
    ensure_eq!(message.causation_id.as_deref(), Some("42"), "the cause of the message");
    Ok(())
}
