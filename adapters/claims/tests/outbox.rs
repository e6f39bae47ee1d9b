//! Claims with the outbox and the inbox, on SQLite.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use polybus_claims::Claims;
use polybus_core::{
    Address, Bus, BusOptions, Envelope, ErrorKind, Outgoing, QueueSpec, Source, Topology, memory::MemoryDriver,
};
use polybus_patterns::{Inbox, Outbox, Relay, store::OutboxStore};
use polybus_sql::Sqlite;
use support::*;

async fn store() -> Sqlite {
    let store = polybus_sql::sqlite_temp().await.unwrap();
    store.migrate().await.unwrap();
    store
}

fn reports() -> Address {
    Address::queue("reports")
}

async fn waiting(store: &Sqlite) -> u64 {
    store.outbox().stats(1000).await.unwrap().ready
}

/// Publishes what waits, and hands it to billing until `wanted` messages have come.
async fn handled(store: &Sqlite, claims: &Claims, wanted: usize) -> Vec<Envelope> {
    let topology = Topology::new().queue("reports", QueueSpec::new());
    let bus = Bus::new(Arc::new(MemoryDriver::new()), BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let inbox = Inbox::new(store, "billing").handler(seen.clone(), async |seen, tx, _cx, msg| {
        seen.lock().unwrap().push(msg);
        Ok(tx)
    });
    let stop = tokio::sync::watch::Sender::new(false);
    let stopped = || {
        let mut stopped = stop.subscribe();
        async move { drop(stopped.wait_for(|stop| *stop).await) }
    };
    let done = async {
        let came = async {
            while seen.lock().unwrap().len() < wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), came).await.unwrap();
        stop.send_replace(true);
    };
    let relay = Relay::new(&bus, store).run(stopped());
    let worker = bus.worker(Source::queue("reports")).with_graceful_shutdown(stopped()).run(claims.handler(inbox));
    let (relay, worker, ()) = tokio::join!(relay, worker, done);
    relay.unwrap();
    worker.unwrap();
    std::mem::take(&mut *seen.lock().unwrap())
}

#[tokio::test]
async fn the_payload_is_uploaded_before_the_row_is_written() {
    let (store, (claims, objects)) = (store().await, claims());
    let outbox = Outbox::new(&store, "/shop").claims(&claims);
    let mut tx = store.begin().await.unwrap();
    let messages = [large().source("/shop"), Envelope::new("report.made", "small").source("/shop")];
    outbox.enqueue_all(&mut tx, reports(), messages.clone()).await.unwrap();
    assert_eq!(objects.names().await.len(), 1, "before the commit");
    Sqlite::commit(tx).await.unwrap();
    let mut found = handled(&store, &claims, 2).await;
    found.sort_by_key(|message| std::cmp::Reverse(message.data.len()));
    assert!(found[0].data == messages[0].data && found[1].data == messages[1].data);
    assert_eq!((&found[0].id, found[0].headers.get("tenant")), (&messages[0].id, Some("acme")));
}

#[tokio::test]
async fn a_rolled_back_message_leaves_a_payload_that_goes_by_age() {
    let (store, clock) = (store().await, MovedClock::at("2126-02-26T00:00:00+00:00"));
    let folder = tempfile::tempdir().unwrap();
    let claims = Claims::folder(folder.path(), "claims").unwrap().threshold(100).clock(Arc::new(clock.clone()));
    let outbox = Outbox::new(&store, "/shop").claims(&claims);
    let mut tx = store.begin().await.unwrap();
    outbox.enqueue(&mut tx, reports(), large()).await.unwrap();
    drop(tx);
    let mut tx = store.begin().await.unwrap();
    outbox.enqueue(&mut tx, reports(), Envelope::new("report.made", payload(500, 9))).await.unwrap();
    Sqlite::commit(tx).await.unwrap();
    let found = handled(&store, &claims, 1).await;
    assert!(found.len() == 1 && found[0].data == payload(500, 9), "the rolled-back one never comes");
    clock.advance(30 * DAY);
    assert_eq!(claims.sweep().await.unwrap().deleted, 0);
    clock.advance(DAY);
    assert_eq!(claims.sweep().await.unwrap().deleted, 2);
}

#[tokio::test]
async fn a_store_that_is_away_writes_no_row() {
    let (store, (claims, objects)) = (store().await, claims());
    let outbox = Outbox::new(&store, "/shop").claims(&claims);
    objects.set(Fault::Fail);
    let mut tx = store.begin().await.unwrap();
    let failed = outbox.enqueue(&mut tx, reports(), large().id("7")).await.unwrap_err();
    assert_eq!((failed.kind(), failed.context("id")), (ErrorKind::Unavailable, Some("7")), "{failed}");
    // The transaction is the caller's, and nothing of the message is in it.
    outbox.enqueue(&mut tx, reports(), Envelope::new("report.made", "small")).await.unwrap();
    Sqlite::commit(tx).await.unwrap();
    assert_eq!(waiting(&store).await, 1);
}

