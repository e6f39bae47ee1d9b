//! Over HTTPS, against an emulator in this process: what the conformance suite cannot see.
#![cfg(feature = "rest")]
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use polybus_core::{
    Address, Bus, BusOptions, Delivery, Envelope, Error, ErrorKind, QueueSpec, Registry, Result, Source, Subscription,
    SubscriptionSpec, TopicSpec, Topology,
    driver::{Driver, SettleRequest, Settlement},
    topology::Entity,
};
use polybus_servicebus::ServicebusConnector;
use polybus_servicebus_emulator::{Emulator, EmulatorOptions, auth::AccessKey, broker::QueueSettings};
use tokio::time::timeout;

async fn emulator(key: Option<AccessKey>) -> Emulator {
    Emulator::start(EmulatorOptions { key, ..EmulatorOptions::default() }).await.unwrap()
}

fn url(emulator: &Emulator, login: &str, parameters: &str) -> String {
    polling(emulator, login, "1s", parameters)
}

/// The same, and a request waits at the broker for so long.
fn polling(emulator: &Emulator, login: &str, poll: &str, parameters: &str) -> String {
    format!("servicebus://{login}{}?emulator=true&transport=rest&poll={poll}{parameters}", emulator.http_addr())
}

async fn driver(url: &str) -> Result<Arc<dyn Driver>> {
    Registry::new().with(ServicebusConnector).connect(url).await
}

