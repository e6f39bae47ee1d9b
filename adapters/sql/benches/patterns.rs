//! Measures the outbox, the inbox and sequence numbers on PostgreSQL, and on MySQL or MariaDB, each beside a twin in
//! the same run: the same work without the pattern. Rounds alternate, and medians are printed.
//!
//! `eval "$(./localstack/up postgres mariadb rabbitmq)" && cargo bench -p polybus-sql --all-features`, with `--
//! --rounds N --rows N --only enqueue|memory|latency|drain|inbox|stuck|held --on postgres|mysql`. `--only stuck` takes
//! `--stuck-rows N --payload BYTES --probes N --gap MILLISECONDS`, and is for PostgreSQL; its table has the size of
//! rows times payload, and a third more.
#![allow(clippy::unwrap_used)]

mod database;
mod measure;
mod on_mysql;
mod on_postgres;
mod stuck;

use std::{sync::Arc, time::Duration};

use database::{Database, EffectBy, MessageBy, Tables};
use measure::Comparison;
use polybus_core::{Bus, BusOptions, QueueSpec, Registry, Topology, memory::MemoryDriver};

/// The payload of a row in bytes.
const PAYLOAD: usize = 500;
/// Clients that commit at once.
const CLIENTS: usize = 16;
const QUEUE: &str = "bench";

fn flag(name: &str) -> Option<String> {
    let args: Vec<String> = std::env::args().collect();
    args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned()
}

fn number(name: &str, default: usize) -> usize {
    flag(name).map_or(default, |n| n.parse().unwrap())
}

fn wanted(name: &str) -> bool {
    flag("--only").is_none_or(|only| only == name)
}

/// The URL of a database that is to be measured.
fn url(on: &str, variable: &str) -> Option<String> {
    if flag("--on").is_some_and(|wanted| wanted != on) {
        return None;
    }
    let url = std::env::var(variable).ok();
    if url.is_none() {
        println!("{variable} is not set: nothing measured there. Try: eval \"$(./localstack/up postgres mariadb)\"");
    }
    url
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        if let Some(url) = url("postgres", "POLYBUS_POSTGRES_URL") {
            let database = on_postgres::open(&url, "bench", &[]).await;
            measure("PostgreSQL", &database).await;
            if wanted("inbox") {
                // In place of a slower disk, as PostgreSQL itself can wait. The design was made on one of 1.4 ms.
                for (micros, conditions) in [("1000", ", commits that wait 1 ms more"), ("1400", ", 1.4 ms more")] {
                    let settings = [("commit_delay", micros), ("commit_siblings", "0")];
                    let slower = on_postgres::open(&url, "bench_slower", &settings).await;
                    inbox(&slower, conditions).await;
                    slower.store.remove().await;
                }
            }
            if wanted("stuck") {
                stuck(&database).await;
            }
            if wanted("held") {
                held(&database).await;
            }
            database.store.remove().await;
        }
        if let Some(url) = url("mysql", "POLYBUS_MARIADB_URL") {
            let database = on_mysql::open(&url).await;
            measure("MySQL or MariaDB", &database).await;
            database.store.remove().await;
        }
    });
}

async fn measure<S: Tables>(name: &str, database: &Database<S>) {
    let (rounds, rows) = (number("--rounds", 3), number("--rows", 100_000));
    println!("{name}, {PAYLOAD} B, {CLIENTS} clients, {rounds} rounds, medians");
    println!("{:<46} {:>12} {:>12} {:>7}", "", "twin/s", "polybus/s", "ratio");
    if wanted("enqueue") {
        // A part of the rows: each is a commit.
        let (mut compared, mut sequenced) = (Comparison::default(), Comparison::default());
        for _ in 0..rounds {
            let alone = database.business_rows(rows / 20, MessageBy::Nobody).await;
            let with_outbox = database.business_rows(rows / 20, MessageBy::Outbox).await;
            compared.add(alone, with_outbox);
            sequenced.add(with_outbox, database.business_rows(rows / 20, MessageBy::Sequenced).await);
            database.store.clear().await;
        }
        compared.print("commits with an enqueue / without");
        sequenced.print("commits with a numbered enqueue / a plain one");
    }
    if wanted("memory") {
        let mut rates = Vec::new();
        for _ in 0..rounds {
            let bus = memory().await;
            database.fill(rows).await;
            rates.push(database.drain(&bus, rows).await);
            bus.close().await.unwrap();
        }
        measure::print_rate("outbox to memory://", &mut rates);
    }
    if wanted("latency") {
        let bus = memory().await;
        let (signal, polled) = (database.latency(&bus, true).await, database.latency(&bus, false).await);
        println!("commit to delete seen, idle, p50: {signal:?} with wake(), {polled:?} without");
        bus.close().await.unwrap();
    }
    if wanted("drain") {
        match std::env::var("POLYBUS_RABBITMQ_URL") {
            Err(_) => println!("POLYBUS_RABBITMQ_URL is not set: no drain to RabbitMQ"),
            Ok(url) => {
                let mut compared = Comparison::default();
                for _ in 0..rounds {
                    let bus = rabbitmq(&url).await;
                    let direct = measure::publish_all(&bus, rows).await;
                    bus.purge(&polybus_core::Source::queue(QUEUE)).await.unwrap();
                    database.fill(rows).await;
                    let relayed = database.drain(&bus, rows).await;
                    compared.add(direct, relayed);
                    bus.delete().await.unwrap();
                    bus.close().await.unwrap();
                }
                compared.print("draining to RabbitMQ / direct publish_all");
            }
        }
    }
    if wanted("inbox") {
        inbox(database, "").await;
    }
}

