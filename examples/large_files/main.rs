//! Files of 1 KB to 5 MB through a broker that takes none of them larger than a message: the large ones wait in a
//! folder ([`Claims`]), and the consumer compares the hash of each. Three are broken on purpose: one is altered, one is
//! missing, one points elsewhere. Two of them are repaired and redriven. At the end, a month later by the clock, a
//! sweep empties the folder.
//!
//! ```text
//! cargo run --example large_files
//! POLYBUS_URL=amqp://… cargo run --features rabbitmq --example large_files
//! ```

#![allow(missing_docs, unreachable_pub)]

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use polybus::{
    Bus, BusOptions, Envelope, QueueSpec, Source, Topology,
    clock::{Clock, SystemClock},
    stateful,
    time::OffsetDateTime,
};
use polybus_claims::Claims;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tracing_subscriber::EnvFilter;

mod broken;
mod files;
mod progress;
mod report;
mod shelf;

use broken::Broken;
use files::File;
use progress::{Progress, say, wait_for};
pub use report::Summary;
use shelf::Shelf;

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Sends files through a broker, the large ones by claim check, and checks that each arrives as it was.
#[derive(Clone, Debug, Parser)]
#[command(name = "large_files")]
pub struct Args {
    /// The broker [default: POLYBUS_URL, else memory://]
    #[arg(long)]
    pub url: Option<String>,
    /// The folder for what is too large [default: a temporary one]
    #[arg(long)]
    pub folder: Option<PathBuf>,
    /// How many files are sent
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    pub files: u32,
    /// Makes the same files again [default: random]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Goes before the names of all that is made at the broker [default: files-RANDOM]
    #[arg(long)]
    pub prefix: Option<String>,
    /// Leaves the queue at the broker
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
            eprintln!("large_files: {e}");
            ExitCode::FAILURE
        }
    }
}

/// As long as something happens within this time, it is not stuck.
const PATIENCE: Duration = Duration::from_secs(20);
/// What any broker takes, whatever it makes of bytes that are no text.
const THRESHOLD: usize = 64 << 10;
const MONTH: Duration = Duration::from_secs(32 * 24 * 3600);

pub async fn run(args: Args) -> Result<Summary, Failure> {
    let began = Instant::now();
    let url = args.url.clone().or_else(|| std::env::var("POLYBUS_URL").ok()).unwrap_or_else(|| "memory://".into());
    let prefix = args.prefix.clone().unwrap_or_else(|| format!("files-{:08x}", random() as u32));
    let seed = args.seed.unwrap_or_else(random);
    let broker = polybus::driver::ConnectUrl::parse(&url)?.to_string();
    let temporary = tempfile::tempdir()?;
    let folder = args.folder.clone().unwrap_or_else(|| temporary.path().to_owned());
    // A folder of this run alone: the sweep at the end is a month ahead, and would take claims of others.
    std::fs::create_dir_all(&folder)?;
    let claims = Claims::folder(&folder, format!("{prefix}/run-{:08x}", random() as u32))?.threshold(THRESHOLD);
    say(&format!("{} files with seed {seed} through {broker}, the large ones in {}", args.files, folder.display()));

    let queue = QueueSpec::new().max_deliveries(3).retry([Duration::from_millis(200)]);
    let options = BusOptions::topology(Topology::new().prefix(&prefix).queue("files", queue));
    let bus = wait_for("the broker", polybus::connect_with(&url, options)).await?;
    let worked = work(&bus, &claims, &folder, args.files, seed).await;
    let deleted = if args.keep { Ok(()) } else { bus.delete().await };
    bus.close().await?;
    let mut summary = worked?;
    deleted?;
    (summary.broker, summary.took) = (broker, began.elapsed());
    Ok(summary)
}

