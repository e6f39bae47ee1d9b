//! What a million waiting rows cost others. Figures: `cargo test -p polybus-sql --all-features --release --test scale
//! -- --ignored --nocapture --test-threads 1`.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod database;

use std::time::{Duration, Instant};

use bytes::Bytes;
use database::{ALL, TestDatabase, everything, insert, keyed, row};
use polybus_core::Result;
use polybus_patterns::store::{MarkKey, ReadRows, TransactionLimits};

on_both! {#[ignore = "it takes a minute, and prints figures"]
    a_million_rows_of_another_address,
    marking_messages,
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
    let (numbers, bytes) = if postgres {
        ("SELECT g AS n FROM generate_series(1, $N) g", "decode(repeat('ab', 300), 'hex')")
    } else {
        (
            "WITH RECURSIVE g (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM g WHERE n < $N) SELECT n FROM g",
            "randomblob(300)",
        )
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
            store.run("ANALYZE {outbox}").await;
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
