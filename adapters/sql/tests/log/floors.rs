//! PostgreSQL: who holds readers back, and what a log must be to be read.

use std::time::{Duration, Instant};

use polybus_core::{ErrorKind, Result};
use polybus_patterns::log::EventLog;
use polybus_sql::Postgres;
use sqlx::AssertSqlSafe;

use crate::support::*;

async fn store() -> Option<(Postgres, sqlx::PgPool)> {
    let options = crate::database::postgres_options().await?.application_name("floors");
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(8).connect_with(options).await.unwrap();
    let store = polybus_sql::postgres(pool.clone());
    store.migrate().await.unwrap();
    Some((store, pool))
}

#[tokio::test]
async fn an_open_transaction_that_has_appended_is_named() {
    let Some((store, pool)) = store().await else { return };
    let log = EventLog::new(&store);
    append(&store, counted("s", [1])).await.unwrap();
    assert!(log.admin().floor().await.unwrap().is_none());
    let mut open = pool.begin().await.unwrap();
    log.append(&mut open, counted("s", [2, 3])).await.unwrap();
    append(&store, counted("t", [4])).await.unwrap();
    let page = log.read_all(0, 100).await.unwrap();
    assert_eq!((page.events.len(), page.held_back), (1, 3), "what came behind it waits");
    let floor = log.admin().floor().await.unwrap().unwrap();
    assert_eq!(floor.behind, 3);
    assert!(floor.who.contains("application floors") && floor.who.contains("idle in transaction"), "{floor:?}");
    assert!(floor.age.is_some_and(|age| age < Duration::from_secs(60)), "{floor:?}");
    // A savepoint that is rolled back takes the floor away, and an append after it sets another one.
    open.rollback().await.unwrap();
    let mut open = pool.begin().await.unwrap();
    sqlx::raw_sql("SAVEPOINT s").execute(&mut *open).await.unwrap();
    log.append(&mut open, counted("s", [2])).await.unwrap();
    sqlx::raw_sql("ROLLBACK TO s").execute(&mut *open).await.unwrap();
    assert_eq!(log.read_all(0, 100).await.unwrap().events.len(), 2);
    log.append(&mut open, counted("s", [2])).await.unwrap();
    append(&store, counted("t", [5])).await.unwrap();
    assert_eq!(log.read_all(0, 100).await.unwrap().events.len(), 2);
    open.commit().await.unwrap();
    assert_eq!(log.read_all(0, 100).await.unwrap().events.len(), 4);
}

#[tokio::test]
async fn a_forgotten_prepared_transaction_is_named_too() {
    let Some((store, pool)) = store().await else { return };
    let log = EventLog::new(&store);
    let name = format!("forgotten_{}", std::process::id());
    let mut tx = pool.begin().await.unwrap();
    log.append(&mut tx, counted("s", [1])).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("PREPARE TRANSACTION '{name}'"))).execute(&mut *tx).await.unwrap();
    drop(tx);
    append(&store, counted("t", [2])).await.unwrap();
    let floor = log.admin().floor().await.unwrap().unwrap();
    let nothing = log.read_all(0, 100).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("COMMIT PREPARED '{name}'"))).execute(&pool).await.unwrap();
    assert!(floor.who.contains(&name) && nothing.events.is_empty(), "{floor:?}");
    assert_eq!(log.read_all(0, 100).await.unwrap().events.len(), 2);
}

/// A setting of the session, or of a pooler that keeps it, is not this transaction's.
#[tokio::test]
async fn a_setting_that_is_left_over_protects_nobody() {
    let Some((store, pool)) = store().await else { return };
    let log = EventLog::new(&store);
    let tag: i32 = sqlx::query_scalar("SELECT tag FROM polybus_log").fetch_one(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    for value in ["1", "0", "x"] {
        let set = AssertSqlSafe(format!("SET polybus.floor_{tag} = '{value}'"));
        sqlx::raw_sql(set).execute(&mut *conn).await.unwrap();
        let mut tx = sqlx::Connection::begin(&mut *conn).await.unwrap();
        log.append(&mut tx, counted("s", [1])).await.unwrap();
        assert!(log.admin().floor().await.unwrap().is_some(), "no floor with {value}");
        tx.rollback().await.unwrap();
    }
}

/// Two logs in one database have numbers of their own.
#[tokio::test]
async fn logs_do_not_hold_each_other_back() {
    let (Some((one, _)), Some((other, pool))) = (store().await, store().await) else { return };
    let mut open = pool.begin().await.unwrap();
    EventLog::new(&other).append(&mut open, counted("s", [1])).await.unwrap();
    append(&one, counted("s", [1])).await.unwrap();
    assert_eq!(EventLog::new(&one).read_all(0, 100).await.unwrap().events.len(), 1);
    assert!(EventLog::new(&one).admin().floor().await.unwrap().is_none());
    open.rollback().await.unwrap();
}

async fn refused(store: &Postgres, words: &str) {
    let refused: Result<()> = store.verify().await;
    let refused = refused.unwrap_err();
    assert!(refused.kind() == ErrorKind::ConfigInvalid && refused.to_string().contains(words), "{refused}");
}

#[tokio::test]
async fn a_sequence_that_is_not_as_it_was_made_is_refused() {
    let Some((store, pool)) = store().await else { return };
    append(&store, counted("s", 1..=5)).await.unwrap();
    let run = async |sql: &'static str| {
        sqlx::raw_sql(sql).execute(&pool).await.unwrap();
    };
    store.verify().await.unwrap();
    run("ALTER SEQUENCE polybus_log_position CACHE 20").await;
    refused(&store, "ALTER SEQUENCE").await;
    run("ALTER SEQUENCE polybus_log_position CACHE 1 INCREMENT 2").await;
    refused(&store, "ALTER SEQUENCE").await;
    run("ALTER SEQUENCE polybus_log_position INCREMENT 1").await;
    store.verify().await.unwrap();
    // As after a logical copy of the database.
    run("SELECT setval('polybus_log_position', 2)").await;
    refused(&store, "setval").await;
    run("SELECT setval('polybus_log_position', 5)").await;
    store.verify().await.unwrap();
    append(&store, counted("s", [6])).await.unwrap();
    assert_eq!(numbers(&store, "s").await, [1, 2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn an_idle_appender_is_told_of_within_15_seconds() {
    let Some((store, pool)) = store().await else { return };
    let (said, _keeping) = crate::said::Log::keep();
    let log = EventLog::new(&store);
    let mut open = pool.begin().await.unwrap();
    log.append(&mut open, counted("s", [1])).await.unwrap();
    append(&store, counted("t", [2])).await.unwrap();
    let began = Instant::now();
    let subscription = log.subscription("all").run(std::future::pending(), (), async |(), _| Ok(()));
    let told = async {
        while said.count(&["stays open", "application floors"]) == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        ended = subscription => panic!("{ended:?}"),
        () = told => {}
        () = tokio::time::sleep(PATIENCE) => panic!("nothing was said: {:?}", said.lines()),
    }
    println!("told after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(15), "told after {:?}", began.elapsed());
    open.rollback().await.unwrap();
}