async fn inbox<S: Tables>(database: &Database<S>, conditions: &str) {
    let (rounds, rows) = (number("--rounds", 3), number("--rows", 100_000) / 20);
    let (mut compared, mut handed_over, mut guarded) =
        (Comparison::default(), Comparison::default(), Comparison::default());
    let mut log = Vec::new();
    for _ in 0..rounds {
        let alone = database.effects(rows, EffectBy::Transaction).await;
        let with_inbox = database.effects(rows, EffectBy::Inbox).await;
        compared.add(alone.0, with_inbox.0);
        if database.store.handing_over().is_some() {
            handed_over.add(alone.0, database.effects(rows, EffectBy::InboxHandingOver).await.0);
        }
        guarded.add(with_inbox.0, database.effects(rows, EffectBy::InboxWithGuard).await.0);
        log.push(with_inbox.1 - alone.1);
        database.store.clear().await;
    }
    compared.print(&format!("effects with the inbox / without{conditions}"));
    if database.store.handing_over().is_some() {
        handed_over.print(&format!("the same, handing over connections{conditions}"));
    }
    guarded.print(&format!("the inbox with a guard / the inbox{conditions}"));
    log.sort_by(f64::total_cmp);
    println!("log of a mark, read-back and commit beside the effect alone: {:.0} bytes", log[log.len() / 2]);
}

/// Drains beside a transaction that stays open: all rows that were published stay as dead ones.
async fn held(database: &Database<polybus_sql::Postgres>) {
    let rows = number("--rows", 100_000);
    database.store.clear().await;
    let mut open = database.store.pool().begin().await.unwrap();
    let snapshot = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT txid_current()";
    sqlx::raw_sql(snapshot).execute(&mut *open).await.unwrap();
    for round in 0..4 {
        let bus = memory().await;
        database.add(rows).await;
        let rate = database.drain(&bus, rows).await;
        println!("beside an open transaction, {} dead rows: {rate:.0} rows/s", round * rows);
        bus.close().await.unwrap();
    }
    open.rollback().await.unwrap();
}

async fn stuck(database: &Database<polybus_sql::Postgres>) {
    let probes = number("--probes", 300);
    let gap = Duration::from_millis(number("--gap", 200) as u64);
    let loads = match flag("--payload") {
        Some(payload) => vec![(number("--stuck-rows", 1_000_000), payload.parse().unwrap())],
        None => vec![(1_000_000, PAYLOAD), (50_000, 20_000)],
    };
    for (rows, payload) in loads {
        println!("{}", stuck::measure(database, stuck::Load { rows, payload, probes, gap }).await);
    }
}

fn topology() -> Topology {
    Topology::new().queue(QUEUE, QueueSpec::new().physical(format!("polybus-bench-sql-{}", std::process::id())))
}

async fn memory() -> Bus {
    let bus = Bus::new(Arc::new(MemoryDriver::new()), BusOptions::topology(topology())).unwrap();
    bus.declare().await.unwrap();
    bus
}

async fn rabbitmq(url: &str) -> Bus {
    let driver = Registry::new().with(polybus_rabbitmq::RabbitmqConnector).connect(url).await.unwrap();
    let bus = Bus::new(driver, BusOptions::topology(topology())).unwrap();
    bus.declare().await.unwrap();
    bus
}
