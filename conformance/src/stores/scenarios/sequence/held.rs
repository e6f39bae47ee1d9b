//! Messages that wait for those before them.

use std::{future::ready, sync::Arc, time::Duration};

use polybus_core::{ErrorKind, QueueSpec, Source, SubscriptionSpec, TopicSpec, Topology};
use polybus_patterns::{Inbox, SequenceGuard};

use super::{Found, Handled, gap, guarded, guarded_inbox, handle, handle_all, numbered};
use crate::{
    Outcome, ensure_eq, expect_kind,
    stores::{
        broker::StoreBroker,
        cx::StoreCx,
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

/// Longer than any scenario may take.
const LONG: Duration = Duration::from_secs(3600);

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "sequence/held",
            "A message waits for those before it, also if another process handles them, and nothing is found.",
            held,
        ),
        store_scenario(
            "sequence/hold-ends",
            "A message that has waited in vain is handled, and what is missing is found.",
            hold_ends,
        ),
        store_scenario(
            "sequence/refused-guards",
            "A worker does not start with a guard that cannot work: one that holds on an ordered source, or with one \
             place, or one of some types alone.",
            refused_guards,
        ),
    ]
}

async fn held<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, handled) = (cx.store().await?, Found::default(), Handled::default());
    let other = cx.second(&store).await?;
    let guard = || found.of(SequenceGuard::new().expect_first().hold(LONG, 8));
    let here = Arc::new(guarded::<T>(&store, guard(), &handled));
    let there = Arc::new(guarded::<T>(&other, guard(), &handled));
    let mut early = Vec::new();
    for n in [4, 2, 5] {
        let here = here.clone();
        early.push(tokio::task::spawn_local(async move { handle(&here, &numbered("k", n)).await }));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    // Another key does not wait.
    handle_all(&here, "other", [1]).await?;
    cx.within("the first one", handle_all(&there, "k", [1])).await??;
    cx.within("the third one", handle_all(&here, "k", [3])).await??;
    for early in early {
        cx.within("those that came early", early).await????;
    }
    let mut order = handled.all();
    order.retain(|n| n != "1");
    ensure_eq!(order, ["2", "3", "4", "5"], "handled messages");
    ensure_eq!(found.all(), [], "findings");
    Ok(())
}

async fn hold_ends<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, handled) = (cx.store().await?, Found::default(), Handled::default());
    let guard = found.of(SequenceGuard::new().hold(Duration::from_millis(100), 8));
    let handler = Arc::new(guarded::<T>(&store, guard, &handled));
    handle_all(&handler, "k", [1, 3, 4]).await?;
    ensure_eq!(found.findings(), [gap(2, 2)], "findings");
    ensure_eq!(handled.all(), ["1", "3", "4"], "handled messages");
    Ok(())
}

async fn refused_guards<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let some = SubscriptionSpec::new().types(["order.*"]);
    let topology = Topology::new()
        .queue("plain", QueueSpec::new())
        .queue("ordered", QueueSpec::new().ordered(true))
        .topic("t", TopicSpec::new().subscription("some", some));
    let broker = StoreBroker::new(topology).await?;
    let run = async |source: Source, concurrency: usize, guard: SequenceGuard| {
        // A consumer's name belongs to one source.
        let inbox = Inbox::new(&store, source.to_string()).sequence_guard(guard);
        let handler = guarded_inbox::<T>(&inbox, &Handled::default());
        let worker = broker.bus.worker(source).concurrency(concurrency);
        worker.with_graceful_shutdown(ready(())).run(handler).await
    };
    let holds = || SequenceGuard::new().hold(Duration::from_secs(1), 8);
    let (plain, ordered, some) = (Source::queue("plain"), Source::queue("ordered"), Source::subscription("t", "some"));
    expect_kind!(run(ordered.clone(), 4, holds()).await, ErrorKind::InvalidArgument);
    expect_kind!(run(plain.clone(), 1, holds()).await, ErrorKind::InvalidArgument);
    expect_kind!(run(some, 4, SequenceGuard::new()).await, ErrorKind::InvalidArgument);
    run(ordered, 1, SequenceGuard::new()).await?;
    run(plain, 2, holds()).await?;
    Ok(())
}
