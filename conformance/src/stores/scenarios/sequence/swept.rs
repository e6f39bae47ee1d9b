//! Keys that are not used any more.

use std::{sync::Arc, time::Duration};

use polybus_core::{Address, Source};
use polybus_patterns::{
    Inbox, SequenceGuard,
    sequence::{GAP_REASON, SequencePolicy},
    store::{InboxStore, SequenceStore, Store},
};

use super::{Found, Handled, gap, guarded_inbox, handle_all, numbers::published, stopped::dead};
use crate::{
    Outcome, ensure_eq,
    stores::{
        cx::{StoreCx, StoreOf, of_key},
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "sequence/forgotten",
            "A key that is not used for longer than the retention is forgotten, batch by batch, and others are not.",
            forgotten,
        )
        .needs_clock(),
        store_scenario(
            "sequence/stopped-is-remembered",
            "A key that stands still, and of which messages come, is not forgotten.",
            stopped_is_remembered,
        )
        .needs_clock(),
        store_scenario(
            "sequence/numbers-forgotten",
            "A key for which no number was drawn for long begins with 1 again, and others go on.",
            numbers_forgotten,
        )
        .needs_clock(),
    ]
}

async fn forgotten<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, handled) = (cx.store().await?, Found::default(), Handled::default());
    let inbox = Inbox::new(&store, "billing").sequence_guard(found.of(SequenceGuard::new()));
    let handler = Arc::new(guarded_inbox::<T>(&inbox, &handled));
    for key in 0..5 {
        handle_all(&handler, &format!("old{key}"), [1]).await?;
    }
    handle_all(&handler, "used", [1]).await?;
    cx.move_clock(&store, 20 * 24 * 3600);
    handle_all(&handler, "used", [2]).await?;
    cx.move_clock(&store, 31 * 24 * 3600);
    let consumer = store.inbox().register("billing", &Source::queue("q").to_string()).await?;
    let table = store.sequences();
    for gone in [2, 2, 1, 0] {
        ensure_eq!(table.sweep_progress(consumer, 30 * DAY, 2).await?, gone, "keys of a batch");
    }
    handle_all(&handler, "old1", [7]).await?;
    handle_all(&handler, "used", [4]).await?;
    ensure_eq!(found.findings(), [gap(3, 3)], "findings");
    Ok(())
}

async fn stopped_is_remembered<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, handled) = (cx.store().await?, Found::default(), Handled::default());
    let guard = found.of(SequenceGuard::new().on_gap(SequencePolicy::DeadLetter));
    let inbox = Inbox::new(&store, "billing").sequence_guard(guard);
    let handler = Arc::new(guarded_inbox::<T>(&inbox, &handled));
    handle_all(&handler, "k", [1]).await?;
    dead(&handler, "k", 3, GAP_REASON).await?;
    cx.move_clock(&store, 20 * 24 * 3600);
    dead(&handler, "k", 4, GAP_REASON).await?;
    cx.move_clock(&store, 31 * 24 * 3600);
    let consumer = store.inbox().register("billing", &Source::queue("q").to_string()).await?;
    ensure_eq!(store.sequences().sweep_progress(consumer, 30 * DAY, 10).await?, 0, "forgotten keys");
    dead(&handler, "k", 5, GAP_REASON).await?;
    ensure_eq!(found.findings(), [gap(2, 2)], "findings");
    Ok(())
}

async fn numbers_forgotten<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let outbox = cx.outbox(&store).sequenced();
    let enqueue = async |key: &str| {
        let mut tx = store.begin().await?;
        outbox.enqueue_all(&mut tx, to.clone(), of_key(key, [0])).await?;
        StoreOf::<T>::commit(tx).await
    };
    for key in ["old0", "old1", "old2", "used"] {
        enqueue(key).await?;
    }
    cx.move_clock(&store, 40 * 24 * 3600);
    enqueue("used").await?;
    cx.move_clock(&store, 61 * 24 * 3600);
    let table = store.sequences();
    for gone in [2, 1, 0] {
        ensure_eq!(table.sweep_numbers(60 * DAY, 2).await?, gone, "keys of a batch");
    }
    enqueue("used").await?;
    enqueue("old1").await?;
    cx.move_clock(&store, 0);
    cx.relay_until(&broker, &store, &to, 7).await?;
    let keys = published(&broker, &to);
    let of = |key: &str| keys.get(key).cloned().unwrap_or_default().into_iter().map(|(n, _)| n).collect::<Vec<_>>();
    ensure_eq!(of("used"), [Some(1), Some(2), Some(3)], "numbers of a key that is used");
    ensure_eq!(of("old1"), [Some(1), Some(1)], "numbers of a key that was forgotten");
    Ok(())
}
