//! Subscriptions: each event once and in order, through kills, failures and hands.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use polybus_core::{Envelope, ErrorKind, HandlerError, RetryPolicy};
use polybus_patterns::{
    log::{Append, EventLog, LoggedEvent, Subscription, SubscriptionReport},
    store::StoredSubscription,
};

use crate::support::*;

on_both![
    each_event_has_its_effect_once_though_processes_are_killed,
    a_poisonous_event_stops_it_until_somebody_skips_or_mends,
    only_wanted_types_come_and_the_checkpoint_passes_the_others,
    a_swallowed_error_is_found_before_the_commit,
    stopped_by_hand_it_stands_still_in_all_processes,
    outside_a_transaction_nothing_is_left_out,
    what_no_subscription_can_be_is_refused,
];

async fn with_table<S: LogDatabase>(store: &S) {
    store.run("CREATE TABLE {effects} (n BIGINT NOT NULL, pos BIGINT NOT NULL)").await;
}

async fn effects<S: LogDatabase>(store: &S) -> (i64, i64) {
    let count = store.number("SELECT count(*) FROM {effects}").await;
    (count, store.number("SELECT count(DISTINCT pos) FROM {effects}").await)
}

async fn write<S: LogDatabase>(store: &S, tx: &mut S::Conn, event: &LoggedEvent) -> Result<(), HandlerError> {
    let n = event.decode::<Counted>()?.n;
    store.run_on(tx, &format!("INSERT INTO {{effects}} VALUES ({n}, {})", event.position)).await?;
    Ok(())
}

fn quick<S: LogDatabase>(store: &S, name: &str) -> Subscription<S> {
    let subscription = EventLog::new(store).subscription(name).poll(Duration::from_millis(20));
    subscription.retry(RetryPolicy::new([Duration::from_millis(1)])).lease(Duration::from_secs(1))
}

/// Writes each event into the table.
fn projection<S: LogDatabase>(store: &S, name: &'static str) -> Running<polybus_core::Result<SubscriptionReport>> {
    let store = store.clone();
    Running::start(move |stopped| async move {
        let subscription = quick(&store, name).batch(7);
        subscription
            .run_tx(stopped, store.clone(), async |store, mut tx, events| {
                for event in &events {
                    write(&store, &mut tx, event).await?;
                }
                Ok(tx)
            })
            .await
    })
}

async fn found<S: LogDatabase>(store: &S, name: &str) -> Option<StoredSubscription> {
    let all = EventLog::new(store).admin().subscriptions().await.unwrap();
    all.into_iter().find(|subscription| subscription.name == name)
}

async fn each_event_has_its_effect_once_though_processes_are_killed<S: LogDatabase>(store: S) {
    const EVENTS: i64 = 400;
    with_table(&store).await;
    let appending = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..EVENTS / 2 {
                append(&store, counted(&format!("s{}", n % 5), [2 * n, 2 * n + 1])).await.unwrap();
            }
        })
    };
    for _ in 0..6 {
        let (one, other) = (projection(&store, "sum"), projection(&store, "sum"));
        let before = effects(&store).await.0;
        eventually("it goes on", async || effects(&store).await.0 >= (before + 20).min(EVENTS)).await;
        one.kill().await;
        other.kill().await;
    }
    appending.await.unwrap();
    let last = projection(&store, "sum");
    eventually("all events have their effect", async || effects(&store).await.0 >= EVENTS).await;
    last.stop().await.unwrap();
    assert_eq!(effects(&store).await, (EVENTS, EVENTS), "effects, and different ones");
    let head = EventLog::new(&store).read_all(0, 10_000).await.unwrap().events.last().unwrap().position;
    assert_eq!(found(&store, "sum").await.unwrap().checkpoint.position, head);
}

