//! Transactions of every kind append at once, and readers follow them. None may miss an event, or read one of a stream
//! before an earlier one. Readers that leave out one step of the proof run beside them, and what they miss is printed;
//! `steps.rs` has each of their faults in a few statements.
//!
//! `POLYBUS_TORTURE_SECONDS=60` for longer than a moment.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use polybus_core::driver::kit::backoff::random_fraction;
use polybus_patterns::{log::EventLog, store::LogStore};
use polybus_sql::Postgres;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};

use crate::{by_hand::*, support::*};

const WRITERS: usize = 8;
const STREAMS: usize = 20;

fn seconds() -> Duration {
    let seconds = std::env::var("POLYBUS_TORTURE_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(4))
}

fn chance(of: f64) -> bool {
    random_fraction() < of
}

async fn pause(longest_ms: f64) {
    tokio::time::sleep(Duration::from_secs_f64(longest_ms * random_fraction() / 1_000.0)).await;
}

fn any_stream() -> String {
    format!("s{}", (random_fraction() * STREAMS as f64) as usize)
}

/// What a reader has seen: position, stream, version.
type Seen = Vec<(i64, String, i64)>;

/// How many events of the table a reader has missed, and how many it has read behind a later one of their stream.
fn judge(seen: &Seen, all: &Seen) -> (usize, usize) {
    let mut last: HashMap<&str, i64> = HashMap::new();
    let mut behind = 0;
    for (_, stream, version) in seen {
        let last = last.entry(stream).or_default();
        behind += usize::from(version <= last);
        *last = (*last).max(*version);
    }
    let positions: std::collections::HashSet<i64> = seen.iter().map(|event| event.0).collect();
    (all.iter().filter(|event| !positions.contains(&event.0)).count(), behind)
}

async fn all<S: LogDatabase>(store: &S) -> Seen {
    let (mut behind, mut all) = (0, Vec::new());
    loop {
        let page = store.log().read_all(behind, 1_000).await.unwrap();
        let Some(last) = page.events.last() else { return all };
        behind = last.position;
        all.extend(page.events.iter().map(|event| (event.position, event.stream.clone(), event.version)));
    }
}

on_both![readers_miss_nothing_whatever_order_transactions_end_in];

async fn readers_miss_nothing_whatever_order_transactions_end_in<S: LogDatabase>(store: S) {
    let stop = Arc::new(AtomicBool::new(false));
    let reader = {
        let (store, stop) = (store.clone(), stop.clone());
        tokio::spawn(async move {
            let (mut seen, mut behind) = (Seen::new(), 0);
            loop {
                // What is read after the end is all.
                let is_last = stop.load(Ordering::SeqCst);
                let page = store.log().read_all(behind, 50).await.unwrap();
                match page.events.last() {
                    Some(last) => behind = last.position,
                    None if is_last && page.held_back == 0 => return seen,
                    None => tokio::time::sleep(Duration::from_millis(1)).await,
                }
                seen.extend(page.events.iter().map(|event| (event.position, event.stream.clone(), event.version)));
            }
        })
    };
    let end = Instant::now() + seconds() / 2;
    let writer = |_| {
        let store = store.clone();
        tokio::spawn(async move {
            let log = EventLog::new(&store);
            while Instant::now() < end {
                let mut tx = store.begin().await.unwrap();
                // In one order, so that the streams' locks do not meet.
                let mut streams = [any_stream(), any_stream()];
                streams.sort();
                for stream in &streams {
                    log.append(&mut tx, counted(stream, [1, 2])).await.unwrap();
                    if chance(0.3) {
                        pause(10.0).await;
                    }
                }
                match chance(0.2) {
                    true => S::rolled_back(tx).await.unwrap(),
                    false => S::commit(tx).await.unwrap(),
                }
            }
        })
    };
    for writer in (0..4).map(writer).collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    let seen = reader.await.unwrap();
    let all = all(&store).await;
    assert!(all.len() > 20, "{} events", all.len());
    assert_eq!(judge(&seen, &all), (0, 0), "missed, out of stream order, of {}", all.len());
    assert_eq!(seen.len(), all.len(), "none came twice");
}

/// A way to read PostgreSQL's log.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reading {
    /// Ours.
    Floors,
    /// `pos > cursor`.
    Naive,
    /// Ours, in one transaction with one snapshot.
    OneSnapshot,
    /// Ours, with a cursor that goes on to the head where nothing was wanted.
    CursorToHead,
    /// What no open transaction can have written, in the order of transactions.
    Xmin,
}

