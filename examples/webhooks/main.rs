//! Webhooks from GitHub through a broker: two topics, three subscriptions, handlers that fail now and then, retries,
//! dead letters, and a redrive after the fix. At the end everything must add up.
//!
//! ```text
//! cargo run --example webhooks
//! POLYBUS_URL=amqp://… cargo run --features rabbitmq --example webhooks
//! ```

#![allow(missing_docs, unreachable_pub)]

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use polybus::{
    Address, Bus, BusOptions, Envelope, Error, Result as BusResult, Source, SubscriptionSpec, TopicSpec, Topology,
    stateful, topology::TypeFilter, worker::WorkerReport,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};
use tracing_subscriber::EnvFilter;

mod desk;
mod hooks;
mod progress;
mod report;

use desk::Desk;
use progress::{Progress, say};
pub use report::{Counts, Row, Summary};

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Publishes GitHub webhooks to two topics, handles them with retries and dead letters, and checks that it all adds up.
#[derive(Clone, Debug, Parser)]
#[command(name = "webhooks")]
pub struct Args {
    /// The broker [default: POLYBUS_URL, else memory://]
    #[arg(long)]
    pub url: Option<String>,
    /// A file of webhooks: one {"event", "action", "payload"} a line
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/github-webhooks.jsonl"))]
    pub input: PathBuf,
    /// Goes before the names of all that is made at the broker [default: webhooks-RANDOM]
    #[arg(long)]
    pub prefix: Option<String>,
    /// Leaves the topics and subscriptions at the broker
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
            eprintln!("webhooks: {e}");
            ExitCode::FAILURE
        }
    }
}

const ISSUES: [&str; 2] = ["github.issues.*", "github.issue_comment.*"];
const CI: [&str; 4] = ["github.check_run.*", "github.check_suite.*", "github.workflow_run.*", "github.workflow_job.*"];
/// As long as something happens within this time, it is not stuck.
const PATIENCE: Duration = Duration::from_secs(15);

