//! How many jobs that do nothing apalis completes a second, for the bench `jobs` beside which it runs:
//! `apalis-jobs URL WAITING MEASURED CONCURRENCY` prints one number. The tables are in a database of their own, which is
//! removed at the end.
//!
//! apalis has what makes it fast: as many jobs of a claim as run at once, no statement of its own that marks a job as
//! running, and a task of tokio for each job.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use apalis::prelude::*;
use apalis_postgres::{Config, PostgresStorage};
use serde::{Deserialize, Serialize};
use sqlx::{
    AssertSqlSafe, ConnectOptions, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// Connections of the pool, as the bench has.
const CONNECTIONS: u32 = 16;
/// Jobs of one INSERT.
const CHUNK: usize = 1_000;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SendInvoice {
    order: u64,
    to: String,
    note: String,
}

struct Handled {
    jobs: AtomicUsize,
    until: usize,
}

async fn send_invoice(
    _job: SendInvoice,
    handled: Data<Arc<Handled>>,
    worker: WorkerContext,
) -> Result<(), BoxDynError> {
    if handled.jobs.fetch_add(1, Ordering::Relaxed) + 1 == handled.until {
        worker.stop()?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), BoxDynError> {
    let args: Vec<String> = std::env::args().collect();
    let [_, url, waiting, measured, concurrency] = args.as_slice() else {
        return Err("call it as apalis-jobs URL WAITING MEASURED CONCURRENCY".into());
    };
    let (waiting, measured, concurrency): (usize, usize, usize) =
        (waiting.parse()?, measured.parse()?, concurrency.parse()?);
    let options: PgConnectOptions = url.parse()?;
    let mut admin = options.connect().await?;
    let name = format!("bench_apalis_{}", std::process::id());
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut admin).await?;
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS);
    let pool = pool.connect_with(options.clone().database(&name)).await?;
    let rate = jobs_a_second(&pool, waiting, measured, concurrency).await;
    pool.close().await;
    sqlx::raw_sql(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).execute(&mut admin).await?;
    println!("{:.0}", rate?);
    Ok(())
}

async fn jobs_a_second(pool: &PgPool, waiting: usize, measured: usize, concurrency: usize) -> Result<f64, BoxDynError> {
    PostgresStorage::setup(pool).await?;
    let config = Config::default().queue("default").batch_size(concurrency).lock_tasks(false);
    let mut storage = PostgresStorage::<SendInvoice>::new(pool).with_config(config);
    for chunk in 0..waiting.div_ceil(CHUNK) {
        let tasks = (0..CHUNK).map(|k| {
            let order = (chunk * CHUNK + k) as u64;
            SendInvoice { order, to: "somebody@example.com".into(), note: "x".repeat(50) }
        });
        storage.push_bulk(tasks.collect()).await?;
    }
    sqlx::raw_sql("ANALYZE apalis.jobs").execute(pool).await?;
    sqlx::raw_sql("CHECKPOINT").execute(pool).await?;

    let handled = Arc::new(Handled { jobs: AtomicUsize::new(0), until: measured });
    let worker = WorkerBuilder::new("bench")
        .backend(storage)
        .concurrency(concurrency)
        .parallelize(tokio::spawn)
        .data(handled)
        .build(send_invoice);
    let started = Instant::now();
    worker.run().await?;
    let took = started.elapsed();
    // What is still on its way to the table is not waited for by `run`.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let done: i64 =
        sqlx::query_scalar("SELECT count(*) FROM apalis.jobs WHERE status = 'Done'").fetch_one(pool).await?;
    Ok(done as f64 / took.as_secs_f64())
}
