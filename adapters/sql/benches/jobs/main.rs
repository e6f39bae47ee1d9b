//! Measures background jobs that do nothing: how many a second are completed of a table with many, beside a loop that is
//! written by hand on a table of its own, and beside another library if its program is named. Rounds alternate, and
//! medians are printed.
//!
//! `eval "$(./localstack/up postgres mariadb)" && cargo bench -p polybus-sql --all-features --bench jobs`, with `--
//! --rounds N --waiting N --measured N --concurrency N --only throughput|latency|held --on postgres|mysql|sqlite
//! --beside PROGRAM`. The program is called with the URL of the database and the numbers of waiting and of measured
//! jobs, and prints how many it has completed a second.
#![allow(clippy::unwrap_used)]

mod by_hand;
mod held;
mod latency;
mod tables;
mod throughput;

use polybus_core::Event;
use polybus_patterns::jobs::Job;
use polybus_patterns::store::JobStore;
use serde::{Deserialize, Serialize};
use tables::Tables;

/// A job as most are: a few words of arguments.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SendInvoice {
    pub(crate) order: u64,
    pub(crate) to: String,
    pub(crate) note: String,
}

impl Event for SendInvoice {
    const TYPE: &'static str = "invoice.send";
    const VERSION: u32 = 1;
}

impl Job for SendInvoice {}

impl SendInvoice {
    pub(crate) fn number(order: u64) -> Self {
        Self { order, to: "somebody@example.com".into(), note: "x".repeat(50) }
    }
}

pub(crate) fn flag(name: &str) -> Option<String> {
    let args: Vec<String> = std::env::args().collect();
    args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned()
}

pub(crate) fn number(name: &str, default: usize) -> usize {
    flag(name).map_or(default, |n| n.parse().unwrap())
}

fn wanted(name: &str) -> bool {
    flag("--only").is_none_or(|only| only == name)
}

fn is_on(database: &str) -> bool {
    flag("--on").is_none_or(|on| on == database)
}

fn url(database: &str, variable: &str) -> Option<String> {
    let url = std::env::var(variable).ok().filter(|_| is_on(database));
    if url.is_none() && is_on(database) {
        println!("{variable} is not set: nothing measured there. Try: eval \"$(./localstack/up postgres mariadb)\"");
    }
    url
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        if let Some(url) = url("postgres", "POLYBUS_POSTGRES_URL") {
            let store = tables::postgres(&url).await;
            if wanted("throughput") {
                throughput::on_postgres(&store, &url).await;
            }
            measure("PostgreSQL", &store, false).await;
            if wanted("held") {
                held::measure(&store).await;
            }
            store.remove().await;
        }
        if let Some(url) = url("mysql", "POLYBUS_MARIADB_URL") {
            let store = tables::mysql(&url).await;
            measure("MariaDB or MySQL", &store, true).await;
            store.remove().await;
        }
        if is_on("sqlite") {
            let store = tables::sqlite().await;
            measure("SQLite", &store, true).await;
            store.remove().await;
        }
    });
}

async fn measure<S: Tables + JobStore>(name: &str, store: &S, with_throughput: bool) {
    if wanted("throughput") && with_throughput {
        throughput::alone(name, store).await;
    }
    if wanted("latency") {
        store.clear_jobs().await;
        let (signal, polled) = (latency::of_one_job(store, true).await, latency::of_one_job(store, false).await);
        println!("{name}: commit to handler, idle, p50: {signal:?} with wake(), {polled:?} without");
    }
}
