//! Kills processes with an outbox and an inbox at random moments, and counts whether each row has its effect exactly
//! once.
//!
//! A producer writes rows, each with a message in the same transaction. Two relays publish the messages to RabbitMQ,
//! and two consumers write an effect for each. All are processes of their own, and SIGKILL takes one after the other
//! while rows flow. At the end there must be one effect for each row: none missing, none double.
//!
//! ```text
//! export POLYBUS_RABBITMQ_URL=amqp://…
//! cargo run --release --features rabbitmq --example kill_test
//! cargo run --release --features rabbitmq --example kill_test -- --rows 5000 --kills 40 --database postgres://…
//! cargo run --release --features rabbitmq --example kill_test -- --rows 5000 --kills 0 --pauses 5
//! cargo run --release --features rabbitmq --example kill_test -- --rows 1000 --kills 20 --without inbox
//! ```
//!
//! With `--pauses` a relay is stopped for two of its leases (SIGSTOP), as a virtual machine may be. The other one takes
//! its slots, and the first goes on as if nothing was: some messages are published twice, and the inbox stops those.
//!
//! `controller.rs` decides when, by `schedule.rs`; `processes.rs` starts, kills and pauses; `roles.rs` has what is
//! killed, and `report.rs` what came of it.

#![allow(missing_docs, unreachable_pub)]

use std::{path::Path, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use polybus::{Bus, BusOptions, QueueSpec, Topology};
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

mod controller;
#[path = "../outbox/database.rs"]
mod database;
mod lose;
mod processes;
#[path = "../outbox/progress.rs"]
mod progress;
mod report;
mod roles;
mod schedule;

use database::Location;
use polybus_sql::Db;

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Kills a producer, relays and consumers at random moments, and counts missing and double effects.
#[derive(Parser)]
#[command(name = "kill_test")]
struct Args {
    /// How many rows are written, each with a message
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
    /// How many processes are killed, one after the other while the rows flow
    #[arg(long, default_value_t = 200)]
    kills: u32,
    /// How many times a relay is paused for two leases of 1 s while the other one goes on (SIGSTOP)
    #[arg(long, default_value_t = 0)]
    pauses: u32,
    /// Decides who is killed or paused, and when [default: random, and printed]
    #[arg(long)]
    seed: Option<u64>,
    /// The broker [default: POLYBUS_URL, else POLYBUS_RABBITMQ_URL]
    #[arg(long)]
    url: Option<String>,
    /// sqlite:PATH, postgres://… or mysql://… [default: POLYBUS_DATABASE, else a temporary SQLite file]
    #[arg(long)]
    database: Option<String>,
    /// Leaves a part out, to see what it is for
    #[arg(long, value_enum)]
    without: Option<Without>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What is done to the processes.
#[derive(Clone, Copy)]
pub struct Trouble {
    pub kills: u32,
    pub pauses: u32,
    pub seed: u64,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize, ValueEnum)]
pub enum Without {
    /// The producer publishes after its commit: a kill in between loses messages
    Outbox,
    /// Consumers do not mark what they have handled: what comes twice is handled twice
    Inbox,
    /// The mark is not read back before the commit: a handler that swallows an error loses its message, on PostgreSQL
    ReadBack,
}

/// What a process is.
#[derive(Clone, Copy, PartialEq, Subcommand)]
pub enum Role {
    #[command(hide = true)]
    Producer,
    #[command(hide = true)]
    Relay,
    #[command(hide = true)]
    Consumer,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::Producer => "producer",
            Self::Relay => "relay",
            Self::Consumer => "consumer",
        }
    }
}

/// What all processes of a run must know. The controller gives it to the others as JSON in the environment, where
/// passwords of URLs are not seen by other users, as they would be in the arguments.
#[derive(Clone, Serialize, Deserialize)]
pub struct Job {
    pub url: String,
    pub database: String,
    /// Goes before the names of all that is made.
    pub name: String,
    pub rows: i64,
    pub without: Option<Without>,
}

pub const JOB: &str = "KILL_TEST_JOB";
pub const QUEUE: &str = "rows";

impl Job {
    pub fn location(&self) -> Result<Location, Failure> {
        Location::parse(Some(&self.database), &self.name)
    }

    pub async fn open(&self, connections: u32) -> Result<Db, Failure> {
        self.location()?.open(connections).await
    }

    pub async fn connect(&self) -> Result<Bus, Failure> {
        // A kill gives back what a consumer has fetched, and that counts as an attempt. So many kills hit few messages
        // more than once.
        let queue = QueueSpec::new().max_deliveries(100).retry([Duration::from_millis(50)]);
        let topology = Topology::new().prefix(&self.name).queue(QUEUE, queue);
        Ok(polybus::connect_with(&self.url, BusOptions::topology(topology)).await?)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.role {
        Some(role) => {
            let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("polybus=warn"));
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
            roles::run(role).await.map(|()| true)
        }
        None => control(args).await,
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("kill_test: {e}");
            ExitCode::FAILURE
        }
    }
}

async fn control(args: Args) -> Result<bool, Failure> {
    let seed = args.seed.unwrap_or_else(schedule::random_seed);
    let url = args.url.or_else(|| variable("POLYBUS_URL")).or_else(|| variable("POLYBUS_RABBITMQ_URL"));
    let url = url.ok_or(
        "no broker: give --url amqp://… or set POLYBUS_URL. `eval \"$(./localstack/up rabbitmq)\"` \
         starts one",
    )?;
    if url.starts_with("memory:") {
        return Err("memory:// lives in one process, and this test has several: give --url amqp://…".into());
    }
    let folder = tempfile::Builder::new().prefix("polybus-kill-test-").tempdir()?;
    let file = |path: &Path| format!("sqlite:{}", path.display());
    let database = args.database.or_else(|| variable("POLYBUS_DATABASE"));
    let job = Job {
        url,
        database: database.unwrap_or_else(|| file(&folder.path().join("rows.db"))),
        name: format!("kill-test-{}-{seed}", std::process::id()),
        rows: i64::from(args.rows),
        without: args.without,
    };
    let log = folder.path().join("processes.log");
    let trouble = Trouble { kills: args.kills, pauses: args.pauses, seed };
    let report = controller::run(&job, trouble, &log).await?;
    println!("{report}");
    if !report.is_exact() && report.without.is_none() {
        let folder = folder.keep();
        println!("The log of the processes: {}", folder.join("processes.log").display());
    }
    Ok(report.is_exact())
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
