//! Measures the event log: appends of single events, each in a transaction of its own, beside the same without what keeps
//! readers from missing events; and how fast all of it is read. Rounds alternate, and medians are printed.
//!
//! `eval "$(./localstack/up postgres mariadb)" && cargo bench -p polybus-sql --all-features --bench log`, with `-- --rounds
//! N --seconds N --read N --only append|read --on postgres|mysql|sqlite`.
#![allow(clippy::unwrap_used)]

mod append;
mod read;
mod stores;
mod twin;

use polybus_core::Event;
use serde::{Deserialize, Serialize};

/// An event as most are.
#[derive(Serialize, Deserialize)]
pub(crate) struct OrderPlaced {
    pub(crate) order: u64,
    pub(crate) customer: String,
    pub(crate) note: String,
}

impl Event for OrderPlaced {
    const TYPE: &'static str = "order.placed";
    const VERSION: u32 = 1;
}

impl OrderPlaced {
    /// Of about 200 bytes.
    pub(crate) fn number(order: u64) -> Self {
        Self { order, customer: "customer-1204".into(), note: "x".repeat(150) }
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
            let (store, schema) = stores::postgres(&url).await;
            if wanted("append") {
                append::beside_the_twin(&store).await;
            }
            if wanted("read") {
                read::measure("PostgreSQL", &store).await;
            }
            stores::drop_schema(store.pool(), &schema).await;
        }
        if let Some(url) = url("mysql", "POLYBUS_MARIADB_URL") {
            let (store, database) = stores::mysql(&url).await;
            if wanted("append") {
                append::alone("MariaDB or MySQL", &store).await;
            }
            if wanted("read") {
                read::measure("MariaDB or MySQL", &store).await;
            }
            stores::drop_database(store.pool(), &database).await;
        }
        if is_on("sqlite") {
            let store = polybus_sql::sqlite_temp().await.unwrap();
            store.migrate().await.unwrap();
            if wanted("append") {
                append::alone("SQLite, synchronous = NORMAL", &store).await;
            }
            if wanted("read") {
                read::measure("SQLite", &store).await;
            }
        }
    });
}
