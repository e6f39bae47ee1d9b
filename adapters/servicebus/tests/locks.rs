//! Locks, against an emulator in this process: what becomes of them while messages wait, are held, or are lost.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use polybus_core::{
    Address, Bus, BusOptions, Delivery, Envelope, QueueSpec, Registry, Source, Subscription, SubscriptionSpec,
    TopicSpec, Topology,
};
use polybus_servicebus::ServicebusConnector;
use polybus_servicebus_emulator::{
    Emulator, EmulatorOptions,
    broker::{QueueSettings, Rule, RuleFilter},
};
use tokio::time::{Instant, sleep, timeout};

/// Renewed at half its time: a machine that stands still for some seconds loses none.
const LOCK: Duration = Duration::from_secs(15);

struct EmulatorSetup {
    emulator: Emulator,
    parameters: &'static str,
}

impl EmulatorSetup {
    async fn new(parameters: &'static str) -> Self {
        Self { emulator: Emulator::start(EmulatorOptions::default()).await.unwrap(), parameters }
    }

    async fn bus(&self, topology: Topology) -> Bus {
        let (amqp, http) = (self.emulator.amqp_addr(), self.emulator.http_addr());
        let url = format!("servicebus://{amqp}?emulator=true&management=http://{http}{}", self.parameters);
        let driver = Registry::new().with(ServicebusConnector).connect(&url).await.unwrap();
        let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
        bus.declare().await.unwrap();
        bus
    }

    /// A queue `q` whose locks are short.
    async fn queue(&self, ordered: bool) -> Bus {
        self.bus(Topology::new().queue("q", QueueSpec::new().ordered(ordered).lock(LOCK))).await
    }
}

async fn publish(bus: &Bus, n: usize) {
    let message = Envelope::new("a", n.to_string()).key(n.to_string());
    bus.publish(Address::queue("q"), message).await.unwrap();
}

async fn subscribe(bus: &Bus) -> Subscription {
    bus.subscribe(Source::queue("q")).prefetch(4).open().await.unwrap()
}

async fn next(sub: &mut Subscription) -> Delivery {
    timeout(Duration::from_secs(120), sub.next()).await.unwrap().unwrap().unwrap()
}

async fn none(sub: &mut Subscription, within: Duration) {
    let came = timeout(within, sub.next()).await;
    assert!(came.is_err(), "{came:?}");
}

/// Room comes in small pieces while most of the window is held: none of it may be forgotten.
#[tokio::test]
async fn a_window_that_is_mostly_held_is_filled_to_its_last_place() {
    const WINDOW: usize = 100;
    let setup = EmulatorSetup::new("").await;
    let bus = setup.bus(Topology::new().queue("q", QueueSpec::new())).await;
    let publisher = bus.publisher(Address::queue("q")).await.unwrap();
    let publish = async |n: usize| {
        let messages = (0..n).map(|n| Envelope::new("a", n.to_string()));
        publisher.publish_all(messages).await.into_iter().for_each(|done| drop(done.unwrap()));
    };
    publish(WINDOW).await;
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(WINDOW).open().await.unwrap();
    let mut held = Vec::new();
    for _ in 0..WINDOW {
        held.push(next(&mut sub).await);
    }
    for n in [1, 10, 3, 24, 2] {
        // With nothing left in the queue, what the first makes room for is still to come when the others make more.
        for delivery in held.split_off(WINDOW - n) {
            delivery.ack().await.unwrap();
        }
        publish(n + 1).await;
        while held.len() < WINDOW {
            held.push(next(&mut sub).await);
        }
        none(&mut sub, Duration::from_millis(20)).await;
        held.pop().unwrap().ack().await.unwrap();
        held.push(next(&mut sub).await);
    }
    drop(held);
    sub.close().await.unwrap();
}

