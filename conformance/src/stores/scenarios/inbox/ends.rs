//! How a handler can end: with an error, a panic, a timeout, dropped, or with a transaction that is not what it was.

use std::{sync::Arc, time::Duration};

use polybus_core::{Envelope, HandlerContext, HandlerError};
use polybus_patterns::{
    Inbox,
    store::{OutboxStore, Store},
};

use super::{effect, handle, message, text};
use crate::{
    Outcome, ensure, ensure_eq, fail,
    scenarios::shared::GoalCounter,
    stores::{
        cx::{StoreCx, StoreOf, TxOf},
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
        troubles,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "inbox/error",
            "A handler's error rolls the mark and the effect back, and the message is handled when it comes again.",
            async |cx| ends(cx, Ending::Error).await,
        ),
        store_scenario("inbox/panic", "A handler that panics leaves no mark and no effect.", async |cx| {
            ends(cx, Ending::Panic).await
        }),
        store_scenario(
            "inbox/timeout",
            "A handler past its timeout is dropped, and leaves no mark and no effect.",
            async |cx| ends(cx, Ending::Timeout).await,
        ),
        store_scenario(
            "inbox/dropped",
            "A handler that is dropped in the middle leaves no mark and no effect, and its message is free soon.",
            async |cx| ends(cx, Ending::Dropped).await,
        ),
        store_scenario(
            "inbox/dropped-calls",
            "Calls that are dropped at any moment leave no transaction open, no mark and no connection in use.",
            dropped_calls,
        ),
        store_scenario(
            "inbox/swallowed-error",
            "A handler that goes on after an error that ended its transaction is not acknowledged.",
            async |cx| ends(cx, Ending::Swallowed).await,
        ),
        store_scenario(
            "inbox/another-transaction",
            "A handler that rolls back and gives back another transaction is not acknowledged.",
            async |cx| ends(cx, Ending::Another).await,
        ),
        store_scenario(
            "inbox/early-commit",
            "A handler that commits early and gives back another transaction has its early effects once.",
            early_commit,
        ),
        store_scenario(
            "inbox/lost-commit",
            "Where the answer to the COMMIT was lost, the message comes again and finds its mark.",
            lost_commit,
        ),
        store_scenario(
            "inbox/contention",
            "A handler whose transaction lost against another one runs again at once, and no attempt is burnt.",
            contention,
        ),
        store_scenario(
            "inbox/contention-known",
            "The client's error of a transaction that lost is known as one; that of a broken constraint is not.",
            contention_known,
        )
        .needs(|can| crate::Need::when(can.contention, "no contention")),
        store_scenario(
            "inbox/deadlock",
            "Handlers that lock two entities in opposite orders all end well, without an attempt more.",
            deadlock,
        )
        .needs_parallel_writers(),
    ]
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Error,
    Panic,
    Timeout,
    Dropped,
    Swallowed,
    Another,
}

async fn ends<T: StoreUnderTest>(cx: StoreCx<T>, how: Ending) -> Outcome {
    let store = cx.store().await?;
    let begun = GoalCounter::default();
    let state = (store.clone(), begun.clone());
    let timeout = Duration::from_secs(if how == Ending::Timeout { 1 } else { 60 });
    let inbox = Inbox::new(&store, "billing").handler_timeout(timeout);
    let bad = inbox.handler(
        state,
        move |(store, begun): (StoreOf<T>, GoalCounter), mut tx: TxOf<T>, _: HandlerContext, m: Envelope| async move {
            T::add_effect(&mut tx, &text(&m)).await?;
            begun.add();
            match how {
                Ending::Error => return Err(HandlerError::new("as planned")),
                // `panic!` would print a backtrace.
                Ending::Panic => std::panic::resume_unwind(Box::new("deliberate")),
                Ending::Timeout | Ending::Dropped => std::future::pending().await,
                Ending::Swallowed => drop(T::fail_statement(&mut tx).await),
                Ending::Another => {
                    drop(tx);
                    tx = store.begin().await?;
                    T::add_effect(&mut tx, &text(&m)).await?;
                }
            }
            Ok(tx)
        },
    );
    let (bad, m) = (Arc::new(bad), message("once"));
    let first = m.clone();
    let mut task = tokio::task::spawn_local(async move { handle(&bad, &first).await });
    if how == Ending::Dropped {
        cx.within("the handler begins", begun.reaches(1)).await?;
        task.abort();
    }
    match cx.within("the handler ends", &mut task).await? {
        Ok(handled) => {
            ensure!(handled?.is_err(), "it was acknowledged");
        }
        Err(e) => {
            ensure!(matches!(how, Ending::Panic | Ending::Dropped), "{e}");
        }
    }
    ensure_eq!(cx.effects(&store).await?.len(), 0, "effects of the handler that failed");
    let runs = GoalCounter::default();
    let good = Arc::new(effect::<T>(&inbox, &runs));
    cx.within("the message comes again", handle(&good, &m)).await???;
    handle(&good, &m).await??;
    ensure_eq!(runs.get(), 1, "runs when it came again, and once more");
    ensure_eq!(cx.effects(&store).await?.get("once"), Some(&1), "effects");
    Ok(())
}

