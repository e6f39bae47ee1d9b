//! The inbox' tables.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod database;

use std::time::Duration;

use database::TestDatabase;
use polybus_core::{Error, ErrorKind};
use polybus_patterns::store::{Mark, MarkKey, StoreTrouble, TransactionLimits};

const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3600 * SECOND;

on_both![
    a_message_is_marked_once,
    a_rolled_back_mark_is_not_there,
    a_copy_waits_for_the_end_of_the_first_one,
    a_lost_transaction_has_no_mark,
    a_consumer_has_one_number_and_one_source,
    old_marks_are_swept_by_when_they_were_set,
    errors_are_judged,
];

fn key(n: u8, hour: i32) -> MarkKey {
    MarkKey { consumer: 1, hour, key: [n; 16] }
}

fn limits() -> TransactionLimits {
    TransactionLimits::new(Duration::from_secs(5), Some(Duration::from_secs(30)))
}

async fn a_message_is_marked_once<S: TestDatabase>(store: S) {
    let (mut tx, mark) = store.begin_marked(&key(1, 500_000), &limits()).await.unwrap();
    assert_eq!(mark, Mark::First);
    assert!(store.is_marked(&mut tx, &key(1, 500_000)).await.unwrap());
    assert!(!store.is_marked(&mut tx, &key(2, 500_000)).await.unwrap());
    assert_eq!(store.mark(&mut tx, &key(1, 500_000)).await.unwrap(), Mark::Duplicate, "in the same transaction");
    S::commit(tx).await.unwrap();

    let (mut tx, mark) = store.begin_marked(&key(1, 500_000), &limits()).await.unwrap();
    assert_eq!(mark, Mark::Duplicate);
    for other in [key(2, 500_000), key(1, 500_001), MarkKey { consumer: 2, ..key(1, 500_000) }, key(1, 0)] {
        assert_eq!(store.mark(&mut tx, &other).await.unwrap(), Mark::First, "{other:?}");
    }
    S::commit(tx).await.unwrap();
    assert_eq!(store.inbox().marks(1, 100).await.unwrap(), 4);
    assert_eq!(store.inbox().marks(1, 2).await.unwrap(), 2);
}

async fn a_rolled_back_mark_is_not_there<S: TestDatabase>(store: S) {
    let (tx, mark) = store.begin_marked(&key(1, 1), &limits()).await.unwrap();
    assert_eq!(mark, Mark::First);
    drop(tx);
    let (_, mark) = store.begin_marked(&key(1, 1), &limits()).await.unwrap();
    assert_eq!(mark, Mark::First);
}

async fn a_copy_waits_for_the_end_of_the_first_one<S: TestDatabase>(store: S) {
    for (n, commit) in [(1, true), (2, false)] {
        let (tx, _) = store.begin_marked(&key(n, 1), &limits()).await.unwrap();
        let copy = async {
            let (tx, mark) = store.begin_marked(&key(n, 1), &limits()).await.unwrap();
            drop(tx);
            mark
        };
        let end = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if commit { S::commit(tx).await.unwrap() } else { drop(tx) }
        };
        let (mark, ()) = tokio::join!(copy, end);
        assert_eq!(mark, if commit { Mark::Duplicate } else { Mark::First });
    }
}

async fn a_lost_transaction_has_no_mark<S: TestDatabase>(store: S) {
    let (mut tx, _) = store.begin_marked(&key(1, 1), &limits()).await.unwrap();
    // The handler goes on after an error. On PostgreSQL that ends the transaction, and on SQLite a ROLLBACK does.
    let postgres = store.control().system() == "postgres";
    let sql = if postgres { "SELECT 1/0" } else { "ROLLBACK" };
    assert_eq!(store.run_on(&mut tx, sql).await.is_err(), postgres);
    let marked = store.is_marked(&mut tx, &key(1, 1)).await;
    assert!(!marked.as_ref().is_ok_and(|marked| *marked), "{marked:?}");
    if let Err(error) = &marked {
        assert_eq!(store.judge(error), StoreTrouble::None);
    }
    drop(tx);
    assert_eq!(store.number("SELECT count(*) FROM {inbox}").await, 0);
}

async fn a_consumer_has_one_number_and_one_source<S: TestDatabase>(store: S) {
    let inbox = store.inbox();
    let (one, same) = tokio::join!(inbox.register("billing", "queue:a"), inbox.register("billing", "queue:a"));
    let (one, same) = (one.unwrap(), same.unwrap());
    assert_eq!(one, same);
    assert_ne!(inbox.register("mail", "queue:a").await.unwrap(), one);
    assert_eq!(inbox.register("billing", "queue:a").await.unwrap(), one);
    let error = inbox.register("billing", "queue:b").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert!(error.to_string().contains("queue:a") && error.to_string().contains("queue:b"), "{error}");
}

async fn old_marks_are_swept_by_when_they_were_set<S: TestDatabase>(store: S) {
    let inbox = store.inbox();
    let now = store.number("SELECT applied_at FROM {schema} WHERE component = 'inbox'").await;
    let hour = i32::try_from(now / HOUR).unwrap();
    let day = Duration::from_secs(86_400);
    let set = async |keys: &[MarkKey]| {
        let mut tx = store.begin().await.unwrap();
        for key in keys {
            assert_eq!(store.mark(&mut tx, key).await.unwrap(), Mark::First);
        }
        S::commit(tx).await.unwrap();
    };
    // A message of now, an old one, one without a time, one from a clock that is far ahead.
    set(&[key(1, hour), key(2, hour - 1000), key(3, 0), key(4, hour + 100_000)]).await;
    set(&[MarkKey { consumer: 2, ..key(1, 0) }]).await;
    assert_eq!(inbox.sweep(1, day, 100).await.unwrap(), 0, "all were set just now");
    store.move_clock(26 * HOUR);
    set(&[key(5, hour + 26), key(6, hour - 1000), key(7, 0), key(8, hour + 100_000)]).await;
    assert_eq!(inbox.sweep(1, day, 3).await.unwrap(), 3);
    assert_eq!(inbox.sweep(1, day, 100).await.unwrap(), 1);
    assert_eq!(inbox.sweep(1, day, 100).await.unwrap(), 0);
    assert_eq!(inbox.marks(1, 100).await.unwrap(), 4);
    assert_eq!(inbox.marks(2, 100).await.unwrap(), 1);
    // Backwards nothing is old.
    store.move_clock(-100 * HOUR);
    assert_eq!(inbox.sweep(1, day, 100).await.unwrap(), 0);
}

async fn errors_are_judged<S: TestDatabase>(store: S) {
    let mut tx = store.begin().await.unwrap();
    let error = store.run_on(&mut tx, "SELECT * FROM {no_such}").await.unwrap_err();
    assert_eq!(store.judge(&error), StoreTrouble::None);
    drop(tx);
    let handler = Error::new(ErrorKind::Unexpected, "handler").with_source(sqlx::Error::PoolTimedOut);
    assert_eq!(store.judge(&handler), StoreTrouble::MaybeAway);
    assert!(!store.control().is_away().await);
}