/// Reads until `stop`, and then what is left.
async fn read(pool: PgPool, store: Postgres, schema: String, how: Reading, stop: Arc<AtomicBool>) -> Seen {
    let (mut seen, mut cursor, mut x) = (Seen::new(), 0_i64, 0_i64);
    let mut idle = 0;
    loop {
        let is_last = stop.load(Ordering::SeqCst);
        let mut rows: Seen = Vec::new();
        match how {
            Reading::Floors => {
                let page = store.log().read_all(cursor, 500).await.unwrap();
                rows.extend(page.events.into_iter().map(|event| (event.position, event.stream, event.version)));
            }
            Reading::Xmin => {
                let found = sqlx::query(of_schema(BY_XMIN, &schema)).bind(x).bind(cursor).fetch_all(&pool).await;
                for row in found.unwrap() {
                    rows.push((row.get(0), row.get(1), row.get(2)));
                    x = row.get(3);
                }
            }
            _ => {
                let level = match how {
                    Reading::OneSnapshot => "BEGIN ISOLATION LEVEL REPEATABLE READ",
                    _ => "BEGIN ISOLATION LEVEL READ COMMITTED",
                };
                let mut tx = pool.begin_with(level).await.unwrap();
                let head: i64 = sqlx::query_scalar(of_schema(HEAD, &schema)).fetch_one(&mut *tx).await.unwrap();
                let lowest: Option<i64> = match how {
                    Reading::Naive => None,
                    _ => sqlx::query_scalar(of_schema(LOWEST, &schema)).fetch_one(&mut *tx).await.unwrap(),
                };
                if how == Reading::OneSnapshot {
                    // As a busy machine pauses.
                    pause(2.0).await;
                }
                let most = lowest.map_or(head, |lowest| lowest.min(head));
                let between = sqlx::query(of_schema(BETWEEN, &schema)).bind(cursor).bind(most);
                let found = between.fetch_all(&mut *tx).await.unwrap();
                rows.extend(found.into_iter().map(|row| (row.get(0), row.get(1), row.get(2))));
                tx.commit().await.unwrap();
                if how == Reading::CursorToHead && rows.is_empty() {
                    cursor = cursor.max(head);
                }
            }
        }
        match rows.last() {
            Some(last) => (cursor, idle) = (last.0, 0),
            // Prepared transactions have ended by then.
            None if is_last && idle > 100 => return seen,
            None => {
                idle += usize::from(is_last);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        seen.extend(rows);
    }
}

/// Appends as the application of somebody who does everything that a transaction can do.
async fn write(pool: PgPool, logs: [EventLog<Postgres>; 2], schema: String, who: usize, until: Instant) -> usize {
    let (mut committed, mut round) = (0, 0);
    while Instant::now() < until {
        round += 1;
        let level = match (random_fraction() * 4.0) as usize {
            0 => "BEGIN ISOLATION LEVEL REPEATABLE READ",
            1 => "BEGIN ISOLATION LEVEL SERIALIZABLE",
            _ => "BEGIN ISOLATION LEVEL READ COMMITTED",
        };
        let mut tx = pool.begin_with(level).await.unwrap();
        if write_some(&mut tx, &logs, &schema).await.is_err() {
            // A conflict of snapshots, or of locks in different orders.
            drop(tx);
            continue;
        }
        match random_fraction() {
            share if share < 0.1 => tx.rollback().await.unwrap(),
            share if share < 0.2 => {
                let name = format!("{schema}_{who}_{round}");
                let prepare = AssertSqlSafe(format!("PREPARE TRANSACTION '{name}'"));
                // Serializable ones may fail here.
                let prepared = sqlx::raw_sql(prepare).execute(&mut *tx).await.is_ok();
                drop(tx);
                if prepared {
                    pause(50.0).await;
                    let end = if chance(0.8) { "COMMIT" } else { "ROLLBACK" };
                    sqlx::raw_sql(AssertSqlSafe(format!("{end} PREPARED '{name}'"))).execute(&pool).await.unwrap();
                    committed += usize::from(end == "COMMIT");
                }
            }
            _ => committed += usize::from(tx.commit().await.is_ok()),
        }
    }
    committed
}

async fn write_some(
    tx: &mut PgConnection,
    logs: &[EventLog<Postgres>; 2],
    schema: &str,
) -> Result<(), polybus_core::Error> {
    if chance(0.5) {
        // The transaction has its number long before it appends.
        let business = AssertSqlSafe(format!("INSERT INTO \"{schema}\".business DEFAULT VALUES"));
        sqlx::raw_sql(business).execute(&mut *tx).await.unwrap();
        pause(20.0).await;
    }
    for _ in 0..1 + usize::from(chance(0.3)) {
        logs[0].append(tx, counted(&any_stream(), [1])).await?;
        if chance(0.3) {
            pause(15.0).await;
        }
        if chance(0.2) {
            logs[1].append(tx, counted(&any_stream(), [1])).await?;
        }
        if chance(0.3) {
            sqlx::raw_sql("SAVEPOINT s").execute(&mut *tx).await.unwrap();
            logs[0].append(tx, counted(&any_stream(), [2, 3])).await?;
            let end = if chance(0.5) { "ROLLBACK TO s" } else { "RELEASE s" };
            sqlx::raw_sql(end).execute(&mut *tx).await.unwrap();
            pause(5.0).await;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres_nothing_is_missed_whatever_transactions_do() {
    let Some(options) = crate::database::postgres_options().await else { return };
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(24).connect_with(options).await.unwrap();
    let stores = [polybus_sql::postgres(pool.clone()), polybus_sql::postgres(pool.clone()).prefix("other_")];
    for store in &stores {
        store.migrate().await.unwrap();
        store.verify().await.unwrap();
    }
    let schema: String = sqlx::query_scalar("SELECT current_schema()::text").fetch_one(&pool).await.unwrap();
    sqlx::raw_sql("CREATE TABLE business (id BIGINT GENERATED ALWAYS AS IDENTITY)").execute(&pool).await.unwrap();

    // Somebody else's transaction, which never appends.
    let mut foreign = pool.begin().await.unwrap();
    sqlx::raw_sql("INSERT INTO business DEFAULT VALUES").execute(&mut *foreign).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let ways = [Reading::Floors, Reading::Naive, Reading::OneSnapshot, Reading::CursorToHead, Reading::Xmin];
    let readers =
        ways.map(|how| (how, tokio::spawn(read(pool.clone(), stores[0].clone(), schema.clone(), how, stop.clone()))));
    // One of the other log, which shares transactions with the first one.
    let other = tokio::spawn({
        let (store, stop) = (stores[1].clone(), stop.clone());
        read(pool.clone(), store, schema.clone(), Reading::Floors, stop)
    });
    let until = Instant::now() + seconds();
    let logs = stores.each_ref().map(EventLog::new);
    let writers = (0..WRITERS).map(|who| tokio::spawn(write(pool.clone(), logs.clone(), schema.clone(), who, until)));
    let mut committed = 0;
    let half = tokio::time::sleep(seconds() / 2);
    let writers: Vec<_> = writers.collect();
    half.await;
    // What reads by xmin sees nothing until it ends.
    foreign.rollback().await.unwrap();
    for writer in writers {
        committed += writer.await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    let everything = all(&stores[0]).await;
    let mut judged = HashMap::new();
    for (how, reader) in readers {
        let (missed, behind) = judge(&reader.await.unwrap(), &everything);
        println!(
            "{how:?}: {missed} missed, {behind} out of stream order, of {} by {committed} transactions",
            everything.len()
        );
        judged.insert(format!("{how:?}"), (missed, behind));
    }
    let of_other = judge(&other.await.unwrap(), &all(&stores[1]).await);
    assert_eq!((judged["Floors"], of_other), ((0, 0), (0, 0)), "missed, out of stream order");
}
