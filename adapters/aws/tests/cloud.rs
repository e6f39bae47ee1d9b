//! A bus survives what only the cloud does: throttling, refused logins, clocks that differ, queues that not every host
//! knows yet, attributes that take effect late. A proxy in front of LocalStack imitates it.
#![allow(clippy::unwrap_used)]

mod wire;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use polybus_aws::AwsConnector;
use polybus_core::{
    Address, Bus, BusOptions, Envelope, ErrorKind, QueueSpec, Registry, RetrySafety, Source, SubscriptionSpec,
    TopicSpec, Topology,
};
use tokio::{task::JoinSet, time::timeout};
use wire::{CountingProxy, cloud};

/// The longest that a test waits for the background. No test waits that long where all goes well.
const PATIENCE: Duration = Duration::from_secs(120);

async fn wire() -> Option<CountingProxy> {
    let url = polybus_conformance::broker_url("aws", "POLYBUS_AWS_URL")?;
    Some(CountingProxy::before(&url).await)
}

async fn open(wire: &CountingProxy, name: &str, topology: Topology) -> Bus {
    let driver = Registry::new().with(AwsConnector).connect(&wire.url).await.unwrap();
    let topology = topology.prefix(format!("cloud-{name}-{}", std::process::id()));
    Bus::new(driver, BusOptions::topology(topology)).unwrap()
}

async fn declared(wire: &CountingProxy, name: &str, topology: Topology) -> Bus {
    let bus = open(wire, name, topology).await;
    bus.declare().await.unwrap();
    bus
}

fn queue() -> Topology {
    Topology::new().queue("q", QueueSpec::new())
}

async fn end(wire: &CountingProxy, bus: Bus) {
    wire.clear_rules();
    wire.set_clock(0);
    // The server may have closed a connection that was idle, and a delete is not tried again by itself.
    let mut tries = 0;
    while let Err(e) = bus.delete().await {
        tries += 1;
        assert!(e.retry() == RetrySafety::Safe && tries < 10, "{e}");
    }
    bus.close().await.unwrap();
}

