//! The inbox inside a transaction of the application's, and together with the outbox.

use std::sync::Arc;

use polybus_core::{Address, Envelope, HandlerContext, HandlerError, Source};
use polybus_patterns::{
    Inbox, Mark, Outbox,
    store::{OutboxStore, Store},
};

use super::{handle, message, text};
use crate::{
    Outcome, ensure, ensure_eq,
    scenarios::shared::GoalCounter,
    stores::{
        cx::{SOURCE, StoreCx, StoreOf, TxOf},
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "inbox/own-transaction",
            "An open inbox marks in the application's transaction, and its commit notices a lost one.",
            own_transaction,
        ),
        store_scenario(
            "inbox/with-the-outbox",
            "What a handler enqueues is committed with its mark, and rolled back with it.",
            with_the_outbox,
        ),
    ]
}

async fn own_transaction<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let inbox = Inbox::new(&store, "billing").open(Source::queue("q")).await?;
    let m = message("once");
    // Rolled back, lost, committed, and a copy.
    let mut tx = store.begin().await?;
    ensure_eq!(inbox.once(&mut tx, &m).await?, Mark::First, "the first mark");
    ensure_eq!(inbox.once(&mut tx, &m).await?, Mark::Duplicate, "the mark in the same transaction");
    drop(tx);
    let mut tx = store.begin().await?;
    ensure_eq!(inbox.once(&mut tx, &m).await?, Mark::First, "the mark after a rollback");
    T::add_effect(&mut tx, "once").await?;
    let _ = T::fail_statement(&mut tx).await;
    ensure!(inbox.commit(tx, &m).await.is_err(), "a transaction that was lost to an error was committed");
    let mut tx = store.begin().await?;
    ensure_eq!(inbox.once(&mut tx, &m).await?, Mark::First, "the mark after a transaction that was lost");
    T::add_effect(&mut tx, "once").await?;
    inbox.commit(tx, &m).await?;
    let mut tx = store.begin().await?;
    ensure_eq!(inbox.once(&mut tx, &m).await?, Mark::Duplicate, "the mark of a copy");
    drop(tx);
    ensure_eq!(cx.effects(&store).await?.get("once"), Some(&1), "effects");
    Ok(())
}

async fn with_the_outbox<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let runs = GoalCounter::default();
    let state = (Outbox::new(&store, SOURCE), runs.clone());
    let handler = Inbox::new(&store, "billing").handler(
        state,
        |state: (Outbox<StoreOf<T>>, GoalCounter), mut tx: TxOf<T>, _: HandlerContext, m: Envelope| async move {
            let (outbox, runs) = state;
            T::add_effect(&mut tx, &text(&m)).await?;
            outbox.enqueue(&mut tx, Address::queue("mail"), Envelope::new("t", text(&m)).key("k")).await?;
            if runs.add() == 1 { Err(HandlerError::new("as planned")) } else { Ok(tx) }
        },
    );
    let (handler, m) = (Arc::new(handler), message("once"));
    ensure!(handle(&handler, &m).await?.is_err(), "the handler's error was lost");
    ensure_eq!(store.outbox().stats(10).await?.ready, 0, "rows of a handler that failed");
    for _ in 0..2 {
        handle(&handler, &m).await??;
    }
    ensure_eq!(store.outbox().stats(10).await?.ready, 1, "rows of the handler");
    ensure_eq!(cx.effects(&store).await?.get("once"), Some(&1), "effects");
    Ok(())
}
