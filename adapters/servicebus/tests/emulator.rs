//! The errors of connecting, and what only this broker does, against an emulator in this process.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use polybus_core::{
    Address, Bus, BusOptions, Delivery, Envelope, Error, ErrorKind, QueueSpec, Registry, RetrySafety, SettleError,
    Source, Subscription, SubscriptionSpec, TopicSpec, Topology,
};
use polybus_servicebus::{
    Native, ServicebusConnector,
    fe2o3_amqp::{
        Sender,
        types::{
            messaging::{ApplicationProperties, Message, Outcome, Properties},
            primitives::{SimpleValue, Symbol},
        },
    },
};
use polybus_servicebus_emulator::{
    Emulator, EmulatorOptions as Emulated, TlsIdentity,
    auth::AccessKey,
    broker::{Rule, RuleFilter},
};
use tokio::time::timeout;

fn with_key() -> Emulated {
    Emulated { key: Some(AccessKey::new("Root", "a+b/c=")), ..Emulated::default() }
}

fn url(emulator: &Emulator, login: &str) -> String {
    let (amqp, http) = (emulator.amqp_addr(), emulator.http_addr());
    format!("servicebus://{login}{amqp}?emulator=true&management=http://{http}")
}

async fn bus(emulator: &Emulator, topology: Topology) -> Bus {
    let registry = Registry::new().with(ServicebusConnector);
    let driver = registry.connect(&url(emulator, "Root:a%2Bb%2Fc=@")).await.unwrap();
    let mut options = BusOptions::topology(topology);
    options.publish_timeout = Duration::from_secs(120);
    let bus = Bus::new(driver, options).unwrap();
    bus.declare().await.unwrap();
    bus
}

async fn refused(url: &str) -> Error {
    let registry = Registry::new().with(ServicebusConnector);
    let connecting = timeout(Duration::from_secs(120), registry.connect(url)).await.expect("it is waited for");
    let e = connecting.map(|_| ()).unwrap_err();
    assert!(!format!("{e:?}").contains("s3cret"), "{e:?}");
    e
}

