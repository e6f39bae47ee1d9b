//! polybus beside native twins on the AWS SDK, in one run, against one endpoint: same payload and concurrency; rounds
//! interleaved; medians of the rates, of the ratio round by round, and of the CPU time that the process spends a
//! message. Then the same again through a proxy that counts the requests.
//!
//! `eval "$(./localstack/up aws)" && cargo bench -p polybus-aws`. `-- --rounds N --messages N --singles N --only
//! publish|consume|single`.
#![allow(clippy::unwrap_used)]

mod compare;
mod native;
mod portable;
#[path = "../tests/wire/mod.rs"]
mod wire;

use compare::{Comparison, Measured};
use native::Native;
use portable::Portable;
use wire::CountingProxy;

/// What both sides of a comparison are given.
#[derive(Clone)]
struct Setup {
    url: String,
    queue: String,
}

const PAYLOAD: usize = 256;
/// Publishers at once for polybus.
const PUBLISHERS: usize = 1_000;
/// Batches at once that the twin sends: as many as polybus has under way.
const SENDS: usize = 8;
/// Receives at once, each followed by its delete: as many as polybus widens to.
const RECEIVES: usize = 16;
const PREFETCH: usize = 512;
/// Handlers that each await their own ack.
const HANDLERS: usize = 64;
/// What SQS takes in a call.
const BATCH: usize = 10;

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
    let (rounds, messages, singles) = (number("--rounds", 7), number("--messages", 4_000), number("--singles", 200));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let setup = Setup { url, queue: format!("polybus-bench-{}", std::process::id()) };
        let (native, portable) = (Native::open(&setup).await, Portable::open(&setup).await);
        println!("standard queue, {PAYLOAD} B, {messages} messages a round, {rounds} rounds, medians");
        compare::head();
        rates(&native, &portable, rounds, messages, singles).await;
        portable.close().await;
        count(&setup, messages).await;
    });
}

async fn rates(native: &Native, portable: &Portable, rounds: usize, messages: usize, singles: usize) {
    let only = flag("--only");
    let wanted = |name: &str| only.as_deref().is_none_or(|o| o == name);
    let (mut publish, mut same, mut consume, mut single) =
        (Comparison::default(), Comparison::default(), Comparison::default(), Comparison::default());
    // The first round warms up, and is not counted.
    for round in 0..=rounds {
        // The order changes from round to round, so that neither side always meets the warmer broker.
        let first = round % 2 == 0;
        if wanted("publish") {
            // Each side's messages are drained by the other side's batched loop, outside the clock.
            let row = compare::both(
                first,
                async || Measured::of(messages, native.publish(messages, false)).await,
                async || Measured::of(messages, portable.publish(messages)).await,
                async || native.consume(messages).await,
            );
            publish.add(round, row.await);
            let row = compare::both(
                first,
                async || Measured::of(messages, native.publish(messages, true)).await,
                async || Measured::of(messages, portable.publish(messages)).await,
                async || native.consume(messages).await,
            );
            same.add(round, row.await);
        }
        if wanted("consume") {
            let row = compare::both(
                first,
                async || {
                    portable.publish(messages).await;
                    Measured::of(messages, native.consume(messages)).await
                },
                async || {
                    portable.publish(messages).await;
                    portable.consume(messages).await
                },
                async || (),
            );
            consume.add(round, row.await);
        }
        if wanted("single") {
            let row = compare::both(
                first,
                async || Measured::of(singles, native.one_at_a_time(singles)).await,
                async || {
                    let published = Measured::of(messages, portable.publish(messages)).await;
                    published.then(portable.consume(messages).await)
                },
                async || (),
            );
            single.add(round, row.await);
        }
    }
    publish.print(&format!("publish, {PUBLISHERS} at once / batches of {BATCH}, {SENDS} at once"));
    same.print("publish / the same with polybus' body and attributes");
    consume.print(&format!("receive and ack, {HANDLERS} handlers / receive, delete, {RECEIVES} at once"));
    single.print("publish, receive, ack / send, receive, delete one by one");
}

/// The requests of one round of each side, counted on the wire.
async fn count(setup: &Setup, messages: usize) {
    let wire = CountingProxy::before(&setup.url).await;
    let setup = Setup { url: wire.url.clone(), queue: format!("{}-counted", setup.queue) };
    let (native, portable) = (Native::open(&setup).await, Portable::open(&setup).await);
    println!("requests a message, counted on the wire:");
    let show = |who: &str| {
        let calls = wire.take();
        println!("  {who:<10} {:.3}   ({calls})", calls.total() as f64 / messages as f64);
    };
    wire.take();
    native.publish(messages, false).await;
    native.consume(messages).await;
    show("aws-sdk");
    portable.publish(messages).await;
    portable.consume(messages).await;
    show("polybus");
    portable.close().await;
}