async fn a_poisonous_event_stops_it_until_somebody_skips_or_mends<S: LogDatabase>(store: S) {
    with_table(&store).await;
    append(&store, counted("s", 0..20)).await.unwrap();
    let (poison, tries) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let running = |name: &'static str| {
        let (store, poison, tries) = (store.clone(), poison.clone(), tries.clone());
        Running::start(move |stopped| async move {
            let state = (store.clone(), poison, tries);
            let subscription = quick(&store, name).max_attempts(3);
            subscription
                .run_tx(stopped, state, async |(store, poison, tries), mut tx, events| {
                    for event in &events {
                        if event.version == 8 && poison.load(Ordering::SeqCst) {
                            tries.fetch_add(1, Ordering::SeqCst);
                            return Err("it cannot be handled".into());
                        }
                        write(&store, &mut tx, event).await?;
                    }
                    Ok(tx)
                })
                .await
        })
    };
    let one = running("skips");
    eventually("it stops", async || found(&store, "skips").await.is_some_and(|found| found.stopped.is_some())).await;
    let events = EventLog::new(&store).read("s", 0, 100).await.unwrap();
    let stopped = found(&store, "skips").await.unwrap();
    let why = stopped.stopped.clone().unwrap();
    assert_eq!((why.at, stopped.checkpoint.position), (Some(events[7].position), events[6].position), "{why:?}");
    assert!(why.why.contains("cannot be handled") && why.since > 0, "{why:?}");
    // Once in its batch, and then alone.
    assert_eq!((effects(&store).await.0, tries.load(Ordering::SeqCst)), (7, 4));
    let admin = EventLog::new(&store).admin();
    let other = admin.skip("skips", events[8].position).await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Conflict, "{other}");
    admin.skip("skips", events[7].position).await.unwrap();
    eventually("the others are handled", async || effects(&store).await.0 == 19).await;
    assert_eq!(one.stop().await.unwrap().handled, 19);
    assert!(found(&store, "skips").await.unwrap().stopped.is_none());

    let two = running("mends");
    eventually("it stops", async || found(&store, "mends").await.is_some_and(|found| found.stopped.is_some())).await;
    two.stop().await.unwrap();
    // Another process does not go on either.
    let two = running("mends");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(effects(&store).await.0, 19 + 7);
    poison.store(false, Ordering::SeqCst);
    admin.resume("mends").await.unwrap();
    eventually("all are handled", async || effects(&store).await.0 == 19 + 20).await;
    two.stop().await.unwrap();
    assert_eq!(admin.resume("nothing").await.unwrap_err().kind(), ErrorKind::NotFound);
}

async fn only_wanted_types_come_and_the_checkpoint_passes_the_others<S: LogDatabase>(store: S) {
    let other = |n: usize| Append::to("s").message(Envelope::new("other.type", format!("{{\"n\":{n}}}")));
    for n in 0..3 {
        append(&store, other(n)).await.unwrap();
        append(&store, counted("s", [n as i64])).await.unwrap();
    }
    append(&store, other(9)).await.unwrap();
    let seen: Arc<Mutex<Vec<i64>>> = Arc::default();
    let running = {
        let (store, seen) = (store.clone(), seen.clone());
        Running::start(move |stopped| async move {
            let subscription = quick(&store, "some").types(["test.*"]);
            subscription
                .run_tx(stopped, seen, async |seen, tx, events| {
                    seen.lock().extend(events.iter().map(|event| event.decode::<Counted>().unwrap().n));
                    Ok(tx)
                })
                .await
        })
    };
    eventually("the wanted ones have come", async || seen.lock().len() == 3).await;
    assert_eq!(running.stop().await.unwrap().handled, 3);
    assert_eq!(*seen.lock(), [0, 1, 2]);
    let head = EventLog::new(&store).read_all(0, 100).await.unwrap().events.last().unwrap().position;
    assert_eq!(found(&store, "some").await.unwrap().checkpoint.position, head, "it was saved at the end");
}

