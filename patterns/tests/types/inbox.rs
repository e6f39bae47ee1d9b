//! The router behind an inbox: once, in a transaction, and nothing of what is refused.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use polybus_core::{Bus, Envelope, ErrorKind, QueueSpec};
use polybus_patterns::{
    Inbox,
    types::{InboxRouter, Types, Unknown},
};

use crate::{
    events::{
        Paid, PlacedV2, PlacedV3, bus, cents, dead_letters, publish, redrive, start, types_v2, types_v3, v1, v2, v3,
        work,
    },
    marks::Marks,
};

fn router(types: &Types, store: &Marks) -> InboxRouter<Marks, ()> {
    types.inbox_router(&Inbox::new(store, "billing"), ()).on(async |(), mut tx, _cx, placed: PlacedV3| {
        tx.write(placed.order);
        Ok(tx)
    })
}

/// The old code: it knows version 2.
fn old_router(types: &Types, store: &Marks) -> InboxRouter<Marks, ()> {
    types.inbox_router(&Inbox::new(store, "billing"), ()).on(async |(), mut tx, _cx, placed: PlacedV2| {
        tx.write(placed.order);
        Ok(tx)
    })
}

async fn empty() -> (Bus, Marks) {
    (bus(QueueSpec::new()).await.0, Marks::default())
}

#[tokio::test(start_paused = true)]
async fn each_message_is_handled_once_in_its_transaction() {
    let (bus, store) = empty().await;
    let old = Envelope::event(&v1("1")).unwrap();
    for message in [old.clone(), old, Envelope::event(&v3("2")).unwrap()] {
        publish(&bus, message).await;
    }
    publish(&bus, Envelope::event(&Paid { order: "3".into() }).unwrap().subject("three")).await;
    publish(&bus, Envelope::new("order.shipped", "{}")).await;
    let router = router(&types_v3().event::<Paid>(), &store)
        .on_message(async |(), mut tx, _cx, paid: Paid, msg| {
            tx.write(format!("{} {}", paid.order, msg.subject.as_deref().unwrap()));
            Ok(tx)
        })
        .otherwise(async |(), mut tx, _cx, msg| {
            tx.write(&*msg.event_type);
            Ok(tx)
        });
    assert_eq!(work(&bus, router).await.succeeded, 5);
    let mut effects = store.effects();
    effects.sort();
    assert_eq!(effects, ["1", "2", "3 three", "order.shipped"]);
    assert_eq!((store.marks(), store.verified()), (4, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_leaves_no_mark_and_is_handled_after_a_redrive() {
    let (bus, store) = empty().await;
    publish(&bus, Envelope::event(&v3("1")).unwrap()).await;
    assert_eq!(work(&bus, old_router(&types_v2(), &store)).await.dead_lettered, 1);
    assert_eq!((store.marks(), store.effects().len()), (0, 0));
    redrive(&bus).await;
    assert_eq!(work(&bus, router(&types_v3(), &store)).await.succeeded, 1);
    assert_eq!(store.effects(), ["1"]);
}

/// The acknowledgement was lost, then the deployment was rolled back.
#[tokio::test(start_paused = true)]
async fn a_copy_of_what_newer_code_has_handled_is_a_duplicate_and_no_dead_letter() {
    let (bus, store) = empty().await;
    let message = Envelope::event(&v3("1")).unwrap();
    publish(&bus, message.clone()).await;
    work(&bus, router(&types_v3(), &store)).await;
    publish(&bus, message).await;
    let report = work(&bus, old_router(&types_v2(), &store)).await;
    assert_eq!((report.succeeded, report.dead_lettered), (1, 0));
    assert_eq!(store.effects(), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_skipped_is_marked() {
    let (bus, store) = empty().await;
    publish(&bus, Envelope::new("order.shipped", "{}")).await;
    publish(&bus, Envelope::new("order.placed", "{}").schema_version(3)).await;
    let report = work(&bus, router(&types_v3().unknown_type(Unknown::Skip), &store)).await;
    assert_eq!((report.succeeded, report.dead_lettered, store.marks()), (1, 1, 1));
    assert_eq!(dead_letters(&bus).await[0].0, "malformed");
}

#[tokio::test(start_paused = true)]
async fn what_is_tried_again_leaves_no_mark_and_is_an_attempt() {
    let (bus, store) = (bus(QueueSpec::new().max_deliveries(3)).await.0, Marks::default());
    publish(&bus, Envelope::event(&v3("1")).unwrap()).await;
    let types = types_v2().unknown_version(Unknown::RetryAfter(Duration::from_secs(60)));
    let report = work(&bus, old_router(&types, &store)).await;
    assert_eq!((report.retried, report.dead_lettered, store.marks()), (2, 1, 0));
    assert_eq!(dead_letters(&bus).await[0].0, "unknown-version");
}

/// The inbox runs a handler again after a deadlock: the event is there again.
#[tokio::test(start_paused = true)]
async fn a_handler_may_run_more_than_once_for_one_attempt() {
    let (bus, store) = empty().await;
    publish(&bus, Envelope::event(&v2("1")).unwrap()).await;
    let runs = Arc::new(AtomicU32::new(0));
    let router = types_v3().inbox_router(&Inbox::new(&store, "billing"), runs.clone()).on(
        async |runs, mut tx, cx, placed: PlacedV3| {
            assert_eq!(cx.attempt(), 1);
            tx.write(placed.order);
            match runs.fetch_add(1, Ordering::Relaxed) {
                0 | 1 => Err("deadlock".into()),
                _ => Ok(tx),
            }
        },
    );
    assert_eq!(work(&bus, router).await.succeeded, 1);
    assert_eq!((runs.load(Ordering::Relaxed), store.effects()), (3, vec!["1".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn mistakes_are_told_before_the_database_is_asked() {
    let (bus, store) = empty().await;
    let types = Types::new().event::<PlacedV3>().upcast::<PlacedV3>(1, cents);
    let wrong = router(&types, &store).on(async |(), tx, _cx, _: PlacedV3| Ok(tx));
    let error = start(&bus, wrong).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("2 mistakes"), "{error}");
    assert_eq!(store.verified(), 0);
}
