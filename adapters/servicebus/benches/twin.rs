//! polybus beside twins that use fe2o3-amqp alone, in one run and against one broker. Payloads are the same, and as
//! many messages are on their way at once. Rounds are interleaved. The results are medians: of the rates, of the ratio
//! in each round, and of the CPU time that this process spends on a message.
//!
//! `cargo bench -p polybus-servicebus` starts the emulator in a process of its own; `POLYBUS_SERVICEBUS_URL` names
//! another broker. `-- --rounds N --messages N --only publish|consume`; `--alone` leaves the twins out, for a profiler.
#![allow(clippy::unwrap_used)]

mod broker;
mod compare;
mod native;
mod portable;
mod requests;

use std::sync::Arc;

use compare::{Comparison, RoundTimes};
use native::{AcceptStyle, Native, SendStyle};
use portable::PolybusSide;

/// What both sides of a comparison are given.
#[derive(Clone)]
struct BenchSetup {
    url: String,
    queue: String,
}

const PAYLOAD: usize = 256;
/// Publishers at once for polybus, unconfirmed messages at once for the twins.
const PUBLISHERS: usize = 1_000;
/// Transfers at once, where a twin sends batches: as many as polybus has under way.
const TRANSFERS: usize = 4;
const PREFETCH: usize = 512;
/// Acks under way at once, each awaited: as many as the twins have unsettled.
const UNSETTLED: usize = PREFETCH;
/// Requests at once, where a twin completes by request: as many as polybus has under way.
const REQUESTS: usize = 4;

fn flag(name: &str) -> Option<String> {
    let args: Vec<String> = std::env::args().collect();
    args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned()
}

fn main() {
    if std::env::args().any(|a| a == broker::SERVE) {
        return broker::serve();
    }
    let number = |name, default| flag(name).map_or(default, |n| n.parse().unwrap());
    let (rounds, messages) = (number("--rounds", 9), number("--messages", 20_000));
    let given = std::env::var("POLYBUS_SERVICEBUS_URL").ok();
    let emulator = given.is_none().then(broker::EmulatorProcess::start);
    let url = given.or(emulator.as_ref().map(|e| e.url.clone())).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let setup = BenchSetup { url, queue: format!("polybus-bench-{}", std::process::id()) };
        let (native, portable) = (Arc::new(Native::open(&setup).await), Arc::new(PolybusSide::open(&setup).await));
        println!("queue, {PAYLOAD} B, {messages} messages a round, {rounds} rounds, medians; load {}", broker::load());
        compare::head();
        if wanted("publish") {
            publish(&native, &portable, rounds, messages).await;
        }
        if wanted("consume") {
            consume(&native, &portable, rounds, messages).await;
        }
        println!("load at the end {}", broker::load());
        portable.close().await;
    });
}

fn wanted(name: &str) -> bool {
    flag("--only").is_none_or(|only| only == name)
}

fn alone() -> bool {
    std::env::args().any(|a| a == "--alone")
}

async fn publish(native: &Arc<Native>, portable: &Arc<PolybusSide>, rounds: usize, messages: usize) {
    let twins = [
        format!("publish, {PUBLISHERS} tasks / one by one, {PUBLISHERS} unconfirmed"),
        format!("publish / batches of {}, {TRANSFERS} at once", PUBLISHERS / TRANSFERS),
        "publish / the same batches of messages as polybus writes them".to_owned(),
    ];
    let mut comparison = Comparison::new(twins);
    for round in 0..=rounds {
        let side = async |side: usize| {
            let (twin, own) = (native.clone(), portable.clone());
            let twin = |how| async move { RoundTimes::of(messages, twin.publish(messages, how)).await };
            let measured = match side {
                0 => tokio::spawn(twin(SendStyle::Single)),
                1 => tokio::spawn(twin(SendStyle::Batches)),
                2 => tokio::spawn(twin(SendStyle::Alike)),
                _ => tokio::spawn(async move { RoundTimes::of(messages, own.publish(messages)).await }),
            };
            let measured = measured.await.unwrap();
            portable.purge().await;
            measured
        };
        comparison.round(round, side).await;
    }
    comparison.print();
}

async fn consume(native: &Arc<Native>, portable: &Arc<PolybusSide>, rounds: usize, messages: usize) {
    let twins = [
        format!("receive, ack, {UNSETTLED} awaited / completed by request, {REQUESTS} at once"),
        "receive, ack / accepted one by one on the link, which nobody confirms".to_owned(),
        "receive, ack / accepted by hundreds on the link, which nobody confirms".to_owned(),
    ];
    let mut comparison = Comparison::new(twins);
    let mut tasks =
        Comparison::new([format!("receive, ack, a task each, {UNSETTLED} / completed by request, {REQUESTS} at once")]);
    for round in 0..=rounds {
        // In a task, as in a service: the main thread is none of the runtime's own.
        let side = async |side: usize| {
            portable.publish(messages).await;
            let (native, portable) = (native.clone(), portable.clone());
            let measured = match side {
                0 => tokio::spawn(async move { native.complete(messages).await }),
                1 => tokio::spawn(async move { native.accept(messages, AcceptStyle::Single).await }),
                2 => tokio::spawn(async move { native.accept(messages, AcceptStyle::Batches).await }),
                _ => tokio::spawn(async move { portable.consume(messages).await }),
            };
            measured.await.unwrap()
        };
        comparison.round(round, side).await;
        let side = async |side: usize| {
            portable.publish(messages).await;
            let (native, portable) = (native.clone(), portable.clone());
            let measured = match side {
                0 => tokio::spawn(async move { native.complete(messages).await }),
                _ => tokio::spawn(async move { portable.consume_in_tasks(messages).await }),
            };
            measured.await.unwrap()
        };
        tasks.round(round, side).await;
    }
    comparison.print();
    tasks.print();
}
