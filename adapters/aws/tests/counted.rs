//! The number of requests a message costs, counted by a proxy: publish, receive and ack by workers.
#![allow(clippy::unwrap_used)]

mod wire;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use polybus_aws::{AwsConnector, Native};
use polybus_core::{
    Address, Bus, BusOptions, Envelope, HandlerContext, HandlerError, QueueSpec, Registry, Source, Topology,
    worker::WorkerBuilder,
};
use tokio::{sync::Notify, task::JoinSet};
use wire::{CallCounts, CountingProxy};

const MESSAGES: usize = 1_000;
/// The goal at saturation: one call in ten for each of publish, receive and delete, and a few that carry less.
const MOST: f64 = 0.35;
/// Sixteen handlers and a prefetch of 32 cannot always fill a call.
const MOST_AT_DEFAULTS: f64 = 0.38;

fn url() -> Option<String> {
    polybus_conformance::broker_url("aws", "POLYBUS_AWS_URL")
}

async fn open(url: &str, queue: &str) -> Bus {
    let driver = Registry::new().with(AwsConnector).connect(url).await.unwrap();
    let physical = format!("polybus-{queue}-{}", std::process::id());
    let topology = Topology::new().queue("calls", QueueSpec::new().physical(&physical));
    let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    bus
}

async fn publish_concurrently(bus: &Bus) {
    let publisher = bus.publisher(Address::queue("calls")).await.unwrap();
    let mut tasks = JoinSet::new();
    for i in 0..MESSAGES {
        let publisher = publisher.clone();
        tasks.spawn(async move { publisher.publish(Envelope::new("calls.message", i.to_string())).await.map(|_| ()) });
    }
    tasks.join_all().await.into_iter().for_each(|published| published.unwrap());
}

/// Runs a worker until the last message is acknowledged: nothing is left that SQS would deliver again.
async fn consume(wire: &CountingProxy, worker: WorkerBuilder) -> CallCounts {
    let (handled, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (count, all) = (handled.clone(), done.clone());
    let handler = move |_: HandlerContext, _: Envelope| {
        if count.fetch_add(1, Ordering::Relaxed) + 1 == MESSAGES {
            all.notify_one();
        }
        async { Ok::<(), HandlerError>(()) }
    };
    let run = worker
        .drain_timeout(Duration::from_secs(30))
        .with_graceful_shutdown(async move { done.notified().await })
        .run(handler);
    let report = tokio::time::timeout(Duration::from_secs(120), run).await.unwrap().unwrap();
    assert_eq!(report.succeeded, MESSAGES as u64, "{report:?}");
    wire.take()
}

/// Publishes, handles and acknowledges; tells the calls and checks that they are few.
async fn measure(name: &str, most: f64, worker: impl Fn(WorkerBuilder) -> WorkerBuilder) {
    let Some(url) = url() else { return };
    let wire = CountingProxy::before(&url).await;
    let bus = open(&wire.url, name).await;
    bus.publisher(Address::queue("calls")).await.unwrap();
    let told = || bus.native::<Native>().unwrap().calls();
    wire.take();
    let before = told();
    publish_concurrently(&bus).await;
    let mut calls = wire.take();
    let consumed = consume(&wire, worker(bus.worker(Source::queue("calls")))).await;
    consumed.0.into_iter().for_each(|(operation, n)| *calls.0.entry(operation).or_default() += n);
    assert_eq!(told() - before, calls.total(), "the adapter tells what it sends: {calls}");
    let left = bus.stats(Source::queue("calls")).await.unwrap();
    assert_eq!((left.ready, left.in_flight), (Some(0), Some(0)), "all of it was acknowledged");
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
    let each = calls.total() as f64 / MESSAGES as f64;
    println!("{name}: API calls per 1,000 messages: {} ({calls})", calls.total());
    assert!(each <= most, "{each} calls per message, {most} allowed: {calls}");
}

#[tokio::test(flavor = "multi_thread")]
async fn few_calls_at_saturation() {
    measure("saturated", MOST, |worker| worker.concurrency(64).prefetch(256)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn few_calls_of_a_worker_left_at_its_defaults() {
    measure("defaults", MOST_AT_DEFAULTS, |worker| worker).await;
}
