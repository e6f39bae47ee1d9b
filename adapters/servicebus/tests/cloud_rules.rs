//! What the service does in the cloud, and what an operator may do to an entity while it is consumed.
#![allow(clippy::unwrap_used)]

mod foreign;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use foreign::EmulatorSetup;
use futures_util::future::join_all;
use polybus_conformance::Proxy;
use polybus_core::{
    Address, Bus, BusOptions, Delivery, Envelope, ErrorKind, QueueSpec, Registry, Source, Subscription,
    SubscriptionSpec, TopicSpec, Topology,
    driver::{SettleRequest, Settlement},
    redrive::{RedriveOptions, RedriveVerdict},
};
use polybus_servicebus::ServicebusConnector;
use polybus_servicebus_emulator::{
    Emulator, EmulatorOptions,
    auth::{AccessKey, AccessRight, Rights},
    broker::{EntityStatus, NamespaceLimits, QueueSettings, Tier},
    faults::BusyOperation,
};
use tokio::time::{Instant, sleep, timeout};

async fn next(sub: &mut Subscription) -> Delivery {
    timeout(Duration::from_secs(120), sub.next()).await.expect("nothing came").unwrap().unwrap()
}

/// How long an entity is disabled; `POLYBUS_DISABLED_SECONDS=60` makes it as long as an operator may take.
fn maintenance() -> Duration {
    let seconds = std::env::var("POLYBUS_DISABLED_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(3))
}

#[cfg(feature = "rest")]
const REST: &str = "&transport=rest&poll=1s";

async fn a_queue_switched_off(parameters: &'static str, ordered: bool) {
    let setup = EmulatorSetup::new(parameters).await;
    let bus = setup.impatient_bus(Topology::new().queue("q", QueueSpec::new().ordered(ordered))).await;
    bus.declare().await.unwrap();
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    bus.publish(Address::queue("q"), Envelope::new("a", "1").key("k")).await.unwrap();
    next(&mut sub).await.ack().await.unwrap();
    let broker = setup.emulator.broker();
    let settings = broker.queue("q").unwrap().settings;
    let switch = |status| broker.update_queue("q", QueueSettings { status, ..settings.clone() }).unwrap();
    switch(EntityStatus::ReceiveDisabled);
    bus.publish(Address::queue("q"), Envelope::new("a", "2").key("k")).await.unwrap();
    let came = timeout(maintenance(), sub.next()).await;
    assert!(came.is_err(), "{came:?}");
    switch(EntityStatus::Active);
    let second = next(&mut sub).await;
    assert_eq!(&second.envelope().data[..], b"2");
    second.ack().await.unwrap();
    bus.close().await.unwrap();
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_switched_off_for_a_while_is_waited_for() {
    a_queue_switched_off("", false).await;
}

#[cfg(feature = "rest")]
#[tokio::test(flavor = "multi_thread")]
async fn over_https_a_queue_that_is_switched_off_for_a_while_is_waited_for() {
    a_queue_switched_off(REST, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_sessions_that_is_switched_off_for_a_while_is_waited_for() {
    a_queue_switched_off("", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_kept_longer_than_a_link_may_be_idle() {
    let setup = EmulatorSetup::new("").await;
    // The lock is renewed at half its time, so at least twice within this time.
    let idle = Duration::from_secs(12);
    setup.emulator.cloud().detach_idle_links(idle);
    let queue = QueueSpec::new().ordered(true).lock(Duration::from_secs(10));
    let bus = setup.bus(Topology::new().queue("q", queue)).await;
    bus.declare().await.unwrap();
    for n in 0..2 {
        bus.publish(Address::queue("q"), Envelope::new("a", n.to_string()).key("k")).await.unwrap();
    }
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let began = Instant::now();
    next(&mut sub).await.retry_after(idle * 2).await.unwrap();
    let again = next(&mut sub).await;
    assert!(began.elapsed() >= idle * 2, "{:?}", began.elapsed());
    assert_eq!((again.attempt(), &again.envelope().data[..]), (2, &b"0"[..]));
    again.ack().await.unwrap();
    bus.close().await.unwrap();
    setup.stop().await;
}

/// The key may not read the entity's settings, and the topology is wrong about its locks.
async fn locks_as_messages_tell(parameters: &'static str) {
    let setup =
        EmulatorSetup::with_key(parameters, Rights::NONE.with(AccessRight::Listen).with(AccessRight::Send)).await;
    let short = QueueSettings { lock_duration_ms: 15_000, ..QueueSettings::default() };
    setup.emulator.broker().create_queue("q", short).unwrap();
    let bus = setup.bus(Topology::new().queue("q", QueueSpec::new().lock(Duration::from_secs(60)))).await;
    for n in 0..4 {
        bus.publish(Address::queue("q"), Envelope::new("a", n.to_string())).await.unwrap();
    }
    // Old enough that a message's age tells nothing of its lock.
    sleep(Duration::from_secs(6)).await;
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(4).open().await.unwrap();
    let mut held = vec![next(&mut sub).await];
    sleep(Duration::from_secs(27)).await;
    for _ in 1..4 {
        held.push(next(&mut sub).await);
    }
    for delivery in held {
        assert_eq!(delivery.attempt(), 1);
        delivery.ack().await.unwrap();
    }
    bus.close().await.unwrap();
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_are_as_long_as_messages_tell_where_nothing_else_does() {
    locks_as_messages_tell("").await;
}

#[cfg(feature = "rest")]
#[tokio::test(flavor = "multi_thread")]
async fn over_https_locks_are_as_long_as_messages_tell_where_nothing_else_does() {
    locks_as_messages_tell(REST).await;
}

async fn a_busy_broker(parameters: &'static str) {
    let setup = EmulatorSetup::new(parameters).await;
    let bus = setup.bus(Topology::new().queue("q", QueueSpec::new())).await;
    bus.declare().await.unwrap();
    bus.publish(Address::queue("q"), Envelope::new("a", "1")).await.unwrap();
    setup.emulator.faults().be_busy(1, &[BusyOperation::Send]);
    let began = Instant::now();
    bus.publish(Address::queue("q"), Envelope::new("a", "2")).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(9), "{:?}", began.elapsed());
    bus.close().await.unwrap();
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_broker_is_left_alone_and_then_served() {
    a_busy_broker("").await;
}

#[cfg(feature = "rest")]
#[tokio::test(flavor = "multi_thread")]
async fn over_https_a_busy_broker_is_left_alone_and_then_served() {
    a_busy_broker(REST).await;
}

/// Messages that are held in place take places of the prefetch: no more than the prefetch is ever in hand.
async fn held_in_place(parameters: &'static str) {
    let setup = EmulatorSetup::new(parameters).await;
    let bus = setup.bus(Topology::new().queue("q", QueueSpec::new().lock(Duration::from_secs(20)))).await;
    bus.declare().await.unwrap();
    // Within `max_message_size`, with no room for a copy's counters.
    let foreign = setup.foreign().await;
    let full = || foreign::ForeignMessage::new(&"y".repeat((64 << 10) - 164)).id("a-message-id-of-36-characters-or-so");
    foreign.send_all("q", (0..6).map(|_| full())).await;
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(2).open().await.unwrap();
    for _ in 0..2 {
        next(&mut sub).await.retry_after(Duration::from_secs(30)).await.unwrap();
    }
    // Long before the first of them is over, on a slow machine as well.
    let came = timeout(Duration::from_secs(6), sub.next()).await;
    assert!(came.is_err(), "{came:?}");
    for _ in 0..6 {
        next(&mut sub).await.ack().await.unwrap();
    }
    bus.close().await.unwrap();
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_in_place_keeps_its_place_in_the_window() {
    held_in_place("&max_message_size=64KiB").await;
}

#[cfg(feature = "rest")]
#[tokio::test(flavor = "multi_thread")]
async fn over_https_what_is_held_in_place_keeps_its_place_in_the_window() {
    held_in_place("&max_message_size=64KiB&transport=rest&poll=1s").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordered_source_without_sessions_is_told_and_waits_for_nothing_in_silence() {
    let setup = EmulatorSetup::new("").await;
    setup.emulator.broker().create_queue("q", QueueSettings::default()).unwrap();
    let driver = polybus_core::Registry::new().with(polybus_servicebus::ServicebusConnector);
    let driver = driver.connect(&setup.url("")).await.unwrap();
    let topology = Topology::new().queue("q", QueueSpec::new().ordered(true));
    let mut entity = topology.source(&Source::queue("q"));
    entity.prefetch = 4;
    let (mut receiver, settler) = driver.open_receiver(&entity).await.unwrap();
    for _ in 0..3 {
        let e = timeout(Duration::from_secs(120), receiver.receive(1)).await.unwrap().unwrap_err();
        assert!(e.kind() == ErrorKind::InvalidArgument && e.to_string().contains("sessions"), "{e}");
    }
    receiver.close().await.unwrap();
    settler.close().await.unwrap();
    driver.close().await.unwrap();
    setup.stop().await;
}

/// Counts how often the broker has sent these words.
fn listening(words: &'static [u8], said: &Arc<AtomicUsize>) -> polybus_conformance::ByteFilter {
    let (said, mut end) = (said.clone(), Vec::new());
    Box::new(move |bytes| {
        let seen = [&end[..], bytes].concat();
        let found = seen.windows(words.len()).filter(|window| *window == words).count();
        said.fetch_add(found, Ordering::Relaxed);
        end = seen[seen.len().saturating_sub(words.len() - 1)..].to_vec();
        bytes.to_vec()
    })
}

/// A bus behind proxies that count what the broker says.
struct ObservedBus {
    bus: Bus,
    said: Arc<AtomicUsize>,
    _proxies: [Proxy; 2],
}

impl ObservedBus {
    async fn new(emulator: &Emulator, parameters: &str, topology: Topology, words: &'static [u8]) -> Self {
        let said = Arc::new(AtomicUsize::new(0));
        let proxy = async |to: SocketAddr| {
            let said = said.clone();
            Proxy::filtered(to.to_string(), move || listening(words, &said)).await.unwrap()
        };
        let (amqp, http) = (proxy(emulator.amqp_addr()).await, proxy(emulator.http_addr()).await);
        let url = format!("servicebus://{}?emulator=true&management=http://{}{parameters}", amqp.addr(), http.addr());
        let driver = Registry::new().with(ServicebusConnector).connect(&url).await.unwrap();
        let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
        Self { bus, said, _proxies: [amqp, http] }
    }

    fn said(&self) -> usize {
        self.said.load(Ordering::Relaxed)
    }
}

/// Large messages are allowed, and still no batch is larger than 1 MiB.
async fn batches_towards_large_messages(parameters: &'static str) {
    const LIMIT: usize = 4 << 20;
    let limits = NamespaceLimits { tier: Tier::Premium, max_message_bytes: LIMIT as u64, ..NamespaceLimits::default() };
    let emulator = Emulator::start(EmulatorOptions { limits, ..EmulatorOptions::default() }).await.unwrap();
    let topology = Topology::new().queue("q", QueueSpec::new());
    let observed = ObservedBus::new(&emulator, parameters, topology, b"the limit").await;
    let bus = &observed.bus;
    bus.declare().await.unwrap();
    // Together they are far more than a batch. All but one fit into a batch, and the one can only go alone.
    let sizes: Vec<usize> = (0..24).map(|n| if n == 11 { 2 << 20 } else { 300_000 + n }).collect();
    let messages = sizes.iter().map(|size| Envelope::new("a", vec![b'x'; *size]));
    for result in bus.publish_all(Address::queue("q"), messages.collect::<Vec<_>>()).await {
        result.unwrap();
    }
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(24).open().await.unwrap();
    let mut came = Vec::new();
    for _ in &sizes {
        let delivery = next(&mut sub).await;
        came.push(delivery.envelope().data.len());
        // Copies of several at once keep to it as well.
        delivery.dead_letter("no", "").await.unwrap();
    }
    came.sort_unstable();
    let mut wanted = sizes.clone();
    wanted.sort_unstable();
    assert_eq!(came, wanted);
    let moved = bus.redrive(Source::queue("q"), |_| true, usize::MAX).await.unwrap();
    assert_eq!(moved.moved, 24, "{moved}");
    assert_eq!(observed.said(), 0, "the broker was sent more than it takes");
    let mut held = Vec::new();
    for _ in &sizes {
        held.push(next(&mut sub).await);
    }
    let retries = held.into_iter().map(|delivery| delivery.retry_after(Duration::from_millis(200)));
    for result in join_all(retries).await {
        result.unwrap();
    }
    for _ in &sizes {
        let again = next(&mut sub).await;
        assert_eq!(again.attempt(), 2);
        again.ack().await.unwrap();
    }
    bus.close().await.unwrap();
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_batch_is_larger_than_the_service_takes_though_a_message_may_be() {
    batches_towards_large_messages("&max_message_size=4MiB").await;
}

#[cfg(feature = "rest")]
#[tokio::test(flavor = "multi_thread")]
async fn over_https_no_batch_is_larger_than_the_service_takes_though_a_message_may_be() {
    batches_towards_large_messages("&max_message_size=4MiB&transport=rest&poll=1s").await;
}

/// The first refusals tell that the entity has partitions. From then on no batch is sent that would be refused.
/// Requests for locks of several partitions are never sent.
async fn partitions(ordered: bool) {
    const N: usize = 120;
    let emulator = Emulator::start(EmulatorOptions::default()).await.unwrap();
    let settings = QueueSettings { enable_partitioning: true, requires_session: ordered, ..QueueSettings::default() };
    emulator.broker().create_queue("q", settings).unwrap();
    let topology = Topology::new().queue("q", QueueSpec::new().ordered(ordered));
    let words = b"is not supported for an entity with partitioning";
    let observed = ObservedBus::new(&emulator, "", topology, words).await;
    let bus = &observed.bus;
    let mut learnt = 0;
    for round in 0..3 {
        let messages = (0..N).map(|n| Envelope::new("a", n.to_string()).key(format!("k{}", n % 4)));
        for result in bus.publish_all(Address::queue("q"), messages.collect::<Vec<_>>()).await {
            result.unwrap();
        }
        if round == 0 {
            learnt = observed.said();
        }
    }
    assert_eq!(observed.said(), learnt, "batches were refused after the first ones");
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(N).open().await.unwrap();
    let mut left = 3 * N;
    while left > 0 {
        // A session has one message in hand at a time.
        let some = if ordered { 1 } else { N };
        let mut held = Vec::new();
        for _ in 0..some {
            held.push(next(&mut sub).await);
        }
        left -= some;
        for acked in join_all(held.into_iter().map(Delivery::ack)).await {
            acked.unwrap();
        }
    }
    assert_eq!(observed.said(), learnt, "settlements were refused");
    bus.close().await.unwrap();
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_learnt_of_once() {
    partitions(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_of_sessions_are_learnt_of_once() {
    partitions(true).await;
}

/// As if an operator had changed a key, or a network refused logins for a while.
async fn a_login_refused(parameters: &'static str) {
    let setup = EmulatorSetup::with_key(parameters, Rights::ALL).await;
    let bus = setup.impatient_bus(Topology::new().queue("q", QueueSpec::new())).await;
    bus.declare().await.unwrap();
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    bus.publish(Address::queue("q"), Envelope::new("a", "1")).await.unwrap();
    next(&mut sub).await.ack().await.unwrap();
    let (emulator, key) = (&setup.emulator, |secret: &str| AccessKey::new("some", secret));
    emulator.keys().put(key("changed"));
    emulator.faults().drop_connections();
    let came = timeout(maintenance(), sub.next()).await;
    assert!(came.is_err(), "{came:?}");
    emulator.keys().put(key("secret"));
    bus.publish(Address::queue("q"), Envelope::new("a", "2")).await.unwrap();
    let second = next(&mut sub).await;
    assert_eq!(&second.envelope().data[..], b"2");
    second.ack().await.unwrap();
    bus.close().await.unwrap();
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_refused_for_a_while_is_waited_for() {
    a_login_refused("").await;
}

#[cfg(feature = "rest")]
#[tokio::test(flavor = "multi_thread")]
async fn over_https_a_login_that_is_refused_for_a_while_is_waited_for() {
    a_login_refused(REST).await;
}

/// A message that a redrive sends back carries its mark, also if it was edited, so that it is recognised if it is
/// dead-lettered again; and its redrives are counted.
async fn a_redrive_marks_what_it_sends_back(parameters: &'static str) {
    let setup = EmulatorSetup::new(parameters).await;
    let topic = TopicSpec::new().subscription("s", SubscriptionSpec::new());
    let topology = Topology::new().queue("q", QueueSpec::new()).topic("t", topic);
    let (bus, driver) = (setup.bus(topology.clone()).await, setup.driver().await);
    bus.declare().await.unwrap();
    for (address, source) in
        [(Address::queue("q"), Source::queue("q")), (Address::topic("t"), Source::subscription("t", "s"))]
    {
        for n in ["1", "2"] {
            bus.publish(&address, Envelope::new("a", n)).await.unwrap();
        }
        let mut marks = BTreeSet::new();
        for round in 1..3 {
            let mut sub = bus.subscribe(source.clone()).open().await.unwrap();
            for _ in 0..2 {
                next(&mut sub).await.dead_letter("no", "").await.unwrap();
            }
            sub.close().await.unwrap();
            let redriven =
                bus.redrive_each(&source, RedriveOptions::new(), |letter| match &letter.envelope().data[..] {
                    b"1" => RedriveVerdict::Redrive,
                    _ => RedriveVerdict::RedriveAs(letter.edited().header(format!("edited-{round}"), "yes")),
                });
            let redriven = redriven.await.unwrap();
            assert_eq!((redriven.moved, redriven.read), (2, 2), "{redriven}");
            let mut sub = bus.subscribe(source.clone()).open().await.unwrap();
            for back in [next(&mut sub).await, next(&mut sub).await] {
                let edited = back.envelope().headers.get(&format!("edited-{round}")).is_some();
                assert_eq!((back.attempt(), edited), (1, &back.envelope().data[..] == b"2"));
                // The copy of a retry carries the mark too.
                match round {
                    1 => back.release().await.unwrap(),
                    _ => back.retry_after(Duration::from_millis(100)).await.unwrap(),
                }
            }
            for _ in 0..2 {
                next(&mut sub).await.dead_letter("again", "").await.unwrap();
            }
            sub.close().await.unwrap();
            let mut entity = topology.source(&source.dead_letters());
            entity.prefetch = 4;
            let (mut receiver, settler) = driver.open_receiver(&entity).await.unwrap();
            let (mut told, mut back) = (Vec::new(), Vec::new());
            while told.len() < 2 {
                for letter in timeout(Duration::from_secs(120), receiver.receive(4)).await.unwrap().unwrap() {
                    marks.insert(letter.mark.expect("a mark"));
                    told.push(letter.dead_letter.unwrap().redriven);
                    back.push(SettleRequest::new(letter.token, letter.envelope, letter.attempt, Settlement::Redrive));
                }
            }
            assert_eq!((told, marks.len()), (vec![round * 2 - 1; 2], round as usize), "{source}");
            for done in settler.settle(&back).await {
                done.unwrap();
            }
            receiver.close().await.unwrap();
            settler.close().await.unwrap();
        }
    }
    bus.close().await.unwrap();
    driver.close().await.unwrap();
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_redrive_sends_back_is_marked_and_counted() {
    a_redrive_marks_what_it_sends_back("").await;
}

#[cfg(feature = "rest")]
#[tokio::test(flavor = "multi_thread")]
async fn over_https_what_a_redrive_sends_back_is_marked_and_counted() {
    a_redrive_marks_what_it_sends_back(REST).await;
}
