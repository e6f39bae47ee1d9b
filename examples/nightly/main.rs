//! A shop whose work is done in the background: invoices, mails, statements, and a report at the end of each day.
//!
//! Each order is written with its jobs in one database transaction ([`Jobs`]). Two workers run them
//! ([`JobWorker`](polybus::patterns::jobs::JobWorker)), and write the report at its time
//! ([`Cron`](polybus::patterns::cron::Cron)); a day lasts a second here. Meanwhile orders are rolled back, handlers
//! fail, a worker is killed, and some mails have no address until somebody adds it. At the end the books must balance.
//!
//! ```text
//! cargo run --example nightly
//! POLYBUS_DATABASE=postgres://… cargo run --example nightly
//! ```

#![allow(missing_docs, unreachable_pub)]

use std::{
    hash::{BuildHasher, RandomState},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use polybus::patterns::{
    jobs::{JobAdmin, JobReport, Jobs},
    store::{JobFilter, JobState},
};
use polybus_sql::Db;
use tokio::{sync::watch, time::Instant};
use tracing_subscriber::EnvFilter;

mod books;
#[allow(clippy::duplicate_mod, reason = "the tests load both examples")]
#[path = "../outbox/database.rs"]
mod database;
mod office;
#[allow(clippy::duplicate_mod, reason = "the tests load both examples")]
#[path = "../outbox/progress.rs"]
mod progress;
mod shop;

pub use books::{Entries, Summary};
use database::{Location, create, number, serial};
use progress::{Progress, say, wait_for};

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Takes orders, does the rest in background jobs, and checks that the books balance.
#[derive(Clone, Debug, Parser)]
#[command(name = "nightly")]
pub struct Args {
    /// sqlite:PATH, postgres://… or mysql://… [default: POLYBUS_DATABASE, else a temporary SQLite file]
    #[arg(long)]
    pub database: Option<String>,
    /// How many orders are begun
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(100..))]
    pub orders: u32,
    /// Names the schema [default: nightly-RANDOM]
    #[arg(long)]
    pub prefix: Option<String>,
    /// Leaves the tables in the database
    #[arg(long)]
    pub keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("polybus=off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(Args::parse()).await {
        Ok(summary) => {
            println!("{summary}");
            match (summary.interrupted, summary.problems().is_empty()) {
                (true, _) => ExitCode::from(130),
                (_, true) => ExitCode::SUCCESS,
                (_, false) => ExitCode::FAILURE,
            }
        }
        Err(e) => {
            eprintln!("nightly: {e}");
            ExitCode::FAILURE
        }
    }
}

/// As long as something happens within this time, it is not stuck.
const PATIENCE: Duration = Duration::from_secs(20);
/// For eight writers, and two workers of sixteen handlers.
const CONNECTIONS: u32 = 28;
/// Days that end at least while the example runs.
const DAYS: i64 = 3;

pub async fn run(args: Args) -> Result<Summary, Failure> {
    let began = Instant::now();
    let address = args.database.clone().or_else(|| variable("POLYBUS_DATABASE"));
    let prefix = args.prefix.clone().unwrap_or_else(|| format!("nightly-{}", random()));
    let location = Location::parse(address.as_deref(), &prefix)?;
    say(&format!("{} orders on {location}", args.orders));

    wait_for("the database", location.create()).await?;
    let worked = with_store(&args, &location).await;
    let removed = if args.keep { Ok(()) } else { location.remove().await };
    let mut summary = worked?;
    removed?;
    (summary.database, summary.took) = (location.to_string(), began.elapsed());
    Ok(summary)
}

async fn with_store(args: &Args, location: &Location) -> Result<Summary, Failure> {
    let store = location.open(CONNECTIONS).await?;
    let worked = work(&store, args).await;
    store.close().await;
    worked
}

