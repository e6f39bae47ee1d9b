//! What the service does in the cloud and an entity's operator may do, lived through.
#![allow(clippy::unwrap_used)]

mod foreign;

use std::time::Duration;

use foreign::Stage;
use polybus_core::{Address, Delivery, Envelope, Kind, QueueSpec, Source, Subscription, Topology};
use polybus_servicebus_emulator::{
    access::{Right, Rights},
    broker::{QueueSettings, Status},
    faults::Operation,
};
use tokio::time::{Instant, sleep, timeout};

async fn next(sub: &mut Subscription) -> Delivery {
    timeout(Duration::from_secs(60), sub.next()).await.expect("nothing came").unwrap().unwrap()
}

/// Seconds of maintenance: `POLYBUS_DISABLED_SECONDS=60` for as long as an operator may take.
fn maintenance() -> Duration {
    let seconds = std::env::var("POLYBUS_DISABLED_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(3))
}

async fn a_queue_switched_off(ordered: bool) {
    let stage = Stage::new("").await;
    let bus = stage.bus(Topology::new().queue("q", QueueSpec::new().ordered(ordered))).await;
    bus.declare().await.unwrap();
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    bus.publish(&Address::queue("q"), Envelope::new("a", "1").key("k")).await.unwrap();
    next(&mut sub).await.ack().await.unwrap();
    let broker = stage.emulator.broker();
    let settings = broker.queue("q").unwrap().settings;
    let switch = |status| broker.update_queue("q", QueueSettings { status, ..settings.clone() }).unwrap();
    switch(Status::ReceiveDisabled);
    bus.publish(&Address::queue("q"), Envelope::new("a", "2").key("k")).await.unwrap();
    let came = timeout(maintenance(), sub.next()).await;
    assert!(came.is_err(), "{came:?}");
    switch(Status::Active);
    let second = next(&mut sub).await;
    assert_eq!(&second.envelope().data[..], b"2");
    second.ack().await.unwrap();
    bus.close().await.unwrap();
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_switched_off_for_a_while_is_waited_for() {
    a_queue_switched_off(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_sessions_that_is_switched_off_for_a_while_is_waited_for() {
    a_queue_switched_off(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_kept_longer_than_a_link_may_be_idle() {
    let stage = Stage::new("").await;
    let idle = Duration::from_secs(4);
    stage.emulator.cloud().detach_idle_links(idle);
    let queue = QueueSpec::new().ordered(true).lock(Duration::from_secs(5));
    let bus = stage.bus(Topology::new().queue("q", queue)).await;
    bus.declare().await.unwrap();
    for n in 0..2 {
        bus.publish(&Address::queue("q"), Envelope::new("a", n.to_string()).key("k")).await.unwrap();
    }
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let began = Instant::now();
    next(&mut sub).await.retry_after(idle * 3).await.unwrap();
    let again = next(&mut sub).await;
    assert!(began.elapsed() >= idle * 3, "{:?}", began.elapsed());
    assert_eq!((again.attempt(), &again.envelope().data[..]), (2, &b"0"[..]));
    again.ack().await.unwrap();
    bus.close().await.unwrap();
    stage.stop().await;
}

/// Nobody may ask for the entity's locks, and the topology is wrong about them.
#[tokio::test(flavor = "multi_thread")]
async fn locks_are_as_long_as_messages_tell_where_nothing_else_does() {
    let stage = Stage::with_key("", Rights::NONE.with(Right::Listen).with(Right::Send)).await;
    let short = QueueSettings { lock_duration_ms: 5000, ..QueueSettings::default() };
    stage.emulator.broker().create_queue("q", short).unwrap();
    let bus = stage.bus(Topology::new().queue("q", QueueSpec::new().lock(Duration::from_secs(60)))).await;
    for n in 0..4 {
        bus.publish(&Address::queue("q"), Envelope::new("a", n.to_string())).await.unwrap();
    }
    // Old enough that a message's age tells nothing of its lock.
    sleep(Duration::from_secs(2)).await;
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(4).open().await.unwrap();
    let mut held = vec![next(&mut sub).await];
    sleep(Duration::from_secs(9)).await;
    for _ in 1..4 {
        held.push(next(&mut sub).await);
    }
    for delivery in held {
        assert_eq!(delivery.attempt(), 1);
        delivery.ack().await.unwrap();
    }
    bus.close().await.unwrap();
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_broker_is_left_alone_and_then_served() {
    let stage = Stage::new("").await;
    let bus = stage.bus(Topology::new().queue("q", QueueSpec::new())).await;
    bus.declare().await.unwrap();
    bus.publish(&Address::queue("q"), Envelope::new("a", "1")).await.unwrap();
    stage.emulator.faults().be_busy(1, &[Operation::Send]);
    let began = Instant::now();
    bus.publish(&Address::queue("q"), Envelope::new("a", "2")).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(9), "{:?}", began.elapsed());
    bus.close().await.unwrap();
    stage.stop().await;
}

/// What waits in place takes part in the window: no more than that is ever in hand.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_in_place_keeps_its_place_in_the_window() {
    let stage = Stage::new("&max_message_size=64KiB").await;
    let bus = stage.bus(Topology::new().queue("q", QueueSpec::new().lock(Duration::from_secs(5)))).await;
    bus.declare().await.unwrap();
    // Larger than this client takes messages to be, so that there is no copy of them.
    let foreign = stage.foreign().await;
    foreign.send_all("q", (0..6).map(|_| foreign::Foreign::new(&"y".repeat(70_000)).id("m"))).await;
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(2).open().await.unwrap();
    for _ in 0..2 {
        next(&mut sub).await.retry_after(Duration::from_secs(8)).await.unwrap();
    }
    let came = timeout(Duration::from_secs(6), sub.next()).await;
    assert!(came.is_err(), "{came:?}");
    for _ in 0..6 {
        next(&mut sub).await.ack().await.unwrap();
    }
    bus.close().await.unwrap();
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordered_source_without_sessions_is_told_and_waits_for_nothing_in_silence() {
    let stage = Stage::new("").await;
    stage.emulator.broker().create_queue("q", QueueSettings::default()).unwrap();
    let driver = polybus_core::Registry::new().with(polybus_servicebus::ServicebusConnector);
    let driver = driver.connect(&stage.url("")).await.unwrap();
    let topology = Topology::new().queue("q", QueueSpec::new().ordered(true));
    let mut entity = topology.source(&Source::queue("q"));
    entity.prefetch = 4;
    let (mut receiver, settler) = driver.open_receiver(&entity).await.unwrap();
    for _ in 0..3 {
        let e = timeout(Duration::from_secs(20), receiver.receive(1)).await.unwrap().unwrap_err();
        assert!(e.kind() == Kind::InvalidArgument && e.to_string().contains("sessions"), "{e}");
    }
    receiver.close().await.unwrap();
    settler.close().await.unwrap();
    driver.close().await.unwrap();
    stage.stop().await;
}
