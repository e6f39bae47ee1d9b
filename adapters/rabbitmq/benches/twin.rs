//! polybus beside a native lapin twin, in one run, against one broker: same queue type, payload, persistence, confirms and
//! prefetch; rounds interleaved; medians of the rates and of the ratio round by round.
//!
//! `eval "$(./localstack/up rabbitmq)" && cargo bench -p polybus-rabbitmq`. `-- --rounds N --messages N --queue-type classic --only
//! publish|ack|worker`.
#![allow(clippy::unwrap_used)]

mod native;
mod portable;

use std::time::Instant;

/// What both sides of a comparison are given.
#[derive(Clone)]
struct Setup {
    url: String,
    queue: String,
    classic: bool,
    messages: usize,
}

const PAYLOAD: usize = 256;
/// Publishers at once for polybus, unconfirmed messages at once for lapin.
const PUBLISHERS: usize = 1_000;
const PREFETCH: u16 = 512;
/// Handlers that each await their own ack.
const HANDLERS: usize = 64;
/// lapin acknowledges this many at a time where it uses `multiple`.
const ACK_EVERY: usize = 100;

fn flag(name: &str) -> Option<String> {
    let args: Vec<String> = std::env::args().collect();
    args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned()
}

fn main() {
    let Ok(url) = std::env::var("POLYBUS_RABBITMQ_URL") else {
        println!("POLYBUS_RABBITMQ_URL is not set: nothing measured. Try: eval \"$(./localstack/up rabbitmq)\"");
        return;
    };
    let number = |name, default| flag(name).map_or(default, |n| n.parse().unwrap());
    let rounds: usize = number("--rounds", 7);
    let messages: usize = number("--messages", 40_000);
    let classic = flag("--queue-type").as_deref() == Some("classic");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let queue = format!("polybus-bench-{}", std::process::id());
        let setup = Setup { url, queue, classic, messages };
        let kind = if classic { "classic" } else { "quorum" };
        println!("{kind} queue, {PAYLOAD} B, persistent, {messages} messages a round, {rounds} rounds, medians");
        println!("{:<44} {:>12} {:>12} {:>7}", "", "lapin/s", "polybus/s", "ratio");
        let native = native::Native::open(&setup).await;
        let portable = portable::Portable::open(&setup).await;

        let mut publish = Comparison::default();
        let mut ack = Comparison::default();
        let mut worker = Comparison::default();
        for round in 0..=rounds {
            // The order changes from round to round, so that neither side always meets the warmer broker.
            let first = round % 2 == 0;
            let row = |c: &mut Comparison, (native, portable): (f64, f64)| {
                if round > 0 {
                    c.add(native, portable);
                }
            };
            let only = flag("--only");
            let wanted = |name: &str| only.as_deref().is_none_or(|o| o == name);
            if wanted("publish") {
                let pair =
                    both(first, async || native.publish().await, async || portable.publish().await, &native).await;
                row(&mut publish, pair);
            }
            if wanted("ack") {
                let pair =
                    both(first, async || native.consume_ack_each().await, async || portable.ack_each().await, &native)
                        .await;
                row(&mut ack, pair);
            }
            if wanted("worker") {
                let pair = both(
                    first,
                    async || native.consume_ack_multiple().await,
                    async || portable.worker().await,
                    &native,
                )
                .await;
                row(&mut worker, pair);
            }
        }
        publish.print(&format!("publish, confirmed, {PUBLISHERS} at once"));
        ack.print(&format!("consume, ack each, {HANDLERS} handlers"));
        worker.print(&format!("worker, empty handler / ack every {ACK_EVERY}"));
        portable.close().await;
        native.delete().await;
    });
}

/// Runs both sides on an equally prepared queue; returns messages a second for each.
async fn both(
    native_first: bool,
    native_side: impl AsyncFn() -> f64,
    portable_side: impl AsyncFn() -> f64,
    native: &native::Native,
) -> (f64, f64) {
    let (mut a, mut b) = (0.0, 0.0);
    for turn in [native_first, !native_first] {
        native.purge().await;
        if turn {
            a = native_side().await;
        } else {
            b = portable_side().await;
        }
    }
    (a, b)
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
        println!("{what:<44} {native:>12.0} {portable:>12.0} {ratio:>7.2}   ({low:.2} to {high:.2})");
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn rate(n: usize, started: Instant) -> f64 {
    n as f64 / started.elapsed().as_secs_f64()
}
