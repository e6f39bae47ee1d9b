//! A database that is away for a while.

use std::{sync::Arc, time::Duration};

use polybus_core::{Address, Envelope, HandlerContext, HandlerError, QueueSpec, Source, Topology};
use polybus_patterns::{
    Inbox,
    store::{OutboxStore, Store},
};

use super::{effect, handle, message, text};
use crate::{
    Failure, Need, Outcome, ensure, ensure_eq,
    scenarios::shared::GoalCounter,
    stores::{
        broker::StoreBroker,
        cx::{StoreCx, TxOf, of_key},
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "inbox/outage",
            "While the database is away no attempt is burnt and no handler begins; once it is back all are handled.",
            outage,
        ),
        store_scenario(
            "inbox/patience-ends",
            "An outage that lasts longer than the inbox' patience fails the handler.",
            patience_ends,
        ),
        store_scenario(
            "inbox/real-outage",
            "A database that is really away is known to be, its errors are Safe, and it works again afterwards.",
            real_outage,
        )
        .needs(|can| Need::when(can.outage, "no outage")),
    ]
}

async fn outage<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    // At the second failure a message would be a dead letter.
    let spec = QueueSpec::new().max_deliveries(2).retry([Duration::ZERO]);
    let broker = StoreBroker::new(Topology::new().queue("q", spec)).await?;
    let troubles = store.state.troubles.clone();
    let (begun, late) = (GoalCounter::default(), GoalCounter::default());
    let state = (begun.clone(), late.clone());
    let inbox = Inbox::new(&store, "billing");
    let handler = inbox.handler(
        state,
        |(begun, late): (GoalCounter, GoalCounter), mut tx: TxOf<T>, context: HandlerContext, m: Envelope| async move {
            begun.add();
            if context.attempt() > 1 {
                late.add();
            }
            T::add_effect(&mut tx, &text(&m)).await?;
            Ok::<_, HandlerError>(tx)
        },
    );
    let publish = async |numbers: std::ops::Range<usize>| -> Outcome {
        for answer in broker.bus.publish_all(Address::queue("q"), numbers.map(|n| message(n.to_string()))).await {
            answer?;
        }
        Ok(())
    };
    publish(0..20).await?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async move { stopped.await.unwrap_or_default() };
    let worker = broker.bus.worker(Source::queue("q")).concurrency(4).with_graceful_shutdown(stopped);
    let outage = async {
        cx.within("the first 20 are handled", begun.reaches(20)).await?;
        troubles.set_away(true);
        ensure!(store.control().is_away().await, "the database is away, and is_away says that it is there");
        publish(20..60).await?;
        cx.eventually("the database is found away", async || Ok((troubles.refused() > 0).then_some(()))).await?;
        // A handler that had begun may still end; after that none begins.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let during = begun.get();
        // Longer than a handler is run again for a connection that was lost, of a database that is there.
        tokio::time::sleep(Duration::from_secs(7)).await;
        ensure_eq!(begun.get(), during, "handlers that began during the outage");
        troubles.set_away(false);
        cx.eventually("all are handled", async || {
            let effects = cx.effects(&store).await?.len();
            if effects == 60 { Ok(Some(())) } else { Err(Failure::new(format!("{effects} are"))) }
        })
        .await
    };
    let (report, done) = tokio::join!(worker.run(handler), async {
        let done = outage.await;
        drop(stop);
        done
    });
    done?;
    let report = report?;
    ensure_eq!((report.succeeded, report.retried, report.dead_lettered), (60, 0, 0), "{report:?}");
    ensure_eq!(late.get(), 0, "attempts that were burnt");
    ensure!(cx.effects(&store).await?.values().all(|n| *n == 1), "an effect is there twice");
    Ok(())
}

async fn patience_ends<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let runs = GoalCounter::default();
    let inbox = Inbox::new(&store, "billing").patience(Duration::from_millis(500));
    let handler = Arc::new(effect::<T>(&inbox, &runs));
    handle(&handler, &message("before")).await??;
    store.state.troubles.set_away(true);
    let m = message("during");
    let failed = cx.within("the patience ends", handle(&handler, &m)).await??;
    ensure!(failed.is_err(), "handled by a database that is away");
    store.state.troubles.set_away(false);
    cx.eventually("it is handled", async || Ok(handle(&handler, &m).await?.is_ok().then_some(()))).await?;
    ensure_eq!(runs.get(), 2, "runs of the handler");
    Ok(())
}

async fn real_outage<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let broker = cx.ordered_broker(&["q"]).await?;
    let (control, to) = (store.control(), Address::queue("q"));
    let runs = GoalCounter::default();
    let handler = Arc::new(effect::<T>(&Inbox::new(&store, "billing"), &runs));
    handle(&handler, &message("before")).await??;
    cx.enqueue(&store, &to, of_key("k", 0..3)).await?;
    let relay = cx.relay(&broker, &store);
    cx.published(&broker, &to, 3).await?;
    let outage = cx.target().outage(&store.inner).await?;
    let asked = tokio::time::Instant::now();
    ensure!(control.is_away().await, "the database is away, and is_away says that it is there");
    let most = cx.lateness(Duration::from_secs(5));
    ensure!(asked.elapsed() < most, "is_away took {:?}", asked.elapsed());
    let m = message("during");
    let during = tokio::task::spawn_local(async move { handle(&handler, &m).await });
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(!during.is_finished(), "handled, or an attempt burnt, while the database was away");
    drop(outage);
    cx.within("the message is handled", during).await????;
    ensure_eq!(runs.get(), 2, "runs of the handler");
    cx.enqueue(&store, &to, of_key("k", 3..6)).await?;
    cx.published(&broker, &to, 6).await?;
    // A delete on a connection that the outage ended is not repeated: those rows are published again.
    cx.eventually("no row is left", async || Ok((store.outbox().stats(10).await?.ready == 0).then_some(()))).await?;
    relay.stop().await?;
    Ok(())
}
