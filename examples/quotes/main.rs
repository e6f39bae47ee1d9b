//! Request and reply under load: a shop asks for quotes, and the quotes ask a warehouse. Some answers are slow, some are
//! refusals, some come at the second attempt, and one responder dies half-way. At the end every call has ended with the
//! truth, and the tree of one conversation over three services is shown.
//!
//! ```text
//! cargo run --example quotes
//! POLYBUS_URL=amqp://… cargo run --features rabbitmq --example quotes
//! ```

#![allow(missing_docs, unreachable_pub)]

use std::{
    hash::{BuildHasher, RandomState},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use polybus::{
    Address, Bus, BusOptions, QueueSpec, Source, Topology,
    patterns::requests::{RequestError, Requests},
    stateful,
};
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tracing_subscriber::EnvFilter;

mod report;
mod services;
mod tree;

pub use report::{Outcomes, Summary};
use services::{GetQuote, Kind, Quote, Services};
use tree::MessageLog;

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Asks for quotes over queues, with responders that are slow, that refuse, that fail, and that die.
#[derive(Clone, Debug, Parser)]
#[command(name = "quotes")]
pub struct Args {
    /// The broker [default: POLYBUS_URL, else memory://]
    #[arg(long)]
    pub url: Option<String>,
    /// How many quotes are asked for
    #[arg(long, default_value_t = 300)]
    pub calls: u64,
    /// How many callers ask at once
    #[arg(long, default_value_t = 30)]
    pub callers: u64,
    /// Goes before the names of all that is made at the broker [default: quotes-RANDOM]
    #[arg(long)]
    pub prefix: Option<String>,
    /// Leaves the queues at the broker
    #[arg(long)]
    pub keep: bool,
}

/// How long a call waits whose answer comes. It ends at once when that is there; only what hangs meets this.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a call waits whose answer takes longer.
const IMPATIENCE: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> ExitCode {
    // Attempts that fail on purpose are warnings.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("polybus=error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(Args::parse()).await {
        Ok(summary) => {
            println!("{summary}");
            if summary.problems().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(e) => {
            eprintln!("quotes: {e}");
            ExitCode::FAILURE
        }
    }
}

fn topology(prefix: &str) -> Topology {
    let work = || QueueSpec::new().retry([Duration::from_millis(200)]).max_deliveries(4);
    // A reply queue for each process that calls: the shop, and the service of the quotes.
    Topology::new()
        .prefix(prefix)
        .queue("quotes", work())
        .queue("stock", work())
        .queue("ledger", work())
        .queue("shop-replies-0", QueueSpec::new())
        .queue("quotes-replies-0", QueueSpec::new())
}

pub async fn run(args: Args) -> Result<Summary, Failure> {
    let url = args.url.clone().or_else(|| std::env::var("POLYBUS_URL").ok()).unwrap_or_else(|| "memory://".into());
    let prefix = args.prefix.clone().unwrap_or_else(|| format!("quotes-{:08x}", RandomState::new().hash_one(7) as u32));
    let options = |service: &str| BusOptions::topology(topology(&prefix)).event_source(format!("/{service}"));
    // In memory the services share a bus, since each one has a broker of its own there.
    let shop = polybus::connect_with(&url, options("shop")).await?;
    let others = match url.starts_with("memory:") {
        true => shop.clone(),
        false => polybus::connect_with(&url, options("services")).await?,
    };
    shop.declare().await?;
    println!(
        "connected to {}, {} calls by {} callers",
        polybus::driver::ConnectUrl::parse(&url)?,
        args.calls,
        args.callers
    );
    let worked = work(&args, &shop, &others).await;
    let cleaned = if args.keep { Ok(()) } else { shop.delete().await };
    others.close().await?;
    shop.close().await?;
    let mut summary = worked?;
    cleaned?;
    summary.broker = polybus::driver::ConnectUrl::parse(&url)?.to_string();
    Ok(summary)
}

async fn work(args: &Args, shop: &Bus, others: &Bus) -> Result<Summary, Failure> {
    let log = MessageLog::default();
    let services = Services::new(others, Requests::open(others, Source::queue("quotes-replies-0")).await?, &log);
    // Those who call others end before those whom they call.
    let stops = [watch::channel(false).0, watch::channel(false).0];
    let worker = |queue: &str, stop: &watch::Sender<bool>| {
        let mut stopped = stop.subscribe();
        let stopping = async move { stopped.wait_for(|stop| *stop).await.map_or((), |_| ()) };
        others.worker(Source::queue(queue)).concurrency(64).with_graceful_shutdown(stopping)
    };
    let mut workers = [JoinSet::new(), JoinSet::new()];
    workers[0].spawn(worker("quotes", &stops[0]).run(services.quotes()));
    workers[1].spawn(worker("stock", &stops[1]).run(services.stock()));
    workers[1].spawn(worker("ledger", &stops[1]).run(stateful(log.clone(), async |log: MessageLog, _cx, msg| {
        log.note("ledger", &msg);
        Ok(())
    })));
    // This one dies: its future is dropped, as a killed process would drop its connection.
    let dying = tokio::spawn(others.worker(Source::queue("quotes")).concurrency(64).run(services.quotes()));

    let requests = Requests::builder(shop, Source::queue("shop-replies-0")).timeout(PATIENCE).open().await?;
    let began = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..args.callers {
        callers.spawn(ask(requests.clone(), next.clone(), args.calls, log.clone()));
    }
    let half = async {
        while next.load(Ordering::Relaxed) < args.calls / 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        dying.abort();
        println!("half of the calls are out: one of the two responders is killed");
    };
    let asked = async {
        let mut outcomes = Outcomes::default();
        while let Some(found) = callers.join_next().await {
            outcomes.add(found?);
        }
        Ok::<_, Failure>(outcomes)
    };
    let ((), outcomes) = tokio::join!(half, asked);
    let took = began.elapsed();
    let outcomes = outcomes?;
    // The effect of each quote is an event, which comes in its own time.
    let events = log.settled(PATIENCE, "ledger", outcomes.answered as usize).await;
    let waiting = requests.stats().waiting;
    for (stop, workers) in stops.iter().zip(&mut workers) {
        stop.send_replace(true);
        while let Some(ended) = workers.join_next().await {
            ended??;
        }
    }
    requests.close().await;
    services.close().await;
    let tree = log.tree();
    Ok(Summary { broker: String::new(), calls: args.calls, outcomes, waiting, events, took, tree })
}

/// One caller: asks for one quote after the other, and notes how each call ends.
async fn ask(requests: Requests, next: Arc<AtomicU64>, calls: u64, log: MessageLog) -> Outcomes {
    let mut outcomes = Outcomes::default();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= calls {
            return outcomes;
        }
        let (kind, began) = (Kind::of(number), Instant::now());
        let ask = GetQuote { number };
        let call = requests.call_with(Address::queue("quotes"), polybus::Envelope::event(&ask).expect("it is JSON"));
        let call = if kind == Kind::Slow { call.timeout(IMPATIENCE) } else { call };
        match call.await {
            Ok(reply) => {
                log.note("shop", &reply);
                match (kind, reply.decode::<Quote>()) {
                    (Kind::Known | Kind::Flaky, Ok(quote)) if quote.cents == number * 10 => outcomes.answered += 1,
                    (_, found) => outcomes.wrong.push(format!("call {number}: {}", found.is_ok())),
                }
                outcomes.times.push(began.elapsed());
            }
            Err(RequestError::Remote { kind: word, .. }) if kind == Kind::Unknown && &*word == "unknown-sku" => {
                outcomes.refused += 1;
            }
            Err(RequestError::Timeout { .. }) if kind == Kind::Slow => outcomes.timed_out += 1,
            Err(e) => outcomes.wrong.push(format!("call {number}: {e}")),
        }
    }
}
