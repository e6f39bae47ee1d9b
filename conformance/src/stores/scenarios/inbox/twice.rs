//! Copies of one message, one after the other and at the same time.

use std::sync::Arc;

use polybus_core::{Address, Envelope, HandlerContext, HandlerError, QueueSpec, Source, Topology};
use polybus_patterns::{
    Inbox, Mark,
    store::{InboxStore, MarkKey, Store, TransactionLimits},
};
use tokio::sync::Semaphore;

use super::{effect, handle, message, text};
use crate::{
    Outcome, ensure, ensure_eq, expect_kind,
    scenarios::shared::GoalCounter,
    stores::{
        broker::StoreBroker,
        cx::{StoreCx, StoreOf, TxOf},
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "inbox/eight-consumers",
            "Eight processes that get the same 200 messages at once have 200 effects.",
            eight_consumers,
        ),
        store_scenario(
            "inbox/workers",
            "Workers of a queue with three copies of each message have each effect once, and acknowledge all.",
            workers,
        ),
        store_scenario(
            "inbox/copy-waits",
            "A copy waits while another one is under way, and is not handled when that has committed.",
            async |cx| copy_waits(cx, true).await,
        ),
        store_scenario(
            "inbox/first-rolls-back",
            "A copy waits while another one is under way, and is handled when that has rolled back.",
            async |cx| copy_waits(cx, false).await,
        ),
        store_scenario(
            "inbox/waits-in-vain",
            "A mark that waits for longer than its limit is Unavailable, Safe and mark=busy, and leaves nothing open.",
            waits_in_vain,
        )
        .needs_parallel_writers(),
    ]
}

async fn eight_consumers<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let messages: Arc<Vec<Envelope>> = Arc::new((0..200).map(|n| message(n.to_string())).collect());
    let runs = GoalCounter::default();
    let mut consumers = tokio::task::JoinSet::new();
    for consumer in 0..8 {
        let own = if consumer % 4 == 3 { cx.second(&store).await? } else { store.clone() };
        let handler = Arc::new(effect::<T>(&Inbox::new(&own, "billing"), &runs));
        let messages = messages.clone();
        // Most of them begin at the same message, some elsewhere.
        let first = (consumer / 4) * 50;
        consumers.spawn_local(async move {
            for n in 0..messages.len() {
                handle(&handler, &messages[(first + n) % messages.len()]).await??;
            }
            Outcome::Ok(())
        });
    }
    while let Some(done) = consumers.join_next().await {
        done??;
    }
    let effects = cx.effects(&store).await?;
    ensure_eq!((effects.len(), effects.values().sum::<u64>()), (200, 200), "effects by name, and all");
    ensure_eq!(runs.get(), 200, "runs of the handler");
    Ok(())
}

async fn workers<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = StoreBroker::new(Topology::new().queue("q", QueueSpec::new())).await?;
    let messages: Vec<Envelope> = (0..60).map(|n| message(n.to_string())).collect();
    for copy in 0..3 {
        let all = messages.iter().map(|m| m.clone().header("copy", copy.to_string()));
        for published in broker.bus.publish_all(to.clone(), all).await {
            published?;
        }
    }
    let runs = GoalCounter::default();
    let inbox = Inbox::new(&store, "billing");
    let worker = broker.bus.worker(Source::queue("q")).concurrency(8);
    let empty = async {
        let all = async || {
            let stats = broker.bus.stats(Source::queue("q")).await?;
            Ok(([stats.ready, stats.in_flight].into_iter().flatten().sum::<u64>() == 0).then_some(()))
        };
        cx.eventually("all are acknowledged", all).await
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async move { stopped.await.unwrap_or_default() };
    let running = worker.with_graceful_shutdown(stopped).run(effect::<T>(&inbox, &runs));
    let (report, emptied) = tokio::join!(running, async {
        let emptied = empty.await;
        drop(stop);
        emptied
    });
    emptied?;
    let report = report?;
    ensure_eq!((report.succeeded, report.handled()), (180, 180), "what became of the copies");
    let effects = cx.effects(&store).await?;
    ensure_eq!((effects.len(), effects.values().sum::<u64>()), (60, 60), "effects by name, and all");
    Ok(())
}

async fn copy_waits<T: StoreUnderTest>(cx: StoreCx<T>, commits: bool) -> Outcome {
    let store = cx.store().await?;
    let other = cx.second(&store).await?;
    let (begun, go_on) = (GoalCounter::default(), Arc::new(Semaphore::new(0)));
    let state = (begun.clone(), go_on.clone());
    let handler = Inbox::new(&store, "billing").handler(
        state,
        move |state: (GoalCounter, Arc<Semaphore>), mut tx: TxOf<T>, _: HandlerContext, m: Envelope| async move {
            let (begun, go_on) = state;
            T::add_effect(&mut tx, &text(&m)).await?;
            begun.add();
            let _ = go_on.acquire().await?;
            if commits { Ok::<_, HandlerError>(tx) } else { Err("as planned".into()) }
        },
    );
    let runs = GoalCounter::default();
    let (first, second) = (Arc::new(handler), Arc::new(effect::<T>(&Inbox::new(&other, "billing"), &runs)));
    // A database with one writer would let the copy wait anywhere; this is about the mark.
    handle(&second, &message("warm-up")).await??;
    let m = message("once");
    let (one, copy) = (m.clone(), m.clone().header("copy", "yes"));
    let first = tokio::task::spawn_local(async move { handle(&first, &one).await });
    cx.within("the first copy's handler begins", begun.reaches(1)).await?;
    let second = tokio::task::spawn_local(async move { handle(&second, &copy).await });
    // It has time to be wrong.
    tokio::time::sleep(cx.lateness(std::time::Duration::from_millis(300))).await;
    ensure!(!second.is_finished(), "a copy was done while the first one was under way");
    ensure_eq!(runs.get(), 1, "runs of the copy's handler, while the first one was under way");
    go_on.add_permits(1);
    let (first, second) = cx.within("both copies end", async { (first.await, second.await) }).await?;
    ensure_eq!(first??.is_ok(), commits, "the first copy is handled");
    second???;
    ensure_eq!(runs.get(), if commits { 1 } else { 2 }, "runs of the copy's handler, with the warm-up");
    ensure_eq!(cx.effects(&store).await?.get("once"), Some(&1), "effects");
    Ok(())
}

async fn waits_in_vain<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let consumer = store.inbox().register("billing", "queue:q").await?;
    let key = MarkKey { consumer, hour: 480_000, key: [7; 16] };
    let limits = TransactionLimits::new(std::time::Duration::from_millis(300), None);
    let (tx, mark) = store.begin_marked(&key, &limits).await?;
    ensure_eq!(mark, Mark::First, "the first mark");
    for _ in 0..40 {
        let waited = cx.within("the mark gives up", store.begin_marked(&key, &limits)).await?;
        let e = expect_kind!(waited.map(|(_, mark)| mark), polybus_core::ErrorKind::Unavailable);
        ensure_eq!(e.context("mark"), Some("busy"), "the context `mark` of {e:?}");
        ensure_eq!(e.retry(), polybus_core::RetrySafety::Safe, "whether it may be tried again");
        if !cx.abilities().parallel_writers {
            break;
        }
    }
    StoreOf::<T>::commit(tx).await?;
    let (_, mark) = store.begin_marked(&key, &limits).await?;
    ensure_eq!(mark, Mark::Duplicate, "the mark once the first one was committed");
    Ok(())
}
