//! What becomes of a message with its transaction.

use polybus_core::{Address, Envelope, ErrorKind};
use polybus_patterns::store::{OutboxStore, Store};

use super::rows_of;
use crate::{
    Outcome, ensure, ensure_eq, expect_kind,
    stores::{
        cx::{StoreCx, StoreOf, of_key},
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario("outbox/tables", "The tables are verified, and a component that does not exist is not.", tables),
        store_scenario(
            "outbox/committed",
            "A message of a committed transaction is published, one of a rolled back transaction never.",
            committed,
        ),
        store_scenario(
            "outbox/with-effects",
            "A message and the effects of its transaction are there together, or neither is.",
            with_effects,
        ),
        store_scenario(
            "outbox/no-transaction",
            "An enqueue outside a transaction is refused, and nothing is written.",
            no_transaction,
        ),
        store_scenario("outbox/outside", "enqueue_outside writes a message on its own.", outside),
        store_scenario(
            "outbox/statement",
            "The statement of Outbox::row writes the message, in the caller's transaction.",
            statement,
        ),
        store_scenario(
            "outbox/bytes-as-they-were",
            "Payload, key, headers and attributes of any bytes come back as they were.",
            bytes_as_they_were,
        ),
    ]
}

async fn tables<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let control = store.control();
    control.verify(&["lease", "outbox", "inbox"]).await?;
    ensure!(control.verify(&["no-such-component"]).await.is_err(), "a component that does not exist was verified");
    ensure!(!control.is_away().await, "the database is there, and is_away says that it is not");
    Ok(())
}

async fn committed<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    cx.enqueue(&store, &to, of_key("k", [0])).await?;
    let mut tx = store.begin().await?;
    cx.outbox(&store).enqueue_all(&mut tx, to.clone(), of_key("k", [1])).await?;
    drop(tx);
    let relay = cx.relay(&broker, &store);
    cx.sentinel(&broker, &store, &to, "k").await?;
    relay.stop().await?;
    ensure_eq!(broker.texts(&to), ["0", "sentinel"], "what was published");
    Ok(())
}

async fn with_effects<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    for n in 0..20 {
        let mut tx = store.begin().await?;
        T::add_effect(&mut tx, &n.to_string()).await?;
        cx.outbox(&store).enqueue_all(&mut tx, to.clone(), of_key("k", [n])).await?;
        if n % 3 != 0 {
            StoreOf::<T>::commit(tx).await?;
        }
    }
    let relay = cx.relay(&broker, &store);
    cx.sentinel(&broker, &store, &to, "k").await?;
    relay.stop().await?;
    let mut published = broker.texts(&to);
    published.pop();
    let wanted: Vec<String> = (0..20).filter(|n| n % 3 != 0).map(|n| n.to_string()).collect();
    ensure_eq!(published, wanted, "what was published");
    let mut effects: Vec<String> = cx.effects(&store).await?.into_keys().collect();
    effects.sort_unstable_by_key(|name| name.parse::<usize>().unwrap_or(usize::MAX));
    ensure_eq!(effects, wanted, "effects");
    Ok(())
}

async fn no_transaction<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let mut conn = cx.target().plain(&store.inner).await?;
    ensure!(!StoreOf::<T>::in_transaction(&mut conn), "a connection without a transaction looks as if it had one");
    let refused = cx.outbox(&store).enqueue(&mut conn, to, Envelope::new("t", "0")).await;
    expect_kind!(refused, ErrorKind::InvalidArgument);
    drop(conn);
    let mut tx = store.begin().await?;
    ensure!(StoreOf::<T>::in_transaction(&mut tx), "a transaction looks as if it were none");
    drop(tx);
    ensure_eq!(store.outbox().stats(10).await?.ready, 0, "rows that were written");
    Ok(())
}

async fn outside<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let mut conn = cx.target().plain(&store.inner).await?;
    cx.outbox(&store).enqueue_outside(&mut conn, to.clone(), of_key("k", [0, 1])).await?;
    drop(conn);
    cx.relay_until(&broker, &store, &to, 2).await?;
    ensure_eq!(broker.texts(&to), ["0", "1"], "what was published");
    Ok(())
}

async fn statement<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let outbox = cx.outbox(&store);
    for (n, commit) in [(0, true), (1, false), (2, true)] {
        let message = Envelope::new("t", n.to_string()).key("k\u{0}").header("h", "ä");
        let row = outbox.row(to.clone(), message).await?;
        let mut tx = store.begin().await?;
        T::execute(&mut tx, row).await?;
        if commit {
            StoreOf::<T>::commit(tx).await?;
        }
    }
    let late = polybus_core::Outgoing::from(Envelope::new("t", "late")).delay(std::time::Duration::from_secs(3600));
    let row = outbox.row(to.clone(), late).await?;
    let mut tx = store.begin().await?;
    T::execute(&mut tx, row).await?;
    StoreOf::<T>::commit(tx).await?;
    ensure_eq!(store.outbox().stats(10).await?.scheduled, 1, "rows with a delay");
    let relay = cx.relay(&broker, &store);
    cx.sentinel(&broker, &store, &to, "k\u{0}").await?;
    relay.stop().await?;
    ensure_eq!(broker.texts(&to), ["0", "2", "sentinel"], "what was published");
    let first = &broker.published(&to)[0];
    ensure_eq!((first.key.as_deref(), first.headers.get("h")), (Some("k\u{0}"), Some("ä")), "its key and header");
    Ok(())
}

async fn bytes_as_they_were<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let any: Vec<u8> = (0..=255).collect();
    let odd = Envelope::new("order.placed", any)
        .source("/odd?x='\"\\")
        .key("a\u{0}b \u{1F980} ' \" \\ %")
        .subject("''; DROP TABLE x; --")
        .header("tenant", "acme \"quoted\"\n")
        .correlation_id("c");
    let messages = [odd.clone(), odd.clone().id("2").edit(|fields| fields.data = Vec::new().into())];
    cx.enqueue(&store, &to, messages.clone()).await?;
    let rows = rows_of(&*store.outbox(), &to.to_string()).await?;
    ensure_eq!(rows.len(), 2, "rows");
    ensure_eq!(rows[0].key.as_deref(), odd.key.as_deref().map(str::as_bytes), "the key of the row");
    cx.relay_until(&broker, &store, &to, 2).await?;
    ensure_eq!(broker.published(&to), messages, "what was published");
    Ok(())
}
