//! polybus beside native twins on the AWS SDK, in one run, against one endpoint: same payload, as many calls under way; rounds interleaved;
//! medians of the rates and of the ratio round by round. One twin batches by ten, the other sends, receives and deletes one message
//! at a time.
//!
//! `eval "$(./localstack/up aws)" && cargo bench -p polybus-aws`. `-- --rounds N --messages N`.
#![allow(clippy::unwrap_used)]

mod native;
mod portable;

use std::time::Instant;

use polybus_aws::Native;
use polybus_core::Source;

/// What both sides of a comparison are given.
#[derive(Clone)]
struct Setup {
    url: String,
    queue: String,
    messages: usize,
}

const PAYLOAD: usize = 256;
/// Publishers at once for polybus, which makes batches of what they have.
const PUBLISHERS: usize = 500;
/// Calls under way at once for the twins: as many as polybus has when it publishes.
const TASKS: usize = 8;
const PREFETCH: usize = 500;
const HANDLERS: usize = 250;

fn flag(name: &str) -> Option<String> {
    let args: Vec<String> = std::env::args().collect();
    args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned()
}

fn main() {
    let Ok(url) = std::env::var("POLYBUS_AWS_URL") else {
        println!("POLYBUS_AWS_URL is not set: nothing measured. Try: eval \"$(./localstack/up aws)\"");
        return;
    };
    let number = |name, default| flag(name).map_or(default, |n| n.parse().unwrap());
    let (rounds, messages): (usize, usize) = (number("--rounds", 5), number("--messages", 4_000));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(Box::pin(compare(url, rounds, messages)));
}

async fn compare(url: String, rounds: usize, messages: usize) {
    let queue = format!("polybus-bench-{}", std::process::id());
    let setup = Setup { url, queue, messages };
    println!("standard queue, {PAYLOAD} B, {messages} messages a round, {rounds} rounds, medians");
    println!("{:<36} {:>10} {:>10} {:>7}", "", "native/s", "polybus/s", "ratio");
    let portable = portable::Portable::open(&setup).await;
    // A connection of its own, as a program of its own would have.
    let other = portable::Portable::open(&setup).await;
    let sdk = other.bus.native::<Native>().unwrap();
    let address = sdk.queue_url(&setup.queue).await.unwrap();
    let twins = [10, 1].map(|by| native::Native::new(&setup, sdk.sqs(), &address, by));

    let mut rows: Vec<(String, Comparison)> = Vec::new();
    let mut calls = 0;
    for round in 0..=rounds {
        for (i, twin) in twins.iter().enumerate() {
            for (j, what) in ["publish", "receive and delete"].into_iter().enumerate() {
                let (mut a, mut b) = (0.0, 0.0);
                // The order changes from round to round, so that neither side always meets the warmer endpoint.
                for native_turn in [round % 2 == 0, round % 2 == 1] {
                    portable.bus.purge(&Source::queue("bench")).await.unwrap();
                    let before = portable.calls();
                    match (native_turn, j) {
                        (true, 0) => a = twin.publish().await,
                        (true, _) => a = twin.consume().await,
                        (false, 0) => b = portable.publish().await,
                        (false, _) => {
                            b = portable.consume().await;
                            calls = portable.calls() - before;
                        }
                    }
                }
                if round == 0 {
                    rows.push((format!("{what}, twin: {} a call", twin.by), Comparison::default()));
                } else {
                    rows[2 * i + j].1.add(a, b);
                }
            }
        }
    }
    rows.iter_mut().for_each(|(what, row)| row.print(what));
    println!("{:.3} calls a message through publish, receive and ack", calls as f64 / messages as f64);
    other.bus.close().await.unwrap();
    portable.close().await;
}

/// Rates of one comparison.
#[derive(Default)]
struct Comparison {
    native: Vec<f64>,
    portable: Vec<f64>,
    ratio: Vec<f64>,
}

impl Comparison {
    fn add(&mut self, native: f64, portable: f64) {
        self.native.push(native);
        self.portable.push(portable);
        self.ratio.push(portable / native);
    }

    fn print(&mut self, what: &str) {
        if self.ratio.is_empty() {
            return;
        }
        let (native, portable) = (median(&mut self.native), median(&mut self.portable));
        let ratio = median(&mut self.ratio);
        let (low, high) = (self.ratio[0], self.ratio[self.ratio.len() - 1]);
        println!("{what:<36} {native:>10.0} {portable:>10.0} {ratio:>7.2}   ({low:.2} to {high:.2})");
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn rate(n: usize, started: Instant) -> f64 {
    n as f64 / started.elapsed().as_secs_f64()
}