fn topology(prefix: &str) -> Topology {
    let delays = [200, 500].map(Duration::from_millis);
    let delayed =
        |types: &[&'static str]| SubscriptionSpec::new().types(types.iter().copied()).max_deliveries(4).retry(delays);
    let in_place = SubscriptionSpec::new().max_deliveries(4).retry([Duration::from_millis(50)]);
    Topology::new()
        .prefix(prefix)
        .topic("webhooks", TopicSpec::new().subscription("issues", delayed(&ISSUES)).subscription("ci", delayed(&CI)))
        .topic("activity", TopicSpec::new().ordered(true).subscription("audit", in_place))
}

pub async fn run(args: Args) -> Result<Summary, Failure> {
    let began = Instant::now();
    let hooks = hooks::read(&args.input)?;
    let url = args.url.or_else(|| std::env::var("POLYBUS_URL").ok()).unwrap_or_else(|| "memory://".into());
    let prefix = args.prefix.unwrap_or_else(|| format!("webhooks-{}", random()));
    let bus = polybus::connect_with(&url, BusOptions::topology(topology(&prefix))).await?;
    let broker = polybus::driver::ConnectUrl::parse(&url)?.to_string();
    say(&format!("{} webhooks, connected to {broker}", hooks.len() - usize::from(!hooks.is_empty())));

    let worked = work(&bus, &hooks).await;
    let cleaned = if args.keep { Ok(()) } else { bus.delete().await };
    bus.close().await?;
    let mut summary = worked?;
    cleaned?;
    (summary.broker, summary.took) = (broker, began.elapsed());
    Ok(summary)
}

async fn work(bus: &Bus, hooks: &[Envelope]) -> Result<Summary, Failure> {
    bus.declare().await?;
    let wanted = |types: &[&str]| -> Result<u64, Error> {
        let types = types.iter().map(|t| t.parse()).collect::<Result<Vec<TypeFilter>, _>>()?;
        Ok(hooks.iter().filter(|h| types.iter().any(|t| t.matches(&h.event_type))).count() as u64)
    };
    let ci = Desk::new(Source::subscription("webhooks", "ci"), wanted(&CI)?, desk::ci);
    let desks = [
        Desk::new(Source::subscription("webhooks", "issues"), wanted(&ISSUES)?, desk::issues),
        ci.clone(),
        Desk::new(Source::subscription("activity", "audit"), hooks.len() as u64, desk::audit),
    ];

    let (stop, stopped) = watch::channel(false);
    let mut workers = JoinSet::new();
    for desk in &desks {
        let (worker, mut stopped) = (bus.worker(desk.source.clone()).concurrency(16), stopped.clone());
        let shutdown = async move { stopped.wait_for(|stop| *stop).await.map_or((), |_| ()) };
        let desk = desk.clone();
        workers.spawn(async move { worker.with_graceful_shutdown(shutdown).run(stateful(desk, Desk::handle)).await });
    }

    let mut summary = Summary { messages: hooks.len() as u64, ..Summary::default() };
    summary.rows =
        desks.iter().map(|d| Row { published: d.wanted, subscription: short(&d.source), ..Row::default() }).collect();
    let progress = Progress::start(desks.to_vec());
    let job = async {
        for topic in ["webhooks", "activity"] {
            summary.published.insert(topic.into(), publish(bus, topic, hooks).await);
        }
        settled(&desks, 0).await;
        for (desk, row) in desks.iter().zip(&mut summary.rows) {
            row.dead_lettered = dead_letters(bus, desk, desk.counts().given_up, false).await?;
        }
        ci.deploy_fix();
        let redriven = bus.redrive(&ci.source, |msg| &*msg.id != hooks::POISON, usize::MAX).await?;
        say(&format!("ci is fixed: {redriven}"));
        let redriven = redriven.moved;
        summary.rows[1].redriven = redriven;
        settled(&desks, redriven).await;
        for (desk, row) in desks.iter().zip(&mut summary.rows) {
            let left = desk.counts().given_up.saturating_sub(row.redriven);
            row.left = dead_letters(bus, desk, left, true).await?.values().sum();
        }
        Ok::<_, Failure>(())
    };
    let done = tokio::select! {
        done = job => done,
        failed = ended(&mut workers) => failed,
        _ = tokio::signal::ctrl_c() => { summary.interrupted = true; Ok(()) }
    };
    drop(progress);
    let _ = stop.send(true);
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    done?;
    for (desk, row) in desks.iter().zip(&mut summary.rows) {
        row.counts = desk.counts();
    }
    Ok(summary)
}

/// Publishes all, and returns how many the broker confirmed.
async fn publish(bus: &Bus, topic: &str, hooks: &[Envelope]) -> u64 {
    let mut confirmed = 0;
    for some in hooks.chunks(100) {
        for result in bus.publish_all(Address::topic(topic), some).await {
            match result {
                Ok(_) => confirmed += 1,
                Err(e) => say(&format!("{topic}: not published: {e}")),
            }
        }
    }
    say(&format!("{confirmed} published to {topic}"));
    confirmed
}

/// Waits until every desk is done with what was published and redriven, or nothing happens any more.
async fn settled(desks: &[Arc<Desk>], redriven: u64) {
    let done = |counts: &Counts| counts.handled + counts.given_up;
    let expected: u64 = desks.iter().map(|desk| desk.wanted).sum::<u64>() + redriven;
    let (mut seen, mut since) = (Vec::new(), Instant::now());
    while since.elapsed() < PATIENCE {
        let counts: Vec<Counts> = desks.iter().map(|desk| desk.counts()).collect();
        if counts.iter().map(done).sum::<u64>() >= expected {
            return;
        }
        if counts != seen {
            (seen, since) = (counts, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    say("nothing has happened for a while: giving up");
}

/// Reads the dead letters of a subscription: how many for which reason. Takes them out, or gives them back.
async fn dead_letters(bus: &Bus, desk: &Desk, expected: u64, take: bool) -> BusResult<BTreeMap<String, u64>> {
    let (mut reasons, mut held) = (BTreeMap::new(), Vec::new());
    let prefetch = usize::try_from(expected).unwrap_or(usize::MAX).saturating_add(1);
    let mut dead = bus.subscribe(desk.source.dead_letters()).prefetch(prefetch).open().await?;
    loop {
        // One more than expected would be a surprise: that one is not waited for long.
        let missing = (held.len() as u64) < expected;
        let patience = if missing { PATIENCE } else { Duration::from_millis(200) };
        let Ok(Some(delivery)) = timeout(patience, dead.next()).await else { break };
        let delivery = delivery?;
        let info = delivery.dead_letter_info();
        let reason = info.and_then(|info| info.reason.as_deref()).unwrap_or("unknown").to_owned();
        if !take && !reasons.contains_key(&reason) {
            let detail = info.and_then(|info| info.detail.as_deref()).unwrap_or_default();
            say(&format!("{}: dead letter {}, {reason}: {detail}", short(&desk.source), delivery.envelope().id));
        }
        *reasons.entry(reason).or_default() += 1;
        held.push(delivery);
    }
    for delivery in held {
        if take { delivery.ack().await? } else { delivery.release().await? }
    }
    dead.close().await?;
    Ok(reasons)
}

/// A worker that ends before it is told to has failed.
async fn ended(workers: &mut JoinSet<BusResult<WorkerReport>>) -> Result<(), Failure> {
    match workers.join_next().await {
        Some(ended) => Ok(ended?.map(drop)?),
        None => std::future::pending().await,
    }
}

fn short(source: &Source) -> String {
    source.to_string().trim_start_matches("subscription:").to_owned()
}

fn random() -> String {
    format!("{:08x}", RandomState::new().hash_one("webhooks") as u32)
}
