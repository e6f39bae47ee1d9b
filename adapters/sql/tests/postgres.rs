//! What is special to PostgreSQL.
#![allow(clippy::unwrap_used)]

mod database;

use std::time::{Duration, Instant};

use database::{ALL, TestDatabase, eventually, everything, insert, postgres, postgres_options, read, row};
use polybus_core::{ErrorKind, RetrySafety};
use polybus_patterns::store::{InboxStore, Mark, MarkKey, OutboxStore, Store, StoreTrouble, TransactionLimits};
use polybus_sql::Postgres;
use sqlx::{Connection, PgConnection, postgres::PgPoolOptions};

const KEY: MarkKey = MarkKey { consumer: 1, hour: 1, key: [7; 16] };

async fn migrated() -> Option<Postgres> {
    let store = postgres().await?;
    store.migrate().await.unwrap();
    Some(store)
}

fn limits(mark_wait: u64, statement: Option<u64>) -> TransactionLimits {
    TransactionLimits::new(Duration::from_millis(mark_wait), statement.map(Duration::from_millis))
}

async fn show(conn: &mut PgConnection, setting: &str) -> String {
    sqlx::query_scalar("SELECT current_setting($1)").bind(setting).fetch_one(conn).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wait_for_the_mark_is_limited_and_the_callers_limit_put_back() {
    let Some(store) = migrated().await else { return };
    let options =
        (*store.pool().connect_options()).clone().options([("lock_timeout", "90s"), ("statement_timeout", "1h")]);
    let store = polybus_sql::postgres(PgPoolOptions::new().max_connections(4).connect_with(options).await.unwrap());
    let (mut first, mark) = store.begin_marked(&KEY, &limits(300, Some(45_000))).await.unwrap();
    assert_eq!(mark, Mark::First);
    assert_eq!(show(&mut first, "lock_timeout").await, "90s");
    assert_eq!(show(&mut first, "statement_timeout").await, "45s");
    assert_eq!(show(&mut first, "transaction_isolation").await, "read committed");

    let since = Instant::now();
    let error = store.begin_marked(&KEY, &limits(300, None)).await.unwrap_err();
    let waited = since.elapsed();
    assert!(waited >= Duration::from_millis(290) && waited < Duration::from_secs(60), "{waited:?}");
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, RetrySafety::Safe));
    assert_eq!(error.context("mark"), Some("busy"));
    assert_eq!(store.judge(&error), StoreTrouble::Contention);

    store.begin().await.unwrap().rollback().await.unwrap();
    Postgres::commit(first).await.unwrap();
    let (mut copy, mark) = store.begin_marked(&KEY, &limits(300, None)).await.unwrap();
    assert_eq!(mark, Mark::Duplicate);
    assert_eq!(show(&mut copy, "lock_timeout").await, "90s");
    assert_eq!(show(&mut copy, "statement_timeout").await, "1h");
    // The settings are gone with the transaction.
    drop(copy);
    let mut conn = store.pool().acquire().await.unwrap();
    assert_eq!(show(&mut conn, "statement_timeout").await, "1h");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_handler_frees_its_mark_in_the_middle_of_a_statement() {
    let Some(store) = migrated().await else { return };
    let (mut tx, _) = store.begin_marked(&KEY, &limits(5000, None)).await.unwrap();
    let handler = async move { sqlx::query("SELECT pg_sleep(100)").execute(&mut *tx).await.map(|_| tx) };
    assert!(tokio::time::timeout(Duration::from_millis(200), handler).await.is_err());
    let since = Instant::now();
    let (_tx, mark) = store.begin_marked(&KEY, &limits(90_000, None)).await.unwrap();
    assert_eq!(mark, Mark::First);
    assert!(since.elapsed() < Duration::from_secs(50), "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_says_if_a_nested_transaction_ended_the_whole_or_is_still_open() {
    let Some(options) = postgres_options().await else { return };
    let name = format!("nested_{}", std::process::id());
    let options = options.application_name(&name);
    let pool = PgPoolOptions::new().max_connections(4).connect_with(options).await.unwrap();
    let store = polybus_sql::postgres(pool);
    sqlx::raw_sql("CREATE TABLE nested (n INT)").execute(store.pool()).await.unwrap();
    let insert = "INSERT INTO nested VALUES (1)";

    // An error was swallowed, so the nested one cannot begin, and sqlx gives up the whole.
    let mut tx = store.begin().await.unwrap();
    assert!(sqlx::query("SELECT 1/0").execute(&mut *tx).await.is_err());
    assert!(tx.begin().await.is_err());
    let error = tx.commit().await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unexpected, RetrySafety::MayDuplicate), "{error}");

    let mut tx = store.begin().await.unwrap();
    std::mem::forget(tx.begin().await.unwrap());
    sqlx::query(insert).execute(&mut *tx).await.unwrap();
    let error = tx.commit().await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unexpected, RetrySafety::Safe), "{error}");

    // One that was dropped is rolled back alone.
    let mut tx = store.begin().await.unwrap();
    sqlx::query(insert).execute(&mut *tx).await.unwrap();
    let mut nested = tx.begin().await.unwrap();
    sqlx::query(insert).execute(&mut *nested).await.unwrap();
    drop(nested);
    tx.commit().await.unwrap();
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM nested").fetch_one(store.pool()).await.unwrap();
    assert_eq!(rows, 1);
    let open = "SELECT count(*) FROM pg_stat_activity
        WHERE state LIKE 'idle in transaction%' AND application_name = $1";
    eventually("no transaction is open", async || {
        sqlx::query_scalar::<_, i64>(open).bind(&name).fetch_one(store.pool()).await.unwrap() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_begin_that_is_dropped_leaves_no_transaction_open() {
    let Some(options) = postgres_options().await else { return };
    let name = format!("begin-{}", std::process::id());
    let watcher = PgPoolOptions::new().connect_with(options.clone()).await.unwrap();
    let options = options.application_name(&name);
    let store = polybus_sql::postgres(PgPoolOptions::new().max_connections(2).connect_with(options).await.unwrap());
    store.migrate().await.unwrap();
    for n in 0..400_u32 {
        // A timer is too coarse to hit the middle of a round trip.
        let soon = async {
            for _ in 0..n {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! { biased; _ = store.begin() => {}, () = soon => {} }
        // Both connections are back in the pool once they can be had at once.
        let _both = (store.pool().acquire().await.unwrap(), store.pool().acquire().await.unwrap());
        let open: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND state LIKE 'idle in transaction%'",
        )
        .bind(&name)
        .fetch_one(&watcher)
        .await
        .unwrap();
        assert_eq!(open, 0, "after {n} polls");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callers_search_path_does_not_matter() {
    let Some(store) = migrated().await else { return };
    let mut tx = store.begin().await.unwrap();
    sqlx::query("SET LOCAL search_path = pg_catalog").execute(&mut *tx).await.unwrap();
    store.insert(&mut tx, &[row(0, "queue:a", "0")]).await.unwrap();
    store.insert(&mut tx, &[row(0, "queue:a", "1"), row(0, "queue:a", "2")]).await.unwrap();
    assert_eq!(store.mark(&mut tx, &KEY).await.unwrap(), Mark::First);
    Postgres::commit(tx).await.unwrap();
    assert_eq!(read(&store, "queue:a").await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_can_be_named() {
    let Some(store) = postgres().await else { return };
    let name = format!("odd \"{}\"'s", std::process::id());
    let named = store.clone().schema(&name);
    let missing = named.migrate().await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::ConfigInvalid, "{missing}");
    let quoted = name.replace('"', "\"\"");
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "DROP SCHEMA IF EXISTS \"{quoted}\" CASCADE; CREATE SCHEMA \"{quoted}\""
    )))
    .execute(store.pool())
    .await
    .unwrap();
    named.migrate().await.unwrap();
    named.verify().await.unwrap();
    insert(&named, &[row(0, "queue:a", "0")]).await;
    assert_eq!(read(&named, "queue:a").await.len(), 1);
    assert_eq!(store.verify().await.unwrap_err().kind(), ErrorKind::ConfigInvalid);
    // It went back, and the statement that mends it has quotes in it.
    let sequence = format!("SELECT setval('\"{}\".polybus_outbox_id_seq', 1, false)", quoted.replace('\'', "''"));
    sqlx::raw_sql(sqlx::AssertSqlSafe(sequence)).execute(store.pool()).await.unwrap();
    let error = named.verify().await.unwrap_err();
    let (_, mend) = error.message().split_once("run: ").unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(mend.to_owned())).execute(store.pool()).await.unwrap();
    named.verify().await.unwrap();
    assert_eq!(store.clone().schema("").verify().await.unwrap_err().kind(), ErrorKind::ConfigInvalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notification_is_heard_by_other_processes() {
    let Some(store) = migrated().await else { return };
    let other = polybus_sql::postgres(store.pool().clone());
    let control = other.control();
    let mut heard = control.changes().listen();
    let listening = tokio::spawn({
        let control = other.control();
        async move { control.listen().await }
    });
    let heard = async {
        // The self-test is heard by nobody else, so the first signal is a notification. Polled until LISTEN stands.
        loop {
            store.control().notify().await.unwrap();
            if let Ok(committed) = tokio::time::timeout(Duration::from_millis(50), heard.changed()).await {
                break committed;
            }
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), heard).await.unwrap());
    assert!(!listening.is_finished());
    listening.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loops_work_while_the_application_has_all_connections() {
    let Some(options) = postgres_options().await else { return };
    // Its first connection takes as long on a busy machine as it takes.
    let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(Duration::from_secs(5));
    let store = polybus_sql::postgres(pool.connect_with(options).await.unwrap());
    store.migrate().await.unwrap();
    let mut tx = store.begin().await.unwrap();
    let leases = store.control().leases();
    assert_eq!(leases.acquire(&["l".to_owned()], "a", Duration::from_secs(10)).await.unwrap().len(), 1);
    assert!(store.outbox().addresses(&ALL).await.unwrap().is_empty());
    store.insert(&mut tx, &[row(0, "queue:a", "0")]).await.unwrap();
    let busy = store.begin().await.unwrap_err();
    assert_eq!((busy.kind(), busy.retry()), (ErrorKind::Unavailable, RetrySafety::Safe));
    assert_eq!(store.judge(&busy), StoreTrouble::MaybeAway);
    assert!(!store.control().is_away().await);
    Postgres::commit(tx).await.unwrap();
    assert_eq!(store.control().max_connections(), Some(1));

    store.pool().close().await;
    assert_eq!(store.outbox().stats(1).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(store.begin().await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contention_and_lost_connections_are_told_apart() {
    let Some(store) = migrated().await else { return };
    store.run("CREATE TABLE counters (id INT PRIMARY KEY, n INT); INSERT INTO counters VALUES (1, 0), (2, 0)").await;
    let (mut one, mut other) = (store.begin().await.unwrap(), store.begin().await.unwrap());
    let update = "UPDATE counters SET n = n + 1 WHERE id = $1";
    sqlx::query(update).bind(1).execute(&mut *one).await.unwrap();
    sqlx::query(update).bind(2).execute(&mut *other).await.unwrap();
    let (first, second) =
        tokio::join!(sqlx::query(update).bind(2).execute(&mut *one), sqlx::query(update).bind(1).execute(&mut *other));
    let deadlock = first.err().or(second.err()).unwrap();
    assert_eq!(store.judge(&deadlock), StoreTrouble::Contention);
    drop((one, other));

    let mut tx = store.begin().await.unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *tx).await.unwrap();
    sqlx::query("SELECT pg_terminate_backend($1)").bind(pid).execute(store.pool()).await.unwrap();
    let lost = store.insert(&mut tx, &[row(0, "queue:a", "0")]).await.unwrap_err();
    assert_eq!((lost.kind(), lost.retry()), (ErrorKind::Unavailable, RetrySafety::Safe), "{lost:?}");
    assert_eq!(store.judge(&lost), StoreTrouble::MaybeAway);
    drop(tx);
    let mut tx = store.begin().await.unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *tx).await.unwrap();
    sqlx::query("SELECT pg_terminate_backend($1)").bind(pid).execute(store.pool()).await.unwrap();
    let lost = Postgres::commit(tx).await.unwrap_err();
    assert_eq!((lost.kind(), lost.retry()), (ErrorKind::Unavailable, RetrySafety::MayDuplicate), "{lost:?}");

    let away = polybus_sql::postgres(
        PgPoolOptions::new()
            .acquire_timeout(Duration::from_millis(300))
            .connect_lazy_with((*store.pool().connect_options()).clone().port(1)),
    )
    .schema("x");
    assert!(away.control().is_away().await);
    assert_eq!(away.begin().await.unwrap_err().kind(), ErrorKind::Unavailable);
    let wrong = (*store.pool().connect_options()).clone().password("secret-word");
    let wrong = polybus_sql::postgres(PgPoolOptions::new().connect_lazy_with(wrong));
    let error = wrong.begin().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    assert!(!format!("{error:?} {wrong:?}").contains("secret-word"));
    assert_eq!(store.judge(&error), StoreTrouble::None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_without_rights_to_make_tables_can_verify_and_use_them() {
    let Some(store) = migrated().await else { return };
    let schema: String = sqlx::query_scalar("SELECT current_schema()::text").fetch_one(store.pool()).await.unwrap();
    let user = format!("user_{schema}");
    let setup = format!(
        "CREATE ROLE {user} LOGIN PASSWORD 'pw'; GRANT USAGE ON SCHEMA {schema} TO {user};
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {user}"
    );
    if sqlx::raw_sql(sqlx::AssertSqlSafe(setup)).execute(store.pool()).await.is_err() {
        eprintln!("SKIPPED: this user may not make roles");
        return;
    }
    let options = (*store.pool().connect_options()).clone().username(&user).password("pw");
    let limited = polybus_sql::postgres(PgPoolOptions::new().connect_with(options).await.unwrap());
    limited.verify().await.unwrap();
    limited.migrate().await.unwrap();
    insert(&limited, &[row(0, "queue:a", "0")]).await;
    let rows = read(&limited, "queue:a").await;
    limited.outbox().park(rows[0].id, "no", true).await.unwrap();
    assert_eq!(limited.outbox().retry_parked(&polybus_patterns::store::ParkedFilter::All).await.unwrap(), 1);
    assert_eq!(limited.outbox().read(&everything("queue:a")).await.unwrap().len(), 1);
    let error = limited.with_prefix("new_").migrate().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    let drop = format!("DROP OWNED BY {user}; DROP ROLE {user}");
    limited.pool().close().await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(store.pool()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outside_a_transaction_is_told_from_inside() {
    let Some(store) = migrated().await else { return };
    let mut conn = store.pool().acquire().await.unwrap();
    assert!(!Postgres::in_transaction(&mut conn));
    let mut tx = conn.begin().await.unwrap();
    assert!(Postgres::in_transaction(&mut tx));
    store.insert(&mut tx, &[row(0, "queue:a", "0")]).await.unwrap();
    tx.commit().await.unwrap();
    store.insert(&mut conn, &[row(0, "queue:a", "1")]).await.unwrap();
    assert_eq!(read(&store, "queue:a").await.len(), 2);
}