#[tokio::test]
async fn a_delay_beyond_the_retention_is_refused() {
    let (store, (claims, objects)) = (store().await, claims());
    let outbox = Outbox::new(&store, "/shop").claims(&claims);
    let mut tx = store.begin().await.unwrap();
    let delayed = |message: Envelope, delay| Outgoing::from(message).delay(delay);
    let refused = outbox.enqueue(&mut tx, reports(), delayed(large(), 31 * DAY)).await.unwrap_err();
    assert_eq!((refused.kind(), objects.requests()), (ErrorKind::InvalidArgument, 0), "{refused}");
    // So is one that was checked in before the transaction, without the delay.
    let early = claims.check_in(large()).await.unwrap();
    let refused = outbox.enqueue(&mut tx, reports(), delayed(early, 20 * DAY)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    let early = claims.check_in_for(large(), 20 * DAY).await.unwrap();
    outbox.enqueue(&mut tx, reports(), delayed(early, 20 * DAY)).await.unwrap();
    outbox.enqueue(&mut tx, reports(), delayed(large(), 30 * DAY)).await.unwrap();
    outbox.enqueue(&mut tx, reports(), delayed(Envelope::new("report.made", "small"), 99 * DAY)).await.unwrap();
    Sqlite::commit(tx).await.unwrap();
    assert_eq!((store.outbox().stats(1000).await.unwrap().scheduled, objects.names().await.len()), (3, 3));
}

#[tokio::test]
async fn a_row_that_would_be_too_large_is_a_claim_whatever_the_threshold() {
    let (store, (claims, objects)) = (store().await, claims());
    let claims = claims.threshold(usize::MAX);
    let outbox = Outbox::new(&store, "/shop").claims(&claims).max_row(5_000).sequenced();
    let mut tx = store.begin().await.unwrap();
    let fits = Envelope::new("report.made", payload(4_000, 1)).key("k");
    let above = Envelope::new("report.made", payload(5_000, 1)).key("k");
    outbox.enqueue_all(&mut tx, reports(), [fits.clone(), above.clone()]).await.unwrap();
    assert_eq!(objects.names().await.len(), 1);
    Sqlite::commit(tx).await.unwrap();
    let found = handled(&store, &claims, 2).await;
    assert!(found.iter().zip([&fits, &above]).all(|(found, sent)| found.data == sent.data));
    assert_eq!(found.iter().map(|message| message.sequence).collect::<Vec<_>>(), [Some(1), Some(2)]);
    // For another client's statement as well.
    let row = outbox_without_numbers(&store, &claims).row(reports(), above).await.unwrap();
    assert!(!row.sql.is_empty() && objects.names().await.len() == 2);
}

fn outbox_without_numbers(store: &Sqlite, claims: &Claims) -> Outbox<Sqlite> {
    Outbox::new(store, "/shop").claims(claims).max_row(5_000)
}

#[tokio::test]
async fn what_the_outbox_refuses_is_not_uploaded() {
    let (store, (claims, objects)) = (store().await, claims());
    let outbox = Outbox::new(&store, "/shop").claims(&claims);
    let mut tx = store.begin().await.unwrap();
    let keyed = Outgoing::from(large().key("k")).delay(DAY);
    assert!(outbox.enqueue(&mut tx, reports(), keyed).await.is_err());
    let sequenced = Outbox::new(&store, "/shop").claims(&claims).sequenced();
    assert!(sequenced.enqueue(&mut tx, reports(), large().key("k").sequence(7)).await.is_err());
    assert!(sequenced.enqueue(&mut tx, reports(), large().key("k").source("/other")).await.is_err());
    let small_rows = Outbox::new(&store, "/shop").claims(&claims).max_row(500);
    let head = large().header("notes", "x".repeat(500));
    assert_eq!(small_rows.enqueue(&mut tx, reports(), head).await.unwrap_err().kind(), ErrorKind::PayloadTooLarge);
    let unpublishable = large().edit(|fields| fields.id = "".into());
    assert!(outbox.enqueue_all(&mut tx, reports(), [large(), unpublishable]).await.is_err());
    assert_eq!(objects.requests(), 0);
}

#[tokio::test]
async fn what_is_missing_begins_no_transaction() {
    let (store, (claims, objects)) = (store().await, claims());
    let sent = claims.check_in(large()).await.unwrap();
    objects.remove(&reference(&sent)).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let inbox = Inbox::new(&store, "billing").handler(runs.clone(), async |runs, tx, _cx, _msg| {
        runs.fetch_add(1, SeqCst);
        Ok(tx)
    });
    let handler = claims.handler(inbox);
    let context = polybus_core::HandlerContext::detached(&Source::queue("reports"), 1);
    assert!(polybus_core::Handler::handle(&handler, context.clone(), sent.clone()).await.is_err());
    // There is no mark: once the payload is back, the message is handled.
    objects.write(&reference(&sent), large().data.clone()).await;
    polybus_core::Handler::handle(&handler, context, sent).await.unwrap();
    assert_eq!(runs.load(SeqCst), 1);
}

/// Whatever the size, a keyed row of a sequenced outbox is written: its number counts too.
#[tokio::test]
async fn a_row_that_fits_without_its_number_alone_is_a_claim() {
    let (store, (claims, _)) = (store().await, claims());
    let outbox = Outbox::new(&store, "/shop").claims(&claims.threshold(usize::MAX)).max_row(5_000).sequenced();
    let mut tx = store.begin().await.unwrap();
    for bytes in 4_000..5_000 {
        let message =
            Envelope::new("report.made", payload(bytes, 1)).key("k").id("00000000-0000-7000-8000-000000000000");
        outbox.enqueue(&mut tx, reports(), message).await.unwrap();
    }
}
