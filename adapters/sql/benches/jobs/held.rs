//! Jobs beside a transaction that stays open: what is completed stays as dead rows, which every claim passes by.

use polybus_patterns::store::JobStore;
use polybus_sql::Postgres;

use crate::{number, tables::Tables, throughput};

pub(crate) async fn measure(store: &Postgres) {
    let (churned, concurrency) = (number("--churned", 300_000), number("--concurrency", 100));
    store.clear_jobs().await;
    let mut open = store.pool().begin().await.unwrap();
    let snapshot = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT txid_current()";
    sqlx::raw_sql(snapshot).execute(&mut *open).await.unwrap();
    for round in 0..=3 {
        let part = churned / 3;
        throughput::fill(store, part + 1_000).await;
        let measured = throughput::complete(store, part, concurrency).await;
        println!(
            "PostgreSQL beside an open transaction, {} churned rows: {:.0} jobs/s, claim p99 {:?}",
            round * part,
            measured.rate,
            measured.claim_p99
        );
    }
    let told = store.jobs().oldest_snapshot().await.unwrap();
    println!("the oldest snapshot: {told:?}");
    open.rollback().await.unwrap();
}
