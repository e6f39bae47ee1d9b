//! A shop that loses no order and bills none twice, whatever fails on the way.
//!
//! Each order is written with its message in one database transaction ([`Outbox`]). A relay publishes the messages
//! ([`Relay`]). Billing writes an invoice for each, once ([`Inbox`](polybus::patterns::Inbox)), and enqueues a mail
//! from inside its handler. Meanwhile orders are rolled back, handlers fail, the relay is killed, and messages come
//! twice. At the end the books must balance.
//!
//! ```text
//! cargo run --example outbox
//! POLYBUS_URL=amqp://… POLYBUS_DATABASE=postgres://… cargo run --features rabbitmq --example outbox
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
use polybus::{
    Address, Bus, BusOptions, Envelope, QueueSpec, SubscriptionSpec, TopicSpec, Topology,
    patterns::{Outbox, Relay},
};
use polybus_sql::Db;
use tokio::{sync::watch, time::Instant};
use tracing_subscriber::EnvFilter;

mod books;
mod database;
mod desks;
mod progress;
mod shop;

pub use books::{Entries, Summary};
use database::{Location, create, serial};
use desks::Seen;
use progress::{Progress, say, wait_for};

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Takes orders with a transactional outbox, bills them with an inbox, and checks that the books balance.
#[derive(Clone, Debug, Parser)]
#[command(name = "outbox")]
pub struct Args {
    /// The broker [default: POLYBUS_URL, else memory://]
    #[arg(long)]
    pub url: Option<String>,
    /// sqlite:PATH, postgres://… or mysql://… [default: POLYBUS_DATABASE, else a temporary SQLite file]
    #[arg(long)]
    pub database: Option<String>,
    /// How many orders are begun
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    pub orders: u32,
    /// Goes before the names of all that is made at the broker, and names the schema [default: outbox-RANDOM]
    #[arg(long)]
    pub prefix: Option<String>,
    /// Leaves topic and queue at the broker, and the tables in the database
    #[arg(long)]
    pub keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    // Clients of brokers log as errors what polybus expects, such as a queue that is not there yet.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("polybus=error"));
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
            eprintln!("outbox: {e}");
            ExitCode::FAILURE
        }
    }
}

/// As long as something happens within this time, it is not stuck.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the slots of a relay that was killed stand still.
const LEASE: Duration = Duration::from_secs(1);
/// For eight writers and two workers of eight handlers, all at once, with two to spare for each inbox.
const CONNECTIONS: u32 = 28;

fn topology(prefix: &str) -> Topology {
    let billing = SubscriptionSpec::new().types(["order.*"]).retry([Duration::from_millis(50)]);
    Topology::new()
        .prefix(prefix)
        .topic("order-events", TopicSpec::new().ordered(true).subscription("billing", billing))
        .queue("mail", QueueSpec::new().retry([Duration::from_millis(200)]))
}

pub async fn run(args: Args) -> Result<Summary, Failure> {
    let began = Instant::now();
    let url = args.url.clone().or_else(|| variable("POLYBUS_URL")).unwrap_or_else(|| "memory://".into());
    let address = args.database.clone().or_else(|| variable("POLYBUS_DATABASE"));
    let prefix = args.prefix.clone().unwrap_or_else(|| format!("outbox-{}", random()));
    let location = Location::parse(address.as_deref(), &prefix)?;
    let broker = polybus::driver::ConnectUrl::parse(&url)?.to_string();
    say(&format!("{} orders on {location}, through {broker}", args.orders));

    wait_for("the database", location.create()).await?;
    let worked = with_database(&args, &url, &prefix, &location).await;
    let removed = if args.keep { Ok(()) } else { location.remove().await };
    let mut summary = worked?;
    removed?;
    (summary.broker, summary.database, summary.took) = (broker, location.to_string(), began.elapsed());
    Ok(summary)
}

async fn with_database(args: &Args, url: &str, prefix: &str, location: &Location) -> Result<Summary, Failure> {
    let topology = topology(prefix);
    let bus = wait_for("the broker", polybus::connect_with(url, BusOptions::topology(topology.clone()))).await?;
    let store = location.open(CONNECTIONS).await?;
    let worked = work(&bus, &store, &topology, args).await;
    store.close().await;
    let deleted = if args.keep { Ok(()) } else { bus.delete().await };
    bus.close().await?;
    let summary = worked?;
    deleted?;
    Ok(summary)
}