/// A consumer that is at work when the trouble begins handles what comes after it.
async fn lives_through(name: &str, trouble: impl FnOnce(&CountingProxy), over: impl FnOnce(&CountingProxy)) {
    let Some(wire) = wire().await else { return };
    let bus = declared(&wire, name, queue()).await;
    let to = Address::queue("q");
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    bus.publish(&to, Envelope::new("a.b", "1")).await.unwrap();
    timeout(PATIENCE, sub.next()).await.unwrap().unwrap().unwrap().ack().await.unwrap();
    trouble(&wire);
    let publish = async { bus.publish(&to, Envelope::new("a.b", "2")).await };
    let (next, published) = tokio::join!(timeout(PATIENCE, sub.next()), publish);
    let delivery = next.unwrap().unwrap().unwrap();
    published.unwrap();
    assert_eq!(&*delivery.envelope().data, b"2");
    delivery.ack().await.unwrap();
    over(&wire);
    sub.close().await.unwrap();
    end(&wire, bus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_expired_tokens_in_a_row() {
    lives_through("expired", |wire| wire.add_rule(cloud::expired_token(10)), |_| ()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_not_known_for_a_while() {
    lives_through("unknown", |wire| wire.add_rule(cloud::unknown_key(10)), |_| ()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_and_jumps_back() {
    for ahead in [3600, -3600] {
        let counted = |wire: &CountingProxy| {
            wire.take();
            wire.set_clock(ahead);
        };
        lives_through("skewed", counted, |_| ()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_off_from_the_start() {
    let Some(wire) = wire().await else { return };
    wire.set_clock(-1800);
    let bus = declared(&wire, "offset", queue()).await;
    bus.publish(Address::queue("q"), Envelope::new("a.b", "1")).await.unwrap();
    end(&wire, bus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_throttled_answers() {
    let Some(wire) = wire().await else { return };
    let bus = declared(&wire, "throttled", queue()).await;
    // As many consumers as the answers are shared by, so that each waits for some seconds only.
    let handled = Arc::new(AtomicUsize::new(0));
    wire.add_rule(cloud::throttles("ReceiveMessage", 200));
    let mut consumers = JoinSet::new();
    for _ in 0..20 {
        let (bus, handled) = (bus.clone(), handled.clone());
        consumers.spawn(async move {
            let mut sub = bus.subscribe(Source::queue("q")).prefetch(1).open().await.unwrap();
            while handled.load(Ordering::Relaxed) < 40 {
                if let Ok(next) = timeout(Duration::from_millis(500), sub.next()).await {
                    next.unwrap().unwrap().ack().await.unwrap();
                    handled.fetch_add(1, Ordering::Relaxed);
                }
            }
            sub.close().await.unwrap();
        });
    }
    wire.add_rule(cloud::throttles("SendMessageBatch", 5));
    for n in 0..40 {
        bus.publish(Address::queue("q"), Envelope::new("a.b", n.to_string())).await.unwrap();
    }
    timeout(PATIENCE * 2, consumers.join_all()).await.unwrap();
    end(&wire, bus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_key_is_no_missing_queue() {
    let Some(wire) = wire().await else { return };
    let bus = declared(&wire, "key", queue()).await;
    let to = Address::queue("q");
    bus.publish(&to, Envelope::new("a.b", "1")).await.unwrap();
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let held = timeout(PATIENCE, sub.next()).await.unwrap().unwrap().unwrap();
    wire.add_rule(cloud::key_missing("ReceiveMessage", 3));
    wire.add_rule(cloud::key_missing("SendMessageBatch", 1));
    let e = bus.publish(&to, Envelope::new("a.b", "2")).await.unwrap_err();
    assert!(e.kind() == ErrorKind::ConfigInvalid && e.to_string().contains("kms_key"), "{e}");
    bus.publish(&to, Envelope::new("a.b", "3")).await.unwrap();
    let next = timeout(PATIENCE, sub.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(&*next.envelope().data, b"3");
    // The receipt was not thrown away meanwhile.
    held.ack().await.unwrap();
    next.ack().await.unwrap();
    sub.close().await.unwrap();
    end(&wire, bus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visibility_that_has_ended_is_a_lost_lock() {
    let Some(wire) = wire().await else { return };
    let bus = declared(&wire, "ended", queue()).await;
    bus.publish(Address::queue("q"), Envelope::new("a.b", "1")).await.unwrap();
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let held = timeout(PATIENCE, sub.next()).await.unwrap().unwrap().unwrap();
    wire.add_rule(cloud::visibility_ended());
    let e = held.retry_after(Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(e.into_parts().0.kind(), ErrorKind::LockLost);
    sub.close().await.unwrap();
    end(&wire, bus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_was_made_and_is_not_seen_everywhere_yet() {
    let Some(wire) = wire().await else { return };
    wire.add_rule(cloud::not_seen_everywhere(Duration::from_secs(4)));
    let bus = declared(&wire, "fresh", queue()).await;
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    for n in 0..4 {
        bus.publish(Address::queue("q"), Envelope::new("a.b", n.to_string())).await.unwrap();
        timeout(PATIENCE, sub.next()).await.unwrap().unwrap().unwrap().ack().await.unwrap();
    }
    sub.close().await.unwrap();
    end(&wire, bus).await;
}

fn topic(subscriptions: usize) -> Topology {
    let topic =
        (0..subscriptions).fold(TopicSpec::new(), |t, n| t.subscription(format!("s{n}"), SubscriptionSpec::new()));
    Topology::new().topic("t", topic)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_discarded_right_after_a_declare() {
    let Some(wire) = wire().await else { return };
    wire.add_rule(cloud::late_attributes(Duration::from_secs(60)));
    let bus = declared(&wire, "policy", topic(1)).await;
    bus.publish(Address::topic("t"), Envelope::new("a.b", "1")).await.unwrap();
    let mut sub = bus.subscribe(Source::subscription("t", "s0")).open().await.unwrap();
    timeout(PATIENCE, sub.next()).await.unwrap().unwrap().unwrap().ack().await.unwrap();
    sub.close().await.unwrap();
    end(&wire, bus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_declares_at_once() {
    let Some(wire) = wire().await else { return };
    let topology = topic(4);
    declared(&wire, "fleet", topology.clone()).await.close().await.unwrap();
    wire.take();
    // The account's share of lists, less than what the fleet asks in its first second.
    wire.add_rule(cloud::lists_a_second(3));
    let mut fleet = JoinSet::new();
    for _ in 0..12 {
        let bus = open(&wire, "fleet", topology.clone()).await;
        fleet.spawn(async move {
            let report = bus.declare().await.unwrap();
            assert!(report.differences.is_empty(), "{report:?}");
            bus.close().await.unwrap();
        });
    }
    timeout(PATIENCE, fleet.join_all()).await.unwrap();
    let calls = wire.take();
    println!("{calls}");
    let bus = open(&wire, "fleet", topology.clone()).await;
    wire.clear_rules();
    wire.take();
    bus.declare().await.unwrap();
    assert_eq!(wire.take().of("ListSubscriptionsByTopic"), 1, "one for all subscriptions of a topic");
    end(&wire, bus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowded_queue_keeps_its_retries_out_of_flight() {
    let Some(wire) = wire().await else { return };
    let spec = QueueSpec::new().max_deliveries(5).lock(Duration::from_secs(300));
    let bus = declared(&wire, "crowd", Topology::new().queue("q", spec)).await;
    let to = Address::queue("q");
    for result in bus.publish_all(&to, (0..60).map(|n| Envelope::new("a.b", n.to_string()))).await {
        result.unwrap();
    }
    wire.add_rule(cloud::in_flight(70_000));
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(60).open().await.unwrap();
    // All are in hand before the first is retried: on a slow machine that one may be back before the last is.
    let mut held = Vec::new();
    for _ in 0..60 {
        held.push(timeout(PATIENCE, sub.next()).await.unwrap().unwrap().unwrap());
    }
    for delivery in held {
        assert_eq!(delivery.attempt(), 1);
        delivery.retry_after(Duration::from_secs(60)).await.unwrap();
    }
    wire.clear_rules();
    let stats = bus.stats(Source::queue("q")).await.unwrap();
    let delayed = stats.delayed.unwrap();
    assert!((5..=11).contains(&delayed), "of the last ones, after the look: {stats:?}");
    // Each comes again, once, and knows how often it has been tried.
    for _ in 0..60 {
        let delivery = timeout(PATIENCE, sub.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(delivery.attempt(), 2);
        delivery.ack().await.unwrap();
    }
    sub.close().await.unwrap();
    end(&wire, bus).await;
}