async fn next(sub: &mut Subscription) -> Delivery {
    timeout(Duration::from_secs(120), sub.next()).await.unwrap().unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_thing_that_is_wrong_has_a_kind_of_its_own() {
    let emulator = Emulator::start(with_key()).await.unwrap();
    assert_eq!(refused(&url(&emulator, "Root:s3cret@")).await.kind(), ErrorKind::Unauthenticated);
    assert_eq!(refused(&url(&emulator, "s3cret:a@")).await.kind(), ErrorKind::Unauthenticated);
    // Nobody listens there, and no test may.
    let port = 1;
    let e = refused(&format!("servicebus://Root:s3cret@127.0.0.1:{port}?tls=false")).await;
    assert_eq!(e.kind(), ErrorKind::Unavailable);
    assert!(e.to_string().contains(&format!("127.0.0.1:{port}")), "{e}");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap();
    let e = refused(&format!("servicebus://Root:s3cret@{silent}?tls=false&connect_timeout=500ms")).await;
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");

    let sessions = bus(&emulator, Topology::new().queue("s", QueueSpec::new().ordered(true))).await;
    // As a program sees it that does not know the queue has sessions.
    let plain = bus(&emulator, Topology::new().queue("s", QueueSpec::new())).await;
    let e = plain.publish(Address::queue("s"), Envelope::new("a", "")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidArgument, "{e}");
    let opened = plain.subscribe(Source::queue("s")).open().await;
    let e = match opened {
        Ok(mut sub) => timeout(Duration::from_secs(120), sub.next()).await.unwrap().unwrap().map(|_| ()).unwrap_err(),
        Err(e) => e,
    };
    assert_eq!(e.kind(), ErrorKind::InvalidArgument, "{e}");
    let e = plain.publish(Address::queue("none"), Envelope::new("a", "")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
    let e = plain.publish(Address::queue("s"), Envelope::new("a", vec![0; 300_000])).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::PayloadTooLarge, "{e}");
    sessions.close().await.unwrap();
    plain.close().await.unwrap();
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_takes_the_authority_it_was_given_and_no_other() {
    let any = "127.0.0.1:0".parse().unwrap();
    let options = Emulated { amqps: Some(any), tls: Some(TlsIdentity::self_signed().unwrap()), ..with_key() };
    let emulator = Emulator::start(options).await.unwrap();
    let cacert = std::env::temp_dir().join(format!("polybus-servicebus-{}.pem", std::process::id()));
    std::fs::write(&cacert, emulator.certificate().unwrap()).unwrap();
    let (port, http) = (emulator.amqps_addr().unwrap().port(), emulator.http_addr().port());
    let url = format!("servicebus://Root:a%2Bb%2Fc=@localhost:{port}?management=https://localhost:{http}");
    let topology = Topology::new().queue("q", QueueSpec::new());
    let driver = Registry::new().with(ServicebusConnector);
    let driver = driver.connect(&format!("{url}&cacert={}", cacert.display())).await.unwrap();
    let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    bus.publish(Address::queue("q"), Envelope::new("a", "x")).await.unwrap();
    bus.close().await.unwrap();
    assert_eq!(refused(&url).await.kind(), ErrorKind::Unauthenticated);
    std::fs::remove_file(&cacert).unwrap();
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_duplicate_detection_a_retry_is_no_duplicate() {
    let emulator = Emulator::start(with_key()).await.unwrap();
    let spec = QueueSpec::new().option("servicebus", serde_json::json!({ "duplicate_detection": "10m" }));
    let bus = bus(&emulator, Topology::new().queue("q", spec)).await;
    let (q, message) = (Address::queue("q"), Envelope::new("a", "x").source("s"));
    for _ in 0..2 {
        bus.publish(&q, message.clone()).await.unwrap();
    }
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(5).open().await.unwrap();
    let d = next(&mut sub).await;
    d.retry_after(Duration::from_millis(200)).await.unwrap();
    let d = next(&mut sub).await;
    assert_eq!((d.attempt(), &*d.envelope().id), (2, &*message.id));
    d.ack().await.unwrap();
    assert!(timeout(Duration::from_millis(500), sub.next()).await.is_err());
    bus.close().await.unwrap();
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_topic_has_rules_of_others_a_retry_is_held_in_place() {
    let emulator = Emulator::start(with_key()).await.unwrap();
    let both = TopicSpec::new().subscription("a", SubscriptionSpec::new()).subscription("b", SubscriptionSpec::new());
    let bus = bus(&emulator, Topology::new().topic("t", both)).await;
    let theirs = Rule { name: "theirs".into(), filter: RuleFilter::True, action: None, created_at: 0 };
    emulator.broker().add_rule("t", "b", theirs).unwrap();
    bus.publish(Address::topic("t"), Envelope::new("x", "x")).await.unwrap();
    let mut a = bus.subscribe(Source::subscription("t", "a")).open().await.unwrap();
    let mut b = bus.subscribe(Source::subscription("t", "b")).open().await.unwrap();
    next(&mut b).await.ack().await.unwrap();
    let began = Instant::now();
    next(&mut a).await.retry_after(Duration::from_secs(1)).await.unwrap();
    let again = next(&mut a).await;
    assert!(again.attempt() == 2 && began.elapsed() >= Duration::from_secs(1));
    again.ack().await.unwrap();
    assert!(timeout(Duration::from_millis(300), b.next()).await.is_err());
    bus.close().await.unwrap();
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purging_leaves_nothing_of_many() {
    let emulator = Emulator::start(with_key()).await.unwrap();
    let bus = bus(&emulator, Topology::new().queue("q", QueueSpec::new())).await;
    for _ in 0..2 {
        let many = (0..5_500).map(|n| Envelope::new("n", n.to_string()));
        bus.publish_all(Address::queue("q"), many).await.into_iter().for_each(|result| drop(result.unwrap()));
        assert_eq!(bus.purge(Source::queue("q")).await.unwrap(), 5_500);
        assert_eq!(bus.stats(Source::queue("q")).await.unwrap().ready, Some(0));
    }
    bus.close().await.unwrap();
    emulator.stop().await;
}

/// A purge ends though messages are published meanwhile, over both transports.
#[tokio::test(flavor = "multi_thread")]
async fn purging_ends_though_others_publish() {
    let emulator = Emulator::start(with_key()).await.unwrap();
    let topology = || Topology::new().queue("q", QueueSpec::new());
    let bus = bus(&emulator, topology()).await;
    let rest = format!("servicebus://Root:a%2Bb%2Fc=@{}?emulator=true&transport=rest&poll=1s", emulator.http_addr());
    let mut purging = vec![bus.clone()];
    if cfg!(feature = "rest") {
        let driver = Registry::new().with(ServicebusConnector).connect(&rest).await.unwrap();
        purging.push(Bus::new(driver, BusOptions::topology(topology())).unwrap());
    }
    let others = tokio::spawn({
        let bus = bus.clone();
        async move {
            loop {
                bus.publish(Address::queue("q"), Envelope::new("n", "x")).await.unwrap();
            }
        }
    });
    for purging in &purging {
        let purged = timeout(Duration::from_secs(300), purging.purge(Source::queue("q"))).await;
        assert!(purged.expect("it ends").unwrap() > 0);
    }
    assert!(!others.is_finished());
    others.abort();
    for bus in purging {
        bus.close().await.unwrap();
    }
    emulator.stop().await;
}

/// The AMQP binding allows two prefixes; polybus writes `cloudEvents_`.
#[tokio::test(flavor = "multi_thread")]
async fn events_of_others_pass_filters_and_are_read_whatever_their_prefix() {
    let emulator = Emulator::start(with_key()).await.unwrap();
    let orders = SubscriptionSpec::new().types(["order.*"]);
    let bus = bus(&emulator, Topology::new().topic("t", TopicSpec::new().subscription("s", orders))).await;
    let mut sub = bus.subscribe(Source::subscription("t", "s")).open().await.unwrap();
    let mut session = bus.native::<Native>().unwrap().session("t").await.unwrap();
    let mut sender = Sender::attach(&mut session, "other", "t").await.unwrap();
    for prefix in ["cloudEvents:", "cloudEvents_"] {
        for event_type in ["orders", "order.placed"] {
            let mut application = ApplicationProperties::default();
            for (name, value) in [("specversion", "1.0"), ("id", prefix), ("type", event_type), ("source", "/other")] {
                application.insert(format!("{prefix}{name}"), SimpleValue::String(value.into()));
            }
            let mut properties = Properties::new();
            properties.content_type = Some(Symbol::from("text/plain"));
            let message = Message::builder().properties(properties).application_properties(application);
            let sent = sender.send(message.data(b"x".to_vec()).build()).await.unwrap();
            assert!(matches!(sent, Outcome::Accepted(_)), "{sent:?}");
        }
        let came = next(&mut sub).await;
        let wanted = Envelope::bare("order.placed", "x").id(prefix).source("/other").content_type("text/plain");
        assert_eq!(came.envelope(), &wanted);
        came.ack().await.unwrap();
    }
    sender.close().await.unwrap();
    session.end().await.unwrap();
    bus.close().await.unwrap();
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn detached_links_and_dropped_connections_lose_nothing() {
    let emulator = Emulator::start(with_key()).await.unwrap();
    // Short locks, so that what is lost comes soon; a slow machine may lose some of them several times.
    let spec = QueueSpec::new().lock(Duration::from_secs(5)).max_deliveries(95);
    let bus = bus(&emulator, Topology::new().queue("q", spec)).await;
    let q = Address::queue("q");
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(10).open().await.unwrap();
    let publishing = tokio::spawn({
        let (bus, q) = (bus.clone(), q.clone());
        async move {
            for n in 0..300 {
                bus.publish(&q, Envelope::new("n", n.to_string())).await.unwrap();
            }
        }
    });
    let mut seen = std::collections::BTreeSet::new();
    let mut count = 0;
    while seen.len() < 300 {
        let d = next(&mut sub).await;
        seen.insert(String::from_utf8(d.envelope().data.to_vec()).unwrap());
        // If an answer is lost, the message is not settled and comes again.
        let _ = d.ack().await;
        count += 1;
        match count {
            50 => emulator.faults().detach("q", "amqp:link:detach-forced", "moved"),
            100 => emulator.faults().drop_connections(),
            150 => emulator.faults().lose_settlements(5),
            200 => emulator.faults().drop_after_frames(20),
            220 => emulator.faults().clear(),
            _ => {}
        }
    }
    publishing.await.unwrap();
    bus.close().await.unwrap();
    emulator.stop().await;
}

/// An ack may meet a lock that was lost with its link, or lose its answer with the link.
fn may_have_gone_with_its_link(acked: &Result<(), SettleError>) -> bool {
    let passes = |e: &Error| e.kind() == ErrorKind::LockLost || e.retry() == RetrySafety::MayDuplicate;
    acked.as_ref().err().is_none_or(|e| passes(e.error()))
}

/// The next delivery of this message. Other messages that come again are acked.
async fn take(sub: &mut Subscription, data: &str) -> Delivery {
    loop {
        let d = next(sub).await;
        if d.envelope().data == data.as_bytes() {
            return d;
        }
        let acked = d.ack().await;
        assert!(may_have_gone_with_its_link(&acked), "{acked:?}");
    }
}

/// Takes this message and acks it. True if the ack was `Ok`.
async fn handled(sub: &mut Subscription, data: &str) -> bool {
    let acked = take(sub, data).await.ack().await;
    assert!(may_have_gone_with_its_link(&acked), "{acked:?}");
    acked.is_ok()
}

/// Acks all messages that are left.
async fn handle_what_is_left(bus: &Bus, source: &Source, sub: &mut Subscription) {
    loop {
        let stats = bus.stats(source).await.unwrap();
        assert_eq!(stats.dead_lettered, Some(0));
        if [stats.ready, stats.in_flight, stats.delayed].iter().all(|n| n.is_none_or(|n| n == 0)) {
            return;
        }
        if let Ok(Some(d)) = timeout(Duration::from_millis(200), sub.next()).await {
            let _ = d.unwrap().ack().await;
        }
    }
}

async fn bus_of_two(emulator: &Emulator) -> (Bus, [(&'static str, Subscription); 2]) {
    let spec = || QueueSpec::new().max_deliveries(50);
    let bus = bus(emulator, Topology::new().queue("q", spec()).queue("s", spec().ordered(true))).await;
    let mut subs = Vec::new();
    for name in ["q", "s"] {
        let mut sub = bus.subscribe(Source::queue(name)).open().await.unwrap();
        bus.publish(Address::queue(name), Envelope::new("n", "first").key("k")).await.unwrap();
        assert!(handled(&mut sub, "first").await);
        subs.push((name, sub));
    }
    (bus, subs.try_into().ok().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_end_cost_nothing() {
    let emulator = Emulator::start(with_key()).await.unwrap();
    let (bus, mut subs) = bus_of_two(&emulator).await;
    for (name, sub) in &mut subs {
        let to = Address::queue(*name);
        for round in 0..5 {
            let data = |what: &str| format!("{what}-{round}");
            let publish = |what: &str| bus.publish(&to, Envelope::new("n", data(what)).key("k"));
            // With nothing in hand nobody notices.
            emulator.faults().end_tokens();
            publish("idle").await.unwrap();
            assert!(handled(sub, &data("idle")).await, "{name}");
            // With one in hand, its lock belongs to the queue, or is lost with the session's link.
            publish("acked").await.unwrap();
            let d = take(sub, &data("acked")).await;
            emulator.faults().end_tokens();
            match d.ack().await {
                Ok(()) => {}
                Err(e) if *name == "s" && e.error().kind() == ErrorKind::LockLost => {
                    assert!(handled(sub, &data("acked")).await, "{name}");
                }
                Err(e) => panic!("{name}: {e:?}"),
            }
            // A copy may have been stored though its answer was lost with the link.
            publish("retried").await.unwrap();
            let d = take(sub, &data("retried")).await;
            emulator.faults().end_tokens();
            let retried = d.retry_after(Duration::from_millis(50)).await;
            assert!(may_have_gone_with_its_link(&retried), "{name}: {retried:?}");
            // The error holds the delivery, which would be renewed as long as the error is kept.
            drop(retried);
            handled(sub, &data("retried")).await;
        }
        handle_what_is_left(&bus, &Source::queue(*name), sub).await;
    }
    bus.close().await.unwrap();
    emulator.stop().await;
}

/// The token has expired by the broker's clock, and a request comes before the broker has detached its link.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_meets_an_ended_token_is_asked_again_with_a_new_one() {
    let emulator = Emulator::start(with_key()).await.unwrap();
    let (bus, mut subs) = bus_of_two(&emulator).await;
    for (name, sub) in &mut subs {
        for data in ["acked", "retried"] {
            bus.publish(Address::queue(*name), Envelope::new("n", data).key("k")).await.unwrap();
        }
        let d = take(sub, "acked").await;
        emulator.faults().forget_tokens();
        d.ack().await.unwrap();
        let d = take(sub, "retried").await;
        emulator.faults().forget_tokens();
        d.retry_after(Duration::from_millis(50)).await.unwrap();
        assert!(handled(sub, "retried").await);
    }
    bus.close().await.unwrap();
    emulator.stop().await;
}

/// The broker's clock is nearly an hour ahead, so that tokens last some ten seconds. It is left to chance whether a
/// request, a link or nothing meets their end.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_end_by_the_brokers_clock_lose_nothing() {
    let emulator = Emulator::start(with_key()).await.unwrap();
    let (bus, mut subs) = bus_of_two(&emulator).await;
    // A new token now lasts as long as the first ones are old.
    tokio::time::sleep(Duration::from_secs(11)).await;
    emulator.clock().advance(Duration::from_secs(3_590));
    let began = Instant::now();
    let mut n = 0;
    while began.elapsed() < Duration::from_secs(15) {
        for (name, sub) in &mut subs {
            let data = format!("again-{n}");
            bus.publish(Address::queue(*name), Envelope::new("n", data.clone()).key("k")).await.unwrap();
            handled(sub, &data).await;
            n += 1;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (name, sub) in &mut subs {
        handle_what_is_left(&bus, &Source::queue(*name), sub).await;
    }
    bus.close().await.unwrap();
    emulator.stop().await;
}