async fn work(store: &Db, args: &Args) -> Result<Summary, Failure> {
    create(store, shop::tables(serial(store))).await?;
    let jobs = Jobs::new(store).event_source(shop::SERVICE);
    let (admin, orders) = (jobs.admin(), i64::from(args.orders));
    let begun = Arc::new(AtomicI64::new(0));

    let (stop, stopped) = watch::channel(false);
    let shutdown = || {
        let mut stopped = stopped.clone();
        async move { stopped.wait_for(|stop| *stop).await.map_or((), |_| ()) }
    };
    let half = async {
        while begun.load(Ordering::Relaxed) < orders / 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    // In a real shop each of them is a process of its own, on a machine of its own.
    let staff =
        async { tokio::try_join!(office::worker(store, &jobs, shutdown()), dies_once(store, &jobs, half, shutdown())) };
    let mut staff = std::pin::pin!(staff);

    let progress = {
        let begun = begun.clone();
        Progress::start(move || format!("{}/{orders} orders taken", begun.load(Ordering::Relaxed).min(orders)))
    };
    let day = async {
        let taken = shop::take_orders(store, &jobs, orders, begun.clone()).await?;
        say(&format!("all orders are taken: {} committed, {} rolled back", taken.committed, taken.rolled_back));
        until_idle(store, &admin).await?;
        let retried = send_what_had_no_address(store, &admin).await?;
        while number(store, "SELECT COUNT(*) FROM reports").await? < DAYS {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // No more days begin, and what has begun ends.
        admin.schedules().pause(office::SCHEDULE).await?;
        until_idle(store, &admin).await?;
        Ok::<_, Failure>((taken, retried))
    };
    let done = tokio::select! {
        done = day => done.map(Some),
        ended = &mut staff => return Err(ended.err().unwrap_or_else(|| "a worker ended by itself".into())),
        _ = tokio::signal::ctrl_c() => Ok(None),
    };
    drop(progress);
    let _ = stop.send(true);
    let (one, other) = staff.await?;
    let done = done?;

    let mut summary = books::read(store, &admin).await?;
    (summary.begun, summary.interrupted) = (orders as u64, done.is_none());
    if let Some((taken, retried)) = done {
        (summary.rolled_back, summary.sooner) = (taken.rolled_back, taken.sooner);
        summary.sent_later = retried;
    }
    summary.retries = one.retried + other.retried;
    Ok(summary)
}

/// A worker that is killed when half of the orders are taken, and started again. What it had in its hands runs again
/// once its lease of a second has run out.
async fn dies_once(
    store: &Db,
    jobs: &Jobs<Db>,
    half: impl Future<Output = ()>,
    shutdown: impl Future<Output = ()>,
) -> Result<JobReport, Failure> {
    let mut shutdown = std::pin::pin!(shutdown);
    tokio::select! {
        ended = office::worker(store, jobs, &mut shutdown) => return ended,
        () = half => say("a worker dies; the other one has its jobs within its lease of 1 s, and it is started again"),
    }
    office::worker(store, jobs, shutdown).await
}

/// Mails without an address were given up. Somebody adds the addresses, and lets them run again.
async fn send_what_had_no_address(store: &Db, admin: &JobAdmin) -> Result<u64, Failure> {
    store.execute("UPDATE customers SET address = 'somebody@example.com' WHERE address IS NULL", []).await?;
    let retried = admin.retry(&JobFilter::discarded().kind("mail.send")).await?;
    say(&format!("{retried} mails were given up for want of an address; now there is one, and they run again"));
    until_idle(store, admin).await?;
    Ok(retried)
}

/// Waits until no job waits or runs, or until nothing has happened for so long.
async fn until_idle(store: &Db, admin: &JobAdmin) -> Result<(), Failure> {
    let (mut seen, mut since) = (0, Instant::now());
    loop {
        let counts = admin.counts().await?;
        if counts.iter().all(|count| matches!(count.state, JobState::Finished(_)) || count.jobs == 0) {
            return Ok(());
        }
        let done = number(store, "SELECT (SELECT COUNT(*) FROM invoices) + (SELECT COUNT(*) FROM mails)").await?;
        if done != seen {
            (seen, since) = (done, Instant::now());
        }
        if since.elapsed() >= PATIENCE {
            say("nothing has happened for a while: giving up");
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What it says, unless that is nothing.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn random() -> String {
    format!("{:08x}", RandomState::new().hash_one("nightly") as u32)
}
