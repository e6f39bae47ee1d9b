//! What tells messages and consumers from others.

use std::sync::Arc;

use polybus_core::{
    Envelope, ErrorKind,
    message::cloudevents::{WireMessage, decode},
};
use polybus_patterns::{Inbox, store::InboxStore};

use super::{effect, handle, handle_of, message};
use crate::{
    Outcome, ensure, ensure_eq, expect_kind,
    scenarios::shared::GoalCounter,
    stores::{
        cx::StoreCx,
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "inbox/made-up-ids",
            "Messages without an id of their own are handled each time, and once for each natural key with key_by.",
            made_up_ids,
        ),
        store_scenario(
            "inbox/one-source",
            "The same consumer on another source is refused, and on its own it keeps its number.",
            one_source,
        ),
        store_scenario(
            "inbox/registered-at-once",
            "Processes that name the same consumer for the first time at once get one number.",
            registered_at_once,
        ),
        store_scenario("inbox/another-consumer", "Each consumer handles a message once.", another_consumer),
        store_scenario("inbox/equal-ids", "Messages of two sources with the same id are two messages.", equal_ids),
    ]
}

async fn made_up_ids<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let tick = decode(WireMessage { body: "tick".into(), ..WireMessage::default() }).envelope;
    ensure!(tick.id_is_made_up(), "the message has an id, so this proves nothing");
    let (plain, keyed) = (GoalCounter::default(), GoalCounter::default());
    let handler = Arc::new(effect::<T>(&Inbox::new(&store, "plain"), &plain));
    let by_text = Inbox::new(&store, "keyed").key_by(|m: &Envelope| String::from_utf8(m.data.to_vec()).ok());
    let with_key = Arc::new(effect::<T>(&by_text, &keyed));
    for _ in 0..3 {
        handle(&handler, &tick).await??;
        handle(&with_key, &tick).await??;
    }
    ensure_eq!((plain.get(), keyed.get()), (3, 1), "runs without and with a natural key");
    ensure_eq!(cx.effects(&store).await?.get("tick"), Some(&4), "effects");
    Ok(())
}

async fn one_source<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let table = store.inbox();
    let number = table.register("billing", "queue:q").await?;
    ensure_eq!(table.register("billing", "queue:q").await?, number, "the number of the same consumer");
    let of_another_process = cx.second(&store).await?.inbox().register("billing", "queue:q").await?;
    ensure_eq!(of_another_process, number, "its number in another process");
    expect_kind!(table.register("billing", "queue:other").await, ErrorKind::ConfigInvalid);
    ensure!(table.register("another", "queue:q").await? != number, "two consumers have one number");
    let runs = GoalCounter::default();
    let handler = Arc::new(effect::<T>(&Inbox::new(&store, "billing"), &runs));
    ensure!(handle_of(&handler, "other", &message("x")).await?.is_err(), "handled on another source");
    handle_of(&handler, "q", &message("x")).await??;
    ensure_eq!(runs.get(), 1, "runs of the handler");
    Ok(())
}

async fn registered_at_once<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let second = cx.second(&store).await?;
    for round in 0..5 {
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..8 {
            let table = if n % 2 == 0 { store.inbox() } else { second.inbox() };
            tasks.spawn(async move { table.register(&format!("billing-{round}"), "queue:q").await });
        }
        let mut numbers = Vec::new();
        while let Some(number) = tasks.join_next().await {
            numbers.push(number??);
        }
        ensure!(numbers.iter().all(|number| *number == numbers[0]), "one consumer has the numbers {numbers:?}");
    }
    Ok(())
}

async fn another_consumer<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let m = message("x");
    for (consumer, wanted) in [("billing", 1), ("mail", 2)] {
        let runs = GoalCounter::default();
        let handler = Arc::new(effect::<T>(&Inbox::new(&store, consumer), &runs));
        for _ in 0..2 {
            handle(&handler, &m).await??;
        }
        ensure_eq!(runs.get(), 1, "runs of the handler of {consumer}");
        ensure_eq!(cx.effects(&store).await?.get("x"), Some(&wanted), "effects");
    }
    Ok(())
}

async fn equal_ids<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let runs = GoalCounter::default();
    let handler = Arc::new(effect::<T>(&Inbox::new(&store, "billing"), &runs));
    for _ in 0..2 {
        for source in ["/shop", "/stock"] {
            let m = message(source).id("7").source(source);
            handle(&handler, &m).await??;
        }
    }
    ensure_eq!(runs.get(), 2, "runs of the handler");
    Ok(())
}
