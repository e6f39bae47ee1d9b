//! Measures the outbox and the inbox on PostgreSQL, each beside a twin in the same run: the same work without the
//! pattern. Rounds alternate, and medians are printed.
//!
//! `eval "$(./localstack/up postgres rabbitmq)" && cargo bench -p polybus-sql --all-features`, with
//! `-- --rounds N --rows N --only enqueue|memory|latency|drain|inbox|stuck`. `--only stuck` takes `--stuck-rows N
//! --payload BYTES --probes N --gap MILLISECONDS`; its table has the size of rows times payload, and a third more.
#![allow(clippy::unwrap_used)]

mod database;
mod measure;
mod stuck;

use std::sync::Arc;

use database::{Database, EffectBy};
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

fn main() {
    let Ok(url) = std::env::var("POLYBUS_POSTGRES_URL") else {
        println!("POLYBUS_POSTGRES_URL is not set: nothing measured. Try: eval \"$(./localstack/up postgres)\"");
        return;
    };
    let number = |name, default| flag(name).map_or(default, |n| n.parse().unwrap());
    let rounds: usize = number("--rounds", 3);
    let rows: usize = number("--rows", 100_000);
    let only = flag("--only");
    let wanted = |name: &str| only.as_deref().is_none_or(|o| o == name);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let database = Database::open(&url).await;
        println!("PostgreSQL, {PAYLOAD} B, {CLIENTS} clients, {rounds} rounds, medians");
        println!("{:<46} {:>12} {:>12} {:>7}", "", "twin/s", "polybus/s", "ratio");
        if wanted("enqueue") {
            // A tenth of the rows: each is a commit.
            let mut compared = Comparison::default();
            for _ in 0..rounds {
                let alone = database.business_rows(rows / 20, false).await;
                let with_outbox = database.business_rows(rows / 20, true).await;
                compared.add(alone, with_outbox);
                database.clear().await;
            }
            compared.print("commits with an enqueue / without");
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
            inbox(&database, "", rounds, rows / 20).await;
            // In place of a slower disk, as PostgreSQL itself can wait.
            let settings = [("commit_delay", "1000"), ("commit_siblings", "0")];
            let slower = Database::open_with(&url, "bench_slower", &settings).await;
            inbox(&slower, ", commits that wait 1 ms more", rounds, rows / 20).await;
            slower.drop().await;
        }
        if wanted("stuck") {
            let probes = number("--probes", 300);
            let gap = std::time::Duration::from_millis(number("--gap", 200) as u64);
            let loads = match flag("--payload") {
                Some(payload) => vec![(number("--stuck-rows", 1_000_000), payload.parse().unwrap())],
                None => vec![(1_000_000, PAYLOAD), (50_000, 20_000)],
            };
            for (rows, payload) in loads {
                println!("{}", stuck::measure(&database, stuck::Load { rows, payload, probes, gap }).await);
            }
        }
        database.drop().await;
    });
}

async fn inbox(database: &Database, conditions: &str, rounds: usize, rows: usize) {
    let (mut compared, mut handed_over, mut wal) = (Comparison::default(), Comparison::default(), Vec::new());
    for _ in 0..rounds {
        let alone = database.effects(rows, EffectBy::Transaction).await;
        let with_inbox = database.effects(rows, EffectBy::Inbox).await;
        compared.add(alone.0, with_inbox.0);
        handed_over.add(alone.0, database.effects(rows, EffectBy::InboxHandingOver).await.0);
        wal.push(with_inbox.1 - alone.1);
        database.clear().await;
    }
    compared.print(&format!("effects with the inbox / without{conditions}"));
    handed_over.print(&format!("the same, handing over connections{conditions}"));
    wal.sort_by(f64::total_cmp);
    println!("WAL of a mark, read-back and commit beside the effect alone: {:.0} bytes", wal[wal.len() / 2]);
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
