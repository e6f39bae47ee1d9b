//! Making the tables, and judging those that are there.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod database;

use database::{TestDatabase, insert, read, row};
use polybus_core::ErrorKind;

on_both![
    migrating_again_changes_nothing,
    many_migrate_at_once,
    newer_tables_will_do_if_they_say_so,
    older_and_missing_tables_are_named,
    the_printed_statements_make_the_same,
    ids_that_went_back_are_refused_with_what_mends_them,
    ids_that_are_drawn_meanwhile_are_none_that_went_back,
    a_wrong_prefix_is_refused_at_the_first_use,
    the_applications_migrations_are_not_touched,
    two_prefixes_are_two_outboxes,
];

async fn migrating_again_changes_nothing<S: TestDatabase>(store: S) {
    let applied = "SELECT CAST(sum(applied_at) AS BIGINT) FROM {schema}";
    let before = store.number(applied).await;
    insert(&store, &[row(0, "queue:a", "0")]).await;
    store.migrate().await.unwrap();
    assert_eq!(store.number(applied).await, before);
    assert_eq!(store.number("SELECT count(*) FROM {schema}").await, 6);
    assert_eq!(read(&store, "queue:a").await.len(), 1);
    store.verify().await.unwrap();
}

async fn many_migrate_at_once<S: TestDatabase>(store: S) {
    // Stores of their own, as in several processes.
    let stores: Vec<S> = (0..8).map(|_| store.with_prefix("again_")).collect();
    let all = futures_util::future::join_all(stores.iter().map(S::migrate)).await;
    for one in all {
        one.unwrap();
    }
    stores[0].verify().await.unwrap();
}

async fn newer_tables_will_do_if_they_say_so<S: TestDatabase>(store: S) {
    store.run("UPDATE {schema} SET version = 7, min_code = 1 WHERE component = 'outbox'").await;
    store.verify().await.unwrap();
    store.migrate().await.unwrap();
    assert_eq!(store.number("SELECT CAST(version AS BIGINT) FROM {schema} WHERE component = 'outbox'").await, 7);
    store.run("UPDATE {schema} SET min_code = 5 WHERE component = 'outbox'").await;
    for error in [store.verify().await.unwrap_err(), store.migrate().await.unwrap_err()] {
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        assert!(text.contains("outbox have version 7") && text.contains("this code has version 1"), "{text}");
    }
    store.control().verify(&["lease", "inbox"]).await.unwrap();
    assert_eq!(store.control().verify(&["outbox"]).await.unwrap_err().kind(), ErrorKind::ConfigInvalid);
    assert_eq!(store.control().verify(&["outbux"]).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
}

async fn older_and_missing_tables_are_named<S: TestDatabase>(store: S) {
    store.run("UPDATE {schema} SET version = 0 WHERE component = 'lease'").await;
    let text = store.verify().await.unwrap_err().to_string();
    assert!(text.contains("lease have version 0") && text.contains("needs version 1"), "{text}");
    let other = store.with_prefix("none_");
    let error = other.verify().await.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert!(text.contains("missing") && text.contains("version 1") && text.contains("migrate()"), "{text}");
    let mut tx = other.begin().await.unwrap();
    let error = other.insert(&mut tx, &[row(0, "queue:a", "0")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{error}");
    assert!(error.to_string().contains("migrate()"), "{error}");
}

async fn the_printed_statements_make_the_same<S: TestDatabase>(store: S) {
    let other = store.with_prefix("by_hand_");
    let sql = other.migration_sql().await.unwrap();
    assert!(!sql.contains('{') && sql.contains("by_hand_outbox_parked"), "{sql}");
    store.run(&sql).await;
    other.verify().await.unwrap();
    other.migrate().await.unwrap();
    insert(&other, &[row(0, "queue:a", "0")]).await;
    assert_eq!(read(&other, "queue:a").await.len(), 1);
}

async fn ids_that_went_back_are_refused_with_what_mends_them<S: TestDatabase>(store: S) {
    insert(&store, &[row(0, "queue:a", "0"), row(0, "queue:a", "1"), row(0, "queue:a", "2")]).await;
    store.verify().await.unwrap();
    // The highest is among the parked ones.
    let last = read(&store, "queue:a").await[2].id;
    store.outbox().park(last, "no", false).await.unwrap();
    store.verify().await.unwrap();
    let postgres = store.control().system() == "postgres";
    store
        .run(match store.control().system() {
            "postgres" => "SELECT setval(pg_get_serial_sequence('{outbox}', 'id'), 2)",
            "mysql" => "ALTER TABLE {outbox} AUTO_INCREMENT = 3",
            _ => "UPDATE sqlite_sequence SET seq = 2 WHERE name = 'polybus_outbox'",
        })
        .await;
    let error = store.verify().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert!(error.message().contains("is 2") && error.message().contains("has 3"), "{error}");
    let (_, mend) = error.message().split_once("run: ").unwrap();
    store.run(mend).await;
    store.verify().await.unwrap();
    insert(&store, &[row(0, "queue:a", "3")]).await;
    assert!(read(&store, "queue:a").await[2].id.id > last.id);
    // Never used, while rows are there.
    if postgres {
        store.run("SELECT setval(pg_get_serial_sequence('{outbox}', 'id'), 1, false)").await;
        assert!(store.verify().await.unwrap_err().message().contains("is none"));
    }
}

async fn ids_that_are_drawn_meanwhile_are_none_that_went_back<S: TestDatabase>(store: S) {
    let done = std::sync::atomic::AtomicBool::new(false);
    let write = async || {
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            insert(&store, &[row(0, "queue:a", "0")]).await;
        }
    };
    let verify = async {
        for _ in 0..100 {
            store.verify().await.unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    tokio::join!(write(), write(), verify);
}

async fn a_wrong_prefix_is_refused_at_the_first_use<S: TestDatabase>(store: S) {
    for prefix in ["a23456789012345678901_", "Polybus_", "a\"b", ""] {
        let other = store.with_prefix(prefix);
        for error in [
            other.migrate().await.unwrap_err(),
            other.outbox().stats(1).await.unwrap_err(),
            other.inbox().marks(1, 1).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{prefix}: {error}");
            assert!(error.to_string().contains("prefix"), "{error}");
        }
    }
    // As long as it may be.
    let other = store.with_prefix("a2345678901234567890_");
    other.migrate().await.unwrap();
    other.verify().await.unwrap();
}

async fn the_applications_migrations_are_not_touched<S: TestDatabase>(store: S) {
    store.run("CREATE TABLE _sqlx_migrations (version BIGINT)").await;
    store.with_prefix("more_").migrate().await.unwrap();
    assert_eq!(store.number("SELECT count(*) FROM _sqlx_migrations").await, 0);
}

async fn two_prefixes_are_two_outboxes<S: TestDatabase>(store: S) {
    let other = store.with_prefix("other_");
    other.migrate().await.unwrap();
    insert(&other, &[row(0, "queue:a", "0")]).await;
    assert_eq!(read(&store, "queue:a").await.len(), 0);
    assert_eq!(read(&other, "queue:a").await.len(), 1);
}