async fn work(bus: &Bus, claims: &Claims, folder: &Path, files: u32, seed: u64) -> Result<Summary, Failure> {
    bus.declare().await?;
    let source = Source::queue("files");
    let shelf = Arc::new(Shelf::default());
    let (stop, mut stopped) = watch::channel(false);
    let worker = bus.worker(&source).concurrency(8);
    let worker = worker.with_graceful_shutdown(async move { drop(stopped.wait_for(|stop| *stop).await) });
    let mut worker = Box::pin(worker.run(claims.handler(stateful(shelf.clone(), Shelf::take))));

    let mut summary = Summary { files: u64::from(files), ..Summary::default() };
    let shown = shelf.clone();
    let progress = Progress::start(move || format!("{} files have arrived", shown.arrived()));
    let job = async {
        for n in 0..files {
            publish(bus, claims, &File::new(seed, n), &mut summary).await?;
        }
        let broken = Broken::make(claims, folder, seed, files).await?;
        summary.claims += broken.len();
        for message in broken.messages() {
            bus.publish(source.address(), message).await?;
        }
        say(&format!("{files} files published, {} of them by claim check, and 3 broken ones", summary.in_folder));
        arrived(&shelf, summary.files).await;
        summary.dead_letters = dead_letters(bus, &source, 3, false).await?;

        broken.repair()?;
        let repaired = broken.repaired();
        let redriven = bus.redrive(&source, |message| repaired.contains(&message.id), usize::MAX).await?;
        say(&format!("altered and missing are repaired: {redriven}"));
        summary.redriven = redriven.moved;
        arrived(&shelf, summary.files + summary.redriven).await;
        summary.left = dead_letters(bus, &source, 1, true).await?.values().sum();

        summary.swept_today = claims.sweep().await?.deleted;
        summary.swept = claims.clone().clock(Arc::new(InAMonth)).sweep().await?.deleted;
        Ok::<_, Failure>(())
    };
    let done = tokio::select! {
        done = job => done,
        ended = &mut worker => Err(ended.map_or_else(Failure::from, |_| "the worker ended early".into())),
        _ = tokio::signal::ctrl_c() => { summary.interrupted = true; Ok(()) }
    };
    drop(progress);
    if done.is_ok() {
        let _ = stop.send(true);
        worker.await?;
    }
    done?;
    shelf.count(&mut summary);
    Ok(summary)
}

async fn publish(bus: &Bus, claims: &Claims, file: &File, summary: &mut Summary) -> Result<(), Failure> {
    let message = claims.check_in(file.message()).await?;
    summary.bytes += file.data.len() as u64;
    if message.data.is_empty() {
        summary.in_folder += 1;
        summary.claims += 1;
    } else {
        summary.largest_message = summary.largest_message.max(message.data.len() as u64);
    }
    bus.publish(Source::queue("files").address(), message).await?;
    Ok(())
}

/// Waits until so many files have arrived, or nothing happens any more.
async fn arrived(shelf: &Shelf, wanted: u64) {
    let (mut seen, mut since) = (0, Instant::now());
    while since.elapsed() < PATIENCE {
        let now = shelf.arrived();
        if now >= wanted {
            return;
        }
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    say("nothing has happened for a while: giving up");
}

/// Reads the dead letters: how many for which reason. Takes them out, or gives them back.
async fn dead_letters(bus: &Bus, source: &Source, wanted: usize, take: bool) -> Result<BTreeMap<String, u64>, Failure> {
    let (mut reasons, mut held) = (BTreeMap::new(), Vec::new());
    let mut dead = bus.subscribe(source.dead_letters()).prefetch(wanted + 1).open().await?;
    loop {
        // One more than expected would be a surprise: that one is not waited for long.
        let patience = if held.len() < wanted { PATIENCE } else { Duration::from_millis(200) };
        let Ok(Some(delivery)) = timeout(patience, dead.next()).await else { break };
        let delivery = delivery?;
        let info = delivery.dead_letter_info();
        let reason = info.and_then(|info| info.reason.as_deref()).unwrap_or("unknown").to_owned();
        if !take {
            let detail = info.and_then(|info| info.detail.as_deref()).unwrap_or_default();
            say(&format!("dead letter {reason}: {detail}"));
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

/// The clock of a sweeper that runs a month from now.
struct InAMonth;

impl Clock for InAMonth {
    fn now(&self) -> OffsetDateTime {
        SystemClock.now() + MONTH
    }
}

/// The reference of a message that was checked in.
fn reference(message: &Envelope) -> Result<&str, Failure> {
    Ok(message.extensions.get("claimref").ok_or("a file was not checked in")?)
}

fn random() -> u64 {
    RandomState::new().hash_one("files")
}
