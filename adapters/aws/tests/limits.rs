//! AWS' limits, at their edges and one above. The adapter enforces them before any call; the emulator not all of them.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use polybus_aws::{AwsConnector, Native};
use polybus_core::{
    Address, Bus, BusOptions, Envelope, Error, ErrorKind, Outgoing, QueueSpec, Registry, Source, SubscriptionSpec,
    TopicSpec, Topology,
};

const QUEUE: usize = (1 << 20) - 1024;
const TOPIC: usize = 256 << 10;

fn url() -> Option<String> {
    polybus_conformance::broker_url("aws", "POLYBUS_AWS_URL")
}

async fn bus(url: &str, topology: Topology) -> Result<Bus, Error> {
    let driver = Registry::new().with(AwsConnector).connect(url).await?;
    Bus::new(driver, BusOptions::topology(topology))
}

async fn made(url: &str, name: &str, topology: Topology) -> Bus {
    let bus = bus(url, topology.prefix(format!("limits-{name}-{}", std::process::id()))).await.unwrap();
    bus.declare().await.unwrap();
    bus
}

/// Of exactly this many bytes once it is encoded with its attributes.
async fn sized(bus: &Bus, to: &Address, size: usize) -> Envelope {
    let of = |payload: usize| Envelope::bare("a.b", vec![b'x'; payload]).id("i").source("s").content_type("text/plain");
    let too_large = bus.publish(to, of(size)).await.unwrap_err();
    let encoded: usize = too_large.context("size").unwrap().parse().unwrap();
    of(size - (encoded - size))
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_of_messages_and_batches() {
    let Some(url) = url() else { return };
    let topology = Topology::new()
        .queue("q", QueueSpec::new())
        .topic("t", TopicSpec::new().subscription("s", SubscriptionSpec::new()));
    let bus = made(&url, "sizes", topology).await;
    for (to, from, limit) in
        [(Address::queue("q"), Source::queue("q"), QUEUE), (Address::topic("t"), Source::subscription("t", "s"), TOPIC)]
    {
        let largest = sized(&bus, &to, limit).await;
        let larger =
            Envelope::bare("a.b", [&largest.data[..], b"x"].concat()).id("i").source("s").content_type("text/plain");
        let before = bus.native::<Native>().unwrap().calls();
        let e = bus.publish(&to, larger).await.unwrap_err();
        assert_eq!((e.kind(), e.context("limit")), (ErrorKind::PayloadTooLarge, Some(&*limit.to_string())), "{e}");
        assert_eq!(bus.native::<Native>().unwrap().calls(), before, "a refusal needs no call");
        // Three of them are more than a batch takes.
        for result in bus.publish_all(&to, (0..3).map(|n| largest.clone().id(n.to_string()))).await {
            result.unwrap();
        }
        let mut sub = bus.subscribe(from.clone()).open().await.unwrap();
        for _ in 0..3 {
            let delivery = sub.next().await.unwrap().unwrap();
            assert_eq!(delivery.envelope().data, largest.data);
            // The largest message can be a dead letter, whatever the reason's length.
            delivery.dead_letter("unfit", "why ".repeat(500)).await.unwrap();
        }
        let mut dead = bus.subscribe(from.dead_letters()).open().await.unwrap();
        for _ in 0..3 {
            let letter = dead.next().await.unwrap().unwrap();
            assert_eq!(letter.dead_letter_info().unwrap().reason.as_deref(), Some("unfit"));
            assert_eq!(letter.envelope().data, largest.data);
            letter.ack().await.unwrap();
        }
    }
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn delays_and_retries() {
    let Some(url) = url() else { return };
    let topology = Topology::new().queue("q", QueueSpec::new()).queue("sorted", QueueSpec::new().ordered(true));
    let bus = made(&url, "delays", topology).await;
    let delayed = |secs: u64, millis: u64| {
        let delay = Duration::from_secs(secs) + Duration::from_millis(millis);
        Outgoing::from(Envelope::new("a.b", "1").key("k")).delay(delay)
    };
    bus.publish(Address::queue("q"), delayed(900, 0)).await.unwrap();
    let e = bus.publish(Address::queue("q"), delayed(900, 1)).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
    // SQS delays whole FIFO queues, no messages.
    let e = bus.publish(Address::queue("sorted"), delayed(1, 0)).await.unwrap_err();
    assert!(e.kind() == ErrorKind::Unsupported && e.message().contains("FIFO"), "{e}");

    bus.publish(Address::queue("q"), Envelope::new("a.b", "2")).await.unwrap();
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let hours = |n: u64| Duration::from_secs(n * 3600);
    let delivery = sub.next().await.unwrap().unwrap();
    let e = delivery.retry_after(hours(11) + Duration::from_millis(1)).await.unwrap_err();
    let delivery = e.into_parts().1.unwrap();
    delivery.retry_after(hours(11)).await.unwrap();
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_sqs_cannot_keep() {
    let Some(url) = url() else { return };
    let hours = |n: u64| Duration::from_secs(n * 3600);
    let q = QueueSpec::new;
    for spec in [
        q().lock(hours(12)),
        q().lock(Duration::from_secs(1)),
        q().max_deliveries(995),
        q().retry([hours(11)]),
        q().ordered(true).max_hold(hours(11)),
        q().option("aws", serde_json::json!({"retention": "14d", "tags": {"team": "a"}})),
        q().physical("Legacy"),
        q().physical("Legacy.fifo").ordered(true),
    ] {
        let bus = bus(&url, Topology::new().queue("q", spec)).await.unwrap();
        bus.close().await.unwrap();
    }
    for (spec, kind, word) in [
        (q().lock(hours(12) + Duration::from_secs(1)), ErrorKind::Unsupported, "lock"),
        (q().max_deliveries(996), ErrorKind::Unsupported, "995"),
        (q().retry([hours(12)]), ErrorKind::Unsupported, "retry"),
        (q().ordered(true).max_hold(hours(12)), ErrorKind::Unsupported, "max_hold"),
        (q().option("aws", serde_json::json!({"retention": "15d"})), ErrorKind::ConfigInvalid, "retention"),
        (q().option("aws", serde_json::json!({"retentoin": "1d"})), ErrorKind::ConfigInvalid, "retentoin"),
        (q().physical("a.b"), ErrorKind::ConfigInvalid, "A-Z"),
        (q().physical("Legacy").ordered(true), ErrorKind::ConfigInvalid, ".fifo"),
        (q().physical("Legacy.fifo"), ErrorKind::ConfigInvalid, "ordered"),
        (q().physical("x".repeat(81)), ErrorKind::ConfigInvalid, "80"),
    ] {
        let e = bus(&url, Topology::new().queue("q", spec)).await.map(|_| ()).unwrap_err();
        assert!(e.kind() == kind && e.to_string().contains(word), "{e}");
    }
    let types: Vec<String> = (0..151).map(|n| format!("a{n}")).collect();
    for (n, fits) in [(150, true), (151, false)] {
        let types = types[..n].iter().map(|t| &**t);
        let topic = TopicSpec::new().subscription("s", SubscriptionSpec::new().types(types));
        let made = bus(&url, Topology::new().topic("t", topic)).await;
        assert_eq!(made.map_err(|e| e.kind()).is_ok(), fits, "{n} types");
    }
    let two = Topology::new().queue("t-s", q()).queue("a", q().physical("t-s_dlq"));
    let e = bus(&url, two).await.map(|_| ()).unwrap_err();
    assert!(e.kind() == ErrorKind::ConfigInvalid && e.to_string().contains("t-s_dlq"), "{e}");
}
