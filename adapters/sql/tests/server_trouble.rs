//! The database server itself in trouble: stopped under handlers, and a standby that was promoted behind its primary.
//!
//! Both need PostgreSQL of `./localstack`, which tests may stop (`POLYBUS_LOCALSTACK=1`). One test at a time.
#![allow(clippy::unwrap_used)]

mod database;

use std::{
    path::PathBuf,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use database::{everything, postgres_options, postgres_url, row};
use polybus_core::{
    Address, Bus, BusOptions, Envelope, ErrorKind, QueueSpec, RetryPolicy, Source, Topology, memory::MemoryDriver,
};
use polybus_patterns::{
    Inbox, Outbox, Relay,
    store::{LogStore, OutboxStore, RowId},
};
use polybus_sql::Postgres;
use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions};

static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A store in a new schema; `None` where the server is not ours to stop.
async fn store() -> Option<Postgres> {
    postgres_url()?;
    if std::env::var("POLYBUS_LOCALSTACK").as_deref() != Ok("1") {
        eprintln!("SKIPPED: POLYBUS_LOCALSTACK is not 1");
        return None;
    }
    let pool = PgPoolOptions::new()
        .max_connections(24)
        .acquire_timeout(Duration::from_secs(3))
        .connect_with(postgres_options().await?)
        .await
        .unwrap();
    let store = polybus_sql::postgres(pool);
    store.migrate().await.unwrap();
    Some(store)
}

fn script(name: &str, arguments: &[&str]) -> Output {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "..", "localstack", name].iter().collect();
    let output = Command::new(path).args(arguments).output().unwrap();
    assert!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

async fn run(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
}

async fn number(pool: &PgPool, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(pool).await.unwrap()
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), waiting).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

/// A database that is away for longer than all attempts take together burns none. `POLYBUS_AWAY_SECONDS` makes it
/// longer than 15 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_costs_no_message_an_attempt() {
    const MESSAGES: usize = 300;
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(store) = store().await else { return };
    let away = std::env::var("POLYBUS_AWAY_SECONDS").ok().map_or(15, |seconds| seconds.parse().unwrap());
    run(store.pool(), "CREATE TABLE effects (id TEXT)").await;
    let queue = QueueSpec::new().max_deliveries(3).retry([Duration::from_millis(100)]);
    let topology = Topology::new().queue("q", queue);
    let bus = Bus::new(Arc::new(MemoryDriver::new()), BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    let messages = (0..MESSAGES).map(|i| Envelope::new("t", "").id(i.to_string()));
    bus.publish_all(Address::queue("q"), messages).await.into_iter().for_each(|answer| drop(answer.unwrap()));

    let begun = Arc::new(AtomicUsize::new(0));
    let handler = Inbox::new(&store, "c").handler(begun.clone(), async |begun, mut tx, _cx, msg| {
        begun.fetch_add(1, Ordering::Relaxed);
        sqlx::query("INSERT INTO effects VALUES ($1)").bind(&*msg.id).execute(&mut *tx).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(tx)
    });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = bus.worker(Source::queue("q")).concurrency(16).retry(RetryPolicy::fixed(Duration::from_millis(100)));
    let worker = worker.with_graceful_shutdown(async move { drop(stopped.await) });
    let working = tokio::spawn(worker.run(handler));
    until("some are handled", async || begun.load(Ordering::Relaxed) > MESSAGES / 10).await;

    tokio::task::spawn_blocking(|| script("restart", &["postgres", "stop"])).await.unwrap();
    // The time itself is what is tested: all three attempts would be over in less than a second.
    tokio::time::sleep(Duration::from_secs(away)).await;
    let while_away = begun.load(Ordering::Relaxed);
    assert!(while_away < MESSAGES, "the database was stopped in the middle");
    tokio::task::spawn_blocking(|| script("restart", &["postgres", "start"])).await.unwrap();

    let effects = "SELECT count(*) FROM effects";
    let distinct = "SELECT count(DISTINCT id) FROM effects";
    until("all are handled", async || number(store.pool(), distinct).await == MESSAGES as i64).await;
    stop.send(()).unwrap();
    let report = working.await.unwrap().unwrap();
    assert_eq!((report.dead_lettered, report.retried), (0, 0), "{report:?}");
    assert_eq!(report.succeeded, MESSAGES as u64);
    assert_eq!(number(store.pool(), effects).await, MESSAGES as i64, "none twice");
}

