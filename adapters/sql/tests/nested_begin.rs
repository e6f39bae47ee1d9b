//! A handler on SQLite that begins a transaction while it has its own, which has the turn to write.
#![allow(clippy::unwrap_used)]

mod database;

use std::time::Duration;

use database::{insert, read, row, sqlite};
use polybus_core::{Envelope, Error, ErrorKind, Handler, HandlerContext, HandlerError, Source};
use polybus_patterns::{
    Inbox,
    store::{OutboxStore, ParkedFilter},
};
use polybus_sql::Sqlite;

async fn migrated() -> Sqlite {
    let store = sqlite().await;
    store.migrate().await.unwrap();
    store
}

/// Handles a message. The limit is for a wait without an end.
async fn handle(handler: &impl Handler) -> Result<(), HandlerError> {
    let context = HandlerContext::detached(&Source::queue("q"), 1);
    let handled = handler.handle(context, Envelope::new("t", "").id("1"));
    tokio::time::timeout(Duration::from_secs(60), handled).await.expect("the handler waits for ever")
}

fn is_told_what_to_do(error: &Error) -> bool {
    error.kind() == ErrorKind::InvalidArgument && error.message().contains("use the transaction that came")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_would_wait_for_itself_is_told() {
    let store = migrated().await;
    let handler = Inbox::new(&store, "c").handler(store.clone(), async |store, tx, _cx, _msg| {
        assert!(is_told_what_to_do(&store.begin().await.unwrap_err()));
        // Whatever else needs the turn.
        assert!(is_told_what_to_do(&store.outbox().retry_parked(&ParkedFilter::All).await.unwrap_err()));
        // Another store on the same file stands in the same queue.
        let same_file = polybus_sql::sqlite(store.pool().clone()).prefix("other_");
        assert!(is_told_what_to_do(&same_file.begin().await.unwrap_err()));
        Ok(tx)
    });
    handle(&handler).await.unwrap();
    insert(&store, &[row(0, "queue:a", "afterwards")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_has_dropped_its_own_may_begin_another() {
    let store = migrated().await;
    let handler = Inbox::new(&store, "c").handler(store.clone(), async |store, mut tx, _cx, _msg| {
        store.insert(&mut tx, &[row(0, "queue:a", "dropped")]).await?;
        drop(tx);
        let mut other = store.begin().await?;
        store.insert(&mut other, &[row(0, "queue:a", "other")]).await?;
        // A third while it has the second.
        assert!(is_told_what_to_do(&store.begin().await.unwrap_err()));
        other.commit().await?;
        Err(HandlerError::new("it has no transaction to give back"))
    });
    handle(&handler).await.unwrap_err();
    assert_eq!(database::data(&read(&store, "queue:a").await), ["other"]);
}

/// Neither another task nor a handler beside it waits for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_wait_for_their_turn() {
    let store = migrated().await;
    let handler = Inbox::new(&store, "c").handler(store.clone(), async |store, tx, _cx, _msg| {
        tokio::spawn(async move { insert(&store, &[row(0, "queue:a", "of a task")]).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(tx)
    });
    let other = Inbox::new(&store, "d").handler((), async |(), tx, _cx, _msg| Ok(tx));
    // In one task.
    let outside = [row(0, "queue:a", "outside")];
    let (one, two, ()) = tokio::join!(handle(&handler), handle(&other), insert(&store, &outside));
    one.unwrap();
    two.unwrap();
    database::eventually("both are written", async || read(&store, "queue:a").await.len() == 2).await;
}
