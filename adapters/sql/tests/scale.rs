//! What a million waiting rows cost others, and what ten thousand addresses cost. Figures:
//! `cargo test -p polybus-sql --all-features --release --test scale -- --ignored --nocapture --test-threads 1`.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod database;
mod counted;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use counted::{Calls, Counted};
use database::{ALL, TestDatabase, eventually, everything, insert, keyed, row};
use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Result, Topology, memory::MemoryDriver};
use polybus_patterns::{
    Outbox, Relay,
    store::{MarkKey, ReadRows, TransactionLimits},
};

on_both! {#[ignore = "it takes a minute, and prints figures"]
    a_million_rows_of_another_address,
    marking_messages,
    ten_thousand_addresses,
    ten_thousand_missing_addresses,
}

/// The median and the slowest of so many calls.
async fn measured<T>(what: &str, calls: u32, call: impl AsyncFn() -> Result<T>) -> Duration {
    let mut times = Vec::new();
    for _ in 0..calls {
        let since = Instant::now();
        call().await.unwrap();
        times.push(since.elapsed());
    }
    times.sort();
    println!("{what:45} median {:>9.2?}  slowest {:>9.2?}", times[times.len() / 2], times[times.len() - 1]);
    times[times.len() / 2]
}

async fn a_million_rows_of_another_address<S: TestDatabase>(store: S) {
    let postgres = store.control().system() == "postgres";
    println!("--- {}", store.control().system());
    let (numbers, bytes) = match store.control().system() {
        "postgres" => ("SELECT g AS n FROM generate_series(1, $N) g", "decode(repeat('ab', 300), 'hex')"),
        "mysql" => (
            "WITH d (d) AS (SELECT 0 UNION ALL SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4
                UNION ALL SELECT 5 UNION ALL SELECT 6 UNION ALL SELECT 7 UNION ALL SELECT 8 UNION ALL SELECT 9),
                t (n) AS (SELECT a.d + 10 * b.d + 100 * c.d FROM d a JOIN d b JOIN d c)
            SELECT 1 + a.n + 1000 * b.n AS n FROM t a JOIN t b WHERE a.n + 1000 * b.n < $N",
            "REPEAT(x'ab', 300)",
        ),
        _ => (
            "WITH RECURSIVE g (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM g WHERE n < $N) SELECT n FROM g",
            "randomblob(300)",
        ),
    };
    let fill = |count: u32, address: &str, key: &str| {
        format!(
            "INSERT INTO {{outbox}} (slot, address, okey, head, data, created_at)
             SELECT n % 16, '{address}', {key}, '[]', {bytes}, 1 FROM ({}) x",
            numbers.replace("$N", &count.to_string())
        )
    };
    let key = if postgres { "'\\x6b'::bytea" } else { "X'6b'" };
    store.run(&fill(1_000_000, "queue:broken", "NULL")).await;
    store.run(&fill(100_000, "queue:a", key)).await;
    let rows: Vec<_> = (0..1000).map(|n| keyed(n % 16, "queue:a", b"free", "x")).collect();
    insert(&store, &rows).await;
    insert(&store, &[row(1, "queue:b", "x")]).await;

    let outbox = store.outbox();
    let held = [Bytes::from_static(b"k")];
    for analyzed in [false, true] {
        if analyzed {
            let table = if store.control().system() == "mysql" { "TABLE " } else { "" };
            store.run(&format!("ANALYZE {table}{{outbox}}")).await;
            println!("after ANALYZE");
        }
        let addresses = measured("addresses", 50, async || outbox.addresses(&ALL).await).await;
        assert!(addresses < Duration::from_millis(20));
        let read = ReadRows { rows_per_slot: 500, max_bytes: 8 << 20, ..everything("queue:b") };
        let quick = measured("read one row", 50, async || outbox.read(&read).await).await;
        assert!(quick < Duration::from_millis(20));
        let read = ReadRows { rows_per_slot: 500, max_bytes: 8 << 20, ..everything("queue:broken") };
        measured("read 8,000 rows", 10, async || outbox.read(&read).await).await;
        let read = ReadRows { rows_per_slot: 60, max_bytes: 8 << 20, held_keys: &held, ..everything("queue:a") };
        measured("read behind 100,000 rows of a held key", 20, async || outbox.read(&read).await).await;
        measured("stats", 10, async || outbox.stats(100_001).await).await;
        measured("promote_due", 20, async || outbox.promote_due(500).await).await;
    }
    let first = outbox.read(&everything("queue:a")).await.unwrap().into_iter().find(|row| row.key.is_some()).unwrap();
    outbox.park(first.id, "held", true).await.unwrap();
    let read = ReadRows { rows_per_slot: 60, max_bytes: 8 << 20, ..everything("queue:a") };
    assert_eq!(outbox.read(&read).await.unwrap().len(), 16 * 60);
    measured("the same, held by a parked row", 20, async || outbox.read(&read).await).await;
    let read = ReadRows { slots: &[1], rows_per_slot: 500, max_bytes: 8 << 20, ..everything("queue:broken") };
    let mut deleted = 0;
    let since = Instant::now();
    while deleted < 20_000 {
        let rows: Vec<_> = outbox.read(&read).await.unwrap().iter().map(|row| row.id).collect();
        deleted += outbox.delete(&rows).await.unwrap();
    }
    println!("read and delete by 500: {:.0} rows/s", f64::from(20_000) / since.elapsed().as_secs_f64());
}

