//! The number of calls a message costs, which AWS bills: at most 0.35 at saturation, for publish, receive and ack.
#![allow(clippy::unwrap_used)]

mod wire;

use polybus_aws::AwsConnector;
use polybus_core::{
    Address, Bus, BusOptions, Envelope, QueueSpec, Registry, RetrySafety, Source, SubscriptionSpec, TopicSpec,
    Topology, stateful,
};
use wire::{CallCounts, CountingProxy};

const MESSAGES: usize = 2_000;

async fn connect(url: &str, name: &str) -> Bus {
    let registry = Registry::new().with(AwsConnector);
    // LocalStack may be busy with the other suites when it is asked first.
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(120);
    let driver = loop {
        match registry.connect(url).await {
            Err(e) if e.retry() == RetrySafety::Safe && tokio::time::Instant::now() < until => {}
            answer => break answer.unwrap(),
        }
    };
    let sub = SubscriptionSpec::new;
    let topology = Topology::new()
        .prefix(format!("calls-{name}-{}", std::process::id()))
        .queue("q", QueueSpec::new())
        .queue("sorted", QueueSpec::new().ordered(true))
        .topic("t", TopicSpec::new().subscription("s", sub()));
    let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    bus
}

/// Calls a message for publishing, and for receiving and acking.
async fn cost(bus: &Bus, wire: &CountingProxy, to: Address, from: Source, keys: usize) -> (f64, f64) {
    let messages = (0..MESSAGES).map(|n| Envelope::new("a.b", n.to_string()).key(format!("k{}", n % keys)));
    wire.take();
    for published in bus.publish_all(&to, messages).await {
        published.unwrap();
    }
    let published = wire.take();
    let (tx, mut handled) = tokio::sync::mpsc::channel(MESSAGES);
    let shutdown = async move {
        for _ in 0..MESSAGES {
            handled.recv().await;
        }
    };
    let handler = stateful(tx, async |tx, _, _| {
        tx.send(()).await?;
        Ok(())
    });
    let report = bus.worker(from.clone()).concurrency(100).with_graceful_shutdown(shutdown).run(handler).await.unwrap();
    assert!(report.succeeded >= MESSAGES as u64, "{report:?}");
    let consumed = wire.take();
    println!("{from}: {published}, {consumed}");
    let of = |calls: CallCounts| calls.total() as f64 / MESSAGES as f64;
    (of(published), of(consumed))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_costs_a_third_of_a_call() {
    let Some(url) = polybus_conformance::broker_url("aws", "POLYBUS_AWS_URL") else { return };
    let wire = CountingProxy::before(&url).await;
    let bus = connect(&wire.url, "third").await;
    let mut dear = Vec::new();
    for (to, from, keys, most) in [
        (Address::queue("q"), Source::queue("q"), 1, 0.35),
        (Address::topic("t"), Source::subscription("t", "s"), 1, 0.35),
        (Address::queue("sorted"), Source::queue("sorted"), 200, 0.35),
    ] {
        let (publish, consume) = cost(&bus, &wire, to.clone(), from, keys).await;
        println!(
            "{to}: {publish:.3} to publish, {consume:.3} to receive and ack: {:.3} calls a message",
            publish + consume
        );
        if publish + consume > most {
            dear.push(to.to_string());
        }
    }
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
    assert!(dear.is_empty(), "too many calls: {dear:?}");
}
