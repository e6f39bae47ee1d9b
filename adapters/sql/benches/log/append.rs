//! How many events a second are appended.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use polybus_patterns::{
    log::{Append, EventLog},
    store::LogStore,
};
use polybus_sql::Postgres;

use crate::{OrderPlaced, median, number, twin};

const STREAMS: u64 = 5_000;

/// Transactions a second, of so many writers.
async fn rate<F: Future<Output = ()> + Send>(
    writers: usize,
    append: impl Fn(String, OrderPlaced) -> F + Clone + Send + 'static,
) -> f64 {
    let (done, began) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let until = began + Duration::from_secs(number("--seconds", 4) as u64);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..writers {
        let (done, append) = (done.clone(), append.clone());
        tasks.spawn(async move {
            while Instant::now() < until {
                let n = done.fetch_add(1, Ordering::Relaxed);
                // Neighbours in time are different streams.
                append(format!("order-{}", n.wrapping_mul(7_919) % STREAMS), OrderPlaced::number(n)).await;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64()
}

async fn of_log<S: LogStore>(store: &S, writers: usize) -> f64 {
    let log = EventLog::new(store);
    let store = store.clone();
    rate(writers, move |stream, event| {
        let (log, store) = (log.clone(), store.clone());
        async move {
            let mut tx = store.begin().await.unwrap();
            log.append(&mut tx, Append::to(stream).event(&event)).await.unwrap();
            S::commit(tx).await.unwrap();
        }
    })
    .await
}

pub(crate) async fn beside_the_twin(store: &Postgres) {
    twin::make(store).await;
    for writers in [1, 8, 32] {
        let (mut ours, mut unprotected) = (Vec::new(), Vec::new());
        for _ in 0..number("--rounds", 5) {
            let twin = store.clone();
            let twin = move |stream: String, event: OrderPlaced| {
                let twin = twin.clone();
                async move { twin::append(&twin, &stream, &event).await }
            };
            unprotected.push(rate(writers, twin).await);
            ours.push(of_log(store, writers).await);
        }
        let mut ratios: Vec<f64> = ours.iter().zip(&unprotected).map(|(ours, twin)| ours / twin).collect();
        println!(
            "PostgreSQL, {writers} writers: {:.0} appends/s, unprotected {:.0}/s, ratio {:.2} ({:.2} to {:.2})",
            median(&mut ours),
            median(&mut unprotected),
            median(&mut ratios),
            ratios[0],
            ratios[ratios.len() - 1]
        );
    }
}

pub(crate) async fn alone<S: LogStore>(name: &str, store: &S) {
    for writers in [1, 8, 32] {
        let mut rates = Vec::new();
        for _ in 0..number("--rounds", 5) {
            rates.push(of_log(store, writers).await);
        }
        println!("{name}, {writers} writers: {:.0} appends/s", median(&mut rates));
    }
}