async fn a_swallowed_error_is_found_before_the_commit<S: LogDatabase>(store: S) {
    store.run("CREATE TABLE {effects} (n BIGINT PRIMARY KEY)").await;
    append(&store, counted("s", [1])).await.unwrap();
    let tries = Arc::new(AtomicUsize::new(0));
    let running = {
        let (store, tries) = (store.clone(), tries.clone());
        Running::start(move |stopped| async move {
            quick(&store, "sum")
                .run_tx(stopped, (store.clone(), tries), async |(store, tries), mut tx, _events| {
                    store.run_on(&mut tx, "INSERT INTO {effects} VALUES (1)").await?;
                    if tries.fetch_add(1, Ordering::SeqCst) == 0 {
                        // What many write: the error is logged, and the handler goes on.
                        assert!(store.run_on(&mut tx, "INSERT INTO {effects} VALUES (1)").await.is_err());
                    }
                    Ok(tx)
                })
                .await
        })
    };
    eventually("it has its effect", async || store.number("SELECT count(*) FROM {effects}").await == 1).await;
    running.stop().await.unwrap();
    // Only PostgreSQL ends the transaction at such an error.
    let wanted = if store.control().system() == "postgres" { 2 } else { 1 };
    assert_eq!(tries.load(Ordering::SeqCst), wanted);
    assert_eq!(found(&store, "sum").await.unwrap().stopped, None);
}

async fn stopped_by_hand_it_stands_still_in_all_processes<S: LogDatabase>(store: S) {
    with_table(&store).await;
    append(&store, counted("s", 0..5)).await.unwrap();
    let running = projection(&store, "sum");
    eventually("it runs", async || effects(&store).await.0 == 5).await;
    let admin = EventLog::new(&store).admin();
    admin.stop("sum", "to look at it").await.unwrap();
    admin.stop("sum", "again").await.unwrap();
    append(&store, counted("s", 5..10)).await.unwrap();
    running.stop().await.unwrap();
    let running = projection(&store, "sum");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(effects(&store).await.0, 5);
    let why = found(&store, "sum").await.unwrap().stopped.unwrap();
    assert_eq!((why.at, &*why.why), (None, "stopped by hand: to look at it"));
    admin.resume("sum").await.unwrap();
    eventually("it goes on", async || effects(&store).await.0 == 10).await;
    running.stop().await.unwrap();
    // Removed, it begins at the beginning.
    assert!(admin.remove("sum").await.unwrap() && !admin.remove("sum").await.unwrap());
    let running = projection(&store, "sum");
    eventually("it has begun again", async || effects(&store).await.0 == 20).await;
    running.stop().await.unwrap();
}

async fn outside_a_transaction_nothing_is_left_out<S: LogDatabase>(store: S) {
    append(&store, counted("s", 0..30)).await.unwrap();
    let seen: Arc<Mutex<Vec<i64>>> = Arc::default();
    let start = || {
        let (store, seen) = (store.clone(), seen.clone());
        Running::start(move |stopped| async move {
            quick(&store, "outside")
                .batch(4)
                .run(stopped, seen, async |seen, events| {
                    for event in &events {
                        seen.lock().push(event.decode::<Counted>()?.n);
                        tokio::task::yield_now().await;
                    }
                    Ok(())
                })
                .await
        })
    };
    let killed = start();
    eventually("some have come", async || seen.lock().len() >= 5).await;
    killed.kill().await;
    let running = start();
    eventually("all have come", async || seen.lock().contains(&29)).await;
    running.stop().await.unwrap();
    let seen = seen.lock().clone();
    // Those of a batch may come twice. Without them they are in order.
    let mut once: Vec<i64> = seen.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once, (0..30).collect::<Vec<_>>());
    assert!(seen.len() <= 30 + 4, "{seen:?}");
}

async fn what_no_subscription_can_be_is_refused<S: LogDatabase>(store: S) {
    let refused = async |subscription: Subscription<S>, words: &str| {
        let refused = subscription.run(std::future::pending(), (), async |(), _| Ok(())).await.unwrap_err();
        assert!(refused.kind() == ErrorKind::InvalidArgument && refused.to_string().contains(words), "{refused}");
    };
    refused(quick(&store, ""), "1 to 128 bytes").await;
    refused(quick(&store, &"x".repeat(129)), "1 to 128 bytes").await;
    refused(quick(&store, "s").batch(0), "batch of 0").await;
    refused(quick(&store, "s").max_attempts(0), "no attempt").await;
    refused(quick(&store, "s").lease(Duration::from_millis(1)), "at least 1 s").await;
    refused(quick(&store, "s").begin_behind(-1), "begins at 0").await;
}
