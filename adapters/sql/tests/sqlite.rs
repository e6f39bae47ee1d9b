//! What is special to SQLite.
#![allow(clippy::unwrap_used)]

mod database;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use database::{ALL, eventually, insert, read, row, sqlite};
use polybus_core::{
    Address, Bus, BusOptions, Envelope, ErrorKind, QueueSpec, RetrySafety, Topology, memory::MemoryDriver,
};
use polybus_patterns::{
    Outbox, Relay,
    store::{OutboxStore, Store, StoreTrouble},
};
use polybus_sql::Sqlite;
use sqlx::{
    Connection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteConnection, SqlitePoolOptions},
};

async fn migrated() -> Sqlite {
    let store = sqlite().await;
    store.migrate().await.unwrap();
    store
}

/// A connection that the process' queue does not know, as if it were another process'.
async fn other_process(store: &Sqlite) -> SqliteConnection {
    let options = (*store.pool().connect_options()).clone().busy_timeout(Duration::from_secs(20));
    sqlx::ConnectOptions::connect(&options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_began_by_reading_is_told_how_to_begin() {
    let store = migrated().await;
    let mut tx = store.pool().begin().await.unwrap();
    sqlx::query("SELECT count(*) FROM polybus_outbox").execute(&mut *tx).await.unwrap();
    insert(&store, &[row(0, "queue:a", "0")]).await;
    let error = store.insert(&mut tx, &[row(0, "queue:a", "1")]).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, RetrySafety::Safe));
    assert!(error.to_string().contains("store.begin()"), "{error}");
    assert_eq!(store.judge(&error), StoreTrouble::Contention);
    drop(tx);
    // One that has not read yet is fine.
    let mut tx = store.pool().begin().await.unwrap();
    store.insert(&mut tx, &[row(0, "queue:a", "1")]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(read(&store, "queue:a").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_wait_for_each_other_without_an_error_and_renewals_go_first() {
    let store = migrated().await;
    let leases = store.control().leases();
    let term = Duration::from_secs(10);
    let mine = leases.acquire(&["l".to_owned()], "a", term).await.unwrap();
    let (mut handlers, commits) = (Vec::new(), Arc::new(AtomicUsize::new(0)));
    for n in 0..16 {
        let (store, commits) = (store.clone(), commits.clone());
        handlers.push(tokio::spawn(async move {
            for _ in 0..5 {
                let mut tx = store.begin().await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
                store.insert(&mut tx, &[row(n, "queue:a", "0")]).await.unwrap();
                commits.fetch_add(1, SeqCst);
                tx.commit().await.unwrap();
            }
        }));
    }
    let mut most = 0;
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let before = commits.load(SeqCst);
        assert_eq!(leases.renew(&mine, "a", term).await.unwrap().len(), 1);
        most = most.max(commits.load(SeqCst) - before);
    }
    for handler in handlers {
        handler.await.unwrap();
    }
    assert_eq!(read(&store, "queue:a").await.len(), 80);
    assert!(most < 8, "{most} of the 15 that waited went before a renewal");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_that_writes_is_contention_and_counts_as_away() {
    let store = migrated().await;
    let short = (*store.pool().connect_options()).clone().busy_timeout(Duration::from_millis(100));
    let same_file = polybus_sql::sqlite(SqlitePool::connect_with(short).await.unwrap());
    let mut other = other_process(&store).await;
    let tx = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let busy = same_file.begin().await.unwrap_err();
    assert_eq!((busy.kind(), busy.retry()), (ErrorKind::Unavailable, RetrySafety::Safe));
    assert_eq!(store.judge(&busy), StoreTrouble::Contention);
    let since = Instant::now();
    assert!(same_file.control().is_away().await);
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
    assert!(same_file.outbox().addresses(&ALL).await.unwrap().is_empty(), "readers read");
    tx.rollback().await.unwrap();
    assert!(!same_file.control().is_away().await);
    // A writer of this process is no outage, and both stores stand in one queue.
    let _tx = store.begin().await.unwrap();
    assert!(!same_file.control().is_away().await);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), same_file.begin()).await.is_err(),
        "it waits, without busy"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_begin_lets_the_next_one_in() {
    let store = migrated().await;
    for n in 0..400_u32 {
        let soon = async {
            for _ in 0..n {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! { biased; _ = store.begin() => {}, () = soon => {} }
    }
    tokio::time::timeout(Duration::from_secs(5), store.begin()).await.unwrap().unwrap();
}

/// A statement of a dropped transaction runs to its end. The next writer waits for it in the queue, not in SQLite.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_turn_comes_after_the_rollback() {
    let store = migrated().await;
    let impatient = (*store.pool().connect_options()).clone().busy_timeout(Duration::ZERO);
    let store = polybus_sql::sqlite(SqlitePool::connect_with(impatient).await.unwrap());
    let slow = "INSERT INTO polybus_lease SELECT n, '', 0, 0, 0 FROM (
        WITH RECURSIVE g (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM g WHERE n < 300000) SELECT n FROM g)";
    for _ in 0..3 {
        let mut tx = store.begin().await.unwrap();
        let insert = async move { sqlx::query(slow).execute(&mut *tx).await.map(|_| tx) };
        assert!(tokio::time::timeout(Duration::from_millis(20), insert).await.is_err());
        store.begin().await.unwrap().rollback().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_of_one_connection_will_do() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new().filename(folder.path().join("a.db")).create_if_missing(true);
    let pool = SqlitePoolOptions::new().max_connections(1).acquire_timeout(Duration::from_secs(2));
    let store = polybus_sql::sqlite(pool.connect_with(options.clone()).await.unwrap());
    store.migrate().await.unwrap();
    // A store of which nothing was used yet, on the only connection.
    let fresh = polybus_sql::sqlite(store.pool().clone());
    let mut tx = store.pool().begin().await.unwrap();
    fresh.insert(&mut tx, &[row(0, "queue:a", "0")]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(read(&fresh, "queue:a").await.len(), 1);
    assert!(fresh.control().single_writer());

    store.pool().close().await;
    assert_eq!(store.begin().await.unwrap_err().kind(), ErrorKind::Closed);
    drop(folder);
    assert!(store.control().is_away().await, "the file is gone");
}

#[tokio::test]
async fn a_temporary_file_goes_with_its_last_clone() {
    let store = migrated().await;
    let file = store.pool().connect_options().get_filename().to_owned();
    let clone = store.clone().prefix("other_");
    drop(store);
    assert!(file.exists());
    drop(clone);
    assert!(!file.exists());
}

/// A table with a row whose name is taken, and whose conflicts end the transaction.
async fn with_effects() -> Sqlite {
    let store = migrated().await;
    sqlx::raw_sql(
        "CREATE TABLE effects (name TEXT PRIMARY KEY ON CONFLICT ROLLBACK); INSERT INTO effects VALUES ('taken')",
    )
    .execute(store.pool())
    .await
    .unwrap();
    store
}

async fn effect(conn: &mut SqliteConnection, name: &str) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO effects VALUES (?)").bind(name).execute(conn).await.map(drop)
}

async fn effects(store: &Sqlite) -> Vec<String> {
    sqlx::query_scalar("SELECT name FROM effects ORDER BY name").fetch_all(store.pool()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_an_error_that_ended_the_transaction_is_not_written() {
    let store = with_effects().await;
    let mut tx = store.begin().await.unwrap();
    effect(&mut tx, "before").await.unwrap();
    effect(&mut tx, "taken").await.unwrap_err();
    effect(&mut tx, "after").await.unwrap_err();
    store.insert(&mut tx, &[row(0, "queue:a", "0")]).await.unwrap_err();
    let error = tx.commit().await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unexpected, RetrySafety::Safe));
    assert_eq!((effects(&store).await, read(&store, "queue:a").await.len()), (vec!["taken".to_owned()], 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_transaction_ended_by_itself_serves_the_next_one() {
    let file = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new().filename(file.path().join("db")).create_if_missing(true);
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
    let store = polybus_sql::sqlite(pool.clone());
    store.migrate().await.unwrap();
    sqlx::raw_sql("CREATE TABLE effects (name TEXT PRIMARY KEY ON CONFLICT ROLLBACK)").execute(&pool).await.unwrap();
    for n in 0..6 {
        let mut tx = store.begin().await.unwrap();
        effect(&mut tx, "twice").await.unwrap();
        effect(&mut tx, "twice").await.unwrap_err();
        match n % 3 {
            0 => drop(tx),
            1 => tx.rollback().await.unwrap(),
            _ => drop(tx.commit().await.unwrap_err()),
        }
        // An application's own transaction on the same connection, and a statement outside any.
        let mut own = pool.begin().await.unwrap();
        effect(&mut own, &format!("own {n}")).await.unwrap();
        own.commit().await.unwrap();
        sqlx::query("DELETE FROM effects").execute(&pool).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_gets_its_slots_beside_handlers_that_take_turns_without_a_pause() {
    let store = migrated().await;
    let handlers: Vec<_> = (0..3)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                loop {
                    let tx = store.begin().await.unwrap();
                    // Longer than a third of the lease, and shorter than the lease.
                    tokio::time::sleep(Duration::from_millis(1500)).await;
                    tx.commit().await.unwrap();
                }
            })
        })
        .collect();
    let mut tx = store.begin().await.unwrap();
    let outbox = Outbox::new(&store, "/shop");
    outbox.enqueue(&mut tx, Address::queue("q"), Envelope::new("t", "x")).await.unwrap();
    tx.commit().await.unwrap();
    let memory = Arc::new(MemoryDriver::new());
    memory.record(true);
    let topology = Topology::new().queue("q", QueueSpec::new());
    let bus = Bus::new(memory.clone(), BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    let relay = tokio::spawn(Relay::new(&bus, &store).lease(Duration::from_secs(4)).run(std::future::pending()));
    eventually("the row is published", async || memory.published(&Address::queue("q")).len() == 1).await;
    relay.abort();
    handlers.iter().for_each(|handler| handler.abort());
}
