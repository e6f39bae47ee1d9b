//! Handlers of one key that come at the same time.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use polybus_core::{Envelope, Handler, HandlerContext, HandlerError};
use polybus_patterns::{Inbox, SequenceGuard};
use tokio::{sync::Semaphore, time::Instant};

use super::{Found, Handled, handle, numbered};
use crate::{
    Outcome, ensure_eq,
    stores::{
        cx::{StoreCx, StoreOf, TxOf},
        scenario::{StoreScenario, store_scenario},
        scenarios::inbox::text,
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "sequence/one-after-the-other",
            "The handlers of one key run one after the other, in all processes.",
            one_after_the_other,
        )
        .needs_parallel_writers(),
        store_scenario(
            "sequence/long-handlers",
            "A message that waits for the handlers of its key for longer than its own statements may take burns no attempt.",
            long_handlers,
        )
        .needs_parallel_writers(),
    ]
}

/// A handler that notes its message when it begins, and ends with a permit.
fn gated<T: StoreUnderTest>(
    inbox: &Inbox<StoreOf<T>>,
    begun: &Handled,
    gate: &Arc<Semaphore>,
) -> impl Handler + use<T> {
    let state = (begun.clone(), gate.clone());
    inbox.handler(
        state,
        |(begun, gate): (Handled, Arc<Semaphore>), mut tx: TxOf<T>, _: HandlerContext, m: Envelope| async move {
            begun.0.lock().push(text(&m));
            gate.acquire().await.map_err(HandlerError::new)?.forget();
            T::add_effect(&mut tx, &text(&m)).await?;
            Ok::<_, HandlerError>(tx)
        },
    )
}

async fn one_after_the_other<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, begun) = (cx.store().await?, Found::default(), Handled::default());
    let gate = Arc::new(Semaphore::new(0));
    let inbox = |store| Inbox::new(store, "billing").sequence_guard(found.of(SequenceGuard::new()));
    let here = Arc::new(gated::<T>(&inbox(&store), &begun, &gate));
    let there = Arc::new(gated::<T>(&inbox(&cx.second(&store).await?), &begun, &gate));
    // The first one makes the key known.
    let asked = store.state.advances.load(SeqCst);
    gate.add_permits(1);
    handle(&here, &numbered("k", 1)).await??;
    let two = {
        let here = here.clone();
        tokio::task::spawn_local(async move { handle(&here, &numbered("k", 2)).await })
    };
    cx.eventually("the second one has begun", async || Ok((begun.all().len() == 2).then_some(()))).await?;
    let three = {
        let there = there.clone();
        tokio::task::spawn_local(async move { handle(&there, &numbered("k", 3)).await })
    };
    // It asks whether it is its turn, and does not come back from there.
    cx.eventually("the third one asks", async || Ok((store.state.advances.load(SeqCst) >= asked + 3).then_some(())))
        .await?;
    let until = Instant::now() + cx.lateness(Duration::from_millis(500));
    while Instant::now() < until {
        ensure_eq!(begun.all(), ["1", "2"], "handlers that have begun");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gate.add_permits(2);
    cx.within("the second one", two).await????;
    cx.within("the third one", three).await????;
    ensure_eq!(found.all(), [], "findings");
    Ok(())
}

async fn long_handlers<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let own = cx.lateness(Duration::from_secs(3));
    let (store, begun) = (cx.store().await?, Handled::default());
    let gate = Arc::new(Semaphore::new(0));
    let inbox = Inbox::new(&store, "billing").sequence_guard(SequenceGuard::new()).handler_timeout(own);
    let handler = Arc::new(gated::<T>(&inbox, &begun, &gate));
    gate.add_permits(1);
    let first = numbered("k", 1);
    handle(&handler, &first).await??;
    // A copy waits for them too, as its number may be one that the key waits for.
    let tasks: Vec<_> = (2..=6)
        .map(|n| numbered("k", n))
        .chain([first])
        .map(|m| {
            let handler = handler.clone();
            tokio::task::spawn_local(async move { handle(&handler, &m).await })
        })
        .collect();
    // Each handler takes half of what it may, so the last one waits for twice as long as it may.
    for _ in 0..5 {
        tokio::time::sleep(own / 2).await;
        gate.add_permits(1);
    }
    for task in tasks {
        cx.within("all of them", task).await????;
    }
    Ok(())
}