async fn marking_messages<S: TestDatabase>(store: S) {
    println!("--- {}", store.control().system());
    let limits = TransactionLimits::new(Duration::from_secs(5), Some(Duration::from_secs(30)));
    let number = std::sync::atomic::AtomicU64::new(0);
    let key = || {
        let n = number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut key = [0; 16];
        key[..8].copy_from_slice(&n.to_be_bytes());
        MarkKey { consumer: 1, hour: 1, key }
    };
    measured("begin, rollback", 500, async || S::rolled_back(store.begin().await?).await).await;
    measured("begin_marked, rollback", 500, async || {
        S::rolled_back(store.begin_marked(&key(), &limits).await?.0).await
    })
    .await;
    measured("begin, mark, rollback", 500, async || {
        let mut tx = store.begin().await?;
        let _ = store.mark(&mut tx, &key()).await?;
        S::rolled_back(tx).await
    })
    .await;
    measured("begin_marked, is_marked, commit", 500, async || {
        let key = key();
        let (mut tx, _) = store.begin_marked(&key, &limits).await?;
        assert!(store.is_marked(&mut tx, &key).await?);
        S::commit(tx).await
    })
    .await;
}

const ADDRESSES: usize = 10_000;

fn queue(n: usize) -> String {
    format!("q{n:05}")
}

/// One row for each address.
async fn one_row_each<S: TestDatabase>(store: &S) {
    let outbox = Outbox::new(store, "/scale");
    let mut tx = store.begin().await.unwrap();
    for n in 0..ADDRESSES {
        outbox.enqueue(&mut tx, Address::queue(queue(n)), Envelope::new("t", "x")).await.unwrap();
    }
    S::commit(tx).await.unwrap();
}

async fn bus(topology: Topology) -> Bus {
    let bus = Bus::new(Arc::new(MemoryDriver::new()), BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    bus
}

/// The memory of this process in MiB: now, and at most.
fn memory() -> [u64; 2] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    ["VmRSS:", "VmHWM:"].map(|name| line(name).trim().trim_end_matches(" kB").parse().unwrap_or(0) / 1024)
}

/// The time that this process has computed.
fn computed() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    Duration::from_millis(ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * 10)
}

async fn calls_a_second(what: &str, calls: &Calls, seconds: u32) -> [f64; 4] {
    calls.taken();
    let before = computed();
    tokio::time::sleep(Duration::from_secs(u64::from(seconds))).await;
    let [addresses, read, delete, other] = calls.taken().map(|n| n as f64 / f64::from(seconds));
    let cpu = (computed() - before).as_secs_f64() / f64::from(seconds) * 100.0;
    println!(
        "{what}: {addresses:.1} addresses/s, {read:.1} reads/s, {delete:.1} deletes/s, {other:.1} others/s, \
         {cpu:.0} % of a core, {:?} MiB now and at most",
        memory()
    );
    [addresses, read, delete, other]
}

async fn ten_thousand_addresses<S: TestDatabase>(store: S) {
    println!("--- {}", store.control().system());
    one_row_each(&store).await;
    let bus = bus((0..ADDRESSES).fold(Topology::new(), |all, n| all.queue(queue(n), QueueSpec::new()))).await;
    let counted = Counted::new(store.clone());
    println!("before: {:?} MiB", memory());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let since = Instant::now();
    let relay = tokio::spawn(Relay::new(&bus, &counted).run(async move { drop(stopped.await) }));
    let outbox = Outbox::new(&store, "/scale");
    eventually("all are published", async || outbox.stats().await.unwrap().ready == 0).await;
    println!("{ADDRESSES} addresses in {:.2?}, {:?} MiB, calls: {:?}", since.elapsed(), memory(), counted.calls);
    calls_a_second("after it", &counted.calls, 2).await;
    let [_, read, delete, _] = calls_a_second("idle", &counted.calls, 5).await;
    assert!(read < 1.0 && delete < 1.0, "an address that is empty costs nothing");
    stop.send(()).unwrap();
    assert_eq!(relay.await.unwrap().unwrap().published, ADDRESSES as u64);
}

/// Each is tried again at its own pace, and nothing else is done for it.
async fn ten_thousand_missing_addresses<S: TestDatabase>(store: S) {
    println!("--- {}", store.control().system());
    one_row_each(&store).await;
    let bus = bus(Topology::new().queue("well", QueueSpec::new())).await;
    let counted = Counted::new(store.clone());
    println!("before: {:?} MiB", memory());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let relay = tokio::spawn(Relay::new(&bus, &counted).run(async move { drop(stopped.await) }));
    for _ in 0..5 {
        calls_a_second("waiting", &counted.calls, 20).await;
    }
    let since = Instant::now();
    let outbox = Outbox::new(&store, "/scale");
    let mut tx = store.begin().await.unwrap();
    outbox.enqueue(&mut tx, Address::queue("well"), Envelope::new("t", "x")).await.unwrap();
    S::commit(tx).await.unwrap();
    outbox.wake();
    eventually("the well one is published", async || outbox.stats().await.unwrap().ready == ADDRESSES as u64).await;
    println!("a row beside them: {:.2?}", since.elapsed());
    stop.send(()).unwrap();
    assert_eq!(relay.await.unwrap().unwrap().published, 1);
}
