//! How many jobs a second are completed.

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use polybus_patterns::{
    jobs::{JobWorker, Jobs},
    store::JobStore,
};
use polybus_sql::Postgres;

use crate::{SendInvoice, by_hand::ByHand, flag, median, number, tables::Tables};

/// Between two claims of the probe.
const PROBE: Duration = Duration::from_millis(20);

pub(crate) struct Measured {
    /// Jobs completed a second, the claims' last ones in it.
    pub(crate) rate: f64,
    /// Of 100 claims of one job beside the worker, one took longer.
    pub(crate) claim_p99: Duration,
}

pub(crate) async fn fill<S: JobStore>(store: &S, waiting: usize) {
    let jobs = Jobs::new(store);
    for n in 0..waiting.div_ceil(1_000) {
        let some = (0..1_000).map(|k| SendInvoice::number((n * 1_000 + k) as u64));
        jobs.submit_many(some).await.unwrap();
    }
}

/// Runs a worker until it has handled so many jobs.
pub(crate) async fn complete<S: JobStore>(store: &S, measured: usize, concurrency: usize) -> Measured {
    let (handled, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Notify::new()));
    let state = (handled, done.clone(), measured);
    let worker = JobWorker::new(store).queue("default", concurrency).on(
        state,
        async |(handled, done, measured), _cx, _job: SendInvoice| {
            if handled.fetch_add(1, Ordering::Relaxed) + 1 == measured {
                done.notify_one();
            }
            Ok(())
        },
    );
    let probing = tokio::spawn(probe(store.jobs()));
    let started = Instant::now();
    let report = worker.run(async move { done.notified().await }).await.unwrap();
    let rate = report.completed as f64 / started.elapsed().as_secs_f64();
    probing.abort();
    let mut took = match probing.await {
        Err(aborted) if aborted.is_cancelled() => PROBED.lock().unwrap().split_off(0),
        ended => panic!("the probe has ended: {ended:?}"),
    };
    took.sort();
    Measured { rate, claim_p99: took[took.len() * 99 / 100] }
}

static PROBED: std::sync::Mutex<Vec<Duration>> = std::sync::Mutex::new(Vec::new());

/// Claims one job after the other, beside the worker.
async fn probe(table: Arc<dyn polybus_patterns::store::JobTable>) {
    loop {
        let started = Instant::now();
        table.claim("default", [7; 16], Duration::from_secs(60), 1).await.unwrap();
        PROBED.lock().unwrap().push(started.elapsed());
        tokio::time::sleep(PROBE).await;
    }
}

/// Beside the loop that is written by hand, and beside another library's program.
pub(crate) async fn on_postgres(store: &Postgres, url: &str) {
    let (rounds, waiting, measured) =
        (number("--rounds", 3), number("--waiting", 1_000_000), number("--measured", 100_000));
    let (concurrency, beside) = (number("--concurrency", 100), flag("--beside"));
    println!("PostgreSQL, {waiting} jobs waiting, the first {measured}, concurrency {concurrency}, {rounds} rounds");
    let (mut ours, mut hand, mut other, mut p99) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let by_hand = ByHand::new(store.pool()).await;
    for round in 0..rounds {
        by_hand.fill(waiting).await;
        hand.push(by_hand.complete(measured).await);
        by_hand.clear().await;
        store.clear_jobs().await;
        fill(store, waiting).await;
        store.analyze().await;
        let polybus = complete(store, measured, concurrency).await;
        store.clear_jobs().await;
        println!(
            "round {round}: by hand {:.0}/s, polybus {:.0}/s, claim p99 {:?}",
            hand[round], polybus.rate, polybus.claim_p99
        );
        ours.push(polybus.rate);
        p99.push(polybus.claim_p99.as_secs_f64() * 1000.0);
        if let Some(program) = &beside {
            let child = tokio::process::Command::new(program)
                .args([url, &waiting.to_string(), &measured.to_string(), &concurrency.to_string()])
                .stderr(Stdio::inherit())
                .output()
                .await
                .unwrap();
            let rate: f64 = String::from_utf8(child.stdout).unwrap().trim().parse().unwrap();
            println!("round {round}: {program} {rate:.0}/s");
            other.push(rate);
        }
    }
    let mut ratios: Vec<f64> = ours.iter().zip(&hand).map(|(ours, hand)| ours / hand).collect();
    println!(
        "PostgreSQL, medians: polybus {:.0}/s, claim p99 {:.1} ms, by hand {:.0}/s, ratio {:.2}",
        median(&mut ours.clone()),
        median(&mut p99),
        median(&mut hand),
        median(&mut ratios)
    );
    if !other.is_empty() {
        let mut ratios: Vec<f64> = ours.iter().zip(&other).map(|(ours, other)| ours / other).collect();
        println!("the other library {:.0}/s, ratio {:.2}", median(&mut other), median(&mut ratios));
    }
}

pub(crate) async fn alone<S: Tables>(name: &str, store: &S) {
    let (rounds, waiting, measured) =
        (number("--rounds", 3), number("--waiting", 1_000_000) / 10, number("--measured", 100_000) / 5);
    let concurrency = number("--concurrency", 100);
    let (mut rates, mut p99) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        store.clear_jobs().await;
        fill(store, waiting).await;
        store.analyze().await;
        let measured = complete(store, measured, concurrency).await;
        rates.push(measured.rate);
        p99.push(measured.claim_p99.as_secs_f64() * 1000.0);
    }
    println!(
        "{name}, {waiting} jobs waiting, the first {measured}, medians of {rounds}: {:.0}/s, claim p99 {:.1} ms",
        median(&mut rates),
        median(&mut p99)
    );
}