async fn while_the_application_is_busy(ordered: bool) {
    let setup = EmulatorSetup::new("").await;
    let bus = setup.queue(ordered).await;
    let mut sub = subscribe(&bus).await;
    publish(&bus, 0).await;
    let first = next(&mut sub).await;
    for n in 1..4 {
        publish(&bus, n).await;
    }
    // One renewal that fails, of whichever, is not the end.
    sleep(LOCK / 4).await;
    setup.emulator.faults().refuse_renewals(1);
    sleep(LOCK * 3 / 2).await;
    for _ in 1..4 {
        let later = next(&mut sub).await;
        assert_eq!((later.attempt(), later.is_held()), (1, true));
        later.ack().await.unwrap();
    }
    first.ack().await.unwrap();
    none(&mut sub, LOCK).await;
    bus.close().await.unwrap();
    setup.emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_the_application_is_busy_is_renewed() {
    while_the_application_is_busy(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_come_while_the_application_is_busy_are_renewed() {
    while_the_application_is_busy(true).await;
}

#[cfg(feature = "rest")]
#[tokio::test(flavor = "multi_thread")]
async fn over_https_what_comes_after_a_dropped_receive_is_renewed() {
    let setup = EmulatorSetup::new("&transport=rest&poll=3s").await;
    let bus = setup.queue(false).await;
    let mut sub = subscribe(&bus).await;
    // The request waits at the broker, and nobody waits for it any more.
    none(&mut sub, Duration::from_millis(300)).await;
    publish(&bus, 0).await;
    sleep(LOCK * 3 / 2).await;
    let later = next(&mut sub).await;
    assert_eq!((later.attempt(), later.is_held()), (1, true));
    later.ack().await.unwrap();
    none(&mut sub, LOCK).await;
    bus.close().await.unwrap();
    setup.emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_took_back_meanwhile_is_not_handed_out_as_it_was() {
    let setup = EmulatorSetup::new("").await;
    let bus = setup.queue(false).await;
    let mut sub = subscribe(&bus).await;
    publish(&bus, 0).await;
    let first = next(&mut sub).await;
    publish(&bus, 1).await;
    setup.emulator.faults().refuse_renewals(u64::MAX);
    sleep(LOCK * 3 / 2).await;
    setup.emulator.faults().clear();
    drop(first);
    for _ in 0..2 {
        let again = next(&mut sub).await;
        assert!(again.is_held() && again.attempt() > 1, "{again:?}");
        again.ack().await.unwrap();
    }
    none(&mut sub, LOCK).await;
    bus.close().await.unwrap();
    setup.emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_prefetch_goes_on_after_the_first_message() {
    let setup = EmulatorSetup::new("").await;
    let bus = setup.queue(false).await;
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(usize::MAX).open().await.unwrap();
    for n in 0..3 {
        publish(&bus, n).await;
        next(&mut sub).await.ack().await.unwrap();
    }
    bus.close().await.unwrap();
    setup.emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_came_in_trouble_is_held_from_its_grant() {
    // So long that even a slow machine asks while the first lock lasts.
    const LOCK: Duration = Duration::from_secs(40);
    let setup = EmulatorSetup::new("").await;
    let bus = setup.bus(Topology::new().queue("q", QueueSpec::new().ordered(true).lock(LOCK))).await;
    // So that the publisher has its link.
    publish(&bus, 0).await;
    let mut sub = subscribe(&bus).await;
    next(&mut sub).await.ack().await.unwrap();
    sub.close().await.unwrap();

    setup.emulator.faults().refuse_attaches(1);
    setup.emulator.faults().refuse_renewals(u64::MAX);
    let mut sub = subscribe(&bus).await;
    publish(&bus, 1).await;
    let source = setup.emulator.broker().source("q").unwrap();
    // The broker answers that of a session that is held alone.
    timeout(Duration::from_secs(120), async {
        while source.session_state("1", None).is_err() {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    sleep(LOCK * 3 / 8).await;
    let late = next(&mut sub).await;
    // Since its grant five eighths of it are left, less on a slow machine; from now on it would be all of it.
    let left = late.locked_until().unwrap() - Instant::now();
    assert!(left < LOCK * 7 / 8, "{left:?}");
    setup.emulator.faults().clear();
    late.ack().await.unwrap();
    bus.close().await.unwrap();
    setup.emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_lost_as_it_is_given_ends_nothing() {
    let setup = EmulatorSetup::new("").await;
    let bus = setup.queue(true).await;
    let mut sub = subscribe(&bus).await;
    // All of them wait for a session.
    none(&mut sub, Duration::from_millis(500)).await;
    setup.emulator.faults().detach("q", "com.microsoft:session-lock-lost", "it has expired");
    none(&mut sub, Duration::from_millis(500)).await;
    publish(&bus, 1).await;
    next(&mut sub).await.ack().await.unwrap();
    bus.close().await.unwrap();
    setup.emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_an_operator_has_lowered_counts_for_the_next_consumer() {
    for parameters in [
        "",
        #[cfg(feature = "rest")]
        "&transport=rest&poll=1s",
    ] {
        let setup = EmulatorSetup::new(parameters).await;
        let bus = setup.bus(Topology::new().queue("q", QueueSpec::new())).await;
        subscribe(&bus).await.close().await.unwrap();
        let broker = setup.emulator.broker();
        let lock_duration_ms = LOCK.as_millis().try_into().unwrap();
        let settings = QueueSettings { lock_duration_ms, ..broker.queue("q").unwrap().settings };
        broker.update_queue("q", settings).unwrap();
        let mut sub = subscribe(&bus).await;
        publish(&bus, 0).await;
        let delivery = next(&mut sub).await;
        assert!(delivery.locked_until().unwrap() < Instant::now() + LOCK, "{parameters}");
        delivery.ack().await.unwrap();
        bus.close().await.unwrap();
        setup.emulator.stop().await;
    }
}

/// Twice as long as a lock, of whose renewals one fails.
async fn held_for_its_time(setup: &EmulatorSetup, sub: &mut Subscription) {
    let first = next(sub).await;
    let began = Instant::now();
    first.retry_after(LOCK * 2).await.unwrap();
    setup.emulator.faults().refuse_renewals(1);
    let again = next(sub).await;
    assert!(began.elapsed() >= LOCK * 2, "early: after {:?}", began.elapsed());
    assert_eq!(again.attempt(), 2);
    again.ack().await.unwrap();
}

async fn in_place_beside_the_rules_of_others(parameters: &'static str) {
    let setup = EmulatorSetup::new(parameters).await;
    let topic = TopicSpec::new().subscription("s", SubscriptionSpec::new().lock(LOCK));
    let bus = setup.bus(Topology::new().topic("t", topic)).await;
    let theirs = Rule { name: "theirs".into(), filter: RuleFilter::False, action: None, created_at: 0 };
    setup.emulator.broker().add_rule("t", "s", theirs).unwrap();
    let mut sub = bus.subscribe(Source::subscription("t", "s")).open().await.unwrap();
    bus.publish(Address::topic("t"), Envelope::new("a", "")).await.unwrap();
    held_for_its_time(&setup, &mut sub).await;
    bus.close().await.unwrap();
    setup.emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_that_fails_does_not_end_a_hold() {
    in_place_beside_the_rules_of_others("").await;
}

#[cfg(feature = "rest")]
#[tokio::test(flavor = "multi_thread")]
async fn over_https_a_renewal_that_fails_does_not_end_a_hold() {
    in_place_beside_the_rules_of_others("&transport=rest&poll=1s").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_that_fails_does_not_end_a_session_that_is_held() {
    let setup = EmulatorSetup::new("").await;
    let bus = setup.queue(true).await;
    publish(&bus, 0).await;
    held_for_its_time(&setup, &mut subscribe(&bus).await).await;
    bus.close().await.unwrap();
    setup.emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_waits_until_what_a_session_holds_is_counted() {
    let setup = EmulatorSetup::new("").await;
    let bus = setup.queue(true).await;
    let mut sub = subscribe(&bus).await;
    // What is settled on has its links then: the close has a few seconds for all that it asks.
    publish(&bus, 0).await;
    next(&mut sub).await.ack().await.unwrap();
    publish(&bus, 1).await;
    next(&mut sub).await.retry_after(LOCK * 4).await.unwrap();
    setup.emulator.faults().delay_frames(Duration::from_millis(100));
    bus.close().await.unwrap();
    setup.emulator.faults().clear();
    let bus = setup.queue(true).await;
    let mut sub = subscribe(&bus).await;
    let again = next(&mut sub).await;
    assert_eq!(again.attempt(), 2);
    again.ack().await.unwrap();
    bus.close().await.unwrap();
    setup.emulator.stop().await;
}

async fn forgotten_once_its_lock_has_run_out(parameters: &'static str, ordered: bool) {
    let setup = EmulatorSetup::new(parameters).await;
    let bus = setup.queue(ordered).await;
    publish(&bus, 0).await;
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(1).renew_locks(false).open().await.unwrap();
    let late = next(&mut sub).await;
    // What is in hand is not ready, though the broker counts it.
    assert_eq!(bus.stats(Source::queue("q")).await.unwrap().ready, Some(0));
    sleep(LOCK * 5 / 4).await;
    drop(late);
    sub.stop().await.unwrap();
    assert_eq!(bus.stats(Source::queue("q")).await.unwrap().ready, Some(1));
    bus.close().await.unwrap();
    setup.emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_lost_is_forgotten() {
    forgotten_once_its_lock_has_run_out("", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_was_lost_is_forgotten() {
    forgotten_once_its_lock_has_run_out("", true).await;
}

#[cfg(feature = "rest")]
#[tokio::test(flavor = "multi_thread")]
async fn over_https_what_was_lost_is_forgotten() {
    forgotten_once_its_lock_has_run_out("&transport=rest&poll=1s", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_message_is_lost_to_this_side_alone_goes_on_elsewhere() {
    let setup = EmulatorSetup::new("").await;
    let bus = setup.queue(true).await;
    publish(&bus, 0).await;
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(1).renew_locks(false).open().await.unwrap();
    let late = next(&mut sub).await;
    sleep(late.locked_until().unwrap() - Instant::now()).await;
    // The broker holds it for a moment longer.
    drop(late);
    let again = next(&mut sub).await;
    assert_eq!(again.attempt(), 2);
    again.ack().await.unwrap();
    bus.close().await.unwrap();
    setup.emulator.stop().await;
}