async fn work(bus: &Bus, store: &Db, topology: &Topology, args: &Args) -> Result<Summary, Failure> {
    create(store, shop::tables(serial(store))).await?;
    bus.declare().await?;
    // With the topology, the outbox refuses a message without a key for an ordered topic at once.
    let outbox = Outbox::new(store, shop::SERVICE).topology(topology);
    let orders = i64::from(args.orders);
    let (begun, billing, mail) = (Arc::new(AtomicI64::new(0)), Arc::new(Seen::default()), Arc::new(Seen::default()));

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
    // In a real shop each of them is a process of its own, or several.
    let staff = async {
        tokio::try_join!(
            desks::billing(bus, store, outbox.clone(), billing.clone(), shutdown()),
            desks::mail(bus, store, mail.clone(), shutdown()),
            relays(bus, store, half, shutdown()),
        )
    };
    let mut staff = std::pin::pin!(staff);

    let progress = {
        let (begun, billing, mail) = (begun.clone(), billing.clone(), mail.clone());
        Progress::start(move || {
            let taken = begun.load(Ordering::Relaxed).min(orders);
            format!("{taken}/{orders} orders taken   {} billed   {} mails", billing.messages(), mail.messages())
        })
    };
    let job = async {
        let taken = shop::take_orders(store, &outbox, orders, begun.clone()).await?;
        let committed = orders as u64 - taken.rolled_back;
        let reminders = books::reminders_wanted(store).await?;
        say(&format!("all orders are taken: {committed} committed, {} rolled back", taken.rolled_back));
        let done = || billing.messages() >= committed && mail.messages() >= committed + reminders;
        if !settled(PATIENCE, done, || billing.messages() + mail.messages()).await {
            say("nothing has happened for a while: giving up");
        }
        publish_again(bus, &billing, &taken.copies).await?;
        Ok::<_, Failure>(taken.rolled_back)
    };
    let done = tokio::select! {
        done = job => done.map(Some),
        ended = &mut staff => return Err(ended.err().unwrap_or_else(|| "a desk or a relay ended by itself".into())),
        _ = tokio::signal::ctrl_c() => Ok(None),
    };
    drop(progress);
    let _ = stop.send(true);
    staff.await?;
    let rolled_back = done?;

    let mut summary = books::read(store, &outbox).await?;
    (summary.begun, summary.interrupted) = (orders as u64, rolled_back.is_none());
    summary.rolled_back = rolled_back.unwrap_or_default();
    summary.duplicates = billing.duplicates() + mail.duplicates();
    Ok(summary)
}

/// Publishes what the outbox holds. When half of the orders are taken the relay dies without a word, and another one
/// takes over. What the first one had published but not deleted comes twice.
async fn relays(
    bus: &Bus,
    store: &Db,
    half: impl Future<Output = ()>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let mut shutdown = std::pin::pin!(shutdown);
    tokio::select! {
        ended = Relay::new(bus, store).lease(LEASE).run(&mut shutdown) => return Ok(ended.map(drop)?),
        () = half => say("the relay dies; another one has its slots within its lease of 1 s"),
    }
    Relay::new(bus, store).lease(LEASE).run(shutdown).await?;
    Ok(())
}

/// Publishes messages that were published before, as a client does that did not hear the first answer. Waits until the
/// inbox has seen them. Some brokers know the ids of the last minutes, as FIFO topics of SNS do, and drop them.
async fn publish_again(bus: &Bus, billing: &Seen, copies: &[Envelope]) -> Result<(), Failure> {
    let before: Vec<u64> = copies.iter().map(|copy| billing.times(&copy.id)).collect();
    for result in bus.publish_all(Address::topic("order-events"), copies).await {
        result?;
    }
    let again =
        || copies.iter().zip(&before).filter(|(copy, before)| billing.times(&copy.id) > **before).count() as u64;
    settled(Duration::from_secs(3), || again() == copies.len() as u64, again).await;
    say(&format!("{} messages were published a second time, and {} came", copies.len(), again()));
    Ok(())
}

/// Waits until it is done, or nothing has happened for so long. Answers which.
async fn settled(patience: Duration, done: impl Fn() -> bool, happened: impl Fn() -> u64) -> bool {
    let (mut seen, mut since) = (happened(), Instant::now());
    while !done() {
        let now = happened();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        if since.elapsed() >= patience {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

/// What it says, unless that is nothing.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn random() -> String {
    format!("{:08x}", RandomState::new().hash_one("outbox") as u32)
}
