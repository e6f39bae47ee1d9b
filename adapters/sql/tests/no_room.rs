//! A database without room to write: messages wait for it, and none pays.
#![allow(clippy::unwrap_used)]

mod database;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use database::{TestDatabase, eventually, postgres};
use polybus_core::{
    Address, Bus, BusOptions, Envelope, Handler, QueueSpec, RetryPolicy, Source, Topology, memory::MemoryDriver,
};
use polybus_patterns::{
    Inbox,
    store::{Store, StoreTrouble},
};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

const MESSAGES: usize = 60;

/// Handles messages that write an effect each, while there is no room for longer than five reruns take.
async fn waits_for_room<S: TestDatabase>(
    store: S,
    handler: impl Handler,
    begun: Arc<AtomicUsize>,
    make_room: impl AsyncFnOnce(),
) {
    let queue = QueueSpec::new().max_deliveries(3).retry([Duration::from_millis(10)]);
    let bus = Bus::new(Arc::new(MemoryDriver::new()), BusOptions::topology(Topology::new().queue("q", queue))).unwrap();
    bus.declare().await.unwrap();
    let all = (0..MESSAGES).map(|i| Envelope::new("t", "").id(i.to_string()));
    bus.publish_all(Address::queue("q"), all).await.into_iter().for_each(|answer| drop(answer.unwrap()));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = bus.worker(Source::queue("q")).concurrency(2).retry(RetryPolicy::fixed(Duration::from_millis(10)));
    let working = tokio::spawn(worker.with_graceful_shutdown(async move { drop(stopped.await) }).run(handler));
    eventually("it is full", async || {
        let (before, effects) = (begun.load(Ordering::Relaxed), store.number("SELECT count(*) FROM effects").await);
        before > usize::try_from(effects).unwrap() + 4
    })
    .await;
    // The time itself is what is tested.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(store.number("SELECT count(*) FROM effects").await < MESSAGES as i64, "it was never full");
    assert!(!store.control().is_away().await, "it is there");
    make_room().await;
    let distinct = "SELECT count(DISTINCT id) FROM effects";
    eventually("all are handled", async || store.number(distinct).await == MESSAGES as i64).await;
    stop.send(()).unwrap();
    let report = working.await.unwrap().unwrap();
    assert_eq!((report.succeeded, report.retried, report.dead_lettered), (MESSAGES as u64, 0, 0), "{report:?}");
    assert_eq!(store.number("SELECT count(*) FROM effects").await, MESSAGES as i64, "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_sqlite_file_costs_no_message_an_attempt() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new().filename(folder.path().join("a.db")).create_if_missing(true);
    let options = options.journal_mode(sqlx::sqlite::SqliteJournalMode::Wal).pragma("max_page_count", "60");
    let pool = SqlitePoolOptions::new().max_connections(1).acquire_timeout(Duration::from_secs(60));
    let store = polybus_sql::sqlite(pool.connect_with(options).await.unwrap());
    store.migrate().await.unwrap();
    store.run("CREATE TABLE effects (id TEXT, data BLOB)").await;
    let begun = Arc::new(AtomicUsize::new(0));
    let handler = Inbox::new(&store, "c").handler(begun.clone(), async |begun, mut tx, _cx, msg| {
        begun.fetch_add(1, Ordering::Relaxed);
        sqlx::query("INSERT INTO effects VALUES (?, zeroblob(10000))").bind(&*msg.id).execute(&mut *tx).await?;
        Ok(tx)
    });
    let room = store.clone();
    // The limit is that of a connection, and there is one.
    waits_for_room(store, handler, begun, async || room.run("PRAGMA max_page_count = 100000").await).await;
}

/// What PostgreSQL says where the disk is full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_postgres_costs_no_message_an_attempt() {
    let Some(store) = postgres().await else { return };
    store.migrate().await.unwrap();
    store
        .run(
            "CREATE TABLE effects (id TEXT);
            CREATE TABLE room (n INT);
            INSERT INTO room VALUES (20);
            CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    IF (SELECT count(*) FROM effects) >= (SELECT n FROM room) THEN
                        RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
                    END IF;
                    RETURN NEW;
                END $$;
            CREATE TRIGGER full_disk BEFORE INSERT ON effects FOR EACH ROW EXECUTE FUNCTION full_disk()",
        )
        .await;
    let begun = Arc::new(AtomicUsize::new(0));
    let handler = Inbox::new(&store, "c").handler(begun.clone(), async |begun, mut tx, _cx, msg| {
        begun.fetch_add(1, Ordering::Relaxed);
        sqlx::query("INSERT INTO effects VALUES ($1)").bind(&*msg.id).execute(&mut *tx).await?;
        Ok(tx)
    });
    let error = {
        let full = postgres().await.unwrap();
        let raise = "DO $$ BEGIN RAISE EXCEPTION 'no space' USING ERRCODE = '53100'; END $$";
        full.run_on(&mut full.begin().await.unwrap(), raise).await.unwrap_err()
    };
    assert_eq!(store.judge(&error), StoreTrouble::NoRoom);
    let room = store.clone();
    waits_for_room(store, handler, begun, async || room.run("UPDATE room SET n = 1000000").await).await;
}