async fn dropped_calls<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let runs = GoalCounter::default();
    let handler = Arc::new(effect::<T>(&Inbox::new(&store, "billing"), &runs));
    handle(&handler, &message("warm-up")).await??;
    let messages: Vec<Envelope> = (0..100).map(|n| message(n.to_string())).collect();
    let to = polybus_core::Address::queue("q");
    for m in &messages {
        let limit = Duration::from_micros(cx.random(3_000));
        let _ = tokio::time::timeout(limit, handle(&handler, m)).await;
        let table = store.outbox();
        let limit = Duration::from_micros(cx.random(2_000));
        let _ = tokio::time::timeout(limit, cx.enqueue(&store, &to, [Envelope::new("t", "x").key("k")])).await;
        let limit = Duration::from_micros(cx.random(1_000));
        let _ = tokio::time::timeout(limit, table.stats(10)).await;
    }
    for m in &messages {
        cx.within("the message comes again", handle(&handler, m)).await???;
    }
    let effects = cx.effects(&store).await?;
    ensure_eq!((effects.len(), effects.values().sum::<u64>()), (101, 101), "effects by name, and all");
    // As many at once as the pool has connections, or the one that there can be.
    let control = store.control();
    let connections = if control.single_writer() { 1 } else { control.max_connections().unwrap_or(8) };
    let mut open = Vec::new();
    for n in 0..connections {
        open.push(cx.within(&format!("transaction {n} of {connections} begins"), store.begin()).await??);
    }
    Ok(())
}

async fn early_commit<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let inbox = Inbox::new(&store, "billing");
    let bad =
        inbox.handler(store.clone(), |store: StoreOf<T>, mut tx: TxOf<T>, _: HandlerContext, m: Envelope| async move {
            T::add_effect(&mut tx, &text(&m)).await?;
            StoreOf::<T>::commit(tx).await?;
            Ok::<_, HandlerError>(store.begin().await?)
        });
    let (bad, m) = (Arc::new(bad), message("early"));
    // Whether the store can tell that this is not the transaction of the mark is its own affair. The mark and the
    // effects were committed together, so a copy must find it.
    for _ in 0..3 {
        let _ = handle(&bad, &m).await?;
    }
    ensure_eq!(cx.effects(&store).await?.get("early"), Some(&1), "effects");
    Ok(())
}

async fn lost_commit<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let runs = GoalCounter::default();
    let handler = Arc::new(effect::<T>(&Inbox::new(&store, "billing"), &runs));
    let m = message("once");
    store.state.troubles.lose_commits(1);
    ensure!(handle(&handler, &m).await?.is_err(), "acknowledged, though the answer to the COMMIT was lost");
    handle(&handler, &m).await??;
    ensure_eq!(runs.get(), 1, "runs of the handler");
    ensure_eq!(cx.effects(&store).await?.get("once"), Some(&1), "effects");
    Ok(())
}

async fn contention<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let runs = GoalCounter::default();
    let handler = Inbox::new(&store, "billing").handler(
        runs.clone(),
        |runs: GoalCounter, mut tx: TxOf<T>, _: HandlerContext, m: Envelope| async move {
            T::add_effect(&mut tx, &text(&m)).await?;
            if runs.add() <= 3 { Err(HandlerError::new(troubles::contention())) } else { Ok(tx) }
        },
    );
    handle(&Arc::new(handler), &message("once")).await??;
    ensure_eq!(runs.get(), 4, "runs for one attempt");
    ensure_eq!(cx.effects(&store).await?.get("once"), Some(&1), "effects");
    Ok(())
}

async fn contention_known<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    use polybus_patterns::store::StoreTrouble;
    let store = cx.store().await?;
    let lost = cx.target().contention(&store.inner).await?;
    ensure_eq!(store.judge(&*lost), StoreTrouble::Contention, "the judgement of {lost}");
    let wrapped = polybus_core::Error::new(polybus_core::ErrorKind::Unexpected, "the handler's own").with_source(lost);
    ensure_eq!(store.judge(&wrapped), StoreTrouble::Contention, "the judgement of an error with that cause");
    let mut tx = store.begin().await?;
    let broken = T::fail_statement(&mut tx).await;
    ensure_eq!(store.judge(&*broken), StoreTrouble::None, "the judgement of {broken}");
    Ok(())
}

async fn deadlock<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let attempts = GoalCounter::default();
    let handler = Inbox::new(&store, "billing").handler(
        (),
        |(): (), mut tx: TxOf<T>, _: HandlerContext, m: Envelope| async move {
            let odd = text(&m).ends_with(['1', '3', '5', '7', '9']);
            let (one, other) = if odd { ("a", "b") } else { ("b", "a") };
            T::lock_entity(&mut tx, one).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
            T::lock_entity(&mut tx, other).await?;
            T::add_effect(&mut tx, &text(&m)).await?;
            Ok::<_, HandlerError>(tx)
        },
    );
    let handler = Arc::new(handler);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..6 {
        let (handler, attempts) = (handler.clone(), attempts.clone());
        tasks.spawn_local(async move {
            let m = message(n.to_string());
            // Five contentions in a row are many, and then it is an attempt: that may be.
            for _ in 0..5 {
                attempts.add();
                if handle(&handler, &m).await?.is_ok() {
                    return Ok(());
                }
            }
            fail!("message {n} was not handled")
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let effects = cx.effects(&store).await?;
    ensure_eq!((effects.len(), effects.values().sum::<u64>()), (6, 6), "effects by name, and all");
    ensure!(attempts.get() <= 9, "{} attempts for 6 messages", attempts.get());
    Ok(())
}