async fn bus(url: &str, topology: Topology) -> Bus {
    let bus = Bus::new(driver(url).await.unwrap(), BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    bus
}

fn topology() -> Topology {
    let billing = SubscriptionSpec::new().types(["order.*"]);
    Topology::new().queue("q", QueueSpec::new()).topic("t", TopicSpec::new().subscription("billing", billing))
}

async fn next(sub: &mut Subscription) -> Delivery {
    timeout(Duration::from_secs(120), sub.next()).await.unwrap().unwrap().unwrap()
}

fn queue() -> Entity<Source> {
    Entity::new(Source::queue("q"), "q")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_late_answer_brings_is_given_back() {
    let emulator = emulator(None).await;
    let driver = driver(&polling(&emulator, "", "7s", "")).await.unwrap();
    emulator.broker().create_queue("q", QueueSettings::default()).unwrap();
    let other = bus(&url(&emulator, "", ""), Topology::new().queue("q", QueueSpec::new())).await;
    let (mut receiver, settler) = driver.open_receiver(&queue()).await.unwrap();
    // The request waits at the broker, and nobody waits for its answer any more.
    assert!(timeout(Duration::from_millis(100), receiver.receive(1)).await.is_err());
    other.publish(Address::queue("q"), Envelope::new("a", "1")).await.unwrap();
    receiver.close().await.unwrap();
    settler.close().await.unwrap();
    let mut sub = other.subscribe(Source::queue("q")).open().await.unwrap();
    let came = timeout(Duration::from_secs(120), sub.next()).await.expect("it is still locked").unwrap().unwrap();
    assert_eq!(came.attempt(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_receive_is_taken_up_by_the_next() {
    let emulator = emulator(None).await;
    let driver = driver(&polling(&emulator, "", "7s", "")).await.unwrap();
    emulator.broker().create_queue("q", QueueSettings::default()).unwrap();
    let other = bus(&url(&emulator, "", ""), Topology::new().queue("q", QueueSpec::new())).await;
    let (mut receiver, settler) = driver.open_receiver(&queue()).await.unwrap();
    assert!(timeout(Duration::from_millis(100), receiver.receive(5)).await.is_err());
    other.publish(Address::queue("q"), Envelope::new("a", "1")).await.unwrap();
    let mut came = receiver.receive(5).await.unwrap();
    if came.is_empty() {
        // The request had ended by then. A message that was lost with it would come at its second attempt.
        came = receiver.receive(5).await.unwrap();
    }
    assert_eq!((came.len(), came[0].attempt), (1, 1));
    let settle = SettleRequest::new(came[0].token.clone(), came[0].envelope.clone(), 1, Settlement::Ack);
    settler.settle(std::slice::from_ref(&settle)).await.pop().unwrap().unwrap();
    assert_eq!(settler.settle(&[settle]).await.pop().unwrap().unwrap_err().kind(), ErrorKind::LockLost);
    receiver.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ack_whose_answer_was_lost_settles_and_harms_nothing() {
    let emulator = emulator(None).await;
    let bus = bus(&url(&emulator, "", ""), topology()).await;
    bus.publish(Address::queue("q"), Envelope::new("a", "1")).await.unwrap();
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(1).open().await.unwrap();
    let held = next(&mut sub).await;
    emulator.faults().lose_answers(1);
    // It was carried out, so the repeated request is told that there is no such lock.
    let answer = held.ack().await;
    assert!(answer.is_err_and(|e| Error::from(e).kind() == ErrorKind::LockLost));
    assert!(timeout(Duration::from_secs(1), sub.next()).await.is_err(), "it came again");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_checked_and_never_shown() {
    let emulator = emulator(Some(AccessKey::new("root", "s3cret"))).await;
    bus(&url(&emulator, "root:s3cret@", ""), topology()).await;
    let e = driver(&url(&emulator, "root:wr0ng@", "")).await.map(|_| ()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unauthenticated, "{e}");
    assert!(!format!("{e:?} {e}").contains("wr0ng"));
    let e = driver(&url(&emulator, "", "")).await.map(|_| ()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unauthenticated, "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_may_be_away() {
    let emulator = emulator(None).await;
    let url = url(&emulator, "", "&connect_timeout=1s");
    emulator.stop().await;
    assert_eq!(driver(&url).await.map(|_| ()).unwrap_err().kind(), ErrorKind::Unavailable);
}

/// One bus over HTTP, and one over AMQP that finds nothing to declare.
async fn both_ways(emulator: &Emulator) -> (Bus, Bus) {
    let rest = bus(&url(emulator, "", ""), topology()).await;
    let port = emulator.http_addr().port();
    let amqp = format!("servicebus://{}?emulator=true&management=http://127.0.0.1:{port}", emulator.amqp_addr());
    let amqp = Bus::new(driver(&amqp).await.unwrap(), BusOptions::topology(topology())).unwrap();
    assert_eq!(amqp.declare().await.unwrap().differences, []);
    (rest, amqp)
}

/// Envelopes with all that HTTP would lose or change if it could.
fn envelopes() -> Vec<Envelope> {
    let full = Envelope::new("order.placed", &b"\0\xff{}\r\n"[..])
        .id("é\u{7f}")
        .source("/shop")
        .subject("a: b, c")
        .schema_version(3)
        .correlation_id("c")
        .causation_id("d")
        .key("k")
        .sequence(7)
        .expires_at(time::OffsetDateTime::now_utc() + Duration::from_secs(300));
    let headers =
        full.clone().header("zeta", "ü").header("Alpha", "").header("x-Request-Id", " \"1\" ").header("n", "7");
    let claimed =
        full.clone().header("Host", "example").header("date", "today").header("a", "b").header("x-ms-it", "1");
    let many = (0..64).fold(full.clone(), |e, n| e.header(format!("h{n}"), n.to_string()));
    let none = Envelope::new("order.placed", "").source("/shop").edit(|p| p.content_type = None);
    let odd = full.clone().content_type("text/plain; x=ü");
    let inner = full.clone().content_type("application/cloudevents+json");
    vec![full, headers, claimed, many, none, odd, inner]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_transport_reads_what_the_other_published_exactly() {
    let emulator = emulator(None).await;
    let (rest, amqp) = both_ways(&emulator).await;
    for (from, to) in [(&amqp, &rest), (&rest, &amqp)] {
        for (address, source) in
            [(Address::queue("q"), Source::queue("q")), (Address::topic("t"), Source::subscription("t", "billing"))]
        {
            let mut sub = to.subscribe(source).prefetch(1).open().await.unwrap();
            for sent in envelopes() {
                from.publish(&address, sent.clone()).await.unwrap();
                let came = next(&mut sub).await;
                assert_eq!(came.envelope(), &sent);
                // Copies keep it.
                came.retry_after(Duration::from_millis(1)).await.unwrap();
                let came = next(&mut sub).await;
                assert_eq!((came.envelope(), came.attempt()), (&sent, 2));
                came.ack().await.unwrap();
            }
            sub.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_over_amqp_read_what_was_published_over_https() {
    let emulator = emulator(None).await;
    let (rest, amqp) = both_ways(&emulator).await;

    let sent = Envelope::new("order.placed", &b"\0\xff"[..]).header("Tenant", "ü").key("k");
    for to in [Address::queue("q"), Address::topic("t")] {
        // Alone, and in a batch.
        rest.publish(&to, sent.clone()).await.unwrap();
        for result in rest.publish_all(&to, vec![sent.clone(), sent.clone()]).await {
            result.unwrap();
        }
        rest.publish(&to, Envelope::new("orders", "")).await.unwrap();
    }
    for (source, all) in [(Source::queue("q"), 4), (Source::subscription("t", "billing"), 3)] {
        let mut sub = amqp.subscribe(source).open().await.unwrap();
        for n in 0..all {
            let came = next(&mut sub).await;
            if n < 3 {
                assert_eq!(came.envelope().data, sent.data);
                assert_eq!(came.envelope().headers, sent.headers);
                assert_eq!(came.envelope().id, sent.id);
            }
            came.ack().await.unwrap();
        }
        assert!(timeout(Duration::from_millis(300), sub.next()).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_dead_letters_itself_is_read_beside_the_copies() {
    let emulator = emulator(None).await;
    let bus = bus(&url(&emulator, "", ""), topology()).await;
    let settings = QueueSettings { max_delivery_count: 1, ..emulator.broker().queue("q").unwrap().settings };
    emulator.broker().update_queue("q", settings).unwrap();
    for n in ["1", "2"] {
        bus.publish(Address::queue("q"), Envelope::new("a", n)).await.unwrap();
    }
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(2).open().await.unwrap();
    next(&mut sub).await.release().await.unwrap();
    next(&mut sub).await.dead_letter("unfit", "no use").await.unwrap();
    let mut dead = bus.subscribe(Source::queue("q").dead_letters()).prefetch(1).open().await.unwrap();
    let mut reasons = Vec::new();
    for _ in 0..2 {
        let letter = next(&mut dead).await;
        reasons.push(letter.dead_letter_info().unwrap().reason.clone().unwrap());
        letter.ack().await.unwrap();
    }
    reasons.sort();
    assert_eq!(reasons, ["max-deliveries-exceeded".into(), Box::<str>::from("unfit")]);
    bus.close().await.unwrap();
}
