//! Compares polybus with lapin alone, in one run against one broker. Both have the same queue type, payload,
//! persistence, confirms and prefetch. Rounds alternate, and medians of the rates and of the ratio are printed.
//!
//! `eval "$(./localstack/up rabbitmq)" && cargo bench -p polybus-rabbitmq`, with
//! `-- --rounds N --messages N --queue-type classic --only publish|ack|worker`.
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
        let native = native::LapinClient::open(&setup).await;
        let portable = portable::PolybusClient::open(&setup).await;

        let only = flag("--only");
        let wanted = |name: &str| only.as_deref().is_none_or(|o| o == name);
        let mut publish = Comparison::default();
        let mut ack = Comparison::default();
        let mut ack_beside_multiple = Comparison::default();
        let mut worker = Comparison::default();
        for round in 0..=rounds {
            let mut sides: Vec<Side> = Vec::new();
            if wanted("publish") {
                sides.extend([Side::NativePublish, Side::PortablePublish]);
            }
            if wanted("ack") || wanted("worker") {
                sides.push(Side::NativeAckMultiple);
            }
            if wanted("ack") {
                sides.extend([Side::NativeAckEach, Side::PortableAckEach]);
            }
            if wanted("worker") {
                sides.push(Side::PortableWorker);
            }
            // The order changes from round to round, so that no side always meets the warmer broker.
            if round % 2 == 1 {
                sides.reverse();
            }
            let mut rates = std::collections::HashMap::new();
            for side in sides {
                rates.insert(side, side.measure(&native, &portable).await);
            }
            // The first round warms up.
            let row = |c: &mut Comparison, native: Side, portable: Side| {
                if let (true, Some(native), Some(portable)) = (round > 0, rates.get(&native), rates.get(&portable)) {
                    c.add(*native, *portable);
                }
            };
            row(&mut publish, Side::NativePublish, Side::PortablePublish);
            row(&mut ack, Side::NativeAckEach, Side::PortableAckEach);
            row(&mut ack_beside_multiple, Side::NativeAckMultiple, Side::PortableAckEach);
            row(&mut worker, Side::NativeAckMultiple, Side::PortableWorker);
        }
        publish.print(&format!("publish, confirmed, {PUBLISHERS} at once"));
        ack.print(&format!("ack each, {HANDLERS} handlers / lapin acks each"));
        ack_beside_multiple.print(&format!("ack each / lapin acks every {ACK_EVERY}"));
        worker.print(&format!("worker / lapin acks every {ACK_EVERY}"));
        portable.close().await;
        native.delete().await;
    });
}

/// One thing that is measured.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Side {
    NativePublish,
    PortablePublish,
    NativeAckEach,
    NativeAckMultiple,
    PortableAckEach,
    PortableWorker,
}

impl Side {
    /// Messages a second. Both sides find their queue in the same state: empty to publish to, or filled by polybus to
    /// consume from, so that both read the same headers.
    async fn measure(self, native: &native::LapinClient, portable: &portable::PolybusClient) -> f64 {
        native.purge().await;
        if !matches!(self, Self::NativePublish | Self::PortablePublish) {
            portable.publish().await;
        }
        match self {
            Self::NativePublish => native.publish().await,
            Self::PortablePublish => portable.publish().await,
            Self::NativeAckEach => native.consume_ack_each().await,
            Self::NativeAckMultiple => native.consume_ack_multiple().await,
            Self::PortableAckEach => portable.ack_each().await,
            Self::PortableWorker => portable.worker().await,
        }
    }
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
