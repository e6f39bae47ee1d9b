//! Request and reply: polybus beside lapin with RabbitMQ's direct reply-to, in one run against one broker, and polybus
//! in memory. Rounds alternate, and medians are printed.
//!
//! `eval "$(./localstack/up rabbitmq)" && cargo bench -p polybus-rabbitmq --bench requests`, with
//! `-- --rounds N --calls N --callers N`.
#![allow(clippy::unwrap_used)]

mod direct_reply_to;
mod portable;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

fn flag(name: &str) -> Option<String> {
    let args: Vec<String> = std::env::args().collect();
    args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned()
}

/// Something that can be called.
trait Caller: Send + Sync + 'static {
    fn call(&self, n: u64) -> impl Future<Output = u64> + Send;
}

/// What one round found.
struct Round {
    per_second: f64,
    /// The median of one call after the other.
    alone: Duration,
}

/// So many callers at once, then one caller alone.
async fn measure<C: Caller>(caller: &Arc<C>, calls: u64, callers: u64) -> Round {
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for first in 0..callers {
        let caller = caller.clone();
        tasks.spawn(async move {
            for n in (first..calls).step_by(callers as usize) {
                assert_eq!(caller.call(n).await, n * 2);
            }
        });
    }
    tasks.join_all().await;
    let per_second = calls as f64 / started.elapsed().as_secs_f64();
    let mut times = Vec::new();
    for n in 0..200 {
        let started = Instant::now();
        assert_eq!(caller.call(n).await, n * 2);
        times.push(started.elapsed());
    }
    times.sort();
    Round { per_second, alone: times[times.len() / 2] }
}

fn main() {
    let number = |name, default| flag(name).map_or(default, |n| n.parse().unwrap());
    let (rounds, calls, callers) = (number("--rounds", 7), number("--calls", 10_000), number("--callers", 64));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        println!("{calls} calls a round by {callers} callers at once, then 200 one by one; {rounds} rounds, medians");
        println!("{:<36} {:>12} {:>16}", "", "calls/s", "one call, p50");
        let memory = Arc::new(portable::PolybusCaller::in_memory().await);
        let mut figures = Figures::default();
        for round in 0..=rounds {
            let measured = measure(&memory, calls * 10, callers).await;
            if round > 0 {
                figures.add(&measured);
            }
        }
        figures.print("memory://");
        let Ok(url) = std::env::var("POLYBUS_RABBITMQ_URL") else {
            println!("POLYBUS_RABBITMQ_URL is not set: RabbitMQ was not measured");
            return;
        };
        let queue = format!("polybus-bench-{}", std::process::id());
        let polybus = Arc::new(portable::PolybusCaller::on_rabbitmq(&url, &queue).await);
        let lapin = Arc::new(direct_reply_to::LapinCaller::open(&url, &queue).await);
        let (mut native, mut portable, mut ratios) = (Figures::default(), Figures::default(), Vec::new());
        for round in 0..=rounds {
            // The order changes from round to round.
            let (one, other) = if round % 2 == 0 {
                let one = measure(&lapin, calls, callers).await;
                (one, measure(&polybus, calls, callers).await)
            } else {
                let other = measure(&polybus, calls, callers).await;
                (measure(&lapin, calls, callers).await, other)
            };
            // The first round warms up.
            if round > 0 {
                ratios.push(other.per_second / one.per_second);
                native.add(&one);
                portable.add(&other);
            }
        }
        native.print("RabbitMQ, lapin, direct reply-to");
        portable.print("RabbitMQ, polybus");
        ratios.sort_by(f64::total_cmp);
        let (low, high) = (ratios[0], ratios[ratios.len() - 1]);
        println!("ratio of the rates {:.2}   ({low:.2} to {high:.2})", ratios[ratios.len() / 2]);
        lapin.delete().await;
        polybus.close().await;
    });
}

#[derive(Default)]
struct Figures {
    rates: Vec<f64>,
    alone: Vec<Duration>,
}

impl Figures {
    fn add(&mut self, round: &Round) {
        self.rates.push(round.per_second);
        self.alone.push(round.alone);
    }

    fn print(&mut self, what: &str) {
        self.rates.sort_by(f64::total_cmp);
        self.alone.sort();
        let (rate, alone) = (self.rates[self.rates.len() / 2], self.alone[self.alone.len() / 2]);
        println!("{what:<36} {rate:>12.0} {:>13.2} ms", alone.as_secs_f64() * 1e3);
    }
}