/// After the promotion the identity counts from where the standby was, so new rows get ids of rows that were published.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_standby_loses_no_row_that_was_not_published() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(store) = store().await else { return };
    if std::env::var("POLYBUS_POSTGRES_BIN").unwrap_or_default().is_empty() {
        eprintln!("SKIPPED: a standby needs PostgreSQL without Docker");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap().to_owned();
    let standby = "brokers/postgres-standby.sh";
    let printed = script(standby, &["start", &folder, "55471"]);
    let printed = String::from_utf8(printed.stdout).unwrap();
    let url = printed.split('\'').nth(1).unwrap().to_owned();
    let schema: String = sqlx::query_scalar("SELECT current_schema()::text").fetch_one(store.pool()).await.unwrap();
    let other: sqlx::postgres::PgConnectOptions = url.parse().unwrap();
    let other = PgPoolOptions::new().connect_with(other.options([("search_path", schema)])).await.unwrap();

    // One row reaches the standby, then it hears no more, and the primary goes on by 60.
    database::insert(&store, &[row(0, "queue:q", "both")]).await;
    until("the standby has it", async || number(&other, "SELECT count(*) FROM polybus_outbox").await == 1).await;
    // It does not know which transactions are open at its primary, so the event log is not read there.
    let refused = polybus_sql::postgres(other.clone()).log().read_all(0, 10).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::ConfigInvalid && refused.to_string().contains("standby"), "{refused}");
    run(&other, "ALTER SYSTEM SET primary_conninfo = ''").await;
    run(&other, "SELECT pg_reload_conf()").await;
    until("it hears no more", async || number(&other, "SELECT count(*) FROM pg_stat_wal_receiver").await == 0).await;
    for n in 0..60 {
        database::insert(&store, &[row(0, "queue:q", &format!("primary {n}"))]).await;
    }
    // What a relay has read and published of the primary …
    let published: Vec<RowId> =
        store.outbox().read(&everything("queue:q")).await.unwrap().iter().map(|row| row.id).collect();
    assert_eq!(published.len(), 61);

    script(standby, &["promote", &folder]);
    let promoted = polybus_sql::postgres(other);
    promoted.verify().await.unwrap();
    assert!(promoted.log().read_all(0, 10).await.unwrap().events.is_empty());
    let topology = Topology::new().queue("q", QueueSpec::new());
    let memory = Arc::new(MemoryDriver::new());
    memory.record(true);
    let bus = Bus::new(memory.clone(), BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    let outbox = Outbox::new(&promoted, "/test");
    for n in 0..60 {
        let mut tx = promoted.begin().await.unwrap();
        let message = Envelope::new("t", format!("promoted {n}"));
        outbox.enqueue(&mut tx, Address::queue("q"), message).await.unwrap();
        tx.commit().await.unwrap();
    }
    let again = published.iter().filter(|row| row.id > 1).count() as i64;
    let ids = published.iter().map(|row| row.id.to_string()).collect::<Vec<_>>().join(",");
    let sql = format!("SELECT count(*) FROM polybus_outbox WHERE id IN ({ids})");
    let shared = number(promoted.pool(), &sql).await;
    assert!(shared > 1, "some of {again} ids are there twice, or this proves nothing");
    // … is deleted from the new one: the row that both have, and no other.
    assert_eq!(promoted.outbox().delete(&published).await.unwrap(), 1);
    let relay = Relay::new(&bus, &promoted);
    let empty = async { until("all are published", async || outbox.stats().await.unwrap().ready == 0).await };
    assert_eq!(relay.run(empty).await.unwrap().published, 60);
    assert_eq!(memory.published(&Address::queue("q")).len(), 60);
    script(standby, &["stop", &folder]);
}
