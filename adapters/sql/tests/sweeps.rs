//! A sweep of the inbox' marks costs what it deletes, whatever lives.
#![allow(clippy::unwrap_used)]

mod database;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use database::{TestDatabase, eventually, postgres_options, scalar};
use polybus_patterns::store::{InboxStore, InboxTable};
use sqlx::{
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};

const RETENTION: Duration = Duration::from_secs(7 * 86_400);

/// Marks of messages without a time, and of late ones of every hour of the past two months: all live.
async fn many_live<S: TestDatabase>(store: &S) -> i64 {
    let now = store.number("SELECT applied_at FROM {schema} WHERE component = 'inbox'").await;
    let hour = now / 3_600_000_000;
    let key = if store.control().system() == "postgres" { "decode(md5(n::text), 'hex')" } else { "randomblob(16)" };
    store
        .run(&format!(
            "INSERT INTO {{inbox}} (consumer, hour, key, at)
            SELECT 1, CASE WHEN n % 2 = 0 THEN 0 ELSE {hour} - 200 - n % 1500 END, {key}, {now} FROM (
                WITH RECURSIVE g (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < 40000) SELECT n FROM g) m"
        ))
        .await;
    now
}

/// Sweeps when nothing is old, and when a few are.
async fn sweeps(inbox: &dyn InboxTable, set_old: impl AsyncFn(), steps: impl AsyncFn() -> u64) -> (u64, u64) {
    // What the process does not know it looks at once.
    assert_eq!(inbox.sweep(1, RETENTION, 10_000).await.unwrap(), 0);
    let before = steps().await;
    assert_eq!(inbox.sweep(1, RETENTION, 10_000).await.unwrap(), 0);
    let nothing = steps().await;
    set_old().await;
    let before_old = steps().await;
    assert_eq!(inbox.sweep(1, RETENTION, 10_000).await.unwrap(), 30);
    (nothing - before, steps().await - before_old)
}

/// Those that a minute has made old: without a time, late, and handled at once.
fn old_marks(now: i64, key: &str) -> String {
    let at = now - 7 * 86_400_000_000 - 60_000_000;
    let hour = at / 3_600_000_000;
    format!(
        "INSERT INTO {{inbox}} (consumer, hour, key, at)
        SELECT 1, CASE n % 3 WHEN 0 THEN 0 WHEN 1 THEN {hour} - 300 ELSE {hour} END, {key}, {at} FROM (
            WITH RECURSIVE g (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < 30) SELECT n FROM g) m"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_on_sqlite_looks_at_no_mark_that_lives() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new().filename(folder.path().join("a.db")).create_if_missing(true);
    let steps = Arc::new(AtomicU64::new(0));
    let counter = steps.clone();
    let pool = SqlitePoolOptions::new().max_connections(1).after_connect(move |conn, _| {
        let counter = counter.clone();
        Box::pin(async move {
            // One call for each ten of its instructions.
            conn.lock_handle().await?.set_progress_handler(10, move || {
                counter.fetch_add(1, Ordering::Relaxed);
                true
            });
            Ok(())
        })
    });
    let store = polybus_sql::sqlite(pool.connect_with(options).await.unwrap());
    store.migrate().await.unwrap();
    let now = many_live(&store).await;
    let (nothing, some) = sweeps(
        &*store.inbox(),
        async || store.run(&old_marks(now, "randomblob(16)")).await,
        async || steps.load(Ordering::Relaxed),
    )
    .await;
    assert!(nothing < 100 && some < 1_000, "{nothing} and {some} times ten instructions, with 40,000 live marks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_on_postgres_looks_at_no_mark_that_lives() {
    let Some(options) = postgres_options().await else { return };
    let options = options.application_name(&format!("sweeps-{}", std::process::id()));
    let watcher = PgPoolOptions::new().max_connections(1).connect_with(options.clone()).await.unwrap();
    let store = polybus_sql::postgres(PgPoolOptions::new().max_connections(2).connect_with(options).await.unwrap());
    store.migrate().await.unwrap();
    let now = many_live(&store).await;
    store.run("VACUUM ANALYZE {inbox}").await;
    // What the statistics counted. A connection tells them when it ends.
    let read = async || -> u64 {
        let others = "FROM pg_stat_activity WHERE application_name = current_setting('application_name')
            AND pid <> pg_backend_pid()";
        let _: i64 = scalar(&watcher, &format!("SELECT count(pg_terminate_backend(pid)) {others}")).await;
        let gone = async || scalar::<i64>(&watcher, &format!("SELECT count(*) {others}")).await == 0;
        eventually("the store's connections are gone", gone).await;
        let rows: i64 = scalar(
            &watcher,
            "SELECT (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relid = 'polybus_inbox'::regclass)::bigint
            + (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relid = 'polybus_inbox'::regclass)",
        )
        .await;
        rows.unsigned_abs()
    };
    let (nothing, some) =
        sweeps(&*store.inbox(), async || store.run(&old_marks(now, "decode(md5('old' || n), 'hex')")).await, read)
            .await;
    assert!(nothing < 100 && some < 1_000, "{nothing} and {some} index entries, with 40,000 live marks");
}
